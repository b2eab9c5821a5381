//! The consumers attached now: where each stands and what it may be sent.
//!
//! Owns: positions, credit spent, which consumer serves which subscription.
//! Never: durable; a consumer is gone with its connection, its subscription's cursor stays.
//! Invariants:
//! - credit is spent before a read and what the read did not use is given back;
//! - nothing above the high watermark is delivered;
//! - one consumer per subscription: a newer one takes over and the older one is closed;
//! - a batch larger than the credit is delivered only while nothing else is with the client, so
//!   that it neither waits for ever nor adds to what the client holds.

use crate::connection::outbox::ConsumerId;
use crate::partition::command::SubscriptionId;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use weir_protocol::batch::BatchType;
use weir_protocol::limits::DELIVERY_BYTES_TARGET;
use weir_protocol::types::Offset;
use weir_storage::BatchSlice;

/// What a consumer's registers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::partition) struct Registers {
    /// Stored bytes that may be sent, in all.
    pub(in crate::partition) limit_bytes: u64,
    /// Records that may be sent, in all.
    pub(in crate::partition) limit_messages: u64,
    /// Whether its lane has a place.
    pub(in crate::partition) lane_free: bool,
}

/// A read that a consumer has paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::partition) struct Wanted {
    pub(in crate::partition) consumer: ConsumerId,
    pub(in crate::partition) from: Offset,
    pub(in crate::partition) bytes_max: usize,
}

/// What a read came to: whole batches of one segment.
#[derive(Debug, Default)]
pub(in crate::partition) struct Picked {
    pub(in crate::partition) salt: u64,
    pub(in crate::partition) record_count: u32,
    pub(in crate::partition) batches: Vec<Bytes>,
}

#[derive(Debug)]
struct Consumer {
    subscription: Option<SubscriptionId>,
    /// Everything below was delivered; the next delivery begins here.
    position: Offset,
    /// Everything below was settled by this consumer.
    settled: Offset,
    registers: Registers,
    /// The most credit it ever had to spend: what it has when the client holds nothing.
    window: (u64, u64),
    spent_bytes: u64,
    spent_messages: u64,
    /// Bytes reserved for the read under way.
    reading: Option<u64>,
    /// The next batch has this many bytes and did not fit into the credit.
    next_bytes: u64,
    next_messages: u64,
}

impl Consumer {
    fn available(&self) -> (u64, u64) {
        (
            self.registers.limit_bytes.saturating_sub(self.spent_bytes),
            self.registers.limit_messages.saturating_sub(self.spent_messages),
        )
    }

    /// Whether the client holds nothing: all its credit is back, or it has settled all it got.
    fn holds_nothing(&self) -> bool {
        let (bytes, messages) = self.available();
        (bytes >= self.window.0 && messages >= self.window.1) || self.settled >= self.position
    }

    /// What was trimmed meanwhile cannot be delivered; the client sees the offsets jump.
    fn skip_to(&mut self, log_start: Offset) {
        if self.position < log_start {
            if self.settled == self.position {
                self.settled = log_start;
            }
            self.position = log_start;
        }
    }

    fn may_read(&self, high_watermark: Offset) -> bool {
        let (bytes, messages) = self.available();
        let fits = bytes >= self.next_bytes && messages >= self.next_messages;
        self.registers.lane_free
            && self.reading.is_none()
            && self.position < high_watermark
            && bytes > 0
            && messages > 0
            && (fits || self.holds_nothing())
    }

    /// Takes whole data batches off the front of `slices`, as far as credit and the high
    /// watermark go. `reserved` bytes are paid for.
    fn pick(&mut self, slices: Vec<BatchSlice>, reserved: u64, high_watermark: Offset) -> Picked {
        let mut picked = Picked::default();
        let alone = self.holds_nothing_but(reserved);
        let (_, messages_max) = self.available();
        let (mut bytes, mut messages) = (0u64, 0u64);
        for slice in slices {
            let header = &slice.header;
            if header.batch_type != BatchType::Data || header.end_offset() <= self.position {
                continue;
            }
            let first = picked.batches.is_empty();
            if header.end_offset() > high_watermark || !(first || slice.salt == picked.salt) {
                break;
            }
            let (more_bytes, more) = (header.stored_len() as u64, u64::from(header.record_count));
            let fits = bytes + more_bytes <= reserved && messages + more <= messages_max;
            if !(fits || (first && alone)) {
                if first {
                    (self.next_bytes, self.next_messages) = (more_bytes, more);
                }
                break;
            }
            (bytes, messages) = (bytes + more_bytes, messages + more);
            self.position = header.end_offset();
            picked.salt = slice.salt;
            picked.batches.push(slice.bytes);
        }
        if !picked.batches.is_empty() {
            (self.next_bytes, self.next_messages) = (0, 0);
        }
        self.spent_bytes = self.spent_bytes - reserved + bytes;
        self.spent_messages += messages;
        picked.record_count = u32::try_from(messages).expect("a delivery is bounded in bytes");
        picked
    }

    fn holds_nothing_but(&self, reserved: u64) -> bool {
        let bytes = self.registers.limit_bytes.saturating_sub(self.spent_bytes - reserved);
        let (_, messages) = self.available();
        (bytes >= self.window.0 && messages >= self.window.1) || self.settled >= self.position
    }
}

