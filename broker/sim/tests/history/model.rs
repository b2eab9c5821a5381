//! A small broker and its clients, that keep every promise, and record what they do.
//!
//! Owns: what happens at the broker and when it is on its way; the history as clients see it.
//! Never: breaks a promise: a violation of its history is a mistake of the checker.

use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use weir_sim::history::{Event, Exit, Message, Mode, Peer, SettleResult, Verb, What};

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
    history: Vec<Event>,
}

/// A valid history.
pub(crate) fn history(seed: u64) -> Vec<Event> {
    let mut model = Model::new(seed);
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
    for _ in 0..400 {
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
            has_faults: random.bool(),
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
            85..88 => self.cut_consumer(),
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
                    if offset >= from {
                        self.note(deliver(*message, offset, consumer, (0, 0), replica));
                    }
                }
                let end = log.len() as u32;
                self.note(What::Drained { consumer, partition, replica, end });
            }
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

/// Publishing.
impl Model {
    fn publish(&mut self, partition: u16) {
        let producer = self.random.u16(..self.producers.len() as u16);
        let sent = &mut self.producers[usize::from(producer)].sent[usize::from(partition)];
        // A client settles what it does not know before it publishes on.
        if sent
            .iter()
            .any(|one| one.known == Known::Unknown || one.had_unknown && one.known == Known::Open)
        {
            return;
        }
        let sequence = sent.len() as u32;
        let bytes = self.random.u32(16..1_500);
        sent.push(Sent {
            bytes,
            known: Known::Open,
            had_unknown: false,
            is_dead: false,
            offset: None,
        });
        self.hand_over(Message { producer, partition, sequence }, bytes);
    }

    fn hand_over(&mut self, message: Message, bytes: u32) {
        self.note(What::Publish { message, bytes });
        let cost = bytes.max(512);
        let producer = &mut self.producers[usize::from(message.producer)];
        let (era, due_ns) = (producer.era, producer.due_ns);
        let peer = Peer::Producer(message.producer);
        producer.spent += u64::from(cost);
        if producer.spent > producer.limit {
            producer.limit = producer.spent + 2_000;
            let limit_cost = producer.limit;
            self.note(What::Grant { peer, epoch: era, limit_cost, limit_messages: u64::MAX });
        }
        self.note(What::Spend { peer, epoch: era, cost });
        let due_ns = self.send(due_ns, Step::Publish { message, era });
        self.producers[usize::from(message.producer)].due_ns = due_ns;
    }

    fn sent(&mut self, message: Message) -> &mut Sent {
        let producer = &mut self.producers[usize::from(message.producer)];
        &mut producer.sent[usize::from(message.partition)][message.sequence as usize]
    }

    fn on_publish(&mut self, message: Message, era: u16) {
        let producer = &self.producers[usize::from(message.producer)];
        let sent = &producer.sent[usize::from(message.partition)];
        let is_next = sent[..message.sequence as usize]
            .iter()
            .all(|before| before.is_dead || before.offset.is_some());
        let due_ns = producer.due_ns;
        let refuses = !self.is_ending && self.random.u32(..25) == 0;
        if self.sent(message).is_dead {
            return;
        }
        if self.sent(message).offset.is_none() && is_next && !refuses {
            let log = &mut self.partitions[usize::from(message.partition)];
            log.log.push(message);
            for queue in log.queues.values_mut() {
                queue.places.push((Place::Ready, 0));
            }
            let offset = log.log.len() as u32 - 1;
            self.sent(message).offset = Some(offset);
        }
        let stored = self.sent(message).offset;
        let due_ns = self.send(due_ns, Step::Answer { message, era, stored });
        self.producers[usize::from(message.producer)].due_ns = due_ns;
    }

    fn on_answer(&mut self, message: Message, era: u16, stored: Option<u32>) {
        let forgets = self.random.u32(..3) == 0;
        let is_current = self.producers[usize::from(message.producer)].era == era;
        let sent = self.sent(message);
        if !is_current || sent.known != Known::Open {
            return;
        }
        let had_unknown = sent.had_unknown;
        match stored {
            Some(offset) => {
                sent.known = Known::Final;
                let offset = Some(offset).filter(|_| !(forgets && had_unknown));
                self.note(What::Stored { message, offset });
            }
            None => {
                sent.is_dead = !had_unknown;
                sent.known = if had_unknown { Known::Unknown } else { Known::Final };
                self.note(What::NotStored { message });
            }
        }
    }

