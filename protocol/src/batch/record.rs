//! Reads records out of the body of a batch.
//!
//! Owns: the layout of the record table and of one record.
//! Never: allocates by an announced length or count; a lying body ends in [`BodyError`].
//!
//! ```text
//! table row: end4 (exclusive, within the raw payload)  key_hash8 (xxh64, 0 without key)  flags1
//!            then, each where its flag says so: ttl_ms4  deadline_ms8  deliver_at_ms8
//! record:    ts_delta uvar | key_len uvar, key (where flagged) |
//!            header_count uvar, { len uvar, name, len uvar, content } | value (the rest)
//! uvar:      LEB128 of an unsigned integer, at most 5 bytes
//! ```

use super::BatchHeader;
use crate::limits::{HEADERS_MAX, KEY_BYTES_MAX};
use crate::types::Offset;
use bytes::{BufMut, BytesMut};

/// The record has a key.
pub(crate) const FLAG_HAS_KEY: u8 = 1;
/// The row has a time to live, u32 milliseconds.
pub(crate) const FLAG_HAS_TTL: u8 = 2;
/// The row has a deadline, u64 milliseconds since the epoch.
pub(crate) const FLAG_HAS_DEADLINE: u8 = 4;
/// The row has a time of first delivery, u64 milliseconds since the epoch.
pub(crate) const FLAG_HAS_DELIVER_AT: u8 = 8;
/// Flags with a width that this version knows; a row with others cannot be read.
const FLAGS_KNOWN: u8 = 15;

/// Why a body cannot be read although its CRC matches: its publisher wrote it wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The record table ends too early, is too long, or has an unknown flag.
    #[error("the record table does not describe {0} records")]
    Table(u32),
    /// A record's end lies before its start or behind the payload.
    #[error("record {0} lies outside the payload")]
    Bounds(u32),
    /// A record's own lengths do not fit into it.
    #[error("record {0} is malformed")]
    Record(u32),
}

/// One record: where it stands and what it says.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    /// Its offset in the partition.
    pub offset: Offset,
    /// The publisher's clock, milliseconds since the epoch.
    pub timestamp_ms: u64,
    /// xxh64 of the key; 0 without a key.
    pub key_hash: u64,
    /// Key, headers and value.
    pub message: MessageRef<'a>,
}

/// Key, headers and value of a record, borrowed from the payload.
#[derive(Debug, Clone, Copy)]
pub struct MessageRef<'a> {
    /// The key, if there is one.
    pub key: Option<&'a [u8]>,
    headers: &'a [u8],
    header_count: usize,
    /// The value.
    pub value: &'a [u8],
}

impl<'a> MessageRef<'a> {
    /// The headers, in the publisher's order.
    pub fn headers(&self) -> HeaderIter<'a> {
        HeaderIter { rest: self.headers, left: self.header_count }
    }
}

/// Iterates `(name, content)`.
#[derive(Debug, Clone)]
pub struct HeaderIter<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (&'a [u8], &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let name = take_prefixed(&mut self.rest)?;
        Some((name, take_prefixed(&mut self.rest)?))
    }
}

/// Iterates the records of a data batch. Ends behind the first error.
#[derive(Debug, Clone)]
pub struct RecordIter<'a> {
    header: &'a BatchHeader,
    table: &'a [u8],
    payload: &'a [u8],
    position: usize,
    number: u32,
}

impl<'a> RecordIter<'a> {
    /// Reads `body` (control section, table and payload, no padding), whose CRC the caller has
    /// checked.
    pub fn new(header: &'a BatchHeader, body: &'a [u8]) -> Result<Self, BodyError> {
        let bad = BodyError::Table(header.record_count);
        let (_, records) = body.split_at_checked(header.control_len as usize).ok_or(bad)?;
        let (table, payload) = records.split_at_checked(header.table_len as usize).ok_or(bad)?;
        Ok(Self { header, table, payload, position: 0, number: 0 })
    }

    fn read(&mut self) -> Result<RecordRef<'a>, BodyError> {
        let number = self.number;
        let (end, key_hash, flags) =
            take_row(&mut self.table).ok_or(BodyError::Table(self.header.record_count))?;
        let record =
            self.payload.get(self.position..end as usize).ok_or(BodyError::Bounds(number))?;
        let (delta, message) = read_record(record, flags).ok_or(BodyError::Record(number))?;
        self.position = end as usize;
        self.number += 1;
        Ok(RecordRef {
            offset: Offset(self.header.base_offset.0 + u64::from(number)),
            timestamp_ms: self.header.base_ts_ms.saturating_add(delta),
            key_hash,
            message,
        })
    }

    /// Reads every record and checks that table and payload are used up: what a broker does
    /// once before it stores a batch.
    pub fn validate(mut self) -> Result<(), BodyError> {
        let count = self.header.record_count;
        for _ in 0..count {
            self.read()?;
        }
        let used_up = self.table.is_empty() && self.position == self.payload.len();
        if used_up { Ok(()) } else { Err(BodyError::Table(count)) }
    }
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<RecordRef<'a>, BodyError>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.number >= self.header.record_count {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            self.number = self.header.record_count;
        }
        Some(read)
    }
}

fn take_row(table: &mut &[u8]) -> Option<(u32, u64, u8)> {
    let (end, rest) = table.split_first_chunk::<4>()?;
    let (hash, rest) = rest.split_first_chunk::<8>()?;
    let (&flags, rest) = rest.split_first()?;
    if flags & !FLAGS_KNOWN != 0 {
        return None;
    }
    let extra = [(FLAG_HAS_TTL, 4), (FLAG_HAS_DEADLINE, 8), (FLAG_HAS_DELIVER_AT, 8)];
    let width = extra.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, width)| width).sum();
    *table = rest.get(width..)?;
    Some((u32::from_le_bytes(*end), u64::from_le_bytes(*hash), flags))
}

fn read_record(mut rest: &[u8], flags: u8) -> Option<(u64, MessageRef<'_>)> {
    let delta = take_uvar(&mut rest)?;
    let key = if flags & FLAG_HAS_KEY == 0 {
        None
    } else {
        Some(take_prefixed(&mut rest).filter(|key| key.len() <= KEY_BYTES_MAX)?)
    };
    let header_count = take_uvar(&mut rest)? as usize;
    if header_count > HEADERS_MAX {
        return None;
    }
    let headers = rest;
    for _ in 0..header_count * 2 {
        take_prefixed(&mut rest)?;
    }
    let headers = headers.get(..headers.len() - rest.len())?;
    Some((delta, MessageRef { key, headers, header_count, value: rest }))
}

fn take_prefixed<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take_uvar(rest)?;
    let (taken, left) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    *rest = left;
    Some(taken)
}

pub(super) fn put_uvar(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

pub(super) fn uvar_len(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

fn take_uvar(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for at in 0..5 {
        let byte = *rest.get(at)?;
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            *rest = rest.get(at + 1..)?;
            return Some(number);
        }
    }
    None
}
