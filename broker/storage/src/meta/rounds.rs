//! Hard states that reach the device together: an election of many logs costs few flushes.
//!
//! Owns: who waits for the next round of a device.
//! Never: takes a change of a log into a round that has one of it already.
//! Invariants: changes of one log are stored in the order in which they were asked for; what was asked
//! for while a round ran is the next round; no more wait than the logs of the device have changes
//! under way, each of which its owner waits for.

use super::{Generation, Meta, State, together};
use crate::error::FlushError;
use crate::executor::{Executor, Lane};
use crate::flush::LogFlush;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Told once what became of a hard state.
pub type MetaDone = Box<dyn FnOnce(io::Result<()>) + Send>;
type Change = Box<dyn FnOnce(&mut State) + Send>;

/// The hard state of one log, beside its writer. Cheap to clone.
#[derive(Clone)]
pub struct MetaStore {
    meta: Arc<Mutex<Meta>>,
    flush: Arc<LogFlush>,
    rounds: Arc<MetaRounds>,
}

impl MetaStore {
    pub(crate) fn new(
        meta: Arc<Mutex<Meta>>,
        flush: Arc<LogFlush>,
        rounds: Arc<MetaRounds>,
    ) -> Self {
        Self { meta, flush, rounds }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the owner's hard state durable, along with those of other logs; `done` is told, in
    /// order. A failure fences the log.
    pub fn store(&self, blob: Vec<u8>, done: MetaDone) {
        self.change(move |state| state.blob = blob, done);
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State) + Send + 'static, done: MetaDone) {
        if let Some(error) = self.flush.fence() {
            return done(Err(io::Error::other(error.clone())));
        }
        self.rounds.ask(Asked { log: self.clone(), change: Box::new(change), done });
    }

    /// The log has failed: nobody knows what of a state is on the disk.
    pub(crate) fn fail(&self, error: &io::Error) {
        let error = FlushError::new(&self.lock().path, error);
        self.flush.fail(error);
    }
}

struct Asked {
    log: MetaStore,
    change: Change,
    done: MetaDone,
}

/// The rounds of one device.
pub(crate) struct MetaRounds {
    executor: Arc<dyn Executor>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    asked: Vec<Asked>,
    running: bool,
}

impl MetaRounds {
    pub(crate) fn new(executor: Arc<dyn Executor>) -> Arc<Self> {
        Arc::new(Self { executor, waiting: Mutex::default() })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(self: &Arc<Self>, asked: Asked) {
        let mut waiting = self.waiting();
        waiting.asked.push(asked);
        if std::mem::replace(&mut waiting.running, true) {
            return;
        }
        drop(waiting);
        let rounds = Rounds(Some(self.clone()));
        self.executor.submit(Lane::Checkpoint, Box::new(move || rounds.run()));
    }

    fn run(&self) {
        loop {
            let round = {
                let mut waiting = self.waiting();
                let mut logs = BTreeSet::new();
                let is_first = |asked: &mut Asked| logs.insert(Arc::as_ptr(&asked.log.meta).addr());
                let round: Vec<Asked> = waiting.asked.extract_if(.., is_first).collect();
                if round.is_empty() {
                    waiting.running = false;
                    return;
                }
                round
            };
            store(round);
        }
    }
}

/// Rounds that were asked for and have not begun.
struct Rounds(Option<Arc<MetaRounds>>);

impl Rounds {
    fn run(mut self) {
        if let Some(rounds) = self.0.take() {
            rounds.run();
        }
    }
}

impl Drop for Rounds {
    /// An executor that is torn down runs no job any more: who waits is let go of.
    fn drop(&mut self) {
        let Some(rounds) = self.0.take() else { return };
        let asked = {
            let mut waiting = rounds.waiting();
            waiting.running = false;
            std::mem::take(&mut waiting.asked)
        };
        drop(asked);
    }
}

/// Stores one round and tells who asked. Only here one thread holds several hard states at once.
fn store(round: Vec<Asked>) {
    let (mut logs, mut waiters) = (Vec::new(), Vec::new());
    for Asked { log, change, done } in round {
        logs.push((log, change));
        waiters.push(done);
    }
    let (logs, changes): (Vec<_>, Vec<_>) = logs.into_iter().unzip();
    let outcomes = {
        let mut metas: Vec<_> = logs.iter().map(MetaStore::lock).collect();
        let changed: Vec<State> =
            metas.iter().zip(changes).map(|(meta, change)| meta.changed(change)).collect();
        let generations: Vec<Generation> =
            metas.iter().zip(&changed).map(|(meta, state)| meta.generation(state)).collect();
        let outcomes = together::write(&generations);
        for ((meta, state), outcome) in metas.iter_mut().zip(changed).zip(&outcomes) {
            if outcome.is_ok() {
                meta.state = state;
            }
        }
        outcomes
    };
    for ((log, done), outcome) in logs.iter().zip(waiters).zip(outcomes) {
        if let Err(error) = &outcome {
            log.fail(error);
        }
        done(outcome);
    }
}
