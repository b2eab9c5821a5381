//! A whole simulation of a cluster: it forms, is used, is broken and healed, and is looked at.
//!
//! Owns: the order of all that, and what a run came to.
//! Never: asks the operating system for time, chance or I/O: the same seed gives the same trace.

use super::drain::{self, Found};
use super::nemesis::Nemesis;
use super::plan::Shape;
use super::publishing::Publishing;
use super::reading::Reading;
use super::record::Recorder;
use super::watching::{churn_topics, watch_leaders};
use super::{Cluster, NotStarted};
use crate::history::{Limits, Message, Report, What, check};
use crate::runtime::paused;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, timeout};
use weir_client::{Client, ErrorCode, TopicConfig};

const TOPIC: &str = "judged";
/// Hosts from here on are clients'.
const CLIENTS: u8 = 20;
/// Hosts from here on are those of the drains.
const DRAINS: u8 = 200;
/// Durable subscriptions, each with one consumer.
const SUBSCRIPTIONS: u16 = 2;
/// Plain readers: one of leaders, one of any replica.
const READERS: u16 = 2;
const FORMED_WITHIN: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// A message of a patient producer outlives every fault.
const PATIENT: Duration = Duration::from_secs(600);
const IMPATIENT: Duration = Duration::from_secs(2);
/// Publishes go on so long after the last fault.
const CALM: Duration = Duration::from_secs(1);
/// After the last fault publishers learn their outcomes and subscriptions see everything within
/// this time. It ends behind what the history's checks allow, so that they name what is missing.
const SETTLED_WITHIN: Duration = Duration::from_secs(32);
/// Followers write the last records down.
const IDLE: Duration = Duration::from_secs(1);

/// What a run was and found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Hash over every byte on the network with its time, and over what each disk did.
    pub trace: u64,
    /// Virtual time.
    pub lasted: Duration,
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// Faults that were inflicted.
    pub faults: u64,
    /// What the history broke.
    pub report: Report,
}

/// Runs one simulation. An error says what did not come to its end; broken promises are in the
/// report.
pub fn run_cluster(seed: u64, shape: &Shape) -> Result<Outcome, String> {
    let runtime = paused(seed);
    runtime.block_on(async {
        let began = Instant::now();
        let run = Run::form(seed, shape).await?;
        let faults = run.live().await?;
        let report = check(&run.recorder.events(), Limits::default());
        let acknowledged = run.recorder.acknowledged();
        let trace = run.cluster.trace();
        Ok(Outcome { trace, lasted: began.elapsed(), acknowledged, faults, report })
    })
}

struct Run<'a> {
    seed: u64,
    shape: &'a Shape,
    cluster: Arc<Cluster>,
    recorder: Recorder,
    nemesis: Nemesis,
}

/// Everybody who uses the cluster, and how to tell them to stop.
struct Crowd {
    publishers: JoinSet<()>,
    readers: JoinSet<()>,
    stop_publishers: watch::Sender<bool>,
    stop_readers: watch::Sender<bool>,
}

impl<'a> Run<'a> {
    /// Forms the cluster and creates the topic.
    async fn form(seed: u64, shape: &'a Shape) -> Result<Self, String> {
        let cluster = Arc::new(Cluster::joined(seed, shape.brokers));
        let mut starts = JoinSet::new();
        for number in 1..=shape.brokers {
            let cluster = cluster.clone();
            starts.spawn(async move { (number, cluster.machine(number).start().await) });
        }
        let formed = timeout(FORMED_WITHIN, async {
            while let Some(started) = starts.join_next().await {
                match started.map_err(|error| error.to_string())? {
                    (_, Ok(())) => {}
                    (number, Err(NotStarted::Failed(error))) => {
                        return Err(format!("broker {number} does not start: {error}"));
                    }
                    (number, Err(NotStarted::Killed)) => {
                        return Err(format!("{number} was killed"));
                    }
                }
            }
            Ok(())
        });
        formed.await.map_err(|_| format!("no cluster was formed within {FORMED_WITHIN:?}"))??;
        let nemesis = Nemesis::of(cluster.clone());
        let run = Self { seed, shape, cluster, recorder: Recorder::start(), nemesis };
        run.create_topic().await?;
        Ok(run)
    }

    async fn create_topic(&self) -> Result<(), String> {
        let client = self.client(CLIENTS).await?;
        let config = TopicConfig {
            partitions: u32::from(self.shape.partitions),
            replicas: self.shape.brokers,
            ..TopicConfig::default()
        };
        let created = async {
            while let Err(error) = client.create_topic(TOPIC, config).await {
                if error.error_code() == Some(ErrorCode::TopicExists) {
                    // By an earlier request, of which nobody knew what became of it.
                    break;
                }
                tracing::debug!(%error, "the topic is not created yet");
                sleep(ASK_AGAIN).await;
            }
        };
        let created = timeout(FORMED_WITHIN, created).await;
        created.map_err(|_| format!("no topic was created within {FORMED_WITHIN:?}"))
    }

