//! The table of metric families: what is documented, what is described, what may be rendered.
//!
//! Invariant: a family that is rendered stands here, or the renderer panics in tests.

use metrics::{KeyName, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::PrometheusRecorder;
use std::fmt::Write;

/// What kind of number a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Who renders a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Recorder,
    Registry,
}

/// One family.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) side: Side,
    pub(super) labels: &'static str,
    pub(super) help: &'static str,
}

const fn family(
    name: &'static str,
    kind: Kind,
    side: Side,
    labels: &'static str,
    help: &'static str,
) -> Family {
    Family { name, kind, side, labels, help }
}

use Kind::{Counter, Gauge, Histogram};
use Side::{Recorder as Rec, Registry as Reg};

/// Buckets of the flush histogram, seconds.
pub(super) const FLUSH_BUCKETS: [f64; 14] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
    5.0,
];

#[rustfmt::skip]
pub(super) const FAMILIES: &[Family] = &[
    family("weir_flow_blocked_seconds_total", Counter, Reg, "topic, reason", "Time during which at least one publisher of the topic wanted to send and might not."),
    family("weir_publishers_blocked", Gauge, Reg, "topic", "Partitions of the topic with a publisher that waits for credit now."),
    family("weir_publish_messages_total", Counter, Reg, "topic, result", "Messages acknowledged: stored now, or found to be stored already (duplicate)."),
    family("weir_publish_bytes_total", Counter, Reg, "topic", "Bytes of batches acknowledged as stored."),
    family("weir_publish_rejected_total", Counter, Reg, "topic, reason", "Refusals sent to clients of the topic."),
    family("weir_publish_ack_seconds", Histogram, Reg, "", "From the read of a batch to its acknowledgement."),
    family("weir_deliver_messages_total", Counter, Reg, "topic", "Messages handed to consumers."),
    family("weir_deliver_bytes_total", Counter, Reg, "topic", "Bytes handed to consumers."),
    family("weir_expire_messages_total", Counter, Reg, "topic", "Messages trimmed before a durable subscription had settled them (overflow expire)."),
    family("weir_topic_messages", Gauge, Reg, "topic", "Messages that can be read."),
    family("weir_topic_bytes", Gauge, Reg, "topic", "Bytes of the topic's segments on disk."),
    family("weir_subscription_lag_messages", Gauge, Reg, "topic, subscription", "Messages between the cursor and the high watermark."),
    family("weir_memory_used_bytes", Gauge, Reg, "pool", "What is drawn from a part of the memory budget."),
    family("weir_memory_limit_bytes", Gauge, Reg, "pool", "The most that a part of the memory budget may come to."),
    family("weir_disk_free_bytes", Gauge, Reg, "", "Bytes that can still be allocated where the data lies."),
    family("weir_partitions", Gauge, Reg, "state", "Partitions by state: open, opening or failed."),
    family("weir_damaged_ranges", Gauge, Reg, "topic, partition", "Ranges of the partition's log that cannot be read and that nobody gave up yet; no series where there is none."),
    family("weir_broker_leaders", Gauge, Reg, "", "Partitions that this broker leads."),
    family("weir_under_replicated_partitions", Gauge, Reg, "", "Partitions led here of which fewer replicas than the topic asks for are whole: vote, answer and are within 8 MiB of the leader. Add up over brokers."),
    family("weir_replica_lag_bytes", Gauge, Reg, "topic", "Bytes that the replica furthest behind lacks, over the partitions of the topic that are led here and have others; take the maximum over brokers."),
    family("weir_leaderless_partitions", Gauge, Reg, "", "Partitions of the cluster of which this broker knows no leader, or none that a majority can answer. A broker that is cut off knows of none: take the minimum over brokers."),
    family("weir_lost_replicas", Gauge, Reg, "", "Replicas of the cluster that will never serve again and whose place nobody took yet, those of the metadata included; every broker tells the same."),
    family("weir_moves", Gauge, Reg, "", "Replicas of the cluster that are on their way to a broker; every broker tells the same."),
    family("weir_cluster_brokers", Gauge, Reg, "state", "Brokers of the cluster as this one knows them: silent (not heard of for 30 s), going (shutting down), draining, full (less than 1 GiB left) or well."),
    family("weir_metadata_leader", Gauge, Reg, "", "1 where this broker leads the metadata and hears of a majority of its voters, else 0. Over a cluster the sum is 1."),
    family("weir_peer_links", Gauge, Reg, "state", "Links to other brokers: connecting, refused (the other side or this one says why in /v1/cluster) or open."),
    family("weir_peer_bytes_total", Counter, Reg, "direction, lane", "Bytes read (in) from and written (out) to other brokers, by lane: control (beats, votes, news, questions) or bulk (logs and snapshots)."),
    family("weir_peer_catchup_bytes_total", Counter, Reg, "", "Bytes that other brokers were sent for replicas more than 64 MiB behind, as snapshots and to mend damage; cluster.catchup_bytes_per_s bounds the rate to each."),
    family("weir_peer_catchup_delayed_bytes_total", Counter, Reg, "", "Of those, bytes that had to wait for their turn: grows while cluster.catchup_bytes_per_s is what holds replicas back."),
    family("weir_catching_up_replicas", Gauge, Reg, "", "Replicas of partitions led here that lack more than 64 MiB and are sent it by cluster.catchup_bytes_per_s. Add up over brokers."),
    family("weir_metric_series_dropped_total", Counter, Reg, "", "Topics that have no series of their own because of metrics.topics_max."),
    family("weir_log_flush_seconds", Histogram, Rec, "", "How long the device takes to make a group durable."),
    family("weir_log_flush_bytes_total", Counter, Rec, "", "Bytes made durable."),
    family("weir_scrub_bytes_total", Counter, Rec, "", "Bytes of sealed segments read from the device in search of damage."),
    family("weir_scrub_passes_total", Counter, Rec, "", "Times that every sealed segment was read."),
    family("weir_scrub_last_pass_timestamp_seconds", Gauge, Rec, "", "When every sealed segment had been read for the last time, seconds since 1970; 0 = not since the start."),
    family("weir_replica_folders_removed_total", Counter, Rec, "", "Folders of replicas that were moved away or deleted while this broker was down, removed since its start."),
    family("weir_connections", Gauge, Rec, "", "Open connections."),
    family("weir_connections_opened_total", Counter, Rec, "", "Connections accepted."),
    family("weir_connections_closed_total", Counter, Rec, "reason", "Connections that ended, by how."),
    family("weir_errors_total", Counter, Rec, "code, reason", "Refusals sent to clients, by the number and reason of ERRORS.md."),
    family("weir_build_info", Gauge, Rec, "version, node", "1; its labels say what runs."),
    family("process_resident_memory_bytes", Gauge, Reg, "", "Resident memory, mapped segments included."),
    family("process_anonymous_memory_bytes", Gauge, Reg, "", "Resident memory that is not backed by files: what the budget bounds."),
    family("process_cpu_seconds_total", Counter, Reg, "", "CPU time used."),
    family("process_open_fds", Gauge, Reg, "", "Open file descriptors."),
];

