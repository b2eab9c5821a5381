//! What people want of the cluster, as commands of the metadata.
//!
//! Owns: finding what they name; refusing what would never end, with what to do instead.
//! Never: proposes anything: it judges one look, and the metadata judges again.
//! Invariant: every refusal says what to do.

use super::Look;
use crate::admin::problem::Problem;
use crate::cluster::controller::{COMMANDS_MAX, View, decide};
use crate::replication::metadata::{
    BrokerCard, ChangeError, Command, Partition, Placement, Refusal, Stage, Standing, Topic,
};
use crate::reply;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use weir_protocol::error_code::ErrorCode;
use weir_protocol::types::{BrokerId, Name, ReplicaId};

/// A broker, as people name it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(in crate::admin) enum Who {
    /// By its number.
    Id(u64),
    /// By its name, or by its number as text.
    Name(String),
}

/// A replica that shall be elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::admin) struct MoveOrder {
    pub(super) topic: String,
    pub(super) partition: u32,
    pub(super) from: Who,
    pub(super) to: Who,
}

/// What would make the cluster even.
pub(super) struct Balance {
    /// In the order in which they are to be proposed.
    pub(super) commands: Vec<Command>,
    /// There is more behind these.
    pub(super) more: bool,
}

/// It cannot be as things are.
fn conflict(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::CONFLICT, ErrorCode::BadRequest, detail)
}

impl Look {
    /// The broker that is meant.
    pub(super) fn broker(&self, who: &Who) -> Result<&BrokerCard, Problem> {
        let text = match who {
            Who::Id(id) => id.to_string(),
            Who::Name(name) => name.clone(),
        };
        let cards = self.catalog.brokers.values();
        let named: Vec<_> = cards.filter(|card| self.name_of(card.id) == text).collect();
        let by_id = || text.parse().ok().and_then(|id| self.catalog.brokers.get(&BrokerId(id)));
        match (who, named.as_slice()) {
            (Who::Name(_), [only]) => Ok(only),
            (Who::Name(_), [_, _, ..]) => {
                let ids: Vec<_> = named.iter().map(|card| card.id.to_string()).collect();
                let ids = ids.join(", ");
                Err(conflict(format!("several brokers are called {text}; say its id: {ids}")))
            }
            _ => by_id().map(|card| &**card).ok_or_else(|| {
                let detail = format!(
                    "no broker {text} is in the cluster; `weir cluster status` lists them. A new one joins \
                     when it is started with the cluster.seeds of the others"
                );
                Problem::new(StatusCode::NOT_FOUND, ErrorCode::BadRequest, detail)
            }),
        }
    }

    /// Before the first gate there is one broker, and nothing to steer.
    fn clustered(&self) -> Result<(), Problem> {
        if self.catalog.gate > 0 {
            return Ok(());
        }
        Err(conflict(
            "this broker is alone: start it and others with cluster.seeds to make a cluster of them",
        ))
    }

    /// Makes a broker active again.
    pub(super) fn addition(&self, who: &Who) -> Result<Command, Problem> {
        self.clustered()?;
        let broker = self.broker(who)?.id;
        Ok(Command::SetStanding { broker, standing: Standing::Active })
    }

    /// Lets a broker hand over all that it holds, if others can take it.
    pub(super) fn draining(&self, who: &Who) -> Result<Command, Problem> {
        self.clustered()?;
        let broker = self.broker(who)?.id;
        let left = self.catalog.active().filter(|card| card.id != broker).count();
        let topics = self.catalog.topics.values();
        let most = topics.max_by_key(|topic| topic.replicas);
        if let Some(topic) = most.filter(|topic| usize::from(topic.replicas) > left) {
            let (name, topic, wanted) = (self.name_of(broker), &topic.name, topic.replicas);
            return Err(conflict(format!(
                "without {name} only {left} brokers are active, and topic {topic} has {wanted} \
                 replicas of each partition: start another broker first, or lower them with \
                 `weir topic set {topic} --replicas N`"
            )));
        }
        if left == 0 {
            let name = self.name_of(broker);
            return Err(conflict(format!(
                "{name} is the last active broker: start another one, or make one active again \
                 with `weir cluster add`"
            )));
        }
        Ok(Command::SetStanding { broker, standing: Standing::Draining })
    }

