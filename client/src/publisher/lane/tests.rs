//! A lane against a broker that refuses, forgets and loses connections as chance has it.
//!
//! The driver's part is played as strictly as it can be: the lane is visited only when it was
//! rung, when a frame changed it, or at the time it asked for.

use super::*;
use crate::publisher::answers::Retries;
use crate::retry::RetryBudget;
use crate::seams::Chance;
use futures_util::FutureExt;
use std::collections::VecDeque;
use weir_protocol::batch::RecordIter;
use weir_protocol::frame::{Grant, Published, PublisherOpened, Refusal, Refused, StoredRange};
use weir_protocol::limits::BATCH_BYTES_TARGET;
use weir_protocol::types::{BrokerId, Offset, RequestId, Term};

/// Between a frame's sending and its arrival.
const HOP: Duration = Duration::from_millis(1);

/// What the broker holds, and what is under way in both directions.
struct Broker {
    random: fastrand::Rng,
    /// Refuses, forgets, loses; otherwise it does what it is asked.
    hostile: bool,
    log: Vec<u64>,
    /// Another one leads from time to time, with the same log.
    id: BrokerId,
    producer: u64,
    /// By sequence: offsets of what the producer has stored.
    stored: Vec<u64>,
    /// The lane knows that something of this producer is stored.
    told: bool,
    stream: u32,
    open: bool,
    limit: u64,
    spent: u64,
    arriving: VecDeque<Frame>,
    answers: VecDeque<Frame>,
}

impl Broker {
    fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            hostile: true,
            log: Vec::new(),
            id: BrokerId(1),
            producer: 1,
            stored: Vec::new(),
            told: false,
            stream: 0,
            open: false,
            limit: 0,
            spent: 0,
            arriving: VecDeque::new(),
            answers: VecDeque::new(),
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.hostile && self.random.u32(..100) < percent
    }

    /// Forgets the producer. Under its old number it may come back only when it can know that it
    /// was forgotten: what it is told then is less than what it knows to be stored.
    fn forget(&mut self) {
        if !(self.told && self.random.bool()) {
            self.producer += 1;
        }
        self.told = false;
        self.stored.clear();
    }

    fn opened(&mut self, identity: Option<Identity>) -> PublisherOpened {
        self.stream += 1;
        (self.open, self.limit, self.spent) = (true, 0, 0);
        if self.chance(30) {
            self.id.0 += 1;
        }
        if self.chance(10) {
            self.forget();
        }
        if identity.is_some_and(|identity| identity.id.0 != self.producer) {
            self.producer += 1;
            self.stored.clear();
        }
        PublisherOpened {
            stream: StreamId(self.stream),
            request: RequestId(0),
            producer_id: ProducerId(self.producer),
            producer_epoch: 1,
            next_sequence: Sequence(self.stored.len() as u64),
            log_end: Offset(self.log.len() as u64),
            term: Term(0),
        }
    }

    fn closed(&mut self) {
        self.open = false;
        self.arriving.clear();
        self.answers.clear();
    }

    fn grant(&mut self, more: u64) -> Grant {
        self.limit = self.limit.max(self.spent + more);
        Grant { limit_cost: self.limit, limit_messages: u64::MAX, ..Grant::default() }
    }

    /// Takes in the next frame.
    fn take_in(&mut self) {
        match self.arriving.pop_front() {
            Some(Frame::Publish(publish)) => self.publish(&publish),
            Some(Frame::Demand(stream, demand)) => {
                let most = if self.hostile { 50_000 } else { demand.cost };
                let more = demand.largest.max(self.random.u64(..=most));
                let grant = self.grant(more);
                self.answers.push_back(Frame::Grant(stream, grant));
            }
            Some(Frame::Revoked(_, revoked)) => {
                assert_eq!(revoked.spent_cost, self.spent);
                self.limit = self.spent;
            }
            Some(frame) => panic!("{frame:?}"),
            None => {}
        }
    }

    fn publish(&mut self, publish: &Publish) {
        self.spent += publish.header.cost();
        assert!(self.spent <= self.limit, "more was sent than was granted");
        let refusal = self.judge(publish);
        let more = self.random.u64(..40_000).max(publish.demand);
        let grant = self.grant(more);
        let (stream, base_sequence) = (publish.stream, publish.header.base_sequence);
        let record_count = publish.header.record_count;
        self.answers.push_back(match refusal {
            Ok((base_offset, duplicate)) => {
                let stored =
                    vec![StoredRange { base_sequence, base_offset, record_count, duplicate }];
                Frame::Published(Published { stream, stored, grant })
            }
            Err(refusal) => {
                Frame::Refused(Refused { stream, base_sequence, record_count, refusal, grant })
            }
        });
    }

    fn judge(&mut self, publish: &Publish) -> Result<(Offset, bool), Refusal> {
        let base = publish.header.base_sequence.0;
        if self.chance(4) {
            // Said before anything is known of the batch, whether it is stored or not.
            let code = match self.random.u32(..5) {
                0 => ErrorCode::StorageLow,
                1 => ErrorCode::Recovering,
                2 => ErrorCode::Draining,
                3 => ErrorCode::BadRequest,
                _ => ErrorCode::BadChecksum,
            };
            return Err(Refusal::new(code, ""));
        }
        if base != 0 && self.chance(1) {
            self.forget();
        }
        let next = self.stored.len() as u64;
        if publish.header.producer_id.0 != self.producer || (next == 0 && base != 0) {
            return Err(Refusal::new(ErrorCode::UnknownProducer, ""));
        }
        if base < next {
            assert!(base + u64::from(publish.header.record_count) <= next, "no other boundaries");
            return Ok((Offset(self.stored[base as usize]), true));
        }
        if base > next {
            let gap = Refusal::new(ErrorCode::SequenceGap, "");
            return Err(Refusal { limit: next, ..gap });
        }
        match self.random.u32(..100) {
            0..4 if self.hostile => return Err(Refusal::new(ErrorCode::OverloadedMemory, "")),
            4..6 if self.hostile => return Err(Refusal::new(ErrorCode::DeadlineExpired, "")),
            6..9 if self.hostile => return Err(unknown()),
            _ => {}
        }
        let offset = self.log.len() as u64;
        for record in RecordIter::new(&publish.header, &publish.body).unwrap() {
            let value = record.unwrap().message.value;
            self.stored.push(self.log.len() as u64);
            self.log.push(u64::from_le_bytes(value[..8].try_into().unwrap()));
        }
        if self.chance(4) {
            return Err(unknown()); // and yet it is stored
        }
        Ok((Offset(offset), false))
    }
}

