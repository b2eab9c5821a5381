//! What a partition says no with.
//!
//! Owns: the partition's refusals and their translation into the one vocabulary that peers know.
//! Never: a catch-all: each match names every case, so that a new one must be decided here.

use super::core::Hint;
use crate::flow::PartitionKey;
use crate::replication::{Fence, StoredOutcome};
use std::fmt;
use weir_protocol::error_code::{ErrorCode, Outcome, Scope, reason_bits};
use weir_protocol::frame::Refusal;
use weir_protocol::types::{Offset, Sequence};
use weir_storage::DamagedRange;

/// Where somebody who was woken up finds the way out.
const DAMAGE_RUNBOOK: &str = "ops/runbook/damaged-range.md";

/// What a partition lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loss {
    /// The partition.
    pub key: PartitionKey,
    /// The range of its log.
    pub range: DamagedRange,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PartitionKey { topic, partition } = &self.key;
        write!(f, "topic {topic}, partition {partition}: {}", self.range)
    }
}

/// Why a publish, or a publisher, was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PublishRefusal {
    /// Its sequence is not the next one.
    Gap { expected: Sequence },
    /// Its producer was opened again.
    ProducerFenced { epoch: u32 },
    /// Its producer was forgotten.
    UnknownProducer,
    /// No room for one more producer.
    ProducerLimit,
    /// Its deadline passed before it was appended.
    Deadline,
    /// The topic is full and its policy is `reject`.
    BacklogFull { limit: u64 },
    /// The disk has no room.
    StorageLow,
    /// The broker is shutting down.
    Draining,
    /// Another replica leads, or none does. Nothing is stored.
    NotLeader(Hint),
    /// The run it was in was broken.
    LeaderLost(StoredOutcome),
    /// The replica has ended.
    Fenced { text: String, outcome: StoredOutcome },
    /// What the partition knows may lack what was lost: it is read-only.
    ReadOnly { lost: Loss, outcome: StoredOutcome },
}

impl PublishRefusal {
    /// What a replica that ended says to those who were not answered before.
    pub(super) fn of_fence(fence: &Fence, outcome: StoredOutcome) -> Self {
        match (fence, outcome) {
            (Fence::NoSpace, StoredOutcome::NotStored) => Self::StorageLow,
            (Fence::Shutdown, StoredOutcome::NotStored) => Self::Draining,
            (Fence::Shutdown, StoredOutcome::Unknown) => Self::LeaderLost(outcome),
            (Fence::NoSpace | Fence::Device(_) | Fence::Engine(_), _) => {
                Self::Fenced { text: fence.to_string(), outcome }
            }
        }
    }

    /// What the peer is told.
    pub(super) fn to_peer(&self) -> Refusal {
        match self {
            Self::Gap { expected } => Refusal {
                limit: expected.0,
                ..Refusal::new(
                    ErrorCode::SequenceGap,
                    format!("sequence {expected} is next; renumber from there and go on"),
                )
            },
            Self::ProducerFenced { epoch } => Refusal {
                limit: u64::from(*epoch),
                scope: Scope::Stream,
                ..Refusal::new(
                    ErrorCode::ProducerFenced,
                    format!(
                        "the producer was opened again under epoch {epoch}; only one may publish"
                    ),
                )
            },
            Self::UnknownProducer => Refusal {
                scope: Scope::Stream,
                ..Refusal::new(
                    ErrorCode::UnknownProducer,
                    "the producer was idle for so long that it was forgotten; open the publisher \
                     again and number from what it is told",
                )
            },
            Self::ProducerLimit => waiting(
                ErrorCode::ProducerLimit,
                1_000,
                "this partition remembers as many producers \
                     as it may; try again when one was idle for a minute",
            ),
            Self::Deadline => Refusal::new(
                ErrorCode::DeadlineExpired,
                "the deadline passed before the batch could be appended",
            ),
            Self::BacklogFull { limit } => Refusal {
                limit: *limit,
                scope: Scope::Topic,
                reason_bits: reason_bits::BACKLOG,
                ..waiting(
                    ErrorCode::BacklogFull,
                    1_000,
                    "the topic holds as many bytes as it may \
                     and a subscription still needs them; consume, or raise max_bytes",
                )
            },
            Self::StorageLow => Refusal {
                scope: Scope::Broker,
                reason_bits: reason_bits::DISK,
                ..waiting(
                    ErrorCode::StorageLow,
                    1_000,
                    "the disk has no room for another segment; \
                     free some space",
                )
            },
            Self::Draining => Refusal {
                scope: Scope::Broker,
                reason_bits: reason_bits::DRAINING,
                ..Refusal::new(ErrorCode::Draining, "the broker is shutting down; reconnect")
            },
            Self::NotLeader(hint) => not_leader(*hint),
            Self::LeaderLost(outcome) => lost(*outcome),
            Self::Fenced { text, outcome } => fenced(text, *outcome),
            Self::ReadOnly { lost, outcome: StoredOutcome::NotStored } => read_only(lost),
            Self::ReadOnly { lost, outcome: StoredOutcome::Unknown } => {
                unknown(ErrorCode::StorageError, &read_only_text(lost))
            }
        }
    }
}

