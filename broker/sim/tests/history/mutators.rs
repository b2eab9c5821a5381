//! One broken promise each, put into a history that keeps them all.
//!
//! Owns: the mutators, and the check that each must be caught by.
//! Never: applies where the change would still keep the promise: then it gives `None`.

use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use weir_sim::history::{
    Check, Event, Message, Mode, Peer, SettleResult, Verb, What, body_of, identify,
};

type Apply = fn(&mut Case) -> Option<()>;

pub(crate) const MUTATORS: [(&str, Check, Apply); 41] = [
    ("time falls", Check::WellFormed, time_falls),
    ("an answer without a call", Check::WellFormed, answer_twice),
    ("a drain lacks a message", Check::NoLoss, drop_from_drain),
    ("a drain ends early", Check::NoLoss, cut_tail),
    ("a drain begins late", Check::NoLoss, cut_head),
    ("no drain ends", Check::NoLoss, no_drain),
    ("an acknowledged message is nowhere", Check::NoLoss, vanish),
    ("a trim takes what is not settled", Check::NoLoss, trim_unsettled),
    ("a record is said to be settled by nobody", Check::NoLoss, claim_settled),
    ("a body byte changes", Check::NoInvention, change_body),
    ("a message that nobody published", Check::NoInvention, invent),
    ("a message of another partition", Check::NoInvention, misplace),
    ("a refused publish is delivered", Check::NoAbortedRead, deliver_refused),
    ("a voided publish is delivered", Check::NoAbortedRead, deliver_void),
    ("a message at two offsets", Check::OneOffset, acknowledge_elsewhere),
    ("two messages at one offset", Check::OneOffset, replace_in_drain),
    ("an offset beyond what was published", Check::OneOffset, offset_beyond),
    ("two offsets of a producer are swapped", Check::ProducerOrder, swap_of_producer),
    ("two offsets are swapped against time", Check::RealTimeOrder, swap_in_time),
    ("a stream skips a record", Check::ConsumerOrder, skip_in_stream),
    ("a stream goes back", Check::ConsumerOrder, repeat_in_stream),
    ("first deliveries are swapped", Check::ConsumerOrder, |case| swap_first(case, Mode::Queue)),
    ("a key's deliveries are swapped", Check::ConsumerOrder, |case| {
        swap_first(case, Mode::KeyedQueue)
    }),
    ("a token is given twice", Check::Lease, repeat_token),
    ("an old token's ack succeeds", Check::Lease, |case| old_token(case, Verb::Ack)),
    ("an old token's release succeeds", Check::Lease, |case| old_token(case, Verb::Release)),
    ("a settle of what was not delivered", Check::Lease, settle_ahead),
    ("a cursor passes what was delivered", Check::Lease, settle_beyond),
    ("settled, then delivered again", Check::SettledStaysSettled, redeliver_settled),
    ("a stream is attached below its cursor", Check::SettledStaysSettled, attach_below),
    ("expired, then delivered", Check::SettledStaysSettled, deliver_expired),
    ("a redelivery is not counted", Check::Redelivery, hide_count),
    ("a redelivery without a reason", Check::Redelivery, redeliver_leased),
    ("a consumer gets too many messages", Check::Credit, |case| exceed(case, true)),
    ("a consumer gets too many bytes", Check::Credit, |case| exceed(case, false)),
    ("a producer sends too much", Check::Credit, overspend),
    ("a stale end", Check::Tail, stale_end),
    ("an end that is not yet", Check::Tail, early_end),
    ("two leaders in a term", Check::Replicas, second_leader),
    ("chains part", Check::Replicas, part_chains),
    ("no leader after the fault", Check::Liveness, no_leader),
];

/// Those that end in silence: something never happens.
pub(crate) const SILENT: [(&str, Check, Apply); 3] = [
    ("a leader comes late", Check::Liveness, late_leader),
    ("an unknown outcome stays unknown", Check::Liveness, never_resolved),
    ("a subscription never sees a record", Check::Liveness, unseen),
];

