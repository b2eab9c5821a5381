//! The bulk lane as its acceptor speaks it: appends into replicas, their answers back; snapshots and fetches.
//!
//! Owns: the streams of one asker, what they were granted and what is held for them.
//! Never: lets a stream that is slow hold up another.
//! Invariants:
//! - what is held for a stream is drawn from the account of the room before it is held, and until
//!   it is flushed, also where the link is gone by then: a window is how much may be under way, no memory by itself, or hundreds of
//!   idle streams would hold all there is. A stream for which there is no memory is refused;
//! - a window grows only when its leader asks, and while at least half of the account is free;
//! - what comes on a stream that is over is passed over; what exceeds its credit ends the link.

use super::ask::Answers;
use super::bulk::STREAMS_MAX;
use super::incoming::Incoming;
use super::link::{Failure, Talk, malformed};
use super::reader::{Admission, PLAIN_FRAME_BYTES_MAX};
use super::replicas::Replicas;
use super::snapshot::SnapshotIn;
use super::throttle::Throttle;
use crate::budget::{Account, Draft};
use crate::seams::BoxFuture;
use futures_util::stream::{self, BoxStream, FuturesUnordered, SelectAll};
use futures_util::{FutureExt, StreamExt};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use weir_protocol::peer::limits::{PEER_FRAME_COST, STREAM_WINDOW_BYTES_MAX};
use weir_protocol::peer::{
    Append, AppendResult, Fetch, Fetched, GroupAddress, PeerFrame, PeerHead, PeerRefusal,
    SegmentPart, SnapshotHead, SnapshotPart,
};
use weir_protocol::types::StreamId;

/// Appends that the largest window can stand for.
const STREAM_APPENDS_MAX: usize = (STREAM_WINDOW_BYTES_MAX / PEER_FRAME_COST) as usize + 1;
/// Fetches of one link at a time; PEER.md 3.
pub(super) const FETCHES_MAX: usize = 2;
/// Snapshots of one link at a time; PEER.md 3.
pub(super) const SNAPSHOTS_MAX: usize = 2;
/// Whole frames that wait to be written: beyond, the asker asks and does not listen.
const FRAMES_MAX: usize = 64;

/// The answer of one stream; none when its replica answers no more.
type Answered = (StreamId, Option<AppendResult>);

/// The acceptor of one bulk lane.
pub(super) struct Receiver {
    replicas: Arc<dyn Replicas>,
    answers: Arc<dyn Answers>,
    memory: Arc<Account>,
    /// What the asker may be sent as catch-up; none where it is not dialed from here.
    catch_up: Option<Arc<Throttle>>,
    streams: BTreeMap<StreamId, Incoming>,
    /// The newest stream: none is opened twice.
    opened: StreamId,
    running: SelectAll<BoxStream<'static, Answered>>,
    /// Streams with something to write, each once, and the same as a set.
    talking: VecDeque<StreamId>,
    listed: BTreeSet<StreamId>,
    /// Snapshots that arrive.
    snapshots: BTreeMap<StreamId, SnapshotIn>,
    installing: FuturesUnordered<BoxFuture<'static, PeerFrame>>,
    fetching: FuturesUnordered<BoxFuture<'static, PeerFrame>>,
    /// Grants of snapshots, and answers that are whole frames.
    frames: VecDeque<PeerFrame>,
}

impl Receiver {
    pub(super) fn new(
        replicas: Arc<dyn Replicas>,
        answers: Arc<dyn Answers>,
        memory: Arc<Account>,
        catch_up: Option<Arc<Throttle>>,
    ) -> Self {
        Self {
            replicas,
            answers,
            memory,
            catch_up,
            streams: BTreeMap::new(),
            opened: StreamId(0),
            running: SelectAll::new(),
            talking: VecDeque::new(),
            listed: BTreeSet::new(),
            snapshots: BTreeMap::new(),
            installing: FuturesUnordered::new(),
            fetching: FuturesUnordered::new(),
            frames: VecDeque::new(),
        }
    }

    /// The stream has something to write, unless it is known.
    fn talk(&mut self, stream: StreamId) {
        if self.listed.insert(stream) {
            self.talking.push_back(stream);
        }
    }

    fn refuse(&mut self, stream: StreamId, refusal: PeerRefusal) {
        if let Some(incoming) = self.streams.get_mut(&stream) {
            incoming.on_answer(AppendResult::Refused(refusal));
            self.talk(stream);
        }
    }

