//! Owns: what the store, the state machine and the handles of one replica share, and the two
//! registers among it: the state that is shown, and the first failure.
//! Never: holds one of its locks over an await.
//! Invariants: lock order is log, map, hard state; the first failure stays for ever.

use super::codec::{Checkpoint, HardState};
use super::engine::{self, StoredMembership, Types};
use super::gate::Gate;
use super::log_map::LogMap;
use super::window::Held;
use super::{Durability, Fence, ReplicaState, Role};
use crate::planted::{Bug, is_planted};
use crate::seams::on_lane;
use crate::task::{self, TaskKind};
use bytes::Bytes;
use openraft::storage::IOFlushed;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::{oneshot, watch};
use weir_protocol::types::{Index, Offset, ReplicaId, Term};
use weir_storage::limits::UNFLUSHED_BYTES_MAX;
use weir_storage::{
    AppendError, BatchSlice, Checkpoints, Device, Executor, FlushError, Flusher, Lane, Log,
    LogReader, MetaDone, MetaStore, NewBatch, Read, ReadError, Trimmed, is_out_of_space,
};

/// Bytes that are read for one index at first: what stands behind it is read for nothing.
const INDEX_READ_BYTES: usize = 4 << 10;

pub(super) struct Shared {
    pub replica: ReplicaId,
    pub durability: Durability,
    pub gate: Gate,
    pub device: Arc<Device>,
    pub reader: LogReader,
    pub state: watch::Sender<ReplicaState>,
    log: Mutex<Log>,
    meta: MetaStore,
    flusher: Flusher,
    /// One call at a time.
    checkpoints: Mutex<Checkpoints>,
    map: Mutex<LogMap>,
    hard: Mutex<HardState>,
    fence: OnceLock<Fence>,
    /// The index of the checkpoint that the engine may take as its snapshot: the log start, or
    /// where a trim is about to put it.
    snapshot_at: AtomicU64,
    /// Readers need nothing below this offset; 0 until somebody says so.
    log_start: AtomicU64,
}

/// What [`Shared`] is made of.
pub(super) struct Parts {
    pub replica: ReplicaId,
    pub durability: Durability,
    pub gate: Gate,
    pub device: Arc<Device>,
    pub log: Log,
    pub map: LogMap,
    pub hard: HardState,
    pub state: watch::Sender<ReplicaState>,
}

