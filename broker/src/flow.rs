//! Who may send how much: publish credit, granted out of one static pool per device.
//!
//! Owns: the pool, every publisher stream's grant, the reservations that travel with the data.
//! Never: waits, and never takes credit back without the client's answer.
//! Invariants: see `core`; here: signals reach a stream's outbox in the order in which the core
//! made them, because they are handed over under the core's lock (the order of locks is flow,
//! then outbox).
//!
//! The life of credit: granted to a stream (`open`, `demand`) → spent by a publish into a
//! [`Reservation`] → released when that is dropped, which serves the streams that wait.

mod blocked;
mod core;
mod revoke;
mod ring;
mod stream;
#[cfg(test)]
mod tests;
mod view;

pub use blocked::BlockedTimes;
pub use core::Overspend;
pub use view::{BlockedPublisher, FlowView, PartitionFlow};

use crate::connection::outbox::GrantRegister;
use core::{FlowCore, Signal, Signals, StreamKey};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};
use weir_protocol::frame::{Grant, Refusal};
use weir_protocol::types::{Name, PartitionId};

/// Default size of a device's pool, cost.
pub const POOL_COST_DEFAULT: u64 = 4 << 20;
/// A publisher may send this much before it has asked for anything.
pub const INITIAL_GRANT_COST: u64 = 64 << 10;
/// The least that one turn in the ring is worth.
pub const GRANT_QUANTUM_COST: u64 = 16 << 10;
/// Parked credit is looked for this often while somebody waits.
pub const REVOKE_TICK: Duration = Duration::from_millis(50);

const _: () = assert!(GRANT_QUANTUM_COST <= INITIAL_GRANT_COST);
const _: () = assert!(INITIAL_GRANT_COST <= POOL_COST_DEFAULT);

/// The partition that a stream publishes to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey {
    /// Its topic.
    pub topic: Name,
    /// Its number.
    pub partition: PartitionId,
}

/// Flow control over the publishers of one device.
pub struct Flow {
    pool_cost: u64,
    state: Mutex<State>,
    /// Told when ticks become due.
    tick_due: Notify,
}

struct State {
    core: FlowCore,
    /// By the slot of the stream.
    registers: Vec<Option<GrantRegister>>,
    signals: Signals,
    ticking: bool,
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow").field("pool_cost", &self.pool_cost).finish_non_exhaustive()
    }
}

impl Flow {
    /// Flow control over a pool of `pool_cost`. [`Flow::run_ticks`] must run beside it.
    pub fn new(pool_cost: u64) -> Arc<Self> {
        let state = State {
            core: FlowCore::new(pool_cost),
            registers: Vec::new(),
            signals: Vec::new(),
            ticking: false,
        };
        Arc::new(Self { pool_cost, state: Mutex::new(state), tick_due: Notify::new() })
    }

    /// Size of the pool, cost: no more than this is ever granted or held.
    pub fn pool_cost(&self) -> u64 {
        self.pool_cost
    }

    /// Opens a stream; its initial grant goes into `register` at once.
    pub fn open(self: &Arc<Self>, partition: PartitionKey, register: GrantRegister) -> FlowStream {
        let now = Instant::now();
        let mut state = self.lock();
        let State { core, registers, signals, .. } = &mut *state;
        let key = core.open(partition, now, signals);
        let slot = key.slot as usize;
        if registers.len() <= slot {
            registers.resize_with(slot + 1, || None);
        }
        registers[slot] = Some(register);
        self.hand_over(&mut state);
        FlowStream { flow: Arc::clone(self), key }
    }

    /// The partition takes no more for these reasons (`reason_bits::{BACKLOG, DISK}`): its
    /// publishers get no new credit. The bits replace those of an earlier call.
    pub fn block(&self, partition: &PartitionKey, reason_bits: u32) {
        self.call(|core, now, signals| core.set_blocked(partition, reason_bits, now, signals));
    }

    /// The partition takes all again.
    pub fn unblock(&self, partition: &PartitionKey) {
        self.call(|core, now, signals| core.set_blocked(partition, 0, now, signals));
    }

    /// The partition is served elsewhere: the streams of its publishers end with this. Their unspent
    /// credit returns; what they spent is reserved until it is answered.
    pub fn end(&self, partition: &PartitionKey, refusal: &Refusal) {
        let now = Instant::now();
        let mut state = self.lock();
        let State { core, registers, signals, .. } = &mut *state;
        for key in core.streams_of(partition) {
            core.close(key, now, signals);
            if let Some(register) = registers[key.slot as usize].take() {
                register.end(refusal.clone());
            }
        }
        self.hand_over(&mut state);
    }

    /// The partition is gone for ever.
    pub fn forget(&self, partition: &PartitionKey) {
        self.call(|core, _, _| core.forget(partition));
    }

    /// The broker shuts down: no new credit for anybody.
    pub fn drain(&self) {
        self.call(|core, now, signals| core.drain(now, signals));
    }

