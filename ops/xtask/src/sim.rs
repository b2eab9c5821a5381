//! Simulates many clusters on all cores: each seed is one.
//!
//! Owns: which seeds are left, the processes that simulate them, and the file that says how far a
//! long run came.
//! Never: lets a seed that fails, hangs or ends its process keep the others from their turn.
//! Invariant: a seed counts as done once it came to its end or was told to have failed.

mod record;

use crate::planted::{executable, lines};
use record::Record;
use std::fmt;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Seeds of one process. What it holds on to, or leaves in its allocator, ends with it.
const SLICE_SEEDS: u64 = 25;
/// A seed takes a second or two; one that takes so long will never end.
const SEED_WITHIN: Duration = Duration::from_secs(180);
/// What is shown of what a process said before it ended.
const REASON_BYTES_MAX: usize = 4_000;
/// Of the times that Linux shows to programs, on every machine.
const TICKS_PER_SECOND: f64 = 100.0;
const SUITE: &str = "cluster_sim";
const SUITE_SOURCE: &str = "tests/cluster_sim.rs";
const TEST: &str = "what_was_acknowledged_survives_whatever_goes_wrong";

/// Seeds from the first to the one before the end: `0..1000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seeds(pub(crate) Range<u64>);

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ends = text.split_once("..").and_then(|(from, to)| {
            Some(from.trim().parse::<u64>().ok()?..to.trim().parse::<u64>().ok()?)
        });
        let some = ends.filter(|seeds| !seeds.is_empty());
        some.map(Self).ok_or_else(|| format!("{text:?} is not FIRST..END, such as 0..1000"))
    }
}

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.0.start, self.0.end)
    }
}

/// How a run goes on.
pub(crate) struct Plan {
    pub(crate) seeds: Seeds,
    /// Processes at a time.
    pub(crate) jobs: u8,
    /// What was done is read from there, and written there.
    pub(crate) resume: Option<PathBuf>,
    /// Goes on with what another commit has done.
    pub(crate) any_commit: bool,
}

/// What several processes came to.
#[derive(Debug, Default)]
struct Totals {
    seeds: u64,
    virtual_seconds: f64,
    cpu_seconds: f64,
    failed: Vec<u64>,
}

struct Shared {
    slices: std::vec::IntoIter<Range<u64>>,
    record: Record,
    totals: Totals,
    /// Nothing can be recorded any more: nobody takes another slice.
    broken: Option<String>,
}

