//! What of the log may go, and whether its topic is full.
//!
//! Owns: one decision, made of what the log holds, its limits and the lowest cursor.
//! Never: a clock, a disk.
//! Invariants: only whole segments go, the oldest first; what a durable subscription still needs
//! goes only under the policy `expire`.

use weir_protocol::frame::{Overflow, TopicConfig};
use weir_protocol::types::{Index, Offset};

/// One sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) last_index: Index,
    /// Behind its last record.
    pub(super) end_offset: Offset,
    pub(super) bytes: u64,
    /// Of its last batch.
    pub(super) log_time_ms: u64,
}

/// What the log holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held<'a> {
    /// The sealed segments, oldest first.
    pub(super) sealed: &'a [Sealed],
    /// Bytes of all segments, the open one included.
    pub(super) bytes: u64,
    /// Where the log begins for readers.
    pub(super) log_start: Offset,
    /// The high watermark.
    pub(super) high_watermark: Offset,
    /// The lowest cursor of a durable subscription, if there is one.
    pub(super) floor: Option<Offset>,
    /// The wall clock.
    pub(super) now_ms: u64,
    /// Log time of the newest batch.
    pub(super) newest_ms: u64,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Retained {
    /// The log is to begin here.
    pub(super) trim_to: Option<Offset>,
    /// More bytes than the topic may hold are still needed.
    pub(super) full: bool,
}

/// Decides.
pub(super) fn decide(config: &TopicConfig, held: &Held<'_>) -> Retained {
    let expire = config.overflow == Overflow::Expire;
    let limit = if expire { None } else { held.floor };
    let mut bytes = held.bytes;
    let mut log_start = held.log_start;
    for segment in held.sealed {
        let aged = is_aged(config, segment.log_time_ms, held.now_ms);
        let gone = segment.end_offset <= log_start;
        let free = limit.is_none_or(|limit| segment.end_offset <= limit);
        if !gone && !((aged || bytes > config.max_bytes) && free) {
            break;
        }
        bytes = bytes.saturating_sub(segment.bytes);
        log_start = log_start.max(segment.end_offset);
    }
    if is_aged(config, held.newest_ms, held.now_ms) {
        // All of it is too old, also what lies in the open segment.
        let end = limit.map_or(held.high_watermark, |limit| limit.min(held.high_watermark));
        log_start = log_start.max(end);
    }
    Retained {
        trim_to: (log_start > held.log_start).then_some(log_start),
        full: bytes > config.max_bytes && limit.is_some_and(|limit| limit < held.high_watermark),
    }
}

fn is_aged(config: &TopicConfig, log_time_ms: u64, now_ms: u64) -> bool {
    config.max_age_ms > 0 && log_time_ms.saturating_add(config.max_age_ms) < now_ms
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weir_protocol::frame::Durability;

    fn config(overflow: Overflow, max_bytes: u64, max_age_ms: u64) -> TopicConfig {
        TopicConfig {
            partitions: 1,
            durability: Durability::Fsync,
            overflow,
            max_bytes,
            max_age_ms,
            replicas: 1,
        }
    }

    /// Segments of 100 bytes and 10 records each, one a second.
    fn segments(count: u64) -> Vec<Sealed> {
        let segment = |number| Sealed {
            last_index: Index(number * 5),
            end_offset: Offset(number * 10),
            bytes: 100,
            log_time_ms: number * 1_000,
        };
        (1..=count).map(segment).collect()
    }

    fn held(sealed: &[Sealed], floor: Option<u64>) -> Held<'_> {
        let count = sealed.len() as u64;
        Held {
            sealed,
            bytes: count * 100 + 50,
            log_start: Offset(0),
            high_watermark: Offset(count * 10 + 5),
            floor: floor.map(Offset),
            now_ms: count * 1_000,
            newest_ms: count * 1_000,
        }
    }

    #[test]
    fn a_plain_log_loses_its_oldest_segments_at_its_limit() {
        let sealed = segments(5);
        let decision = decide(&config(Overflow::Backpressure, 350, 0), &held(&sealed, None));
        assert_eq!(decision, Retained { trim_to: Some(Offset(20)), full: false });
    }

    #[test]
    fn what_a_subscription_needs_is_held_and_the_topic_is_full() {
        let sealed = segments(5);
        let limits = config(Overflow::Backpressure, 350, 0);
        let decision = decide(&limits, &held(&sealed, Some(19)));
        assert_eq!(decision, Retained { trim_to: Some(Offset(10)), full: true });
        let settled = decide(&limits, &held(&sealed, Some(20)));
        assert_eq!(settled, Retained { trim_to: Some(Offset(20)), full: false });
    }

    #[test]
    fn the_policy_expire_lets_it_go() {
        let sealed = segments(5);
        let decision = decide(&config(Overflow::Expire, 350, 0), &held(&sealed, Some(3)));
        assert_eq!(decision, Retained { trim_to: Some(Offset(20)), full: false });
    }

    #[test]
    fn what_is_too_old_goes_and_all_of_it_when_all_is_too_old() {
        let sealed = segments(5);
        let limits = config(Overflow::Backpressure, 10_000, 2_500);
        let mut now = held(&sealed, None);
        assert_eq!(
            decide(&limits, &now).trim_to,
            Some(Offset(20)),
            "3,000 + 2,500 is not past 5,000"
        );
        now.now_ms = 8_000;
        assert_eq!(decide(&limits, &now).trim_to, Some(Offset(55)));
        now.floor = Some(Offset(33));
        assert_eq!(decide(&limits, &now).trim_to, Some(Offset(33)));
    }

    #[test]
    fn what_was_trimmed_already_counts_as_gone() {
        let sealed = segments(5);
        let mut now = held(&sealed, Some(20));
        now.log_start = Offset(20);
        let decision = decide(&config(Overflow::Backpressure, 350, 0), &now);
        assert_eq!(decision, Retained { trim_to: None, full: false });
    }

    proptest! {
        #[test]
        fn nothing_that_is_needed_goes_unless_it_may_expire(
            count in 0u64..8,
            floor in proptest::option::of(0u64..100),
            max_bytes in 0u64..1_000,
            max_age_ms in 0u64..10_000,
            expire in any::<bool>(),
        ) {
            let sealed = segments(count);
            let overflow = if expire { Overflow::Expire } else { Overflow::Reject };
            let now = held(&sealed, floor);
            let decision = decide(&config(overflow, max_bytes, max_age_ms), &now);
            if let Some(trim_to) = decision.trim_to {
                prop_assert!(trim_to > now.log_start && trim_to <= now.high_watermark);
                let needed = now.floor.filter(|_| !expire);
                prop_assert!(needed.is_none_or(|floor| trim_to <= floor));
            }
            if decision.full {
                prop_assert!(!expire && now.bytes > max_bytes);
            }
        }
    }
}
