//! The examples do what they say, against a real broker.

#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

#[path = "../examples/consume.rs"]
#[allow(dead_code, unreachable_pub, reason = "its `main` is not run here")]
mod consume;
#[path = "../examples/publish.rs"]
#[allow(dead_code, unreachable_pub, reason = "its `main` is not run here")]
mod publish;
#[path = "../examples/shed.rs"]
#[allow(dead_code, unreachable_pub, reason = "its `main` is not run here")]
mod shed;

use std::collections::HashSet;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::Notify;
use weir_broker::{Broker, Config, Seams};
use weir_client::{Client, Reason, TopicChange, TopicConfig};

/// A broker on a folder and ports of its own, and its address.
async fn broker() -> (TempDir, Broker, String) {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::embedded(folder.path());
    let seams = Seams::os(&config).unwrap();
    let broker = Broker::start(config, seams).await.unwrap();
    let endpoint = format!("weir://{}", broker.addresses().native);
    (folder, broker, endpoint)
}

async fn client(endpoint: &str) -> Client {
    Client::builder().endpoints([endpoint]).connect().await.unwrap()
}

/// Everything that a topic holds.
async fn read_all(endpoint: &str, topic: &str) -> Vec<String> {
    let client = client(endpoint).await;
    let mut reader = client.reader(topic).subscribe().await.unwrap();
    let end = reader.end_offsets()[&0];
    let mut all = Vec::new();
    while all.len() < end as usize {
        let message = reader.next().await.unwrap().unwrap();
        all.push(String::from_utf8(message.payload().to_vec()).unwrap());
    }
    all
}

/// Bills until `count` orders are billed; returns their texts.
async fn bill(endpoint: &str, count: usize) -> Vec<String> {
    let (enough, mut seen) = (Notify::new(), Vec::new());
    let bill = |order: &weir_client::Delivered| {
        seen.push(String::from_utf8(order.payload().to_vec()).unwrap());
        if seen.len() == count {
            enough.notify_one();
        }
    };
    let billing = consume::run(endpoint, bill, enough.notified());
    let billed = tokio::time::timeout(Duration::from_secs(20), billing).await;
    assert_eq!(billed.expect("all are delivered").unwrap(), count as u64);
    seen
}

#[tokio::test]
async fn an_import_that_is_started_again_goes_on_and_billing_goes_on_behind_it() {
    let (_folder, _broker, endpoint) = broker().await;
    let lines: Vec<_> =
        (0..500).map(|number| format!("customer-{} {number}", number % 7)).collect();
    assert_eq!(publish::run(&endpoint, &lines[..300]).await.unwrap(), 0);
    assert_eq!(bill(&endpoint, 100).await, lines[..100]);

    assert_eq!(publish::run(&endpoint, &lines).await.unwrap(), 300, "stored by the first run");
    assert_eq!(publish::run(&endpoint, &lines).await.unwrap(), 500, "nothing is left to do");
    assert_eq!(read_all(&endpoint, "orders").await, lines, "each once, in order");
    assert_eq!(bill(&endpoint, 400).await, lines[100..], "what was settled does not come again");
}

#[tokio::test]
async fn readings_are_shed_with_the_reason_when_nothing_else_is_left() {
    let (_folder, _broker, endpoint) = broker().await;
    let admin = client(&endpoint).await;
    let config = TopicConfig { max_bytes: 8 << 20, ..TopicConfig::default() };
    admin.create_topic("readings", config).await.unwrap();
    // Somebody who does not read: nothing may be trimmed for him, so the topic fills up.
    let _idle = admin.consumer("readings", "idle").subscribe().await.unwrap();
    let filling = admin.publisher("readings").build().await.unwrap();
    let before = 20;
    for _ in 0..before {
        // One a batch, three a segment: how much is free does not depend on how they are gathered.
        filling.publish(vec![b'x'; 256 << 10]).await.unwrap();
    }
    drop(filling);

    let readings: Vec<_> = (0..160).map(|number| format!("{number:030000}")).collect();
    let over = Notify::new();
    let last = std::iter::from_fn(|| {
        over.notify_one();
        None
    });
    let (tally, ()) =
        tokio::join!(shed::run(&endpoint, readings.iter().cloned().chain(last)), async {
            over.notified().await;
            // What is queued is stored once there is room again.
            let change = TopicChange { max_bytes: Some(64 << 20), ..TopicChange::default() };
            admin.alter_topic("readings", change).await.unwrap();
        });
    let tally = tally.unwrap();

    let reasons: HashSet<_> = tally.shed.iter().map(|(_, reason)| *reason).collect();
    assert!(reasons.contains(&Reason::ClientWindow), "{reasons:?}");
    assert!(reasons.contains(&Reason::Backlog), "{reasons:?}");
    assert_eq!(tally.stored as usize + tally.shed.len(), readings.len());
    let shed: HashSet<_> =
        tally.shed.iter().map(|(message, _)| message.payload().to_vec()).collect();
    let kept = readings.iter().filter(|reading| !shed.contains(reading.as_bytes()));
    let kept: Vec<_> = kept.cloned().collect();
    let stored = read_all(&endpoint, "readings").await.split_off(before);
    assert_eq!(stored, kept, "the rest is stored, in order");
}
