//! Plants bugs in the storage and in the broker, one at a time, and demands that a test catches each.
//!
//! Owns: which suites are asked, in which order, and how long they may take. The test that is known
//! to catch a bug is asked first, so that all of it takes minutes.
//! Never: takes a suite for a proof that fails without a bug; leaves a process running.

use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

/// Where bugs are planted, and who is asked about each.
struct Field {
    package: &'static str,
    /// What cargo builds of it.
    targets: &'static [&'static str],
    /// The file that lists the bugs.
    list: &'static str,
    /// The quickest first.
    suites: &'static [Asked],
    /// Too slow for all but what is left; `cargo test` shows that they pass without a bug.
    slow: &'static [Asked],
}

/// A program of tests, and which of its tests.
#[derive(Clone, Copy)]
struct Asked {
    source: &'static str,
    /// What their names contain.
    filter: &'static str,
}

const fn whole(source: &'static str) -> Asked {
    Asked { source, filter: "" }
}

const fn room(filter: &'static str) -> Asked {
    Asked { source: "src/lib.rs", filter }
}

const FIELDS: [Field; 2] = [
    Field {
        package: "weir-storage",
        targets: &[],
        list: "broker/storage/src/planted.rs",
        suites: &[
            whole("tests/together.rs"),
            whole("tests/faults.rs"),
            whole("tests/evidence.rs"),
            whole("tests/model.rs"),
            whole("tests/damage.rs"),
            whole("tests/crash.rs"),
            whole("tests/recycling.rs"),
            whole("tests/log.rs"),
            whole("tests/rounds.rs"),
            whole("tests/restart.rs"),
        ],
        slow: &[whole("tests/mend.rs"), whole("tests/torn_group.rs"), whole("tests/enumerate.rs")],
    },
    Field {
        package: "weir-broker",
        targets: &["--lib"],
        list: "broker/src/planted.rs",
        suites: &[],
        slow: &[room("peer::"), room("partition::"), room("cluster::"), room("replication::")],
    },
];
/// Seeds of the simulation, which knows nothing of what it is to find.
const SIMULATION: Field = Field {
    package: "weir-sim",
    targets: &["--test", "cluster_sim"],
    list: "broker/src/planted.rs",
    suites: &[],
    slow: &[Asked { source: "tests/cluster_sim.rs", filter: "acknowledged" }],
};
/// Which test catches which bug: rows of the bug, the program's source and the test. A row that does
/// not hold any more costs time, and nothing else.
const CAUGHT: &str = "ops/xtask/planted.tsv";
/// No suite takes a third of it when nothing is wrong.
const SUITE_WITHIN: Duration = Duration::from_secs(30);
const SLOW_SUITE_WITHIN: Duration = Duration::from_secs(240);

/// Plants the bugs that are named, or all. With `sim` the simulation of clusters alone is asked about
/// those of the broker, which takes its time: it shows what chance finds.
pub(crate) fn check(root: &Path, sim: bool, named: &[String]) -> Result<String, String> {
    let fields: &[Field] = if sim { &[SIMULATION] } else { &FIELDS };
    let mut known = Vec::new();
    for field in fields {
        known.push((field, bugs(root, field)?));
    }
    let is_known = |name: &String| known.iter().any(|(_, bugs)| bugs.contains(name));
    if let Some(unknown) = named.iter().find(|name| !is_known(name)) {
        let all: Vec<_> = known.into_iter().flat_map(|(_, bugs)| bugs).collect();
        return Err(format!("{unknown} is none of {}", all.join(" ")));
    }
    let scratch = std::env::temp_dir().join(format!("weir-planted-{}", std::process::id()));
    fs::create_dir_all(&scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
    let caught = root.join(CAUGHT);
    let caught = fs::read_to_string(&caught).map_err(|e| format!("{}: {e}", caught.display()))?;
    let began = crate::now();
    let planted = known.into_iter().try_fold((0, String::new()), |so_far, (field, mut bugs)| {
        bugs.retain(|bug| named.is_empty() || named.contains(bug));
        let suites = if bugs.is_empty() { Vec::new() } else { build(root, field, &scratch)? };
        let missed = plant(&suites, &bugs, &caught)?;
        Ok::<_, String>((so_far.0 + bugs.len(), so_far.1 + &missed))
    });
    let _ = fs::remove_dir_all(&scratch);
    match planted? {
        (count, missed) if missed.is_empty() => {
            Ok(format!("planted bugs: {count}, all caught ({:.1?})", began.elapsed()))
        }
        (_, missed) => Err(format!("no suite catches:{missed}")),
    }
}

/// Plants bugs of one field; returns those that nobody catches.
fn plant(suites: &[Suite], bugs: &[String], caught: &str) -> Result<String, String> {
    let began = crate::now();
    for suite in suites.iter().filter(|suite| !suite.is_slow) {
        if let Some(failure) = suite.failure(None, None)? {
            return Err(format!("without a bug: {failure}"));
        }
    }
    println!("without a bug: all pass ({:.1?})", began.elapsed());
    let mut missed = String::new();
    for bug in bugs {
        let planted = crate::now();
        let first = known_to_catch(bug, caught, suites).map(|(suite, test)| (suite, Some(test)));
        let asked = first.into_iter().chain(suites.iter().map(|suite| (suite, None)));
        let failures = asked.map(|(suite, test)| suite.failure(Some(bug), test));
        let failure = failures.filter_map(Result::transpose).next().transpose()?;
        let how = failure.as_deref().unwrap_or("nobody");
        println!("{bug:<24} {:>5.1} s  {how}", planted.elapsed().as_secs_f32());
        if failure.is_none() {
            let _ = write!(missed, " {bug}");
        }
    }
    Ok(missed)
}

fn known_to_catch<'a>(
    bug: &str,
    caught: &'a str,
    suites: &'a [Suite],
) -> Option<(&'a Suite, &'a str)> {
    let (source, test) = caught.lines().find_map(|row| {
        let (name, by) = row.split_once('\t')?;
        (name == bug).then(|| by.split_once('\t'))?
    })?;
    Some((suites.iter().find(|suite| suite.source == source)?, test))
}

