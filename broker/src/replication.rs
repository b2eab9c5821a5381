//! One replica of one replicated log: proposals go in, committed batches are read from the log.
//!
//! Owns: the consensus engine, the only place that names it; the VOID stamp; when a vote, a
//! checkpoint or a trim may reach the disk; the two seams to other brokers, [`Peers`] outwards and
//! [`Switchboard`] inwards.
//! Never: knows what a batch means. Nothing here is applied: the engine's state machine only
//! advances [`ReplicaState::committed`], and the partition's task reads the log up to it.
//! Invariants:
//! - The order of [`Replica::propose`] calls is the order in the log, and a proposal of another
//!   term than the leader's never gets into it.
//! - A refused proposal is never overtaken by its successor: whatever follows it in its run is
//!   refused too or stamped VOID.
//! - Votes are saved after every earlier append of the same log is durable; checkpoints are never
//!   later than the durable log; appends complete in their order.
//! - A failed flush fences the replica until it is opened anew; it is never retried.
//! - Chain and bytes of a batch are the same on every replica, but for two local fields of its
//!   header. A follower answers for what it has flushed, and fences where its log differs.

mod boot;
mod codec;
mod engine;
mod gate;
mod inbox;
mod log_map;
mod log_store;
mod maintain;
mod membership;
pub mod metadata;
mod network;
pub mod offline;
mod open;
mod pace;
mod payload;
mod peers;
mod receive;
mod refusal;
pub mod repair;
mod runs;
mod runtime;
mod shared;
mod silence;
mod snapshot;
mod state_machine;
mod switchboard;
mod tail;
#[cfg(test)]
pub(crate) mod tests;
mod window;
mod wiring;

pub use boot::MemoryLoss;
pub use codec::CodecError;
pub use gate::Gate;
pub use inbox::{AppendAnswers, AppendInput, Inbox};
pub use membership::{Members, MembershipError};
pub use network::CATCH_UP_BYTES;
pub use open::{Birth, OpenReplicaError, OpenReport, ReplicaOptions};
pub use pace::Pace;
pub use peers::{AppendStream, NoPeers, PeerLost, Peers};
pub use switchboard::Switchboard;
pub use weir_protocol::frame::Durability;
pub use wiring::Wiring;

use crate::planted::{Bug, is_planted};
use engine::Types;
use openraft::Raft;
use openraft::impls::leader_id_std;
use refusal::Flight;
use shared::Shared;
use state_machine::Shell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use switchboard::Place;
use tokio::sync::watch;
use tokio::time::Duration;
use weir_protocol::batch::{BatchHeader, seal_control};
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::{Index, ReplicaId, Term};
use weir_storage::{BatchSlice, LogReader, NewBatch, ReadError};

/// Proposals of one replica between [`Replica::propose`] and their fate. A partition closes its
/// mailbox well before this; the engine's channel is larger, so that a proposal never waits.
pub const INFLIGHT_MAX: usize = 64;
/// Messages that the engine's channel holds: proposals, and the few calls beside them.
const ENGINE_CHANNEL_MESSAGES: u64 = 256;
/// A log that nothing is appended to for this long gets evidence of its last flush: a device flushes
/// in less, so that a busy log never comes to it, and a start seldom finds a log without.
pub const WATERMARK_AFTER: Duration = Duration::from_millis(5);
/// A control section ends with its own CRC.
const CONTROL_CRC_BYTES: usize = 4;
const _: () = assert!(INFLIGHT_MAX * 2 <= ENGINE_CHANNEL_MESSAGES as usize);

/// What one call proposes: it becomes one index of the log.
///
/// Every batch carries its run and its number in it, consecutive over the proposal and over the
/// proposals of the run, from 0; a term's runs count upwards. Index, term and the mark of the last
/// batch are stamped here.
#[derive(Debug)]
pub struct Proposal {
    /// The term that the proposer believes to lead.
    pub term: Term,
    /// At least one batch, DATA or CONTROL.
    pub batches: Vec<NewBatch>,
}

/// What the replica is in its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It leads `Term`. Proposals are in order once [`ReplicaState::leading`] says so.
    Leader(Term),
    /// It follows, or looks for a leader.
    Follower {
        /// The leader, if one is known.
        leader: Option<ReplicaId>,
    },
    /// It asks for votes.
    Candidate,
    /// It has ended. Reading what is committed goes on; writing needs a new [`Replica::open`].
    Fenced(Fence),
}