    /// Who holds and who waits, now. At most `waiting_max` publishers are listed by name.
    pub fn view(&self, waiting_max: usize) -> FlowView {
        let now = Instant::now();
        let state = self.lock();
        let whose = |key: StreamKey| state.registers[key.slot as usize].as_ref();
        view::view(&state.core, now, waiting_max, whose)
    }

    /// How long publishers of each topic wanted to send and could not, by reason, since start.
    pub fn blocked_times(&self) -> BTreeMap<Name, BlockedTimes> {
        let now = Instant::now();
        let state = self.lock();
        let mut topics = BTreeMap::new();
        for (key, times) in state.core.blocked_times(now) {
            topics.entry(key.topic.clone()).or_insert_with(BlockedTimes::default).add(&times);
        }
        topics
    }

    /// Looks for parked credit while somebody waits. Runs until it is cancelled.
    pub async fn run_ticks(self: Arc<Self>) {
        loop {
            self.tick_due.notified().await;
            loop {
                tokio::time::sleep(REVOKE_TICK).await;
                self.call(|core, now, signals| core.tick(now, signals));
                let mut state = self.lock();
                if !state.core.needs_tick() {
                    state.ticking = false;
                    break;
                }
            }
        }
    }

    fn call<T>(&self, change: impl FnOnce(&mut FlowCore, Instant, &mut Signals) -> T) -> T {
        let now = Instant::now();
        let mut state = self.lock();
        let State { core, signals, .. } = &mut *state;
        let result = change(core, now, signals);
        self.hand_over(&mut state);
        result
    }

    fn hand_over(&self, state: &mut State) {
        for (key, signal) in state.signals.drain(..) {
            let Some(register) = &state.registers[key.slot as usize] else { continue };
            match signal {
                Signal::Grant { grant, urgent } => register.grant(grant, urgent),
                Signal::Revoke { revoke, grant } => register.revoke(revoke, grant),
                Signal::Silent => register.silent(),
            }
        }
        if !state.ticking && state.core.needs_tick() {
            state.ticking = true;
            self.tick_due.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One publisher's stream. Its unspent credit returns when it is dropped.
#[derive(Debug)]
pub struct FlowStream {
    flow: Arc<Flow>,
    key: StreamKey,
}

impl FlowStream {
    /// The client would send `cost` beyond its credit, `largest` of it in one batch.
    pub fn demand(&self, cost: u64, largest: u64) {
        self.flow.call(|core, now, signals| core.demand(self.key, cost, largest, now, signals));
    }

    /// A batch of `cost` has arrived; `behind` more waits at the client.
    pub fn spend(&self, cost: u64, behind: u64) -> Result<Reservation, Overspend> {
        self.flow.call(|core, now, signals| core.spend(self.key, cost, behind, now, signals))?;
        Ok(Reservation { flow: Arc::clone(&self.flow), key: self.key, cost })
    }

    /// The client answered a revoke.
    pub fn revoked(&self, spent_cost: u64) {
        self.flow.call(|core, now, signals| core.revoked(self.key, spent_cost, now, signals));
    }

    /// Whether the stream was ended because its client left a revoke unanswered.
    pub fn is_over(&self) -> bool {
        self.flow.lock().core.peek(self.key).is_none()
    }

    /// Cost that the client may still spend.
    pub fn unspent(&self) -> u64 {
        self.flow.lock().core.peek(self.key).map_or(0, stream::Stream::unspent)
    }

    /// The newest grant.
    pub fn grant(&self) -> Grant {
        self.flow.lock().core.grant(self.key)
    }
}

impl Drop for FlowStream {
    fn drop(&mut self) {
        let mut state = self.flow.lock();
        let now = Instant::now();
        let State { core, signals, registers, .. } = &mut *state;
        if core.peek(self.key).is_some() {
            registers[self.key.slot as usize] = None;
            core.close(self.key, now, signals);
            self.flow.hand_over(&mut state);
        }
    }
}

/// Memory that holds a publisher's data. It travels with the data and is released when dropped.
#[derive(Debug)]
pub struct Reservation {
    flow: Arc<Flow>,
    key: StreamKey,
    cost: u64,
}

impl Reservation {
    /// What it holds, cost.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// Takes `cost` of it into a reservation of its own.
    pub fn split(&mut self, cost: u64) -> Self {
        assert!(cost <= self.cost, "a reservation cannot be split into more than it holds");
        self.cost -= cost;
        Self { flow: Arc::clone(&self.flow), key: self.key, cost }
    }

    /// Takes `other` in, which must be of the same stream.
    pub fn merge(&mut self, mut other: Self) {
        assert!(self.key == other.key, "reservations of two streams are not one");
        self.cost += std::mem::take(&mut other.cost);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.cost > 0 {
            self.flow.call(|core, now, signals| core.release(self.key, self.cost, now, signals));
        }
    }
}
