use super::*;
use weir_protocol::types::Name;

const NODES: usize = 3;

fn seeds(count: usize) -> Vec<Address> {
    (0..count).map(|n| Address::new(&format!("b{n}:7422")).unwrap()).collect()
}

fn terms(place: Option<usize>, cluster: u128) -> Terms {
    Terms { seeds: seeds(NODES), place, voters: 0, cluster, seeds_hash: 5 }
}

fn empty(token: u128) -> Identity {
    Identity {
        broker: BrokerId(0),
        cluster: 0,
        state: MemberState::Empty,
        token,
        founders: Founders::default(),
        metadata_replica: ReplicaId(0),
        is_opened: false,
    }
}

fn member(cluster: u128) -> Identity {
    Identity { broker: BrokerId(1), cluster, state: MemberState::Member, ..empty(1) }
}

fn probed(identity: &Identity) -> Probed {
    Probed {
        request: RequestId(0),
        cluster: identity.cluster,
        broker: identity.broker,
        state: identity.state,
        expect: NODES as u16,
        seeds_hash: 5,
        gate: GATE_CLUSTER,
        client_address: String::new(),
        peer_address: String::new(),
        rack: None,
        name: Name::new("b").unwrap(),
    }
}

/// Several brokers, and everything that may happen to them.
#[derive(Clone)]
struct World {
    now: Instant,
    nodes: Vec<Formation>,
    /// FORMs on their way.
    forms: Vec<(usize, Form)>,
    /// What the cluster has told brokers without an id.
    known: BTreeMap<u128, BrokerId>,
    /// How often a data directory may still be lost.
    wipes: usize,
    /// Directories there have been.
    tokens: u128,
}

impl World {
    fn of(now: Instant, identities: [Identity; NODES], wipes: usize) -> Self {
        let node = |(n, identity)| Formation::new(terms(Some(n), 0xC0 + n as u128), identity);
        let nodes = identities.into_iter().enumerate().map(node).collect();
        Self { now, nodes, forms: Vec::new(), known: BTreeMap::new(), wipes, tokens: 10 }
    }

    fn empty(now: Instant, wipes: usize) -> Self {
        Self::of(now, [1, 2, 3].map(empty), wipes)
    }

    /// All that decides what can happen from here on.
    fn key(&self) -> Vec<u8> {
        let mut key = vec![self.wipes as u8];
        for node in &self.nodes {
            let Identity { cluster, broker, state, token, .. } = node.identity;
            let placed = node.placed.iter().fold(0, |bits, seed| bits | 1 << seed);
            key.extend([token as u8, state as u8, broker.0 as u8, placed]);
            key.extend(&cluster.to_le_bytes()[..2]);
            for (seed, heard) in &node.heard {
                key.extend([*seed as u8, heard.state as u8]);
                key.extend(&heard.cluster.to_le_bytes()[..2]);
            }
            key.push(u8::MAX);
        }
        for (to, form) in &self.forms {
            key.push(*to as u8);
            key.extend(&form.cluster.to_le_bytes()[..2]);
        }
        key.push(u8::MAX);
        key.extend(self.known.iter().flat_map(|(token, id)| [*token as u8, id.0 as u8]));
        key
    }

    /// The process of a broker ends and starts anew with what is durable.
    fn restart(&mut self, n: usize, identity: Identity) {
        let terms = self.nodes[n].terms.clone();
        self.nodes[n] = Formation::new(terms, identity);
    }

    /// Every way in which what a broker shall do may go, with what it answered.
    fn carry_out(self, n: usize, effects: Vec<Effect>) -> Vec<(Self, Option<bool>)> {
        let mut worlds = vec![(self, None)];
        for effect in effects {
            let mut next = Vec::new();
            for (mut world, answer) in worlds {
                match &effect {
                    Effect::Store(identity) => {
                        for durable in [world.nodes[n].identity(), *identity] {
                            let mut crashed = world.clone();
                            crashed.restart(n, durable);
                            next.push((crashed, None));
                        }
                        let effects = world.nodes[n].handle(Event::Stored, world.now);
                        let carried = world.carry_out(n, effects);
                        next.extend(carried);
                        continue;
                    }
                    Effect::Form(to, form) => {
                        let under_way = world.forms.iter().any(|sent| sent == &(*to, form.clone()));
                        if !under_way {
                            world.forms.push((*to, form.clone()));
                            world.forms.sort_by_key(|(to, form)| (*to, form.cluster));
                        }
                        next.push((world, answer));
                    }
                    Effect::Answer(result) => next.push((world, Some(result.is_ok()))),
                    Effect::Join { seed, cluster } => {
                        let there = world.nodes[*seed].identity();
                        if (there.state, there.cluster) == (MemberState::Member, *cluster) {
                            let token = world.nodes[n].identity().token;
                            let id = BrokerId(world.known.len() as u64 + 4);
                            let broker = *world.known.entry(token).or_insert(id);
                            // The answer is lost.
                            next.push((world.clone(), None));
                            let joined = Event::Joined { cluster: *cluster, broker };
                            let effects = world.nodes[n].handle(joined, world.now);
                            next.extend(world.carry_out(n, effects));
                        } else {
                            next.push((world, answer));
                        }
                    }
                    Effect::Probe(_) => next.push((world, answer)),
                }
            }
            worlds = next;
        }
        worlds
    }