/// A history to change.
pub(crate) struct Case {
    pub(crate) history: Vec<Event>,
    pub(crate) random: Rng,
    modes: BTreeMap<u16, (u16, Mode)>,
}

#[derive(Clone, Copy)]
struct Delivered {
    at: usize,
    message: Message,
    offset: u32,
    consumer: u16,
    attempt: u16,
    mode: Mode,
    subscription: u16,
}

impl Case {
    pub(crate) fn new(history: Vec<Event>, seed: u64) -> Self {
        let modes = history.iter().filter_map(|event| match event.what {
            What::Subscribe { consumer, subscription, mode, .. } => {
                Some((consumer, (subscription, mode)))
            }
            _ => None,
        });
        let modes = modes.collect();
        Self { history, random: Rng::with_seed(seed), modes }
    }

    fn any<T>(&mut self, mut all: Vec<T>) -> Option<T> {
        (!all.is_empty()).then(|| all.swap_remove(self.random.usize(..all.len())))
    }

    fn places(&self, is: impl Fn(What) -> bool) -> Vec<usize> {
        (0..self.history.len()).filter(|at| is(self.history[*at].what)).collect()
    }

    fn find(&mut self, is: impl Fn(What) -> bool) -> Option<usize> {
        let places = self.places(is);
        self.any(places)
    }

    fn deliveries(&self, is: impl Fn(Mode) -> bool) -> Vec<Delivered> {
        let delivered = |(at, event): (usize, &Event)| match event.what {
            What::Deliver { message, offset, consumer, attempt, .. } => {
                let (subscription, mode) = self.modes[&consumer];
                Some(Delivered { at, message, offset, consumer, attempt, mode, subscription })
            }
            _ => None,
        };
        let all = self.history.iter().enumerate().filter_map(delivered);
        all.filter(|delivered| is(delivered.mode)).collect()
    }

    fn drained(&mut self) -> Option<Delivered> {
        let all = self.deliveries(|mode| mode == Mode::Drain);
        self.any(all)
    }

    fn insert(&mut self, at: usize, what: What) {
        let at_ns = self.history[at - 1].at_ns;
        self.history.insert(at, Event { at_ns, what });
    }

    fn replace(&mut self, at: usize, change: impl Fn(&mut Message, &mut u32)) {
        if let What::Deliver { message, offset, .. } = &mut self.history[at].what {
            change(message, offset);
        }
    }

    /// What no trim and no exit explains.
    fn stays(&self, partition: u16, offset: u32) -> bool {
        !self.history.iter().any(|event| match event.what {
            What::Trim { partition: p, log_start } => p == partition && offset < log_start,
            What::Exit { partition: p, offset: o, .. } => p == partition && o == offset,
            _ => false,
        })
    }

    /// When a message was first published, and first acknowledged or delivered.
    fn times(&self, message: Message) -> Option<(u64, u64)> {
        let mut begun = None;
        for Event { at_ns, what } in &self.history {
            match what {
                What::Publish { message: m, .. } if *m == message => {
                    begun = begun.or(Some(*at_ns));
                }
                What::Stored { message: m, .. } | What::Deliver { message: m, .. }
                    if *m == message =>
                {
                    return begun.map(|begun| (begun, *at_ns));
                }
                _ => {}
            }
        }
        None
    }

    /// Swaps two messages of one partition wherever they are named with an offset.
    fn swap(&mut self, (a, at_a): (Message, u32), (b, at_b): (Message, u32)) {
        for event in &mut self.history {
            match &mut event.what {
                What::Deliver { message, .. } if *message == a => *message = b,
                What::Deliver { message, .. } if *message == b => *message = a,
                What::Stored { message, offset: Some(offset) } if *message == a => *offset = at_b,
                What::Stored { message, offset: Some(offset) } if *message == b => *offset = at_a,
                _ => {}
            }
        }
    }

    fn has_faults(&self) -> bool {
        self.history.iter().any(|event| event.what == What::Fault)
    }
}

fn is_queue(mode: Mode) -> bool {
    matches!(mode, Mode::Queue | Mode::KeyedQueue)
}

