//! What a log is known to do wrong when it is damaged: the smallest case of everything that
//! `matrix.rs` lists. Each test says what is right, and is ignored as long as it is not.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{ROOT, data, device_in, flush, last_of, noop, open, reopen, segments_of};
use std::path::{Path, PathBuf};
use weir_protocol::batch::ATTR_LAST_OF_INDEX;
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::Index;
use weir_sim::disk::{Damage, SimDisk};
use weir_storage::{Disk, Log, LogOptions, OpenError, Read, ReadError};

/// Indexes of one small batch each, every one flushed.
fn small_batches(disk: &SimDisk, count: u64) -> Log {
    let (mut log, _) = reopen(disk);
    for index in 1..=count {
        log.append(vec![data(index, 1, 200)]).unwrap();
        flush(&mut log).unwrap();
    }
    log
}

fn position_of(log: &Log, index: u64) -> u64 {
    let before = log.reader().headers(Index(1), index as usize - 1).unwrap();
    4_096 + before.iter().map(|header| header.stored_len() as u64).sum::<u64>()
}

fn is_served(log: &Log, index: u64) -> bool {
    let found = log.reader().read_from_index(Index(index), 1).and_then(|read| match read {
        Read::Hot(slices) => Ok(slices),
        Read::Cold(read) => read.run(),
    });
    let first = found.ok().and_then(|slices| Some(slices.first()?.header.index));
    first == Some(Index(index))
}

/// `Reading::read` ends at the end of the file before `Reading::stopped` can look at its length.
#[test]
fn a_file_that_ends_between_two_batches_is_shortened() {
    let disk = SimDisk::new();
    let log = small_batches(&disk, 9);
    let lengths = [position_of(&log, 5), 4_096, 2_560];
    drop(log);
    for len in lengths {
        let disk = disk.fork();
        disk.damage(&segments_of(&disk)[0], &Damage::Truncated(len));
        let found = open(&device_in(&disk)).map(|(log, _)| last_of(&log));
        assert!(matches!(found, Err(OpenError::Damaged(_))), "{len} bytes: {found:?}");
    }
}

/// `next_that_follows` took any later batch for the next one that is whole.
#[test]
fn a_misplaced_page_hides_nothing_but_what_it_lies_on() {
    let disk = SimDisk::new();
    let log = small_batches(&disk, 60);
    let whole = |index: &u64| position_of(&log, *index) >= 3 * 4_096;
    let whole: Vec<u64> = (1..=60).filter(whole).collect();
    drop(log);
    disk.damage(&segments_of(&disk)[0], &Damage::Misdirected { at: 2, from: 4 });
    let (log, _) = reopen(&disk);
    let missing: Vec<u64> = whole.into_iter().filter(|index| !is_served(&log, *index)).collect();
    assert!(missing.is_empty(), "whole, and refused: {missing:?}");
}

/// `lost_range` holds the index that follows only where no other is lost before it.
#[test]
fn an_index_that_lacks_its_first_batch_is_refused() {
    let disk = SimDisk::new();
    let mut log = small_batches(&disk, 3);
    let mut together = vec![data(5, 1, 50), data(5, 1, 50)];
    together[0].header.attrs &= !ATTR_LAST_OF_INDEX;
    log.append(vec![noop(4)]).unwrap();
    log.append(together).unwrap();
    log.append(vec![noop(6)]).unwrap();
    flush(&mut log).unwrap();
    log.leave_watermark().unwrap();
    let start = position_of(&log, 4);
    drop(log);
    let lost = start..start + BATCH_HEADER_BYTES as u64 + 1;
    disk.damage(&segments_of(&disk)[0], &Damage::Zeros(lost));
    let (log, recovered) = reopen(&disk);
    let found = log.reader().read_from_index(Index(5), 1);
    assert!(matches!(found, Err(ReadError::Damaged(_))), "{recovered:?}: {found:?}");
}

/// Rot of both copies is no torn store: no power cut tears what lies in one sector.
#[test]
fn a_vote_that_is_lost_is_not_an_older_vote() {
    let disk = SimDisk::new();
    let mut log = small_batches(&disk, 3);
    log.store_meta(b"an older vote").unwrap();
    log.store_meta(b"the vote").unwrap();
    drop(log);
    let path = Path::new(ROOT).join("p/meta");
    let bytes = disk.bytes_of(&path);
    for copy in (0..4).map(|copy| copy * 4_096) {
        if bytes[copy..].windows(8).take(200).any(|window| window == b"the vote") {
            disk.damage(&path, &Damage::Bit { position: copy as u64 + 60, bit: 0 });
        }
    }
    let found = open(&device_in(&disk)).map(|(log, _)| log.meta().to_vec());
    assert!(matches!(found, Err(OpenError::Damaged(_))), "{found:?}");
}

