//! Decides who may send how much: the pure half of flow control.
//!
//! Owns: the pool of one device, every publisher stream's limit, the ring of streams that wait.
//! Never: reads a clock, locks, sends; each call takes `now` and appends to a list of signals.
//! Invariants:
//! - what is granted and not yet spent, plus what is spent and not yet released, never exceeds
//!   the pool;
//! - within an epoch a stream's limit only rises, but for a revoke that was answered;
//! - a stream that waits is served in its turn: nobody behind it overtakes it for want of room.

use super::blocked::{BlockedClock, BlockedTimes};
use super::stream::{Place, Stream};
use super::{INITIAL_GRANT_COST, PartitionKey};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tokio::time::Instant;
use weir_protocol::error_code::reason_bits;
use weir_protocol::frame::{Grant, Revoke};
use weir_protocol::limits::MESSAGE_COST_MIN;

/// A stream of the core: its slot and how often the slot was used before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct StreamKey {
    /// Place in the table of streams.
    pub(super) slot: u32,
    generation: u32,
}

/// What the core tells a stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Signal {
    /// The newest grant. `urgent`: no answer that would carry it is under way.
    Grant {
        /// What the client may send.
        grant: Grant,
        /// Whether it needs a frame of its own.
        urgent: bool,
    },
    /// Unspent credit is wanted back; `grant` is what answers may carry from now on.
    Revoke {
        /// The question.
        revoke: Revoke,
        /// The lower grant.
        grant: Grant,
    },
    /// The peer left a revoke unanswered: the stream is over.
    Silent,
}

/// What a call tells the streams, in order.
pub(super) type Signals = Vec<(StreamKey, Signal)>;

/// A publish that was not covered by its stream's credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a batch of cost {cost} exceeds the credit: {spent} of {limit} are spent")]
pub struct Overspend {
    /// Cost of the batch.
    pub cost: u64,
    /// What the stream had spent before.
    pub spent: u64,
    /// What it may spend in all.
    pub limit: u64,
}

/// What the core knows of one partition.
#[derive(Debug, Default)]
pub(super) struct Partition {
    pub(super) blocked_bits: u32,
    pub(super) clock: BlockedClock,
    pub(super) streams: BTreeSet<StreamKey>,
    /// Streams taken out of the ring because the partition is blocked.
    pub(super) held_back: Vec<StreamKey>,
}

/// The pure core of flow control over one device.
#[derive(Debug)]
pub(super) struct FlowCore {
    pub(super) pool_cost: u64,
    /// Sum of `granted - spent` over all streams.
    pub(super) outstanding: u64,
    /// Sum of what is spent and not released, closed streams included.
    pub(super) reserved: u64,
    pub(super) streams: Vec<Stream>,
    free: Vec<u32>,
    pub(super) open_streams: u64,
    pub(super) partitions: BTreeMap<PartitionKey, Partition>,
    pub(super) ring: VecDeque<StreamKey>,
    /// Streams raised by the call under way, each once.
    pub(super) raised: Vec<StreamKey>,
    pub(super) revoking: usize,
    draining: bool,
    next_epoch: u32,
}

impl FlowCore {
    pub(super) fn new(pool_cost: u64) -> Self {
        Self {
            pool_cost,
            outstanding: 0,
            reserved: 0,
            streams: Vec::new(),
            free: Vec::new(),
            open_streams: 0,
            partitions: BTreeMap::new(),
            ring: VecDeque::new(),
            raised: Vec::new(),
            revoking: 0,
            draining: false,
            next_epoch: 1,
        }
    }

    /// Opens a stream with its initial grant.
    pub(super) fn open(
        &mut self,
        partition: PartitionKey,
        now: Instant,
        signals: &mut Signals,
    ) -> StreamKey {
        self.open_streams += 1;
        let slot = self.free.pop().unwrap_or(self.streams.len() as u32);
        let generation = self.streams.get(slot as usize).map_or(0, |old| old.generation + 1);
        let key = StreamKey { slot, generation };
        let stream = Stream::new(generation, partition.clone(), self.next_epoch, now);
        self.next_epoch = self.next_epoch.wrapping_add(1).max(1);
        match self.streams.get_mut(slot as usize) {
            Some(old) => *old = stream,
            None => self.streams.push(stream),
        }
        self.partitions.entry(partition).or_default().streams.insert(key);
        let mut initial = 0;
        if self.ring.is_empty() && self.bits_of(key) == 0 {
            let share = self.available() / (2 * self.open_streams);
            initial = whole_messages(share.min(INITIAL_GRANT_COST));
        }
        self.raise(key, initial);
        self.signal_raised(now, signals);
        self.check();
        key
    }

    /// The client says what waits: `cost` beyond its credit, `largest` in one batch.
    pub(super) fn demand(
        &mut self,
        key: StreamKey,
        cost: u64,
        largest: u64,
        now: Instant,
        signals: &mut Signals,
    ) {
        let pool_cost = self.pool_cost;
        let Some(stream) = self.stream(key) else { return };
        // More than the pool can never be granted at once; the rest is asked for again.
        stream.wanted = stream.granted + cost.min(pool_cost - stream.unspent());
        stream.largest = largest.min(pool_cost);
        stream.expected = 0;
        self.queue(key, now);
        self.distribute(now, signals);
        self.tell_why(key, true, signals);
    }

