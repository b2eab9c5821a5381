//! The form of figures: JSON for programs, a table for people.

use crate::audit::Verdict;
use crate::floor::FloorReport;
use crate::measure::Percentiles;
use crate::workload::Workload;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// One second of a run.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Second {
    /// Acknowledged in it.
    pub acked: u64,
    /// Of them, within the SLO.
    pub good: u64,
}

/// What a load reached.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// What was run.
    pub workload: Workload,
    /// Messages that were due.
    pub offered: u64,
    /// Messages that the client took.
    pub admitted: u64,
    /// Messages that were acknowledged.
    pub acked: u64,
    /// Acknowledged within the SLO.
    pub good: u64,
    /// Refusals by name, local ones included.
    pub refused: BTreeMap<String, u64>,
    /// Messages whose outcome is unknown.
    pub unknown: u64,
    /// Acknowledged a second.
    pub acked_per_second: f64,
    /// Payload acknowledged, MB/s.
    pub acked_mb_per_second: f64,
    /// From due to acknowledged.
    pub latency: Percentiles,
    /// The run by seconds.
    pub seconds: Vec<Second>,
    /// What the consumer saw.
    pub audit: Option<Verdict>,
    /// From due to received.
    pub end_to_end: Option<Percentiles>,
    /// CPU of the broker during the run.
    pub server_cpu_seconds: Option<f64>,
    /// The same per million acknowledged messages.
    pub server_cpu_s_per_million: Option<f64>,
    /// Anonymous memory of the broker at the end.
    pub server_anonymous_bytes: Option<u64>,
}

impl LoadReport {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{}: {:.0} messages/s acknowledged ({:.1} MB/s)\n",
            self.workload.name, self.acked_per_second, self.acked_mb_per_second
        );
        let (offered, admitted, acked) = (self.offered, self.admitted, self.acked);
        let _ = writeln!(text, "  offered {offered}  admitted {admitted}  acknowledged {acked}");
        let _ = writeln!(text, "  within {} ms {}", self.workload.slo_ms, self.good);
        let _ = writeln!(text, "  due to acknowledged  {}", percentiles(&self.latency));
        if let Some(end_to_end) = &self.end_to_end {
            let _ = writeln!(text, "  due to received      {}", percentiles(end_to_end));
        }
        for (code, count) in &self.refused {
            let _ = writeln!(text, "  refused {code} {count}");
        }
        if let Some(audit) = &self.audit {
            let Verdict { received, lost, duplicated, reordered, foreign } = audit;
            let _ = writeln!(
                text,
                "  received {received}  lost {lost}  duplicated {duplicated}  reordered \
                 {reordered}  foreign {foreign}"
            );
        }
        if let (Some(cpu), Some(bytes)) =
            (self.server_cpu_s_per_million, self.server_anonymous_bytes)
        {
            let mebibytes = bytes as f64 / f64::from(1 << 20);
            let _ = writeln!(
                text,
                "  broker: {cpu:.2} CPU s per million messages, {mebibytes:.1} MiB anonymous"
            );
        }
        text
    }
}

fn percentiles(p: &Percentiles) -> String {
    format!(
        "p50 {} us  p90 {} us  p99 {} us  p99.9 {} us  max {} us",
        p.p50_us, p.p90_us, p.p99_us, p.p999_us, p.max_us
    )
}

impl FloorReport {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "group       device MB/s  storage MB/s  ratio  p50 us       written/group  flushes\n",
        );
        for floor in &self.groups {
            let _ = writeln!(
                text,
                "{:>8} B  {:>11.1}  {:>12.1}  {:>5.2}  {:>4} / {:<4}  {:>11.0} B  {:>7.2}",
                floor.group_bytes,
                floor.device_mb_s,
                floor.storage_mb_s,
                floor.ratio,
                floor.device_p50_us,
                floor.storage_p50_us,
                floor.storage_written_bytes.unwrap_or(f64::NAN),
                floor.storage_flushes.unwrap_or(f64::NAN),
            );
        }
        let _ = writeln!(text, "loopback {:.0} MB/s", self.loopback_mb_s);
        text.push_str("net floor   messages/s      p50 us  p99 us  server CPU s per million\n");
        for figure in &self.net {
            let load = &figure.load;
            let name = format!("{} B p{} w{}", load.message_bytes, load.publishers, load.window);
            let _ = writeln!(
                text,
                "{name:<14}  {:>10.0}  {:>7}  {:>6}  {:.2}",
                figure.messages_s,
                figure.latency.p50_us,
                figure.latency.p99_us,
                figure.server_cpu_s_per_million
            );
        }
        text
    }
}
