//! A broker, its disk and a publisher, through crashes.
//!
//! Owns: one scenario: publish, crash, restart, publish on, read everything.
//! Never: asks the operating system for time, chance or I/O: the same seed gives the same trace.
//! Invariants (checked after every run): what was acknowledged is there once, in order, with its
//! content; nothing is there that was not published.

pub mod damage;

use crate::clock::SimWallClock;
use crate::disk::{Cut, SimDisk};
use crate::entropy::SimEntropy;
use crate::executor::SimExecutor;
use crate::network::SimNetwork;
use crate::runtime::paused;
use crate::trace::Trace;
use std::path::Path;
use std::sync::Arc;
use tokio::time::{Duration, Instant};
use weir_broker::{Broker, Config, Seams};
use weir_client::{Client, Message, Start, TopicConfig};

const TOPIC: &str = "sim";
const PRODUCER: &str = "publisher";
/// Publishes that are under way at a time.
const WINDOW: usize = 16;

/// What a run was and found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Hash over every event with its virtual time.
    pub trace: u64,
    /// Messages acknowledged over all eras.
    pub acknowledged: u64,
    /// Messages that were there in the end.
    pub stored: u64,
    /// Flushes of the simulated disk.
    pub flushes: u64,
}

/// One simulated world.
struct World {
    seed: u64,
    disk: SimDisk,
    random: fastrand::Rng,
    hash: u64,
    acknowledged: u64,
}

/// Runs `eras` eras, a crash after each but the last, and checks what is there in the end.
pub fn run(seed: u64, eras: u32) -> Outcome {
    let mut world = World::new(seed);
    for era in 0..eras {
        let lasts = Duration::from_micros(world.random.u64(20_000..400_000));
        let last = era + 1 == eras;
        world.era(u64::from(era), (!last).then_some(lasts));
        if !last {
            let seed = world.random.u64(..);
            world.disk.cut_power(Cut::KeepsSome(seed));
        }
    }
    let stored = world.read_all(u64::from(eras));
    assert!(
        stored >= world.acknowledged,
        "seed {seed}: {} messages were acknowledged, {stored} are there",
        world.acknowledged
    );
    let (trace, acknowledged) = (world.hash, world.acknowledged);
    Outcome { trace, acknowledged, stored, flushes: world.disk.flushes() }
}

impl World {
    fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed ^ 0x0077_6f72_6c64);
        Self { seed, disk: SimDisk::new(), random, hash: 0, acknowledged: 0 }
    }

    /// A runtime of its own for each era: dropping it is the end of every task, as SIGKILL is.
    fn in_runtime<T>(&mut self, era: u64, work: impl AsyncFnOnce(&mut Self, &mut Trace) -> T) -> T {
        let seed = self.seed.wrapping_mul(31).wrapping_add(era);
        let runtime = paused(seed);
        let outcome = runtime.block_on(async {
            let mut trace = Trace::start();
            let outcome = work(self, &mut trace).await;
            self.hash ^= trace.hash().rotate_left(era as u32);
            outcome
        });
        drop(runtime);
        outcome
    }

    async fn start(&self, era: u64) -> (Broker, Client) {
        // The broker and its client share one host.
        let host = SimNetwork::new(self.seed ^ era).host(1);
        let seams = Seams {
            disk: Arc::new(self.disk.clone()),
            executor: SimExecutor::new(self.seed ^ era),
            network: host.clone(),
            wall: SimWallClock::start(),
            entropy: SimEntropy::new(self.seed ^ (era << 32)),
            seed: self.seed ^ (era << 32),
            boot_id: u128::from(era) + 1,
        };
        let config = Config::embedded(Path::new("/data"));
        let broker = Broker::start(config, seams).await;
        let broker = broker.unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
        let client = Client::builder()
            .endpoints([format!("weir://{}", broker.addresses().native)])
            .seed(self.seed ^ era)
            .connector(host)
            .connect()
            .await;
        (broker, client.unwrap_or_else(|error| panic!("seed {}: {error}", self.seed)))
    }

    /// Publishes numbered messages until `lasts` has passed, or a few more without an end.
    fn era(&mut self, era: u64, lasts: Option<Duration>) {
        self.in_runtime(era, async |world, trace| {
            let (_broker, client) = world.start(era).await;
            if era == 0 {
                let config = TopicConfig::default();
                let made = client.create_topic(TOPIC, config).await;
                assert!(made.is_ok(), "seed {}: {made:?}", world.seed);
            }
            let deadline = Instant::now() + lasts.unwrap_or(Duration::from_secs(3_600));
            let count = if lasts.is_some() { u64::MAX } else { 500 };
            // The crash: what is under way is dropped wherever it stands.
            let _ = tokio::time::timeout_at(deadline, world.publish(&client, trace, count)).await;
        });
    }

    async fn publish(&mut self, client: &Client, trace: &mut Trace, count: u64) {
        let publisher = client.publisher(TOPIC).partition(0).idempotent(PRODUCER).build().await;
        let publisher = publisher.unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
        let next = publisher.next_sequence(0).await;
        let next = next.unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
        trace.note("resumed", next);
        assert!(
            next >= self.acknowledged,
            "seed {}: resumes at {next} although {} were acknowledged",
            self.seed,
            self.acknowledged
        );
        let mut receipts = std::collections::VecDeque::new();
        for number in next..next.saturating_add(count) {
            let message = Message::new(content(self.seed, number));
            let receipt = publisher.send(message).await;
            receipts.push_back((number, receipt.unwrap_or_else(|e| panic!("{number}: {e}"))));
            if receipts.len() >= WINDOW {
                self.acknowledge(&mut receipts, trace).await;
            }
        }
        while !receipts.is_empty() {
            self.acknowledge(&mut receipts, trace).await;
        }
    }

    async fn acknowledge(
        &mut self,
        receipts: &mut std::collections::VecDeque<(u64, weir_client::Receipt)>,
        trace: &mut Trace,
    ) {
        let Some((number, receipt)) = receipts.pop_front() else { return };
        let stored = receipt.await.unwrap_or_else(|error| panic!("message {number}: {error}"));
        assert_eq!(stored.offset, number, "seed {}: one record a sequence", self.seed);
        self.acknowledged = number + 1;
        trace.note("acknowledged", number);
    }

    /// Reads the topic and checks every message. Returns how many there are.
    fn read_all(&mut self, era: u64) -> u64 {
        self.in_runtime(era, async |world, trace| {
            let (_broker, client) = world.start(era).await;
            let reader = client.reader(TOPIC).from(Start::Earliest).subscribe().await;
            let mut reader = reader.unwrap_or_else(|error| panic!("seed {}: {error}", world.seed));
            let end = reader.end_offsets().get(&0).copied().unwrap_or(0);
            for number in 0..end {
                let message = reader.next().await;
                let message = message.unwrap_or_else(|| panic!("the reader ended at {number}"));
                let message = message.unwrap_or_else(|error| panic!("{number}: {error}"));
                assert_eq!(message.offset(), number, "seed {}", world.seed);
                assert_eq!(message.payload()[..], content(world.seed, number)[..], "{number}");
                trace.note("read", number);
            }
            end
        })
    }
}

/// The content of a message follows from its number.
fn content(seed: u64, number: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9));
    let len = random.usize(8..2_000);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}
