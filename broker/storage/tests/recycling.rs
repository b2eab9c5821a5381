//! Files of trimmed segments are used again, and nobody sees it: not who still reads the old
//! segment, nor a log after a power cut in the middle. Nothing of the earlier life comes back,
//! neither its bytes nor its name.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use bytes::Bytes;
use common::{contents, data, device_in, device_on, flush};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::types::{Index, Offset};
use weir_sim::disk::{Cut, Damage, SimDisk};
use weir_storage::{
    AppendError, Backend, Device, Disk, Log, LogOptions, OsDisk, Read, ReadError, Recovered,
};

const CUTS: [Cut; 7] = [
    Cut::LosesAll,
    Cut::KeepsAll,
    Cut::KeepsNewest,
    Cut::KeepsOldest,
    Cut::KeepsSome(1),
    Cut::KeepsSome(2),
    Cut::KeepsSome(3),
];

/// A log that remembers what it was given.
struct Writer {
    log: Log,
    uuid: u128,
    /// Of every index: how many changes the disk had seen when it was flushed.
    flushed_at: Vec<usize>,
}

/// A log of segments of 1 MiB.
fn open(device: &Arc<Device>, uuid: u128) -> (Log, Recovered) {
    let options = LogOptions { uuid, retained_bytes: 8 << 20, ..LogOptions::default() };
    Log::open(device.clone(), &folder(device.root(), uuid), options).unwrap()
}

fn folder(root: &Path, uuid: u128) -> PathBuf {
    root.join(format!("log-{uuid}"))
}

/// The body of an index: no two logs have the same.
fn body(uuid: u128, index: u64) -> Bytes {
    data(index + 100 * uuid as u64, 1, 300_000).body.concat().into()
}

impl Writer {
    fn new(device: &Arc<Device>, uuid: u128) -> Self {
        Self { log: open(device, uuid).0, uuid, flushed_at: Vec::new() }
    }

    /// Appends and flushes; three of these fill a segment.
    fn append(&mut self, changes: impl Fn() -> usize) {
        let index = self.flushed_at.len() as u64 + 1;
        let mut batch = data(index + 100 * self.uuid as u64, 1, 300_000);
        batch.header.index = Index(index);
        self.log.append(vec![batch]).unwrap();
        flush(&mut self.log).unwrap();
        self.flushed_at.push(changes());
    }

    fn hold(&self, index: u64) -> (Bytes, Vec<u8>) {
        let slices = match self.log.reader().read_from_index(Index(index), 1).unwrap() {
            Read::Hot(slices) => slices,
            Read::Cold(read) => read.run().unwrap(),
        };
        (slices[0].bytes.clone(), slices[0].bytes.to_vec())
    }

    /// Another life of the log in this process, as after a full disk.
    fn reopen(&mut self, device: &Arc<Device>) {
        // What the first life has under way ends while the second is there.
        self.log = open(device, self.uuid).0;
    }

    fn trim_one(&mut self) {
        let oldest = self.log.reader().sealed_segments()[0];
        self.log.trim(oldest.last_index).unwrap();
    }

    /// What a log after a crash may hold: all that was flushed by then, of this log alone.
    fn check(&self, crashed: &SimDisk, changes: usize, first_max: u64) {
        let own = folder(Path::new(common::ROOT), self.uuid);
        for path in crashed.paths(".seg").into_iter().filter(|path| path.starts_with(&own)) {
            let uuid = crashed.bytes_of(&path)[24..40].try_into().unwrap();
            assert_eq!(u128::from_le_bytes(uuid), self.uuid, "{} is another's", path.display());
        }
        let log = open(&device_in(crashed), self.uuid).0;
        let count = segments(crashed, &own).0;
        // A log that was cut off before its first segment has none.
        assert!(count <= log.reader().sealed_segments().len() + 1, "a name has come back");
        let found = contents(&log);
        let first = log.reader().bounds().first_index.0;
        assert!(first <= first_max && log.reader().damaged_ranges().is_empty());
        for (number, (index, offset, bytes)) in found.iter().enumerate() {
            assert_eq!((*index, *offset), (first + number as u64, first - 1 + number as u64));
            assert!(*bytes == body(self.uuid, *index), "index {index} of log {}", self.uuid);
        }
        let flushed = self.flushed_at.iter().filter(|at| **at <= changes).count() as u64;
        let last = log.reader().bounds().last_index.0;
        assert!(last >= flushed, "{flushed} were flushed, {last} are there");
    }
}

