//! The real metadata, and groups that do what their leaders are told to do; any of it may be
//! interrupted.

use super::*;
use crate::cluster::members::{Group, MemberStep, Progress, Wanted, next_step};
use crate::replication::Members;
use weir_protocol::types::Index;

/// What goes wrong, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// What was to be done is not, and who wanted it stops.
    Lost,
    /// It is done, and who wanted it stops without knowing.
    Unanswered,
    /// Another leads before it is done.
    Deposed,
    /// It is half done where it has halves, and another leads then.
    Halfway,
}

pub(super) const FAULTS: [Fault; 4] =
    [Fault::Lost, Fault::Unanswered, Fault::Deposed, Fault::Halfway];

/// One group, as if its log were shared.
#[derive(Debug)]
pub(super) struct Sim {
    pub(super) members: Members,
    pub(super) leader: Option<ReplicaId>,
    /// Who has nearly all of the log.
    close: BTreeSet<ReplicaId>,
}

/// The metadata of a cluster and its groups.
pub(super) struct World {
    pub(super) state: State,
    pub(super) reach: BTreeMap<BrokerId, Reach>,
    pub(super) dead: BTreeSet<BrokerId>,
    /// By the identity of their log; 0 = the metadata.
    pub(super) groups: BTreeMap<u128, Sim>,
    pub(super) preferences: usize,
    /// After so many actions, what goes wrong.
    pub(super) fault: Option<(usize, Fault)>,
    /// Actions until now.
    pub(super) actions: usize,
    pub(super) metadata_voters: u8,
    issued: BTreeMap<ReplicaId, (u128, BrokerId)>,
    uuids: u128,
}

/// The log that a replica belongs to.
const METADATA: u128 = 0;

impl World {
    /// One broker for each rack number.
    pub(super) fn new(racks: &[u8]) -> Self {
        let mut world = Self {
            state: State::default(),
            reach: BTreeMap::new(),
            dead: BTreeSet::new(),
            groups: BTreeMap::new(),
            preferences: usize::MAX,
            fault: None,
            actions: 0,
            metadata_voters: 0,
            issued: BTreeMap::new(),
            uuids: 0,
        };
        world.apply(&Command::Form { cluster: 7, broker: FOUNDER });
        world.apply(&Command::RaiseGate { gate: GATE_CLUSTER });
        for rack in racks {
            world.join(*rack);
        }
        world
    }

    pub(super) fn apply(&mut self, command: &Command) -> Change {
        let outcome = self.try_apply(command);
        outcome.unwrap_or_else(|refusal| panic!("{command:?}: {refusal}"))
    }

    fn try_apply(&mut self, command: &Command) -> Result<Change, Refusal> {
        let change = self.state.apply(command)?;
        self.check_ids();
        self.check_pairs();
        self.form_groups();
        Ok(change)
    }

    /// An id stands for one replica of one log on one broker, for ever.
    fn check_ids(&mut self) {
        let catalog = self.state.catalog();
        let partitions = catalog.partitions();
        let placed = partitions.flat_map(|(_, p)| p.replicas.iter().map(|here| (p.uuid, *here)));
        for (log, here) in placed.chain(catalog.metadata.iter().map(|here| (METADATA, *here))) {
            let known = self.issued.insert(here.replica, (log, here.broker));
            assert!(known.is_none_or(|known| known == (log, here.broker)), "{here:?} of {log}");
        }
    }

    /// No two moves go from the same broker to the same other.
    fn check_pairs(&self) {
        let mut pairs = BTreeSet::new();
        for (joins, moving) in &self.catalog().moves {
            let homes = self.catalog().partition(moving.topic, moving.partition).unwrap();
            let at = |replica| homes.replica(replica).map(|here| here.broker);
            let Some(from) = moving.replaces.and_then(at) else { continue };
            let to = at(*joins).unwrap();
            assert!(pairs.insert((from, to)), "two moves from {from} to {to}");
        }
    }