fn time_falls(case: &mut Case) -> Option<()> {
    let at = case.random.usize(2..case.history.len());
    case.history[at].at_ns = case.history[at - 1].at_ns - 1;
    Some(())
}

fn answer_twice(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Stored { .. } | What::NotStored { .. }))?;
    let what = case.history[at].what;
    case.insert(at + 1, what);
    Some(())
}

fn drop_from_drain(case: &mut Case) -> Option<()> {
    let at = case.drained()?.at;
    case.history.remove(at);
    Some(())
}

fn cut_tail(case: &mut Case) -> Option<()> {
    let ends = |what| matches!(what, What::Drained { .. });
    let at = case.find(ends)?;
    let What::Drained { end, .. } = &mut case.history[at].what else { return None };
    *end = end.checked_sub(1)?;
    let is_last = matches!(case.history[at - 1].what, What::Deliver { .. });
    is_last.then(|| case.history.remove(at - 1)).map(|_| ())
}

fn cut_head(case: &mut Case) -> Option<()> {
    let begins = |what| matches!(what, What::Subscribe { mode: Mode::Drain, .. });
    let at = case.find(begins)?;
    let What::Subscribe { consumer, partition, .. } = case.history[at].what else { return None };
    let all = case.deliveries(|mode| mode == Mode::Drain);
    let mut mine =
        all.iter().filter(|d| d.consumer == consumer && d.message.partition == partition);
    let first = mine.next()?.at;
    case.history.remove(first);
    if let What::Subscribe { from, .. } = &mut case.history[at].what {
        *from += 1;
    }
    Some(())
}

fn no_drain(case: &mut Case) -> Option<()> {
    let partition = case.drained()?.message.partition;
    case.history.retain(
        |event| !matches!(event.what, What::Drained { partition: p, .. } if p == partition),
    );
    Some(())
}

/// A message that only its publisher has seen is lost, and its duplicate's offset is forgotten.
fn vanish(case: &mut Case) -> Option<()> {
    let message = case.drained()?.message;
    if case.history.iter().any(|event| matches!(event.what, What::Trim { .. })) {
        return None;
    }
    let mut is_acknowledged = false;
    case.history.retain_mut(|event| match &mut event.what {
        What::Stored { message: m, offset } if *m == message => {
            *offset = None;
            is_acknowledged = true;
            true
        }
        What::Deliver { message: m, .. } => *m != message,
        _ => true,
    });
    is_acknowledged.then_some(())
}

fn trim_unsettled(case: &mut Case) -> Option<()> {
    let all = case.deliveries(is_queue);
    let Delivered { at, message, offset, subscription, .. } = case.any(all)?;
    let partition = message.partition;
    let was_asked = case.history[..at].iter().any(|event| match event.what {
        What::Settle { consumer, partition: p, offset: o, .. } => {
            p == partition && o == offset && case.modes[&consumer].0 == subscription
        }
        _ => false,
    });
    let is_free = case.stays(partition, offset) && !was_asked;
    is_free.then(|| case.insert(at + 1, What::Trim { partition, log_start: offset + 1 }))
}

fn claim_settled(case: &mut Case) -> Option<()> {
    let all = case.deliveries(is_queue);
    let Delivered { at, message, offset, consumer, attempt, subscription, .. } = case.any(all)?;
    let partition = message.partition;
    let was_asked = case.history[..at].iter().any(|event| match event.what {
        What::Settle { consumer, partition: p, offset: o, .. } => {
            p == partition && o == offset && case.modes[&consumer].0 == subscription
        }
        _ => false,
    });
    if was_asked || !case.stays(partition, offset) {
        return None;
    }
    let (verb, result) = (Verb::Ack, SettleResult::AlreadySettled);
    case.insert(at + 1, What::Settled { consumer, partition, offset, attempt, verb, result });
    Some(())
}

fn change_body(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Deliver { .. }))?;
    let What::Deliver { message, offset, consumer, partition, replica, .. } = case.history[at].what
    else {
        return None;
    };
    let mut body = body_of(message, 100);
    body[case.random.usize(..100)] ^= 1 << case.random.u8(..8);
    case.history[at].what = match identify(&body) {
        Some(other) => panic!("{message} was taken for {other}"),
        None => What::Foreign { consumer, partition, offset, replica },
    };
    Some(())
}