impl Shared {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let start = parts.map.purged().map_or(0, |id| engine::index_of(id.index()).0);
        Arc::new(Self {
            snapshot_at: AtomicU64::new(start),
            log_start: AtomicU64::new(0),
            replica: parts.replica,
            durability: parts.durability,
            gate: parts.gate,
            device: parts.device,
            reader: parts.log.reader(),
            state: parts.state,
            flusher: parts.log.flusher(),
            checkpoints: Mutex::new(parts.log.checkpoints()),
            meta: parts.log.meta_store(),
            log: Mutex::new(parts.log),
            map: Mutex::new(parts.map),
            hard: Mutex::new(parts.hard),
            fence: OnceLock::new(),
        })
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn checkpoints(&self) -> MutexGuard<'_, Checkpoints> {
        self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn map(&self) -> MutexGuard<'_, LogMap> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hard(&self) -> MutexGuard<'_, HardState> {
        self.hard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody else votes in this group.
    pub(super) fn is_only_voter(&self) -> bool {
        let map = self.map();
        self.is_only_voter_of(map.membership_before(map.last()))
    }

    /// Whether nobody else is in this group, not even to learn.
    pub(super) fn is_only_member(&self) -> bool {
        let map = self.map();
        let membership = map.membership_before(map.last());
        let alone = |m: &StoredMembership| m.nodes().all(|(replica, _)| *replica == self.replica);
        self.is_only_voter_of(membership) && membership.is_some_and(alone)
    }

    fn is_only_voter_of(&self, membership: Option<&StoredMembership>) -> bool {
        membership.is_some_and(|m| m.voter_ids().eq([self.replica]))
    }

    /// Everything up to `index`, which is of `term`, is committed.
    pub(super) fn committed(&self, index: Index, term: Term) {
        self.state.send_if_modified(|state| {
            let forward = index > state.committed;
            if forward {
                (state.committed, state.committed_term) = (index, term);
            }
            forward
        });
    }

    /// Shows whether the index that a follower needs can be read.
    pub(super) fn readable(&self, index: Index, readable: bool) {
        self.state.send_if_modified(|state| {
            let before = state.unreadable;
            match (readable, before) {
                (true, Some(shown)) if shown == index => state.unreadable = None,
                (true, _) => {}
                (false, shown) => state.unreadable = Some(shown.map_or(index, |s| s.min(index))),
            }
            state.unreadable != before
        });
    }

    /// Shows what the engine says the replica is, unless it has ended.
    pub(super) fn role(&self, role: Role) {
        self.state.send_if_modified(|state| {
            let changed = state.role != role && !matches!(state.role, Role::Fenced(_));
            if changed {
                let leads = matches!(role, Role::Leader(_) | Role::Follower { leader: Some(_) });
                state.severed &= !leads;
                state.hands_over = false;
                state.role = role;
            }
            changed
        });
    }

    /// Shows whether the replica gave up its lead because it is cut off.
    pub(super) fn severed(&self, severed: bool) {
        self.state.send_if_modified(|state| {
            let before = std::mem::replace(&mut state.severed, severed);
            before != severed
        });
    }

    /// Shows that the replica hands over its lead of this term.
    pub(super) fn hands_over(&self, term: Term) {
        self.state.send_if_modified(|state| {
            let leads = state.role == Role::Leader(term);
            leads && !std::mem::replace(&mut state.hands_over, true)
        });
    }

    /// Ends the replica over its first failure.
    pub(super) fn fence(&self, fence: Fence) {
        let first = self.fence.get_or_init(|| fence).clone();
        self.state.send_if_modified(|state| {
            let role = Role::Fenced(first);
            let changed = state.role != role;
            state.role = role;
            changed
        });
    }

    /// Ends the replica because what is committed cannot be read.
    pub(super) fn fail_reading(&self, at: Index, error: &ReadError) -> Fence {
        self.fence(Fence::Engine(format!("reading index {at}: {error}")));
        self.fence_or(Fence::Shutdown)
    }

    /// The first failure, or `otherwise` where none is known.
    pub(super) fn fence_or(&self, otherwise: Fence) -> Fence {
        self.fence.get().cloned().unwrap_or(otherwise)
    }

    /// An error unless the replica is whole.
    pub(super) fn check(&self) -> Result<(), Fence> {
        self.fence.get().map_or(Ok(()), |fence| Err(fence.clone()))
    }
}

/// The disk side. Everything that waits for a device runs on the executor, but for the append
/// itself: it stores through memory, and waits only where it begins a new segment.
impl Shared {
    /// Appends batches of whole indexes. Where more is unflushed than the log may hold, or goes before
    /// a new segment, the task waits for a flush; the log itself would hold up the thread.
    pub(super) async fn store(self: &Arc<Self>, batches: Vec<NewBatch>) -> io::Result<()> {
        let bytes: u64 = batches.iter().map(|batch| batch.header.stored_len() as u64).sum();
        let waits = {
            let log = self.log();
            let unflushed = log.unflushed_bytes();
            unflushed + bytes > UNFLUSHED_BYTES_MAX || (unflushed > 0 && log.rolls_for(&batches))
        };
        if waits {
            self.flushed().await?;
        }
        let appended = self.log().append(batches);
        appended.map(drop).map_err(|error| self.fenced_by(fence_of_append(&error)))
    }

