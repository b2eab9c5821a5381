//! Reading in order: plain readers, drains, subscriptions in mode `stream`.
//!
//! Owns: check 7 for them, and checks 8 and 9 for a cursor.
//! Never: judges a gap at once: a trim or an exit that explains it may be recorded later.

use super::consumer::Reading;
use super::event::{Mode, SettleResult};
use super::finding::{Check, Report};
use super::subscription::{Owed, SubscriptionLog, Suspect};
use std::ops::Range;

/// Who reads what, since or at when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) at_ns: u64,
    pub(super) subscription: u16,
    pub(super) consumer: u16,
    pub(super) partition: u16,
}

impl Place {
    pub(super) fn owes(self, why: Owed, offsets: Range<u32>) -> Suspect {
        let Self { at_ns, subscription, consumer, partition } = self;
        Suspect { why, at_ns, subscription, consumer, partition, offsets }
    }
}

/// A consumer of a `stream` subscription is attached. Returns what it will not be given.
pub(super) fn on_attach(
    place: Place,
    from: u32,
    subscription: &SubscriptionLog,
    r: &mut Report,
) -> Option<Suspect> {
    let Place { at_ns, consumer, partition, .. } = place;
    let settled = subscription.cursor_settled;
    if from < settled {
        let text = format_args!(
            "consumer {consumer} is attached at offset {from} of partition {partition} of \
             subscription {}, which has settled everything below {settled}",
            place.subscription
        );
        r.add(Check::SettledStaysSettled, at_ns, text);
    }
    let asked = subscription.cursor_asked;
    (from > asked).then(|| place.owes(Owed::Gap, asked..from))
}

/// A record arrived. Returns what was passed over before it.
pub(super) fn on_deliver(
    place: Place,
    offset: u32,
    mode: Mode,
    reading: &mut Reading,
    r: &mut Report,
) -> Option<Suspect> {
    let Place { at_ns, consumer, partition, .. } = place;
    let next = reading.next;
    if offset < next {
        let text = format_args!(
            "consumer {consumer} was given offset {offset} of partition {partition} when {next} \
             came next"
        );
        r.add(Check::ConsumerOrder, at_ns, text);
        return None;
    }
    reading.next = offset + 1;
    reading.survived += 1;
    if offset == next {
        return None;
    }
    if mode == Mode::Drain {
        reading.missing.push(next..offset);
        return None;
    }
    Some(place.owes(Owed::Gap, next..offset))
}

/// A cumulative ack was answered.
pub(super) fn on_settled(
    place: Place,
    offset: u32,
    result: SettleResult,
    next: u32,
    subscription: &mut SubscriptionLog,
    r: &mut Report,
) {
    if result != SettleResult::Ok {
        return;
    }
    if offset >= next {
        let text = format_args!(
            "consumer {} settled up to offset {offset} of partition {}, which it was not given: \
             {next} comes next",
            place.consumer, place.partition
        );
        r.add(Check::Lease, place.at_ns, text);
    }
    subscription.cursor_settled = subscription.cursor_settled.max(offset + 1);
}
