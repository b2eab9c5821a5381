//! Several consumers of one subscription, at a real broker.

#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

mod common;

use common::{Node, soon, until};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use weir_client::{Client, Message, TopicConfig};

const PARTITIONS: u32 = 4;

/// What a consumer has got: (partition, offset).
type Got = Arc<Mutex<Vec<(u32, u64)>>>;

/// A consumer of `billing` that settles what it gets, message by message, until it is aborted.
async fn consume(client: Client, got: Got, settled: Got) {
    let mut consumer = client.consumer("orders", "billing").subscribe().await.unwrap();
    while let Some(message) = consumer.next().await {
        let message = message.unwrap();
        let place = (message.partition(), message.offset());
        got.lock().unwrap().push(place);
        if message.ack_confirmed().await.is_ok() {
            settled.lock().unwrap().push(place);
        }
    }
}

/// A client in a runtime of its own: its end is that of a process.
struct Process {
    runtime: Runtime,
    got: Got,
    settled: Got,
    _task: JoinHandle<()>,
}

impl Process {
    fn start(node: &Node) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let endpoint = format!("weir://{}", node.addresses.native);
        let (got, settled) = (Got::default(), Got::default());
        let (gets, settles) = (got.clone(), settled.clone());
        let task = runtime.spawn(async move {
            let client = Client::builder().endpoints([endpoint]).connect().await.unwrap();
            consume(client, gets, settles).await;
        });
        Self { runtime, got, settled, _task: task }
    }

    fn kill(self) {
        self.runtime.shutdown_background();
    }

    fn partitions(&self) -> BTreeSet<u32> {
        self.got.lock().unwrap().iter().map(|(partition, _)| *partition).collect()
    }
}

/// Publishes to every partition until it is told to stop; says how many there were.
fn publish_until(client: Client, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    #[allow(clippy::disallowed_methods, reason = "a test has tasks of its own")]
    tokio::spawn(async move {
        let publisher = client.publisher("orders").build().await.unwrap();
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            let message = Message::new(format!("m{number}")).key(format!("k{number}"));
            publisher.publish(message).await.unwrap();
            number += 1;
            tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        }
        number
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_dies_is_replaced_and_nothing_settled_comes_again() {
    let node = Node::start().await;
    let client = node.client().await;
    let config = TopicConfig { partitions: PARTITIONS, ..TopicConfig::default() };
    client.create_topic("orders", config).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let publishing = publish_until(client.clone(), stop.clone());
    let first = Process::start(&node);
    until("the first one reads all", async || first.partitions().len() == 4).await;
    let second = Process::start(&node);
    until("the second one gets its half", async || second.partitions().len() == 2).await;
    let half = second.partitions();
    let (got, settled) = (first.got.clone(), first.settled.clone());
    first.kill();
    until("the second one takes over", async || second.partitions().len() == 4).await;
    stop.store(true, Ordering::Relaxed);
    let published = soon("all is published", publishing).await.unwrap();

    // Everything is read: each partition's offsets without a gap, up to its end.
    let topic = client.topic("orders").await.unwrap();
    let ends: BTreeMap<u32, u64> =
        topic.partitions.iter().map(|row| (row.partition.0, row.high_watermark.0)).collect();
    assert_eq!(ends.values().sum::<u64>(), published);
    let all = || {
        let mut all: BTreeSet<_> = got.lock().unwrap().iter().copied().collect();
        all.extend(second.got.lock().unwrap().iter().copied());
        all
    };
    until("all is read", async || all().len() as u64 == published).await;
    for (partition, end) in &ends {
        assert!((0..*end).all(|offset| all().contains(&(*partition, offset))));
    }
    // What was settled came to nobody again, whether it was handed over in order or by a death.
    let settled: BTreeSet<_> = settled.lock().unwrap().iter().copied().collect();
    let again = second.got.lock().unwrap().iter().filter(|got| settled.contains(got)).count();
    assert_eq!(again, 0);
    // In order nothing at all came twice.
    let first_got: BTreeSet<_> = got.lock().unwrap().iter().copied().collect();
    let second_got = second.got.lock().unwrap().clone();
    let twice = second_got.iter().filter(|got| half.contains(&got.0) && first_got.contains(got));
    assert_eq!(twice.count(), 0);
    second.kill();
}
