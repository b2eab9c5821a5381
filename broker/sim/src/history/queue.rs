//! Leases of a subscription in mode `queue`.
//!
//! Owns: checks 8, 9 and 10, and check 7 of first deliveries.
//! Never: guesses when a record was sent: what arrives within `flight_ns` of a settle may have left
//! before it.
//! Invariants: the token is the attempt, so that a newer delivery proves that the older lease had
//! ended before; a resend to the same session after it re-attached keeps the token.

use super::event::{Exit, Message, Mode, SettleResult, Verb};
use super::finding::{Check, Report, Time};
use super::log::{NEVER, PartitionLog};
use super::reader::Place;
use super::subscription::{Lease, Owed, SubscriptionLog, Suspect};

/// One delivery out of a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    pub(super) place: Place,
    pub(super) message: Message,
    pub(super) offset: u32,
    pub(super) attempt: u16,
    pub(super) count: u16,
    /// When the consumer's connection was last made anew.
    pub(super) began_ns: u64,
    /// Something beside the consumers may have ended the lease before it.
    pub(super) is_excused: bool,
}

/// A settle, without its answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settling {
    pub(super) place: Place,
    pub(super) offset: u32,
    pub(super) attempt: u16,
    pub(super) verb: Verb,
}

impl SubscriptionLog {
    pub(super) fn on_lease(&mut self, delivery: Delivery, flight_ns: u64, r: &mut Report) {
        let Delivery { place, offset, attempt, count, .. } = delivery;
        let lease = self.lease(offset);
        self.judge_settled(delivery, &lease, flight_ns, r);
        if lease.attempt == 0 {
            judge_first(delivery, r);
        } else {
            judge_again(delivery, &lease, flight_ns, r);
        }
        if self.mode == Some(Mode::KeyedQueue) {
            self.judge_key(delivery, r);
        }
        self.delivered_end = self.delivered_end.max(offset + 1);
        let lease = self.lease_mut(offset);
        if attempt < lease.attempt {
            return;
        }
        lease.is_ended &= attempt == lease.attempt;
        lease.attempt = attempt;
        lease.count = count;
        lease.consumer = place.consumer;
        lease.first_ns = lease.first_ns.min(place.at_ns);
        lease.last_ns = place.at_ns;
    }

    /// Check 9.
    fn judge_settled(&self, delivery: Delivery, lease: &Lease, flight_ns: u64, r: &mut Report) {
        let Delivery { place, offset, attempt, .. } = delivery;
        let Place { at_ns, subscription, partition, .. } = place;
        let is_new = |at: u64| lease.attempt < attempt && at_ns > at.saturating_add(flight_ns);
        if let Some((exit, _)) = lease.exit.filter(|(_, at)| is_new(*at)) {
            let text = format_args!(
                "offset {offset} of partition {partition} was delivered with token {attempt} \
                 after it had left subscription {subscription} ({exit:?})"
            );
            r.add(Check::SettledStaysSettled, at_ns, text);
        }
        // In an unordered queue an ack may overtake a redelivery that is under way already.
        let is_fenced = self.mode == Some(Mode::KeyedQueue)
            && lease.settled_attempt != 0
            && attempt > lease.settled_attempt;
        let settled_ns = lease.settled_ns;
        if settled_ns != NEVER && (is_fenced || at_ns > settled_ns.saturating_add(flight_ns)) {
            let text = format_args!(
                "offset {offset} of partition {partition} was delivered with token {attempt}, \
                 although subscription {subscription} knew it to be settled at {}",
                Time(settled_ns)
            );
            r.add(Check::SettledStaysSettled, at_ns, text);
        }
    }

    /// A key's first deliveries rise, and the next record waits for the one before it, or follows it
    /// to the same consumer.
    fn judge_key(&mut self, delivery: Delivery, r: &mut Report) {
        let Delivery { place, message, offset, .. } = delivery;
        let tail = *super::checker::slot(&mut self.keys, message.producer);
        let is_first = !self.lease(offset).was_out();
        if let Some(before) = tail.filter(|_| is_first) {
            let held = self.lease(before);
            if offset < before {
                let text = format_args!(
                    "offset {offset} of partition {} came after {before} of the same key",
                    place.partition
                );
                r.add(Check::ConsumerOrder, place.at_ns, text);
            } else if !held.is_asked && !held.is_out() && held.consumer != place.consumer {
                let text = format_args!(
                    "offset {offset} of partition {} went to consumer {} while {before} of the \
                     same key was leased to consumer {}",
                    place.partition, place.consumer, held.consumer
                );
                r.add(Check::ConsumerOrder, place.at_ns, text);
            }
        }
        if is_first && tail.is_none_or(|tail| tail < offset) {
            self.keys[usize::from(message.producer)] = Some(offset);
        }
    }

    pub(super) fn on_settle(&mut self, settling: Settling) {
        let Settling { offset, attempt, verb, .. } = settling;
        let lease = self.lease_mut(offset);
        if attempt < lease.attempt {
            let late = &mut lease.late_attempts[verb as usize];
            *late = attempt.max(*late);
        }
        match verb {
            Verb::Ack | Verb::Reject | Verb::Park => lease.is_asked = true,
            Verb::Release | Verb::Fail => lease.is_ended |= attempt == lease.attempt,
            Verb::Extend => {}
        }
    }

