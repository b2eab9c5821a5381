//! The cluster in numbers, for whoever scrapes.
//!
//! Owns: which numbers are this broker's own, to be added up over brokers, and which every broker
//! tells alike from its copy of the metadata.
//! Never: a series per partition or per connection.

use super::Look;
use super::health::{BROKER_STATES, Health, state_of};
use super::led::Led;
use super::page::{lane_word, link_word};
use crate::catalog::TopicPartitions;
use crate::cluster::controller::Reach;
use crate::metrics::Exposition;
use crate::peer::CatchUpBytes;
use std::collections::BTreeMap;

/// How links may stand.
const LINK_STATES: [&str; 3] = ["connecting", "refused", "open"];

/// Writes all of them. `topics`: what is open here.
pub(in crate::admin) fn render(page: &mut Exposition, look: &Look, topics: &[TopicPartitions]) {
    render_own(page, topics);
    render_traffic(page, look);
    let health = Health::of(look);
    page.sample("weir_leaderless_partitions", &[], health.leaderless.len() as f64);
    page.sample("weir_lost_replicas", &[], health.lost.len() as f64);
    page.sample("weir_moves", &[], look.catalog.moves.len() as f64);
    let reach = look.reach();
    let states = look
        .catalog
        .brokers
        .values()
        .map(|card| state_of(card, reach.get(&card.id).copied().unwrap_or(Reach::Quiet)));
    count_by(page, "weir_cluster_brokers", &BROKER_STATES, states);
    let leads = look.metadata_leader(&reach) == Some(look.me.0);
    page.sample("weir_metadata_leader", &[], f64::from(u8::from(leads)));
    let links = look.links.iter().map(|link| link_word(link.state));
    count_by(page, "weir_peer_links", &LINK_STATES, links);
}

/// What went between brokers.
fn render_traffic(page: &mut Exposition, look: &Look) {
    for (lane, [read, written]) in &look.traffic {
        for (direction, bytes) in [("in", read), ("out", written)] {
            let labels = [("direction", direction), ("lane", lane_word(*lane))];
            page.sample("weir_peer_bytes_total", &labels, *bytes as f64);
        }
    }
    let CatchUpBytes { sent, delayed } = look.catch_up;
    page.sample("weir_peer_catchup_bytes_total", &[], sent as f64);
    page.sample("weir_peer_catchup_delayed_bytes_total", &[], delayed as f64);
}

/// What this broker knows as a leader.
fn render_own(page: &mut Exposition, topics: &[TopicPartitions]) {
    let (mut leaders, mut under_replicated, mut catching_up) = (0_u32, 0_u32, 0_u32);
    let mut lags = BTreeMap::<&str, u64>::new();
    for here in topics {
        for (number, handle) in here.open() {
            let Some(led) = Led::of(handle) else { continue };
            leaders += 1;
            let placed = here.topic.partitions.get(number);
            let wanted = usize::from(here.topic.replicas);
            under_replicated += u32::from(placed.is_some_and(|placed| led.whole(placed) < wanted));
            catching_up += led.catching_up();
            if let Some(bytes) = led.lag_bytes() {
                let lag = lags.entry(here.topic.name.as_str()).or_default();
                *lag = bytes.max(*lag);
            }
        }
    }
    page.sample("weir_broker_leaders", &[], f64::from(leaders));
    page.sample("weir_under_replicated_partitions", &[], f64::from(under_replicated));
    page.sample("weir_catching_up_replicas", &[], f64::from(catching_up));
    for (topic, bytes) in lags {
        page.sample("weir_replica_lag_bytes", &[("topic", topic)], bytes as f64);
    }
}

/// How many are in each state, those in none included.
fn count_by(
    page: &mut Exposition,
    family: &str,
    states: &[&'static str],
    all: impl Iterator<Item = &'static str>,
) {
    let mut counts: BTreeMap<_, u32> = states.iter().map(|state| (*state, 0)).collect();
    for state in all {
        *counts.entry(state).or_default() += 1;
    }
    for state in states {
        page.sample(family, &[("state", state)], f64::from(counts[state]));
    }
}
