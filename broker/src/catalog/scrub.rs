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
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::{Duration, Instant};
use weir_storage::{Executor, Lane, ReadError, ScrubPiece, ScrubPlace, Scrubbed};

/// However short the interval is, a pass over nothing is not repeated at once.
const PASSES_APART_MIN: Duration = Duration::from_secs(1);

/// What was closed while it was searched is looked for again after this; what takes longer to come
/// back has its turn in the next pass.
const OPENED_ANEW_WITHIN: Duration = Duration::from_secs(10);

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
            self.pass().await;
            self.metrics.scrub_passed(self.wall.now_ms());
            let next = began + self.pace.interval;
            tokio::time::sleep_until(next.max(Instant::now() + PASSES_APART_MIN)).await;
        }
    }

    /// Reads all that is open, and once more what was closed while it was read: a replica is opened
    /// anew for the first damage that is found, and there may be more behind it.
    async fn pass(&self) {
        let mut due = self.table.open();
        while !due.is_empty() {
            let mut cut = BTreeSet::new();
            for partition in due {
                let Some(replica) = partition.replica().map(|replica| replica.id()) else {
                    continue;
                };
                if !self.scrub(&partition).await {
                    cut.insert(replica);
                }
            }
            if cut.is_empty() {
                return;
            }
            tokio::time::sleep(OPENED_ANEW_WITHIN).await;
            due = self.table.open();
            due.retain(|of| of.replica().is_some_and(|replica| cut.contains(&replica.id())));
        }
    }

    /// Reads the sealed segments of one partition. Returns whether it was open all the time.
    async fn scrub(&self, partition: &PartitionHandle) -> bool {
        let mut place = ScrubPlace::default();
        loop {
            let Some(log) = partition.log() else { return false };
            let Some(piece) = log.scrub_from(place) else { return true };
            // Between two pieces nothing is held of a log that may be closed.
            drop(log);
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
