//! One producer in one partition, at a pace of its own.
//!
//! Owns: what it has under way, and which number comes next.
//! Never: gives one number to two messages, or publishes one of them again: the client does that.

use super::record::Recorder;
use crate::history::{Message as Named, What, body_of};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Duration, sleep};
use weir_client::{Client, Message, Outcome, Publisher, Result};

/// Messages that are under way at a time.
const WINDOW: usize = 24;
/// Between two messages: what a message costs decides how many seeds an hour sees, and a fault in
/// quiet finds other things than one in a rush.
const CALM_MS: u64 = 400;
const HASTY_MS: u64 = 40;
/// One producer of a partition in so many is hasty.
const HASTY_ONE_IN: u8 = 8;
/// Until a publisher that ended is opened again.
const OPEN_AGAIN: Duration = Duration::from_millis(200);
/// One message in so many is large.
const LARGE_ONE_IN: u16 = 64;
const SMALL_BYTES: usize = 1_500;
const LARGE_BYTES: usize = 100_000;

/// Who publishes what to where.
pub(super) struct Publishing {
    pub(super) client: Client,
    pub(super) topic: &'static str,
    pub(super) producer: u16,
    pub(super) partition: u16,
    /// How long a message may take.
    pub(super) deadline: Duration,
    /// Most messages are large.
    pub(super) large: bool,
    pub(super) random: fastrand::Rng,
    pub(super) recorder: Recorder,
}

impl Publishing {
    /// Publishes until it is told to stop, and waits for what is under way then.
    pub(super) async fn run(mut self, stopped: watch::Receiver<bool>) {
        let mut sequence = 0;
        let pace_ms = if self.random.u8(..HASTY_ONE_IN) == 0 { HASTY_MS } else { CALM_MS };
        while !*stopped.borrow() {
            let Ok(publisher) = self.open().await else {
                sleep(OPEN_AGAIN).await;
                continue;
            };
            self.publish(&publisher, pace_ms, &mut sequence, &stopped).await;
        }
    }

    async fn open(&self) -> Result<Publisher> {
        let Self { client, topic, producer, partition, deadline, .. } = self;
        let publisher = client.publisher(topic).partition(u32::from(*partition));
        let name = format!("producer-{producer}");
        publisher.idempotent(name).deadline(*deadline).build().await
    }

    /// Publishes with this publisher until a message fails.
    async fn publish(
        &mut self,
        publisher: &Publisher,
        pace_ms: u64,
        sequence: &mut u32,
        stopped: &watch::Receiver<bool>,
    ) {
        let mut under_way: JoinSet<bool> = JoinSet::new();
        let mut goes_on = true;
        while goes_on && !*stopped.borrow() {
            sleep(Duration::from_millis(self.random.u64(..pace_ms))).await;
            while under_way.len() >= WINDOW {
                goes_on &= all_well(under_way.join_next().await);
            }
            while let Some(ended) = under_way.try_join_next() {
                goes_on &= all_well(Some(ended));
            }
            if goes_on {
                goes_on = self.send(publisher, sequence, &mut under_way).await;
            }
        }
        while let Some(ended) = under_way.join_next().await {
            all_well(Some(ended));
        }
    }

    async fn send(
        &mut self,
        publisher: &Publisher,
        sequence: &mut u32,
        under_way: &mut JoinSet<bool>,
    ) -> bool {
        let Self { producer, partition, .. } = *self;
        let message = Named { producer, partition, sequence: *sequence };
        *sequence += 1;
        let is_large = self.large || self.random.u16(..LARGE_ONE_IN) == 0;
        let len = self.random.usize(..if is_large { LARGE_BYTES } else { SMALL_BYTES });
        let body = body_of(message, len);
        self.recorder.note(What::Publish { message, bytes: body.len() as u32 });
        let recorder = self.recorder.clone();
        let receipt = match publisher.send(Message::new(body)).await {
            Ok(receipt) => receipt,
            Err(error) => {
                recorder.note(outcome_of(message, error.outcome()));
                return false;
            }
        };
        under_way.spawn(async move {
            match receipt.await {
                Ok(stored) => {
                    let offset = u32::try_from(stored.offset).ok();
                    recorder.note(What::Stored { message, offset });
                    true
                }
                Err(error) => {
                    tracing::debug!(?message, %error, "a message failed");
                    recorder.note(outcome_of(message, error.outcome()));
                    false
                }
            }
        });
        true
    }
}

fn all_well(ended: Option<std::result::Result<bool, tokio::task::JoinError>>) -> bool {
    ended.is_none_or(|ended| ended.expect("nobody aborts a receipt, and noting one cannot panic"))
}

fn outcome_of(message: Named, outcome: Outcome) -> What {
    match outcome {
        Outcome::Stored => What::Stored { message, offset: None },
        Outcome::NotStored => What::NotStored { message },
        Outcome::Unknown => What::Unknown { message },
    }
}
