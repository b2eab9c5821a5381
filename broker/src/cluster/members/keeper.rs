//! The leader of one log at work on its group.
//!
//! Owns: taking one step after another, and when to look again.
//! Never: acts where its replica does not lead; insists: what failed is looked at anew.

use super::{Group, MemberStep, Progress, Wanted, next_step};
use crate::cluster::MetadataClient;
use crate::cluster::controller::{self, Watch};
use crate::cluster::leaders::LeaderBoard;
use crate::cluster::pace::TransferPace;
use crate::replication::metadata::ChangeError;
use crate::replication::{MembershipError, Replica, Role};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::{Duration, Instant};
use weir_protocol::types::{BrokerId, PartitionId, ReplicaId, Term, TopicId};

/// After this it is looked again at what does not tell when it changes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Whose group is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptLog {
    /// A partition's.
    Partition(TopicId, PartitionId),
    /// The metadata's, of which so many shall vote; 0 = by the number of brokers.
    Metadata(u8),
}

/// Keeps the group of one replica as it shall be, while that replica leads.
pub struct MemberKeeper {
    /// The replica.
    pub replica: Replica,
    /// Its identity.
    pub me: ReplicaId,
    /// Where it is.
    pub broker: BrokerId,
    /// Whose group it is.
    pub log: KeptLog,
    /// What is wished, and what it is told.
    pub metadata: MetadataClient,
    /// Who can be given the lead.
    pub board: Arc<LeaderBoard>,
    /// Of all hand-overs of this broker that have time.
    pub pace: Arc<Mutex<TransferPace>>,
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Group(#[from] MembershipError),
    #[error(transparent)]
    Metadata(#[from] ChangeError),
}

/// What became of one look.
enum Looked {
    /// A step was taken: there may be another.
    Moved,
    /// Nothing can be done now.
    Rests,
}

impl MemberKeeper {
    /// Works while the replica leads; returns when it has ended.
    pub async fn run(self) {
        let mut catalogs = self.metadata.watch();
        let mut leads: Option<(Term, Watch)> = None;
        loop {
            catalogs.mark_unchanged();
            let (ended, leading) = self.role();
            if ended {
                return;
            }
            let looked = match leading {
                None => Looked::Rests,
                Some(term) => {
                    let now = Instant::now();
                    let watch = match leads {
                        Some((led, watch)) if led == term => watch,
                        _ => Watch { since: now, me: self.broker },
                    };
                    leads = Some((term, watch));
                    self.look(watch, now).await
                }
            };
            if matches!(looked, Looked::Rests) {
                tokio::select! {
                    biased;
                    changed = catalogs.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(LOOK_AGAIN) => {}
                }
            }
        }
    }

    fn role(&self) -> (bool, Option<Term>) {
        let state = self.replica.state();
        let state = state.borrow();
        (matches!(state.role, Role::Fenced(_)), state.leading())
    }

    async fn look(&self, watch: Watch, now: Instant) -> Looked {
        let Some(wanted) = self.wanted(watch, now) else { return Looked::Rests };
        let (members, going) = (self.replica.members(), self.board.going());
        if wanted.is_met(&members, self.me) && !going.contains(&self.broker) {
            return Looked::Rests;
        }
        let progress = Progress::of_others(&self.replica, &members);
        let group = Group { me: self.me, members: &members, progress: &progress, going: &going };
        let Some(step) = next_step(&wanted, group) else { return Looked::Rests };
        if matches!(step, MemberStep::Restore(_)) && !self.may_restore(now) {
            return Looked::Rests;
        }
        match self.take(step.clone()).await {
            // Whoever forwarded it learns of it from the catalog, like everybody.
            Ok(()) if matches!(step, MemberStep::Note(_)) => Looked::Rests,
            Ok(()) => Looked::Moved,
            Err(error) => {
                tracing::debug!(replica = %self.me, ?step, %error, "a step was not taken");
                tokio::time::sleep(LOOK_AGAIN).await;
                Looked::Rests
            }
        }
    }

    fn wanted(&self, watch: Watch, now: Instant) -> Option<Wanted> {
        match self.log {
            KeptLog::Partition(topic, partition) => {
                Wanted::of_partition(&self.metadata.catalog(), topic, partition)
            }
            KeptLog::Metadata(setting) => {
                let eyes = (watch, setting);
                Some(controller::wanted_copies(&self.metadata, &self.board, eyes, now))
            }
        }
    }

    /// Takes one of the hand-overs that have time, if one is left.
    fn may_restore(&self, now: Instant) -> bool {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let may = pace.allowed(now, self.board.led_by(self.broker, now)) > 0;
        pace.take(now, usize::from(may));
        may
    }

    async fn take(&self, step: MemberStep) -> Result<(), StepError> {
        match step {
            MemberStep::AddLearner(replica, broker) => {
                self.replica.add_learner(replica, broker).await?;
            }
            MemberStep::RemoveLearner { replica, expected } => {
                self.replica.remove_learner(replica, expected).await?;
            }
            MemberStep::ChangeVoters { voters, expected } => {
                self.replica.change_voters(voters, expected).await?;
            }
            MemberStep::HandOver(to) | MemberStep::Restore(to) => self.replica.transfer(to).await?,
            MemberStep::Note(command) => drop(self.metadata.propose(command).await?),
        }
        Ok(())
    }
}