    fn tell(mut self, n: usize, event: Event, at: Instant) -> Vec<(Self, Option<bool>)> {
        let effects = self.nodes[n].handle(event, at);
        self.carry_out(n, effects)
    }

    /// A FORM arrives, and its answer does or does not.
    fn deliver(&self, sent: usize) -> Vec<Self> {
        let mut world = self.clone();
        let (to, form) = world.forms.remove(sent);
        let cluster = form.cluster;
        let now = world.now;
        let mut worlds = Vec::new();
        for (world, answer) in world.tell(to, Event::Form(form), now) {
            let founder = world.nodes[0].identity();
            if answer == Some(true) && founder.cluster == cluster {
                let heard = world.clone().tell(0, Event::Formed(to, Ok(())), now);
                worlds.extend(heard.into_iter().map(|(world, _)| world));
            }
            worlds.push(world);
        }
        worlds
    }

    fn probe(&self, n: usize, seed: usize) -> Vec<Self> {
        let probed = probed(&self.nodes[seed].identity());
        let told = self.clone().tell(n, Event::Probed(seed, probed), self.now);
        told.into_iter().map(|(world, _)| world).collect()
    }

    /// Everything that may happen next.
    fn successors(&self) -> Vec<Self> {
        let mut worlds = Vec::new();
        for n in 0..NODES {
            if !self.nodes[n].is_done() {
                for seed in (0..NODES).filter(|seed| *seed != n) {
                    worlds.extend(self.probe(n, seed));
                }
                // Nothing is forgotten where nothing is known.
                let knows = !self.nodes[n].heard.is_empty();
                for at in [self.now].into_iter().chain(knows.then(|| self.now + HEARD_FOR)) {
                    let ticked = self.clone().tell(n, Event::Tick, at);
                    worlds.extend(ticked.into_iter().map(|(world, _)| world));
                }
                if knows || !self.nodes[n].placed.is_empty() {
                    let mut crashed = self.clone();
                    crashed.restart(n, self.nodes[n].identity());
                    worlds.push(crashed);
                }
            }
            if self.wipes > 0 {
                let mut wiped = self.clone();
                (wiped.wipes, wiped.tokens) = (self.wipes - 1, self.tokens + 1);
                wiped.nodes[n].terms.cluster += 0x100;
                wiped.restart(n, empty(wiped.tokens));
                worlds.push(wiped);
            }
        }
        for sent in 0..self.forms.len() {
            worlds.extend(self.deliver(sent));
            let mut lost = self.clone();
            lost.forms.remove(sent);
            worlds.push(lost);
        }
        worlds
    }

    /// One round in which everybody reaches everybody and nobody crashes.
    fn good_round(mut self) -> Self {
        for n in 0..NODES {
            for seed in (0..NODES).filter(|seed| *seed != n) {
                // The last way is the one without a crash.
                self = self.probe(n, seed).pop().unwrap();
            }
            let now = self.now;
            self = self.tell(n, Event::Tick, now).pop().unwrap().0;
            while !self.forms.is_empty() {
                let mut delivered = self.deliver(0);
                // The very last lost its answer; it is heard in the one before, if it was given.
                let lost = delivered.pop().unwrap();
                let heard = delivered.pop().filter(|world| world.forms == lost.forms);
                self = heard.unwrap_or(lost);
            }
        }
        self
    }

    fn clusters(&self) -> BTreeSet<u128> {
        let nodes = self.nodes.iter().map(Formation::identity);
        let members = nodes.filter(|identity| identity.state == MemberState::Member);
        members.map(|identity| identity.cluster).collect()
    }

