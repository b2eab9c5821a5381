//! One consumer among those that share a subscription: a pure state machine.
//!
//! Owns: its membership: joining, being there, obeying assignments, leaving.
//! Never: touches a lane: `ConsumerState` gives and takes partitions as this says.
//! Invariants: nothing is read before the first assignment; a member says that it obeys an assignment
//! only when every other partition is given up. A member that cannot reach whoever assigns keeps what
//! it has: the brokers fence it where another one reads.

use super::lane::Wish;
use crate::retry::Backoff;
use crate::seams::Chance;
use crate::shared::LaneId;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;
use weir_protocol::error_code::Action;
use weir_protocol::frame::{Assignment, Frame, MemberId, Present, Refusal};
use weir_protocol::limits::{MEMBER_BEAT_MS, MEMBER_RETURN_MS_MAX};
use weir_protocol::types::StreamId;

const BEAT: Duration = Duration::from_millis(MEMBER_BEAT_MS as u64);
/// Opening a consumer waits this long for its first partition: longer than a consumer that died
/// keeps its own.
const FIRST_PATIENCE: Duration = Duration::from_millis(MEMBER_RETURN_MS_MAX as u64 + 1_000);
/// An end waits this long for partitions to be given up, and for the broker to hear of it.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle {
        reopen_at: Option<Instant>,
    },
    Opening,
    Open(StreamId),
    /// LEAVE was sent.
    Leaving,
    Over,
}

/// What the driver does after a visit.
#[derive(Debug, Default)]
pub(crate) struct MemberVisit {
    /// Ask for a stream.
    pub(crate) open: bool,
    /// It would ask for a stream if there were anybody to ask.
    pub(crate) waits: bool,
    /// Visit again then, at the latest.
    pub(crate) timer: Option<Instant>,
    /// Nothing will come any more.
    pub(crate) finished: bool,
}

/// What a visit finds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    /// The connection, if there is one: whether its broker knows of sharing.
    pub(crate) connected: Option<bool>,
    /// What the application wants.
    pub(crate) wish: Wish,
    /// Nothing is read that the newest assignment does not name.
    pub(crate) obeys: bool,
    /// Nothing is read at all.
    pub(crate) reads_nothing: bool,
}

/// What of the topic is this consumer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Share {
    /// Not known yet.
    Unknown,
    /// What an assignment named.
    Assigned { epoch: u64, partitions: BTreeSet<u32> },
    /// All: nobody assigns anything here.
    All,
}

/// The state of one membership.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) member: MemberId,
    pub(crate) lane_id: LaneId,
    phase: Phase,
    share: Share,
    /// When the first assignment came.
    assigned_at: Option<Instant>,
    /// The broker was told that this is obeyed.
    told: u64,
    beat_at: Option<Instant>,
    /// An end waits until then at most.
    leave_by: Option<Instant>,
    backoff: Backoff,
}

impl Membership {
    pub(crate) fn new(member: MemberId, lane_id: LaneId) -> Self {
        Self {
            member,
            lane_id,
            phase: Phase::Idle { reopen_at: None },
            share: Share::Unknown,
            assigned_at: None,
            told: 0,
            beat_at: None,
            leave_by: None,
            backoff: Backoff::default(),
        }
    }

    pub(crate) fn share(&self) -> &Share {
        &self.share
    }

    /// Until when opening waits for more than is assigned; none: for nothing, or no end is known.
    pub(crate) fn is_patient_until(&self) -> Option<Instant> {
        let waits =
            matches!(&self.share, Share::Assigned { partitions, .. } if partitions.is_empty());
        self.assigned_at.filter(|_| waits).map(|at| at + FIRST_PATIENCE)
    }

