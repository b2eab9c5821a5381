//! Which topics there are, and the partitions of them that are open here.
//!
//! Owns: the metadata handle, the table of open partitions, the one task that makes the table
//! follow the metadata, and the one that scrubs what is open.
//! Never: holds a lock over an await; stops the broker because one partition cannot be opened.
//! Invariants: only the follower task opens or stops a partition; a partition that failed is
//! refused with its reason until the broker is restarted.

mod follower;
mod scrub;
mod table;

pub(crate) use scrub::ScrubPace;
pub use table::{PartitionState, TopicPartitions};

use crate::cluster::controller::Seats;
use crate::connection::Backend;
use crate::flow::Flow;
use crate::metrics::Metrics;
use crate::partition::PartitionHandle;
use crate::partition::limits::PRODUCER_ANONYMOUS_BIT;
use crate::replication::metadata::{
    Catalog as Topics, Change, ChangeError, Command, Metadata, NewPartition, Refusal as Refused,
    Settings, Topic,
};
use crate::replication::{Peers, Switchboard};
use crate::seams::{BoxFuture, WallClock};
use crate::task::{self, TaskKind};
use scrub::Scrubber;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use table::Table;
use tokio::sync::{oneshot, watch};
use tokio::time::Duration;
use tokio_util::sync::CancellationToken;
use weir_protocol::error_code::{ErrorCode, Outcome, Scope};
use weir_protocol::frame::{
    AlterTopic, BrokerView, CreateTopic, DeleteTopic, Metadata as MetadataRequest, MetadataPage,
    PartitionView as WirePartition, Refusal, TopicConfig, TopicView,
};
use weir_protocol::limits::{
    BROKER_VIEW_BYTES_MAX, BROKERS_MAX, FIELDS_BYTES_MAX, PARTITION_VIEW_BYTES_MAX, PARTITIONS_MAX,
};
use weir_protocol::types::{BrokerId, Name, PartitionId, ProducerId};
use weir_storage::{Device, Lane};

/// A change of topics is answered when it shows, or after this.
const SHOW_WITHIN: Duration = Duration::from_secs(20);
/// The least that a topic may be told to retain: eight of the smallest segments.
const TOPIC_BYTES_MIN: u64 = 8 << 20;
/// What the fixed part of a topic takes in a page of metadata.
const TOPIC_VIEW_BYTES: usize = 320;
/// What topics may take of a page: the brokers stand behind them.
const TOPICS_BYTES_MAX: usize =
    FIELDS_BYTES_MAX - TOPIC_VIEW_BYTES - BROKERS_MAX * BROKER_VIEW_BYTES_MAX;

/// Replicas of each partition of a new topic.
const REPLICAS_DEFAULT: u8 = 1;

/// What partitions are opened with.
pub(crate) struct Rooms {
    pub(crate) device: Arc<Device>,
    pub(crate) flow: Arc<Flow>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) wall: Arc<dyn WallClock>,
    pub(crate) data_dir: PathBuf,
    pub(crate) broker: BrokerId,
    pub(crate) name: String,
    pub(crate) seed: u64,
    pub(crate) scrub: ScrubPace,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) switchboard: Switchboard,
}

/// The topics of this broker.
pub struct Catalog {
    metadata: Metadata,
    rooms: Arc<Rooms>,
    table: Arc<Table>,
    random: Mutex<fastrand::Rng>,
    /// Where clients reach this broker, once it listens.
    address: OnceLock<SocketAddr>,
    /// Counts the times that the table has caught up with the metadata.
    shown: watch::Receiver<u64>,
    stopped: CancellationToken,
}

impl Catalog {
    /// Opens every partition that the metadata places here, and follows the metadata from now
    /// on. Returns when each is open or has failed.
    pub(crate) async fn open(metadata: Metadata, rooms: Rooms) -> Arc<Self> {
        let rooms = Arc::new(rooms);
        let table = Arc::new(Table::default());
        let (shown_sender, shown) = watch::channel(0);
        let follower = follower::Follower::new(rooms.clone(), table.clone(), shown_sender);
        let topics = metadata.watch();
        task::spawn("catalog", TaskKind::Core, follower.follow(topics));
        let mut caught_up = shown.clone();
        // The sender lives as long as the follower, which ends only with the metadata.
        let _ = caught_up.wait_for(|times| *times > 0).await;
        let stopped = CancellationToken::new();
        start_scrubber(&rooms, table.clone(), stopped.clone());
        let random = Mutex::new(fastrand::Rng::with_seed(rooms.seed ^ 0x7063_6f64_7563_6572));
        let address = OnceLock::new();
        Arc::new(Self { metadata, rooms, table, random, address, shown, stopped })
    }

