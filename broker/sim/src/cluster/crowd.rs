//! Everybody who uses a cluster at once, and the history that they leave.
//!
//! Owns: the publishers, the readers, who watches leaders, and how each is told to stop.
//! Never: starts or breaks a broker: it uses simulated ones and processes alike.
//! Invariant: the last word on a message of unknown fate is said by the drains, once nobody
//! publishes any more.

use super::drain::{self, Found};
use super::publishing::Publishing;
use super::reading::Reading;
use super::record::Recorder;
use super::watching::{ask_ends, churn_topics, watch_leaders};
use crate::history::{Event, Message, What};
use std::collections::BTreeMap;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, timeout_at};
use weir_client::{Client, ErrorCode, TopicConfig};

/// Durable subscriptions; the consumers of the first share it.
const SUBSCRIPTIONS: u16 = 2;
/// Plain readers: one of leaders, one of any replica.
const READERS: u16 = 2;
const ASK_AGAIN: Duration = Duration::from_millis(100);
const CREATED_WITHIN: Duration = Duration::from_secs(60);

/// What a crowd does.
#[derive(Debug, Clone)]
pub struct Load {
    /// The topic that is judged.
    pub topic: &'static str,
    /// Its partitions.
    pub partitions: u16,
    /// Its replicas.
    pub replicas: u8,
    /// Producers; each publishes to every partition.
    pub producers: u16,
    /// How long messages may take: each producer has one of these.
    pub deadlines: Vec<Duration>,
    /// Consumers that share a subscription.
    pub members: u16,
    /// What the topic keeps, where it is to be trimmed; messages are large then.
    pub keeps_bytes: Option<u64>,
    /// Topics are created and deleted beside the one that is judged.
    pub churns_topics: bool,
}

/// Everybody who uses the cluster.
pub struct Crowd {
    load: Load,
    recorder: Recorder,
    found: Found,
    publishers: JoinSet<()>,
    readers: JoinSet<()>,
    stop_publishers: watch::Sender<bool>,
    stop_readers: watch::Sender<bool>,
}

impl Crowd {
    /// Creates the topic and begins to use it. Everybody has a client of its own.
    pub async fn gather(
        load: Load,
        recorder: Recorder,
        seed: u64,
        clients: impl AsyncFn() -> Result<Client, String>,
    ) -> Result<Self, String> {
        create_topic(&clients().await?, &load).await?;
        let mut random = fastrand::Rng::with_seed(seed ^ 0x0063_726f_7764);
        let mut crowd = Self {
            recorder,
            found: Found::new(),
            publishers: JoinSet::new(),
            readers: JoinSet::new(),
            stop_publishers: watch::Sender::new(false),
            stop_readers: watch::Sender::new(false),
            load,
        };
        crowd.publish(&mut random, &clients).await?;
        crowd.read(&mut random, &clients).await?;
        Ok(crowd)
    }

    async fn publish(
        &mut self,
        random: &mut fastrand::Rng,
        clients: &impl AsyncFn() -> Result<Client, String>,
    ) -> Result<(), String> {
        let topic = self.load.topic;
        for producer in 0..self.load.producers {
            let client = clients().await?;
            let deadline = *random.choice(&self.load.deadlines).expect("a load has deadlines");
            for partition in 0..self.load.partitions {
                let publishing = Publishing {
                    client: client.clone(),
                    topic,
                    producer,
                    partition,
                    deadline,
                    large: self.load.keeps_bytes.is_some(),
                    random: random.fork(),
                    recorder: self.recorder.clone(),
                };
                self.publishers.spawn(publishing.run(self.stop_publishers.subscribe()));
            }
        }
        if self.load.churns_topics {
            let (client, no_more) = (clients().await?, self.stop_publishers.subscribe());
            let churn = churn_topics(client, self.load.replicas, random.fork(), no_more);
            self.publishers.spawn(churn);
        }
        Ok(())
    }

