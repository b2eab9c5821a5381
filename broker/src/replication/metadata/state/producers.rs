//! The table of producer names.
//!
//! Invariants: an id is never given to another name; an epoch only rises.

use super::{Change, Refusal, State};
use weir_protocol::types::{Name, ProducerId};

/// Named producers of one cluster.
pub const PRODUCERS_MAX: usize = 100_000;

/// A producer name's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Producer {
    /// Its id, never reused.
    pub id: ProducerId,
    /// How often it was opened.
    pub epoch: u32,
}

impl State {
    /// The identity behind a producer's name.
    pub fn producer(&self, name: &Name) -> Option<Producer> {
        self.producers.get(name).copied()
    }

    pub(super) fn open_producer(&mut self, name: &Name) -> Result<Change, Refusal> {
        if let Some(producer) = self.producers.get_mut(name) {
            producer.epoch = producer.epoch.checked_add(1).ok_or(Refusal::EpochLimit)?;
            return Ok(Change::Opened(*producer));
        }
        if self.producers.len() >= PRODUCERS_MAX {
            return Err(Refusal::ProducerLimit);
        }
        let producer = Producer { id: ProducerId(self.next_producer), epoch: 1 };
        self.next_producer += 1;
        self.producers.insert(name.clone(), producer);
        Ok(Change::Opened(producer))
    }
}
