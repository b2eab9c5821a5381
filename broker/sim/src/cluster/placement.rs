//! Where the replicas of a topic are, as the metadata says.
//!
//! Never: asks a replica itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use tokio::time::{Duration, sleep};
use weir_client::Client;
use weir_protocol::frame::BrokerView;

const ASK_AGAIN: Duration = Duration::from_millis(200);

/// By partition: the machines that hold a replica.
pub(super) type Placement = BTreeMap<u32, BTreeSet<u8>>;

/// Waits until every partition has exactly so many replicas: nothing moves any more, and what was lost
/// is replaced.
pub(super) async fn settled(client: &Client, topic: &str, replicas: u8) -> Placement {
    loop {
        match placement(client, topic, replicas).await {
            Ok(Some(placement)) => return placement,
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "the placement is not known yet"),
        }
        sleep(ASK_AGAIN).await;
    }
}

async fn placement(
    client: &Client,
    topic: &str,
    replicas: u8,
) -> weir_client::Result<Option<Placement>> {
    let (view, brokers) = client.topic_and_brokers(topic).await?;
    // Who was wiped is still known under its old name for a while; nothing of that is there any more.
    let is_gone = |card: &BrokerView| {
        brokers.iter().any(|other| other.host == card.host && other.id > card.id)
    };
    let mut placement = Placement::new();
    for partition in &view.partitions {
        let mut machines = BTreeSet::new();
        for broker in &partition.replicas {
            let card = brokers.iter().find(|card| card.id == *broker && !is_gone(card));
            let host = card.map(|card| &card.host);
            let address = host.and_then(|host| host.parse::<Ipv4Addr>().ok());
            machines.extend(address.map(|address| address.octets()[3]));
        }
        let is_whole = partition.replicas.len() == usize::from(replicas)
            && machines.len() == usize::from(replicas)
            && partition.leader.is_some();
        if !is_whole {
            return Ok(None);
        }
        placement.insert(partition.partition.0, machines);
    }
    Ok(Some(placement))
}
