//! The disk loses, fails and rots as it says, and no more.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_sim::disk::{Cut, Damage, Op, SimDisk};
use weir_storage::{DeviceId, Disk, DiskFile};

const PAGE: u64 = 4 << 10;

fn root() -> &'static Path {
    Path::new("/d")
}

fn path(name: &str) -> PathBuf {
    root().join(name)
}

fn empty() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir(root()).unwrap();
    disk
}

/// A disk with a file `a` of 16 pages, all of it durable.
fn with_file() -> (SimDisk, Arc<dyn DiskFile>) {
    let disk = empty();
    let file = disk.create(&path("a"), 16 * PAGE).unwrap();
    disk.sync_dir(root()).unwrap();
    (disk, file)
}

fn byte_at(disk: &SimDisk, position: u64) -> u8 {
    disk.bytes_of(&path("a"))[position as usize]
}

/// What is there after a cut, on a disk of its own.
fn after(disk: &SimDisk, cut: Cut) -> SimDisk {
    let disk = disk.fork();
    disk.cut_power(cut);
    disk
}

fn names(disk: &SimDisk) -> Vec<String> {
    disk.list(root()).unwrap()
}

#[test]
fn a_flush_keeps_the_sectors_of_its_range_and_nothing_more() {
    let (disk, file) = with_file();
    file.write_at(0, &[1; 4 * PAGE as usize]).unwrap();
    file.flush(PAGE + 600..PAGE + 700).unwrap();
    let disk = after(&disk, Cut::LosesAll);
    let bytes = disk.bytes_of(&path("a"));
    let kept: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == 1).collect();
    assert_eq!((kept[0], kept.len()), (PAGE as usize + 512, 512));
    assert_eq!(disk.loose(), 0);
}

#[test]
fn a_crash_brings_back_any_version_since_the_last_flush_and_none_before() {
    let (disk, file) = with_file();
    file.write_at(0, &[1]).unwrap();
    file.flush(0..1).unwrap();
    for version in 2..=9 {
        file.write_at(0, &[version]).unwrap();
    }
    let found: BTreeSet<u8> =
        (0..300).map(|seed| byte_at(&after(&disk, Cut::KeepsSome(seed)), 0)).collect();
    assert_eq!(
        found,
        BTreeSet::from([1, 5, 6, 7, 8, 9]),
        "the durable one, four past ones, the newest"
    );
}

#[test]
fn a_page_tears_at_sectors() {
    let (disk, file) = with_file();
    file.write_at(0, &[7; PAGE as usize]).unwrap();
    let mut torn = BTreeSet::new();
    for seed in 0..400 {
        let bytes = after(&disk, Cut::KeepsSome(seed)).bytes_of(&path("a"));
        let sectors = bytes[..PAGE as usize].chunks(512);
        torn.insert(
            sectors
                .map(|sector| {
                    assert!(sector.iter().all(|byte| *byte == sector[0]));
                    sector[0] == 7
                })
                .collect::<Vec<_>>(),
        );
    }
    assert!(torn.len() > 50, "in many ways: {}", torn.len());
}

#[test]
fn what_was_flushed_in_a_dirty_page_is_in_every_version_of_it() {
    let (disk, file) = with_file();
    file.write_at(0, &[1; 512]).unwrap();
    file.write_at(512, &[2; 512]).unwrap();
    file.write_at(1024, &[3; 512]).unwrap();
    file.flush(0..512).unwrap();
    for seed in 0..100 {
        assert_eq!(byte_at(&after(&disk, Cut::KeepsSome(seed)), 0), 1, "seed {seed}");
    }
}