    async fn read(
        &mut self,
        random: &mut fastrand::Rng,
        clients: &impl AsyncFn() -> Result<Client, String>,
    ) -> Result<(), String> {
        let topic = self.load.topic;
        // Who settles nothing may be overtaken by a trim, and could not tell that from a loss.
        let plain = if self.load.keeps_bytes.is_some() { 0 } else { READERS };
        let sharing = std::iter::repeat_n(0, usize::from(self.load.members));
        for subscription in sharing.chain(1..SUBSCRIPTIONS + plain) {
            let reading = Reading {
                client: clients().await?,
                topic,
                subscription,
                is_durable: subscription < SUBSCRIPTIONS,
                any_replica: subscription > SUBSCRIPTIONS,
                random: random.fork(),
                recorder: self.recorder.clone(),
            };
            self.readers.spawn(reading.run(self.stop_readers.subscribe()));
        }
        let (client, done) = (clients().await?, self.stop_readers.subscribe());
        self.readers.spawn(watch_leaders(client, topic, self.recorder.clone(), done));
        let (client, partitions) = (clients().await?, self.load.partitions);
        let chance = (random.fork(), self.stop_readers.subscribe());
        self.readers.spawn(ask_ends(client, topic, partitions, self.recorder.clone(), chance));
        Ok(())
    }

    /// Writes down that something happened now.
    pub fn note(&self, what: What) {
        self.recorder.note(what);
    }

    /// Messages that were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.recorder.acknowledged()
    }

    /// Stops publishing, and waits until every outcome is known and every subscription has seen
    /// everything, or until that is late: the history's checks name what is missing then.
    pub async fn come_to_rest(&mut self, until: Instant) {
        self.stop_publishers.send_replace(true);
        let ended = async { while self.publishers.join_next().await.is_some() {} };
        if timeout_at(until, ended).await.is_err() {
            tracing::warn!("publishers do not come to their end");
        }
        let everything_seen = async {
            while !self.is_everything_seen() {
                sleep(ASK_AGAIN).await;
            }
        };
        if timeout_at(until, everything_seen).await.is_err() {
            tracing::warn!("subscriptions do not come to their end");
        }
    }

    fn is_everything_seen(&self) -> bool {
        let mut each = (0..SUBSCRIPTIONS).flat_map(|subscription| {
            (0..self.load.partitions).map(move |partition| (subscription, partition))
        });
        each.all(|(subscription, partition)| {
            self.recorder.seen(subscription, partition) >= self.recorder.end(partition)
        })
    }

    /// Where the partitions end, as their leaders say.
    pub async fn ends(&self, client: &Client) -> Result<BTreeMap<u32, u64>, String> {
        drain::ends(client, (self.load.topic, self.load.partitions)).await
    }

    /// Reads all that one replica holds, up to these ends, by a client that reaches no other.
    pub async fn drain(
        &mut self,
        (client, replica): (Client, u8),
        ends: &BTreeMap<u32, u64>,
    ) -> Result<(), String> {
        let place = (self.load.topic, replica);
        self.found.extend(drain::drain(&client, place, ends, &self.recorder).await?);
        Ok(())
    }

    /// What the drains say of messages whose fate their publisher never learnt: the publisher is
    /// gone, so that nothing can change it any more. Then everybody leaves.
    pub async fn leave(&mut self) {
        for (message, bytes) in self.recorder.unknown() {
            let Message { producer, partition, sequence } = message;
            match self.found.get(&(producer, partition, sequence)) {
                Some(offset) => {
                    self.note(What::Publish { message, bytes });
                    self.note(What::Stored { message, offset: Some(*offset) });
                }
                // What was trimmed is in no drain.
                None if self.recorder.is_trimmed(partition) => {}
                None => self.note(What::Void { message }),
            }
        }
        self.stop_readers.send_replace(true);
        while self.readers.join_next().await.is_some() {}
    }

    /// The history up to now.
    pub fn events(&self) -> Vec<Event> {
        self.recorder.events()
    }
}

async fn create_topic(client: &Client, load: &Load) -> Result<(), String> {
    let config = TopicConfig {
        partitions: u32::from(load.partitions),
        replicas: load.replicas,
        max_bytes: load.keeps_bytes.unwrap_or(TopicConfig::default().max_bytes),
        ..TopicConfig::default()
    };
    let created = async {
        while let Err(error) = client.create_topic(load.topic, config).await {
            if error.error_code() == Some(ErrorCode::TopicExists) {
                // By an earlier request, of which nobody knew what became of it.
                break;
            }
            tracing::debug!(%error, "the topic is not created yet");
            sleep(ASK_AGAIN).await;
        }
    };
    let created = tokio::time::timeout(CREATED_WITHIN, created).await;
    created.map_err(|_| format!("no topic was created within {CREATED_WITHIN:?}"))
}
