//! Durable `stream` subscriptions: a name, and a cursor below which everything is settled.
//!
//! Owns: the replicated part, a function of the log; settles on their way into it; the consumers
//! that are attached now (`consumer`).
//! Never: a clock of its own, a socket, a read.
//! Invariants:
//! - a cursor never falls, but for nothing: a trim may raise it, and counts what it passed over;
//! - a cursor never passes what was delivered to the consumer that settles;
//! - at most one control batch of settles is in flight: what is settled meanwhile goes together.

pub(super) mod consumer;
#[cfg(test)]
mod tests;

use super::command::{Command, SubscriptionId};
use super::limits::{CONTROL_BYTES_MAX, SETTLES_BYTES_TARGET, SETTLES_IDLE, SUBSCRIPTIONS_MAX};
use super::wire::{Fields, WireError, put_name};
use std::collections::BTreeMap;
use tokio::time::Instant;
use weir_protocol::types::{Name, Offset};

/// One durable subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) name: Name,
    /// Everything below is settled.
    pub(super) cursor: Offset,
    /// Records that trims passed over since its last settle: what its next consumer missed.
    pub(super) skipped: u64,
    /// Records that trims passed over, ever.
    pub(super) expired: u64,
}

/// The durable subscriptions of one partition.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Subscriptions {
    by_id: BTreeMap<SubscriptionId, Subscription>,
    by_name: BTreeMap<Name, SubscriptionId>,
    next_id: u32,
}

impl Subscriptions {
    pub(super) fn find(&self, name: &Name) -> Option<SubscriptionId> {
        self.by_name.get(name).copied()
    }

    pub(super) fn by_id(&self, id: SubscriptionId) -> Option<&Subscription> {
        self.by_id.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SubscriptionId, &Subscription)> {
        self.by_id.iter().map(|(id, subscription)| (*id, subscription))
    }

    /// Whether one more may be created beside `creating` that are under way.
    pub(super) fn has_room(&self, creating: usize) -> bool {
        self.by_id.len() + creating < SUBSCRIPTIONS_MAX
    }

    /// The number of the next one, with `creating` under way.
    pub(super) fn next_id(&self, creating: usize) -> SubscriptionId {
        let creating = u32::try_from(creating).expect("subscriptions are bounded");
        SubscriptionId(self.next_id + creating)
    }

    /// The lowest cursor: nothing at or above it may be trimmed. `None`: a plain log.
    pub(super) fn floor(&self) -> Option<Offset> {
        self.by_id.values().map(|subscription| subscription.cursor).min()
    }

    /// Obeys a committed command. Returns the records that a trim took from subscriptions.
    pub(super) fn apply(&mut self, command: &Command) -> u64 {
        match command {
            Command::Create { subscription, cursor, name } => {
                self.next_id = self.next_id.max(subscription.0 + 1);
                let (name, id) = (name.clone(), *subscription);
                // The name may have been created twice by two leaders: the first one counts.
                if !self.by_name.contains_key(&name) {
                    self.by_name.insert(name.clone(), id);
                    let fresh = Subscription { name, cursor: *cursor, skipped: 0, expired: 0 };
                    self.by_id.insert(id, fresh);
                }
                0
            }
            Command::Settle { subscription, cursor } => {
                if let Some(subscription) = self.by_id.get_mut(subscription) {
                    subscription.cursor = subscription.cursor.max(*cursor);
                    subscription.skipped = 0;
                }
                0
            }
            Command::Delete { subscription } => {
                if let Some(gone) = self.by_id.remove(subscription) {
                    self.by_name.remove(&gone.name);
                }
                0
            }
            Command::Trim { log_start } => self.trim(*log_start),
            Command::Join { .. } | Command::Leave { .. } | Command::Release { .. } => 0,
        }
    }

    fn trim(&mut self, log_start: Offset) -> u64 {
        let mut taken = 0;
        for subscription in self.by_id.values_mut().filter(|behind| behind.cursor < log_start) {
            let passed = log_start.0 - subscription.cursor.0;
            subscription.cursor = log_start;
            subscription.skipped += passed;
            subscription.expired += passed;
            taken += passed;
        }
        taken
    }
}

