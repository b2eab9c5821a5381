//! What a slow follower costs: one of three stands still half of the time.

use super::brokers::Brokers;
use super::steady::{Comparison, Load, Turns, cluster_with};
use super::{BROKERS, Place, REPLICAS, found, leaders, other};
use crate::scratch::in_scratch_folder;
use rustix::process::Signal;
use std::convert::Infallible;
use std::io;
use std::time::Duration;
use tokio::runtime::Runtime;
use weir_client::Client;

const TOPIC: &str = "bench";
/// It runs for so long, and stands still for as long.
const HALF_PERIOD: Duration = Duration::from_millis(200);
/// Of the goodput of three that are well.
const SHARE: f64 = 0.98;

/// What it misses is caught up as fast as it goes: the turns wait for that, and nobody measures it.
const CATCH_UP: (&str, &str) = ("WEIR__CLUSTER__CATCHUP_BYTES_PER_S", "0");

/// Runs it with a cluster of its own. Followers that are well are the base.
pub fn measure(
    runtime: &Runtime,
    place: &Place,
    load: Load,
    rounds: u32,
) -> io::Result<Comparison> {
    let turns = in_scratch_folder(&place.dir, |scratch| {
        runtime.block_on(async {
            let (topics, settings) = ([(TOPIC, REPLICAS)], [CATCH_UP]);
            let (brokers, client) = cluster_with((place, scratch), &settings, &topics).await?;
            run(&brokers, &client, load, rounds).await
        })
    })?;
    let slow = format!("one stands still {HALF_PERIOD:?} of {:?}", HALF_PERIOD * 2);
    let goal = ("goodput beside a slow follower over that without", 1.0, SHARE);
    Ok(Comparison::new((load, turns), ["all followers well", &slow], goal))
}

async fn run(brokers: &Brokers, client: &Client, load: Load, rounds: u32) -> io::Result<Turns> {
    let endpoints = brokers.endpoints();
    let mut turns = Turns::default();
    for _ in 0..rounds {
        turns.base.push(load.goodput(&endpoints, TOPIC).await?);
        // A young topic is handed over to whom it prefers: who follows may be another now.
        let leader = leaders(brokers, client, TOPIC).await?[0];
        let follower = (leader + 1) % BROKERS;
        let measured = tokio::select! {
            biased;
            measured = load.goodput(&endpoints, TOPIC) => measured,
            failed = stop_and_go(brokers, follower) => match failed? {},
        };
        brokers.signal(follower, Signal::CONT)?;
        turns.measured.push(measured?);
        if leaders(brokers, client, TOPIC).await?[0] != leader {
            return Err(other("the leader changed in a turn: its follower was not the slow one"));
        }
        // What it missed is fetched in nobody's turn.
        caught_up(brokers, leader).await?;
    }
    Ok(turns)
}

/// Waits until nobody is behind the broker that leads.
async fn caught_up(brokers: &Brokers, leader: usize) -> io::Result<()> {
    found("the followers have what the leader has", async || {
        let view = brokers.ask(leader, &["topic", "info", TOPIC]).await.ok()?;
        let replicas = view["partitions"][0]["replicas"].as_array()?;
        let mut others = replicas.iter().filter(|replica| replica["leads"] == false);
        others.all(|replica| replica["lag_bytes"] == 0).then_some(())
    })
    .await
}

async fn stop_and_go(brokers: &Brokers, follower: usize) -> io::Result<Infallible> {
    loop {
        brokers.signal(follower, Signal::STOP)?;
        tokio::time::sleep(HALF_PERIOD).await;
        brokers.signal(follower, Signal::CONT)?;
        tokio::time::sleep(HALF_PERIOD).await;
    }
}
