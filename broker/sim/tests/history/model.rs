//! A small broker and its clients, that keep every promise, and record what they do.
//!
//! Owns: what happens at the broker and when it is on its way; the history as clients see it.
//! Never: breaks a promise: a violation of its history is a mistake of the checker.

mod consume;
mod publish;
mod retention;

use fastrand::Rng;
use std::collections::BTreeMap;
use weir_sim::history::{Event, Message, Mode, SettleResult, Verb, What};

const STREAM: u16 = 0;
const READER: u16 = 99;
const REPLICAS: u8 = 3;
const QUIET_NS: u64 = 35_000_000_000;
const WINDOW_MESSAGES: u64 = 6;
const WINDOW_COST: u64 = 6_000;

/// Something under way.
#[derive(Clone, Copy)]
enum Step {
    Publish { message: Message, era: u16 },
    Answer { message: Message, era: u16, stored: Option<u32> },
    Hand { to: usize, era: u16, what: What },
    Settle { by: usize, era: u16, partition: u16, offset: u32, attempt: u16, verb: Verb },
    Settled { by: usize, era: u16, what: What },
    Tail { partition: u16 },
    Note(What),
}

#[derive(Clone, Copy, PartialEq)]
enum Known {
    Open,
    Unknown,
    Final,
}

#[derive(Clone, Copy)]
struct Sent {
    bytes: u32,
    known: Known,
    had_unknown: bool,
    is_dead: bool,
    offset: Option<u32>,
}

#[derive(Default)]
struct Producer {
    era: u16,
    due_ns: u64,
    limit: u64,
    spent: u64,
    sent: Vec<Vec<Sent>>,
}

struct Consumer {
    subscription: u16,
    mode: Mode,
    era: u16,
    is_attached: bool,
    due_ns: u64,
    next: Vec<u32>,
    /// What the application has and did not settle: (partition, offset, attempt).
    held: Vec<(u16, u32, u16)>,
    spent: (u64, u64),
    limit: (u64, u64),
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Ready,
    Leased { to: usize, is_held: bool },
    Settled,
    Out { parked_ns: Option<u64> },
}

/// A queue in one partition, by offset: where the record is, and attempts so far.
#[derive(Default)]
struct Queue {
    places: Vec<(Place, u16)>,
}

#[derive(Default)]
struct Partition {
    log: Vec<Message>,
    log_start: u32,
    term: u32,
    cursor: u32,
    queues: BTreeMap<u16, Queue>,
}

struct Model {
    random: Rng,
    now_ns: u64,
    steps: BTreeMap<(u64, u64), Step>,
    number: u64,
    producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    partitions: Vec<Partition>,
    queries: u16,
    is_ending: bool,
    has_faults: bool,
    has_cuts: bool,
    history: Vec<Event>,
}

