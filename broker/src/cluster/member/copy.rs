//! How a broker comes to a copy of the metadata: the first, and another one when it is lost.
//!
//! Owns: asking the cluster for a place, and that a copy that was given up is gone before.
//! Never: gives anything up before the cluster has taken note: without a majority of the others the
//! lost copy may be the last.
//! Invariants: a copy begins empty, so nothing of an older one is ever taken for its own; who was
//! removed asks for nothing more.

use super::{ANSWER_WITHIN, ASK_EVERY, Cluster, METADATA_FOLDER};
use crate::identity::{Founders, Identity, IdentityError};
use crate::peer::ask::{Answer, Ask, Asks};
use crate::replication::metadata::{Change, Command, LossReason, Refusal, Verdict};
use crate::seams::on_lane;
use std::collections::BTreeSet;
use std::sync::Arc;
use weir_protocol::peer::{ForwardedAnswer, Question};
use weir_protocol::types::ReplicaId;
use weir_storage::Lane;

impl Cluster {
    /// Lets the metadata commit a command before this broker has a copy of it; none where that is
    /// not known.
    pub(super) async fn propose_at(
        &self,
        address: &str,
        command: Command,
        asks: &Arc<dyn Asks>,
    ) -> Option<Result<Change, Refusal>> {
        let question = Question::Command(command.encode().into());
        let ask = Ask::Forward(question, ANSWER_WITHIN);
        let answer = match asks.ask_at(address, ask, ANSWER_WITHIN).await.ok()? {
            Answer::Forwarded(Ok(ForwardedAnswer::Applied(bytes))) => Verdict::decode(&bytes),
            _ => return None,
        };
        let outcome = answer.ok()?.outcome;
        if let Err(refusal) = &outcome {
            tracing::warn!(address, %refusal, "the cluster refused");
        }
        Some(outcome)
    }

    /// Gives the copy of the metadata here up, which is lost, and takes a place for another one, which
    /// begins empty. Asks for it as long as it takes: without a majority of the others nothing
    /// is given up.
    pub async fn replace_metadata(
        &self,
        reason: LossReason,
        asks: Arc<dyn Asks>,
    ) -> Result<Identity, IdentityError> {
        let lost = self.identity();
        let command = Command::LoseReplica { replica: lost.metadata_replica, reason };
        for address in self.others() {
            // Refused it is gone already.
            if self.propose_at(&address, command.clone(), &asks).await.is_some() {
                break;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        let (metadata_replica, founders) = (ReplicaId(0), Founders::default());
        self.store(Identity { metadata_replica, founders, is_opened: false, ..lost }).await?;
        self.take_metadata_replica(&asks).await?;
        Ok(self.identity())
    }

    /// Finds out, where nobody who leads was found, whether the cluster removed this broker: each of
    /// the others is asked once. Nobody there to say so is no removal.
    pub async fn check_place(&self, asks: Arc<dyn Asks>) -> Result<(), IdentityError> {
        for address in self.known_others() {
            // What it asks for it would ask for at every start.
            let broker = Some(self.identity().broker);
            let command = Command::BrokerUp { broker, facts: self.facts() };
            match self.propose_at(&address, command, &asks).await {
                None => {}
                Some(Err(Refusal::BrokerRemoved)) => return Err(self.removed(address)),
                Some(_) => break,
            }
        }
        Ok(())
    }

    fn removed(&self, told_by: String) -> IdentityError {
        IdentityError::Removed { broker: self.identity().broker, told_by }
    }

    /// Where the others are or were, each in its turn, for ever; what becomes known counts.
    fn others(&self) -> impl Iterator<Item = String> {
        (0..).map(|turn| {
            let others = self.known_others();
            others.get(turn % others.len().max(1)).cloned().unwrap_or_default()
        })
    }

    /// Where the others are or were: seeds, and who was known.
    fn known_others(&self) -> Vec<String> {
        let seeds = self.terms.seeds.iter().map(|seed| seed.as_str().to_owned());
        let known: BTreeSet<String> =
            seeds.chain(self.directory.borrow().values().cloned()).collect();
        let here = self.settings.peer.as_str();
        known.into_iter().filter(|address| address != here).collect()
    }

    /// What is left of a copy of the metadata that was given up.
    async fn clear_metadata(&self) {
        let (disk, data_dir) = (self.place.disk.clone(), self.place.data_dir.clone());
        let clear = move || match disk.list(&data_dir)?.iter().any(|name| name == METADATA_FOLDER) {
            true => disk.remove_dir(&data_dir.join(METADATA_FOLDER)).map(|()| true),
            false => Ok(false),
        };
        match on_lane(&self.place.executor, Lane::Checkpoint, clear).await {
            Ok(true) => tracing::warn!("the lost copy of the metadata was removed"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the lost copy of the metadata stays on disk"),
        }
    }

    /// A broker that is not among the first voters asks for its replica of the metadata.
    pub(super) async fn take_metadata_replica(
        &self,
        asks: &Arc<dyn Asks>,
    ) -> Result<(), IdentityError> {
        if self.identity().metadata_replica.0 == 0 {
            self.clear_metadata().await;
        }
        for (turn, address) in self.others().enumerate() {
            let identity = self.identity();
            if identity.metadata_replica.0 != 0 {
                break;
            }
            let seed = turn % self.terms.seeds.len();
            if Some(seed) != self.terms.place {
                self.probe(seed, asks).await;
            }
            let command = Command::JoinMetadata { broker: identity.broker };
            match self.propose_at(&address, command, asks).await {
                Some(Ok(Change::Placed(here))) => {
                    self.store(Identity { metadata_replica: here.replica, ..identity }).await?;
                }
                Some(Err(Refusal::BrokerRemoved)) => return Err(self.removed(address)),
                _ => tokio::time::sleep(ASK_EVERY).await,
            }
        }
        Ok(())
    }
}
