//! What a device does to the files of a broker that is down.
//!
//! Owns: which bytes may be hit: those that the disk itself proves to have been flushed. What nothing
//! proves cannot be told from what a power cut tears, and no replica is asked to.
//! Never: chooses which machine: a majority must have everything that was acknowledged.

use crate::disk::{Damage, SimDisk};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use weir_storage::inspect::{self, Dumped, SegmentReport};

/// Spots that are hit at a time, at most.
const SPOTS_MAX: u8 = 3;
/// What a device loses or confuses at a time.
const BLOCK_BYTES: u64 = 4 << 10;

/// A segment, and behind which of its bytes nothing is proven.
struct Proven {
    path: PathBuf,
    sealed: bool,
    end: u64,
}

/// Damages a few spots of the logs on a disk that no broker uses. Returns how many.
pub(super) fn rot(disk: &SimDisk, random: &mut fastrand::Rng) -> Result<u8, String> {
    let mut segments = Vec::new();
    for dir in folders(disk) {
        let found = proven_in(disk, &dir);
        segments.extend(found.map_err(|error| format!("{}: {error}", dir.display()))?);
    }
    segments.retain(|segment| segment.end > 0);
    let spots = random.u8(1..=SPOTS_MAX);
    for _ in 0..spots {
        if segments.is_empty() {
            return Ok(0);
        }
        let at = random.usize(..segments.len());
        let Proven { path, sealed, end } = &segments[at];
        let start = random.u64(..*end);
        let range = start..(start + random.u64(1..BLOCK_BYTES)).min(*end);
        let damage = match random.u8(..8) {
            0 => Damage::Zeros(range),
            1 => Damage::Noise(range, random.u64(..)),
            2 if *sealed => Damage::Removed,
            // A device loses whole blocks, so also what stands behind the range.
            3 if range.end.next_multiple_of(BLOCK_BYTES) <= *end => Damage::Unreadable(range),
            _ => Damage::Bit { position: start, bit: random.u8(..8) },
        };
        tracing::info!(path = %path.display(), ?damage, "a file is damaged");
        disk.damage(path, &damage);
        if damage == Damage::Removed {
            segments.swap_remove(at);
        }
    }
    Ok(spots)
}

/// Takes everything from a disk that no broker uses.
pub(super) fn wipe(disk: &SimDisk) {
    for path in disk.paths("") {
        disk.damage(&path, &Damage::Removed);
    }
}

/// The folders of logs.
fn folders(disk: &SimDisk) -> BTreeSet<PathBuf> {
    let segments = disk.paths(".seg").into_iter();
    segments.filter_map(|path| path.parent().map(Path::to_owned)).collect()
}

fn proven_in(disk: &SimDisk, dir: &Path) -> Result<Vec<Proven>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let Some(uuid) = inspect::uuid_of(disk, dir).map_err(|error| text(&error))? else {
        return Ok(Vec::new());
    };
    let report = inspect::verify(disk, dir, uuid).map_err(|error| text(&error))?;
    let meta = inspect::meta(disk, dir).map_err(|error| text(&error))?;
    let watermark = meta.and_then(|meta| meta.watermark);
    let proven = |segment: &SegmentReport| {
        let mut end = match watermark {
            Some((sequence, position)) if sequence == segment.sequence => position,
            _ => 0,
        };
        let see = |dumped| {
            if let Dumped::Batch { header, .. } = dumped {
                end = end.max(header.durable_pos);
            }
            true
        };
        inspect::dump(disk, segment, see).map_err(|error| text(&error))?;
        let end = if segment.sealed { segment.end } else { end.min(segment.end) };
        Ok(Proven { path: segment.path.clone(), sealed: segment.sealed, end })
    };
    report.segments.iter().map(proven).collect()
}
