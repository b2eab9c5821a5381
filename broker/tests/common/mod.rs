//! A real broker in this process: files in a scratch folder, sockets on the loopback.
//!
//! Owns: starting, draining and killing a broker; reading its metrics; a client that keeps count
//! of what was acknowledged to it.
//! Invariant: each broker has a runtime of its own, so that a kill ends all its tasks at once, as
//! the end of its process would.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

pub mod cluster;
pub mod line;
pub mod peer;
pub mod said;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use weir_broker::config::Overrides;
use weir_broker::{Addresses, Broker, Config, Seams, StartError};
use weir_client::{Client, Message, Publisher, Start, TopicConfig};
use weir_storage::DeviceError;

/// Whatever a test waits for is there by then, or the test fails.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The largest message of the brokers in these tests: small, so that too large ones are quick.
pub const MESSAGE_LIMIT_BYTES: usize = 64 << 10;

/// Waits for `what`, but not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// Asks again until the answer is yes.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let poll = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, poll).await;
}

/// Starts a broker over a folder that another one had. The threads of a broker that has ended
/// finish what they are at, and hold the data directory until then.
pub async fn when_free<T>(
    mut start: impl AsyncFnMut() -> Result<T, StartError>,
) -> Result<T, StartError> {
    let starting = async {
        loop {
            match start().await {
                Err(StartError::Device(DeviceError::InUse(_))) => {}
                started => return started,
            }
        }
    };
    soon("the data directory is free", starting).await
}

/// A data directory and the broker that has it.
pub struct Node {
    pub folder: TempDir,
    pub addresses: Addresses,
    running: Option<(Broker, Runtime)>,
}

impl Node {
    /// A broker over a fresh folder.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let running = start_in(folder.path()).await.unwrap();
        Self::of(folder, running)
    }

    /// A broker that was started over this folder.
    pub fn of(folder: TempDir, (broker, runtime): (Broker, Runtime)) -> Self {
        Self { addresses: broker.addresses(), folder, running: Some((broker, runtime)) }
    }

    /// A broker over the folder again, at other ports.
    pub async fn restart(&mut self) {
        assert!(self.running.is_none(), "one broker at a time");
        let started = when_free(async || start_in(self.folder.path()).await).await;
        let (broker, runtime) = started.unwrap();
        self.addresses = broker.addresses();
        self.running = Some((broker, runtime));
    }

    /// Stops in order.
    pub async fn drain(&mut self) {
        let (broker, runtime) = self.running.take().unwrap();
        runtime.spawn(broker.drain()).await.unwrap();
        end(runtime);
    }

    /// Ends it in the middle of whatever it does.
    pub fn kill(&mut self) {
        let (broker, runtime) = self.running.take().unwrap();
        end(runtime);
        drop(broker);
    }

    pub async fn client(&self) -> Client {
        let client = Client::builder()
            .endpoints([format!("weir://{}", self.addresses.native)])
            .seed(7)
            .connect();
        soon("a client connects", client).await.unwrap()
    }

    pub async fn metrics(&self) -> Metrics {
        Metrics(ask(self.addresses.admin, "/metrics").await)
    }

    /// What the admin port answers.
    pub async fn ask(&self, path: &str) -> String {
        ask(self.addresses.admin, path).await
    }

    /// Files of this name anywhere below the data directory, but for those of the metadata.
    pub fn partition_files(&self, matches: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let folders = std::fs::read_dir(self.folder.path()).unwrap().map(|row| row.unwrap().path());
        let partitions =
            folders.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("p-"));
        let files = partitions.flat_map(|folder| std::fs::read_dir(folder).unwrap());
        let files = files.map(|row| row.unwrap().path());
        files.filter(|path| matches(&path.file_name().unwrap().to_string_lossy())).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some((_broker, runtime)) = self.running.take() {
            end(runtime);
        }
    }
}

/// A runtime for one broker.
fn any_runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Ends all tasks of a runtime and waits for that, which no task of another runtime may do itself.
fn end(runtime: Runtime) {
    std::thread::scope(|scope| scope.spawn(|| runtime.shutdown_timeout(PATIENCE)).join()).unwrap();
}

/// The configuration of these tests' brokers.
pub fn config(folder: &Path, native: SocketAddr) -> Config {
    let overrides = Overrides {
        data_dir: Some(folder.to_owned()),
        native: Some(native),
        admin: Some(any_port()),
        ..Overrides::default()
    };
    let limit =
        ("WEIR__LIMITS__MESSAGE_MAX".to_owned(), format!("{}KiB", MESSAGE_LIMIT_BYTES >> 10));
    Config::load(None, [limit], &overrides).unwrap()
}

pub fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Starts a broker over `folder`, or says why not.
pub async fn start_in(folder: &Path) -> Result<(Broker, Runtime), StartError> {
    start_with(config(folder, any_port())).await
}

/// Starts a broker, or says why not; then nothing of it is left.
pub async fn start_with(config: Config) -> Result<(Broker, Runtime), StartError> {
    let runtime = any_runtime();
    let seams = Seams::os(&config).unwrap();
    match runtime.spawn(Broker::start(config, seams)).await.unwrap() {
        Ok(broker) => Ok((broker, runtime)),
        Err(error) => {
            end(runtime);
            Err(error)
        }
    }
}

/// One HTTP answer, head and all.
async fn ask(admin: SocketAddr, path: &str) -> String {
    let answer = async {
        let mut socket = TcpStream::connect(admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    };
    soon("the admin port answers", answer).await
}

/// A page that Prometheus would scrape.
pub struct Metrics(pub String);

impl Metrics {
    /// The sample of this name and labels, as they stand on the page; 0 if there is none.
    pub fn value(&self, series: &str) -> f64 {
        let sample = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok();
        self.0.lines().find_map(sample).unwrap_or(0.0)
    }
}

/// A client that minds its own business and keeps count: whatever others do to the broker, it is
/// served, and what was acknowledged to it is there.
pub struct Witness {
    client: Client,
    publisher: Publisher,
    topic: String,
    acknowledged: u64,
}

impl Witness {
    pub async fn start(node: &Node) -> Self {
        let topic = "witness".to_owned();
        let client = node.client().await;
        client.create_topic(&topic, TopicConfig::default()).await.unwrap();
        let publisher = client.publisher(&topic).build().await.unwrap();
        let mut witness = Self { client, publisher, topic, acknowledged: 0 };
        witness.publish().await;
        witness
    }

    /// Publishes and is acknowledged.
    pub async fn publish(&mut self) {
        let message = Message::new(format!("message {}", self.acknowledged));
        let stored = soon("the witness is served", self.publisher.publish(message)).await.unwrap();
        assert_eq!(stored.offset, self.acknowledged);
        self.acknowledged += 1;
    }

    /// Publishes once more and reads everything back.
    pub async fn check(&mut self) {
        self.publish().await;
        let reader = self.client.reader(&self.topic).from(Start::Earliest).subscribe();
        let mut reader = soon("the witness reads", reader).await.unwrap();
        for number in 0..self.acknowledged {
            let message = soon("a message is there", reader.next()).await.unwrap().unwrap();
            assert_eq!(message.offset(), number);
            assert_eq!(message.payload()[..], format!("message {number}").into_bytes()[..]);
        }
        assert_eq!(reader.end_offsets()[&0], self.acknowledged, "nothing else is there");
    }
}
