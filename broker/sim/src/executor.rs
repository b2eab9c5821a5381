//! Threads as tasks of the simulated runtime: a job runs a while after it was submitted.
//!
//! Owns: the jobs of each lane, and how long each takes, from the seed.
//! Never: runs a job on the thread that submits it, nor one of a broker that was killed.
//! Invariants: jobs of one lane run in their order, as those of one thread do; a lane that is
//! stalled runs none.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::{Duration, Instant, sleep_until};
use weir_storage::{Executor, Job, Lane};

/// Jobs of one lane that wait. More would block the real executor, and with it the one thread.
const QUEUE_MAX: usize = 4_096;

/// The executor of one broker, for one life of its process.
#[derive(Debug)]
pub struct SimExecutor(Arc<Mutex<State>>);

struct State {
    random: fastrand::Rng,
    lanes: BTreeMap<u8, LaneState>,
    killed: bool,
}

#[derive(Default)]
struct LaneState {
    /// Jobs with the time at which each is run.
    jobs: VecDeque<(Instant, Job)>,
    /// Whether a task runs them.
    running: bool,
    /// When its last job, or its stall, is over.
    busy_until: Option<Instant>,
    stalled_until: Option<Instant>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let jobs: BTreeMap<u8, usize> =
            self.lanes.iter().map(|(lane, state)| (*lane, state.jobs.len())).collect();
        f.debug_struct("State").field("jobs", &jobs).field("killed", &self.killed).finish()
    }
}

impl SimExecutor {
    /// An executor whose jobs take times that follow from `seed`.
    pub fn new(seed: u64) -> Arc<Self> {
        let random = fastrand::Rng::with_seed(seed);
        let state = State { random, lanes: BTreeMap::new(), killed: false };
        Arc::new(Self(Arc::new(Mutex::new(state))))
    }

    /// Nothing of the lane is done for so long, from now on.
    pub fn stall(&self, lane: Lane, lasts: Duration) {
        let until = Instant::now() + lasts;
        let mut state = lock(&self.0);
        let lane = state.lanes.entry(lane as u8).or_default();
        lane.stalled_until = Some(lane.stalled_until.map_or(until, |before| before.max(until)));
        lane.busy_until = Some(lane.busy_until.map_or(until, |before| before.max(until)));
    }

    /// The process is gone: what waits is dropped and not run, and so is what still comes.
    pub fn kill(&self) {
        let lanes = {
            let mut state = lock(&self.0);
            state.killed = true;
            std::mem::take(&mut state.lanes)
        };
        // A job that is dropped may submit another.
        drop(lanes);
    }
}

impl Executor for SimExecutor {
    fn submit(&self, lane: Lane, job: Job) {
        let mut state = lock(&self.0);
        if state.killed {
            drop(state);
            drop(job);
            return;
        }
        // A flush mostly takes a fraction of a millisecond, and now and then very long.
        let slow = state.random.u8(..) == 0;
        let us = if slow { state.random.u64(5_000..50_000) } else { state.random.u64(50..800) };
        let number = lane as u8;
        let lane = state.lanes.entry(number).or_default();
        let now = Instant::now();
        let done = lane.busy_until.map_or(now, |free| free.max(now)) + Duration::from_micros(us);
        lane.busy_until = Some(done);
        assert!(lane.jobs.len() < QUEUE_MAX, "lane {number} has {QUEUE_MAX} jobs that wait");
        lane.jobs.push_back((done, job));
        if !std::mem::replace(&mut lane.running, true) {
            let state = self.0.clone();
            #[expect(clippy::disallowed_methods, reason = "the simulator stands below the seams")]
            drop(tokio::spawn(async move { run(&state, number).await }));
        }
    }
}

/// Runs the jobs of a lane until none is left.
async fn run(state: &Mutex<State>, lane: u8) {
    loop {
        let next = lock(state).next(lane);
        match next {
            Some(Next::Job(job)) => job(),
            Some(Next::At(at)) => sleep_until(at).await,
            None => return,
        }
    }
}

enum Next {
    Job(Job),
    /// Ask again then: the lane may have been stalled, or killed, meanwhile.
    At(Instant),
}

impl State {
    fn next(&mut self, lane: u8) -> Option<Next> {
        let lane = self.lanes.get_mut(&lane)?;
        let Some((done, _)) = lane.jobs.front() else {
            lane.running = false;
            return None;
        };
        let at = lane.stalled_until.map_or(*done, |until| until.max(*done));
        if at > Instant::now() {
            return Some(Next::At(at));
        }
        lane.jobs.pop_front().map(|(_, job)| Next::Job(job))
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
