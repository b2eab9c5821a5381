//! A copy of the metadata that ran out of space is opened anew while its broker runs.
//!
//! Owns: when that is tried, and which replica everybody sees.
//! Never: opens what ended for another reason, or two replicas of the same log; tells of each try:
//! on a full disk, where it may end again as soon as it is open, there is one a second.
//! Invariant: a replica that had a log takes part again with that log alone.

use crate::log_limit::LogLimit;
use crate::replication::{Birth, Replica, ReplicaOptions};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep};
use weir_protocol::types::Index;

/// A full disk may have room again after this.
const ROOM_AGAIN: Duration = Duration::from_secs(1);
/// That there is none is told so often.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What another replica is opened with, and where it shows.
pub(super) struct Renewal {
    options: ReplicaOptions,
    shown: watch::Sender<Replica>,
    closed: LogLimit,
    failed: LogLimit,
}

impl Renewal {
    /// Shows the first one.
    pub(super) fn new(options: ReplicaOptions, first: Replica) -> Self {
        let (closed, failed) = (LogLimit::one_in(TOLD_EVERY), LogLimit::one_in(TOLD_EVERY));
        Self { options, shown: watch::Sender::new(first), closed, failed }
    }

    /// The register of the replica that is open, or was last.
    pub(super) fn shown(&self) -> watch::Receiver<Replica> {
        self.shown.subscribe()
    }

    /// Ends a replica that ran out of space, and opens it again as soon as it can be.
    pub(super) async fn renew(&self, ended: Replica) -> Replica {
        // Whoever read that it is closed, and nobody else, is told that it is open.
        let mut told = false;
        if let Some(suppressed) = self.closed.pass(Instant::now()) {
            told = true;
            tracing::warn!(
                suppressed,
                "the disk is full: the metadata here is closed until there is room"
            );
        }
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
                    if told {
                        tracing::info!("the metadata here is open again");
                    }
                    self.shown.send_replace(replica.clone());
                    return replica;
                }
                Err(error) => {
                    if let Some(suppressed) = self.failed.pass(Instant::now()) {
                        told = true;
                        tracing::warn!(%error, suppressed, "the metadata could not be opened again");
                    }
                }
            }
        }
    }
}
