//! A log begins anew behind an index that it does not reach: it is what it was or what it is to be,
//! whatever is lost and whenever.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{ROOT, contents, data, device_in, flush, noop, open_small};
use std::path::Path;
use weir_protocol::types::{Index, Offset, Term};
use weir_sim::disk::{Cut, SimDisk};
use weir_storage::{Log, LogStart, NewBatch};

/// What the log is to continue, far behind its end.
const START: LogStart = LogStart {
    index: Index(100),
    term: Term(3),
    chain: 77,
    log_end: Offset(500),
    log_time_ms: 9_000,
};
const BEFORE: &[u8] = b"the vote";
const BEHIND: &[u8] = b"the vote, trimmed up to 100";

fn reopen(disk: &SimDisk) -> Log {
    open_small(&device_in(disk)).unwrap().0
}

/// A batch of the term behind the start.
fn next(index: u64) -> NewBatch {
    let mut batch = data(index, 2, 100);
    batch.header.term = START.term;
    batch
}

/// A log of three segments whose last batches nobody flushed.
fn filled(disk: &SimDisk) -> Log {
    let mut log = reopen(disk);
    log.store_meta(BEFORE).unwrap();
    log.append(vec![noop(1)]).unwrap();
    for index in 2..6 {
        log.append(vec![data(index, 1, 500_000)]).unwrap();
    }
    flush(&mut log).unwrap();
    log.leave_watermark().unwrap();
    log.write_checkpoint(Index(3), b"state 3").unwrap();
    log.append(vec![data(6, 3, 100)]).unwrap();
    log
}

fn is_as_before(log: &Log) -> bool {
    log.meta() == BEFORE
}

/// The log is what it was, or what it is to be, and nothing else. Goes on behind either.
fn check(crashed: &SimDisk, held_behind: u64) {
    let mut log = reopen(crashed);
    let bounds = log.reader().bounds();
    let newest = log.latest_checkpoint(Index(u64::MAX)).unwrap();
    if is_as_before(&log) {
        assert!(held_behind == 0 && (5..=6).contains(&bounds.last_index.0), "{bounds:?}");
        assert_eq!(contents(&log).len() as u64, bounds.last_index.0);
        assert_eq!(newest, Some((Index(3), b"state 3".to_vec())));
        log.append(vec![data(bounds.last_index.0 + 1, 1, 10)]).unwrap();
    } else {
        assert_eq!(log.meta(), BEHIND);
        assert_eq!(newest, Some((START.index, b"state 100".to_vec())));
        assert_eq!((bounds.first_index, bounds.log_start), (Index(101), START.log_end));
        assert!(bounds.last_index.0 >= 100 + held_behind, "{bounds:?}");
        assert_eq!(contents(&log).len() as u64, bounds.last_index.0 - 100);
        assert!(bounds.log_time_ms >= START.log_time_ms || bounds.last_index > START.index);
        if bounds.last_index == START.index {
            assert_eq!((log.chain(), bounds.log_end), (START.chain, START.log_end));
        }
        log.append(vec![next(bounds.last_index.0 + 1)]).unwrap();
        let header = log.reader().header_at(Index(101)).unwrap();
        assert_eq!(header.base_offset, START.log_end);
        assert_eq!(header.chain, header.expected_chain(START.chain, None));
    }
    assert!(log.reader().damaged_ranges().is_empty());
    flush(&mut log).unwrap();
    let last = log.reader().bounds().last_index;
    drop(log);
    let again = crashed.fork();
    again.cut_power(Cut::LosesAll);
    assert_eq!(reopen(&again).reader().bounds().last_index, last);
}

fn cuts(number: u64) -> impl Iterator<Item = Cut> {
    let some = (0..6).map(move |kind| Cut::KeepsSome(number * 6 + kind));
    let all = [Cut::LosesAll, Cut::KeepsAll, Cut::KeepsNewest, Cut::KeepsOldest, Cut::KeepsHeads];
    all.into_iter().chain(some)
}

/// Crashes before every change of the disk since it was asked to record, and within the starts
/// behind some of them. Returns how often the log was found as it was.
fn crash_everywhere(disk: &SimDisk, held_behind: u64) -> (usize, usize) {
    let (mut as_before, mut cases) = (0, 0);
    for (number, before) in disk.recorded().into_iter().enumerate() {
        for cut in cuts(number as u64) {
            let crashed = before.fork();
            crashed.cut_power(cut);
            as_before += usize::from(is_as_before(&reopen(&crashed.fork())));
            cases += 1;
            let starting = crashed.fork();
            starting.record();
            drop(reopen(&starting));
            for (number, start) in starting.recorded().into_iter().enumerate().step_by(3) {
                start.cut_power(Cut::KeepsSome(number as u64));
                check(&start, held_behind);
            }
            check(&crashed, held_behind);
        }
    }
    (as_before, cases)
}

#[test]
fn a_crash_leaves_the_log_before_or_the_log_behind() {
    let disk = SimDisk::new();
    let mut log = filled(&disk);
    disk.record();
    log.write_checkpoint(START.index, b"state 100").unwrap();
    log.restart_behind(START, BEHIND).unwrap();
    let (as_before, cases) = crash_everywhere(&disk, 0);
    assert!(as_before > 20 && cases - as_before > 20, "{as_before} of {cases} as before");

    let reader = log.reader();
    assert!(reader.read_from_index(Index(5), 1).is_err(), "a reader of before finds nothing");
    log.append(vec![next(101), next(102)]).unwrap();
    let (as_before, _) = crash_everywhere(&disk, 0);
    assert_eq!(as_before, 0, "once it has begun anew, it has");
    flush(&mut log).unwrap();
    assert_eq!(crash_everywhere(&disk, 0).0, 0);
    log.leave_watermark().unwrap();
    log.append(vec![next(103)]).unwrap();
    assert_eq!(crash_everywhere(&disk, 2).0, 0, "what was flushed stays");
    assert_eq!(reader.bounds().first_index, Index(101));
}

