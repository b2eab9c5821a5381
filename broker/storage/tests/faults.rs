//! What a log does when its disk fails or fills up.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{
    contents, data, device_for_later, device_in, flush, last_of, log_of, noop, open, open_small,
    reopen, segments_of,
};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use weir_protocol::types::{Index, Offset};
use weir_sim::disk::{Cut, Damage, Op, SimDisk};
use weir_storage::{AppendError, Appended, Log, OpenError, Read, ReadError, is_out_of_space};

fn is_fenced(outcome: Result<Appended, AppendError>) -> bool {
    matches!(outcome, Err(AppendError::Fenced(_)))
}

#[test]
fn a_failed_flush_fences_for_good_and_is_never_tried_again() {
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 3);
    disk.fail(Op::Flush, ErrorKind::Other, 0, 1);
    log.append(vec![data(4, 2, 50)]).unwrap();
    let error = flush(&mut log).unwrap_err();
    assert!(!error.out_of_space);
    assert!(error.text.contains(".seg"), "names the file: {}", error.text);
    let flushes = disk.calls(Op::Flush);
    for _ in 0..3 {
        assert_eq!(flush(&mut log).unwrap_err(), error, "the first failure is the one told");
        assert!(is_fenced(log.append(vec![data(5, 1, 50)])));
        assert!(log.truncate_after(Index(2)).is_err());
        assert!(log.store_meta(b"vote").is_err());
    }
    assert_eq!(disk.calls(Op::Flush), flushes, "the disk would say yes now, and is not asked");
    assert_eq!(log.reader().bounds().flushed_index, Index(3));
    assert_eq!(contents(&log).len(), 4, "reading goes on");
    drop(log);
    disk.cut_power(Cut::LosesAll);
    assert_eq!(last_of(&reopen(&disk).0), 3);
}

#[test]
fn what_a_failed_flush_left_in_memory_is_written_again_before_it_counts() {
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 3);
    disk.fail(Op::Flush, ErrorKind::StorageFull, 0, 1);
    log.append(vec![data(4, 2, 50)]).unwrap();
    assert!(flush(&mut log).unwrap_err().out_of_space);
    drop(log);
    let (log, recovered) = reopen(&disk);
    assert!(recovered.bytes_rewritten > 0);
    assert_eq!(log.reader().bounds().flushed_index, Index(4));
    drop(log);
    disk.cut_power(Cut::LosesAll);
    assert_eq!(last_of(&reopen(&disk).0), 4);
}

#[test]
fn an_append_that_fails_in_the_middle_leaves_nothing_of_itself() {
    // Two batches of header, body and padding are six stores.
    for skip in 0..6 {
        let disk = SimDisk::new();
        let mut log = log_of(&disk, 3);
        let before = contents(&log);
        disk.fail(Op::Write, ErrorKind::Other, skip, 1);
        assert!(is_fenced(log.append(vec![data(4, 1, 50), data(5, 1, 50)])), "store {skip}");
        assert!(is_fenced(log.append(vec![data(4, 1, 50)])));
        assert!(flush(&mut log).is_err());
        assert_eq!(contents(&log), before);
        drop(log);
        disk.cut_power(Cut::LosesAll);
        assert_eq!(contents(&reopen(&disk).0), before);
    }
}

#[test]
fn a_full_disk_refuses_data_and_takes_it_when_there_is_room() {
    let disk = SimDisk::new();
    let (mut log, _) = reopen(&disk);
    disk.leave_room(0);
    assert!(matches!(log.append(vec![noop(1)]), Err(AppendError::NoSpace)));
    disk.leave_room(32 << 20);
    log.append(vec![noop(1)]).unwrap();
    disk.leave_room(0);
    let mut next = 2;
    while log.append(vec![data(next, 1, 40_000)]).is_ok() {
        next += 1;
    }
    assert!(next > 10, "the first segment takes what fits");
    assert!(matches!(log.append(vec![data(next, 1, 40_000)]), Err(AppendError::NoSpace)));
    assert!(log.reader().room() < 40_200);
    // Control batches have a reserve of their own.
    log.append(vec![noop(next)]).unwrap();
    flush(&mut log).unwrap();
    assert_eq!(contents(&log).len() as u64, next);
    disk.leave_room(64 << 20);
    log.append(vec![data(next + 1, 1, 40_000)]).unwrap();
    assert!(log.reader().room() > 1 << 20);
    flush(&mut log).unwrap();
    assert_eq!(contents(&log).len() as u64, next + 1);
    let before = contents(&log);
    drop(log);
    assert_eq!(contents(&reopen(&disk).0), before);
}

