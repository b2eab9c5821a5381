//! Crashes at every change of the disk, with every kind of what a power cut may leave: what is
//! found is what was flushed and a prefix of what followed, and the log goes on behind it.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::model::{Model, Shape, Step};
use common::subject::Subject;
use std::path::PathBuf;
use std::sync::Arc;
use weir_sim::disk::{Cut, SimDisk};

/// Traces that every run of the tests covers; `WEIR_CRASH_TRACES` in the environment covers more.
const TRACES: u64 = 2;
const STEPS: usize = 200;
/// What a power cut leaves, tried at each change of the disk.
const CUTS: u64 = 32;
/// One in so many recoveries is crashed itself.
const WITHIN_SHARE: u64 = 8;

/// Where a case stands, said by one that fails.
struct Case<'a> {
    seed: u64,
    /// Up to the one that is under way.
    steps: &'a [Step],
    /// Changes of the disk before the crash.
    boundary: usize,
    cut: Cut,
    /// The same of a crash within the start.
    within: Option<(usize, Cut)>,
}

impl Drop for Case<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { seed, steps, boundary, cut, within } = self;
            let number = steps.len();
            eprintln!(
                "trace {seed} crashed before change {boundary}, in step {number}: {cut:?}; within \
                 the start behind it: {within:?}; the steps: {steps:#?}"
            );
        }
    }
}

fn cut_of(number: u64, seed: u64) -> Cut {
    match number {
        0 => Cut::LosesAll,
        1 => Cut::KeepsAll,
        2 => Cut::KeepsNewest,
        3 => Cut::KeepsOldest,
        4 => Cut::KeepsHeads,
        5..8 => Cut::KeepsFirst(number as usize - 3),
        _ => Cut::KeepsSome(seed.wrapping_mul(CUTS).wrapping_add(number)),
    }
}

/// Steps as a partition does them, on little data: each crash is followed by a start that reads
/// all of it.
fn trace(seed: u64) -> Vec<Step> {
    let mut random = fastrand::Rng::with_seed(seed);
    let step = |_| match random.u8(..40) {
        0..20 => {
            let shapes = (0..random.usize(1..5)).map(|_| shape(&mut random)).collect();
            Step::Append { shapes, together: random.bool() }
        }
        20..29 => Step::Flush,
        29..31 => Step::StoreMeta(random.u8(..)),
        31..33 => Step::Checkpoint(random.u8(..)),
        33..36 => Step::Truncate(random.u8(200..)),
        36..38 => Step::Trim(random.u8(..)),
        38 => Step::ReadIndex(random.u8(..), 10_000),
        _ => Step::Reopen,
    };
    (0..STEPS).map(step).collect()
}

fn shape(random: &mut fastrand::Rng) -> Shape {
    match random.u8(..40) {
        0..22 => Shape::Data { records: random.usize(1..5), bytes: random.usize(..600) },
        22..29 => Shape::Data { records: 1, bytes: random.usize(4_000..20_000) },
        // Makes a log roll.
        29 => Shape::Data { records: 1, bytes: 500_000 },
        30..33 => Shape::Void { bytes: random.usize(..200) },
        33..37 => Shape::Control { bytes: random.usize(1..300) },
        _ => Shape::Noop,
    }
}

/// Starts on what a crash left, checks it, goes on, and crashes once more.
fn recover(before: &Subject, disk: SimDisk, begun: &Model) {
    let mut found = before.later(Arc::new(disk.clone()), begun.clone());
    found.open().unwrap();
    found.adopt();
    let found_first = found.model.held.clone();
    // All that a start shows is durable, or the next one could take it back.
    found.step(&Step::Append { shapes: vec![Shape::Noop], together: true }).unwrap();
    found.step(&Step::Flush).unwrap();
    let crashed = disk.fork();
    crashed.cut_power(Cut::LosesAll);
    let mut again = found.later(Arc::new(crashed), found.model.clone());
    assert_eq!(again.open().unwrap().bytes_cut, 0, "a torn tail is cut once");
    again.adopt();
    assert_eq!(again.model.held.len(), found_first.len() + 1);
    assert!(again.model.held[..found_first.len()] == found_first, "found again");
    assert!(again.model.meta == found.model.meta);
}

/// Crashes within a start that begins on what a crash left.
fn recover_twice(before: &Subject, disk: &SimDisk, begun: &Model, case: &mut Case<'_>) {
    let first = disk.fork();
    first.record();
    let mut starting = before.later(Arc::new(first.clone()), begun.clone());
    starting.open().unwrap();
    let mut random = fastrand::Rng::with_seed(case.seed ^ case.boundary as u64);
    for (number, start) in first.recorded().into_iter().enumerate() {
        if random.u8(..4) != 0 {
            continue;
        }
        let cut = Cut::KeepsSome(random.u64(..));
        case.within = Some((number, cut));
        start.cut_power(cut);
        recover(&starting, start, begun);
    }
    case.within = None;
}

fn enumerate(seed: u64) -> u64 {
    let steps = trace(seed);
    let disk = SimDisk::new();
    let mut subject = Subject::new(Arc::new(disk.clone()), PathBuf::from("/data"));
    subject.open().unwrap();
    disk.record();
    let (mut boundary, mut recoveries) = (0, 0);
    for (number, step) in steps.iter().enumerate() {
        subject.step(step).unwrap();
        for before in disk.recorded() {
            // Where there is nothing to lose, every cut leaves the same.
            let cuts = if before.loose() == 0 { 1 } else { CUTS };
            for kind in 0..cuts {
                let cut = cut_of(kind, seed + boundary as u64);
                let mut case = Case { seed, steps: &steps[..=number], boundary, cut, within: None };
                let crashed = before.fork();
                crashed.cut_power(cut);
                if (boundary as u64 + kind).is_multiple_of(WITHIN_SHARE) {
                    recover_twice(&subject, &crashed, &subject.begun, &mut case);
                }
                recover(&subject, crashed, &subject.begun);
                recoveries += 1;
            }
            boundary += 1;
        }
    }
    assert!(subject.model.first_index > 1, "the trace trims");
    recoveries
}

#[test]
fn a_crash_at_every_change_of_the_disk_leaves_a_prefix() {
    let asked = std::env::var("WEIR_CRASH_TRACES").ok();
    let traces =
        asked.map_or(TRACES, |asked| asked.parse().expect("WEIR_CRASH_TRACES is a number"));
    for seed in 0..traces {
        let recoveries = enumerate(seed);
        assert!(recoveries > 6_400, "trace {seed} was crashed {recoveries} times");
    }
}
