//! Consuming: readers without a memory, and durable subscriptions.
//!
//! Owns: what applications call. Never: buffers beyond the credit it gave.

mod credit;
pub(crate) mod delivered;
pub(crate) mod lane;
pub(crate) mod share;
pub(crate) mod shared;

pub use delivered::{Delivered, Record, RecordBatch};

use crate::client::{Client, Handle};
use crate::config::{CREDIT_DEFAULT, Limits, Start};
use crate::error::{Error, Result};
use crate::publisher::name;
use crate::shared::{LaneId, LaneRef, TopicState};
use delivered::Origin;
use lane::{ReadLane, Reading};
use share::Membership;
use shared::{ConsumerShared, End};
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::MemberId;

/// Builds a [`Consumer`]; see [`Client::reader`] and [`Client::consumer`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `subscribe`"]
pub struct ConsumerBuilder {
    client: Client,
    topic: String,
    subscription: Option<String>,
    start: Start,
    partitions: Option<Vec<u32>>,
    credit: Limits,
    auto_settle: bool,
    any_replica: bool,
    /// By partition.
    reach: BTreeMap<u32, u64>,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client, topic: &str, subscription: Option<&str>) -> Self {
        Self {
            client,
            topic: topic.to_owned(),
            subscription: subscription.map(str::to_owned),
            start: Start::default(),
            partitions: None,
            credit: CREDIT_DEFAULT,
            auto_settle: subscription.is_none(),
            any_replica: false,
            reach: BTreeMap::new(),
        }
    }

    /// Lets any replica serve a reader: one on a broker that this client is connected to already,
    /// or else the leader. What it reads may be old, and is always in order. A durable subscription
    /// is served by the leader alone.
    pub fn any_replica(mut self) -> Self {
        self.any_replica = true;
        self
    }

    /// Waits for a replica that holds everything below `end` of this partition, for example behind
    /// a record that was just published (its receipt's offset + 1): reads what was written before.
    pub fn reach(mut self, partition: u32, end: u64) -> Self {
        self.reach.insert(partition, end);
        self
    }

    /// Where to start. A durable subscription that exists starts at its cursor instead.
    /// Default: at the oldest record.
    pub fn from(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Reads this partition only. Default: all, also those that are added later.
    pub fn partition(self, partition: u32) -> Self {
        self.partitions([partition])
    }

    /// Reads these partitions only. A durable subscription is not shared then: whoever reads one of
    /// them is replaced.
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = u32>) -> Self {
        self.partitions = Some(partitions.into_iter().collect());
        self
    }

    /// How much may be buffered or unsettled at once, over all partitions; given back when
    /// messages are settled, not when they are received. A batch is never cut, so that the last
    /// one may exceed it. Default: 65,536 messages, 8 MiB.
    pub fn credit(mut self, credit: Limits) -> Self {
        self.credit = credit;
        self
    }

    /// Whether asking for the next message settles the one before. Default: yes for a reader,
    /// which has no cursor; no for a durable subscription.
    pub fn auto_settle(mut self, auto_settle: bool) -> Self {
        self.auto_settle = auto_settle;
        self
    }

    /// Opens the consumer in every partition, or, where others share its subscription, in those that
    /// are its own by then.
    pub async fn subscribe(self) -> Result<Consumer> {
        let topic = name(&self.topic, "topic")?;
        let subscription =
            self.subscription.as_deref().map(|text| name(text, "subscription")).transpose()?;
        if self.any_replica && subscription.is_some() {
            let text =
                "a durable subscription is served by the leader alone; leave any_replica out";
            return Err(Error::invalid(text));
        }
        let view = self.client.topic(topic.as_str()).await?;
        let handle = self.client.handle().clone();
        let topic_state = handle.shared.follow_topic(&topic, view.config.partitions);
        let follows = self.partitions.is_none();
        let mut partitions =
            self.partitions.unwrap_or_else(|| (0..view.config.partitions).collect());
        partitions.sort_unstable();
        partitions.dedup();
        let unknown = partitions.iter().find(|partition| **partition >= view.config.partitions);
        if let Some(partition) = unknown {
            let text = format!("topic {topic} has no partition {partition}");
            return Err(Error::local(ErrorCode::UnknownPartition, text));
        }
        if partitions.is_empty() {
            return Err(Error::invalid("a consumer reads at least one partition"));
        }
        if let Some(partition) = self.reach.keys().find(|reached| !partitions.contains(reached)) {
            let text = format!("partition {partition} is to be reached, but is not read");
            return Err(Error::invalid(text));
        }
        let consumer = Consumer {
            shared: Arc::new(ConsumerShared::new(topic, subscription)),
            handle,
            topic_state: Some(topic_state).filter(|_| follows),
            member_lane: None,
            credit: share(self.credit.clamped(), partitions.len()),
            auto_settle: self.auto_settle,
            any_replica: self.any_replica,
            current: None,
            origins: Vec::new(),
            unsettled: None,
        };
        consumer.open(partitions, self.start, &self.reach).await
    }
}

