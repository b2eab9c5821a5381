//! A lane against a broker that drops connections and damages deliveries as chance has it.
//!
//! As strict as the driver may be: the lane is visited only when it was rung, when a frame said
//! so, or at the time it asked for. The application holds nearly all of its credit, always.

use super::*;
use bytes::BytesMut;
use weir_protocol::batch::BatchBuilder;
use weir_protocol::types::{RequestId, Term};

const SALT: u64 = 5;
const RECORDS_MAX: u32 = 4;
const HOP: Duration = Duration::from_millis(1);

/// A log, its durable cursor, and one consumer.
struct Broker {
    random: fastrand::Rng,
    hostile: bool,
    batches: Vec<(BatchHeader, Bytes)>,
    end: u64,
    cursor: u64,
    durable: bool,
    resumes: bool,
    stream: Option<StreamId>,
    last_stream: u32,
    position: u64,
    settled: u64,
    limit: (u64, u64),
    spent: (u64, u64),
    window: (u64, u64),
    /// A delivery was damaged, and nothing whole was taken since.
    damaged: bool,
    arriving: VecDeque<Frame>,
    answers: VecDeque<Frame>,
}

impl Broker {
    fn new(seed: u64, durable: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut batches, mut end) = (Vec::new(), 0);
        for _ in 0..150 {
            let mut builder = BatchBuilder::new(1 << 20);
            for _ in 0..random.u32(1..=RECORDS_MAX) {
                let payload = vec![b'x'; random.usize(1..300)];
                builder.push(0, None, &[] as &[(Bytes, Bytes)], &payload).unwrap();
            }
            let built = builder.finish();
            let mut header = BatchHeader { base_offset: Offset(end), ..built.header };
            let mut stored = BytesMut::from(&header.stamp_local(SALT)[..]);
            stored.extend_from_slice(&built.body);
            stored.resize(header.stored_len(), 0);
            end = header.end_offset().0;
            batches.push((header, stored.freeze()));
        }
        Self {
            random,
            hostile: true,
            batches,
            end,
            cursor: 0,
            durable,
            resumes: seed.is_multiple_of(2),
            stream: None,
            last_stream: 0,
            position: 0,
            settled: 0,
            limit: (0, 0),
            spent: (0, 0),
            window: (0, 0),
            damaged: false,
            arriving: VecDeque::new(),
            answers: VecDeque::new(),
        }
    }

    fn closed(&mut self) {
        self.stream = None;
        self.arriving.clear();
        self.answers.clear();
    }

    fn open(&mut self, ask: &Ask) {
        let Ask { start, needs, credit } = *ask;
        self.last_stream += 1;
        let stream = StreamId(self.last_stream);
        self.stream = Some(stream);
        let start = match start {
            // An older broker knows of no place but the cursor.
            _ if self.durable && self.resumes => self.cursor.max(needs.resume.0),
            _ if self.durable => self.cursor,
            frame::Start::Offset(offset) => offset.0,
            _ => 0,
        };
        (self.position, self.settled, self.spent) = (start, start, (0, 0));
        self.limit = (credit.limit_cost, credit.limit_messages);
        self.window = self.limit;
        self.answers.push_back(Frame::Subscribed(Subscribed {
            stream,
            request: RequestId(0),
            start: Offset(start),
            log_start: Offset(0),
            high_watermark: Offset(self.end),
            skipped: 0,
            term: Term(0),
        }));
    }

    fn take_in(&mut self) {
        match self.arriving.pop_front() {
            Some(Frame::Grant(_, grant)) => {
                assert!(grant.limit_cost >= self.limit.0 && grant.limit_messages >= self.limit.1);
                self.limit = (grant.limit_cost, grant.limit_messages);
                self.window.0 = self.window.0.max(self.limit.0 - self.spent.0.min(self.limit.0));
                self.window.1 = self.window.1.max(self.limit.1 - self.spent.1.min(self.limit.1));
            }
            Some(Frame::Settle(settle)) => {
                let upto = settle.upto.0;
                assert!(upto <= self.position, "a settle of what this stream has not delivered");
                self.settled = self.settled.max(upto);
                self.cursor = self.cursor.max(upto);
                if settle.confirm {
                    let (stream, upto) = (settle.stream, Offset(self.cursor));
                    let settled = Settled { stream, upto, refusal: None };
                    self.answers.push_back(Frame::Settled(settled));
                }
            }
            Some(frame) => panic!("{frame:?}"),
            None => {}
        }
    }

    fn deliver(&mut self) {
        let Some(stream) = self.stream else { return };
        let next = self.batches.iter().find(|(header, _)| header.end_offset().0 > self.position);
        let Some((header, bytes)) = next.cloned() else { return };
        let (cost, messages) = (bytes.len() as u64, u64::from(header.record_count));
        let left = |limit: u64, spent: u64| limit.saturating_sub(spent);
        let left = (left(self.limit.0, self.spent.0), left(self.limit.1, self.spent.1));
        let alone = self.settled >= self.position || left == self.window;
        let fits = cost <= left.0 && messages <= left.1;
        if left.0 == 0 || left.1 == 0 || !(fits || alone) {
            return;
        }
        self.spent = (self.spent.0 + cost, self.spent.1 + messages);
        self.position = header.end_offset().0;
        let mut bytes = bytes.to_vec();
        if self.hostile && !self.damaged && self.random.u32(..100) < 5 {
            self.damaged = true;
            let at = if self.random.bool() { 9 } else { BATCH_HEADER_BYTES + 1 };
            bytes[at] ^= 0x10;
        }
        self.answers.push_back(Frame::Deliver(Deliver {
            stream,
            salt: SALT,
            record_count: header.record_count,
            high_watermark: Offset(self.end),
            batches: vec![bytes.into()],
        }));
    }
}

