//! One consumer stream's side of the outbox: its registers and its lane of deliveries.
//!
//! Owns: the newest credit and settle of the client, what a member says and is told, and at most [`LANE_DELIVERIES_MAX`]
//! deliveries on their way to it, so that a client that stops reading holds no more than those.
//! Never: waits, and never asks for a delivery that has no place.

use super::outbox::{Outbox, State, Taken};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use weir_protocol::frame::{Assignment, Deliver, Frame, Grant, Refusal, Settled, StreamClosed};
use weir_protocol::types::{Offset, StreamId};

/// Deliveries that may be on their way to one consumer: one is written while one is made.
pub const LANE_DELIVERIES_MAX: usize = 2;

/// One open consumer stream, unique in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId {
    /// Its connection.
    pub connection: u64,
    /// Its number within the connection, never used again.
    pub serial: u32,
}

pub(super) struct ConsumerOut {
    id: ConsumerId,
    limit_bytes: u64,
    limit_messages: u64,
    settle: Option<Settle>,
    settled: Option<Settled>,
    member: MemberOut,
    pub(super) lane: VecDeque<Deliver>,
    /// The partition found the lane full and wants to know when it is not.
    lane_wanted: bool,
    /// A poke is on its way to the partition.
    poked: bool,
    closing: Option<Option<Box<Refusal>>>,
    pub(super) talking: bool,
    delivering: bool,
}

/// The registers of a stream by which a consumer shares a subscription.
#[derive(Default)]
struct MemberOut {
    present: Option<u64>,
    leaves: bool,
    assignment: Option<Assignment>,
}

#[derive(Debug, Clone, Copy)]
struct Settle {
    upto: Offset,
    confirm: bool,
}

impl ConsumerOut {
    pub(super) fn new(id: ConsumerId, credit: Grant) -> Self {
        Self {
            id,
            limit_bytes: credit.limit_cost,
            limit_messages: credit.limit_messages,
            settle: None,
            settled: None,
            member: MemberOut::default(),
            lane: VecDeque::new(),
            lane_wanted: false,
            poked: false,
            closing: None,
            talking: false,
            delivering: false,
        }
    }
}

/// One open consumer stream, as its partition sees it. Cheap to clone; nothing here waits.
///
/// A poke tells the partition that credit, settle or lane changed; at most one is on its way. The
/// partition calls [`ConsumerPort::take_poke`] before it looks, so that no change is missed.
#[derive(Clone)]
pub struct ConsumerPort {
    outbox: Arc<Outbox>,
    stream: StreamId,
    id: ConsumerId,
}

impl fmt::Debug for ConsumerPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerPort").field("id", &self.id).finish_non_exhaustive()
    }
}

impl ConsumerPort {
    pub(super) fn new(outbox: Arc<Outbox>, stream: StreamId, id: ConsumerId) -> Self {
        Self { outbox, stream, id }
    }

    /// Which consumer this is.
    pub fn id(&self) -> ConsumerId {
        self.id
    }

    /// The poke has arrived: changes from here on are worth another.
    pub fn take_poke(&self) {
        self.with(|consumer| consumer.poked = false);
    }

    /// The client's newest limits since the stream began: stored bytes, and records.
    pub fn credit(&self) -> (u64, u64) {
        self.with(|consumer| (consumer.limit_bytes, consumer.limit_messages)).unwrap_or((0, 0))
    }

    /// The client's newest settle, taken: everything below is done, and whether it wants SETTLED.
    pub fn settle(&self) -> Option<(Offset, bool)> {
        let settle = self.with(|consumer| consumer.settle.take()).flatten()?;
        Some((settle.upto, settle.confirm))
    }

    /// What the member said last, taken: up to which epoch it obeys, and whether it leaves.
    pub fn membership(&self) -> (Option<u64>, bool) {
        let member = |consumer: &mut ConsumerOut| {
            (consumer.member.present.take(), std::mem::take(&mut consumer.member.leaves))
        };
        self.with(member).unwrap_or_default()
    }

    /// What the member reads from now on. The latest call counts; its `stream` is filled in here.
    pub fn assigned(&self, assignment: Assignment) {
        self.change(|state, stream| {
            if let Some(consumer) = state.consumers.get_mut(&stream) {
                consumer.member.assignment = Some(Assignment { stream, ..assignment });
                state.talk(stream);
            }
        });
    }

    /// Whether one more delivery has a place. If not, a poke follows when one has.
    pub fn lane_free(&self) -> bool {
        self.with(|consumer| {
            let free = consumer.lane.len() < LANE_DELIVERIES_MAX;
            consumer.lane_wanted = !free;
            free
        })
        .unwrap_or(false)
    }

    /// Whether the stream is over: nothing is delivered any more.
    pub fn is_closed(&self) -> bool {
        self.with(|consumer| consumer.closing.is_some()).unwrap_or(true)
    }