    fn form_groups(&mut self) {
        let mut logs: BTreeMap<u128, Vec<Placement>> = BTreeMap::new();
        for (_, partition) in self.state.catalog().partitions() {
            logs.insert(partition.uuid, partition.replicas.clone());
        }
        logs.insert(METADATA, self.state.catalog().metadata.clone());
        for (log, placed) in logs {
            let leader = placed.first().map(|here| here.replica);
            self.groups.entry(log).or_insert_with(|| Sim {
                leader,
                close: placed.iter().map(|here| here.replica).collect(),
                members: Members {
                    index: Index(1),
                    voters: vec![placed.iter().map(|here| here.replica).collect()],
                    brokers: placed.iter().map(|here| (here.replica, here.broker)).collect(),
                },
            });
        }
    }

    pub(super) fn join(&mut self, rack: u8) -> BrokerId {
        let first = self.state.catalog().brokers[&FOUNDER].facts.is_none();
        let token = 1_000 + self.issued.len() as u128 + self.state.catalog().brokers.len() as u128;
        let token = if first { 1 } else { token * 100 + self.reach.len() as u128 };
        let facts = BrokerFacts {
            token,
            instance: 1,
            gate: GATE_HERE,
            name: name("b"),
            peer: Address::new(&format!("h{token}:1")).unwrap(),
            client: Address::new("h:2").unwrap(),
            rack: name(&format!("r{rack}")),
        };
        let up = Command::BrokerUp { broker: first.then_some(FOUNDER), facts };
        let Change::BrokerUp(broker) = self.apply(&up) else { unreachable!() };
        self.reach.insert(broker, Reach::Well);
        broker
    }

    /// The broker lost its data, and joins as another at the same place.
    pub(super) fn wipe(&mut self, old: BrokerId) -> BrokerId {
        let facts = self.catalog().brokers[&old].facts.clone().unwrap();
        let up = BrokerFacts { token: facts.token + 1_000_000, ..facts };
        let Change::BrokerUp(new) = self.apply(&Command::BrokerUp { broker: None, facts: up })
        else {
            unreachable!()
        };
        self.reach.insert(new, Reach::Well);
        new
    }

    pub(super) fn catalog(&self) -> &Catalog {
        self.state.catalog()
    }

    pub(super) fn partitions(&self) -> Vec<Partition> {
        self.catalog().partitions().map(|(_, partition)| partition.clone()).collect()
    }

    /// Creates a topic whose first leaders are the preferred ones.
    pub(super) fn create(
        &mut self,
        topic: &str,
        partitions: u128,
        replicas: u8,
    ) -> Result<(), TooFewBrokers> {
        let uuids = self.uuids + 1..=self.uuids + partitions;
        self.uuids += partitions;
        let placed = Seats::of(self.state.catalog(), |_| true).place(replicas, uuids)?;
        self.create_on(topic, placed);
        Ok(())
    }

    pub(super) fn create_on(&mut self, topic: &str, partitions: Vec<NewPartition>) {
        let settings = Settings {
            durability: Durability::Fsync,
            overflow: Overflow::Reject,
            max_bytes: 1 << 30,
            max_age_ms: 0,
        };
        let name = name(topic);
        let create = Command::CreateTopic { name, settings, created_ms: 1, partitions };
        let Change::Created(topic) = self.apply(&create) else { unreachable!() };
        let replicas: Vec<_> = topic.partitions.iter().map(|p| p.preferred).collect();
        self.apply(&Command::NoteFormed { replicas });
    }

    /// Forgets a broker that was drained, and its copy of the metadata before.
    pub(super) fn remove(&mut self, broker: BrokerId) {
        let copy = self.catalog().metadata.iter().find(|copy| copy.broker == broker).copied();
        if let Some(copy) = copy {
            assert_eq!(copy.stage, Stage::Joining, "it votes no more");
            let (replica, reason) = (copy.replica, LossReason::GivenUp);
            self.apply(&Command::LoseReplica { replica, reason });
            self.settle();
        }
        self.apply(&Command::RemoveBroker { broker });
    }

    pub(super) fn drain(&mut self, broker: BrokerId) {
        self.apply(&Command::SetStanding { broker, standing: Standing::Draining });
    }

    /// The broker is gone, and nobody knows yet for how long.
    pub(super) fn kill(&mut self, broker: BrokerId) {
        self.dead.insert(broker);
        self.reach.insert(broker, Reach::Quiet);
    }

