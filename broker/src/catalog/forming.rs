//! Telling the metadata which groups have had a leader.
//!
//! Owns: that it is told as soon as a leader is known: before that nobody publishes, because an
//! empty replica of a group that never had a leader is taken for a new one, also where it was made
//! before.
//! Never: insists: what was not taken is told again while it is true.

use super::Rooms;
use super::table::Table;
use crate::cluster::MetadataClient;
use crate::cluster::controller::formed;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::Duration;

/// What was not taken is told again after this.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Tells for ever.
pub(super) async fn run(rooms: Arc<Rooms>, table: Arc<Table>, metadata: MetadataClient) {
    let mut leaders = rooms.leaders.watch();
    let mut topics = metadata.watch();
    loop {
        leaders.mark_unchanged();
        let now = topics.borrow_and_update().clone();
        let mut led = BTreeSet::new();
        table.each_led(|replica, _| {
            led.insert(replica);
        });
        let Some(command) = formed(&now, |replica| led.contains(&replica)) else {
            tokio::select! {
                biased;
                changed = leaders.changed() => if changed.is_err() { return },
                changed = topics.changed() => if changed.is_err() { return },
            }
            continue;
        };
        if let Err(error) = metadata.propose(command).await {
            tracing::debug!(%error, "it was not noted that groups are formed");
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}