    /// The copy of the metadata of a broker that shall be removed, where that is all that it holds:
    /// a broker keeps it, without a vote, for as long as it is one of the cluster.
    pub(super) fn last_copy(&self, who: &Who) -> Result<Option<ReplicaId>, Problem> {
        self.clustered()?;
        let card = self.broker(who)?;
        let here = |placement: &&Placement| placement.broker == card.id;
        let mut replicas = self.catalog.partitions().flat_map(|(_, partition)| &partition.replicas);
        let is_empty = card.standing == Standing::Draining && !replicas.any(|held| here(&held));
        let copy = self.catalog.metadata.iter().find(here);
        let learns = copy.filter(|copy| is_empty && copy.stage == Stage::Joining);
        Ok(learns.map(|copy| copy.replica))
    }

    /// Removes a broker that holds nothing.
    pub(super) fn removal(&self, who: &Who) -> Result<Command, Problem> {
        self.clustered()?;
        let card = self.broker(who)?;
        let (broker, name) = (card.id, self.name_of(card.id));
        let holds =
            |partition: &Partition| partition.replicas.iter().any(|here| here.broker == broker);
        let mut held = self.catalog.partitions().filter(|(_, partition)| holds(partition));
        let first = held.next().map(|(topic, p)| format!("{}/{}", topic.name, p.id));
        let keeps = self.catalog.metadata.iter().any(|here| here.broker == broker);
        let what = match (first, keeps) {
            (Some(first), _) => {
                let count = 1 + held.count();
                format!("replicas of {count} partitions, {first} among them")
            }
            (None, true) => "a copy of the metadata".to_owned(),
            (None, false) => return Ok(Command::RemoveBroker { broker }),
        };
        let next = match card.standing {
            Standing::Active => format!("drain it first: `weir cluster drain {name} --wait`"),
            Standing::Draining => "it drains: wait until it holds nothing, `weir cluster status` \
                                   shows how much is left"
                .to_owned(),
        };
        Err(conflict(format!("{name} holds {what}; {next}")))
    }

    /// Moves a replica from one broker to another.
    pub(super) fn moving(&self, order: &MoveOrder) -> Result<Command, Problem> {
        self.clustered()?;
        let (topic, partition) = self.partition(&order.topic, order.partition)?;
        let (from, to) = (self.broker(&order.from)?.id, self.broker(&order.to)?.id);
        let at = |broker| partition.replicas.iter().find(move |here| here.broker == broker);
        let key = format!("{}/{}", topic.name, partition.id);
        let holders: Vec<_> =
            partition.replicas.iter().map(|here| self.name_of(here.broker)).collect();
        let holders = holders.join(", ");
        let Some(leaving) = at(from) else {
            let from = self.name_of(from);
            return Err(conflict(format!(
                "{from} holds no replica of {key}: say --from one of {holders}"
            )));
        };
        let takes_its_own_place = from == to && matches!(leaving.stage, Stage::Lost(_));
        if at(to).is_some() && !takes_its_own_place {
            let to = self.name_of(to);
            return Err(conflict(format!(
                "{to} holds a replica of {key} already: say --to none of {holders}"
            )));
        }
        let (topic, partition) = (topic.id, partition.id);
        Ok(Command::AddReplica { topic, partition, broker: to, replaces: Some(leaving.replica) })
    }

    fn partition(&self, topic: &str, number: u32) -> Result<(&Topic, &Partition), Problem> {
        let found = Name::new(topic).ok().and_then(|name| self.catalog.topics.get(&name));
        let Some(topic) = found else {
            let detail = format!("topic {topic:?} does not exist; `weir topic ls` lists them");
            return Err(Problem::new(StatusCode::NOT_FOUND, ErrorCode::UnknownTopic, detail));
        };
        let count = topic.partitions.len();
        topic.partitions.get(number as usize).map(|partition| (&**topic, partition)).ok_or_else(
            || {
                let name = &topic.name;
                let detail = format!(
                    "topic {name} has {count} partitions, numbered from 0: none is {number}"
                );
                Problem::new(StatusCode::NOT_FOUND, ErrorCode::UnknownPartition, detail)
            },
        )
    }

