//! The corruption matrix of one log: every target, hit by every fault, at every time.
//!
//! Whatever is damaged is found, told where it lies, never served, and never taken for the end of
//! the log. What must come of a cell follows from what was written, by `matrix/oracle.rs`. One cell
//! alone: `WEIR_CELL="Meta Bit Down" cargo test -p weir-storage --test matrix`.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;
mod matrix {
    pub(crate) mod base;
    pub(crate) mod faults;
    pub(crate) mod oracle;
}

use common::{data, device_in, flush, segments_of};
use matrix::base::{Base, OWN, options, read_all};
use matrix::faults::{FAULTS, Fault, TARGETS, Target, Time, apply, places};
use matrix::oracle::{Fate, Now, read};
use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use weir_protocol::types::Index;
use weir_sim::disk::{Cut, SimDisk};
use weir_storage::{CorruptionKind, Log, OpenError, ReadError, Recovered, ScrubPlace};

/// What the log is known to do wrong.
struct Known {
    targets: &'static [Target],
    faults: &'static [Fault],
    /// A part of what the oracle says then.
    says: &'static str,
}

const KNOWN: &[Known] = &[
    // Both copies of the newer generation as they were before: the device lost two writes, each of
    // which it had flushed, and nothing else tells how new the hard state is.
    Known { targets: &[Target::Meta], faults: &[Fault::StalePage], says: "another vote" },
];

/// Runs of each time in which batches at the end of the log are lost with every trace of their
/// flush.
const UNTRACED: usize = 0;

/// One cell.
struct Cell {
    target: Target,
    fault: Fault,
    time: Time,
}

/// What came of the cells.
#[derive(Default)]
struct Outcome {
    cells: usize,
    runs: usize,
    untraced: Vec<String>,
    failed: Vec<String>,
    /// Which of what is known was met.
    known: BTreeSet<usize>,
}

#[test]
fn a_log_that_is_damaged_while_it_is_closed() {
    every_target_is_hit_by_every_fault(Time::Down);
}

#[test]
fn a_log_that_is_damaged_while_it_is_open() {
    every_target_is_hit_by_every_fault(Time::Running);
}

#[test]
fn a_log_that_is_damaged_while_it_starts() {
    every_target_is_hit_by_every_fault(Time::Starting);
}

fn every_target_is_hit_by_every_fault(time: Time) {
    let healthy = Base::healthy();
    let mut bases = vec![healthy.noted(false), healthy.noted(true), healthy];
    if time == Time::Starting {
        bases = bases.iter().map(Base::torn).collect();
    }
    let wanted = std::env::var("WEIR_CELL").unwrap_or_default();
    let mut outcome = Outcome::default();
    for target in TARGETS {
        for fault in FAULTS {
            let cell = Cell { target, fault, time };
            if cell.name().contains(&wanted) {
                outcome.cells += 1;
                cell.run(&bases, &mut outcome);
            }
        }
    }
    let Outcome { cells, runs, untraced, failed, known } = outcome;
    println!("{time:?}: {cells} cells, {runs} runs, without a trace: {untraced:#?}");
    assert!(failed.is_empty(), "{} of {runs} runs: {failed:#?}", failed.len());
    if wanted.is_empty() {
        assert_eq!(cells, TARGETS.len() * FAULTS.len());
        assert_eq!(untraced.len(), UNTRACED);
        // Of what is open or starts, the hard state is written anew and hides some of it.
        let all = 0..if time == Time::Down { KNOWN.len() } else { 0 };
        let fixed = all.into_iter().find(|number| !known.contains(number));
        assert_eq!(fixed, None, "what is known to be wrong is right: take it off the list");
    }
}

impl Cell {
    fn name(&self) -> String {
        format!("{:?} {:?} {:?}", self.target, self.fault, self.time)
    }

    /// Tries every place of the target.
    fn run(&self, bases: &[Base], outcome: &mut Outcome) {
        let bases = match self.target {
            Target::DamageFile => &bases[..2],
            _ => &bases[2..],
        };
        for (flavour, base) in bases.iter().enumerate() {
            for (number, place) in places(self.target, base, &base.disk).iter().enumerate() {
                outcome.runs += 1;
                let name = format!("{}, {}, base {flavour}", self.name(), place.name);
                let run = || self.run_at(base, number, outcome.runs);
                match catch_unwind(AssertUnwindSafe(run)) {
                    Ok(false) => {}
                    Ok(true) => outcome.untraced.push(name),
                    Err(why) => {
                        let why = said(&*why);
                        match KNOWN.iter().position(|known| known.holds(self, &why)) {
                            Some(known) => drop(outcome.known.insert(known)),
                            None => outcome.failed.push(format!("{name}: {why}")),
                        }
                    }
                }
            }
        }
    }

