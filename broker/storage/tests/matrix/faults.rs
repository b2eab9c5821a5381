//! What is damaged, how, and when.
//!
//! Owns: the three axes of the matrix, the places that a target means, and how a fault is applied
//! to a place. Never: knows what should come of it.

use super::base::{ACTIVE, Base, OTHER, OWN};
use std::path::{Path, PathBuf};
use weir_sim::disk::{Damage, SimDisk};

const PAGE: u64 = 4_096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    SegmentHeader,
    BatchLength,
    BatchCrc,
    Payload,
    ControlSection,
    SegmentEnd,
    SealedFile,
    ActiveFile,
    IndexFile,
    Checkpoint,
    Meta,
    DamageFile,
}

pub(crate) const TARGETS: [Target; 12] = [
    Target::SegmentHeader,
    Target::BatchLength,
    Target::BatchCrc,
    Target::Payload,
    Target::ControlSection,
    Target::SegmentEnd,
    Target::SealedFile,
    Target::ActiveFile,
    Target::IndexFile,
    Target::Checkpoint,
    Target::Meta,
    Target::DamageFile,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Bit,
    ZeroSector,
    ZeroPage,
    NoisePage,
    StalePage,
    MisdirectedPage,
    Emptied,
    CutAtPlace,
    CutTail,
    Grown,
    Removed,
    Swapped,
}

pub(crate) const FAULTS: [Fault; 12] = [
    Fault::Bit,
    Fault::ZeroSector,
    Fault::ZeroPage,
    Fault::NoisePage,
    Fault::StalePage,
    Fault::MisdirectedPage,
    Fault::Emptied,
    Fault::CutAtPlace,
    Fault::CutTail,
    Fault::Grown,
    Fault::Removed,
    Fault::Swapped,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Time {
    /// Between two lives of the process.
    Down,
    /// Under an open log.
    Running,
    /// Between two steps of a start, which the process does not survive.
    Starting,
}

/// Where a target lies.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    /// Bytes that a fault hits, each by itself.
    spots: Vec<u64>,
    /// A page of the same file that is read in the place of another.
    misread: u64,
    /// The file is kept open by the log, and damaged in place; others are replaced as a whole.
    in_place: bool,
}

fn in_segment(base: &Base, name: &'static str, sequence: u64, spots: Vec<u64>) -> Place {
    // The second cluster of small batches, or for what lies there the first.
    let batches: Vec<_> = base.of_segment(sequence).collect();
    let (first, second) =
        (batches[20].position / PAGE, batches[batches.len() - 20].position / PAGE);
    let misread = if spots[0] / PAGE < second { second } else { first };
    Place { name, path: base.segments[&sequence].clone(), spots, misread, in_place: true }
}

fn replaced(name: &'static str, path: PathBuf, spots: Vec<u64>) -> Place {
    Place { name, path, spots, misread: 1, in_place: false }
}

/// Where batches lie that a fault is to hit: the first of a segment, small ones before and behind
/// large ones, and large ones, in files with and without an earlier life.
const HIT: [(&str, u64, usize); 6] = [
    ("the first batch of the log", 3, 0),
    ("a small batch of a sealed segment", 3, 17),
    ("a large batch of a recycled segment", 4, 47),
    ("a small batch at the end of a recycled segment", 4, 70),
    ("a large batch of the active segment", ACTIVE, 46),
    ("a small batch of the active segment", ACTIVE, 66),
];

fn in_batches(base: &Base, at: impl Fn(usize) -> u64) -> Vec<Place> {
    let place = |(name, sequence, number): (&'static str, u64, usize)| {
        let with_body = base.of_segment(sequence).skip(number).find(|b| b.header.record_count > 0);
        let batch = with_body.unwrap();
        in_segment(base, name, sequence, vec![batch.position + at(batch.bytes.len())])
    };
    HIT.into_iter().map(place).collect()
}

pub(crate) fn places(target: Target, base: &Base, disk: &SimDisk) -> Vec<Place> {
    let end_of = |name, sequence| {
        let last = base.of_segment(sequence).last().unwrap();
        in_segment(base, name, sequence, vec![last.position + 20])
    };
    let whole = |name, sequence| {
        let end = base.of_segment(sequence).last().unwrap().position;
        in_segment(base, name, sequence, vec![end / 4, end / 2, end / 4 * 3])
    };
    match target {
        Target::SegmentHeader => vec![
            in_segment(base, "one copy of a sealed segment's", 3, vec![60]),
            in_segment(base, "both copies of a sealed segment's", 4, vec![60, 2_108]),
            in_segment(base, "the second copy of the active segment's", ACTIVE, vec![2_108]),
            in_segment(base, "both copies of the active segment's", ACTIVE, vec![100, 2_148]),
        ],
        Target::BatchLength => in_batches(base, |_| 9),
        Target::BatchCrc => {
            let mut found = in_batches(base, |_| 5);
            found.extend(in_batches(base, |_| 13));
            found
        }
        Target::Payload => in_batches(base, |len| (len / 2).max(140) as u64),
        Target::ControlSection => {
            let place = |(name, sequence, skip): (&'static str, u64, usize)| {
                let mut of = base.of_segment(sequence).skip(skip);
                let batch = of.find(|batch| batch.header.control_len > 0).unwrap();
                in_segment(base, name, sequence, vec![batch.position + 130])
            };
            [
                ("of a sealed segment", 5, 3),
                ("at its end", 5, 60),
                ("of the active one", ACTIVE, 60),
            ]
            .map(place)
            .into()
        }
        Target::SegmentEnd => vec![
            end_of("the seal of a segment", 3),
            end_of("the seal of a recycled segment", 4),
            end_of("the seal of the newest sealed segment", 5),
            end_of("the watermark", ACTIVE),
        ],
        Target::SealedFile => {
            vec![whole("the oldest", 3), whole("one in the middle", 4), whole("the newest", 5)]
        }
        Target::ActiveFile => {
            let batch = base.of_segment(ACTIVE).nth(47).unwrap();
            let between = vec![batch.position];
            vec![whole("all over", ACTIVE), in_segment(base, "between batches", ACTIVE, between)]
        }
        Target::IndexFile | Target::Checkpoint | Target::Meta | Target::DamageFile => {
            beside_segments(target, base, disk)
        }
    }
}

