use super::core::{FlowCore, Signal, Signals, StreamKey};
use super::{PartitionKey, REVOKE_TICK};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use tokio::time::{Duration, Instant};
use weir_protocol::error_code::reason_bits;
use weir_protocol::limits::{BATCH_BYTES_TARGET, MESSAGE_COST_MIN};
use weir_protocol::types::{Name, PartitionId};

const POOL: u64 = 4 << 20;
const BATCH: u64 = BATCH_BYTES_TARGET as u64;

fn partition(number: u32) -> PartitionKey {
    PartitionKey { topic: Name::new("orders").unwrap(), partition: PartitionId(number) }
}

/// A client that obeys: it sends only what it was granted and answers revokes.
#[derive(Debug, Default, Clone)]
struct Client {
    epoch: u32,
    limit: u64,
    spent: u64,
    /// Cost of the batches that wait, in order.
    waiting: VecDeque<u64>,
    asked: bool,
    answers_revokes: bool,
    sent: u64,
}

impl Client {
    fn credit(&self) -> u64 {
        self.limit.saturating_sub(self.spent)
    }

    fn backlog(&self) -> u64 {
        self.waiting.iter().sum()
    }
}

/// The core with its clients, a disk that releases what is told to, and a clock.
struct World {
    core: FlowCore,
    now: Instant,
    signals: Signals,
    clients: BTreeMap<StreamKey, Client>,
    held: VecDeque<(StreamKey, u64)>,
    revokes: Vec<(StreamKey, u64)>,
    silenced: Vec<StreamKey>,
}

impl World {
    fn new(pool: u64) -> Self {
        Self {
            core: FlowCore::new(pool),
            now: Instant::now(),
            signals: Vec::new(),
            clients: BTreeMap::new(),
            held: VecDeque::new(),
            revokes: Vec::new(),
            silenced: Vec::new(),
        }
    }

    fn open(&mut self, number: u32) -> StreamKey {
        let key = self.core.open(partition(number), self.now, &mut self.signals);
        self.clients.insert(key, Client { answers_revokes: true, ..Client::default() });
        self.settle();
        key
    }

    /// Clients take in what they were told, and the promise of the pool is checked.
    fn settle(&mut self) {
        for (key, signal) in std::mem::take(&mut self.signals) {
            let Some(client) = self.clients.get_mut(&key) else { continue };
            match signal {
                Signal::Grant { grant, .. } => {
                    if grant.epoch == client.epoch {
                        assert!(grant.limit_cost >= client.limit, "a limit fell");
                    }
                    client.epoch = grant.epoch;
                    client.limit = client.limit.max(grant.limit_cost);
                    client.asked = false;
                }
                Signal::Revoke { revoke, grant } => {
                    assert_eq!(revoke.limit_cost, grant.limit_cost);
                    self.revokes.push((key, revoke.limit_cost));
                }
                Signal::Silent => {
                    self.silenced.push(key);
                    self.clients.remove(&key);
                }
            }
        }
        let unspent: u64 = self.core.keys().map(|k| self.core.peek(k).unwrap().unspent()).sum();
        assert_eq!(unspent, self.core.outstanding);
        assert_eq!(self.held.iter().map(|(_, cost)| cost).sum::<u64>(), self.core.reserved);
        assert!(unspent + self.core.reserved <= self.core.pool_cost);
    }

    /// The client sends what it may, asks for the rest, and sends what it then may.
    fn send(&mut self, key: StreamKey) {
        self.send_covered(key);
        let Some(client) = self.clients.get_mut(&key) else { return };
        let Some(&largest) = client.waiting.front() else { return };
        if !std::mem::replace(&mut client.asked, true) {
            let cost = client.backlog() - client.credit().min(client.backlog());
            self.core.demand(key, cost, largest, self.now, &mut self.signals);
            self.settle();
            self.send_covered(key);
        }
    }

    fn send_covered(&mut self, key: StreamKey) {
        while let Some(client) = self.clients.get_mut(&key) {
            let Some(&cost) = client.waiting.front() else { return };
            if cost > client.credit() {
                return;
            }
            client.waiting.pop_front();
            client.spent += cost;
            client.sent += cost;
            let behind = client.backlog();
            self.core.spend(key, cost, behind, self.now, &mut self.signals).expect("granted");
            self.held.push_back((key, cost));
            self.settle();
        }
    }

