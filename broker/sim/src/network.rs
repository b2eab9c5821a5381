//! A network within the process: byte streams between simulated hosts.
//!
//! Owns: the hosts' listeners, the links between them, every stream, and a hash over every byte
//! that was ever sent, with the virtual time: who compares it compares two runs to the byte.
//! Never: loses or reorders bytes of a stream that stands (TCP does not either); lets one end know
//! what happened at the other before the link between them has brought it.
//! Invariant: what a stream holds in one direction is bounded, in flight and arrived together.

mod faults;
mod host;
mod link;
mod pipe;
mod stream;

pub use host::{SimHost, address_of};
pub use link::Conditions;
pub use stream::SimStream;

use link::Link;
use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stream::Connection;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// The network of one simulation. Cheap to clone.
#[derive(Clone)]
pub struct SimNetwork(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Raised whenever a link is healed or a stream's end is given up.
    changed: watch::Sender<()>,
}

struct State {
    began: Instant,
    random: fastrand::Rng,
    /// From one host to another.
    links: BTreeMap<(u8, u8), Link>,
    listeners: BTreeMap<SocketAddr, mpsc::Sender<(SimStream, SocketAddr)>>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    next_port: u16,
    sent: DefaultHasher,
}

impl SimNetwork {
    /// A network whose delays follow from `seed`. Call it within the runtime.
    pub fn new(seed: u64) -> Self {
        let state = State {
            began: Instant::now(),
            random: fastrand::Rng::with_seed(seed ^ 0x6e65_7477_6f72_6b00),
            links: BTreeMap::new(),
            listeners: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
            next_port: 0,
            sent: DefaultHasher::new(),
        };
        let changed = watch::Sender::new(());
        Self(Arc::new(Shared { state: Mutex::new(state), changed }))
    }

    /// Host `number`, at [`address_of`] it: what a broker or a client on it sees of the network.
    pub fn host(&self, number: u8) -> Arc<SimHost> {
        assert!((1..=254).contains(&number), "hosts are numbered 1 to 254: {number}");
        Arc::new(SimHost { network: self.clone(), number })
    }

    /// Hash over all that was sent so far: when, on which stream, which bytes.
    pub fn trace(&self) -> u64 {
        self.state().sent.finish()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn link(&mut self, from: u8, to: u8) -> &mut Link {
        self.links.entry((from, to)).or_insert_with(|| Link::between(from, to))
    }

    /// When `bytes` that leave now arrive.
    fn arrival(&mut self, from: u8, to: u8, bytes: usize, now: Instant) -> Instant {
        let jitter = self.random.f64();
        self.link(from, to).arrival(now, bytes, jitter)
    }

    fn note(&mut self, now: Instant, connection: u64, side: usize, bytes: &[u8]) {
        let at = now.duration_since(self.began).as_nanos();
        (at, connection, side, bytes).hash(&mut self.sent);
    }

    fn pick_port(&mut self) -> u16 {
        self.next_port = (self.next_port + 1) % 40_000;
        20_000 + self.next_port
    }
}

#[cfg(test)]
mod tests;