fn read_only_text(lost: &Loss) -> String {
    format!(
        "{lost}; the partition is read-only, because producers and subscriptions may have changed \
         in there: stop the broker, and restore the partition or accept the loss with `weir data \
         recover --accept-loss` ({DAMAGE_RUNBOOK})"
    )
}

/// A change of a partition that takes none.
pub(super) fn read_only(lost: &Loss) -> Refusal {
    Refusal { scope: Scope::Stream, ..Refusal::new(ErrorCode::DamagedRange, read_only_text(lost)) }
}

fn not_leader(hint: Hint) -> Refusal {
    match hint {
        Some((broker, term)) => {
            let text = format!("broker {broker} leads this partition in term {term}; go there");
            Refusal::not_leader(hint, text)
        }
        None => Refusal {
            retry_after_ms: 100,
            ..Refusal::not_leader(
                None,
                "this broker does not lead the partition and does not know who does; ask for \
                 metadata, here or elsewhere",
            )
        },
    }
}

fn lost(outcome: StoredOutcome) -> Refusal {
    match outcome {
        StoredOutcome::NotStored => waiting(
            ErrorCode::NotLeader,
            100,
            "the partition lost its leader before the batch was stored; send it again",
        ),
        StoredOutcome::Unknown => unknown(
            ErrorCode::LeaderLost,
            "the partition lost its leader before the outcome was known; ask again under the \
                 same sequence",
        ),
    }
}

fn fenced(text: &str, outcome: StoredOutcome) -> Refusal {
    match outcome {
        StoredOutcome::NotStored => Refusal::new(ErrorCode::StorageFenced, text),
        StoredOutcome::Unknown => unknown(ErrorCode::StorageError, text),
    }
}

/// Why a consumer was refused, or closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SubscribeRefusal {
    /// The start lies above the high watermark.
    OutOfRange { asked: Offset, high_watermark: Offset },
    /// No room for one more consumer.
    ConsumerLimit,
    /// No room for one more subscription.
    SubscriptionLimit,
    /// The broker is shutting down.
    Draining,
    /// The replica has ended.
    Fenced,
    /// Another replica leads, or none does, and only the leader may serve this.
    NotLeader(Hint),
    /// The replica did not reach what was asked for in time.
    Behind { reach: Offset, high_watermark: Offset },
    /// A newer consumer took its place.
    TakenOver,
    /// Another consumer was given the partition by a newer assignment.
    Generation,
    /// The member was not heard of for too long.
    Silent,
    /// Its subscription was deleted.
    SubscriptionDeleted,
    /// What it would read is lost.
    Damaged(Loss),
    /// What it would read cannot be read.
    Unreadable { text: String },
    /// What the partition knows may lack what was lost: it is read-only.
    ReadOnly(Loss),
}

