//! What three replicas cost: a topic of one beside a topic of three, in the same cluster.

use super::brokers::Brokers;
use super::steady::{Load, Turns};
use super::{BROKERS, Bound, Goal, Place, REPLICAS, goal_lines, make_topic, other};
use crate::load;
use crate::scratch::in_scratch_folder;
use serde::Serialize;
use std::io;
use tokio::runtime::Runtime;

const ONE: &str = "one-replica";
const THREE: &str = "three-replicas";
/// Each record is written three times on one machine: of a third of one replica's rate this share.
const SHARE_OF_A_THIRD: f64 = 0.7;

/// What was reached.
#[derive(Debug, Clone, Serialize)]
pub struct ReplicasReport {
    /// The load of both.
    pub load: Load,
    /// One replica is the base.
    pub turns: Turns,
    /// What it shall be.
    pub goals: Vec<Goal>,
}

/// Runs it with a cluster of its own.
pub fn measure(
    runtime: &Runtime,
    place: &Place,
    load: Load,
    rounds: u32,
) -> io::Result<ReplicasReport> {
    let turns = in_scratch_folder(&place.dir, |scratch| {
        runtime.block_on(async {
            let brokers = Brokers::start(place, scratch, BROKERS).await?;
            let endpoints = brokers.endpoints();
            let client = load::connect(&endpoints).await.map_err(other)?;
            make_topic(&brokers, &client, ONE, (1, 1)).await?;
            make_topic(&brokers, &client, THREE, (1, REPLICAS)).await?;
            let mut turns = Turns::default();
            for _ in 0..rounds {
                turns.base.push(load.goodput(&endpoints, ONE).await?);
                turns.measured.push(load.goodput(&endpoints, THREE).await?);
            }
            Ok(turns)
        })
    })?;
    let share = turns.ratio().0 * f64::from(REPLICAS);
    let what = "three replicas over a third of one";
    let goals = vec![Goal::new(what, share, Bound::AtLeast(SHARE_OF_A_THIRD))];
    Ok(ReplicasReport { load, turns, goals })
}

impl ReplicasReport {
    /// For people.
    pub fn table(&self) -> String {
        self.turns.table("one replica", "three replicas") + &goal_lines(&self.goals)
    }
}
