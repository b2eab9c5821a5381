//! Which batch a producer may store next, and which of its batches are stored already.
//!
//! Owns: the bounded table of producers (a function of the log), what each has in flight, and the
//! epochs that were opened and have stored nothing yet.
//! Never: a clock (a producer expires by log time alone), a reply.
//! Invariants:
//! - applying obeys the log and judges nothing; every judgement is made before a proposal, against
//!   what is applied and what is in flight;
//! - the table never holds more than its bound; whoever would exceed it is refused, or takes the
//!   place of one that was idle for long;
//! - a producer that was forgotten is answered UNKNOWN_PRODUCER, never taken for a new one.

#[cfg(test)]
mod tests;

use super::limits::{
    PRODUCER_ANONYMOUS_BIT, PRODUCER_ANONYMOUS_IDLE_MIN_MS, PRODUCER_IDLE_MIN_MS, PRODUCER_IDLE_MS,
    PRODUCER_RUNS_MAX, PRODUCERS_MAX,
};
use super::wire::{Fields, WireError};
use crate::planted::{Bug, is_planted};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use weir_protocol::batch::BatchHeader;
use weir_protocol::types::{Offset, ProducerId, Sequence};

/// What is to be done with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the next one: propose it.
    Fresh,
    /// It is stored; where, if that is still known.
    Duplicate(Option<Offset>),
    /// The same records are in flight: what becomes of them decides.
    InFlight,
    /// Its sequence is not the next one.
    Gap {
        /// The next one.
        expected: Sequence,
    },
    /// The producer was opened again under a newer epoch.
    Fenced {
        /// The newest epoch.
        epoch: u32,
    },
    /// The producer is not known, and this is not its first batch.
    Unknown,
    /// The table has no room for one more producer.
    Full,
}

/// One batch as its producer numbered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbered {
    pub(super) producer: ProducerId,
    pub(super) epoch: u32,
    pub(super) base: Sequence,
    pub(super) record_count: u32,
}

impl Numbered {
    pub(super) fn of(header: &BatchHeader) -> Self {
        Self {
            producer: header.producer_id,
            epoch: header.producer_epoch,
            base: header.base_sequence,
            record_count: header.record_count,
        }
    }

    fn end(&self) -> Sequence {
        Sequence(self.base.0.saturating_add(u64::from(self.record_count)))
    }
}

/// Bounds of the table, so that tests can make them small.
#[derive(Debug, Clone, Copy)]
pub(super) struct DedupLimits {
    pub(super) producers_max: usize,
    pub(super) idle_ms: u64,
    pub(super) idle_min_ms: u64,
    pub(super) anonymous_idle_min_ms: u64,
}

impl Default for DedupLimits {
    fn default() -> Self {
        Self {
            producers_max: PRODUCERS_MAX,
            idle_ms: PRODUCER_IDLE_MS,
            idle_min_ms: PRODUCER_IDLE_MIN_MS,
            anonymous_idle_min_ms: PRODUCER_ANONYMOUS_IDLE_MIN_MS,
        }
    }
}

/// Batches of one producer that follow each other in sequence and in offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    base: Sequence,
    base_offset: Offset,
    record_count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Producer {
    epoch: u32,
    next: Sequence,
    log_time_ms: u64,
    /// Oldest first, at most [`PRODUCER_RUNS_MAX`].
    runs: VecDeque<Run>,
}

#[derive(Debug, Clone, Copy)]
struct Flying {
    epoch: u32,
    next: Sequence,
}

/// The table of producers of one partition.
#[derive(Debug)]
pub(super) struct Dedup {
    limits: DedupLimits,
    producers: BTreeMap<ProducerId, Producer>,
    /// The producers by log time: named ones, and those that live as long as their client.
    idle: [BTreeSet<(u64, ProducerId)>; 2],
    flying: BTreeMap<ProducerId, Flying>,
    /// Epochs of named producers that were opened and have stored nothing since.
    opened: BTreeMap<ProducerId, u32>,
}

impl Dedup {
    pub(super) fn new(limits: DedupLimits) -> Self {
        Self {
            limits,
            producers: BTreeMap::new(),
            idle: [BTreeSet::new(), BTreeSet::new()],
            flying: BTreeMap::new(),
            opened: BTreeMap::new(),
        }
    }