/// Segments in a folder, and how many of them had an earlier life.
fn segments(disk: &dyn Disk, folder: &Path) -> (usize, usize) {
    let names = disk.list(folder).unwrap();
    let paths = names.iter().filter(|name| name.ends_with(".seg")).map(|name| folder.join(name));
    let recycled = paths.clone().filter(|path| {
        let mut flags = [0];
        disk.open(path).unwrap().read_at(16, &mut flags).unwrap();
        flags == [1]
    });
    (paths.clone().count(), recycled.count())
}

/// With `lives`, the log is opened anew between the hold and the trim.
fn bytes_that_are_held_outlive_their_segment(disk: Arc<dyn Disk>, root: &Path, lives: usize) {
    let device = device_on(disk.clone(), root);
    let (own, pool) = (folder(root, 1), root.join("pool"));
    let mut writer = Writer::new(&device, 1);
    (0..10).for_each(|_| writer.append(|| 0));
    let held = writer.hold(1);
    (0..lives).for_each(|_| writer.reopen(&device));
    let waiting = segments(&*disk, &pool).0;
    writer.trim_one();
    assert_eq!(segments(&*disk, &pool).0, waiting, "a file that is read is removed");
    for _ in 0..12 {
        writer.append(|| 0);
        assert!(held.0 == held.1, "the bytes of a trimmed segment change under their reader");
    }
    assert_eq!(segments(&*disk, &own).1, 0);
    // A reader that has gone keeps nothing.
    drop(writer.hold(5));
    let waiting = segments(&*disk, &pool).0;
    writer.trim_one();
    assert_eq!(segments(&*disk, &pool).0, waiting + 1, "a file that nobody reads is kept");
    let before = segments(&*disk, &own);
    (0..9).for_each(|_| writer.append(|| 0));
    let after = segments(&*disk, &own);
    assert_eq!((after.0, after.1), (before.0 + 3, 1), "and used again");
    assert!(held.0 == held.1);
}

#[test]
fn bytes_of_a_map_outlive_their_segment() {
    for lives in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(OsDisk::new(Backend::Map));
        bytes_that_are_held_outlive_their_segment(disk, folder.path(), lives);
    }
}

/// This disk panics where bytes are stored to that somebody holds.
#[test]
fn no_byte_is_stored_to_that_somebody_holds() {
    for lives in 0..3 {
        let root = Path::new(common::ROOT);
        bytes_that_are_held_outlive_their_segment(Arc::new(SimDisk::new()), root, lives);
    }
}

/// A reader of an earlier life of the log holds no bytes yet, and may ask for some at any time.
#[test]
fn a_segment_that_an_earlier_life_has_open_is_not_used_again() {
    let scratch = tempfile::tempdir().unwrap();
    let disks: [(Arc<dyn Disk>, &Path); 3] = [
        (Arc::new(OsDisk::new(Backend::Map)), &scratch.path().join("map")),
        (Arc::new(OsDisk::new(Backend::Pwrite)), &scratch.path().join("pwrite")),
        (Arc::new(SimDisk::new()), Path::new(common::ROOT)),
    ];
    for (disk, root) in disks {
        let device = device_on(disk.clone(), root);
        let pool = root.join("pool");
        let mut writer = Writer::new(&device, 1);
        (0..10).for_each(|_| writer.append(|| 0));
        let reader = writer.log.reader();
        writer.reopen(&device);
        let waiting = segments(&*disk, &pool).0;
        writer.trim_one();
        assert_eq!(segments(&*disk, &pool).0, waiting, "a file that is open is removed");
        drop(reader);
        writer.trim_one();
        assert_eq!(segments(&*disk, &pool).0, waiting + 1, "a file that nobody has open is kept");
    }
}

#[test]
fn bytes_of_an_earlier_life_are_none_of_the_log() {
    let disk = SimDisk::new();
    let device = device_in(&disk);
    let mut writer = Writer::new(&device, 1);
    (0..4).for_each(|_| writer.append(|| 0));
    writer.trim_one();
    (0..3).for_each(|_| writer.append(|| 0));
    let newest = disk.paths(".seg").pop().unwrap();
    let last = disk.bytes_of(&newest).iter().rposition(|byte| *byte != 0).unwrap();
    assert!(last > 500_000, "the file was filled before, and the log has one batch in it");
    let before = contents(&writer.log);
    drop((writer, device));
    disk.cut_power(Cut::LosesAll);
    let (mut log, recovered) = open(&device_in(&disk), 1);
    assert_eq!((recovered.bytes_cut, &recovered.damaged[..]), (0, &[][..]));
    assert!(contents(&log) == before);
    log.append(vec![data(8, 1, 300_000)]).unwrap();
    flush(&mut log).unwrap();
    assert_eq!(log.reader().bounds().last_index, Index(8));
}

