//! Bends the files of a log, as the bytes of an input say.
//!
//! Owns: what a device, a person or a faulty build could do to a folder; the fields that are worth
//! a nasty number.
//! Never: takes a random number: the same input always bends in the same way.
//!
//! ```text
//! log1 | up to 6 bends of 16 bytes: kind1 file1 mend1 extra1 position4 number8
//! ```

use crate::logs::{Folder, Original};
use crate::mend::{self, Mend};
use crate::promises::Bent;

/// Bytes of one bend.
pub(crate) const BEND_BYTES: usize = 16;
/// Bends of one input.
pub(crate) const BENDS_MAX: usize = 6;
/// A range that is bent is at most so long.
const RANGE_BYTES_MAX: usize = 2_048;
/// Numbers at which readers go wrong.
const NASTY: [u64; 16] = [
    0,
    1,
    2,
    31,
    0xff,
    4_095,
    4_096,
    0xffff,
    1 << 20,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    0x7fff_ffff_ffff_ffff,
    1 << 63,
    0xffff_ffff_ffff_fff0,
    u64::MAX,
];

/// One change of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bend {
    pub(crate) kind: Kind,
    file: u8,
    mend: Mend,
    extra: u8,
    position: u32,
    number: u64,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bit,
    Noise,
    Zeros,
    Truncated,
    Grown,
    Copied,
    Swapped,
    Field,
    BatchField,
    Duplicated,
    Renamed,
    Exchanged,
    Removed,
    Earlier,
}

const KINDS: [Kind; 16] = [
    Kind::Bit,
    Kind::Noise,
    Kind::Zeros,
    Kind::Truncated,
    Kind::Grown,
    Kind::Copied,
    Kind::Swapped,
    Kind::Field,
    Kind::Field,
    Kind::BatchField,
    Kind::BatchField,
    Kind::Duplicated,
    Kind::Renamed,
    Kind::Exchanged,
    Kind::Removed,
    Kind::Earlier,
];

/// Position and width of the fields of each format.
const SEGMENT_FIELDS: [(usize, usize); 15] = [
    (12, 2),
    (14, 2),
    (16, 4),
    (20, 4),
    (24, 8),
    (40, 8),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 8),
    (80, 4),
    (84, 4),
    (88, 8),
    (96, 8),
    (104, 8),
];
const META_FIELDS: [(usize, usize); 6] = [(12, 2), (16, 8), (24, 8), (32, 4), (36, 8), (44, 8)];
const INDEX_FIELDS: [(usize, usize); 16] = [
    (12, 4),
    (16, 8),
    (24, 8),
    (32, 8),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 4),
    (68, 4),
    (72, 4),
    (80, 8),
    (88, 8),
    (96, 8),
    (104, 8),
    (112, 8),
];
const DAMAGE_FIELDS: [(usize, usize); 9] =
    [(12, 4), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 8), (64, 8), (72, 8)];
const CHECKPOINT_FIELDS: [(usize, usize); 3] = [(12, 4), (16, 8), (24, 8)];
const BATCH_FIELDS: [(usize, usize); 16] = [
    (8, 4),
    (12, 4),
    (16, 8),
    (24, 8),
    (32, 8),
    (40, 4),
    (44, 1),
    (45, 1),
    (46, 2),
    (48, 8),
    (68, 4),
    (92, 4),
    (108, 4),
    (112, 8),
    (120, 4),
    (124, 4),
];

/// The log of an input, and its bends.
pub(crate) fn of(input: &[u8]) -> (usize, Vec<Bend>) {
    let (log, rest) = input.split_first().map_or((0, input), |(log, rest)| (*log, rest));
    let bends = rest.as_chunks::<BEND_BYTES>().0.iter().take(BENDS_MAX).map(|bytes| Bend {
        kind: KINDS[usize::from(bytes[0]) % KINDS.len()],
        file: bytes[1],
        mend: [Mend::Nothing, Mend::File, Mend::Batches, Mend::Chain][usize::from(bytes[2] % 4)],
        extra: bytes[3],
        position: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        number: bytes[8..].first_chunk().map_or(0, |number| u64::from_le_bytes(*number)),
    });
    (usize::from(log), bends.collect())
}

/// Does all of them in their order, and mends the file after each.
pub(crate) fn apply(original: &Original, bends: &[Bend]) -> (Folder, Bent) {
    let mut files = original.files.clone();
    for bend in bends {
        let names: Vec<String> = files.keys().cloned().collect();
        let Some(name) = names.get(usize::from(bend.file) % names.len().max(1)) else { break };
        bend.apply(&mut files, original, name, &names);
        if let Some(bytes) = files.get_mut(name) {
            mend::mend(name, bytes, bend.mend);
        }
    }
    let plain = |bend: &Bend| {
        bend.mend == Mend::Nothing
            && matches!(bend.kind, Kind::Bit | Kind::Truncated | Kind::Removed)
    };
    let bent = match bends {
        _ if bends.iter().any(|bend| bend.mend != Mend::Nothing) => Bent::Forged,
        [bend] if plain(bend) => Bent::Plainly,
        [] => Bent::Plainly,
        _ => Bent::Oddly,
    };
    (files, bent)
}

