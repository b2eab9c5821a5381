//! What is lost in a topic's partitions, and what comes next, for `weir topic info`.
//!
//! Owns: asking the broker's admin server, and the words for somebody who was woken up.
//! Never: takes another broker's answer for this topic's: its name and its id have to match.

use crate::admin::fetch;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;
use weir_client::TopicView;

const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Where the admin server listens unless a configuration says otherwise.
const ADMIN_PORT: u16 = 7421;
const NEXT: &str = "\
Next: look at the disk (kernel log, SMART), stop the broker, copy its data directory, and say
`weir data verify`. A backup of the segment brings everything back; `weir data recover
--accept-loss` gives up what is lost. Step by step: ops/runbook/damaged-range.md";

/// How one partition is, as `/v1/topics/NAME` tells it.
#[derive(Debug, Deserialize)]
pub(super) struct Health {
    pub(super) partition: u32,
    /// leading, not leading, opening or failed
    pub(super) state: String,
    /// Of a partition that is open.
    pub(super) read_only: Option<bool>,
    #[serde(default)]
    pub(super) damaged: Vec<Damaged>,
    /// Why it failed.
    code: Option<String>,
    reason: Option<String>,
    /// How its replicas do; empty from a broker that does not tell.
    #[serde(default)]
    pub(super) replicas: Vec<ReplicaHealth>,
}

impl Health {
    /// In one word, for a table.
    pub(super) fn word(&self) -> &str {
        let is_open = |range: &Damaged| !range.accepted;
        match self.read_only {
            Some(true) => "read-only",
            _ if self.damaged.iter().any(is_open) => "damaged",
            _ => &self.state,
        }
    }
}

/// How one replica does.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ReplicaHealth {
    pub(super) broker_id: u64,
    pub(super) replica: u64,
    /// joining, ready, voter, leaving or lost
    pub(super) stage: String,
    /// Why it is lost.
    pub(super) lost: Option<String>,
    /// Bytes of its leader's log that it does not have, where that leader was asked.
    pub(super) lag_bytes: Option<u64>,
}

/// A range that cannot be read; `last_offset` is none where no record is in it.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Damaged {
    first_offset: u64,
    last_offset: Option<u64>,
    segment: u64,
    accepted: bool,
}

/// The partitions' health, or why it is not known.
pub(super) async fn ask(admin: &str, topic: &TopicView) -> Result<Vec<Health>, String> {
    let path = format!("/v1/topics/{}", topic.name);
    let answer = fetch(admin, &path, ASK_LIMIT).await.map_err(|error| error.to_string())?;
    if answer.status != 200 {
        return Err(format!("{admin}{path}: {}", answer.body.trim()));
    }
    let unreadable = |error: serde_json::Error| format!("{admin}{path}: {error}");
    let body: Value = serde_json::from_str(&answer.body).map_err(unreadable)?;
    if body["id"] != topic.id.0 {
        return Err(format!(
            "{admin} knows another topic {}: it belongs to another broker; --admin names the right \
             one",
            topic.name
        ));
    }
    serde_json::from_value(body["partitions"].clone()).map_err(unreadable)
}

/// The admin server that most likely stands beside an endpoint.
pub(super) fn admin_beside(endpoint: &str) -> String {
    let address = endpoint.strip_prefix("weir://").unwrap_or(endpoint);
    // The last colon of an address in brackets may be its own.
    let port = address.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
    let host = port.map_or(address, |(host, _)| host);
    format!("{host}:{ADMIN_PORT}")
}

/// What somebody has to know and do about it; nothing where everything is whole.
pub(super) fn report(topic: &TopicView, all: &[Health]) -> Vec<String> {
    let mut lines: Vec<String> = all.iter().flat_map(|health| lines_of(topic, health)).collect();
    let is_open = |health: &Health| health.damaged.iter().any(|range| !range.accepted);
    if all.iter().any(|health| is_open(health) || health.state == "failed") {
        lines.push(NEXT.to_owned());
    }
    lines
}

fn lines_of(topic: &TopicView, health: &Health) -> Vec<String> {
    let number = health.partition;
    let mut lines = Vec::new();
    if let (Some(code), Some(reason)) = (&health.code, &health.reason) {
        lines.push(format!("partition {number} is not open: {code}: {reason}"));
    }
    if health.read_only == Some(true) {
        lines.push(format!(
            "partition {number} is read-only: no checkpoint covers what is damaged, so publishes, \
             settles and new subscriptions are refused (DAMAGED_RANGE) until it is restored or \
             given up; what can be read is served"
        ));
    }
    lines.extend(health.damaged.iter().map(|range| range_line(topic, number, range)));
    lines
}

fn range_line(topic: &TopicView, partition: u32, range: &Damaged) -> String {
    let segment = range.segment;
    let Some(last) = range.last_offset else {
        return format!(
            "partition {partition}: no record is lost, only what the broker wrote for itself in \
             segment {segment}"
        );
    };
    let first = range.first_offset;
    let lost = format!("partition {partition}: offsets {first} to {last} (segment {segment})");
    match range.accepted {
        true => format!("{lost} are lost, which was accepted: consumers pass over them"),
        false => format!(
            "{lost} cannot be read, and consumers are refused there; `weir sub {} --partition \
             {partition} --from {}` reads on behind them",
            topic.name,
            last + 1
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_server_is_looked_for_beside_the_endpoint() {
        for (endpoint, admin) in [
            ("weir://127.0.0.1:7420", "127.0.0.1:7421"),
            ("weir://[::1]:9", "[::1]:7421"),
            ("weir://[::1]", "[::1]:7421"),
            ("broker.example:7420", "broker.example:7421"),
            ("broker.example", "broker.example:7421"),
        ] {
            assert_eq!(admin_beside(endpoint), admin);
        }
    }
}
