//! What a partition does for its log: checkpoints, trims, space, and life after a full disk.
//!
//! Owns: at most one maintenance job at a time, run beside the task.
//! Never: decides what may go (that is `retention`'s); retries a failed flush.
//! Invariants: a checkpoint is taken at each seal, so that the log can be trimmed by segments; the
//! log is trimmed no further than readers were told; a state that may lack something never becomes
//! durable.

use super::Task;
use crate::partition::core::Event;
use crate::partition::limits::{
    FAILED_DEVICE_GRACE, PROPOSAL_BYTES_MAX, REOPEN_AFTER, ROOM_BYTES_MIN, TRIM_HELD,
};
use crate::partition::refusal::SubscribeRefusal;
use crate::partition::retention::Sealed;
use crate::replication::{
    Birth, Fence, MaintainError, OpenReplicaError, Replica, Role, WATERMARK_AFTER,
};
use crate::seams::BoxFuture;
use bytes::Bytes;
use tokio::time::Instant;
use weir_protocol::types::Index;
use weir_storage::limits::{
    CONTROL_RESERVE_BYTES, DISK_RESERVE_BYTES, SEGMENT_HEADER_BYTES, next_segment_bytes,
};

/// What a maintenance job came to.
pub(super) enum Maintained {
    Checkpoint(Index, Result<(), MaintainError>),
    /// Up to the index that was wanted.
    Trim(Index, Result<Index, MaintainError>),
    Watermark(Result<(), MaintainError>),
    Reopened(Box<Result<Replica, OpenReplicaError>>),
}

/// What is kept up.
pub(super) struct Upkeep {
    /// Cancelling it loses nothing: it stays here between two waits.
    pub(super) job: Option<BoxFuture<'static, Maintained>>,
    /// The newest checkpoint.
    checkpoint: Index,
    /// A checkpoint that was due while another job ran.
    due: Option<(Index, Bytes)>,
    /// The log was trimmed as far as this allows.
    trimmed: Index,
    /// Bytes of the log when seals were looked for last.
    seen_bytes: u64,
    /// The replica ended for want of space.
    reopening: bool,
    /// The device failed: the process ends then.
    failed_at: Option<Instant>,
    /// If nothing is appended until then, the log is idle.
    idle_at: Option<Instant>,
}

impl Upkeep {
    pub(super) fn new(checkpoint: Index) -> Self {
        Self {
            job: None,
            checkpoint,
            due: None,
            trimmed: Index(0),
            seen_bytes: 0,
            reopening: false,
            failed_at: None,
            idle_at: None,
        }
    }

    /// When the log is to be looked at for being idle: while another job runs, behind that.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        self.idle_at.filter(|_| self.job.is_none())
    }

    pub(super) fn is_restless(&self) -> bool {
        self.reopening || self.failed_at.is_some()
    }
}

impl Task {
    /// Looks whether segments have come or gone: then the limits are looked at, and a checkpoint
    /// is taken in the segment behind a seal.
    pub(super) fn segments_seen(&mut self, now: Instant) {
        let bytes = self.log.bounds().bytes;
        if bytes == self.upkeep.seen_bytes {
            return;
        }
        let applied = self.core.state().applied;
        let sealed = self.log.sealed_segments();
        let last = sealed.last().map_or(Index(0), |last| last.last_index);
        if last > applied {
            // The seal is not committed yet: looked at again with the next commit.
            return;
        }
        self.upkeep.seen_bytes = bytes;
        self.hold(now);
        if last > self.upkeep.checkpoint && !self.core.is_read_only() {
            self.upkeep.checkpoint = applied;
            self.upkeep.due = Some((applied, Bytes::from(self.core.state().encode())));
            self.start_checkpoint();
        }
    }

    /// The log begins behind a snapshot that is its newest checkpoint.
    pub(super) fn replaced(&mut self, at: Index) {
        (self.upkeep.checkpoint, self.upkeep.due, self.upkeep.seen_bytes) = (at, None, 0);
    }

    fn start_checkpoint(&mut self) {
        if self.upkeep.job.is_some() {
            return;
        }
        if let Some((at, state)) = self.upkeep.due.take() {
            let replica = self.replica.clone();
            let job =
                async move { Maintained::Checkpoint(at, replica.checkpoint(at, state).await) };
            self.upkeep.job = Some(Box::pin(job));
        }
    }

