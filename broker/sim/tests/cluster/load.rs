//! A publisher of one broker that goes on until it is stopped.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, timeout};
use weir_client::{Message, Publisher, TopicConfig};
use weir_sim::cluster::Cluster;

pub(crate) const TOPIC: &str = "load";
/// Publishes that are under way at a time.
const WINDOW: usize = 16;

/// A client with one idempotent publisher, under way.
pub(crate) struct Load {
    broker: u8,
    progress: Arc<Progress>,
    task: JoinSet<()>,
}

#[derive(Default)]
struct Progress {
    stopped: AtomicBool,
    acknowledged: Mutex<Acknowledged>,
}

#[derive(Default)]
struct Acknowledged {
    count: u64,
    last: Option<Instant>,
    longest_pause: Duration,
}

impl Progress {
    fn now(&self) -> MutexGuard<'_, Acknowledged> {
        self.acknowledged.lock().expect("nobody panics while counting")
    }
}

impl Load {
    /// Creates the topic, unless it is there, and publishes on where an earlier one ended.
    pub(crate) async fn start(cluster: &Cluster, host: u8, broker: u8) -> Self {
        let client = cluster.client(host, &[broker]).await.expect("the broker is up");
        // An earlier life of the broker may have it already; then opening the publisher tells.
        let _ = client.create_topic(TOPIC, TopicConfig::default()).await;
        let publisher = client.publisher(TOPIC).partition(0).idempotent("load").build().await;
        let publisher = publisher.expect("the topic is there");
        let progress = Arc::new(Progress::default());
        let mut task = JoinSet::new();
        task.spawn(publish(publisher, broker, progress.clone()));
        Self { broker, progress, task }
    }

    pub(crate) fn broker(&self) -> u8 {
        self.broker
    }

    /// Messages that were acknowledged, in their order from 0.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.progress.now().count
    }

    /// Whether so many are acknowledged before the client would give a message up.
    pub(crate) async fn reaches(&self, count: u64) -> bool {
        let enough = async {
            while self.acknowledged() < count {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(30), enough).await.is_ok()
    }

    /// The longest time between two acknowledgements, up to now.
    pub(crate) fn longest_pause(&self) -> Duration {
        let now = self.progress.now();
        now.longest_pause.max(now.last.map_or(Duration::ZERO, |last| last.elapsed()))
    }

    pub(crate) fn forget_pauses(&self) {
        let mut now = self.progress.now();
        (now.last, now.longest_pause) = (Some(Instant::now()), Duration::ZERO);
    }

    /// Waits for what is under way. Returns how many messages were acknowledged.
    pub(crate) async fn stop(mut self) -> u64 {
        self.progress.stopped.store(true, Ordering::Relaxed);
        while let Some(ended) = self.task.join_next().await {
            ended.expect("the publisher ends well");
        }
        self.acknowledged()
    }
}

async fn publish(publisher: Publisher, broker: u8, progress: Arc<Progress>) {
    let first = publisher.next_sequence(0).await.expect("the publisher opens");
    let mut receipts = VecDeque::new();
    for number in first.. {
        if progress.stopped.load(Ordering::Relaxed) {
            break;
        }
        let receipt = publisher.send(Message::new(content(broker, number))).await;
        receipts.push_back((number, receipt.expect("there is room in time")));
        while receipts.len() >= WINDOW {
            acknowledge(&mut receipts, &progress).await;
        }
    }
    while !receipts.is_empty() {
        acknowledge(&mut receipts, &progress).await;
    }
}

async fn acknowledge(receipts: &mut VecDeque<(u64, weir_client::Receipt)>, progress: &Progress) {
    let Some((number, receipt)) = receipts.pop_front() else { return };
    let stored = receipt.await.expect("the broker comes back in time");
    assert_eq!(stored.offset, number, "one record a sequence");
    let mut now = progress.now();
    now.count = number + 1;
    let pause = now.last.map_or(Duration::ZERO, |last| last.elapsed());
    now.longest_pause = now.longest_pause.max(pause);
    now.last = Some(Instant::now());
}

/// The content of a message follows from its broker and number.
pub(crate) fn content(broker: u8, number: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(u64::from(broker) << 56 ^ number);
    let mut bytes = vec![0; random.usize(8..500)];
    random.fill(&mut bytes);
    bytes
}
