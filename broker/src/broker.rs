//! One broker: its rooms in the order in which they start and stop.
//!
//! Owns: starting, readiness, draining.
//! Never: a decision of any room.
//! Invariant: what was started is stopped in the opposite order, and a drain ends by its deadline.

mod standing;

use crate::admin::{self, AdminServer, AdminView, ClusterAccess, Front};
use crate::budget::{Account, Budget, DoesNotFit, Part};
use crate::catalog::{Catalog, CatalogBackend, Rooms, ScrubPace};
use crate::config::Config;
use crate::connection::{BrokerIdentity, Services};
use crate::flow::Flow;
use crate::identity::{Identity, IdentityError};
use crate::log_limit::LogLimit;
use crate::metrics::{Metrics, UPKEEP_EVERY};
use crate::peer::PEER_MEMORY_BYTES_MIN;
use crate::replication::metadata::{GATE_HERE, OpenMetadataError};
use crate::seams::Seams;
use crate::server::{ListenError, Server, ServerOptions};
use crate::task::{self, TaskKind};
use futures_util::FutureExt;
use standing::{Among, Standing};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use weir_protocol::frame::PeerLimits;
use weir_protocol::limits::{
    BATCH_OVERHEAD_BYTES, FIELDS_BYTES_MAX, FRAME_HEADER_BYTES, HEARTBEAT_MS as PEER_HEARTBEAT_MS,
    REQUESTS_PER_CONNECTION_MAX, STREAMS_PER_CONNECTION_MAX,
};
use weir_storage::{Device, DeviceError};

/// Memory that connections draw from, as a share of the budget.
const CONNECTION_SHARE: u64 = 4;
/// Frames of other brokers are held on account of this part, a share of the budget.
const PEER_MEMORY: &str = "peer frames";
const PEER_SHARE: u64 = 8;
/// Of a drain's time, this share may go by until others lead what this broker led.
const HANDOVER_SHARE_PERCENT: u32 = 40;
/// Of what is left then, this share is the connections'; the rest closes the logs.
const DRAIN_SHARE_PERCENT: u32 = 80;

/// Where a broker listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// For clients.
    pub native: SocketAddr,
    /// For metrics, health and the admin API.
    pub admin: SocketAddr,
    /// For other brokers, where this one is not alone.
    pub peers: Option<SocketAddr>,
}

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Who this broker is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The metadata.
    #[error(transparent)]
    Metadata(#[from] OpenMetadataError),
    /// The memory budget.
    #[error(transparent)]
    Memory(#[from] DoesNotFit),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The cluster has passed a gate that this broker does not read.
    #[error(
        "the cluster has passed gate {passed}, and this broker reads up to {reads}; start a build \
         that reads it, or remove cluster.gate_max"
    )]
    GatePassed {
        /// The committed gate.
        passed: u32,
        /// What this broker says that it reads.
        reads: u32,
    },
    /// An empty broker that is held where there are no clusters.
    #[error(
        "cluster.gate_max = {0} holds this broker before clusters, so that it can neither form nor \
         join one; remove it, or remove cluster.seeds"
    )]
    HeldBack(u32),
}

/// A running broker.
pub struct Broker {
    addresses: Addresses,
    server: Server,
    admin: AdminServer,
    catalog: Arc<Catalog>,
    among: Option<Among>,
    draining: watch::Sender<bool>,
    stopped: CancellationToken,
    drain_timeout: Duration,
}

impl Broker {
    /// Starts a broker. It serves when this returns.
    pub async fn start(config: Config, seams: Seams) -> Result<Self, StartError> {
        // What is inside nests so deep that the future of an application that embeds a broker
        // would be too deep for the compiler; the box ends that.
        Self::open(config, seams).boxed().await
    }

