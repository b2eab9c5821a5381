//! The cluster as this broker knows it, for people and for what they want of it.
//!
//! The rooms: `health` (what is not as it shall be), `page` (how it is shown), `orders` (what is
//! wanted, as a command of the metadata), `steer` (the routes that change something), `gauges` (the
//! numbers of the scraped page), `led` (what only a leader knows).
//!
//! Owns: [`Look`]: the metadata, what brokers told and the links, read once for one answer.
//! Never: asks another broker: what is not known here is not said.
//! Invariant: brokers are named wherever people read, and a name is taken wherever an id is.

mod gauges;
mod health;
mod led;
mod orders;
mod page;
mod steer;
#[cfg(test)]
mod tests;

pub(super) use gauges::render;
pub(super) use page::partition_json;
pub(super) use steer::{add, balance, drain, move_replica, remove};

use super::{Answer, Shown};
use crate::cluster::controller::{Reach, Watch};
use crate::cluster::forward::MetadataClient;
use crate::cluster::leaders::LeaderBoard;
use crate::peer::{CatchUpBytes, LinkView, PeerRoom};
use crate::replication::metadata::{Catalog as Topics, Partition, Placement, Stage};
use axum::Json;
use axum::extract::State;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;
use weir_protocol::peer::Lane;
use weir_protocol::types::BrokerId;

/// What a look at the cluster is taken through.
pub(crate) struct ClusterAccess {
    /// The metadata, and the way to whoever leads it.
    pub(crate) metadata: MetadataClient,
    /// What brokers told of themselves.
    pub(crate) leaders: Arc<LeaderBoard>,
    /// This broker.
    pub(crate) broker: BrokerId,
    /// What this broker is called, also before it told the metadata.
    pub(crate) name: String,
    /// The links to other brokers, where there may be others.
    pub(crate) room: Option<Arc<PeerRoom>>,
}

impl ClusterAccess {
    /// What is known now.
    pub(super) fn look(&self) -> Look {
        Look {
            catalog: self.metadata.catalog(),
            leaders: self.leaders.clone(),
            me: (self.broker, self.name.clone()),
            metadata_leader: self.metadata.leader(),
            links: self.room.as_ref().map(|room| room.links()).unwrap_or_default(),
            traffic: self.room.as_deref().map(traffic_of).unwrap_or_default(),
            catch_up: self.room.as_ref().map(|room| room.catch_up_bytes()).unwrap_or_default(),
            now: Instant::now(),
        }
    }
}

/// What is known of the cluster at one moment.
pub(super) struct Look {
    catalog: Arc<Topics>,
    leaders: Arc<LeaderBoard>,
    /// This broker and what it is called.
    me: (BrokerId, String),
    /// Who says so of itself, or is taken for it.
    metadata_leader: Option<BrokerId>,
    links: Vec<LinkView>,
    /// Bytes read and written by lane, since the start.
    traffic: Vec<(Lane, [u64; 2])>,
    catch_up: CatchUpBytes,
    now: Instant,
}

impl Look {
    /// What a broker is called; one that is gone by its number.
    fn name_of(&self, broker: BrokerId) -> String {
        let card = self.catalog.brokers.get(&broker);
        match card.and_then(|card| card.facts.as_ref()) {
            Some(facts) => facts.name.to_string(),
            None if broker == self.me.0 => self.me.1.clone(),
            None => format!("broker-{broker}"),
        }
    }

    /// What may be expected of each broker. Nobody is dead to one who looks only once.
    fn reach(&self) -> BTreeMap<BrokerId, Reach> {
        let watch = Watch { since: self.now, me: self.me.0 };
        watch.reach(&self.catalog, &self.leaders, self.now)
    }

    /// The replica that leads a log, as its broker told.
    fn leader_of<'a>(&self, replicas: &'a [Placement]) -> Option<&'a Placement> {
        let leader = self.leaders.leader_of(replicas, self.now)?;
        replicas.iter().find(|here| here.replica == leader.led.replica)
    }

    /// Who leads the metadata. One whom no majority can answer may take itself for the leader for ever,
    /// and can change nothing.
    fn metadata_leader(&self, reach: &BTreeMap<BrokerId, Reach>) -> Option<BrokerId> {
        self.metadata_leader.filter(|_| has_majority(&self.catalog.metadata, reach))
    }

    /// Where the replica is that shall lead when nothing speaks against it.
    fn preferred(&self, partition: &Partition) -> Option<String> {
        let placed = partition.replica(partition.preferred)?;
        Some(self.name_of(placed.broker))
    }
}

fn traffic_of(room: &PeerRoom) -> Vec<(Lane, [u64; 2])> {
    [Lane::Control, Lane::Bulk].map(|lane| (lane, room.traffic(lane))).into()
}

/// Whether a broker was heard of lately.
fn is_heard(reach: &BTreeMap<BrokerId, Reach>, broker: BrokerId) -> bool {
    !matches!(reach.get(&broker), None | Some(Reach::Quiet | Reach::Dead))
}

/// Whether most of a log's voters are on brokers that are heard of.
fn has_majority(replicas: &[Placement], reach: &BTreeMap<BrokerId, Reach>) -> bool {
    let voters = || replicas.iter().filter(|here| here.stage == Stage::Voter);
    voters().filter(|voter| is_heard(reach, voter.broker)).count() * 2 > voters().count()
}

/// The cluster at a glance.
pub(super) async fn show(State(view): Shown) -> Answer {
    Ok(Json(page::cluster_json(&view.cluster.look())))
}
