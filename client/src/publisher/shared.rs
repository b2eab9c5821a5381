//! Owns: what the handles of a publisher share, and one lane with its name.
//! Never: holds a lock over an await.

use super::lane::{LaneCore, LaneOptions};
use super::window::Window;
use crate::client::Handle;
use crate::config::OnFull;
use crate::error::{Error, Reason, Result};
use crate::message::Message;
use crate::publisher::lane::Identity;
use crate::publisher::receipt::Receipt;
use crate::shared::{LaneId, LaneRef, TopicState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use weir_protocol::batch::MessageError;
use weir_protocol::error_code::ErrorCode;
use weir_protocol::limits::{BATCH_BYTES_TARGET, BATCH_OVERHEAD_BYTES, PARTITIONS_MAX};
use weir_protocol::types::{Name, PartitionId, partition_of_key};

/// What `retry_after` says when nothing better is known.
const RETRY_HINT: Duration = Duration::from_millis(10);

/// One lane: the pure core behind a lock, and what the driver needs to open it.
pub(crate) struct PublishLane {
    pub(crate) id: LaneId,
    pub(crate) topic: Name,
    pub(crate) partition: u32,
    pub(crate) producer: Option<Name>,
    /// Shared by the lanes of a named producer: the first one that is opened fixes it.
    pub(crate) identity: Arc<OnceLock<Identity>>,
    core: Mutex<LaneCore>,
    /// Rings when the stream was opened or the lane is over.
    pub(crate) changed: Notify,
}

impl PublishLane {
    pub(crate) fn lock(&self) -> MutexGuard<'_, LaneCore> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a publisher was built with.
#[derive(Debug, Clone)]
pub(crate) struct PublisherOptions {
    pub(crate) topic: Name,
    pub(crate) producer: Option<Name>,
    pub(crate) partition: Option<u32>,
    pub(crate) on_full: OnFull,
    pub(crate) deadline: Duration,
    pub(crate) linger: Duration,
}

/// Shared by the clones of a publisher.
pub(crate) struct PublisherShared {
    pub(crate) handle: Arc<Handle>,
    pub(crate) options: PublisherOptions,
    pub(crate) window: Arc<Window>,
    topic_state: Arc<TopicState>,
    /// By number of the partition; opened by the first message.
    lanes: Box<[OnceLock<Arc<PublishLane>>]>,
    /// Held while a lane is added, so that a partition has one.
    adding: Mutex<()>,
    identity: Arc<OnceLock<Identity>>,
    /// The partition that messages without a key go to until its batch is closed.
    sticky: AtomicU32,
}

impl PublisherShared {
    pub(crate) fn new(
        handle: Arc<Handle>,
        options: PublisherOptions,
        window: Arc<Window>,
        topic_state: Arc<TopicState>,
    ) -> Self {
        let partitions = topic_state.partitions.load(Ordering::Relaxed).max(1);
        let sticky = handle.shared.chance.up_to(u64::from(partitions - 1)) as u32;
        Self {
            handle,
            options,
            window,
            topic_state,
            lanes: (0..PARTITIONS_MAX).map(|_| OnceLock::new()).collect(),
            adding: Mutex::new(()),
            identity: Arc::default(),
            sticky: AtomicU32::new(sticky),
        }
    }

    pub(crate) fn partitions(&self) -> u32 {
        self.topic_state.partitions.load(Ordering::Relaxed).max(1)
    }

    /// The first partition that a message without a key would go to.
    pub(crate) fn first_partition(&self) -> u32 {
        self.options.partition.unwrap_or_else(|| self.sticky.load(Ordering::Relaxed))
    }

    /// The lane of a partition, opened when nobody used it before.
    pub(crate) fn lane(&self, partition: u32) -> Result<&Arc<PublishLane>> {
        let partitions = self.partitions();
        if partition >= partitions {
            let topic = &self.options.topic;
            let text =
                format!("topic {topic} has {partitions} partitions, there is no {partition}");
            return Err(Error::local(ErrorCode::UnknownPartition, text));
        }
        let slot = &self.lanes[partition as usize];
        if let Some(lane) = slot.get() {
            return Ok(lane);
        }
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.get().is_none() {
            let added = slot.set(self.open_lane(partition)?);
            debug_assert!(added.is_ok(), "only one adds at a time");
        }
        Ok(slot.get().expect("it was set above"))
    }

    fn open_lane(&self, partition: u32) -> Result<Arc<PublishLane>> {
        let options = LaneOptions {
            partition,
            linger: self.options.linger,
            deadline: self.options.deadline,
            on_full: self.options.on_full,
        };
        let shared = &self.handle.shared;
        let mut lane = None;
        shared.add_lane(|id| {
            let core = LaneCore::new(options, self.window.clone(), Instant::now());
            let made = Arc::new(PublishLane {
                id,
                topic: self.options.topic.clone(),
                partition,
                producer: self.options.producer.clone(),
                identity: self.identity.clone(),
                core: Mutex::new(core),
                changed: Notify::new(),
            });
            lane = Some(made.clone());
            LaneRef::Publish(made)
        })?;
        Ok(lane.expect("add_lane has called its closure"))
    }

    /// The lanes that were opened.
    pub(crate) fn open_lanes(&self) -> impl Iterator<Item = &Arc<PublishLane>> {
        self.lanes.iter().filter_map(OnceLock::get)
    }

    /// What a message takes of the window, if it is one.
    pub(crate) fn check(&self, message: &Message) -> Result<usize> {
        let limit = self.handle.shared.message_bytes_max();
        message.check(limit).map_err(|error| match error {
            MessageError::TooLarge { .. } => {
                Error::local(ErrorCode::MessageTooLarge, error.to_string())
            }
            MessageError::Key(_) | MessageError::Headers(_) => Error::invalid(error.to_string()),
        })
    }

    fn lane_for(&self, message: &Message) -> Result<&Arc<PublishLane>> {
        if let Some(partition) = message.partition.or(self.options.partition) {
            return self.lane(partition);
        }
        let partitions = self.partitions();
        if let Some(key) = &message.key {
            let PartitionId(partition) = partition_of_key(key, partitions);
            return self.lane(partition);
        }
        let sticky = self.sticky.load(Ordering::Relaxed) % partitions;
        let lane = self.lane(sticky)?;
        if partitions == 1 || !lane.lock().starts_batch() {
            return Ok(lane);
        }
        let next = (sticky + 1) % partitions;
        self.sticky.store(next, Ordering::Relaxed);
        self.lane(next)
    }

    /// Queues a message that has its room.
    pub(crate) fn queue(&self, message: &Message, room: (usize, usize)) -> Receipt {
        let lane = match self.lane_for(message) {
            Ok(lane) => lane,
            Err(error) => {
                self.window.release(1, room.1);
                return Receipt::failed(error);
            }
        };
        let shared = &self.handle.shared;
        // A broker whose messages are small takes small batches too.
        let bytes_max = BATCH_BYTES_TARGET.min(shared.message_bytes_max() + BATCH_OVERHEAD_BYTES);
        let now_ms = shared.config.wall.now_ms();
        let (receipt, ring) = lane.lock().push(message, room, bytes_max, now_ms);
        if ring {
            self.handle.shared.ring(lane.id);
        }
        receipt
    }

    /// Why a message for this lane would have to wait, beyond the window.
    pub(crate) fn blocked_for(&self, message: &Message) -> Result<Option<Reason>> {
        Ok(self.lane_for(message)?.lock().blocked())
    }

    pub(crate) fn blocked(&self) -> Option<Reason> {
        self.open_lanes().find_map(|lane| lane.lock().blocked())
    }

    /// The error of a publisher that may not wait.
    pub(crate) fn would_block(&self) -> Error {
        if self.window.is_closed() {
            return LaneCore::closed_error();
        }
        Error::would_block(self.blocked().unwrap_or(Reason::ClientWindow), RETRY_HINT)
    }

    /// No message is taken any more; what is queued is still sent.
    pub(crate) fn finish(&self) {
        self.window.close();
        for lane in self.open_lanes() {
            if lane.lock().finish() {
                self.handle.shared.ring(lane.id);
            }
        }
    }
}

impl Drop for PublisherShared {
    fn drop(&mut self) {
        self.finish();
    }
}
