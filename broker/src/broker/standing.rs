//! What this broker is to others before it opens what it holds.
//!
//! Owns: the order: the peers' listener, who this broker is, the metadata.
//! Never: decides any of it.

use super::{Accounts, StartError};
use crate::admin::Front;
use crate::cluster::leaders::LeaderBoard;
use crate::cluster::{Cluster, METADATA_FOLDER, MetadataClient};
use crate::config::{ClusterSettings, Config};
use crate::identity::Identity;
use crate::peer::ask::Answers;
use crate::peer::{PeerOptions, PeerRoom};
use crate::replication::metadata::{
    Catalog, GATE_CLUSTER, Metadata, MetadataOptions, OpenMetadataError,
};
use crate::replication::{Durability, Gate, Pace, ReplicaOptions, Switchboard, Wiring, repair};
use crate::seams::{BoxFuture, Seams, on_lane};
use std::sync::Arc;
use tokio::time::{Duration, Instant};
use weir_protocol::frame::Refusal;
use weir_protocol::peer::{
    Fetch, FetchedBatches, Form, ForwardedAnswer, MemberState, News, PeerRefusal, Probed, Question,
};
use weir_protocol::types::{BrokerId, ReplicaId};
use weir_storage::{Device, Executor, Lane, LogOptions};

/// How long a start waits for the newest metadata before it goes on with what it has.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(30);

/// This broker, alone or among others.
pub(super) struct Standing {
    pub(super) identity: Identity,
    /// Whether it had a place in its cluster before this start.
    pub(super) belonged: bool,
    pub(super) metadata: MetadataClient,
    pub(super) wiring: Wiring,
    pub(super) leaders: Arc<LeaderBoard>,
    pub(super) among: Option<Among>,
}

/// What a broker has that is one of several.
pub(super) struct Among {
    pub(super) room: Arc<PeerRoom>,
    /// How many voters the metadata shall have; 0 = as many as fit the brokers.
    pub(super) metadata_voters: u8,
    _ties: Ties,
}

/// Through what peers are answered, which holds replicas, whose ways to peers hold it in turn.
/// Dropping this unties them, so that a broker that is dropped lets go of its logs.
struct Ties {
    cluster: Arc<Cluster>,
    switchboard: Switchboard,
}

impl Drop for Ties {
    fn drop(&mut self) {
        self.cluster.depart();
        self.switchboard.clear();
    }
}

impl Standing {
    /// Finds out who this broker is. With others it takes as long as they need to be there.
    pub(super) async fn find(
        (config, front): (&Config, &Front),
        seams: &Seams,
        accounts: &Accounts,
        device: &Arc<Device>,
    ) -> Result<Self, StartError> {
        let before = Identity::read(&*seams.disk, config.data_dir())?;
        let belonged = before.is_some_and(|before| before.cluster != 0);
        match config.cluster() {
            None => Self::alone((config, belonged), seams, device).await,
            Some(settings) => {
                let cluster = Cluster::open(settings.clone(), seams, config.data_dir())?;
                front.forms(&cluster);
                let config = (config, settings, belonged);
                Self::among(config, cluster, (seams, accounts), device).await
            }
        }
    }

    async fn alone(
        (config, belonged): (&Config, bool),
        seams: &Seams,
        device: &Arc<Device>,
    ) -> Result<Self, StartError> {
        let random = fastrand::Rng::with_seed(seams.seed).u128(..);
        let identity = Identity::open(&*seams.disk, config.data_dir(), random)?;
        let wiring = Wiring::alone();
        let voters = identity.metadata_voters();
        let metadata = open_metadata(config, seams, device, (identity, voters, &wiring)).await?;
        let metadata = MetadataClient::alone(metadata, identity.broker);
        let leaders = Arc::default();
        Ok(Self { identity, belonged, metadata, wiring, leaders, among: None })
    }

