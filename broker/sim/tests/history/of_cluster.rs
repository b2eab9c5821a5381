//! Broken promises about credit, replicas and time.

use super::{Case, quiet};
use std::collections::{BTreeMap, BTreeSet};
use weir_sim::history::{Event, Peer, What};

/// Grants of one epoch of a consumer never come to what it gets in it.
pub(super) fn exceed(case: &mut Case, messages: bool) -> Option<()> {
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

pub(super) fn overspend(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Spend { .. }))?;
    let What::Spend { cost, .. } = &mut case.history[at].what else { return None };
    *cost += 4_000_000;
    Some(())
}

pub(super) fn spend_revoked(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Spend { .. }))?;
    let What::Spend { peer, epoch, .. } = case.history[at].what else { return None };
    case.insert(at, What::Revoke { peer, epoch, limit_cost: 0 });
    Some(())
}

pub(super) fn spend_of_old(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Spend { epoch: 1.., .. }))?;
    if let What::Spend { epoch, .. } = &mut case.history[at].what {
        *epoch -= 1;
    }
    Some(())
}

pub(super) fn stale_end(case: &mut Case) -> Option<()> {
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

pub(super) fn early_end(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::TailEnd { .. }))?;
    let What::TailEnd { end, .. } = &mut case.history[at].what else { return None };
    *end = Some(100_000);
    Some(())
}

pub(super) fn second_leader(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Leader { .. }))?;
    let mut what = case.history[at].what;
    if let What::Leader { replica, .. } = &mut what {
        *replica += 1;
    }
    case.insert(at + 1, what);
    Some(())
}

pub(super) fn part_chains(case: &mut Case) -> Option<()> {
    let at = case.find(|what| matches!(what, What::Chain { .. }))?;
    let What::Chain { chain, .. } = &mut case.history[at].what else { return None };
    *chain ^= 1 << 7;
    Some(())
}

pub(super) fn no_leader(case: &mut Case) -> Option<()> {
    let healed = *case.places(|what| what == What::Heal).last()?;
    let mut at = 0;
    case.history.retain(|event| {
        at += 1;
        at <= healed || !matches!(event.what, What::Leader { .. })
    });
    Some(())
}

pub(super) fn late_leader(case: &mut Case) -> Option<()> {
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

pub(super) fn never_resolved(case: &mut Case) -> Option<()> {
    // Of a trimmed partition it stays unknown for good whether an old message was ever stored.
    let of_trimmed = |event: &Event| match event.what {
        What::Trim { partition, .. } => Some(partition),
        _ => None,
    };
    let trimmed: BTreeSet<u16> = case.history.iter().filter_map(of_trimmed).collect();
    let unknown = case.find(|what| match what {
        What::Unknown { message } => !trimmed.contains(&message.partition),
        _ => false,
    })?;
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
