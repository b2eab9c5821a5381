//! How replicas come and go, one step at a time.
//!
//! Owns: the stages of a replica and the table of moves, so that whoever leads the metadata can go
//! on where its predecessor stopped.
//! Never: tells a group anything; a step is noted when the group has taken it, but a replica's
//! birth and its leaving, which are noted before.
//! Invariants: a replica that leaves or is lost never votes again, but one that lost only what it
//! held in memory, where no majority is left without such; an id never returns; the
//! replicas of a partition are on different brokers, but that a lost one may be replaced where it
//! was; the last voter stays; a partition has one move at a time.

use super::{
    Catalog, Change, LossReason, Move, Partition, Placement, Recovery, Refusal, Stage, Standing,
    State,
};
use crate::replication::metadata::command::{MetadataStep, Step};
use std::sync::Arc;
use weir_protocol::limits::REPLICAS_MAX;
use weir_protocol::types::{BrokerId, Index, PartitionId, ReplicaId, TopicId};

/// Moves of one cluster at a time.
pub const MOVES_MAX: usize = 256;

impl State {
    pub(super) fn add_replica(
        &mut self,
        topic: TopicId,
        id: PartitionId,
        broker: BrokerId,
        replaces: Option<ReplicaId>,
    ) -> Result<Change, Refusal> {
        let (topic, mut partition) = self.find_partition(topic, id)?;
        let wanted = Move { topic: topic.id, partition: id, replaces };
        if let Some((joining, under_way)) = self.catalog.move_of(topic.id, id) {
            let placed = partition.replica(joining).filter(|placed| placed.broker == broker);
            let same = placed.filter(|_| under_way == wanted);
            return same.map_or(Err(Refusal::MoveUnderWay), |placed| Ok(Change::Placed(*placed)));
        }
        self.judge_joining(&partition, topic.replicas, broker, replaces)?;
        let replica = self.next_replica_id();
        let placement = Placement { replica, broker, stage: Stage::Joining };
        partition.replicas.push(placement);
        self.put_partition(&topic, partition);
        Arc::make_mut(&mut self.catalog).moves.insert(replica, wanted);
        Ok(Change::Placed(placement))
    }

    fn judge_joining(
        &self,
        partition: &Partition,
        wanted: u8,
        broker: BrokerId,
        replaces: Option<ReplicaId>,
    ) -> Result<(), Refusal> {
        if !partition.formed {
            return Err(Refusal::NotFormed);
        }
        if !self.catalog.is_active(broker) {
            return Err(Refusal::BrokerNotActive);
        }
        let mut gives_way = None;
        match replaces.map(|old| partition.replica(old).ok_or(self.absent(old))).transpose()? {
            Some(Placement { stage: Stage::Joining | Stage::Ready | Stage::Leaving, .. }) => {
                return Err(Refusal::BadStep);
            }
            Some(Placement { replica, stage: Stage::Lost(_), .. }) => gives_way = Some(*replica),
            Some(Placement { stage: Stage::Voter, .. }) => {}
            None if partition.voters().count() >= usize::from(wanted) => {
                return Err(Refusal::EnoughReplicas);
            }
            None => {}
        }
        let stays = |here: &&Placement| here.broker == broker && Some(here.replica) != gives_way;
        if partition.replicas.iter().find(stays).is_some() {
            return Err(Refusal::BrokerHoldsReplica);
        }
        if partition.replicas.len() >= REPLICAS_MAX {
            return Err(Refusal::TooManyReplicas);
        }
        if self.catalog.moves.len() >= MOVES_MAX {
            return Err(Refusal::MoveLimit);
        }
        Ok(())
    }

