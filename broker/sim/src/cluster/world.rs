//! The machines of one simulation and the network between them.
//!
//! Owns: which hosts are machines, what each is seeded with, and the clients' clock.
//! Never: asks the operating system for time, chance or I/O: the same seed gives the same trace.
//! Invariant: brokers are hosts 1 to N; every other host is free for clients.

use super::machine::Machine;
use crate::clock::SimWallClock;
use crate::network::SimNetwork;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use weir_client::Client;
use weir_client::seams::Connector;

/// Brokers that run apart and die apart.
pub struct Cluster {
    seed: u64,
    network: SimNetwork,
    machines: BTreeMap<u8, Machine>,
    wall: Arc<SimWallClock>,
}

impl Cluster {
    /// So many machines with empty disks, none of which runs, each alone. Call it within the
    /// runtime, see [`crate::paused`].
    pub fn new(seed: u64, brokers: u8) -> Self {
        Self::of(seed, brokers, Vec::new())
    }

    /// So many machines with empty disks, none of which runs, that form one cluster when all do.
    /// Call it within the runtime, see [`crate::paused`].
    pub fn joined(seed: u64, brokers: u8) -> Self {
        Self::of(seed, brokers, (1..=brokers).collect())
    }

    fn of(seed: u64, brokers: u8, seeds: Vec<u8>) -> Self {
        let network = SimNetwork::new(seed);
        let machine =
            |number| (number, Machine::new(number, mix(seed, number), &network, seeds.clone()));
        let machines = (1..=brokers).map(machine).collect();
        Self { seed, machines, wall: SimWallClock::start(), network }
    }

    /// How many machines there are.
    pub fn brokers(&self) -> u8 {
        self.machines.len() as u8
    }

    /// The network, to break and to mend.
    pub fn network(&self) -> &SimNetwork {
        &self.network
    }

    /// Machine `number`, from 1.
    pub fn machine(&self, number: u8) -> &Machine {
        self.machines.get(&number).unwrap_or_else(|| {
            panic!("machine {number} of a cluster of {}", self.machines.len());
        })
    }

    /// Every machine, by number.
    pub fn machines(&self) -> impl Iterator<Item = (u8, &Machine)> {
        self.machines.iter().map(|(number, machine)| (*number, machine))
    }

    /// A client on `host` that knows these brokers. Give each client a host of its own: its choices
    /// follow from it.
    pub async fn client(&self, host: u8, brokers: &[u8]) -> weir_client::Result<Client> {
        self.client_over(self.network.host(host), host, brokers).await
    }

    /// The same over a way of its own into the network.
    pub(super) async fn client_over(
        &self,
        way: Arc<dyn Connector>,
        host: u8,
        brokers: &[u8],
    ) -> weir_client::Result<Client> {
        let endpoints = brokers.iter().map(|number| self.machine(*number).native());
        Client::builder()
            .endpoints(endpoints.map(|address| format!("weir://{address}")))
            .seed(mix(self.seed, host))
            .connector(way)
            .wall_clock(self.wall.clone())
            .connect()
            .await
    }

    /// Hash over every byte on the network with its time, and over what each disk did.
    pub fn trace(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.network.trace().hash(&mut hasher);
        for (number, machine) in &self.machines {
            (number, machine.disk().flushes(), machine.disk().changes()).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// A seed of its own for each host.
fn mix(seed: u64, host: u8) -> u64 {
    fastrand::Rng::with_seed(seed ^ (u64::from(host) << 48)).u64(..)
}
