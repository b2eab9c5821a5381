//! Logs of one device that flush at once: one flush of the device for all of them, and a failure
//! for exactly those that it leaves in doubt.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{ROOT, contents, data, device_for_later, device_in};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex};
use weir_sim::disk::{Cut, Op, SimDisk};
use weir_storage::{Device, Log, LogOptions};

const LOGS: u64 = 16;

fn open(device: &Arc<Device>, number: u64) -> Log {
    let options = LogOptions { uuid: u128::from(number) + 1, ..LogOptions::default() };
    let dir = Path::new(ROOT).join(format!("p{number}"));
    Log::open(device.clone(), &dir, options).unwrap().0
}

/// Logs with an unflushed batch each that asked for their flush, and who was told what.
type Told = Arc<Mutex<Vec<(u64, bool)>>>;

fn append_and_ask(logs: &mut [Log], index: u64, told: &Told) {
    for (number, log) in logs.iter_mut().enumerate() {
        log.append(vec![data(index, 2, 300)]).unwrap();
        let told = told.clone();
        let number = number as u64;
        log.flush(Box::new(move |outcome| told.lock().unwrap().push((number, outcome.is_ok()))));
    }
}

#[test]
fn many_logs_cost_one_flush_and_lose_nothing_when_the_power_goes() {
    let disk = SimDisk::new();
    let (device, later) = device_for_later(&disk);
    let mut logs: Vec<Log> = (0..LOGS).map(|number| open(&device, number)).collect();
    let told = Told::default();
    append_and_ask(&mut logs, 1, &told);
    later.run();
    for index in 2..5 {
        told.lock().unwrap().clear();
        let before = disk.calls(Op::Flush);
        append_and_ask(&mut logs, index, &told);
        later.run();
        assert_eq!(disk.calls(Op::Flush) - before, 1, "of the device");
        let told = told.lock().unwrap();
        assert_eq!(*told, (0..LOGS).map(|number| (number, true)).collect::<Vec<_>>());
    }
    let before: Vec<_> = logs.iter().map(contents).collect();
    drop((logs, device));
    disk.cut_power(Cut::LosesAll);
    let device = device_in(&disk);
    let after: Vec<_> = (0..LOGS).map(|number| contents(&open(&device, number))).collect();
    assert!(before == after);
    assert!(after.iter().all(|batches| batches.len() == 4));
}

#[test]
fn a_log_that_cannot_be_handed_over_fails_alone() {
    for op in [Op::HandOver, Op::HandedOver] {
        let disk = SimDisk::new();
        let (device, later) = device_for_later(&disk);
        let mut logs: Vec<Log> = (0..3).map(|number| open(&device, number)).collect();
        let told = Told::default();
        append_and_ask(&mut logs, 1, &told);
        later.run();
        told.lock().unwrap().clear();
        append_and_ask(&mut logs, 2, &told);
        disk.fail(op, ErrorKind::Other, 1, 1);
        later.run();
        let mut heard = told.lock().unwrap().clone();
        heard.sort_unstable();
        assert_eq!(heard, [(0, true), (1, false), (2, true)], "{op:?}");
        assert!(logs[1].append(vec![data(3, 1, 10)]).is_err(), "fenced");
        logs[0].append(vec![data(3, 1, 10)]).unwrap();
    }
}

#[test]
fn a_flush_of_the_device_that_fails_leaves_all_of_its_logs_in_doubt() {
    let disk = SimDisk::new();
    let (device, later) = device_for_later(&disk);
    let mut logs: Vec<Log> = (0..3).map(|number| open(&device, number)).collect();
    let told = Told::default();
    append_and_ask(&mut logs, 1, &told);
    later.run();
    told.lock().unwrap().clear();
    append_and_ask(&mut logs, 2, &told);
    disk.fail(Op::Flush, ErrorKind::Other, 0, 1);
    later.run();
    assert!(told.lock().unwrap().iter().all(|(_, flushed)| !flushed));
    assert_eq!(told.lock().unwrap().len(), 3);
    for log in &mut logs {
        assert!(log.append(vec![data(3, 1, 10)]).is_err(), "fenced");
        assert_eq!(log.reader().bounds().flushed_index.0, 1);
    }
    let flushes = disk.calls(Op::Flush);
    later.run();
    assert_eq!(disk.calls(Op::Flush), flushes, "never tried again");
}

#[test]
fn a_log_that_asks_again_during_a_round_waits_for_the_next() {
    let disk = SimDisk::new();
    let (device, later) = device_for_later(&disk);
    let logs: Vec<Log> = (0..2).map(|number| open(&device, number)).collect();
    let logs = Arc::new(Mutex::new(logs));
    let told = Told::default();
    append_and_ask(&mut logs.lock().unwrap(), 1, &told);
    let (again, told_again) = (logs.clone(), told.clone());
    {
        let log = &mut logs.lock().unwrap()[0];
        log.append(vec![data(2, 1, 10)]).unwrap();
        log.flush(Box::new(move |outcome| {
            outcome.unwrap();
            append_and_ask(&mut again.lock().unwrap()[..1], 3, &told_again);
        }));
    }
    later.run();
    assert_eq!(*told.lock().unwrap(), [(0, true), (1, true), (0, true)]);
    assert_eq!(logs.lock().unwrap()[0].reader().bounds().flushed_index.0, 3);
}