    pub(super) fn step_replica(
        &mut self,
        replica: ReplicaId,
        step: Step,
    ) -> Result<Change, Refusal> {
        let (topic, id, at) = self.locate(replica)?;
        let (topic, mut partition) = self.find_partition(topic, id)?;
        let stage = partition.replicas[at].stage;
        let voters = partition.voters().count();
        match (step, stage) {
            (Step::Ready, Stage::Ready)
            | (Step::Voter, Stage::Voter)
            | (Step::Leaving, Stage::Leaving) => return Ok(Change::Done),
            (Step::Ready, Stage::Joining) => partition.replicas[at].stage = Stage::Ready,
            (Step::Voter, Stage::Ready) => partition.replicas[at].stage = Stage::Voter,
            (Step::Leaving, Stage::Voter) if voters <= usize::from(topic.replicas) => {
                return Err(Refusal::TooFewVoters);
            }
            (Step::Leaving, Stage::Lost(_)) if voters == 0 => return Err(Refusal::TooFewVoters),
            (Step::Leaving, _) => partition.replicas[at].stage = Stage::Leaving,
            (Step::Gone, Stage::Leaving) => drop(partition.replicas.remove(at)),
            (Step::Ready | Step::Voter | Step::Gone, _) => return Err(Refusal::BadStep),
        }
        self.settle(topic.id, &mut partition);
        self.put_partition(&topic, partition);
        Ok(Change::Done)
    }

    pub(super) fn lose_replica(
        &mut self,
        replica: ReplicaId,
        reason: LossReason,
    ) -> Result<Change, Refusal> {
        let lost = |stage: &mut Stage| match stage {
            Stage::Leaving | Stage::Lost(_) => {}
            Stage::Joining | Stage::Ready | Stage::Voter => *stage = Stage::Lost(reason),
        };
        if let Some(at) = self.catalog.metadata.iter().position(|p| p.replica == replica) {
            lost(&mut Arc::make_mut(&mut self.catalog).metadata[at].stage);
            return Ok(Change::Done);
        }
        let (topic, id, at) = self.locate(replica)?;
        let (topic, mut partition) = self.find_partition(topic, id)?;
        lost(&mut partition.replicas[at].stage);
        self.settle(topic.id, &mut partition);
        self.put_partition(&topic, partition);
        Ok(Change::Done)
    }

    /// Lets replicas that lost what they held in memory take part again where there is no majority
    /// without them: who of them leads is for their group to find out, by what they still have.
    pub(super) fn reinstate(&mut self, uuid: u128, now_ms: u64) -> Result<Change, Refusal> {
        let known = self.catalog.partitions().find(|(_, partition)| partition.uuid == uuid);
        let (topic, mut partition) =
            known.map(|(topic, p)| (topic.clone(), p.clone())).ok_or(Refusal::UnknownPartition)?;
        if !partition.needs_unclean() {
            return Err(Refusal::BadStep);
        }
        let unclean = partition.unclean();
        let back = |here: &&mut Placement| unclean.contains(&here.replica);
        partition.replicas.iter_mut().filter(back).for_each(|here| here.stage = Stage::Voter);
        // From where on something is missing, nobody knows before one of them leads.
        partition.recovery = Recovery {
            epoch: partition.recovery.epoch.saturating_add(1),
            lost_after: Index(0),
            created_ms: now_ms,
        };
        self.settle(topic.id, &mut partition);
        self.put_partition(&topic, partition);
        Ok(Change::Done)
    }

    pub(super) fn join_metadata(&mut self, broker: BrokerId) -> Result<Change, Refusal> {
        if let Some(here) = self.catalog.metadata.iter().find(|here| here.broker == broker) {
            return match here.stage {
                Stage::Lost(_) => Err(Refusal::BrokerHoldsReplica),
                _ => Ok(Change::Placed(*here)),
            };
        }
        // Who was removed learns that no place comes to it any more.
        if self.card(broker)?.standing != Standing::Active {
            return Err(Refusal::BrokerNotActive);
        }
        let placement =
            Placement { replica: self.next_replica_id(), broker, stage: Stage::Joining };
        Arc::make_mut(&mut self.catalog).metadata.push(placement);
        Ok(Change::Placed(placement))
    }