    /// What makes the cluster even: the moves that its controller would wish next, and every change
    /// of preferred leaders at once instead of a few every ten seconds.
    pub(super) fn balance(&self) -> Result<Balance, Problem> {
        self.clustered()?;
        let (reach, leaders) = (self.reach(), self.leaders.leaders(&self.catalog, self.now));
        let catalog = &*self.catalog;
        let view = View { catalog, leaders: &leaders, reach: &reach, preferences: usize::MAX };
        let mut commands = decide(&view);
        let more = commands.len() == COMMANDS_MAX;
        // What becomes even step by step ends with the last one.
        let mut judged = BTreeSet::new();
        commands.reverse();
        commands.retain(|command| match command {
            Command::Prefer { topic, partition, .. } => judged.insert((*topic, *partition)),
            command => matches!(command, Command::AddReplica { .. }),
        });
        commands.reverse();
        Ok(Balance { commands, more })
    }

    /// A command of [`Self::balance`] as people read it.
    pub(super) fn change_json(&self, command: &Command) -> Value {
        let row = |what, (topic, partition), from: Option<BrokerId>, to: Option<BrokerId>| {
            let found = self.catalog.topics.values().find(|known| known.id == topic);
            json!({
                "what": what,
                "topic": found.map(|topic| topic.name.as_str()),
                "partition": partition,
                "from": from.map(|broker| self.name_of(broker)),
                "to": to.map(|broker| self.name_of(broker)),
            })
        };
        match command {
            Command::AddReplica { topic, partition, broker, replaces } => {
                let placed = self.catalog.partition(*topic, *partition);
                let at = |replica: ReplicaId| Some(placed?.replica(replica)?.broker);
                row("move", (*topic, partition.0), replaces.and_then(at), Some(*broker))
            }
            Command::Prefer { topic, partition, replica } => {
                let placed = self.catalog.partition(*topic, *partition);
                let at = |replica: ReplicaId| Some(placed?.replica(replica)?.broker);
                let from = placed.and_then(|placed| at(placed.preferred));
                row("lead", (*topic, partition.0), from, at(*replica))
            }
            other => json!({ "what": format!("{other:?}") }),
        }
    }
}

/// A command that did not take effect, or may not have, over HTTP.
pub(super) fn problem_of(error: &ChangeError) -> Problem {
    let status = match error {
        ChangeError::Refused(refusal) => match refusal {
            Refusal::UnknownTopic
            | Refusal::UnknownPartition
            | Refusal::UnknownBroker
            | Refusal::UnknownReplica => StatusCode::NOT_FOUND,
            _ => StatusCode::CONFLICT,
        },
        ChangeError::Unreadable(_) => StatusCode::CONFLICT,
        ChangeError::Busy | ChangeError::NotLeader | ChangeError::Fenced(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ChangeError::Unknown => StatusCode::GATEWAY_TIMEOUT,
    };
    let code = match error {
        ChangeError::Refused(Refusal::UnknownTopic) => ErrorCode::UnknownTopic,
        ChangeError::Refused(Refusal::UnknownPartition) => ErrorCode::UnknownPartition,
        error => {
            let sent = ErrorCode::from_u16(reply::metadata(error, None).code);
            sent.expect("what this build sends it knows")
        }
    };
    let next = match error {
        ChangeError::Refused(refusal) => advice(*refusal),
        ChangeError::Unreadable(_) => "bring all brokers to one version first",
        ChangeError::Busy => "a moment later there is room",
        ChangeError::NotLeader => "a majority of the brokers that vote on metadata has to be up",
        ChangeError::Unknown => "GET /v1/cluster shows whether it took effect",
        ChangeError::Fenced(_) => "ask another broker; this one has to be restarted",
    };
    Problem::new(status, code, format!("{error}; {next}"))
}

/// What to do about a refusal that an order can meet.
fn advice(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::BrokerNotActive => "`weir cluster add` makes it active again",
        Refusal::BrokerHoldsReplica => "choose a broker that holds none of it: `weir topic info`",
        Refusal::MoveUnderWay | Refusal::MoveLimit => {
            "`weir cluster status` shows when what is under way is done"
        }
        Refusal::NotFormed => "wait until the partition has had its first leader",
        Refusal::BadStep => "only a replica that votes or is lost can be moved",
        Refusal::BrokerInUse => "`weir cluster drain --wait` empties it",
        Refusal::TooManyReplicas => "wait until some of them are gone: `weir topic info`",
        Refusal::GateClosed => "`weir cluster status` shows the gate of every broker",
        _ => "look again: `weir cluster status`",
    }
}
