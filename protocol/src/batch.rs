//! The record batch: the one unit of wire, disk, replication and read.
//!
//! Owns: the 128-byte header, the body's layout and both checksums.
//! Never: decides a field. The publisher fills what describes the body, the partition core fixes
//! sequence, log time and run, the log stamps index, term, offset, chain and the local fields.
//! Invariants: all integers are little-endian; decoding never allocates by an announced length.
//!
//! ```text
//!   0 magic4 "WEIR"  4 header_crc4 = crc32(salt8 ‖ [8..128))               local
//!   8 body_len4     12 body_crc4    16 index8   24 term8   32 base_offset8
//!  40 record_count4 44 type1        45 codec1   46 attrs2
//!  48 log_time_ms8  56 base_ts_ms8  64 max_ts_delta4       68 control_len4
//!  72 producer_id8  80 base_seq8    88 producer_epoch4     92 table_len4
//!  96 run4         100 run_number4 104 substream4         108 payload_raw_len4
//! 112 durable_pos8                                                          local
//! 120 chain4 = crc32(prev_chain4 ‖ [8..112) ‖ control_crc4 if any)         124 reserved4
//! body = control section ‖ record table ‖ payload
//! ```
//! `body_crc` covers the record table and the payload. The control section ends with a CRC-32 of
//! its own bytes before it. A batch is stored padded with zeros to a multiple of 32 bytes.

mod builder;
mod record;

pub use builder::{BatchBuilder, BuiltBatch, MessageError};
pub use record::{BodyError, HeaderIter, MessageRef, RecordIter, RecordRef};

use crate::limits::{
    BATCH_ALIGN_BYTES, BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BATCH_RECORDS_MAX, MESSAGE_COST_MIN,
};
use crate::types::{Index, Offset, ProducerId, Sequence, Term};

/// First bytes of every batch.
pub const BATCH_MAGIC: [u8; 4] = *b"WEIR";
/// The salt of a batch on the wire; on disk each segment has its own.
pub const WIRE_SALT: u64 = 0;

/// What a batch is for. The numbers are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BatchType {
    /// Records of a publisher: takes an index and `record_count` offsets.
    Data = 1,
    /// State commands (settles, subscription changes, trims): an index, no offset.
    Control = 2,
    /// A data batch that was proposed out of turn: keeps its index, takes no offset, is never read.
    Void = 3,
    /// Raft's blank of a new leader.
    Noop = 4,
    /// Raft's membership.
    Config = 5,
    /// Local: the last batch of a segment that was closed in order. Never replicated.
    Seal = 6,
    /// Local: evidence of how far the segment was flushed. Never replicated.
    Watermark = 7,
}

impl BatchType {
    /// The type of this number, if it is one.
    pub const fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Data,
            2 => Self::Control,
            3 => Self::Void,
            4 => Self::Noop,
            5 => Self::Config,
            6 => Self::Seal,
            7 => Self::Watermark,
            _ => return None,
        })
    }

    /// Local frames repeat the last index and chain and exist on one disk only.
    pub const fn is_local(self) -> bool {
        matches!(self, Self::Seal | Self::Watermark)
    }
}

/// How the payload is compressed. The numbers are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Codec {
    /// Not at all.
    #[default]
    None = 0,
}

impl Codec {
    /// The codec of this number, if it is one.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            _ => None,
        }
    }
}

/// Attribute: the last batch of its index; an index covers one or more batches.
pub const ATTR_LAST_OF_INDEX: u16 = 1;
/// Attribute: the first batch of its index. The log sets it; where one is lost, it tells whether
/// others of the same index are lost too.
pub const ATTR_FIRST_OF_INDEX: u16 = 2;
/// Every attribute this version knows; others are preserved and ignored.
pub const ATTRS_KNOWN: u16 = ATTR_LAST_OF_INDEX | ATTR_FIRST_OF_INDEX;