    /// A batch of `cost` has arrived, with `behind` waiting at the client after it.
    pub(super) fn spend(
        &mut self,
        key: StreamKey,
        cost: u64,
        behind: u64,
        now: Instant,
        signals: &mut Signals,
    ) -> Result<(), Overspend> {
        let pool_cost = self.pool_cost;
        let ahead =
            whole_messages((pool_cost / (4 * self.open_streams.max(1))).min(INITIAL_GRANT_COST));
        let Some(stream) = self.stream(key) else {
            return Err(Overspend { cost, spent: 0, limit: 0 });
        };
        if cost > stream.unspent() {
            return Err(Overspend { cost, spent: stream.spent, limit: stream.granted });
        }
        stream.spent += cost;
        stream.reserved += cost;
        stream.last_spent = now;
        stream.largest = 0;
        stream.expected = cost.min(behind);
        stream.wanted = stream.spent + behind.min(pool_cost);
        if stream.unspent() < ahead / 2 {
            // An active stream keeps a small window ahead, so that it need not ask each time.
            stream.wanted = stream.wanted.max(stream.spent + ahead);
        }
        self.outstanding -= cost;
        self.reserved += cost;
        self.queue(key, now);
        self.distribute(now, signals);
        self.tell_why(key, false, signals);
        Ok(())
    }

    /// Data of `cost` is no longer held.
    pub(super) fn release(
        &mut self,
        key: StreamKey,
        cost: u64,
        now: Instant,
        signals: &mut Signals,
    ) {
        assert!(cost <= self.reserved, "more was released than was reserved");
        self.reserved -= cost;
        if let Some(stream) = self.stream(key) {
            stream.reserved -= cost;
        }
        self.distribute(now, signals);
    }

    /// The stream is over; its unspent credit returns. What it spent stays reserved.
    pub(super) fn close(&mut self, key: StreamKey, now: Instant, signals: &mut Signals) {
        let Some(stream) = self.stream(key) else { return };
        let unspent = stream.unspent();
        let was_revoking = stream.revoking.take().is_some();
        let place = stream.place;
        stream.granted = stream.spent;
        stream.wanted = stream.granted;
        let partition = stream.partition.clone();
        self.note_starving(key, now);
        self.streams[key.slot as usize].open = false;
        if let Some(partition) = self.partitions.get_mut(&partition) {
            partition.streams.remove(&key);
            if place == Place::HeldBack {
                partition.held_back.retain(|other| *other != key);
            }
        }
        if place == Place::Ring {
            self.ring.retain(|other| *other != key);
        }
        self.outstanding -= unspent;
        self.revoking -= usize::from(was_revoking);
        self.open_streams -= 1;
        self.free.push(key.slot);
        self.distribute(now, signals);
    }

    /// The client answered a revoke: it has spent `spent` and will not exceed the lower limit.
    ///
    /// Unasked it says that it wants nothing now. It is asked then, because a grant may be on its
    /// way: only an answer to a question behind that grant says what the client still holds.
    pub(super) fn revoked(
        &mut self,
        key: StreamKey,
        spent: u64,
        now: Instant,
        signals: &mut Signals,
    ) {
        let Some(stream) = self.stream(key) else { return };
        let Some(revoking) = stream.revoking.take() else {
            stream.wanted = stream.spent;
            let parked = stream.unspent() > 0;
            self.note_starving(key, now);
            if parked {
                self.revoke(key, now, signals);
            }
            return;
        };
        // All that it sent before its answer has arrived; a higher figure is held to the limit.
        let limit = revoking.limit.max(spent).max(stream.spent).min(stream.granted);
        let returned = stream.granted - limit;
        stream.granted = limit;
        self.revoking -= 1;
        self.outstanding -= returned;
        self.queue(key, now);
        self.distribute(now, signals);
        self.tell_why(key, true, signals);
    }

    /// Asks the unspent credit of a stream back.
    pub(super) fn revoke(&mut self, key: StreamKey, now: Instant, signals: &mut Signals) {
        let Some(stream) = self.stream(key) else { return };
        let revoke = stream.revoke(now);
        self.revoking += 1;
        let grant = Grant { limit_cost: revoke.limit_cost, ..self.grant(key) };
        signals.push((key, Signal::Revoke { revoke, grant }));
    }

    /// Sets why a partition takes no more; 0 = it takes all.
    pub(super) fn set_blocked(
        &mut self,
        key: &PartitionKey,
        bits: u32,
        now: Instant,
        signals: &mut Signals,
    ) {
        let draining = self.draining;
        let partition = self.partitions.entry(key.clone()).or_default();
        if partition.blocked_bits == bits {
            return;
        }
        partition.blocked_bits = bits;
        partition.clock.set_reason(reason_or_pool(bits, draining), now);
        let told: Vec<StreamKey> = partition.streams.iter().copied().collect();
        if bits == 0 && !draining {
            for held in std::mem::take(&mut partition.held_back) {
                self.streams[held.slot as usize].place = Place::Ring;
                self.ring.push_back(held);
            }
        }
        self.distribute(now, signals);
        for key in told {
            self.tell_why(key, true, signals);
        }
    }

