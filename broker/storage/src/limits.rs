//! Owns: the numbers of the disk. Never: a number that a peer must know.

use weir_protocol::limits::{BATCH_ALIGN_BYTES, BATCH_BYTES_MAX};

/// A segment's header, before its first batch.
pub const SEGMENT_HEADER_BYTES: u64 = 4 << 10;
/// Sizes that a log's segments grow through. A batch always fits into the largest.
pub const SEGMENT_LADDER_BYTES: [u64; 5] = [1 << 20, 4 << 20, 16 << 20, 64 << 20, 128 << 20];
/// A segment is at most this share of its topic's byte limit.
pub const SEGMENT_SHARE_OF_TOPIC: u64 = 8;
/// The size of the segment behind one of `active` bytes, for a log that retains so much: the next
/// step of the ladder, or the first that holds `needed` bytes, its own header included.
pub fn next_segment_bytes(active: u64, retained: u64, needed: u64) -> u64 {
    let [smallest, .., largest] = SEGMENT_LADDER_BYTES;
    let step = SEGMENT_LADDER_BYTES.iter().find(|step| **step > active).unwrap_or(&largest);
    let step = (*step).min(retained / SEGMENT_SHARE_OF_TOPIC).max(smallest);
    let holds = SEGMENT_LADDER_BYTES.iter().find(|size| **size >= needed).copied();
    step.max(holds.unwrap_or(needed.next_multiple_of(smallest)))
}

/// New segments are filled with zeros in writes of this size: on kernels with large folios a
/// store through a map dirties the whole folio that the fill created, and 16 KiB was the best
/// compromise between written bytes and page faults.
pub const FILL_BYTES: usize = 16 << 10;
/// Zeros are sent to the device in rounds of this size, at most two of them at a time. Measured with
/// one pipelined publisher of 1 KiB messages (`weir bench pub -d 5s`): p99.9 of a publish 6 to 12 ms; 13 to 17 ms with 4 MiB,
/// 25 to 33 ms with 16 MiB, 45 ms when a whole segment was left to the flush at its end.
pub const FILL_ROUND_BYTES: u64 = 1 << 20;
/// The pool is to have a spare of the next size when a quarter of a segment is taken, and at the
/// latest here: a large one takes a while to fill, and a log that has to wait for it answers nobody.
pub const NEXT_SEGMENT_WITHIN_BYTES: u64 = 4 << 20;
/// A log takes its next segment out of the pool when so much is left of this one, or a half of it.
pub const NEXT_SEGMENT_BEFORE_BYTES: u64 = 8 << 20;
/// Bytes of spare segments that wait in the pool of a device: one of each size, and room for what a
/// trim gives up at once.
pub const POOL_BYTES_MAX: u64 = 512 << 20;
/// A body of at least this size goes by pwrite into the mapped file. Measured (`weir bench floor`):
/// from the size of a fill step on pwrite is faster, by a quarter at 64 KiB; below, it makes no
/// difference to the time, and the store through the map needs no system call.
pub const PWRITE_BODY_BYTES: usize = FILL_BYTES;
/// The end of a segment that only control batches and the SEAL may use.
pub const CONTROL_RESERVE_BYTES: u64 = 64 << 10;
/// One row of the sparse index per so many bytes.
pub const INDEX_STRIDE_BYTES: u64 = 64 << 10;
/// Unflushed bytes of one log at any time, those that a flush under way covers included: an append
/// beyond waits for a flush. Recovery counts on it, so it is written into each segment.
pub const UNFLUSHED_BYTES_MAX: u64 = 16 << 20;
/// Unflushed bytes of all logs of a device, beyond which an append waits for a flush of its log. One
/// that has nothing unflushed waits for nobody: each log may add one append.
pub const DEVICE_UNFLUSHED_BYTES_MAX: u64 = 64 << 20;
/// A scrub reads so much of a segment at a time, and the rest of the batch at its end.
pub const SCRUB_PIECE_BYTES: u64 = 1 << 20;
/// Damaged ranges of a log that are remembered.
pub const DAMAGED_RANGES_MAX: usize = 4_096;
/// Sealed segments of one log whose sparse index stays in memory (about 64 KiB for the largest).
pub const INDEXES_LOADED_MAX: usize = 16;
/// Behind the last published byte this much is read ahead of stores.
pub const PREPARE_BYTES: u64 = 4 << 20;
/// What is this near to the log end is served without asking a pool thread.
pub const HOT_BYTES: u64 = 64 << 20;
/// Copies of the hard state in `meta`, each this large.
pub const META_COPY_BYTES: usize = 4 << 10;
/// What a device writes as a whole or not at all: the smallest logical block there is. NVMe demands
/// it of one block at least (AWUPF); databases count on it since SQLite's "powersafe overwrite".
pub const SECTOR_BYTES: usize = 512;
/// The owner's part of the hard state, all of which fits in a sector.
pub const META_BLOB_BYTES_MAX: usize = 400;
/// Free bytes below which no further segment is made.
pub const DISK_RESERVE_BYTES: u64 = 16 << 20;
/// Sequences, indexes and offsets of a log stay below: whatever names a larger one was not written
/// by a log.
pub const NUMBERS_END: u64 = 1 << 62;

const _: () = assert!(BATCH_BYTES_MAX as u64 + BATCH_ALIGN_BYTES as u64 <= UNFLUSHED_BYTES_MAX);
const _: () = assert!(UNFLUSHED_BYTES_MAX < DEVICE_UNFLUSHED_BYTES_MAX);
const _: () = assert!(
    BATCH_BYTES_MAX as u64 + SEGMENT_HEADER_BYTES + CONTROL_RESERVE_BYTES < SEGMENT_LADDER_BYTES[2]
);
