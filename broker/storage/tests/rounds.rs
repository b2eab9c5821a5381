//! Several logs flushed in the rounds of one device: whoever was told that a flush is done finds
//! what it was for after any crash, also one that comes while the round goes on.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{ROOT, contents, data, device_for_later, device_in};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use weir_protocol::types::Index;
use weir_sim::disk::{Cut, SimDisk};
use weir_storage::{Device, Log, LogOptions};

const LOGS: usize = 4;
const ROUNDS: u64 = 5;
/// Crashes of each kind of chance at each change.
const SEEDS: u64 = 24;

fn folder(number: usize) -> PathBuf {
    Path::new(ROOT).join(format!("p{number}"))
}

fn open(device: &Arc<Device>, number: usize) -> Log {
    let uuid = number as u128;
    let options = LogOptions { uuid, retained_bytes: 8 << 20, ..LogOptions::default() };
    Log::open(device.clone(), &folder(number), options).unwrap().0
}

/// Of one log: how many changes the disk had seen when it was told that an index is durable.
type Told = Arc<Mutex<Vec<(usize, Index)>>>;

fn ask(log: &mut Log, disk: &SimDisk, told: &Told) {
    let (disk, told) = (disk.clone(), told.clone());
    let last_index = log.reader().bounds().last_index;
    log.flush(Box::new(move |outcome| {
        outcome.unwrap();
        told.lock().unwrap().push((disk.changes(), last_index));
    }));
}

fn durable(told: &Told, changes: usize) -> u64 {
    let told = told.lock().unwrap();
    let before = told.iter().filter(|(at, _)| *at <= changes);
    before.map(|(_, index)| index.0).max().unwrap_or(0)
}

#[test]
fn what_a_round_told_of_survives_a_crash_anywhere_in_it() {
    let disk = SimDisk::new();
    let (device, later) = device_for_later(&disk);
    let mut logs: Vec<Log> = (0..LOGS).map(|number| open(&device, number)).collect();
    let told: Vec<Told> = (0..LOGS).map(|_| Told::default()).collect();
    let mut random = fastrand::Rng::with_seed(1);
    let begun = disk.changes();
    disk.record();
    for round in 1..=ROUNDS {
        for (log, told) in logs.iter_mut().zip(&told) {
            // Ends within a page that the next round goes on in.
            log.append(vec![data(round, 1, random.usize(10..9_000))]).unwrap();
            if random.u8(..4) > 0 {
                ask(log, &disk, told);
            }
        }
        later.run();
    }
    let before_changes = disk.recorded();
    assert_eq!(before_changes.len(), disk.changes() - begun);
    let whole: Vec<_> = logs.iter().map(contents).collect();
    let told_all = told.iter().map(|told| told.lock().unwrap().len()).sum::<usize>();
    assert!(told_all > ROUNDS as usize * LOGS / 2);
    for (number, before) in before_changes.iter().enumerate() {
        let modes = [Cut::LosesAll, Cut::KeepsAll, Cut::KeepsNewest, Cut::KeepsOldest];
        for cut in modes.into_iter().chain((0..SEEDS).map(Cut::KeepsSome)) {
            let crashed = before.fork();
            crashed.cut_power(cut);
            let device = device_in(&crashed);
            for (log, (whole, told)) in whole.iter().zip(&told).enumerate() {
                let found = contents(&open(&device, log));
                let case = format!("log {log}, change {number}, {cut:?}");
                assert!(found.len() as u64 >= durable(told, begun + number), "{case}");
                assert!(found == whole[..found.len()], "{case}");
            }
        }
    }
}
