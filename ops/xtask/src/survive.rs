//! Publishes a file while its broker is killed, or loses power, again and again.
//!
//! Owns: the proof that what was acknowledged is there afterwards, once, in order, byte for byte.
//! Never: resends an acknowledged line: `weir pub` does not, so a lost one would be missing.

use crate::mount::{Mount, run};
use crate::process::{BrokerProcess, weir_binary};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Lines that are published before, between and behind the cuts; numbered, of different lengths.
const LINES_PER_ERA: u64 = 1_500_000;
/// Room for the lines of an era.
const ERA_MEBIBYTES: u64 = 384;

/// Publishes numbered lines across `cuts` power cuts on a filesystem of its own.
pub(crate) fn power_cuts(root: &Path, cuts: u32) -> Result<String, String> {
    let scratch = scratch_folder("powercut")?;
    let input = scratch.join("input");
    let lines = LINES_PER_ERA * (u64::from(cuts) + 1);
    fs::write(&input, numbered_lines(lines)).map_err(|e| e.to_string())?;
    let room = ERA_MEBIBYTES * (u64::from(cuts) + 1);
    let mut mount = Mount::ext4(&scratch.join("disk"), room)?;
    let run = Run {
        weir: weir_binary(root)?,
        data_dir: mount.path().join("data"),
        input,
        output: scratch.join("output"),
    };
    let outcome = run.publish_across(cuts, || mount.cut_power());
    drop(mount);
    let _ = fs::remove_dir_all(&scratch);
    let took = outcome?;
    Ok(format!(
        "{cuts} power cuts: {lines} lines are there once, in order, byte for byte ({took:.1?})"
    ))
}

/// Publishes the lines of `file` across `kills` kills (SIGKILL) of the broker.
pub(crate) fn kills(root: &Path, file: &Path, kills: u32) -> Result<String, String> {
    let scratch = scratch_folder("kills")?;
    let run = Run {
        weir: weir_binary(root)?,
        data_dir: scratch.join("data"),
        input: file.to_owned(),
        output: scratch.join("output"),
    };
    let outcome = run.publish_across(kills, || Ok(()));
    let _ = fs::remove_dir_all(&scratch);
    let took = outcome?;
    let bytes = fs::metadata(file).map_err(|e| e.to_string())?.len();
    Ok(format!(
        "{kills} kills: {bytes} bytes of lines are there once, in order, byte for byte \
         ({took:.1?})"
    ))
}

fn scratch_folder(name: &str) -> Result<PathBuf, String> {
    let folder = std::env::temp_dir().join(format!("weir-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(folder)
}

struct Run {
    weir: PathBuf,
    data_dir: PathBuf,
    input: PathBuf,
    output: PathBuf,
}

impl Run {
    /// Publishes the input; kills the broker `times` times, does `between` and starts it anew.
    /// Returns how long publishing took.
    fn publish_across(
        &self,
        times: u32,
        mut between: impl FnMut() -> Result<(), String>,
    ) -> Result<Duration, String> {
        let mut broker = BrokerProcess::start(&self.weir, &self.data_dir, 0)?;
        let (endpoint, port) = (broker.endpoint.clone(), broker.port()?);
        let client = || {
            let mut command = Command::new(&self.weir);
            command.env("WEIR_ENDPOINT", &endpoint);
            command
        };
        run(client().args(["topic", "create", "lines"]))?;
        let began = now();
        let mut publisher = client()
            .args(["pub", "lines", "--producer", "survivor"])
            .arg(&self.input)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        for time in 0..times {
            std::thread::sleep(Duration::from_millis(250 + u64::from(time) * 131 % 400));
            if publisher.try_wait().map_err(|e| e.to_string())?.is_some() {
                let time = time + 1;
                return Err(format!("publishing ended before end {time}: the input is too short"));
            }
            broker.kill()?;
            between()?;
            broker = BrokerProcess::start(&self.weir, &self.data_dir, port)?;
        }
        let published = publisher.wait_with_output().map_err(|e| e.to_string())?;
        let took = began.elapsed();
        if !published.status.success() {
            let said = String::from_utf8_lossy(&published.stderr);
            return Err(format!("weir pub: {}: {said}", published.status));
        }
        let stored = fs::File::create(&self.output).map_err(|e| e.to_string())?;
        run(client().args(["sub", "lines", "--from", "earliest", "--exit-at-end"]).stdout(stored))?;
        broker.kill()?;
        self.compare()?;
        Ok(took)
    }

    /// The last line may lack its newline in the input; what is printed has it.
    fn compare(&self) -> Result<(), String> {
        let input = fs::metadata(&self.input).map_err(|e| e.to_string())?.len();
        let output = fs::metadata(&self.output).map_err(|e| e.to_string())?.len();
        if output != input && output != input + 1 {
            return Err(format!("{input} bytes were published, {output} are there"));
        }
        let limit = format!("--bytes={input}");
        run(Command::new("cmp").arg(limit).arg(&self.input).arg(&self.output)).map(|_| ())
    }
}

#[expect(clippy::disallowed_methods, reason = "a chore is a program, not a part of the broker")]
fn now() -> Instant {
    Instant::now()
}

fn numbered_lines(lines: u64) -> String {
    let mut text = String::new();
    for number in 0..lines {
        let width = (number * 7 % 150) as usize;
        let _ = writeln!(text, "{number} {:width$}", "");
    }
    text
}
