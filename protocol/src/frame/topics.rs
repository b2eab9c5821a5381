//! The frames about topics: what there is, who serves it, and changes of it.
//!
//! Owns: one struct per frame and what they are made of. Never: their bytes, those are `codec`'s.

use crate::types::{BrokerId, Name, Offset, PartitionId, RequestId, Term, TopicId};

/// Asks for topics.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata {
    /// Echoed in the answer.
    pub request: RequestId,
    /// One topic; none = all, by name.
    pub topic: Option<Name>,
    /// Only topics behind this one.
    pub after: Option<Name>,
}

/// What happens to publishers when a topic is full and nothing may be trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Overflow {
    /// Publishers get no more credit until there is room.
    #[default]
    Backpressure = 0,
    /// Publishes are refused with BACKLOG_FULL.
    Reject = 1,
    /// The oldest records go, counted.
    Expire = 2,
}

/// When a publish is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Durability {
    /// When a quorum has flushed it.
    #[default]
    Fsync = 0,
    /// When a quorum holds it in memory; the flush follows. Weaker: power loss may lose it.
    Memory = 1,
}

/// The configuration of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicConfig {
    /// Partitions.
    pub partitions: u32,
    /// When a publish is acknowledged.
    pub durability: Durability,
    /// What happens at the limit.
    pub overflow: Overflow,
    /// Bytes of each partition's log that are retained.
    pub max_bytes: u64,
    /// Age at which records are trimmed, milliseconds; 0 = never.
    pub max_age_ms: u64,
    /// Replicas of each partition: 1, 3 or 5; 0 = three where as many brokers are, else one.
    pub replicas: u8,
}

impl Default for TopicConfig {
    /// One partition, 10 GiB, no age limit, `backpressure`, `fsync`.
    fn default() -> Self {
        Self {
            partitions: 1,
            durability: Durability::Fsync,
            overflow: Overflow::Backpressure,
            max_bytes: 10 << 30,
            max_age_ms: 0,
            replicas: 0,
        }
    }
}

/// One partition as metadata shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionView {
    /// Its number.
    pub partition: PartitionId,
    /// The broker that leads it, if one does.
    pub leader: Option<BrokerId>,
    /// First offset.
    pub log_start: Offset,
    /// High watermark (exclusive).
    pub high_watermark: Offset,
    /// Bytes of its log on disk.
    pub bytes: u64,
    /// The term of `leader`, or the newest that is known; 0 on a page that names no brokers.
    pub term: Term,
    /// Brokers that hold a replica, the one that should lead first; none on a page that names no
    /// brokers.
    pub replicas: Vec<BrokerId>,
}

/// One broker as metadata shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerView {
    /// Its identity.
    pub id: BrokerId,
    /// Where clients reach it: a name or an address; empty = not known, or of no use elsewhere.
    pub host: String,
    /// The port there.
    pub port: u16,
    /// Its name, for people.
    pub name: String,
    /// What fails together with it; empty = not said.
    pub rack: String,
}

/// One topic as metadata shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicView {
    /// Its name.
    pub name: Name,
    /// Its identity.
    pub id: TopicId,
    /// Its configuration.
    pub config: TopicConfig,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionView>,
}

/// A page of topics.
#[derive(Debug, Clone, PartialEq)]
pub struct MetadataPage {
    /// Of the request.
    pub request: RequestId,
    /// Ask again with `after` = the last name.
    pub more: bool,
    /// The topics, by name.
    pub topics: Vec<TopicView>,
    /// Every broker of the cluster, by id; none from a broker that does not tell. Each broker that
    /// `replicas` names is among them.
    pub brokers: Vec<BrokerView>,
}

/// Creates a topic.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateTopic {
    /// Echoed in the answer.
    pub request: RequestId,
    /// Its name.
    pub topic: Name,
    /// Its configuration.
    pub config: TopicConfig,
}

/// Changes a topic; `None` leaves a setting as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct AlterTopic {
    /// Echoed in the answer.
    pub request: RequestId,
    /// Its name.
    pub topic: Name,
    /// More partitions; never fewer.
    pub partitions: Option<u32>,
    /// When a publish is acknowledged.
    pub durability: Option<Durability>,
    /// What happens at the limit.
    pub overflow: Option<Overflow>,
    /// Bytes that are retained.
    pub max_bytes: Option<u64>,
    /// Age at which records are trimmed, milliseconds; 0 = never.
    pub max_age_ms: Option<u64>,
    /// Replicas of each partition: 1, 3 or 5.
    pub replicas: Option<u8>,
}

/// Removes a topic and its records.
#[derive(Debug, Clone, PartialEq)]
pub struct DeleteTopic {
    /// Echoed in the answer.
    pub request: RequestId,
    /// Its name.
    pub topic: Name,
}
