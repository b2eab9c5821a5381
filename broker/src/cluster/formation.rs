//! How brokers that know nothing but each other's addresses become one cluster.
//!
//! Owns: when a cluster may be formed, who leads that, and when a broker belongs to it.
//! Never: asks, writes or waits: it says what shall be done and is told what came of it.
//! Invariants:
//! - The lowest seed alone makes up a cluster, once every seed has said within
//!   [`HEARD_FOR`] that it is empty and was told of the same seeds. It writes that down before it
//!   tells anybody, so it never makes up two.
//! - It becomes a member only when every other seed has written its place down. It is the first
//!   member, so nobody votes in a cluster that could still be formed anew.
//! - Who has a place in one cluster takes none in another, ever. Who has none joins the cluster that
//!   a seed is a member of, unless seeds are members of different ones.

use crate::identity::{Founders, Identity};
use crate::replication::metadata::{Address, FOUNDER, GATE_CLUSTER};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::{Duration, Instant};
use weir_protocol::peer::{Form, MemberState, PeerRefusal, Probed, Seed};
use weir_protocol::types::{BrokerId, ReplicaId, RequestId};

/// For so long it counts what a seed said of itself.
pub const HEARD_FOR: Duration = Duration::from_secs(10);

/// What this broker was told, before it has heard anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Where the brokers that form the cluster are, sorted.
    pub seeds: Vec<Address>,
    /// Which of them this broker is, if it is one.
    pub place: Option<usize>,
    /// How many voters the metadata shall have; 0 = as many as fit.
    pub voters: u8,
    /// The identity of a cluster that is made up here; random.
    pub cluster: u128,
    /// The seeds as one number, to compare.
    pub seeds_hash: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// A seed said who it is.
    Probed(usize, Probed),
    /// Another broker forms a cluster. [`Effect::Answer`] is what it is told.
    Form(Form),
    /// What a seed answered to [`Effect::Form`].
    Formed(usize, Result<(), PeerRefusal>),
    /// What [`Effect::Store`] asked for is durable. Nothing else happens before.
    Stored,
    /// The cluster that [`Effect::Join`] named knows this broker.
    Joined {
        /// Which cluster.
        cluster: u128,
        /// This broker in it.
        broker: BrokerId,
    },
}

/// What shall be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Ask a seed who it is.
    Probe(usize),
    /// Tell a seed its place.
    Form(usize, Form),
    /// Write down who this broker is, durably.
    Store(Identity),
    /// Answer the broker that forms a cluster.
    Answer(Result<(), PeerRefusal>),
    /// Become known to the cluster that this seed is a member of.
    Join {
        /// The seed.
        seed: usize,
        /// Its cluster.
        cluster: u128,
    },
}

/// Why it does not go on by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Concern {
    /// Seeds that have said nothing lately.
    #[error("waiting for {0}")]
    Silent(String),
    /// A seed was told of other seeds.
    #[error(
        "{0} was told of other seeds, or another cluster.expect: make cluster.seeds the same on \
         every broker"
    )]
    OtherSeeds(String),
    /// A seed's build is too old.
    #[error("{0} runs a build that knows no clusters: use a newer one there")]
    TooOld(String),
    /// A seed has a place in a cluster that this broker knows nothing of.
    #[error(
        "{seed} has begun to form cluster {cluster:032x}, which nobody is a member of: move its \
         data directory away"
    )]
    HalfFormed {
        /// The seed.
        seed: String,
        /// What it began to form.
        cluster: u128,
    },
    /// Seeds belong to different clusters, or this broker and a seed do.
    #[error(
        "{seed} belongs to cluster {cluster:032x} and others do not: take it out of \
         cluster.seeds, or move the data directory away of who shall come over"
    )]
    OtherCluster {
        /// The seed.
        seed: String,
        /// Its cluster.
        cluster: u128,
    },
}

/// What a seed said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Heard {
    at: Instant,
    cluster: u128,
    state: MemberState,
    gate: u32,
    /// It was told of the same seeds.
    is_like_minded: bool,
}

/// One broker on its way into a cluster.
#[derive(Debug, Clone)]
pub struct Formation {
    terms: Terms,
    /// As it is durable.
    identity: Identity,
    /// What is being written, and whether somebody waits for that.
    storing: Option<(Identity, bool)>,
    heard: BTreeMap<usize, Heard>,
    /// Seeds that have written down the place they were told.
    placed: BTreeSet<usize>,
}

impl Formation {
    /// Goes on from what is durable.
    pub fn new(terms: Terms, identity: Identity) -> Self {
        let (heard, placed) = (BTreeMap::new(), BTreeSet::new());
        Self { terms, identity, storing: None, heard, placed }
    }

