//! The task that reads sealed segments in search of bytes that rotted.
//!
//! Owns: the order and the pace: one piece at a time, one partition after the other.
//! Never: repairs; keeps a partition from anything: damage is remembered by its log, and readers
//! are refused from then on.
//! Invariants: over any second the device is asked for the configured bytes at most, and a piece
//! more, but for the search behind damage for where it ends; a segment that cannot be read keeps none behind it from being read.

use super::table::Table;
use crate::metrics::Metrics;
use crate::partition::PartitionHandle;
use crate::seams::{WallClock, on_lane};
use std::sync::Arc;
use tokio::time::{Duration, Instant};
use weir_storage::{Executor, Lane, ReadError, ScrubPiece, ScrubPlace, Scrubbed};

/// However short the interval is, a pass over nothing is not repeated at once.
const PASSES_APART_MIN: Duration = Duration::from_secs(1);

/// How sealed segments are searched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScrubPace {
    /// 0 = never.
    pub(crate) bytes_per_second: u64,
    /// Between the beginnings of two passes, at least.
    pub(crate) interval: Duration,
}

pub(super) struct Scrubber {
    pub(super) table: Arc<Table>,
    pub(super) executor: Arc<dyn Executor>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) wall: Arc<dyn WallClock>,
    pub(super) pace: ScrubPace,
}

impl Scrubber {
    /// Scrubs for ever, or not at all.
    pub(super) async fn run(self) {
        if self.pace.bytes_per_second == 0 {
            return;
        }
        loop {
            let began = Instant::now();
            for partition in self.table.open() {
                self.scrub(&partition).await;
            }
            self.metrics.scrub_passed(self.wall.now_ms());
            let next = began + self.pace.interval;
            tokio::time::sleep_until(next.max(Instant::now() + PASSES_APART_MIN)).await;
        }
    }

    /// Reads the sealed segments of one partition, until it ends.
    async fn scrub(&self, partition: &PartitionHandle) {
        let mut place = ScrubPlace::default();
        while let Some(piece) = partition.log().and_then(|log| log.scrub_from(place)) {
            let behind = piece.behind_segment();
            let done = match self.read(piece).await {
                Ok(done) => done,
                Err(error) => {
                    tracing::warn!(?partition, %error, "a sealed segment cannot be read");
                    place = behind;
                    continue;
                }
            };
            // Where nothing behind it can be told apart, the segment is done with.
            place = if done.next == place { behind } else { done.next };
            self.metrics.scrubbed(done.bytes);
            let seconds = done.bytes as f64 / self.pace.bytes_per_second as f64;
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        }
    }

    async fn read(&self, piece: ScrubPiece) -> Result<Scrubbed, ReadError> {
        on_lane(&self.executor, Lane::Read, move || piece.run()).await
    }
}
