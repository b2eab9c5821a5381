//! Owns: the history of one run as it grows, the clock that stamps it, and how far it has come.
//! Never: judges.
//! Invariants: events are in the order in which they were noted; a consumer's number is given once.

use crate::history::{Event, Message, What};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Where everybody writes down what happened to it. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    began: Instant,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    consumers: u16,
    streams: u16,
    /// By partition: behind what was acknowledged or delivered.
    ends: BTreeMap<u16, u32>,
    /// By subscription and partition: behind what was delivered.
    seen: BTreeMap<(u16, u16), u32>,
    /// By partition: the log start.
    starts: BTreeMap<u16, u32>,
    acknowledged: u64,
    /// By producer, partition and sequence: the bytes of what is under way.
    under_way: BTreeMap<(u16, u16, u32), u32>,
    /// The same of messages whose publisher was told that their fate is unknown.
    unknown: BTreeMap<(u16, u16, u32), u32>,
}

impl Recorder {
    /// A recorder whose time begins now.
    pub fn start() -> Self {
        Self { began: Instant::now(), state: Arc::default() }
    }

    /// Writes down that something happened now.
    pub(super) fn note(&self, what: What) {
        let at_ns = self.began.elapsed().as_nanos() as u64;
        let mut state = self.state();
        state.follow(what);
        state.events.push(Event { at_ns, what });
    }

    /// A number for a session that begins.
    pub(super) fn next_consumer(&self) -> u16 {
        let mut state = self.state();
        state.consumers += 1;
        state.consumers - 1
    }

    /// A number for a stream of a connection.
    pub(super) fn next_stream(&self) -> u16 {
        let mut state = self.state();
        state.streams += 1;
        state.streams - 1
    }

    /// Behind everything of a partition that is known to be stored.
    pub(super) fn end(&self, partition: u16) -> u32 {
        self.state().ends.get(&partition).copied().unwrap_or(0)
    }

    /// A replica has nothing below; whether that is new.
    pub(super) fn trimmed(&self, partition: u16, start: u32) -> bool {
        let mut state = self.state();
        let known = state.starts.entry(partition).or_default();
        start > std::mem::replace(known, start.max(*known))
    }

    /// Whether some replica lacked the beginning of a partition.
    pub(super) fn is_trimmed(&self, partition: u16) -> bool {
        self.state().starts.get(&partition).is_some_and(|start| *start > 0)
    }

    /// Behind what a subscription was given of a partition.
    pub(super) fn seen(&self, subscription: u16, partition: u16) -> u32 {
        self.state().seen.get(&(subscription, partition)).copied().unwrap_or(0)
    }

    /// Messages that were acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.state().acknowledged
    }

    /// A subscription was given a record.
    pub(super) fn saw(&self, subscription: u16, partition: u16, offset: u32) {
        let mut state = self.state();
        let seen = state.seen.entry((subscription, partition)).or_default();
        *seen = (*seen).max(offset + 1);
    }

    /// Messages of unknown fate, and their bytes.
    pub(super) fn unknown(&self) -> Vec<(Message, u32)> {
        let state = self.state();
        let each = state.unknown.iter().map(|((producer, partition, sequence), bytes)| {
            let (producer, partition, sequence) = (*producer, *partition, *sequence);
            (Message { producer, partition, sequence }, *bytes)
        });
        each.collect()
    }

    /// The history up to now.
    pub(super) fn events(&self) -> Vec<Event> {
        self.state().events.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn follow(&mut self, what: What) {
        let key = |Message { producer, partition, sequence }| (producer, partition, sequence);
        match what {
            What::Publish { message, bytes } => {
                self.under_way.insert(key(message), bytes);
            }
            What::Stored { message, offset } => {
                self.under_way.remove(&key(message));
                self.acknowledged += 1;
                if let Some(offset) = offset {
                    self.rise(message.partition, offset);
                }
            }
            What::NotStored { message } => {
                self.under_way.remove(&key(message));
            }
            What::Unknown { message } => {
                if let Some(bytes) = self.under_way.remove(&key(message)) {
                    self.unknown.insert(key(message), bytes);
                }
            }
            What::Deliver { partition, offset, .. } => self.rise(partition, offset),
            _ => {}
        }
    }

    fn rise(&mut self, partition: u16, offset: u32) {
        let end = self.ends.entry(partition).or_default();
        *end = (*end).max(offset + 1);
    }
}
