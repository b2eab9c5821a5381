//! What the handles of a client and its driver share: a registry behind a short lock, and a bell.
//!
//! Owns: the lanes, the requests that wait, the status. Never: touches a socket.
//! Invariant: whatever changes here rings the bell; the driver looks at everything it was told of.

use crate::config::ClientConfig;
use crate::consumer::shared::ConsumerShared;
use crate::error::{Error, Result};
use crate::publisher::shared::PublishLane;
use crate::seams::Chance;
use crate::status::Status;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use weir_protocol::error_code::{ErrorCode, Outcome};
use weir_protocol::frame::{AlterTopic, MetadataPage, TopicConfig};
use weir_protocol::limits::{
    MESSAGE_BYTES_DEFAULT, REQUESTS_PER_CONNECTION_MAX, STREAMS_PER_CONNECTION_MAX,
};
use weir_protocol::types::Name;

/// What a lane is called within its client; never reused.
pub(crate) type LaneId = u32;

/// A lane of either direction.
#[derive(Clone)]
pub(crate) enum LaneRef {
    Publish(Arc<PublishLane>),
    Read(Arc<ConsumerShared>, usize),
    /// By which a consumer shares its subscription.
    Member(Arc<ConsumerShared>),
}

/// What a topic looked like when it was last asked about.
#[derive(Debug)]
pub(crate) struct TopicState {
    pub(crate) partitions: AtomicU32,
}

/// A request for the broker as a whole.
#[derive(Debug, Clone)]
pub(crate) enum RequestBody {
    Topics { topic: Option<Name>, after: Option<Name> },
    Create { topic: Name, config: TopicConfig },
    Alter(Box<AlterTopic>),
    Delete { topic: Name },
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) enum Answer {
    Page(MetadataPage),
    Done,
}

/// Who asked.
pub(crate) enum ReplyTo {
    Caller(oneshot::Sender<Result<Answer>>),
    /// The client itself, to learn of added partitions.
    Refresh(Name),
}

/// A request with its asker.
pub(crate) struct Request {
    pub(crate) body: RequestBody,
    pub(crate) reply: ReplyTo,
}

impl Request {
    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_given_up(&self) -> bool {
        matches!(&self.reply, ReplyTo::Caller(caller) if caller.is_closed())
    }

    pub(crate) fn answer(self, answer: Result<Answer>) {
        if let ReplyTo::Caller(caller) = self.reply {
            // The caller may have given up.
            let _ = caller.send(answer);
        }
    }
}

/// Everything behind the lock.
#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) lanes: BTreeMap<LaneId, LaneRef>,
    /// Lanes to visit.
    pub(crate) rung: BTreeSet<LaneId>,
    pub(crate) requests: VecDeque<Request>,
    pub(crate) topics: BTreeMap<Name, Weak<TopicState>>,
    next_id: LaneId,
    /// No handle is left, or the client was closed: finish what is queued, then end.
    pub(crate) closing: bool,
    /// The driver is gone.
    pub(crate) ended: bool,
    /// Why, when the broker refused this client for good.
    pub(crate) end_error: Option<Error>,
}

/// Shared by all handles and the driver.
pub(crate) struct ClientShared {
    pub(crate) config: ClientConfig,
    pub(crate) chance: Chance,
    registry: Mutex<Registry>,
    pub(crate) bell: Notify,
    pub(crate) status: watch::Sender<Status>,
    message_bytes_max: AtomicUsize,
    request_slots: Semaphore,
}

impl ClientShared {
    pub(crate) fn new(config: ClientConfig) -> Self {
        let connecting = Status::Reconnecting { attempt: 0, cause: "connecting".to_owned() };
        Self {
            chance: Chance::new(config.seed),
            config,
            registry: Mutex::default(),
            bell: Notify::new(),
            status: watch::Sender::new(connecting),
            message_bytes_max: AtomicUsize::new(MESSAGE_BYTES_DEFAULT),
            request_slots: Semaphore::new(REQUESTS_PER_CONNECTION_MAX),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the driver to visit a lane.
    pub(crate) fn ring(&self, lane: LaneId) {
        self.lock().rung.insert(lane);
        self.bell.notify_one();
    }

    /// Adds a lane that `make` builds around its id.
    pub(crate) fn add_lane(&self, make: impl FnOnce(LaneId) -> LaneRef) -> Result<LaneId> {
        let mut registry = self.lock();
        if registry.ended || registry.closing {
            return Err(closed());
        }
        if registry.lanes.len() >= STREAMS_PER_CONNECTION_MAX {
            let text =
                format!("the client has {STREAMS_PER_CONNECTION_MAX} streams; share publishers");
            return Err(Error::local(ErrorCode::WouldBlock, text));
        }
        registry.next_id += 1;
        let id = registry.next_id;
        registry.lanes.insert(id, make(id));
        registry.rung.insert(id);
        drop(registry);
        self.bell.notify_one();
        Ok(id)
    }

    /// The state of a topic that is asked about again and again while somebody holds it.
    pub(crate) fn follow_topic(&self, topic: &Name, partitions: u32) -> Arc<TopicState> {
        let mut registry = self.lock();
        registry.topics.retain(|_, state| state.strong_count() > 0);
        if let Some(state) = registry.topics.get(topic).and_then(Weak::upgrade) {
            state.partitions.fetch_max(partitions, Ordering::Relaxed);
            return state;
        }
        let state = Arc::new(TopicState { partitions: AtomicU32::new(partitions) });
        registry.topics.insert(topic.clone(), Arc::downgrade(&state));
        state
    }

    pub(crate) fn message_bytes_max(&self) -> usize {
        self.message_bytes_max.load(Ordering::Relaxed)
    }

    pub(crate) fn set_message_bytes_max(&self, bytes: usize) {
        self.message_bytes_max.store(bytes, Ordering::Relaxed);
    }

    /// Asks the broker once. Cancel safe, but a request that was sent may still be carried out.
    pub(crate) async fn request(&self, body: RequestBody) -> Result<Answer> {
        let slot = self.request_slots.acquire().await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        {
            let mut registry = self.lock();
            if registry.ended {
                return Err(closed());
            }
            registry.requests.retain(|request| !request.is_given_up());
            registry.requests.push_back(Request { body, reply: ReplyTo::Caller(reply) });
        }
        self.bell.notify_one();
        let answer = answer.await.map_err(|_| closed())?;
        drop(slot);
        answer
    }

    /// Bounds `work` by the request timeout.
    pub(crate) async fn within_request_timeout<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match tokio::time::timeout(self.config.request_timeout, work).await {
            Ok(result) => result,
            Err(_) => {
                let causes = vec![what.to_owned(), self.status.borrow().to_string()];
                Err(Error::deadline(Outcome::Unknown, causes, None))
            }
        }
    }

    /// Finishes what is queued, then ends.
    pub(crate) fn start_closing(&self) {
        self.lock().closing = true;
        self.bell.notify_one();
    }
}

/// The error of a client that is gone.
pub(crate) fn closed() -> Error {
    Error::local(ErrorCode::Closed, "the client was closed")
}