fn unknown() -> Refusal {
    Refusal { outcome: Outcome::Unknown, ..Refusal::new(ErrorCode::LeaderLost, "") }
}

/// The lane, the broker, and what the application was told.
struct World {
    core: LaneCore,
    window: Arc<Window>,
    broker: Broker,
    random: fastrand::Rng,
    chance: Chance,
    budget: RetryBudget,
    connected: bool,
    /// The lane must be visited.
    touched: bool,
    timer: Option<Instant>,
    receipts: Vec<Receipt>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let now = Instant::now();
        let limits = crate::Limits { messages: 1 << 20, bytes: 1 << 30 };
        let window = Arc::new(Window::new(limits));
        let options = LaneOptions {
            partition: 0,
            linger: Duration::from_millis(random.u64(..3)),
            deadline: Duration::from_millis([50, 2_000, 30_000][random.usize(..3)]),
            on_full: if random.u32(..4) == 0 { OnFull::Fail } else { OnFull::Wait },
        };
        Self {
            core: LaneCore::new(options, window.clone(), now),
            window,
            broker: Broker::new(seed ^ 0xb0),
            random,
            chance: Chance::new(Some(seed)),
            budget: RetryBudget::new(now),
            connected: true,
            touched: true,
            timer: None,
            receipts: Vec::new(),
        }
    }

    fn push(&mut self) {
        let len = match self.random.u32(..50) {
            0 => self.random.usize(8..200_000),
            _ => self.random.usize(8..3_000),
        };
        let mut payload = vec![0; len];
        payload[..8].copy_from_slice(&(self.receipts.len() as u64).to_le_bytes());
        let message = Message::new(payload);
        let encoded = message.check(1 << 20).unwrap();
        let room = self.window.try_take(encoded).unwrap();
        let (receipt, ring) = self.core.push(&message, (encoded, room), BATCH_BYTES_TARGET, 0);
        self.receipts.push(receipt);
        self.touched |= ring;
    }

    fn visit(&mut self) {
        let now = Instant::now();
        self.touched = false;
        let mut frames = Vec::new();
        let room = [0, 1_000, 1 << 20][self.random.usize(..3)];
        let visit = self.core.visit(now, self.connected.then_some(room), &mut frames);
        self.timer = visit.timer;
        assert!(visit.timer.is_none_or(|at| at > now), "a time that has passed brings nothing");
        // Room comes back at some time, and the driver then comes by itself.
        self.touched |= visit.more;
        if visit.close.is_some() {
            self.broker.closed();
        }
        self.broker.arriving.extend(frames);
        if visit.open {
            let opened = self.broker.opened(self.core.identity());
            let more = self.random.u64(..60_000);
            let grant = Frame::Grant(opened.stream, self.broker.grant(more));
            self.broker.answers.extend([Frame::PublisherOpened(opened), grant]);
        }
        assert!(!visit.finished, "the publisher is not closed");
    }

    fn answer(&mut self) {
        let Some(frame) = self.broker.answers.pop_front() else { return };
        self.touched = true;
        let now = Instant::now();
        let (budget, chance, moved) = (&mut self.budget, &self.chance, self.random.bool());
        let mut retries = Retries { budget, chance, now, moved };
        match frame {
            Frame::PublisherOpened(opened) => {
                self.core.opened(self.broker.id, opened.stream, &opened, &mut retries);
            }
            Frame::Published(published) => {
                self.core.published(&published, &mut retries);
            }
            Frame::Refused(refused) => {
                self.core.refused(&refused, &mut retries);
            }
            Frame::Grant(_, grant) => self.core.granted(&grant),
            frame => panic!("{frame:?}"),
        }
        let line = &self.core.line;
        self.broker.told = line.stored_end > 0 && line.identity.id.0 == self.broker.producer;
    }

    fn toggle_connection(&mut self) {
        self.connected = !self.connected;
        self.touched = true;
        if !self.connected {
            // What was sent may have arrived; the answers are lost.
            while self.broker.open && self.random.bool() && !self.broker.arriving.is_empty() {
                self.broker.take_in();
            }
            self.broker.closed();
            self.core.lost("the connection was lost");
        }
    }

    /// Time goes on until something is due.
    async fn wait(&mut self) {
        let now = Instant::now();
        let busy = !(self.broker.arriving.is_empty() && self.broker.answers.is_empty());
        let until = if busy || self.touched { now + HOP } else { self.timer.unwrap_or(now + HOP) };
        tokio::time::advance((until - now).max(HOP)).await;
        self.touched |= self.timer.is_some_and(|timer| timer <= Instant::now());
    }

    async fn step(&mut self, hostile: bool) {
        if self.touched {
            self.visit();
        }
        if self.random.bool() {
            self.broker.take_in();
        }
        if self.random.bool() {
            self.answer();
        }
        if hostile && self.random.u32(..100) < 4 || !hostile && !self.connected {
            self.toggle_connection();
        }
        self.wait().await;
    }

    /// Compares what the application was told with what is in the log.
    fn check(&mut self, seed: u64) {
        let log = &self.broker.log;
        assert!(log.is_sorted_by(|a, b| a < b), "seed {seed}: in order, each once: {log:?}");
        for (number, receipt) in self.receipts.iter_mut().enumerate() {
            let number = number as u64;
            let told = receipt.now_or_never().unwrap_or_else(|| panic!("seed {seed}: {number}"));
            let is = log.binary_search(&number).is_ok();
            match told {
                Ok(stored) => assert_eq!(log.get(stored.offset as usize), Some(&number)),
                Err(error) if error.outcome() == Outcome::NotStored => {
                    assert!(!is, "seed {seed}: {number} is stored: {error}");
                }
                Err(error) => assert_eq!(error.outcome(), Outcome::Unknown),
            }
        }
        assert!(self.window.is_idle(), "seed {seed}: all room is back");
    }
}

async fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..400 {
        for _ in 0..world.random.u32(..4) {
            world.push();
        }
        world.step(true).await;
    }
    world.broker.hostile = false;
    let mut steps = 0;
    while !world.core.is_empty() {
        world.step(false).await;
        steps += 1;
        let core = &world.core;
        let stands = (
            world.connected,
            world.touched,
            world.timer,
            Instant::now(),
            &core.phase,
            &core.flow,
            &core.credit,
            &core.signals,
            &core.line,
        );
        assert!(steps < 100_000, "seed {seed}: the lane is stuck: {stands:?}");
    }
    world.check(seed);
}

#[tokio::test(start_paused = true)]
async fn whatever_the_broker_does_every_message_is_stored_once_in_order_or_truly_refused() {
    for seed in 0..200 {
        run(seed).await;
    }
}

/// A broker that never comes back would keep a publisher that was closed, and the client with it.
#[tokio::test(start_paused = true)]
async fn a_closed_publisher_ends_when_all_that_it_sent_was_reported() {
    let mut world = World::new(1);
    world.broker.hostile = false;
    (0..20).for_each(|_| world.push());
    while world.core.flight.is_empty() {
        world.step(false).await;
    }
    world.core.finish();
    world.core.lost("the broker is gone");
    let gone = Instant::now() + world.core.options.deadline;
    let mut now = Instant::now();
    while !world.core.visit(now, None, &mut Vec::new()).finished {
        let next = world.core.timer(now).expect("something is waited for");
        assert!(now < next && next <= gone, "{next:?}");
        now = next;
    }
    assert_eq!(world.core.unconfirmed(), 0);
    for receipt in &mut world.receipts {
        assert!(receipt.now_or_never().is_some(), "everybody was told");
    }
}
