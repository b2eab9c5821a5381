//! What a log does when its disk gives back other bytes than it was given: a torn tail is cut,
//! damage is reported.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{ROOT, contents, data, device_in, flush, last_of, log_of, open, reopen, segments_of};
use std::path::Path;
use weir_protocol::batch::ATTR_LAST_OF_INDEX;
use weir_protocol::types::{Index, Offset};
use weir_sim::disk::{Damage, SimDisk};
use weir_storage::{DamagedRange, Disk, Log, LogOptions, OpenError, Read, ReadError};

#[test]
fn a_torn_tail_of_every_length_is_cut_to_the_last_whole_batch() {
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 3);
    let flushed = contents(&log);
    log.append(vec![data(4, 1, 40)]).unwrap();
    let all = contents(&log);
    drop(log);
    let path = segments_of(&disk).remove(0);
    let whole = disk.bytes_of(&path);
    let header = data(4, 1, 40).header;
    // The last byte of the body is none of its zeros.
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let start = end - header.wire_len();
    assert_eq!(contents(&reopen(&disk.copy()).0), all);
    for cut in start..end {
        for fill in [0, 0xa5] {
            let mut torn = whole.clone();
            // What was under way may be more than one batch.
            torn[cut..end + 100].fill(fill);
            let disk = disk.copy();
            disk.put(&path, &torn);
            let (mut log, recovered) = reopen(&disk);
            assert_eq!(contents(&log), flushed, "cut at {cut}, {fill}");
            let is_clean = cut == start && fill == 0;
            assert_eq!(recovered.bytes_cut == 0, is_clean, "cut at {cut}, {fill}");
            if cut % 16 == 0 {
                goes_on(&disk, &mut log);
            }
        }
    }
}

/// The log takes batches behind its last, and has them after the power went.
fn goes_on(disk: &SimDisk, log: &mut Log) {
    let next = last_of(log) + 1;
    log.append(vec![data(next, 3, 60)]).unwrap();
    flush(log).unwrap();
    let before = contents(log);
    let copy = disk.copy();
    assert_eq!(contents(&reopen(&copy).0), before);
}

#[test]
fn an_index_that_is_not_whole_is_cut_to_its_first_batch() {
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 3);
    let flushed = contents(&log);
    let mut together = vec![data(4, 2, 40), data(4, 1, 40), data(4, 1, 40)];
    together[..2].iter_mut().for_each(|batch| batch.header.attrs &= !ATTR_LAST_OF_INDEX);
    let stored: Vec<usize> = together.iter().map(|batch| batch.header.stored_len()).collect();
    log.append(together).unwrap();
    drop(log);
    let path = segments_of(&disk).remove(0);
    let whole = disk.bytes_of(&path);
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let end = end.next_multiple_of(32);
    for (torn_off, fill) in [(stored[2], 0), (stored[2] - 1, 0), (stored[1] + stored[2], 0xa5)] {
        let disk = disk.copy();
        let mut torn = whole.clone();
        torn[end - torn_off..end].fill(fill);
        disk.put(&path, &torn);
        let (mut log, recovered) = reopen(&disk);
        assert_eq!(contents(&log), flushed);
        let kept = stored.iter().sum::<usize>() - torn_off;
        assert!(recovered.bytes_cut as usize >= kept, "{recovered:?}");
        goes_on(&disk, &mut log);
    }
    // In a fresh log there is no batch before it.
    let disk = SimDisk::new();
    let (mut log, _) = reopen(&disk);
    let mut half = data(1, 2, 40);
    half.header.attrs &= !ATTR_LAST_OF_INDEX;
    log.append(vec![half]).unwrap();
    drop(log);
    let (mut log, _) = reopen(&disk);
    assert_eq!((last_of(&log), log.reader().bounds().log_end), (0, Offset(0)));
    goes_on(&disk, &mut log);
}