    /// Something was appended and is committed: the log is idle when nothing more comes.
    pub(super) fn busy(&mut self, now: Instant) {
        self.upkeep.idle_at = Some(now + WATERMARK_AFTER);
    }

    /// Leaves a watermark in a log that has become idle, once.
    pub(super) fn idle(&mut self, now: Instant) {
        if self.upkeep.idle_at().is_none_or(|at| at > now) {
            return;
        }
        self.upkeep.idle_at = None;
        // The commit of what is in flight comes back here.
        if self.replica.in_flight() == 0 {
            let replica = self.replica.clone();
            let job = async move { Maintained::Watermark(replica.leave_watermark().await) };
            self.upkeep.job = Some(Box::pin(job));
        }
    }

    /// Tells the core what the log holds.
    pub(super) fn hold(&mut self, now: Instant) {
        let wall_ms = self.around.options.wall.now_ms();
        let sealed = self.log.sealed_segments().into_iter().map(|segment| Sealed {
            last_index: segment.last_index,
            end_offset: segment.end_offset,
            bytes: segment.bytes,
            log_time_ms: segment.last_log_time_ms,
        });
        let (sealed, bounds) = (sealed.collect(), self.log.bounds());
        let (bytes, held_from) = (bounds.bytes, bounds.log_start);
        self.tell(Event::Holds { sealed, bytes, held_from, wall_ms }, now);
    }

    /// Starts what is due: a checkpoint, a trim, or the replica's second life.
    pub(super) fn maintain(&mut self, now: Instant) {
        if let Some(at) = self.upkeep.failed_at.filter(|at| *at <= now) {
            panic!("a device failed at {at:?}: what it holds is not known, the process ends");
        }
        self.start_checkpoint();
        if self.upkeep.job.is_some() {
            return;
        }
        if self.upkeep.reopening {
            let (replica, mut options) =
                (self.replica.clone(), self.around.options.replica.clone());
            if self.log.bounds().last_index > Index(0) {
                // What it had promised stands in its log: without that it must not take part.
                options.birth = Birth::Continues;
            }
            self.upkeep.job = Some(Box::pin(reopen(replica, options)));
            return;
        }
        if let Some(upto) = self.trim_target() {
            let replica = self.replica.clone();
            let job = async move { Maintained::Trim(upto, replica.trim(upto).await) };
            self.upkeep.job = Some(Box::pin(job));
        }
    }

    /// The last index that a trim may reach: the end of the last segment below the log start. The
    /// checkpoint in that segment is where another replica may begin, and so the segment stays; where
    /// no record is retained at all, any checkpoint is such.
    fn trim_target(&self) -> Option<Index> {
        if self.core.is_read_only() {
            return None;
        }
        let state = self.core.state();
        let sealed = self.log.sealed_segments();
        let gone = sealed.iter().take_while(|segment| segment.end_offset <= state.log_start);
        let last_gone = gone.last()?.last_index;
        let all_gone = state.log_start >= state.high_watermark;
        let target = if all_gone { state.applied } else { last_gone };
        (target > self.upkeep.trimmed).then_some(target)
    }

    pub(super) fn maintained(&mut self, done: Maintained, now: Instant) {
        let key = &self.around.options.key;
        match done {
            Maintained::Checkpoint(at, Ok(())) => {
                tracing::debug!(partition = ?key, %at, "checkpoint taken");
                self.tick_at = Some(now);
            }
            Maintained::Checkpoint(at, Err(error)) => {
                tracing::warn!(partition = ?key, %at, %error, "a checkpoint was not taken");
            }
            Maintained::Trim(upto, Ok(at)) => {
                tracing::debug!(partition = ?key, %at, "trimmed");
                self.upkeep.trimmed = upto;
                // A segment that came while one went left the sum of bytes as it was.
                self.upkeep.seen_bytes = 0;
                self.segments_seen(now);
            }
            Maintained::Trim(_, Err(MaintainError::Held(upto))) => {
                tracing::debug!(partition = ?key, %upto, "a follower is being sent what may go");
                self.tick_at = Some(now + TRIM_HELD);
            }
            Maintained::Trim(_, Err(error)) => {
                tracing::warn!(partition = ?key, %error, "the log was not trimmed");
            }
            Maintained::Watermark(Ok(())) => {}
            Maintained::Watermark(Err(error)) => {
                tracing::warn!(partition = ?key, %error, "no watermark was left");
            }
            Maintained::Reopened(reopened) => match *reopened {
                Ok(replica) => {
                    tracing::info!(partition = ?key, "the replica is open again");
                    self.state = replica.state();
                    self.state.mark_changed();
                    self.log = replica.log();
                    self.around.board.set_replica(Some(replica.clone()));
                    self.replica = replica;
                    self.upkeep.reopening = false;
                }
                Err(error) => {
                    tracing::warn!(partition = ?key, %error, "the replica could not be opened again");
                }
            },
        }
        self.start_checkpoint();
    }