    fn on_open(&mut self, stream: StreamId, address: GroupAddress) -> Result<(), Failure> {
        if stream <= self.opened {
            return Err(malformed("a stream was opened twice"));
        }
        if self.streams.len() >= STREAMS_MAX {
            return Err(PeerRefusal::Overloaded.into());
        }
        self.opened = stream;
        let (appends, mut queue) = mpsc::channel(STREAM_APPENDS_MAX);
        let (alive, dead) = oneshot::channel::<()>();
        let queue = stream::poll_fn(move |cx| queue.poll_recv(cx)).boxed();
        let results = self.replicas.stream(address.to, queue);
        let last = stream::once(std::future::ready((stream, None)));
        let results = results.map(move |result| (stream, Some(result))).chain(last);
        self.running.push(results.take_until(dead).boxed());
        self.streams.insert(stream, Incoming::new(appends, alive));
        Ok(())
    }

    fn on_append(&mut self, append: Append, draft: Option<Draft>) -> Result<(), Failure> {
        match self.streams.get_mut(&append.stream) {
            Some(incoming) => incoming.on_append(append, draft),
            None => self.on_stray(append.stream),
        }
    }

    /// A frame of a stream that is not open: it is over, or never was.
    fn on_stray(&self, stream: StreamId) -> Result<(), Failure> {
        match stream <= self.opened {
            true => Ok(()),
            false => Err(malformed("the stream was not opened")),
        }
    }

    fn on_demand(&mut self, stream: StreamId, cost: u64) -> Result<(), Failure> {
        let room = self.memory.used() < self.memory.part().bytes / 2;
        let Some(incoming) = self.streams.get_mut(&stream) else { return self.on_stray(stream) };
        if incoming.on_demand(cost, room) {
            self.talk(stream);
        }
        Ok(())
    }

    fn on_fetch(&mut self, fetch: Fetch) -> Result<(), Failure> {
        let request = fetch.request;
        if self.fetching.len() >= FETCHES_MAX {
            let answer = Err(PeerRefusal::Overloaded);
            return self.say(PeerFrame::Fetched(Fetched { request, answer }));
        }
        let (answer, catch_up) = (self.answers.fetch(fetch), self.catch_up.clone());
        let answer = answer.map(move |answer| {
            if let (Some(catch_up), Ok(found)) = (catch_up, &answer) {
                let bytes: usize = found.parts.iter().map(SegmentPart::len).sum();
                // Until its log is mended the replica is missing, and the asker does not wait for
                // long: this goes at once, and what else catches up there waits the longer.
                let cost = bytes as u64 + PEER_FRAME_COST;
                catch_up.turn(cost, true, Instant::now()).take();
            }
            PeerFrame::Fetched(Fetched { request, answer })
        });
        self.fetching.push(answer.boxed());
        Ok(())
    }

    fn on_snapshot(&mut self, stream: StreamId, head: SnapshotHead) -> Result<(), Failure> {
        if stream <= self.opened {
            return Err(malformed("a stream was opened twice"));
        }
        self.opened = stream;
        let is_full = self.snapshots.len() + self.installing.len() >= SNAPSHOTS_MAX;
        let draft = if is_full { None } else { self.memory.try_draw(head.state_len) };
        let Some(draft) = draft else {
            return self.say(PeerFrame::SnapshotDone(stream, Err(PeerRefusal::Overloaded)));
        };
        self.snapshots.insert(stream, SnapshotIn::new(head, draft));
        self.install_if_whole(stream)
    }

    fn on_part(&mut self, part: &SnapshotPart) -> Result<(), Failure> {
        let stream = part.stream;
        let Some(snapshot) = self.snapshots.get_mut(&stream) else { return self.on_stray(stream) };
        snapshot.on_part(part)?;
        let grant = snapshot.grant();
        self.say(PeerFrame::Grant(stream, grant))?;
        self.install_if_whole(stream)
    }

    fn install_if_whole(&mut self, stream: StreamId) -> Result<(), Failure> {
        if !self.snapshots.get(&stream).is_some_and(SnapshotIn::is_whole) {
            return Ok(());
        }
        let Some(snapshot) = self.snapshots.remove(&stream) else { return Ok(()) };
        match snapshot.into_whole() {
            Err(refusal) => self.say(PeerFrame::SnapshotDone(stream, Err(refusal))),
            Ok((head, state, draft)) => {
                let installed = self.replicas.install(head, state);
                let done = async move {
                    let answer = installed.await;
                    drop(draft);
                    PeerFrame::SnapshotDone(stream, answer)
                };
                self.installing.push(done.boxed());
                Ok(())
            }
        }
    }