#[test]
fn a_first_batch_that_is_torn_is_cut_too() {
    // In a fresh log, behind a roll, and behind a roll and a trim of all that was before.
    for (rolled, trimmed) in [(false, false), (true, false), (true, true)] {
        let disk = SimDisk::new();
        let (mut log, _) = reopen(&disk);
        let mut last = 0;
        if rolled {
            while segments_of(&disk).len() < 2 {
                last += 1;
                log.append(vec![data(last, 2, 150_000)]).unwrap();
            }
            last -= 1;
        } else {
            log.append(vec![data(1, 2, 50)]).unwrap();
        }
        flush(&mut log).unwrap();
        let log_end = log.reader().header_at(Index(last)).map_or(Offset(0), |h| h.end_offset());
        if trimmed {
            log.trim(Index(last)).unwrap();
        }
        drop(log);
        let path = segments_of(&disk).pop().unwrap();
        let mut torn = disk.bytes_of(&path);
        torn[4096 + 130] ^= 1;
        disk.put(&path, &torn);
        let (mut log, recovered) = reopen(&disk);
        assert!(recovered.bytes_cut > 0);
        let bounds = log.reader().bounds();
        assert_eq!((bounds.last_index, bounds.log_end), (Index(last), log_end));
        goes_on(&disk, &mut log);
    }
}

#[test]
fn a_torn_tail_that_there_is_no_room_to_cut_waits_for_room() {
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 3);
    log.append(vec![data(4, 1, 40)]).unwrap();
    drop(log);
    let path = segments_of(&disk).remove(0);
    let mut torn = disk.bytes_of(&path);
    let end = torn.iter().rposition(|byte| *byte != 0).unwrap();
    torn[end - 3] ^= 1;
    disk.put(&path, &torn);
    disk.leave_room(0);
    assert!(matches!(open(&device_in(&disk)), Err(OpenError::NoSpace(_))));
    disk.leave_room(64 << 20);
    assert_eq!(last_of(&reopen(&disk).0), 3);
}

#[test]
fn a_flipped_bit_below_what_was_flushed_is_damage_and_nothing_is_changed() {
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 3);
    let path = segments_of(&disk).remove(0);
    let flushed = disk.bytes_of(&path).iter().rposition(|byte| *byte != 0).unwrap() + 1;
    // Its header testifies to the flush of the three before it.
    log.append(vec![data(4, 1, 40)]).unwrap();
    drop(log);
    let (whole, intact) = (disk.bytes_of(&path), disk.copy());
    for position in (4096..flushed).step_by(7) {
        let mut damaged = whole.clone();
        damaged[position] ^= 1 << (position % 8);
        let disk = disk.copy();
        disk.put(&path, &damaged);
        let (log, recovered) = reopen(&disk);
        let found: Vec<_> = recovered.damaged.iter().map(|range| range.positions.clone()).collect();
        let is_padding = found.is_empty() && contents(&log) == contents(&reopen(&intact.copy()).0);
        let is_found = found.len() == 1 && found[0].contains(&(position as u64));
        assert!(is_found || is_padding, "a bit at {position}: {recovered:?}");
        assert_eq!((last_of(&log), recovered.bytes_cut), (4, 0), "a bit at {position}");
        serves_all_but(&log, &recovered.damaged);
        // Padding is made zeros again; nothing else is touched.
        let expected = if is_padding { &whole } else { &damaged };
        assert!(&disk.bytes_of(&path) == expected, "a bit at {position}");
    }
}

