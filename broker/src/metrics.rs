//! What the broker counts.
//!
//! Owns: every metric family (the table in `families`), the counters behind them, and their text
//! form. One value per broker: nothing is global.
//! Never: a label per connection; a family that nothing moves.
//! Invariants: each family is rendered by exactly one side: the recorder (rare events, flushes)
//! or the registry (per topic, per batch); counters never shrink while their topic exists.

mod exposition;
mod families;
mod histogram;
mod process;
mod topics;

pub use exposition::Exposition;
pub use families::reference;
pub use histogram::Histogram;
pub use topics::TopicMetrics;

use families::FLUSH_BUCKETS;
use metrics::{Counter, Gauge, Histogram as FlushHistogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use std::sync::Arc;
use std::time::Duration;
use topics::TopicTable;
use weir_protocol::error_code::{Action, ErrorCode};
use weir_protocol::types::Name;

/// How connections end, as the label `reason`.
const CLOSE_REASONS_MAX: usize = 32;
/// Samples of the recorder are folded into its buckets this often.
pub(crate) const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The counters of one broker.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    connections: Gauge,
    connections_opened: Counter,
    flush_seconds: FlushHistogram,
    flush_bytes: Counter,
    scrub: ScrubCounters,
    folders_removed: Counter,
    /// For every code that a broker sends.
    refusals: Vec<(ErrorCode, Counter)>,
    closed: std::sync::Mutex<Vec<(&'static str, Counter)>>,
    /// From the read of a batch to its answer.
    pub(crate) publish_ack: Histogram,
    topics: TopicTable,
}

struct ScrubCounters {
    bytes: Counter,
    passes: Counter,
    last_pass: Gauge,
}

impl Metrics {
    /// Counters for a broker called `node`; at most `topics_max` topics get series of their own.
    pub fn new(node: &str, topics_max: usize) -> Arc<Self> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(
                Matcher::Full("weir_log_flush_seconds".to_owned()),
                &FLUSH_BUCKETS,
            )
            .expect("the list of buckets is not empty")
            .build_recorder();
        let handle = recorder.handle();
        families::describe(&recorder);
        let metrics = metrics::with_local_recorder(&recorder, || {
            let version = env!("CARGO_PKG_VERSION");
            gauge!("weir_build_info", "version" => version, "node" => node.to_owned()).set(1.0);
            let sent = |code: &&ErrorCode| Action::of(code.number()) != Action::Local;
            let refusals = ErrorCode::ALL.iter().filter(sent).map(|code| {
                let number = format!("{:04x}", code.number());
                let labels = [("code", number), ("reason", code.reason().to_owned())];
                (*code, counter!("weir_errors_total", &labels))
            });
            (
                gauge!("weir_connections"),
                counter!("weir_connections_opened_total"),
                histogram!("weir_log_flush_seconds"),
                counter!("weir_log_flush_bytes_total"),
                ScrubCounters {
                    bytes: counter!("weir_scrub_bytes_total"),
                    passes: counter!("weir_scrub_passes_total"),
                    last_pass: gauge!("weir_scrub_last_pass_timestamp_seconds"),
                },
                counter!("weir_replica_folders_removed_total"),
                refusals.collect(),
            )
        });
        let (connections, connections_opened, flush_seconds, flush_bytes, scrub, removed, refusals) =
            metrics;
        Arc::new(Self {
            recorder,
            handle,
            connections,
            connections_opened,
            folders_removed: removed,
            flush_seconds,
            flush_bytes,
            scrub,
            refusals,
            closed: std::sync::Mutex::default(),
            publish_ack: Histogram::default(),
            topics: TopicTable::new(topics_max),
        })
    }

    /// The counters of a topic, made when it is first asked for.
    pub fn topic(&self, name: &Name) -> Arc<TopicMetrics> {
        self.topics.of(name)
    }

    /// The topic is gone, and its series with it.
    pub fn forget_topic(&self, name: &Name) {
        self.topics.forget(name);
    }

    /// A connection was accepted.
    pub fn connection_opened(&self) {
        self.connections.increment(1.0);
        self.connections_opened.increment(1);
    }

    /// A connection is over.
    pub fn connection_closed(&self, reason: &'static str) {
        self.connections.decrement(1.0);
        let mut closed = self.closed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, counter)) = closed.iter().find(|(known, _)| *known == reason) {
            return counter.increment(1);
        }
        assert!(closed.len() < CLOSE_REASONS_MAX, "the reasons are a closed list");
        let counter = metrics::with_local_recorder(
            &self.recorder,
            || counter!("weir_connections_closed_total", "reason" => reason),
        );
        counter.increment(1);
        closed.push((reason, counter));
    }

    /// A refusal is on its way to a client: counted by code, and by reason for its topic.
    pub fn refused(&self, topic: Option<&Name>, code: u16) {
        let known = self.refusals.iter().find(|(known, _)| known.number() == code);
        let Some((code, counter)) = known else { return };
        counter.increment(1);
        if let Some(topic) = topic.and_then(|name| self.topics.known(name)) {
            topic.rejected(*code);
        }
    }

    /// The device made a group durable.
    pub fn flushed(&self, took: Duration, bytes: u64) {
        self.flush_seconds.record(took.as_secs_f64());
        self.flush_bytes.increment(bytes);
    }

    /// Bytes of sealed segments were read from the device.
    pub fn scrubbed(&self, bytes: u64) {
        self.scrub.bytes.increment(bytes);
    }

    /// Every sealed segment was read.
    pub fn scrub_passed(&self, wall_ms: u64) {
        self.scrub.passes.increment(1);
        self.scrub.last_pass.set((wall_ms / 1_000) as f64);
    }

    /// The folder of a replica that went while this broker was away was removed.
    pub fn folder_removed(&self) {
        self.folders_removed.increment(1);
    }

    /// Folds the recorder's samples, so that they do not pile up when nobody scrapes.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// The text that Prometheus scrapes; `more` adds what is read off other rooms.
    pub fn render(&self, more: impl FnOnce(&mut Exposition)) -> String {
        let mut page = Exposition::new(self.handle.render());
        self.topics.render(&mut page);
        page.histogram("weir_publish_ack_seconds", &self.publish_ack);
        more(&mut page);
        process::render(&mut page);
        page.finish()
    }
}

#[cfg(test)]
mod tests;
