//! What everybody may see of a partition without asking its task.
//!
//! Owns: one register per number, written by the task alone.
//! Never: a promise that two numbers are of the same moment.

use crate::replication::Replica;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::SetOnce;
use weir_protocol::types::{Name, Offset, Term};

/// A partition at a glance.
#[derive(Debug, Clone)]
pub struct PartitionView {
    /// First offset that readers may ask for.
    pub log_start: Offset,
    /// High watermark (exclusive).
    pub high_watermark: Offset,
    /// End of what was appended, committed or not (exclusive).
    pub log_end: Offset,
    /// Bytes of the log on disk.
    pub bytes: u64,
    /// Whether it leads and judges publishes.
    pub leading: bool,
    /// The newest term that it led since it was opened; 0 = none.
    pub term: Term,
    /// Whether it takes no changes, because what it knows may lack what was lost.
    pub read_only: bool,
    /// Why it takes no more: `reason_bits`, 0 = it takes all.
    pub blocked_bits: u32,
    /// Attached consumers.
    pub consumers: u32,
    /// Its durable subscriptions, by name.
    pub subscriptions: Arc<[SubscriptionView]>,
}

/// A durable subscription at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionView {
    /// Its name.
    pub name: Name,
    /// Everything below is settled (exclusive).
    pub cursor: Offset,
    /// Everything below was delivered to the attached consumer; the cursor when none is attached.
    pub delivered: Offset,
    /// Whether a consumer is attached.
    pub attached: bool,
    /// Records that were trimmed before it had settled them, ever.
    pub expired: u64,
}

/// The registers behind [`PartitionView`].
#[derive(Default)]
pub(super) struct Board {
    pub(super) log_start: AtomicU64,
    pub(super) high_watermark: AtomicU64,
    pub(super) log_end: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) leading: AtomicBool,
    pub(super) term: AtomicU64,
    pub(super) read_only: AtomicBool,
    pub(super) blocked_bits: AtomicU32,
    pub(super) consumers: AtomicU32,
    /// Requests are answered from now on.
    pub(super) opened: SetOnce<()>,
    subscriptions: Mutex<Arc<[SubscriptionView]>>,
    /// While the partition runs.
    replica: Mutex<Option<Replica>>,
}

impl Board {
    pub(super) fn set_replica(&self, replica: Option<Replica>) {
        *self.replica.lock().unwrap_or_else(PoisonError::into_inner) = replica;
    }

    pub(super) fn replica(&self) -> Option<Replica> {
        self.replica.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_subscriptions(&self, subscriptions: Arc<[SubscriptionView]>) {
        *self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner) = subscriptions;
    }

    pub(super) fn view(&self) -> PartitionView {
        // Written last, read first: who sees that it leads sees what it leads.
        let leading = self.leading.load(Ordering::Acquire);
        let offset = |register: &AtomicU64| Offset(register.load(Ordering::Acquire));
        let subscriptions =
            self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        PartitionView {
            log_start: offset(&self.log_start),
            high_watermark: offset(&self.high_watermark),
            log_end: offset(&self.log_end),
            bytes: self.bytes.load(Ordering::Acquire),
            leading,
            term: Term(self.term.load(Ordering::Acquire)),
            read_only: self.read_only.load(Ordering::Acquire),
            blocked_bits: self.blocked_bits.load(Ordering::Acquire),
            consumers: self.consumers.load(Ordering::Acquire),
            subscriptions,
        }
    }
}
