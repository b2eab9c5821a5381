//! Replicas that are lost, missing, too many, or on a broker that drains or is dead.
//!
//! Owns: the plan of one round: at most one change a partition, one move between two brokers at a
//! time, as many moves altogether as the metadata bears.
//! Never: takes a replica away before another has its place.
//! Invariants: every command of a plan is accepted by the metadata that the plan was made from.

use super::View;
use super::place::Seats;
use crate::planted::{Bug, is_planted};
use crate::replication::metadata::{
    Command, LossReason, MOVES_MAX, Move, Partition, Placement, Stage, Step, Topic,
};
use std::collections::BTreeSet;
use weir_protocol::types::{BrokerId, ReplicaId};

pub(super) struct Plan<'a> {
    pub(super) view: &'a View<'a>,
    pub(super) seats: Seats<'a>,
    commands: Vec<Command>,
    /// Partitions that change by what is under way or planned, by their identity.
    busy: BTreeSet<u128>,
    /// From where to where something moves.
    pairs: BTreeSet<(BrokerId, BrokerId)>,
    moves: usize,
}

impl<'a> Plan<'a> {
    pub(super) fn of(view: &'a View<'a>) -> Self {
        let seats = Seats::of(view.catalog, |broker| view.may_hold(broker));
        let moves = view.catalog.moves.len();
        let (mut busy, mut pairs) = (BTreeSet::new(), BTreeSet::new());
        for (topic, partition) in view.catalog.partitions() {
            let under_way = view.catalog.move_of(topic.id, partition.id);
            if under_way.is_some() || !partition.formed || partition.needs_unclean() {
                busy.insert(partition.uuid);
            }
            let joins = under_way.and_then(|(joins, _)| partition.replica(joins));
            let Some((to, (_, Move { replaces, .. }))) = joins.zip(under_way) else { continue };
            pairs.insert((source(partition, replaces), to.broker));
        }
        Self { view, seats, commands: Vec::new(), busy, pairs, moves }
    }

    /// Whether nothing is under way or planned.
    pub(super) fn is_idle(&self) -> bool {
        let catalog = self.view.catalog;
        let mut replicas = catalog.partitions().flat_map(|(_, partition)| &partition.replicas);
        let leaves = replicas.any(|here| here.stage == Stage::Leaving);
        self.commands.is_empty() && catalog.moves.is_empty() && !leaves
    }

    pub(super) fn into_commands(self) -> Vec<Command> {
        self.commands
    }

    /// Lets what is under way go on: the replaced one leaves once its successor votes, and one that
    /// joins on a dead broker, or was lost before it voted, is given up.
    pub(super) fn advance(&mut self) {
        for (joins, moving) in &self.view.catalog.moves {
            let found = self.view.catalog.partition(moving.topic, moving.partition);
            let Some(partition) = found.filter(|found| found.voters().next().is_some()) else {
                continue;
            };
            let Some(joining) = partition.replica(*joins) else { continue };
            match joining.stage {
                Stage::Voter => self.relieve(partition, *moving),
                Stage::Lost(_) => self.dismiss(partition, joining),
                Stage::Joining | Stage::Ready if self.view.is_dead(joining.broker) => {
                    self.give_up(joining.replica);
                }
                Stage::Joining | Stage::Ready | Stage::Leaving => {}
            }
        }
    }

    /// Lets a replaced replica go.
    fn relieve(&mut self, partition: &Partition, moving: Move) {
        let Some(old) = moving.replaces.and_then(|old| partition.replica(old)) else { return };
        let topic = self.view.catalog.topics.values().find(|topic| topic.id == moving.topic);
        let wanted = topic.map_or(0, |topic| usize::from(topic.replicas));
        match old.stage {
            Stage::Leaving => {}
            // Its group has let it go, so whatever else happened meanwhile it can not stay.
            Stage::Voter if partition.voters().count() <= wanted => self.give_up(old.replica),
            _ => self.dismiss(partition, old),
        }
    }

    fn give_up(&mut self, replica: ReplicaId) {
        self.commands.push(Command::LoseReplica { replica, reason: LossReason::GivenUp });
    }

    /// Gives every lost replica a successor, on its own broker if need be.
    pub(super) fn replace(&mut self) {
        for (topic, partition) in self.idle() {
            let lost = |here: &&Placement| matches!(here.stage, Stage::Lost(_));
            let Some(lost) = partition.replicas.iter().find(lost) else { continue };
            match partition.voters().count() {
                // Nobody is left to learn from: what to do is the operator's to decide, but where all
                // that is missing was held in memory (`reinstate`).
                0 => {}
                voters if voters >= usize::from(topic.replicas) => self.dismiss(partition, lost),
                _ => self.substitute(topic, partition, Some(lost)),
            }
        }
    }

    /// Lets every broker that drains hand over what it holds, and others take over what a dead one
    /// holds where the rest is whole without it.
    pub(super) fn empty(&mut self) {
        for (topic, partition) in self.idle() {
            let goes = |here: &&Placement| {
                self.view.drains(here.broker)
                    || (self.view.is_dead(here.broker) && self.is_whole_without(partition, here))
            };
            if let Some(leaving) = partition.voters().find(goes) {
                self.substitute(topic, partition, Some(leaving));
            }
        }
    }

