//! A partition that is shared: given to this consumer, on its way to another one, or that one's.
//!
//! Owns: which of these it is, and how a partition is given up.
//! Never: decides whose it is; an assignment does.
//! Invariants: a partition that is given up hands over nothing more; what the application finishes of
//! it within [`GIVE_UP_MAX`] is committed before the stream ends. One that comes back is read from its
//! cursor, as if it had never been here.

use super::{Phase, ReadLane, ReadVisit, Settling};
use crate::consumer::credit::Credit;
use std::time::Duration;
use tokio::time::Instant;
use weir_protocol::frame::Frame;
use weir_protocol::limits::MEMBER_HAND_OVER_MS_MAX;

/// How long the application may take to settle what it was handed of a partition that goes to another
/// consumer.
const GIVE_UP_MAX: Duration = Duration::from_secs(8);
const _: () = assert!(GIVE_UP_MAX.as_millis() < MEMBER_HAND_OVER_MS_MAX as u128);

/// Whose a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Hold {
    /// Nobody shares it.
    #[default]
    Alone,
    /// This consumer's, by an assignment of this epoch.
    Given(u64),
    /// It was this consumer's, and is to be given up until then.
    Going { epoch: u64, until: Instant },
    /// Another consumer's, or nobody's yet.
    Away,
}

impl ReadLane {
    /// One that an assignment must give first.
    pub(crate) fn shared(mut self) -> Self {
        self.hold = Hold::Away;
        self
    }

    /// Nobody shares it after all.
    pub(crate) fn keep_alone(&mut self) {
        self.hold = Hold::Alone;
    }

    /// An assignment names it.
    pub(crate) fn give(&mut self, epoch: u64) {
        if let Hold::Going { .. } = self.hold {
            // What was buffered was not handed over and comes again.
            self.rewind(self.position);
        }
        if self.hold != Hold::Alone {
            self.hold = Hold::Given(epoch);
        }
    }

    /// An assignment does not name it.
    pub(crate) fn take_away(&mut self, now: Instant) {
        if let Hold::Given(epoch) = self.hold {
            self.hold = Hold::Going { epoch, until: now + GIVE_UP_MAX };
        }
    }

    /// Whether it is another consumer's, and nothing of it is here any more.
    pub(crate) fn is_away(&self) -> bool {
        self.hold == Hold::Away
    }

    /// Whether it is being given up.
    pub(crate) fn is_going(&self) -> bool {
        matches!(self.hold, Hold::Going { .. })
    }

    /// The epoch under which it is read; 0 = it is not shared.
    pub(super) fn epoch(&self) -> u64 {
        match self.hold {
            Hold::Given(epoch) | Hold::Going { epoch, .. } => epoch,
            Hold::Alone | Hold::Away => 0,
        }
    }

    /// Visits a partition that is not read any more. None: it is visited like any other.
    pub(super) fn visit_shared(
        &mut self,
        now: Instant,
        connected: bool,
        out: &mut Vec<Frame>,
    ) -> Option<ReadVisit> {
        let until = match self.hold {
            Hold::Alone | Hold::Given(_) => return None,
            Hold::Going { until, .. } => until,
            Hold::Away => {
                let close = self.take_abandoned();
                return Some(ReadVisit { close, ..ReadVisit::default() });
            }
        };
        let settled = self.settling.committed >= self.position;
        // Without a stream there is nobody to settle with, but for what is settled already.
        let idle = matches!(self.phase, Phase::Idle { .. }) && self.uncommitted().is_none();
        if settled || idle || until <= now {
            return Some(self.give_up(now, connected, out));
        }
        self.settling.wanted = self.settling.wanted.max(self.settling.upto);
        match self.phase {
            Phase::Open(stream) if connected => self.tell_settled(now, stream, false, out),
            Phase::Open(_) | Phase::Opening { .. } | Phase::Over => {}
            Phase::Idle { .. } => return None,
        }
        Some(ReadVisit { timer: Some(until), ..ReadVisit::default() })
    }

    fn give_up(&mut self, now: Instant, connected: bool, out: &mut Vec<Frame>) -> ReadVisit {
        let mut visit = ReadVisit { close: self.take_abandoned(), ..ReadVisit::default() };
        match self.phase {
            Phase::Open(stream) if connected => {
                self.tell_settled(now, stream, true, out);
                visit.close = Some(stream);
            }
            // It is closed as soon as it is open; until then it is not given up.
            Phase::Opening { .. } => return ReadVisit::default(),
            Phase::Open(_) | Phase::Idle { .. } | Phase::Over => {}
        }
        self.forget();
        visit
    }

    /// Another consumer has it, whatever the last assignment said.
    pub(super) fn forget(&mut self) {
        self.hold = Hold::Away;
        self.phase = Phase::Idle { reopen_at: None };
        self.buffered.clear();
        self.credit = Credit::new(self.window);
        self.settling = Settling::default();
        (self.received, self.position, self.streamed) = (0, 0, 0);
        self.view = None;
    }
}