#[test]
fn no_room_while_a_segment_is_filled_is_a_refusal_and_a_broken_disk_is_not() {
    let disk = SimDisk::new();
    let (mut log, _) = reopen(&disk);
    disk.fail(Op::Create, ErrorKind::StorageFull, 0, 1);
    assert!(matches!(log.append(vec![noop(1)]), Err(AppendError::NoSpace)));
    log.append(vec![noop(1)]).unwrap();
    let disk = SimDisk::new();
    let (mut log, _) = reopen(&disk);
    disk.fail(Op::Create, ErrorKind::Other, 0, 1);
    assert!(is_fenced(log.append(vec![noop(1)])));
    assert!(is_fenced(log.append(vec![noop(1)])));
    // EMFILE, ENFILE, and ENOMEM: the process may have no more files or maps now.
    for number in [24, 23, 12] {
        let disk = SimDisk::new();
        let (mut log, _) = reopen(&disk);
        disk.fail_with(Op::Create, number, 1);
        assert!(matches!(log.append(vec![noop(1)]), Err(AppendError::NoSpace)));
        log.append(vec![noop(1)]).unwrap();
    }
}

#[test]
fn a_spare_goes_back_to_the_pool_with_its_log() {
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 3);
    for index in 4..8 {
        log.append(vec![data(index, 1, 200_000)]).unwrap();
    }
    let spares = || disk.paths(".seg").iter().filter(|path| path.starts_with("/data/pool")).count();
    assert_eq!(spares(), 1, "made ahead");
    let _device_lives_on = log.flusher();
    drop(log);
    assert_eq!(spares(), 1, "for the next log that needs one");
}

#[test]
fn a_device_that_cannot_read_is_an_error_and_changes_nothing() {
    let disk = SimDisk::new();
    let log = log_of(&disk, 5);
    let reader = log.reader();
    for op in [Op::Read, Op::Share] {
        disk.fail(op, ErrorKind::Other, 0, 1);
        let found = reader.read_from_index(Index(3), 1 << 20);
        assert!(matches!(found, Err(ReadError::Device { .. })), "{op:?}");
        let found = reader.read_from_index(Index(3), 1 << 20).unwrap();
        assert!(matches!(found, Read::Hot(slices) if slices.len() == 3));
    }
    drop((log, reader));
    for skip in 0.. {
        disk.fail(Op::Read, ErrorKind::Other, skip, 1);
        let before = disk.changes();
        match open(&device_in(&disk)) {
            Ok(_) => {
                assert!(skip > 10, "every read of recovery was tried");
                break;
            }
            Err(OpenError::Device { .. }) => {}
            Err(other) => panic!("read {skip}: {other}"),
        }
        assert!(disk.changes() - before <= 3, "only the folders were synced");
        disk.cut_power(Cut::KeepsAll);
    }
}

#[test]
fn a_truncation_that_fails_fences_and_loses_nothing_that_was_kept() {
    for op in [Op::Write, Op::Flush, Op::Rename, Op::SyncDir] {
        let disk = SimDisk::new();
        let mut log = log_of(&disk, 6);
        disk.fail(op, ErrorKind::Other, 0, 1);
        assert!(log.truncate_after(Index(4)).is_err(), "{op:?}");
        assert!(is_fenced(log.append(vec![data(5, 1, 50)])), "{op:?}");
        drop(log);
        for cut in [Cut::LosesAll, Cut::KeepsAll] {
            let disk = disk.copy();
            disk.cut_power(cut);
            let last = last_of(&reopen(&disk).0);
            assert!(last == 4 || last == 6, "{op:?} {cut:?}: {last}");
        }
    }
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 6);
    disk.leave_room(0);
    let error = log.truncate_after(Index(4)).unwrap_err();
    assert!(is_out_of_space(&error));
    assert_eq!(last_of(&log), 6, "a refusal, not a failure");
    disk.leave_room(64 << 20);
    log.append(vec![data(7, 1, 50)]).unwrap();
    log.truncate_after(Index(4)).unwrap();
    assert_eq!(last_of(&log), 4);
}

