//! Freezes the disk under a loaded broker with thousands of idle connections.
//!
//! Owns: the proof that memory stays within its budget while nothing can be flushed, and that
//! everything goes on afterwards with nothing lost.
//! Never: counts pages of mapped segments: the budget bounds anonymous memory.

use crate::mount::{Filesystem, Mount, run};
use crate::process::{BrokerProcess, weir_binary};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const BUDGET_MEBIBYTES: u64 = 64;
/// A twentieth of the budget is allowed beyond it.
const SLACK_SHARE: u64 = 20;
/// What an idle connection may hold beyond the budget.
const CONNECTION_BYTES: u64 = 8 << 10;
/// Connections beside the idle ones: sixteen publishers, a reader, whoever asks.
const BUSY_CONNECTIONS: u64 = 100;
const IMAGE_MEBIBYTES: u64 = 6 << 10;

/// Loads a broker, freezes its disk for `seconds`, thaws it; memory is looked at throughout.
pub(crate) fn check(root: &Path, connections: u64, seconds: u64) -> Result<String, String> {
    let weir = weir_binary(root)?;
    let scratch = std::env::temp_dir().join(format!("weir-stall-{}", std::process::id()));
    let mount = Mount::new(Filesystem::Ext4, &scratch, IMAGE_MEBIBYTES)?;
    let config = scratch.join("weir.toml");
    let limits =
        format!("[limits]\nmemory = \"{BUDGET_MEBIBYTES}MiB\"\nconnections = {connections}\n");
    fs::write(&config, limits).map_err(|e| e.to_string())?;
    let broker = BrokerProcess::start_with(&weir, &mount.path().join("data"), 0, &config)?;
    let pid = broker.pid().to_string();
    let client = |args: &[&str]| {
        let mut command = Command::new(&weir);
        command.args(args).env("WEIR_ENDPOINT", &broker.endpoint).stdout(Stdio::piped());
        command.spawn().map_err(|e| format!("{args:?}: {e}"))
    };
    let fresh = anonymous_bytes(&pid)?;
    let idle = connections.saturating_sub(BUSY_CONNECTIONS).to_string();
    let hold = format!("{}s", seconds + 20);
    let idle = client(&["bench", "idle", "--connections", &idle, "--hold", &hold])?;
    let duration = format!("{}s", seconds + 8);
    let load = ["bench", "e2e", "-p", "16", "--rate", "50000", "--duration", &duration];
    let load = client(&load)?;
    let mut most = 0;
    watch(&pid, 5, &mut most)?;
    run(Command::new("fsfreeze").arg("-f").arg(mount.path()))?;
    let watched = watch(&pid, seconds, &mut most);
    run(Command::new("fsfreeze").arg("-u").arg(mount.path()))?;
    watched?;
    let load = load.wait_with_output().map_err(|e| e.to_string())?;
    watch(&pid, 1, &mut most)?;
    let idle = idle.wait_with_output().map_err(|e| e.to_string())?;
    for (what, output) in [("the load", &load), ("the idle connections", &idle)] {
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stdout);
            return Err(format!("{what} did not survive: {}: {said}", output.status));
        }
    }
    let budget = BUDGET_MEBIBYTES << 20;
    let allowed = budget + budget / SLACK_SHARE + connections * CONNECTION_BYTES;
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (fresh, most, allowed_mib) = (mebibytes(fresh), mebibytes(most), mebibytes(allowed));
    let summary = format!(
        "{connections} connections and a disk that stood still for {seconds} s: anonymous memory \
         {fresh:.1} MiB when fresh, at most {most:.1} MiB of {allowed_mib:.1} MiB allowed; nothing \
         lost"
    );
    if most > allowed_mib { Err(summary) } else { Ok(summary) }
}

/// Looks at the memory of a process for so many seconds.
fn watch(pid: &str, seconds: u64, most: &mut u64) -> Result<(), String> {
    for _ in 0..seconds * 5 {
        std::thread::sleep(Duration::from_millis(200));
        *most = anonymous_bytes(pid)?.max(*most);
    }
    Ok(())
}

fn anonymous_bytes(pid: &str) -> Result<u64, String> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    let kibibytes: Option<u64> =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kibibytes.map(|kib| kib << 10).ok_or_else(|| format!("{path} has no Anonymous line"))
}
