//! A whole simulation of a cluster: it forms, is used, is broken and healed, and is looked at.
//!
//! Owns: the order of all that, and what a run came to.
//! Never: asks the operating system for time, chance or I/O: the same seed gives the same trace.

use super::crowd::{Crowd, Load};
use super::drain;
use super::nemesis::Nemesis;
use super::placement;
use super::plan::Shape;
use super::record::Recorder;
use super::tap::Tap;
use super::{Cluster, NotStarted};
use crate::history::{Limits, Report, What, check};
use crate::runtime::paused;
use std::cell::Cell;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, timeout};
use weir_client::Client;

const TOPIC: &str = "judged";
/// Hosts from here on are clients'.
const CLIENTS: u8 = 20;
/// Hosts from here on are those of the drains.
const DRAINS: u8 = 200;
/// What a topic keeps that is to be trimmed, in bytes.
const KEEPS_BYTES: u64 = 8 << 20;
const FORMED_WITHIN: Duration = Duration::from_secs(60);
/// A message of a patient producer outlives every fault.
const PATIENT: Duration = Duration::from_secs(600);
const IMPATIENT: Duration = Duration::from_secs(2);
/// Publishes go on so long after the last fault.
const CALM: Duration = Duration::from_secs(1);
/// After the last fault publishers learn their outcomes and subscriptions see everything within
/// this time. It ends behind what the history's checks allow, so that they name what is missing.
const SETTLED_WITHIN: Duration = Duration::from_secs(32);
/// From the last fault until nothing is moved any more and what was lost is replaced.
const PLACED_WITHIN: Duration = Duration::from_secs(120);
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
        let (faults, crowd) = run.live().await?;
        let report = check(&crowd.events(), Limits::default());
        let acknowledged = crowd.acknowledged();
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

impl<'a> Run<'a> {
    /// Forms the cluster.
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
        let nemesis = Nemesis::of(cluster.clone(), TOPIC, shape);
        Ok(Self { seed, shape, cluster, recorder: Recorder::start(), nemesis })
    }

    async fn client(&self, host: u8) -> Result<Client, String> {
        let brokers: Vec<u8> = (1..=self.shape.brokers).collect();
        let way = self.cluster.network().host(host);
        let tap = Tap { way, recorder: self.recorder.clone() };
        let client = self.cluster.client_over(Arc::new(tap), host, &brokers).await;
        client.map_err(|error| format!("client {host}: {error}"))
    }

    /// Uses, breaks and heals it, and looks at what is left. Returns how many faults there were,
    /// and who used it.
    async fn live(&self) -> Result<(u64, Crowd), String> {
        let mut crowd = self.gather().await?;
        crowd.note(What::Fault);
        let faults = self.nemesis.run(self.shape, self.seed).await?;
        crowd.note(What::Heal);
        let until = Instant::now() + SETTLED_WITHIN;
        sleep(CALM).await;
        crowd.come_to_rest(until).await;
        self.drain_all(&mut crowd).await?;
        crowd.leave().await;
        sleep(IDLE).await;
        for (_, machine) in self.cluster.machines() {
            machine.kill().await;
        }
        drain::compare_logs(&self.cluster, self.shape.replicas, &self.recorder)?;
        Ok((faults, crowd))
    }

    async fn drain_all(&self, crowd: &mut Crowd) -> Result<(), String> {
        let client = self.client(DRAINS).await?;
        let placed = placement::settled(&client, TOPIC, self.shape.replicas);
        let placed = timeout(PLACED_WITHIN, placed).await;
        let late = |_| format!("a replica is still missing, or moving, after {PLACED_WITHIN:?}");
        let placed = placed.map_err(late)?;
        let ends = crowd.ends(&client).await?;
        for number in 1..=self.shape.brokers {
            let host = DRAINS + number;
            for other in (1..=self.shape.brokers).filter(|other| *other != number) {
                self.cluster.network().cut(host, other);
            }
            let held = |partition: &u32| placed[partition].contains(&number);
            let ends = ends.clone().into_iter().filter(|(partition, _)| held(partition)).collect();
            let client = self.cluster.client(host, &[number]).await;
            let client = client.map_err(|error| format!("draining broker {number}: {error}"))?;
            crowd.drain((client, number), &ends).await?;
        }
        Ok(())
    }

    async fn gather(&self) -> Result<Crowd, String> {
        let load = Load {
            topic: TOPIC,
            partitions: self.shape.partitions,
            replicas: self.shape.replicas,
            producers: self.shape.producers,
            deadlines: vec![IMPATIENT, PATIENT, PATIENT],
            members: self.shape.members,
            keeps_bytes: self.shape.trims.then_some(KEEPS_BYTES),
            churns_topics: self.shape.churns_topics,
        };
        let host = Cell::new(CLIENTS);
        let next_client = async || {
            let this = host.get();
            host.set(this + 1);
            self.client(this).await
        };
        Crowd::gather(load, self.recorder.clone(), self.seed, next_client).await
    }
}
