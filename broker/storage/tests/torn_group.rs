//! One group of 64 KiB behind what was flushed, and every subset of its 16 pages that a power cut
//! may leave: what is found is what was flushed, and of the group the whole indexes that are there.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{ROOT, contents, data, device_in, flush, last_of, log_of, open, segments_of};
use std::path::Path;
use weir_protocol::batch::ATTR_LAST_OF_INDEX;
use weir_protocol::types::Index;
use weir_sim::disk::{Cut, SimDisk};
use weir_storage::limits::SEGMENT_HEADER_BYTES;
use weir_storage::{Disk, Log, NewBatch};

const PAGE_BYTES: usize = 4 << 10;
const PAGES: usize = 16;
/// The last index that was flushed.
const FLUSHED: u64 = 3;

/// Five batches of three indexes, and where each index ends in the group.
fn group(bytes: usize) -> (Vec<NewBatch>, Vec<usize>) {
    let of = |index, bytes| data(index, 1, bytes);
    let mut batches = vec![of(4, 9_000), of(5, 20_000), of(5, 11), of(5, 9_000), of(6, 10)];
    batches[1].header.attrs &= !ATTR_LAST_OF_INDEX;
    batches[2].header.attrs &= !ATTR_LAST_OF_INDEX;
    let stored = |batches: &[NewBatch]| -> usize {
        batches.iter().map(|batch| batch.header.stored_len()).sum()
    };
    batches[4] = of(6, 10 + bytes - stored(&batches));
    assert_eq!(stored(&batches), bytes);
    let ends = [1, 4, 5].map(|count| stored(&batches[..count]));
    (batches, ends.to_vec())
}

/// Appends a group that fills 16 pages; returns where it begins, and where each of its indexes ends.
fn append_group(disk: &SimDisk) -> (usize, Vec<usize>) {
    let mut log = log_of(disk, FLUSHED);
    let flushed = log.reader().headers(Index(1), usize::MAX).unwrap();
    let bytes: usize = flushed.iter().map(|header| header.stored_len()).sum();
    let start = SEGMENT_HEADER_BYTES as usize + bytes;
    let (batches, ends) = group(PAGES * PAGE_BYTES - start % PAGE_BYTES);
    log.append(batches).unwrap();
    (start, ends.into_iter().map(|end| start + end).collect())
}

#[test]
fn every_subset_of_the_pages_of_a_group_leaves_whole_indexes() {
    let disk = SimDisk::new();
    let (start, ends) = append_group(&disk);
    let path = segments_of(&disk).remove(0);
    let whole = disk.bytes_of(&path);
    // Where the spare came from nobody needs to know, so nobody syncs it.
    disk.sync_dir(&Path::new(ROOT).join("pool")).unwrap();
    assert_eq!(disk.loose(), PAGES);
    let mut found = [0; 4];
    for bits in 0..1u64 << PAGES {
        let crashed = disk.fork();
        crashed.cut_power(Cut::Keeps(bits));
        let left = crashed.bytes_of(&path);
        let is_there = |end: &&usize| left[start..**end] == whole[start..**end];
        let expected = ends.iter().take_while(is_there).count();
        let (mut log, _) = open(&device_in(&crashed)).unwrap();
        assert_eq!(last_of(&log), FLUSHED + expected as u64, "pages {bits:#018b}");
        found[expected] += 1;
        if bits % 64 == 63 {
            goes_on(&crashed, &mut log);
        }
    }
    assert!(found.iter().all(|count| *count > 0), "{found:?}");
    assert_eq!(found.iter().sum::<u32>(), 1 << PAGES);
}

fn goes_on(disk: &SimDisk, log: &mut Log) {
    let next = last_of(log) + 1;
    log.append(vec![data(next, 3, 60)]).unwrap();
    flush(log).unwrap();
    let before = contents(log);
    let crashed = disk.fork();
    crashed.cut_power(Cut::LosesAll);
    assert_eq!(contents(&open(&device_in(&crashed)).unwrap().0), before);
}
