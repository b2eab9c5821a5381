//! The ring of streams that wait for the pool, and whose turn it is.
//!
//! Owns: deficit round robin, so that a stream's share does not depend on how much it asks for.
//! Never: lets a stream overtake another for want of room: the ring waits with it.

use super::GRANT_QUANTUM_COST;
use super::core::{FlowCore, Signal, Signals, StreamKey};
use super::stream::Place;
use tokio::time::Instant;
use weir_protocol::limits::{BATCH_BYTES_TARGET, MESSAGE_COST_MIN};

impl FlowCore {
    /// Deficit round robin: each stream in the ring gets a quantum in its turn. One whose next
    /// batch needs more saves its quanta up; where only room is missing, the ring waits for it.
    pub(super) fn distribute(&mut self, now: Instant, signals: &mut Signals) {
        while let Some(&key) = self.ring.front() {
            let available = self.available();
            let quantum = self.quantum();
            // Room that comes back soon is worth waiting for: small grants make small batches.
            let worth = if self.reserved >= quantum { quantum } else { MESSAGE_COST_MIN };
            let alone = self.ring.len() == 1;
            let blocked = self.bits_of(key) != 0;
            let stream = &mut self.streams[key.slot as usize];
            let needs = stream.needs();
            if needs == 0 || blocked {
                self.ring.pop_front();
                self.leave_ring(key);
                continue;
            }
            let useful = stream.useful(worth);
            if !alone && !stream.turn_open {
                stream.turn_open = true;
                stream.deficit += quantum;
            }
            if !alone && stream.deficit < useful {
                stream.turn_open = false;
                self.ring.rotate_left(1);
                continue;
            }
            let entitled = if alone { needs } else { stream.deficit };
            let give = needs.min(entitled).min(available);
            if give < useful {
                break;
            }
            stream.turn_open = false;
            stream.deficit = if alone { 0 } else { stream.deficit - give };
            self.raise(key, give);
            self.ring.rotate_left(1);
        }
        self.signal_raised(now, signals);
        self.check();
    }

    /// Takes a stream that was in the ring out of it: it needs nothing, or its partition waits.
    fn leave_ring(&mut self, key: StreamKey) {
        let stream = &mut self.streams[key.slot as usize];
        stream.deficit = 0;
        stream.turn_open = false;
        stream.place = Place::Nowhere;
        if stream.needs() > 0 {
            stream.place = Place::HeldBack;
            let partition = stream.partition.clone();
            self.partitions.entry(partition).or_default().held_back.push(key);
        }
    }

    /// Raises a stream's limit; it is told once, when the call under way ends.
    pub(super) fn raise(&mut self, key: StreamKey, cost: u64) {
        let stream = &mut self.streams[key.slot as usize];
        if !stream.raised {
            stream.raised = true;
            stream.urgent = stream.reserved == 0 || stream.is_stuck();
            self.raised.push(key);
        }
        stream.granted += cost;
        self.outstanding += cost;
    }

    /// Tells every stream that the call under way has raised its newest grant.
    pub(super) fn signal_raised(&mut self, now: Instant, signals: &mut Signals) {
        for at in 0..self.raised.len() {
            let key = self.raised[at];
            let stream = &mut self.streams[key.slot as usize];
            stream.raised = false;
            let urgent = stream.urgent;
            signals.push((key, Signal::Grant { grant: self.grant(key), urgent }));
            self.note_starving(key, now);
        }
        self.raised.clear();
    }

    /// Puts a stream that needs credit into the ring, unless it waits already.
    pub(super) fn queue(&mut self, key: StreamKey, now: Instant) {
        self.note_starving(key, now);
        let stream = &mut self.streams[key.slot as usize];
        if stream.place == Place::Nowhere && stream.needs() > 0 {
            stream.place = Place::Ring;
            self.ring.push_back(key);
        }
    }

    /// One turn's worth: a whole batch while few wait, so that batches stay large.
    fn quantum(&self) -> u64 {
        let share = self.pool_cost / (4 * self.ring.len().max(1) as u64);
        share.min(BATCH_BYTES_TARGET as u64).max(GRANT_QUANTUM_COST).min(self.pool_cost)
    }
}