fn invent(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Deliver { .. }))?;
    case.replace(at, |message, _| message.sequence += 1_000);
    Some(())
}

fn misplace(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Deliver { .. }))?;
    case.replace(at, |message, _| message.partition ^= 1);
    Some(())
}

fn deliver_refused(case: &mut Case) -> Option<()> {
    let at = case.drained()?.at;
    let refused = case.find(|what| matches!(what, What::NotStored { .. }))?;
    let What::NotStored { message: refused } = case.history[refused].what else { return None };
    let had_unknown = |event: &Event| event.what == What::Unknown { message: refused };
    if case.history.iter().any(had_unknown) {
        return None;
    }
    let What::Deliver { message, partition, .. } = &mut case.history[at].what else { return None };
    *message = refused;
    (*partition == refused.partition).then_some(())
}

fn deliver_void(case: &mut Case) -> Option<()> {
    let at = case.drained()?.at;
    let void = case.find(|what| matches!(what, What::Void { .. }))?;
    let What::Void { message: void } = case.history[void].what else { return None };
    let What::Deliver { message, partition, .. } = &mut case.history[at].what else { return None };
    *message = void;
    (*partition == void.partition).then_some(())
}

fn acknowledge_elsewhere(case: &mut Case) -> Option<()> {
    let Delivered { message, .. } = case.drained()?;
    let at = case.find(
        |what| matches!(what, What::Stored { message: m, offset: Some(_) } if m == message),
    )?;
    let What::Stored { offset, .. } = &mut case.history[at].what else { return None };
    *offset = offset.map(|offset| offset + 1);
    Some(())
}

fn replace_in_drain(case: &mut Case) -> Option<()> {
    let (a, b) = (case.drained()?, case.drained()?);
    let is_other = a.message != b.message && a.message.partition == b.message.partition;
    case.replace(a.at, |message, _| *message = b.message);
    is_other.then_some(())
}

fn offset_beyond(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Deliver { .. }))?;
    case.replace(at, |_, offset| *offset += 100_000);
    Some(())
}

fn swap_of_producer(case: &mut Case) -> Option<()> {
    let (a, b) = (case.drained()?, case.drained()?);
    let is_same = a.message.producer == b.message.producer
        && a.message.partition == b.message.partition
        && a.offset != b.offset;
    is_same.then(|| case.swap((a.message, a.offset), (b.message, b.offset)))
}

fn swap_in_time(case: &mut Case) -> Option<()> {
    let (a, b) = (case.drained()?, case.drained()?);
    let (_, known_ns) = case.times(a.message)?;
    let (begun_ns, _) = case.times(b.message)?;
    if a.message.partition != b.message.partition || a.offset >= b.offset || known_ns >= begun_ns {
        return None;
    }
    // Deliveries before the publish would be inventions: only the drains are left.
    let modes = &case.modes;
    case.history.retain(|event| match event.what {
        What::Deliver { message, consumer, .. } if message == a.message || message == b.message => {
            modes[&consumer].1 == Mode::Drain
        }
        _ => true,
    });
    case.swap((a.message, a.offset), (b.message, b.offset));
    case.times(a.message).filter(|(_, known_ns)| *known_ns < begun_ns).map(|_| ())
}

/// Two deliveries to one consumer in a row, without an attach between them.
fn pair(
    case: &mut Case,
    mode: Mode,
    is: impl Fn(&Delivered, &Delivered) -> bool,
) -> Option<(Delivered, Delivered)> {
    let all = case.deliveries(|of| of == mode);
    let mut pairs = Vec::new();
    for (number, first) in all.iter().enumerate() {
        let same = |d: &&Delivered| {
            d.consumer == first.consumer && d.message.partition == first.message.partition
        };
        let Some(second) = all[number + 1..].iter().find(same) else { continue };
        let attaches = case.history[first.at..second.at].iter().any(|event| {
            matches!(event.what, What::Subscribe { consumer, .. } if consumer == first.consumer)
        });
        if !attaches && is(first, second) {
            pairs.push((*first, *second));
        }
    }
    case.any(pairs)
}

