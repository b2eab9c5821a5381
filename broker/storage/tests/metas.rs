//! Hard states of several logs that are stored at once: one flush of the device for all of them,
//! and whoever was told that one is stored finds it after any crash.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{Later, ROOT, data, device_for_later, device_in};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex};
use weir_sim::disk::{Cut, Op, SimDisk};
use weir_storage::{Device, Log, LogOptions};

const LOGS: u64 = 8;
const ROUNDS: u64 = 4;
/// Crashes of each kind of chance at each change.
const SEEDS: u64 = 24;

fn open(device: &Arc<Device>, number: u64) -> Log {
    let options = LogOptions { uuid: u128::from(number) + 1, ..LogOptions::default() };
    let dir = Path::new(ROOT).join(format!("p{number}"));
    Log::open(device.clone(), &dir, options).unwrap().0
}

/// By log: how many changes the disk had seen when it was told of a state, which one, and whether it
/// is stored.
type Told = Arc<Mutex<Vec<(u64, usize, u64, bool)>>>;

fn ask(log: &Log, number: u64, state: u64, (disk, told): (&SimDisk, &Told)) {
    let (disk, told) = (disk.clone(), told.clone());
    let done = move |outcome: std::io::Result<()>| {
        told.lock().unwrap().push((number, disk.changes(), state, outcome.is_ok()));
    };
    log.meta_store().store(state.to_le_bytes().to_vec(), Box::new(done));
}

fn state_of(log: &Log) -> u64 {
    log.meta().try_into().map_or(0, u64::from_le_bytes)
}

/// Three logs, each of which has asked for state 1.
fn three_that_asked() -> (SimDisk, Later, Vec<Log>, Told) {
    let disk = SimDisk::new();
    let (device, later) = device_for_later(&disk);
    let logs: Vec<Log> = (0..3).map(|number| open(&device, number)).collect();
    let told = Told::default();
    for (number, log) in (0..).zip(&logs) {
        ask(log, number, 1, (&disk, &told));
    }
    (disk, later, logs, told)
}

#[test]
fn many_hard_states_and_watermarks_cost_one_flush() {
    let disk = SimDisk::new();
    let (device, later) = device_for_later(&disk);
    let mut logs: Vec<Log> = (0..LOGS).map(|number| open(&device, number)).collect();
    let told = Told::default();
    for round in 1..=ROUNDS {
        for log in &mut logs {
            log.append(vec![data(round, 1, 100)]).unwrap();
            assert!(!log.is_flushed());
            log.flush(Box::new(|outcome| outcome.unwrap()));
            later.run();
            assert!(log.is_flushed());
        }
        let before = disk.calls(Op::Flush);
        for (number, log) in (0..).zip(&mut logs) {
            if number % 2 == 0 {
                ask(log, number, round, (&disk, &told));
            } else {
                let watermark = log.watermark().unwrap();
                watermark.store_together(Box::new(|outcome| outcome.unwrap()));
            }
        }
        later.run();
        assert_eq!(disk.calls(Op::Flush) - before, 1, "of the device");
    }
    let told: Vec<_> = told.lock().unwrap().iter().map(|told| (told.0, told.2, told.3)).collect();
    let all = (1..=ROUNDS).flat_map(|round| (0..LOGS).step_by(2).map(move |n| (n, round, true)));
    assert_eq!(told, all.collect::<Vec<_>>());
    drop((logs, device));
    disk.cut_power(Cut::LosesAll);
    let device = device_in(&disk);
    for number in 0..LOGS {
        let stored = if number % 2 == 0 { ROUNDS } else { 0 };
        assert_eq!(state_of(&open(&device, number)), stored);
    }
}

#[test]
fn states_of_one_log_are_stored_in_the_order_in_which_they_were_asked_for() {
    let disk = SimDisk::new();
    let (device, later) = device_for_later(&disk);
    let (log, other) = (open(&device, 0), open(&device, 1));
    let told = Told::default();
    for state in 1..=3 {
        ask(&log, 0, state, (&disk, &told));
    }
    ask(&other, 1, 9, (&disk, &told));
    later.run();
    let told: Vec<_> = told.lock().unwrap().iter().map(|told| (told.0, told.2, told.3)).collect();
    assert_eq!(told, [(0, 1, true), (1, 9, true), (0, 2, true), (0, 3, true)]);
    assert_eq!((state_of(&log), state_of(&other)), (3, 9));
}

#[test]
fn what_was_told_survives_a_crash_anywhere_in_a_round() {
    let disk = SimDisk::new();
    let (device, later) = device_for_later(&disk);
    let logs: Vec<Log> = (0..LOGS).map(|number| open(&device, number)).collect();
    let told = Told::default();
    let begun = disk.changes();
    disk.record();
    for round in 1..=ROUNDS {
        for (number, log) in (0..).zip(&logs) {
            ask(log, number, round, (&disk, &told));
        }
        later.run();
    }
    let told = told.lock().unwrap();
    assert_eq!(told.len() as u64, LOGS * ROUNDS);
    for (at, before) in disk.recorded().iter().enumerate() {
        let modes = [Cut::LosesAll, Cut::KeepsAll, Cut::KeepsNewest, Cut::KeepsOldest];
        for cut in modes.into_iter().chain((0..SEEDS).map(Cut::KeepsSome)) {
            let crashed = before.fork();
            crashed.cut_power(cut);
            let device = device_in(&crashed);
            for number in 0..LOGS {
                let of_log = told.iter().filter(|told| told.0 == number && told.1 <= begun + at);
                let durable = of_log.map(|told| told.2).max().unwrap_or(0);
                // No hard state at all would be an error.
                let found = state_of(&open(&device, number));
                assert!(found >= durable, "log {number}, change {at}, {cut:?}");
            }
        }
    }
}

#[test]
fn a_state_that_cannot_be_handed_over_fails_alone() {
    for op in [Op::HandOver, Op::HandedOver] {
        let (disk, later, mut logs, told) = three_that_asked();
        disk.fail(op, ErrorKind::Other, 1, 1);
        later.run();
        let heard: Vec<_> = told.lock().unwrap().iter().map(|told| (told.0, told.3)).collect();
        assert_eq!(heard, [(0, true), (1, false), (2, true)], "{op:?}");
        assert!(logs[1].append(vec![data(1, 1, 10)]).is_err(), "fenced");
        logs[0].append(vec![data(1, 1, 10)]).unwrap();
        ask(&logs[1], 1, 2, (&disk, &told));
        later.run();
        assert_eq!(told.lock().unwrap().last().map(|told| told.3), Some(false), "never again");
    }
}

#[test]
fn a_flush_that_fails_leaves_all_of_its_states_in_doubt() {
    let (disk, later, mut logs, told) = three_that_asked();
    disk.fail(Op::Flush, ErrorKind::Other, 0, 1);
    later.run();
    let heard: Vec<_> = told.lock().unwrap().iter().map(|told| (told.0, told.3)).collect();
    assert_eq!(heard, [(0, false), (1, false), (2, false)]);
    for log in &mut logs {
        assert!(log.append(vec![data(1, 1, 10)]).is_err(), "fenced");
    }
}