/// Why a replica ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fence {
    /// The device is full: open the replica again once it has room.
    #[error("the device is full")]
    NoSpace,
    /// A write or a flush failed: what the device holds is not known. End the process.
    #[error("the device failed: {0}")]
    Device(String),
    /// The engine stopped over an error of its own or of what it read.
    #[error("replication stopped: {0}")]
    Engine(String),
    /// [`Replica::shutdown`].
    #[error("the replica was shut down")]
    Shutdown,
}

/// Whether a refused proposal may be in the log after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoredOutcome {
    /// It never entered the log.
    NotStored,
    /// It may have.
    Unknown,
}

/// A run that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The run's term.
    pub term: Term,
    /// The run.
    pub run: u32,
    /// The first number of it that was refused. Later ones are refused too or become VOID.
    pub number: u32,
    /// The outcome of the least certain refusal.
    pub outcome: StoredOutcome,
}

impl Refused {
    /// Both refusals in one: the newer run's, or of the same run the wider.
    fn merge(self, other: Self) -> Self {
        let (this_run, other_run) = ((self.term, self.run), (other.term, other.run));
        match this_run.cmp(&other_run) {
            std::cmp::Ordering::Less => other,
            std::cmp::Ordering::Greater => self,
            std::cmp::Ordering::Equal => Self {
                number: self.number.min(other.number),
                outcome: self.outcome.max(other.outcome),
                ..self
            },
        }
    }
}

/// What the replica shows to the partition's task: one register, always the latest value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaState {
    /// What the replica is.
    pub role: Role,
    /// Every batch up to and including this index is committed and may be read and obeyed.
    pub committed: Index,
    /// The term of the batch at `committed`.
    pub committed_term: Term,
    /// The latest run that was broken, if any was.
    pub refused: Option<Refused>,
    /// The first index that a follower needs and that is damaged here. That follower waits; another
    /// leader may have it whole.
    pub unreadable: Option<Index>,
    /// The newest snapshot of a leader that was installed since the replica was opened: the state at
    /// this index is [`Replica::installed_state`], and the log up to it is gone. Shown before the
    /// log goes, so that a read that finds it gone finds this as well.
    pub installed: Option<Index>,
    /// It gave up its lead because no majority answered: until a leader is heard of again, whoever
    /// wants one finds it sooner elsewhere.
    pub severed: bool,
    /// It hands its lead over: it takes no proposals any more, and another leads soon.
    pub hands_over: bool,
}

impl ReplicaState {
    /// The term in which proposals are in order: the replica leads it and has seen a batch of
    /// that term committed, so every earlier record is before the partition's duplicate check
    /// as soon as the partition has read up to `committed`. None while it hands over: whoever waits
    /// a moment learns who leads instead.
    pub fn leading(&self) -> Option<Term> {
        match self.role {
            Role::Leader(term) if is_planted(Bug::OwnTermNotAwaited) => Some(term),
            Role::Leader(_) if self.hands_over => None,
            Role::Leader(term) if term == self.committed_term => Some(term),
            _ => None,
        }
    }
}

/// Why a proposal was not handed over. Nothing of it is stored, and its numbers may be used again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The replica does not lead the proposal's term.
    #[error("this replica does not lead term {0}")]
    NotLeader(Term),
    /// [`INFLIGHT_MAX`] proposals wait for their fate.
    #[error("{INFLIGHT_MAX} proposals are in flight")]
    Full,
    /// The proposal holds no batch.
    #[error("a proposal needs at least one batch")]
    Empty,
    /// The replica has ended.
    #[error(transparent)]
    Fenced(#[from] Fence),
}

/// Why a checkpoint or a trim was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaintainError {
    /// The replica has ended.
    #[error(transparent)]
    Fenced(#[from] Fence),
    /// A checkpoint beyond what is committed.
    #[error("index {at} is beyond the committed index {committed}")]
    NotCommitted {
        /// The index asked for.
        at: Index,
        /// The committed one.
        committed: Index,
    },
    /// A follower is just being sent what should be trimmed. It goes as soon as that has ended.
    #[error("the log up to index {0} is being sent to a follower")]
    Held(Index),
    /// The disk refused.
    #[error("the disk refused: {0}")]
    Disk(String),
}