    /// Asks for a flush and tells `callback` when everything appended so far counts as stored. What
    /// is held goes when it is flushed.
    pub(super) fn flush(self: &Arc<Self>, callback: IOFlushed<Types>, held: Vec<Arc<Held>>) {
        let shared = self.clone();
        let flushed = move |outcome: Result<(), FlushError>| {
            let outcome = if is_planted(Bug::FailedFlushAcked) { Ok(()) } else { outcome };
            outcome.map_err(|error| shared.fenced_by(fence_of_flush(&error)))
        };
        let early = is_planted(Bug::AckedUnflushed);
        let durability = if early { Durability::Memory } else { self.durability };
        match durability {
            Durability::Fsync => {
                let done = move |outcome| {
                    callback.io_completed(flushed(outcome));
                    drop(held);
                };
                self.flusher.flush(Box::new(done));
            }
            Durability::Memory => {
                callback.io_completed(Ok(()));
                self.flusher.flush(Box::new(move |outcome| drop((flushed(outcome), held))));
            }
        }
    }

    /// Waits until everything appended so far is durable. Where that is so already, it does not wait
    /// for what other logs of the device flush.
    pub(super) async fn flushed(self: &Arc<Self>) -> io::Result<()> {
        if self.log().is_flushed() {
            return Ok(());
        }
        let (done, wait) = oneshot::channel();
        self.flusher.flush(Box::new(move |outcome| drop(done.send(outcome))));
        match wait.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.fenced_by(fence_of_flush(&error))),
            Err(_) => Err(self.fenced_by(Fence::Shutdown)),
        }
    }

    /// Leaves a watermark and waits until it is durable; the log goes on meanwhile.
    pub(super) async fn leave_watermark(self: &Arc<Self>) -> io::Result<()> {
        let Some(watermark) = self.log().watermark() else { return Ok(()) };
        let (done, stored) = meta_done();
        watermark.store_together(done);
        self.meta_stored(stored).await
    }

    /// Waits until a change of the hard state is durable.
    async fn meta_stored(&self, stored: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
        match stored.await {
            Ok(stored) => stored.map_err(|error| self.fenced_by(fence_of_io(&error))),
            Err(_) => Err(self.fenced_by(Fence::Shutdown)),
        }
    }

    /// Runs `job` where it may wait for the device.
    pub(super) async fn on_executor<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.on_lane(Lane::Checkpoint, job).await
    }

    /// Runs `job` on this lane.
    pub(super) async fn on_lane<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        on_lane(self.device.executor(), lane, job).await
    }

    /// Makes the hard state durable as it is now.
    pub(super) async fn store_hard_state(&self) -> io::Result<()> {
        let (done, stored) = meta_done();
        {
            // Held over the request: who encodes later is also stored later.
            let hard = self.hard();
            self.meta.store(hard.encode().to_vec(), done);
        }
        self.meta_stored(stored).await
    }

    /// Cuts the log behind `last`.
    pub(super) fn truncate_after(&self, last: Index) -> io::Result<()> {
        self.log().truncate_after(last).map_err(|error| self.fenced_by(fence_of_io(&error)))?;
        self.map().truncate_after(last);
        Ok(())
    }

    /// Gives up whole segments up to and including `upto`.
    pub(super) async fn trim(self: &Arc<Self>, upto: Index) -> io::Result<()> {
        let shared = self.clone();
        let begin = move || {
            let trimmed = shared.log().begin_trim(upto);
            trimmed.map_err(|error| shared.fenced_by(fence_of_io(&error)))
        };
        let trimmed = self.on_executor(begin).await?;
        let executor = self.device.executor().clone();
        task::spawn("trim", TaskKind::Core, remove(executor, trimmed));
        Ok(())
    }

    /// All batches of one index, as they are stored.
    pub(super) async fn read_index(&self, index: Index) -> Result<Vec<BatchSlice>, ReadError> {
        let mut bytes_max = INDEX_READ_BYTES;
        loop {
            let mut slices = self.read(index, bytes_max).await?;
            let whole = slices
                .iter()
                .any(|slice| slice.header.index > index || slice.header.is_last_of_index());
            slices.retain(|slice| slice.header.index == index);
            if whole || slices.is_empty() {
                return Ok(slices);
            }
            let read: usize = slices.iter().map(|slice| slice.bytes.len()).sum();
            bytes_max = 2 * bytes_max.max(read);
        }
    }

    /// Batches of whole indexes from `from` on: at least one index, then about `bytes_max`. Empty
    /// where the log has no whole one.
    pub(super) async fn read_whole(
        &self,
        from: Index,
        mut bytes_max: usize,
    ) -> Result<Vec<BatchSlice>, ReadError> {
        loop {
            let mut slices = self.read(from, bytes_max).await?;
            let ended = slices.is_empty() || bytes_max as u64 > UNFLUSHED_BYTES_MAX;
            let last = slices.iter().rposition(|slice| slice.header.is_last_of_index());
            slices.truncate(last.map_or(0, |last| last + 1));
            if ended || !slices.is_empty() {
                return Ok(slices);
            }
            bytes_max *= 2;
        }
    }

    /// Batches from `from` on: see [`super::Replica::read`].
    pub(super) async fn read(
        &self,
        from: Index,
        bytes_max: usize,
    ) -> Result<Vec<BatchSlice>, ReadError> {
        match self.reader.read_from_index(from, bytes_max)? {
            Read::Hot(slices) => Ok(slices),
            Read::Cold(cold) => self.on_lane(Lane::Read, move || cold.run()).await,
        }
    }

    /// The checkpoint at or below `upto`, newest first.
    pub(super) fn checkpoint_at(&self, upto: Index) -> io::Result<Option<(Index, Checkpoint)>> {
        let Some((index, bytes)) = self.checkpoints().latest(upto)? else { return Ok(None) };
        let checkpoint = Checkpoint::decode(&Bytes::from(bytes)).map_err(io::Error::other)?;
        Ok(Some((index, checkpoint)))
    }

    /// Readers need nothing below this offset.
    pub(super) fn log_start(&self) -> Offset {
        Offset(self.log_start.load(Ordering::Acquire))
    }

    /// Readers need nothing below `offset` any more; it only rises.
    pub(super) fn set_log_start(&self, offset: Offset) {
        self.log_start.fetch_max(offset.0, Ordering::AcqRel);
    }

    /// The index of the checkpoint at the log start.
    pub(super) fn snapshot_at(&self) -> Index {
        Index(self.snapshot_at.load(Ordering::Acquire))
    }

    /// Lets the engine take the checkpoint at `index` as its snapshot.
    pub(super) fn set_snapshot_at(&self, index: Index) {
        self.snapshot_at.fetch_max(index.0, Ordering::AcqRel);
    }

    pub(super) fn fenced_by(&self, fence: Fence) -> io::Error {
        let error = io::Error::other(fence.to_string());
        self.fence(fence);
        error
    }
}