impl SubscribeRefusal {
    /// What the peer is told.
    pub(super) fn to_peer(&self) -> Refusal {
        let stream =
            |code, text: &str| Refusal { scope: Scope::Stream, ..Refusal::new(code, text) };
        match self {
            Self::OutOfRange { asked, high_watermark } => Refusal {
                observed: asked.0,
                limit: high_watermark.0,
                ..Refusal::new(
                    ErrorCode::OffsetOutOfRange,
                    format!("offset {asked} lies behind the end, which is {high_watermark}"),
                )
            },
            Self::ConsumerLimit => waiting(
                ErrorCode::ConsumerLimit,
                1_000,
                "this partition has as many consumers as it may",
            ),
            Self::SubscriptionLimit => waiting(
                ErrorCode::ConsumerLimit,
                1_000,
                "this partition has as many durable subscriptions as it may; delete one",
            ),
            Self::Draining => Refusal {
                scope: Scope::Broker,
                reason_bits: reason_bits::DRAINING,
                ..Refusal::new(ErrorCode::Draining, "the broker is shutting down; reconnect")
            },
            Self::Fenced => Refusal::new(
                ErrorCode::StorageFenced,
                "the partition stopped writing after a failure; no subscription can be created",
            ),
            Self::NotLeader(hint) => not_leader(*hint),
            Self::Behind { reach, high_watermark } => Refusal {
                observed: reach.0,
                limit: high_watermark.0,
                ..waiting(
                    ErrorCode::Behind,
                    100,
                    &format!(
                        "offset {reach} was asked for and this replica holds what lies below \
                         {high_watermark}; ask the leader, or wait and try again"
                    ),
                )
            },
            Self::TakenOver => stream(
                ErrorCode::TakenOver,
                "a newer consumer of the same subscription reads this partition now",
            ),
            Self::Generation => stream(
                ErrorCode::Generation,
                "the partition was given to another consumer of the subscription; wait for an \
                 ASSIGNMENT that names it",
            ),
            Self::Silent => stream(
                ErrorCode::Generation,
                "the consumer was not heard of for 10 s and shares the subscription no more; join \
                 again",
            ),
            Self::SubscriptionDeleted => {
                stream(ErrorCode::TakenOver, "the subscription was deleted")
            }
            Self::Damaged(lost) => {
                let behind = lost.range.end_offset;
                let text =
                    format!("{lost}; subscribe from offset {behind} to go on ({DAMAGE_RUNBOOK})");
                Refusal { limit: behind.0, ..stream(ErrorCode::DamagedRange, &text) }
            }
            Self::Unreadable { text } => stream(ErrorCode::DamagedRange, text),
            Self::ReadOnly(lost) => read_only(lost),
        }
    }
}

/// A settle of what was not delivered.
pub(super) fn settle_beyond(upto: Offset, delivered: Offset) -> Refusal {
    Refusal {
        observed: upto.0,
        limit: delivered.0,
        ..Refusal::new(
            ErrorCode::SettleOutOfRange,
            format!(
                "offset {upto} was settled, but only what lies below {delivered} was delivered"
            ),
        )
    }
}

fn waiting(code: ErrorCode, retry_after_ms: u32, text: &str) -> Refusal {
    Refusal { retry_after_ms, ..Refusal::new(code, text) }
}

fn unknown(code: ErrorCode, text: &str) -> Refusal {
    Refusal { outcome: Outcome::Unknown, ..Refusal::new(code, text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client does about a code depends on the outcome: the two never contradict.
    #[test]
    fn an_unknown_outcome_has_a_code_that_says_so() {
        let both = [StoredOutcome::NotStored, StoredOutcome::Unknown];
        let fences = [Fence::NoSpace, Fence::Device("x".into()), Fence::Shutdown];
        let of_fences = fences.iter().flat_map(|fence| {
            both.map(|outcome| (outcome, PublishRefusal::of_fence(fence, outcome)))
        });
        let lost = both.map(|outcome| (outcome, PublishRefusal::LeaderLost(outcome)));
        for (outcome, refusal) in of_fences.chain(lost) {
            let peer = refusal.to_peer();
            let unknown = outcome == StoredOutcome::Unknown;
            assert_eq!(peer.outcome == Outcome::Unknown, unknown, "{refusal:?}");
            assert_eq!(peer.code >> 8 == 0x05, unknown, "{refusal:?}");
        }
    }
}