/// A valid history.
pub(crate) fn history(seed: u64) -> Vec<Event> {
    let mut model = Model::new(seed);
    model.has_cuts = model.random.u32(..4) > 0;
    model.has_faults = model.has_cuts && model.random.bool();
    model.attach_all();
    let actions = model.random.u32(60..260);
    for _ in 0..actions {
        model.act();
        model.pass(400_000);
    }
    if model.has_faults {
        model.fault();
    }
    model.is_ending = true;
    let stored: usize = model.partitions.iter().map(|of| of.log.len()).sum();
    for _ in 0..400 + 10 * stored {
        model.finish_work();
        model.pass(400_000);
    }
    model.now_ns += QUIET_NS;
    model.pass(400_000);
    model.now_ns += QUIET_NS;
    model.drain_all();
    model.history
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let mut partitions: Vec<Partition> = Vec::new();
        partitions.resize_with(random.usize(1..=2), Partition::default);
        let mut producers: Vec<Producer> = Vec::new();
        producers.resize_with(random.usize(1..=3), Producer::default);
        for producer in &mut producers {
            producer.sent = vec![Vec::new(); partitions.len()];
        }
        for partition in &mut partitions {
            partition.queues.insert(1, Queue::default());
            partition.queues.insert(2, Queue::default());
        }
        Self {
            has_faults: false,
            has_cuts: false,
            random,
            now_ns: 1_000,
            steps: BTreeMap::new(),
            number: 0,
            producers,
            consumers: Vec::new(),
            partitions,
            queries: 0,
            is_ending: false,
            history: Vec::new(),
        }
    }

    fn note(&mut self, what: What) {
        self.history.push(Event { at_ns: self.now_ns, what });
    }

    /// Puts a step on its way, behind what the same connection has under way.
    fn send(&mut self, due_ns: u64, step: Step) -> u64 {
        let at_ns = (self.now_ns + self.random.u64(1_000..900_000)).max(due_ns + 1);
        self.number += 1;
        self.steps.insert((at_ns, self.number), step);
        at_ns
    }

    /// Lets time pass, and what is due happen.
    fn pass(&mut self, ns_max: u64) {
        let until = self.now_ns + self.random.u64(1_000..ns_max);
        while let Some(first) = self.steps.first_entry().filter(|first| first.key().0 <= until) {
            let ((at_ns, _), step) = first.remove_entry();
            self.now_ns = at_ns.max(self.now_ns);
            self.happen(step);
        }
        self.now_ns = until.max(self.now_ns);
    }

    fn happen(&mut self, step: Step) {
        match step {
            Step::Publish { message, era } => self.on_publish(message, era),
            Step::Answer { message, era, stored } => self.on_answer(message, era, stored),
            Step::Hand { to, era, what } => self.on_hand(to, era, what),
            Step::Settle { by, era, partition, offset, attempt, verb } => {
                let result = self.on_settle(by, (partition, offset, attempt), verb);
                let consumer = by as u16;
                let what = What::Settled { consumer, partition, offset, attempt, verb, result };
                let due_ns = self.consumers[by].due_ns;
                self.consumers[by].due_ns = self.send(due_ns, Step::Settled { by, era, what });
            }
            Step::Settled { by, era, what } if self.consumers[by].era == era => self.note(what),
            Step::Settled { what, .. } => {
                let What::Settled { consumer, partition, offset, attempt, verb, .. } = what else {
                    return;
                };
                let result = SettleResult::Unknown;
                self.note(What::Settled { consumer, partition, offset, attempt, verb, result });
            }
            Step::Tail { partition } => {
                let end = Some(self.partitions[usize::from(partition)].log.len() as u32);
                let query = self.queries;
                self.queries += 1;
                self.send(0, Step::Note(What::TailEnd { query, end }));
            }
            Step::Note(what) => self.note(what),
        }
    }

    fn act(&mut self) {
        let partition = self.random.u16(..self.partitions.len() as u16);
        match self.random.u32(..100) {
            0..28 => self.publish(partition),
            28..31 => self.cut_producer(),
            31..38 => self.resolve(),
            38..62 => self.deliver(partition),
            62..82 => self.settle(),
            82..85 => self.lapse(),
            85..88 if self.has_cuts => self.cut_consumer(),
            88..90 => self.expire(partition),
            90..92 => self.redrive(partition),
            92..94 => self.trim(partition),
            94..97 if !self.steps.values().any(|step| matches!(step, Step::Tail { .. })) => {
                let query = self.queries;
                self.note(What::Tail { query, partition });
                self.send(0, Step::Tail { partition });
            }
            97 if self.has_faults => self.fault(),
            _ => self.elect(partition),
        }
    }

    /// Nothing new; what is open comes to its end.
    fn finish_work(&mut self) {
        self.resolve();
        for partition in 0..self.partitions.len() as u16 {
            self.deliver(partition);
            self.deliver(partition);
        }
        self.settle();
    }

    fn attach_all(&mut self) {
        for partition in 0..self.partitions.len() as u16 {
            self.elect(partition);
        }
        let modes = [
            (STREAM, Mode::Stream),
            (1, Mode::Queue),
            (1, Mode::Queue),
            (2, Mode::KeyedQueue),
            (2, Mode::KeyedQueue),
            (READER, Mode::Reader),
        ];
        for (subscription, mode) in modes {
            self.consumers.push(Consumer {
                subscription,
                mode,
                era: 0,
                is_attached: false,
                due_ns: 0,
                next: vec![0; self.partitions.len()],
                held: Vec::new(),
                spent: (0, 0),
                limit: (0, 0),
            });
            self.attach(self.consumers.len() - 1);
        }
    }

    fn elect(&mut self, partition: u16) {
        let (replica, changes) = (self.random.u8(..REPLICAS), self.random.bool());
        let of = &mut self.partitions[usize::from(partition)];
        if changes || of.term == 0 {
            of.term += 1;
            let term = of.term;
            self.note(What::Leader { replica, partition, term });
        }
    }

    fn drain_all(&mut self) {
        let damaged = self.random.u32(..12)..self.random.u32(..16);
        let (from, to) = (damaged.start, damaged.end);
        if from < to {
            self.note(What::Damaged { partition: 0, from, to });
        }
        let first = self.consumers.len() as u16;
        for (replica, consumer) in (0..REPLICAS).zip(first..) {
            for partition in 0..self.partitions.len() as u16 {
                let Partition { log, log_start, .. } = &self.partitions[usize::from(partition)];
                let (log, from) = (log.clone(), *log_start);
                let mode = Mode::Drain;
                let subscription = READER;
                self.note(What::Subscribe { consumer, subscription, partition, mode, from });
                let mut chain = 7_u32;
                for (offset, message) in (0..).zip(&log) {
                    chain = chain.wrapping_mul(31).wrapping_add(message.sequence + 1);
                    self.now_ns += 1_000;
                    if offset % 4 == 3 {
                        let index = u64::from(offset);
                        self.note(What::Chain { replica, partition, index, chain });
                    }
                    let is_damaged = partition == 0 && damaged.contains(&offset);
                    if offset >= from && !is_damaged {
                        self.note(deliver(*message, offset, consumer, (0, 0), replica));
                    }
                }
                let end = log.len() as u32;
                self.note(What::Drained { consumer, partition, replica, end });
            }
        }
    }

    /// Leases end unseen, connections break, leaders change.
    fn fault(&mut self) {
        self.note(What::Fault);
        self.cut_producer();
        self.cut_consumer();
        for queue in self.partitions.iter_mut().flat_map(|of| of.queues.values_mut()) {
            for (place, _) in &mut queue.places {
                if matches!(place, Place::Leased { is_held: true, .. }) && self.random.bool() {
                    *place = Place::Ready;
                }
            }
        }
        self.now_ns += 50_000;
        self.note(What::Heal);
        self.now_ns += self.random.u64(1_000..4_000_000);
        for partition in 0..self.partitions.len() as u16 {
            self.partitions[usize::from(partition)].term += 1;
            let term = self.partitions[usize::from(partition)].term;
            let replica = self.random.u8(..REPLICAS);
            self.note(What::Leader { replica, partition, term });
        }
    }
}

fn deliver(
    message: Message,
    offset: u32,
    consumer: u16,
    (attempt, count): (u16, u16),
    replica: u8,
) -> What {
    let partition = message.partition;
    What::Deliver { message, offset, consumer, partition, attempt, count, replica }
}
