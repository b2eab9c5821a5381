//! A load at a fixed pace on every partition of a topic, and a consumer beside it.
//!
//! Owns: the publisher and what became of its messages; the consumer and its books.
//! Never: goes slower because a partition answers late: what is due is sent, up to
//! [`OUTSTANDING_MAX`].

use super::gaps::Gaps;
use super::{PATIENCE, found, other};
use crate::audit::{Audit, Verdict, stamp};
use crate::clock::{self, Moment};
use crate::load::spawn;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use weir_client::{Client, ErrorCode, Limits, Message, Publisher, Receipt, Start};

/// Unanswered messages of one partition.
const OUTSTANDING_MAX: usize = 4_096;
/// And of all together.
const WINDOW: Limits = Limits { messages: 262_144, bytes: 256 << 20 };
const MESSAGE_BYTES: usize = 256;
/// Nothing came for so long behind the last acknowledgement: nothing will come twice either.
const QUIET: Duration = Duration::from_secs(1);

/// What is sent.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Pace {
    /// Partitions, each with a sequence of its own.
    pub partitions: u32,
    /// Messages a second on each of them.
    pub rate: f64,
}

/// What became of what was sent.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Published {
    /// Messages of each partition that were acknowledged, up to the first that was not.
    #[serde(skip)]
    pub acknowledged: BTreeMap<u64, u64>,
    /// Errors that publishers were told, by name.
    pub errors: BTreeMap<String, u64>,
}

/// A load that runs.
pub(super) struct Paced {
    pub(super) gaps: Arc<Gaps>,
    stop: watch::Sender<bool>,
    partitions: JoinSet<(u64, u64, BTreeMap<String, u64>)>,
    consumer: tokio::task::JoinHandle<weir_client::Result<Audit>>,
    published: watch::Sender<Option<BTreeMap<u64, u64>>>,
}

impl Paced {
    /// Starts it, and waits until every partition has answered.
    pub(super) async fn start(client: &Client, topic: &str, pace: Pace) -> io::Result<Self> {
        let publisher = client.publisher(topic).idempotent("bench").window(WINDOW);
        let publisher = publisher.deadline(PATIENCE).build().await.map_err(other)?;
        let consumer = client.consumer(topic, "audit").from(Start::Earliest).auto_settle(true);
        let consumer = consumer.subscribe().await.map_err(other)?;
        let (stop, stopped) = watch::channel(false);
        let (published, all_sent) = watch::channel(None);
        let began = clock::now();
        let gaps = Arc::new(Gaps::new(pace.partitions));
        let mut partitions = JoinSet::new();
        for number in 0..pace.partitions {
            let (publisher, gaps, stopped) = (publisher.clone(), gaps.clone(), stopped.clone());
            partitions.spawn(publish(publisher, number, pace, gaps, stopped));
        }
        let consumer = spawn(consume(consumer, all_sent));
        let load = Self { gaps, stop, partitions, consumer, published };
        load.answered_since(began).await?;
        Ok(load)
    }

    /// Waits until every partition has acknowledged something that was sent since then.
    pub(super) async fn answered_since(&self, moment: Moment) -> io::Result<()> {
        let all = found("every partition acknowledges", async || {
            self.gaps.silent_since(moment).is_empty().then_some(())
        });
        all.await.map_err(|error| {
            other(format!("{error}; silent are {:?}", self.gaps.silent_since(moment)))
        })
    }

    /// Ends it; the second is what the consumer saw.
    pub(super) async fn finish(mut self) -> io::Result<(Published, Verdict)> {
        self.stop.send_replace(true);
        let mut published = Published::default();
        while let Some(partition) = self.partitions.join_next().await {
            let (number, acked, errors) = partition.map_err(other)?;
            published.acknowledged.insert(number, acked);
            for (name, count) in errors {
                *published.errors.entry(name).or_default() += count;
            }
        }
        self.published.send_replace(Some(published.acknowledged.clone()));
        let audit = self.consumer.await.map_err(other)?.map_err(other)?;
        let verdict = audit.verdict(&published.acknowledged);
        Ok((published, verdict))
    }
}

/// Sends until it is stopped. Returns the partition, how many were acknowledged before the first
/// that was not, and the errors.
async fn publish(
    publisher: Publisher,
    partition: u32,
    pace: Pace,
    gaps: Arc<Gaps>,
    mut stopped: watch::Receiver<bool>,
) -> (u64, u64, BTreeMap<String, u64>) {
    let (sender, receipts) = mpsc::channel(OUTSTANDING_MAX);
    let collector = spawn(collect(partition, receipts, gaps));
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / pace.rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut message, mut refused) = (vec![0; MESSAGE_BYTES], BTreeMap::new());
    let number = u64::from(partition);
    let mut sequence = 0;
    // Partitions take turns within the time between two messages of one.
    let turn = f64::from(partition) / f64::from(pace.partitions) / pace.rate;
    tokio::time::sleep(Duration::from_secs_f64(turn)).await;
    loop {
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => break,
            _ = ticks.tick() => {}
        }
        stamp(&mut message, number, sequence, 0);
        let sent = clock::now();
        match publisher.send(Message::new(message.clone()).partition(partition)).await {
            Ok(receipt) => {
                sequence += 1;
                sender.send((receipt, sent)).await.expect("the collector outlives the sender");
            }
            Err(error) => note(&mut refused, &error),
        }
    }
    drop(sender);
    let (acked, mut errors) = collector.await.expect("the collector does not panic");
    for (name, count) in refused {
        *errors.entry(name).or_default() += count;
    }
    (number, acked, errors)
}

async fn collect(
    partition: u32,
    mut receipts: mpsc::Receiver<(Receipt, Moment)>,
    gaps: Arc<Gaps>,
) -> (u64, BTreeMap<String, u64>) {
    let (mut acked, mut errors) = (0, BTreeMap::new());
    while let Some((receipt, sent)) = receipts.recv().await {
        match receipt.await {
            Ok(_) => {
                gaps.answered(partition, sent);
                acked += u64::from(errors.is_empty());
            }
            Err(error) => note(&mut errors, &error),
        }
    }
    (acked, errors)
}

fn note(errors: &mut BTreeMap<String, u64>, error: &weir_client::Error) {
    let code = error.error_code().map_or("other", ErrorCode::name);
    *errors.entry(code.to_owned()).or_default() += 1;
}

/// Reads until everything that was acknowledged has come, and nothing more for a while.
async fn consume(
    mut consumer: weir_client::Consumer,
    published: watch::Receiver<Option<BTreeMap<u64, u64>>>,
) -> weir_client::Result<Audit> {
    let mut audit = Audit::default();
    let mut heard = clock::now();
    loop {
        let Ok(next) = tokio::time::timeout(QUIET, consumer.next_batch()).await else {
            let all_sent = published.borrow();
            let complete = all_sent.as_ref().map(|sent| audit.verdict(sent).lost == 0);
            match complete {
                Some(true) => return Ok(audit),
                Some(false) if heard.elapsed() > PATIENCE => return Ok(audit),
                _ => continue,
            }
        };
        let Some(batch) = next.transpose()? else { return Ok(audit) };
        for record in batch.records() {
            audit.received(record?.payload());
        }
        heard = clock::now();
    }
}