pub(super) fn family_of(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}

/// Tells the recorder the help texts of its families.
pub(super) fn describe(recorder: &PrometheusRecorder) {
    for family in FAMILIES.iter().filter(|family| family.side == Side::Recorder) {
        let (name, help) = (KeyName::from(family.name), SharedString::from(family.help));
        match family.kind {
            Kind::Counter => recorder.describe_counter(name, None::<Unit>, help),
            Kind::Gauge => recorder.describe_gauge(name, None::<Unit>, help),
            Kind::Histogram => recorder.describe_histogram(name, None::<Unit>, help),
        }
    }
}

/// The reference page of the metrics, made from the table that renders them.
pub fn reference() -> String {
    let mut page = String::from(
        "# Metrics\n\n<!-- Generated by `cargo xtask reference`; edit the table in \
         broker/src/metrics/families.rs. -->\n\n`GET /metrics` on the admin address. \
         `weir_flow_blocked_seconds_total` is the first to look at: its rate is the share of time \
         that publishers had to wait, by reason.\n\n\
         | family | kind | labels | what it says |\n|---|---|---|---|\n",
    );
    for family in FAMILIES {
        let (name, kind, labels, help) =
            (family.name, family.kind.name(), family.labels, family.help);
        let _ = writeln!(page, "| `{name}` | {kind} | {labels} | {help} |");
    }
    page
}
