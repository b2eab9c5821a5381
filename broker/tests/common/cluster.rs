//! Several real brokers in this process that are one cluster, over TCP of the loopback.
//!
//! Owns: their ports, folders and lives; the line between a broker and the others, which can be cut.
//! Never: waits for a time: for what follows.
//! Invariants: a broker keeps its ports over its lives, so that seeds and clients find it again; each
//! has a runtime of its own, so that a kill ends all its tasks at once, as the end of its process
//! would.

use super::line::Line;
use super::{any_runtime, ask, end};
use serde_json::Value;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use weir_broker::config::Overrides;
use weir_broker::{Broker, Config, Seams, StartError};
use weir_client::{Client, Consumer, Publisher, Start, TopicConfig};
use weir_storage::DeviceError;

/// Elections, repairs and moves of replicas are over by then on however busy a machine.
pub const CLUSTER_PATIENCE: Duration = Duration::from_secs(60);
/// Below those that the operating system gives to who dials, so that nobody takes the port of a
/// broker that is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Of each broker; three are in one process.
const MEMORY_BYTES: u64 = 256 << 20;

/// Waits for `what` that a whole cluster has to do, but not for ever.
pub async fn at_last<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(CLUSTER_PATIENCE, future).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("waited {CLUSTER_PATIENCE:?} in vain: {what}"),
    }
}

/// Asks again until there is an answer.
pub async fn found<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let poll = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    at_last(what, poll).await
}

