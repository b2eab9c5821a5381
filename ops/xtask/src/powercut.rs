//! Cuts the power under a broker that is being published to, again and again.
//!
//! Owns: the proof that what was acknowledged is there afterwards, on a real kernel and a real
//! filesystem.
//! Never: resends an acknowledged line: `weir pub` does not, so a lost one would be missing.

use crate::mount::{Mount, run};
use crate::process::{BrokerProcess, weir_binary};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Lines that are published before, between and behind the cuts; numbered, of different lengths.
const LINES_PER_ERA: u64 = 1_500_000;
/// Room for the lines of an era.
const ERA_MEBIBYTES: u64 = 384;

/// Publishes a file across `cuts` power cuts and compares what is stored, byte for byte.
pub(crate) fn check(root: &Path, cuts: u32) -> Result<String, String> {
    let weir = weir_binary(root)?;
    let scratch = std::env::temp_dir().join(format!("weir-powercut-{}", std::process::id()));
    let input = scratch.with_extension("input");
    let output = scratch.with_extension("output");
    let lines = LINES_PER_ERA * (u64::from(cuts) + 1);
    fs::write(&input, numbered_lines(lines)).map_err(|e| e.to_string())?;
    let mut mount = Mount::ext4(&scratch, ERA_MEBIBYTES * (u64::from(cuts) + 1))?;
    let data_dir = mount.path().join("data");

    let mut broker = BrokerProcess::start(&weir, &data_dir, 0)?;
    let (endpoint, port) = (broker.endpoint.clone(), broker.port()?);
    let client = || {
        let mut command = Command::new(&weir);
        command.env("WEIR_ENDPOINT", &endpoint);
        command
    };
    run(client().args(["topic", "create", "lines"]))?;
    let mut publisher = client()
        .args(["pub", "lines", "--producer", "powercut"])
        .arg(&input)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    for cut in 0..cuts {
        std::thread::sleep(Duration::from_millis(250 + u64::from(cut) * 131 % 400));
        if publisher.try_wait().map_err(|e| e.to_string())?.is_some() {
            return Err(format!(
                "the publisher ended before cut {}: the input is too short",
                cut + 1
            ));
        }
        broker.kill()?;
        mount.cut_power()?;
        broker = BrokerProcess::start(&weir, &data_dir, port)?;
    }
    let published = publisher.wait_with_output().map_err(|e| e.to_string())?;
    if !published.status.success() {
        let said = String::from_utf8_lossy(&published.stderr);
        return Err(format!("weir pub: {}: {said}", published.status));
    }
    let stored = fs::File::create(&output).map_err(|e| e.to_string())?;
    run(client().args(["sub", "lines", "--from", "earliest", "--exit-at-end"]).stdout(stored))?;
    let same = run(Command::new("cmp").arg(&input).arg(&output));
    broker.kill()?;
    let _ = (fs::remove_file(&input), fs::remove_file(&output));
    same?;
    Ok(format!("{cuts} power cuts: {lines} lines are there once, in order, byte for byte"))
}

fn numbered_lines(lines: u64) -> String {
    let mut text = String::new();
    for number in 0..lines {
        let width = (number * 7 % 150) as usize;
        let _ = writeln!(text, "{number} {:width$}", "");
    }
    text
}