#[test]
fn every_mode_keeps_what_it_says() {
    let (disk, file) = with_file();
    // Two runs of pages, written in another order than they lie in, and a name in between.
    file.write_at(6 * PAGE, &[1]).unwrap();
    file.write_at(PAGE, &[1]).unwrap();
    disk.create(&path("b"), 1).unwrap();
    file.write_at(5 * PAGE, &[1]).unwrap();
    let kept = |cut: Cut| {
        let disk = after(&disk, cut);
        let bytes = disk.bytes_of(&path("a"));
        let pages = (0..16).filter(|page| bytes[page * PAGE as usize] == 1).collect::<Vec<_>>();
        (pages, names(&disk).len() == 2)
    };
    assert_eq!(disk.loose(), 4);
    assert_eq!(kept(Cut::LosesAll), (vec![], false));
    assert_eq!(kept(Cut::KeepsAll), (vec![1, 5, 6], true));
    assert_eq!(kept(Cut::KeepsNewest), (vec![5], false));
    assert_eq!(kept(Cut::KeepsOldest), (vec![6], false));
    assert_eq!(kept(Cut::KeepsHeads), (vec![1, 5], true));
    assert_eq!(kept(Cut::KeepsFirst(2)), (vec![1, 6], false));
    assert_eq!(kept(Cut::KeepsFirst(3)), (vec![1, 6], true));
    assert_eq!(kept(Cut::Keeps(0b0101)), (vec![1, 6], false));
    assert_eq!(kept(Cut::Keeps(0b1010)), (vec![5], true));
    let random = |seed| kept(Cut::KeepsSome(seed));
    assert!((0..50).all(|seed| random(seed) == random(seed)), "a seed is a choice");
}

#[test]
fn every_subset_of_sixteen_pages_can_be_had() {
    let (disk, file) = with_file();
    file.write_at(0, &[1; 16 * PAGE as usize]).unwrap();
    for bits in (0..1 << 16).step_by(37) {
        let bytes = after(&disk, Cut::Keeps(bits)).bytes_of(&path("a"));
        for page in 0..16 {
            assert_eq!(u64::from(bytes[page * PAGE as usize]), bits >> page & 1);
        }
    }
}

#[test]
fn a_name_is_durable_when_its_folder_was_synced() {
    let (disk, _) = with_file();
    disk.create(&path("b"), 1).unwrap();
    disk.remove(&path("a")).unwrap();
    assert_eq!(names(&disk), ["b"]);
    assert_eq!(names(&after(&disk, Cut::LosesAll)), ["a"]);
    disk.sync_dir(root()).unwrap();
    assert_eq!(names(&after(&disk, Cut::LosesAll)), ["b"]);
}

#[test]
fn any_of_the_pending_changes_of_a_folder_may_be_kept() {
    let (disk, _) = with_file();
    disk.create(&path("b"), 1).unwrap();
    disk.rename(&path("a"), &path("c")).unwrap();
    let found: BTreeSet<_> =
        (0..50).map(|seed| names(&after(&disk, Cut::KeepsSome(seed)))).collect();
    let all = [vec!["a"], vec!["a", "b"], vec!["b", "c"], vec!["c"]];
    assert_eq!(found, all.map(|names| names.into_iter().map(str::to_owned).collect()).into());
}

#[test]
fn a_rename_between_two_folders_may_survive_in_one_of_them() {
    let (disk, file) = with_file();
    file.write_at(0, b"x").unwrap();
    file.flush(0..1).unwrap();
    disk.create_dir(&path("in")).unwrap();
    disk.sync_dir(root()).unwrap();
    disk.rename(&path("a"), &path("in/a")).unwrap();
    let found: BTreeSet<_> =
        (0..50).map(|seed| after(&disk, Cut::KeepsSome(seed)).paths("a")).collect();
    let (old, new) = (path("a"), path("in/a"));
    assert_eq!(
        found,
        [vec![], vec![old.clone()], vec![new.clone()], vec![old.clone(), new.clone()]].into()
    );
    disk.sync_dir(&path("in")).unwrap();
    let both = after(&disk, Cut::LosesAll);
    assert_eq!(both.paths("a"), [old.clone(), new.clone()]);
    assert_eq!(both.bytes_of(&new), both.bytes_of(&old));
    disk.sync_dir(root()).unwrap();
    assert_eq!(after(&disk, Cut::LosesAll).paths("a"), [new]);
}