struct World {
    lane: ReadLane,
    broker: Broker,
    random: fastrand::Rng,
    chance: Chance,
    connected: bool,
    touched: bool,
    timer: Option<Instant>,
    /// Behind the last record that the application was given.
    taken: u64,
    /// Batches that the application holds: their ends and records.
    holds: VecDeque<(u64, u64)>,
    /// Records that it holds before it settles any.
    holds_max: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let durable = random.bool();
        let messages = random.usize(8..80);
        let window = Limits { messages, bytes: 1 << 20 };
        Self {
            lane: ReadLane::new(0, Reading { durable, ..Reading::default() }, window),
            broker: Broker::new(seed ^ 0xc0, durable),
            random,
            chance: Chance::new(Some(seed)),
            connected: true,
            touched: true,
            timer: None,
            taken: 0,
            holds: VecDeque::new(),
            holds_max: messages as u64 - u64::from(RECORDS_MAX),
        }
    }

    fn visit(&mut self) {
        let now = Instant::now();
        self.touched = false;
        let mut frames = Vec::new();
        let visit = self.lane.visit(now, self.connected, Wish::More, &mut frames);
        self.timer = visit.timer;
        assert!(visit.timer.is_none_or(|at| at > now), "a time that has passed brings nothing");
        assert!(!visit.finished);
        if visit.close.is_some() {
            // What was delivered on it may still be on its way.
            self.broker.stream = None;
            self.broker.arriving.clear();
        }
        self.broker.arriving.extend(frames);
        if let Some(ask) = visit.open {
            self.broker.open(&ask);
        }
    }

    fn answer(&mut self) {
        match self.broker.answers.pop_front() {
            Some(Frame::Subscribed(subscribed)) => {
                self.lane.opened(subscribed.stream, &subscribed);
                self.touched = true;
            }
            Some(Frame::Deliver(deliver)) => match self.lane.delivered(&deliver) {
                Ok(visit) => self.touched |= visit,
                Err(error) => {
                    assert!(self.lane.unreadable(error).is_none(), "damaged for good");
                    self.touched = true;
                }
            },
            Some(Frame::Settled(settled)) => self.lane.settled(&settled),
            Some(frame) => panic!("{frame:?}"),
            None => {}
        }
    }

    /// The application takes what there is, and settles only when it holds too much.
    fn work(&mut self) {
        let held: u64 = self.holds.iter().map(|(_, records)| records).sum();
        if held > self.holds_max || self.taken == self.broker.end {
            if let Some((end, _)) = self.holds.pop_front() {
                self.touched |= self.lane.settle(end, self.random.u32(..10) == 0);
            }
        } else if let Some(taken) = self.lane.take() {
            let batch = taken.expect("damage is repaired by asking again");
            let base = batch.header.base_offset.0.max(batch.skip_below);
            assert_eq!(base, self.taken, "in order, each once");
            self.taken = batch.header.end_offset().0;
            self.holds.push_back((self.taken, self.taken - base));
            self.broker.damaged = false;
        }
        self.touched |= self.lane.needs_visit();
    }

    fn toggle_connection(&mut self) {
        self.connected = !self.connected;
        self.touched = true;
        if !self.connected {
            while self.random.bool() && !self.broker.arriving.is_empty() {
                self.broker.take_in();
            }
            self.broker.closed();
            self.lane.lost();
        }
    }

    async fn step(&mut self) {
        if self.touched {
            self.visit();
        }
        if self.random.bool() {
            self.broker.take_in();
        }
        if self.random.bool() {
            self.broker.deliver();
        }
        if self.random.bool() {
            self.answer();
        }
        if self.random.bool() {
            self.work();
        }
        let hostile = self.broker.hostile;
        if hostile && self.random.u32(..200) < 2 || !hostile && !self.connected {
            self.toggle_connection();
        }
        if hostile && self.broker.stream.is_some() && self.random.u32(..300) == 0 {
            let refusal = Refusal::new(ErrorCode::Recovering, "");
            self.broker.closed();
            assert!(self.lane.refused(&refusal, Instant::now(), Some(&self.chance)).is_none());
            self.touched = true;
        }
        tokio::time::advance(HOP).await;
        self.touched |= self.timer.is_some_and(|timer| timer <= Instant::now());
    }

    fn is_done(&self) -> bool {
        let settled = !self.broker.durable || self.broker.cursor == self.broker.end;
        self.taken == self.broker.end && self.holds.is_empty() && settled
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_every_record_is_given_once_in_order_and_every_settle_arrives() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        let mut steps = 0;
        while !world.is_done() {
            world.broker.hostile = steps < 3_000;
            world.step().await;
            steps += 1;
            let (lane, taken) = (&world.lane, world.taken);
            let stands = (&lane.phase, &lane.credit, &lane.settling, lane.received, lane.streamed);
            assert!(steps < 30_000, "seed {seed}: stuck at {taken}: {stands:?}");
        }
    }
}

