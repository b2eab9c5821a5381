//! What a connection owes its peer.
//!
//! Owns: answers, grants, deliveries and the connection's last words until the writer takes them.
//! Never: waits. Whoever has something to say leaves it here and wakes the connection's task.
//! Invariants:
//! - everything here was paid for: an answer by its publish or its request slot, a delivery by
//!   the consumer's credit and one of [`LANE_DELIVERIES_MAX`] places; the rest are registers that
//!   hold the latest value. So nothing here grows with what a peer fails to read;
//! - a stream's answers leave in the order in which they were given, and the end of a stream
//!   leaves after its answers;
//! - the order of locks is flow, then outbox: nothing here calls flow control.

use super::lane::ConsumerOut;
use super::reply::Answer;
use futures_util::task::AtomicWaker;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use tokio::time::Instant;
use weir_protocol::error_code::{ErrorCode, Outcome, Scope};
use weir_protocol::frame::{
    Frame, GoAway, Grant, Published, Refusal, Refused, Revoke, StoredRange, StreamClosed,
};
use weir_protocol::types::{Offset, ProducerId, RequestId, Sequence, StreamId, Term};

pub use super::lane::{ConsumerId, ConsumerPort, LANE_DELIVERIES_MAX};
pub use super::reply::{PublishReply, RequestReply};

/// Stored ranges of one PUBLISHED, so that its fields stay far below their limit.
const STORED_PER_FRAME_MAX: usize = 1_024;

/// What a request came to, for the connection's task to act upon.
#[derive(Debug)]
pub enum Completion {
    /// The partition knows the publisher.
    Publisher {
        /// Its stream.
        stream: StreamId,
        /// The request.
        request: RequestId,
        /// What it may go on with, or why not.
        result: Result<OpenedPublisher, Refusal>,
    },
    /// The partition knows the consumer; the frame is SUBSCRIBED.
    Consumer {
        /// Its stream.
        stream: StreamId,
        /// The request.
        request: RequestId,
        /// The frame to send, or why not.
        result: Result<Box<Frame>, Refusal>,
    },
    /// Any other request; the frame is its answer.
    Answer {
        /// The request.
        request: RequestId,
        /// The frame to send, or why not.
        result: Result<Box<Frame>, Refusal>,
    },
}

/// A publisher that its partition knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedPublisher {
    /// Identity to put into batches.
    pub producer_id: ProducerId,
    /// Epoch to put into batches.
    pub producer_epoch: u32,
    /// The sequence behind the last stored record.
    pub next_sequence: Sequence,
    /// The log end.
    pub log_end: Offset,
    /// The term that the partition leads.
    pub term: Term,
}

/// What the writer takes at once.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Requests that came to something.
    pub(crate) completions: Vec<Completion>,
    /// Frames, in the order in which they must leave.
    pub(crate) frames: Vec<Frame>,
    /// Consumers whose lane has room again: to be poked.
    pub(crate) pokes: Vec<StreamId>,
    /// When the publishes were read that are acknowledged by these frames.
    pub(crate) acknowledged: Vec<Instant>,
}

/// The outbox of one connection.
pub struct Outbox {
    connection: u64,
    state: Mutex<State>,
    waker: AtomicWaker,
}

#[derive(Default)]
pub(super) struct State {
    go_away: Option<GoAway>,
    completions: Vec<Completion>,
    publishers: BTreeMap<StreamId, PublisherOut>,
    pub(super) consumers: BTreeMap<StreamId, ConsumerOut>,
    /// Streams with answers, grants or ends to send, each once.
    pub(super) talking: VecDeque<StreamId>,
    /// Consumers with deliveries, each once.
    pub(super) delivering: VecDeque<StreamId>,
    unanswered: u64,
    pub(super) consumers_opened: u32,
    over: bool,
}