fn skip_in_stream(case: &mut Case) -> Option<()> {
    let (first, _) = pair(case, Mode::Stream, |a, b| b.offset == a.offset + 1)?;
    let stays = case.stays(first.message.partition, first.offset);
    stays.then(|| case.history.remove(first.at)).map(|_| ())
}

fn repeat_in_stream(case: &mut Case) -> Option<()> {
    let (first, second) = pair(case, Mode::Stream, |_, _| true)?;
    let again = case.history[first.at].what;
    case.insert(second.at + 1, again);
    Some(())
}

fn swap_first(case: &mut Case, mode: Mode) -> Option<()> {
    let (a, b) = pair(case, mode, |a, b| {
        a.attempt == 1 && b.attempt == 1 && a.message.producer == b.message.producer
    })?;
    // A newer token may overtake the first one on the way: records that went out once.
    let all = case.deliveries(|of| of == mode);
    let is_again = |d: &Delivered| {
        let same = |e: &&Delivered| e.subscription == d.subscription && e.message == d.message;
        all.iter().filter(same).count() > 1
    };
    let (begun_ns, _) = case.times(b.message)?;
    if is_again(&a) || is_again(&b) || begun_ns >= case.history[a.at].at_ns {
        return None;
    }
    case.replace(a.at, |message, offset| (*message, *offset) = (b.message, b.offset));
    case.replace(b.at, |message, offset| (*message, *offset) = (a.message, a.offset));
    Some(())
}

fn repeat_token(case: &mut Case) -> Option<()> {
    let all = case.deliveries(is_queue);
    let at = case.any(all)?.at;
    let what = case.history[at].what;
    case.insert(at + 1, what);
    Some(())
}

/// A lease, and the newer one of the same record.
fn superseded(case: &mut Case, mode: Mode) -> Option<(Delivered, Delivered)> {
    let all = case.deliveries(|of| of == mode);
    let newer = |old: &Delivered| {
        all.iter().copied().find(|new| {
            new.subscription == old.subscription
                && new.message == old.message
                && new.attempt > old.attempt
        })
    };
    let pairs = all.iter().filter_map(|old| Some((*old, newer(old)?))).collect();
    case.any(pairs)
}

fn old_token(case: &mut Case, verb: Verb) -> Option<()> {
    let mode = if verb == Verb::Ack { Mode::KeyedQueue } else { Mode::Queue };
    let (old, new) = superseded(case, mode)?;
    let Delivered { offset, consumer, attempt, .. } = old;
    let partition = old.message.partition;
    let result = SettleResult::Ok;
    let at = new.at.max(old.at) + 1;
    case.insert(at, What::Settle { consumer, partition, offset, attempt, verb });
    case.insert(at + 1, What::Settled { consumer, partition, offset, attempt, verb, result });
    Some(())
}

fn settle_ahead(case: &mut Case) -> Option<()> {
    let modes = case.modes.clone();
    let at = case.find(|what| match what {
        What::Settled { consumer, result: SettleResult::Ok, .. } => is_queue(modes[&consumer].1),
        _ => false,
    })?;
    let What::Settled { attempt, .. } = &mut case.history[at].what else { return None };
    *attempt += 100;
    Some(())
}

fn settle_beyond(case: &mut Case) -> Option<()> {
    let all = case.deliveries(|mode| mode == Mode::Stream);
    let Delivered { at, message, offset, consumer, .. } = case.any(all)?;
    let partition = message.partition;
    // The offset must be one that somebody could have published.
    let offset = offset + 1;
    let published = case.history[..at].iter().filter_map(|event| match event.what {
        What::Publish { message, .. } if message.partition == partition => {
            Some((message.producer, message.sequence))
        }
        _ => None,
    });
    if published.collect::<BTreeSet<_>>().len() <= offset as usize {
        return None;
    }
    let (verb, result) = (Verb::Ack, SettleResult::Ok);
    case.insert(at + 1, What::Settle { consumer, partition, offset, attempt: 0, verb });
    case.insert(at + 2, What::Settled { consumer, partition, offset, attempt: 0, verb, result });
    Some(())
}

