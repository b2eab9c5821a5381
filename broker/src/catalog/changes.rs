//! Changes of topics, as clients ask for them.
//!
//! Owns: what a request must say, and the command that it becomes.
//! Never: answers before the change shows here.

use super::Catalog;
use crate::cluster::controller::{Reach, Seats, Watch};
use crate::replication::metadata::{
    Catalog as Topics, Change, ChangeError, Command, NewPartition, REPLICA_COUNTS,
    Refusal as Refused, Settings, Topic,
};
use std::sync::{Arc, PoisonError};
use tokio::time::{Duration, Instant};
use weir_protocol::error_code::{ErrorCode, Outcome, Scope};
use weir_protocol::frame::{AlterTopic, CreateTopic, DeleteTopic, Refusal, TopicConfig};
use weir_protocol::limits::PARTITIONS_MAX;
use weir_protocol::types::{BrokerId, Name};

/// A change of topics is answered when it shows, or after this.
const SHOW_WITHIN: Duration = Duration::from_secs(20);
/// The least that a topic may be told to retain: eight of the smallest segments.
const TOPIC_BYTES_MIN: u64 = 8 << 20;
/// Replicas of each partition of a new topic, where as many brokers are.
const REPLICAS_WANTED: u8 = 3;

impl Catalog {
    fn uuid(&self) -> u128 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).u128(1..)
    }

    /// Places new partitions where the fewest replicas are: on brokers that answer, or where those
    /// are too few, also on others. A majority of each partition works all the same.
    fn new_partitions(&self, count: u32, replicas: u8) -> Result<Vec<NewPartition>, Refusal> {
        let topics = self.topics();
        let (me, now) = (self.rooms.broker, Instant::now());
        let reach = Watch { since: now, me }.reach(&topics, &self.rooms.leaders, now);
        let uuids: Vec<u128> = (0..count).map(|_| self.uuid()).collect();
        let place = |is_usable: &dyn Fn(BrokerId) -> bool| {
            Seats::of(&topics, is_usable).place(replicas, uuids.iter().copied())
        };
        let placed = place(&|broker| reach.get(&broker) == Some(&Reach::Well));
        let placed = placed.or_else(|_| place(&|_| true));
        placed.map_err(|few| topic_refusal(ErrorCode::BadRequest, few.to_string()))
    }

    pub(super) async fn create(self: Arc<Self>, request: CreateTopic) -> Result<(), Refusal> {
        check_config(&request.config)?;
        // Those who have just formed a cluster stand in its metadata soon.
        let mut topics = self.metadata.watch();
        let named = topics.wait_for(|topics| topics.cluster != 0);
        let _ = tokio::time::timeout(SHOW_WITHIN, named).await;
        let replicas = match request.config.replicas {
            0 => replicas_by_default(&self.topics()),
            wanted => wanted,
        };
        let command = Command::CreateTopic {
            name: request.topic.clone(),
            settings: settings_of(&request.config),
            created_ms: self.rooms.wall.now_ms(),
            partitions: self.new_partitions(request.config.partitions, replicas)?,
        };
        self.change(&request.topic, command).await?;
        self.show(&request.topic).await;
        Ok(())
    }

    pub(super) async fn alter(self: Arc<Self>, request: AlterTopic) -> Result<(), Refusal> {
        let topics = self.topics();
        let topic = topics.topics.get(&request.topic).ok_or_else(|| unknown(&request.topic))?;
        let count = topic.partitions.len() as u32;
        let config = TopicConfig {
            partitions: request.partitions.unwrap_or(count),
            durability: request.durability.unwrap_or(topic.settings.durability),
            overflow: request.overflow.unwrap_or(topic.settings.overflow),
            max_bytes: request.max_bytes.unwrap_or(topic.settings.max_bytes),
            max_age_ms: request.max_age_ms.unwrap_or(topic.settings.max_age_ms),
            replicas: request.replicas.unwrap_or(topic.replicas),
        };
        check_config(&config)?;
        let Some(added) = config.partitions.checked_sub(count) else {
            let text = format!(
                "topic {} has {count} partitions; partitions can be added, never removed",
                request.topic
            );
            return Err(topic_refusal(ErrorCode::BadRequest, text));
        };
        let (id, revision, settings) = (topic.id, topic.revision, settings_of(&config));
        let command = match config.replicas {
            replicas if replicas == 0 || replicas == topic.replicas => Command::AlterTopic {
                topic: id,
                revision,
                settings,
                added: self.new_partitions(added, topic.replicas)?,
            },
            // In two commands the first would stand where the second is refused.
            _ if added > 0 || settings != topic.settings => {
                let text = format!(
                    "the replicas of topic {} change in a request of their own; nothing was \
                     changed, ask for the rest in another one",
                    request.topic
                );
                return Err(topic_refusal(ErrorCode::BadRequest, text));
            }
            replicas => Command::SetReplicas { topic: id, revision, replicas },
        };
        self.change(&request.topic, command).await?;
        self.show(&request.topic).await;
        Ok(())
    }

    pub(super) async fn delete(self: Arc<Self>, request: DeleteTopic) -> Result<(), Refusal> {
        let topics = self.topics();
        let topic = topics.topics.get(&request.topic).ok_or_else(|| unknown(&request.topic))?;
        self.change(&request.topic, Command::DeleteTopic { topic: topic.id }).await?;
        self.show(&request.topic).await;
        Ok(())
    }

    async fn change(&self, name: &Name, command: Command) -> Result<Change, Refusal> {
        self.metadata.carry_through(command).await.map_err(|error| refusal_of(name, &error))
    }

    /// Waits until a topic is here as the metadata has it, and somebody leads each of its
    /// partitions: whoever is answered may publish.
    async fn show(&self, name: &Name) {
        let (mut shown, mut led) = (self.shown.clone(), self.rooms.leaders.watch());
        let caught_up = async {
            while !self.table.shows(&self.topics(), name) || !self.is_led(name) {
                tokio::select! {
                    biased;
                    Ok(()) = shown.changed() => {}
                    Ok(()) = led.changed() => {}
                    else => return,
                }
            }
        };
        if tokio::time::timeout(SHOW_WITHIN, caught_up).await.is_err() {
            tracing::warn!(topic = %name, "a change of a topic takes long to show");
        }
    }

    fn is_led(&self, name: &Name) -> bool {
        let topics = self.topics();
        let topic = topics.topics.get(name);
        topic.into_iter().all(|topic| {
            topic.partitions.iter().all(|partition| {
                let is_formed = partition.formed || topics.gate == 0;
                is_formed && self.leader_of(topic, partition).is_some()
            })
        })
    }
}