#[test]
fn damage_in_a_segment_that_another_follows_is_never_cut() {
    let disk = SimDisk::new();
    let (mut log, _) = reopen(&disk);
    for index in 1..=9 {
        log.append(vec![data(index, 2, 100_000)]).unwrap();
    }
    flush(&mut log).unwrap();
    drop(log);
    let paths = segments_of(&disk);
    assert_eq!(paths.len(), 2);
    let whole = disk.bytes_of(&paths[0]);
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for position in (4096..end).step_by(49_999).chain([end - 60, end]) {
        let disk = disk.copy();
        let mut damaged = whole.clone();
        damaged[position] ^= 0x10;
        disk.put(&paths[0], &damaged);
        // Its index is believed at a start: then a reader finds what a start without it does.
        let believed = disk.copy();
        let (log, recovered) = reopen(&believed);
        assert!(recovered.damaged.is_empty());
        let noted = damage_met(&log);
        serves_all_but(&log, &noted);
        drop(log);
        disk.paths(".idx").iter().for_each(|index| disk.remove(index).unwrap());
        for (disk, how) in [(disk, "read"), (believed, "noted before")] {
            if how == "noted before" && noted.is_empty() {
                continue;
            }
            let (log, recovered) = reopen(&disk);
            let [range] = &recovered.damaged[..] else {
                panic!("{position}, {how}: {recovered:?}")
            };
            assert!(range.positions.contains(&(position as u64)), "{position}, {how}: {range}");
            assert_eq!((last_of(&log), recovered.bytes_cut), (9, 0));
            let seen = noted == std::slice::from_ref(range);
            assert!(seen || range.is_empty(), "{position}, {how}: {range} {noted:?}");
            serves_all_but(&log, &recovered.damaged);
            drop(log);
            assert_eq!(reopen(&disk).1.damaged, recovered.damaged, "{position}, {how}: kept");
        }
    }
}

/// What a reader of the whole log meets.
fn damage_met(log: &Log) -> Vec<DamagedRange> {
    let bounds = log.reader().bounds();
    for index in bounds.first_index.0..=bounds.last_index.0 {
        if let Ok(Read::Cold(read)) = log.reader().read_from_index(Index(index), 1) {
            drop(read.run());
        }
    }
    log.reader().damaged_ranges()
}

/// Every index outside the ranges is read, and every one inside is refused by its range.
fn serves_all_but(log: &Log, damaged: &[DamagedRange]) {
    let reader = log.reader();
    let bounds = reader.bounds();
    for index in bounds.first_index.0..=bounds.last_index.0 {
        let read = match reader.read_from_index(Index(index), 1) {
            Ok(Read::Hot(slices)) => Ok(slices),
            Ok(Read::Cold(read)) => read.run(),
            Err(error) => Err(error),
        };
        let inside = damaged.iter().find(|range| {
            !range.accepted && range.first_index.0 <= index && index <= range.last_index.0
        });
        match (inside, read) {
            (None, Ok(slices)) => assert_eq!(slices[0].header.index.0, index),
            (Some(range), Err(ReadError::Damaged(refused))) => assert_eq!(&refused, range),
            (inside, read) => panic!("index {index} of {inside:?}: {read:?}"),
        }
    }
}

#[test]
fn a_missing_segment_is_damage_and_the_others_stay() {
    let disk = SimDisk::new();
    let (mut log, _) = reopen(&disk);
    for index in 1..=60 {
        log.append(vec![data(index, 2, 100_000)]).unwrap();
    }
    flush(&mut log).unwrap();
    let sealed = log.reader().sealed_segments();
    assert!(sealed.len() >= 2);
    drop(log);
    let paths = segments_of(&disk);
    for missing in &paths[..paths.len() - 1] {
        let disk = disk.copy();
        disk.remove(missing).unwrap();
        let before = segments_of(&disk);
        let (log, recovered) = reopen(&disk);
        assert_eq!(recovered.damaged.len(), 1, "{recovered:?}");
        assert_eq!(segments_of(&disk), before, "the others stay");
        assert_eq!(last_of(&log), 60);
        serves_all_but(&log, &recovered.damaged);
    }
    let newest = disk.copy();
    newest.remove(&paths[paths.len() - 1]).unwrap();
    assert!(matches!(open(&device_in(&newest)), Err(OpenError::Damaged(_))), "the end is lost");
    // A log that was trimmed once held segments: without any it is not a fresh one.
    let (mut log, _) = reopen(&disk);
    log.trim(sealed[0].last_index).unwrap();
    drop(log);
    for path in &paths[1..] {
        disk.remove(path).unwrap();
    }
    assert!(matches!(open(&device_in(&disk)), Err(OpenError::Damaged(_))));
}