/// Where the drains begin: long after everything else.
fn quiet(case: &Case) -> Option<usize> {
    case.places(|what| matches!(what, What::Subscribe { mode: Mode::Drain, .. })).first().copied()
}

fn redeliver(case: &mut Case, partition: u16, offset: u32, subscription: u16) -> Option<()> {
    let all = case.deliveries(is_queue);
    let mut mine = all.iter().filter(|d| {
        d.subscription == subscription && d.message.partition == partition && d.offset == offset
    });
    let last = mine.next_back()?;
    let mut what = case.history[last.at].what;
    if let What::Deliver { attempt, count, .. } = &mut what {
        *attempt += 1;
        *count += 1;
    }
    let at = quiet(case)?;
    let at_ns = case.history[at].at_ns;
    case.history.insert(at, Event { at_ns, what });
    Some(())
}

fn redeliver_settled(case: &mut Case) -> Option<()> {
    let modes = case.modes.clone();
    let at = case.find(|what| match what {
        What::Settled { consumer, verb: Verb::Ack, result: SettleResult::Ok, .. } => {
            is_queue(modes[&consumer].1)
        }
        _ => false,
    })?;
    let What::Settled { consumer, partition, offset, .. } = case.history[at].what else {
        return None;
    };
    redeliver(case, partition, offset, modes[&consumer].0)
}

fn deliver_expired(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Exit { subscription: 1 | 2, .. }))?;
    let What::Exit { subscription, partition, offset, .. } = case.history[at].what else {
        return None;
    };
    redeliver(case, partition, offset, subscription)
}

fn attach_below(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Subscribe { mode: Mode::Stream, .. }))?;
    let What::Subscribe { partition, .. } = case.history[at].what else { return None };
    let settled = case.history[..at].iter().filter_map(|event| match event.what {
        What::Settled { consumer, partition: p, offset, result: SettleResult::Ok, .. }
            if p == partition && case.modes[&consumer].1 == Mode::Stream =>
        {
            Some(offset)
        }
        _ => None,
    });
    let settled = settled.max()?;
    let What::Subscribe { from, .. } = &mut case.history[at].what else { return None };
    *from = settled;
    Some(())
}

fn hide_count(case: &mut Case) -> Option<()> {
    let mode = if case.random.bool() { Mode::Queue } else { Mode::KeyedQueue };
    let (_, new) = superseded(case, mode)?;
    if let What::Deliver { count, .. } = &mut case.history[new.at].what {
        *count = 1;
    }
    Some(())
}

fn redeliver_leased(case: &mut Case) -> Option<()> {
    if case.has_faults() {
        return None;
    }
    let all = case.deliveries(is_queue);
    let at = case.any(all)?.at;
    let mut what = case.history[at].what;
    if let What::Deliver { attempt, count, .. } = &mut what {
        *attempt += 1;
        *count += 1;
    }
    case.insert(at + 1, what);
    Some(())
}

/// Grants of one epoch of a consumer never come to what it gets in it.
fn exceed(case: &mut Case, messages: bool) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Grant { peer: Peer::Consumer(_), .. }))?;
    let What::Grant { peer: Peer::Consumer(mine), epoch: era, .. } = case.history[at].what else {
        return None;
    };
    let mut bytes = BTreeMap::new();
    let mut current = 0;
    let mut spent = (0_u64, 0_u64);
    for event in &case.history {
        match event.what {
            What::Publish { message, bytes: len } => {
                bytes.insert((message.producer, message.partition, message.sequence), len);
            }
            What::Grant { peer: Peer::Consumer(consumer), epoch, .. } if consumer == mine => {
                current = epoch;
            }
            What::Deliver { message: m, consumer, .. } if consumer == mine && current == era => {
                spent.0 += u64::from(bytes[&(m.producer, m.partition, m.sequence)]);
                spent.1 += 1;
            }
            _ => {}
        }
    }
    for event in &mut case.history {
        if let What::Grant { peer, epoch, limit_cost, limit_messages } = &mut event.what
            && (*peer, *epoch) == (Peer::Consumer(mine), era)
        {
            let limit = if messages { &mut *limit_messages } else { &mut *limit_cost };
            let most = if messages { spent.1 } else { spent.0 };
            *limit = (*limit).min(most.saturating_sub(1));
        }
    }
    // A single record may be larger than all credit.
    (spent.1 > 1).then_some(())
}