    /// It was gone for so long that nobody waits for it.
    pub(super) fn bury(&mut self, broker: BrokerId) {
        self.reach.insert(broker, Reach::Dead);
    }

    pub(super) fn set_replicas(&mut self, topic: &str, replicas: u8) {
        let topic = &self.catalog().topics[&name(topic)];
        let (topic, revision) = (topic.id, topic.revision);
        self.apply(&Command::SetReplicas { topic, revision, replicas });
    }

    pub(super) fn leaders(&self) -> BTreeSet<ReplicaId> {
        self.groups.values().filter_map(|group| group.leader).collect()
    }

    pub(super) fn decide(&self) -> Vec<Command> {
        let (leaders, reach, preferences) = (self.leaders(), &self.reach, self.preferences);
        decide(&View { catalog: self.catalog(), leaders: &leaders, reach, preferences })
    }

    /// Carries out one round; every command of it must be accepted. Groups follow.
    pub(super) fn round(&mut self) -> Vec<Command> {
        let commands = self.decide();
        commands.iter().for_each(|command| drop(self.apply(command)));
        self.follow();
        commands
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..2_000 {
            if !self.tick() {
                return;
            }
        }
        panic!("it never ends: {:?}", self.decide());
    }

    /// One round in which anything may be interrupted; whether there was anything to do.
    pub(super) fn tick(&mut self) -> bool {
        self.elect();
        let before = self.actions;
        // Without a leader of the metadata nobody decides.
        if self.groups[&METADATA].leader.is_some() {
            for command in self.decide() {
                match self.fault_now() {
                    Some(Fault::Lost) => break,
                    Some(Fault::Deposed | Fault::Halfway) => {
                        self.depose(METADATA);
                        break;
                    }
                    Some(Fault::Unanswered) => {
                        drop(self.try_apply(&command));
                        break;
                    }
                    None => drop(self.try_apply(&command)),
                }
            }
        }
        self.follow();
        self.actions > before
    }

    fn fault_now(&mut self) -> Option<Fault> {
        self.actions += 1;
        let (_, fault) = self.fault.filter(|(at, _)| *at == self.actions)?;
        Some(fault)
    }

    /// What the leaders of all groups do.
    fn follow(&mut self) {
        for group in self.groups.values_mut() {
            let living = group.members.brokers.iter().filter(|(_, at)| !self.dead.contains(at));
            group.close.extend(living.map(|(replica, _)| *replica));
        }
        self.elect();
        for log in self.groups.keys().copied().collect::<Vec<_>>() {
            for _ in 0..20 {
                let Some(step) = self.next_step(log) else { break };
                if !self.take(log, step) {
                    break;
                }
            }
        }
    }

    pub(super) fn wanted(&self, log: u128) -> Option<Wanted> {
        if log == METADATA {
            let (leaders, reach) = (BTreeSet::new(), &self.reach);
            let view = View { catalog: self.catalog(), leaders: &leaders, reach, preferences: 0 };
            return Some(wanted_metadata(&view, self.metadata_voters));
        }
        let mut partitions = self.catalog().partitions();
        let (topic, partition) = partitions.find(|(_, partition)| partition.uuid == log)?;
        Wanted::of_partition(self.catalog(), topic.id, partition.id)
    }

    fn next_step(&self, log: u128) -> Option<MemberStep> {
        let group = &self.groups[&log];
        let going = self.reach.iter().filter(|(_, reach)| **reach == Reach::Going);
        let going = going.map(|(broker, _)| *broker).collect();
        let how = |(replica, broker): (&ReplicaId, &BrokerId)| {
            let lag_bytes = if group.close.contains(replica) { 0 } else { 1 << 40 };
            (*replica, Progress { lag_bytes, answers: !self.dead.contains(broker) })
        };
        let progress = group.members.brokers.iter().map(how).collect();
        let (me, members) = (group.leader?, &group.members);
        next_step(&self.wanted(log)?, Group { me, members, progress: &progress, going: &going })
    }