/// Each partition's part of the credit.
fn share(credit: Limits, partitions: usize) -> Limits {
    let part = |whole: usize| (whole / partitions).max(1);
    Limits { messages: part(credit.messages), bytes: part(credit.bytes) }
}

/// Reads a topic: as a stream of messages, or batch by batch.
///
/// Dropping it ends it; settles that the broker was not told of are sent first.
pub struct Consumer {
    shared: Arc<ConsumerShared>,
    handle: Arc<Handle>,
    /// Some: partitions that are added later are read too.
    topic_state: Option<Arc<TopicState>>,
    /// Some: partitions are shared with the other consumers of the subscription.
    member_lane: Option<LaneId>,
    credit: Limits,
    auto_settle: bool,
    any_replica: bool,
    current: Option<std::vec::IntoIter<Delivered>>,
    /// By lane.
    origins: Vec<Arc<Origin>>,
    /// What asking for more settles: a lane and the offset behind it.
    unsettled: Option<(usize, u64)>,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("topic", &self.shared.topic)
            .field("subscription", &self.shared.subscription)
            .finish_non_exhaustive()
    }
}

impl Consumer {
    async fn open(
        mut self,
        partitions: Vec<u32>,
        start: Start,
        reach: &BTreeMap<u32, u64>,
    ) -> Result<Self> {
        if self.shared.subscription.is_some() && self.topic_state.is_some() {
            self.add_membership()?;
        }
        for partition in partitions {
            self.add_lane(partition, start, reach.get(&partition).copied().unwrap_or(0))?;
        }
        self.wait_opened().await?;
        Ok(self)
    }

    fn add_membership(&mut self) -> Result<()> {
        let member = MemberId(self.handle.shared.chance.up_to(u64::MAX - 1) + 1);
        let consumer = self.shared.clone();
        let lane_id = self.handle.shared.add_lane(|lane_id| {
            consumer.lock().membership = Some(Membership::new(member, lane_id));
            LaneRef::Member(consumer.clone())
        })?;
        self.member_lane = Some(lane_id);
        Ok(())
    }

    fn add_lane(&mut self, partition: u32, start: Start, reach: u64) -> Result<()> {
        let durable = self.shared.subscription.is_some();
        let reading = Reading { start, durable, any_replica: self.any_replica, reach };
        let lane = {
            let mut state = self.shared.lock();
            let lane = ReadLane::new(partition, reading, self.credit);
            let shares = state.membership.is_some();
            state.lanes.push(if shares { lane.shared() } else { lane });
            state.share(Instant::now());
            state.lanes.len() - 1
        };
        let consumer = self.shared.clone();
        let lane_id = self.handle.shared.add_lane(|_| LaneRef::Read(consumer.clone(), lane))?;
        let client = self.handle.shared.clone();
        self.origins.push(Arc::new(Origin { client, consumer, lane, lane_id, partition }));
        Ok(())
    }

