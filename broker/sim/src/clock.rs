//! The simulated time of day: the runtime's virtual time behind a fixed start.
//!
//! Owns: the start, its jumps, and how far off and how fast the clock is. Never: asks the operating system.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::time::Instant;

/// Where simulated wall time begins: 2026-01-01T00:00:00Z.
const START_MS: u64 = 1_767_225_600_000;
const PARTS: i128 = 1_000_000;

/// Wall time that follows the paused runtime.
#[derive(Debug)]
pub struct SimWallClock {
    began: Instant,
    offset_ms: AtomicI64,
    drift_ppm: i64,
}

impl SimWallClock {
    /// A clock that shows the start now. Call it within the runtime.
    pub fn start() -> Arc<Self> {
        Self::skewed(0, 0)
    }

    /// A clock that is `offset_ms` ahead of the start, or behind it, and gains `drift_ppm`
    /// microseconds in every second, or loses them.
    pub fn skewed(offset_ms: i64, drift_ppm: i64) -> Arc<Self> {
        let offset_ms = AtomicI64::new(offset_ms);
        Arc::new(Self { began: Instant::now(), offset_ms, drift_ppm })
    }

    /// Somebody sets the clock: it shows so much more from now on, or less.
    pub fn jump(&self, by_ms: i64) {
        self.offset_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    fn show_ms(&self) -> u64 {
        let elapsed_us = self.began.elapsed().as_micros() as i128;
        let shown_us = elapsed_us * (PARTS + i128::from(self.drift_ppm)) / PARTS;
        let ms = i128::from(START_MS)
            + i128::from(self.offset_ms.load(Ordering::Relaxed))
            + shown_us / 1_000;
        u64::try_from(ms).unwrap_or(0)
    }
}

impl weir_broker::seams::WallClock for SimWallClock {
    fn now_ms(&self) -> u64 {
        self.show_ms()
    }
}

impl weir_client::seams::WallClock for SimWallClock {
    fn now_ms(&self) -> u64 {
        self.show_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::{START_MS, SimWallClock};
    use tokio::time::{Duration, advance};

    #[tokio::test(start_paused = true)]
    async fn a_skewed_clock_is_off_and_goes_its_own_way() {
        let (right, ahead) = (SimWallClock::start(), SimWallClock::skewed(250, 100));
        let behind = SimWallClock::skewed(-3_000, -500);
        assert_eq!([right.show_ms(), ahead.show_ms()], [START_MS, START_MS + 250]);
        advance(Duration::from_secs(100)).await;
        assert_eq!(right.show_ms(), START_MS + 100_000);
        assert_eq!(ahead.show_ms(), START_MS + 100_000 + 250 + 10);
        assert_eq!(behind.show_ms(), START_MS + 100_000 - 3_000 - 50);
        behind.jump(4_000);
        assert_eq!(behind.show_ms(), START_MS + 100_000 + 1_000 - 50);
    }
}