#[test]
fn truncating_behind_the_end_cuts_nothing_and_before_the_start_cuts_all() {
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 3);
    log.truncate_after(Index(9)).unwrap();
    let bounds = log.reader().bounds();
    assert_eq!((bounds.last_index, bounds.log_end), (Index(3), Offset(4)));
    log.append(vec![data(4, 1, 50)]).unwrap();
    log.truncate_after(Index(0)).unwrap();
    let bounds = log.reader().bounds();
    assert_eq!((bounds.last_index, bounds.log_end), (Index(0), Offset(0)));
    log.append(vec![data(1, 3, 50)]).unwrap();
    // Larger than what is left of the segment: rolls.
    log.append(vec![data(2, 1, 900_000)]).unwrap();
    flush(&mut log).unwrap();
    let before = contents(&log);
    drop(log);
    let (log, _) = reopen(&disk);
    assert_eq!(contents(&log), before);
    assert_eq!(log.reader().bounds().log_end, Offset(4));
}

#[test]
fn hard_state_that_could_not_be_flushed_fences() {
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 3);
    log.store_meta(b"one").unwrap();
    disk.fail(Op::Flush, ErrorKind::Other, 0, 1);
    assert!(log.store_meta(b"two").is_err());
    let flushes = disk.calls(Op::Flush);
    assert!(log.store_meta(b"three").is_err());
    assert!(is_fenced(log.append(vec![data(4, 1, 50)])));
    assert_eq!(disk.calls(Op::Flush), flushes);
    drop(log);
    disk.cut_power(Cut::LosesAll);
    assert_eq!(reopen(&disk).0.meta(), b"one");
}

/// What the process that failed can still see is not on the disk; the next one acts on it.
#[test]
fn what_is_found_at_a_start_is_durable_before_it_counts() {
    for op in [Op::Flush, Op::SyncDir] {
        let disk = SimDisk::new();
        let mut log = log_of(&disk, 6);
        disk.fail(op, ErrorKind::Other, 0, 1);
        let failed = match op {
            Op::Flush => log.store_meta(b"a vote").is_err(),
            _ => log.truncate_after(Index(4)).is_err(),
        };
        assert!(failed);
        drop(log);
        let (mut log, _) = reopen(&disk);
        let (next, meta) = (last_of(&log) + 1, log.meta().to_vec());
        log.append(vec![data(next, 1, 50)]).unwrap();
        flush(&mut log).unwrap();
        drop(log);
        disk.cut_power(Cut::LosesAll);
        let (log, _) = reopen(&disk);
        assert_eq!((last_of(&log), log.meta()), (next, meta.to_vec()), "{op:?}");
    }
}

#[test]
fn a_segment_is_durable_before_another_follows_it() {
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 3);
    let mut next = 4;
    while segments_of(&disk).len() < 2 {
        log.append(vec![data(next, 2, 100_000)]).unwrap();
        next += 1;
    }
    drop(log);
    disk.cut_power(Cut::LosesAll);
    let last = last_of(&reopen(&disk).0);
    assert!(last >= 3, "what was flushed is there");
}

#[test]
fn who_waited_for_what_was_cut_is_told_and_keeps_nobody_waiting() {
    let disk = SimDisk::new();
    let (device, later) = device_for_later(&disk);
    let (mut log, _) = open(&device).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let ask = |log: &Log, name: &'static str| {
        let told = told.clone();
        log.flusher().flush(Box::new(move |outcome| {
            outcome.unwrap();
            told.lock().unwrap().push(name);
        }));
    };
    for index in 1..=6 {
        log.append(vec![data(index, 1, 50)]).unwrap();
    }
    ask(&log, "for six");
    ask(&log, "for six too");
    log.truncate_after(Index(2)).unwrap();
    log.append(vec![data(3, 1, 70)]).unwrap();
    ask(&log, "for three");
    assert!(told.lock().unwrap().is_empty());
    later.run();
    assert_eq!(*told.lock().unwrap(), ["for six", "for six too", "for three"]);
    assert_eq!(log.reader().bounds().flushed_index, Index(3));
}

