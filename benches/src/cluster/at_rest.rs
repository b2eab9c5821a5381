//! What a cluster costs that nobody uses.

use super::brokers::Brokers;
use super::{BROKERS, Bound, Goal, Place, REPLICAS, goal_lines, make_topic, other, row};
use crate::clock;
use crate::load;
use crate::measure::{ProcessCost, process_cost};
use crate::scratch::in_scratch_folder;
use serde::Serialize;
use std::io;
use std::time::Duration;
use tokio::runtime::Runtime;

const TOPIC: &str = "bench";
/// What the making of a topic leaves to be done is done by then.
const SETTLE: Duration = Duration::from_secs(15);
/// Of a core, with 500 partitions.
const SHARE: f64 = 0.15;

/// What one broker cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cost {
    /// Of a core.
    pub cpu_share: f64,
    /// Resident memory that no file backs, at the end.
    pub anonymous_bytes: u64,
}

/// What was reached.
#[derive(Debug, Clone, Serialize)]
pub struct AtRestReport {
    /// Partitions, of three replicas each.
    pub partitions: u32,
    /// How long it was looked.
    pub seconds: f64,
    /// Of each broker.
    pub brokers: Vec<Cost>,
    /// What it shall be.
    pub goals: Vec<Goal>,
}

/// Runs it with a cluster of its own.
pub fn measure(
    runtime: &Runtime,
    place: &Place,
    partitions: u32,
    watch: Duration,
) -> io::Result<AtRestReport> {
    let brokers = in_scratch_folder(&place.dir, |scratch| {
        runtime.block_on(async {
            let brokers = Brokers::start(place, scratch, BROKERS).await?;
            let client = load::connect(&brokers.endpoints()).await.map_err(other)?;
            make_topic(&brokers, &client, TOPIC, (partitions, REPLICAS)).await?;
            drop(client);
            tokio::time::sleep(SETTLE).await;
            let (before, began) = (costs(&brokers)?, clock::now());
            tokio::time::sleep(watch).await;
            let (after, seconds) = (costs(&brokers)?, began.elapsed().as_secs_f64());
            let costs = before.iter().zip(&after).map(|(before, after)| Cost {
                cpu_share: (after.cpu_seconds - before.cpu_seconds) / seconds,
                anonymous_bytes: after.anonymous_bytes,
            });
            Ok(costs.collect::<Vec<_>>())
        })
    })?;
    let most = brokers.iter().map(|cost| cost.cpu_share).fold(0.0, f64::max);
    let goals = vec![Goal::new("of a core, the busiest broker", most, Bound::AtMost(SHARE))];
    Ok(AtRestReport { partitions, seconds: watch.as_secs_f64(), brokers, goals })
}

fn costs(brokers: &Brokers) -> io::Result<Vec<ProcessCost>> {
    let cost = |pid| process_cost(pid).ok_or_else(|| other(format!("process {pid} is gone")));
    brokers.pids().into_iter().map(cost).collect()
}

impl AtRestReport {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!("{} partitions x {REPLICAS}, {} s\n", self.partitions, self.seconds);
        text += &row("broker", ["CPU %", "MiB anonymous"].map(str::to_owned));
        for (number, cost) in self.brokers.iter().enumerate() {
            let mebibytes = cost.anonymous_bytes as f64 / f64::from(1 << 20);
            let cells = [format!("{:.1}", cost.cpu_share * 100.0), format!("{mebibytes:.1}")];
            text += &row(&number.to_string(), cells);
        }
        text + &goal_lines(&self.goals)
    }
}
