//! Who leads a partition and who holds it, by name.
//!
//! Owns: joining what the cluster tells every client with what an admin server knows besides.
//! Invariant: leader and replicas are named also where no admin server answers.

use super::damage::{Health, ReplicaHealth};
use crate::output::bytes_text;
use serde_json::{Value, json};
use weir_client::{BrokerView, PartitionView, TopicView};
use weir_protocol::types::BrokerId;

/// A replica as it is shown.
#[derive(Debug)]
pub(super) struct Replica {
    broker: String,
    id: BrokerId,
    leads: bool,
    health: Option<ReplicaHealth>,
}

/// What a broker is called; its number where nobody knows.
pub(super) fn name_of(brokers: &[BrokerView], id: BrokerId) -> String {
    let known = brokers.iter().find(|broker| broker.id == id);
    known.map_or_else(|| format!("broker-{id}"), |broker| broker.name.clone())
}

/// The replicas of a partition, the one that shall lead first.
pub(super) fn replicas_of(
    partition: &PartitionView,
    brokers: &[BrokerView],
    health: Option<&Health>,
) -> Vec<Replica> {
    let known = health.map_or(&[][..], |health| &health.replicas);
    let replicas = partition.replicas.iter().map(|id| Replica {
        broker: name_of(brokers, *id),
        id: *id,
        leads: partition.leader == Some(*id),
        health: known.iter().find(|replica| replica.broker_id == id.0).cloned(),
    });
    replicas.collect()
}

/// In a word each: what is a voter and not behind needs no more than its name.
pub(super) fn replicas_text(replicas: &[Replica]) -> String {
    let texts = replicas.iter().map(|replica| {
        let health = replica.health.as_ref();
        let stage = health.map(|health| health.stage.as_str()).filter(|stage| *stage != "voter");
        let lag = health.and_then(|health| health.lag_bytes).filter(|bytes| *bytes > 0);
        let lag = lag.map(|bytes| format!("{} behind", bytes_text(bytes)));
        let notes: Vec<String> = stage.map(str::to_owned).into_iter().chain(lag).collect();
        match notes.is_empty() {
            true => replica.broker.clone(),
            false => format!("{} ({})", replica.broker, notes.join(", ")),
        }
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// Adds to each partition who leads it and who holds it.
pub(super) fn with_replicas(
    mut shown: Value,
    topic: &TopicView,
    brokers: &[BrokerView],
    health: &Result<Vec<Health>, String>,
) -> Value {
    let known = health.as_deref().unwrap_or_default();
    let rows = shown["partitions"].as_array_mut().into_iter().flatten();
    for (row, partition) in rows.zip(&topic.partitions) {
        let health = known.iter().find(|health| health.partition == partition.partition.0);
        row["leader"] = json!(partition.leader.map(|leader| name_of(brokers, leader)));
        // Whoever should lead comes first.
        let preferred = partition.replicas.first().map(|id| name_of(brokers, *id));
        row["preferred"] = json!(preferred);
        let replicas = replicas_of(partition, brokers, health);
        row["replicas"] = replicas.iter().map(replica_json).collect();
    }
    shown
}

fn replica_json(replica: &Replica) -> Value {
    let health = replica.health.as_ref();
    json!({
        "broker": replica.broker,
        "broker_id": replica.id.0,
        "leads": replica.leads,
        "replica": health.map(|health| health.replica),
        "stage": health.map(|health| &health.stage),
        "lost": health.and_then(|health| health.lost.as_ref()),
        "lag_bytes": health.and_then(|health| health.lag_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_protocol::types::{Offset, PartitionId, Term};

    fn partition() -> PartitionView {
        PartitionView {
            partition: PartitionId(0),
            leader: Some(BrokerId(2)),
            log_start: Offset(0),
            high_watermark: Offset(5),
            bytes: 9,
            term: Term(3),
            replicas: [1, 2, 3].map(BrokerId).to_vec(),
        }
    }

    fn brokers() -> Vec<BrokerView> {
        let broker = |id| BrokerView {
            id: BrokerId(id),
            host: String::new(),
            port: 0,
            name: format!("n{id}"),
            rack: String::new(),
        };
        (1..=2).map(broker).collect()
    }

    #[test]
    fn replicas_are_named_whether_or_not_an_admin_server_answers() {
        let unknown = replicas_of(&partition(), &brokers(), None);
        assert_eq!(replicas_text(&unknown), "n1, n2, broker-3");
        let health = json!({
            "partition": 0, "state": "leading", "replicas": [
                { "broker_id": 1, "replica": 7, "stage": "voter", "lag_bytes": 2048 },
                { "broker_id": 2, "replica": 8, "stage": "voter", "lag_bytes": null },
                { "broker_id": 3, "replica": 9, "stage": "lost", "lost": "its log is damaged" },
            ],
        });
        let health: Health = serde_json::from_value(health).unwrap();
        let known = replicas_of(&partition(), &brokers(), Some(&health));
        assert_eq!(replicas_text(&known), "n1 (2KiB behind), n2, broker-3 (lost)");
        let shown = known.iter().map(replica_json).collect::<Vec<_>>();
        assert_eq!((&shown[1]["leads"], &shown[0]["leads"]), (&true.into(), &false.into()));
        assert_eq!(shown[2]["lost"], "its log is damaged");
    }
}