#[test]
fn a_segment_that_is_needed_before_it_was_made_is_not_made_twice() {
    let disk = SimDisk::new();
    let (device, later) = device_for_later(&disk);
    let (mut log, _) = open_small(&device).unwrap();
    let segments = || disk.paths(".seg").len();
    for index in 1..=3 {
        log.append(vec![data(index, 1, 600_000)]).unwrap();
    }
    assert_eq!(segments(), 3, "the log made them itself");
    later.run();
    assert_eq!(segments(), 4, "only the one that nobody has yet");
    log.append(vec![data(4, 1, 600_000)]).unwrap();
    assert_eq!(segments(), 4, "the one that was made");
}

#[test]
fn a_trim_may_be_finished_while_the_log_is_opened_again() {
    let disk = SimDisk::new();
    let device = device_in(&disk);
    let (mut log, _) = open_small(&device).unwrap();
    for index in 1..=4 {
        log.append(vec![data(index, 1, 600_000)]).unwrap();
    }
    flush(&mut log).unwrap();
    let mut trimmed = log.begin_trim(Index(3)).unwrap();
    assert!(trimmed.remove_one().unwrap());
    drop(log);
    let (log, _) = open_small(&device).unwrap();
    trimmed.finish().unwrap();
    assert_eq!(contents(&log).len(), 1);
}

#[test]
fn a_log_that_was_emptied_behind_a_trim_rolls_and_opens() {
    let disk = SimDisk::new();
    let open = || open_small(&device_in(&disk)).unwrap().0;
    let mut log = open();
    log.append(vec![data(1, 1, 900_000)]).unwrap();
    log.append(vec![data(2, 1, 500_000)]).unwrap();
    log.trim(Index(1)).unwrap();
    assert_eq!(log.reader().bounds().first_index, Index(2));
    log.truncate_after(Index(1)).unwrap();
    drop(log);
    log = open();
    assert_eq!(last_of(&log), 1);
    // Does not fit into the segment that is there: closes it without a batch in it.
    log.append(vec![data(2, 2, 900_000)]).unwrap();
    flush(&mut log).unwrap();
    let before = contents(&log);
    drop(log);
    assert_eq!(contents(&open()), before);
}

#[test]
fn a_cold_read_waits_for_the_device_and_verifies_what_it_gets() {
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 3);
    let mut index = 4;
    let mut read = loop {
        log.append(vec![data(index, 1, 1_000_000)]).unwrap();
        index += 1;
        if let Read::Cold(read) = log.reader().read_from_index(Index(1), 1 << 10).unwrap() {
            break read;
        }
        assert!(index < 80, "what is 64 MiB behind the end is cold");
    };
    assert_eq!(read.run().unwrap().len(), 3);
    let cold = || match log.reader().read_from_index(Index(1), 1 << 10).unwrap() {
        Read::Cold(read) => read,
        Read::Hot(_) => panic!("it was cold before"),
    };
    for op in [Op::Prepare, Op::Read, Op::Share] {
        read = cold();
        disk.fail(op, ErrorKind::Other, 0, 1);
        assert!(matches!(read.run(), Err(ReadError::Device { .. })), "{op:?}");
    }
    // One bit of the second batch's body.
    let bit = Damage::Bit { position: 4096 + 128 + 128 + 60, bit: 0 };
    disk.damage(&segments_of(&disk)[0], &bit);
    assert_eq!(cold().run().unwrap().len(), 1, "up to the damage");
    let damaged = log.reader().damaged_ranges();
    let [range] = &damaged[..] else { panic!("a flipped bit was not noted: {damaged:?}") };
    assert_eq!(
        (range.positions.start, range.first_index.0, range.last_index.0),
        (4096 + 128, 2, 2)
    );
    let refused = log.reader().read_from_index(Index(2), 1 << 10);
    assert!(matches!(&refused, Err(ReadError::Damaged(found)) if found == range), "{refused:?}");
    let Read::Cold(behind) = log.reader().read_from_index(Index(3), 1 << 10).unwrap() else {
        panic!("it was cold before")
    };
    assert_eq!(behind.run().unwrap()[0].header.index, Index(3));
    assert_eq!(last_of(&log), index - 1, "the rest is as it was");
}

