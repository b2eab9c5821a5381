//! Owns: every bound of one partition, each with what it costs.
//! Invariant: the relations at the end hold at compile time.

use crate::replication::INFLIGHT_MAX;
use tokio::time::Duration;
use weir_protocol::limits::{
    BATCH_BYTES_MAX, MEMBER_HAND_OVER_MS_MAX, MEMBER_RETURN_MS_MAX, MEMBER_SILENCE_MS_MAX,
};

/// Requests other than publishes that the mailbox of one partition holds. Beyond them the caller
/// answers OVERLOADED_REQUEST.
pub const MAILBOX_REQUESTS: usize = 4_096;
/// Requests taken out of the mailbox at once, so that completions are never far behind.
pub const REQUESTS_PER_TURN: usize = 1_024;

/// Proposals between the log and their commit. One is being flushed while one is appended; more
/// would only make each of them smaller.
pub const PROPOSALS_INFLIGHT_MAX: usize = 2;
/// A proposal is closed before it exceeds this, unless its first batch alone does.
pub const PROPOSAL_BYTES_MAX: usize = 1 << 20;
/// Batches of one proposal: bounds what a reader of its headers holds.
pub const PROPOSAL_BATCHES_MAX: usize = 4_096;

/// Producers that one partition remembers (about 250 bytes each when all are in use).
pub const PRODUCERS_MAX: usize = 16_384;
/// Runs of batches remembered of each producer, so that a duplicate is told its offset.
pub const PRODUCER_RUNS_MAX: usize = 5;
/// A producer that stored nothing for this long by log time is forgotten.
pub const PRODUCER_IDLE_MS: u64 = 7 * 24 * 3_600_000;
/// Where the table is full, a named producer idle for this long makes room for a new one.
pub const PRODUCER_IDLE_MIN_MS: u64 = 24 * 3_600_000;
/// Where the table is full, a producer that lives as long as its client makes room after this.
pub const PRODUCER_ANONYMOUS_IDLE_MIN_MS: u64 = 60_000;
/// Identities of producers without a name have this bit.
pub const PRODUCER_ANONYMOUS_BIT: u64 = 1 << 63;

/// Durable subscriptions of one partition.
pub const SUBSCRIPTIONS_MAX: usize = 1_000;
/// Consumers attached to one partition.
pub const CONSUMERS_MAX: usize = 16_384;
/// Consumers that share the subscriptions of one topic, all together.
pub const MEMBERS_MAX: usize = 4_096;
/// A member that has not been heard for this long is gone: the longest that a partition stays without
/// a reader behind a death (semantics.md B3: sessions of 3 s and 10 s).
pub const MEMBER_SILENCE_MAX: Duration = Duration::from_millis(MEMBER_SILENCE_MS_MAX as u64);
/// One whose connection has ended is gone after this.
pub const MEMBER_RETURN_MAX: Duration = Duration::from_millis(MEMBER_RETURN_MS_MAX as u64);
/// A member is given this long to settle what it holds of a partition that goes to another one.
pub const HAND_OVER_MAX: Duration = Duration::from_millis(MEMBER_HAND_OVER_MS_MAX as u64);
/// Settles are proposed when they would fill this much of a control batch ...
pub const SETTLES_BYTES_TARGET: usize = 4 << 10;
/// ... or when the first of them is this old.
pub const SETTLES_IDLE: Duration = Duration::from_millis(10);
/// Commands of one control batch, encoded.
pub const CONTROL_BYTES_MAX: usize = 64 << 10;
/// Cold reads of one partition at a time; the others wait their turn.
pub const COLD_READS_MAX: usize = 8;

/// Requests wait this long for a leader since there was one. An election takes less once it is
/// called, and whoever waits longer finds the leader sooner by asking elsewhere.
pub const LEADER_PATIENCE: Duration = Duration::from_secs(1);
/// A consumer waits this long for the replica to reach what it asked for.
pub const REACH_PATIENCE: Duration = Duration::from_secs(5);

/// Log time follows the wall clock at most this far beyond what the monotonic clock explains, per
/// proposal: a clock set forward by a day must not expire everything at once.
pub const LOG_TIME_STEP_MS: u64 = 10_000;
/// Limits, space and deadlines are looked at this long after something happened, and as often
/// while something waits.
pub const TICK: Duration = Duration::from_millis(100);
/// The age of records is looked at this often where nothing happens.
pub const AGE_TICK: Duration = Duration::from_secs(1);
/// Room that must be in the log before a proposal is made without asking the disk: what may be in
/// flight, and what is gathered next.
pub const ROOM_BYTES_MIN: u64 = (PROPOSALS_INFLIGHT_MAX as u64 + 2) * PROPOSAL_BYTES_MAX as u64;
/// Headers taken out of the log at once; more than one index may have.
pub const HEADERS_PER_READ: usize = 2 * PROPOSAL_BATCHES_MAX;
/// What a follower is just being sent is trimmed after this.
pub const TRIM_HELD: Duration = Duration::from_secs(1);
/// A replica that ended for want of space is opened again after this, and after each failure.
pub const REOPEN_AFTER: Duration = Duration::from_millis(250);
/// A process whose device failed ends after this: answers leave first.
pub const FAILED_DEVICE_GRACE: Duration = Duration::from_secs(1);

const _: () = assert!(PROPOSALS_INFLIGHT_MAX < INFLIGHT_MAX);
const _: () = assert!(HEADERS_PER_READ > PROPOSAL_BATCHES_MAX + 1);
const _: () = assert!(CONTROL_BYTES_MAX < BATCH_BYTES_MAX);
const _: () = assert!(SETTLES_BYTES_TARGET < CONTROL_BYTES_MAX);
const _: () = assert!(PRODUCER_ANONYMOUS_IDLE_MIN_MS < PRODUCER_IDLE_MIN_MS);
const _: () = assert!(PRODUCER_IDLE_MIN_MS < PRODUCER_IDLE_MS);
const _: () = assert!(MEMBERS_MAX < u16::MAX as usize);
