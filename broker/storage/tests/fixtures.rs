//! Logs that earlier builds wrote: every later build reads them, byte for byte.
//!
//! Never: written again. `WEIR_FIXTURE=make` writes one that is not there, which a new version of
//! the format needs once.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::{ROOT, contents, data, device, device_in, flush, last_of, noop, open};
use std::path::{Path, PathBuf};
use weir_protocol::batch::BatchType;
use weir_protocol::types::{Index, Offset};
use weir_sim::disk::{Cut, SimDisk};
use weir_storage::{Disk, Log, OsDisk, Read, Recovered, inspect};

const SEGMENT_BYTES: usize = 1 << 20;

fn fixture(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name).join("p");
    if std::env::var("WEIR_FIXTURE").as_deref() == Ok("make") && !fixture.exists() {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path());
        std::fs::create_dir_all(&fixture).unwrap();
        for item in std::fs::read_dir(folder.path().join("p")).unwrap() {
            let item = item.unwrap();
            let mut bytes = std::fs::read(item.path()).unwrap();
            if is_segment(&item.path()) {
                // Zeros behind the last byte are left out.
                let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
                bytes.truncate(end);
            }
            std::fs::write(fixture.join(item.file_name()), bytes).unwrap();
        }
    }
    fixture
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "seg")
}

/// Opens a copy of a fixture.
fn open_copy(fixture: &Path, check: impl FnOnce(&Path, Log, Recovered)) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("p")).unwrap();
    for item in std::fs::read_dir(fixture).unwrap() {
        let item = item.unwrap();
        let mut bytes = std::fs::read(item.path()).unwrap();
        if is_segment(&item.path()) {
            bytes.resize(SEGMENT_BYTES, 0);
        }
        std::fs::write(folder.path().join("p").join(item.file_name()), bytes).unwrap();
    }
    let (log, recovered) = open(&device(folder.path())).unwrap();
    check(folder.path(), log, recovered);
}

#[test]
fn the_first_log_of_version_1() {
    let fixture = fixture("v1", |_| panic!("nobody writes its hard state any more"));
    open_copy(&fixture, |_, log, recovered| {
        assert_eq!((recovered.bytes_cut, recovered.damaged.len()), (0, 0));
        assert_eq!(log.meta(), b"hard state");
        let found = contents(&log);
        assert_eq!(found.len(), 4);
        assert_eq!(found[2].2, data(3, 2, 50).body[0]);
        assert_eq!(log.reader().bounds().log_end, Offset(2 + 2 + 1));
        let checkpoint = log.latest_checkpoint(Index(9)).unwrap();
        assert_eq!(checkpoint, Some((Index(2), b"checkpoint".to_vec())));
    });
}

/// Three segments: one with an index and a damaged batch, one with an earlier life behind its
/// batches and a watermark.
#[test]
fn a_log_of_version_1_with_all_that_it_may_hold() {
    let fixture = fixture("v1-sealed", make_sealed);
    open_copy(&fixture, |root, log, recovered| {
        assert_eq!((recovered.bytes_cut, last_of(&log)), (0, 8));
        let [damaged] = &recovered.damaged[..] else { panic!("{recovered:?}") };
        assert_eq!((damaged.first_index, damaged.last_index), (Index(5), Index(5)));
        assert_eq!(damaged.end_offset.0 - damaged.first_offset.0, 2);
        assert!(is_refused(&log, Index(5)) && !is_refused(&log, Index(6)));
        let last = log.reader().headers(Index(8), 1).unwrap();
        assert_eq!((last[0].batch_type, last[0].record_count), (BatchType::Data, 3));
        assert_eq!(log.meta(), b"hard state");
        let checkpoint = log.latest_checkpoint(Index(9)).unwrap();
        assert_eq!(checkpoint, Some((Index(6), b"checkpoint".to_vec())));
        drop(log);
        let disk = OsDisk::new(weir_storage::Backend::Pwrite);
        let report = inspect::verify(&disk, &root.join("p"), 5).unwrap();
        assert_eq!(report.segments.iter().filter(|segment| segment.recycled).count(), 1);
        assert!(report.lost_tail.is_none());
    });
}

