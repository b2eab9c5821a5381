//! Telling the metadata which groups have had a leader.
//!
//! Owns: that it is told as soon as a leader is known: before that nobody publishes, because an
//! empty replica of a group that never had a leader is taken for a new one.
//! Never: insists: what was not taken is told again while it is true.

use super::Rooms;
use super::table::Table;
use crate::cluster::MetadataClient;
use crate::replication::metadata::{Catalog as Topics, Command};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::Duration;
use weir_protocol::types::ReplicaId;

/// Groups of one command.
const NOTED_MAX: usize = 256;
/// What was not taken is told again after this.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Tells for ever.
pub(super) async fn run(rooms: Arc<Rooms>, table: Arc<Table>, metadata: MetadataClient) {
    let mut led = rooms.leaders.watch();
    let mut topics = metadata.watch();
    loop {
        let unformed = unformed(&topics.borrow_and_update().clone());
        led.mark_unchanged();
        let mut replicas = Vec::new();
        table.each_led(|replica, _| replicas.extend(unformed.get(&replica)));
        replicas.truncate(NOTED_MAX);
        if replicas.is_empty() {
            tokio::select! {
                biased;
                changed = led.changed() => if changed.is_err() { return },
                changed = topics.changed() => if changed.is_err() { return },
            }
            continue;
        }
        if let Err(error) = metadata.propose(Command::NoteFormed { replicas }).await {
            tracing::debug!(%error, "it was not noted that groups are formed");
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}

/// The replicas of groups that are not known to have had a leader.
fn unformed(topics: &Topics) -> BTreeSet<ReplicaId> {
    let partitions = topics.partitions().map(|(_, partition)| partition);
    let unformed = partitions.filter(|partition| !partition.formed);
    unformed.flat_map(|partition| &partition.replicas).map(|placed| placed.replica).collect()
}