    /// From now on clients are told to come to this address.
    pub(crate) fn advertise(&self, address: SocketAddr) {
        // A broker listens once.
        let _ = self.address.set(address);
    }

    /// The topics as the metadata has them.
    pub(crate) fn topics(&self) -> Arc<Topics> {
        self.metadata.catalog()
    }

    /// The partitions that are open here, or not, by topic.
    pub(crate) fn partitions(&self) -> Vec<TopicPartitions> {
        self.table.all()
    }

    /// Stops every partition: what is accepted is answered, state is made durable, and nothing of
    /// them keeps the data directory from whoever opens it next in this process.
    pub(crate) async fn stop(&self) {
        self.stopped.cancel();
        for partition in self.table.open() {
            partition.stop().await;
        }
        self.metadata.stop().await;
        // A segment may still be in the making.
        let (done, idle) = oneshot::channel();
        let made = move || done.send(()).unwrap_or(());
        self.rooms.device.executor().submit(Lane::Prepare, Box::new(made));
        // Its sender is dropped only with the executor, and then nothing is in the making either.
        let _ = idle.await;
    }

    fn uuid(&self) -> u128 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).u128(1..)
    }

    /// Places new partitions where the fewest replicas are.
    fn new_partitions(&self, count: u32, replicas: u8) -> Result<Vec<NewPartition>, Refusal> {
        let topics = self.topics();
        let placed = Seats::of(&topics, |_| true).place(replicas, (0..count).map(|_| self.uuid()));
        placed.map_err(|few| topic_refusal(ErrorCode::BadRequest, few.to_string()))
    }

    async fn create(self: Arc<Self>, request: CreateTopic) -> Result<(), Refusal> {
        check_config(&request.config)?;
        let command = Command::CreateTopic {
            name: request.topic.clone(),
            settings: settings_of(&request.config),
            created_ms: self.rooms.wall.now_ms(),
            partitions: self.new_partitions(request.config.partitions, REPLICAS_DEFAULT)?,
        };
        self.change(&request.topic, command).await
    }

    async fn alter(self: Arc<Self>, request: AlterTopic) -> Result<(), Refusal> {
        let topics = self.topics();
        let topic = topics.topics.get(&request.topic).ok_or_else(|| unknown(&request.topic))?;
        let count = topic.partitions.len() as u32;
        let config = TopicConfig {
            partitions: request.partitions.unwrap_or(count),
            durability: request.durability.unwrap_or(topic.settings.durability),
            overflow: request.overflow.unwrap_or(topic.settings.overflow),
            max_bytes: request.max_bytes.unwrap_or(topic.settings.max_bytes),
            max_age_ms: request.max_age_ms.unwrap_or(topic.settings.max_age_ms),
        };
        check_config(&config)?;
        let Some(added) = config.partitions.checked_sub(count) else {
            let text = format!(
                "topic {} has {count} partitions; partitions can be added, never removed",
                request.topic
            );
            return Err(topic_refusal(ErrorCode::BadRequest, text));
        };
        let command = Command::AlterTopic {
            topic: topic.id,
            revision: topic.revision,
            settings: settings_of(&config),
            added: self.new_partitions(added, topic.replicas)?,
        };
        self.change(&request.topic, command).await
    }

    async fn delete(self: Arc<Self>, request: DeleteTopic) -> Result<(), Refusal> {
        let topics = self.topics();
        let topic = topics.topics.get(&request.topic).ok_or_else(|| unknown(&request.topic))?;
        self.change(&request.topic, Command::DeleteTopic { topic: topic.id }).await
    }

    /// Commits a change and waits until it shows in the table.
    async fn change(&self, name: &Name, command: Command) -> Result<(), Refusal> {
        let before = *self.shown.borrow();
        self.metadata.propose(command).await.map_err(|error| refusal_of(name, &error))?;
        let mut shown = self.shown.clone();
        let caught_up = async {
            while !self.table.shows(&self.topics()) {
                if shown.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(SHOW_WITHIN, caught_up).await.is_err() {
            tracing::warn!(topic = %name, before, "a change of a topic takes long to show");
        }
        Ok(())
    }

    fn view_of(&self, topic: &Topic) -> TopicView {
        let partitions = topic.partitions.iter().map(|partition| {
            let open = self.table.partition(&topic.name, partition.id);
            let view = open.as_ref().map(PartitionHandle::view);
            WirePartition {
                partition: partition.id,
                leader: view.as_ref().filter(|view| view.leading).map(|_| self.rooms.broker),
                log_start: view.as_ref().map(|view| view.log_start).unwrap_or_default(),
                high_watermark: view.as_ref().map(|view| view.high_watermark).unwrap_or_default(),
                bytes: view.as_ref().map_or(0, |view| view.bytes),
                term: view.as_ref().map(|view| view.term).unwrap_or_default(),
                replicas: vec![self.rooms.broker],
            }
        });
        TopicView {
            name: topic.name.clone(),
            id: topic.id,
            config: config_of(topic),
            partitions: partitions.collect(),
        }
    }

    fn broker_view(&self) -> BrokerView {
        // An address that stands for all of this host is none to go to from elsewhere.
        let address = self.address.get().filter(|address| !address.ip().is_unspecified());
        BrokerView {
            id: self.rooms.broker,
            host: address.map(|address| address.ip().to_string()).unwrap_or_default(),
            port: address.map_or(0, SocketAddr::port),
            name: self.rooms.name.clone(),
            rack: String::new(),
        }
    }
}

/// Nobody waits for the scrubber, and nobody relies on it.
fn start_scrubber(rooms: &Rooms, table: Arc<Table>, stopped: CancellationToken) {
    let scrubber = Scrubber {
        table,
        executor: rooms.device.executor().clone(),
        metrics: rooms.metrics.clone(),
        wall: rooms.wall.clone(),
        pace: rooms.scrub,
    };
    let scrub = async move {
        // None: it was stopped.
        let _ = stopped.run_until_cancelled(scrubber.run()).await;
    };
    drop(task::spawn("scrubber", TaskKind::Connection, scrub));
}

/// A topic's configuration as the wire has it.
pub(crate) fn config_of(topic: &Topic) -> TopicConfig {
    TopicConfig {
        partitions: topic.partitions.len() as u32,
        durability: topic.settings.durability,
        overflow: topic.settings.overflow,
        max_bytes: topic.settings.max_bytes,
        max_age_ms: topic.settings.max_age_ms,
    }
}

fn settings_of(config: &TopicConfig) -> Settings {
    Settings {
        durability: config.durability,
        overflow: config.overflow,
        max_bytes: config.max_bytes,
        max_age_ms: config.max_age_ms,
    }
}

fn check_config(config: &TopicConfig) -> Result<(), Refusal> {
    let bad = |text: String| Err(topic_refusal(ErrorCode::BadRequest, text));
    if !(1..=PARTITIONS_MAX).contains(&config.partitions) {
        return bad(format!("a topic has 1 to {PARTITIONS_MAX} partitions"));
    }
    if config.max_bytes < TOPIC_BYTES_MIN {
        return bad(format!("max_bytes = {} is less than {TOPIC_BYTES_MIN}", config.max_bytes));
    }
    Ok(())
}

fn topic_refusal(code: ErrorCode, text: impl Into<String>) -> Refusal {
    Refusal { scope: Scope::Topic, ..Refusal::new(code, text) }
}

fn unknown(topic: &Name) -> Refusal {
    let text = format!("topic {topic} does not exist; `weir topic create {topic}` creates it");
    topic_refusal(ErrorCode::UnknownTopic, text)
}

/// What a client learns of a change that did not take effect, or may not have.
fn refusal_of(topic: &Name, error: &ChangeError) -> Refusal {
    let code = match error {
        ChangeError::Refused(refused) => match refused {
            Refused::TopicExists => ErrorCode::TopicExists,
            Refused::UnknownTopic => ErrorCode::UnknownTopic,
            Refused::TopicLimit => ErrorCode::TopicLimit,
            Refused::ProducerLimit | Refused::EpochLimit => ErrorCode::ProducerLimit,
            // All others are about a cluster: whoever asked reads which one.
            _ => ErrorCode::BadRequest,
        },
        ChangeError::Busy => ErrorCode::OverloadedRequest,
        ChangeError::NotLeader => ErrorCode::NotLeader,
        ChangeError::Unknown => ErrorCode::LeaderLost,
        ChangeError::Fenced(_) => ErrorCode::StorageFenced,
    };
    let outcome = match error {
        ChangeError::Unknown => Outcome::Unknown,
        _ => Outcome::NotStored,
    };
    Refusal { outcome, ..topic_refusal(code, format!("{topic}: {error}")) }
}

/// What connections ask of the broker, answered by the catalog and counted by the metrics.
pub(crate) struct CatalogBackend(pub(crate) Arc<Catalog>);

impl Backend for CatalogBackend {
    fn partition(&self, topic: &Name, partition: PartitionId) -> Result<PartitionHandle, Refusal> {
        if let Some(open) = self.0.table.partition(topic, partition) {
            return Ok(open);
        }
        let topics = self.0.topics();
        let known = topics.topics.get(topic).ok_or_else(|| unknown(topic))?;
        if partition.0 as usize >= known.partitions.len() {
            let count = known.partitions.len();
            let text = format!("topic {topic} has {count} partitions, numbered from 0");
            return Err(topic_refusal(ErrorCode::UnknownPartition, text));
        }
        match self.0.table.failure(topic, partition) {
            Some((code, reason)) => {
                let text = format!("partition {partition} of topic {topic}: {reason}");
                Err(topic_refusal(code, text))
            }
            None => {
                let text = format!("partition {partition} of topic {topic} is being opened");
                let refusal = topic_refusal(ErrorCode::Recovering, text);
                Err(Refusal { retry_after_ms: 100, ..refusal })
            }
        }
    }

    fn register_producer(
        &self,
        name: Name,
    ) -> BoxFuture<'static, Result<(ProducerId, u32), Refusal>> {
        let catalog = self.0.clone();
        Box::pin(async move {
            let command = Command::OpenProducer { name: name.clone() };
            match catalog.metadata.propose(command).await {
                Ok(Change::Opened(producer)) => Ok((producer.id, producer.epoch)),
                Ok(other) => unreachable!("opening a producer answered {other:?}"),
                Err(error) => Err(refusal_of(&name, &error)),
            }
        })
    }

    fn anonymous_producer(&self) -> ProducerId {
        let mut random = self.0.random.lock().unwrap_or_else(PoisonError::into_inner);
        ProducerId(random.u64(1..) | PRODUCER_ANONYMOUS_BIT)
    }

    fn metadata(&self, request: &MetadataRequest) -> Result<MetadataPage, Refusal> {
        let topics = self.0.topics();
        let brokers = vec![self.0.broker_view()];
        let mut page =
            MetadataPage { request: request.request, more: false, topics: Vec::new(), brokers };
        if let Some(name) = &request.topic {
            let topic = topics.topics.get(name).ok_or_else(|| unknown(name))?;
            page.topics.push(self.0.view_of(topic));
            return Ok(page);
        }
        let mut room = TOPICS_BYTES_MAX;
        let behind = |name: &&Name| request.after.as_ref().is_none_or(|after| *name > after);
        for (_, topic) in topics.topics.iter().filter(|(name, _)| behind(name)) {
            let bytes = TOPIC_VIEW_BYTES + topic.partitions.len() * PARTITION_VIEW_BYTES_MAX;
            let Some(left) = room.checked_sub(bytes) else {
                page.more = true;
                break;
            };
            room = left;
            page.topics.push(self.0.view_of(topic));
        }
        Ok(page)
    }

    fn create_topic(&self, request: CreateTopic) -> BoxFuture<'static, Result<(), Refusal>> {
        Box::pin(self.0.clone().create(request))
    }

    fn alter_topic(&self, request: AlterTopic) -> BoxFuture<'static, Result<(), Refusal>> {
        Box::pin(self.0.clone().alter(request))
    }

    fn delete_topic(&self, request: DeleteTopic) -> BoxFuture<'static, Result<(), Refusal>> {
        Box::pin(self.0.clone().delete(request))
    }

    fn acknowledged(&self, took: Duration) {
        self.0.rooms.metrics.publish_ack.observe(took);
    }

    fn refused(&self, topic: Option<&Name>, code: u16) {
        self.0.rooms.metrics.refused(topic, code);
    }

    fn connection_opened(&self) {
        self.0.rooms.metrics.connection_opened();
    }

    fn connection_closed(&self, reason: &'static str) {
        self.0.rooms.metrics.connection_closed(reason);
    }
}

const _: () = assert!(
    TOPIC_VIEW_BYTES + PARTITIONS_MAX as usize * PARTITION_VIEW_BYTES_MAX <= TOPICS_BYTES_MAX,
    "the largest topic fits a page"
);
