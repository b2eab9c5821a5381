//! A log keeps what it was given, across rolls, trims, truncations and restarts.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{contents, data, device, flush, noop, open, segment_files, write_at};
use std::sync::Arc;
use weir_protocol::types::{Index, Offset};
use weir_storage::{Backend, Device, DeviceError, Disk, OpenError, OsDisk, Read};

#[test]
fn what_was_appended_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let before = {
        let device = device(folder.path());
        let (mut log, _) = open(&device).unwrap();
        log.append(vec![noop(1)]).unwrap();
        for index in 2..300 {
            let appended = log.append(vec![data(index, 3, 5_000)]).unwrap();
            assert_eq!(appended.last_index, Index(index));
            flush(&mut log).unwrap();
        }
        assert!(segment_files(folder.path()).len() > 1, "the log rolled");
        contents(&log)
    };
    let device = device(folder.path());
    let (mut log, recovered) = open(&device).unwrap();
    assert_eq!(recovered.bytes_cut, 0);
    assert_eq!(contents(&log), before);
    let bounds = log.reader().bounds();
    assert_eq!((bounds.log_start, bounds.log_end), (Offset(0), Offset(298 * 3)));
    log.append(vec![data(300, 1, 10)]).unwrap();
    assert_eq!(log.reader().bounds().log_end, Offset(298 * 3 + 1));
}

#[test]
fn offsets_and_times_find_their_batches() {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let (mut log, _) = open(&device).unwrap();
    for index in 1..=200 {
        log.append(vec![data(index, 10, 2_000)]).unwrap();
    }
    let reader = log.reader();
    for offset in [0, 9, 10, 777, 1_999] {
        let Read::Hot(slices) = reader.read_from_offset(Offset(offset), 1).unwrap() else {
            panic!("new bytes are hot")
        };
        let header = slices[0].header;
        assert!(header.base_offset.0 <= offset && offset < header.end_offset().0);
        assert_eq!(slices.len(), 1);
    }
    assert!(
        matches!(reader.read_from_offset(Offset(2_000), 1).unwrap(), Read::Hot(s) if s.is_empty())
    );
    assert_eq!(reader.offset_for_time(0).unwrap(), Offset(0));
    assert_eq!(reader.offset_for_time(1_000 + 1_000).unwrap(), Offset(99 * 10));
    assert_eq!(reader.offset_for_time(u64::MAX).unwrap(), Offset(2_000));
}

/// Watermarks and the rows of the sparse index, one in 64 KiB, are all that it may be off by while the
/// index is in memory.
#[test]
fn what_lies_behind_an_index_is_measured_without_reading_it() {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let (mut log, _) = open(&device).unwrap();
    let mut stored = Vec::new();
    for index in 1..=2_000 {
        let before = log.reader().bytes_behind(Index(index - 1));
        assert_eq!(before, 0, "nothing is behind the last index");
        log.append(vec![data(index, 1, 1_000)]).unwrap();
        let Read::Hot(slices) = log.reader().read_from_index(Index(index), 1).unwrap() else {
            panic!("new bytes are hot")
        };
        stored.push(slices[0].bytes.len() as u64);
    }
    flush(&mut log).unwrap();
    let reader = log.reader();
    let segments = reader.sealed_segments().len() as u64;
    assert!(segments > 0, "the log rolled");
    let slack = (64 << 10) + 4_096 * segments;
    for index in [0, 1, 7, 600, 976, 977, 1_500, 1_999, 2_000] {
        let exact: u64 = stored[index as usize..].iter().sum();
        let found = reader.bytes_behind(Index(index));
        assert!((exact..=exact + slack).contains(&found), "{index}: {found}, not {exact}");
    }
    assert_eq!(reader.bytes_behind(Index(1_999)), stored[1_999], "the newest are known exactly");
    log.trim(reader.sealed_segments()[0].last_index).unwrap();
    let all: u64 = reader.bytes_behind(Index(0));
    assert_eq!(all, reader.bytes_behind(Index(reader.bounds().first_index.0 - 1)));
}

