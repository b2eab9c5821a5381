//! What people and metrics see of flow control.
//!
//! Owns: the shapes, and how they are read out of the core.
//! Never: changes anything.

use super::core::{FlowCore, StreamKey};
use super::stream::Stream;
use super::{PartitionKey, blocked::BlockedTimes};
use crate::connection::outbox::GrantRegister;
use std::time::Duration;
use tokio::time::Instant;
use weir_protocol::types::StreamId;

/// The pool, and who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowView {
    /// Size of the pool, cost.
    pub pool_cost: u64,
    /// Granted and not spent.
    pub granted_cost: u64,
    /// Spent and not released.
    pub reserved_cost: u64,
    /// Open publisher streams.
    pub streams: u64,
    /// Revokes that wait for their answer.
    pub revoking: u64,
    /// Every partition that has publishers or takes no more.
    pub partitions: Vec<PartitionFlow>,
    /// Publishers that want to send and may not, those that wait longest first.
    pub waiting: Vec<BlockedPublisher>,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionFlow {
    /// Which.
    pub key: PartitionKey,
    /// Why it takes no more; 0 = it takes all.
    pub blocked_bits: u32,
    /// Its open publisher streams.
    pub streams: u64,
    /// Those that want to send and may not.
    pub starved: u64,
    /// For how long without a break at least one could not.
    pub starved_for: Option<Duration>,
    /// For how long in all, by reason.
    pub times: BlockedTimes,
}

/// A publisher that wants to send and may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedPublisher {
    /// Its connection.
    pub connection: u64,
    /// Its stream.
    pub stream: StreamId,
    /// Where it publishes.
    pub key: PartitionKey,
    /// What it waits for: `reason_bits`.
    pub reason_bits: u32,
    /// For how long.
    pub waited: Duration,
    /// Cost that it would send.
    pub wanted_cost: u64,
}

pub(super) fn view<'a>(
    core: &FlowCore,
    now: Instant,
    waiting_max: usize,
    whose: impl Fn(StreamKey) -> Option<&'a GrantRegister>,
) -> FlowView {
    let partitions = core.partitions.iter().map(|(key, partition)| PartitionFlow {
        key: key.clone(),
        blocked_bits: partition.blocked_bits,
        streams: partition.streams.len() as u64,
        starved: u64::from(partition.clock.starved()),
        starved_for: partition.clock.began.map(|began| now.duration_since(began)),
        times: partition.clock.times(now),
    });
    let mut waiting: Vec<(Instant, StreamKey, &Stream)> = core
        .keys()
        .filter_map(|key| core.peek(key).map(|stream| (key, stream)))
        .filter_map(|(key, stream)| stream.starved_since.map(|since| (since, key, stream)))
        .collect();
    waiting.sort_unstable_by_key(|(since, key, _)| (*since, *key));
    let waiting = waiting.into_iter().take(waiting_max).filter_map(|(since, key, stream)| {
        let register = whose(key)?;
        Some(BlockedPublisher {
            connection: register.connection(),
            stream: register.stream(),
            key: stream.partition.clone(),
            reason_bits: core.grant(key).reason_bits,
            waited: now.duration_since(since),
            wanted_cost: stream.needs(),
        })
    });
    FlowView {
        pool_cost: core.pool_cost,
        granted_cost: core.outstanding,
        reserved_cost: core.reserved,
        streams: core.open_streams,
        revoking: core.revoking as u64,
        partitions: partitions.collect(),
        waiting: waiting.collect(),
    }
}