    fn answer_revokes(&mut self) {
        for (key, limit) in std::mem::take(&mut self.revokes) {
            let Some(client) = self.clients.get_mut(&key) else { continue };
            if !client.answers_revokes {
                continue;
            }
            client.limit = limit.max(client.spent);
            client.asked = false;
            self.core.revoked(key, client.spent, self.now, &mut self.signals);
            self.settle();
        }
    }

    /// The disk has stored the oldest `count` batches.
    fn store(&mut self, count: usize) {
        for _ in 0..count {
            let Some((key, cost)) = self.held.pop_front() else { return };
            self.core.release(key, cost, self.now, &mut self.signals);
            self.settle();
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += REVOKE_TICK;
            if self.core.needs_tick() {
                self.core.tick(self.now, &mut self.signals);
                self.settle();
            }
            self.answer_revokes();
        }
    }

    fn close(&mut self, key: StreamKey) {
        self.clients.remove(&key);
        self.core.close(key, self.now, &mut self.signals);
        self.settle();
    }
}

#[test]
fn a_lone_publisher_may_fill_nearly_the_whole_pool() {
    let mut world = World::new(POOL);
    let key = world.open(0);
    for _ in 0..1_000 {
        let client = world.clients.get_mut(&key).unwrap();
        client.waiting.resize(64, BATCH);
        world.send(key);
        assert!(world.core.reserved + BATCH > POOL * 15 / 16, "{} reserved", world.core.reserved);
        world.store(3);
    }
}

#[test]
fn sixteen_publishers_share_fairly_also_when_one_asks_for_more() {
    let mut world = World::new(POOL);
    let keys: Vec<StreamKey> = (0..16).map(|_| world.open(0)).collect();
    for _ in 0..2_000 {
        for (at, key) in keys.iter().enumerate() {
            // The first is greedy: larger batches, and more of them.
            let (count, cost) = if at == 0 { (256, BATCH) } else { (8, 32 << 10) };
            world.clients.get_mut(key).unwrap().waiting.resize(count, cost);
            world.send(*key);
        }
        world.store(8);
    }
    let sent: Vec<f64> = keys.iter().map(|key| world.clients[key].sent as f64).collect();
    let sum: f64 = sent.iter().sum();
    let jain = sum * sum / (16.0 * sent.iter().map(|s| s * s).sum::<f64>());
    assert!(jain >= 0.98, "Jain index {jain}: {sent:?}");
}

#[test]
fn ten_thousand_idle_streams_do_not_eat_the_pool() {
    let mut world = World::new(POOL);
    for number in 0..10_000 {
        world.open(number);
    }
    let busy = world.open(0);
    world.pass(Duration::from_secs(2));
    for _ in 0..60 {
        world.clients.get_mut(&busy).unwrap().waiting.resize(64, BATCH);
        world.send(busy);
        world.pass(REVOKE_TICK);
        world.send(busy);
        world.store(1);
    }
    assert!(world.core.reserved + 2 * BATCH > POOL, "{} reserved", world.core.reserved);
}

#[test]
fn large_batches_of_many_streams_never_lock_each_other_out() {
    let mut world = World::new(POOL);
    let keys: Vec<StreamKey> = (0..20).map(|_| world.open(0)).collect();
    for key in &keys {
        world.clients.get_mut(key).unwrap().waiting.resize(5, 3 << 20);
    }
    for _ in 0..1_000 {
        for key in &keys {
            world.send(*key);
        }
        world.store(1);
        world.pass(REVOKE_TICK);
    }
    assert!(world.clients.values().all(|client| client.waiting.is_empty()));
}

#[test]
fn a_peer_that_leaves_a_revoke_unanswered_loses_its_stream_and_nobody_starves() {
    let mut world = World::new(POOL);
    let stopped = world.open(0);
    world.core.demand(stopped, POOL, BATCH, world.now, &mut world.signals);
    world.settle();
    world.clients.get_mut(&stopped).unwrap().answers_revokes = false;
    let other = world.open(1);
    world.clients.get_mut(&other).unwrap().waiting.push_back(BATCH);
    world.send(other);
    assert_eq!(world.clients[&other].sent, 0, "the pool is out");
    world.pass(Duration::from_secs(4));
    world.send(other);
    assert_eq!(world.clients[&other].sent, BATCH);
    assert_eq!(world.silenced, [stopped]);
}