impl Bend {
    fn apply(&self, files: &mut Folder, original: &Original, name: &str, names: &[String]) {
        let other = names[self.position as usize % names.len()].clone();
        let content = files.get(name).cloned().unwrap_or_default();
        match self.kind {
            Kind::Duplicated => drop(files.insert(self.other_name(name, &other), content)),
            Kind::Renamed => {
                files.remove(name);
                files.insert(self.other_name(name, &other), content);
            }
            Kind::Exchanged => {
                let theirs = files.insert(other, content).unwrap_or_default();
                files.insert(name.to_owned(), theirs);
            }
            Kind::Removed => drop(files.remove(name)),
            Kind::Earlier => match original.earlier.get(name) {
                Some(earlier) => drop(files.insert(name.to_owned(), earlier.clone())),
                None => drop(files.remove(name)),
            },
            _ => self.bend(name, files.entry(name.to_owned()).or_default()),
        }
    }

    /// The name of another file, of a segment that never was, or one that means nothing.
    fn other_name(&self, name: &str, other: &str) -> String {
        let number = self.nasty(u64::from(self.position % 64));
        match self.extra % 5 {
            0 => other.to_owned(),
            1 => format!("{number:020}-{:08x}.seg", self.position % 16),
            2 => format!("{:020}-{number:08x}.seg", self.position % 64),
            3 => format!("{number:020}.ckpt"),
            _ => format!("{name}.new"),
        }
    }

    fn bend(&self, name: &str, bytes: &mut Vec<u8>) {
        let at = self.place(name, bytes);
        let upto = (at + 1 + self.number as usize % RANGE_BYTES_MAX).min(bytes.len());
        match self.kind {
            Kind::Bit => {
                bytes[at..].iter_mut().take(1).for_each(|byte| *byte ^= 1 << (self.extra % 8))
            }
            Kind::Noise => {
                let mut noise = self.number | 1;
                for byte in &mut bytes[at..upto] {
                    noise = noise.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    *byte = (noise >> 56) as u8;
                }
            }
            Kind::Zeros => bytes[at..upto].fill(0),
            Kind::Truncated => bytes.truncate(self.position as usize % (bytes.len() + 1)),
            Kind::Grown => {
                bytes.resize(bytes.len() + self.number as usize % (8 << 10), self.extra % 2);
            }
            Kind::Copied => {
                let from = self.aligned(self.number as usize >> 16, bytes);
                let piece = bytes[from..(from + upto - at).min(bytes.len())].to_vec();
                let to = self.aligned(at, bytes);
                overlay(bytes, to, &piece);
            }
            Kind::Swapped => {
                let (one, two) =
                    (self.aligned(at, bytes), self.aligned(self.number as usize, bytes));
                let len = 512.min(bytes.len() - one).min(bytes.len() - two);
                let (first, second) =
                    (bytes[one..one + len].to_vec(), bytes[two..two + len].to_vec());
                overlay(bytes, one, &second);
                overlay(bytes, two, &first);
            }
            Kind::BatchField if name.ends_with(".seg") => {
                let positions = mend::batch_positions(bytes);
                let batch = positions.get(self.position as usize % positions.len().max(1));
                if let Some(batch) = batch {
                    let (field, width) = BATCH_FIELDS[usize::from(self.extra) % BATCH_FIELDS.len()];
                    self.put(bytes, batch + field, width);
                }
            }
            _ => self.put_field(name, bytes),
        }
    }

    /// Somewhere in what is written of a file; for segments rather among the batches.
    fn place(&self, name: &str, bytes: &[u8]) -> usize {
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let used = (used + 64).min(bytes.len());
        let batches = name.ends_with(".seg") && self.extra & 8 == 0;
        let start = if batches { mend::SEGMENT_HEADER_BYTES.min(used) } else { 0 };
        start + self.position as usize % (used - start).max(1)
    }

    fn aligned(&self, at: usize, bytes: &[u8]) -> usize {
        at % bytes.len().max(1) / 32 * 32
    }

    fn put_field(&self, name: &str, bytes: &mut [u8]) {
        let pick = self.position as usize;
        let (fields, stride): (&[(usize, usize)], usize) = match name {
            "meta" => (&META_FIELDS, 4_096),
            "damage" => (&DAMAGE_FIELDS, 64),
            _ if name.ends_with(".seg") => (&SEGMENT_FIELDS, 2_048),
            _ if name.ends_with(".idx") => (&INDEX_FIELDS, 0),
            _ => (&CHECKPOINT_FIELDS, 0),
        };
        let (field, width) = fields[pick % fields.len()];
        let copies = bytes.len().checked_div(stride).unwrap_or(1).clamp(1, 4);
        let copies = if name.ends_with(".seg") { 2 } else { copies };
        // Where one copy is left as it was, it is believed.
        let only = usize::from(self.extra >> 4);
        for copy in (0..copies).filter(|copy| only == 0 || only % copies == *copy) {
            self.put(bytes, copy * stride + field, width);
        }
    }

    fn put(&self, bytes: &mut [u8], at: usize, width: usize) {
        let Some(room) = bytes.get_mut(at..at + width) else { return };
        let mut before = [0; 8];
        before[..width].copy_from_slice(room);
        let number = self.nasty(u64::from_le_bytes(before));
        room.copy_from_slice(&number.to_le_bytes()[..width]);
    }

    /// One of the nasty numbers, one near what was there, or any.
    fn nasty(&self, before: u64) -> u64 {
        let low = self.number & 0xff;
        match self.number >> 8 & 3 {
            0 => NASTY[low as usize % NASTY.len()],
            1 => before.wrapping_add(low % 4 + 1),
            2 => before.wrapping_sub(low % 4 + 1),
            _ => self.number >> 16,
        }
    }
}

fn overlay(bytes: &mut [u8], at: usize, piece: &[u8]) {
    let len = piece.len().min(bytes.len() - at);
    bytes[at..at + len].copy_from_slice(&piece[..len]);
}