    /// The open streams of a partition, by slot.
    pub(super) fn streams_of(&self, key: &PartitionKey) -> Vec<StreamKey> {
        let partition = self.partitions.get(key);
        partition.map_or(Vec::new(), |partition| partition.streams.iter().copied().collect())
    }

    /// A partition that no longer exists is forgotten, its clock with it.
    pub(super) fn forget(&mut self, key: &PartitionKey) {
        if self.partitions.get(key).is_some_and(|partition| partition.streams.is_empty()) {
            self.partitions.remove(key);
        }
    }

    /// No new credit from here on.
    pub(super) fn drain(&mut self, now: Instant, signals: &mut Signals) {
        self.draining = true;
        for partition in self.partitions.values_mut() {
            partition.clock.set_reason(reason_or_pool(partition.blocked_bits, true), now);
        }
        let told: Vec<StreamKey> = self.keys().collect();
        for key in told {
            self.tell_why(key, true, signals);
        }
    }

    /// Whether a tick is due: only while somebody waits, or owes an answer.
    pub(super) fn needs_tick(&self) -> bool {
        self.revoking > 0 || (!self.draining && !self.ring.is_empty())
    }

    /// All times of one partition after another.
    pub(super) fn blocked_times(
        &self,
        now: Instant,
    ) -> impl Iterator<Item = (&PartitionKey, BlockedTimes)> {
        self.partitions.iter().map(move |(key, partition)| (key, partition.clock.times(now)))
    }

    /// Tells a client that gets no more for another reason than the pool what the reason is.
    fn tell_why(&self, key: StreamKey, urgent: bool, signals: &mut Signals) {
        let Some(stream) = self.peek(key) else { return };
        if stream.wants_more() && stream.revoking.is_none() && self.bits_of(key) != 0 {
            signals.push((key, Signal::Grant { grant: self.grant(key), urgent }));
        }
    }

    pub(super) fn note_starving(&mut self, key: StreamKey, now: Instant) {
        let stream = &mut self.streams[key.slot as usize];
        let starved = stream.starved();
        if starved == stream.starved_since.is_some() {
            return;
        }
        stream.starved_since = starved.then_some(now);
        let Some(partition) = self.partitions.get_mut(&stream.partition) else { return };
        if starved { partition.clock.starve(now) } else { partition.clock.feed(now) }
    }

    /// What the client is told now.
    pub(super) fn grant(&self, key: StreamKey) -> Grant {
        let stream = &self.streams[key.slot as usize];
        let pool = if stream.wanted > stream.granted { reason_bits::POOL } else { 0 };
        let bits = self.bits_of(key);
        Grant {
            epoch: stream.epoch,
            limit_cost: stream.granted,
            limit_messages: u64::MAX,
            ttl_ms: 0,
            level: 0,
            reason_bits: if bits == 0 { pool } else { bits },
        }
    }

    /// Why the stream gets nothing but for the pool.
    pub(super) fn bits_of(&self, key: StreamKey) -> u32 {
        let partition = &self.streams[key.slot as usize].partition;
        let blocked = self.partitions.get(partition).map_or(0, |p| p.blocked_bits);
        blocked | if self.draining { reason_bits::DRAINING } else { 0 }
    }

    /// What is neither granted nor reserved.
    pub(super) fn available(&self) -> u64 {
        self.pool_cost - self.outstanding - self.reserved
    }

    /// The open streams, by slot.
    pub(super) fn keys(&self) -> impl Iterator<Item = StreamKey> + '_ {
        self.streams
            .iter()
            .enumerate()
            .filter(|(_, stream)| stream.open)
            .map(|(slot, stream)| StreamKey { slot: slot as u32, generation: stream.generation })
    }

    /// The stream, if it is still open.
    pub(super) fn peek(&self, key: StreamKey) -> Option<&Stream> {
        let stream = self.streams.get(key.slot as usize)?;
        (stream.open && stream.generation == key.generation).then_some(stream)
    }

    fn stream(&mut self, key: StreamKey) -> Option<&mut Stream> {
        let stream = self.streams.get_mut(key.slot as usize)?;
        (stream.open && stream.generation == key.generation).then_some(stream)
    }

    pub(super) fn check(&self) {
        let used = self.outstanding + self.reserved;
        assert!(used <= self.pool_cost, "grants and reservations exceed the pool");
    }
}

/// The part of `cost` that is worth granting: whole messages of the least cost.
fn whole_messages(cost: u64) -> u64 {
    cost - cost % MESSAGE_COST_MIN
}

/// Why a publisher of a partition with `bits` waits.
fn reason_or_pool(bits: u32, draining: bool) -> u32 {
    let bits = bits | if draining { reason_bits::DRAINING } else { 0 };
    if bits == 0 { reason_bits::POOL } else { bits }
}