    /// Producers in the table.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.producers.len()
    }

    /// A publisher attaches. Older epochs are fenced from here on; the next sequence comes back,
    /// once nothing of the producer is in flight.
    pub(super) fn open(&mut self, producer: ProducerId, epoch: u32) -> Result<Sequence, Verdict> {
        let newest = self.newest_epoch(producer);
        if newest.is_some_and(|newest| epoch < newest) {
            return Err(Verdict::Fenced { epoch: newest.unwrap_or(epoch) });
        }
        let stored = self.producers.get(&producer);
        let raises = stored.is_none_or(|stored| stored.epoch < epoch);
        if raises && !is_anonymous(producer) {
            if self.opened.len() >= self.limits.producers_max {
                self.opened.pop_first();
            }
            self.opened.insert(producer, epoch);
        }
        if self.flying.contains_key(&producer) {
            return Err(Verdict::InFlight);
        }
        Ok(self.producers.get(&producer).map_or(Sequence(0), |stored| stored.next))
    }

    /// Judges a batch against what is applied and what is in flight.
    pub(super) fn check(&self, batch: Numbered, log_time_ms: u64) -> Verdict {
        let newest = self.newest_epoch(batch.producer);
        if let Some(epoch) = newest.filter(|newest| batch.epoch < *newest) {
            return Verdict::Fenced { epoch };
        }
        let stored = self.producers.get(&batch.producer);
        let flying = self.flying.get(&batch.producer);
        let Some(next) = flying.map(|flying| flying.next).or(stored.map(|stored| stored.next))
        else {
            return match batch.base {
                Sequence(0) if self.has_room(log_time_ms) => Verdict::Fresh,
                Sequence(0) => Verdict::Full,
                _ => Verdict::Unknown,
            };
        };
        if batch.base == next {
            return Verdict::Fresh;
        }
        // Under an epoch of its own a publisher starts behind what is stored: a number below that
        // is not a repetition but a publisher that does not know where it is.
        let same_epoch = flying.map(|flying| flying.epoch).or(stored.map(|stored| stored.epoch))
            == Some(batch.epoch);
        if batch.end() > next || !same_epoch {
            return Verdict::Gap { expected: next };
        }
        match stored {
            Some(stored) if batch.end() <= stored.next => Verdict::Duplicate(stored.find(batch)),
            _ => Verdict::InFlight,
        }
    }

    /// A batch that [`Dedup::check`] found fresh was proposed.
    pub(super) fn fly(&mut self, batch: Numbered) {
        if is_planted(Bug::RepetitionInFlightStored) {
            return;
        }
        let flying = Flying { epoch: batch.epoch, next: batch.end() };
        self.flying.insert(batch.producer, flying);
    }

    /// Nothing is in flight any more; what was not applied is lost.
    pub(super) fn ground(&mut self) {
        if is_planted(Bug::DedupLostWithLeader) {
            *self = Self::new(self.limits);
        }
        self.flying.clear();
    }

    /// A data batch is committed.
    pub(super) fn apply(&mut self, header: &BatchHeader) {
        self.expire(header.log_time_ms);
        if header.producer_id == ProducerId(0) {
            return;
        }
        let (id, batch) = (header.producer_id, Numbered::of(header));
        let idle = &mut self.idle[usize::from(is_anonymous(id))];
        let producer = self.producers.entry(id).or_insert_with(|| Producer {
            epoch: 0,
            next: Sequence(0),
            log_time_ms: header.log_time_ms,
            runs: VecDeque::new(),
        });
        idle.remove(&(producer.log_time_ms, id));
        idle.insert((header.log_time_ms, id));
        producer.log_time_ms = header.log_time_ms;
        producer.epoch = producer.epoch.max(batch.epoch);
        producer.next = batch.end();
        producer.remember(batch, header.base_offset);
        if self.flying.get(&id).is_some_and(|flying| flying.next <= batch.end()) {
            self.flying.remove(&id);
        }
        if self.opened.get(&id).is_some_and(|opened| *opened <= batch.epoch) {
            self.opened.remove(&id);
        }
        while self.producers.len() > self.limits.producers_max {
            self.forget_idlest(header.log_time_ms);
        }
    }

    fn newest_epoch(&self, producer: ProducerId) -> Option<u32> {
        let stored = self.producers.get(&producer).map(|stored| stored.epoch);
        let flying = self.flying.get(&producer).map(|flying| flying.epoch);
        stored.max(flying).max(self.opened.get(&producer).copied())
    }

    /// Whether one more producer fits once those in flight are stored.
    fn has_room(&self, log_time_ms: u64) -> bool {
        let new = self.flying.keys().filter(|id| !self.producers.contains_key(id)).count();
        let excess = (self.producers.len() + new + 1).saturating_sub(self.limits.producers_max);
        let evictable = |kind: usize| {
            let idle_min = self.idle_min_ms(kind);
            let idle =
                move |(seen, _): &&(u64, ProducerId)| seen.saturating_add(idle_min) <= log_time_ms;
            self.idle[kind].iter().take(excess).take_while(idle).count()
        };
        excess == 0 || evictable(0) + evictable(1) >= excess
    }

    fn idle_min_ms(&self, kind: usize) -> u64 {
        [self.limits.idle_min_ms, self.limits.anonymous_idle_min_ms][kind]
    }

    fn expire(&mut self, log_time_ms: u64) {
        for kind in 0..self.idle.len() {
            while let Some((seen, id)) = self.idle[kind].first().copied() {
                if seen.saturating_add(self.limits.idle_ms) > log_time_ms {
                    break;
                }
                self.forget(kind, (seen, id));
            }
        }
    }

    /// Forgets the producer that exceeds its least idle time by most.
    fn forget_idlest(&mut self, log_time_ms: u64) {
        let first = |kind: usize| {
            let (seen, id) = *self.idle[kind].first()?;
            let over =
                i128::from(log_time_ms) - i128::from(seen) - i128::from(self.idle_min_ms(kind));
            Some((over, kind, (seen, id)))
        };
        if let Some((_, kind, at)) = first(0).max(first(1)) {
            self.forget(kind, at);
        }
    }

    fn forget(&mut self, kind: usize, at: (u64, ProducerId)) {
        self.idle[kind].remove(&at);
        self.producers.remove(&at.1);
    }
}

