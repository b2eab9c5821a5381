//! One reader of the topic after the other: plain, or of a durable subscription.
//!
//! Owns: its session, and what it settles.
//! Never: gives the number of a session to another.

use super::record::Recorder;
use crate::history::{Mode, SettleResult, Verb, What, identify};
use std::collections::BTreeMap;
use tokio::sync::watch;
use tokio::time::{Duration, sleep};
use weir_client::{Client, Consumer, Delivered, Start};

/// Until a session that ended is opened again.
const OPEN_AGAIN: Duration = Duration::from_millis(200);
/// A session of a durable subscription ends by itself after up to so many records.
const SESSION_RECORDS_MAX: u32 = 1_500;
/// One record in so many is settled.
const SETTLE_ONE_IN: u8 = 16;
/// Records of a partition that stay unsettled at the most: more may be all that a broker sends ahead,
/// and whoever settles nothing of that waits for ever.
const UNSETTLED_MAX: u8 = 16;

/// Who reads what.
pub(super) struct Reading {
    pub(super) client: Client,
    pub(super) topic: &'static str,
    /// Its number in the history; a plain reader has one of its own.
    pub(super) subscription: u16,
    pub(super) is_durable: bool,
    pub(super) any_replica: bool,
    pub(super) random: fastrand::Rng,
    pub(super) recorder: Recorder,
}

impl Reading {
    /// Reads until it is told to stop.
    pub(super) async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            let opened = tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => return,
                opened = self.open() => opened,
            };
            match opened {
                Ok(consumer) => self.session(consumer, &mut stopped).await,
                Err(error) => {
                    tracing::debug!(subscription = self.subscription, %error, "no session");
                }
            }
            sleep(OPEN_AGAIN).await;
        }
    }

    async fn open(&self) -> weir_client::Result<Consumer> {
        let builder = if self.is_durable {
            self.client.consumer(self.topic, &format!("subscription-{}", self.subscription))
        } else {
            self.client.reader(self.topic)
        };
        let builder = builder.from(Start::Earliest);
        if self.any_replica { builder.any_replica() } else { builder }.subscribe().await
    }

    async fn session(&mut self, mut reader: Consumer, stopped: &mut watch::Receiver<bool>) {
        let consumer = self.recorder.next_consumer();
        let mut attached = BTreeMap::new();
        self.attach(consumer, &reader, None, &mut attached);
        let mut unsettled: BTreeMap<u32, u8> = BTreeMap::new();
        // A plain reader begins anew each time, so that it ends only when it must.
        let durable = self.random.u32(1..SESSION_RECORDS_MAX);
        for _ in 0..if self.is_durable { durable } else { u32::MAX } {
            let next = tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => break,
                next = reader.next() => next,
            };
            match next {
                Some(Ok(delivered)) => {
                    self.attach(consumer, &reader, Some(&delivered), &mut attached);
                    let unsettled = unsettled.entry(delivered.partition()).or_default();
                    self.take(consumer, &delivered, unsettled).await;
                }
                Some(Err(error)) => {
                    tracing::debug!(consumer, %error, "a session ended");
                    break;
                }
                None => break,
            }
        }
        // Dropping it tells the broker; it may hear of it after the next session has begun.
        drop(reader);
        // A member that was given nothing was never attached.
        if !attached.is_empty() {
            self.recorder.note(What::Detach { consumer });
        }
    }

    /// Notes the partitions that the session was given since, and from where. Consumers of one
    /// subscription share its partitions, so that they come and go; one that comes back may start
    /// where it did before.
    fn attach(
        &self,
        consumer: u16,
        reader: &Consumer,
        delivered: Option<&Delivered>,
        attached: &mut BTreeMap<u32, u64>,
    ) {
        let mode = if self.is_durable { Mode::Stream } else { Mode::Reader };
        let turns = reader.turns();
        for (partition, start) in reader.starts() {
            let Some(turn) = turns.get(&partition) else { continue };
            // What is left of a batch of an earlier turn is handed over in the next one.
            let is_left = |of: &&Delivered| of.partition() == partition && of.turn() != *turn;
            let known = attached.get(&partition) == Some(turn);
            if known || delivered.as_ref().is_some_and(is_left) {
                continue;
            }
            attached.insert(partition, *turn);
            self.recorder.note(What::Subscribe {
                consumer,
                subscription: self.subscription,
                partition: partition as u16,
                mode,
                from: start as u32,
            });
        }
    }

    async fn take(&mut self, consumer: u16, delivered: &Delivered, unsettled: &mut u8) {
        let (partition, offset) = (delivered.partition() as u16, delivered.offset() as u32);
        self.recorder.note(match identify(delivered.payload()) {
            Some(message) => What::Deliver {
                message,
                offset,
                consumer,
                partition,
                attempt: 0,
                count: 0,
                replica: 0,
            },
            None => What::Foreign { consumer, partition, offset, replica: 0 },
        });
        self.recorder.saw(self.subscription, partition, offset);
        *unsettled = unsettled.saturating_add(1);
        let settles = self.random.u8(..SETTLE_ONE_IN) == 0 || *unsettled >= UNSETTLED_MAX;
        if self.is_durable && settles {
            *unsettled = 0;
            let verb = Verb::Ack;
            self.recorder.note(What::Settle { consumer, partition, offset, attempt: 0, verb });
            let result = match delivered.ack_confirmed().await {
                Ok(()) => SettleResult::Ok,
                Err(_) => SettleResult::Unknown,
            };
            let attempt = 0;
            self.recorder.note(What::Settled {
                consumer,
                partition,
                offset,
                attempt,
                verb,
                result,
            });
        }
    }
}
