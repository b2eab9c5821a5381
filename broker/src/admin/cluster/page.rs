//! The cluster and its replicas as JSON.
//!
//! Never: lists without a bound: what may be many is counted, and its first [`LISTED_MAX`] are named.

use super::Look;
use super::health::{Health, Placed, state_of};
use super::led::Led;
use crate::cluster::controller::Reach;
use crate::cluster::leaders::Condition;
use crate::partition::PartitionHandle;
use crate::peer::{LinkState, LinkView};
use crate::replication::metadata::{
    BrokerCard, LossReason, Move, Partition, Placement, Recovery, Stage, Standing,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use weir_protocol::peer::{Lane, Side};
use weir_protocol::types::{BrokerId, ReplicaId};

/// Of what may be many, so many are named.
pub(super) const LISTED_MAX: usize = 100;

/// The whole page.
pub(super) fn cluster_json(look: &Look) -> Value {
    let (catalog, health) = (&look.catalog, Health::of(look));
    let told = Told { look, health: &health, conditions: look.leaders.conditions() };
    let reach = look.reach();
    let brokers = catalog.brokers.values().map(|card| {
        let reach = reach.get(&card.id).copied().unwrap_or(Reach::Quiet);
        told.broker_json(card, reach)
    });
    let moves = catalog.moves.iter().map(|(joins, moving)| move_json(look, *joins, *moving));
    let (brokers, moves): (Vec<_>, Vec<_>) = (brokers.collect(), moves.collect());
    json!({
        "cluster": format!("{:032x}", catalog.cluster),
        "gate": catalog.gate,
        "told_by": look.name_of(look.me.0),
        "metadata": {
            "leader": look.metadata_leader(&reach).map(|leader| look.name_of(leader)),
            "replicas": catalog.metadata.iter().map(|here| copy_json(look, here)).collect::<Vec<_>>(),
            "recovery": recovery_json(catalog.recovery),
        },
        "brokers": brokers,
        "moves": moves,
        "leaderless": listed(health.leaderless.iter().map(|placed| partition_key(*placed))),
        "under_replicated": listed(health.under_replicated.iter().map(|(placed, there)| {
            let mut row = partition_key(*placed);
            (row["replicas"], row["there"]) = (json!(placed.0.replicas), json!(there));
            row
        })),
        "lost": listed(health.lost.iter().map(|(placed, here, reason)| {
            let mut row = placed.map_or_else(|| json!({ "log": "metadata" }), partition_key);
            row["broker"] = json!(look.name_of(here.broker));
            row["replica"] = json!(here.replica.0);
            row["reason"] = json!(loss_word(*reason));
            row
        })),
        "recoveries": listed(recovered(look).map(|placed| {
            let mut row = partition_key(placed);
            row["recovery"] = json!(recovery_json(placed.1.recovery));
            row
        })),
        "links": look.links.iter().map(|link| link_json(look, link)).collect::<Vec<_>>(),
    })
}

/// How many there are, and the first of them.
fn listed(rows: impl Iterator<Item = Value>) -> Value {
    let mut rows = rows;
    let first: Vec<Value> = rows.by_ref().take(LISTED_MAX).collect();
    json!({ "count": first.len() + rows.count(), "first": first })
}

fn partition_key((topic, partition): Placed<'_>) -> Value {
    json!({ "topic": topic.name.as_str(), "partition": partition.id.0 })
}

/// What is said of brokers.
struct Told<'a> {
    look: &'a Look,
    health: &'a Health<'a>,
    conditions: BTreeMap<BrokerId, Condition>,
}

impl Told<'_> {
    fn broker_json(&self, card: &BrokerCard, reach: Reach) -> Value {
        let facts = card.facts.as_ref();
        let count = |of: &BTreeMap<BrokerId, usize>| of.get(&card.id).copied().unwrap_or(0);
        let keeps = |here: &&Placement| here.broker == card.id;
        let copy = self.look.catalog.metadata.iter().find(keeps);
        let condition = self.conditions.get(&card.id).map(|told| {
            let heard = self.look.now.saturating_duration_since(told.heard);
            json!({
                "heard_ms": heard.as_millis() as u64,
                "free_bytes": told.free_bytes,
                "draining": told.going,
                "gate": told.gate,
            })
        });
        json!({
            "id": card.id.0,
            "name": self.look.name_of(card.id),
            "client": facts.map(|facts| facts.client.as_str()),
            "peer": facts.map(|facts| facts.peer.as_str()),
            "rack": facts.map(|facts| facts.rack.as_str()),
            "standing": standing_word(card.standing),
            "state": state_of(card, reach),
            "condition": condition,
            "replicas": count(&self.health.held),
            "led": count(&self.health.led),
            "metadata_copy": copy.is_some(),
            "metadata_vote": copy.is_some_and(|copy| copy.stage == Stage::Voter),
        })
    }
}

fn copy_json(look: &Look, here: &Placement) -> Value {
    json!({
        "broker": look.name_of(here.broker),
        "replica": here.replica.0,
        // A copy that does not vote is kept as one that joins for ever.
        "stage": if here.stage == Stage::Joining { "learner" } else { stage_word(here.stage) },
    })
}