    async fn open(config: Config, seams: Seams) -> Result<Self, StartError> {
        let started = Instant::now();
        let accounts = Accounts::plan(&config)?;
        let device = Device::open(
            seams.disk.clone(),
            seams.executor.clone(),
            config.data_dir(),
            seams.seed,
        )?;
        let metrics = Metrics::new(&config.name, config.metrics_topics_max);
        let flushed = metrics.clone();
        device.observe_flushes(Arc::new(move |took, bytes| flushed.flushed(took, bytes)));
        let front = Front::default();
        let wall = seams.wall.clone();
        let admin = admin::start(&*seams.network, config.admin, front.clone(), wall).await?;
        let here = Here { config, seams, accounts, device, metrics, front };
        let risen = match here.rise().await {
            Ok(risen) => risen,
            Err(error) => {
                here.front.settles(None);
                admin.stop().await;
                return Err(error);
            }
        };
        let Here { config, metrics, .. } = here;
        let Risen { server, catalog, among, draining } = risen;
        let stopped = CancellationToken::new();
        start_upkeep(metrics, stopped.clone());
        let peers = among.as_ref().map(|among| among.room.address());
        let addresses = Addresses { native: server.address(), admin: admin.address(), peers };
        tracing::info!(
            native = %addresses.native, admin = %addresses.admin,
            data_dir = %config.data_dir().display(), took_ms = started.elapsed().as_millis() as u64,
            "ready"
        );
        let drain_timeout = config.drain_timeout;
        Ok(Self { addresses, server, admin, catalog, among, draining, stopped, drain_timeout })
    }

    /// Where it listens, with real ports.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Stops in order: others lead, nobody new, what is accepted is answered, peers leave, logs are
    /// closed. Ends within `shutdown.drain_timeout`.
    pub async fn drain(self) {
        let deadline = Instant::now() + self.drain_timeout;
        self.draining.send_replace(true);
        let given = Instant::now() + self.drain_timeout * HANDOVER_SHARE_PERCENT / 100;
        self.catalog.give_up_leaderships(given).await;
        let left = deadline - Instant::now();
        let cut = self.server.drain(left * DRAIN_SHARE_PERCENT / 100).await;
        if cut > 0 {
            tracing::warn!(cut, "connections were cut off because they did not leave in time");
        }
        if tokio::time::timeout_at(deadline, self.catalog.stop()).await.is_err() {
            tracing::warn!("partitions did not stop in time; recovery will find what was flushed");
        }
        if let Some(among) = self.among {
            among.room.drain(deadline).await;
        }
        self.stopped.cancel();
        self.admin.stop().await;
        tracing::info!("drained");
    }
}

/// What a broker rises from.
struct Here {
    config: Config,
    seams: Seams,
    accounts: Accounts,
    device: Arc<Device>,
    metrics: Arc<Metrics>,
    front: Front,
}

/// What serves.
struct Risen {
    server: Server,
    catalog: Arc<Catalog>,
    among: Option<Among>,
    draining: watch::Sender<bool>,
}

impl Here {
    /// Finds out who this broker is, opens what it holds, and listens to clients.
    async fn rise(&self) -> Result<Risen, StartError> {
        let Self { config, seams, accounts, device, metrics, front } = self;
        let standing = Standing::find((config, front), seams, accounts, device).await?;
        let flow = Flow::new(config.pool_cost);
        let draining = watch::Sender::new(false);
        let metadata = standing.metadata.clone();
        let around = (flow.clone(), metrics.clone(), draining.subscribe());
        let rooms = rooms(config, seams, device, &standing, around);
        let catalog = Catalog::open(metadata, rooms).await;
        let services = accounts.services(config, standing.identity, flow.clone(), catalog.clone());
        let server = match start_server(config, seams, services.clone()).await {
            Ok(server) => server,
            Err(error) => {
                // Whoever tries again in this process finds the data directory free.
                catalog.stop().await;
                return Err(error.into());
            }
        };
        catalog.advertise(server.address());
        front.settles(Some(AdminView {
            catalog: catalog.clone(),
            flow,
            metrics: metrics.clone(),
            server: server.clone(),
            device: device.clone(),
            services,
            draining: draining.subscribe(),
            cluster: cluster_access(config, &standing),
        }));
        Ok(Risen { server, catalog, among: standing.among, draining })
    }
}

/// Parts of the memory budget.
struct Accounts {
    budget: Budget,
}