    fn cut_producer(&mut self) {
        let producer = self.random.u16(..self.producers.len() as u16);
        self.producers[usize::from(producer)].era += 1;
        self.producers[usize::from(producer)].limit = 0;
        self.producers[usize::from(producer)].spent = 0;
        for message in self.messages_of(producer, Known::Open) {
            self.sent(message).known = Known::Unknown;
            self.sent(message).had_unknown = true;
            self.note(What::Unknown { message });
        }
    }

    fn messages_of(&self, producer: u16, known: Known) -> Vec<Message> {
        let sent = &self.producers[usize::from(producer)].sent;
        let all = (0..).zip(sent).flat_map(|(partition, sent)| {
            (0..).zip(sent).map(move |(sequence, one)| (partition, sequence, one.known))
        });
        all.filter(|(.., of)| *of == known)
            .map(|(partition, sequence, _)| Message { producer, partition, sequence })
            .collect()
    }

    /// Asks again for unknown outcomes, or gives up what a fence has made impossible.
    fn resolve(&mut self) {
        for producer in 0..self.producers.len() as u16 {
            let unknown = self.messages_of(producer, Known::Unknown);
            let gives_up = self.random.u32(..4) == 0;
            for message in unknown {
                if self.sent(message).offset.is_none() && gives_up {
                    self.sent(message).is_dead = true;
                    self.sent(message).known = Known::Final;
                    self.note(What::Void { message });
                    continue;
                }
                self.sent(message).known = Known::Open;
                let bytes = self.sent(message).bytes;
                self.hand_over(message, bytes);
            }
        }
    }
}

/// Consuming.
impl Model {
    fn attach(&mut self, by: usize) {
        self.consumers[by].era += 1;
        self.consumers[by].is_attached = true;
        self.consumers[by].spent = (0, 0);
        self.consumers[by].limit = (WINDOW_COST, WINDOW_MESSAGES);
        let Consumer { subscription, mode, era, .. } = self.consumers[by];
        let consumer = by as u16;
        for partition in 0..self.partitions.len() as u16 {
            let of = &self.partitions[usize::from(partition)];
            let from = match mode {
                Mode::Stream => of.cursor,
                Mode::Reader => self.random.u32(of.log_start..=of.log.len() as u32),
                _ => 0,
            };
            self.consumers[by].next[usize::from(partition)] = from;
            self.note(What::Subscribe { consumer, subscription, partition, mode, from });
        }
        let peer = Peer::Consumer(consumer);
        let (limit_cost, limit_messages) = (WINDOW_COST, WINDOW_MESSAGES);
        self.note(What::Grant { peer, epoch: era, limit_cost, limit_messages });
        // What the session still has is sent to it again, under the same token.
        for partition in 0..self.partitions.len() as u16 {
            let of = &mut self.partitions[usize::from(partition)];
            let Some(queue) = of.queues.get_mut(&subscription) else { continue };
            let mut again = Vec::new();
            for (offset, (place, attempt)) in (0..).zip(&mut queue.places) {
                if let Place::Leased { to, is_held } = place
                    && *to == by
                {
                    *is_held = false;
                    again.push((offset, *attempt));
                }
            }
            for (offset, attempt) in again {
                self.hand(by, partition, offset, attempt);
            }
        }
    }

    fn cut_consumer(&mut self) {
        let by = self.random.usize(..self.consumers.len());
        self.note(What::Detach { consumer: by as u16 });
        self.consumers[by].era += 1;
        self.consumers[by].held.clear();
        if self.random.bool() {
            for queue in self.partitions.iter_mut().flat_map(|of| of.queues.values_mut()) {
                for (place, _) in &mut queue.places {
                    if matches!(place, Place::Leased { to, .. } if *to == by) {
                        *place = Place::Ready;
                    }
                }
            }
        }
        self.attach(by);
    }

    /// Sends a record that the credit allows.
    fn hand(&mut self, to: usize, partition: u16, offset: u32, attempt: u16) {
        let message = self.partitions[usize::from(partition)].log[offset as usize];
        let bytes = u64::from(self.sent(message).bytes);
        let consumer = &mut self.consumers[to];
        consumer.spent = (consumer.spent.0 + bytes, consumer.spent.1 + 1);
        if consumer.spent.0 > consumer.limit.0 || consumer.spent.1 > consumer.limit.1 {
            consumer.limit = (consumer.spent.0 + WINDOW_COST, consumer.spent.1 + WINDOW_MESSAGES);
            let (limit_cost, limit_messages) = consumer.limit;
            let (peer, epoch) = (Peer::Consumer(to as u16), consumer.era);
            self.note(What::Grant { peer, epoch, limit_cost, limit_messages });
        }
        let (era, due_ns) = (self.consumers[to].era, self.consumers[to].due_ns);
        let what = deliver(message, offset, to as u16, (attempt, attempt), 0);
        self.consumers[to].due_ns = self.send(due_ns, Step::Hand { to, era, what });
    }

