//! The streams to one broker, of whoever has something to send there.
//!
//! Owns: appends and snapshots that wait for a link, for credit or for their answers; whose turn it
//! is.
//! Never: waits for a link: what is not there is unreachable.
//! Invariants: a stream lives as long as the link it was opened on, and is lost with it; at most
//! [`STREAMS_MAX`] of them are open or being closed.

use super::calls::Calls;
use super::link::Failure;
use super::outgoing::{Next, Outgoing};
use super::snapshot::SnapshotOut;
use super::throttle::{Throttle, Turn};
use crate::replication::{AppendStream, PeerLost};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};
use weir_protocol::frame::Grant;
use weir_protocol::peer::{
    Append, AppendResult, Appended, GroupAddress, PeerFrame, PeerRefusal, SnapshotHead, Vote,
};
use weir_protocol::types::StreamId;

/// Streams of one link at a time.
pub(super) const STREAMS_MAX: usize = 4_096;
/// A stream is lost when something was under way this long and nothing was answered. The engine's
/// own limits are as short as a heartbeat: a flush may take longer than that.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(10);

/// What waits for a link to one broker's bulk lane.
pub(super) struct Bulk {
    pub(super) calls: Calls,
    throttle: Arc<Throttle>,
    state: Mutex<State>,
    link: AtomicWaker,
}

#[derive(Default)]
struct State {
    open: bool,
    /// Streams are counted over all links; this link's first is the one behind this.
    before: u64,
    last: u64,
    streams: BTreeMap<u64, Outgoing>,
    snapshots: BTreeMap<u64, SnapshotOut>,
    /// Streams that may have something to send, each once, and the same as a set.
    talking: VecDeque<u64>,
    listed: BTreeSet<u64>,
    /// Streams that are over here and not yet there.
    closed: VecDeque<StreamId>,
}

impl State {
    fn number(&self, stream: u64) -> StreamId {
        StreamId((stream - self.before) as u32)
    }

    fn stream(&self, number: StreamId) -> u64 {
        self.before + u64::from(number.0)
    }

    fn waits(&self) -> bool {
        !self.snapshots.is_empty() || self.streams.values().any(Outgoing::waits)
    }

    /// Numbers a new stream.
    fn begin(&mut self) -> Result<u64, PeerLost> {
        if !self.open {
            return Err(PeerLost::Unreachable);
        }
        let used = self.streams.len() + self.snapshots.len() + self.closed.len();
        if used >= STREAMS_MAX || self.last - self.before >= u64::from(u32::MAX) {
            return Err(PeerLost::Refused(PeerRefusal::Overloaded));
        }
        self.last += 1;
        Ok(self.last)
    }

    /// The stream has something to send, unless it is known.
    fn talk(&mut self, stream: u64) {
        if self.listed.insert(stream) {
            self.talking.push_back(stream);
        }
    }

    fn next(&mut self, now: Instant) -> Option<PeerFrame> {
        if let Some(stream) = self.closed.pop_front() {
            return Some(PeerFrame::AppendClose(stream));
        }
        while let Some(stream) = self.talking.pop_front() {
            self.listed.remove(&stream);
            let number = self.number(stream);
            let next = match (self.streams.get_mut(&stream), self.snapshots.get_mut(&stream)) {
                (Some(outgoing), _) => outgoing.next(number, now),
                (None, Some(snapshot)) => snapshot.next(number, now),
                (None, None) => Next::Nothing,
            };
            match next {
                Next::Nothing => {}
                Next::Last(frame) => return Some(frame),
                Next::Frame(frame) => {
                    self.talk(stream);
                    return Some(frame);
                }
            }
        }
        None
    }
}

impl Bulk {
    pub(super) fn new(throttle: Arc<Throttle>) -> Self {
        let (calls, state, link) = Default::default();
        Self { calls, throttle, state, link }
    }

    /// How fast that broker is helped who is behind.
    pub(super) fn throttle(&self) -> &Arc<Throttle> {
        &self.throttle
    }

    /// A link stands.
    pub(super) fn open(&self) {
        self.calls.open();
        let mut state = self.state();
        state.open = true;
        state.before = state.last;
    }

    /// The link takes nothing new.
    pub(super) fn leave(&self) {
        self.calls.leave();
        self.state().open = false;
    }

    /// The link is gone: whoever waits learns it.
    pub(super) fn close(&self) {
        self.calls.close();
        let mut state = self.state();
        let last = state.last;
        let lost = std::mem::replace(&mut *state, State { last, ..State::default() });
        drop(state);
        drop(lost.snapshots);
        for outgoing in lost.streams.into_values() {
            outgoing.wake();
        }
    }

    /// The next frame to send, if there is one now.
    pub(super) fn next(&self, cx: &Context<'_>, now: Instant) -> Option<PeerFrame> {
        self.link.register(cx.waker());
        self.calls.next(cx).or_else(|| self.state().next(now))
    }

    // What comes for streams that are over here is passed over.

    pub(super) fn on_grant(&self, number: StreamId, grant: &Grant, now: Instant) {
        let mut state = self.state();
        let stream = state.stream(number);
        if let Some(outgoing) = state.streams.get_mut(&stream) {
            outgoing.on_grant(grant.limit_cost);
        } else if let Some(snapshot) = state.snapshots.get_mut(&stream) {
            snapshot.on_grant(grant.limit_cost, now);
        }
        state.talk(stream);
    }

    pub(super) fn on_appended(&self, appended: &Appended, now: Instant) -> Result<(), Failure> {
        let mut state = self.state();
        let stream = state.stream(appended.stream);
        if let Some(outgoing) = state.streams.get_mut(&stream) {
            outgoing.on_appended(appended, now)?;
        }
        state.talk(stream);
        Ok(())
    }

