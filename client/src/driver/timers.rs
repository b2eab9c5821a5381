//! Owns: when lanes are to be visited without being told. Never: looks at a clock.
//! Invariant: a lane stands in both maps or in none, with the same time.

use crate::shared::LaneId;
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;

/// When lanes are to be visited without being told.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_time: BTreeSet<(Instant, LaneId)>,
    by_lane: BTreeMap<LaneId, Instant>,
}

impl Timers {
    pub(super) fn set(&mut self, lane: LaneId, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.by_lane.insert(lane, at),
            None => self.by_lane.remove(&lane),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.by_time.remove(&(before, lane));
        }
        if let Some(at) = at {
            self.by_time.insert((at, lane));
        }
    }

    pub(super) fn first(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    pub(super) fn take_due(&mut self, now: Instant, due: &mut BTreeSet<LaneId>) {
        while let Some((at, lane)) = self.by_time.first().copied().filter(|(at, _)| *at <= now) {
            self.by_time.remove(&(at, lane));
            self.by_lane.remove(&lane);
            due.insert(lane);
        }
    }
}