impl Accounts {
    fn plan(config: &Config) -> Result<Self, DoesNotFit> {
        let mut parts = vec![Part { name: "publish credit", bytes: config.pool_cost }];
        if config.cluster().is_some() {
            let bytes = (config.memory_bytes / PEER_SHARE).max(PEER_MEMORY_BYTES_MIN);
            parts.push(Part { name: PEER_MEMORY, bytes });
        }
        parts.extend(Services::parts(config.memory_bytes / CONNECTION_SHARE));
        let budget = Budget::plan(config.memory_bytes, parts)?;
        budget.log();
        Ok(Self { budget })
    }

    fn account(&self, name: &str) -> Arc<Account> {
        let part = self.budget.parts().iter().find(|part| part.name == name);
        Account::new(*part.expect("the plan names every part"))
    }

    fn services(
        &self,
        config: &Config,
        identity: Identity,
        flow: Arc<Flow>,
        catalog: Arc<Catalog>,
    ) -> Arc<Services> {
        Arc::new(Services {
            backend: Arc::new(CatalogBackend(catalog)),
            flow,
            identity: BrokerIdentity {
                cluster_id: identity.cluster,
                broker_id: identity.broker,
                broker_name: config.name.clone(),
            },
            limits: limits_of(config),
            read_buffers: self.account("read buffers"),
            request_memory: self.account("requests"),
            stream_memory: self.account("streams"),
            failures: LogLimit::new(),
        })
    }
}

fn limits_of(config: &Config) -> PeerLimits {
    let frame_bytes =
        FRAME_HEADER_BYTES + FIELDS_BYTES_MAX + config.message_bytes_max + BATCH_OVERHEAD_BYTES;
    PeerLimits {
        frame_bytes_max: frame_bytes as u32,
        message_bytes_max: config.message_bytes_max as u32,
        streams_max: STREAMS_PER_CONNECTION_MAX as u32,
        requests_max: REQUESTS_PER_CONNECTION_MAX as u32,
        heartbeat_ms: PEER_HEARTBEAT_MS,
    }
}

fn rooms(
    config: &Config,
    seams: &Seams,
    device: &Arc<Device>,
    standing: &Standing,
    (flow, metrics, draining): (Arc<Flow>, Arc<Metrics>, watch::Receiver<bool>),
) -> Rooms {
    Rooms {
        device: device.clone(),
        flow,
        metrics,
        wall: seams.wall.clone(),
        data_dir: config.data_dir.clone(),
        broker: standing.identity.broker,
        cluster: standing.identity.cluster,
        name: config.name.clone(),
        seed: seams.seed,
        boot_id: seams.boot_id,
        scrub: ScrubPace {
            bytes_per_second: config.scrub_bytes_per_second,
            interval: config.scrub_interval,
        },
        wiring: standing.wiring.clone(),
        reads: config.cluster().map_or(GATE_HERE, |settings| settings.gate),
        leaders: standing.leaders.clone(),
        announce: standing.announce(),
        draining,
        lead_changed: Arc::default(),
        belonged: standing.belonged,
        metadata_voters: standing.among.as_ref().map(|among| among.metadata_voters),
    }
}

fn cluster_access(config: &Config, standing: &Standing) -> ClusterAccess {
    ClusterAccess {
        metadata: standing.metadata.clone(),
        leaders: standing.leaders.clone(),
        broker: standing.identity.broker,
        name: config.name.clone(),
        room: standing.among.as_ref().map(|among| among.room.clone()),
    }
}

async fn start_server(
    config: &Config,
    seams: &Seams,
    services: Arc<Services>,
) -> Result<Server, ListenError> {
    let options = ServerOptions {
        listen: config.native,
        // The configuration has decided about public addresses already.
        insecure: true,
        connections_max: config.connections,
        seed: seams.seed,
    };
    Server::start(&*seams.network, services, options).await
}

fn start_upkeep(metrics: Arc<Metrics>, stopped: CancellationToken) {
    let upkeep = async move {
        while stopped.run_until_cancelled(tokio::time::sleep(UPKEEP_EVERY)).await.is_some() {
            metrics.upkeep();
        }
    };
    // Nobody waits for it: it holds nothing but the counters.
    drop(task::spawn("metrics upkeep", TaskKind::Connection, upkeep));
}
