//! No bytes whatsoever on the disk break a log.
//!
//! The corpus (`corpus`) is replayed; then the files of valid logs are bent for two seconds, or as
//! long as `WEIR_FUZZ_SECONDS` says, always from the same seed unless `WEIR_FUZZ_SEED` says
//! otherwise. An input that breaks a promise is printed with its bends: put it into a new file of
//! the corpus, with what it should turn out to be, and fix the cause.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod bends;
mod judge;
mod logs;
mod memory;
mod mend;
mod promises;

use bends::{BEND_BYTES, BENDS_MAX};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz_replay/corpus");
/// Inputs that are tried however slow the machine is, and the different outcomes they lead to at
/// least: fewer mean that the inputs no longer reach what stands behind the checksums.
const INPUTS_MIN: usize = 300;
const OUTCOMES_MIN: usize = 40;
/// An input takes milliseconds.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// One file of the corpus.
///
/// ```text
/// # why it is nasty
/// outcome: what it turns out to be (or `breaks: ` and which promise, until its cause is gone)
/// hex, as `bends` reads it
/// ```
struct Case {
    title: String,
    expected: Result<String, String>,
    input: Vec<u8>,
}

fn corpus() -> Vec<Case> {
    let mut paths: Vec<_> =
        std::fs::read_dir(CORPUS).unwrap().map(|item| item.unwrap().path()).collect();
    paths.sort();
    let case = |path: &std::path::PathBuf| {
        let title = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let (mut expected, mut input) = (Ok(String::new()), Vec::new());
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            match line.split_once(": ") {
                Some(("outcome", outcome)) => expected = Ok(outcome.to_owned()),
                Some(("breaks", broken)) => expected = Err(broken.to_owned()),
                Some(_) => panic!("{title}: what is {line:?}?"),
                None => input.extend(from_hex(line)),
            }
        }
        Case { title, expected, input }
    };
    paths.iter().map(case).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "half a byte in {text:?}");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn logs_that_nobody_bent_keep_every_promise() {
    for original in logs::all() {
        judge::judge_files(&original, &original.files, promises::Bent::Plainly).unwrap();
    }
}

#[test]
fn the_corpus_turns_out_to_be_what_it_always_was() {
    let originals = logs::all();
    let (mut changed, mut proved) = (String::new(), BTreeSet::new());
    for Case { title, expected, input } in corpus() {
        let (found, bends) = judge::judge(&originals, &input);
        let same = match (&found, &expected) {
            (Err(found), Err(expected)) => {
                proved.extend(judge::known(found));
                found.contains(expected)
            }
            (found, expected) => found == expected,
        };
        if !same {
            changed += &format!("{title}: {found:?}\n{bends:?}\n");
        }
    }
    assert_eq!(changed, "", "turned out to be something else");
    assert_eq!(proved.len(), judge::KNOWN.len(), "each known break has a case: {proved:#?}");
}

#[test]
fn no_bent_log_breaks_a_promise() {
    let seconds = number_of("WEIR_FUZZ_SECONDS").unwrap_or(2);
    let seed = number_of("WEIR_FUZZ_SEED").unwrap_or(7420);
    let originals = logs::all();
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut outcomes, mut known) = (BTreeSet::new(), 0);
    let (until, mut inputs) = (now() + Duration::from_secs(seconds), 0);
    watch();
    while inputs < INPUTS_MIN || now() < until {
        let mut input = vec![0; 1 + BEND_BYTES * rng.usize(1..=BENDS_MAX / 2)];
        rng.fill(&mut input);
        *RUNNING.lock().unwrap() = Some((now(), input.clone()));
        match judge::judge(&originals, &input) {
            (Ok(outcome), _) => drop(outcomes.insert(outcome)),
            (Err(broken), _) if judge::known(&broken).is_some() => known += 1,
            (Err(broken), bends) => panic!("seed {seed}: {broken}\n{bends:#?}\n{}", to_hex(&input)),
        }
        inputs += 1;
    }
    *RUNNING.lock().unwrap() = None;
    let count = outcomes.len();
    println!("{inputs} inputs of seed {seed} led to {count} outcomes, {known} to what is known");
    assert!(count >= OUTCOMES_MIN, "only {count} outcomes: {outcomes:#?}");
}

/// The input that is tried, and since when.
static RUNNING: Mutex<Option<(Instant, Vec<u8>)>> = Mutex::new(None);

/// Ends the process over an input that hangs: nothing else could print it.
fn watch() {
    let look = || loop {
        std::thread::sleep(Duration::from_secs(1));
        match &*RUNNING.lock().unwrap() {
            Some((since, input)) if since.elapsed() > HANGS_AFTER => {
                eprintln!("it hangs: {:#?}\n{}", bends::of(input), to_hex(input));
                std::process::exit(1);
            }
            _ => {}
        }
    };
    std::thread::Builder::new().spawn(look).unwrap();
}

fn number_of(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is not a number")))
}

#[expect(clippy::disallowed_methods, reason = "how long to go on, never what comes out")]
fn now() -> Instant {
    Instant::now()
}