    /// Whether whoever wanted the step knows that it is done.
    fn take(&mut self, log: u128, step: MemberStep) -> bool {
        match self.fault_now() {
            None => self.carry_out(log, step, false),
            Some(Fault::Lost) => return false,
            Some(Fault::Unanswered) => {
                self.carry_out(log, step, false);
                return false;
            }
            Some(Fault::Deposed) => {
                self.depose(log);
                return false;
            }
            Some(Fault::Halfway) => {
                self.carry_out(log, step, true);
                self.depose(log);
                return false;
            }
        }
        true
    }

    fn carry_out(&mut self, log: u128, step: MemberStep, halfway: bool) {
        if let MemberStep::Note(command) = step {
            let known = self.try_apply(&command);
            assert!(!matches!(known, Err(Refusal::BadStep)), "{command:?}");
            return;
        }
        let dead = self.dead.clone();
        let group = self.groups.get_mut(&log).unwrap();
        let alive = |group: &Sim, id: &ReplicaId| !dead.contains(&group.members.brokers[id]);
        match step {
            MemberStep::AddLearner(replica, broker) => {
                assert_eq!(group.members.voters.len(), 1);
                assert!(group.members.brokers.insert(replica, broker).is_none());
                group.close.remove(&replica);
            }
            MemberStep::RemoveLearner { replica, expected } => {
                assert_eq!((group.members.index, group.members.voters.len()), (expected, 1));
                assert!(!group.members.voters[0].contains(&replica));
                group.members.brokers.remove(&replica).unwrap();
            }
            MemberStep::ChangeVoters { voters, expected } => {
                assert_eq!(group.members.index, expected);
                assert!(voters.contains(&group.leader.unwrap()), "the leader goes: {voters:?}");
                let living = voters.iter().filter(|id| alive(group, id)).count();
                assert!(living > voters.len() / 2, "{voters:?} can not decide");
                let old = group.members.voters[0].clone();
                group.members.voters = vec![old, voters.clone()];
                if !halfway {
                    let before = group.members.voters.concat_all();
                    let stays = |id: &ReplicaId| voters.contains(id) || !before.contains(id);
                    group.members.brokers.retain(|id, _| stays(id));
                    group.members.voters = vec![voters];
                }
            }
            MemberStep::HandOver(to) | MemberStep::Restore(to) => {
                assert!(group.members.voters.iter().all(|voters| voters.contains(&to)));
                assert!(alive(group, &to) && group.close.contains(&to));
                group.leader = Some(to);
            }
            MemberStep::Note(_) => unreachable!("noted above"),
        }
        group.members.index.0 += 1;
    }

    /// Another leads, if another can.
    fn depose(&mut self, log: u128) {
        let group = self.groups.get_mut(&log).unwrap();
        let old = group.leader.take();
        group.leader = candidates(group, &self.dead).into_iter().find(|id| Some(*id) != old);
        group.leader = group.leader.or(old);
    }

    fn elect(&mut self) {
        for group in self.groups.values_mut() {
            let candidates = candidates(group, &self.dead);
            let stands = group.leader.is_some_and(|leader| candidates.contains(&leader));
            if !stands {
                group.leader = candidates.into_iter().next();
            }
        }
    }

    fn count(&self, of: impl Fn(&Partition) -> Vec<BrokerId>) -> BTreeMap<BrokerId, usize> {
        let counted = self.catalog().active().filter(|card| !self.dead.contains(&card.id));
        let mut counts: BTreeMap<_, _> = counted.map(|card| (card.id, 0)).collect();
        for broker in self.partitions().iter().flat_map(of) {
            *counts.entry(broker).or_default() += 1;
        }
        counts
    }

    pub(super) fn homes(&self) -> BTreeMap<ReplicaId, BrokerId> {
        let partitions = self.partitions();
        let placed = partitions.iter().flat_map(|partition| &partition.replicas);
        placed.map(|placement| (placement.replica, placement.broker)).collect()
    }

    pub(super) fn held(&self) -> BTreeMap<BrokerId, usize> {
        self.count(|partition| partition.replicas.iter().map(|here| here.broker).collect())
    }

    pub(super) fn preferred(&self) -> BTreeMap<BrokerId, usize> {
        self.count(|partition| vec![partition.replica(partition.preferred).unwrap().broker])
    }