#[derive(Default)]
struct PublisherOut {
    answers: VecDeque<Answer>,
    grant: Grant,
    grant_due: bool,
    revoke: Option<Revoke>,
    /// Publishes that were accepted and not answered yet.
    unanswered: u32,
    /// The stream ends when all is answered; `Some(refusal)` says why, unless the client asked.
    closing: Option<Option<Box<Refusal>>>,
    talking: bool,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Outbox {
    /// The outbox of the connection with this number.
    pub fn new(connection: u64) -> Arc<Self> {
        Arc::new(Self { connection, state: Mutex::default(), waker: AtomicWaker::new() })
    }

    /// Number of the connection, unique in the process.
    pub fn connection(&self) -> u64 {
        self.connection
    }

    /// The register for a new publisher stream, which begins to exist here.
    pub fn grant_register(self: &Arc<Self>, stream: StreamId) -> GrantRegister {
        self.lock().publishers.entry(stream).or_default();
        GrantRegister { outbox: Arc::clone(self), stream }
    }

    /// The place for the answer to one publish.
    pub fn publish_reply(
        self: &Arc<Self>,
        stream: StreamId,
        base_sequence: Sequence,
        record_count: u32,
    ) -> PublishReply {
        let read = Instant::now();
        let mut state = self.lock();
        state.unanswered += 1;
        state.publishers.entry(stream).or_default().unanswered += 1;
        PublishReply::new(Arc::clone(self), stream, (base_sequence, record_count), read)
    }

    /// The port of a new consumer stream, with its initial credit.
    pub fn open_consumer(self: &Arc<Self>, stream: StreamId, credit: Grant) -> ConsumerPort {
        let mut state = self.lock();
        state.consumers_opened += 1;
        let serial = state.consumers_opened;
        let id = ConsumerId { connection: self.connection, serial };
        state.consumers.insert(stream, ConsumerOut::new(id, credit));
        ConsumerPort::new(Arc::clone(self), stream, id)
    }

    /// Tells the peer to leave. The latest call counts.
    pub fn go_away(&self, go_away: GoAway) {
        self.change(|state| state.go_away = Some(go_away));
    }

    /// A request came to something.
    pub fn complete(&self, completion: Completion) {
        self.change(|state| state.completions.push(completion));
    }

    /// Answers a publish that was never handed on.
    pub(crate) fn refuse(&self, stream: StreamId, sequence: Sequence, count: u32, why: Refusal) {
        self.change(|state| {
            state.push_answer(stream, Answer::Refused(sequence, count, Box::new(why)))
        });
    }

    /// Ends a publisher stream once all its publishes are answered.
    pub(crate) fn close_publisher(&self, stream: StreamId, refusal: Option<Refusal>) {
        self.change(|state| {
            if let Some(publisher) = state.publishers.get_mut(&stream) {
                publisher.closing.get_or_insert(refusal.map(Box::new));
                state.talk(stream);
            }
        });
    }

    /// Ends a consumer stream at once: what its lane holds is not sent any more.
    pub(crate) fn close_consumer(&self, stream: StreamId, refusal: Option<Refusal>) {
        self.change(|state| {
            if let Some(consumer) = state.consumers.get_mut(&stream) {
                consumer.lane.clear();
            }
            state.end_consumer(stream, refusal);
        });
    }

    /// Whether something is still owed under this stream's number.
    pub(crate) fn has(&self, stream: StreamId) -> bool {
        let state = self.lock();
        state.publishers.contains_key(&stream) || state.consumers.contains_key(&stream)
    }

    /// Forgets a consumer that was never opened.
    pub(crate) fn drop_consumer(&self, stream: StreamId) {
        self.lock().consumers.remove(&stream);
    }

    /// Publishes and requests' completions that are still owed.
    pub(crate) fn owes(&self) -> bool {
        let state = self.lock();
        state.unanswered > 0
            || !state.completions.is_empty()
            || !state.talking.is_empty()
            || state.go_away.is_some()
    }

    /// The connection is over: whatever is left or still comes is dropped.
    pub(crate) fn end(&self) {
        let left = {
            let mut state = self.lock();
            state.over = true;
            let consumers = std::mem::take(&mut state.consumers);
            (
                std::mem::take(&mut state.completions),
                std::mem::take(&mut state.publishers),
                consumers,
            )
        };
        // Dropped without the lock: completions may hold what locks this outbox.
        drop(left);
    }

    /// Wakes `waker` when something is left here.
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Takes what must leave next: last words, completions and answers, or else one delivery.
    pub(crate) fn take(&self, taken: &mut Taken) {
        let mut state = self.lock();
        if let Some(go_away) = state.go_away.take() {
            taken.frames.push(Frame::GoAway(go_away));
        }
        taken.completions.append(&mut state.completions);
        while let Some(stream) = state.talking.pop_front() {
            state.take_publisher(stream, taken);
            state.take_consumer(stream, taken);
        }
        if taken.frames.is_empty() && taken.completions.is_empty() {
            state.take_delivery(taken);
        }
    }

    pub(super) fn answer(&self, stream: StreamId, answer: Answer) {
        self.change(|state| {
            state.unanswered -= 1;
            if let Some(publisher) = state.publishers.get_mut(&stream) {
                publisher.unanswered -= 1;
            }
            state.push_answer(stream, answer);
        });
    }

    /// Changes the state and wakes the connection's task, unless the connection is over.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.lock();
            if state.over {
                return;
            }
            change(&mut state);
        }
        self.waker.wake();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push_answer(&mut self, stream: StreamId, answer: Answer) {
        if let Some(publisher) = self.publishers.get_mut(&stream) {
            publisher.answers.push_back(answer);
            self.talk(stream);
        }
    }