#[test]
fn a_blocked_partition_gets_no_credit_and_its_publishers_learn_why() {
    let mut world = World::new(POOL);
    let (blocked, free) = (world.open(0), world.open(1));
    world.core.set_blocked(&partition(0), reason_bits::BACKLOG, world.now, &mut world.signals);
    for key in [blocked, free] {
        world.clients.get_mut(&key).unwrap().waiting.resize(100, BATCH);
        world.send(key);
    }
    // It may still use what it had been granted before, and not a byte more.
    assert_eq!(world.core.grant(blocked).limit_cost, 64 << 10);
    assert_eq!(world.core.grant(blocked).reason_bits, reason_bits::BACKLOG);
    assert!(world.clients[&free].sent > POOL / 2, "the other partition goes on");
    world.now += Duration::from_secs(5);
    let times: BTreeMap<_, _> = world.core.blocked_times(world.now).collect();
    let backlog = |number| {
        let times = times[&partition(number)];
        times.by_reason().find(|(reason, _)| *reason == "backlog").unwrap().1
    };
    assert_eq!((backlog(0), backlog(1)), (Duration::from_secs(5), Duration::ZERO));
    world.core.set_blocked(&partition(0), 0, world.now, &mut world.signals);
    world.settle();
    for _ in 0..20 {
        world.store(1);
        world.send(free);
        world.send(blocked);
    }
    assert!(world.clients[&blocked].sent > 0, "it resumes");
}

#[test]
fn credit_that_is_less_than_the_next_batch_does_not_hide_that_a_publisher_waits() {
    let mut world = World::new(POOL);
    let key = world.open(0);
    let (cost, now) = (40 << 10, world.now);
    world.core.set_blocked(&partition(0), reason_bits::BACKLOG, now, &mut world.signals);
    world.signals.clear();
    world.core.spend(key, cost, 1 << 20, now, &mut world.signals).unwrap();
    let told = world.signals.iter().any(|(to, signal)| match signal {
        Signal::Grant { grant, .. } => *to == key && grant.reason_bits == reason_bits::BACKLOG,
        Signal::Revoke { .. } | Signal::Silent => false,
    });
    assert!(told, "the answer of the batch says why there is no more");
    let times = world.core.blocked_times(now + Duration::from_secs(3)).next().unwrap().1;
    let backlog = times.by_reason().find(|(reason, _)| *reason == "backlog").unwrap().1;
    assert_eq!(backlog, Duration::from_secs(3), "24 KiB are left, and the next batch is larger");
}

#[test]
fn a_drained_broker_grants_nothing_and_says_so() {
    let mut world = World::new(POOL);
    let key = world.open(0);
    world.core.drain(world.now, &mut world.signals);
    world.clients.get_mut(&key).unwrap().waiting.resize(100, BATCH);
    world.send(key);
    assert_eq!(world.core.grant(key).limit_cost, 64 << 10);
    assert_eq!(world.core.grant(key).reason_bits, reason_bits::DRAINING);
    let late = world.open(0);
    assert_eq!(world.core.grant(late).limit_cost, 0);
}

#[test]
fn spending_beyond_the_grant_is_refused_and_changes_nothing() {
    let mut world = World::new(POOL);
    let key = world.open(0);
    let limit = world.clients[&key].limit;
    let refused = world.core.spend(key, limit + 1, 0, world.now, &mut world.signals);
    assert_eq!(refused.map_err(|o| (o.cost, o.spent, o.limit)), Err((limit + 1, 0, limit)));
    assert_eq!(world.core.reserved, 0);
    world.core.spend(key, limit, 0, world.now, &mut world.signals).expect("all of it");
}

