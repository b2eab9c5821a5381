//! What a cluster of real brokers reaches on this machine.
//!
//! Owns: what all its measurements share: the cluster under test, topics in it, goals.
//! Never: uses a broker that it did not start; calls a run good that lost or repeated a record.

pub mod at_rest;
mod brokers;
pub mod failover;
mod gaps;
pub mod paced;
mod processes;
pub mod rabbitmq;
pub mod replicas;
pub mod slow_follower;
pub mod steady;

pub(crate) use processes::kill_all;

use crate::floor::RETAINED_BYTES;
use brokers::Brokers;
use serde::Serialize;
use std::fmt::Write;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use weir_client::{Client, ErrorCode, Outcome, TopicConfig};

/// Brokers of a cluster under test.
const BROKERS: usize = 3;
/// Replicas of a topic, where it is not said otherwise.
const REPLICAS: u8 = 3;
/// Whatever a whole cluster has to do is done by then, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is run, and where.
#[derive(Debug, Clone)]
pub struct Place {
    /// The `weir` that the brokers are processes of.
    pub weir: PathBuf,
    /// The folder below which they keep their data.
    pub dir: PathBuf,
}

/// A figure beside what it shall be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Goal {
    /// Of what, and in which unit.
    pub what: String,
    /// The figure.
    pub reached: f64,
    /// What it shall be at least, or at most.
    #[serde(flatten)]
    pub bound: Bound,
    /// Whether it is.
    pub met: bool,
}

/// What a figure shall be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

impl Goal {
    fn new(what: impl Into<String>, reached: f64, bound: Bound) -> Self {
        let met = match bound {
            Bound::AtLeast(least) => reached >= least,
            Bound::AtMost(most) => reached <= most,
        };
        Self { what: what.into(), reached, bound, met }
    }

    /// For people: one line.
    fn line(&self) -> String {
        let (word, bound) = match self.bound {
            Bound::AtLeast(least) => ("at least", least),
            Bound::AtMost(most) => ("at most", most),
        };
        let verdict = if self.met { "met" } else { "NOT MET" };
        format!("goal  {}: {:.3}, {word} {bound}: {verdict}\n", self.what, self.reached)
    }
}

fn goal_lines(goals: &[Goal]) -> String {
    goals.iter().map(Goal::line).collect()
}

/// A row of right-aligned cells, for the tables of this room.
fn row<const N: usize>(first: &str, cells: [String; N]) -> String {
    let mut line = format!("{first:<26}");
    for cell in cells {
        let _ = write!(line, " {cell:>12}");
    }
    line.push('\n');
    line
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::other(error)
}

/// Asks again until there is an answer, within [`PATIENCE`].
async fn found<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> io::Result<T> {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let within = tokio::time::timeout(PATIENCE, looking).await;
    within.map_err(|_| other(format!("waited {PATIENCE:?} in vain: {what}")))
}

/// Makes a topic, and waits until all its replicas are there and each partition is led.
async fn make_topic(
    brokers: &Brokers,
    client: &Client,
    topic: &str,
    (partitions, replicas): (u32, u8),
) -> io::Result<()> {
    let max_bytes = RETAINED_BYTES;
    let config = TopicConfig { partitions, replicas, max_bytes, ..TopicConfig::default() };
    // A leader of the metadata that lost its place meanwhile does not know whether it was done.
    let made = found("a topic is made", async || match client.create_topic(topic, config).await {
        Err(error) if error.error_code() == Some(ErrorCode::TopicExists) => Some(Ok(())),
        Err(error) if error.outcome() == Outcome::Unknown => None,
        made => Some(made),
    });
    made.await?.map_err(other)?;
    is_whole(brokers).await
}

/// Waits until every broker is heard of and every partition has a leader.
async fn is_whole(brokers: &Brokers) -> io::Result<()> {
    found("the cluster is whole", async || {
        let status = brokers.status().await.ok()?;
        let count = |what: &str| status[what]["count"].as_u64();
        let whole = count("leaderless")? == 0 && count("under_replicated")? == 0;
        whole.then_some(())
    })
    .await
}

/// By partition, the number of the broker that leads it, as the metadata tells.
async fn leaders(brokers: &Brokers, client: &Client, topic: &str) -> io::Result<Vec<usize>> {
    found("every partition is led", async || {
        let (view, known) = client.topic_and_brokers(topic).await.ok()?;
        let number = |leader: Option<_>| {
            let card = known.iter().find(|card| Some(card.id) == leader)?;
            brokers.number_of(&card.name)
        };
        view.partitions.iter().map(|partition| number(partition.leader)).collect()
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_says_whether_it_is_met() {
        let gap = |seconds| Goal::new("gap, s", seconds, Bound::AtMost(2.0));
        assert!(gap(2.0).met && !gap(2.001).met);
        assert_eq!(gap(2.5).line(), "goal  gap, s: 2.500, at most 2: NOT MET\n");
        let share = |of| Goal::new("share", of, Bound::AtLeast(0.7));
        assert!(share(0.7).met && !share(0.69).met && !share(f64::NAN).met);
        let json = serde_json::to_value(share(0.75)).unwrap();
        assert_eq!((&json["at_least"], &json["met"]), (&0.7.into(), &true.into()));
    }
}
