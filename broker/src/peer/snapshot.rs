//! One snapshot on its way, as either side of it.
//!
//! Owns: what was sent and granted of it, and what has arrived.
//! Never: a lock, a task or a clock; holds more than its account gave for it.
//! Invariants: parts are sent as far as was granted, and go into one piece of memory that was drawn
//! for the whole before the first was taken; what arrived is handed on only when its CRC fits.

use super::credit::grant_of;
use super::link::{Failure, malformed};
use super::outgoing::Next;
use crate::budget::Draft;
use crate::replication::PeerLost;
use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};
use weir_protocol::frame::Grant;
use weir_protocol::peer::limits::{
    CONTENT_BYTES_MAX, INITIAL_CREDIT_BYTES, PEER_FRAME_COST, STREAM_WINDOW_BYTES_MAX,
};
use weir_protocol::peer::{PeerFrame, PeerRefusal, SnapshotHead, SnapshotPart, Vote};
use weir_protocol::types::StreamId;

/// Content of one part.
const PART_BYTES: usize = 128 << 10;
/// What a follower grants beyond what has arrived: it takes parts in at once.
const WINDOW_BYTES: u64 = 1 << 20;
/// A snapshot of which nothing moves for this long is given up.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Installing may take longer: files are written and flushed.
const INSTALL_MAX: Duration = Duration::from_secs(60);

const _: () = assert!(PART_BYTES <= CONTENT_BYTES_MAX);
const _: () = assert!(PART_BYTES as u64 + PEER_FRAME_COST <= INITIAL_CREDIT_BYTES);
const _: () = assert!(WINDOW_BYTES <= STREAM_WINDOW_BYTES_MAX);

/// The leader's side.
pub(super) struct SnapshotOut {
    head: SnapshotHead,
    state: Bytes,
    sent: usize,
    announced: bool,
    spent: u64,
    limit: u64,
    progress: Instant,
    answer: oneshot::Sender<Result<Vote, PeerLost>>,
}

impl SnapshotOut {
    pub(super) fn new(
        head: SnapshotHead,
        state: Bytes,
        answer: oneshot::Sender<Result<Vote, PeerLost>>,
        now: Instant,
    ) -> Self {
        let (spent, limit) = (0, INITIAL_CREDIT_BYTES);
        Self { head, state, sent: 0, announced: false, spent, limit, progress: now, answer }
    }

    pub(super) fn next(&mut self, stream: StreamId, now: Instant) -> Next {
        if !std::mem::replace(&mut self.announced, true) {
            self.progress = now;
            return Next::Frame(PeerFrame::Snapshot(stream, self.head.clone()));
        }
        let end = self.state.len().min(self.sent + PART_BYTES);
        let content = self.state.slice(self.sent..end);
        let part = SnapshotPart { stream, position: self.sent as u64, content };
        if part.content.is_empty() || self.spent + part.cost() > self.limit {
            return Next::Nothing;
        }
        self.spent += part.cost();
        (self.sent, self.progress) = (end, now);
        Next::Frame(PeerFrame::SnapshotPart(part))
    }

    pub(super) fn on_grant(&mut self, limit: u64, now: Instant) {
        self.limit = self.limit.max(limit.min(self.spent + STREAM_WINDOW_BYTES_MAX));
        self.progress = now;
    }

    /// Whether nothing has moved for too long.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        let most = if self.sent == self.state.len() { INSTALL_MAX } else { IDLE_MAX };
        now >= self.progress + most
    }

    /// Whether the peer knows of it.
    pub(super) fn is_open_there(&self) -> bool {
        self.announced
    }

    /// The answer has come, or never will.
    pub(super) fn end(self, answer: Result<Vote, PeerLost>) {
        // Who asked may have given it up.
        let _ = self.answer.send(answer);
    }
}

/// The follower's side.
pub(super) struct SnapshotIn {
    head: SnapshotHead,
    state: BytesMut,
    /// What the state is held on account of.
    draft: Draft,
    spent: u64,
    limit: u64,
}

impl SnapshotIn {
    pub(super) fn new(head: SnapshotHead, draft: Draft) -> Self {
        let state = BytesMut::with_capacity(draft.bytes() as usize);
        Self { head, state, draft, spent: 0, limit: INITIAL_CREDIT_BYTES }
    }

    pub(super) fn covers(&self, cost: u64) -> bool {
        self.spent + cost <= self.limit
    }

    pub(super) fn on_part(&mut self, part: &SnapshotPart) -> Result<(), Failure> {
        let cost = part.cost();
        let end = part.position + part.content.len() as u64;
        if part.position != self.state.len() as u64 || end > self.head.state_len {
            return Err(malformed("the parts of a snapshot are not in order, or too many"));
        }
        if !self.covers(cost) {
            return Err(malformed("a part of a snapshot exceeds its stream's credit"));
        }
        self.spent += cost;
        self.state.extend_from_slice(&part.content);
        Ok(())
    }

    pub(super) fn grant(&mut self) -> Grant {
        self.limit = self.limit.max(self.spent + WINDOW_BYTES);
        grant_of(self.limit)
    }

    /// Whether all of it is here.
    pub(super) fn is_whole(&self) -> bool {
        self.state.len() as u64 == self.head.state_len
    }

    /// What is to be installed, and what holds it.
    pub(super) fn into_whole(self) -> Result<(SnapshotHead, Bytes, Draft), PeerRefusal> {
        if crc32fast::hash(&self.state) != self.head.state_crc {
            return Err(PeerRefusal::Malformed);
        }
        Ok((self.head, self.state.freeze(), self.draft))
    }
}