    fn say(&mut self, frame: PeerFrame) -> Result<(), Failure> {
        if self.frames.len() >= FRAMES_MAX {
            return Err(PeerRefusal::Overloaded.into());
        }
        self.frames.push_back(frame);
        Ok(())
    }

    /// Takes in what replicas have answered.
    fn poll_running(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some((stream, result))) = self.running.poll_next_unpin(cx) {
            if let Some(incoming) = self.streams.get_mut(&stream) {
                let result = result.unwrap_or(AppendResult::Refused(PeerRefusal::Fenced));
                incoming.on_answer(result);
                self.talk(stream);
            }
        }
        // These are few by their limits, so that their answers always find room.
        for answers in [&mut self.fetching, &mut self.installing] {
            while let Poll::Ready(Some(frame)) = answers.poll_next_unpin(cx) {
                self.frames.push_back(frame);
            }
        }
    }

    fn next_answer(&mut self) -> Option<PeerFrame> {
        // Short of memory, windows go back to what they began with as they are answered.
        let is_short = self.memory.used() > self.memory.part().bytes / 4 * 3;
        while let Some(stream) = self.talking.pop_front() {
            self.listed.remove(&stream);
            let Some(incoming) = self.streams.get_mut(&stream) else { continue };
            if is_short {
                incoming.shrink();
            }
            let is_over = incoming.is_over();
            let frame = incoming.next(stream);
            if is_over {
                self.streams.remove(&stream);
            }
            if frame.is_some() {
                return frame;
            }
        }
        None
    }
}

impl Talk for Receiver {
    fn admit(&mut self, head: &PeerHead) -> Result<Admission, Failure> {
        let stream = head.stream;
        if stream == StreamId(0) || head.body_bytes == 0 {
            return match head.frame_bytes <= PLAIN_FRAME_BYTES_MAX {
                true => Ok(Admission::Hold(None)),
                false => Err(malformed("a frame is longer than such a frame may be")),
            };
        }
        let open = self.streams.get(&stream).filter(|incoming| !incoming.is_over());
        let covered = match (open, self.snapshots.get(&stream)) {
            (Some(incoming), _) => incoming.covers(head.cost()),
            (None, Some(snapshot)) => snapshot.covers(head.cost()),
            (None, None) => return self.on_stray(stream).map(|()| Admission::Skip),
        };
        if !covered {
            return Err(malformed("a frame exceeds its stream's credit"));
        }
        if let Some(draft) = self.memory.try_draw(head.cost()) {
            return Ok(Admission::Hold(Some(draft)));
        }
        if self.snapshots.remove(&stream).is_some() {
            self.say(PeerFrame::SnapshotDone(stream, Err(PeerRefusal::Overloaded)))?;
        }
        self.refuse(stream, PeerRefusal::Overloaded);
        Ok(Admission::Skip)
    }

    fn on_frame(
        &mut self,
        frame: PeerFrame,
        draft: Option<Draft>,
        _now: Instant,
    ) -> Result<(), Failure> {
        match frame {
            PeerFrame::AppendOpen(stream, address) => self.on_open(stream, address),
            PeerFrame::Append(append) => self.on_append(append, draft),
            PeerFrame::AppendClose(stream) => {
                self.streams.remove(&stream);
                self.snapshots.remove(&stream);
                self.on_stray(stream)
            }
            PeerFrame::Snapshot(stream, head) => self.on_snapshot(stream, head),
            PeerFrame::SnapshotPart(part) => self.on_part(&part),
            PeerFrame::Demand(stream, demand) => self.on_demand(stream, demand.cost),
            PeerFrame::Fetch(fetch) => self.on_fetch(fetch),
            _ => Err(malformed("the frame is no question of the bulk lane")),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>, _now: Instant) -> Poll<PeerFrame> {
        self.poll_running(cx);
        let answer = self.next_answer().or_else(|| self.frames.pop_front());
        answer.map_or(Poll::Pending, Poll::Ready)
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn is_quiet(&self) -> bool {
        self.streams.values().all(Incoming::is_quiet)
            && self.talking.is_empty()
            && self.snapshots.is_empty()
            && [&self.fetching, &self.installing].iter().all(|answers| answers.is_empty())
            && self.frames.is_empty()
    }
}
