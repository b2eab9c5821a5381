//! Fills the disk under a broker and makes room again.
//!
//! Owns: the proof that a full disk is a typed refusal, never a crash: reading goes on, and
//! publishing resumes when there is space.

use crate::mount::{Filesystem, Mount, run};
use crate::process::{BrokerProcess, weir_binary};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const IMAGE_MEBIBYTES: u64 = 160;
const FILLER_MEBIBYTES: usize = 80;

/// Publishes until the disk is full, reads everything back, makes room, publishes again.
pub(crate) fn check(root: &Path) -> Result<String, String> {
    let weir = weir_binary(root)?;
    let scratch = std::env::temp_dir().join(format!("weir-diskfull-{}", std::process::id()));
    let mount = Mount::new(Filesystem::Ext4, &scratch, IMAGE_MEBIBYTES)?;
    let filler = mount.path().join("filler");
    fs::write(&filler, vec![1u8; FILLER_MEBIBYTES << 20]).map_err(|e| e.to_string())?;

    let mut broker = BrokerProcess::start(&weir, &mount.path().join("data"), 0)?;
    let endpoint = broker.endpoint.clone();
    let client = || {
        let mut command = Command::new(&weir);
        command.env("WEIR_ENDPOINT", &endpoint);
        command
    };
    run(client().args(["topic", "create", "full"]))?;
    let refused = publish(&mut client(), 100_000)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    if refused.status.success() || !said.contains("STORAGE_LOW") {
        return Err(format!("a full disk was not refused as STORAGE_LOW: {said}"));
    }
    if !broker.is_running() {
        return Err("the broker died on a full disk".to_owned());
    }
    let stored = read_all(&mut client())?;
    if stored == 0 {
        return Err("nothing could be read while the disk was full".to_owned());
    }
    fs::remove_file(&filler).map_err(|e| e.to_string())?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let resumed = publish(&mut client(), 1_000)?;
    if !resumed.status.success() {
        let said = String::from_utf8_lossy(&resumed.stderr);
        return Err(format!("one second after there was room again: {said}"));
    }
    let later = read_all(&mut client())?;
    if later < stored + 1_000 {
        return Err(format!("{stored} and 1000 messages were stored, {later} are there"));
    }
    Ok(format!("a full disk: STORAGE_LOW after {stored} messages, reading went on, {later} now"))
}

fn publish(client: &mut Command, messages: usize) -> Result<Output, String> {
    let mut child = client
        .args(["pub", "full", "--on-full", "fail", "--deadline", "10s"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    let line = [vec![b'x'; 1_023], vec![b'\n']].concat();
    for _ in 0..messages {
        // The publisher stops reading when it gives up; its status says why.
        if stdin.write_all(&line).is_err() {
            break;
        }
    }
    drop(stdin);
    child.wait_with_output().map_err(|e| e.to_string())
}

fn read_all(client: &mut Command) -> Result<usize, String> {
    let text = run(client.args(["sub", "full", "--from", "earliest", "--exit-at-end"]))?;
    Ok(text.lines().count())
}
