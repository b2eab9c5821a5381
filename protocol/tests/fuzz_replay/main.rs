//! No bytes whatsoever break the decoders.
//!
//! The corpus (`tests/corpus`) and the golden vectors are replayed; then inputs are bent out of
//! them for two seconds, or as long as `WEIR_FUZZ_SECONDS` says, always from the same seed unless
//! `WEIR_FUZZ_SEED` says otherwise. An input that breaks a promise is printed as a line of hex:
//! put it into a new file of the corpus, with what it should turn out to be, and fix the cause.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod mutate;
mod peer;
mod targets;

use mutate::Mutator;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};
use targets::Outcome;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
const VECTORS: &str = include_str!("../vectors/v1.txt");
const PEER_VECTORS: &str = include_str!("../vectors/peer_v1.txt");
/// Inputs that are tried however slow the machine is, and the different outcomes they lead to at
/// least: fewer mean that the inputs no longer reach what stands behind the CRCs.
const INPUTS_MIN: usize = 2_000;
const OUTCOMES_MIN: usize = 150;
const PEER_OUTCOMES_MIN: usize = 150;

/// One file of the corpus.
///
/// ```text
/// # why it is nasty
/// frames: what it is as a stream of frames
/// batch: what it is as one batch (only where it is about that)
/// peer: what it is as a stream of frames between brokers (only where it is about that)
/// hex, in as many lines as it takes
/// ```
struct Case {
    title: String,
    frames: Option<String>,
    batch: Option<String>,
    peer: Option<String>,
    input: Vec<u8>,
}

fn corpus() -> Vec<Case> {
    let mut paths: Vec<_> =
        std::fs::read_dir(CORPUS).unwrap().map(|item| item.unwrap().path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let mut case = Case {
                title: path.file_name().unwrap().to_string_lossy().into_owned(),
                frames: None,
                batch: None,
                peer: None,
                input: Vec::new(),
            };
            for line in text.lines().filter(|line| !line.starts_with('#')) {
                match line.split_once(": ") {
                    Some(("frames", outcome)) => case.frames = Some(outcome.to_owned()),
                    Some(("batch", outcome)) => case.batch = Some(outcome.to_owned()),
                    Some(("peer", outcome)) => case.peer = Some(outcome.to_owned()),
                    Some(_) => panic!("{}: what is {line:?}?", case.title),
                    None => case.input.extend(from_hex(line)),
                }
            }
            case
        })
        .collect()
}

fn vectors(text: &str) -> Vec<Vec<u8>> {
    text.lines().filter_map(|line| line.split_once(' ')).map(|(_, hex)| from_hex(hex)).collect()
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

/// Holds the promises of `target` against `input`; prints it when one is broken.
fn check<T>(title: &str, input: &[u8], target: fn(&[u8]) -> T) -> T {
    catch_unwind(AssertUnwindSafe(|| target(input))).unwrap_or_else(|panic| {
        eprintln!("{title}: a promise is broken by\n{}", to_hex(input));
        resume_unwind(panic)
    })
}

#[test]
fn the_corpus_turns_out_to_be_what_it_always_was() {
    let cases = corpus();
    assert!(!cases.is_empty());
    let mut changed = String::new();
    for case in cases {
        let expects = [&case.frames, &case.batch, &case.peer];
        assert!(
            expects.iter().any(|expected| expected.is_some()),
            "{} expects nothing",
            case.title
        );
        let outcome = check(&case.title, &case.input, targets::check);
        let peer = check(&case.title, &case.input, peer::check);
        if case.frames.is_some_and(|expected| expected != outcome.frames) {
            changed += &format!("{} frames: {}\n", case.title, outcome.frames);
        }
        if case.batch.is_some_and(|expected| expected != outcome.batch) {
            changed += &format!("{} batch: {}\n", case.title, outcome.batch);
        }
        if case.peer.is_some_and(|expected| expected != peer) {
            changed += &format!("{} peer: {peer}\n", case.title);
        }
    }
    assert_eq!(changed, "", "turned out to be something else");
}

#[test]
fn every_vector_is_one_frame_whatever_the_cut() {
    let frames = |input: &Vec<u8>| check("vector", input, targets::check).frames;
    let peer = |input: &Vec<u8>| check("vector", input, peer::check);
    let outcomes = vectors(VECTORS).iter().map(frames).collect::<Vec<_>>();
    let peers = vectors(PEER_VECTORS).iter().map(peer).collect::<Vec<_>>();
    for outcome in outcomes.iter().chain(&peers) {
        assert!(!outcome.contains([' ', ',']), "{outcome}");
        assert_ne!(outcome, "none");
    }
}

#[test]
fn no_bent_input_breaks_a_promise() {
    let mut seeds = vectors(VECTORS);
    seeds.extend(corpus().into_iter().map(|case| case.input));
    bend(seeds, OUTCOMES_MIN, |input| kind_of(&check("bent input", input, targets::check)));
}

#[test]
fn no_bent_input_breaks_a_promise_between_brokers() {
    let mut seeds = vectors(PEER_VECTORS);
    let of_peers = corpus().into_iter().filter(|case| case.peer.is_some());
    seeds.extend(of_peers.map(|case| case.input));
    bend(seeds, PEER_OUTCOMES_MIN, |input| kind(&check("bent input", input, peer::check)));
}

/// Bends inputs out of `seeds`; keeps those that lead to something new.
fn bend(seeds: Vec<Vec<u8>>, outcomes_min: usize, kind_of: impl Fn(&[u8]) -> String) {
    let seconds = number_of("WEIR_FUZZ_SECONDS").unwrap_or(2);
    let seed = number_of("WEIR_FUZZ_SEED").unwrap_or(7420);
    let mut mutator = Mutator::new(seed, seeds);
    let mut outcomes = BTreeSet::new();
    let (until, mut inputs) = (now() + Duration::from_secs(seconds), 0);
    while inputs < INPUTS_MIN || now() < until {
        let input = mutator.next();
        if outcomes.insert(kind_of(&input)) {
            mutator.keep(input);
        }
        inputs += 1;
    }
    println!("{inputs} inputs of seed {seed} led to {} outcomes", outcomes.len());
    assert!(outcomes.len() >= outcomes_min, "only {} outcomes: {outcomes:#?}", outcomes.len());
}

/// What is new about an outcome: the last frame and what ended it, without the numbers and the
/// frames before, which would make every outcome a new one.
fn kind(frames: &str) -> String {
    let (names, end) = frames.split_once(", then ").unwrap_or((frames, ""));
    let last = names.rsplit(' ').next().unwrap_or(names);
    without_numbers(&format!("{last} / {end}"))
}

fn kind_of(outcome: &Outcome) -> String {
    kind(&outcome.frames) + " / " + &without_numbers(&outcome.batch)
}

fn without_numbers(text: &str) -> String {
    text.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty()).collect()
}

fn number_of(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is not a number")))
}

#[expect(clippy::disallowed_methods, reason = "how long to go on, never what comes out")]
fn now() -> Instant {
    Instant::now()
}