fn log_of(disk: &SimDisk, uuid: u128, accept_loss: bool) -> Result<Log, OpenError> {
    let options = LogOptions { uuid, accept_loss, ..LogOptions::default() };
    Log::open(device_in(disk), &folder(uuid), options).map(|(log, _)| log)
}

fn folder(uuid: u128) -> PathBuf {
    Path::new(ROOT).join(format!("log-{uuid}"))
}

/// Two logs of two segments each; batch `uuid` of the first is damaged, and that was accepted.
fn two_logs(disk: &SimDisk) {
    for uuid in [1, 2] {
        let mut log = log_of(disk, uuid, false).unwrap();
        for index in 1..=8 {
            log.append(vec![data(index, 1, 200_000)]).unwrap();
        }
        flush(&mut log).unwrap();
        log.store_meta(format!("vote {uuid}").as_bytes()).unwrap();
        log.write_checkpoint(Index(8), format!("state {uuid}").as_bytes()).unwrap();
        let position = position_of(&log, uuid as u64) + 1_000;
        drop(log);
        let of_log = |path: &PathBuf| path.starts_with(folder(uuid));
        let segment = disk.paths(".seg").into_iter().find(of_log).unwrap();
        disk.damage(&segment, &Damage::Bit { position, bit: 0 });
        let index = segment.with_extension("idx");
        disk.remove(&index).unwrap();
        drop(log_of(disk, uuid, true).unwrap());
    }
}

fn swap(name: &str) -> SimDisk {
    let disk = SimDisk::new();
    two_logs(&disk);
    disk.damage(&folder(1).join(name), &Damage::Swapped(folder(2).join(name)));
    disk
}

#[test]
fn the_hard_state_of_another_log_is_not_taken() {
    let found = log_of(&swap("meta"), 1, false).map(|log| log.meta().to_vec());
    assert!(matches!(found, Err(OpenError::Damaged(_))), "{found:?}");
}

#[test]
fn the_checkpoint_of_another_log_is_not_taken() {
    let log = log_of(&swap("00000000000000000008.ckpt"), 1, false).unwrap();
    assert_eq!(log.latest_checkpoint(Index(8)).unwrap(), None);
}

#[test]
fn what_another_log_gave_up_is_served() {
    let log = log_of(&swap("damage"), 1, false).unwrap();
    assert!(is_served(&log, 2), "{:?}", log.reader().damaged_ranges());
}

/// `Log::cut_after` asked the header of the index that stays what holds behind it.
#[test]
fn an_index_that_lacks_its_end_is_cut_also_behind_damage() {
    for accept_loss in [false, true] {
        let disk = SimDisk::new();
        let mut log = small_batches(&disk, 5);
        let mut open_index = data(6, 1, 50);
        open_index.header.attrs &= !ATTR_LAST_OF_INDEX;
        log.append(vec![open_index]).unwrap();
        flush(&mut log).unwrap();
        let position = position_of(&log, 5) + BATCH_HEADER_BYTES as u64;
        drop(log);
        disk.damage(&segments_of(&disk)[0], &Damage::Bit { position, bit: 0 });
        let mut last = 5;
        for life in ["first", "second", "third"] {
            let options = LogOptions { uuid: 5, accept_loss, ..LogOptions::default() };
            let dir = Path::new(ROOT).join("p");
            let (mut log, _) = Log::open(device_in(&disk), &dir, options).unwrap();
            assert_eq!(log.reader().bounds().last_index, Index(last), "{life} life, {accept_loss}");
            assert_eq!(log.reader().bounds().log_end.0, last, "{life} life, {accept_loss}");
            for index in 1..=last {
                assert_eq!(is_served(&log, index), index != 5, "{life} life, {accept_loss}");
            }
            last += 1;
            log.append(vec![data(last, 1, 50)]).unwrap();
            flush(&mut log).unwrap();
        }
    }
}

/// Where a successor cuts a segment was held against the length that its file was made with.
#[test]
fn a_file_that_grew_is_filled_and_found_again() {
    let disk = SimDisk::new();
    drop(small_batches(&disk, 3));
    let path = &segments_of(&disk)[0];
    let grown = [disk.bytes_of(path), vec![0; 1 << 20]].concat();
    disk.put(path, &grown);
    let (mut log, _) = reopen(&disk);
    for index in 4..=15 {
        log.append(vec![data(index, 1, 200_000)]).unwrap();
    }
    flush(&mut log).unwrap();
    assert_eq!(segments_of(&disk).len(), 2);
    drop(log);
    assert_eq!(last_of(&reopen(&disk).0), 15);
}

