//! Who shall lead.
//!
//! Owns: which voter of each partition is preferred; its leader hands over by itself then.
//! Never: prefers a replica on a broker that drains or was not heard of lately.
//! Invariants: preferences are as even as the placement of voters allows when none is proposed any
//! more; each proposed path makes them more even, so they end; a path is proposed whole, so that no
//! limit keeps it from being begun.

use super::View;
use crate::replication::metadata::Command;
use std::collections::{BTreeMap, VecDeque};
use weir_protocol::types::{BrokerId, PartitionId, ReplicaId, TopicId};

/// A partition that more than one voter can lead.
struct Choice {
    topic: TopicId,
    partition: PartitionId,
    /// Where it is preferred to be led.
    at: BrokerId,
    voters: BTreeMap<BrokerId, ReplicaId>,
}

/// Changes of preferences that make brokers lead as evenly as they can, about as many as the view
/// allows at once.
pub(super) fn preferences(view: &View<'_>) -> Vec<Command> {
    if view.preferences == 0 {
        return Vec::new();
    }
    let mut table = Preferences::of(view);
    table.leave_drained();
    while table.even_out() {}
    table.commands
}

struct Preferences {
    choices: Vec<Choice>,
    /// How many partitions each usable broker is preferred for.
    loads: BTreeMap<BrokerId, usize>,
    commands: Vec<Command>,
    /// How many commands there shall be.
    limit: usize,
}

impl Preferences {
    fn of(view: &View<'_>) -> Self {
        let usable = view.catalog.active().filter(|card| view.may_lead(card.id));
        let mut loads: BTreeMap<_, _> = usable.map(|card| (card.id, 0)).collect();
        let mut choices = Vec::new();
        for (topic, partition) in view.catalog.partitions() {
            let Some(at) = partition.replica(partition.preferred) else { continue };
            if let Some(load) = loads.get_mut(&at.broker) {
                *load += 1;
            } else if view.catalog.is_active(at.broker) {
                // Not heard of lately: it may come back, and nothing is gained by a change.
                continue;
            }
            let usable = partition.voters().filter(|voter| loads.contains_key(&voter.broker));
            let voters = usable.map(|voter| (voter.broker, voter.replica)).collect();
            let (topic, partition) = (topic.id, partition.id);
            choices.push(Choice { topic, partition, at: at.broker, voters });
        }
        Self { choices, loads, commands: Vec::new(), limit: view.preferences }
    }

    /// Takes preferences off brokers that drain.
    fn leave_drained(&mut self) {
        for number in 0..self.choices.len() {
            if self.commands.len() >= self.limit {
                return;
            }
            let choice = &self.choices[number];
            if self.loads.contains_key(&choice.at) {
                continue;
            }
            let least = choice.voters.keys().min_by_key(|broker| self.loads[broker]);
            if let Some(least) = least.copied() {
                self.prefer(number, least);
            }
        }
    }

    /// Follows one path of changes from a broker that is preferred often to one that is preferred
    /// at least twice less. When there is none, no choice is more even.
    fn even_out(&mut self) -> bool {
        let mut sources: Vec<_> = self.loads.iter().map(|(id, load)| (*load, *id)).collect();
        sources.sort_by(|a, b| b.cmp(a));
        let path = sources.into_iter().find_map(|(_, source)| self.path_from(source));
        let Some(path) = path else { return false };
        if !self.commands.is_empty() && self.commands.len() + path.len() > self.limit {
            return false;
        }
        path.into_iter().for_each(|(number, to)| self.prefer(number, to));
        true
    }

    /// The shortest such path: which choice goes to which broker.
    fn path_from(&self, source: BrokerId) -> Option<Vec<(usize, BrokerId)>> {
        let enough = self.loads[&source].checked_sub(2)?;
        if self.loads.values().all(|load| *load > enough) {
            return None;
        }
        let mut reached: BTreeMap<BrokerId, (usize, BrokerId)> = BTreeMap::new();
        let mut next = VecDeque::from([source]);
        while let Some(here) = next.pop_front() {
            if self.loads[&here] <= enough {
                let mut path = Vec::new();
                let mut to = here;
                while to != source {
                    let (number, from) = reached[&to];
                    path.push((number, to));
                    to = from;
                }
                return Some(path);
            }
            let led = self.choices.iter().enumerate().filter(|(_, choice)| choice.at == here);
            for (number, choice) in led {
                for to in choice.voters.keys().filter(|to| **to != source) {
                    if !reached.contains_key(to) {
                        reached.insert(*to, (number, here));
                        next.push_back(*to);
                    }
                }
            }
        }
        None
    }

    fn prefer(&mut self, number: usize, to: BrokerId) {
        let choice = &mut self.choices[number];
        let (topic, partition, replica) = (choice.topic, choice.partition, choice.voters[&to]);
        if let Some(load) = self.loads.get_mut(&choice.at) {
            *load -= 1;
        }
        choice.at = to;
        self.loads.entry(to).and_modify(|load| *load += 1);
        self.commands.push(Command::Prefer { topic, partition, replica });
    }
}