#[test]
fn a_power_cut_shows_no_log_what_another_wrote_into_its_old_file() {
    let disk = SimDisk::new();
    let device = device_in(&disk);
    let (mut old, mut new) = (Writer::new(&device, 1), Writer::new(&device, 2));
    let changes = || disk.changes();
    (0..11).for_each(|_| old.append(changes));
    let bounds = |writer: &Writer| writer.log.reader().bounds();
    assert_eq!(bounds(&old).log_start, Offset(0));
    disk.record();
    // The trim goes on while another log writes into the first file of it.
    let upto = old.log.reader().sealed_segments()[1].last_index;
    let mut trimmed = old.log.begin_trim(upto).unwrap();
    assert!(trimmed.remove_one().unwrap());
    (0..7).for_each(|_| new.append(changes));
    trimmed.finish().unwrap();
    (0..8).for_each(|_| old.append(changes));
    let first_max = bounds(&old).first_index.0;
    assert!(segments(&disk, &folder(device.root(), 2)).1 > 0, "the other log took the file");
    assert!(segments(&disk, &folder(device.root(), 1)).1 > 0, "and the same log did");
    let before_each = disk.recorded();
    for before in &before_each {
        for cut in CUTS {
            let crashed = before.fork();
            crashed.cut_power(cut);
            old.check(&crashed, before.changes(), first_max);
            new.check(&crashed, before.changes(), 1);
        }
    }
    assert!(before_each.len() > 60, "{} changes", before_each.len());
}

/// What a device lost once it may lose again, and a store beside a place that it cannot read fails.
#[test]
fn a_file_that_was_found_damaged_is_not_used_again() {
    let disk = SimDisk::new();
    let root = Path::new(common::ROOT);
    let pool = root.join("pool");
    let mut writer = Writer::new(&device_in(&disk), 1);
    (0..10).for_each(|_| writer.append(|| 0));
    drop(writer);
    let oldest = disk.paths(".seg").into_iter().find(|path| path.starts_with(folder(root, 1)));
    disk.damage(&oldest.unwrap(), &Damage::Unreadable(100_000..100_001));
    let (mut log, _) = open(&device_in(&disk), 1);
    let Read::Cold(read) = log.reader().read_from_index(Index(1), 1).unwrap() else {
        panic!("this process did not append it")
    };
    assert!(matches!(read.run(), Err(ReadError::Damaged(_))));
    for kept in [0, 1] {
        let waiting = segments(&disk, &pool).0;
        let oldest = log.reader().sealed_segments()[0];
        log.trim(oldest.last_index).unwrap();
        assert_eq!(segments(&disk, &pool).0, waiting + kept, "only what is whole is kept");
    }
}

/// Nobody has read the file since a page of it was lost: a page that is stored whole is there again,
/// and served at once; of one that is not, the rest is missing.
#[test]
fn a_page_that_cannot_be_read_is_stored_anew_or_fences_the_log() {
    for (page, stored) in [(100_000, true), (4_096, false)] {
        let disk = SimDisk::new();
        let device = device_in(&disk);
        let mut writer = Writer::new(&device, 1);
        (0..6).for_each(|_| writer.append(|| 0));
        writer.trim_one();
        let had_a_life = |path: &PathBuf| disk.bytes_of(path)[..7] == *b"WEIRSEG";
        let spares = disk.paths(".seg").into_iter();
        let mut spares = spares.filter(|path| path.starts_with(device.root().join("pool")));
        let spare = spares.find(had_a_life).unwrap();
        disk.damage(&spare, &Damage::Unreadable(page..page + 1));
        let mut fenced = None;
        for index in 7..=15 {
            match writer.log.append(vec![data(index, 1, 300_000)]) {
                Ok(_) => drop(writer.hold(index)),
                Err(error) => fenced = fenced.or(Some((index, error))),
            }
        }
        let last = fenced.as_ref().map_or(15, |(index, _)| index - 1);
        assert_eq!(writer.log.reader().bounds().last_index, Index(last));
        assert_eq!(segments(&disk, &folder(device.root(), 1)).1, 1, "it is used again");
        match fenced {
            None => assert!(stored),
            Some((_, error)) => assert!(!stored && matches!(error, AppendError::Fenced(_))),
        }
    }
}
