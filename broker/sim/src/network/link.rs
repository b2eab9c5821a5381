//! One direction between two hosts.
//!
//! Owns: how long bytes take, and whether they pass at all.
//! Never: knows a stream.

use tokio::time::{Duration, Instant};

/// What a link does to bytes, one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conditions {
    /// From the first host to the second. The runtime's timer counts whole milliseconds.
    pub delay: Duration,
    /// Up to so much more, by chance. It never reorders a stream.
    pub jitter: Duration,
    /// All streams of the link together.
    pub bytes_per_second: u64,
}

/// Gigabit Ethernet.
const BYTES_PER_SECOND: u64 = 125_000_000;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

impl Conditions {
    /// Within one host.
    pub const LOOPBACK: Self =
        Self { delay: Duration::ZERO, jitter: Duration::ZERO, bytes_per_second: u64::MAX };
    /// Between hosts of one network.
    pub const LOCAL: Self = Self {
        delay: Duration::from_micros(200),
        jitter: Duration::from_micros(1_500),
        bytes_per_second: BYTES_PER_SECOND,
    };
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) conditions: Conditions,
    /// Nothing passes: what is under way waits until it is healed.
    pub(super) cut: bool,
    /// When what was sent last has left.
    free_at: Option<Instant>,
}

impl Link {
    pub(super) fn between(from: u8, to: u8) -> Self {
        let conditions = if from == to { Conditions::LOOPBACK } else { Conditions::LOCAL };
        Self { conditions, cut: false, free_at: None }
    }

    /// When `bytes` that leave now arrive. `jitter` is chance in 0..1.
    pub(super) fn arrival(&mut self, now: Instant, bytes: usize, jitter: f64) -> Instant {
        let Conditions { delay, jitter: jitter_max, bytes_per_second } = self.conditions;
        let takes = u128::from(NANOS_PER_SECOND) * bytes as u128 / u128::from(bytes_per_second);
        let begins = self.free_at.map_or(now, |free| free.max(now));
        let left = begins + Duration::from_nanos(takes as u64);
        self.free_at = Some(left);
        left + delay + jitter_max.mul_f64(jitter)
    }
}