    fn on_hand(&mut self, to: usize, era: u16, what: What) {
        let What::Deliver { partition, offset, attempt, .. } = what else { return };
        if self.consumers[to].era != era {
            return;
        }
        self.note(what);
        self.consumers[to].held.push((partition, offset, attempt));
        let subscription = self.consumers[to].subscription;
        let of = &mut self.partitions[usize::from(partition)];
        if let Some(queue) = of.queues.get_mut(&subscription)
            && let (Place::Leased { is_held, to: holder }, _) = &mut queue.places[offset as usize]
        {
            *is_held |= *holder == to;
        }
    }

    /// The subscriptions' turn in one partition: one record each.
    fn deliver(&mut self, partition: u16) {
        for by in [0, 5] {
            let of = &self.partitions[usize::from(partition)];
            let next = self.consumers[by].next[usize::from(partition)].max(of.log_start);
            if next < of.log.len() as u32 {
                self.consumers[by].next[usize::from(partition)] = next + 1;
                self.hand(by, partition, next, 0);
            }
        }
        for (subscription, to) in [(1, 1), (2, 3)] {
            let to = to + self.random.usize(..2);
            let Some(offset) = self.pick(partition, subscription) else { continue };
            let of = &mut self.partitions[usize::from(partition)];
            let Some(queue) = of.queues.get_mut(&subscription) else { continue };
            let (place, attempt) = &mut queue.places[offset as usize];
            *place = Place::Leased { to, is_held: false };
            *attempt += 1;
            let attempt = *attempt;
            self.hand(to, partition, offset, attempt);
        }
    }

    /// What the queue delivers next: redeliveries first; in order of its key where it is ordered.
    fn pick(&self, partition: u16, subscription: u16) -> Option<u32> {
        let of = &self.partitions[usize::from(partition)];
        let mut busy = BTreeSet::new();
        let mut fresh = None;
        for (offset, (place, attempt)) in (0..).zip(&of.queues[&subscription].places) {
            let key = of.log[offset as usize].producer;
            let is_free = subscription == 1 || !busy.contains(&key);
            match place {
                Place::Ready if is_free && *attempt > 0 => return Some(offset),
                Place::Ready if is_free => fresh = fresh.or(Some(offset)),
                _ => {}
            }
            if matches!(place, Place::Ready | Place::Leased { .. }) {
                busy.insert(key);
            }
        }
        fresh
    }

    fn settle(&mut self) {
        for by in 0..self.consumers.len() {
            if self.consumers[by].held.is_empty() {
                continue;
            }
            let at = self.random.usize(..self.consumers[by].held.len());
            let (partition, offset, attempt) = self.consumers[by].held.remove(at);
            let verb = match self.random.u32(..20) {
                0 if by != 0 && !self.is_ending => Verb::Release,
                1 if by != 0 && !self.is_ending => Verb::Fail,
                2 if by != 0 => Verb::Reject,
                3 if by != 0 => Verb::Park,
                _ => Verb::Ack,
            };
            if self.consumers[by].mode == Mode::Reader {
                continue;
            }
            let consumer = by as u16;
            self.note(What::Settle { consumer, partition, offset, attempt, verb });
            let (era, due_ns) = (self.consumers[by].era, self.consumers[by].due_ns);
            let step = Step::Settle { by, era, partition, offset, attempt, verb };
            self.consumers[by].due_ns = self.send(due_ns, step);
        }
    }