#[test]
fn trimming_gives_up_whole_segments_and_stays_trimmed() {
    let folder = tempfile::tempdir().unwrap();
    {
        let device = device(folder.path());
        let (mut log, _) = open(&device).unwrap();
        for index in 1..=400 {
            log.append(vec![data(index, 1, 20_000)]).unwrap();
        }
        flush(&mut log).unwrap();
        let sealed = log.reader().sealed_segments();
        assert!(sealed.len() >= 2);
        log.trim(Index(sealed[0].last_index.0 - 1)).unwrap();
        assert_eq!(log.reader().bounds().first_index, Index(1), "only whole segments go");
        log.trim(sealed[1].last_index).unwrap();
        assert_eq!(log.reader().bounds().first_index.0, sealed[1].last_index.0 + 1);
        assert_eq!(log.reader().bounds().log_start, sealed[1].end_offset);
        assert!(log.reader().read_from_offset(Offset(0), 1).is_err());
    }
    let (log, _) = open(&device(folder.path())).unwrap();
    let bounds = log.reader().bounds();
    assert_eq!(bounds.last_index, Index(400));
    assert_eq!(contents(&log).len() as u64, 400 - bounds.first_index.0 + 1);
}

#[test]
fn truncating_rolls_and_what_was_cut_never_comes_back() {
    for upto in [1, 7, 30, 59, 60] {
        let folder = tempfile::tempdir().unwrap();
        let kept = {
            let device = device(folder.path());
            let (mut log, _) = open(&device).unwrap();
            for index in 1..=60 {
                log.append(vec![data(index, 2, 30_000)]).unwrap();
            }
            flush(&mut log).unwrap();
            log.truncate_after(Index(upto)).unwrap();
            assert_eq!(log.reader().bounds().last_index, Index(upto));
            assert_eq!(log.reader().bounds().log_end, Offset(upto * 2));
            log.append(vec![data(upto + 1, 1, 100)]).unwrap();
            flush(&mut log).unwrap();
            contents(&log)
        };
        assert_eq!(kept.len() as u64, upto + 1);
        let (log, _) = open(&device(folder.path())).unwrap();
        assert_eq!(contents(&log), kept, "truncated after {upto}");
    }
}

#[test]
fn a_torn_tail_is_cut_at_every_byte_and_damage_below_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (end_flushed, end, batches) = {
        let device = device(folder.path());
        let (mut log, _) = open(&device).unwrap();
        log.append(vec![noop(1)]).unwrap();
        log.append(vec![data(2, 2, 300)]).unwrap();
        flush(&mut log).unwrap();
        let end_flushed = 4096 + 128 + stored(2, 300);
        log.append(vec![data(3, 1, 400)]).unwrap();
        (end_flushed, end_flushed + stored(1, 400), contents(&log))
    };
    let path = segment_files(folder.path()).remove(0);
    let whole = std::fs::read(&path).unwrap();
    let meta = std::fs::read(folder.path().join("p/meta")).unwrap();
    for cut in (end_flushed..end).step_by(13) {
        let mut torn = whole.clone();
        torn[cut as usize..].fill(0xa5);
        std::fs::write(&path, &torn).unwrap();
        let device = device(folder.path());
        let (log, recovered) = open(&device).unwrap();
        assert_eq!(contents(&log), batches[..2], "cut at {cut}");
        assert!(recovered.bytes_rewritten > 0 || recovered.batches_read == 2);
        drop(log);
        reset(folder.path(), &path, (&whole, &meta));
    }
    // The third batch testifies that everything before it was flushed.
    for position in (4096..end_flushed).step_by(17) {
        write_at(&path, position, &[whole[position as usize] ^ 1]).unwrap();
        let device = device(folder.path());
        let (log, recovered) = open(&device).unwrap();
        let [damaged] = &recovered.damaged[..] else { panic!("{position}: {recovered:?}") };
        assert!(damaged.positions.contains(&position), "{position}: {damaged}");
        assert_eq!((recovered.bytes_cut, log.reader().bounds().last_index), (0, Index(3)));
        drop(log);
        drop(device);
        std::fs::remove_file(folder.path().join("p/damage")).unwrap();
        std::fs::write(&path, &whole).unwrap();
    }
}

fn stored(records: usize, bytes: usize) -> u64 {
    data(1, records, bytes).header.stored_len() as u64
}

/// Puts the one segment back and removes what a recovery linked behind it.
fn reset(root: &std::path::Path, path: &std::path::Path, (whole, meta): (&[u8], &[u8])) {
    for other in segment_files(root) {
        if other != path {
            std::fs::remove_file(other).unwrap();
        }
    }
    std::fs::write(path, whole).unwrap();
    std::fs::write(root.join("p/meta"), meta).unwrap();
}