    /// Hands a delivery over. Its `stream` is filled in here.
    ///
    /// # Panics
    /// If the lane is full: ask [`ConsumerPort::lane_free`] first.
    pub fn deliver(&self, deliver: Deliver) {
        self.change(|state, stream| {
            let Some(consumer) = state.consumers.get_mut(&stream) else { return };
            if consumer.closing.is_some() {
                return;
            }
            assert!(consumer.lane.len() < LANE_DELIVERIES_MAX, "a delivery found no place");
            consumer.lane.push_back(Deliver { stream, ..deliver });
            if !std::mem::replace(&mut consumer.delivering, true) {
                state.delivering.push_back(stream);
            }
        });
    }

    /// A settle is committed, or refused. The latest call counts.
    pub fn settled(&self, settled: Settled) {
        self.change(|state, stream| {
            if let Some(consumer) = state.consumers.get_mut(&stream) {
                consumer.settled = Some(Settled { stream, ..settled });
                state.talk(stream);
            }
        });
    }

    /// The stream is over, once what its lane holds has left.
    pub fn close(&self, refusal: Option<Refusal>) {
        self.change(|state, stream| state.end_consumer(stream, refusal));
    }

    fn with<T>(&self, look: impl FnOnce(&mut ConsumerOut) -> T) -> Option<T> {
        let mut state = self.outbox.lock();
        let consumer = state.consumers.get_mut(&self.stream)?;
        (consumer.id == self.id).then(|| look(consumer))
    }

    fn change(&self, change: impl FnOnce(&mut State, StreamId)) {
        self.outbox.change(|state| {
            let mine = state.consumers.get(&self.stream).is_some_and(|c| c.id == self.id);
            if mine {
                change(state, self.stream);
            }
        });
    }
}

impl Outbox {
    /// The client's newest credit. Returns whether the partition must be poked.
    pub(crate) fn consumer_credit(&self, stream: StreamId, grant: Grant) -> bool {
        self.consumer_register(stream, |consumer| {
            consumer.limit_bytes = consumer.limit_bytes.max(grant.limit_cost);
            consumer.limit_messages = consumer.limit_messages.max(grant.limit_messages);
        })
    }

    /// The client's newest settle. Returns whether the partition must be poked.
    pub(crate) fn consumer_settle(&self, stream: StreamId, upto: Offset, confirm: bool) -> bool {
        self.consumer_register(stream, |consumer| {
            // A settle that is not taken yet is overtaken; who asked to hear of it still does.
            let asked = consumer.settle.is_some_and(|earlier| earlier.confirm);
            let upto = consumer.settle.map_or(upto, |earlier| earlier.upto.max(upto));
            consumer.settle = Some(Settle { upto, confirm: confirm || asked });
        })
    }

    /// A member is there. Returns whether the partition must be poked.
    pub(crate) fn member_present(&self, stream: StreamId, epoch: u64) -> bool {
        self.consumer_register(stream, |consumer| {
            let present = &mut consumer.member.present;
            *present = Some(present.map_or(epoch, |earlier| earlier.max(epoch)));
        })
    }

    /// A member leaves. Returns whether the partition must be poked.
    pub(crate) fn member_leaves(&self, stream: StreamId) -> bool {
        self.consumer_register(stream, |consumer| consumer.member.leaves = true)
    }

    fn consumer_register(&self, stream: StreamId, change: impl FnOnce(&mut ConsumerOut)) -> bool {
        let mut state = self.lock();
        let Some(consumer) = state.consumers.get_mut(&stream) else { return false };
        change(consumer);
        !std::mem::replace(&mut consumer.poked, true)
    }
}

impl State {
    pub(super) fn end_consumer(&mut self, stream: StreamId, refusal: Option<Refusal>) {
        if let Some(consumer) = self.consumers.get_mut(&stream) {
            consumer.closing.get_or_insert(refusal.map(Box::new));
            self.talk(stream);
        }
    }

    /// A consumer's answers; its end only once its lane is empty.
    pub(super) fn take_consumer(&mut self, stream: StreamId, taken: &mut Taken) {
        let Some(consumer) = self.consumers.get_mut(&stream) else { return };
        consumer.talking = false;
        if let Some(settled) = consumer.settled.take() {
            taken.frames.push(Frame::Settled(settled));
        }
        taken.frames.extend(consumer.member.assignment.take().map(Frame::Assignment));
        if consumer.lane.is_empty()
            && let Some(refusal) = consumer.closing.take()
        {
            let refusal = refusal.map(|refusal| *refusal);
            taken.frames.push(Frame::StreamClosed(StreamClosed { stream, refusal }));
            self.consumers.remove(&stream);
        }
    }

    /// One delivery of the consumer whose turn it is.
    pub(super) fn take_delivery(&mut self, taken: &mut Taken) {
        while let Some(stream) = self.delivering.pop_front() {
            let Some(consumer) = self.consumers.get_mut(&stream) else { continue };
            let delivery = consumer.lane.pop_front();
            consumer.delivering = !consumer.lane.is_empty();
            if consumer.delivering {
                self.delivering.push_back(stream);
            } else if consumer.closing.is_some() {
                self.talk(stream);
            }
            let Some(delivery) = delivery else { continue };
            taken.frames.push(Frame::Deliver(delivery));
            if let Some(consumer) = self.consumers.get_mut(&stream)
                && std::mem::take(&mut consumer.lane_wanted)
                && !std::mem::replace(&mut consumer.poked, true)
            {
                taken.pokes.push(stream);
            }
            return;
        }
    }
}
