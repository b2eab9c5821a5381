//! Owns: who is in the group and who leads it, on behalf of whoever places replicas.
//! Never: decides who should be.
//! Invariants: a change names the membership it starts from, so that two who decide at once can not
//! undo one another; a joint membership that an interrupted change left behind is ended by asking
//! for the same voters again.

use super::engine::{self, Types};
use super::{Fence, Replica, Role};
use crate::planted::{Bug, is_planted};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::{ClientWriteResponse, Precondition};
use openraft::{ChangeMembers, Instant, ReadPolicy};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Duration;
use weir_protocol::types::{BrokerId, Index, ReplicaId, Term};

/// Who is in a group, as this replica knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    /// Where the membership was written.
    pub index: Index,
    /// Who votes: one set, or while it changes the old and the new one.
    pub voters: Vec<BTreeSet<ReplicaId>>,
    /// Everybody, with their brokers; who does not vote learns.
    pub brokers: BTreeMap<ReplicaId, BrokerId>,
}

/// Why a change of the group was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// This replica does not lead, or has not led for long enough to know the group.
    #[error("this replica does not lead")]
    NotLeader,
    /// The membership is another than the one that was named, or is just being changed.
    #[error("the membership has changed, or is being changed: {0}")]
    Changed(String),
    /// The group can not be made that.
    #[error("the membership is not possible: {0}")]
    Impossible(String),
    /// The leadership was lost meanwhile: the change may take effect or not.
    #[error("the outcome is unknown: look at the membership before trying again")]
    Unknown,
    /// The chosen replica did not take over in time.
    #[error("the leadership was not taken over")]
    NotTaken,
    /// The replica has ended.
    #[error(transparent)]
    Fenced(#[from] Fence),
}

type Changed = Result<ClientWriteResponse<Types>, RaftError<Types, ClientWriteError<Types>>>;

impl Replica {
    /// Who is in the group.
    pub fn members(&self) -> Members {
        let seen = self.raft.server_metrics();
        let seen = seen.borrow_watched();
        let stored = &seen.membership_config;
        Members {
            index: engine::place_from(stored.log_id().as_ref()).index,
            voters: stored.membership().get_joint_config().clone(),
            brokers: stored.nodes().map(|(replica, broker)| (*replica, *broker)).collect(),
        }
    }

    /// Whether nobody else votes: if this replica does not lead, nobody does.
    pub fn is_only_voter(&self) -> bool {
        self.shared.is_only_voter()
    }

    /// Another member that leads, as far as is known here: its broker (none where the membership is
    /// not known yet) and its term.
    pub fn other_leader(&self) -> Option<(Option<BrokerId>, Term)> {
        let seen = self.raft.server_metrics();
        let seen = seen.borrow_watched();
        let leader = seen.current_leader.filter(|leader| *leader != self.shared.replica)?;
        let mut nodes = seen.membership_config.nodes();
        let broker = nodes.find(|(replica, _)| **replica == leader).map(|(_, broker)| *broker);
        Some((broker, Term(seen.vote.leader_id.term)))
    }

    /// How far each member is known to hold the log, flushed; empty unless this replica leads.
    pub fn progress(&self) -> BTreeMap<ReplicaId, Index> {
        let seen = self.raft.data_metrics();
        let seen = seen.borrow_watched();
        let all = seen.replication.iter().flatten();
        all.map(|(id, at)| (*id, engine::place_from(at.as_ref()).index)).collect()
    }

    /// How long ago each other member answered last; empty unless this replica leads, and without
    /// those that never did.
    pub fn silence(&self) -> BTreeMap<ReplicaId, Duration> {
        let seen = self.raft.data_metrics();
        let seen = seen.borrow_watched();
        let all = seen.heartbeat.iter().flatten();
        all.filter_map(|(id, at)| Some((*id, at.as_ref()?.elapsed()))).collect()
    }

    /// Adds a replica that learns: it is sent the log and has no vote. Returns where that was
    /// written.
    pub async fn add_learner(
        &self,
        replica: ReplicaId,
        broker: BrokerId,
    ) -> Result<Index, MembershipError> {
        // It needs beats, and a group of one has none.
        self.raft.runtime_config().tick(true);
        self.changed(self.raft.add_learner(replica, broker, false).await)
    }

    /// Takes away one that only learns.
    pub async fn remove_learner(
        &self,
        replica: ReplicaId,
        expected: Index,
    ) -> Result<Index, MembershipError> {
        let change = ChangeMembers::RemoveNodes([replica].into());
        self.change(change, expected).await
    }