/// As many replicas as lose nothing with one broker, where there are brokers for them.
fn replicas_by_default(topics: &Topics) -> u8 {
    if topics.active().count() >= usize::from(REPLICAS_WANTED) { REPLICAS_WANTED } else { 1 }
}

/// A topic's configuration as the wire has it.
pub(crate) fn config_of(topic: &Topic) -> TopicConfig {
    TopicConfig {
        partitions: topic.partitions.len() as u32,
        durability: topic.settings.durability,
        overflow: topic.settings.overflow,
        max_bytes: topic.settings.max_bytes,
        max_age_ms: topic.settings.max_age_ms,
        replicas: topic.replicas,
    }
}

fn settings_of(config: &TopicConfig) -> Settings {
    Settings {
        durability: config.durability,
        overflow: config.overflow,
        max_bytes: config.max_bytes,
        max_age_ms: config.max_age_ms,
    }
}

fn check_config(config: &TopicConfig) -> Result<(), Refusal> {
    let bad = |text: String| Err(topic_refusal(ErrorCode::BadRequest, text));
    if !(1..=PARTITIONS_MAX).contains(&config.partitions) {
        return bad(format!("a topic has 1 to {PARTITIONS_MAX} partitions"));
    }
    if config.replicas != 0 && !REPLICA_COUNTS.contains(&config.replicas) {
        return bad(format!("replicas = {} is none of 1, 3 and 5", config.replicas));
    }
    if config.max_bytes < TOPIC_BYTES_MIN {
        return bad(format!("max_bytes = {} is less than {TOPIC_BYTES_MIN}", config.max_bytes));
    }
    Ok(())
}

pub(super) fn topic_refusal(code: ErrorCode, text: impl Into<String>) -> Refusal {
    Refusal { scope: Scope::Topic, ..Refusal::new(code, text) }
}

pub(super) fn unknown(topic: &Name) -> Refusal {
    let text = format!("topic {topic} does not exist; `weir topic create {topic}` creates it");
    topic_refusal(ErrorCode::UnknownTopic, text)
}

/// What a client learns of a change that did not take effect, or may not have.
pub(super) fn refusal_of(topic: &Name, error: &ChangeError) -> Refusal {
    let code = match error {
        ChangeError::Refused(refused) => match refused {
            Refused::TopicExists => ErrorCode::TopicExists,
            Refused::UnknownTopic => ErrorCode::UnknownTopic,
            Refused::TopicLimit => ErrorCode::TopicLimit,
            Refused::ProducerLimit | Refused::EpochLimit => ErrorCode::ProducerLimit,
            // All others are about a cluster: whoever asked reads which one.
            _ => ErrorCode::BadRequest,
        },
        ChangeError::Unreadable(_) => ErrorCode::BadRequest,
        ChangeError::Busy => ErrorCode::OverloadedRequest,
        ChangeError::NotLeader => ErrorCode::NotLeader,
        ChangeError::Unknown => ErrorCode::LeaderLost,
        ChangeError::Fenced(_) => ErrorCode::StorageFenced,
    };
    let outcome = match error {
        ChangeError::Unknown => Outcome::Unknown,
        _ => Outcome::NotStored,
    };
    Refusal { outcome, ..topic_refusal(code, format!("{topic}: {error}")) }
}
