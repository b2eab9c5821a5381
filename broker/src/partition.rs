//! One partition: one log, one task that owns everything about it.
//!
//! Owns: the mailbox, and behind it the partition's state: producers, subscriptions, what waits
//! for an answer.
//! Never: waits for a consumer, a publisher or another partition; decides outside `core`.
//! Invariants:
//! - everything in the mailbox was paid for: a publish by credit, a request by its slot, so that
//!   [`PartitionHandle::try_send`] of a paid publish always finds room;
//! - pokes are registers, not messages: they never find the mailbox full;
//! - every request is answered, also when the partition ends.

mod command;
mod core;
mod dedup;
pub mod limits;
mod log_time;
mod open;
mod pending;
mod pokes;
mod refusal;
mod request;
mod retention;
mod roster;
mod state;
mod subscription;
mod task;
#[cfg(test)]
mod tests;
mod view;
mod wire;

pub use command::describe_commands;
pub use open::{OpenPartitionError, PartitionOptions};
pub use request::{
    JoinRequest, PublishRequest, PublisherState, Request, SubscribeRequest, SubscribedState,
};
pub use view::{PartitionView, SubscriptionView};
pub use wire::WireError;

#[cfg(test)]
use crate::connection::outbox::ConsumerId;
use crate::connection::outbox::RequestReply;
use crate::replication::{MemoryLoss, Replica};
pub use limits::MAILBOX_REQUESTS;
use pokes::Pokes;
use std::fmt;
use std::sync::Arc;
use tokio::sync::mpsc;
use view::Board;
use weir_protocol::limits::MESSAGE_COST_MIN;
use weir_storage::{DamagedRange, LogReader};

/// The mailbox of one partition and what may be seen of it. Cheap to clone.
#[derive(Clone)]
pub struct PartitionHandle {
    mailbox: mpsc::Sender<Request>,
    pokes: Arc<Pokes>,
    board: Arc<Board>,
    memory_loss: Option<MemoryLoss>,
}

impl fmt::Debug for PartitionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartitionHandle").field("view", &self.view()).finish_non_exhaustive()
    }
}

impl PartitionHandle {
    /// Hands a request over; never waits. It comes back when the mailbox is full (which cannot
    /// happen to a publish that credit paid for) or the partition has ended. Pokes and closes
    /// always arrive.
    #[expect(clippy::result_large_err, reason = "it holds the place for its answer")]
    pub fn try_send(&self, request: Request) -> Result<(), Request> {
        match request {
            Request::Poke(consumer) => self.pokes.poke(consumer),
            Request::CloseConsumer(consumer) => self.pokes.close(consumer),
            request => return self.mailbox.try_send(request).map_err(refused),
        }
        Ok(())
    }

    /// Waits until requests are answered, or the partition has ended: what is known to be committed is
    /// applied, and who leads is known, or that nobody does.
    pub async fn opened(&self) {
        tokio::select! {
            _ = self.board.opened.wait() => {}
            () = self.mailbox.closed() => {}
        }
    }

    /// Answers everything that was accepted, makes the state durable and ends the partition.
    pub async fn stop(&self) {
        let (done, stopped) = RequestReply::channel();
        if self.mailbox.send(Request::Stop { done }).await.is_ok() {
            // An end without an answer is an end.
            let _ = stopped.await;
        }
    }

    /// What it lost of what was acknowledged out of memory, if that ever happened here.
    pub fn memory_loss(&self) -> Option<MemoryLoss> {
        self.memory_loss
    }

    /// Whether the partition has ended: nothing is taken any more.
    pub fn is_closed(&self) -> bool {
        self.mailbox.is_closed()
    }

    /// The partition at a glance.
    pub fn view(&self) -> PartitionView {
        self.board.view()
    }

    /// What of its log is known to be damaged, by index; nothing once it has ended.
    pub fn damaged_ranges(&self) -> Vec<DamagedRange> {
        self.log().map_or(Vec::new(), |log| log.damaged_ranges())
    }

    /// Its log, until it ends.
    pub(crate) fn log(&self) -> Option<LogReader> {
        self.replica().map(|replica| replica.log())
    }

    /// Its replica, until it ends.
    pub(crate) fn replica(&self) -> Option<Replica> {
        self.board.replica()
    }
}

#[cfg(test)]
impl PartitionHandle {
    /// A partition that a test plays: the mailbox is its own to read.
    pub(crate) fn played(capacity: usize) -> (Self, mpsc::Receiver<Request>) {
        let (mailbox, requests) = mpsc::channel(capacity);
        (
            Self { mailbox, pokes: Arc::default(), board: Arc::default(), memory_loss: None },
            requests,
        )
    }

    /// Consumers that were poked, and closed, since the last look.
    pub(crate) fn take_pokes(&self) -> (Vec<ConsumerId>, Vec<ConsumerId>) {
        let poked = self.pokes.take();
        (poked.changed.into_iter().collect(), poked.closed.into_iter().collect())
    }
}

fn refused(error: mpsc::error::TrySendError<Request>) -> Request {
    match error {
        mpsc::error::TrySendError::Full(request) | mpsc::error::TrySendError::Closed(request) => {
            request
        }
    }
}

/// Places in the mailbox: every publish that a pool of `pool_cost` can pay for, and requests.
fn mailbox_capacity(pool_cost: u64) -> usize {
    usize::try_from(pool_cost / MESSAGE_COST_MIN).unwrap_or(usize::MAX / 2) + MAILBOX_REQUESTS
}