    async fn client(&self, host: u8) -> Result<Client, String> {
        let brokers: Vec<u8> = (1..=self.shape.brokers).collect();
        let client = self.cluster.client(host, &brokers).await;
        client.map_err(|error| format!("client {host}: {error}"))
    }

    /// Uses, breaks, heals and judges it. Returns how many faults there were.
    async fn live(&self) -> Result<u64, String> {
        let mut crowd = self.gather().await?;
        self.recorder.note(What::Fault);
        let faults = self.nemesis.run(self.shape, self.seed).await?;
        self.recorder.note(What::Heal);
        let until = Instant::now() + SETTLED_WITHIN;
        sleep(CALM).await;
        crowd.stop_publishers.send_replace(true);
        let ended = async { while crowd.publishers.join_next().await.is_some() {} };
        if tokio::time::timeout_at(until, ended).await.is_err() {
            tracing::warn!("publishers do not come to their end");
        }
        let everything_seen = async {
            while !self.is_everything_seen() {
                sleep(ASK_AGAIN).await;
            }
        };
        if tokio::time::timeout_at(until, everything_seen).await.is_err() {
            tracing::warn!("subscriptions do not come to their end");
        }
        let found = self.drain_all().await?;
        self.resolve(&found);
        crowd.stop_readers.send_replace(true);
        while crowd.readers.join_next().await.is_some() {}
        sleep(IDLE).await;
        for (_, machine) in self.cluster.machines() {
            machine.kill().await;
        }
        drain::compare_logs(&self.cluster, &self.recorder)?;
        Ok(faults)
    }

    async fn gather(&self) -> Result<Crowd, String> {
        let mut random = fastrand::Rng::with_seed(self.seed ^ 0x0063_726f_7764);
        let mut host = CLIENTS;
        let mut next_host = || {
            host += 1;
            host
        };
        let mut publishers = JoinSet::new();
        let mut readers = JoinSet::new();
        let (stop_publishers, no_more) = watch::channel(false);
        let (stop_readers, done) = watch::channel(false);
        for producer in 0..self.shape.producers {
            let client = self.client(next_host()).await?;
            let deadline = if random.u8(..3) == 0 { IMPATIENT } else { PATIENT };
            for partition in 0..self.shape.partitions {
                let (client, recorder) = (client.clone(), self.recorder.clone());
                let random = random.fork();
                let topic = TOPIC;
                let publishing =
                    Publishing { client, topic, producer, partition, deadline, random, recorder };
                publishers.spawn(publishing.run(no_more.clone()));
            }
        }
        for subscription in 0..SUBSCRIPTIONS + READERS {
            let reading = Reading {
                client: self.client(next_host()).await?,
                topic: TOPIC,
                subscription,
                is_durable: subscription < SUBSCRIPTIONS,
                any_replica: subscription > SUBSCRIPTIONS,
                random: random.fork(),
                recorder: self.recorder.clone(),
            };
            readers.spawn(reading.run(done.clone()));
        }
        let client = self.client(next_host()).await?;
        readers.spawn(watch_leaders(client, TOPIC, self.recorder.clone(), done));
        if self.shape.churns_topics {
            let client = self.client(next_host()).await?;
            let replicas = self.shape.brokers;
            publishers.spawn(churn_topics(client, replicas, random.fork(), no_more));
        }
        Ok(Crowd { publishers, readers, stop_publishers, stop_readers })
    }

    fn is_everything_seen(&self) -> bool {
        let mut each = (0..SUBSCRIPTIONS).flat_map(|subscription| {
            (0..self.shape.partitions).map(move |partition| (subscription, partition))
        });
        each.all(|(subscription, partition)| {
            self.recorder.seen(subscription, partition) >= self.recorder.end(partition)
        })
    }

    async fn drain_all(&self) -> Result<Found, String> {
        let client = self.client(DRAINS).await?;
        let ends = drain::ends(&client, TOPIC).await?;
        let mut found = Found::new();
        for number in 1..=self.shape.brokers {
            let place = (DRAINS + number, number);
            found.extend(drain::drain(&self.cluster, place, TOPIC, &ends, &self.recorder).await?);
        }
        Ok(found)
    }

    /// What the drains say of messages whose fate their publisher never learnt: the publisher is
    /// gone, so that nothing can change it any more.
    fn resolve(&self, found: &Found) {
        for (message, bytes) in self.recorder.unknown() {
            let Message { producer, partition, sequence } = message;
            match found.get(&(producer, partition, sequence)) {
                Some(offset) => {
                    self.recorder.note(What::Publish { message, bytes });
                    self.recorder.note(What::Stored { message, offset: Some(*offset) });
                }
                None => self.recorder.note(What::Void { message }),
            }
        }
    }
}
