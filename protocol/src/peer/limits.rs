//! Owns: every number that two brokers must agree on, or that bounds what one may make the other
//! hold.
//! Never: a number that only one broker cares about.
//! Invariant: the relations at the end of the file hold at compile time.

use crate::limits::{
    BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BROKERS_MAX, FIELDS_BYTES_MAX, FRAME_BYTES_MAX,
    FRAME_HEADER_BYTES, HANDSHAKE_FRAME_BYTES_MAX, NAME_BYTES_MAX, TEXT_BYTES_MAX,
};

/// Oldest version of the peer protocol this build speaks.
pub const PEER_VERSION_MIN: u16 = 1;
/// Newest version of the peer protocol this build speaks.
pub const PEER_VERSION_MAX: u16 = 1;

/// An APPEND is cut before it exceeds this many bytes of batches, unless one index alone does.
pub const APPEND_BYTES_TARGET: usize = 1 << 20;
/// Bytes of batches of one frame: one index, which has the largest batch or is of about the target.
pub const APPEND_BYTES_MAX: usize = BATCH_BYTES_MAX + APPEND_BYTES_TARGET;
/// Hard limit of a whole frame between brokers, header included.
pub const PEER_FRAME_BYTES_MAX: usize = FRAME_HEADER_BYTES + FIELDS_BYTES_MAX + APPEND_BYTES_MAX;
/// Parts of one frame, each from another segment.
pub const SEGMENT_PARTS_MAX: usize = 64;
/// Content of one frame that is no batch: a part of a snapshot, a command of metadata.
pub const CONTENT_BYTES_MAX: usize = 256 << 10;
/// What a frame costs of a stream's credit beyond the bytes behind its fields: it bounds the
/// number of frames that credit in bytes can stand for.
pub const PEER_FRAME_COST: u64 = 512;
/// Initial credit of a stream.
pub const INITIAL_CREDIT_BYTES: u64 = 256 << 10;
/// Most that may be granted to a stream and not be spent, answered or received yet.
pub const STREAM_WINDOW_BYTES_MAX: u64 = 16 << 20;

/// Beats of one frame, and the answers of one.
pub const BEATS_MAX: usize = 1_024;
/// Led replicas of one frame of news.
pub const NEWS_MAX: usize = 1_024;
/// An encoded membership.
pub const MEMBERSHIP_BYTES_MAX: usize = 8 << 10;
/// A host and port.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// The secret of a cluster: shorter ones could be guessed.
pub const SECRET_BYTES_MIN: usize = 32;
/// The secret of a cluster.
pub const SECRET_BYTES_MAX: usize = 4_096;

/// A broker that sent nothing for this long sends a HEARTBEAT.
pub const PEER_HEARTBEAT_MS: u32 = 500;
/// A broker that heard nothing for this long closes the connection.
pub const PEER_DEAD_AFTER_MS: u32 = 3_000;
/// What is still answered behind a GOAWAY is answered by then.
pub const PEER_GOAWAY_MS_MAX: u32 = 5_000;

/// Default port of the peer protocol.
pub const PORT_PEER: u16 = 7422;

/// Bytes of one row of BEATS, BEATEN (at most), NEWS and FORM (at most).
pub(super) const BEAT_BYTES: usize = 56;
pub(super) const BEATEN_BYTES_MIN: usize = 22;
pub(super) const BEATEN_BYTES_MAX: usize = 38;
pub(super) const LED_BYTES: usize = 40;
pub(super) const SEED_BYTES_MIN: usize = 11;
pub(super) const SEED_BYTES_MAX: usize = 2 + ADDRESS_BYTES_MAX + 8 + 9;
/// Bytes of one part of an APPEND, before its batches.
pub(super) const SEGMENT_PART_BYTES: usize = 12;
/// What stands beside the rows or parts of a frame.
const FIELDS_BESIDE_BYTES: usize = 256;

const _: () = assert!(FRAME_BYTES_MAX < PEER_FRAME_BYTES_MAX);
const _: () = assert!(PEER_FRAME_BYTES_MAX < u32::MAX as usize);
const _: () = assert!(APPEND_BYTES_TARGET > BATCH_HEADER_BYTES);
const _: () = assert!(CONTENT_BYTES_MAX <= APPEND_BYTES_MAX);
const _: () = assert!(APPEND_BYTES_MAX as u64 + PEER_FRAME_COST <= STREAM_WINDOW_BYTES_MAX);
const _: () = assert!(INITIAL_CREDIT_BYTES <= STREAM_WINDOW_BYTES_MAX);
const _: () = assert!(SEGMENT_PARTS_MAX * SEGMENT_PART_BYTES < FIELDS_BYTES_MAX);
const _: () = assert!(BEATS_MAX * BEAT_BYTES + FIELDS_BESIDE_BYTES <= FIELDS_BYTES_MAX);
const _: () = assert!(BEATS_MAX * BEATEN_BYTES_MAX + FIELDS_BESIDE_BYTES <= FIELDS_BYTES_MAX);
const _: () = assert!(NEWS_MAX * LED_BYTES + FIELDS_BESIDE_BYTES <= FIELDS_BYTES_MAX);
const _: () = assert!(BROKERS_MAX * SEED_BYTES_MAX + FIELDS_BESIDE_BYTES <= FIELDS_BYTES_MAX);
const _: () = assert!(MEMBERSHIP_BYTES_MAX + FIELDS_BESIDE_BYTES <= FIELDS_BYTES_MAX);
const _: () = assert!(
    FRAME_HEADER_BYTES + FIELDS_BESIDE_BYTES + NAME_BYTES_MAX + TEXT_BYTES_MAX
        <= HANDSHAKE_FRAME_BYTES_MAX
);
const _: () = assert!(ADDRESS_BYTES_MAX <= TEXT_BYTES_MAX);
const _: () = assert!(SECRET_BYTES_MIN < SECRET_BYTES_MAX);
const _: () = assert!(PEER_DEAD_AFTER_MS >= 2 * PEER_HEARTBEAT_MS);
