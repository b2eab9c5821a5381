//! Broken promises about what is stored, and where.

use super::{Case, Delivered, is_queue};
use weir_sim::history::{Event, Mode, SettleResult, Verb, What, body_of, identify};

pub(super) fn time_falls(case: &mut Case) -> Option<()> {
    let at = case.random.usize(2..case.history.len());
    case.history[at].at_ns = case.history[at - 1].at_ns - 1;
    Some(())
}

pub(super) fn answer_twice(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Stored { .. } | What::NotStored { .. }))?;
    let what = case.history[at].what;
    case.insert(at + 1, what);
    Some(())
}

pub(super) fn drop_from_drain(case: &mut Case) -> Option<()> {
    let at = case.drained()?.at;
    case.history.remove(at);
    Some(())
}

pub(super) fn cut_tail(case: &mut Case) -> Option<()> {
    let ends = |what| matches!(what, What::Drained { .. });
    let at = case.find(ends)?;
    let What::Drained { end, .. } = &mut case.history[at].what else { return None };
    *end = end.checked_sub(1)?;
    let is_last = matches!(case.history[at - 1].what, What::Deliver { .. });
    is_last.then(|| case.history.remove(at - 1)).map(|_| ())
}

pub(super) fn cut_head(case: &mut Case) -> Option<()> {
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

pub(super) fn no_drain(case: &mut Case) -> Option<()> {
    let partition = case.drained()?.message.partition;
    case.history.retain(
        |event| !matches!(event.what, What::Drained { partition: p, .. } if p == partition),
    );
    Some(())
}

/// A message that only its publisher has seen is lost, and its duplicate's offset is forgotten.
pub(super) fn vanish(case: &mut Case) -> Option<()> {
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

pub(super) fn trim_unsettled(case: &mut Case) -> Option<()> {
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

pub(super) fn claim_settled(case: &mut Case) -> Option<()> {
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

pub(super) fn hide_damage(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Damaged { .. }))?;
    let What::Damaged { from, to, .. } = case.history.remove(at).what else { return None };
    let starts = case.history.iter().filter_map(|event| match event.what {
        What::Trim { partition: 0, log_start } => Some(log_start),
        _ => None,
    });
    let ends = case.history.iter().find_map(|event| match event.what {
        What::Drained { partition: 0, end, .. } => Some(end),
        _ => None,
    });
    (from.max(starts.max().unwrap_or(0)) < to.min(ends?)).then_some(())
}

pub(super) fn change_body(case: &mut Case) -> Option<()> {
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

pub(super) fn invent(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Deliver { .. }))?;
    case.replace(at, |message, _| message.sequence += 1_000);
    Some(())
}

pub(super) fn misplace(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Deliver { .. }))?;
    case.replace(at, |message, _| message.partition ^= 1);
    Some(())
}

pub(super) fn deliver_refused(case: &mut Case) -> Option<()> {
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

pub(super) fn deliver_void(case: &mut Case) -> Option<()> {
    let at = case.drained()?.at;
    let void = case.find(|what| matches!(what, What::Void { .. }))?;
    let What::Void { message: void } = case.history[void].what else { return None };
    let What::Deliver { message, partition, .. } = &mut case.history[at].what else { return None };
    *message = void;
    (*partition == void.partition).then_some(())
}

pub(super) fn acknowledge_elsewhere(case: &mut Case) -> Option<()> {
    let Delivered { message, .. } = case.drained()?;
    let at = case.find(
        |what| matches!(what, What::Stored { message: m, offset: Some(_) } if m == message),
    )?;
    let What::Stored { offset, .. } = &mut case.history[at].what else { return None };
    *offset = offset.map(|offset| offset + 1);
    Some(())
}

pub(super) fn replace_in_drain(case: &mut Case) -> Option<()> {
    let (a, b) = (case.drained()?, case.drained()?);
    let is_other = a.message != b.message && a.message.partition == b.message.partition;
    case.replace(a.at, |message, _| *message = b.message);
    is_other.then_some(())
}

pub(super) fn offset_beyond(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Deliver { .. }))?;
    case.replace(at, |_, offset| *offset += 100_000);
    Some(())
}

pub(super) fn swap_of_producer(case: &mut Case) -> Option<()> {
    let (a, b) = (case.drained()?, case.drained()?);
    let is_same = a.message.producer == b.message.producer
        && a.message.partition == b.message.partition
        && a.offset != b.offset;
    is_same.then(|| case.swap((a.message, a.offset), (b.message, b.offset)))
}

pub(super) fn swap_in_time(case: &mut Case) -> Option<()> {
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
