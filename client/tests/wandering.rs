//! Three scripted brokers over one log, whose leader wanders while some of them die, freeze or have
//! not heard of it: whatever happens, each message is stored once, in order, or truly refused, and
//! each consumer is given each record once.

#![allow(clippy::disallowed_methods, reason = "a test spawns what it then aborts")]
#![allow(clippy::unwrap_used, reason = "a test's broker may panic")]

mod common;

use bytes::Bytes;
use common::cluster::*;
use common::*;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};
use weir_client::{Client, Consumer, ErrorCode, Outcome, Receipt};
use weir_protocol::batch::RecordIter;
use weir_protocol::frame::*;
use weir_protocol::types::*;

const CREDIT: u64 = 1 << 40;

/// What a quorum knows.
#[derive(Default)]
struct Log {
    leader: u64,
    term: u64,
    /// The number that each record carries.
    records: Vec<u64>,
    /// By producer: how many it has stored, and where.
    producers: BTreeMap<u64, Vec<u64>>,
    cursor: u64,
}

struct Shared {
    log: Mutex<Log>,
    random: Mutex<fastrand::Rng>,
    /// By broker: it reads nothing.
    frozen: [watch::Sender<bool>; 3],
}

impl Shared {
    fn percent(&self, percent: u32) -> bool {
        self.random.lock().unwrap().u32(..100) < percent
    }

    fn below(&self, limit: u64) -> u64 {
        self.random.lock().unwrap().u64(..limit)
    }

    fn leads(&self, id: u64) -> bool {
        self.log.lock().unwrap().leader == id
    }
}

/// The broker's end of one connection.
struct Serving {
    shared: Arc<Shared>,
    id: u64,
    peer: Peer,
    /// By stream: the next offset to deliver.
    readers: BTreeMap<StreamId, u64>,
    /// Answers to publishes on their way: a flush takes its time.
    answers: VecDeque<(Instant, Frame)>,
}

impl Serving {
    async fn run(mut self) {
        let mut frozen = self.shared.frozen[self.id as usize - 1].subscribe();
        loop {
            if frozen.wait_for(|frozen| !frozen).await.is_err() {
                return;
            }
            self.deliver().await;
            let now = Instant::now();
            while let Some((_, answer)) = self.answers.pop_front_if(|(at, _)| *at <= now) {
                self.peer.send(answer).await;
            }
            tokio::select! {
                frame = self.peer.next_or_end() => match frame {
                    Some(frame) => self.handle(frame).await,
                    None => return,
                },
                () = sleep(Duration::from_millis(5)) => {}
            }
        }
    }

    /// As far as this broker knows, which may not be far.
    fn refusal(&self) -> Refusal {
        let told = self.peer.told.as_ref().unwrap().lock().unwrap();
        let view = &told.topic.partitions[0];
        let hint = view.leader.filter(|leader| leader.0 != self.id && self.shared.percent(70));
        not_leader(hint.map(|leader| (leader.0, view.term.0)))
    }

    async fn handle(&mut self, frame: Frame) {
        match frame {
            Frame::OpenPublisher(open) => self.open(open).await,
            Frame::Publish(publish) => {
                let answer = self.publish(&publish);
                let at = Instant::now() + Duration::from_millis(self.shared.below(80));
                self.answers.push_back((at, answer));
            }
            Frame::Subscribe(subscribe) => self.subscribe(subscribe).await,
            Frame::Settle(settle) if self.shared.leads(self.id) && self.shared.percent(50) => {
                let mut log = self.shared.log.lock().unwrap();
                log.cursor = log.cursor.max(settle.upto.0);
            }
            Frame::CloseStream(stream) => {
                self.readers.remove(&stream);
                let closed = StreamClosed { stream, refusal: None };
                self.peer.send(Frame::StreamClosed(closed)).await;
            }
            _ => {}
        }
    }

    async fn refuse_request(&mut self, request: RequestId) {
        let refusal = self.refusal();
        self.peer.send(Frame::Error(ErrorFrame { request, refusal })).await;
    }

    async fn open(&mut self, open: OpenPublisher) {
        if !self.shared.leads(self.id) {
            return self.refuse_request(open.request).await;
        }
        let (producer_id, next) = {
            let mut log = self.shared.log.lock().unwrap();
            let fresh = log.producers.len() as u64 + 1;
            let id = if open.producer_id.0 == 0 { fresh } else { open.producer_id.0 };
            (ProducerId(id), log.producers.entry(id).or_default().len() as u64)
        };
        self.peer
            .send(Frame::PublisherOpened(PublisherOpened {
                stream: open.stream,
                request: open.request,
                producer_id,
                producer_epoch: 1,
                next_sequence: Sequence(next),
                log_end: Offset(0),
                term: Term(0),
            }))
            .await;
        self.peer.send(Frame::Grant(open.stream, grant(CREDIT))).await;
    }