fn beside_segments(target: Target, base: &Base, disk: &SimDisk) -> Vec<Place> {
    match target {
        Target::IndexFile => vec![
            replaced("its head", base.index_of(4), vec![20]),
            replaced("its rows", base.index_of(3), vec![100]),
        ],
        Target::Checkpoint => {
            let [older, newest] = base.checkpoint_files();
            vec![
                replaced("the newest, its head", newest.clone(), vec![9]),
                replaced("the newest, its content", newest, vec![6_000]),
                Place { misread: 2, ..replaced("the older", older, vec![30]) },
            ]
        }
        Target::Meta => in_meta(disk),
        _ => {
            let path = Path::new(OWN).join("damage");
            vec![
                replaced("its head", path.clone(), vec![9]),
                replaced("its ranges", path, vec![90]),
            ]
        }
    }
}

/// The newer generation stands where its sequence says, which a start may change.
fn in_meta(disk: &SimDisk) -> Vec<Place> {
    let path = Path::new(OWN).join("meta");
    let bytes = disk.bytes_of(&path);
    let sequence =
        |copy: usize| u64::from_le_bytes(*bytes[copy * 4_096 + 16..].first_chunk().unwrap());
    let newer = if sequence(0) > sequence(2) { 0 } else { 2 * PAGE };
    let misread = (2 * PAGE - newer) / PAGE;
    let place = |name, spots| Place { name, path: path.clone(), spots, misread, in_place: true };
    vec![
        place("one copy of the newer generation", vec![newer + 40]),
        place("the second copy of the newer generation", vec![newer + PAGE + 60]),
        place("both copies of the newer generation", vec![newer + 54, newer + PAGE + 54]),
        place("all copies", (0..4).map(|copy| copy * PAGE + 13).collect()),
    ]
}

/// Damages a place.
pub(crate) fn apply(base: &Base, disk: &SimDisk, place: &Place, fault: Fault) {
    let path = &place.path;
    let len = disk.bytes_of(path).len() as u64;
    let damage = |damage: Damage| disk.damage(path, &damage);
    let page_of = |spot: u64| spot / PAGE * PAGE..(spot / PAGE * PAGE + PAGE).min(len);
    let spots = place.spots.iter().copied();
    match fault {
        Fault::Bit => spots.for_each(|position| damage(Damage::Bit { position, bit: 2 })),
        Fault::ZeroSector => spots.for_each(|spot| {
            damage(Damage::Zeros(spot / 512 * 512..(spot / 512 * 512 + 512).min(len)));
        }),
        Fault::ZeroPage => spots.for_each(|spot| damage(Damage::Zeros(page_of(spot)))),
        Fault::NoisePage => spots.for_each(|spot| damage(Damage::Noise(page_of(spot), spot))),
        Fault::StalePage if place.in_place => {
            let recycled = base.files[path][16] == 1 && path.extension().is_some();
            spots.for_each(|spot| match recycled {
                true => damage(Damage::StaleLife(spot / PAGE)),
                false => damage(Damage::StaleVersion(spot / PAGE)),
            });
        }
        Fault::MisdirectedPage if place.in_place => spots.for_each(|spot| {
            damage(Damage::Misdirected { at: spot / PAGE, from: place.misread });
        }),
        Fault::StalePage => match base.earlier.get(path) {
            Some(earlier) => disk.put(path, earlier),
            None => replace_page(disk, place, &[]),
        },
        Fault::MisdirectedPage => {
            let own = base.files[path].get((place.misread * PAGE) as usize..);
            let from = own.filter(|rest| !rest.is_empty()).map(<[u8]>::to_vec);
            let of_another = || base.files[&base.segments[&3]][4_096..].to_vec();
            replace_page(disk, place, &from.unwrap_or_else(of_another));
        }
        Fault::Emptied => damage(Damage::Truncated(0)),
        Fault::CutAtPlace => damage(Damage::Truncated(place.spots[0])),
        Fault::CutTail => damage(Damage::Truncated(len - 1)),
        Fault::Grown => damage(Damage::Grown(PAGE, len)),
        Fault::Removed => damage(Damage::Removed),
        Fault::Swapped => {
            let other = Path::new(OTHER).join(path.strip_prefix(OWN).unwrap());
            damage(Damage::Swapped(other));
        }
    }
}

/// Puts a page of other bytes over the one of a place, and zeros behind them.
fn replace_page(disk: &SimDisk, place: &Place, from: &[u8]) {
    let mut bytes = disk.bytes_of(&place.path);
    for spot in &place.spots {
        let start = (spot / PAGE * PAGE) as usize;
        let end = (start + PAGE as usize).min(bytes.len());
        let page = &mut bytes[start..end];
        let count = page.len().min(from.len());
        page.fill(0);
        page[..count].copy_from_slice(&from[..count]);
    }
    disk.put(&place.path, &bytes);
}
