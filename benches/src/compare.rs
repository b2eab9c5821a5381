//! A broker beside the floors of the machine that it runs on, in turns.
//!
//! Owns: the order of the turns, and the medians over them.
//! Never: puts figures of different runs side by side: a disk has good and bad minutes, and a
//! turn of everything sees the same one.

use crate::device::{time_groups, zeroed_file};
use crate::floor::{GROUP_BYTES_MAX, StorageFloor};
use crate::measure::median;
use crate::net_floor::{NetLoad, NetServer};
use crate::report::LoadReport;
use crate::workload::Workload;
use serde::Serialize;
use std::io;
use std::path::Path;

/// Flushes of 4 KiB in a turn.
const FLUSHES: u32 = 200;

/// One turn: every floor, then the broker.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Turn {
    /// Median of pwrite and fdatasync of 4 KiB, microseconds.
    pub device_p50_us: f64,
    /// Append and flush of the log in groups of half the window, messages a second.
    pub storage_messages_s: f64,
    /// The log server of 60 lines under the same load, messages a second.
    pub net_messages_s: f64,
    /// Its CPU, seconds per million messages.
    pub net_cpu_s_per_million: f64,
    /// The broker, messages acknowledged a second.
    pub messages_s: f64,
    /// Median from due to acknowledged, microseconds.
    pub p50_us: f64,
    /// 99th percentile of it.
    pub p99_us: f64,
    /// CPU of the broker, seconds per million messages; 0 without its process id.
    pub cpu_s_per_million: f64,
    /// The broker over the smaller of the storage floor and the net floor.
    pub ratio: f64,
}

/// One workload in turns with the floors.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The workload.
    pub workload: Workload,
    /// Every turn.
    pub turns: Vec<Turn>,
    /// The median of every figure; that of `ratio` is the median of the turns' ratios.
    pub median: Turn,
}

/// Runs every workload `turns` times in turns with the floors, which write below `dir`.
/// `run` runs a workload against the broker.
pub fn measure(
    dir: &Path,
    workloads: Vec<Workload>,
    turns: u32,
    mut run: impl FnMut(Workload) -> io::Result<LoadReport>,
) -> io::Result<Vec<Comparison>> {
    let device = zeroed_file(&dir.join("device"))?;
    let net = NetServer::start(&dir.join("net"))?;
    let mut storage = StorageFloor::open(&dir.join("storage"))?;
    let mut comparisons = Vec::new();
    for workload in workloads {
        let window_bytes = workload.publishers * workload.window * workload.message_bytes;
        let group_bytes = (window_bytes / 2).clamp(workload.message_bytes, GROUP_BYTES_MAX);
        let mut measured = Vec::new();
        for _ in 0..turns {
            let flushes = time_groups(&device, 4 << 10, FLUSHES)?.percentiles();
            let groups_s = storage.rate(group_bytes, workload.seconds)?;
            let load = NetLoad {
                publishers: workload.publishers,
                window: workload.window,
                message_bytes: workload.message_bytes,
            };
            let net = net.measure(load, workload.seconds)?;
            let report = run(workload.clone())?;
            let messages_of_group = group_bytes as f64 / workload.message_bytes as f64;
            let storage_messages_s = messages_of_group * groups_s;
            measured.push(Turn {
                device_p50_us: flushes.p50_us as f64,
                storage_messages_s,
                net_messages_s: net.messages_s,
                net_cpu_s_per_million: net.server_cpu_s_per_million,
                messages_s: report.acked_per_second,
                p50_us: report.latency.p50_us as f64,
                p99_us: report.latency.p99_us as f64,
                cpu_s_per_million: report.server_cpu_s_per_million.unwrap_or(0.0),
                ratio: report.acked_per_second / storage_messages_s.min(net.messages_s),
            });
        }
        let median = median_of(&measured);
        comparisons.push(Comparison { workload, turns: measured, median });
    }
    Ok(comparisons)
}

fn median_of(turns: &[Turn]) -> Turn {
    let of = |figure: fn(&Turn) -> f64| median(&turns.iter().map(figure).collect::<Vec<_>>());
    Turn {
        device_p50_us: of(|turn| turn.device_p50_us),
        storage_messages_s: of(|turn| turn.storage_messages_s),
        net_messages_s: of(|turn| turn.net_messages_s),
        net_cpu_s_per_million: of(|turn| turn.net_cpu_s_per_million),
        messages_s: of(|turn| turn.messages_s),
        p50_us: of(|turn| turn.p50_us),
        p99_us: of(|turn| turn.p99_us),
        cpu_s_per_million: of(|turn| turn.cpu_s_per_million),
        ratio: of(|turn| turn.ratio),
    }
}

/// For people: a line a workload.
pub fn table(comparisons: &[Comparison]) -> String {
    use std::fmt::Write;
    let mut text = String::from(
        "workload                        fdatasync us  storage/s    net/s   weir/s  ratio (min-max)    \
         p50 us  p99 us  CPU s/M (net)\n",
    );
    for Comparison { workload, turns, median: m } in comparisons {
        let ratios = || turns.iter().map(|turn| turn.ratio);
        let (least, most) = (ratios().fold(f64::MAX, f64::min), ratios().fold(0.0, f64::max));
        let _ = writeln!(
            text,
            "{:<31} {:>13.0} {:>10.0} {:>8.0} {:>8.0}  {:.2} ({least:.2}-{most:.2})  {:>8.0} \
             {:>7.0}  {:.2} ({:.2})",
            workload.name,
            m.device_p50_us,
            m.storage_messages_s,
            m.net_messages_s,
            m.messages_s,
            m.ratio,
            m.p50_us,
            m.p99_us,
            m.cpu_s_per_million,
            m.net_cpu_s_per_million,
        );
    }
    text
}