    fn on_settle(
        &mut self,
        by: usize,
        (partition, offset, attempt): (u16, u32, u16),
        verb: Verb,
    ) -> SettleResult {
        let of = &mut self.partitions[usize::from(partition)];
        let subscription = self.consumers[by].subscription;
        let Some(queue) = of.queues.get_mut(&subscription) else {
            of.cursor = of.cursor.max(offset + 1);
            return SettleResult::Ok;
        };
        let (place, newest) = &mut queue.places[offset as usize];
        let is_holder = matches!(place, Place::Leased { to, .. } if *to == by);
        let is_current = is_holder && *newest == attempt;
        match (*place, verb) {
            (Place::Settled, Verb::Ack) => return SettleResult::AlreadySettled,
            (Place::Settled | Place::Out { .. }, _) => return SettleResult::Refused,
            (_, Verb::Ack) if is_current || subscription == 1 => *place = Place::Settled,
            (_, Verb::Release | Verb::Fail) if is_current => *place = Place::Ready,
            (_, Verb::Reject) if is_current => *place = Place::Out { parked_ns: None },
            (_, Verb::Park) if is_current => {
                *place = Place::Out { parked_ns: Some(self.now_ns) };
            }
            _ => return SettleResult::Refused,
        }
        SettleResult::Ok
    }

    /// A consumer lets a lease run out, and may settle late all the same.
    fn lapse(&mut self) {
        let by = self.random.usize(1..5);
        let Some(&(partition, offset, attempt)) = self.consumers[by].held.first() else { return };
        let subscription = self.consumers[by].subscription;
        let of = &mut self.partitions[usize::from(partition)];
        let Some(queue) = of.queues.get_mut(&subscription) else { return };
        let (place, newest) = &mut queue.places[offset as usize];
        if *newest == attempt && *place == (Place::Leased { to: by, is_held: true }) {
            *place = Place::Ready;
            let consumer = by as u16;
            self.note(What::Lapse { consumer, partition, offset, attempt });
        }
    }

    fn expire(&mut self, partition: u16) {
        let subscription = self.random.u16(1..=2);
        let now_ready = |(place, _): &(Place, u16)| *place == Place::Ready;
        let of = &mut self.partitions[usize::from(partition)];
        let Some(queue) = of.queues.get_mut(&subscription) else { return };
        if let Some(offset) = queue.places.iter().position(now_ready) {
            queue.places[offset].0 = Place::Out { parked_ns: None };
            let exit = if self.random.bool() { Exit::Expired } else { Exit::Skipped };
            self.note(What::Exit { subscription, partition, offset: offset as u32, exit });
        }
    }

    fn redrive(&mut self, partition: u16) {
        let subscription = self.random.u16(1..=2);
        let now_ns = self.now_ns;
        let log_start = self.partitions[usize::from(partition)].log_start as usize;
        let of = &mut self.partitions[usize::from(partition)];
        let Some(queue) = of.queues.get_mut(&subscription) else { return };
        // The operator reads the list of parked records after those who parked were answered.
        let is_old = |(place, _): &(Place, u16)| matches!(place, Place::Out { parked_ns: Some(at) } if at + 20_000_000 < now_ns);
        let found = queue.places.iter().position(is_old).filter(|offset| *offset >= log_start);
        // In key order, only what nothing of its key has followed.
        if let Some(offset) = found.filter(|_| subscription == 1) {
            queue.places[offset].0 = Place::Ready;
            self.note(What::Redriven { subscription, partition, offset: offset as u32 });
        }
    }

    /// Trims what every subscription has settled; where the policy is `expire`, what none holds.
    fn trim(&mut self, partition: u16) {
        let expires = self.random.u32(..3) == 0;
        let of = &mut self.partitions[usize::from(partition)];
        let is_left = |place: &Place| match place {
            Place::Leased { .. } => true,
            Place::Ready => !expires,
            Place::Settled | Place::Out { .. } => false,
        };
        let floors = of.queues.values().map(|queue| {
            let first = queue.places.iter().position(|(place, _)| is_left(place));
            first.unwrap_or(queue.places.len()) as u32
        });
        let stream = if expires { of.log.len() as u32 } else { of.cursor };
        let log_start = floors.min().unwrap_or(0).min(stream).max(of.log_start);
        if log_start == of.log_start {
            return;
        }
        let mut exits = Vec::new();
        for offset in of.cursor..log_start {
            exits.push((STREAM, offset));
        }
        for (subscription, queue) in &mut of.queues {
            for (offset, (place, _)) in (0..log_start).zip(&mut queue.places) {
                if *place == Place::Ready {
                    *place = Place::Out { parked_ns: None };
                    exits.push((*subscription, offset));
                }
            }
        }
        of.cursor = of.cursor.max(log_start);
        of.log_start = log_start;
        self.note(What::Trim { partition, log_start });
        for (subscription, offset) in exits {
            self.note(What::Exit { subscription, partition, offset, exit: Exit::Expired });
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
