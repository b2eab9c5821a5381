//! A machine stops between any two changes of its disk, also while a log recovers from that:
//! what was flushed is there, nothing comes back that was cut, and nothing is half there.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::model::{Shape, Step, step, steps};
use common::subject::Subject;
use proptest::prelude::*;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use weir_sim::disk::{Cut, Op, SimDisk};

/// One life of the machine: how many changes of the disk it sees, and how it ends.
type Life = (usize, Cut);

/// Does the steps; each life ends where it says, the one behind the last does not end.
fn run(steps: &[Step], lives: &[Life]) {
    let disk = SimDisk::new();
    let mut subject = Subject::new(Arc::new(disk.clone()), PathBuf::from("/data"));
    subject.open().unwrap();
    let mut lives = lives.iter();
    let mut end = begin(&disk, &mut lives);
    for step in steps.iter().chain([&Step::Flush, &Step::Reopen]) {
        if subject.step(step).is_ok() {
            continue;
        }
        loop {
            assert!(disk.is_stopped(), "{step:?} failed on a disk that did not");
            subject.log = None;
            disk.cut_power(end);
            end = begin(&disk, &mut lives);
            match subject.open() {
                Ok(_) => break,
                Err(error) => assert!(disk.is_stopped(), "the log does not open: {error}"),
            }
        }
        subject.adopt();
    }
    let held = subject.model.held.clone();
    assert!(subject.contents() == held);
}

fn begin(disk: &SimDisk, lives: &mut std::slice::Iter<'_, Life>) -> Cut {
    let Some((changes, end)) = lives.next() else { return Cut::KeepsAll };
    disk.stop_behind(*changes);
    *end
}

fn cut() -> impl Strategy<Value = Cut> {
    prop_oneof![
        1 => Just(Cut::LosesAll),
        1 => Just(Cut::KeepsAll),
        1 => Just(Cut::KeepsNewest),
        1 => Just(Cut::KeepsOldest),
        1 => Just(Cut::KeepsHeads),
        1 => (0usize..8).prop_map(Cut::KeepsFirst),
        1 => any::<u64>().prop_map(Cut::Keeps),
        6 => any::<u64>().prop_map(Cut::KeepsSome),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn any_log_survives_any_stops(
        steps in steps(40), lives in proptest::collection::vec((0usize..60, cut()), 1..6),
    ) {
        run(&steps, &lives);
    }
}

/// What a log sees between its first start and its last.
#[derive(Debug, Clone)]
enum Turn {
    Does(Step),
    /// The power goes, and the log starts again.
    Crashes(Cut),
}

fn turns(count_max: usize) -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        6 => step().prop_map(Turn::Does),
        1 => cut().prop_map(Turn::Crashes),
    ];
    proptest::collection::vec(turn, 1..count_max)
}

fn take_turns(turns: &[Turn]) {
    let mut disk = SimDisk::new();
    let mut subject = Subject::new(Arc::new(disk.clone()), PathBuf::from("/data"));
    subject.open().unwrap();
    for turn in turns {
        match turn {
            Turn::Does(step) => subject.step(step).unwrap(),
            Turn::Crashes(cut) => {
                // The process has no time to put anything away.
                disk = disk.fork();
                disk.cut_power(*cut);
                let before = subject;
                subject = before.later(Arc::new(disk.clone()), before.model.clone());
                before.check_shared();
                subject.open().unwrap();
                subject.adopt();
            }
        }
    }
    let held = subject.model.held.clone();
    assert!(subject.contents() == held);
    subject.check_shared();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn any_log_does_what_a_list_does_between_any_crashes(turns in turns(80)) {
        take_turns(&turns);
    }
}

/// Does the steps on a disk that fails once here and there. The log is opened again in the same
/// process, which sees all that it wrote; when at the end the power goes, that must be there.
fn run_with_faults(steps: &[Step], faults: &[Fault], cut: Cut) {
    let disk = SimDisk::new();
    let mut subject = Subject::new(Arc::new(disk.clone()), PathBuf::from("/data"));
    subject.open().unwrap();
    for fault in faults {
        match fault {
            Fault::Fails(op, kind, skip) => disk.fail(*op, *kind, *skip, 1),
            Fault::Tears(bytes, skip) => disk.tear_write(*bytes, io::ErrorKind::Other, *skip),
        }
    }
    for step in steps {
        if subject.step(step).is_err() {
            let opened = (0..=faults.len()).any(|_| subject.open().is_ok());
            assert!(opened, "a log that failed opens again");
            subject.adopt();
        }
    }
    subject.log = None;
    disk.cut_power(cut);
    subject.open().unwrap();
    subject.adopt();
}

/// What goes wrong once, behind so many calls that do not.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Fails(Op, io::ErrorKind, usize),
    /// A write stores so many bytes, then fails.
    Tears(usize, usize),
}

fn fault() -> impl Strategy<Value = Fault> {
    let op = prop_oneof![
        1 => Just(Op::Create),
        1 => Just(Op::Rename),
        1 => Just(Op::Remove),
        2 => Just(Op::SyncDir),
        2 => Just(Op::Write),
        4 => Just(Op::Flush),
        2 => Just(Op::HandOver),
        2 => Just(Op::HandedOver),
    ];
    let kind = prop_oneof![Just(io::ErrorKind::Other), Just(io::ErrorKind::StorageFull)];
    prop_oneof![
        6 => (op, kind, 0usize..20).prop_map(|(op, kind, skip)| Fault::Fails(op, kind, skip)),
        1 => (0usize..600, 0usize..40).prop_map(|(bytes, skip)| Fault::Tears(bytes, skip)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 32, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn any_log_survives_any_faults(
        steps in steps(30), faults in proptest::collection::vec(fault(), 1..4), cut in cut(),
    ) {
        run_with_faults(&steps, &faults, cut);
    }
}

/// Appends, rolls, truncates, trims, stores its hard state and starts anew.
fn walk() -> Vec<Step> {
    let append = |records, bytes, count| Step::Append {
        shapes: vec![Shape::Data { records, bytes }; count],
        together: count == 2,
    };
    vec![
        append(1, 100, 1),
        Step::StoreMeta(9),
        append(2, 200, 2),
        Step::Flush,
        append(1, 400_000, 1),
        append(1, 700_000, 1),
        append(1, 90, 1),
        Step::Checkpoint(90),
        Step::Truncate(100),
        append(1, 80, 3),
        Step::Flush,
        append(1, 900_000, 1),
        append(2, 70, 2),
        Step::Trim(128),
        Step::StoreMeta(3),
        Step::Checkpoint(200),
        append(1, 60, 1),
        Step::Checkpoint(255),
        Step::Reopen,
        append(1, 50, 1),
    ]
}

#[test]
fn a_stop_at_every_change_loses_nothing_that_was_flushed() {
    let steps = walk();
    let changes = {
        let disk = SimDisk::new();
        let mut subject = Subject::new(Arc::new(disk.clone()), PathBuf::from("/data"));
        subject.open().unwrap();
        let before = disk.changes();
        steps.iter().for_each(|step| subject.step(step).unwrap());
        assert!(subject.model.first_index > 1, "the walk trims");
        disk.changes() - before
    };
    assert!(changes > 60, "the walk changes the disk {changes} times");
    for at in 0..changes {
        let seed = at as u64;
        run(&steps, &[(at, Cut::KeepsSome(seed))]);
        // Once more while it recovers.
        run(&steps, &[(at, Cut::KeepsSome(seed)), (at % 7, Cut::LosesAll)]);
    }
}
