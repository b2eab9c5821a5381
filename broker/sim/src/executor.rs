//! Threads as tasks of the simulated runtime: a job runs a while after it was submitted.
//!
//! Owns: how long each job takes, from the seed.
//! Never: runs a job on the thread that submits it.
//! Invariant: jobs of one lane run in their order, as those of one thread do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::{Duration, Instant};
use weir_storage::{Executor, Job, Lane};

/// The executor of one era.
#[derive(Debug)]
pub struct SimExecutor(Mutex<State>);

#[derive(Debug)]
struct State {
    random: fastrand::Rng,
    /// When the lane's last job runs.
    busy_until: BTreeMap<u8, Instant>,
}

impl SimExecutor {
    /// An executor whose jobs take times that follow from `seed`.
    pub fn new(seed: u64) -> Arc<Self> {
        let random = fastrand::Rng::with_seed(seed);
        Arc::new(Self(Mutex::new(State { random, busy_until: BTreeMap::new() })))
    }
}

impl Executor for SimExecutor {
    fn submit(&self, lane: Lane, job: Job) {
        let at = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // A flush mostly takes a fraction of a millisecond, and now and then very long.
            let slow = state.random.u8(..) == 0;
            let us = if slow { state.random.u64(5_000..50_000) } else { state.random.u64(50..800) };
            let now = Instant::now();
            let free = state.busy_until.get(&(lane as u8)).copied().unwrap_or(now).max(now);
            let at = free + Duration::from_micros(us);
            state.busy_until.insert(lane as u8, at);
            at
        };
        #[expect(clippy::disallowed_methods, reason = "the simulator stands below the seams")]
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            job();
        });
    }
}
