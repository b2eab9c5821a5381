//! One broken promise each, put into a history that keeps them all.
//!
//! Owns: the mutators, and the check that each must be caught by.
//! Never: applies where the change would still keep the promise: then it gives `None`.

mod of_cluster;
mod of_delivery;
mod of_log;

use fastrand::Rng;
use std::collections::BTreeMap;
use weir_sim::history::{Check, Event, Message, Mode, Verb, What};

type Apply = fn(&mut Case) -> Option<()>;

pub(crate) const MUTATORS: [(&str, Check, Apply); 47] = [
    ("time falls", Check::WellFormed, of_log::time_falls),
    ("an answer without a call", Check::WellFormed, of_log::answer_twice),
    ("a drain lacks a message", Check::NoLoss, of_log::drop_from_drain),
    ("a drain ends early", Check::NoLoss, of_log::cut_tail),
    ("a drain begins late", Check::NoLoss, of_log::cut_head),
    ("no drain ends", Check::NoLoss, of_log::no_drain),
    ("an acknowledged message is nowhere", Check::NoLoss, of_log::vanish),
    ("damage that nobody gave up", Check::NoLoss, of_log::hide_damage),
    ("a trim takes what is not settled", Check::NoLoss, of_log::trim_unsettled),
    ("a record is said to be settled by nobody", Check::NoLoss, of_log::claim_settled),
    ("a body byte changes", Check::NoInvention, of_log::change_body),
    ("a message that nobody published", Check::NoInvention, of_log::invent),
    ("a message of another partition", Check::NoInvention, of_log::misplace),
    ("a refused publish is delivered", Check::NoAbortedRead, of_log::deliver_refused),
    ("a voided publish is delivered", Check::NoAbortedRead, of_log::deliver_void),
    ("a message at two offsets", Check::OneOffset, of_log::acknowledge_elsewhere),
    ("two messages at one offset", Check::OneOffset, of_log::replace_in_drain),
    ("an offset beyond what was published", Check::OneOffset, of_log::offset_beyond),
    ("two offsets of a producer are swapped", Check::ProducerOrder, of_log::swap_of_producer),
    ("two offsets are swapped against time", Check::RealTimeOrder, of_log::swap_in_time),
    ("a stream skips a record", Check::ConsumerOrder, of_delivery::skip_in_stream),
    ("a stream goes back", Check::ConsumerOrder, of_delivery::repeat_in_stream),
    ("first deliveries are swapped", Check::ConsumerOrder, |case| {
        of_delivery::swap_first(case, Mode::Queue)
    }),
    ("a key's deliveries are swapped", Check::ConsumerOrder, |case| {
        of_delivery::swap_first(case, Mode::KeyedQueue)
    }),
    ("a key goes to two consumers", Check::ConsumerOrder, of_delivery::share_key),
    ("a queue skips a record", Check::ConsumerOrder, of_delivery::skip_in_queue),
    ("a token is given twice", Check::Lease, of_delivery::repeat_token),
    ("an old token's ack succeeds", Check::Lease, |case| of_delivery::old_token(case, Verb::Ack)),
    ("an old token's release succeeds", Check::Lease, |case| {
        of_delivery::old_token(case, Verb::Release)
    }),
    ("a settle of what was not delivered", Check::Lease, of_delivery::settle_ahead),
    ("a cursor passes what was delivered", Check::Lease, of_delivery::settle_beyond),
    ("settled, then delivered again", Check::SettledStaysSettled, of_delivery::redeliver_settled),
    (
        "a stream is attached below its cursor",
        Check::SettledStaysSettled,
        of_delivery::attach_below,
    ),
    ("expired, then delivered", Check::SettledStaysSettled, of_delivery::deliver_expired),
    ("a redelivery is not counted", Check::Redelivery, of_delivery::hide_count),
    ("a redelivery without a reason", Check::Redelivery, of_delivery::redeliver_leased),
    ("a first delivery is counted as a second", Check::Redelivery, of_delivery::count_ahead),
    ("a consumer gets too many messages", Check::Credit, |case| of_cluster::exceed(case, true)),
    ("a consumer gets too many bytes", Check::Credit, |case| of_cluster::exceed(case, false)),
    ("a producer sends too much", Check::Credit, of_cluster::overspend),
    ("a producer spends what was revoked", Check::Credit, of_cluster::spend_revoked),
    ("a producer spends what an older connection had", Check::Credit, of_cluster::spend_of_old),
    ("a stale end", Check::Tail, of_cluster::stale_end),
    ("an end that is not yet", Check::Tail, of_cluster::early_end),
    ("two leaders in a term", Check::Replicas, of_cluster::second_leader),
    ("chains part", Check::Replicas, of_cluster::part_chains),
    ("no leader after the fault", Check::Liveness, of_cluster::no_leader),
];

/// Those that end in silence: something never happens.
pub(crate) const SILENT: [(&str, Check, Apply); 3] = [
    ("a leader comes late", Check::Liveness, of_cluster::late_leader),
    ("an unknown outcome stays unknown", Check::Liveness, of_cluster::never_resolved),
    ("a subscription never sees a record", Check::Liveness, of_delivery::unseen),
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

    /// Neither a trim, nor damage, nor an exit explains that it is gone.
    fn stays(&self, partition: u16, offset: u32) -> bool {
        !self.history.iter().any(|event| match event.what {
            What::Trim { partition: p, log_start } => p == partition && offset < log_start,
            What::Exit { partition: p, offset: o, .. } => p == partition && o == offset,
            What::Damaged { partition: p, from, to } => {
                p == partition && (from..to).contains(&offset)
            }
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

    /// Neither a fault nor a lost connection can explain anything.
    fn is_calm(&self) -> bool {
        let cuts = |event: &Event| matches!(event.what, What::Fault | What::Detach { .. });
        !self.history.iter().any(cuts)
    }
}

fn is_queue(mode: Mode) -> bool {
    matches!(mode, Mode::Queue | Mode::KeyedQueue)
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

/// Where the drains begin: long after everything else.
fn quiet(case: &Case) -> Option<usize> {
    case.places(|what| matches!(what, What::Subscribe { mode: Mode::Drain, .. })).first().copied()
}

/// A record never comes to a subscription.
fn forget(case: &mut Case, (partition, offset, subscription): (u16, u32, u16)) {
    let modes = &case.modes;
    case.history.retain(|event| match event.what {
        What::Deliver { consumer, partition: p, offset: o, .. }
        | What::Settle { consumer, partition: p, offset: o, .. }
        | What::Settled { consumer, partition: p, offset: o, .. } => {
            (p, o, modes[&consumer].0) != (partition, offset, subscription)
        }
        _ => true,
    });
}
