//! A tail that is cut beside what is damaged: what stays keeps its numbers, and the log goes on.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{ROOT, data, device_in, flush, last_of, noop, reopen, segments_of};
use std::path::Path;
use weir_protocol::batch::ATTR_LAST_OF_INDEX;
use weir_protocol::types::{Index, Offset};
use weir_sim::disk::{Damage, SimDisk};
use weir_storage::{Disk, Log, LogOptions, Read};

const DAMAGED: u64 = 5;

/// Six flushed indexes; the fifth is damaged, and that was accepted or not.
fn damaged_at_5(disk: &SimDisk, accepted: bool) -> Log {
    let (mut log, _) = reopen(disk);
    log.append(vec![noop(1)]).unwrap();
    for index in 2..=6 {
        log.append(vec![data(index, 2, 50)]).unwrap();
    }
    flush(&mut log).unwrap();
    log.leave_watermark().unwrap();
    let position = position_of(&log, DAMAGED) + 150;
    drop(log);
    disk.damage(&segments_of(disk)[0], &Damage::Bit { position, bit: 0 });
    if accepted {
        let options = LogOptions { uuid: 5, accept_loss: true, ..LogOptions::default() };
        drop(Log::open(device_in(disk), &Path::new(ROOT).join("p"), options).unwrap());
    }
    reopen(disk).0
}

fn position_of(log: &Log, index: u64) -> u64 {
    let before = log.reader().headers(Index(1), index as usize - 1).unwrap();
    4_096 + before.iter().map(|header| header.stored_len() as u64).sum::<u64>()
}

fn is_served(log: &Log, index: u64) -> bool {
    match log.reader().read_from_index(Index(index), 1) {
        Ok(Read::Hot(slices)) => slices[0].header.index == Index(index),
        Ok(Read::Cold(read)) => read.run().is_ok_and(|found| found[0].header.index == Index(index)),
        Err(_) => false,
    }
}

/// What was whole below the cut is served, the next batch takes the next numbers, and every later
/// start finds the same.
fn goes_on(disk: &SimDisk, mut log: Log, last: u64, log_end: u64) {
    assert_eq!((last_of(&log), log.reader().bounds().log_end), (last, Offset(log_end)));
    log.append(vec![data(last + 1, 2, 50)]).unwrap();
    flush(&mut log).unwrap();
    let ranges = log.reader().damaged_ranges();
    drop(log);
    for _ in 0..2 {
        let (log, _) = reopen(disk);
        assert_eq!((last_of(&log), log.reader().bounds().log_end), (last + 1, Offset(log_end + 2)));
        assert_eq!(log.reader().damaged_ranges(), ranges);
        for index in 1..=last + 1 {
            assert_eq!(is_served(&log, index), index != DAMAGED || last < DAMAGED, "index {index}");
        }
    }
}

#[test]
fn a_log_is_cut_behind_in_front_of_and_at_what_is_damaged() {
    for accepted in [false, true] {
        for (cut, log_end) in [(6, 10), (5, 8), (4, 6), (2, 2)] {
            let disk = SimDisk::new();
            let mut log = damaged_at_5(&disk, accepted);
            log.truncate_after(Index(cut)).unwrap();
            goes_on(&disk, log, cut, log_end);
        }
    }
}

#[test]
fn an_index_without_its_last_batch_is_cut_behind_a_damaged_one() {
    for accepted in [false, true] {
        let disk = SimDisk::new();
        let mut log = damaged_at_5(&disk, accepted);
        log.truncate_after(Index(5)).unwrap();
        let mut open = data(6, 2, 50);
        open.header.attrs &= !ATTR_LAST_OF_INDEX;
        log.append(vec![open]).unwrap();
        drop(log);
        let (log, recovered) = reopen(&disk);
        assert!(recovered.bytes_cut > 0, "{recovered:?}");
        goes_on(&disk, log, 5, 8);
    }
}

/// The range reaches over the cut: what is kept of it stays refused.
#[test]
fn a_damaged_range_is_cut_in_two() {
    let disk = SimDisk::new();
    let log = damaged_at_5(&disk, false);
    let position = position_of(&damaged_free(), 6) + 150;
    drop(log);
    disk.damage(&segments_of(&disk)[0], &Damage::Bit { position, bit: 0 });
    let (mut log, _) = reopen(&disk);
    let [range] = &log.reader().damaged_ranges()[..] else { panic!("one range") };
    assert_eq!((range.first_index, range.last_index), (Index(5), Index(6)));
    log.truncate_after(Index(5)).unwrap();
    let [range] = &log.reader().damaged_ranges()[..] else { panic!("one range") };
    assert_eq!((range.first_index, range.last_index), (Index(5), Index(5)));
    // Nobody can tell which offsets were those of the sixth index: none is given twice.
    goes_on(&disk, log, 5, 10);
}

/// The same log, whole.
fn damaged_free() -> Log {
    let (mut log, _) = reopen(&SimDisk::new());
    log.append(vec![noop(1)]).unwrap();
    for index in 2..=6 {
        log.append(vec![data(index, 2, 50)]).unwrap();
    }
    log
}

/// Three segments of one index each; the second is lost, and of the third's index the end.
fn without_the_second(disk: &SimDisk) -> Log {
    let open_small = || common::open_small(&device_in(disk)).unwrap().0;
    let mut log = open_small();
    log.append(vec![data(1, 1, 700_000)]).unwrap();
    log.append(vec![data(2, 1, 700_000)]).unwrap();
    flush(&mut log).unwrap();
    let mut open = data(3, 1, 700_000);
    open.header.attrs &= !ATTR_LAST_OF_INDEX;
    log.append(vec![open]).unwrap();
    drop(log);
    let segments = segments_of(disk);
    assert_eq!(segments.len(), 3);
    disk.remove(&segments[1]).unwrap();
    open_small()
}

#[test]
fn an_index_without_its_end_is_cut_behind_a_segment_that_is_lost() {
    let disk = SimDisk::new();
    let mut log = without_the_second(&disk);
    for _ in 0..2 {
        assert_eq!((last_of(&log), log.reader().bounds().log_end), (2, Offset(2)));
        let [lost] = &log.reader().damaged_ranges()[..] else { panic!("one range") };
        assert_eq!((lost.first_index, lost.last_index), (Index(2), Index(2)));
        assert!(is_served(&log, 1) && !is_served(&log, 2));
        drop(log);
        log = common::open_small(&device_in(&disk)).unwrap().0;
    }
    log.append(vec![data(3, 2, 50)]).unwrap();
    flush(&mut log).unwrap();
    drop(log);
    let (log, _) = common::open_small(&device_in(&disk)).unwrap();
    assert!(is_served(&log, 1) && !is_served(&log, 2) && is_served(&log, 3));
}

#[test]
fn a_log_is_cut_within_and_in_front_of_a_segment_that_is_lost() {
    for cut in [2, 1] {
        let disk = SimDisk::new();
        let mut log = without_the_second(&disk);
        log.append(vec![data(3, 2, 50)]).unwrap();
        log.truncate_after(Index(cut)).unwrap();
        assert_eq!(last_of(&log), cut);
        log.append(vec![data(cut + 1, 2, 50)]).unwrap();
        flush(&mut log).unwrap();
        drop(log);
        let (log, _) = common::open_small(&device_in(&disk)).unwrap();
        assert_eq!(last_of(&log), cut + 1);
        assert!(is_served(&log, 1) && is_served(&log, cut + 1));
        assert_eq!(is_served(&log, 2), cut == 1, "what is lost stays refused");
    }
}