    /// Makes these the voters, all of them members already. Who voted and is not among them is not a
    /// member any more. `expected`: where the membership was written that this starts from.
    pub async fn change_voters(
        &self,
        voters: BTreeSet<ReplicaId>,
        expected: Index,
    ) -> Result<Index, MembershipError> {
        self.change(ChangeMembers::ReplaceAllVoters(voters), expected).await
    }

    async fn change(
        &self,
        change: ChangeMembers<ReplicaId, BrokerId>,
        expected: Index,
    ) -> Result<Index, MembershipError> {
        // Its own word: what it was written in may be trimmed long since.
        let stored = self.shared.map().membership_at(expected).cloned();
        let last_membership_log_id = stored.and_then(|stored| *stored.log_id());
        let precondition = Precondition::LastMembershipLogId { last_membership_log_id };
        let fenced = !is_planted(Bug::MembershipUnfenced);
        let preconditions = Some(precondition).filter(|_| fenced);
        self.changed(self.raft.change_membership_if(change, false, preconditions).await)
    }

    fn changed(&self, outcome: Changed) -> Result<Index, MembershipError> {
        let error = match outcome {
            Ok(done) => return Ok(engine::place_of(&done.log_id).index),
            Err(RaftError::Fatal(_)) => return Err(self.shared.fence_or(Fence::Shutdown).into()),
            Err(RaftError::APIError(error)) => error,
        };
        let text = error.to_string();
        Err(match error {
            ClientWriteError::ForwardToLeader(_) => MembershipError::NotLeader,
            ClientWriteError::LogEntryDiscarded(_) => MembershipError::Unknown,
            ClientWriteError::PreconditionFailed(_) => MembershipError::Changed(text),
            ClientWriteError::ChangeMembershipError(error) => match error {
                ChangeMembershipError::InProgress(_) => MembershipError::Changed(text),
                ChangeMembershipError::UncommittedLeaderLog(_) => MembershipError::NotLeader,
                _ => MembershipError::Impossible(text),
            },
        })
    }

    /// Proves to itself that it still leads, by asking a majority, and returns an index: whatever was
    /// acknowledged before this call stands at or before it, and is committed here.
    pub async fn read_index(&self) -> Result<Index, MembershipError> {
        let ended = || MembershipError::Fenced(self.shared.fence_or(Fence::Shutdown));
        let alone = is_planted(Bug::LeaseRead);
        let policy = if alone { ReadPolicy::LeaseRead } else { ReadPolicy::ReadIndex };
        let reached = match self.raft.get_read_linearizer(policy).await {
            Ok(reached) => reached,
            Err(RaftError::APIError(_)) => return Err(MembershipError::NotLeader),
            Err(RaftError::Fatal(_)) => return Err(ended()),
        };
        let state = reached.await_ready(&self.raft).await.map_err(|_| ended())?;
        Ok(engine::index_of(state.read_log_id().index()))
    }

    /// Hands the leadership to a voter, and waits until this replica does not lead any more.
    /// Whatever becomes of it, an election follows: the leadership is given up at once.
    pub async fn transfer(&self, to: ReplicaId) -> Result<(), MembershipError> {
        let mut states = self.state();
        let Some(term) = led_term(&states.borrow_and_update().role) else {
            return Err(MembershipError::NotLeader);
        };
        if to == self.shared.replica {
            return Ok(());
        }
        if !self.members().voters.iter().all(|voters| voters.contains(&to)) {
            return Err(MembershipError::Impossible(format!("replica {to} does not vote")));
        }
        // Shown before the engine refuses the first proposal: what arrives from now on waits for the
        // next leader here, and is sent there as soon as it is known.
        self.shared.hands_over(term);
        let given = self.raft.trigger().transfer_leader(to).await;
        given.map_err(|_| self.shared.fence_or(Fence::Shutdown))?;
        let config = self.raft.config();
        let patience = Duration::from_millis(2 * config.election_timeout_max);
        let lost = states.wait_for(|state| led_term(&state.role) != Some(term));
        match tokio::time::timeout(patience, lost).await {
            Ok(_) => Ok(()),
            Err(_) => Err(MembershipError::NotTaken),
        }
    }
}

fn led_term(role: &Role) -> Option<Term> {
    match role {
        Role::Leader(term) => Some(*term),
        Role::Follower { .. } | Role::Candidate | Role::Fenced(_) => None,
    }
}
