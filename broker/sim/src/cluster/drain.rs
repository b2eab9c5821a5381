//! What every replica holds in the end.
//!
//! Owns: reading each replica's log whole, over the network and on its disk.
//! Never: lets one broker answer for another: the client of a drain reaches no other.

use super::Cluster;
use super::record::Recorder;
use crate::history::{Message, Mode, What, identify};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokio::time::{Duration, sleep, timeout};
use weir_client::{Client, ErrorCode, Start};
use weir_storage::inspect::{self, Dumped};

/// The subscription of the drains in the history, which no other has.
const SUBSCRIPTION: u16 = 1_000;
/// From the beginning of one replica's drain to its end.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// What the drains have seen, with the offset.
pub(super) type Found = BTreeMap<(u16, u16, u32), u32>;

/// Where all `partitions` end, as their leaders say.
pub(super) async fn ends(
    client: &Client,
    (topic, partitions): (&str, u16),
) -> Result<BTreeMap<u32, u64>, String> {
    let opened = async {
        loop {
            match client.reader(topic).from(Start::Earliest).subscribe().await {
                // One that fails behind its opening may know some of them only.
                Ok(reader) => match reader.end_offsets() {
                    ends if ends.len() == usize::from(partitions) => return ends,
                    ends => tracing::debug!(?ends, "not all ends are known yet"),
                },
                Err(error) => tracing::debug!(%error, "the ends are not known yet"),
            }
            sleep(ASK_AGAIN).await;
        }
    };
    let late = |_| format!("no reader of {topic} could be opened within {DRAIN_WITHIN:?}");
    timeout(DRAIN_WITHIN, opened).await.map_err(late)
}

/// Reads all that one replica holds of these partitions of the topic, up to their ends.
pub(super) async fn drain(
    client: &Client,
    (topic, replica): (&str, u8),
    ends: &BTreeMap<u32, u64>,
    recorder: &Recorder,
) -> Result<Found, String> {
    let read = async {
        let mut found = Found::new();
        for (partition, end) in ends {
            let place = (*partition, *end);
            // What has rotted there is mended once it is found, when this replica's turn comes.
            while let Err(error) =
                drain_partition(client, (topic, replica), place, recorder, &mut found).await
            {
                if error.error_code() != Some(ErrorCode::DamagedRange) {
                    return Err(error);
                }
                sleep(ASK_AGAIN).await;
            }
        }
        Ok(found)
    };
    match timeout(DRAIN_WITHIN, read).await {
        Ok(drained) => drained.map_err(|error: weir_client::Error| {
            format!("draining broker {replica}: {error}; causes: {:?}", error.causes())
        }),
        Err(_) => Err(format!("draining broker {replica} took more than {DRAIN_WITHIN:?}")),
    }
}

async fn drain_partition(
    client: &Client,
    (topic, replica): (&str, u8),
    (number, end): (u32, u64),
    recorder: &Recorder,
    found: &mut Found,
) -> weir_client::Result<()> {
    let reader = client.reader(topic).partition(number).any_replica().reach(number, end);
    let mut reader = reader.from(Start::Earliest).subscribe().await?;
    let (consumer, partition) = (recorder.next_consumer(), number as u16);
    let from = reader.starts().get(&number).copied().unwrap_or(0) as u32;
    let (subscription, mode) = (SUBSCRIPTION, Mode::Drain);
    if recorder.trimmed(partition, from) {
        recorder.note(What::Trim { partition, log_start: from });
    }
    recorder.note(What::Subscribe { consumer, subscription, partition, mode, from });
    while reader.positions().get(&number).is_some_and(|position| *position < end) {
        let Some(batch) = reader.next_batch().await else { break };
        let batch = batch?;
        for (offset, record) in (batch.base_offset() as u32..).zip(batch.records()) {
            let (attempt, count) = (0, 0);
            let what = match identify(record?.payload()) {
                Some(message) => {
                    let Message { producer, sequence, .. } = message;
                    found.insert((producer, partition, sequence), offset);
                    What::Deliver { message, offset, consumer, partition, attempt, count, replica }
                }
                None => What::Foreign { consumer, partition, offset, replica },
            };
            recorder.note(what);
        }
    }
    recorder.note(What::Drained { consumer, partition, replica, end: end as u32 });
    recorder.note(What::Detach { consumer });
    Ok(())
}

/// Notes the chained checksum of every index that all replicas of a log hold. No broker may run.
pub(super) fn compare_logs(
    cluster: &Cluster,
    replicas: u8,
    recorder: &Recorder,
) -> Result<(), String> {
    let mut logs: BTreeMap<u128, BTreeMap<u8, BTreeMap<u64, u32>>> = BTreeMap::new();
    for (number, machine) in cluster.machines() {
        let mut dirs: Vec<PathBuf> = machine.disk().paths(".seg");
        dirs.retain_mut(|path| {
            path.pop();
            path.to_string_lossy().contains("/p-")
        });
        dirs.dedup();
        for dir in dirs {
            let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", dir.display());
            let disk = machine.disk();
            let Some(uuid) = inspect::uuid_of(disk, &dir).map_err(|e| failed(&e))? else {
                continue;
            };
            let chains = chains_of(cluster, number, &dir, uuid).map_err(|e| failed(&e))?;
            logs.entry(uuid).or_default().insert(number, chains);
        }
    }
    // A log of fewer replicas belongs to a topic that was being deleted.
    let whole = logs.values().filter(|held| held.len() >= usize::from(replicas));
    for (partition, replicas) in (0..).zip(whole) {
        let end = replicas.values().map(|chains| chains.keys().next_back().copied().unwrap_or(0));
        let end = end.min().unwrap_or(0);
        for (replica, chains) in replicas {
            for (index, chain) in chains.range(..=end) {
                let (replica, index, chain) = (*replica, *index, *chain);
                recorder.note(What::Chain { replica, partition, index, chain });
            }
        }
    }
    Ok(())
}

fn chains_of(
    cluster: &Cluster,
    number: u8,
    dir: &Path,
    uuid: u128,
) -> Result<BTreeMap<u64, u32>, String> {
    let disk = cluster.machine(number).disk();
    let report = inspect::verify(disk, dir, uuid).map_err(|error| error.to_string())?;
    let mut chains = BTreeMap::new();
    for segment in &report.segments {
        let see = |dumped| {
            if let Dumped::Batch { header, .. } = dumped {
                chains.insert(header.index.0, header.chain);
            }
            true
        };
        inspect::dump(disk, segment, see).map_err(|error| error.to_string())?;
    }
    Ok(chains)
}
