//! Who leads and where logs end, as brokers tell it, and topics that come and go beside the one that
//! is judged.
//!
//! Owns: the three of them. Never: changes anything of the topic that is judged.

use super::record::Recorder;
use crate::history::What;
use tokio::sync::watch;
use tokio::time::{Duration, sleep, timeout};
use weir_client::{Client, Message, Start, TopicConfig};

const LOOK_EVERY: Duration = Duration::from_millis(150);
const ASK_EVERY_MS: u64 = 600;
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const CHURN_EVERY_MS: u64 = 800;
const CHURN_DEADLINE: Duration = Duration::from_secs(2);

/// Notes who leads until it is told to stop.
pub(super) async fn watch_leaders(
    client: Client,
    topic: &'static str,
    recorder: Recorder,
    stopped: watch::Receiver<bool>,
) {
    while !*stopped.borrow() {
        sleep(LOOK_EVERY).await;
        let Ok(view) = client.topic(topic).await else { continue };
        for partition in view.partitions {
            let Some(leader) = partition.leader else { continue };
            recorder.note(What::Leader {
                // Brokers are few, and their ids count from 1.
                replica: leader.0 as u8,
                partition: partition.partition.0 as u16,
                term: partition.term.0 as u32,
            });
        }
    }
}

/// Asks any replica for the ends of partitions, each time for at least what is known to be stored: it
/// answers when it has that, or not at all.
pub(super) async fn ask_ends(
    client: Client,
    topic: &'static str,
    partitions: u16,
    recorder: Recorder,
    (mut random, stopped): (fastrand::Rng, watch::Receiver<bool>),
) {
    for query in 0.. {
        if *stopped.borrow() {
            return;
        }
        sleep(Duration::from_millis(random.u64(..ASK_EVERY_MS))).await;
        let partition = random.u16(..partitions);
        let number = u32::from(partition);
        let reach = u64::from(recorder.end(partition));
        let reader = client.reader(topic).partition(number).any_replica().reach(number, reach);
        recorder.note(What::Tail { query, partition });
        let asked = timeout(ANSWER_WITHIN, reader.from(Start::Latest).subscribe()).await;
        let end = asked.ok().and_then(Result::ok);
        let end = end.and_then(|reader| reader.end_offsets().get(&number).copied());
        recorder.note(What::TailEnd { query, end: end.map(|end| end as u32) });
    }
}

/// Creates topics, publishes to them and deletes them, until it is told to stop. Any of it may
/// fail while things go wrong.
pub(super) async fn churn_topics(
    client: Client,
    replicas: u8,
    mut random: fastrand::Rng,
    stopped: watch::Receiver<bool>,
) {
    for number in 0.. {
        if *stopped.borrow() {
            return;
        }
        let topic = format!("churn-{}", number % 3);
        let config = TopicConfig { replicas, partitions: 2, ..TopicConfig::default() };
        let created = client.create_topic(&topic, config).await;
        tracing::debug!(topic, ?created, "a topic beside");
        if let Ok(publisher) = client.publisher(&topic).deadline(CHURN_DEADLINE).build().await {
            // It is gone with its topic.
            let _ = publisher.publish(Message::new("beside")).await;
        }
        sleep(Duration::from_millis(random.u64(..CHURN_EVERY_MS))).await;
        let deleted = client.delete_topic(&topic).await;
        tracing::debug!(topic, ?deleted, "a topic beside");
    }
}