#[test]
fn hard_state_survives_the_loss_of_a_copy_and_is_never_an_older_one() {
    let folder = tempfile::tempdir().unwrap();
    {
        let device = device(folder.path());
        let (mut log, _) = open(&device).unwrap();
        log.append(vec![noop(1)]).unwrap();
        flush(&mut log).unwrap();
        log.store_meta(b"one").unwrap();
        log.store_meta(b"two").unwrap();
    }
    let meta = folder.path().join("p/meta");
    let whole = std::fs::read(&meta).unwrap();
    let of_copies = |damaged: &[usize]| {
        let mut bytes = whole.clone();
        damaged.iter().for_each(|copy| bytes[copy * 4096 + 20] ^= 1);
        std::fs::write(&meta, &bytes).unwrap();
        open(&device(folder.path())).map(|(log, _)| log.meta().to_vec())
    };
    for damaged in [&[0][..], &[1], &[2], &[3], &[0, 2], &[0, 3], &[1, 2], &[1, 3]] {
        assert_eq!(of_copies(damaged).unwrap(), b"two", "{damaged:?}");
    }
    for damaged in [&[0, 1][..], &[2, 3], &[0, 1, 2], &[0, 1, 2, 3]] {
        let found = of_copies(damaged);
        assert!(matches!(found, Err(OpenError::Damaged(_))), "{damaged:?}: {found:?}");
    }
    std::fs::write(&meta, vec![0; whole.len()]).unwrap();
    assert!(matches!(open(&device(folder.path())), Err(OpenError::Damaged(_))));
    std::fs::remove_file(&meta).unwrap();
    assert!(matches!(open(&device(folder.path())), Err(OpenError::Damaged(_))), "never fresh");
}

#[test]
fn a_data_directory_has_one_user() {
    let folder = tempfile::tempdir().unwrap();
    let first = device(folder.path());
    let disk = Arc::new(OsDisk::new(Backend::Map));
    let second = Device::open(disk, Arc::new(common::Inline), folder.path(), 1);
    assert!(matches!(second, Err(DeviceError::InUse(_))));
    drop(first);
}

#[test]
fn both_backends_leave_identical_bytes() {
    let files: Vec<Vec<u8>> = [Backend::Map, Backend::Pwrite]
        .into_iter()
        .map(|backend| {
            let folder = tempfile::tempdir().unwrap();
            let device = common::device_on(Arc::new(OsDisk::new(backend)), folder.path());
            let (mut log, _) = open(&device).unwrap();
            for index in 1..=20 {
                log.append(vec![data(index, 2, index as usize * 4_000)]).unwrap();
                flush(&mut log).unwrap();
            }
            let files = segment_files(folder.path());
            files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect()
        })
        .collect();
    assert!(files[0] == files[1]);
}

#[test]
fn checkpoints_are_found_by_index_and_damaged_ones_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let (mut log, _) = open(&device).unwrap();
    log.append(vec![noop(1)]).unwrap();
    for index in [3, 7, 9] {
        log.write_checkpoint(Index(index), &[index as u8; 100]).unwrap();
    }
    let found = |upto| log.latest_checkpoint(Index(upto)).unwrap().map(|(index, _)| index.0);
    assert_eq!((found(9), found(8), found(3), found(2)), (Some(9), Some(7), Some(3), None));
    write_at(&folder.path().join(format!("p/{:020}.ckpt", 9)), 40, b"x").unwrap();
    assert_eq!(found(9), Some(7));
}

/// A read past the cache comes in blocks, and a file that somebody cut ends where it ends.
#[test]
fn a_file_of_any_length_is_read_from_the_device() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let disk = OsDisk::new(Backend::Map);
    for len in [100, 4_096, 5_000, 12_300] {
        let path = folder.path().join(len.to_string());
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = disk.open(&path).unwrap();
        for from in [0, len / 3, len - 1] {
            let mut read = vec![0; len - from];
            file.read_device(from as u64, &mut read).unwrap();
            assert!(read == bytes[from..], "{len} bytes from {from}");
        }
        assert!(file.read_device(len as u64 - 1, &mut [0; 2]).is_err(), "behind the end");
        file.prepare(len as u64 + 4_096..len as u64 + 8_192).unwrap();
    }
}