    /// Whether a partition is led, and by a majority that is heard of, one replica left out.
    fn is_whole_without(&self, partition: &Partition, without: &Placement) -> bool {
        let led = partition.voters().any(|voter| self.view.leaders.contains(&voter.replica));
        let rest = partition.voters().filter(|voter| voter.replica != without.replica);
        let heard = rest.filter(|voter| self.view.is_heard(voter.broker)).count();
        let lost = partition.replicas.iter().filter(|here| matches!(here.stage, Stage::Lost(_)));
        let heard = if is_planted(Bug::ReplacedWithoutMajority) { usize::MAX } else { heard };
        led && heard > (partition.voters().count() + lost.count()) / 2
    }

    /// Adds replicas where there are too few, and lets those go that are too many.
    pub(super) fn resize(&mut self) {
        for (topic, partition) in self.idle() {
            let (voters, wanted) = (partition.voters().count(), usize::from(topic.replicas));
            // One that is lost is replaced when it can be, and is counted until then.
            let stay = |here: &&Placement| here.stage != Stage::Leaving;
            if partition.replicas.iter().filter(stay).count() < wanted {
                self.substitute(topic, partition, None);
            } else if voters > wanted
                && let Some(surplus) = self.surplus(partition)
            {
                self.seats.leave(surplus.broker);
                self.dismiss(partition, &surplus);
            }
        }
    }

    fn dismiss(&mut self, partition: &Partition, placement: &Placement) {
        self.busy.insert(partition.uuid);
        let replica = placement.replica;
        self.commands.push(Command::StepReplica { replica, step: Step::Leaving });
    }

    /// Partitions of which nothing is under way or planned.
    pub(super) fn idle(&self) -> Vec<(&'a Topic, &'a Partition)> {
        let idle = |(_, partition): &(_, &Partition)| !self.busy.contains(&partition.uuid);
        let catalog = self.view.catalog;
        catalog.partitions().filter(idle).map(|(topic, p)| (&**topic, p)).collect()
    }

    /// Plans one more replica, in place of another or not, where it is best.
    fn substitute(&mut self, topic: &Topic, partition: &Partition, old: Option<&Placement>) {
        let replaces = old.map(|placement| placement.replica);
        let others = homes_beside(partition, replaces);
        // A whole replica is no reason to begin anew on the same broker.
        let whole = old.filter(|here| !matches!(here.stage, Stage::Lost(_)));
        let from = source(partition, replaces);
        let may = |to| whole.is_none_or(|here| here.broker != to) && self.may_move(from, to);
        if let Some(to) = self.seats.home(&others, may) {
            self.join(topic, partition, replaces, to);
        }
    }

    /// Plans a move.
    pub(super) fn join(
        &mut self,
        topic: &Topic,
        partition: &Partition,
        replaces: Option<ReplicaId>,
        to: BrokerId,
    ) {
        let from = source(partition, replaces);
        self.busy.insert(partition.uuid);
        self.pairs.insert((from, to));
        self.moves += 1;
        self.seats.take(to);
        let whole = partition.voters().find(|voter| Some(voter.replica) == replaces);
        whole.iter().for_each(|voter| self.seats.leave(voter.broker));
        let (topic, partition) = (topic.id, partition.id);
        self.commands.push(Command::AddReplica { topic, partition, broker: to, replaces });
    }

    /// Whether one more move may go from a broker to another.
    pub(super) fn may_move(&self, from: BrokerId, to: BrokerId) -> bool {
        self.moves < MOVES_MAX && !self.pairs.contains(&(from, to))
    }

    /// The voter that is missed least: not heard of, then on a broker that drains, then not the
    /// preferred one, then in a rack that others share, then where much is held.
    fn surplus(&self, partition: &Partition) -> Option<Placement> {
        let rank = |here: &&Placement| {
            let others = homes_beside(partition, Some(here.replica));
            let shared = self.seats.shared(&others, here.broker);
            let leads = here.replica == partition.preferred;
            let load = self.seats.load(here.broker).replicas;
            let quiet = !self.view.is_heard(here.broker);
            (quiet, self.view.drains(here.broker), !leads, shared, load, here.replica)
        };
        partition.voters().max_by_key(rank).copied()
    }
}

/// Where the replicas are beside which a new one is placed.
pub(super) fn homes_beside(partition: &Partition, replaces: Option<ReplicaId>) -> Vec<BrokerId> {
    let others = partition.replicas.iter().filter(|here| Some(here.replica) != replaces);
    others.map(|here| here.broker).collect()
}

/// The broker that a move relieves, or that the new replica learns from.
fn source(partition: &Partition, replaces: Option<ReplicaId>) -> BrokerId {
    let old = partition.replica(replaces.unwrap_or(partition.preferred));
    old.or(partition.replicas.first()).map_or(BrokerId(0), |placement| placement.broker)
}
