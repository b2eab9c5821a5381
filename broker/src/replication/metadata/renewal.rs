//! A copy of the metadata that ran out of space is opened anew while its broker runs.
//!
//! Owns: when that is tried, and which replica everybody sees.
//! Never: opens what ended for another reason, or two replicas of the same log.
//! Invariant: a replica that had a log takes part again with that log alone.

use crate::replication::{Birth, Replica, ReplicaOptions};
use tokio::sync::watch;
use tokio::time::{Duration, sleep};
use weir_protocol::types::Index;

/// A full disk may have room again after this.
const ROOM_AGAIN: Duration = Duration::from_secs(1);

/// What another replica is opened with, and where it shows.
pub(super) struct Renewal {
    options: ReplicaOptions,
    shown: watch::Sender<Replica>,
}

impl Renewal {
    /// Shows the first one.
    pub(super) fn new(options: ReplicaOptions, first: Replica) -> Self {
        Self { options, shown: watch::Sender::new(first) }
    }

    /// The register of the replica that is open, or was last.
    pub(super) fn shown(&self) -> watch::Receiver<Replica> {
        self.shown.subscribe()
    }

    /// Ends a replica that ran out of space, and opens it again as soon as it can be.
    pub(super) async fn renew(&self, ended: Replica) -> Replica {
        tracing::warn!("the disk is full: the metadata here is closed until there is room");
        let mut options = self.options.clone();
        if ended.log().bounds().last_index > Index(0) {
            // What it had promised stands in its log: without that it must not take part.
            options.birth = Birth::Continues;
        }
        ended.shutdown().await;
        loop {
            sleep(ROOM_AGAIN).await;
            match Replica::open(options.clone()).await {
                Ok((replica, _)) => {
                    tracing::info!("the metadata here is open again");
                    self.shown.send_replace(replica.clone());
                    return replica;
                }
                Err(error) => tracing::warn!(%error, "the metadata could not be opened again"),
            }
        }
    }
}