/// One replica of one replicated log. Cheap to clone.
#[derive(Clone)]
pub struct Replica {
    raft: Raft<Types, Shell>,
    shared: Arc<Shared>,
    flight: Arc<Flight>,
    place: Arc<Place>,
    mark: Option<Arc<boot::OpenMark>>,
}

impl Replica {
    /// Opens the log in `options.dir`, recovers it, and starts to take part in its group. A group
    /// of one voter elects itself at once.
    pub async fn open(options: ReplicaOptions) -> Result<(Self, OpenReport), OpenReplicaError> {
        open::open(options).await
    }

    /// Hands one proposal over; never waits. What becomes of it is learnt from the log (its
    /// batches appear in it under its term, run and numbers) or from [`ReplicaState::refused`].
    pub fn propose(&self, proposal: Proposal) -> Result<(), ProposeError> {
        let Proposal { term, batches } = proposal;
        let first = batches.first().ok_or(ProposeError::Empty)?;
        let place = Refused {
            term,
            run: first.header.run,
            number: first.header.run_number,
            outcome: StoredOutcome::Unknown,
        };
        match &self.shared.state.borrow().role {
            Role::Leader(_) if is_planted(Bug::TermNotFenced) => {}
            Role::Leader(led) if *led == term => {}
            Role::Fenced(fence) => return Err(fence.clone().into()),
            _ => return Err(ProposeError::NotLeader(term)),
        }
        self.hand_over(place, batches)
    }

    /// Gives a proposal to the engine, which checks the term once more: it may have lost it since.
    fn hand_over(&self, place: Refused, batches: Vec<NewBatch>) -> Result<(), ProposeError> {
        let guard = self.flight.admit(place, INFLIGHT_MAX).ok_or(ProposeError::Full)?;
        let leader = leader_id_std::LeaderId { term: place.term.0, voted_for: self.shared.replica };
        let write = self.raft.write(payload::Batches::Proposed(batches)).responder(guard);
        let write = match is_planted(Bug::TermNotFenced) {
            true => write,
            false => write.with_leader(openraft::vote::RaftLeaderId::to_committed(&leader)),
        };
        // The channel has room for every proposal that may be in flight, so one poll sends it;
        // tokio's budget must not make that poll wait.
        let mut send = pin!(tokio::task::unconstrained(write.into_future()));
        match send.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Ok(()),
            // The engine has ended.
            Poll::Ready(Err(_)) => Err(self.shared.fence_or(Fence::Shutdown).into()),
            Poll::Pending => unreachable!("the engine's channel holds every proposal in flight"),
        }
    }

    /// Its identity.
    pub fn id(&self) -> ReplicaId {
        self.shared.replica
    }

    /// Proposals whose fate is still open.
    pub fn in_flight(&self) -> usize {
        self.flight.in_flight()
    }

    /// The register to watch.
    pub fn state(&self) -> watch::Receiver<ReplicaState> {
        self.shared.state.subscribe()
    }

    /// Batches from `from` on, at least one if there is one, about `max_bytes` of them. Waits for
    /// the device where they are not in memory.
    pub(crate) async fn read(
        &self,
        from: Index,
        max_bytes: usize,
    ) -> Result<Vec<BatchSlice>, ReadError> {
        self.shared.read(from, max_bytes).await
    }

    /// The log to read from, up to [`ReplicaState::committed`].
    pub fn log(&self) -> LogReader {
        self.shared.reader.clone()
    }
}

/// A batch that consists of a control section alone: `content` and its CRC.
pub(crate) fn control_batch(mut header: BatchHeader, mut content: Vec<u8>) -> NewBatch {
    seal_control(&mut content);
    header.control_len = content.len() as u32;
    header.body_len = header.control_len;
    // Of a record table and a payload that are not there.
    header.body_crc = 0;
    NewBatch { header, body: vec![content.into()] }
}

/// The content of a stored batch's control section, without its CRC.
pub(crate) fn control_section(slice: &BatchSlice) -> &[u8] {
    slice.bytes.get(BATCH_HEADER_BYTES..).map_or(&[], |body| control_content(&slice.header, body))
}

/// The content of the control section that `body` begins with, without its CRC.
fn control_content<'a>(header: &BatchHeader, body: &'a [u8]) -> &'a [u8] {
    let content = (header.control_len as usize).saturating_sub(CONTROL_CRC_BYTES);
    body.get(..content).unwrap_or_default()
}
