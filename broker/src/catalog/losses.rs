//! Telling the metadata what was lost here.
//!
//! Owns: what the metadata has to learn yet, one thing at a time.
//! Never: keeps the table from following: what is told waits for its answer here.
//! Invariants: there is at most one loss for each replica that is placed here; what was not taken is
//! told again after a pause, behind all the others.

use crate::cluster::MetadataClient;
use crate::replication::metadata::{Change, ChangeError, Command};
use crate::seams::BoxFuture;
use std::collections::BTreeMap;
use std::future::pending;
use std::ops::Bound;
use tokio::time::{Duration, Instant};
use weir_protocol::types::ReplicaId;

/// What the metadata did not take is told again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

pub(super) struct Losses {
    metadata: MetadataClient,
    untold: BTreeMap<ReplicaId, Command>,
    telling: Option<Telling>,
    /// The one that was told last.
    last: ReplicaId,
    /// Nothing is told before.
    pause: Option<Instant>,
}

/// One that is just being told.
struct Telling {
    replica: ReplicaId,
    command: Command,
    answer: BoxFuture<'static, Result<Change, ChangeError>>,
}

impl Losses {
    pub(super) fn new(metadata: MetadataClient) -> Self {
        let (untold, telling, last, pause) = Default::default();
        Self { metadata, untold, telling, last, pause }
    }

    /// Notes what is to be told of a replica, in place of what was before.
    pub(super) fn note(&mut self, replica: ReplicaId, command: Command) {
        self.untold.insert(replica, command);
    }

    /// The metadata knows, or the replica is gone.
    pub(super) fn forget(&mut self, replica: ReplicaId) {
        self.untold.remove(&replica);
        // Told once more, it would be lost once more.
        self.telling.take_if(|telling| telling.replica == replica);
    }

    /// Tells everything; returns when something was told, never while there is nothing to tell.
    /// Nothing is lost where this is dropped.
    pub(super) async fn tell(&mut self) {
        if self.telling.is_none() {
            let Some(replica) = self.next() else { return pending().await };
            if let Some(pause) = self.pause {
                tokio::time::sleep_until(pause).await;
                self.pause = None;
            }
            let Some(command) = self.untold.remove(&replica) else { return };
            let (metadata, told) = (self.metadata.clone(), command.clone());
            let answer = Box::pin(async move { metadata.propose(told).await });
            self.last = replica;
            self.telling = Some(Telling { replica, command, answer });
        }
        let Some(telling) = &mut self.telling else { return };
        let answer = telling.answer.as_mut().await;
        if let Some(Telling { replica, command, .. }) = self.telling.take() {
            self.take(answer, replica, command);
        }
    }

    /// The one behind the last, so that one that is never taken holds up nobody for ever.
    fn next(&self) -> Option<ReplicaId> {
        let behind = self.untold.range((Bound::Excluded(self.last), Bound::Unbounded));
        behind.chain(&self.untold).next().map(|(replica, _)| *replica)
    }

    fn take(&mut self, answer: Result<Change, ChangeError>, replica: ReplicaId, command: Command) {
        match answer {
            Ok(_) => tracing::warn!(%replica, ?command, "the metadata knows of a loss"),
            Err(ChangeError::Refused(refusal)) => {
                tracing::debug!(%replica, %refusal, "the replica is gone already");
            }
            Err(error) => {
                tracing::debug!(%replica, %error, "a loss is told again");
                self.untold.entry(replica).or_insert(command);
                self.pause = Some(Instant::now() + AGAIN_AFTER);
            }
        }
    }
}