    /// No two replicas share a broker, and no rack has two more of them than another with room.
    pub(super) fn check_spread(&self) {
        for partition in self.partitions() {
            let homes: BTreeSet<_> = partition.replicas.iter().map(|here| here.broker).collect();
            assert_eq!(homes.len(), partition.replicas.len(), "{partition:?}");
            let mut used: BTreeMap<_, usize> = BTreeMap::new();
            let mut room = BTreeSet::new();
            for card in self.catalog().active() {
                *used.entry(card.rack()).or_default() += usize::from(homes.contains(&card.id));
                if !homes.contains(&card.id) {
                    room.insert(card.rack());
                }
            }
            let most = used.values().max().unwrap();
            let roomy = room.iter().map(|rack| used[rack]).min().unwrap_or(*most);
            assert!(*most <= roomy + 1, "{partition:?}: {used:?}");
        }
    }

    /// Every log has the voters that it shall have, where it shall have them, and who shall leads.
    pub(super) fn check_whole(&self) {
        let lives = |broker: &BrokerId| !self.dead.contains(broker);
        assert!(self.catalog().moves.is_empty());
        for (topic, partition) in self.catalog().partitions() {
            assert_eq!(partition.replicas.len(), usize::from(topic.replicas), "{partition:?}");
            assert_eq!(partition.voters().count(), partition.replicas.len(), "{partition:?}");
            let good = |at: BrokerId| self.catalog().is_active(at) && lives(&at);
            assert!(partition.voters().all(|voter| good(voter.broker)), "{partition:?}");
            let group = &self.groups[&partition.uuid];
            self.check_group(group, &partition.replicas);
            assert_eq!(group.leader, Some(partition.preferred));
        }
        let copies = &self.catalog().metadata;
        self.check_group(&self.groups[&METADATA], copies);
        let active: BTreeSet<_> = self.catalog().active().map(|card| card.id).collect();
        let brokers: BTreeSet<_> = self.catalog().brokers.keys().copied().collect();
        let homes: BTreeSet<_> = copies.iter().map(|copy| copy.broker).collect();
        // Who was drained before it got a copy has none.
        assert!(active.is_subset(&homes) && homes.is_subset(&brokers), "{copies:?}");
        assert_eq!(copies.len(), homes.len(), "{copies:?}");
        let voters: Vec<_> = copies.iter().filter(|copy| copy.stage == Stage::Voter).collect();
        assert!(voters.iter().all(|voter| lives(&voter.broker)), "{voters:?}");
        let most = active.iter().filter(|at| lives(at)).count();
        let wanted = metadata_voters(self.metadata_voters, active.len());
        let wanted = if most % 2 == 0 { wanted.min(most - 1) } else { wanted.min(most) };
        assert_eq!(voters.len(), wanted, "{copies:?}");
    }

    fn check_group(&self, group: &Sim, placed: &[Placement]) {
        let votes = |here: &&Placement| here.stage == Stage::Voter;
        let voters: BTreeSet<_> = placed.iter().filter(votes).map(|here| here.replica).collect();
        assert_eq!(group.members.voters, [voters]);
        let brokers = placed.iter().map(|here| (here.replica, here.broker)).collect();
        assert_eq!(group.members.brokers, brokers);
    }
}

trait ConcatAll {
    fn concat_all(&self) -> BTreeSet<ReplicaId>;
}

impl ConcatAll for Vec<BTreeSet<ReplicaId>> {
    fn concat_all(&self) -> BTreeSet<ReplicaId> {
        self.iter().flatten().copied().collect()
    }
}

/// Who could win an election now.
fn candidates(group: &Sim, dead: &BTreeSet<BrokerId>) -> Vec<ReplicaId> {
    let lives = |id: &&ReplicaId| !dead.contains(&group.members.brokers[*id]);
    let decides =
        |voters: &BTreeSet<ReplicaId>| voters.iter().filter(lives).count() > voters.len() / 2;
    if !group.members.voters.iter().all(decides) {
        return Vec::new();
    }
    group.members.voters.concat_all().iter().filter(lives).copied().collect()
}