#[test]
fn a_log_that_never_held_anything_begins_behind_a_checkpoint() {
    let disk = SimDisk::new();
    let mut log = reopen(&disk);
    log.store_meta(BEFORE).unwrap();
    log.write_checkpoint(START.index, b"state 100").unwrap();
    log.restart_behind(START, BEHIND).unwrap();
    drop(log);
    for held in 0..3 {
        disk.cut_power(Cut::LosesAll);
        let mut log = reopen(&disk);
        assert_eq!(log.reader().bounds().last_index, Index(100 + held));
        assert_eq!(log.reader().start_behind(Index(100)).unwrap(), (held > 0).then_some(START));
        log.append(vec![next(101 + held)]).unwrap();
        flush(&mut log).unwrap();
        log.leave_watermark().unwrap();
    }
}

#[test]
fn it_begins_anew_more_than_once_and_can_be_cut_to_its_start() {
    let disk = SimDisk::new();
    let mut log = filled(&disk);
    let starts = [100, 200].map(|index| LogStart { index: Index(index), ..START });
    for start in starts {
        let meta = format!("behind {}", start.index);
        log.write_checkpoint(start.index, b"state").unwrap();
        log.restart_behind(start, meta.as_bytes()).unwrap();
        log.append(vec![next(start.index.0 + 1), next(start.index.0 + 2)]).unwrap();
    }
    log.truncate_after(Index(200)).unwrap();
    assert_eq!((log.chain(), log.reader().bounds().log_end), (START.chain, START.log_end));
    log.append(vec![next(201)]).unwrap();
    flush(&mut log).unwrap();
    drop(log);
    disk.cut_power(Cut::LosesAll);
    let log = reopen(&disk);
    assert_eq!(log.meta(), b"behind 200");
    assert_eq!((log.reader().bounds().first_index, contents(&log).len()), (Index(201), 1));
    let segments = disk.paths(".seg").into_iter().filter(|path| !path.starts_with("/data/pool"));
    assert!(segments.count() <= 2, "what was before is gone");
}

/// A watermark that was taken before is of a segment that is gone.
#[test]
fn an_older_watermark_does_not_take_the_start_away() {
    let disk = SimDisk::new();
    let mut log = filled(&disk);
    flush(&mut log).unwrap();
    let watermark = log.watermark().unwrap();
    log.write_checkpoint(START.index, b"state 100").unwrap();
    log.restart_behind(START, BEHIND).unwrap();
    watermark.store().unwrap();
    drop(log);
    assert_eq!(reopen(&disk).reader().bounds().last_index, START.index);
}

#[test]
fn what_was_appended_behind_the_start_is_missed_when_it_is_lost() {
    let disk = SimDisk::new();
    let mut log = filled(&disk);
    log.write_checkpoint(START.index, b"state 100").unwrap();
    log.restart_behind(START, BEHIND).unwrap();
    log.append(vec![next(101)]).unwrap();
    flush(&mut log).unwrap();
    drop(log);
    let segments = disk.paths(".seg").into_iter().filter(|path| path.starts_with("/data/p"));
    let lost = segments.filter(|path| !path.starts_with(Path::new(ROOT).join("pool")));
    lost.for_each(|path| weir_storage::Disk::remove(&disk, &path).unwrap());
    assert!(open_small(&device_in(&disk)).is_err(), "its end is lost");
}

#[test]
fn nothing_is_given_up_without_a_checkpoint() {
    let disk = SimDisk::new();
    let mut log = filled(&disk);
    let kind = |result: std::io::Result<()>| result.map_err(|error| error.kind());
    let invalid = Err(std::io::ErrorKind::InvalidInput);
    assert_eq!(kind(log.restart_behind(START, BEHIND)), invalid);
    log.write_checkpoint(START.index, b"state 100").unwrap();
    let impossible = LogStart { log_end: Offset(1 << 62), ..START };
    assert_eq!(kind(log.restart_behind(impossible, BEHIND)), invalid);
    assert_eq!((log.meta().as_slice(), contents(&log).len()), (BEFORE, 6));
}

/// Old builds refuse by name what they would not understand, and nothing else.
#[test]
fn the_hard_state_says_by_its_version_that_the_log_began_anew() {
    let disk = SimDisk::new();
    let mut log = filled(&disk);
    let versions = |disk: &SimDisk| {
        let meta = disk.bytes_of(&Path::new(ROOT).join("p/meta"));
        meta.chunks(4096).map(|copy| copy[12]).max().unwrap()
    };
    assert_eq!(versions(&disk), 2);
    log.write_checkpoint(START.index, b"state 100").unwrap();
    log.restart_behind(START, BEHIND).unwrap();
    assert_eq!(versions(&disk), 3);
    log.append(vec![next(101)]).unwrap();
    for last in 101..103 {
        flush(&mut log).unwrap();
        log.leave_watermark().unwrap();
        log.append(vec![next(last + 1)]).unwrap();
    }
    assert_eq!(versions(&disk), 2);
}
