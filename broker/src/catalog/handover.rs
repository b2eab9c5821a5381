//! Leaving: what is led here gets other leaders first.
//!
//! Owns: how long that is waited for. Whoever keeps a group hands it over as soon as this broker
//! says that it is going.
//! Never: waits for a group in which nobody else lives.

use super::Catalog;
use crate::cluster::members::ANSWERS_WITHIN;
use crate::partition::PartitionHandle;
use crate::replication::{Replica, Role};
use tokio::time::{Duration, Instant};
use weir_protocol::types::ReplicaId;

/// How often it is looked whether anything is led here still.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Catalog {
    /// Waits until others lead what they can, but not beyond `deadline`.
    pub(crate) async fn give_up_leaderships(&self, deadline: Instant) {
        if self.rooms.metadata_voters.is_none() {
            return;
        }
        loop {
            let led = self.table.open().iter().filter(|handle| is_to_be_given(handle)).count();
            let led = led + usize::from(leads_others(&self.metadata.metadata().replica()));
            if led == 0 {
                return;
            }
            if Instant::now() >= deadline {
                tracing::warn!(led, "not every leadership was taken over in time");
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Whether the partition is led here and has somebody else who could.
fn is_to_be_given(handle: &PartitionHandle) -> bool {
    handle.replica().is_some_and(|replica| leads_others(&replica))
}

/// Whether the replica leads a group in which somebody else lives who may lead it.
fn leads_others(replica: &Replica) -> bool {
    if !matches!(replica.state().borrow().role, Role::Leader(_)) {
        return false;
    }
    let (silence, members) = (replica.silence(), replica.members());
    let lives = |voter: &ReplicaId| silence.get(voter).is_some_and(|it| *it < ANSWERS_WITHIN);
    let others = members.voters.iter().flatten().filter(|voter| **voter != replica.id());
    others.into_iter().any(lives)
}
