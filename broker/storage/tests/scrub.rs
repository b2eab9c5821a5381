//! A scrub comes past everything that a device does, and takes no more of it than it says.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{data, device, device_in, flush, open_small, segment_files, segments_of};
use std::ops::Range;
use std::path::PathBuf;
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::Index;
use weir_sim::disk::{Cut, Damage, Op, SimDisk};
use weir_storage::{DamagedRange, Log, LogReader, Read, ReadError, ScrubPlace};

/// Batches of which 32 fill a segment: none begins or ends with a page.
const RECORD_BYTES: usize = 30_001;

/// A log of five segments of 1 MiB, four of them sealed.
fn filled(log: &mut Log) {
    for index in 1..=150 {
        log.append(vec![data(index, 1, RECORD_BYTES)]).unwrap();
        flush(log).unwrap();
    }
}

fn log_on(disk: &SimDisk) -> Log {
    let (mut log, _) = open_small(&device_in(disk)).unwrap();
    filled(&mut log);
    log
}

/// Returns what was newly found and how many bytes the device was asked for.
fn scrub(reader: &LogReader) -> (u64, u64) {
    let (mut place, mut found, mut bytes) = (ScrubPlace::default(), 0, 0);
    while let Some(piece) = reader.scrub_from(place) {
        let done = piece.run().unwrap();
        assert_ne!(done.next, place, "a scrub goes on");
        (place, found, bytes) = (done.next, found + done.found, bytes + done.bytes);
    }
    (found, bytes)
}

/// The batches of a segment, and where they stand.
fn batches(segment: &[u8]) -> Vec<(u64, BatchHeader)> {
    let salt = u64::from_le_bytes(segment[48..56].try_into().unwrap());
    let (mut found, mut position) = (Vec::new(), 4096);
    while let Some(head) = segment.get(position..position + BATCH_HEADER_BYTES) {
        let Ok(header) = BatchHeader::decode(head.try_into().unwrap(), salt) else { break };
        found.push((position as u64, header));
        position += header.stored_len();
    }
    found
}

/// Where a batch stands: its file, and the bytes.
fn place_of(disk: &SimDisk, index: u64) -> (PathBuf, Range<u64>) {
    let mut places = segments_of(disk).into_iter().flat_map(|path| {
        let found = batches(&disk.bytes_of(&path)).into_iter();
        found.map(move |(position, header)| (path.clone(), position, header))
    });
    let (path, position, header) = places.find(|(.., header)| header.index.0 == index).unwrap();
    (path, position..position + header.stored_len() as u64)
}

fn lost(ranges: &[DamagedRange]) -> Vec<u64> {
    ranges.iter().flat_map(|range| range.first_index.0..=range.last_index.0).collect()
}