/// Damage that is found while the next stream is being asked for, behind the damaged batch.
#[tokio::test(start_paused = true)]
async fn a_stream_that_was_asked_for_in_vain_is_left() {
    let mut broker = Broker::new(1, false);
    let window = Limits { messages: 99, bytes: 9_999 };
    let mut lane = ReadLane::new(0, Reading::default(), window);
    let visit = |lane: &mut ReadLane| lane.visit(Instant::now(), true, Wish::More, &mut Vec::new());
    let ask = |lane: &mut ReadLane, broker: &mut Broker| {
        broker.open(&visit(lane).open.expect("a stream is asked for"));
    };
    let open = |lane: &mut ReadLane, broker: &mut Broker| {
        let Some(Frame::Subscribed(subscribed)) = broker.answers.pop_front() else { panic!() };
        lane.opened(subscribed.stream, &subscribed);
    };
    ask(&mut lane, &mut broker);
    open(&mut lane, &mut broker);
    broker.hostile = false;
    broker.deliver();
    let Some(Frame::Deliver(mut deliver)) = broker.answers.pop_front() else { panic!() };
    let mut bytes = deliver.batches[0].to_vec();
    bytes[BATCH_HEADER_BYTES + 1] ^= 1;
    deliver.batches[0] = bytes.into();
    lane.delivered(&deliver).unwrap();
    lane.lost();

    ask(&mut lane, &mut broker);
    assert!(lane.take().is_none(), "the damaged batch is not handed over");
    open(&mut lane, &mut broker);
    assert!(lane.needs_visit());
    let again = visit(&mut lane);
    assert!(again.close.is_some());
    assert_eq!(
        again.open.unwrap().start,
        frame::Start::Offset(Offset(0)),
        "from the damaged one on"
    );
}
