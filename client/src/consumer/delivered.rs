//! Owns: what an application is handed: single messages and whole batches.
//! Never: copies a payload: messages are slices of what came from the socket.

use super::lane::RawBatch;
use super::shared::ConsumerShared;
use crate::error::{Error, Result};
use crate::shared::ClientShared;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use weir_protocol::batch::{BodyError, HeaderIter, MessageRef, RecordIter};
use weir_protocol::error_code::ErrorCode;

/// Where a delivery came from, to settle it there.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) client: Arc<ClientShared>,
    pub(crate) consumer: Arc<ConsumerShared>,
    pub(crate) lane: usize,
    pub(crate) lane_id: u32,
    pub(crate) partition: u32,
}

impl Origin {
    /// Marks everything below `upto` as done.
    pub(crate) fn settle(&self, upto: u64) {
        let ring = self.consumer.lock().lanes[self.lane].settle(upto, false);
        if ring {
            self.client.ring(self.lane_id);
        }
    }

    /// Marks everything below `upto` as done and waits until the broker has committed it.
    pub(crate) async fn settle_confirmed(&self, upto: u64) -> Result<()> {
        let (refused_before, _) = self.consumer.lock().lanes[self.lane].refusals();
        let wait = async {
            loop {
                let changed = self.consumer.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                // The registry's lock is never taken under this one.
                let rings = {
                    let mut state = self.consumer.lock();
                    let lane = &mut state.lanes[self.lane];
                    if let (refused, Some(error)) = lane.refusals()
                        && refused > refused_before
                    {
                        return Err(error);
                    }
                    let rings = lane.settle(upto, true);
                    if lane.is_away() {
                        return Err(given_away(self.partition));
                    }
                    if lane.committed() >= upto.min(lane.position()) {
                        return Ok(());
                    }
                    if lane.is_over() || state.has_failed() {
                        return Err(Error::local(ErrorCode::Closed, "the consumer has ended"));
                    }
                    rings
                };
                if rings {
                    self.client.ring(self.lane_id);
                }
                changed.await;
            }
        };
        self.client.within_request_timeout("a settle", wait).await
    }
}

fn given_away(partition: u32) -> Error {
    let text =
        "the partition was given to another consumer before this was settled; it comes again";
    Error::local(ErrorCode::Generation, text).with_partition(partition)
}

/// One message that was read.
///
/// In a `stream` subscription settling is cumulative: [`Delivered::ack`] also settles every
/// earlier message of its partition. Dropping it without `ack` settles nothing.
pub struct Delivered {
    origin: Arc<Origin>,
    offset: u64,
    turn: u64,
    timestamp_ms: u64,
    key: Option<Bytes>,
    headers: Box<[(Bytes, Bytes)]>,
    payload: Bytes,
}

impl Delivered {
    /// The partition it came from.
    pub fn partition(&self) -> u32 {
        self.origin.partition
    }

    /// Its offset there.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Which time the partition is this consumer's, from 1: offsets rise within one, and behind it
    /// those that were not settled come again. See [`crate::Consumer::turns`].
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// The publisher's time, milliseconds since the epoch.
    pub fn timestamp_ms(&self) -> u64 {
        self.timestamp_ms
    }

    /// The key, if it has one.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    /// The headers, in the publisher's order.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.headers.iter().map(|(name, content)| (&name[..], &content[..]))
    }

    /// The payload. Cloning it is cheap, but holds the memory of the whole delivery.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Settles this message and all earlier ones of its partition. Settles are coalesced: the
    /// broker learns of them within milliseconds, and credit returns by them.
    pub fn ack(&self) {
        self.origin.settle(self.offset + 1);
    }

    /// Like [`Delivered::ack`], and waits until the broker has committed it. For a consumer
    /// without a subscription there is nothing to commit and it returns at once.
    ///
    /// Cancel safe: the settle stands, only the confirmation is lost.
    pub async fn ack_confirmed(&self) -> Result<()> {
        if self.origin.consumer.subscription.is_none() {
            self.ack();
            return Ok(());
        }
        // Behind what was handed over: it was, before the partition went to another and came back.
        let position = self.origin.consumer.lock().lanes[self.origin.lane].position();
        if self.offset >= position {
            return Err(given_away(self.origin.partition));
        }
        self.origin.settle_confirmed(self.offset + 1).await
    }
}

