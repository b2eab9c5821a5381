//! A segment in a file that had an earlier life: nothing of that life comes back, neither its bytes
//! nor its name.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{ROOT, contents, data, device_in, flush, last_of};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::types::Index;
use weir_sim::disk::{Cut, SimDisk};
use weir_storage::{Device, Log, LogOptions, Read, Recovered};

/// A log of segments of 1 MiB.
fn open(device: &Arc<Device>, name: &str) -> (Log, Recovered) {
    let uuid = u128::from(name.as_bytes()[0]);
    let options = LogOptions { uuid, retained_bytes: 8 << 20, ..LogOptions::default() };
    Log::open(device.clone(), &Path::new(ROOT).join(name), options).unwrap()
}

fn segments(disk: &SimDisk, name: &str) -> Vec<PathBuf> {
    let folder = Path::new(ROOT).join(name);
    disk.paths(".seg").into_iter().filter(|path| path.starts_with(&folder)).collect()
}

/// Appends until the log rolled so many times.
fn roll(log: &mut Log, times: usize) {
    let until = log.reader().sealed_segments().len() + times;
    while log.reader().sealed_segments().len() < until {
        log.append(vec![data(last_of(log) + 1, 1, 90_000)]).unwrap();
    }
    flush(log).unwrap();
}

#[test]
fn bytes_of_an_earlier_life_are_none_of_the_log() {
    let disk = SimDisk::new();
    let device = device_in(&disk);
    let (mut log, _) = open(&device, "p");
    roll(&mut log, 1);
    log.trim(log.reader().sealed_segments()[0].last_index).unwrap();
    roll(&mut log, 1);
    let newest = disk.bytes_of(&segments(&disk, "p")[1]);
    let last = newest.iter().rposition(|byte| *byte != 0).unwrap();
    assert!(last > 500_000, "the file was filled before, and the log has one batch in it");
    let before = contents(&log);
    drop((log, device));
    disk.cut_power(Cut::LosesAll);
    let (mut log, recovered) = open(&device_in(&disk), "p");
    assert_eq!((recovered.bytes_cut, &recovered.damaged[..]), (0, &[][..]));
    assert!(contents(&log) == before);
    roll(&mut log, 1);
}

#[test]
fn a_segment_that_somebody_reads_gets_no_other_life() {
    let disk = SimDisk::new();
    let device = device_in(&disk);
    let (mut log, _) = open(&device, "p");
    roll(&mut log, 1);
    let Read::Hot(held) = log.reader().read_from_index(Index(1), 1).unwrap() else {
        panic!("new bytes are hot")
    };
    let said = held[0].bytes.to_vec();
    log.trim(log.reader().sealed_segments()[0].last_index).unwrap();
    roll(&mut log, 2);
    assert!(held[0].bytes == said);
    let newest = disk.bytes_of(&segments(&disk, "p")[2]);
    assert!(newest[500_000..].iter().all(|byte| *byte == 0), "a file without an earlier life");
}

/// Nobody would remove it: it is no segment of the log that has the folder.
#[test]
fn the_name_of_an_earlier_life_does_not_come_back() {
    let disk = SimDisk::new();
    let device = device_in(&disk);
    let (mut log, _) = open(&device, "p");
    roll(&mut log, 2);
    let trimmed = log.begin_trim(log.reader().sealed_segments()[1].last_index);
    let mut trimmed = trimmed.unwrap();
    assert!(trimmed.remove_one().unwrap(), "one is still there");
    let (mut other, _) = open(&device, "q");
    other.append(vec![data(1, 1, 100)]).unwrap();
    flush(&mut other).unwrap();
    let first = disk.bytes_of(&segments(&disk, "q")[0]);
    assert!(first[500_000..].iter().any(|byte| *byte != 0), "in the file that was trimmed");
    drop((log, other, trimmed, device));
    disk.cut_power(Cut::LosesAll);
    let device = device_in(&disk);
    let (log, _) = open(&device, "p");
    assert_eq!(segments(&disk, "p").len(), log.reader().sealed_segments().len() + 1);
    assert_eq!(open(&device, "q").0.reader().bounds().last_index, Index(1));
}
