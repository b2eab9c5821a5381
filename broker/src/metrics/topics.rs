//! Counters per topic.
//!
//! Invariants: a topic's counters live as long as the topic; at most the configured number of
//! topics has any, so that a scrape stays small.

use super::exposition::Exposition;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weir_protocol::error_code::ErrorCode;
use weir_protocol::types::Name;

/// What is counted for one topic.
#[derive(Debug, Default)]
pub struct TopicMetrics {
    stored: AtomicU64,
    duplicates: AtomicU64,
    bytes: AtomicU64,
    delivered: AtomicU64,
    delivered_bytes: AtomicU64,
    expired: AtomicU64,
    /// By the position of the code in [`ErrorCode::ALL`].
    rejected: RejectedCounts,
}

#[derive(Debug)]
struct RejectedCounts([AtomicU64; ErrorCode::ALL.len()]);

impl Default for RejectedCounts {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl TopicMetrics {
    /// A batch was acknowledged.
    pub fn published(&self, messages: u64, bytes: u64, duplicate: bool) {
        if duplicate {
            self.duplicates.fetch_add(messages, Ordering::Relaxed);
        } else {
            self.stored.fetch_add(messages, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Batches were handed to a consumer.
    pub fn delivered(&self, messages: u64, bytes: u64) {
        self.delivered.fetch_add(messages, Ordering::Relaxed);
        self.delivered_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Records were trimmed before a durable subscription had settled them.
    pub fn expired(&self, messages: u64) {
        self.expired.fetch_add(messages, Ordering::Relaxed);
    }

    pub(super) fn rejected(&self, code: ErrorCode) {
        let at = ErrorCode::ALL.iter().position(|known| *known == code);
        if let Some(count) = at.and_then(|at| self.rejected.0.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The counters of all topics.
#[derive(Debug)]
pub(super) struct TopicTable {
    topics_max: usize,
    topics: Mutex<BTreeMap<Name, Arc<TopicMetrics>>>,
    dropped: AtomicU64,
}

impl TopicTable {
    pub(super) fn new(topics_max: usize) -> Self {
        Self { topics_max, topics: Mutex::default(), dropped: AtomicU64::new(0) }
    }

    fn topics(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<TopicMetrics>>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, name: &Name) -> Arc<TopicMetrics> {
        let mut topics = self.topics();
        if let Some(known) = topics.get(name) {
            return known.clone();
        }
        let made = Arc::<TopicMetrics>::default();
        if topics.len() < self.topics_max {
            topics.insert(name.clone(), made.clone());
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        made
    }

    pub(super) fn known(&self, name: &Name) -> Option<Arc<TopicMetrics>> {
        self.topics().get(name).cloned()
    }

    pub(super) fn forget(&self, name: &Name) {
        self.topics().remove(name);
    }

    pub(super) fn render(&self, page: &mut Exposition) {
        let topics: Vec<(Name, Arc<TopicMetrics>)> =
            self.topics().iter().map(|(name, topic)| (name.clone(), topic.clone())).collect();
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let name = "weir_publish_messages_total";
        for (topic, counts) in &topics {
            let topic = topic.as_str();
            page.sample(name, &[("topic", topic), ("result", "stored")], of(&counts.stored));
            let labels = [("topic", topic), ("result", "duplicate")];
            page.sample(name, &labels, of(&counts.duplicates));
        }
        let mut family = |name: &str, pick: fn(&TopicMetrics) -> &AtomicU64| {
            for (topic, counts) in &topics {
                page.sample(name, &[("topic", topic.as_str())], of(pick(counts)));
            }
        };
        family("weir_publish_bytes_total", |counts| &counts.bytes);
        family("weir_deliver_messages_total", |counts| &counts.delivered);
        family("weir_deliver_bytes_total", |counts| &counts.delivered_bytes);
        family("weir_expire_messages_total", |counts| &counts.expired);
        for (topic, counts) in &topics {
            for (reason, count) in counts.rejected_by_reason() {
                let labels = [("topic", topic.as_str()), ("reason", reason)];
                page.sample("weir_publish_rejected_total", &labels, count as f64);
            }
        }
        page.sample("weir_metric_series_dropped_total", &[], of(&self.dropped));
    }
}

impl TopicMetrics {
    /// Only reasons that occurred: the list of codes is long and most cannot concern a topic.
    fn rejected_by_reason(&self) -> BTreeMap<&'static str, u64> {
        let mut reasons = BTreeMap::new();
        for (code, count) in ErrorCode::ALL.iter().zip(&self.rejected.0) {
            let count = count.load(Ordering::Relaxed);
            let always = matches!(code, ErrorCode::BacklogFull | ErrorCode::StorageLow);
            if count > 0 || always {
                *reasons.entry(code.reason()).or_insert(0) += count;
            }
        }
        reasons
    }
}
