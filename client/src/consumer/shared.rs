//! What a consumer and the driver share: the lanes of all partitions behind one short lock.
//!
//! Owns: which partition is next, who waits, how the consumer ends.
//! Never: holds the lock over an await.
//! Invariant: a partition with a buffered batch stands in `ready` exactly once.

use super::lane::{RawBatch, ReadLane, View};
use super::share::{Membership, Share};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::Notify;
use tokio::time::Instant;
use weir_protocol::types::Name;

/// How a consumer ends.
#[derive(Debug, Clone, Default)]
pub(crate) enum End {
    /// Not yet.
    #[default]
    No,
    /// What is buffered is still handed over.
    Drain,
    /// Nothing more is handed over.
    Stop,
    /// One error is handed over, unless it was already, then nothing.
    Failed(Option<Error>),
}

/// Shared by the application's handle, the delivered messages and the driver.
#[derive(Debug)]
pub(crate) struct ConsumerShared {
    pub(crate) topic: Name,
    pub(crate) subscription: Option<Name>,
    state: Mutex<ConsumerState>,
    /// Rings when a lane was opened or a settle was committed, or when it ended.
    pub(crate) changed: Notify,
}

/// The state behind the lock.
#[derive(Debug, Default)]
pub(crate) struct ConsumerState {
    pub(crate) lanes: Vec<ReadLane>,
    /// Some: the partitions are shared with other consumers.
    pub(crate) membership: Option<Membership>,
    ready: VecDeque<usize>,
    waker: Option<Waker>,
    /// Lanes that taking from has left something to do for the driver.
    rings: Vec<usize>,
    pub(crate) end: End,
    /// The application's handle is gone: streams are ended.
    pub(crate) gone: bool,
}

impl ConsumerShared {
    pub(crate) fn new(topic: Name, subscription: Option<Name>) -> Self {
        Self { topic, subscription, state: Mutex::default(), changed: Notify::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, ConsumerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the application look again.
    pub(crate) fn wake(&self) {
        let waker = self.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the consumer; an end that was reached already stays, but for a drain that is stopped.
    pub(crate) fn end(&self, end: End) {
        let waker = {
            let mut state = self.lock();
            match (&state.end, &end) {
                (End::No, _) | (End::Drain, End::Stop | End::Failed(_)) => state.end = end,
                (End::Stop, End::Failed(_)) => state.end = End::Failed(None),
                _ => {}
            }
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        self.changed.notify_waiters();
    }
}

impl ConsumerState {
    /// Gives and takes partitions as the membership says.
    pub(crate) fn share(&mut self, now: Instant) {
        let Some(membership) = &self.membership else { return };
        for lane in &mut self.lanes {
            match membership.share() {
                Share::Unknown => {}
                Share::All => lane.keep_alone(),
                Share::Assigned { epoch, partitions } if partitions.contains(&lane.partition) => {
                    lane.give(*epoch);
                }
                Share::Assigned { .. } => lane.take_away(now),
            }
        }
    }

    /// Whether every partition that this consumer reads at first is open.
    pub(crate) fn is_open(&self, now: Instant) -> bool {
        let known = |membership: &Membership| *membership.share() != Share::Unknown;
        let open = |lane: &ReadLane| lane.view().is_some() || lane.is_away();
        self.membership.as_ref().is_none_or(known)
            && self.is_patient_until().is_none_or(|until| until <= now)
            && self.lanes.iter().all(open)
    }

    /// Until when opening waits for a partition to be assigned, if one may still be.
    pub(crate) fn is_patient_until(&self) -> Option<Instant> {
        self.membership.as_ref().and_then(Membership::is_patient_until)
    }

    pub(crate) fn is_ending(&self) -> bool {
        !matches!(self.end, End::No)
    }

    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.end, End::Failed(_))
    }

    /// Whether the partition that an error speaks of was open before.
    pub(crate) fn was_open(&self, error: &Error) -> bool {
        let concerns = |lane: &&ReadLane| Some(lane.partition) == error.partition();
        self.lanes.iter().find(concerns).is_some_and(|lane| lane.view().is_some())
    }

    /// The lane has something to hand over; returns who waits for it.
    pub(crate) fn mark_ready(&mut self, lane: usize) -> Option<Waker> {
        if self.lanes[lane].has_batch() && !self.ready.contains(&lane) {
            self.ready.push_back(lane);
        }
        self.waker.take_if(|_| !self.ready.is_empty())
    }

    /// Takes the next batch, from each partition in turn.
    pub(crate) fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(usize, RawBatch)>>> {
        if matches!(self.end, End::Stop) {
            return Poll::Ready(None);
        }
        // What arrived before a failure is handed over before it.
        while let Some(lane) = self.ready.pop_front() {
            let taken = self.lanes[lane].take();
            if self.lanes[lane].needs_visit() {
                self.rings.push(lane);
            }
            match taken {
                Some(Ok(batch)) => {
                    if self.lanes[lane].has_batch() {
                        self.ready.push_back(lane);
                    }
                    return Poll::Ready(Some(Ok((lane, batch))));
                }
                Some(Err(error)) => {
                    self.end = End::Failed(None);
                    return Poll::Ready(Some(Err(error)));
                }
                None => {}
            }
        }
        match &mut self.end {
            End::Failed(error) => return Poll::Ready(error.take().map(Err)),
            End::Stop | End::Drain => return Poll::Ready(None),
            End::No => {}
        }
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Lanes to ring the driver for; called after every [`Self::poll_take`].
    pub(crate) fn take_rings(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.rings)
    }

    /// Something of each partition that is open, by its number.
    pub(crate) fn views(&self, pick: impl Fn(&ReadLane, View) -> u64) -> BTreeMap<u32, u64> {
        let known = self.lanes.iter().filter_map(|lane| Some((lane, lane.view()?)));
        known.map(|(lane, view)| (lane.partition, pick(lane, view))).collect()
    }
}
