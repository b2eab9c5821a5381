//! What tells damage from a torn tail: how far a segment says that it was flushed, how much may be
//! unflushed at a time, and what a batch chains to.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{data, device_in, flush, last_of, log_of, open, reopen, segments_of};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use weir_protocol::types::Index;
use weir_sim::disk::{Cut, Damage, SimDisk};
use weir_storage::NewBatch;
use weir_storage::limits::{SEGMENT_HEADER_BYTES, UNFLUSHED_BYTES_MAX};

#[test]
fn a_watermark_proves_the_last_batch_of_an_idle_log() {
    for marked in [false, true] {
        let disk = SimDisk::new();
        let mut log = log_of(&disk, 3);
        let last = log.reader().headers(Index(1), 2).unwrap();
        let last = last.iter().map(|header| header.stored_len() as u64).sum::<u64>();
        if marked {
            log.leave_watermark().unwrap();
        }
        drop(log);
        disk.cut_power(Cut::LosesAll);
        let position = SEGMENT_HEADER_BYTES + last + 140;
        disk.damage(&segments_of(&disk)[0], &Damage::Bit { position, bit: 0 });
        let (log, recovered) = reopen(&disk);
        if marked {
            let [range] = &recovered.damaged[..] else { panic!("{recovered:?}") };
            assert_eq!((range.first_index, range.last_index), (Index(3), Index(3)));
            assert_eq!((recovered.bytes_cut, last_of(&log)), (0, 3));
        } else {
            assert!(recovered.bytes_cut > 0 && recovered.damaged.is_empty(), "{recovered:?}");
        }
    }
}

#[test]
fn no_more_is_unflushed_than_a_start_counts_on() {
    let disk = SimDisk::new();
    let (mut log, _) = reopen(&disk);
    let mut most = 0;
    for index in 1..=60 {
        log.append(vec![data(index, 1, 1_000_000)]).unwrap();
        most = most.max(log.unflushed_bytes());
    }
    assert!(most > UNFLUSHED_BYTES_MAX / 2 && most <= UNFLUSHED_BYTES_MAX, "{most}");
    drop(log);
    disk.cut_power(Cut::KeepsNewest);
    let (log, recovered) = reopen(&disk);
    assert!(recovered.damaged.is_empty(), "nothing that was flushed is lost: {recovered:?}");
    assert!(last_of(&log) > 30);
}

#[test]
fn what_a_flush_under_way_covers_is_unflushed_until_it_ends() {
    let disk = SimDisk::new();
    let device = device_in(&disk);
    let (mut log, _) = open(&device).unwrap();
    let (begun, begins) = sync_channel(1);
    let (goes, go) = sync_channel::<()>(1);
    let first = Mutex::new(Some(go));
    device.observe_flushes(Arc::new(move |_, _| {
        if let Some(go) = first.lock().unwrap().take() {
            begun.send(()).unwrap();
            go.recv().unwrap();
        }
    }));
    log.append(vec![data(1, 1, 8_000_000)]).unwrap();
    let flusher = log.flusher();
    std::thread::scope(|scope| {
        scope.spawn(move || flusher.flush(Box::new(|outcome| outcome.unwrap())));
        begins.recv().unwrap();
        assert!(log.unflushed_bytes() > 8_000_000);
        log.append(vec![data(2, 1, 8_000_000)]).unwrap();
        assert!(log.unflushed_bytes() > 16_000_000);
        let waiting = scope.spawn(move || {
            log.append(vec![data(3, 1, 8_000_000)]).unwrap();
            log.unflushed_bytes()
        });
        goes.send(()).unwrap();
        assert!(waiting.join().unwrap() <= UNFLUSHED_BYTES_MAX);
    });
}

/// A write that was lost or went astray leaves a batch that is whole in itself.
#[test]
fn a_batch_behind_another_than_it_was_written_behind_is_damage() {
    let log_with = |second: NewBatch| {
        let disk = SimDisk::new();
        let (mut log, _) = reopen(&disk);
        let behind = [data(3, 2, 50), data(4, 2, 50)];
        for batch in [data(1, 2, 50), second].into_iter().chain(behind) {
            log.append(vec![batch]).unwrap();
            flush(&mut log).unwrap();
        }
        let bytes = disk.bytes_of(&segments_of(&disk)[0]);
        (disk, bytes)
    };
    let mut other = data(9, 2, 50);
    other.header.index = Index(2);
    let ((disk, mut bytes), (_, others)) = (log_with(data(2, 2, 50)), log_with(other));
    let start = SEGMENT_HEADER_BYTES as usize;
    assert!(bytes[..start] == others[..start], "the salt is the same");
    let stored = data(1, 2, 50).header.stored_len();
    let second = start + stored..start + 2 * stored;
    bytes[second.clone()].copy_from_slice(&others[second]);
    let disk = disk.copy();
    disk.put(&segments_of(&disk)[0], &bytes);
    let (log, recovered) = reopen(&disk);
    assert_eq!((recovered.damaged.len(), recovered.bytes_cut), (1, 0), "{recovered:?}");
    assert_eq!(last_of(&log), 4);
}