#[test]
fn with_a_folder_goes_what_is_in_it() {
    let disk = empty();
    disk.create_dir(&path("in")).unwrap();
    disk.create(&path("in/x"), 1).unwrap();
    disk.sync_dir(&path("in")).unwrap();
    assert!(after(&disk, Cut::LosesAll).paths("x").is_empty(), "the folder was not synced");
    disk.sync_dir(root()).unwrap();
    assert_eq!(after(&disk, Cut::LosesAll).paths("x").len(), 1);
    disk.remove_dir(&path("in")).unwrap();
    assert_eq!(after(&disk, Cut::LosesAll).paths("x").len(), 1);
    disk.sync_dir(root()).unwrap();
    disk.create_dir(&path("in")).unwrap();
    assert_eq!(disk.list(&path("in")).unwrap().len(), 0);
    assert!(after(&disk, Cut::KeepsAll).paths("x").is_empty());
    let missing = |kind: ErrorKind| assert_eq!(kind, ErrorKind::NotFound);
    missing(disk.create(&path("out/x"), 1).unwrap_err().kind());
    missing(disk.list(&path("out")).unwrap_err().kind());
    missing(disk.sync_dir(&path("out")).unwrap_err().kind());
    missing(disk.remove_dir(&path("out")).unwrap_err().kind());
    missing(disk.rename(&path("x"), &path("y")).unwrap_err().kind());
}

#[test]
fn the_cache_of_the_device_is_durable_with_the_next_flush_of_any_file() {
    let (disk, file) = with_file();
    let other = disk.create(&path("b"), PAGE).unwrap();
    file.write_at(0, &[1]).unwrap();
    file.hand_over(0..1).unwrap();
    other.flush(0..1).unwrap();
    assert_eq!(byte_at(&after(&disk, Cut::LosesAll), 0), 0, "it may still be on its way");
    assert_eq!(file.handed_over(0..1).unwrap(), Some(DeviceId(0)));
    assert_eq!(byte_at(&after(&disk, Cut::LosesAll), 0), 0, "the cache of the device is lost");
    assert_eq!(byte_at(&after(&disk, Cut::KeepsAll), 0), 1);
    // What is written meanwhile is not with the device.
    file.write_at(0, &[2, 2]).unwrap();
    disk.fail(Op::Flush, ErrorKind::Other, 0, 1);
    other.flush(0..1).unwrap_err();
    assert_eq!(byte_at(&after(&disk, Cut::LosesAll), 0), 0, "that flush failed");
    other.flush(0..1).unwrap();
    assert_eq!(byte_at(&after(&disk, Cut::LosesAll), 0), 1);
    assert_eq!(byte_at(&after(&disk, Cut::LosesAll), 1), 0);
    assert_eq!(byte_at(&after(&disk, Cut::KeepsAll), 1), 2);
    file.flush(0..2).unwrap();
    assert_eq!(byte_at(&after(&disk, Cut::LosesAll), 0), 2);
}

#[test]
fn a_failed_flush_is_told_once_and_loses_what_it_was_to_keep() {
    for op in [Op::Flush, Op::HandOver, Op::HandedOver] {
        let (disk, file) = with_file();
        file.write_at(0, &[1]).unwrap();
        disk.fail(op, ErrorKind::Other, 0, 1);
        match op {
            Op::Flush => file.flush(0..1).unwrap_err(),
            Op::HandOver => file.hand_over(0..1).unwrap_err(),
            _ => file.handed_over(0..1).unwrap_err(),
        };
        file.flush(0..1).unwrap();
        assert_eq!(byte_at(&disk, 0), 1, "the cache shows it");
        let mut read = [0];
        file.read_device(0, &mut read).unwrap();
        assert_eq!(read, [0], "the device does not hold it");
        assert_eq!(byte_at(&after(&disk, Cut::KeepsAll), 0), 0, "{op:?}");
        file.write_at(0, &[1]).unwrap();
        file.flush(0..1).unwrap();
        assert_eq!(byte_at(&after(&disk, Cut::LosesAll), 0), 1, "written again it counts");
    }
}

