//! Makes the checksums of bent files right, so that what stands behind them is reached.
//!
//! Owns: where each format keeps its checksums, written down a second time (FORMAT.md).
//! Never: changes anything but checksums and chains.

use weir_protocol::batch::{BATCH_MAGIC, BatchHeader};
use weir_protocol::limits::{BATCH_ALIGN_BYTES, BATCH_HEADER_BYTES};

/// Where the batches of a segment begin.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 4_096;
/// Where the copies of a segment's header begin.
pub(crate) const COPY_POSITIONS: [usize; 2] = [0, 2_048];
const COPY_BYTES: usize = 512;
const META_COPY_BYTES: usize = 4_096;

/// How much is made right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mend {
    Nothing,
    /// The checksum of the file, or of a segment's header.
    File,
    /// The checksums of a segment's batches too.
    Batches,
    /// Their chain too.
    Chain,
}

/// Mends a file by its name.
pub(crate) fn mend(name: &str, bytes: &mut [u8], how: Mend) {
    if how == Mend::Nothing {
        return;
    }
    match name.rsplit_once('.').map_or(name, |(_, extension)| extension) {
        "seg" => {
            mend_segment_header(bytes);
            if how >= Mend::Batches {
                mend_batches(bytes, how);
            }
        }
        "meta" => bytes.chunks_exact_mut(META_COPY_BYTES).for_each(mend_whole),
        _ => mend_whole(bytes),
    }
}

/// The checksum at 8 of everything from 12 on.
fn mend_whole(bytes: &mut [u8]) {
    if let Some((head, rest)) = bytes.split_at_mut_checked(12) {
        head[8..].copy_from_slice(&crc32fast::hash(rest).to_le_bytes());
    }
}

/// Both copies, each for itself.
pub(crate) fn mend_segment_header(bytes: &mut [u8]) {
    for at in COPY_POSITIONS {
        if let Some(copy) = bytes.get_mut(at..at + COPY_BYTES) {
            mend_whole(copy);
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u32::from_le_bytes(*field))
}

/// The salts that the copies of a segment's header name.
pub(crate) fn salts_of(bytes: &[u8]) -> Vec<u64> {
    let salt =
        |at: usize| bytes.get(at + 48..)?.first_chunk().map(|salt| u64::from_le_bytes(*salt));
    let mut salts: Vec<u64> = COPY_POSITIONS.into_iter().filter_map(salt).collect();
    salts.dedup();
    salts
}

/// Where batches begin, as their lengths say: the first that leads nowhere ends it.
pub(crate) fn batch_positions(bytes: &[u8]) -> Vec<usize> {
    let mut positions = Vec::new();
    let mut at = SEGMENT_HEADER_BYTES;
    while let Some(header) = bytes.get(at..at + BATCH_HEADER_BYTES)
        && header.starts_with(&BATCH_MAGIC)
    {
        positions.push(at);
        let len = BATCH_HEADER_BYTES.saturating_add(u32_at(header, 8) as usize);
        at = at.saturating_add(len.next_multiple_of(BATCH_ALIGN_BYTES));
    }
    positions
}

fn mend_batches(bytes: &mut [u8], how: Mend) {
    let salt = salts_of(bytes).first().copied().unwrap_or(0);
    let mut chain = u32_at(bytes, 80);
    for at in batch_positions(bytes) {
        let (header, body) = bytes[at..].split_at_mut(BATCH_HEADER_BYTES);
        let body = body.get_mut(..u32_at(header, 8) as usize).unwrap_or_default();
        let control_len = (u32_at(header, 68) as usize).min(body.len());
        let (control, records) = body.split_at_mut(control_len);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&chain.to_le_bytes());
        header[12..16].copy_from_slice(&crc32fast::hash(records).to_le_bytes());
        hasher.update(&header[8..112]);
        if let Some((content, crc)) = control.split_last_chunk_mut::<4>() {
            *crc = crc32fast::hash(content).to_le_bytes();
            hasher.update(crc);
        }
        // Local batches, 6 and 7, repeat the chain.
        if !matches!(header[44], 6 | 7) {
            chain = hasher.finalize();
        }
        if how == Mend::Chain {
            header[120..124].copy_from_slice(&chain.to_le_bytes());
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&salt.to_le_bytes());
        hasher.update(&header[8..]);
        header[4..8].copy_from_slice(&hasher.finalize().to_le_bytes());
    }
}

/// Every whole batch anywhere in a segment, under any of `salts`.
pub(crate) fn whole_batches<'a>(
    bytes: &'a [u8],
    salts: &'a [u64],
) -> impl Iterator<Item = (BatchHeader, &'a [u8])> {
    (0..bytes.len()).step_by(BATCH_ALIGN_BYTES).flat_map(move |at| {
        let head = bytes[at..].first_chunk::<BATCH_HEADER_BYTES>();
        let head = head.filter(|head| head.starts_with(&BATCH_MAGIC));
        salts.iter().filter_map(move |salt| {
            let header = BatchHeader::decode(head?, *salt).ok()?;
            let body = bytes.get(at + BATCH_HEADER_BYTES..at + header.wire_len())?;
            header.check_body(body).ok().map(|_| (header, body))
        })
    })
}