fn move_json(look: &Look, joins: ReplicaId, moving: Move) -> Value {
    let topic = look.catalog.topics.values().find(|topic| topic.id == moving.topic);
    let partition = look.catalog.partition(moving.topic, moving.partition);
    let placed = |replica| partition.and_then(|partition| partition.replica(replica));
    let joining = placed(joins);
    let leaving = moving.replaces.and_then(placed);
    json!({
        "topic": topic.map(|topic| topic.name.as_str()),
        "partition": moving.partition.0,
        "from": leaving.map(|here| look.name_of(here.broker)),
        "to": joining.map(|here| look.name_of(here.broker)),
        "replica": joins.0,
        "stage": joining.map(|here| stage_word(here.stage)),
    })
}

fn recovered(look: &Look) -> impl Iterator<Item = Placed<'_>> {
    let partitions = look.catalog.partitions().map(|(topic, partition)| (&**topic, partition));
    partitions.filter(|(_, partition)| partition.recovery.epoch > 0)
}

/// None where nothing was ever given up.
fn recovery_json(recovery: Recovery) -> Option<Value> {
    (recovery.epoch > 0).then(|| {
        json!({
            "epoch": recovery.epoch,
            "lost_after": recovery.lost_after.0,
            "created_ms": recovery.created_ms,
        })
    })
}

fn link_json(look: &Look, link: &LinkView) -> Value {
    let (state, reason) = match link.state {
        LinkState::Refused(refusal) => ("refused", Some(refusal.sentence())),
        state => (link_word(state), None),
    };
    let since = look.now.saturating_duration_since(link.since);
    json!({
        "broker": if link.name.is_empty() { look.name_of(link.broker) } else { link.name.clone() },
        "address": link.address,
        "lane": lane_word(link.lane),
        "side": match link.side {
            Side::Dialer => "dialer",
            Side::Acceptor => "acceptor",
        },
        "state": state,
        "reason": reason,
        "since_ms": since.as_millis() as u64,
        "bytes_in": link.bytes_in,
        "bytes_out": link.bytes_out,
    })
}

/// What a link is called by what it carries.
pub(super) fn lane_word(lane: Lane) -> &'static str {
    match lane {
        Lane::Control => "control",
        Lane::Bulk => "bulk",
    }
}

/// How a link stands, as metrics and people are told.
pub(super) fn link_word(state: LinkState) -> &'static str {
    match state {
        LinkState::Connecting => "connecting",
        LinkState::Refused(_) => "refused",
        LinkState::Open => "open",
    }
}

/// Adds to what is shown of a partition who leads it and who holds it. `here`: the partition where it
/// is open on this broker.
pub(in crate::admin) fn partition_json(
    mut row: Value,
    look: &Look,
    partition: &Partition,
    here: Option<&PartitionHandle>,
) -> Value {
    let led = here.and_then(Led::of);
    let told = look.leaders.leader_of(&partition.replicas, look.now);
    // What is led here is known before it was told to anybody.
    let own = led.as_ref().and_then(|_| {
        let replica = here?.replica()?.id();
        Some((replica, here?.view().term))
    });
    let leader = own.or_else(|| told.map(|leader| (leader.led.replica, leader.led.term)));
    let leads = leader.and_then(|(replica, _)| partition.replica(replica));
    row["leader"] = json!(leads.map(|here| look.name_of(here.broker)));
    row["term"] = json!(leads.and(leader).map(|(_, term)| term.0));
    row["preferred"] = json!(look.preferred(partition));
    let replicas = partition.replicas.iter().map(|here| {
        replica_json(
            look,
            here,
            leads.is_some_and(|leads| leads.replica == here.replica),
            led.as_ref(),
        )
    });
    row["replicas"] = replicas.collect();
    row
}

fn replica_json(look: &Look, here: &Placement, leads: bool, led: Option<&Led>) -> Value {
    let progress = led.and_then(|led| led.others.get(&here.replica));
    let reason = match here.stage {
        Stage::Lost(reason) => Some(loss_word(reason)),
        _ => None,
    };
    json!({
        "broker": look.name_of(here.broker),
        "broker_id": here.broker.0,
        "replica": here.replica.0,
        "stage": stage_word(here.stage),
        "lost": reason,
        "leads": leads,
        "lag_bytes": progress.map(|progress| progress.lag_bytes),
        "answers": progress.map(|progress| progress.answers),
    })
}

fn standing_word(standing: Standing) -> &'static str {
    match standing {
        Standing::Active => "active",
        Standing::Draining => "draining",
    }
}

/// What a replica is to its group, in one word.
pub(super) fn stage_word(stage: Stage) -> &'static str {
    match stage {
        Stage::Joining => "joining",
        Stage::Ready => "ready",
        Stage::Voter => "voter",
        Stage::Leaving => "leaving",
        Stage::Lost(_) => "lost",
    }
}

fn loss_word(reason: LossReason) -> &'static str {
    match reason {
        LossReason::Empty => "its folder was empty",
        LossReason::Damaged => "its log is damaged",
        LossReason::Unclean => "its machine went down and it promised no more than memory",
        LossReason::GivenUp => "it was given up",
    }
}
