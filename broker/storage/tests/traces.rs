//! Random traces on both real ways to store, which leave the same bytes in every file.
//!
//! Short and many, where the proptest of `model.rs` is long and shrinks. `WEIR_TRACE=<seed>` runs
//! one alone.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::model::{Shape, Step};
use common::subject::Subject;
use fastrand::Rng;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use weir_storage::{Backend, OsDisk};

const TRACES: u64 = 10_000;
/// One trace of so many is of large batches: it rolls, and trims files that are used again.
const LARGE_ONE_OF: u64 = 20;

/// Says which trace failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the trace of WEIR_TRACE={} failed", self.0);
        }
    }
}

fn shape(random: &mut Rng, large: bool) -> Shape {
    match random.u8(..8) {
        0 => Shape::Noop,
        1 => Shape::Void { bytes: random.usize(..200) },
        2 => Shape::Control { bytes: random.usize(1..300) },
        _ if large => Shape::Data { records: 1, bytes: random.usize(200_000..400_000) },
        // Some go by another way into a mapped file.
        3 => Shape::Data { records: 1, bytes: random.usize(10_000..40_000) },
        _ => Shape::Data { records: random.usize(1..5), bytes: random.usize(..600) },
    }
}

fn step(random: &mut Rng, large: bool) -> Step {
    let share = random.u8(..);
    match random.u8(..24) {
        0..=9 => {
            let shapes = (0..random.usize(1..4)).map(|_| shape(random, large)).collect();
            Step::Append { shapes, together: random.bool() }
        }
        10..=12 => Step::Flush,
        13 | 14 => Step::Watermark,
        15 | 16 => Step::Checkpoint(share),
        17 => Step::StoreMeta(share),
        18 => Step::Truncate(share),
        19 | 20 if large => Step::Trim(share.max(100)),
        19 => Step::Trim(share),
        // Who holds bytes of a map keeps its file from being used again, and of pwrite does not.
        20 if !large => Step::ReadIndex(share, 1_000),
        21 if !large => Step::ReadOffset(share, 100_000),
        _ => Step::Reopen,
    }
}

fn trace(seed: u64) -> Vec<Step> {
    let mut random = Rng::with_seed(seed);
    let large = seed.is_multiple_of(LARGE_ONE_OF);
    let count = if large { 25 } else { random.usize(5..=15) };
    (0..count).map(|_| step(&mut random, large)).collect()
}

/// Every file that a trace leaves in the folder of its log.
fn left_by(steps: &[Step], backend: Backend, folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut subject = Subject::new(Arc::new(OsDisk::new(backend)), folder.to_owned());
    subject.open().unwrap();
    for step in steps {
        subject.step(step).unwrap();
    }
    let held = subject.model.held.clone();
    assert!(subject.contents() == held);
    subject.log = None;
    subject.check_shared();
    let files = std::fs::read_dir(folder.join("p")).unwrap().map(Result::unwrap);
    files
        .map(|file| {
            let bytes = std::fs::read(file.path()).unwrap();
            (file.file_name().into_string().unwrap(), bytes)
        })
        .collect()
}

/// Runs one trace on both; returns whether a file was used again.
fn compare(seed: u64, scratch: &Path) -> bool {
    let _named = Seed(seed);
    let steps = trace(seed);
    let folder = tempfile::tempdir_in(scratch).unwrap();
    let by_map = left_by(&steps, Backend::Map, &folder.path().join("map"));
    let by_pwrite = left_by(&steps, Backend::Pwrite, &folder.path().join("pwrite"));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&by_map), names(&by_pwrite));
    for (name, bytes) in &by_map {
        assert!(*bytes == by_pwrite[name], "{name} differs");
    }
    by_map.iter().any(|(name, bytes)| name.ends_with(".seg") && bytes[16] == 1)
}

/// Where a flush costs little: these traces ask what is written, not whether it lasts.
fn scratch() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if tempfile::tempdir_in(&memory).is_ok() { memory } else { std::env::temp_dir() }
}

#[test]
fn both_backends_leave_the_same_bytes() {
    let scratch = scratch();
    if let Ok(seed) = std::env::var("WEIR_TRACE") {
        compare(seed.parse().unwrap(), &scratch);
        return;
    }
    let (next, recycled) = (AtomicU64::new(0), AtomicU64::new(0));
    let run = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= TRACES {
                break;
            }
            recycled.fetch_add(u64::from(compare(seed, &scratch)), Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
        (0..threads).for_each(|_| drop(scope.spawn(run)));
    });
    let recycled = recycled.into_inner();
    assert!(recycled > TRACES / LARGE_ONE_OF / 20, "{recycled} used a file again");
    println!("{TRACES} traces, {recycled} of them used a file again");
}