/// Simulates the seeds of the plan that are not done.
pub(crate) fn run(root: &Path, plan: &Plan) -> Result<String, String> {
    let record = Record::open(plan.resume.as_deref(), &commit(root)?, plan.any_commit)?;
    let program = build(root)?;
    let slices = slices(&plan.seeds.0, |seed| record.is_done(seed));
    let earlier = record.failed().len();
    let totals = Totals { failed: record.failed().to_vec(), ..Totals::default() };
    let shared = Shared { slices: slices.into_iter(), record, totals, broken: None };
    let (shared, began) = (Mutex::new(shared), crate::now());
    let scratch = std::env::temp_dir().join(format!("weir-sim-{}", std::process::id()));
    fs::create_dir_all(&scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
    thread::scope(|scope| {
        for job in 0..plan.jobs {
            let said = scratch.join(format!("said-{job}"));
            let (shared, program) = (&shared, &program);
            scope.spawn(move || work(shared, program, &said));
        }
    });
    let _ = fs::remove_dir_all(&scratch);
    let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (totals, seconds) = (shared.totals, began.elapsed().as_secs_f64());
    let speed = format!(
        "{} seeds in {seconds:.0} s ({:.0} a minute), {:.0} virtual seconds: {:.0} a second, \
         {:.0} a second of a core",
        totals.seeds,
        totals.seeds as f64 * 60.0 / seconds,
        totals.virtual_seconds,
        totals.virtual_seconds / seconds,
        totals.virtual_seconds / totals.cpu_seconds.max(0.01),
    );
    match (shared.broken, totals.failed.as_slice()) {
        (Some(broken), _) => Err(format!("{broken}\n{speed}")),
        (None, []) => Ok(format!("{speed}; no promise was broken")),
        (None, failed) => {
            let each: Vec<String> = failed.iter().map(|seed| again(*seed)).collect();
            Err(format!(
                "{speed}; failed: {} ({earlier} before)\n{}",
                failed.len(),
                each.join("\n")
            ))
        }
    }
}

/// How to see the same again.
fn again(seed: u64) -> String {
    format!("WEIR_SIM_SEED={seed} cargo test --release -p weir-sim --test {SUITE} -- {TEST}")
}

/// The seeds that are left, in runs for one process each.
fn slices(seeds: &Range<u64>, is_done: impl Fn(u64) -> bool) -> Vec<Range<u64>> {
    let mut slices: Vec<Range<u64>> = Vec::new();
    for seed in seeds.clone().filter(|seed| !is_done(*seed)) {
        match slices.last_mut() {
            Some(last) if last.end == seed && last.end - last.start < SLICE_SEEDS => last.end += 1,
            _ => slices.push(seed..seed + 1),
        }
    }
    slices
}

/// The commit that is simulated, marked where files differ from it.
fn commit(root: &Path) -> Result<String, String> {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty", "--exclude", "*", "--abbrev=40"]);
    let told = git.current_dir(root).output().map_err(|e| format!("git: {e}"))?;
    match told.status.success() {
        true => Ok(String::from_utf8_lossy(&told.stdout).trim().to_owned()),
        false => Err(format!("git names no commit: {}", String::from_utf8_lossy(&told.stderr))),
    }
}

fn build(root: &Path) -> Result<PathBuf, String> {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--release", "--package", "weir-sim", "--test", SUITE, "--no-run"]);
    // What it says is read below.
    let built = cargo.env("CARGO_TERM_COLOR", "never").current_dir(root).output();
    let built = built.map_err(|e| format!("cargo: {e}"))?;
    let said = String::from_utf8_lossy(&built.stderr);
    let path = executable(&said, SUITE_SOURCE).filter(|_| built.status.success());
    path.map(|path| root.join(path)).ok_or_else(|| format!("{SUITE} cannot be built: {said}"))
}

/// Takes slice after slice until none is left.
fn work(shared: &Mutex<Shared>, program: &Path, said: &Path) {
    loop {
        let mut next = {
            let mut shared = lock(shared);
            let slice = shared.slices.next().filter(|_| shared.broken.is_none());
            let Some(slice) = slice else { return };
            slice
        };
        // A process ends with the first seed that fails; another goes on behind it.
        while !next.is_empty() {
            let outcome = simulate(program, said, next.clone());
            let mut shared = lock(shared);
            let noted = outcome.and_then(|ran| {
                let done = next.start..ran.next + u64::from(ran.failure.is_some());
                next.start = done.end;
                shared.note(&done, &ran)
            });
            if let Err(error) = noted {
                shared.broken = Some(error);
                return;
            }
        }
    }
}

impl Shared {
    fn note(&mut self, done: &Range<u64>, ran: &Ran) -> Result<(), String> {
        self.totals.seeds += done.end - done.start;
        self.totals.virtual_seconds += ran.virtual_seconds;
        self.totals.cpu_seconds += ran.cpu_seconds;
        let seeds = Seeds(done.clone());
        let speed = ran.virtual_seconds / ran.cpu_seconds.max(0.01);
        println!("seeds {seeds}: {speed:.0} virtual seconds a second of a core");
        if let Some(reason) = &ran.failure {
            println!("seed {} failed: {reason}\nagain: {}", ran.next, again(ran.next));
            self.totals.failed.push(ran.next);
            self.record.failed_at(ran.next, reason.lines().next().unwrap_or_default())?;
        }
        self.record.done(done)
    }
}

/// What one process came to.
struct Ran {
    /// The seed behind those that came to their end.
    next: u64,
    virtual_seconds: f64,
    cpu_seconds: f64,
    /// Why `next` did not.
    failure: Option<String>,
}

fn simulate(program: &Path, said: &Path, seeds: Range<u64>) -> Result<Ran, String> {
    let file = File::create(said).map_err(|e| format!("{}: {e}", said.display()))?;
    let mut command = Command::new(program);
    // Two threads, so that the test is named only with its outcome.
    command.args([TEST, "--exact", "--nocapture", "--test-threads", "2"]);
    command.env("WEIR_SIM_SEEDS", Seeds(seeds.clone()).to_string()).env_remove("WEIR_SIM_SEED");
    let child = command.stdout(Stdio::piped()).stderr(file).spawn();
    let mut child = child.map_err(|e| format!("{}: {e}", program.display()))?;
    let ran = watch(&mut child, said, seeds);
    let _ = child.kill();
    let _ = child.wait();
    ran
}

fn watch(child: &mut Child, said: &Path, seeds: Range<u64>) -> Result<Ran, String> {
    let lines = lines(child.stdout.take().ok_or("no stdout")?)?;
    let mut ran = Ran { next: seeds.start, virtual_seconds: 0.0, cpu_seconds: 0.0, failure: None };
    let mut last: Instant = crate::now();
    loop {
        let line = lines.recv_timeout(SEED_WITHIN.saturating_sub(last.elapsed()));
        ran.cpu_seconds = cpu_seconds(child.id()).unwrap_or(ran.cpu_seconds);
        match line {
            Ok(line) => {
                let Some((seed, seconds)) = parse(&line) else { continue };
                if seed != ran.next {
                    return Err(format!("seed {} was to come, and {seed} did", ran.next));
                }
                (ran.next, last) = (seed + 1, crate::now());
                ran.virtual_seconds += seconds;
            }
            Err(RecvTimeoutError::Timeout) => {
                ran.failure = Some(format!("it did not end within {SEED_WITHIN:?}"));
                return Ok(ran);
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    if ran.next < seeds.end {
        let text = fs::read(said).map_err(|e| format!("{}: {e}", said.display()))?;
        let text = String::from_utf8_lossy(&text[..text.len().min(REASON_BYTES_MAX)]).into_owned();
        ran.failure =
            Some(if text.trim().is_empty() { status.to_string() } else { text.trim().into() });
    } else if !status.success() {
        return Err(format!("seeds {} passed, and yet {status}", Seeds(seeds)));
    }
    Ok(ran)
}

/// The seed and the virtual seconds of `seed 7: 21.352 s virtual, …`.
fn parse(line: &str) -> Option<(u64, f64)> {
    let (seed, rest) = line.strip_prefix("seed ")?.split_once(": ")?;
    let (seconds, _) = rest.split_once(" s virtual")?;
    Some((seed.parse().ok()?, seconds.parse().ok()?))
}

/// What a process that runs, or has ended and was not waited for, took of the cores.
fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the program's name, which may hold anything, come its state and ten numbers more.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
    Some((times.next()?.ok()? + times.next()?.ok()?) / TICKS_PER_SECOND)
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{SLICE_SEEDS, Seeds, cpu_seconds, parse, slices};

    #[test]
    fn seeds_are_read_as_they_are_written() {
        assert_eq!("3..17".parse(), Ok(Seeds(3..17)));
        for wrong in ["", "3", "17..3", "3..3", "a..b", "-1..4"] {
            assert!(wrong.parse::<Seeds>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_left_is_cut_into_slices_and_what_is_done_is_left_out() {
        let all = slices(&(0..2 * SLICE_SEEDS + 1), |_| false);
        let ends = [SLICE_SEEDS, 2 * SLICE_SEEDS];
        assert_eq!(all, [0..ends[0], ends[0]..ends[1], ends[1]..ends[1] + 1]);
        assert_eq!(slices(&(0..6), |seed| seed == 2 || seed == 3), [0..2, 4..6]);
        assert!(slices(&(0..6), |_| true).is_empty());
    }

    #[test]
    fn the_line_of_a_seed_is_told_from_every_other() {
        assert_eq!(parse("seed 7: 21.352 s virtual, 80 acknowledged"), Some((7, 21.352)));
        assert_eq!(parse("seed 7: panicked at"), None);
        assert_eq!(parse("running 1 test"), None);
    }

    #[test]
    fn the_time_that_a_process_took_is_read() {
        assert!(cpu_seconds(std::process::id()).is_some_and(|seconds| seconds < 3_600.0));
        assert_eq!(cpu_seconds(u32::MAX), None);
    }
}