#[test]
fn a_segment_header_survives_the_loss_of_one_copy_and_lies_to_nobody() {
    let disk = SimDisk::new();
    drop(log_of(&disk, 3));
    let path = segments_of(&disk).remove(0);
    let whole = disk.bytes_of(&path);
    let opened = |change: &dyn Fn(&mut Vec<u8>)| {
        let disk = disk.copy();
        let mut bytes = whole.clone();
        change(&mut bytes);
        disk.put(&path, &bytes);
        open(&device_in(&disk)).map(|(log, _)| last_of(&log))
    };
    for copies in [&[0][..], &[2048], &[0, 2048]] {
        let found = opened(&|bytes| copies.iter().for_each(|copy| bytes[copy + 60] ^= 1));
        match copies.len() {
            1 => assert_eq!(found.unwrap(), 3),
            _ => assert!(matches!(found, Err(OpenError::Damaged(_)))),
        }
    }
    let found = opened(&|bytes| bytes.truncate(1 << 19));
    assert!(matches!(found, Err(OpenError::Damaged(_))), "too short");
    let with_field = |at: usize, number: u8| {
        opened(&|bytes| {
            for copy in [0, 2048] {
                bytes[copy + at] = number;
                let crc = crc32fast::hash(&bytes[copy + 12..copy + 512]);
                bytes[copy + 8..copy + 12].copy_from_slice(&crc.to_le_bytes());
            }
        })
    };
    assert_eq!(with_field(12, 2).unwrap(), 3, "a newer writer that this build can read");
    match with_field(14, 2) {
        Err(OpenError::Newer { found: 2, known: 1, file }) => assert_eq!(file, path),
        other => panic!("a format of the future: {other:?}"),
    }
    assert!(matches!(with_field(24, 6), Err(OpenError::Damaged(_))), "of another log");
}

/// Who accepted a loss accepted what was shown, and nothing that is lost later.
#[test]
fn what_is_damaged_beside_an_accepted_loss_is_not_accepted() {
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 6);
    log.leave_watermark().unwrap();
    let headers = log.reader().headers(Index(1), 6).unwrap();
    let position_of = |index: usize| {
        4_096 + headers[..index - 1].iter().map(|header| header.stored_len() as u64).sum::<u64>()
    };
    drop(log);
    let damage = |index| {
        let position = position_of(index) + 150;
        disk.damage(&segments_of(&disk)[0], &Damage::Bit { position, bit: 0 });
    };
    let ranges = |log: &Log| -> Vec<(u64, u64, bool)> {
        let of = |range: &DamagedRange| (range.first_index.0, range.last_index.0, range.accepted);
        log.reader().damaged_ranges().iter().map(of).collect()
    };
    damage(3);
    drop(open_and_accept(&disk));
    damage(4);
    for _ in 0..2 {
        let (log, _) = reopen(&disk);
        assert_eq!(ranges(&log), [(3, 3, true), (4, 4, false)]);
        let refused = log.reader().read_from_index(Index(4), 1);
        assert!(matches!(refused, Err(ReadError::Damaged(range)) if !range.accepted));
    }
    drop(open_and_accept(&disk));
    damage(5);
    damage(2);
    for _ in 0..2 {
        // What stands in front of an accepted range was not accepted with it.
        assert_eq!(ranges(&reopen(&disk).0), [(2, 5, false)]);
    }
}

fn open_and_accept(disk: &SimDisk) -> Log {
    let options = LogOptions { uuid: 5, accept_loss: true, ..LogOptions::default() };
    Log::open(device_in(disk), &Path::new(ROOT).join("p"), options).unwrap().0
}