/// The names that a field knows.
fn bugs(root: &Path, field: &Field) -> Result<Vec<String>, String> {
    let path = root.join(field.list);
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let list = text.split_once("enum Bug {").and_then(|(_, rest)| rest.split_once("\n}"));
    let (list, _) = list.ok_or_else(|| format!("{} has no list of bugs", path.display()))?;
    let names = list.lines().filter_map(|line| line.trim().strip_suffix(','));
    Ok(names.filter(|name| !name.contains(' ')).map(str::to_owned).collect())
}

/// Builds the suites of a field; returns them in the order in which they are asked.
fn build(root: &Path, field: &Field, scratch: &Path) -> Result<Vec<Suite>, String> {
    let built = Command::new("cargo")
        .args(["test", "--package", field.package, "--features", "planted", "--no-run"])
        .args(field.targets)
        // What it says is read below.
        .env("CARGO_TERM_COLOR", "never")
        .current_dir(root)
        .output()
        .map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&built.stderr);
    if !built.status.success() {
        return Err(format!("the suites cannot be built: {said}"));
    }
    let suite = |asked: &Asked, is_slow| {
        let Asked { source, filter } = *asked;
        let path = executable(&said, source);
        let path = path.ok_or_else(|| format!("there is no suite {source}"))?;
        let program = root.join(path);
        Ok(Suite { source, program, filter, is_slow, scratch: scratch.to_owned() })
    };
    let quick = field.suites.iter().map(|asked| suite(asked, false));
    quick.chain(field.slow.iter().map(|asked| suite(asked, true))).collect()
}

/// Where cargo says that it built the suite of this source.
pub(crate) fn executable<'a>(said: &'a str, source: &str) -> Option<&'a str> {
    let place = format!("{source} (");
    let mut paths = said.lines().filter(|line| line.trim().starts_with("Executable "));
    paths.find_map(|line| line.split_once(&place)?.1.strip_suffix(')'))
}

struct Suite {
    source: &'static str,
    program: PathBuf,
    filter: &'static str,
    is_slow: bool,
    /// Where its tests may leave what they made.
    scratch: PathBuf,
}

impl Suite {
    /// The first thing that fails with a bug, of all or of one test; none where all passes.
    fn failure(&self, bug: Option<&String>, test: Option<&str>) -> Result<Option<String>, String> {
        let mut command = Command::new(&self.program);
        // Threads, so that a test is named only with its outcome. Nobody reads a smaller failure, a
        // planted one is no regression to keep, and chance must not decide what is caught.
        command.args(["--test-threads", "2", test.unwrap_or(self.filter)]);
        command.args(test.map(|_| "--exact")).env("TMPDIR", &self.scratch);
        command.env("PROPTEST_MAX_SHRINK_ITERS", "0").env("PROPTEST_RNG_SEED", "1");
        command.env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true");
        command.env_remove("WEIR_PLANTED").envs(bug.map(|bug| ("WEIR_PLANTED", bug)));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.map_err(|e| format!("{}: {e}", self.program.display()))?;
        let outcome = self.watch(&mut child);
        let _ = child.kill();
        let _ = child.wait();
        outcome
    }

    fn watch(&self, child: &mut Child) -> Result<Option<String>, String> {
        let name = self.source;
        let within = if self.is_slow { SLOW_SUITE_WITHIN } else { SUITE_WITHIN };
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
pub(crate) fn lines(stdout: ChildStdout) -> Result<Receiver<String>, String> {
    let (sender, receiver) = sync_channel(64);
    let read = move || {
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        lines.try_for_each(|line| sender.send(line))
    };
    thread::Builder::new().spawn(read).map_err(|e| e.to_string())?;
    Ok(receiver)
}
