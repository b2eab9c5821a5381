//! What is made of measurements: latency histograms that merge, the cost of a process, medians.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Latencies from 1 µs to an hour, to three digits.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are in order"))
    }
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// Samples.
    pub count: u64,
    /// Median.
    pub p50_us: u64,
    /// 90th.
    pub p90_us: u64,
    /// 99th.
    pub p99_us: u64,
    /// 99.9th.
    pub p999_us: u64,
    /// The largest.
    pub max_us: u64,
}

impl Latencies {
    /// Records one.
    pub fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(us.max(1));
    }

    /// Adds another's samples: percentiles of the sum, not sums of percentiles.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    /// The usual percentiles.
    pub fn percentiles(&self) -> Percentiles {
        let at = |quantile| self.0.value_at_quantile(quantile);
        Percentiles {
            count: self.0.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: self.0.max(),
        }
    }
}

/// What a process has cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ProcessCost {
    /// User and system time, seconds.
    pub cpu_seconds: f64,
    /// Resident memory that no file backs, bytes.
    pub anonymous_bytes: u64,
}

/// Reads the cost of process `pid` from /proc; none when there is no such process.
pub fn process_cost(pid: u32) -> Option<ProcessCost> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let anonymous = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    let kibibytes = anonymous.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse().ok());
    let anonymous_bytes = kibibytes.unwrap_or(0u64) << 10;
    Some(ProcessCost { cpu_seconds: (user + system) / ticks, anonymous_bytes })
}

/// The middle of an odd number of values, or the lower middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// The sum over the number of values; 0 without any.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_percentiles_are_those_of_all_samples() {
        let (mut fast, mut slow) = (Latencies::default(), Latencies::default());
        for us in 1..=100 {
            fast.record(Duration::from_micros(us));
            slow.record(Duration::from_micros(us * 100));
        }
        fast.merge(&slow);
        let merged = fast.percentiles();
        assert_eq!(merged.count, 200);
        assert!((99..=101).contains(&merged.p50_us), "{merged:?}");
        assert!((9_900..=10_010).contains(&merged.max_us));
    }

    #[test]
    fn this_process_costs_something() {
        let cost = process_cost(std::process::id()).unwrap();
        assert!(cost.anonymous_bytes > 0);
        assert!(process_cost(u32::MAX).is_none());
    }
}