    pub(super) fn on_snapshot_done(&self, number: StreamId, answer: Result<Vote, PeerRefusal>) {
        let mut state = self.state();
        let stream = state.stream(number);
        if let Some(snapshot) = state.snapshots.remove(&stream) {
            snapshot.end(answer.map_err(PeerLost::Refused));
        }
    }

    /// Gives up streams whose answers do not come. Says whether any still waits for one.
    pub(super) fn check_idle(&self, now: Instant) -> bool {
        let mut guard = self.state();
        let state = &mut *guard;
        for (stream, outgoing) in &mut state.streams {
            if outgoing.is_idle_since(now - IDLE_MAX) {
                outgoing.lose(PeerLost::Broken);
                state.closed.push_back(StreamId((stream - state.before) as u32));
            }
        }
        let idle = state.snapshots.extract_if(.., |_, snapshot| snapshot.is_idle(now));
        for (stream, snapshot) in idle {
            snapshot.end(Err(PeerLost::Broken));
            state.closed.push_back(StreamId((stream - state.before) as u32));
        }
        state.waits()
    }

    /// Whether nothing waits for an answer.
    pub(super) fn is_quiet(&self) -> bool {
        self.calls.is_quiet() && !self.state().waits()
    }

    fn open_stream(&self, address: GroupAddress) -> Result<u64, PeerLost> {
        let mut state = self.state();
        let stream = state.begin()?;
        state.streams.insert(stream, Outgoing::new(address));
        Ok(stream)
    }

    /// Sends a snapshot when its turn has come, and waits for what became of it. It is for one who is
    /// far behind.
    pub(super) async fn snapshot(
        &self,
        head: SnapshotHead,
        state: Bytes,
    ) -> Result<Vote, PeerLost> {
        let turn = self.turn(head.state_len, false)?;
        tokio::time::sleep_until(turn.at).await;
        turn.take();
        let (sender, answer) = oneshot::channel();
        let snapshot = SnapshotOut::new(head, state, sender, Instant::now());
        let place = {
            let mut state = self.state();
            let stream = state.begin()?;
            state.snapshots.insert(stream, snapshot);
            state.talk(stream);
            Place { bulk: self, stream }
        };
        self.link.wake();
        let answered = answer.await;
        drop(place);
        answered.unwrap_or(Err(PeerLost::Broken))
    }

    /// A place among all that helps this broker catch up; none where there is no link to it.
    fn turn(&self, cost: u64, presses: bool) -> Result<Turn, PeerLost> {
        if !self.state().open {
            return Err(PeerLost::Unreachable);
        }
        Ok(self.throttle.turn(cost, presses, Instant::now()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A snapshot that somebody waits for.
struct Place<'a> {
    bulk: &'a Bulk,
    stream: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.bulk.state();
        if state.snapshots.remove(&self.stream).is_some_and(|snapshot| snapshot.is_open_there()) {
            let number = state.number(self.stream);
            state.closed.push_back(number);
            drop(state);
            self.bulk.link.wake();
        }
    }
}

/// One stream of appends to one broker.
pub(super) struct Sending {
    bulk: Arc<Bulk>,
    address: GroupAddress,
    stream: Option<u64>,
    /// Of what is sent next, where that is catch-up.
    turn: Option<Turn>,
}

impl Sending {
    pub(super) fn new(bulk: Arc<Bulk>, address: GroupAddress) -> Self {
        Self { bulk, address, stream: None, turn: None }
    }

    /// Acts on the stream; none when it is gone with its link, or not opened yet.
    fn with<T>(&self, act: impl FnOnce(&mut Outgoing) -> T) -> Option<T> {
        self.bulk.state().streams.get_mut(&self.stream?).map(act)
    }
}

impl AppendStream for Sending {
    fn catch_up(&mut self, cost: u64, presses: bool) -> Instant {
        self.turn = self.bulk.turn(cost, presses).ok();
        // Whoever has no link finds that out at once.
        self.turn.as_ref().map_or_else(Instant::now, |turn| turn.at)
    }

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), PeerLost>> {
        if self.stream.is_none() {
            match self.bulk.open_stream(self.address) {
                Ok(stream) => self.stream = Some(stream),
                Err(lost) => return Poll::Ready(Err(lost)),
            }
        }
        let ready = self.with(|outgoing| outgoing.poll_ready(context));
        ready.unwrap_or(Poll::Ready(Err(PeerLost::Broken)))
    }

    fn send(&mut self, append: Append) {
        let Some(stream) = self.stream else { return };
        let mut state = self.bulk.state();
        if let Some(outgoing) = state.streams.get_mut(&stream) {
            outgoing.push(append);
            state.talk(stream);
            drop(state);
            self.turn.take().into_iter().for_each(Turn::take);
            self.bulk.link.wake();
        }
    }

    fn close(&mut self) {
        self.with(Outgoing::close);
    }

    fn poll_answer(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<AppendResult, PeerLost>>> {
        if self.stream.is_none() {
            return Poll::Pending;
        }
        let answer = self.with(|outgoing| outgoing.poll_answer(context));
        answer.unwrap_or(Poll::Ready(Some(Err(PeerLost::Broken))))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let Some(stream) = self.stream else { return };
        let mut state = self.bulk.state();
        if state.streams.remove(&stream).is_some_and(|outgoing| outgoing.is_open_there()) {
            let number = state.number(stream);
            state.closed.push_back(number);
            drop(state);
            self.bulk.link.wake();
        }
    }
}
