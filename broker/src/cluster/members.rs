//! What the leader of a log does so that its group becomes what the metadata says.
//!
//! Owns: the next step of one group, of a partition or of the metadata; [`MemberKeeper`] takes it.
//! Never: decides where replicas shall be, remembers what was done or looks at a clock: it is asked
//! again with what has become of the last step, so a leader that dies leaves nothing half known.
//! Invariants: a step is taken first and noted in the metadata then; no group is given voters of
//! which not a majority answers; who leads is never taken out, it hands over first; whoever is given
//! a vote has nearly all that its leader has.

mod keeper;
#[cfg(test)]
mod tests;
mod wanted;

pub use keeper::{KeptLog, MemberKeeper};
pub use wanted::{Log, Seat, Wanted, Wish};

use crate::planted::{Bug, is_planted};
use crate::replication::metadata::{Command, MetadataStep, Stage, Step};
use crate::replication::{Members, Replica};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Duration;
use weir_protocol::types::{BrokerId, Index, ReplicaId};

/// Bytes behind its leader's log within which a replica is close enough to vote
/// (`replication.md` 7, placement and repair).
pub const CLOSE_BYTES: u64 = 8 << 20;
/// A replica that answered its leader within this is taken to live: as long as a link between
/// brokers may be silent.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// How a member does, as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// About how many bytes of the leader's log it does not have; no less than [`CLOSE_BYTES`] where
    /// the log begins behind what it has.
    pub lag_bytes: u64,
    /// It answered within [`ANSWERS_WITHIN`].
    pub answers: bool,
}

impl Progress {
    /// How the other members of a group do, as this replica sees them while it leads.
    pub fn of_others(replica: &Replica, members: &Members) -> BTreeMap<ReplicaId, Self> {
        let (reached, silence, log) = (replica.progress(), replica.silence(), replica.log());
        let first_index = log.bounds().first_index;
        let others = members.brokers.keys().filter(|id| **id != replica.id());
        let progress = others.map(|id| {
            let at = reached.get(id).copied().unwrap_or_default();
            // Until a snapshot brings it there, the log's bytes say nothing of what it lacks.
            let is_held = at.0 + 1 >= first_index.0;
            let least = if is_held { 0 } else { CLOSE_BYTES };
            let lag_bytes = log.bytes_behind(at).max(least);
            let answers = silence.get(id).is_some_and(|silent| *silent < ANSWERS_WITHIN);
            (*id, Self { lag_bytes, answers })
        });
        progress.collect()
    }

    /// Whether it answers and has nearly all that its leader has.
    pub fn is_close(self) -> bool {
        self.answers && self.lag_bytes < CLOSE_BYTES
    }
}

/// A group as its leader sees it.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// The replica that leads.
    pub me: ReplicaId,
    /// Who is in it.
    pub members: &'a Members,
    /// How the others do.
    pub progress: &'a BTreeMap<ReplicaId, Progress>,
    /// Brokers that shall lead nothing, because they are shutting down.
    pub going: &'a BTreeSet<BrokerId>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberStep {
    /// Let a replica learn.
    AddLearner(ReplicaId, BrokerId),
    /// Take one away that learns, or is none of the log's any more.
    RemoveLearner {
        /// Which.
        replica: ReplicaId,
        /// Where the membership was written that this starts from.
        expected: Index,
    },
    /// Make these the voters, in one joint change; or, asked for again, end one that was left over.
    ChangeVoters {
        /// All who shall vote.
        voters: BTreeSet<ReplicaId>,
        /// Where the membership was written that this starts from.
        expected: Index,
    },
    /// Let another lead, because something waits for that.
    HandOver(ReplicaId),
    /// Let the preferred one lead; there is time.
    Restore(ReplicaId),
    /// Tell the metadata what the group is by now.
    Note(Command),
}