    async fn among(
        (config, settings, belonged): (&Config, &ClusterSettings, bool),
        cluster: Arc<Cluster>,
        (seams, accounts): (&Seams, &Accounts),
        device: &Arc<Device>,
    ) -> Result<Self, StartError> {
        let is_alone_so_far = cluster.identity().state != MemberState::Member;
        if settings.gate < GATE_CLUSTER && is_alone_so_far {
            return Err(StartError::HeldBack(settings.gate));
        }
        let switchboard = Switchboard::default();
        let ties = Ties { cluster: cluster.clone(), switchboard: switchboard.clone() };
        let leaders: Arc<LeaderBoard> = Arc::default();
        let answers = PeerAnswers {
            cluster: cluster.clone(),
            leaders: leaders.clone(),
            switchboard: switchboard.clone(),
            executor: seams.executor.clone(),
        };
        let options = PeerOptions {
            listen: settings.listen,
            secret: settings.secret.clone(),
            me: cluster.node(),
            directory: cluster.directory(),
            memory: accounts.account(super::PEER_MEMORY),
            switchboard: switchboard.clone(),
            catch_up_bytes_per_s: settings.catch_up_bytes_per_s,
            answers: Arc::new(answers),
            seed: seams.seed,
        };
        let room = PeerRoom::start(seams, options).await?;
        let identity = cluster.belong(room.asks()).await?;
        let (peers, asks) = (room.peers(), room.asks());
        let wiring = Wiring { peers, switchboard, asks, gate: Gate::default() };
        // An open log knows its voters; what was known of others tells whom to ask for what it lacks.
        let known = cluster.known_metadata();
        let has_others = !known.is_empty();
        let voters = if identity.is_opened { known } else { identity.metadata_voters() };
        let brokers: Vec<BrokerId> = voters.iter().map(|(_, broker)| *broker).collect();
        let opening = open_metadata(config, seams, device, (identity, voters, &wiring));
        let opened = cluster.look_for_while(&brokers, room.asks(), opening).await;
        let lost = opened.as_ref().err().and_then(OpenMetadataError::loss);
        let (identity, metadata) = match (opened, lost) {
            (Err(error), Some(reason)) if has_others => {
                tracing::error!(
                    %error, "the copy of the metadata here is lost; the cluster is asked for a \
                    place for another one, which is made of what the others have"
                );
                let identity = cluster.replace_metadata(reason, room.asks()).await?;
                let anew = (identity, identity.metadata_voters(), &wiring);
                (identity, open_metadata(config, seams, device, anew).await?)
            }
            (opened, _) => (identity, opened?),
        };
        // What this broker holds may be written in what it does not read.
        may_read(&metadata.catalog(), settings.gate)?;
        let metadata = MetadataClient::new(metadata, identity.broker, room.asks());
        cluster.attend(metadata.clone(), room.asks());
        // What is placed here may have changed while this broker was away.
        if let Err(error) = metadata.catch_up(CATCH_UP_WITHIN).await {
            tracing::warn!(%error, "the metadata may be old: nobody who leads it was found");
            // Who was removed finds nobody, for none of the others is in a group with it any more.
            cluster.check_place(wiring.asks.clone()).await?;
        }
        may_read(&metadata.catalog(), settings.gate)?;
        let metadata_voters = settings.metadata_voters;
        let among = Some(Among { room, metadata_voters, _ties: ties });
        Ok(Self { identity, belonged, metadata, wiring, leaders, among })
    }

    /// Where news of this broker go.
    pub(super) fn announce(&self) -> Arc<dyn Fn(News) + Send + Sync> {
        match &self.among {
            None => Arc::new(|_| {}),
            Some(among) => {
                let room = among.room.clone();
                Arc::new(move |news| room.announce(news))
            }
        }
    }
}

/// A gate never falls: who does not read what is behind it is too old for the cluster, for good.
fn may_read(catalog: &Catalog, reads: u32) -> Result<(), StartError> {
    let passed = catalog.gate;
    if passed > reads { Err(StartError::GatePassed { passed, reads }) } else { Ok(()) }
}

async fn open_metadata(
    config: &Config,
    seams: &Seams,
    device: &Arc<Device>,
    (identity, voters, wiring): (Identity, Vec<(ReplicaId, BrokerId)>, &Wiring),
) -> Result<Metadata, OpenMetadataError> {
    Metadata::open(MetadataOptions {
        replica: ReplicaOptions {
            replica: identity.metadata_replica,
            birth: identity.metadata_birth(),
            voters,
            dir: config.data_dir().join(METADATA_FOLDER),
            device: device.clone(),
            log: LogOptions { uuid: identity.metadata_uuid(), ..LogOptions::default() },
            durability: Durability::Fsync,
            loss_accepted: false,
            boot_id: seams.boot_id,
            seed: seams.seed,
            pace: Pace::METADATA,
            wiring: wiring.clone(),
        },
        founding: identity.founding(),
        wall: seams.wall.clone(),
    })
    .await
}

/// What other brokers are answered here.
struct PeerAnswers {
    cluster: Arc<Cluster>,
    leaders: Arc<LeaderBoard>,
    switchboard: Switchboard,
    executor: Arc<dyn Executor>,
}

impl Answers for PeerAnswers {
    fn probed(&self) -> Probed {
        self.cluster.probed()
    }

    fn form(&self, form: Form) -> BoxFuture<'static, Result<(), PeerRefusal>> {
        self.cluster.form(form)
    }

    fn forward(
        &self,
        question: Question,
        within: Duration,
    ) -> BoxFuture<'static, Result<ForwardedAnswer, Refusal>> {
        self.cluster.forward(question, within)
    }

    fn fetch(&self, fetch: Fetch) -> BoxFuture<'static, Result<FetchedBatches, PeerRefusal>> {
        let log = self.switchboard.log(fetch.address.to);
        let executor = self.executor.clone();
        Box::pin(async move {
            let log = log.ok_or(PeerRefusal::UnknownReplica)?;
            on_lane(&executor, Lane::Read, move || repair::fetch(&log, &fetch)).await
        })
    }

    fn news(&self, from: BrokerId, news: News) {
        self.leaders.note(from, &news, Instant::now());
    }
}
