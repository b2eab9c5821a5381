use super::*;
use crate::config::{Config, Overrides};
use crate::replication::metadata::{
    Address, FOUNDER, LossReason, Metadata, MetadataOptions, MetadataStep, State, Verdict,
};
use crate::replication::{Birth, Durability, Pace, PeerLost, ReplicaOptions, Wiring};
use crate::seams::OsWallClock;
use weir_protocol::types::{Index, ReplicaId};
use weir_storage::{Device, LogOptions};

/// Longer than anything here takes, in a time of its own.
const LONG: Duration = Duration::from_secs(60);

/// Brokers by the address of their peers, and a metadata that all of them share.
#[derive(Default)]
struct Net {
    brokers: Mutex<BTreeMap<String, Arc<Cluster>>>,
    state: Mutex<Option<State>>,
    /// Answers that get lost.
    losses: Mutex<usize>,
}

struct Way(Arc<Net>);

impl Net {
    fn lose(&self) -> bool {
        let mut losses = self.losses.lock().unwrap();
        let lost = *losses > 0;
        *losses = losses.saturating_sub(1);
        lost
    }

    fn judge(&self, question: &Question) -> Result<ForwardedAnswer, Refusal> {
        let Question::Command(bytes) = question else { panic!("{question:?}") };
        let mut state = self.state.lock().unwrap();
        let outcome = state.as_mut().unwrap().apply(&Command::decode(bytes).unwrap());
        Ok(ForwardedAnswer::Applied(Verdict { applied: Index(1), outcome }.encode().into()))
    }
}

impl Asks for Way {
    fn ask(
        &self,
        _to: BrokerId,
        _ask: Ask,
        _within: Duration,
    ) -> BoxFuture<'static, Result<Answer, PeerLost>> {
        unreachable!("nobody has an id to be asked by")
    }

    fn ask_at(
        &self,
        address: &str,
        ask: Ask,
        within: Duration,
    ) -> BoxFuture<'static, Result<Answer, PeerLost>> {
        let (net, address) = (self.0.clone(), address.to_owned());
        let asked = async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let there = net.brokers.lock().unwrap().get(&address).cloned();
            let there = there.ok_or(PeerLost::Unreachable)?;
            let answer = match ask {
                Ask::Probe => Answer::Probed(there.probed()),
                Ask::Form(form) => Answer::Formed(there.form(form).await),
                Ask::Forward(question, _) => Answer::Forwarded(net.judge(&question)),
                Ask::Fetch(_) => unreachable!("nothing to repair"),
            };
            if net.lose() { Err(PeerLost::Broken) } else { Ok(answer) }
        };
        async move { tokio::time::timeout(within, asked).await.unwrap_or(Err(PeerLost::Broken)) }
            .boxed()
    }
}

/// All work of the device happens where it is submitted: paused time would not wait for a thread.
#[derive(Debug)]
struct Here;

impl Executor for Here {
    fn submit(&self, _lane: Lane, job: weir_storage::Job) {
        job();
    }
}

/// A data directory and what its broker is told.
struct Home {
    folder: tempfile::TempDir,
    port: u16,
    seeds: &'static str,
}

impl Home {
    fn new(port: u16, seeds: &'static str) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), port, seeds }
    }

    /// Starts a broker there; it is found from now on.
    fn start(&self, net: &Arc<Net>) -> (Arc<Cluster>, tokio::task::JoinHandle<()>) {
        let overrides = Overrides {
            data_dir: Some(self.folder.path().to_owned()),
            seeds: Some(self.seeds.to_owned()),
            peers: Some(([127, 0, 0, 1], self.port).into()),
            ..Overrides::default()
        };
        let config = Config::load(None, [], &overrides).unwrap();
        let seams = Seams { executor: Arc::new(Here), ..Seams::os(&config).unwrap() };
        let settings = config.cluster().unwrap().clone();
        let cluster = Cluster::open(settings, &seams, self.folder.path()).unwrap();
        let address = format!("127.0.0.1:{}", self.port);
        net.brokers.lock().unwrap().insert(address, cluster.clone());
        let (here, way) = (cluster.clone(), Arc::new(Way(net.clone())));
        let belongs = task::spawn("belong", TaskKind::Connection, async move {
            here.belong(way).await.unwrap();
        });
        (cluster, belongs)
    }

    fn stop(&self, net: &Net) {
        net.brokers.lock().unwrap().remove(&format!("127.0.0.1:{}", self.port));
    }
}

const SEEDS: &str = "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3";

async fn done(belongs: tokio::task::JoinHandle<()>) {
    tokio::time::timeout(LONG, belongs).await.expect("it belongs nowhere").unwrap();
}

