//! Leaving: every partition that is led here gets another leader first.
//!
//! Owns: to whom a leadership goes.
//! Never: gives one up that nobody can take; goes on beyond its deadline.

use super::Catalog;
use crate::partition::PartitionHandle;
use crate::replication::{Members, Replica};
use futures_util::StreamExt;
use tokio::time::Instant;
use weir_protocol::types::ReplicaId;

/// Leaderships that are handed over at a time: each is an election.
const HANDOVERS_MAX: usize = 16;

impl Catalog {
    /// Hands every leadership to another voter, as far as that is done by `deadline`.
    pub(crate) async fn hand_over(&self, deadline: Instant) {
        let led = self.table.open().into_iter().filter(|handle| handle.view().leading);
        let handovers = led.map(|handle| async move { hand_over(&handle).await });
        let all = futures_util::stream::iter(handovers).buffer_unordered(HANDOVERS_MAX);
        let given = all.filter(|given| std::future::ready(*given)).count();
        match tokio::time::timeout_at(deadline, given).await {
            Ok(0) => {}
            Ok(given) => tracing::info!(given, "other brokers lead now"),
            Err(_) => tracing::warn!("not every leadership was taken over in time"),
        }
    }
}

/// Whether another broker leads the partition now.
async fn hand_over(handle: &PartitionHandle) -> bool {
    let Some(replica) = handle.replica() else { return false };
    let Some(heir) = heir_of(&replica) else { return false };
    match replica.transfer(heir).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(partition = ?handle, %heir, %error, "a leadership was not handed over");
            false
        }
    }
}

/// The voter that has most of the log; none where this replica votes alone.
fn heir_of(replica: &Replica) -> Option<ReplicaId> {
    let Members { voters, .. } = replica.members();
    let progress = replica.progress();
    let me = replica.id();
    let others = voters.last()?.iter().filter(|voter| **voter != me);
    others.max_by_key(|voter| progress.get(voter)).copied()
}
