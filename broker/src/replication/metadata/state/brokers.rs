//! The table of brokers, and the gate that all of them can pass.
//!
//! Owns: who belongs to the cluster, what each tells of itself, and which it may hold replicas on.
//! Never: reaches a broker, or judges whether it lives.
//! Invariants: a broker's id is never given to another; a broker is removed only when it holds no
//! replica; the gate never falls and is never above what a broker of the cluster reads.

use super::{Catalog, Change, Refusal, State};
use crate::planted::{Bug, is_planted};
use std::sync::Arc;
use weir_protocol::limits::BROKERS_MAX;
use weir_protocol::types::{BrokerId, Name};

/// The broker that forms a cluster. Logs of gate 0 know no other.
pub const FOUNDER: BrokerId = BrokerId(1);
/// The gate behind which a cluster has brokers, moves and all that a single node does not need.
pub const GATE_CLUSTER: u32 = 1;
/// The gate behind which replicas that lost their memory may take part again.
pub const GATE_REINSTATE: u32 = 2;
/// The highest gate that this build reads.
pub const GATE_HERE: u32 = GATE_REINSTATE;

/// Where a peer or a client finds a broker: 1 to 255 visible ASCII characters, `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(Arc<str>);

impl Address {
    /// Checks `text`.
    pub fn new(text: &str) -> Option<Self> {
        let fits = (1..=usize::from(u8::MAX)).contains(&text.len());
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        (fits && visible).then(|| Self(text.into()))
    }

    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a broker tells of itself whenever it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerFacts {
    /// Of its data directory, random, for ever: how a broker without an id is known again.
    pub token: u128,
    /// Of this start, random.
    pub instance: u64,
    /// The highest gate that its build reads.
    pub gate: u32,
    /// What people call it.
    pub name: Name,
    /// Where other brokers find it.
    pub peer: Address,
    /// Where clients find it.
    pub client: Address,
    /// What fails together with it.
    pub rack: Name,
}

/// What a broker may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Everything.
    Active = 0,
    /// It takes no new replica, and those it holds go elsewhere.
    Draining = 1,
}

/// One broker of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerCard {
    /// Its identity.
    pub id: BrokerId,
    /// What it may be used for.
    pub standing: Standing,
    /// What it told last; none of a founder that never had to.
    pub facts: Option<BrokerFacts>,
}

impl BrokerCard {
    /// What fails together with it, if it said so.
    pub fn rack(&self) -> Option<&Name> {
        self.facts.as_ref().map(|facts| &facts.rack)
    }

    /// Whether the broker is known to read everything behind `gate`, where `passed` was raised
    /// before. Who never told committed the gate that stands, and so reads it.
    fn reads(&self, gate: u32, passed: u32) -> bool {
        self.facts.as_ref().map_or(passed, |facts| facts.gate) >= gate
    }
}

impl Catalog {
    /// Whether the broker may be given a replica.
    pub fn is_active(&self, broker: BrokerId) -> bool {
        self.brokers.get(&broker).is_some_and(|card| card.standing == Standing::Active)
    }

    /// Brokers that may be given a replica.
    pub fn active(&self) -> impl Iterator<Item = &Arc<BrokerCard>> {
        self.brokers.values().filter(|card| card.standing == Standing::Active)
    }

    /// Whether a later broker is found where this one was: the data directory that made it this
    /// broker is not used there any more.
    pub fn is_succeeded(&self, broker: BrokerId) -> bool {
        let peer = |card: &BrokerCard| card.facts.as_ref().map(|facts| facts.peer.clone());
        let Some(place) = self.brokers.get(&broker).and_then(|card| peer(card)) else {
            return false;
        };
        let mut later = self.brokers.values().filter(|card| card.id > broker);
        later.any(|card| peer(card).as_ref() == Some(&place))
    }

    fn holds_replicas(&self, broker: BrokerId) -> bool {
        let topics = self.topics.values().flat_map(|topic| &topic.partitions);
        let placed = topics.flat_map(|partition| &partition.replicas).chain(&self.metadata);
        placed.into_iter().any(|placement| placement.broker == broker)
    }
}

