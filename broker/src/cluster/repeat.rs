//! A change whose answer was lost is asked for again where that does no harm.
//!
//! Owns: which commands show, when they are asked for again, whether they had taken effect.
//! Never: asks again for any other: whoever gave the command knows what it means.
//! Invariant: a command takes effect once at most, and what is told of it is true.

use super::MetadataClient;
use crate::replication::metadata::{Change, ChangeError, Command, Refusal};
use tokio::time::{Duration, Instant};

/// How long it is tried to find out what became of a command.
const WITHIN: Duration = Duration::from_secs(10);
/// Whoever led is looked for again after this.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

impl MetadataClient {
    /// [`MetadataClient::propose`], and again where the outcome was left open and the command is one
    /// that shows whether it had taken effect: then [`Change::Done`].
    pub async fn carry_through(&self, command: Command) -> Result<Change, ChangeError> {
        let deadline = Instant::now() + WITHIN;
        let mut is_doubted = false;
        loop {
            let error = match self.propose(command.clone()).await {
                Ok(change) => return Ok(change),
                Err(error) => error,
            };
            if is_doubted && self.was_done(&command, &error) {
                return Ok(Change::Done);
            }
            let is_open = match &error {
                ChangeError::Unknown => true,
                ChangeError::NotLeader | ChangeError::Busy => is_doubted,
                ChangeError::Refused(_) | ChangeError::Unreadable(_) | ChangeError::Fenced(_) => {
                    false
                }
            };
            if !is_open || !shows_itself(&command) || Instant::now() >= deadline {
                return Err(if is_open { ChangeError::Unknown } else { error });
            }
            is_doubted = true;
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// Whether a command that was refused had taken effect before.
    fn was_done(&self, command: &Command, error: &ChangeError) -> bool {
        match (command, error) {
            (
                Command::CreateTopic { name, partitions, .. },
                ChangeError::Refused(Refusal::TopicExists),
            ) => {
                let catalog = self.catalog();
                // Nobody else gave its partitions these identities.
                let asked = partitions.iter().map(|partition| partition.uuid);
                let found = catalog.topics.get(name).map(|topic| &topic.partitions[..]);
                found.is_some_and(|found| found.iter().map(|here| here.uuid).eq(asked))
            }
            (Command::DeleteTopic { .. }, ChangeError::Refused(Refusal::UnknownTopic)) => true,
            _ => false,
        }
    }
}

fn shows_itself(command: &Command) -> bool {
    matches!(command, Command::CreateTopic { .. } | Command::DeleteTopic { .. })
}
