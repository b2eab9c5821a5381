//! Where the replicas of a topic are, as the metadata says.
//!
//! Never: asks a replica itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use tokio::time::{Duration, Instant, sleep};
use weir_client::Client;
use weir_protocol::frame::BrokerView;

const ASK_AGAIN: Duration = Duration::from_millis(200);
/// The cluster decides once a second what is to move next: between two moves everything is in its
/// place for a moment.
const STANDS_FOR: Duration = Duration::from_secs(4);

/// By partition: the machines that hold a replica.
pub(super) type Placement = BTreeMap<u32, BTreeSet<u8>>;

/// Waits until every partition has exactly so many replicas, the same ones for a while: nothing moves
/// any more, and what was lost is replaced.
pub(super) async fn settled(client: &Client, topic: &str, replicas: u8) -> Placement {
    let mut stands: Option<(Placement, Instant)> = None;
    loop {
        let found = placement(client, topic, replicas).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "the placement is not known yet");
            None
        });
        stands = match (found, stands) {
            (Some(found), Some((before, since))) if found == before => {
                if since.elapsed() >= STANDS_FOR {
                    return found;
                }
                Some((before, since))
            }
            (found, _) => found.map(|found| (found, Instant::now())),
        };
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
