//! Folders of replicas that went while this broker was away.
//!
//! Owns: which folders of the data directory belong to nobody any more, and that they are removed.
//! Never: removes what a copy of the metadata does not know because it is old: it asks whoever leads
//! the metadata first, for as long as that takes.
//! Invariants: only what was there before the metadata was asked is looked at, so that nothing is
//! removed that was placed here since; the folder of a replica that the metadata still has, wherever,
//! stays.

use super::Rooms;
use super::opening::folder_names;
use crate::cluster::MetadataClient;
use crate::replication::metadata::{Catalog as Topics, Partition};
use crate::seams::on_lane;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::time::Duration;
use weir_protocol::types::{BrokerId, ReplicaId};
use weir_storage::Lane;

/// How long one question to whoever leads the metadata may take, and the pause before the next.
const ASK_WITHIN: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Characters of the identity of a log.
const UUID_CHARS: usize = 32;

/// Removes them, once.
pub(super) async fn run(rooms: Arc<Rooms>, metadata: MetadataClient) {
    let here = rooms.clone();
    let list = move || here.device.disk().list(&here.data_dir);
    let there = on_lane(rooms.device.executor(), Lane::Checkpoint, list).await;
    let names: BTreeSet<String> = match there {
        Ok(names) => names.into_iter().collect(),
        Err(error) => {
            tracing::warn!(%error, "the data directory is not searched for logs that are not needed");
            return;
        }
    };
    while let Err(error) = metadata.catch_up(ASK_WITHIN).await {
        tracing::debug!(%error, "which logs are needed here is not known yet");
        tokio::time::sleep(ASK_AGAIN).await;
    }
    for name in gone(&names, &metadata.catalog(), rooms.broker) {
        remove(&rooms, name).await;
    }
}

async fn remove(rooms: &Arc<Rooms>, name: String) {
    let (here, path) = (rooms.clone(), rooms.data_dir.join(&name));
    let removal = move || here.device.disk().remove_dir(&path);
    match on_lane(rooms.device.executor(), Lane::Checkpoint, removal).await {
        Ok(()) => {
            rooms.metrics.folder_removed();
            tracing::warn!(
                folder = name,
                "the log of a replica that went while this broker was away was removed"
            );
        }
        Err(error) => {
            tracing::warn!(folder = name, %error, "a log that is not needed stays on disk")
        }
    }
}

/// The folders that belong to no replica any more.
fn gone(names: &BTreeSet<String>, topics: &Topics, me: BrokerId) -> Vec<String> {
    let known: BTreeMap<u128, &Partition> =
        topics.partitions().map(|(_, partition)| (partition.uuid, partition)).collect();
    let is_gone = |name: &&String| {
        let Some((uuid, replica)) = parse(name) else { return false };
        let Some(partition) = known.get(&uuid) else { return true };
        !match replica {
            Some(replica) => partition.replica(replica).is_some(),
            // It is the folder of whoever is here and has no other.
            None => partition.replicas.iter().any(|placed| {
                let [_, own] = folder_names(uuid, placed.replica);
                placed.broker == me && !names.contains(&own)
            }),
        }
    };
    names.iter().filter(is_gone).cloned().collect()
}

/// Whose log a folder holds, if it holds one; the plain name says no replica.
fn parse(name: &str) -> Option<(u128, Option<ReplicaId>)> {
    let (uuid, rest) = name.strip_prefix("p-")?.split_at_checked(UUID_CHARS)?;
    let uuid = u128::from_str_radix(uuid, 16).ok()?;
    let replica = match rest {
        "" => None,
        _ => Some(ReplicaId(rest.strip_prefix('-')?.parse().ok()?)),
    };
    // Another spelling of the same was not written here.
    let [plain, own] = folder_names(uuid, replica.unwrap_or_default());
    (name == if replica.is_some() { own } else { plain }).then_some((uuid, replica))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::replication::metadata::{Command, NewPartition, Placement, Settings, Stage, State};
    use weir_protocol::frame::{Durability, Overflow};
    use weir_protocol::types::Name;

    /// Three brokers; one partition with the identity 0xAB, on all of them.
    pub(in crate::catalog) fn topics() -> Topics {
        let mut state = State::default();
        state.apply(&Command::Found { cluster: 1, brokers: 3, voters: 3 }).unwrap();
        let settings = Settings {
            durability: Durability::Fsync,
            overflow: Overflow::Reject,
            max_bytes: 1 << 20,
            max_age_ms: 0,
        };
        let brokers = [1, 2, 3].map(BrokerId).to_vec();
        let partitions = vec![NewPartition { uuid: 0xAB, brokers }];
        let name = Name::new("t").unwrap();
        let create = Command::CreateTopic { name, settings, created_ms: 1, partitions };
        state.apply(&create).unwrap();
        Topics::clone(state.catalog())
    }

    fn placed(topics: &Topics, broker: u64) -> Placement {
        let (_, partition) = topics.partitions().next().unwrap();
        let found = partition.replicas.iter().find(|here| here.broker == BrokerId(broker));
        *found.unwrap()
    }

    fn folder(uuid: u128, replica: u64) -> String {
        format!("p-{uuid:032x}-{replica}")
    }

    fn gone_of(names: &[String], topics: &Topics) -> Vec<String> {
        gone(&names.iter().cloned().collect(), topics, BrokerId(1))
    }

    #[test]
    fn what_the_metadata_has_stays_and_the_rest_goes() {
        let topics = topics();
        let [here, there] = [1, 2].map(|broker| placed(&topics, broker).replica.0);
        let stays = [folder(0xAB, here), folder(0xAB, there)];
        let goes = [folder(0xAB, 99), folder(0xCD, here), format!("p-{:032x}", 0xCD)];
        let names = [&stays[..], &goes].concat();
        let mut expected = goes.to_vec();
        expected.sort();
        assert_eq!(gone_of(&names, &topics), expected);
    }

    #[test]
    fn a_lost_replica_keeps_its_folder_until_its_group_has_let_it_go() {
        let mut topics = topics();
        let lost = placed(&topics, 1).replica;
        let topic = topics.topics.values_mut().next().unwrap();
        let stage = &mut Arc::make_mut(topic).partitions[0].replicas[0].stage;
        *stage = Stage::Lost(crate::replication::metadata::LossReason::Empty);
        assert!(gone_of(&[folder(0xAB, lost.0)], &topics).is_empty());
    }

    #[test]
    fn the_plain_folder_is_of_whoever_has_no_other() {
        let (topics, plain) = (topics(), format!("p-{:032x}", 0xAB));
        assert!(gone_of(std::slice::from_ref(&plain), &topics).is_empty());
        let own = folder(0xAB, placed(&topics, 1).replica.0);
        assert_eq!(gone_of(&[plain.clone(), own], &topics), std::slice::from_ref(&plain));
        let elsewhere = gone(&[plain.clone()].into(), &topics, BrokerId(7));
        assert_eq!(elsewhere, [plain], "a broker that holds no replica of it");
    }

    #[test]
    fn what_is_no_log_is_left_alone() {
        let odd = ["metadata", "p-", "p-ab", "lock", "p-zz", "node.meta"].map(str::to_owned);
        let mut odd = odd.to_vec();
        odd.push(format!("p-{:032X}", 0xAB_CD));
        odd.push(format!("p-{:032x}-x", 1));
        odd.push(format!("p-{:032x}-007", 1));
        odd.push(format!("p-{:032x}7", 1));
        assert!(gone_of(&odd, &Topics::default()).is_empty());
    }
}
