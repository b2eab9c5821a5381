//! Which consumers have something new to say: a register that coalesces.
//!
//! Owns: the ids of consumers that were poked or closed since the task last looked.
//! Never: full; it holds at most one poke and one close per consumer.

use crate::connection::outbox::ConsumerId;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// Pokes on their way to the partition's task.
#[derive(Debug, Default)]
pub(super) struct Pokes {
    state: Mutex<Poked>,
    arrived: Notify,
}

/// What arrived since the last look.
#[derive(Debug, Default)]
pub(super) struct Poked {
    pub(super) changed: BTreeSet<ConsumerId>,
    pub(super) closed: BTreeSet<ConsumerId>,
}

impl Pokes {
    pub(super) fn poke(&self, consumer: ConsumerId) {
        self.with(|poked| poked.changed.insert(consumer));
        self.arrived.notify_one();
    }

    pub(super) fn close(&self, consumer: ConsumerId) {
        self.with(|poked| poked.closed.insert(consumer));
        self.arrived.notify_one();
    }

    /// Waits until something arrived. Cancel safe: what arrives meanwhile is told to the next wait.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes what arrived.
    pub(super) fn take(&self) -> Poked {
        self.with(std::mem::take)
    }

    fn with<T>(&self, change: impl FnOnce(&mut Poked) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