/// The header of a batch, decoded. Field order follows the byte diagram of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// CRC-32 of salt and bytes 8..128. Local: restamped by each receiver.
    pub header_crc: u32,
    /// Bytes of the body, without padding.
    pub body_len: u32,
    /// CRC-32 of record table and payload, as the publisher computed it.
    pub body_crc: u32,
    /// Raft index; the same for all batches of one proposal.
    pub index: Index,
    /// Raft term.
    pub term: Term,
    /// Offset of the first record; for a batch without records, the log end when it was appended.
    pub base_offset: Offset,
    /// Records in the body.
    pub record_count: u32,
    /// What the batch is for.
    pub batch_type: BatchType,
    /// Compression of the payload.
    pub codec: Codec,
    /// `ATTR_*` bits.
    pub attrs: u16,
    /// The leader's log time, milliseconds since the epoch; never falls within a log.
    pub log_time_ms: u64,
    /// The publisher's clock at the first record, milliseconds since the epoch.
    pub base_ts_ms: u64,
    /// The largest timestamp delta of a record.
    pub max_ts_delta: u32,
    /// Bytes of the control section, its CRC included; 0 = none.
    pub control_len: u32,
    /// Durable identity of the producer; 0 = not idempotent.
    pub producer_id: ProducerId,
    /// Sequence of the first record.
    pub base_sequence: Sequence,
    /// Rises each time the producer is opened anew; older ones are fenced.
    pub producer_epoch: u32,
    /// Bytes of the record table.
    pub table_len: u32,
    /// The leader's run: a new one begins when a proposal was refused.
    pub run: u32,
    /// Number of the batch within its run, from 0.
    pub run_number: u32,
    /// Reserved for several small queues in one Raft group; 0.
    pub substream: u32,
    /// Bytes of the payload before compression.
    pub payload_raw_len: u32,
    /// Bytes of this segment known to be flushed when the batch was written. Local.
    pub durable_pos: u64,
    /// CRC-32 chained over all batches of the log.
    pub chain: u32,
}

impl BatchHeader {
    /// A header of this type with every other field zero.
    pub const fn empty(batch_type: BatchType) -> Self {
        Self {
            header_crc: 0,
            body_len: 0,
            body_crc: 0,
            index: Index(0),
            term: Term(0),
            base_offset: Offset(0),
            record_count: 0,
            batch_type,
            codec: Codec::None,
            attrs: ATTR_LAST_OF_INDEX,
            log_time_ms: 0,
            base_ts_ms: 0,
            max_ts_delta: 0,
            control_len: 0,
            producer_id: ProducerId(0),
            base_sequence: Sequence(0),
            producer_epoch: 0,
            table_len: 0,
            run: 0,
            run_number: 0,
            substream: 0,
            payload_raw_len: 0,
            durable_pos: 0,
            chain: 0,
        }
    }

    /// Writes all fields as they are; see [`BatchHeader::stamp`] for the computed ones.
    pub fn encode(&self) -> [u8; BATCH_HEADER_BYTES] {
        let mut bytes = [0u8; BATCH_HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &BATCH_MAGIC);
        put(4, &self.header_crc.to_le_bytes());
        put(8, &self.body_len.to_le_bytes());
        put(12, &self.body_crc.to_le_bytes());
        put(16, &self.index.to_le_bytes());
        put(24, &self.term.to_le_bytes());
        put(32, &self.base_offset.to_le_bytes());
        put(40, &self.record_count.to_le_bytes());
        put(44, &[self.batch_type as u8, self.codec as u8]);
        put(46, &self.attrs.to_le_bytes());
        put(48, &self.log_time_ms.to_le_bytes());
        put(56, &self.base_ts_ms.to_le_bytes());
        put(64, &self.max_ts_delta.to_le_bytes());
        put(68, &self.control_len.to_le_bytes());
        put(72, &self.producer_id.to_le_bytes());
        put(80, &self.base_sequence.to_le_bytes());
        put(88, &self.producer_epoch.to_le_bytes());
        put(92, &self.table_len.to_le_bytes());
        put(96, &self.run.to_le_bytes());
        put(100, &self.run_number.to_le_bytes());
        put(104, &self.substream.to_le_bytes());
        put(108, &self.payload_raw_len.to_le_bytes());
        put(112, &self.durable_pos.to_le_bytes());
        put(120, &self.chain.to_le_bytes());
        bytes
    }