#[test]
fn every_operation_can_be_made_to_fail() {
    let call = |disk: &SimDisk, file: &Arc<dyn DiskFile>, op| match op {
        Op::Create => disk.create(&path("c"), 1).map(drop),
        Op::Open => disk.open(&path("a")).map(drop),
        Op::List => disk.list(root()).map(drop),
        Op::Rename => disk.rename(&path("a"), &path("b")),
        Op::Remove => disk.remove(&path("a")),
        Op::SyncDir => disk.sync_dir(root()),
        Op::Write => file.write_at(0, &[1]),
        Op::Flush => file.flush(0..1),
        Op::HandOver => file.hand_over(0..1),
        Op::HandedOver => file.handed_over(0..1).map(drop),
        Op::Read => file.read_at(0, &mut [0]),
        Op::Prepare => file.prepare(0..1),
        Op::Share => file.bytes(0..1).map(drop),
    };
    use Op::*;
    let ops = [
        Create, Open, List, Rename, Remove, SyncDir, Write, Flush, HandOver, HandedOver, Read,
        Prepare, Share,
    ];
    for op in ops {
        let (disk, file) = with_file();
        disk.fail(op, ErrorKind::StorageFull, 0, 2);
        let before = disk.fork();
        for _ in 0..2 {
            assert_eq!(
                call(&disk, &file, op).unwrap_err().kind(),
                ErrorKind::StorageFull,
                "{op:?}"
            );
        }
        assert_eq!(before.bytes_of(&path("a")), disk.bytes_of(&path("a")));
        call(&disk, &file, op).unwrap();
    }
    let (disk, file) = with_file();
    disk.fail(Op::Write, ErrorKind::Other, 1, 1);
    file.write_at(0, &[1]).unwrap();
    file.write_at(1, &[1]).unwrap_err();
    file.write_at(2, &[1]).unwrap();
    assert_eq!((byte_at(&disk, 0), byte_at(&disk, 1), byte_at(&disk, 2)), (1, 0, 1));
}

#[test]
fn a_write_can_be_short_or_land_elsewhere() {
    let (disk, file) = with_file();
    disk.tear_write(2, ErrorKind::StorageFull, 0);
    assert_eq!(file.write_at(0, &[1; 4]).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(disk.bytes_of(&path("a"))[..4], [1, 1, 0, 0]);
    disk.misdirect_write(3, 0);
    file.write_at(100, &[9]).unwrap();
    assert_eq!((byte_at(&disk, 100), byte_at(&disk, 3 * PAGE + 100)), (0, 9));
}

#[test]
fn a_full_disk_takes_no_file() {
    let (disk, _) = with_file();
    disk.leave_room(10);
    assert_eq!(disk.free_bytes(root()).unwrap(), 10);
    assert_eq!(disk.create(&path("b"), 11).unwrap_err().kind(), ErrorKind::StorageFull);
    disk.create(&path("b"), 10).unwrap();
    assert_eq!(disk.free_bytes(root()).unwrap(), 0);
}

#[test]
fn a_machine_stops_behind_so_many_changes_and_starts_with_nothing_open() {
    let (disk, file) = with_file();
    let guard = disk.lock(&path("LOCK")).unwrap();
    assert!(guard.is_some() && disk.lock(&path("LOCK")).unwrap().is_none());
    let changes = disk.changes();
    disk.stop_behind(2);
    file.write_at(0, &[1]).unwrap();
    file.read_at(0, &mut [0]).unwrap();
    assert!(!disk.is_stopped());
    file.flush(0..1).unwrap();
    assert!(disk.is_stopped());
    assert!(file.write_at(0, &[2]).is_err() && disk.sync_dir(root()).is_err());
    assert_eq!(disk.changes() - changes, 4, "also those that it was too late for");
    disk.cut_power(Cut::LosesAll);
    assert!(!disk.is_stopped());
    assert_eq!(byte_at(&disk, 0), 1);
    assert!(file.write_at(0, &[3]).is_err(), "opened before the cut");
    let later = disk.lock(&path("LOCK")).unwrap();
    drop((guard, file));
    assert!(later.is_some() && disk.lock(&path("LOCK")).unwrap().is_none());
}

#[test]
fn the_disk_before_every_change_can_be_had() {
    let (disk, file) = with_file();
    disk.record();
    for number in 1..=3 {
        file.write_at(0, &[number]).unwrap();
    }
    let found: Vec<u8> = disk.recorded().iter().map(|disk| byte_at(disk, 0)).collect();
    assert_eq!(found, [0, 1, 2]);
    assert!(disk.recorded().is_empty());
}

#[test]
fn bytes_that_are_held_are_not_stored_to() {
    let (_disk, file) = with_file();
    file.write_at(0, b"abcd").unwrap();
    let held = file.bytes(1..3).unwrap();
    let part = held.slice(1..);
    drop(held);
    assert!(file.is_held());
    file.write_at(3, b"x").unwrap();
    file.write_at(0, b"abc").unwrap();
    let stored = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| file.write_at(2, b"x")));
    let text = stored.unwrap_err().downcast::<String>().unwrap();
    assert!(text.contains("somebody holds 1..3"), "{text}");
    drop(part);
    assert!(!file.is_held());
    file.write_at(2, b"x").unwrap();
}