    fn check(&self) {
        let clusters = self.clusters();
        assert!(clusters.len() <= 1, "two clusters: {:?}", self.nodes);
        let ids = self.nodes.iter().map(Formation::identity).filter(|i| i.cluster != 0);
        let ids: Vec<_> = ids.map(|identity| (identity.cluster, identity.broker)).collect();
        let distinct: BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "one id twice: {:?}", self.nodes);
    }
}

/// Visits every world that can be reached.
fn explore(first: World, mut visit: impl FnMut(&World)) -> usize {
    let mut seen = BTreeSet::from([first.key()]);
    let mut open = vec![first];
    while let Some(world) = open.pop() {
        world.check();
        visit(&world);
        open.extend(world.successors().into_iter().filter(|next| seen.insert(next.key())));
    }
    seen.len()
}

/// Worlds that are known to end well.
#[derive(Default)]
struct Good(BTreeSet<Vec<u8>>);

impl Good {
    /// Everybody becomes a member of one cluster once all are there.
    fn ends(&mut self, world: &World) {
        let (mut later, mut passed) = (world.clone(), Vec::new());
        while !later.nodes.iter().all(Formation::is_done) {
            let key = later.key();
            if self.0.contains(&key) {
                break;
            }
            passed.push(key);
            assert!(passed.len() < 12, "{:?} -> {:?}", world.nodes, later.nodes);
            later = later.good_round();
            later.check();
        }
        self.0.extend(passed);
    }
}

#[test]
fn whatever_crashes_and_is_lost_on_the_way_there_is_one_cluster_in_the_end() {
    let (mut good, mut members_seen) = (Good::default(), 0);
    let worlds = explore(World::empty(Instant::now(), 0), |world| {
        good.ends(world);
        if let Some(cluster) = world.clusters().first() {
            members_seen += 1;
            let same = |node: &Formation| node.identity().cluster == *cluster;
            assert!(world.nodes.iter().all(same), "a member before all have a place");
        }
    });
    assert!(worlds > 300 && members_seen > 10, "{worlds} worlds, {members_seen} with members");
}

#[test]
fn a_directory_that_is_lost_never_makes_a_second_cluster() {
    let (mut good, mut rejoined) = (Good::default(), 0);
    let worlds = explore(World::empty(Instant::now(), 1), |world| {
        let is_wiped = world.nodes.iter().any(|node| node.identity().token > 10);
        if is_wiped && !world.clusters().is_empty() {
            good.ends(world);
            rejoined += usize::from(!world.known.is_empty());
        }
    });
    assert!(worlds > 3_000 && rejoined > 10, "{worlds} worlds, {rejoined} joined anew");
}

#[test]
fn a_broker_with_data_lets_the_others_join_wherever_it_stands() {
    for place in 0..NODES {
        let mut identities = [1, 2, 3].map(empty);
        identities[place] = member(0x77);
        let first = World::of(Instant::now(), identities, 0);
        let mut good = Good::default();
        let worlds = explore(first, |world| {
            good.ends(world);
            assert_eq!(world.clusters(), [0x77].into());
        });
        assert!(worlds > 20, "{worlds} worlds");
    }
}

#[test]
fn what_was_heard_too_long_ago_does_not_count() {
    let now = Instant::now();
    let mut lowest = Formation::new(terms(Some(0), 7), empty(1));
    let told = probed(&empty(2));
    assert_eq!(lowest.handle(Event::Probed(1, told.clone()), now), []);
    let late = now + HEARD_FOR;
    assert_eq!(lowest.handle(Event::Probed(2, told.clone()), late), []);
    assert_eq!(lowest.concern(), Some(Concern::Silent("b1:7422".into())));
    let effects = lowest.handle(Event::Probed(1, told), late);
    let [Effect::Store(identity)] = effects[..] else { panic!("{effects:?}") };
    assert_eq!((identity.cluster, identity.broker), (7, FOUNDER));
    assert_eq!(identity.founders, Founders { brokers: 3, voters: 3 });
}

#[test]
fn only_like_minded_brokers_of_this_build_form_a_cluster() {
    let now = Instant::now();
    let of = |change: fn(&mut Probed)| {
        let mut lowest = Formation::new(terms(Some(0), 7), empty(1));
        let mut other = probed(&empty(2));
        lowest.handle(Event::Probed(2, other.clone()), now);
        change(&mut other);
        (lowest.handle(Event::Probed(1, other), now), lowest.concern())
    };
    let seed = || "b1:7422".to_owned();
    assert_eq!(of(|other| other.expect = 4), (vec![], Some(Concern::OtherSeeds(seed()))));
    assert_eq!(of(|other| other.seeds_hash = 6), (vec![], Some(Concern::OtherSeeds(seed()))));
    assert_eq!(of(|other| other.gate = 0), (vec![], Some(Concern::TooOld(seed()))));
    let half = |other: &mut Probed| (other.state, other.cluster) = (MemberState::Forming, 9);
    let concern = Concern::HalfFormed { seed: seed(), cluster: 9 };
    assert_eq!(of(half), (vec![], Some(concern)));
    let (effects, concern) = of(|_| ());
    assert!(matches!(effects[..], [Effect::Store(_)]), "{effects:?}");
    assert_ne!(concern, Some(Concern::OtherSeeds(seed())));
}