#[tokio::test(start_paused = true)]
async fn three_empty_brokers_form_one_cluster_though_answers_are_lost() {
    let net = Arc::new(Net::default());
    *net.losses.lock().unwrap() = 9;
    let homes = [3, 1, 2].map(|port| Home::new(port, SEEDS));
    let mut started = Vec::new();
    for home in &homes {
        started.push(home.start(&net));
        assert_eq!(started[0].0.identity().state, MemberState::Empty, "nobody starts without all");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let mut identities = Vec::new();
    for (cluster, belongs) in started {
        done(belongs).await;
        let node = cluster.node().borrow().clone();
        let identity = cluster.identity();
        assert_eq!((node.cluster, node.broker), (identity.cluster, identity.broker));
        identities.push(identity);
    }
    identities.sort_by_key(|identity| identity.broker);
    for (identity, number) in identities.iter().zip(1..) {
        assert_eq!((identity.cluster, identity.broker), (identities[0].cluster, BrokerId(number)));
        assert_eq!(identity.metadata_replica, ReplicaId(number));
    }
    // What was written is what they are after a restart, at once and without each other.
    net.brokers.lock().unwrap().clear();
    let (cluster, belongs) = homes[0].start(&net);
    done(belongs).await;
    assert_eq!(cluster.identity(), identities[2]);
}

/// Whom it asks for what damage took of its metadata it has to find first, though nothing that it
/// kept says where.
#[tokio::test(start_paused = true)]
async fn the_others_are_found_before_the_metadata_is_open() {
    let net = Arc::new(Net::default());
    let homes = [1, 2, 3].map(|port| Home::new(port, SEEDS));
    for (_, belongs) in homes.each_ref().map(|home| home.start(&net)) {
        done(belongs).await;
    }
    homes[2].stop(&net);
    let (cluster, belongs) = homes[2].start(&net);
    done(belongs).await;
    let others = [BrokerId(1), BrokerId(2)];
    let mut directory = cluster.directory();
    assert!(directory.borrow().is_empty(), "nothing was kept");
    let way: Arc<dyn Asks> = Arc::new(Way(net.clone()));
    let found = directory.wait_for(|known| others.iter().all(|id| known.contains_key(id)));
    let opening = tokio::time::timeout(LONG, found.map(drop));
    cluster.look_for_while(&others, way, opening).await.expect("nobody was found");
}

/// A start reads the log of the metadata from its checkpoint on: what it says first is old.
#[tokio::test(start_paused = true)]
async fn where_the_others_are_is_not_forgotten_for_what_the_metadata_said_long_ago() {
    let net = Arc::new(Net::default());
    let home = Home::new(1, "127.0.0.1:1");
    let (cluster, belongs) = home.start(&net);
    done(belongs).await;
    let mut state = State::default();
    state.apply(&cluster.identity().founding().unwrap()).unwrap();
    let first = state.catalog().clone();
    let peer = Address::new("b:2").unwrap();
    let other = BrokerFacts { token: 9, peer, ..cluster.facts() };
    state.apply(&Command::BrokerUp { broker: None, facts: other }).unwrap();
    state.apply(&Command::BrokerUp { broker: Some(FOUNDER), facts: cluster.facts() }).unwrap();
    cluster.keep_known(state.catalog()).await;
    let kept = || {
        let Place { disk, data_dir, .. } = &cluster.place;
        Known::read(&**disk, data_dir, cluster.identity().cluster).brokers.len()
    };
    assert_eq!(kept(), 2);
    cluster.keep_known(&first).await;
    assert_eq!(kept(), 2);
}

/// A cluster of one broker that answers.
async fn founded(net: &Arc<Net>) -> (Home, Arc<Cluster>) {
    let home = Home::new(1, "127.0.0.1:1");
    let (founder, belongs) = home.start(net);
    done(belongs).await;
    let mut state = State::default();
    state.apply(&founder.identity().founding().unwrap()).unwrap();
    state.apply(&Command::BrokerUp { broker: Some(FOUNDER), facts: founder.facts() }).unwrap();
    *net.state.lock().unwrap() = Some(state);
    (home, founder)
}

#[tokio::test(start_paused = true)]
async fn a_broker_joins_a_cluster_that_is_there_and_keeps_its_id_when_answers_are_lost() {
    let net = Arc::new(Net::default());
    let (_lonely, founder) = founded(&net).await;

    let home = Home::new(9, "127.0.0.1:1");
    let (cluster, belongs) = home.start(&net);
    tokio::time::sleep(Duration::from_millis(2)).await;
    // The probe came back; what is lost is the id.
    *net.losses.lock().unwrap() = 3;
    done(belongs).await;
    let identity = cluster.identity();
    assert_eq!((identity.cluster, identity.broker), (founder.identity().cluster, BrokerId(2)));
    assert_eq!((identity.state, identity.metadata_replica), (MemberState::Member, ReplicaId(2)));
    assert_eq!(cluster.directory().borrow().get(&FOUNDER).map(String::as_str), Some("127.0.0.1:1"));
    let cards = net.state.lock().unwrap().as_ref().unwrap().catalog().brokers.len();
    assert_eq!(cards, 2, "asked again it is the same broker");
    home.stop(&net);
    let (again, belongs) = home.start(&net);
    done(belongs).await;
    assert_eq!(again.identity(), identity);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_was_removed_learns_it_and_asks_for_no_place() {
    let net = Arc::new(Net::default());
    let (lonely, _) = founded(&net).await;
    let home = Home::new(9, "127.0.0.1:1");
    let (cluster, belongs) = home.start(&net);
    done(belongs).await;
    let way: Arc<dyn Asks> = Arc::new(Way(net.clone()));
    cluster.check_place(way.clone()).await.unwrap();

    let Identity { broker, metadata_replica: replica, .. } = cluster.identity();
    let gone = Command::StepMetadata { replica, step: MetadataStep::Gone };
    for command in [gone, Command::RemoveBroker { broker }] {
        net.state.lock().unwrap().as_mut().unwrap().apply(&command).unwrap();
    }
    let told = |error: IdentityError| match error {
        IdentityError::Removed { broker: removed, told_by } => {
            assert_eq!((removed, told_by.as_str()), (broker, "127.0.0.1:1"));
        }
        other => panic!("{other}"),
    };
    told(cluster.check_place(way.clone()).await.unwrap_err());
    let place = cluster.replace_metadata(LossReason::Empty, way.clone());
    let place = tokio::time::timeout(LONG, place).await.expect("it asks for ever");
    told(place.unwrap_err());
    // Nobody there to say so is no removal.
    lonely.stop(&net);
    cluster.check_place(way).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_member_takes_no_place_elsewhere_and_answers_no_question_before_its_metadata() {
    let net = Arc::new(Net::default());
    let home = Home::new(1, "127.0.0.1:1");
    let (cluster, belongs) = home.start(&net);
    done(belongs).await;
    let Identity { cluster: id, broker, .. } = cluster.identity();
    let offer = |cluster| Form { request: RequestId(0), cluster, broker, seeds: Vec::new() };
    assert_eq!(cluster.form(offer(id ^ 1)).await, Err(PeerRefusal::WrongCluster));
    assert_eq!(cluster.form(offer(id)).await, Ok(()));
    let early = cluster.forward(Question::ReadIndex, LONG).await;
    assert_eq!(early.unwrap_err().code, ErrorCode::Recovering.number());
}

/// Opens the metadata of a broker that is the only voter, as its identity says.
async fn open_metadata(cluster: &Cluster) -> Metadata {
    let (identity, place) = (cluster.identity(), &cluster.place);
    let device = Device::open(place.disk.clone(), Arc::new(Here), &place.data_dir, 1).unwrap();
    let replica = ReplicaOptions {
        replica: identity.metadata_replica,
        birth: identity.metadata_birth(),
        voters: identity.metadata_voters(),
        dir: place.data_dir.join("metadata"),
        device,
        log: LogOptions { uuid: identity.metadata_uuid(), ..LogOptions::default() },
        durability: Durability::Fsync,
        loss_accepted: false,
        boot_id: 1,
        seed: 1,
        pace: Pace::METADATA,
        wiring: Wiring::alone(),
    };
    let (founding, wall) = (identity.founding(), Arc::new(OsWallClock));
    Metadata::open(MetadataOptions { replica, founding, wall }).await.unwrap()
}

#[tokio::test]
async fn a_member_makes_itself_known_and_remembers_that_its_metadata_was_there() {
    let net = Arc::new(Net::default());
    let home = Home::new(1, "127.0.0.1:1");
    let (cluster, belongs) = home.start(&net);
    done(belongs).await;
    assert_eq!(cluster.identity().metadata_birth(), Birth::Forms);
    let metadata = open_metadata(&cluster).await;
    let way = Arc::new(Way(net.clone()));
    let client = MetadataClient::new(metadata, FOUNDER, way.clone());
    cluster.attend(client.clone(), way);
    let facts = cluster.facts();
    let told = |catalog: &Arc<Catalog>| catalog.brokers[&FOUNDER].facts.as_ref() == Some(&facts);
    let mut catalogs = client.watch();
    let is_told = catalogs.wait_for(told).map(drop);
    tokio::time::timeout(LONG, is_told).await.expect("it never made itself known");
    let mut identity = cluster.identity.subscribe();
    let opened = identity.wait_for(|identity| identity.is_opened).map(drop);
    tokio::time::timeout(LONG, opened).await.expect("it never noted its metadata");
    let answer = cluster.forward(Question::ReadIndex, LONG).await;
    assert!(matches!(answer, Ok(ForwardedAnswer::ReadIndex(_))), "{answer:?}");
    let mut directory = cluster.directory();
    let found = |known: &Directory| known.get(&FOUNDER).is_some_and(|at| at == "127.0.0.1:1");
    tokio::time::timeout(LONG, directory.wait_for(found)).await.expect("not found").unwrap();
    client.stop().await;
    let (again, belongs) = home.start(&net);
    done(belongs).await;
    assert_eq!(again.identity().metadata_birth(), Birth::Continues);
    assert_eq!(again.identity().metadata_voters(), []);
}