/// Who asks may be a task that must not wait: what was found at a start, and what damage holds, is
/// for a thread that may.
#[test]
fn only_what_this_process_appended_is_read_at_once() {
    let disk = SimDisk::new();
    let read = |log: &Log, index| log.reader().read_from_index(Index(index), 1).unwrap();
    let log = log_of(&disk, 3);
    assert!(matches!(read(&log, 3), Read::Hot(_)));
    drop(log);
    let (mut log, _) = reopen(&disk);
    // The log's index names about every second batch of this size.
    for index in 4..=8 {
        log.append(vec![data(index, 1, 50_000)]).unwrap();
    }
    flush(&mut log).unwrap();
    assert!(matches!(read(&log, 3), Read::Cold(_)));
    assert!(matches!(read(&log, 8), Read::Hot(_)));
    let before = log.reader().headers(Index(1), 7).unwrap();
    let position = 4_096 + before.iter().map(|header| header.stored_len() as u64).sum::<u64>();
    disk.damage(&segments_of(&disk)[0], &Damage::Bit { position: position + 150, bit: 0 });
    let Read::Cold(damaged) = read(&log, 8) else { panic!("damage takes its time") };
    assert!(matches!(damaged.run(), Err(ReadError::Damaged(_))));
    assert_eq!(log.reader().damaged_ranges().len(), 1);
}

/// A flush that was under way when the log was cut says nothing of what came instead.
#[test]
fn a_flush_under_way_does_not_vouch_for_what_replaced_its_bytes() {
    let disk = SimDisk::new();
    let device = device_in(&disk);
    let (log, _) = open(&device).unwrap();
    let log = Arc::new(Mutex::new(log));
    let told = Arc::new(Mutex::new(Vec::new()));
    for index in 1..=6 {
        log.lock().unwrap().append(vec![data(index, 1, 50)]).unwrap();
    }
    let flusher = log.lock().unwrap().flusher();
    let (begun, begins) = std::sync::mpsc::sync_channel(1);
    device.observe_flushes(Arc::new(move |_, _| {
        // Only the first flush is waited for.
        let _ = begun.try_send(());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }));
    std::thread::scope(|scope| {
        let first = told.clone();
        let flushing = flusher.clone();
        scope.spawn(move || {
            flushing
                .flush(Box::new(move |outcome| first.lock().unwrap().push((6, outcome.is_ok()))));
        });
        begins.recv().unwrap();
        let mut log = log.lock().unwrap();
        log.truncate_after(Index(2)).unwrap();
        log.append(vec![data(3, 1, 70), data(4, 1, 70), data(5, 1, 70), data(6, 1, 70)]).unwrap();
        disk.fail(Op::Flush, ErrorKind::Other, 0, 1);
        let second = told.clone();
        flusher.flush(Box::new(move |outcome| second.lock().unwrap().push((66, outcome.is_ok()))));
    });
    assert_eq!(*told.lock().unwrap(), [(6, true), (66, false)]);
    assert_eq!(log.lock().unwrap().reader().bounds().flushed_index, Index(2));
}

#[test]
fn a_window_that_cannot_be_read_ahead_fences_the_log_before_it_is_stored_to() {
    let disk = SimDisk::new();
    let mut log = log_of(&disk, 1);
    // The first window is read in; the next is asked for in its second half.
    let mut index = 2;
    disk.fail(Op::Prepare, ErrorKind::Other, 0, usize::MAX);
    while disk.calls(Op::Prepare) < 2 {
        log.append(vec![data(index, 1, 100_000)]).unwrap();
        index += 1;
    }
    let stores = disk.calls(Op::Write);
    assert!(is_fenced(log.append(vec![data(index, 1, 100_000)])));
    assert!(flush(&mut log).unwrap_err().text.contains(".seg"), "names the file");
    assert_eq!(disk.calls(Op::Write), stores);
    assert_eq!(last_of(&log), index - 1, "what was appended is readable, and in doubt");
}
