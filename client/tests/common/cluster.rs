//! Several scripted brokers under one roof: each accepts its own connections.
//!
//! Owns: who can be reached, and what each of them tells of the others.
//! Never: answers by itself, but for the handshake and questions about topics.

use super::*;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Connections that a scripted broker has not accepted yet; more are refused.
const CONNECTIONS_WAITING_MAX: usize = 64;

/// Where the brokers of a cluster can be reached: `b1`, `b2` and so on.
#[derive(Default)]
struct Hosts(Mutex<BTreeMap<String, mpsc::Sender<DuplexStream>>>);

impl Connector for Hosts {
    fn connect<'a>(&'a self, host: &'a str, _: u16) -> BoxFuture<'a, io::Result<Duplex>> {
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            let hosts = self.0.lock().unwrap();
            let reached = hosts.get(host).is_some_and(|host| host.try_send(theirs).is_ok());
            if reached {
                Ok(Duplex::from_stream(ours))
            } else {
                Err(io::ErrorKind::ConnectionRefused.into())
            }
        })
    }
}

/// What a scripted broker says of the cluster; each may say something else.
#[derive(Clone)]
pub struct Told {
    pub topic: TopicView,
    pub brokers: Vec<BrokerView>,
}

impl Told {
    /// A topic `orders` whose partitions these brokers lead, each in its term; 0 = nobody.
    fn new(leaders: &[(u64, u64)]) -> Self {
        let config = TopicConfig { partitions: leaders.len() as u32, ..TopicConfig::default() };
        let broker = |id: u64| BrokerView {
            id: BrokerId(id),
            host: format!("b{id}"),
            port: 7420,
            name: format!("weir-{id}"),
            rack: String::new(),
        };
        let mut told =
            Self { topic: topic("orders", config), brokers: (1..=3).map(broker).collect() };
        for (partition, (leader, term)) in leaders.iter().enumerate() {
            told.leads(partition, *leader, *term);
        }
        told
    }

    pub fn leads(&mut self, partition: usize, leader: u64, term: u64) {
        let view = &mut self.topic.partitions[partition];
        view.leader = Some(BrokerId(leader)).filter(|leader| leader.0 > 0);
        view.term = Term(term);
        view.replicas = self.brokers.iter().map(|broker| broker.id).collect();
    }
}

/// One broker of a cluster: a task that shakes hands and answers METADATA; all else is the test's.
pub struct Broker {
    pub id: u64,
    incoming: mpsc::Receiver<DuplexStream>,
    told: Arc<Mutex<Told>>,
    pub cluster_id: u128,
}

/// Three brokers that tell the same, at first.
pub struct Cluster {
    hosts: Arc<Hosts>,
    /// By broker.
    told: [Arc<Mutex<Told>>; 3],
}

impl Cluster {
    /// Three brokers, all of them up, with a topic `orders` whose partitions these of them lead,
    /// each in its term; 0 = nobody.
    pub fn new(leaders: &[(u64, u64)]) -> (Self, [Broker; 3]) {
        let told = [(); 3].map(|()| Arc::new(Mutex::new(Told::new(leaders))));
        let cluster = Self { hosts: Arc::default(), told };
        let brokers = [1, 2, 3].map(|id| cluster.start(id));
        (cluster, brokers)
    }

    /// A broker that can be reached from now on.
    pub fn start(&self, id: u64) -> Broker {
        let (sender, incoming) = mpsc::channel(CONNECTIONS_WAITING_MAX);
        self.hosts.0.lock().unwrap().insert(format!("b{id}"), sender);
        let told = self.told[id as usize - 1].clone();
        Broker { id, incoming, told, cluster_id: 1 }
    }

    /// Nobody reaches this broker any more; its connections are the test's to drop.
    pub fn stop(&self, id: u64) {
        self.hosts.0.lock().unwrap().remove(&format!("b{id}"));
    }

    /// What every broker tells from now on.
    pub fn tell(&self, change: impl Fn(&mut Told)) {
        self.told.iter().for_each(|told| change(&mut told.lock().unwrap()));
    }

    /// What one broker tells from now on.
    pub fn tell_at(&self, id: u64, change: impl FnOnce(&mut Told)) {
        change(&mut self.told[id as usize - 1].lock().unwrap());
    }

    /// A client that was given these brokers to begin with.
    pub fn client(&self, endpoints: &[u64]) -> impl Future<Output = weir_client::Result<Client>> {
        Client::builder()
            .endpoints(endpoints.iter().map(|id| format!("weir://b{id}:7420")))
            .name("test")
            .seed(7)
            .connector(self.hosts.clone())
            .wall_clock(Arc::new(FixedClock))
            .connect()
    }
}

impl Broker {
    /// The next connection, behind its handshake.
    pub async fn accept(&mut self) -> Peer {
        self.try_accept().await.expect("the client says hello")
    }

    /// The same; none when the client gave up in between.
    pub async fn try_accept(&mut self) -> Option<Peer> {
        let stream = self.incoming.recv().await.expect("the client connects");
        let told = self.told.clone();
        let mut peer = Peer::new(stream, told.lock().unwrap().topic.clone());
        peer.told = Some(told);
        let welcome = Welcome {
            cluster_id: self.cluster_id,
            broker_id: BrokerId(self.id),
            broker_name: format!("weir-{}", self.id),
            ..welcome()
        };
        peer.shake_hands(welcome).await.then_some(peer)
    }

    /// Whether nobody connects for this long.
    pub async fn is_left_alone(&mut self, for_ms: u64) -> bool {
        let limit = std::time::Duration::from_millis(for_ms);
        tokio::time::timeout(limit, self.incoming.recv()).await.is_err()
    }
}

/// What a broker that does not lead says, and who does in which term.
pub fn not_leader(leader: Option<(u64, u64)>) -> Refusal {
    let leader = leader.map(|(broker, term)| (BrokerId(broker), Term(term)));
    Refusal::not_leader(leader, "scripted")
}