fn is_refused(log: &Log, index: Index) -> bool {
    match log.reader().read_from_index(index, 1) {
        Ok(Read::Cold(read)) => read.run().is_err(),
        read => read.is_err(),
    }
}

fn make_sealed(root: &Path) {
    let device = device(root);
    let (mut log, _) = open(&device).unwrap();
    for index in 1..=3 {
        log.append(vec![data(index, 2, 3_000)]).unwrap();
    }
    // A cut begins a segment without a full one before it.
    log.truncate_after(Index(2)).unwrap();
    log.append(vec![noop(3)]).unwrap();
    for index in 4..=7 {
        log.append(vec![data(index, 2, 40)]).unwrap();
    }
    flush(&mut log).unwrap();
    log.trim(Index(2)).unwrap();
    log.truncate_after(Index(6)).unwrap();
    log.append(vec![data(7, 1, 9)]).unwrap();
    log.append(vec![data(8, 3, 90)]).unwrap();
    flush(&mut log).unwrap();
    log.leave_watermark().unwrap();
    log.store_meta(b"hard state").unwrap();
    log.write_checkpoint(Index(6), b"checkpoint").unwrap();
    drop(log);
    drop(open(&device).unwrap());
    damage_index_5(root);
    let (log, _) = open(&device).unwrap();
    assert!(is_refused(&log, Index(5)), "and noted");
}

fn damage_index_5(root: &Path) {
    let disk = OsDisk::new(weir_storage::Backend::Pwrite);
    let report = inspect::verify(&disk, &root.join("p"), 5).unwrap();
    let segment = &report.segments[0];
    inspect::dump(&disk, segment, |dumped| {
        if let inspect::Dumped::Batch { position, header, .. } = &dumped
            && header.index == Index(5)
        {
            let mut bytes = std::fs::read(&segment.path).unwrap();
            bytes[*position as usize + 150] ^= 1;
            std::fs::write(&segment.path, bytes).unwrap();
            return false;
        }
        true
    })
    .unwrap();
}

/// The hard state of version 1 began with one of its two generations. Wherever the power goes while
/// it becomes one of this version, it is what it was.
#[test]
fn a_hard_state_of_version_1_survives_every_stop_of_its_first_start() {
    let fixture = fixture("v1", |_| panic!("nobody writes its hard state any more"));
    let disk = SimDisk::new();
    let dir = Path::new(ROOT).join("p");
    disk.create_dir(&dir).unwrap();
    for item in std::fs::read_dir(fixture).unwrap() {
        let item = item.unwrap();
        let mut bytes = std::fs::read(item.path()).unwrap();
        if is_segment(&item.path()) {
            bytes.resize(SEGMENT_BYTES, 0);
        }
        disk.put(&dir.join(item.file_name()), &bytes);
    }
    let meta = dir.join("meta");
    let whole = disk.bytes_of(&meta);
    let sequence = |copy: usize| whole[copy * 4_096 + 16];
    let older = if sequence(0) < sequence(2) { 0..8_192 } else { 8_192..16_384 };
    for began in [false, true] {
        let mut bytes = whole.clone();
        if began {
            bytes[older.clone()].fill(0);
        }
        let disk = disk.copy();
        disk.put(&meta, &bytes);
        let disk = disk.copy();
        let starting = disk.fork();
        starting.record();
        assert_eq!(open(&device_in(&starting)).unwrap().0.meta(), b"hard state");
        let stops = starting.recorded();
        assert!(stops.len() > 3);
        for stop in stops {
            for cut in [Cut::LosesAll, Cut::KeepsAll, Cut::KeepsHeads, Cut::KeepsSome(7)] {
                let stop = stop.fork();
                stop.cut_power(cut);
                let (log, _) = open(&device_in(&stop)).unwrap();
                assert_eq!(log.meta(), b"hard state", "{cut:?}");
            }
        }
    }
}