    /// Computes the chain (from the chain before it and the CRC of its control section, if it has
    /// one) and the header CRC, keeps both in `self`, and returns the bytes.
    pub fn stamp(
        &mut self,
        salt: u64,
        prev_chain: u32,
        control_crc: Option<u32>,
    ) -> [u8; BATCH_HEADER_BYTES] {
        self.chain = chain_of(prev_chain, &self.encode(), control_crc);
        self.stamp_local(salt)
    }

    /// Computes the header CRC only: what a receiver of a finished batch does.
    pub fn stamp_local(&mut self, salt: u64) -> [u8; BATCH_HEADER_BYTES] {
        let mut bytes = self.encode();
        self.header_crc = header_crc_of(salt, &bytes);
        bytes[4..8].copy_from_slice(&self.header_crc.to_le_bytes());
        bytes
    }

    /// Decodes and checks magic, header CRC, numbers, the sums of lengths and the end offset.
    pub fn decode(bytes: &[u8; BATCH_HEADER_BYTES], salt: u64) -> Result<Self, HeaderError> {
        if bytes[..4] != BATCH_MAGIC {
            return Err(HeaderError::Magic);
        }
        let header_crc = u32_at(bytes, 4);
        if header_crc != header_crc_of(salt, bytes) {
            return Err(HeaderError::Crc);
        }
        let header = Self {
            header_crc,
            body_len: u32_at(bytes, 8),
            body_crc: u32_at(bytes, 12),
            index: Index(u64_at(bytes, 16)),
            term: Term(u64_at(bytes, 24)),
            base_offset: Offset(u64_at(bytes, 32)),
            record_count: u32_at(bytes, 40),
            batch_type: BatchType::from_u8(bytes[44]).ok_or(HeaderError::Type(bytes[44]))?,
            codec: Codec::from_u8(bytes[45]).ok_or(HeaderError::Codec(bytes[45]))?,
            attrs: u16::from_le_bytes([bytes[46], bytes[47]]),
            log_time_ms: u64_at(bytes, 48),
            base_ts_ms: u64_at(bytes, 56),
            max_ts_delta: u32_at(bytes, 64),
            control_len: u32_at(bytes, 68),
            producer_id: ProducerId(u64_at(bytes, 72)),
            base_sequence: Sequence(u64_at(bytes, 80)),
            producer_epoch: u32_at(bytes, 88),
            table_len: u32_at(bytes, 92),
            run: u32_at(bytes, 96),
            run_number: u32_at(bytes, 100),
            substream: u32_at(bytes, 104),
            payload_raw_len: u32_at(bytes, 108),
            durable_pos: u64_at(bytes, 112),
            chain: u32_at(bytes, 120),
        };
        header.check_lengths()?;
        Ok(header)
    }

    fn check_lengths(&self) -> Result<(), HeaderError> {
        let sections = u64::from(self.control_len) + u64::from(self.table_len);
        if self.wire_len() > BATCH_BYTES_MAX || sections > u64::from(self.body_len) {
            return Err(HeaderError::Lengths);
        }
        if self.record_count as usize > BATCH_RECORDS_MAX {
            return Err(HeaderError::Lengths);
        }
        // A sender's number: what is computed from it below must not overflow.
        if self.base_offset.0.checked_add(u64::from(self.record_count)).is_none() {
            return Err(HeaderError::Offsets);
        }
        Ok(())
    }

    /// Header and body, without padding: the length on the wire.
    pub const fn wire_len(&self) -> usize {
        BATCH_HEADER_BYTES + self.body_len as usize
    }

    /// Header, body and padding: the length on disk and within a delivery.
    pub const fn stored_len(&self) -> usize {
        self.wire_len().next_multiple_of(BATCH_ALIGN_BYTES)
    }

