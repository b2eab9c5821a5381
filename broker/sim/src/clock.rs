//! The simulated time of day: the runtime's virtual time behind a fixed start.
//!
//! Owns: nothing but the start. Never: asks the operating system.

use std::sync::Arc;
use tokio::time::Instant;
use weir_broker::seams::WallClock;

/// Where simulated wall time begins: 2026-01-01T00:00:00Z.
const START_MS: u64 = 1_767_225_600_000;

/// Wall time that follows the paused runtime.
#[derive(Debug)]
pub struct SimWallClock {
    began: Instant,
}

impl SimWallClock {
    /// A clock that shows the start now. Call it within the runtime.
    pub fn start() -> Arc<Self> {
        Arc::new(Self { began: Instant::now() })
    }
}

impl WallClock for SimWallClock {
    fn now_ms(&self) -> u64 {
        START_MS + self.began.elapsed().as_millis() as u64
    }
}