/// The table as a checkpoint holds it.
///
/// ```text
/// count4, then each: id8 epoch4 next8 log_time_ms8 runs1, then each: base8 base_offset8 records8
/// ```
impl Dedup {
    /// Appends the applied part of the table.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let count = u32::try_from(self.producers.len()).expect("the table is bounded");
        out.extend_from_slice(&count.to_le_bytes());
        for (id, producer) in &self.producers {
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&producer.epoch.to_le_bytes());
            out.extend_from_slice(&producer.next.to_le_bytes());
            out.extend_from_slice(&producer.log_time_ms.to_le_bytes());
            out.push(u8::try_from(producer.runs.len()).expect("runs are bounded"));
            for run in &producer.runs {
                out.extend_from_slice(&run.base.to_le_bytes());
                out.extend_from_slice(&run.base_offset.to_le_bytes());
                out.extend_from_slice(&run.record_count.to_le_bytes());
            }
        }
    }

    /// Reads what [`Dedup::encode`] wrote.
    pub(super) fn decode(limits: DedupLimits, fields: &mut Fields<'_>) -> Result<Self, WireError> {
        let mut table = Self::new(limits);
        for _ in 0..fields.u32("producers")? {
            let id = ProducerId(fields.u64("producer id")?);
            let producer = Producer::decode(fields)?;
            if is_planted(Bug::CheckpointWithoutDedup) {
                continue;
            }
            table.idle[usize::from(is_anonymous(id))].insert((producer.log_time_ms, id));
            table.producers.insert(id, producer);
        }
        Ok(table)
    }
}

impl Producer {
    fn decode(fields: &mut Fields<'_>) -> Result<Self, WireError> {
        let epoch = fields.u32("producer epoch")?;
        let next = Sequence(fields.u64("producer sequence")?);
        let log_time_ms = fields.u64("producer log time")?;
        let mut runs = VecDeque::new();
        for _ in 0..fields.u8("producer runs")? {
            runs.push_back(Run {
                base: Sequence(fields.u64("run sequence")?),
                base_offset: Offset(fields.u64("run offset")?),
                record_count: fields.u64("run records")?,
            });
        }
        Ok(Self { epoch, next, log_time_ms, runs })
    }

    /// Where the first record of a stored batch is.
    fn find(&self, batch: Numbered) -> Option<Offset> {
        let within =
            |run: &&Run| run.base <= batch.base && batch.end().0 <= run.base.0 + run.record_count;
        let run = self.runs.iter().rev().find(within)?;
        Some(Offset(run.base_offset.0 + (batch.base.0 - run.base.0)))
    }

    /// A batch that continues the newest run in sequence and offset becomes part of it, so that a
    /// lone producer is remembered for as long as it stays alone.
    fn remember(&mut self, batch: Numbered, base_offset: Offset) {
        let record_count = u64::from(batch.record_count);
        if let Some(run) = self.runs.back_mut()
            && run.base.0 + run.record_count == batch.base.0
            && run.base_offset.0 + run.record_count == base_offset.0
        {
            run.record_count += record_count;
            return;
        }
        if self.runs.len() == PRODUCER_RUNS_MAX {
            self.runs.pop_front();
        }
        self.runs.push_back(Run { base: batch.base, base_offset, record_count });
    }
}

fn is_anonymous(producer: ProducerId) -> bool {
    producer.0 & PRODUCER_ANONYMOUS_BIT != 0
}
