//! Owns: what an application publishes.
//! Never: copies a payload; that happens once, into the batch.

use bytes::Bytes;
use weir_protocol::batch::{BatchBuilder, MessageError};

/// One message: payload, and optionally a key, headers, a time and a partition.
///
/// Messages with the same key go to the same partition and keep their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    pub(crate) payload: Bytes,
    pub(crate) key: Option<Bytes>,
    pub(crate) headers: Vec<(Bytes, Bytes)>,
    pub(crate) timestamp_ms: Option<u64>,
    pub(crate) partition: Option<u32>,
}

impl Message {
    /// A message with this payload.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }

    /// Sets the key, which decides the partition.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Adds a header; a name may stand several times.
    #[must_use]
    pub fn header(mut self, name: impl Into<Bytes>, content: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), content.into()));
        self
    }

    /// Sets the publisher's time, milliseconds since the epoch; without it, the time of sending.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: u64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// Sets the partition, whatever the key and the publisher say.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// What the message takes of a window, in bytes: at least the payload, with the framing of a
    /// record around it.
    pub(crate) fn check(&self, message_bytes_max: usize) -> Result<usize, MessageError> {
        BatchBuilder::check(message_bytes_max, self.key.as_deref(), &self.headers, &self.payload)
    }
}

impl<T: Into<Bytes>> From<T> for Message {
    fn from(payload: T) -> Self {
        Self::new(payload)
    }
}
