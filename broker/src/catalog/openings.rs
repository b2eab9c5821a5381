//! Replicas on their way to be open.
//!
//! Owns: which are opened next and how many at a time, and when those are opened again that found no
//! room on the disk.
//! Never: opens what nobody waits for any more.
//! Invariants: at most [`OPENING_MAX`] are being opened, those aside that take longer than
//! [`OPENING_SLOW_AFTER`]: they wait for others. A replica is being opened once at a time.

use super::Rooms;
use super::made::Made;
use super::opening::Opening;
use crate::partition::{OpenPartitionError, PartitionHandle};
use crate::replication::OpenReplicaError;
use crate::seams::BoxFuture;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::time::{Duration, Instant};
use weir_protocol::types::ReplicaId;

/// Replicas that are opened at a time: recovery is bound by the device.
const OPENING_MAX: usize = 8;
/// An opening that takes longer waits for a broker that has what damage took here, and keeps nobody
/// from being opened.
const OPENING_SLOW_AFTER: Duration = Duration::from_secs(10);
/// What found no room on the disk is opened again after this.
const ROOM_AGAIN: Duration = Duration::from_secs(5);

pub(super) struct Openings {
    rooms: Arc<Rooms>,
    made: Arc<Made>,
    /// What is to be opened; at most the replicas that are placed here.
    queue: VecDeque<Opening>,
    under_way: FuturesUnordered<BoxFuture<'static, Opened>>,
    /// Replicas that are just being opened, and since when: one at a time has a folder.
    at_work: BTreeMap<ReplicaId, Instant>,
    /// Replicas that found no room on the disk, and when they are opened again: at most those that
    /// were opened within [`ROOM_AGAIN`], so at most the replicas that are placed here.
    crowded: BTreeMap<ReplicaId, Instant>,
}

/// What came of an opening.
pub(super) struct Opened {
    pub(super) of: Opening,
    pub(super) outcome: Result<PartitionHandle, OpenPartitionError>,
}

/// What it is time for.
pub(super) enum Turn {
    Opened(Box<Opened>),
    /// One takes so long that another can be opened beside it.
    Slow,
    /// Who found no room may find some now.
    Room,
}

impl Openings {
    pub(super) fn new(rooms: &Arc<Rooms>, made: &Arc<Made>) -> Self {
        Self {
            rooms: rooms.clone(),
            made: made.clone(),
            queue: VecDeque::new(),
            under_way: FuturesUnordered::new(),
            at_work: BTreeMap::new(),
            crowded: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, of: Opening) {
        self.queue.push_back(of);
    }

    pub(super) fn found_no_room(&mut self, replica: ReplicaId) {
        self.crowded.insert(replica, Instant::now() + ROOM_AGAIN);
    }

    /// Those that found no room, as far as their time has come.
    pub(super) fn due_again(&mut self) -> Vec<ReplicaId> {
        let now = Instant::now();
        let due = self.crowded.extract_if(.., |_, at| *at <= now);
        due.map(|(replica, _)| replica).collect()
    }

    pub(super) fn are_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Whether nothing is being opened, or is to be.
    pub(super) fn is_empty(&self) -> bool {
        self.at_work.is_empty() && self.queue.is_empty()
    }

    /// Begins as many as may be, of those that are still wanted.
    pub(super) fn start(&mut self, is_wanted: impl Fn(&Opening) -> bool) {
        while self.swift().count() < OPENING_MAX {
            let free = |of: &Opening| !self.at_work.contains_key(&of.placed.replica);
            let next = self.queue.iter().position(free);
            let Some(of) = next.and_then(|at| self.queue.remove(at)) else { return };
            if !is_wanted(&of) {
                continue;
            }
            self.at_work.insert(of.placed.replica, Instant::now());
            let (rooms, made) = (self.rooms.clone(), self.made.clone());
            self.under_way.push(Box::pin(async move {
                let outcome = open(&rooms, &made, &of).await;
                Opened { of, outcome }
            }));
        }
    }

    /// Waits for what is next; nothing is lost where this is dropped.
    pub(super) async fn next(&mut self) -> Turn {
        let slow_at = self.slow_at().filter(|_| !self.queue.is_empty());
        let room_at = self.crowded.values().min().copied();
        tokio::select! {
            biased;
            Some(opened) = self.under_way.next(), if !self.under_way.is_empty() => {
                self.at_work.remove(&opened.of.placed.replica);
                Turn::Opened(Box::new(opened))
            }
            () = sleep_until(slow_at) => Turn::Slow,
            () = sleep_until(room_at) => Turn::Room,
        }
    }

    /// When those that are not known to wait for others will be.
    fn swift(&self) -> impl Iterator<Item = Instant> {
        let now = Instant::now();
        let slow_at = self.at_work.values().map(|since| *since + OPENING_SLOW_AFTER);
        slow_at.filter(move |slow_at| *slow_at > now)
    }

    /// When the next of them is taken to wait for others; none where there is room without that.
    fn slow_at(&self) -> Option<Instant> {
        self.swift().min().filter(|_| self.swift().count() >= OPENING_MAX)
    }
}

async fn open(
    rooms: &Rooms,
    made: &Made,
    of: &Opening,
) -> Result<PartitionHandle, OpenPartitionError> {
    let was_made = made.add(of.placed.replica).await.map_err(OpenReplicaError::from)?;
    PartitionHandle::open(of.options(rooms, was_made)?).await
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