    /// Puts the stream into the list of those that have something to send, once.
    pub(super) fn talk(&mut self, stream: StreamId) {
        let publisher = self.publishers.get_mut(&stream).map(|publisher| &mut publisher.talking);
        let consumer = self.consumers.get_mut(&stream).map(|consumer| &mut consumer.talking);
        if let Some(talking) = publisher.or(consumer)
            && !std::mem::replace(talking, true)
        {
            self.talking.push_back(stream);
        }
    }

    fn take_publisher(&mut self, stream: StreamId, taken: &mut Taken) {
        let Some(publisher) = self.publishers.get_mut(&stream) else { return };
        publisher.talking = false;
        if let Some(revoke) = publisher.revoke.take() {
            taken.frames.push(Frame::Revoke(stream, revoke));
        }
        publisher.take_answers(stream, taken);
        if std::mem::take(&mut publisher.grant_due) {
            taken.frames.push(Frame::Grant(stream, publisher.grant));
        }
        if publisher.unanswered == 0
            && let Some(refusal) = publisher.closing.take()
        {
            let refusal = refusal.map(|refusal| *refusal);
            taken.frames.push(Frame::StreamClosed(StreamClosed { stream, refusal }));
            self.publishers.remove(&stream);
        }
    }
}

impl PublisherOut {
    /// Runs of stored ranges become one PUBLISHED each; every answer carries the newest grant.
    fn take_answers(&mut self, stream: StreamId, taken: &mut Taken) {
        let frames = &mut taken.frames;
        let mut stored: Vec<StoredRange> = Vec::new();
        let grant = self.grant;
        let flush = |stored: &mut Vec<StoredRange>, frames: &mut Vec<Frame>| {
            if !stored.is_empty() {
                let stored = std::mem::take(stored);
                frames.push(Frame::Published(Published { stream, stored, grant }));
            }
        };
        let answered = !self.answers.is_empty();
        for answer in self.answers.drain(..) {
            match answer {
                Answer::Stored(range, read) => {
                    stored.push(range);
                    taken.acknowledged.push(read);
                    if stored.len() == STORED_PER_FRAME_MAX {
                        flush(&mut stored, frames);
                    }
                }
                Answer::Refused(base_sequence, record_count, refusal) => {
                    flush(&mut stored, frames);
                    let refusal = *refusal;
                    let refused = Refused { stream, base_sequence, record_count, refusal, grant };
                    frames.push(Frame::Refused(refused));
                }
            }
        }
        flush(&mut stored, frames);
        self.answers.shrink_to(0);
        if answered {
            self.grant_due = false;
        }
    }
}

/// Where flow control leaves a stream's newest grant. Pushing never waits.
#[derive(Debug)]
pub struct GrantRegister {
    outbox: Arc<Outbox>,
    stream: StreamId,
}

impl GrantRegister {
    /// The connection's number.
    pub fn connection(&self) -> u64 {
        self.outbox.connection
    }

    /// The stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// The newest grant; it gets a frame of its own only where no answer will carry it.
    pub fn grant(&self, grant: Grant, urgent: bool) {
        if urgent {
            self.outbox.change(|state| {
                if let Some(publisher) = state.publishers.get_mut(&self.stream) {
                    publisher.grant = grant;
                    publisher.grant_due = true;
                    state.talk(self.stream);
                }
            });
        } else if let Some(publisher) = self.outbox.lock().publishers.get_mut(&self.stream) {
            publisher.grant = grant;
        }
    }

    /// Asks unspent credit back; later answers carry the lower `grant`.
    pub fn revoke(&self, revoke: Revoke, grant: Grant) {
        self.outbox.change(|state| {
            if let Some(publisher) = state.publishers.get_mut(&self.stream) {
                publisher.revoke = Some(revoke);
                publisher.grant = grant;
                publisher.grant_due = false;
                state.talk(self.stream);
            }
        });
    }

    /// The peer left a revoke unanswered: its stream ends.
    pub fn silent(&self) {
        let text = "a REVOKE of this stream was not answered in time; open it again";
        let refusal = Refusal::new(ErrorCode::PeerSilent, text);
        self.end(Refusal { scope: Scope::Stream, outcome: Outcome::Unknown, ..refusal });
    }

    /// The stream ends, once all its publishes are answered.
    pub fn end(&self, refusal: Refusal) {
        self.outbox.close_publisher(self.stream, Some(refusal));
    }
}

#[cfg(test)]
mod tests;
