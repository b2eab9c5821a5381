//! Plants bugs in the storage, one at a time, and demands that its tests catch each.
//!
//! Owns: which suites are asked, in which order, and how long they may take.
//! Never: takes a suite for a proof that fails without a bug; leaves a process running.

use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

/// Suites of the storage, the quickest first.
const SUITES: [&str; 10] = [
    "together",
    "faults",
    "evidence",
    "model",
    "damage",
    "crash",
    "recycling",
    "log",
    "rounds",
    "restart",
];
/// Too slow for all but what is left; `cargo test` shows that they pass without a bug.
const SLOW_SUITES: [&str; 2] = ["torn_group", "enumerate"];
/// No suite takes a third of it when nothing is wrong.
const SUITE_WITHIN: Duration = Duration::from_secs(30);
const SLOW_SUITE_WITHIN: Duration = Duration::from_secs(240);

/// Plants the bugs that are named, or all.
pub(crate) fn check(root: &Path, named: &[String]) -> Result<String, String> {
    let bugs = bugs(root, named)?;
    let scratch = std::env::temp_dir().join(format!("weir-planted-{}", std::process::id()));
    fs::create_dir_all(&scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
    let outcome = build(root, &scratch).and_then(|suites| plant(&suites, &bugs));
    let _ = fs::remove_dir_all(&scratch);
    outcome
}

fn plant(suites: &[Suite], bugs: &[String]) -> Result<String, String> {
    let began = crate::now();
    for suite in suites.iter().filter(|suite| !suite.is_slow()) {
        if let Some(failure) = suite.failure(None)? {
            return Err(format!("without a bug: {failure}"));
        }
    }
    println!("without a bug: all pass ({:.1?})", began.elapsed());
    let mut missed = String::new();
    for bug in bugs {
        let planted = crate::now();
        let failures = suites.iter().map(|suite| suite.failure(Some(bug)));
        let caught = failures.filter_map(Result::transpose).next().transpose()?;
        let how = caught.as_deref().unwrap_or("nobody");
        println!("{bug:<24} {:>5.1} s  {how}", planted.elapsed().as_secs_f32());
        if caught.is_none() {
            let _ = write!(missed, " {bug}");
        }
    }
    match missed.is_empty() {
        true => Ok(format!("planted bugs: {}, all caught ({:.1?})", bugs.len(), began.elapsed())),
        false => Err(format!("no suite catches:{missed}")),
    }
}

/// The names that the storage knows, or those of them that were asked for.
fn bugs(root: &Path, named: &[String]) -> Result<Vec<String>, String> {
    let path = root.join("broker/storage/src/planted.rs");
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let list = text.split_once("enum Bug {").and_then(|(_, rest)| rest.split_once("\n}"));
    let (list, _) = list.ok_or_else(|| format!("{} has no list of bugs", path.display()))?;
    let names = list.lines().filter_map(|line| line.trim().strip_suffix(','));
    let known: Vec<String> = names.filter(|name| !name.contains(' ')).map(str::to_owned).collect();
    if let Some(unknown) = named.iter().find(|name| !known.contains(name)) {
        return Err(format!("{unknown} is none of {}", known.join(" ")));
    }
    Ok(if named.is_empty() { known } else { named.to_vec() })
}

/// Builds the suites; returns them in the order in which they are asked.
fn build(root: &Path, scratch: &Path) -> Result<Vec<Suite>, String> {
    let built = Command::new("cargo")
        .args(["test", "--package", "weir-storage", "--features", "planted", "--no-run"])
        // What it says is read below.
        .env("CARGO_TERM_COLOR", "never")
        .current_dir(root)
        .output()
        .map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&built.stderr);
    if !built.status.success() {
        return Err(format!("the suites cannot be built: {said}"));
    }
    let suite = |name: &&'static str| {
        let start = format!("Executable tests/{name}.rs (");
        let path =
            said.lines().find_map(|line| line.trim().strip_prefix(&start)?.strip_suffix(')'));
        let path = path.ok_or_else(|| format!("there is no suite {name}"))?;
        Ok(Suite { name, program: root.join(path), scratch: scratch.to_owned() })
    };
    SUITES.iter().chain(&SLOW_SUITES).map(suite).collect()
}

struct Suite {
    name: &'static str,
    program: PathBuf,
    /// Where its tests may leave what they made.
    scratch: PathBuf,
}

impl Suite {
    fn is_slow(&self) -> bool {
        SLOW_SUITES.contains(&self.name)
    }

    /// The first thing that fails with a bug; none where all passes.
    fn failure(&self, bug: Option<&String>) -> Result<Option<String>, String> {
        let mut command = Command::new(&self.program);
        // Threads, so that a test is named only with its outcome. Nobody reads a smaller failure,
        // and chance must not decide what is caught.
        command.args(["--test-threads", "2"]).env("TMPDIR", &self.scratch);
        command.env("PROPTEST_MAX_SHRINK_ITERS", "0").env("PROPTEST_RNG_SEED", "1");
        command.env_remove("WEIR_PLANTED").envs(bug.map(|bug| ("WEIR_PLANTED", bug)));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.map_err(|e| format!("{}: {e}", self.program.display()))?;
        let outcome = self.watch(&mut child);
        let _ = child.kill();
        let _ = child.wait();
        outcome
    }

    fn watch(&self, child: &mut Child) -> Result<Option<String>, String> {
        let name = self.name;
        let within = if self.is_slow() { SLOW_SUITE_WITHIN } else { SUITE_WITHIN };
        let (began, lines) = (crate::now(), lines(child.stdout.take().ok_or("no stdout")?)?);
        loop {
            match lines.recv_timeout(within.saturating_sub(began.elapsed())) {
                Ok(line) => {
                    let test =
                        line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED"));
                    if let Some(test) = test {
                        return Ok(Some(format!("{name}: {test}")));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Ok(Some(format!("{name}: did not end within {within:?}")));
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = child.wait().map_err(|e| e.to_string())?;
        Ok((!status.success()).then(|| format!("{name}: {status}")))
    }
}

/// What a process prints, for as long as it is listened to.
fn lines(stdout: ChildStdout) -> Result<Receiver<String>, String> {
    let (sender, receiver) = sync_channel(64);
    let read = move || {
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        lines.try_for_each(|line| sender.send(line))
    };
    thread::Builder::new().spawn(read).map_err(|e| e.to_string())?;
    Ok(receiver)
}
