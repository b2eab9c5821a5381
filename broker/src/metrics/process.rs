//! What the operating system says of this process.

use super::exposition::Exposition;

pub(super) fn render(page: &mut Exposition) {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    if let Some(bytes) = kibibytes(&rollup, "Rss:") {
        page.sample("process_resident_memory_bytes", &[], bytes);
    }
    if let Some(bytes) = kibibytes(&rollup, "Anonymous:") {
        page.sample("process_anonymous_memory_bytes", &[], bytes);
    }
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some(seconds) = cpu_seconds(&stat) {
        page.sample("process_cpu_seconds_total", &[], seconds);
    }
    if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
        page.sample("process_open_fds", &[], fds.count() as f64);
    }
}

fn kibibytes(rollup: &str, field: &str) -> Option<f64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix(field))?;
    let number: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number * 1024.0)
}

/// User and system time of `/proc/self/stat`, whose clock ticks are hundredths on Linux.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let behind_name = stat.rsplit_once(')')?.1;
    let mut fields = behind_name.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / 100.0)
}
