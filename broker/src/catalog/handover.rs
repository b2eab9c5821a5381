//! Leaving: what is led here gets other leaders first.
//!
//! Owns: how long that is waited for. Whoever keeps a group hands it over as soon as this broker
//! says that it is going.
//! Never: waits for a group that has nobody else.

use super::Catalog;
use crate::partition::PartitionHandle;
use crate::replication::Replica;
use tokio::time::{Duration, Instant};

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
            let led = led + usize::from(leads_others(self.metadata.metadata().replica()));
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
    handle.view().leading && handle.replica().is_some_and(|replica| leads_others(&replica))
}

fn leads_others(replica: &Replica) -> bool {
    let leads = replica.state().borrow().leading().is_some();
    leads && replica.members().voters.iter().any(|voters| voters.len() > 1)
}