    fn publish(&mut self, publish: &Publish) -> Frame {
        if !self.shared.leads(self.id) {
            return refused(publish, self.refusal(), CREDIT);
        }
        let base = publish.header.base_sequence.0;
        let mut log = self.shared.log.lock().unwrap();
        let log = &mut *log;
        let stored = log.producers.get_mut(&publish.header.producer_id.0).unwrap();
        let next = stored.len() as u64;
        if base > next {
            let gap = refusal(ErrorCode::SequenceGap, Outcome::NotStored);
            return refused(publish, gap, CREDIT);
        }
        if base == next {
            for record in RecordIter::new(&publish.header, &publish.body).unwrap() {
                stored.push(log.records.len() as u64);
                let value = record.unwrap().message.value;
                log.records.push(std::str::from_utf8(value).unwrap().parse().unwrap());
            }
        }
        if self.shared.percent(3) {
            // It is stored, and the leader falls before it knows.
            let unknown = refusal(ErrorCode::LeaderLost, Outcome::Unknown);
            return refused(publish, unknown, CREDIT);
        }
        published(publish, stored[base as usize], base < next, CREDIT)
    }

    async fn subscribe(&mut self, subscribe: Subscribe) {
        if !self.shared.leads(self.id) {
            return self.refuse_request(subscribe.request).await;
        }
        let (cursor, end) = {
            let log = self.shared.log.lock().unwrap();
            (log.cursor, log.records.len() as u64)
        };
        let start = match (&subscribe.subscription, subscribe.start) {
            (Some(_), _) => cursor,
            (None, Start::Offset(offset)) => offset.0,
            (None, _) => 0,
        };
        self.readers.insert(subscribe.stream, start);
        self.peer
            .send(Frame::Subscribed(Subscribed {
                stream: subscribe.stream,
                request: subscribe.request,
                start: Offset(start),
                log_start: Offset(0),
                high_watermark: Offset(end),
                skipped: 0,
                term: Term(0),
            }))
            .await;
    }

    /// Delivers what is new, or ends the streams of a broker that leads no more.
    async fn deliver(&mut self) {
        if !self.shared.leads(self.id) {
            for stream in std::mem::take(&mut self.readers).into_keys() {
                let closed = StreamClosed { stream, refusal: Some(self.refusal()) };
                self.peer.send(Frame::StreamClosed(closed)).await;
            }
            return;
        }
        for (stream, next) in self.readers.clone() {
            let new: Vec<String> = {
                let log = self.shared.log.lock().unwrap();
                log.records[next as usize..].iter().take(50).map(u64::to_string).collect()
            };
            if new.is_empty() {
                continue;
            }
            let texts: Vec<&str> = new.iter().map(String::as_str).collect();
            let batch: Bytes = stored_batch(next, &texts);
            self.peer.deliver(stream, vec![batch], new.len() as u32).await;
            self.readers.insert(stream, next + new.len() as u64);
        }
    }
}

/// A broker takes every connection until its task is aborted, and its connections with it.
fn run_broker(shared: Arc<Shared>, mut broker: Broker) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let Some(peer) = broker.try_accept().await else { continue };
            let (shared, id) = (shared.clone(), broker.id);
            let (readers, answers) = (BTreeMap::new(), VecDeque::new());
            connections.spawn(Serving { shared, id, peer, readers, answers }.run());
        }
    })
}

/// What happens to the brokers.
struct Chaos {
    shared: Arc<Shared>,
    cluster: Arc<Cluster>,
    running: [JoinHandle<()>; 3],
}

impl Chaos {
    fn elect(&self, leader: u64) {
        let term = {
            let mut log = self.shared.log.lock().unwrap();
            (log.leader, log.term) = (leader, log.term + 1);
            log.term
        };
        for id in 1..=3 {
            let late = Duration::from_millis(if self.shared.percent(50) {
                0
            } else {
                self.shared.below(1_500)
            });
            let cluster = self.cluster.clone();
            tokio::spawn(async move {
                sleep(late).await;
                cluster.tell_at(id, |told| {
                    if told.topic.partitions[0].term.0 < term {
                        told.leads(0, leader, term);
                    }
                });
            });
        }
    }

    async fn kill(&mut self, id: u64) {
        self.cluster.stop(id);
        self.running[id as usize - 1].abort();
        if self.shared.leads(id) {
            sleep(Duration::from_millis(self.shared.below(1_000))).await;
            self.elect(id % 3 + 1);
        }
        sleep(Duration::from_millis(self.shared.below(1_000))).await;
        let broker = self.cluster.start(id);
        self.running[id as usize - 1] = run_broker(self.shared.clone(), broker);
    }