/// As a checkpoint holds them:
///
/// ```text
/// next_id4 count4, then each: id4 cursor8 skipped8 expired8 name_len1 name
/// ```
impl Subscriptions {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.next_id.to_le_bytes());
        let count = u32::try_from(self.by_id.len()).expect("subscriptions are bounded");
        out.extend_from_slice(&count.to_le_bytes());
        for (id, subscription) in &self.by_id {
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&subscription.cursor.to_le_bytes());
            out.extend_from_slice(&subscription.skipped.to_le_bytes());
            out.extend_from_slice(&subscription.expired.to_le_bytes());
            put_name(out, &subscription.name);
        }
    }

    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<Self, WireError> {
        let mut subscriptions =
            Self { next_id: fields.u32("next subscription")?, ..Self::default() };
        for _ in 0..fields.u32("subscriptions")? {
            let id = SubscriptionId(fields.u32("subscription")?);
            let cursor = Offset(fields.u64("cursor")?);
            let skipped = fields.u64("skipped")?;
            let expired = fields.u64("expired")?;
            let name = fields.name("subscription name")?;
            subscriptions.by_name.insert(name.clone(), id);
            subscriptions.by_id.insert(id, Subscription { name, cursor, skipped, expired });
        }
        Ok(subscriptions)
    }
}

/// Settles on their way into the log.
#[derive(Debug, Default)]
pub(super) struct Settles {
    /// The newest settle of each subscription that is not proposed yet.
    waiting: BTreeMap<SubscriptionId, Offset>,
    /// Since when the oldest of them waits.
    since: Option<Instant>,
    /// Somebody waits to hear that one of them is committed.
    urgent: bool,
    in_flight: BTreeMap<SubscriptionId, Offset>,
}

impl Settles {
    /// Takes a settle in. `urgent`: somebody waits for its commit.
    pub(super) fn add(&mut self, id: SubscriptionId, cursor: Offset, urgent: bool, now: Instant) {
        let newest = self.waiting.entry(id).or_default();
        *newest = (*newest).max(cursor);
        self.since.get_or_insert(now);
        self.urgent |= urgent;
    }

    /// When the waiting ones are due: at once, later, or not at all while others are in flight.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        if self.waiting.is_empty() || !self.in_flight.is_empty() {
            return None;
        }
        let settle = Command::Settle { subscription: SubscriptionId(0), cursor: Offset(0) };
        let enough = self.waiting.len() * settle.encoded_len() >= SETTLES_BYTES_TARGET;
        let since = self.since.filter(|_| !self.urgent && !enough);
        Some(since.map_or(now, |since| since + SETTLES_IDLE))
    }

    /// Moves the waiting ones into flight, as commands.
    pub(super) fn take(&mut self) -> Vec<Command> {
        assert!(self.in_flight.is_empty(), "one control batch of settles is in flight at a time");
        let max = CONTROL_BYTES_MAX / 2 / 13;
        let mut waiting = std::mem::take(&mut self.waiting);
        if let Some(cut) = waiting.keys().nth(max).copied() {
            self.waiting = waiting.split_off(&cut);
        }
        self.in_flight = waiting;
        if self.waiting.is_empty() {
            (self.since, self.urgent) = (None, false);
        }
        let settles = self.in_flight.iter();
        settles.map(|(id, cursor)| Command::Settle { subscription: *id, cursor: *cursor }).collect()
    }

    /// Those in flight are committed.
    pub(super) fn landed(&mut self) {
        self.in_flight.clear();
    }

    /// Those in flight are lost: they wait again. A settle repeated is a settle once.
    pub(super) fn lost(&mut self) {
        for (id, cursor) in std::mem::take(&mut self.in_flight) {
            let newest = self.waiting.entry(id).or_default();
            *newest = (*newest).max(cursor);
            self.urgent = true;
        }
    }

    /// Whether any settle is not committed yet.
    pub(super) fn are_under_way(&self) -> bool {
        !(self.waiting.is_empty() && self.in_flight.is_empty())
    }
}