    /// Returns an offset that is said to be settled, although nobody asked for it.
    pub(super) fn on_settle_answered(
        &mut self,
        settling: Settling,
        result: SettleResult,
        r: &mut Report,
    ) -> Option<Suspect> {
        let Settling { place, offset, attempt, verb } = settling;
        let at_ns = place.at_ns;
        let is_keyed = self.mode == Some(Mode::KeyedQueue);
        let lease = self.lease_mut(offset);
        match result {
            SettleResult::Refused | SettleResult::Unknown => return None,
            SettleResult::AlreadySettled if lease.is_asked => {
                lease.settled_ns = lease.settled_ns.min(at_ns);
                return None;
            }
            SettleResult::AlreadySettled => {
                return Some(place.owes(Owed::Claimed, offset..offset + 1));
            }
            SettleResult::Ok => {}
        }
        let is_old = attempt < lease.attempt;
        let is_late_ack = verb == Verb::Ack && !is_keyed;
        let is_fenced = is_old && !is_late_ack;
        if is_fenced
            && (attempt <= lease.late_attempts[verb as usize] || (is_keyed && verb == Verb::Ack))
        {
            let text = format_args!(
                "consumer {}: {verb:?} of offset {offset} of partition {} succeeded with token \
                 {attempt}, although {} had been delivered at {}",
                place.consumer,
                place.partition,
                lease.attempt,
                Time(lease.last_ns)
            );
            r.add(Check::Lease, at_ns, text);
        }
        if attempt > lease.attempt {
            let text = format_args!(
                "consumer {}: {verb:?} of offset {offset} of partition {} succeeded with token \
                 {attempt}, which was never delivered",
                place.consumer, place.partition
            );
            r.add(Check::Lease, at_ns, text);
        }
        match verb {
            Verb::Ack => {
                lease.settled_ns = lease.settled_ns.min(at_ns);
                lease.settled_attempt = lease.settled_attempt.max(attempt);
            }
            Verb::Reject => lease.exit = Some((Exit::DeadLettered, at_ns)),
            Verb::Park => lease.exit = Some((Exit::Parked, at_ns)),
            Verb::Release | Verb::Fail | Verb::Extend => {}
        }
        None
    }

    /// The first offset that a first delivery passed over, where nothing may have been lost on the
    /// way to a consumer.
    pub(super) fn judge_gaps(&self, place: Place, log: &PartitionLog, r: &mut Report) {
        let is_owed =
            |offset: &u32| self.lease(*offset).first_ns == NEVER && !self.has_left(*offset, log);
        let mut owed = (self.start..self.delivered_end).filter(is_owed);
        if let Some(first) = owed.next() {
            let text = format_args!(
                "subscription {} was not given {} records of partition {} below offset {}, the \
                 first at offset {first}",
                place.subscription,
                owed.count() + 1,
                place.partition,
                self.delivered_end
            );
            r.add(Check::ConsumerOrder, place.at_ns, text);
        }
    }
}

fn judge_first(delivery: Delivery, r: &mut Report) {
    let Delivery { place, offset, attempt, count, .. } = delivery;
    // Deliveries that a fault swallowed count as well.
    if attempt.max(count) > 1 && !delivery.is_excused {
        let text = format_args!(
            "offset {offset} of partition {} came to subscription {} for the first time with \
             token {attempt} and count {count}",
            place.partition, place.subscription
        );
        r.add(Check::Redelivery, place.at_ns, text);
    }
}

/// Checks 8 and 10.
fn judge_again(delivery: Delivery, lease: &Lease, flight_ns: u64, r: &mut Report) {
    let Delivery { place, offset, attempt, count, .. } = delivery;
    let Place { at_ns, consumer, partition, .. } = place;
    if attempt == lease.attempt && consumer == lease.consumer && delivery.began_ns > lease.last_ns {
        return;
    }
    // A resend that a release overtook: the newer token went to another connection.
    let is_overtaken = attempt < lease.attempt && consumer != lease.consumer;
    if is_overtaken && at_ns <= lease.last_ns.saturating_add(flight_ns) {
        return;
    }
    if attempt <= lease.attempt {
        let text = format_args!(
            "offset {offset} of partition {partition} was delivered with token {attempt} to \
             consumer {consumer} after token {} to consumer {} at {}",
            lease.attempt,
            lease.consumer,
            Time(lease.last_ns)
        );
        return r.add(Check::Lease, at_ns, text);
    }
    if count <= lease.count {
        let text = format_args!(
            "offset {offset} of partition {partition} was delivered again with count {count}, it \
             was {} before",
            lease.count
        );
        r.add(Check::Redelivery, at_ns, text);
    }
    if !lease.is_ended && !delivery.is_excused {
        let text = format_args!(
            "offset {offset} of partition {partition} was delivered again, although nothing ended \
             the lease of consumer {} since {}",
            lease.consumer,
            Time(lease.last_ns)
        );
        r.add(Check::Redelivery, at_ns, text);
    }
}