    async fn freeze(&self, id: u64) {
        self.shared.frozen[id as usize - 1].send_replace(true);
        sleep(Duration::from_millis(self.shared.below(1_000))).await;
        if self.shared.leads(id) {
            self.elect(id % 3 + 1);
        }
        sleep(Duration::from_millis(self.shared.below(6_000))).await;
        if self.shared.percent(30) {
            self.elect(id); // what it had not read is read by a leader again
        }
        self.shared.frozen[id as usize - 1].send_replace(false);
    }

    async fn wreak(&mut self) {
        for _ in 0..12 {
            let id = 1 + self.shared.below(3);
            match self.shared.below(10) {
                0..3 => self.kill(id).await,
                3..5 => self.freeze(id).await,
                _ => self.elect(id),
            }
            sleep(Duration::from_millis(self.shared.below(700))).await;
        }
        self.elect(1);
    }
}

/// Takes until it was given `count`.
async fn take(mut consumer: Consumer, count: watch::Receiver<Option<usize>>) -> Vec<(u64, u64)> {
    let mut taken = Vec::new();
    while count.borrow().is_none_or(|count| taken.len() < count) {
        let next = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await;
        let Ok(message) = next else { continue };
        let message = message.expect("not ended").expect("no error");
        let number = std::str::from_utf8(message.payload()).unwrap().parse().unwrap();
        taken.push((message.offset(), number));
        message.ack();
    }
    taken
}

async fn publish(shared: Arc<Shared>, client: Client) -> Vec<(u64, Receipt)> {
    let building = client.publisher("orders").deadline(Duration::from_secs(8)).build();
    let publisher = building.await.unwrap();
    let mut receipts = Vec::new();
    for number in 0..600 {
        receipts.push((number, publisher.send(number.to_string()).await.unwrap()));
        sleep(Duration::from_millis(shared.below(60))).await;
    }
    receipts
}

async fn run(seed: u64) {
    let (cluster, brokers) = Cluster::new(&[(1, 1)]);
    let shared = Arc::new(Shared {
        log: Mutex::new(Log { leader: 1, term: 1, ..Log::default() }),
        random: Mutex::new(fastrand::Rng::with_seed(seed)),
        frozen: [(); 3].map(|()| watch::Sender::new(false)),
    });
    let running = brokers.map(|broker| run_broker(shared.clone(), broker));
    let mut chaos = Chaos { shared: shared.clone(), cluster: Arc::new(cluster), running };
    let client = chaos.cluster.client(&[1, 2, 3]).await.unwrap();
    let durable = client.consumer("orders", "billing").subscribe().await.unwrap();
    let reader = client.reader("orders").subscribe().await.unwrap();
    let (count, _) = watch::channel(None);
    let durable = tokio::spawn(take(durable, count.subscribe()));
    let reader = tokio::spawn(take(reader, count.subscribe()));
    let publishing = tokio::spawn(publish(shared.clone(), client.clone()));
    chaos.wreak().await;

    let receipts = publishing.await.unwrap();
    let mut told = Vec::new();
    let began = Instant::now();
    for (number, receipt) in receipts {
        told.push((number, receipt.await));
    }
    assert!(began.elapsed() < Duration::from_secs(9), "seed {seed}: {:?}", began.elapsed());
    sleep(Duration::from_secs(20)).await;
    let records = shared.log.lock().unwrap().records.clone();
    assert!(records.is_sorted_by(|a, b| a < b), "seed {seed}: in order, each once: {records:?}");
    let mut stored = 0;
    for (number, told) in told {
        match told {
            Ok(at) => {
                stored += 1;
                assert_eq!(records.get(at.offset as usize), Some(&number), "seed {seed}");
            }
            Err(error) if error.outcome() == Outcome::NotStored => {
                let found = records.binary_search(&number);
                assert!(found.is_err(), "seed {seed}: {number} is stored: {error}");
            }
            Err(error) => assert_eq!(error.outcome(), Outcome::Unknown, "seed {seed}: {error}"),
        }
    }
    assert!(stored > 500, "seed {seed}: {stored} of 600 stored");
    count.send_replace(Some(records.len()));
    let expected: Vec<_> = records.iter().enumerate().map(|(at, n)| (at as u64, *n)).collect();
    for (consumer, what) in [(durable, "durable"), (reader, "reader")] {
        let taken = tokio::time::timeout(Duration::from_secs(60), consumer).await;
        let taken = taken.unwrap_or_else(|_| panic!("seed {seed}: the {what} one is stuck"));
        assert_eq!(taken.unwrap(), expected, "seed {seed}: the {what} one");
    }
    chaos.running.iter().for_each(JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn wherever_the_leader_goes_nothing_is_lost_or_there_twice() {
    for seed in 0..10 {
        run(seed).await;
    }
}