#[test]
fn who_finds_two_clusters_joins_neither() {
    let now = Instant::now();
    let mut newcomer = Formation::new(terms(None, 7), empty(1));
    newcomer.handle(Event::Probed(0, probed(&member(8))), now);
    let join = Effect::Join { seed: 0, cluster: 8 };
    assert!(newcomer.handle(Event::Tick, now).contains(&join));
    newcomer.handle(Event::Probed(2, probed(&member(9))), now);
    let effects = newcomer.handle(Event::Tick, now);
    assert!(effects.iter().all(|effect| matches!(effect, Effect::Probe(_))), "{effects:?}");
    let concern = Concern::OtherCluster { seed: "b2:7422".into(), cluster: 9 };
    assert_eq!(newcomer.concern(), Some(concern));
}

#[test]
fn a_place_is_taken_only_as_it_was_agreed_on() {
    let now = Instant::now();
    let mut lowest = Formation::new(terms(Some(0), 7), empty(1));
    for seed in [1, 2] {
        lowest.handle(Event::Probed(seed, probed(&empty(2))), now);
    }
    let effects = lowest.handle(Event::Stored, now);
    let good = effects.iter().find_map(|effect| match effect {
        Effect::Form(2, form) => Some(form.clone()),
        _ => None,
    });
    let good = good.unwrap();
    let answer = |form: Form, place| {
        let mut node = Formation::new(terms(place, 8), empty(3));
        let effects = node.handle(Event::Form(form), now);
        match effects[..] {
            [Effect::Answer(answer)] => answer.map(|()| node.identity()),
            [Effect::Store(identity)] => Ok(identity),
            _ => panic!("{effects:?}"),
        }
    };
    let placed = answer(good.clone(), Some(2)).unwrap();
    assert_eq!((placed.broker, placed.metadata_replica), (BrokerId(3), ReplicaId(3)));
    assert_eq!((placed.cluster, placed.state), (7, MemberState::Forming));
    assert_eq!(answer(good.clone(), Some(1)), Err(PeerRefusal::WrongBroker));
    assert_eq!(answer(good.clone(), Some(0)), Err(PeerRefusal::WrongBroker));
    assert_eq!(answer(good.clone(), None), Err(PeerRefusal::WrongBroker));
    let mut other = good.clone();
    other.seeds[0].peer_address = "elsewhere:1".into();
    assert_eq!(answer(other, Some(2)), Err(PeerRefusal::WrongCluster));
    let mut other = good.clone();
    other.seeds[1].broker = BrokerId(9);
    assert_eq!(answer(other, Some(2)), Err(PeerRefusal::Malformed));
    let mut other = good.clone();
    other.seeds[1].voter = None;
    assert_eq!(answer(other, Some(2)), Err(PeerRefusal::Malformed));
    assert_eq!(answer(Form { cluster: 0, ..good.clone() }, Some(2)), Err(PeerRefusal::Malformed));

    let mut forming = Formation::new(terms(Some(2), 8), placed);
    let again = forming.handle(Event::Form(good.clone()), now);
    assert_eq!(again, [Effect::Answer(Ok(()))]);
    let foreign = forming.handle(Event::Form(Form { cluster: 9, ..good }), now);
    assert_eq!(foreign, [Effect::Answer(Err(PeerRefusal::WrongCluster))]);
}

#[test]
fn a_single_seed_forms_its_cluster_at_once() {
    let now = Instant::now();
    let terms = Terms { seeds: seeds(1), ..terms(Some(0), 7) };
    let mut alone = Formation::new(terms, empty(1));
    let effects = alone.handle(Event::Tick, now);
    assert!(matches!(effects[..], [Effect::Store(_)]), "{effects:?}");
    let effects = alone.handle(Event::Stored, now);
    assert!(matches!(effects[..], [Effect::Store(_)]), "{effects:?}");
    assert_eq!(alone.handle(Event::Stored, now), []);
    assert!(alone.is_done());
    assert_eq!(alone.identity().founders, Founders { brokers: 1, voters: 1 });
}
