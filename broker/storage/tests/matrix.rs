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
use matrix::faults::{FAULTS, Fault, TARGETS, TIMES, Target, Time, apply, places};
use matrix::oracle::{Fate, Now, read};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use weir_protocol::types::Index;
use weir_sim::disk::{Cut, SimDisk};
use weir_storage::{CorruptionKind, Log, OpenError, ReadError, Recovered, ScrubPlace};

/// What the log is known to do wrong: the target, a part of the place's name, the faults, why.
type Known = (Target, &'static str, &'static [Fault], &'static str);

const KNOWN: &[Known] = &[];

/// The logs that are damaged.
struct Bases {
    healthy: Base,
    /// With damage that is noted, and with damage that was accepted.
    noted: [Base; 2],
}

/// What is tried in one cell, place by place.
struct Cell {
    target: Target,
    fault: Fault,
    time: Time,
}

#[test]
fn every_target_is_hit_by_every_fault_at_every_time() {
    let healthy = Base::healthy();
    let bases = Bases { noted: [healthy.noted(false), healthy.noted(true)], healthy };
    let torn = [&bases.healthy, &bases.noted[0], &bases.noted[1]].map(Base::torn);
    let wanted = std::env::var("WEIR_CELL").unwrap_or_default();
    let (mut cells, mut runs, mut failed) = (0, 0, Vec::new());
    for target in TARGETS {
        for fault in FAULTS {
            for time in TIMES {
                let name = format!("{target:?} {fault:?} {time:?}");
                if !name.contains(&wanted) {
                    continue;
                }
                cells += 1;
                let cell = Cell { target, fault, time };
                runs += cell.run(&bases, &torn, &name, &mut failed);
            }
        }
    }
    println!("{cells} cells, {runs} runs");
    assert!(failed.is_empty(), "{} of {runs} runs: {failed:#?}", failed.len());
    assert!(!wanted.is_empty() || cells == 12 * 12 * 3);
}

impl Cell {
    /// Runs the cell on every place; returns how many runs that were.
    fn run(&self, bases: &Bases, torn: &[Base; 3], name: &str, failed: &mut Vec<String>) -> usize {
        let mut runs = 0;
        let (whole, torn): (Vec<&Base>, Vec<&Base>) = match self.target {
            Target::DamageFile => (bases.noted.iter().collect(), torn[1..].iter().collect()),
            _ => (vec![&bases.healthy], vec![&torn[0]]),
        };
        let bases = if self.time == Time::Starting { torn } else { whole };
        for (flavour, base) in bases.into_iter().enumerate() {
            for number in 0..places(self.target, base, &base.disk).len() {
                let place = &places(self.target, base, &base.disk)[number];
                let run = AssertUnwindSafe(|| self.run_at(base, number, runs));
                let outcome = catch_unwind(run);
                runs += 1;
                let known = KNOWN.iter().any(|(target, at, faults, _)| {
                    (*target, place.name.contains(at)) == (self.target, true)
                        && faults.contains(&self.fault)
                });
                let why = outcome.err().map(|why| said(&*why));
                if why.is_some() != known {
                    let why = why.unwrap_or_else(|| "known no more".to_owned());
                    failed.push(format!("{name}, {}, base {flavour}: {why}", place.name));
                }
            }
        }
        runs
    }

    fn run_at(&self, base: &Base, number: usize, run: usize) {
        let disk = base.disk.fork();
        let place_on = |disk: &SimDisk| places(self.target, base, disk).remove(number);
        match self.time {
            Time::Down => {
                apply(base, &disk, &place_on(&disk), self.fault);
                check(base, &disk);
            }
            Time::Running => {
                let (log, _) = open(&disk, false).unwrap();
                if run % 2 == 0 {
                    read_all(&log);
                }
                apply(base, &disk, &place_on(&disk), self.fault);
                check_running(base, &disk, &log);
                drop(log);
                check(base, &disk);
            }
            Time::Starting => {
                let steps = changes_of_a_start(base);
                for step in (number % 3..steps).step_by(3) {
                    let disk = disk.fork();
                    start_and_stop(&disk, step);
                    disk.cut_power([Cut::KeepsAll, Cut::LosesAll][step % 2]);
                    apply(base, &disk, &place_on(&disk), self.fault);
                    check(base, &disk);
                }
            }
        }
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
fn check(base: &Base, disk: &SimDisk) {
    let given_up = disk.fork();
    let segments = segments_of(disk);
    match open(disk, false) {
        Ok((log, _)) => check_opened(Now::down(base, &given_up), disk, log, false),
        Err(OpenError::Damaged(what)) => {
            Now::down(base, disk).check_refusal(&what);
            assert_eq!(segments_of(disk), segments);
            let same = |path: &PathBuf| disk.bytes_of(path) == given_up.bytes_of(path);
            assert!(segments.iter().all(same), "nothing is changed");
        }
        Err(error) => panic!("{error}"),
    }
    let now = Now::down(base, &given_up);
    match open(&given_up, true) {
        Ok((log, _)) => check_opened(now, &given_up, log, true),
        Err(OpenError::Damaged(what)) if what.kind == CorruptionKind::Meta => {
            now.check_refusal(&what);
        }
        Err(error) => panic!("with its loss accepted: {error}"),
    }
}

fn check_opened(mut now: Now<'_>, disk: &SimDisk, mut log: Log, accept_loss: bool) {
    now.check_owner(&log);
    let mut fates = now.judge(&log);
    now.check_cut(&fates, accept_loss);
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
}
