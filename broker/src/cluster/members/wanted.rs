//! What a group shall be.
//!
//! Owns: reading it off the metadata, for a partition and for the metadata itself.
//! Never: looks at a group, but to see that the metadata read here is older than what it became.

use crate::replication::Members;
use crate::replication::metadata::{Catalog, Partition, Placement, Stage};
use std::collections::BTreeSet;
use weir_protocol::types::{BrokerId, PartitionId, ReplicaId, TopicId};

/// Which kind of log a group keeps: what it becomes is noted in different words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// Of a partition.
    Partition,
    /// Of the metadata.
    Metadata,
}

/// What a replica shall be to its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// It is sent the log and has no vote.
    Learn,
    /// It votes, as soon as it is close.
    Vote,
    /// The group forgets it.
    Leave,
}

/// One replica of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Its identity.
    pub replica: ReplicaId,
    /// Where it is.
    pub broker: BrokerId,
    /// What the metadata says that it is.
    pub stage: Stage,
    /// What it shall be.
    pub wish: Wish,
}

/// What a group shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which kind of log it keeps.
    pub log: Log,
    /// Every replica that the metadata knows.
    pub seats: Vec<Seat>,
    /// Of a move: who joins, and who stops to vote as soon as that one does.
    pub moved: Option<(ReplicaId, ReplicaId)>,
    /// Who shall lead when nothing speaks against it.
    pub preferred: Option<ReplicaId>,
}

impl Wanted {
    /// What the group of a partition shall be, if there is such a partition.
    pub fn of_partition(catalog: &Catalog, topic: TopicId, id: PartitionId) -> Option<Self> {
        let partition: &Partition = catalog.partition(topic, id)?;
        let wish = |stage| match stage {
            Stage::Joining => Wish::Learn,
            Stage::Ready | Stage::Voter => Wish::Vote,
            Stage::Leaving | Stage::Lost(_) => Wish::Leave,
        };
        let seats = partition.replicas.iter().map(|here| seat(here, wish(here.stage)));
        let under_way = catalog.move_of(topic, id);
        Some(Self {
            log: Log::Partition,
            seats: seats.collect(),
            moved: under_way.and_then(|(joins, moving)| Some((joins, moving.replaces?))),
            preferred: Some(partition.preferred),
        })
    }

    /// What the metadata's own group shall be, where `voters` shall vote.
    pub fn of_metadata(catalog: &Catalog, voters: &BTreeSet<ReplicaId>) -> Self {
        let wish = |here: &Placement| match here.stage {
            Stage::Leaving | Stage::Lost(_) => Wish::Leave,
            _ if voters.contains(&here.replica) => Wish::Vote,
            _ => Wish::Learn,
        };
        let seats = catalog.metadata.iter().map(|here| seat(here, wish(here)));
        Self { log: Log::Metadata, seats: seats.collect(), moved: None, preferred: None }
    }

    /// Those that shall vote.
    pub(super) fn voters(&self) -> impl Iterator<Item = ReplicaId> {
        let votes = self.seats.iter().filter(|seat| seat.wish == Wish::Vote);
        votes.map(|seat| seat.replica)
    }

    /// Whether the metadata as it is known here is older than what the group was made from: a member
    /// younger than all that it knows, or a voter that it takes to be still far behind.
    pub(super) fn is_behind(&self, members: &Members) -> bool {
        let youngest = self.seats.iter().map(|seat| seat.replica).max();
        let younger = members.brokers.keys().any(|id| Some(*id) > youngest);
        let votes = |id| members.voters.iter().any(|voters| voters.contains(&id));
        let mut joining = self.seats.iter().filter(|seat| seat.stage == Stage::Joining);
        younger || (self.log == Log::Partition && joining.any(|seat| votes(seat.replica)))
    }

    /// Whether a group led by `me` is what it shall be, and the metadata knows.
    pub fn is_met(&self, members: &Members, me: ReplicaId) -> bool {
        let known: BTreeSet<_> = self.seats.iter().map(|seat| seat.replica).collect();
        let voters: BTreeSet<_> = self.voters().collect();
        let told = |seat: &Seat| match seat.wish {
            Wish::Vote => seat.stage == Stage::Voter,
            Wish::Learn => self.log == Log::Metadata && seat.stage == Stage::Joining,
            Wish::Leave => false,
        };
        members.voters == [voters]
            && members.brokers.keys().eq(&known)
            && self.seats.iter().all(told)
            && self.preferred.is_none_or(|preferred| preferred == me)
    }
}

fn seat(placement: &Placement, wish: Wish) -> Seat {
    let Placement { replica, broker, stage } = *placement;
    Seat { replica, broker, stage, wish }
}
