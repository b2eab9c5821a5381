//! Builds the body of a batch out of messages.
//!
//! Owns: one growing record table and one growing payload.
//! Never: fills a field that the broker decides (see the module above).
//! Invariant: what `finish` returns passes [`BatchHeader::check_body`] and every limit.

use super::{BatchHeader, BatchType};
use crate::batch::record::{FLAG_HAS_KEY, put_uvar, uvar_len};
use crate::limits::{
    BATCH_HEADER_BYTES, BATCH_RECORDS_MAX, HEADER_KEY_BYTES_MAX, HEADERS_BYTES_MAX, HEADERS_MAX,
    KEY_BYTES_MAX,
};
use crate::types::key_hash;
use bytes::{BufMut, Bytes, BytesMut};

/// Why a message cannot go into a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Key, headers and value exceed the negotiated message limit.
    #[error("the message has {bytes} bytes, the limit is {limit}; split it")]
    TooLarge {
        /// Bytes of key, headers and value together.
        bytes: usize,
        /// The limit of this connection.
        limit: usize,
    },
    /// The key is too long.
    #[error("the key has {0} bytes, the limit is {KEY_BYTES_MAX}")]
    Key(usize),
    /// Too many headers, or too many bytes of them.
    #[error("{0}")]
    Headers(String),
}

/// A body and the header that describes it; index, offset and the like are still zero.
#[derive(Debug, Clone)]
pub struct BuiltBatch {
    /// Describes the body; the header CRC is not stamped yet.
    pub header: BatchHeader,
    /// Record table and payload.
    pub body: Bytes,
}

/// Collects messages into one batch.
#[derive(Debug)]
pub struct BatchBuilder {
    table: BytesMut,
    payload: BytesMut,
    record_count: u32,
    base_ts_ms: u64,
    max_ts_delta: u32,
    message_bytes_max: usize,
}

impl BatchBuilder {
    /// An empty batch whose messages may have up to `message_bytes_max` bytes each.
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            table: BytesMut::new(),
            payload: BytesMut::new(),
            record_count: 0,
            base_ts_ms: 0,
            max_ts_delta: 0,
            message_bytes_max,
        }
    }

    /// Records so far.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Whether no record is in it yet.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Header and body as they stand now: the length on the wire.
    pub fn wire_len(&self) -> usize {
        BATCH_HEADER_BYTES + self.table.len() + self.payload.len()
    }

    /// Whether the record limit is reached.
    pub fn is_full(&self) -> bool {
        self.record_count as usize >= BATCH_RECORDS_MAX
    }

    /// Checks one message against the limits without adding it; returns its encoded length
    /// (table row included).
    pub fn check(
        message_bytes_max: usize,
        key: Option<&[u8]>,
        headers: &[(Bytes, Bytes)],
        value: &[u8],
    ) -> Result<usize, MessageError> {
        let key_len = key.map_or(0, <[u8]>::len);
        if key_len > KEY_BYTES_MAX {
            return Err(MessageError::Key(key_len));
        }
        let header_bytes = check_headers(headers)?;
        let bytes = key_len + header_bytes + value.len();
        if bytes > message_bytes_max {
            return Err(MessageError::TooLarge { bytes, limit: message_bytes_max });
        }
        // 13 bytes of table row, at most 5 for the timestamp, 3 for the key length, 1 for the
        // header count, and 6 per header for its two lengths.
        Ok(bytes + 13 + 5 + 3 + 1 + headers.len() * 6)
    }

    /// Adds a message. `ts_ms` is the publisher's clock; it may run backwards between messages
    /// (the delta is then 0). The caller closes the batch when [`BatchBuilder::is_full`].
    pub fn push(
        &mut self,
        ts_ms: u64,
        key: Option<&[u8]>,
        headers: &[(Bytes, Bytes)],
        value: &[u8],
    ) -> Result<(), MessageError> {
        assert!(!self.is_full(), "the caller closes a full batch before it pushes");
        Self::check(self.message_bytes_max, key, headers, value)?;
        if self.record_count == 0 {
            self.base_ts_ms = ts_ms;
        }
        let delta = u32::try_from(ts_ms.saturating_sub(self.base_ts_ms)).unwrap_or(u32::MAX);
        self.max_ts_delta = self.max_ts_delta.max(delta);
        put_uvar(&mut self.payload, u64::from(delta));
        if let Some(key) = key {
            put_uvar(&mut self.payload, key.len() as u64);
            self.payload.put_slice(key);
        }
        put_uvar(&mut self.payload, headers.len() as u64);
        for (name, content) in headers {
            put_uvar(&mut self.payload, name.len() as u64);
            self.payload.put_slice(name);
            put_uvar(&mut self.payload, content.len() as u64);
            self.payload.put_slice(content);
        }
        self.payload.put_slice(value);
        self.table.put_u32_le(self.payload.len() as u32);
        self.table.put_u64_le(key.map_or(0, key_hash));
        self.table.put_u8(if key.is_some() { FLAG_HAS_KEY } else { 0 });
        self.record_count += 1;
        Ok(())
    }

    /// Closes the batch and leaves the builder empty for the next one.
    pub fn finish(&mut self) -> BuiltBatch {
        let table = self.table.split();
        let payload = self.payload.split();
        let mut body = table;
        let mut header = BatchHeader::empty(BatchType::Data);
        header.table_len = body.len() as u32;
        header.payload_raw_len = payload.len() as u32;
        body.unsplit(payload);
        let body = body.freeze();
        header.body_len = body.len() as u32;
        header.body_crc = crc32fast::hash(&body);
        header.record_count = self.record_count;
        header.base_ts_ms = self.base_ts_ms;
        header.max_ts_delta = self.max_ts_delta;
        self.record_count = 0;
        self.max_ts_delta = 0;
        BuiltBatch { header, body }
    }
}

fn check_headers(headers: &[(Bytes, Bytes)]) -> Result<usize, MessageError> {
    if headers.len() > HEADERS_MAX {
        let text = format!("the message has {} headers, the limit is {HEADERS_MAX}", headers.len());
        return Err(MessageError::Headers(text));
    }
    if let Some((name, _)) = headers.iter().find(|(name, _)| name.len() > HEADER_KEY_BYTES_MAX) {
        let text =
            format!("a header name has {} bytes, the limit is {HEADER_KEY_BYTES_MAX}", name.len());
        return Err(MessageError::Headers(text));
    }
    let bytes = headers.iter().map(|(name, content)| name.len() + content.len()).sum();
    if bytes > HEADERS_BYTES_MAX {
        let text = format!("the headers have {bytes} bytes, the limit is {HEADERS_BYTES_MAX}");
        return Err(MessageError::Headers(text));
    }
    debug_assert!(uvar_len(bytes as u64) <= 3);
    Ok(bytes)
}