impl fmt::Debug for Delivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivered")
            .field("partition", &self.partition())
            .field("offset", &self.offset)
            .field("payload_len", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// A batch of messages of one partition: the fast path, without work per message until it is
/// looked at.
#[derive(Debug, Clone)]
pub struct RecordBatch {
    partition: u32,
    raw: RawBatch,
}

impl RecordBatch {
    pub(crate) fn new(partition: u32, raw: RawBatch) -> Self {
        Self { partition, raw }
    }

    /// The partition it came from.
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Which time the partition is this consumer's; see [`Delivered::turn`].
    pub fn turn(&self) -> u64 {
        self.raw.turn
    }

    /// Offset of the first message that is this consumer's.
    pub fn base_offset(&self) -> u64 {
        self.raw.header.base_offset.0.max(self.raw.skip_below)
    }

    /// The offset behind the last message.
    pub fn end_offset(&self) -> u64 {
        self.raw.header.end_offset().0
    }

    /// Messages that are this consumer's.
    pub fn len(&self) -> usize {
        (self.end_offset() - self.base_offset()) as usize
    }

    /// Never: a batch without messages is not handed over.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the whole batch.
    pub fn bytes(&self) -> usize {
        self.raw.header.wire_len()
    }

    /// The messages, in the order of their offsets. An error means that their publisher encoded
    /// them wrongly; the rest of the batch cannot be read then.
    pub fn records(&self) -> impl Iterator<Item = Result<Record<'_>>> {
        let (records, bad) = match RecordIter::new(&self.raw.header, &self.raw.body) {
            Ok(records) => (Some(records), None),
            Err(error) => (None, Some(Err(self.unreadable(error)))),
        };
        let base = self.base_offset();
        let records = records.into_iter().flatten().filter_map(move |record| match record {
            Ok(record) if record.offset.0 < base => None,
            Ok(record) => Some(Ok(Record {
                offset: record.offset.0,
                timestamp_ms: record.timestamp_ms,
                message: record.message,
            })),
            Err(error) => Some(Err(self.unreadable(error))),
        });
        bad.into_iter().chain(records)
    }

    fn unreadable(&self, error: BodyError) -> Error {
        let (partition, base) = (self.partition, self.raw.header.base_offset);
        let text = format!("partition {partition}, batch at offset {base}: {error}");
        Error::protocol(ErrorCode::BadFrame, text)
    }

    /// The messages as values of their own.
    pub(crate) fn into_delivered(self, origin: &Arc<Origin>) -> Result<Vec<Delivered>> {
        let mut all = Vec::with_capacity(self.len());
        let body = &self.raw.body;
        for record in self.records() {
            let record = record?;
            let slice = |part: &[u8]| body.slice_ref(part);
            all.push(Delivered {
                origin: origin.clone(),
                offset: record.offset,
                turn: self.raw.turn,
                timestamp_ms: record.timestamp_ms,
                key: record.key().map(slice),
                headers: record
                    .headers()
                    .map(|(name, content)| (slice(name), slice(content)))
                    .collect(),
                payload: slice(record.payload()),
            });
        }
        Ok(all)
    }
}

/// One message of a [`RecordBatch`], borrowed from it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Its offset in the partition.
    pub offset: u64,
    /// The publisher's time, milliseconds since the epoch.
    pub timestamp_ms: u64,
    message: MessageRef<'a>,
}

impl<'a> Record<'a> {
    /// The key, if it has one.
    pub fn key(&self) -> Option<&'a [u8]> {
        self.message.key
    }

    /// The headers, in the publisher's order.
    pub fn headers(&self) -> HeaderIter<'a> {
        self.message.headers()
    }

    /// The payload.
    pub fn payload(&self) -> &'a [u8] {
        self.message.value
    }
}
