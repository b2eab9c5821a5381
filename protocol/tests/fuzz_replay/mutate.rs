//! Bends inputs that are known into inputs that are not.
//!
//! Owns: the pool of inputs worth bending, the ways to bend them, the CRCs that it mends so that
//! what stands behind them is reached.
//! Never: judges an outcome; takes a random number from anywhere but its seed.

use weir_protocol::batch::BATCH_MAGIC;
use weir_protocol::limits::{BATCH_HEADER_BYTES, FRAME_HEADER_BYTES};

/// Longest input that is made.
const INPUT_BYTES_MAX: usize = 4 << 10;
/// Longer inputs are not joined to others: a bend would seldom meet the frame that matters.
const JOINED_BYTES_MAX: usize = 512;
/// Inputs that are kept; new ones then take the place of others.
const POOL_MAX: usize = 4_096;
/// Numbers at which decoders go wrong.
const NASTY: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x0001_0000,
    0x7fff_ffff,
    0xffff_fff0,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fff0,
    u64::MAX,
];
/// Bytes of the fields of a PUBLISH before its batch header.
const PUBLISH_FIELDS_BYTES: usize = 12;
const PUBLISH: u8 = 0x12;
const DELIVER: u8 = 0x22;
/// Between brokers: bytes of the fields of an APPEND before its parts, and those of the frames that
/// carry other content before its CRC.
const APPEND: u8 = 0x51;
const APPEND_FIELDS_BYTES: usize = 59;
const CONTENTS: [(u8, usize); 3] = [(0x55, 8), (0x67, 9), (0x68, 5)];

/// Makes inputs.
pub(crate) struct Mutator {
    rng: fastrand::Rng,
    pool: Vec<Vec<u8>>,
    seeds: usize,
}

impl Mutator {
    pub(crate) fn new(seed: u64, seeds: Vec<Vec<u8>>) -> Self {
        assert!(!seeds.is_empty(), "bending needs something to bend");
        Self { rng: fastrand::Rng::with_seed(seed), seeds: seeds.len(), pool: seeds }
    }

    /// Keeps an input that turned out to be something new.
    pub(crate) fn keep(&mut self, input: Vec<u8>) {
        if self.pool.len() < POOL_MAX {
            self.pool.push(input);
        } else {
            let at = self.rng.usize(self.seeds..POOL_MAX);
            self.pool[at] = input;
        }
    }

    /// The next input.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        let mut input = self.pick();
        for _ in 0..self.rng.usize(1..=4) {
            self.bend(&mut input);
        }
        input.truncate(INPUT_BYTES_MAX);
        if self.rng.u8(0..8) > 0 {
            mend_batch(&mut input, 0);
            mend_frames(&mut input);
        }
        input
    }

    /// Half of the time one of the seeds, however many inputs were kept: they are the shortest.
    fn pick(&mut self) -> Vec<u8> {
        let among = if self.rng.bool() { self.seeds } else { self.pool.len() };
        self.pool[self.rng.usize(..among)].clone()
    }

    fn bend(&mut self, input: &mut Vec<u8>) {
        let at = self.rng.usize(..=input.len());
        let upto = (at + self.rng.usize(0..=32)).min(input.len());
        match self.rng.u8(0..9) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..upto)),
            2 => {
                let piece = input[at..upto].to_vec();
                let to = self.rng.usize(..=input.len());
                input.splice(to..to, piece);
            }
            3 => {
                let other = self.pick();
                let from = self.rng.usize(..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            4 if input.len() < JOINED_BYTES_MAX => input.extend(self.pick()),
            5 => {
                for byte in &mut input[at..upto] {
                    *byte = self.rng.u8(..);
                }
            }
            6 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.rng.u8(0..8);
                }
            }
            _ => self.put_nasty(input, at),
        }
    }

    /// Puts a number, or one near it, over 1 to 8 bytes.
    fn put_nasty(&mut self, input: &mut [u8], at: usize) {
        let nasty = NASTY[self.rng.usize(..NASTY.len())];
        let number = match self.rng.u8(0..3) {
            0 => nasty.wrapping_sub(self.rng.u64(0..4)),
            1 => input.len() as u64,
            _ => nasty,
        };
        let width = 1 << self.rng.u8(0..4);
        let room = &mut input[at..];
        let width = room.len().min(width);
        room[..width].copy_from_slice(&number.to_le_bytes()[..width]);
    }
}

/// Makes the CRCs of all frames at the start of `input` right, and those of their batches. A
/// length that leads outside is left as it is: it is what the input is about.
fn mend_frames(input: &mut [u8]) {
    let mut rest = input;
    while let Some(prefix) = rest.first_chunk::<4>() {
        let len = (u32::from_le_bytes(*prefix) as usize).saturating_add(4);
        if len < FRAME_HEADER_BYTES || len > rest.len() {
            return;
        }
        let (frame, behind) = std::mem::take(&mut rest).split_at_mut(len);
        rest = behind;
        let fields_end = FRAME_HEADER_BYTES + usize::from(u16::from_le_bytes([frame[6], frame[7]]));
        if fields_end > frame.len() {
            return;
        }
        mend_batches_of(frame, fields_end);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&frame[..12]);
        hasher.update(&frame[FRAME_HEADER_BYTES..fields_end]);
        frame[12..16].copy_from_slice(&hasher.finalize().to_le_bytes());
    }
}

fn mend_batches_of(frame: &mut [u8], fields_end: usize) {
    match frame[4] {
        PUBLISH => {
            if let Some(batch) = frame.get_mut(FRAME_HEADER_BYTES + PUBLISH_FIELDS_BYTES..) {
                mend_batch(batch, 0);
            }
        }
        DELIVER => mend_stored(frame, (0, fields_end)),
        APPEND => mend_stored(frame, (APPEND_FIELDS_BYTES, fields_end)),
        other => {
            let content = CONTENTS.iter().find(|(frame_type, _)| *frame_type == other);
            let Some((_, before)) = content else { return };
            let (head, content) = frame.split_at_mut(fields_end);
            if let Some(crc) = head.get_mut(FRAME_HEADER_BYTES + before..).and_then(first_4) {
                *crc = crc32fast::hash(content).to_le_bytes();
            }
        }
    }
}

fn first_4(bytes: &mut [u8]) -> Option<&mut [u8; 4]> {
    bytes.first_chunk_mut()
}

/// The first batch behind the fields, whose salt stands among them.
fn mend_stored(frame: &mut [u8], (salt_at, fields_end): (usize, usize)) {
    let salt = frame.get(FRAME_HEADER_BYTES + salt_at..).and_then(<[u8]>::first_chunk::<8>);
    let salt = salt.map_or(0, |salt| u64::from_le_bytes(*salt));
    mend_batch(&mut frame[fields_end..], salt);
}

/// Makes magic, body CRC and header CRC of a batch right; its lengths stay as they are.
fn mend_batch(batch: &mut [u8], salt: u64) {
    if batch.len() < BATCH_HEADER_BYTES || batch[..4] != BATCH_MAGIC {
        return;
    }
    let (header, body) = batch.split_at_mut(BATCH_HEADER_BYTES);
    let number = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize
    };
    let body = body.get_mut(..number(8)).unwrap_or_default();
    let (control, records) = body.split_at_mut(number(68).min(body.len()));
    if let Some((content, crc)) = control.split_last_chunk_mut::<4>() {
        *crc = crc32fast::hash(content).to_le_bytes();
    }
    header[12..16].copy_from_slice(&crc32fast::hash(records).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&header[8..]);
    header[4..8].copy_from_slice(&hasher.finalize().to_le_bytes());
}