    /// Tries one place. Returns whether the end of the log was lost with every trace of it.
    fn run_at(&self, base: &Base, number: usize, run: usize) -> bool {
        let disk = base.disk.fork();
        let place_on = |disk: &SimDisk| places(self.target, base, disk).remove(number);
        match self.time {
            Time::Down => {
                apply(base, &disk, &place_on(&disk), self.fault);
                check(base, &disk)
            }
            Time::Running => {
                let (log, _) = open(&disk, false).unwrap();
                if run.is_multiple_of(2) {
                    read_all(&log);
                }
                apply(base, &disk, &place_on(&disk), self.fault);
                check_running(base, &disk, &log);
                drop(log);
                check(base, &disk)
            }
            Time::Starting => {
                let steps = changes_of_a_start(base);
                let mut untraced = false;
                for step in (number % 3..steps).step_by(3) {
                    let disk = disk.fork();
                    start_and_stop(&disk, step);
                    disk.cut_power([Cut::KeepsAll, Cut::LosesAll][step % 2]);
                    apply(base, &disk, &place_on(&disk), self.fault);
                    untraced |= check(base, &disk);
                }
                untraced
            }
        }
    }
}

impl Known {
    fn holds(&self, cell: &Cell, why: &str) -> bool {
        self.targets.contains(&cell.target)
            && self.faults.contains(&cell.fault)
            && why.contains(self.says)
    }
}

fn said(why: &(dyn Any + Send)) -> String {
    let fixed = why.downcast_ref::<&str>().map(|text| (*text).to_owned());
    why.downcast_ref::<String>().cloned().or(fixed).unwrap_or_default()
}

fn open(disk: &SimDisk, accept_loss: bool) -> Result<(Log, Recovered), OpenError> {
    Log::open(device_in(disk), Path::new(OWN), options(OWN, accept_loss))
}

fn changes_of_a_start(base: &Base) -> usize {
    let disk = base.disk.fork();
    let device = device_in(&disk);
    let before = disk.changes();
    let _opened = Log::open(device, Path::new(OWN), options(OWN, false)).unwrap();
    disk.changes() - before
}

/// A start that stops behind so many changes.
fn start_and_stop(disk: &SimDisk, step: usize) {
    let device = device_in(disk);
    disk.stop_behind(step);
    assert!(Log::open(device, Path::new(OWN), options(OWN, false)).is_err());
}

/// What an open log says of damage under it.
fn check_running(base: &Base, disk: &SimDisk, log: &Log) {
    let mut now = Now::running(base, disk);
    let fates = now.judge(log);
    assert!(!fates.contains(&Fate::Cut));
    scrub(log);
    now.check_found(log);
    assert_eq!(now.judge(log), fates, "scrubbed");
}

fn scrub(log: &Log) {
    let mut place = ScrubPlace::default();
    while let Some(piece) = log.reader().scrub_from(place) {
        match piece.run() {
            Ok(scrubbed) => place = scrubbed.next,
            // The file is shorter: reading it said so.
            Err(ReadError::Device { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
}

/// What a start makes of damage, without and with the word that the loss is accepted.
/// Returns whether the end was lost with every trace of it.
fn check(base: &Base, disk: &SimDisk) -> bool {
    let given_up = disk.fork();
    let segments = segments_of(disk);
    let untraced = match open(disk, false) {
        Ok((log, _)) => check_opened(Now::down(base, &given_up), disk, log, false),
        Err(OpenError::Damaged(what)) => {
            Now::down(base, disk).check_refusal(&what);
            assert_eq!(segments_of(disk), segments);
            let same = |path: &PathBuf| disk.bytes_of(path) == given_up.bytes_of(path);
            assert!(segments.iter().all(same), "nothing is changed");
            false
        }
        Err(error) => panic!("{error}"),
    };
    let now = Now::down(base, &given_up);
    match open(&given_up, true) {
        Ok((log, _)) => drop(check_opened(now, &given_up, log, true)),
        Err(OpenError::Damaged(what)) if what.kind == CorruptionKind::Meta => {
            now.check_refusal(&what);
        }
        Err(error) => panic!("with its loss accepted: {error}"),
    }
    untraced
}

fn check_opened(mut now: Now<'_>, disk: &SimDisk, mut log: Log, accept_loss: bool) -> bool {
    now.check_owner(&log);
    let mut fates = now.judge(&log);
    let is_cut = now.check_cut(&fates, accept_loss);
    scrub(&log);
    now.check_found(&log);
    drop(log);
    // What was found by reading is accepted by the next start.
    log = open(disk, accept_loss).unwrap().0;
    let again = now.judge(&log);
    match accept_loss {
        false => assert_eq!(again, fates, "the second start"),
        true => {
            assert!(!again.contains(&Fate::Refused), "accepted losses are passed over");
            fates = again;
        }
    }
    let next = log.reader().bounds().last_index.0 + 1;
    let batch = data(next, 3, 60);
    let body = batch.body.concat();
    log.append(vec![batch]).unwrap();
    flush(&mut log).unwrap();
    drop(log);
    disk.cut_power(Cut::LosesAll);
    log = open(disk, false).unwrap().0;
    now.check_owner(&log);
    assert_eq!(now.judge(&log), fates, "the start behind a power cut");
    assert_eq!(log.reader().bounds().last_index, Index(next));
    let found = read(log.reader().read_from_index(Index(next), 1)).unwrap();
    assert_eq!(found[0].bytes[128..found[0].header.wire_len()], body);
    is_cut
}