#[test]
fn damage_is_seen_by_all_and_rot_past_the_cache_only() {
    let read = |file: &Arc<dyn DiskFile>, position| {
        let (mut cached, mut stored) = ([0], [0]);
        file.read_at(position, &mut cached).unwrap();
        file.read_device(position, &mut stored).unwrap();
        (cached[0], stored[0])
    };
    let fresh = || {
        let (disk, file) = with_file();
        file.write_at(PAGE, &[4; PAGE as usize]).unwrap();
        file.flush(PAGE..2 * PAGE).unwrap();
        file.write_at(PAGE, &[5; PAGE as usize]).unwrap();
        file.write_at(3 * PAGE, &[6; PAGE as usize]).unwrap();
        file.flush(0..4 * PAGE).unwrap();
        (disk, file)
    };
    let at = PAGE + 8;
    for (damage, found) in [
        (Damage::Bit { position: at, bit: 7 }, 0x85),
        (Damage::Zeros(PAGE..PAGE + 512), 0),
        (Damage::StaleVersion(1), 4),
        (Damage::StaleLife(1), 0),
        (Damage::Misdirected { at: 1, from: 3 }, 6),
    ] {
        let (disk, file) = fresh();
        disk.rot(&path("a"), &damage);
        assert_eq!(read(&file, at), (5, found), "{damage:?}");
        assert_eq!(byte_at(&after(&disk, Cut::KeepsAll), at), found);
        let (disk, file) = fresh();
        disk.damage(&path("a"), &damage);
        assert_eq!(read(&file, at), (found, found), "{damage:?}");
    }
    let (disk, file) = fresh();
    disk.damage(&path("a"), &Damage::Noise(PAGE..2 * PAGE, 3));
    let mut noise = [0; PAGE as usize];
    file.read_at(PAGE, &mut noise).unwrap();
    assert!(noise.iter().filter(|byte| **byte == 5).count() < 100);
}

#[test]
fn files_can_be_cut_grown_lost_and_swapped() {
    let (disk, file) = with_file();
    file.write_at(0, &[1; 2 * PAGE as usize]).unwrap();
    disk.damage(&path("a"), &Damage::Truncated(PAGE + 3));
    assert_eq!(disk.bytes_of(&path("a")).len() as u64, PAGE + 3);
    assert!(file.read_at(PAGE, &mut [0; 4]).is_err(), "also under who has it open");
    disk.damage(&path("a"), &Damage::Grown(PAGE, 5));
    let grown = disk.bytes_of(&path("a"));
    assert_eq!(grown.len() as u64, 2 * PAGE + 3);
    assert!(grown[..PAGE as usize + 3].iter().all(|byte| *byte == 1));
    disk.put(&path("b"), b"other");
    disk.damage(&path("a"), &Damage::Swapped(path("b")));
    assert_eq!(disk.bytes_of(&path("a")), b"other");
    assert_eq!(disk.bytes_of(&path("b")), grown);
    disk.damage(&path("a"), &Damage::Removed);
    assert_eq!(names(&disk), ["b"]);
    assert_eq!(names(&after(&disk, Cut::KeepsAll)), ["b"]);
}