    async fn wait_opened(&self) -> Result<()> {
        let wait = async {
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let patient_until = {
                    let state = self.shared.lock();
                    match &state.end {
                        // What arrived in front of the error is handed over first.
                        End::Failed(Some(error)) if state.was_open(error) => return Ok(()),
                        End::Failed(Some(error)) => return Err(error.clone()),
                        _ if state.is_ending() => return Err(crate::shared::closed()),
                        _ if state.is_open(Instant::now()) => return Ok(()),
                        _ => {}
                    }
                    state.is_patient_until().filter(|until| *until > Instant::now())
                };
                match patient_until {
                    // Whichever comes first: both are looked at anew.
                    Some(until) => drop(tokio::time::timeout_at(until, changed).await),
                    None => changed.await,
                }
            }
        };
        self.handle.shared.within_request_timeout("opening a consumer", wait).await
    }

    /// Reads the partitions that were added since.
    fn follow(&mut self) {
        let Some(topic_state) = &self.topic_state else { return };
        let known = self.origins.len() as u32;
        for partition in known..topic_state.partitions.load(Ordering::Relaxed) {
            // Whatever is in it was published after this consumer started.
            if let Err(error) = self.add_lane(partition, Start::Earliest, 0) {
                tracing::warn!(partition, %error, "an added partition cannot be read");
                return;
            }
        }
    }

    /// The next message. `None`: the consumer was stopped or drained. An error is final; broken
    /// connections are not errors, the consumer resumes where it stood. Behind a damaged range
    /// reading goes on from [`Error::damaged_end`].
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Delivered>> {
        poll_fn(|cx| self.poll_message(cx)).await
    }

    /// The next batch: the fast path. Use either this or [`Consumer::next`]; a batch whose
    /// messages were not all taken by `next` is given up by this.
    ///
    /// Cancel safe.
    pub async fn next_batch(&mut self) -> Option<Result<RecordBatch>> {
        self.current = None;
        poll_fn(|cx| self.poll_batch(cx)).await.map(|result| result.map(|(_, batch)| batch))
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delivered>>> {
        loop {
            if let Some(message) = self.current.as_mut().and_then(Iterator::next) {
                return Poll::Ready(Some(Ok(message)));
            }
            self.current = None;
            match ready!(self.poll_batch(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok((lane, batch))) => match batch.into_delivered(&self.origins[lane]) {
                    Ok(messages) => self.current = Some(messages.into_iter()),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
            }
        }
    }

    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(usize, RecordBatch)>>> {
        if let Some((lane, upto)) = self.unsettled.take() {
            self.origins[lane].settle(upto);
        }
        self.follow();
        let (taken, rings) = {
            let mut state = self.shared.lock();
            (state.poll_take(cx), state.take_rings())
        };
        for lane in rings {
            self.handle.shared.ring(self.origins[lane].lane_id);
        }
        let taken = ready!(taken);
        Poll::Ready(taken.map(|result| {
            result.map(|(lane, raw)| {
                let batch = RecordBatch::new(self.origins[lane].partition, raw);
                if self.auto_settle {
                    self.unsettled = Some((lane, batch.end_offset()));
                }
                (lane, batch)
            })
        }))
    }

    fn origin(&self, partition: u32) -> Option<&Arc<Origin>> {
        self.origins.iter().find(|origin| origin.partition == partition)
    }

    /// Settles everything of this partition below `upto`, as far as it was handed over.
    /// Coalesced, like [`Delivered::ack`]. A partition that is not read is ignored.
    pub fn settle(&self, partition: u32, upto: u64) {
        if let Some(origin) = self.origin(partition) {
            origin.settle(upto);
        }
    }

    /// Like [`Consumer::settle`], and waits until the broker has committed it.
    ///
    /// Cancel safe: the settle stands, only the confirmation is lost.
    pub async fn settle_confirmed(&self, partition: u32, upto: u64) -> Result<()> {
        match self.origin(partition) {
            Some(origin) if self.shared.subscription.is_some() => {
                origin.settle_confirmed(upto).await
            }
            _ => {
                self.settle(partition, upto);
                Ok(())
            }
        }
    }

    /// By partition: the offset behind the last message that was handed over (whole batches
    /// count as handed over).
    pub fn positions(&self) -> BTreeMap<u32, u64> {
        self.shared.lock().views(|lane, _| lane.position())
    }

    /// By partition: the first offset that this consumer was or will be given.
    pub fn starts(&self) -> BTreeMap<u32, u64> {
        self.shared.lock().views(|_, view| view.start)
    }

    /// By partition: how often it has come to this consumer. Where others share the subscription a
    /// partition goes and may come back; what was not settled by then is handed over again, and
    /// whatever was kept of it since is of no use. See [`Delivered::turn`].
    pub fn turns(&self) -> BTreeMap<u32, u64> {
        self.shared.lock().views(|_, view| view.turn)
    }

    /// By partition: the high watermark (exclusive) when this consumer was opened.
    pub fn end_offsets(&self) -> BTreeMap<u32, u64> {
        self.shared.lock().views(|_, view| view.end)
    }

    /// By partition: the newest high watermark (exclusive) that the broker told.
    pub fn high_watermarks(&self) -> BTreeMap<u32, u64> {
        self.shared.lock().views(|_, view| view.high_watermark)
    }

    /// Messages that were trimmed before this consumer could read them.
    pub fn skipped(&self) -> u64 {
        self.shared.lock().views(|_, view| view.skipped).values().sum()
    }

    /// A handle that ends this consumer from elsewhere.
    pub fn handle(&self) -> ConsumerHandle {
        ConsumerHandle {
            shared: self.shared.clone(),
            rings: self.origins.iter().map(|o| o.lane_id).chain(self.member_lane).collect(),
            client: self.handle.shared.clone(),
        }
    }

    /// Ends the consumer after the broker has committed every settle.
    ///
    /// Cancel safe: dropping the future ends the consumer too.
    pub async fn close(mut self) -> Result<()> {
        if let Some((lane, upto)) = self.unsettled.take() {
            self.origins[lane].settle(upto);
        }
        let mut result = Ok(());
        if self.shared.subscription.is_some() {
            for origin in &self.origins {
                let upto = self.shared.lock().lanes[origin.lane].uncommitted();
                if let Some(upto) = upto {
                    result = result.and(origin.settle_confirmed(upto).await);
                }
            }
        }
        result
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.lock().gone = true;
        self.handle().stop();
    }
}

impl futures_core::Stream for Consumer {
    type Item = Result<Delivered>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_message(cx)
    }
}

/// Ends a consumer from elsewhere; see [`Consumer::handle`].
#[derive(Clone)]
pub struct ConsumerHandle {
    shared: Arc<ConsumerShared>,
    client: Arc<crate::shared::ClientShared>,
    rings: Vec<u32>,
}

impl ConsumerHandle {
    /// The consumer hands nothing over any more.
    pub fn stop(&self) {
        self.end(End::Stop);
    }

    /// The consumer asks for nothing more, hands over what it holds, and then ends.
    pub fn drain(&self) {
        self.end(End::Drain);
    }

    fn end(&self, end: End) {
        self.shared.end(end);
        for lane in &self.rings {
            self.client.ring(*lane);
        }
    }
}

impl fmt::Debug for ConsumerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerHandle").field("topic", &self.shared.topic).finish_non_exhaustive()
    }
}
