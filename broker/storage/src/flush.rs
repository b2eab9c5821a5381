//! One flush coordinator per device: rounds without timers.
//!
//! Owns: which logs have unflushed bytes, and who waits for them.
//! Never: retries a flush: after the first failure a log is fenced until it is opened anew.
//! Invariants: several logs of a round share one flush of the device where its filesystem allows it;
//! completions of one log come in the order of its requests; what was appended while
//! a round ran is the next round; one flush of a log at a time, because the operating system tells
//! of a failure once.

pub(crate) mod together;

use crate::disk::DiskFile;
use crate::error::FlushError;
use crate::executor::{Executor, Lane};
use crate::limits::{DEVICE_UNFLUSHED_BYTES_MAX, UNFLUSHED_BYTES_MAX};
use crate::planted::{self, Bug, is_planted, unless};
use crate::segment::Segment;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use weir_protocol::types::Index;

/// Told once what became of a flush.
pub type FlushDone = Box<dyn FnOnce(Result<(), FlushError>) + Send>;

/// Told of every device flush: how long it took and how many bytes it covered.
pub type FlushObserver = Arc<dyn Fn(Duration, u64) + Send + Sync>;

/// The flush side of one log.
pub(crate) struct LogFlush {
    pending: Mutex<Pending>,
    /// A flush is under way, from what it covers to what it proves.
    flushing: Mutex<bool>,
    not_flushing: Condvar,
    /// Last index whose bytes are durable.
    flushed_index: AtomicU64,
    /// Unflushed bytes of all logs of the device.
    device_unflushed: Arc<AtomicU64>,
    fence: OnceLock<FlushError>,
}

#[derive(Default)]
struct Pending {
    /// The range that no flush covers yet. It lies in one segment: a segment is flushed before
    /// another follows.
    dirty: Option<(Arc<Segment>, Range<u64>)>,
    /// Bytes that the flush under way covers: until it ends they are not durable.
    flushing_bytes: u64,
    waiting: VecDeque<(Index, FlushDone)>,
    /// Last index that `dirty` covers.
    index: Index,
}

