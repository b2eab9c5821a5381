//! What this broker leads, for itself and for the others.
//!
//! Owns: when it is told: a new leader at once, because clients wait to learn of it; numbers that only
//! people read, seldom.
//! Never: waits for anybody, or does anything while nothing changes.

use super::table::Table;
use crate::cluster::leaders::LeaderBoard;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use tokio::time::{Duration, Instant, sleep, timeout_at};
use weir_protocol::peer::{Led, News};
use weir_protocol::types::{BrokerId, ReplicaId};
use weir_storage::Device;

/// How long a new leader may stay unheard of: leaders that change together are told together.
const LEADERS_WITHIN: Duration = Duration::from_millis(5);
/// How old the numbers of a partition may be.
const NUMBERS_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Newsroom {
    pub(super) table: Arc<Table>,
    pub(super) leaders: Arc<LeaderBoard>,
    pub(super) device: Arc<Device>,
    pub(super) broker: BrokerId,
    pub(super) draining: watch::Receiver<bool>,
    /// Told when a partition here begins to lead, or ceases to.
    pub(super) lead_changed: Arc<Notify>,
    /// The gate that this broker tells others it reads.
    pub(super) reads: u32,
    pub(super) announce: Arc<dyn Fn(News) + Send + Sync>,
}

impl Newsroom {
    /// Tells for ever.
    pub(super) async fn run(mut self) {
        let mut told = News { free_bytes: 0, draining: false, gate: self.reads, led: Vec::new() };
        let mut count_at = Instant::now();
        loop {
            let now = Instant::now();
            let stale = now >= count_at;
            let news = self.gather(&told, stale);
            if stale {
                count_at = now + NUMBERS_EVERY;
            }
            if news != told || stale {
                self.leaders.note(self.broker, &news, now);
                (self.announce)(news.clone());
                told = news;
            }
            if timeout_at(count_at, self.changed()).await.is_ok() {
                sleep(LEADERS_WITHIN).await;
            }
        }
    }

    async fn changed(&mut self) {
        tokio::select! {
            biased;
            () = self.lead_changed.notified() => {}
            // A broker whose start was given up drops the other end; this ends soon after it.
            Ok(()) = self.draining.changed() => {}
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
        News { free_bytes, draining: *self.draining.borrow(), gate: self.reads, led }
    }
}
