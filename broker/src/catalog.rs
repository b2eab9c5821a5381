//! Which topics there are, and the partitions of them that are open here.
//!
//! Owns: the metadata handle, the table of open partitions, the one task that makes the table
//! follow the metadata, and the one that scrubs what is open.
//! Never: holds a lock over an await; stops the broker because one partition cannot be opened.
//! Invariants: only the follower task opens or stops a partition; a partition that failed is
//! refused with its reason until the broker is restarted or another replica takes its place, or,
//! where the disk was full, there is room.

mod backend;
mod changes;
mod follower;
mod forming;
mod handover;
mod keepers;
mod losses;
mod made;
mod mending;
mod news;
mod opening;
mod openings;
mod pages;
mod refused;
mod scrub;
mod sweep;
mod table;

pub(crate) use scrub::ScrubPace;
pub use table::{PartitionHere, PartitionState, TopicPartitions};

pub(crate) use backend::CatalogBackend;
pub(crate) use changes::config_of;

use crate::cluster::MetadataClient;
use crate::cluster::leaders::LeaderBoard;
use crate::flow::Flow;
use crate::metrics::Metrics;
use crate::partition::PartitionHandle;
use crate::replication::Wiring;
use crate::replication::metadata::Catalog as Topics;
use crate::seams::WallClock;
use crate::task::{self, TaskKind};
use made::Made;
use news::Newsroom;
use scrub::Scrubber;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use table::Table;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Duration;
use tokio_util::sync::CancellationToken;
use weir_protocol::peer::News;
use weir_protocol::types::BrokerId;
use weir_storage::{Device, Lane};

/// A start waits so long for what is being opened where there are others: what damage took may be on
/// a broker that is away, and the rest is to serve meanwhile.
const OPEN_WITHIN: Duration = Duration::from_secs(30);

/// What partitions are opened with.
pub(crate) struct Rooms {
    pub(crate) device: Arc<Device>,
    pub(crate) flow: Arc<Flow>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) wall: Arc<dyn WallClock>,
    pub(crate) data_dir: PathBuf,
    pub(crate) broker: BrokerId,
    /// The cluster that this broker belongs to, also before the metadata says so.
    pub(crate) cluster: u128,
    pub(crate) name: String,
    pub(crate) seed: u64,
    /// The run of the operating system.
    pub(crate) boot_id: u128,
    pub(crate) scrub: ScrubPace,
    pub(crate) wiring: Wiring,
    /// The gate that this broker tells others it reads.
    pub(crate) reads: u32,
    pub(crate) leaders: Arc<LeaderBoard>,
    /// Where news of this broker go.
    pub(crate) announce: Arc<dyn Fn(News) + Send + Sync>,
    /// Whether this broker is shutting down.
    pub(crate) draining: watch::Receiver<bool>,
    /// Told when a partition here begins to lead, or ceases to.
    pub(crate) lead_changed: Arc<Notify>,
    /// Whether this broker had a place in its cluster before this start.
    pub(crate) belonged: bool,
    /// How many voters the metadata shall have (0 = as many as fit the brokers); none where this
    /// broker is alone.
    pub(crate) metadata_voters: Option<u8>,
}

/// The topics of this broker.
pub struct Catalog {
    metadata: MetadataClient,
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
    /// on. Returns when each is open or has failed; among others after [`OPEN_WITHIN`] at the latest.
    pub(crate) async fn open(metadata: MetadataClient, rooms: Rooms) -> Arc<Self> {
        let rooms = Arc::new(rooms);
        let table = Arc::new(Table::default());
        let (shown_sender, shown) = watch::channel(0);
        let made = Arc::new(Made::open(&rooms, &metadata.catalog()).await);
        let here = (rooms.clone(), table.clone(), made);
        let follower = follower::Follower::new(here, metadata.clone(), shown_sender);
        task::spawn("catalog", TaskKind::Core, follower.follow());
        let mut caught_up = shown.clone();
        let open = caught_up.wait_for(|times| *times > 0 && !table.is_opening());
        // The sender lives as long as the follower, which ends only with the metadata.
        if rooms.metadata_voters.is_none() {
            let _ = open.await;
        } else if tokio::time::timeout(OPEN_WITHIN, open).await.is_err() {
            tracing::warn!("the start goes on while partitions are still being opened");
        }
        // All of them look for leaders at once: one after another would take an election each.
        let open = table.open();
        futures_util::future::join_all(open.iter().map(PartitionHandle::opened)).await;
        let stopped = CancellationToken::new();
        start_upkeep(&rooms, &table, &stopped);
        if rooms.metadata_voters.is_some() {
            let forming = forming::run(rooms.clone(), table.clone(), metadata.clone());
            start_until(&stopped, "forming", forming);
            if rooms.belonged {
                start_until(&stopped, "sweep", sweep::run(rooms.clone(), metadata.clone()));
            }
        }
        keepers::start(&rooms, &metadata, &stopped);
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
}

/// Nobody waits for what runs beside the partitions, and nobody relies on it.
fn start_upkeep(rooms: &Rooms, table: &Arc<Table>, stopped: &CancellationToken) {
    let scrubber = Scrubber {
        table: table.clone(),
        executor: rooms.device.executor().clone(),
        metrics: rooms.metrics.clone(),
        wall: rooms.wall.clone(),
        pace: rooms.scrub,
    };
    let newsroom = Newsroom {
        table: table.clone(),
        leaders: rooms.leaders.clone(),
        device: rooms.device.clone(),
        broker: rooms.broker,
        draining: rooms.draining.clone(),
        lead_changed: rooms.lead_changed.clone(),
        reads: rooms.reads,
        announce: rooms.announce.clone(),
    };
    start_until(stopped, "scrubber", scrubber.run());
    start_until(stopped, "news", newsroom.run());
}

fn start_until(
    stopped: &CancellationToken,
    name: &'static str,
    work: impl Future<Output = ()> + Send + 'static,
) {
    let stopped = stopped.clone();
    let until = async move {
        // None: it was stopped.
        let _ = stopped.run_until_cancelled(work).await;
    };
    drop(task::spawn(name, TaskKind::Connection, until));
}