#[test]
fn an_earlier_life_of_a_file_is_what_it_held_when_it_got_its_name() {
    let (disk, file) = with_file();
    file.write_at(0, b"old").unwrap();
    file.flush(0..3).unwrap();
    disk.rename(&path("a"), &path("b")).unwrap();
    for text in [b"new", b"NEW"] {
        file.write_at(0, text).unwrap();
        file.flush(0..3).unwrap();
    }
    disk.damage(&path("b"), &Damage::StaleLife(0));
    assert_eq!(disk.bytes_of(&path("b"))[..3], *b"old");
}

#[test]
fn what_a_device_cannot_read_is_refused_and_stays_so() {
    let eio = |read: std::io::Result<()>| read.unwrap_err().raw_os_error() == Some(5);
    let (disk, file) = with_file();
    file.write_at(0, &[7; 100]).unwrap();
    file.flush(0..100).unwrap();
    // The cache has the first page, and nothing of the third.
    disk.rot(&path("a"), &Damage::Unreadable(0..1));
    disk.damage(&path("a"), &Damage::Unreadable(2 * PAGE..2 * PAGE + 1));
    let mut page = [0; PAGE as usize];
    file.read_at(0, &mut page).unwrap();
    assert_eq!(page[0], 7);
    file.prepare(0..PAGE).unwrap();
    assert!(eio(file.read_device(0, &mut page)));
    file.read_device(PAGE, &mut page).unwrap();
    assert!(eio(file.read_at(2 * PAGE, &mut page)) && eio(file.prepare(0..16 * PAGE)));
    disk.cut_power(Cut::KeepsAll);
    let file = disk.open(&path("a")).unwrap();
    assert!(eio(file.read_at(0, &mut page)), "the cache is gone");
    file.read_at(PAGE, &mut page).unwrap();
}

/// A page that is stored whole is not read in before, and the device puts it elsewhere.
#[test]
fn a_page_that_cannot_be_read_is_there_again_once_it_is_stored_whole() {
    let eio = |read: std::io::Result<()>| read.unwrap_err().raw_os_error() == Some(5);
    let (disk, file) = with_file();
    disk.damage(&path("a"), &Damage::Unreadable(PAGE..2 * PAGE));
    let mut page = [0; PAGE as usize];
    assert!(eio(file.write_at(PAGE - 2, &[1; 100])), "a part of it needs the rest");
    file.read_at(0, &mut page).unwrap();
    assert_eq!(page[PAGE as usize - 2..], [1; 2], "what is stored before stays");
    file.write_at(PAGE, &[2; PAGE as usize]).unwrap();
    file.prepare(PAGE..2 * PAGE).unwrap();
    assert_eq!(file.bytes(PAGE..PAGE + 3).unwrap()[..], [2; 3]);
    for (cut, kept) in [(Cut::LosesAll, false), (Cut::KeepsAll, true)] {
        let crashed = disk.fork();
        crashed.cut_power(cut);
        let read = crashed.open(&path("a")).unwrap().read_at(PAGE, &mut page);
        assert_eq!(read.is_ok(), kept, "{cut:?}");
    }
    file.flush(PAGE..2 * PAGE).unwrap();
    file.read_device(PAGE, &mut page).unwrap();
    disk.cut_power(Cut::LosesAll);
    disk.open(&path("a")).unwrap().read_at(PAGE, &mut page).unwrap();
    assert_eq!(page, [2; PAGE as usize]);
}