impl LogFlush {
    pub(crate) fn behind(flushed_index: Index, device_unflushed: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            pending: Mutex::new(Pending { index: flushed_index, ..Pending::default() }),
            flushing: Mutex::default(),
            not_flushing: Condvar::new(),
            flushed_index: AtomicU64::new(flushed_index.0),
            device_unflushed,
            fence: OnceLock::new(),
        })
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no flush of the log is under way, and begins one.
    fn take_turn(&self) {
        let flushing = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut flushing = self
            .not_flushing
            .wait_while(flushing, |flushing| *flushing)
            .unwrap_or_else(PoisonError::into_inner);
        *flushing = true;
    }

    fn end_turn(&self) {
        *self.flushing.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.not_flushing.notify_one();
    }

    pub(crate) fn flushed_index(&self) -> Index {
        Index(self.flushed_index.load(Ordering::Acquire))
    }

    pub(crate) fn fence(&self) -> Option<&FlushError> {
        self.fence.get().filter(|_| !is_planted(Bug::FenceForgotten))
    }

    /// Fences the log and fails everybody who waits.
    pub(crate) fn fail(&self, error: FlushError) {
        let error = self.fence.get_or_init(|| error).clone();
        let waiting = std::mem::take(&mut self.pending().waiting);
        for (_, done) in waiting {
            done(Err(error.clone()));
        }
    }

    /// Bytes of a segment were stored, up to and including `index`.
    pub(crate) fn dirty(&self, segment: &Arc<Segment>, range: Range<u64>, index: Index) {
        let mut pending = self.pending();
        pending.index = index;
        self.device_unflushed.fetch_add(range.end - range.start, Ordering::Relaxed);
        match &mut pending.dirty {
            Some((of, dirty)) => {
                assert!(Arc::ptr_eq(of, segment), "the segment before was flushed");
                dirty.end = range.end;
            }
            none => *none = Some((segment.clone(), range)),
        }
    }

    /// The log was cut: bytes behind `index` need no flush, and nobody waits for them. A flush
    /// under way is waited for: it must not vouch for what is appended in their place.
    pub(crate) fn truncate(&self, index: Index) {
        if !is_planted(Bug::FlushUnderWayIgnored) {
            self.take_turn();
        }
        {
            let mut pending = self.pending();
            pending.index = pending.index.min(index);
            let left = if is_planted(Bug::WaitersOfCutKept) { Index(u64::MAX) } else { index };
            for (wanted, _) in &mut pending.waiting {
                *wanted = left.min(*wanted);
            }
            self.flushed_index.fetch_min(index.0, Ordering::AcqRel);
        }
        self.end_turn();
    }

    /// The log begins anew behind `index`; what it held before was flushed.
    pub(crate) fn restart(&self, index: Index) {
        self.take_turn();
        {
            let mut pending = self.pending();
            assert!(pending.dirty.is_none(), "what is given up was flushed");
            pending.index = index;
            for (wanted, _) in &mut pending.waiting {
                *wanted = index.min(*wanted);
            }
            self.flushed_index.store(index.0, Ordering::Release);
        }
        self.end_turn();
    }

    pub(crate) fn unflushed_bytes(&self) -> u64 {
        let pending = self.pending();
        pending.flushing_bytes + bytes_of(&pending.dirty)
    }

    /// Whether `bytes` more would exceed what the log, or its device, may hold unflushed.
    pub(crate) fn is_at_limit(&self, bytes: u64) -> bool {
        let here = self.unflushed_bytes();
        let device = self.device_unflushed.load(Ordering::Relaxed);
        here > 0
            && !is_planted(Bug::UnflushedWithoutLimit)
            && (here + bytes > UNFLUSHED_BYTES_MAX || device + bytes > DEVICE_UNFLUSHED_BYTES_MAX)
    }

    /// Makes everything stored so far durable before this returns. Who waits for it is told by
    /// the coordinator's next round.
    pub(crate) fn settle(
        self: &Arc<Self>,
        observer: Option<&FlushObserver>,
    ) -> Result<(), FlushError> {
        let turn = self.begin()?;
        let outcome = unless(Bug::SegmentNotSettled, || turn.flush(observer));
        turn.end(outcome, |_, _| ())
    }

    /// Begins a flush: what is dirty now is what it covers.
    fn begin(self: &Arc<Self>) -> Result<Turn, FlushError> {
        self.take_turn();
        let (dirty, index) = {
            let mut pending = self.pending();
            let dirty = pending.dirty.take();
            pending.flushing_bytes = bytes_of(&dirty);
            (dirty, pending.index)
        };
        let turn = Turn { log: self.clone(), dirty, index };
        self.fence().map_or(Ok(turn), |error| Err(error.clone()))
    }

    /// Tells those who waited what became of a flush.
    fn tell(&self, outcome: Result<Vec<FlushDone>, FlushError>) {
        match outcome {
            Ok(satisfied) => satisfied.into_iter().for_each(|done| done(Ok(()))),
            Err(error) => self.fail(error),
        }
    }

    /// Takes out those who wait for nothing behind `index`.
    fn satisfied(&self, index: Index) -> Vec<FlushDone> {
        let mut pending = self.pending();
        let count = pending.waiting.partition_point(|(wanted, _)| *wanted <= index);
        pending.waiting.drain(..count).map(|(_, done)| done).collect()
    }
}

impl Drop for LogFlush {
    fn drop(&mut self) {
        self.device_unflushed.fetch_sub(self.unflushed_bytes(), Ordering::Relaxed);
    }
}

fn bytes_of(dirty: &Option<(Arc<Segment>, Range<u64>)>) -> u64 {
    dirty.as_ref().map_or(0, |(_, range)| range.end - range.start)
}

/// One flush of one log, from what it covers to what it proves.
struct Turn {
    log: Arc<LogFlush>,
    dirty: Option<(Arc<Segment>, Range<u64>)>,
    index: Index,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let bytes = bytes_of(&self.dirty);
        self.log.device_unflushed.fetch_sub(bytes, Ordering::Relaxed);
        self.log.pending().flushing_bytes = 0;
        self.log.end_turn();
    }
}

impl Turn {
    /// Flushes by itself.
    fn flush(&self, observer: Option<&FlushObserver>) -> io::Result<()> {
        let Some((segment, range)) = &self.dirty else { return Ok(()) };
        flush_one(&*segment.file, range, observer)
    }

    /// Ends the flush: `satisfied` is asked, while no other flush of the log can begin, about the
    /// last index that is durable now; or the failure fences the log.
    fn end<T>(
        self,
        outcome: io::Result<()>,
        satisfied: impl FnOnce(&LogFlush, Index) -> T,
    ) -> Result<T, FlushError> {
        if let Some((segment, range)) = &self.dirty {
            if let Err(error) = outcome {
                tracing::error!(file = %segment.path.display(), %error, "the flush failed");
                let error = FlushError::new(&segment.path, &error);
                return Err(self.log.fence.get_or_init(|| error).clone());
            }
            segment.flushed(range.end);
        }
        self.log.flushed_index.fetch_max(self.index.0, Ordering::AcqRel);
        if is_planted(Bug::ToldOutsideTheTurn) {
            self.log.end_turn();
            planted::lose_the_race();
        }
        Ok(satisfied(&self.log, self.index))
    }
}

