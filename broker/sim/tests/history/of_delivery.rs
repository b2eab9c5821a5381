//! Broken promises to consumers.

use super::{Case, Delivered, forget, is_queue, pair, quiet};
use std::collections::{BTreeMap, BTreeSet};
use weir_sim::history::{Event, Mode, SettleResult, Verb, What};

pub(super) fn skip_in_stream(case: &mut Case) -> Option<()> {
    let (first, _) = pair(case, Mode::Stream, |a, b| b.offset == a.offset + 1)?;
    let stays = case.stays(first.message.partition, first.offset);
    stays.then(|| case.history.remove(first.at)).map(|_| ())
}

pub(super) fn repeat_in_stream(case: &mut Case) -> Option<()> {
    let (first, second) = pair(case, Mode::Stream, |_, _| true)?;
    let again = case.history[first.at].what;
    case.insert(second.at + 1, again);
    Some(())
}

pub(super) fn swap_first(case: &mut Case, mode: Mode) -> Option<()> {
    let (a, b) = pair(case, mode, |a, b| {
        a.attempt == 1 && b.attempt == 1 && a.message.producer == b.message.producer
    })?;
    // A newer token may overtake the first one on the way: records that went out once.
    let all = case.deliveries(|of| of == mode);
    let is_again = |d: &Delivered| {
        let same = |e: &&Delivered| e.subscription == d.subscription && e.message == d.message;
        all.iter().filter(same).count() > 1 || !case.stays(d.message.partition, d.offset)
    };
    let (_, known_ns) = case.times(b.message)?;
    if is_again(&a) || is_again(&b) || known_ns >= case.history[a.at].at_ns {
        return None;
    }
    case.replace(a.at, |message, offset| (*message, *offset) = (b.message, b.offset));
    case.replace(b.at, |message, offset| (*message, *offset) = (a.message, a.offset));
    Some(())
}

pub(super) fn share_key(case: &mut Case) -> Option<()> {
    let (a, b) = pair(case, Mode::KeyedQueue, |a, b| {
        a.message.producer == b.message.producer && a.offset < b.offset && b.attempt == 1
    })?;
    let all = case.deliveries(|of| of == Mode::KeyedQueue);
    let is_again = |d: &Delivered| {
        let goes_out = all.iter().filter(|e| e.message == d.message).count();
        goes_out > 1 || !case.stays(d.message.partition, d.offset)
    };
    let (_, known_ns) = case.times(b.message)?;
    if is_again(&a) || is_again(&b) || known_ns >= case.history[a.at].at_ns {
        return None;
    }
    let mut what = case.history.remove(b.at).what;
    if let What::Deliver { consumer, .. } = &mut what {
        // The consumers of the ordered queue are 3 and 4.
        *consumer = 7 - *consumer;
    }
    case.insert(a.at + 1, what);
    Some(())
}

pub(super) fn skip_in_queue(case: &mut Case) -> Option<()> {
    if !case.is_calm() {
        return None;
    }
    let all = case.deliveries(is_queue);
    let last = all.iter().filter(|d| d.message.partition == 0).map(|d| (d.subscription, d.offset));
    let last: BTreeMap<u16, u32> = last.fold(BTreeMap::new(), |mut ends, (of, offset)| {
        let end = ends.entry(of).or_insert(0);
        *end = offset.max(*end);
        ends
    });
    let below = |d: &Delivered| d.message.partition == 0 && d.offset < last[&d.subscription];
    let inner = all.iter().copied().filter(below).collect();
    let Delivered { offset, subscription, .. } = case.any(inner)?;
    forget(case, (0, offset, subscription));
    (case.stays(0, offset)).then_some(())
}

pub(super) fn repeat_token(case: &mut Case) -> Option<()> {
    let all = case.deliveries(is_queue);
    let d = case.any(all.clone())?;
    // An old one that was overtaken on its way is nobody's any more.
    let is_newer = |other: &Delivered| {
        other.subscription == d.subscription
            && other.message == d.message
            && other.attempt > d.attempt
            && other.at < d.at
    };
    let what = case.history[d.at].what;
    let is_newest = !all.iter().any(is_newer);
    is_newest.then(|| case.insert(d.at + 1, what))
}

/// A lease, and the newer one of the same record.
pub(super) fn superseded(case: &mut Case, mode: Mode) -> Option<(Delivered, Delivered)> {
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

pub(super) fn old_token(case: &mut Case, verb: Verb) -> Option<()> {
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

pub(super) fn settle_ahead(case: &mut Case) -> Option<()> {
    let modes = case.modes.clone();
    let at = case.find(|what| match what {
        What::Settled { consumer, result: SettleResult::Ok, .. } => is_queue(modes[&consumer].1),
        _ => false,
    })?;
    let What::Settled { attempt, .. } = &mut case.history[at].what else { return None };
    *attempt += 100;
    Some(())
}

pub(super) fn settle_beyond(case: &mut Case) -> Option<()> {
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

pub(super) fn redeliver(
    case: &mut Case,
    partition: u16,
    offset: u32,
    subscription: u16,
) -> Option<()> {
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

pub(super) fn redeliver_settled(case: &mut Case) -> Option<()> {
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

pub(super) fn deliver_expired(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Exit { subscription: 1 | 2, .. }))?;
    let What::Exit { subscription, partition, offset, .. } = case.history[at].what else {
        return None;
    };
    let back = What::Redriven { subscription, partition, offset };
    if case.history.iter().any(|event| event.what == back) {
        return None;
    }
    redeliver(case, partition, offset, subscription)
}

pub(super) fn attach_below(case: &mut Case) -> Option<()> {
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

pub(super) fn hide_count(case: &mut Case) -> Option<()> {
    let mode = if case.random.bool() { Mode::Queue } else { Mode::KeyedQueue };
    let (_, new) = superseded(case, mode)?;
    if let What::Deliver { count, .. } = &mut case.history[new.at].what {
        *count = 1;
    }
    Some(())
}

pub(super) fn redeliver_leased(case: &mut Case) -> Option<()> {
    if !case.is_calm() {
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

pub(super) fn count_ahead(case: &mut Case) -> Option<()> {
    let all = case.deliveries(is_queue);
    let firsts = all.into_iter().filter(|d| d.attempt == 1).collect();
    let at = case.any(firsts)?.at;
    if let What::Deliver { count, .. } = &mut case.history[at].what {
        *count = 2;
    }
    case.is_calm().then_some(())
}

pub(super) fn unseen(case: &mut Case) -> Option<()> {
    let all = case.deliveries(is_queue);
    let Delivered { message, offset, subscription, .. } = case.any(all)?;
    let partition = message.partition;
    forget(case, (partition, offset, subscription));
    (case.stays(partition, offset)).then_some(())
}