    /// Reacts to the end of the replica.
    pub(super) fn role_seen(&mut self, role: &Role, now: Instant) {
        match role {
            Role::Fenced(Fence::NoSpace) if !self.upkeep.reopening => {
                tracing::warn!(partition = ?self.around.options.key, "the disk is full");
                self.upkeep.reopening = true;
                self.tick_at = Some(now);
            }
            Role::Fenced(Fence::Device(error)) if self.upkeep.failed_at.is_none() => {
                tracing::error!(partition = ?self.around.options.key, %error, "the device failed");
                self.upkeep.failed_at = Some(now + FAILED_DEVICE_GRACE);
                self.tick_at = Some(now);
            }
            _ => {}
        }
    }

    /// Makes sure that the next proposal finds room before it is made: a log that ran out of
    /// space in the middle of an append would have to be opened anew.
    pub(super) fn check_space(&mut self, now: Instant) {
        let next = self.core.next_bytes() as u64;
        if next == 0 && self.core.has_space() {
            return;
        }
        let enough = self.log.room() >= ROOM_BYTES_MIN + next
            || self.disk_has_room(next.max(PROPOSAL_BYTES_MAX as u64));
        if !enough && self.log.is_growing() {
            // Its space may be what is missing; nobody is refused, or let in, before it is there.
            return;
        }
        self.tell(Event::Space(enough), now);
    }

    fn disk_has_room(&self, needed: u64) -> bool {
        let options = &self.around.options.replica;
        let retained = options.log.retained_bytes;
        let needed = needed + SEGMENT_HEADER_BYTES + CONTROL_RESERVE_BYTES;
        let segment = next_segment_bytes(self.active_bytes(), retained, needed);
        // An error here says nothing about space: the append will tell.
        options.device.free_bytes().map_or(true, |free| free >= segment + DISK_RESERVE_BYTES)
    }

    fn active_bytes(&self) -> u64 {
        let sealed: u64 = self.log.sealed_segments().iter().map(|segment| segment.bytes).sum();
        // A trim between the two looks takes bytes away: then it only looks smaller than it is.
        self.log.bounds().bytes.saturating_sub(sealed)
    }

    /// The end: a last checkpoint makes the next start quick; then the replica, then everybody
    /// who still waits.
    pub(super) async fn end(mut self) {
        if let Some(job) = self.upkeep.job.take() {
            job.await;
        }
        let state = self.core.state();
        let runs = !matches!(self.state.borrow().role, Role::Fenced(_));
        let is_whole = runs && !self.core.is_read_only();
        if state.applied > self.upkeep.checkpoint && is_whole {
            let (at, bytes) = (state.applied, Bytes::from(state.encode()));
            if let Err(error) = self.replica.checkpoint(at, bytes).await {
                tracing::warn!(partition = ?self.around.options.key, %error, "no last checkpoint");
            }
        }
        for id in self.consumers.keys().copied().collect::<Vec<_>>() {
            self.close_port(id, &SubscribeRefusal::Draining);
        }
        self.around.options.flow.unblock(&self.around.options.key);
        self.around.board.set_replica(None);
        self.replica.shutdown().await;
        if let Some(done) = self.stop.take() {
            done.done(Ok(()));
        }
    }
}

/// Opens a replica anew that ended for want of space.
async fn reopen(replica: Replica, options: crate::replication::ReplicaOptions) -> Maintained {
    replica.shutdown().await;
    tokio::time::sleep(REOPEN_AFTER).await;
    let opened = Replica::open(options).await;
    Maintained::Reopened(Box::new(opened.map(|(replica, _)| replica)))
}