fn flush_one(
    file: &dyn DiskFile,
    range: &Range<u64>,
    observer: Option<&FlushObserver>,
) -> io::Result<()> {
    let started = clock();
    unless(Bug::FlushSkipped, || file.flush(range.clone()))?;
    if let Some(observer) = observer {
        observer(started.elapsed(), range.end - range.start);
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the duration of a flush is measured, never decided by"
)]
fn clock() -> std::time::Instant {
    std::time::Instant::now()
}

/// Asks for the flushes of one log, beside its writer. Cheap to clone.
#[derive(Clone)]
pub struct Flusher {
    coordinator: Arc<FlushCoordinator>,
    log: Arc<LogFlush>,
}

impl Flusher {
    pub(crate) fn new(coordinator: Arc<FlushCoordinator>, log: Arc<LogFlush>) -> Self {
        Self { coordinator, log }
    }

    /// Asks that everything appended so far becomes durable; `done` is told, in order.
    pub fn flush(&self, done: FlushDone) {
        self.coordinator.request(&self.log, done);
    }
}

/// Rounds that were asked for and have not begun.
struct Rounds(Option<Arc<FlushCoordinator>>);

impl Rounds {
    fn run(mut self) {
        if let Some(coordinator) = self.0.take() {
            coordinator.rounds();
        }
    }
}

impl Drop for Rounds {
    /// An executor that is torn down runs no job any more. Who waits is let go of then: the waiter
    /// may hold the log that holds the waiter.
    fn drop(&mut self) {
        let Some(coordinator) = self.0.take() else { return };
        let asked = {
            let mut state = coordinator.state();
            state.running = false;
            std::mem::take(&mut state.asked)
        };
        for log in asked {
            let waiting = std::mem::take(&mut log.pending().waiting);
            drop(waiting);
        }
    }
}

/// Runs the rounds of one device.
pub(crate) struct FlushCoordinator {
    executor: Arc<dyn Executor>,
    observer: OnceLock<FlushObserver>,
    unflushed: Arc<AtomicU64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Logs that asked since the round began; each at most once.
    asked: Vec<Arc<LogFlush>>,
    running: bool,
}

impl FlushCoordinator {
    pub(crate) fn new(executor: Arc<dyn Executor>) -> Arc<Self> {
        Arc::new(Self {
            executor,
            observer: OnceLock::new(),
            unflushed: Arc::default(),
            state: Mutex::default(),
        })
    }

    /// Where the logs of the device count their unflushed bytes.
    pub(crate) fn unflushed(&self) -> Arc<AtomicU64> {
        self.unflushed.clone()
    }

    pub(crate) fn observe(&self, observer: FlushObserver) {
        // Set once, when the broker starts.
        let _ = self.observer.set(observer);
    }

    pub(crate) fn observer(&self) -> Option<&FlushObserver> {
        self.observer.get()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks that everything appended to `log` so far becomes durable. Never flushes here: who asks
    /// would wait for a sick disk.
    fn request(self: &Arc<Self>, log: &Arc<LogFlush>, done: FlushDone) {
        {
            let mut pending = log.pending();
            let index = pending.index;
            pending.waiting.push_back((index, done));
        }
        let mut state = self.state();
        if !state.asked.iter().any(|other| Arc::ptr_eq(other, log)) {
            state.asked.push(log.clone());
        }
        if state.running {
            return;
        }
        state.running = true;
        drop(state);
        let rounds = Rounds(Some(self.clone()));
        self.executor.submit(Lane::Flush, Box::new(move || rounds.run()));
    }

    fn rounds(&self) {
        loop {
            let asked = {
                let mut state = self.state();
                if state.asked.is_empty() {
                    state.running = false;
                    return;
                }
                std::mem::take(&mut state.asked)
            };
            together::flush(asked, |round| self.late(round), self.observer.get());
        }
    }

    /// Takes out those who asked while the round's first logs were handed over. A log of the round
    /// that asks again waits for the next.
    fn late(&self, round: &[Arc<LogFlush>]) -> Vec<Arc<LogFlush>> {
        let mut state = self.state();
        let is_new = |log: &mut Arc<LogFlush>| !round.iter().any(|other| Arc::ptr_eq(other, log));
        state.asked.extract_if(.., is_new).collect()
    }
}