fn overspend(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Spend { .. }))?;
    let What::Spend { cost, .. } = &mut case.history[at].what else { return None };
    *cost += 4_000_000;
    Some(())
}

fn stale_end(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::TailEnd { .. }))?;
    let What::TailEnd { query, end: Some(_) } = case.history[at].what else { return None };
    let asked = case.places(|what| matches!(what, What::Tail { query: q, .. } if q == query));
    let asked = *asked.first()?;
    let What::Tail { partition, .. } = case.history[asked].what else { return None };
    let known = case.history[..asked].iter().filter_map(|event| match event.what {
        What::Stored { message, offset } if message.partition == partition => offset,
        What::Deliver { message, offset, .. } if message.partition == partition => Some(offset),
        _ => None,
    });
    let stale = known.max()?;
    case.history[at].what = What::TailEnd { query, end: Some(stale) };
    Some(())
}

fn early_end(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::TailEnd { .. }))?;
    let What::TailEnd { end, .. } = &mut case.history[at].what else { return None };
    *end = Some(100_000);
    Some(())
}

fn second_leader(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Leader { .. }))?;
    let mut what = case.history[at].what;
    if let What::Leader { replica, .. } = &mut what {
        *replica += 1;
    }
    case.insert(at + 1, what);
    Some(())
}

fn part_chains(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Chain { .. }))?;
    let What::Chain { chain, .. } = &mut case.history[at].what else { return None };
    *chain ^= 1 << 7;
    Some(())
}

fn no_leader(case: &mut Case) -> Option<()> {
    let healed = *case.places(|what| what == What::Heal).last()?;
    let mut at = 0;
    case.history.retain(|event| {
        at += 1;
        at <= healed || !matches!(event.what, What::Leader { .. })
    });
    Some(())
}

fn late_leader(case: &mut Case) -> Option<()> {
    let healed = *case.places(|what| what == What::Heal).last()?;
    let leads = |event: &&Event| matches!(event.what, What::Leader { .. });
    let late: Vec<Event> = case.history[healed..].iter().filter(leads).copied().collect();
    no_leader(case)?;
    let at = quiet(case)?;
    for event in late {
        let at_ns = case.history[at].at_ns;
        case.history.insert(at, Event { at_ns, ..event });
    }
    Some(())
}

fn never_resolved(case: &mut Case) -> Option<()> {
    let unknown = case.find(|what| matches!(what, What::Unknown { .. }))?;
    let What::Unknown { message } = case.history[unknown].what else { return None };
    let mut at = 0;
    case.history.retain(|event| {
        at += 1;
        at <= unknown + 1
            || !matches!(
                event.what,
                What::Publish { message: m, .. }
                    | What::Stored { message: m, .. }
                    | What::NotStored { message: m }
                    | What::Unknown { message: m }
                    | What::Void { message: m } if m == message
            )
    });
    Some(())
}

fn unseen(case: &mut Case) -> Option<()> {
    let all = case.deliveries(is_queue);
    let Delivered { message, offset, subscription, .. } = case.any(all)?;
    let partition = message.partition;
    let modes = case.modes.clone();
    case.history.retain(|event| match event.what {
        What::Deliver { consumer, partition: p, offset: o, .. }
        | What::Settle { consumer, partition: p, offset: o, .. }
        | What::Settled { consumer, partition: p, offset: o, .. } => {
            (p, o, modes[&consumer].0) != (partition, offset, subscription)
        }
        _ => true,
    });
    case.stays(partition, offset).then_some(())
}