/// What tells of a change of the hard state, and where it is told. It holds nothing of the replica:
/// an executor that ends may keep it.
fn meta_done() -> (MetaDone, oneshot::Receiver<io::Result<()>>) {
    let (done, stored) = oneshot::channel();
    (Box::new(move |outcome| drop(done.send(outcome))), stored)
}

fn fence_of_append(error: &AppendError) -> Fence {
    match error {
        AppendError::NoSpace => Fence::NoSpace,
        AppendError::Fenced(error) => fence_of_flush(error),
    }
}

fn fence_of_flush(error: &FlushError) -> Fence {
    if error.out_of_space { Fence::NoSpace } else { Fence::Device(error.text.clone()) }
}

/// Of the calls that the log answers with the operating system's own error.
pub(super) fn fence_of_io(error: &io::Error) -> Fence {
    if is_out_of_space(error) { Fence::NoSpace } else { Fence::Device(error.to_string()) }
}

/// Removes what was trimmed: freeing the disk's blocks takes its time, and nobody waits for it. One
/// segment after the other, so that segments can be made in between; what is not removed when the
/// process ends goes with the next start.
async fn remove(executor: Arc<dyn Executor>, mut trimmed: Trimmed) {
    loop {
        let (done, wait) = oneshot::channel();
        let job = move || {
            let more = trimmed.remove_one();
            drop(done.send((trimmed, more)));
        };
        executor.submit(Lane::Prepare, Box::new(job));
        match wait.await {
            Ok((rest, Ok(true))) => trimmed = rest,
            Ok((_, Err(error))) => {
                return tracing::warn!(%error, "trimmed segments could not be removed");
            }
            _ => return,
        }
    }
}