/// What is to be done next, if anything is and can be.
pub fn next_step(wanted: &Wanted, group: Group<'_>) -> Option<MemberStep> {
    if wanted.is_behind(group.members) {
        return None;
    }
    let look = Look { wanted, group };
    match group.members.voters.as_slice() {
        [voters] => look
            .note(voters)
            .or_else(|| look.missing(voters))
            .or_else(|| look.change(voters))
            .or_else(|| look.superfluous(voters))
            .or_else(|| look.lead(voters)),
        [..] if is_planted(Bug::JointLeft) => None,
        [.., voters] => look.end_joint(voters),
        [] => None,
    }
}

/// One look at a group.
struct Look<'a> {
    wanted: &'a Wanted,
    group: Group<'a>,
}

impl Look<'_> {
    fn is_member(&self, replica: ReplicaId) -> bool {
        self.group.members.brokers.contains_key(&replica)
    }

    fn progress(&self, replica: ReplicaId) -> Option<Progress> {
        let own = Progress { lag_bytes: 0, answers: true };
        let others = || self.group.progress.get(&replica).copied();
        if replica == self.group.me { Some(own) } else { others() }
    }

    fn is_close(&self, replica: ReplicaId) -> bool {
        let close = |progress: Progress| progress.is_close() || is_planted(Bug::VoterNotCaughtUp);
        self.is_member(replica) && self.progress(replica).is_some_and(close)
    }

    /// Whether a majority of these answers.
    fn is_healthy(&self, voters: &BTreeSet<ReplicaId>) -> bool {
        let answers = |replica: &&ReplicaId| self.progress(**replica).is_some_and(|p| p.answers);
        voters.iter().filter(answers).count() > voters.len() / 2
    }

    /// Whether one is to be forgotten: by its seat, or because who joins for it votes.
    fn leaves(&self, seat: &Seat, voters: &BTreeSet<ReplicaId>) -> bool {
        let gives_way = |(joins, leaves): (ReplicaId, ReplicaId)| {
            leaves == seat.replica && voters.contains(&joins)
        };
        seat.wish == Wish::Leave || self.wanted.moved.is_some_and(gives_way)
    }

    /// What the group has become and the metadata does not know yet.
    fn note(&self, voters: &BTreeSet<ReplicaId>) -> Option<MemberStep> {
        let seats = self.wanted.seats.iter();
        let mut notes = seats.filter_map(|seat| match self.wanted.log {
            Log::Partition => self.partition_note(seat, voters),
            Log::Metadata => self.metadata_note(seat, voters),
        });
        notes.next().map(MemberStep::Note)
    }

    fn partition_note(&self, seat: &Seat, voters: &BTreeSet<ReplicaId>) -> Option<Command> {
        let replica = seat.replica;
        let step = match seat.stage {
            Stage::Joining if self.is_close(replica) => Step::Ready,
            Stage::Ready if voters.contains(&replica) => Step::Voter,
            Stage::Leaving if !self.is_member(replica) => Step::Gone,
            _ => return None,
        };
        Some(Command::StepReplica { replica, step })
    }

    fn metadata_note(&self, seat: &Seat, voters: &BTreeSet<ReplicaId>) -> Option<Command> {
        let replica = seat.replica;
        let step = match (seat.wish, seat.stage) {
            (Wish::Leave, _) if !self.is_member(replica) => MetadataStep::Gone,
            (_, Stage::Joining) if voters.contains(&replica) => MetadataStep::Voter,
            (Wish::Learn, Stage::Voter) if !voters.contains(&replica) => MetadataStep::Learner,
            _ => return None,
        };
        Some(Command::StepMetadata { replica, step })
    }

    /// One that the log shall have and the group does not know.
    fn missing(&self, voters: &BTreeSet<ReplicaId>) -> Option<MemberStep> {
        let misses = |seat: &&Seat| !self.leaves(seat, voters) && !self.is_member(seat.replica);
        let seat = self.wanted.seats.iter().find(misses)?;
        Some(MemberStep::AddLearner(seat.replica, seat.broker))
    }

    /// Makes those vote who shall, as soon as they are close.
    fn change(&self, voters: &BTreeSet<ReplicaId>) -> Option<MemberStep> {
        let target = self.target(voters);
        if target == *voters || target.is_empty() {
            return None;
        }
        self.towards(target, voters)
    }

    /// Who shall vote now.
    fn target(&self, voters: &BTreeSet<ReplicaId>) -> BTreeSet<ReplicaId> {
        let can = |replica: ReplicaId| voters.contains(&replica) || self.is_close(replica);
        let wishes: BTreeSet<_> = self.wanted.voters().collect();
        let target: BTreeSet<_> = wishes.iter().copied().filter(|id| can(*id)).collect();
        match self.wanted.log {
            // All at once: a vote that nobody can cast yet is no gain on the way.
            Log::Metadata if target.len() < wishes.len() => voters.clone(),
            Log::Metadata => target,
            Log::Partition => match self.wanted.moved {
                Some((joins, leaves)) if target.contains(&joins) => {
                    target.into_iter().filter(|id| *id != leaves).collect()
                }
                _ => target,
            },
        }
    }

    /// The way to these voters: whoever leads and is not one of them hands over before.
    fn towards(
        &self,
        mut target: BTreeSet<ReplicaId>,
        voters: &BTreeSet<ReplicaId>,
    ) -> Option<MemberStep> {
        if !target.contains(&self.group.me) && !is_planted(Bug::LeaderStepsOut) {
            if let Some(heir) = self.heir(target.intersection(voters).copied()) {
                return Some(MemberStep::HandOver(heir));
            }
            // None of them votes yet who could: both do for a while.
            target.insert(self.group.me);
        }
        let expected = self.group.members.index;
        let changes = target != *voters && self.is_healthy(&target);
        changes.then_some(MemberStep::ChangeVoters { voters: target, expected })
    }

    /// Ends a change that an interruption left in the middle.
    fn end_joint(&self, voters: &BTreeSet<ReplicaId>) -> Option<MemberStep> {
        let expected = self.group.members.index;
        if voters.contains(&self.group.me) {
            return Some(MemberStep::ChangeVoters { voters: voters.clone(), expected });
        }
        let all = &self.group.members.voters;
        let both = voters.iter().filter(|id| all.iter().all(|voters| voters.contains(id)));
        self.heir(both.copied()).map(MemberStep::HandOver)
    }

    /// One that is in the group and shall not be.
    fn superfluous(&self, voters: &BTreeSet<ReplicaId>) -> Option<MemberStep> {
        let stays = |id: &ReplicaId| {
            let seat = self.wanted.seats.iter().find(|seat| seat.replica == *id);
            seat.is_some_and(|seat| !self.leaves(seat, voters))
        };
        let mut learners = self.group.members.brokers.keys().filter(|id| !voters.contains(id));
        let replica = learners.find(|id| !stays(id)).copied()?;
        Some(MemberStep::RemoveLearner { replica, expected: self.group.members.index })
    }

    /// Lets go of the lead where another shall have it.
    fn lead(&self, voters: &BTreeSet<ReplicaId>) -> Option<MemberStep> {
        let me = self.group.me;
        if self.goes(me) {
            return self.heir(voters.iter().copied()).map(MemberStep::HandOver);
        }
        let preferred = self.wanted.preferred.filter(|id| *id != me && voters.contains(id))?;
        self.heir([preferred].into_iter()).map(MemberStep::Restore)
    }

    /// The best of these to take over: preferred, or else nearest.
    fn heir(&self, of: impl Iterator<Item = ReplicaId>) -> Option<ReplicaId> {
        let fit = |id: &ReplicaId| *id != self.group.me && !self.goes(*id) && self.is_close(*id);
        let rank = |id: &ReplicaId| {
            let lag = self.progress(*id).map(|progress| progress.lag_bytes);
            (Some(*id) != self.wanted.preferred, lag, *id)
        };
        of.filter(fit).min_by_key(rank)
    }

    /// Whether the broker of a member is shutting down.
    fn goes(&self, replica: ReplicaId) -> bool {
        let broker = self.group.members.brokers.get(&replica);
        broker.is_some_and(|broker| self.group.going.contains(broker))
    }
}
