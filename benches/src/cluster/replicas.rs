//! What three replicas cost: a topic of one beside a topic of three, in the same cluster.

use super::steady::{Comparison, Load, Turns, cluster_with};
use super::{Place, REPLICAS};
use crate::scratch::in_scratch_folder;
use std::io;
use tokio::runtime::Runtime;

const ONE: &str = "one-replica";
const THREE: &str = "three-replicas";
/// Each record is written three times on one machine: of a third of one replica's rate this share.
const SHARE_OF_A_THIRD: f64 = 0.7;

/// Runs it with a cluster of its own. One replica is the base.
pub fn measure(
    runtime: &Runtime,
    place: &Place,
    load: Load,
    rounds: u32,
) -> io::Result<Comparison> {
    let turns = in_scratch_folder(&place.dir, |scratch| {
        runtime.block_on(async {
            let topics = [(ONE, 1), (THREE, REPLICAS)];
            let (brokers, _client) = cluster_with((place, scratch), &[], &topics).await?;
            let (endpoints, mut turns) = (brokers.endpoints(), Turns::default());
            for _ in 0..rounds {
                turns.base.push(load.goodput(&endpoints, ONE).await?);
                turns.measured.push(load.goodput(&endpoints, THREE).await?);
            }
            Ok(turns)
        })
    })?;
    let goal = ("three replicas over a third of one", f64::from(REPLICAS), SHARE_OF_A_THIRD);
    Ok(Comparison::new((load, turns), ["one replica", "three replicas"], goal))
}