/// Everything is served but the indexes that are refused.
fn check_served(reader: &LogReader, refused: &[u64]) {
    for index in 1..=150 {
        let read = reader.read_from_index(Index(index), 1).and_then(|read| match read {
            Read::Hot(slices) => Ok(slices),
            Read::Cold(read) => read.run(),
        });
        match read {
            Ok(slices) => assert_eq!(slices[0].header.index, Index(index)),
            Err(ReadError::Damaged(range)) => {
                assert!(refused.contains(&index), "{index} is refused: {range}");
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        assert!(!refused.contains(&index), "{index} is served");
    }
}

/// What of a file cannot be read, by the place of a batch.
type Unreadable = fn(Range<u64>) -> Range<u64>;

#[test]
fn what_a_device_cannot_read_is_damage_and_the_scrub_goes_on_behind_it() {
    // The page of a header, which the batch before ends in; one of a body alone; the page of an end;
    // and many.
    let cases: [(Unreadable, &[u64]); 4] = [
        (|batch| batch.start..batch.start + 1, &[39, 40]),
        (|batch| batch.start + 10_000..batch.start + 10_001, &[40]),
        (|batch| batch.end - 1..batch.end + 1, &[40, 41]),
        (|batch| batch.start + 5_000..batch.end + 70_000, &[40, 41, 42, 43]),
    ];
    for (of_batch, refused) in cases {
        for cached in [true, false] {
            let disk = SimDisk::new();
            let log = log_on(&disk);
            let (path, batch) = place_of(&disk, 40);
            let damage = Damage::Unreadable(of_batch(batch));
            if cached {
                disk.rot(&path, &damage)
            } else {
                disk.damage(&path, &damage)
            };
            // And something that rotted behind it.
            let (path, batch) = place_of(&disk, 90);
            disk.rot(&path, &Damage::Bit { position: batch.start + 777, bit: 3 });
            let reader = log.reader();
            scrub(&reader);
            let refused = [refused, &[90]].concat();
            assert_eq!(lost(&reader.damaged_ranges()), refused, "{damage:?}, cached: {cached}");
            check_served(&reader, &refused);
            assert_eq!(scrub(&reader).0, 0, "it is known");
            drop(log);
            drop(reader);
            // The cache is gone: what it still held is now lost to all.
            disk.cut_power(Cut::KeepsAll);
        }
    }
}

#[test]
fn a_segment_that_cannot_be_read_at_all_is_one_range() {
    let disk = SimDisk::new();
    let log = log_on(&disk);
    let second = &segments_of(&disk)[1];
    disk.damage(second, &Damage::Unreadable(0..1 << 20));
    let reader = log.reader();
    let view = reader.sealed_segments()[1];
    assert_eq!(scrub(&reader).0, 2, "the header, and everything behind it");
    let ranges = reader.damaged_ranges();
    assert!(ranges[0].is_empty() && ranges[0].positions == (0..4096), "{}", ranges[0]);
    let all: Vec<u64> = (view.first_index.0..=view.last_index.0).collect();
    assert_eq!(lost(&ranges[1..]), all);
    check_served(&reader, &all);
}

#[test]
fn a_file_that_somebody_made_shorter_keeps_no_other_from_being_read() {
    let disk = SimDisk::new();
    let log = log_on(&disk);
    disk.damage(&segments_of(&disk)[1], &Damage::Truncated(100_000));
    let (path, batch) = place_of(&disk, 90);
    disk.rot(&path, &Damage::Bit { position: batch.start + 777, bit: 3 });
    let reader = log.reader();
    let (mut place, mut failed) = (ScrubPlace::default(), 0);
    while let Some(piece) = reader.scrub_from(place) {
        let behind = piece.behind_segment();
        place = piece.run().map_or(behind, |done| done.next);
        failed += u64::from(place == behind);
    }
    assert_eq!(failed, 1);
    assert_eq!(lost(&reader.damaged_ranges()), [90]);
}

#[test]
fn the_header_of_a_segment_is_read_too() {
    let disk = SimDisk::new();
    let log = log_on(&disk);
    let third = segments_of(&disk)[2].clone();
    let reader = log.reader();
    disk.rot(&third, &Damage::Bit { position: 50, bit: 0 });
    assert_eq!((scrub(&reader).0, reader.damaged_ranges().len()), (0, 0), "there is another copy");
    disk.rot(&third, &Damage::Bit { position: 2048 + 50, bit: 0 });
    assert_eq!(scrub(&reader).0, 1);
    let ranges = reader.damaged_ranges();
    assert!(ranges[0].is_empty() && ranges[0].positions == (0..4096), "{}", ranges[0]);
    check_served(&reader, &[]);
    assert_eq!(scrub(&reader).0, 0, "it is known");
}

#[test]
fn what_a_scrub_takes_of_a_device_is_what_it_says() {
    let disk = SimDisk::new();
    let log = log_on(&disk);
    let reader = log.reader();
    let before = disk.calls(Op::Read);
    let (found, bytes) = scrub(&reader);
    let calls = disk.calls(Op::Read) - before;
    let sealed = reader.sealed_segments();
    assert_eq!(found, 0);
    // A read for each piece, and one for the batch at its end.
    assert!(calls <= 2 * sealed.len(), "{calls} reads of {} segments", sealed.len());
    let least: u64 = 4 * 32 * RECORD_BYTES as u64;
    assert!(bytes >= least && bytes <= 4 << 20, "{bytes} bytes");
}

#[test]
fn pieces_of_a_large_segment_miss_nothing_and_repeat_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let (mut log, _) = common::open(&device).unwrap();
    for index in 1..=200 {
        log.append(vec![data(index, 1, if index % 50 == 0 { 3_000_000 } else { 65_432 })]).unwrap();
        flush(&mut log).unwrap();
    }
    let reader = log.reader();
    let sealed = reader.sealed_segments();
    assert!(sealed.iter().any(|segment| segment.bytes > 4 << 20));
    let held: u64 = sealed.iter().map(|segment| segment.bytes).sum();
    let (found, bytes) = scrub(&reader);
    assert_eq!((found, reader.damaged_ranges().len()), (0, 0));
    assert!(bytes > held / 2 && bytes < held + (held >> 4), "{bytes} of {held}");
    // A bit of every tenth batch: all are found, those across the end of a piece too.
    let files = segment_files(folder.path());
    let flipped = flip_some(&files[..sealed.len()]);
    scrub(&reader);
    assert_eq!(lost(&reader.damaged_ranges()), flipped);
}

/// Flips a bit in the middle of every tenth batch; returns their indexes.
fn flip_some(files: &[PathBuf]) -> Vec<u64> {
    let mut flipped = Vec::new();
    for path in files {
        let bytes = std::fs::read(path).unwrap();
        let found = batches(&bytes).into_iter();
        for (position, header) in found.filter(|(_, header)| header.index.0 % 10 == 0) {
            if header.batch_type == BatchType::Data {
                let at = position as usize + header.stored_len() / 2;
                common::write_at(path, at as u64, &[bytes[at] ^ 1]).unwrap();
                flipped.push(header.index.0);
            }
        }
    }
    flipped
}