/// An address that nobody listens on.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16;
    loop {
        let number = first.wrapping_mul(64).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + number % (PORTS.end - PORTS.start);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// One broker: where it is, and whether it runs.
pub struct Member {
    pub name: String,
    pub folder: TempDir,
    pub native: SocketAddr,
    pub admin: SocketAddr,
    pub peers: SocketAddr,
    /// To the others.
    pub line: Line,
    /// What holds it back, if anything does.
    pub gate_max: Option<u32>,
    secret: Option<PathBuf>,
    life: Life,
}

enum Life {
    Off,
    Starting(Runtime, JoinHandle<Result<Broker, StartError>>),
    On(Runtime, Box<Broker>),
}

impl Member {
    /// A broker with an empty folder that does not run.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            folder: tempfile::tempdir().unwrap(),
            native: free_address(),
            admin: free_address(),
            peers: free_address(),
            line: Line::default(),
            gate_max: None,
            secret: None,
            life: Life::Off,
        }
    }

    /// It will know this secret.
    pub fn with_secret(mut self, secret: &str) -> Self {
        let path = self.folder.path().with_extension("secret");
        std::fs::write(&path, secret).unwrap();
        self.secret = Some(path);
        self
    }

    fn config(&self, seeds: &str) -> Config {
        let overrides = Overrides {
            data_dir: Some(self.folder.path().to_owned()),
            native: Some(self.native),
            admin: Some(self.admin),
            peers: Some(self.peers),
            seeds: Some(seeds.to_owned()).filter(|seeds| !seeds.is_empty()),
            ..Overrides::default()
        };
        let secret = self.secret.iter().map(|path| path.display().to_string());
        let secret = secret.map(|path| ("WEIR__CLUSTER__SECRET_FILE".to_owned(), path));
        let gate = self.gate_max.iter().map(u32::to_string);
        let gate = gate.map(|gate| ("WEIR__CLUSTER__GATE_MAX".to_owned(), gate));
        let environment = [("WEIR__NODE__NAME".to_owned(), self.name.clone())];
        let environment = environment.into_iter().chain(secret).chain(gate);
        let config = Config::load(None, environment, &overrides);
        config.unwrap().with_memory_bytes(MEMORY_BYTES)
    }

    /// Begins to start it. It is there when [`Member::ready`] returns; one that finds no others
    /// never is. Without seeds it is alone.
    pub fn begin(&mut self, seeds: &str) {
        assert!(matches!(self.life, Life::Off), "one life at a time");
        let (config, line, peers) = (self.config(seeds), self.line.clone(), self.peers);
        let runtime = any_runtime();
        let starting = runtime.spawn(async move {
            loop {
                let seams = Seams::os(&config).unwrap();
                let network = line.around(seams.network.clone(), peers);
                match Broker::start(config.clone(), Seams { network, ..seams }).await {
                    // The threads of an earlier life finish what they are at.
                    Err(StartError::Device(DeviceError::InUse(_))) => {}
                    started => return started,
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        self.life = Life::Starting(runtime, starting);
    }

    /// Waits until it serves.
    pub async fn ready(&mut self) {
        let life = std::mem::replace(&mut self.life, Life::Off);
        let Life::Starting(runtime, starting) = life else { panic!("it is not being started") };
        let broker = at_last(&format!("{} is ready", self.name), starting).await;
        self.life = Life::On(runtime, Box::new(broker.unwrap().unwrap()));
    }

    /// Starts it, and says why that does not work.
    pub async fn refusal(&mut self, seeds: &str) -> String {
        self.begin(seeds);
        let life = std::mem::replace(&mut self.life, Life::Off);
        let Life::Starting(runtime, starting) = life else { panic!("it is not being started") };
        let started = at_last(&format!("{} gives up", self.name), starting).await;
        end(runtime);
        started.unwrap().err().expect("it does not start").to_string()
    }

    pub async fn start(&mut self, seeds: &str) {
        self.begin(seeds);
        self.ready().await;
    }

    /// Ends it in the middle of whatever it does.
    pub fn kill(&mut self) {
        match std::mem::replace(&mut self.life, Life::Off) {
            Life::Off => {}
            Life::Starting(runtime, _) => end(runtime),
            Life::On(runtime, broker) => {
                end(runtime);
                drop(broker);
            }
        }
    }

    /// Stops it in order.
    pub async fn drain(&mut self) {
        let life = std::mem::replace(&mut self.life, Life::Off);
        let Life::On(runtime, broker) = life else { panic!("it does not serve") };
        at_last("a drain ends", runtime.spawn(broker.drain())).await.unwrap();
        end(runtime);
    }

    /// Takes all its data away, as a new disk would.
    pub fn wipe(&mut self) {
        assert!(matches!(self.life, Life::Off), "what runs is not wiped");
        self.folder = tempfile::tempdir().unwrap();
    }

    pub fn is_on(&self) -> bool {
        matches!(self.life, Life::On(..))
    }

    /// A client that knows of this broker alone.
    pub async fn client(&self) -> Client {
        client_of([self]).await
    }

    /// What its admin port answers, if that is JSON.
    pub async fn page(&self, path: &str) -> Option<Value> {
        let answer = ask(self.admin, path).await;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// What its admin port says of partition 0 of a topic; none until it knows the topic.
    pub async fn partition(&self, topic: &str) -> Option<Value> {
        self.page(&format!("/v1/topics/{topic}")).await?["partitions"].get(0).cloned()
    }

    /// The folders of the replicas that it holds, but for the metadata's.
    pub fn replica_folders(&self) -> Vec<PathBuf> {
        let rows = std::fs::read_dir(self.folder.path()).unwrap().map(|row| row.unwrap().path());
        let is_replica =
            |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("p-");
        rows.filter(is_replica).collect()
    }

    /// Every record that its own replica of partition 0 shows below `end`, from the log start on.
    pub async fn records(&self, topic: &str, end: u64) -> Vec<(u64, Vec<u8>)> {
        let client = self.client().await;
        let reader = client.reader(topic).from(Start::Earliest).any_replica().reach(0, end);
        let mut reader = at_last("a replica is read", reader.subscribe()).await.unwrap();
        let mut records = Vec::new();
        while records.last().is_none_or(|(offset, _)| offset + 1 < end) {
            let record = at_last("a record comes", reader.next()).await.unwrap().unwrap();
            records.push((record.offset(), record.payload().to_vec()));
        }
        records
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
        if let Some(secret) = &self.secret {
            let _ = std::fs::remove_file(secret);
        }
    }
}

async fn client_of<'a>(members: impl IntoIterator<Item = &'a Member>) -> Client {
    let endpoints = members.into_iter().map(|member| format!("weir://{}", member.native));
    let client = Client::builder().endpoints(endpoints).seed(7).connect();
    at_last("a client connects", client).await.unwrap()
}

/// Brokers that were told of each other.
pub struct Cluster {
    pub members: Vec<Member>,
    pub seeds: String,
}

impl Cluster {
    /// Three brokers that have formed a cluster.
    pub async fn form() -> Self {
        Self::form_of(["a", "b", "c"].map(Member::new).into()).await
    }

    /// The same, of these.
    pub async fn form_of(members: Vec<Member>) -> Self {
        let seeds: Vec<_> = members.iter().map(|member| member.peers.to_string()).collect();
        let mut cluster = Self { members, seeds: seeds.join(",") };
        for member in &mut cluster.members {
            member.begin(&cluster.seeds);
        }
        for member in &mut cluster.members {
            member.ready().await;
        }
        cluster
    }

    pub async fn start(&mut self, number: usize) {
        self.members[number].start(&self.seeds).await;
    }

    /// A client that knows of every broker.
    pub async fn client(&self) -> Client {
        client_of(&self.members).await
    }

    /// Creates a topic with three replicas, and waits until each is there.
    pub async fn create_topic(&self, topic: &str, max_bytes: Option<u64>) {
        let standard = TopicConfig::default();
        let max_bytes = max_bytes.unwrap_or(standard.max_bytes);
        let config = TopicConfig { replicas: 3, max_bytes, ..standard };
        let client = self.client().await;
        // Also while those who formed the cluster settle who leads its metadata.
        at_last("a topic is created", client.create_topic(topic, config)).await.unwrap();
        self.replicas_are_open(topic).await;
    }

    /// Waits until every broker that runs has an open replica of partition 0.
    pub async fn replicas_are_open(&self, topic: &str) {
        for member in self.members.iter().filter(|member| member.is_on()) {
            let what = format!("{} has a replica of {topic}", member.name);
            let is_open = async || {
                let state = member.partition(topic).await?["state"].as_str()?.to_owned();
                state.contains("leading").then_some(())
            };
            found(&what, is_open).await;
        }
    }

    /// The broker that leads partition 0, among those that run.
    pub async fn leader(&self, topic: &str) -> usize {
        let leads = async || {
            for (number, member) in self.members.iter().enumerate() {
                if member.is_on() && member.partition(topic).await?["state"] == "leading" {
                    return Some(number);
                }
            }
            None
        };
        found("somebody leads", leads).await
    }

    /// All replicas of partition 0 show the same bytes below `end`; returns them.
    pub async fn same_records(&self, topic: &str, end: u64) -> Vec<(u64, Vec<u8>)> {
        let mut all = Vec::new();
        for member in self.members.iter().filter(|member| member.is_on()) {
            all.push(member.records(topic, end).await);
        }
        let first = all.swap_remove(0);
        assert!(all.iter().all(|records| *records == first), "replicas of {topic} differ");
        first
    }
}

/// A publisher that is under way, and what it was told.
pub async fn publisher_of(client: &Client, topic: &str) -> Publisher {
    let publisher = client.publisher(topic).partition(0).idempotent("till");
    let publisher = publisher.deadline(CLUSTER_PATIENCE).build();
    at_last("a publisher opens", publisher).await.unwrap()
}

/// The next records of a consumer, up to the offset `end`.
pub async fn read_to(consumer: &mut Consumer, end: u64) -> Vec<(u64, Vec<u8>)> {
    let mut records: Vec<(u64, Vec<u8>)> = Vec::new();
    while records.last().is_none_or(|(offset, _)| offset + 1 < end) {
        let record = at_last("a record comes", consumer.next()).await.unwrap().unwrap();
        records.push((record.offset(), record.payload().to_vec()));
    }
    records
}

/// Whether these replicas, as an admin page lists them, are three that vote.
pub fn are_three_voters(replicas: &Value) -> bool {
    let replicas = replicas.as_array().map_or(&[][..], Vec::as_slice);
    replicas.len() == 3 && replicas.iter().all(|replica| replica["stage"] == "voter")
}