#[test]
fn a_single_slow_publisher_never_has_to_ask() {
    let mut world = World::new(POOL);
    let key = world.open(0);
    for _ in 0..10_000 {
        let client = world.clients.get_mut(&key).unwrap();
        assert!(client.credit() >= 1_100);
        client.spent += 1_100;
        world.core.spend(key, 1_100, 0, world.now, &mut world.signals).expect("granted");
        world.held.push_back((key, 1_100));
        world.settle();
        world.store(1);
    }
}

#[test]
fn credit_that_a_client_gives_back_unasked_returns_once_it_was_asked() {
    let mut world = World::new(POOL);
    let key = world.open(0);
    world.core.revoked(key, 0, world.now, &mut world.signals);
    world.settle();
    assert_eq!(world.core.outstanding, 64 << 10, "a grant may be on its way");
    world.answer_revokes();
    assert_eq!(world.core.outstanding, 0);
    world.clients.get_mut(&key).unwrap().waiting.push_back(BATCH);
    world.send(key);
    assert_eq!(world.clients[&key].sent, BATCH);
}

#[derive(Debug, Clone)]
enum Step {
    Open(u32),
    Offer(prop::sample::Index, u64, usize),
    Send(prop::sample::Index),
    Store(usize),
    Block(u32, bool),
    Pass(u64),
    Close(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..4u32).prop_map(Step::Open),
        6 => (any::<prop::sample::Index>(), MESSAGE_COST_MIN..1 << 20, 1..8usize)
            .prop_map(|(who, cost, count)| Step::Offer(who, cost, count)),
        8 => any::<prop::sample::Index>().prop_map(Step::Send),
        8 => (1..4usize).prop_map(Step::Store),
        1 => (0..4u32, any::<bool>()).prop_map(|(number, on)| Step::Block(number, on)),
        2 => (1..3_000u64).prop_map(Step::Pass),
        1 => any::<prop::sample::Index>().prop_map(Step::Close),
    ]
}

impl World {
    fn any(&self, index: prop::sample::Index) -> Option<StreamKey> {
        let keys: Vec<StreamKey> = self.clients.keys().copied().collect();
        (!keys.is_empty()).then(|| *index.get(&keys))
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open(number) => {
                self.open(number);
            }
            Step::Offer(who, cost, count) => {
                let Some(key) = self.any(who) else { return };
                let client = self.clients.get_mut(&key).unwrap();
                client.waiting.extend(std::iter::repeat_n(cost, count));
                client.asked = false;
            }
            Step::Send(who) => {
                if let Some(key) = self.any(who) {
                    self.send(key);
                }
            }
            Step::Store(count) => self.store(count),
            Step::Block(number, on) => {
                let bits = if on { reason_bits::DISK } else { 0 };
                self.core.set_blocked(&partition(number), bits, self.now, &mut self.signals);
                self.settle();
            }
            Step::Pass(ms) => self.pass(Duration::from_millis(ms)),
            Step::Close(who) => {
                if let Some(key) = self.any(who) {
                    self.close(key);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, the pool holds (checked at every step), everybody who waits is served
    /// once the disk stores and the partitions take, and all credit returns in the end.
    #[test]
    fn the_pool_holds_nobody_starves_and_credit_returns(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::new(2 << 20);
        for step in steps {
            world.step(step);
        }
        for number in 0..4 {
            world.core.set_blocked(&partition(number), 0, world.now, &mut world.signals);
            world.settle();
        }
        for _ in 0..4_000 {
            if world.clients.values().all(|client| client.waiting.is_empty()) {
                break;
            }
            let keys: Vec<StreamKey> = world.clients.keys().copied().collect();
            for key in keys {
                world.send(key);
            }
            world.store(4);
            world.pass(REVOKE_TICK);
        }
        prop_assert!(world.clients.values().all(|c| c.waiting.is_empty()), "somebody starves");
        while !world.held.is_empty() {
            world.store(1);
        }
        let keys: Vec<StreamKey> = world.clients.keys().copied().collect();
        for key in keys {
            world.close(key);
        }
        prop_assert_eq!((world.core.outstanding, world.core.reserved, world.core.revoking), (0, 0, 0));
        prop_assert!(!world.core.needs_tick());
        let starved = world.core.partitions.values().map(|p| p.clock.starved()).sum::<u32>();
        prop_assert_eq!(starved, 0);
    }
}