    pub(super) fn step_metadata(
        &mut self,
        replica: ReplicaId,
        step: MetadataStep,
    ) -> Result<Change, Refusal> {
        let placed = &self.catalog.metadata;
        let found = placed.iter().position(|placement| placement.replica == replica);
        let at = found.ok_or(self.absent(replica))?;
        let votes = |placement: &&Placement| placement.stage == Stage::Voter;
        let others = placed.iter().filter(votes).filter(|voter| voter.replica != replica).count();
        match (step, placed[at].stage) {
            (MetadataStep::Learner, Stage::Joining) | (MetadataStep::Voter, Stage::Voter) => {}
            (MetadataStep::Learner, Stage::Voter) if others > 0 => {
                Arc::make_mut(&mut self.catalog).metadata[at].stage = Stage::Joining;
            }
            (MetadataStep::Learner, Stage::Voter) => return Err(Refusal::TooFewVoters),
            (MetadataStep::Voter, Stage::Joining) => {
                Arc::make_mut(&mut self.catalog).metadata[at].stage = Stage::Voter;
            }
            (MetadataStep::Learner | MetadataStep::Voter, _) => return Err(Refusal::BadStep),
            (MetadataStep::Gone, _) if others == 0 => return Err(Refusal::TooFewVoters),
            (MetadataStep::Gone, _) => {
                Arc::make_mut(&mut self.catalog).metadata.remove(at);
            }
        }
        Ok(Change::Done)
    }

    /// Lets nobody be preferred who does not vote, and ends the partition's move when nothing of
    /// it is left to do.
    fn settle(&mut self, topic: TopicId, partition: &mut Partition) {
        let under_way = self.catalog.move_of(topic, partition.id);
        let stage = |replica| partition.replica(replica).map(|placement| placement.stage);
        let preferred = partition.preferred;
        if stage(preferred) != Some(Stage::Voter) {
            let heir = under_way.filter(|(joining, moving)| {
                moving.replaces == Some(preferred) && stage(*joining) == Some(Stage::Voter)
            });
            let first = || partition.voters().next().map(|voter| voter.replica);
            let next = heir.map(|(joining, _)| joining).or_else(first);
            partition.preferred = next.unwrap_or(preferred);
        }
        let Some((joining, moving)) = under_way else { return };
        let stage = |replica| partition.replica(replica).map(|placement| placement.stage);
        let over = match stage(joining) {
            None => true,
            Some(Stage::Voter) => moving.replaces.and_then(stage).is_none(),
            Some(_) => false,
        };
        if over {
            Arc::make_mut(&mut self.catalog).moves.remove(&joining);
        }
    }

    /// Which partition has this replica, and where in its list.
    fn locate(&self, replica: ReplicaId) -> Result<(TopicId, PartitionId, usize), Refusal> {
        let mut partitions = self.catalog.partitions();
        let found = partitions.find_map(|(topic, partition)| {
            let at = partition.replicas.iter().position(|here| here.replica == replica)?;
            Some((topic.id, partition.id, at))
        });
        found.ok_or(self.absent(replica))
    }

    /// Why a replica is not there.
    fn absent(&self, replica: ReplicaId) -> Refusal {
        let issued = (1..self.next_replica).contains(&replica.0);
        if issued { Refusal::ReplicaGone } else { Refusal::UnknownReplica }
    }
}

impl Catalog {
    /// The move of a partition, and the replica that joins by it.
    pub fn move_of(&self, topic: TopicId, partition: PartitionId) -> Option<(ReplicaId, Move)> {
        let of_this = |moving: &Move| (moving.topic, moving.partition) == (topic, partition);
        let mut moves = self.moves.iter().filter(|(_, moving)| of_this(moving));
        moves.next().map(|(joining, moving)| (*joining, *moving))
    }
}