/// A settle that its consumer may not make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::partition) struct BeyondDelivered {
    /// Everything below was delivered.
    pub(in crate::partition) delivered: Offset,
}

/// The consumers of one partition.
#[derive(Debug, Default)]
pub(in crate::partition) struct Consumers {
    by_id: BTreeMap<ConsumerId, Consumer>,
    attached: BTreeMap<SubscriptionId, ConsumerId>,
    /// Those that had credit and a place when they reached the high watermark.
    hungry: BTreeSet<ConsumerId>,
}

impl Consumers {
    pub(in crate::partition) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Attaches a consumer. The one that served the subscription before comes back, detached.
    pub(in crate::partition) fn attach(
        &mut self,
        id: ConsumerId,
        subscription: Option<SubscriptionId>,
        position: Offset,
        registers: Registers,
    ) -> Option<ConsumerId> {
        let older = subscription.and_then(|subscription| self.attached.insert(subscription, id));
        if let Some(older) = older {
            self.by_id.remove(&older);
            self.hungry.remove(&older);
        }
        let consumer = Consumer {
            subscription,
            position,
            settled: position,
            registers,
            window: (registers.limit_bytes, registers.limit_messages),
            spent_bytes: 0,
            spent_messages: 0,
            reading: None,
            next_bytes: 0,
            next_messages: 0,
        };
        self.by_id.insert(id, consumer);
        older
    }

    /// All of them.
    pub(in crate::partition) fn ids(&self) -> impl Iterator<Item = ConsumerId> + '_ {
        self.by_id.keys().copied()
    }

    /// The consumer is gone.
    pub(in crate::partition) fn detach(&mut self, id: ConsumerId) {
        self.hungry.remove(&id);
        if let Some(Consumer { subscription: Some(subscription), .. }) = self.by_id.remove(&id)
            && self.attached.get(&subscription) == Some(&id)
        {
            self.attached.remove(&subscription);
        }
    }

    /// The consumer that serves a subscription, and how far it was delivered to.
    pub(in crate::partition) fn serving(
        &self,
        subscription: SubscriptionId,
    ) -> Option<(ConsumerId, Offset)> {
        let id = self.attached.get(&subscription)?;
        self.by_id.get(id).map(|consumer| (*id, consumer.position))
    }

    /// The subscription that a consumer serves; `None` for a reader and for one that is gone.
    pub(in crate::partition) fn subscription_of(&self, id: ConsumerId) -> Option<SubscriptionId> {
        self.by_id.get(&id)?.subscription
    }

    /// Takes a settle of the consumer in, if it is attached.
    pub(in crate::partition) fn settle(
        &mut self,
        id: ConsumerId,
        upto: Offset,
    ) -> Option<Result<(), BeyondDelivered>> {
        let consumer = self.by_id.get_mut(&id)?;
        if upto > consumer.position {
            return Some(Err(BeyondDelivered { delivered: consumer.position }));
        }
        consumer.settled = consumer.settled.max(upto);
        Some(Ok(()))
    }

    /// Takes the consumer's registers in.
    pub(in crate::partition) fn look(&mut self, id: ConsumerId, registers: Registers) {
        if let Some(consumer) = self.by_id.get_mut(&id) {
            consumer.registers = registers;
            let (bytes, messages) = consumer.available();
            consumer.window = (consumer.window.0.max(bytes), consumer.window.1.max(messages));
        }
    }

    /// The next read of one consumer, paid for, if there is anything to read and it may be sent.
    pub(in crate::partition) fn want(
        &mut self,
        id: ConsumerId,
        log_start: Offset,
        high_watermark: Offset,
    ) -> Option<Wanted> {
        let consumer = self.by_id.get_mut(&id)?;
        consumer.skip_to(log_start);
        if !consumer.may_read(high_watermark) {
            if consumer.position >= high_watermark {
                self.hungry.insert(id);
            }
            return None;
        }
        let (bytes, _) = consumer.available();
        let reserved = bytes.min(DELIVERY_BYTES_TARGET as u64);
        consumer.spent_bytes += reserved;
        consumer.reading = Some(reserved);
        let bytes_max = reserved.max(consumer.next_bytes) as usize;
        Some(Wanted { consumer: id, from: consumer.position, bytes_max })
    }

    /// The consumers for whom a higher watermark may mean something to read.
    pub(in crate::partition) fn take_hungry(&mut self) -> Vec<ConsumerId> {
        std::mem::take(&mut self.hungry).into_iter().collect()
    }

    /// A read is through: what of it the consumer gets. `None`: the consumer is gone, or nothing
    /// of it may be sent.
    pub(in crate::partition) fn read(
        &mut self,
        id: ConsumerId,
        slices: Vec<BatchSlice>,
        high_watermark: Offset,
    ) -> Option<Picked> {
        let consumer = self.by_id.get_mut(&id)?;
        let reserved = consumer.reading.take()?;
        let picked = consumer.pick(slices, reserved, high_watermark);
        if picked.batches.is_empty() {
            // Asked again when its credit or the watermark moves, not before.
            self.hungry.insert(id);
            return None;
        }
        Some(picked)
    }
}