impl State {
    /// The card of a broker that forms the cluster.
    pub(super) fn register_founder(&mut self, id: BrokerId) {
        let card = BrokerCard { id, standing: Standing::Active, facts: None };
        self.put_broker(card);
    }

    pub(super) fn broker_up(
        &mut self,
        broker: Option<BrokerId>,
        facts: &BrokerFacts,
    ) -> Result<Change, Refusal> {
        if facts.token == 0 || facts.gate < self.catalog.gate {
            return Err(if facts.token == 0 { Refusal::NoToken } else { Refusal::GateAbove });
        }
        let card = match broker {
            Some(id) => BrokerCard::clone(self.card(id)?),
            None => match self.card_of(facts.token) {
                Some(known) => BrokerCard::clone(known),
                None => self.new_card()?,
            },
        };
        let other_holds = self.card_of(facts.token).is_some_and(|known| known.id != card.id);
        let was_other = card.facts.as_ref().is_some_and(|before| before.token != facts.token);
        if other_holds || was_other {
            return Err(Refusal::TokenMismatch);
        }
        let id = card.id;
        self.put_broker(BrokerCard { facts: Some(facts.clone()), ..card });
        Ok(Change::BrokerUp(id))
    }

    pub(super) fn set_standing(
        &mut self,
        broker: BrokerId,
        standing: Standing,
    ) -> Result<Change, Refusal> {
        let card = BrokerCard { standing, ..BrokerCard::clone(self.card(broker)?) };
        self.put_broker(card);
        Ok(Change::Done)
    }

    pub(super) fn remove_broker(&mut self, broker: BrokerId) -> Result<Change, Refusal> {
        self.card(broker)?;
        if self.catalog.holds_replicas(broker) && !is_planted(Bug::RemovedInUse) {
            return Err(Refusal::BrokerInUse);
        }
        Arc::make_mut(&mut self.catalog).brokers.remove(&broker);
        Ok(Change::Done)
    }

    /// Raises the gate. A lower one says what stands and changes nothing.
    pub(super) fn raise_gate(&mut self, gate: u32) -> Result<Change, Refusal> {
        let passed = self.catalog.gate;
        if gate > passed {
            // Before the first gate nobody could tell what it reads, and there is one broker: the
            // one that proposes this.
            let mut brokers = self.catalog.brokers.values();
            let all_read = match passed {
                0 => gate == GATE_CLUSTER,
                _ => brokers.all(|card| card.reads(gate, passed)),
            };
            let all_read = all_read || is_planted(Bug::GateUnread);
            if !all_read || self.catalog.cluster == 0 {
                return Err(Refusal::GateUnread);
            }
            Arc::make_mut(&mut self.catalog).gate = gate;
        }
        Ok(Change::Gate(self.catalog.gate))
    }

    pub(super) fn card(&self, broker: BrokerId) -> Result<&Arc<BrokerCard>, Refusal> {
        let issued = (1..self.next_broker).contains(&broker.0);
        let absent = if issued { Refusal::BrokerRemoved } else { Refusal::UnknownBroker };
        self.catalog.brokers.get(&broker).ok_or(absent)
    }

    fn card_of(&self, token: u128) -> Option<&Arc<BrokerCard>> {
        let told = |card: &&Arc<BrokerCard>| card.facts.as_ref().is_some_and(|f| f.token == token);
        self.catalog.brokers.values().find(told)
    }

    fn new_card(&mut self) -> Result<BrokerCard, Refusal> {
        if self.catalog.brokers.len() >= BROKERS_MAX {
            return Err(Refusal::BrokerLimit);
        }
        let id = BrokerId(self.next_broker);
        self.next_broker += 1;
        Ok(BrokerCard { id, standing: Standing::Active, facts: None })
    }

    fn put_broker(&mut self, card: BrokerCard) {
        Arc::make_mut(&mut self.catalog).brokers.insert(card.id, Arc::new(card));
    }
}