    /// Who this broker is, as far as it is durable.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether there is nothing left to do.
    pub fn is_done(&self) -> bool {
        self.identity.state == MemberState::Member
    }

    /// The one way in which anything changes.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        if let Event::Stored = event {
            return self.stored();
        }
        if self.storing.is_some() {
            return match event {
                Event::Form(_) => vec![Effect::Answer(Err(PeerRefusal::Overloaded))],
                _ => Vec::new(),
            };
        }
        let is_tick = event == Event::Tick;
        match event {
            Event::Form(form) => return self.take_place(&form),
            Event::Probed(seed, probed) => self.hear(seed, &probed, now),
            Event::Formed(seed, Ok(())) => drop(self.placed.insert(seed)),
            Event::Joined { cluster, broker } if self.identity.state == MemberState::Empty => {
                let state = MemberState::Member;
                return self.store(Identity { cluster, broker, state, ..self.identity }, false);
            }
            Event::Tick | Event::Stored | Event::Joined { .. } | Event::Formed(_, Err(_)) => {}
        }
        self.heard.retain(|_, heard| now.saturating_duration_since(heard.at) < HEARD_FOR);
        match self.next() {
            Some(identity) => self.store(identity, false),
            None if is_tick => self.asks(),
            None => Vec::new(),
        }
    }

    /// Why it does not go on by itself, if it does not.
    pub fn concern(&self) -> Option<Concern> {
        if self.is_done() {
            return None;
        }
        let name = |seed: usize| self.terms.seeds[seed].as_str().to_owned();
        let here = Some(self.identity.cluster).filter(|cluster| *cluster != 0);
        let cluster = here.or_else(|| self.members().next().map(|(_, cluster)| cluster));
        let mut members = self.members();
        if let Some((seed, cluster)) = members.find(|(_, other)| Some(*other) != cluster) {
            return Some(Concern::OtherCluster { seed: name(seed), cluster });
        }
        for (seed, heard) in &self.heard {
            let (seed, cluster) = (name(*seed), heard.cluster);
            match heard.state {
                _ if heard.gate < GATE_CLUSTER => return Some(Concern::TooOld(seed)),
                _ if !heard.is_like_minded => return Some(Concern::OtherSeeds(seed)),
                MemberState::Forming if cluster != self.identity.cluster => {
                    return Some(Concern::HalfFormed { seed, cluster });
                }
                _ => {}
            }
        }
        let silent = self.others().filter(|seed| !self.heard.contains_key(seed));
        let silent: Vec<_> = silent.map(name).collect();
        (!silent.is_empty()).then(|| Concern::Silent(silent.join(", ")))
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let place = self.terms.place;
        (0..self.terms.seeds.len()).filter(move |seed| Some(*seed) != place)
    }

    /// Seeds that belong to a cluster.
    fn members(&self) -> impl Iterator<Item = (usize, u128)> {
        let heard = self.heard.iter().filter(|(_, heard)| heard.state == MemberState::Member);
        heard.map(|(seed, heard)| (*seed, heard.cluster))
    }

    /// The cluster that seeds belong to, if they agree.
    fn cluster_to_join(&self) -> Option<(usize, u128)> {
        let (seed, cluster) = self.members().next()?;
        self.members().all(|(_, other)| other == cluster).then_some((seed, cluster))
    }

    fn hear(&mut self, seed: usize, probed: &Probed, now: Instant) {
        let expect = usize::from(probed.expect);
        let is_like_minded =
            expect == self.terms.seeds.len() && probed.seeds_hash == self.terms.seeds_hash;
        let heard = Heard {
            at: now,
            cluster: probed.cluster,
            state: probed.state,
            gate: probed.gate,
            is_like_minded,
        };
        self.heard.insert(seed, heard);
    }

    /// Who this broker becomes by what it has heard.
    fn next(&self) -> Option<Identity> {
        let leads = self.terms.place == Some(0);
        let (cluster, state) = (self.identity.cluster, self.identity.state);
        match state {
            MemberState::Empty if leads && self.is_everybody_empty() => {
                Some(self.placed_as(0, self.terms.cluster, self.founders()))
            }
            MemberState::Forming if self.identity.broker == FOUNDER => {
                let all = self.others().all(|seed| self.placed.contains(&seed));
                all.then_some(Identity { state: MemberState::Member, ..self.identity })
            }
            MemberState::Forming => {
                let formed = self.members().any(|(_, theirs)| theirs == cluster);
                formed.then_some(Identity { state: MemberState::Member, ..self.identity })
            }
            MemberState::Empty | MemberState::Member => None,
        }
    }

    fn is_everybody_empty(&self) -> bool {
        let is_ready = |heard: &Heard| {
            let reads = heard.gate >= GATE_CLUSTER;
            heard.state == MemberState::Empty && heard.is_like_minded && reads
        };
        self.others().all(|seed| self.heard.get(&seed).is_some_and(is_ready))
    }

    fn founders(&self) -> Founders {
        Founders::new(self.terms.seeds.len() as u16, self.terms.voters)
    }

    fn placed_as(&self, place: usize, cluster: u128, founders: Founders) -> Identity {
        let number = FOUNDER.0 + place as u64;
        let votes = place < usize::from(founders.voters);
        Identity {
            broker: BrokerId(number),
            cluster,
            state: MemberState::Forming,
            founders,
            metadata_replica: if votes { ReplicaId(number) } else { ReplicaId(0) },
            ..self.identity
        }
    }

    fn store(&mut self, identity: Identity, is_awaited: bool) -> Vec<Effect> {
        self.storing = Some((identity, is_awaited));
        vec![Effect::Store(identity)]
    }

    fn stored(&mut self) -> Vec<Effect> {
        let Some((identity, is_awaited)) = self.storing.take() else { return Vec::new() };
        self.identity = identity;
        // What was heard was heard of others than those it now matters to.
        self.heard.clear();
        let mut effects = Vec::new();
        if is_awaited {
            effects.push(Effect::Answer(Ok(())));
        }
        match self.next() {
            Some(identity) => effects.extend(self.store(identity, false)),
            None => effects.extend(self.asks()),
        }
        effects
    }

    /// What there is to ask.
    fn asks(&self) -> Vec<Effect> {
        let probes = || self.others().map(Effect::Probe);
        match self.identity.state {
            MemberState::Member => Vec::new(),
            MemberState::Forming if self.identity.broker == FOUNDER => {
                let missing = self.others().filter(|seed| !self.placed.contains(seed));
                let forms = missing.map(|seed| Effect::Form(seed, self.form_for(seed)));
                probes().chain(forms).collect()
            }
            MemberState::Forming => probes().collect(),
            MemberState::Empty => {
                let join = self.cluster_to_join();
                let join = join.map(|(seed, cluster)| Effect::Join { seed, cluster });
                probes().chain(join).collect()
            }
        }
    }

    fn form_for(&self, seed: usize) -> Form {
        let voters = usize::from(self.identity.founders.voters);
        let seeds = self.terms.seeds.iter().zip(FOUNDER.0..).enumerate();
        let seeds = seeds.map(|(place, (address, number))| Seed {
            peer_address: address.as_str().to_owned(),
            broker: BrokerId(number),
            voter: (place < voters).then_some(ReplicaId(number)),
        });
        Form {
            request: RequestId(0),
            cluster: self.identity.cluster,
            broker: BrokerId(FOUNDER.0 + seed as u64),
            seeds: seeds.collect(),
        }
    }

    /// Takes the place that another broker offers, or says why not.
    fn take_place(&mut self, form: &Form) -> Vec<Effect> {
        match self.judge(form) {
            Ok(Some(identity)) => self.store(identity, true),
            Ok(None) => vec![Effect::Answer(Ok(()))],
            Err(refusal) => vec![Effect::Answer(Err(refusal))],
        }
    }

    fn judge(&self, form: &Form) -> Result<Option<Identity>, PeerRefusal> {
        if self.identity.state != MemberState::Empty {
            let same = (self.identity.cluster, self.identity.broker) == (form.cluster, form.broker);
            return if same { Ok(None) } else { Err(PeerRefusal::WrongCluster) };
        }
        let is_wanted_elsewhere = self.members().any(|(_, cluster)| cluster != form.cluster);
        let told = form.seeds.iter().map(|seed| seed.peer_address.as_str());
        if is_wanted_elsewhere || !told.eq(self.terms.seeds.iter().map(Address::as_str)) {
            return Err(PeerRefusal::WrongCluster);
        }
        let founders = Founders {
            brokers: form.seeds.len() as u16,
            voters: form.seeds.iter().filter(|seed| seed.voter.is_some()).count() as u8,
        };
        // The lowest takes its place from nobody.
        let place = self.terms.place.filter(|place| *place > 0).ok_or(PeerRefusal::WrongBroker)?;
        let identity = self.placed_as(place, form.cluster, founders);
        if identity.broker != form.broker {
            return Err(PeerRefusal::WrongBroker);
        }
        let numbers = form.seeds.iter().zip(FOUNDER.0..).enumerate();
        let mut numbers = numbers.map(|(place, (seed, number))| {
            let votes = place < usize::from(founders.voters);
            let voter = votes.then_some(ReplicaId(number));
            (seed.broker, seed.voter) == (BrokerId(number), voter)
        });
        let is_whole = numbers.all(|fits| fits) && form.cluster != 0 && founders.is_possible();
        if is_whole { Ok(Some(identity)) } else { Err(PeerRefusal::Malformed) }
    }
}

#[cfg(test)]
mod tests;