/// The owner would begin with it as soon as the log is that long again.
#[test]
fn a_checkpoint_behind_the_end_that_was_accepted_is_gone() {
    let disk = SimDisk::new();
    let mut log = small_batches(&disk, 9);
    log.write_checkpoint(Index(3), b"three").unwrap();
    log.write_checkpoint(Index(8), b"eight").unwrap();
    let end = position_of(&log, 6);
    drop(log);
    disk.damage(&segments_of(&disk)[0], &Damage::Truncated(end));
    assert!(open(&device_in(&disk)).is_err());
    let options = LogOptions { uuid: 5, accept_loss: true, ..LogOptions::default() };
    let dir = Path::new(ROOT).join("p");
    let (mut log, _) = Log::open(device_in(&disk), &dir, options).unwrap();
    let last = last_of(&log);
    assert!((3..8).contains(&last), "{last}");
    for index in last + 1..=12 {
        log.append(vec![noop(index)]).unwrap();
    }
    flush(&mut log).unwrap();
    let found = log.latest_checkpoint(Index(12)).unwrap();
    assert_eq!(found, Some((Index(3), b"three".to_vec())));
}

/// One page of a file is lost with it, never the log.
#[test]
fn a_place_that_the_device_cannot_read_costs_no_more_than_damage() {
    let disk = SimDisk::new();
    two_logs(&disk);
    let dir = folder(1);
    let unreadable = |path: &Path, range| {
        let disk = disk.fork();
        disk.damage(path, &Damage::Unreadable(range));
        disk
    };
    for copy in 0..4 {
        let disk = unreadable(&dir.join("meta"), copy * 4_096..(copy + 1) * 4_096);
        assert_eq!(log_of(&disk, 1, false).unwrap().meta(), b"vote 1");
    }
    let checkpoint = dir.join("00000000000000000008.ckpt");
    let log = log_of(&unreadable(&checkpoint, 0..4_096), 1, false).unwrap();
    assert_eq!(log.latest_checkpoint(Index(8)).unwrap(), None);
    let whole = log_of(&disk.fork(), 1, false).unwrap();
    let served = |log: &Log| (1..=8).filter(|index| is_served(log, *index)).count();
    assert_eq!(served(&whole), 7, "the loss of one was accepted");
    drop(whole);
    let log = log_of(&unreadable(&dir.join("damage"), 0..4_096), 1, false).unwrap();
    assert_eq!(served(&log), 7, "found again");
    let of_log = |path: &PathBuf| path.starts_with(&dir);
    let segment = disk.paths(".seg").into_iter().find(of_log).unwrap();
    let log = log_of(&unreadable(&segment, 0..4_096), 1, false).unwrap();
    assert!((1..7).contains(&served(&log)), "those of the other segment");
    assert_eq!(last_of(&log), 8);
}

#[test]
fn a_batch_that_the_device_cannot_read_is_damaged_alone() {
    let disk = SimDisk::new();
    let mut log = small_batches(&disk, 60);
    log.leave_watermark().unwrap();
    let positions: Vec<u64> = (1..=60).map(|index| position_of(&log, index)).collect();
    let end = position_of(&log, 60) + data(60, 1, 200).header.stored_len() as u64;
    drop(log);
    let segment = &segments_of(&disk)[0];
    for page in 1..end / 4_096 {
        let lost = page * 4_096..(page + 1) * 4_096;
        let disk = disk.fork();
        disk.damage(segment, &Damage::Unreadable(lost.clone()));
        for _ in 0..2 {
            let (mut log, recovered) = reopen(&disk);
            assert_eq!((last_of(&log), recovered.bytes_cut), (60, 0), "page {page}");
            for index in 1..=60u64 {
                let start = positions[index as usize - 1];
                let next = positions.get(index as usize).copied().unwrap_or(end);
                let hit = start < lost.end && lost.start < next;
                assert_eq!(is_served(&log, index), !hit, "page {page}, index {index}");
            }
            log.leave_watermark().unwrap();
        }
    }
    // Nothing tells what stood at the end, and no torn write leaves what cannot be read.
    disk.damage(segment, &Damage::Unreadable(end..end + 1));
    let found = open(&device_in(&disk)).map(|(log, _)| last_of(&log));
    assert!(matches!(found, Err(OpenError::Damaged(_))), "{found:?}");
}
