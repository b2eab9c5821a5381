//! Owns: every number that both peers must agree on, or that bounds what a peer may make us hold.
//! Never: a number that only one process cares about (those live in that crate's own `limits`).
//! Invariant: the relations at the end of the file hold at compile time.

/// Oldest protocol version this build speaks.
pub const PROTOCOL_VERSION_MIN: u16 = 1;
/// Newest protocol version this build speaks.
pub const PROTOCOL_VERSION_MAX: u16 = 1;

/// Fixed header of a frame on the wire.
pub const FRAME_HEADER_BYTES: usize = 16;
/// Fixed header of a record batch, on the wire and on disk.
pub const BATCH_HEADER_BYTES: usize = 128;
/// Batches start on this boundary on disk; a batch on the wire is not padded.
pub const BATCH_ALIGN_BYTES: usize = 32;

/// Default limit of one message (key, headers and value together).
pub const MESSAGE_BYTES_DEFAULT: usize = 1 << 20;
/// A broker may be configured up to this message size.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// What a batch may hold beyond its largest message: record table, headers, small neighbours.
pub const BATCH_OVERHEAD_BYTES: usize = 64 << 10;
/// Limit of a batch (header and body) under the default message limit.
pub const BATCH_BYTES_DEFAULT: usize = MESSAGE_BYTES_DEFAULT + BATCH_OVERHEAD_BYTES;
/// Hard limit of a batch (header and body).
pub const BATCH_BYTES_MAX: usize = MESSAGE_BYTES_MAX + BATCH_OVERHEAD_BYTES;
/// Hard limit of the records in one batch: bounds the table a reader builds for it.
pub const BATCH_RECORDS_MAX: usize = 65_535;
/// A publisher closes a batch of several messages at this size, so that streams interleave.
pub const BATCH_BYTES_TARGET: usize = 256 << 10;

/// Limit of a frame's fields: everything before the batches that a frame may carry.
pub const FIELDS_BYTES_MAX: usize = 65_535;
/// A delivery is cut before it exceeds this size, unless its first batch alone does.
pub const DELIVERY_BYTES_TARGET: usize = 256 << 10;
/// Hard limit of a whole frame, header included.
pub const FRAME_BYTES_MAX: usize = FRAME_HEADER_BYTES + FIELDS_BYTES_MAX + BATCH_BYTES_MAX;
/// A frame may be at most this long before HELLO and authentication are through.
pub const HANDSHAKE_FRAME_BYTES_MAX: usize = 4 << 10;

/// Names of topics, subscriptions and producers: 1 to 255 bytes of `[A-Za-z0-9._-]`.
pub const NAME_BYTES_MAX: usize = 255;
/// Headers of one message.
pub const HEADERS_MAX: usize = 64;
/// Key of one header.
pub const HEADER_KEY_BYTES_MAX: usize = 255;
/// All headers of one message together.
pub const HEADERS_BYTES_MAX: usize = 16 << 10;
/// Key of one message.
pub const KEY_BYTES_MAX: usize = 4 << 10;
/// Text of an error or a GOAWAY.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Partitions of one topic.
pub const PARTITIONS_MAX: u32 = 1_024;
/// Replicas of one partition, those that come and go included.
pub const REPLICAS_MAX: usize = 7;
/// Brokers of one cluster, and seeds of its formation.
pub const BROKERS_MAX: usize = 64;
/// Host, name and rack of one broker together.
pub const BROKER_TEXT_BYTES_MAX: usize = 160;
/// What one partition takes of a page of metadata: its row, and its term and replicas behind.
pub const PARTITION_VIEW_BYTES_MAX: usize = 36 + 9 + REPLICAS_MAX;
/// What one broker takes of a page of metadata.
pub const BROKER_VIEW_BYTES_MAX: usize = 16 + BROKER_TEXT_BYTES_MAX;
/// Streams (publishers and consumers together) of one connection.
pub const STREAMS_PER_CONNECTION_MAX: usize = 1_024;
/// Requests of one connection that wait for an answer (publishes are paid by credit instead).
pub const REQUESTS_PER_CONNECTION_MAX: usize = 64;

/// The least that one message costs of a publisher's credit, however small it is: it bounds the
/// number of messages that credit in bytes can stand for.
pub const MESSAGE_COST_MIN: u64 = 512;

/// A peer that heard nothing and sent nothing for this long sends a HEARTBEAT.
pub const HEARTBEAT_MS: u32 = 10_000;
/// A peer that heard nothing for this long closes the connection.
pub const DEAD_AFTER_MS: u32 = 30_000;
/// A consumer that shares a subscription says that it is there this often ...
pub const MEMBER_BEAT_MS: u32 = 3_000;
/// ... and is gone when it was not heard for this long.
pub const MEMBER_SILENCE_MS_MAX: u32 = 10_000;
/// One whose connection has ended is gone sooner: it would have come back by then.
pub const MEMBER_RETURN_MS_MAX: u32 = 3_000;
/// It is given this long to give up a partition that goes to another one.
pub const MEMBER_HAND_OVER_MS_MAX: u32 = 10_000;
/// HELLO and authentication must be through by then.
pub const HANDSHAKE_MS_MAX: u32 = 5_000;

/// Default port of the native protocol.
pub const PORT_NATIVE: u16 = 7420;
/// Default port of the admin HTTP server.
pub const PORT_ADMIN: u16 = 7421;

const _: () = assert!(BATCH_HEADER_BYTES.is_multiple_of(BATCH_ALIGN_BYTES));
const _: () = assert!(MESSAGE_BYTES_DEFAULT <= MESSAGE_BYTES_MAX);
const _: () =
    assert!(HEADERS_BYTES_MAX + KEY_BYTES_MAX + BATCH_HEADER_BYTES < BATCH_OVERHEAD_BYTES);
const _: () = assert!(BATCH_BYTES_TARGET <= BATCH_BYTES_DEFAULT);
const _: () = assert!(BATCH_BYTES_MAX + FIELDS_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(HANDSHAKE_FRAME_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(
    PARTITIONS_MAX as usize * PARTITION_VIEW_BYTES_MAX + BROKERS_MAX * BROKER_VIEW_BYTES_MAX + 512
        <= FIELDS_BYTES_MAX,
    "the largest topic and every broker fit a page"
);
const _: () = assert!(BROKERS_MAX <= u8::MAX as usize);
const _: () = assert!(DEAD_AFTER_MS >= 2 * HEARTBEAT_MS);
const _: () = assert!(MEMBER_RETURN_MS_MAX < MEMBER_SILENCE_MS_MAX);
const _: () = assert!(MEMBER_SILENCE_MS_MAX > 3 * MEMBER_BEAT_MS);
const _: () = assert!(HEADER_KEY_BYTES_MAX * HEADERS_MAX <= HEADERS_BYTES_MAX);