    /// What the batch costs of a publisher's credit: its body's bytes, and never less than
    /// [`MESSAGE_COST_MIN`] a record. So credit bounds memory and the number of messages at once,
    /// and both peers compute the same from the header alone.
    pub const fn cost(&self) -> u64 {
        let least = self.record_count as u64 * MESSAGE_COST_MIN;
        if least > self.body_len as u64 { least } else { self.body_len as u64 }
    }

    /// The offset behind the last record.
    pub const fn end_offset(&self) -> Offset {
        match self.batch_type {
            BatchType::Data => Offset(self.base_offset.0 + self.record_count as u64),
            _ => self.base_offset,
        }
    }

    /// Whether this is the last batch of its index.
    pub const fn is_last_of_index(&self) -> bool {
        self.attrs & ATTR_LAST_OF_INDEX != 0
    }

    /// Whether this is the first batch of its index.
    pub const fn is_first_of_index(&self) -> bool {
        self.attrs & ATTR_FIRST_OF_INDEX != 0
    }

    /// Checks the body (without padding) against the CRCs: the control section's own and
    /// `body_crc`. Returns the control section's CRC, which the chain takes in.
    pub fn check_body(&self, body: &[u8]) -> Result<Option<u32>, HeaderError> {
        if body.len() != self.body_len as usize {
            return Err(HeaderError::Lengths);
        }
        let (control, records) =
            body.split_at_checked(self.control_len as usize).ok_or(HeaderError::Lengths)?;
        if crc32fast::hash(records) != self.body_crc {
            return Err(HeaderError::BodyCrc);
        }
        control_crc_of(control)
    }

    /// The chain that this batch must carry behind `prev_chain`.
    pub fn expected_chain(&self, prev_chain: u32, control_crc: Option<u32>) -> u32 {
        chain_of(prev_chain, &self.encode(), control_crc)
    }
}

/// Why a header or a body is not a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The first four bytes are not "WEIR".
    #[error("no batch starts here")]
    Magic,
    /// The header CRC does not match.
    #[error("the header CRC does not match")]
    Crc,
    /// An unknown batch type.
    #[error("batch type {0} is not known to this version")]
    Type(u8),
    /// An unknown codec.
    #[error("codec {0} is not known to this version")]
    Codec(u8),
    /// Lengths or counts beyond their limits, or sections longer than the body.
    #[error("lengths contradict each other or exceed their limits")]
    Lengths,
    /// The offset behind the last record is no number of 64 bits.
    #[error("the offsets of its records do not fit into 64 bits")]
    Offsets,
    /// The CRC of record table and payload does not match.
    #[error("the body CRC does not match")]
    BodyCrc,
    /// The CRC of the control section does not match.
    #[error("the control section CRC does not match")]
    ControlCrc,
}

/// Appends the CRC of `control` to it: a control section as it stands in a body.
pub fn seal_control(control: &mut Vec<u8>) {
    let crc = crc32fast::hash(control);
    control.extend_from_slice(&crc.to_le_bytes());
}

/// Checks a control section and returns its CRC; an empty section has none.
fn control_crc_of(control: &[u8]) -> Result<Option<u32>, HeaderError> {
    if control.is_empty() {
        return Ok(None);
    }
    let (content, crc) = control.split_last_chunk::<4>().ok_or(HeaderError::Lengths)?;
    let crc = u32::from_le_bytes(*crc);
    if crc32fast::hash(content) != crc { Err(HeaderError::ControlCrc) } else { Ok(Some(crc)) }
}

fn chain_of(prev_chain: u32, bytes: &[u8; BATCH_HEADER_BYTES], control_crc: Option<u32>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&prev_chain.to_le_bytes());
    hasher.update(&bytes[8..112]);
    if let Some(crc) = control_crc {
        hasher.update(&crc.to_le_bytes());
    }
    hasher.finalize()
}

fn header_crc_of(salt: u64, bytes: &[u8; BATCH_HEADER_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&bytes[8..]);
    hasher.finalize()
}

fn u32_at(bytes: &[u8; BATCH_HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; BATCH_HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
