//! What this broker leads, for itself and for the others.
//!
//! Owns: when it is told: a new leader soon, because clients wait to learn of it; numbers that only
//! people read, seldom.
//! Never: waits for anybody.

use super::table::Table;
use crate::cluster::leaders::LeaderBoard;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::time::{Duration, Instant};
use weir_protocol::peer::{Led, News};
use weir_protocol::types::{BrokerId, ReplicaId};
use weir_storage::Device;

/// How long a new leader may stay unheard of.
const LEADERS_EVERY: Duration = Duration::from_millis(50);
/// How old the numbers of a partition may be.
const NUMBERS_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Newsroom {
    pub(super) table: Arc<Table>,
    pub(super) leaders: Arc<LeaderBoard>,
    pub(super) device: Arc<Device>,
    pub(super) broker: BrokerId,
    pub(super) draining: Arc<AtomicBool>,
    /// The gate that this broker tells others it reads.
    pub(super) reads: u32,
    pub(super) announce: Arc<dyn Fn(News) + Send + Sync>,
}

impl Newsroom {
    /// Tells for ever.
    pub(super) async fn run(self) {
        let mut told = News { free_bytes: 0, draining: false, gate: self.reads, led: Vec::new() };
        let mut counted: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let stale = counted.is_none_or(|at| now - at >= NUMBERS_EVERY);
            let news = self.gather(&told, stale);
            if stale {
                counted = Some(now);
            }
            if news != told || stale {
                self.leaders.note(self.broker, &news, now);
                (self.announce)(news.clone());
                told = news;
            }
            tokio::time::sleep(LEADERS_EVERY).await;
        }
    }

    /// What is led now; numbers are those that were told before unless they are `stale`.
    fn gather(&self, told: &News, stale: bool) -> News {
        let known: BTreeMap<ReplicaId, &Led> =
            told.led.iter().map(|led| (led.replica, led)).collect();
        let mut led = Vec::new();
        self.table.each_led(|replica, view| {
            let before = known.get(&replica).filter(|before| before.term == view.term && !stale);
            led.push(before.map_or_else(
                || Led {
                    replica,
                    term: view.term,
                    log_start: view.log_start,
                    high_watermark: view.high_watermark,
                    bytes: view.bytes,
                },
                |before| **before,
            ));
        });
        let free_bytes =
            if stale { self.device.free_bytes().unwrap_or(0) } else { told.free_bytes };
        News { free_bytes, draining: self.draining.load(Ordering::Acquire), gate: self.reads, led }
    }
}