    /// Does what is due.
    pub(crate) fn visit(
        &mut self,
        now: Instant,
        standing: Standing,
        out: &mut Vec<Frame>,
    ) -> MemberVisit {
        let mut visit = MemberVisit::default();
        if standing.wish == Wish::End {
            self.end(now, standing, out);
            visit.finished = self.phase == Phase::Over;
            visit.timer = self.leave_by;
            return visit;
        }
        match (self.phase, standing.connected) {
            (Phase::Idle { reopen_at }, _) if reopen_at.is_some_and(|at| at > now) => {
                visit.timer = reopen_at;
            }
            (Phase::Idle { .. }, None) => visit.waits = true,
            (Phase::Idle { .. }, Some(true)) => {
                self.phase = Phase::Opening;
                visit.open = true;
            }
            (Phase::Idle { .. }, Some(false)) => self.go_alone(),
            (Phase::Open(stream), Some(_)) => {
                self.say(now, stream, standing.obeys, out);
                visit.timer = self.beat_at;
            }
            (Phase::Open(_) | Phase::Opening | Phase::Leaving | Phase::Over, _) => {}
        }
        visit.finished = self.phase == Phase::Over;
        visit
    }

    fn end(&mut self, now: Instant, standing: Standing, out: &mut Vec<Frame>) {
        let late = now >= *self.leave_by.get_or_insert(now + LEAVE_PATIENCE);
        match self.phase {
            Phase::Open(stream) if standing.connected.is_some() => {
                if late || standing.reads_nothing {
                    out.push(Frame::Leave(stream));
                    self.phase = Phase::Leaving;
                    self.leave_by = Some(now + LEAVE_PATIENCE);
                }
            }
            Phase::Opening | Phase::Leaving if standing.connected.is_some() && !late => {}
            _ => self.phase = Phase::Over,
        }
    }

    /// Nobody assigns anything: everything is read, as if nobody else were there.
    fn go_alone(&mut self) {
        self.share = Share::All;
        self.phase = Phase::Over;
    }

    fn say(&mut self, now: Instant, stream: StreamId, obeys: bool, out: &mut Vec<Frame>) {
        let news = match &self.share {
            Share::Assigned { epoch, .. } if obeys && *epoch != self.told => Some(*epoch),
            _ => None,
        };
        if news.is_none() && self.beat_at.is_some_and(|at| at > now) {
            return;
        }
        self.told = news.unwrap_or(self.told);
        self.beat_at = Some(now + BEAT);
        out.push(Frame::Present(Present { stream, epoch: self.told }));
    }

    /// It is a member.
    pub(crate) fn opened(&mut self, stream: StreamId) {
        self.phase = Phase::Open(stream);
        self.backoff.reset();
        // A broker that has not heard of it yet is told at once what it obeys.
        (self.told, self.beat_at) = (0, None);
    }

    /// It was told what it reads from now on.
    pub(crate) fn assigned(&mut self, assignment: &Assignment, now: Instant) {
        self.assigned_at.get_or_insert(now);
        let partitions = assignment.partitions.iter().map(|partition| partition.0).collect();
        self.share = Share::Assigned { epoch: assignment.epoch, partitions };
    }

    /// The broker did not take it, or ended it. Without `chance` it goes to another broker at once.
    pub(crate) fn refused(&mut self, refusal: &Refusal, now: Instant, chance: Option<&Chance>) {
        if matches!(self.phase, Phase::Leaving | Phase::Over) {
            self.phase = Phase::Over;
            return;
        }
        if Action::of(refusal.code) == Action::Never && self.share == Share::Unknown {
            return self.go_alone();
        }
        let hint = Duration::from_millis(u64::from(refusal.retry_after_ms));
        let reopen_at = chance.map(|chance| now + hint.max(self.backoff.next(chance)));
        self.phase = Phase::Idle { reopen_at };
    }

    /// The connection is gone.
    pub(crate) fn lost(&mut self) {
        self.phase = match self.phase {
            Phase::Leaving | Phase::Over => Phase::Over,
            Phase::Idle { .. } | Phase::Opening | Phase::Open(_) => Phase::Idle { reopen_at: None },
        };
    }
}
