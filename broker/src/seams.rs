//! Owns: everything the broker takes from its surroundings: disk, executor, network, wall clock,
//! entropy and seed. The simulator passes its own; the binary passes [`Seams::os`].
//! Never: a decision.
//! Invariant: monotonic time is `tokio::time::Instant::now()`, which a paused runtime controls;
//! nothing else in the broker asks the operating system for time, randomness, files or sockets.

use crate::config::{Config, StorageBackend};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use weir_storage::{Backend, DeviceError, Disk, Executor, Lane, OsDisk, ThreadExecutor};

/// A boxed future, so that the seams stay object safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Waits for work that may wait for the device, on a lane of the executor.
pub async fn on_lane<T: Send + 'static>(
    executor: &Arc<dyn Executor>,
    lane: Lane,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (done, wait) = oneshot::channel();
    executor.submit(lane, Box::new(move || drop(done.send(work()))));
    wait.await.expect("the executor runs every job it takes")
}

/// A byte stream to a peer.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where connections come from.
pub trait Network: Send + Sync {
    /// Binds `address`; port 0 picks one.
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>>;

    /// Connects to `address`, written as `HOST:PORT`. Returns the stream and the address that
    /// answered.
    fn connect<'a>(
        &'a self,
        address: &'a str,
    ) -> BoxFuture<'a, io::Result<(Box<dyn Stream>, SocketAddr)>>;
}

/// A bound address.
pub trait Listener: Send {
    /// The address with its real port.
    fn local_address(&self) -> io::Result<SocketAddr>;
    /// The next connection. Cancel safe.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn Stream>, SocketAddr)>>;
}

/// The time of day, which may jump.
pub trait WallClock: Send + Sync {
    /// Milliseconds since the epoch.
    fn now_ms(&self) -> u64;
}

/// Numbers that nobody can foretell, for what must be fresh: nonces, identities.
pub trait Entropy: Send + Sync {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// What the broker takes from its surroundings.
#[derive(Clone)]
pub struct Seams {
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Threads: flushes, preparation of segments, cold reads, checkpoints.
    pub executor: Arc<dyn Executor>,
    /// Sockets.
    pub network: Arc<dyn Network>,
    /// The time of day.
    pub wall: Arc<dyn WallClock>,
    /// Numbers that nobody can foretell.
    pub entropy: Arc<dyn Entropy>,
    /// Seed of every random choice the broker makes.
    pub seed: u64,
    /// The run of the operating system, which keeps what a process wrote until it ends itself; 0 =
    /// not known: then every process may have lost that.
    pub boot_id: u128,
}

/// Why the operating system gives no surroundings.
#[derive(Debug, thiserror::Error)]
pub enum SeamsError {
    /// The data directory.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No threads.
    #[error("the threads of the broker cannot be started: {0}")]
    Threads(#[source] io::Error),
}

impl Seams {
    /// The operating system's: its files below the data directory (which is created), its threads,
    /// sockets and clock, and a seed of its own randomness.
    pub fn os(config: &Config) -> Result<Self, SeamsError> {
        let backend = match config.storage_backend {
            StorageBackend::Map => Some(Backend::Map),
            StorageBackend::Pwrite => Some(Backend::Pwrite),
            StorageBackend::Auto => None,
        };
        let path = config.data_dir();
        let unusable = |source| DeviceError::Unusable { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(unusable)?;
        let disk = match backend {
            Some(backend) => OsDisk::new(backend),
            None => OsDisk::probe(path).map_err(unusable)?,
        };
        Ok(Self {
            disk: Arc::new(disk),
            executor: Arc::new(ThreadExecutor::start().map_err(SeamsError::Threads)?),
            network: Arc::new(OsNetwork),
            wall: Arc::new(OsWallClock),
            seed: number_of(&OsEntropy),
            entropy: Arc::new(OsEntropy),
            boot_id: std::fs::read_to_string(BOOT_ID_FILE).map_or(0, |text| boot_id_of(&text)),
        })
    }
}

/// Where Linux says which run of it this is, as a UUID.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// The number that a UUID is; 0 where it is none.
fn boot_id_of(text: &str) -> u128 {
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

fn number_of(entropy: &dyn Entropy) -> u64 {
    let mut bytes = [0; 8];
    entropy.fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Connections that the operating system holds until they are accepted. The usual 128 run over
/// when many clients come at once, and each one beyond tries again a second later.
const ACCEPT_QUEUE: u32 = 4_096;

/// TCP of the operating system.
#[derive(Debug, Default)]
pub struct OsNetwork;

impl Network for OsNetwork {
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // A restarted broker takes its port again at once.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let listener = socket.listen(ACCEPT_QUEUE)?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(
        &'a self,
        address: &'a str,
    ) -> BoxFuture<'a, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let peer = stream.peer_addr()?;
            Ok((Box::new(stream) as Box<dyn Stream>, peer))
        })
    }
}

impl Listener for TcpListener {
    fn local_address(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(async move {
            let (stream, peer) = TcpListener::accept(self).await?;
            // Replies are written whole; waiting to fill a packet only adds latency.
            TcpStream::set_nodelay(&stream, true)?;
            Ok((Box::new(stream) as Box<dyn Stream>, peer))
        })
    }
}

/// The operating system's time of day.
#[derive(Debug, Default)]
pub struct OsWallClock;

impl WallClock for OsWallClock {
    #[expect(clippy::disallowed_methods, reason = "this is the seam the ban points to")]
    fn now_ms(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_millis() as u64)
    }
}

/// The operating system's random numbers.
#[derive(Debug, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        // A broker that knew its own nonces beforehand would let others be it; it does not start.
        getrandom::fill(bytes).expect("the operating system gives random numbers");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_of_the_operating_system_is_read_as_the_kernel_writes_it() {
        let text = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9\n";
        assert_eq!(boot_id_of(text), 0x0a1b_2c3d_4e5f_6071_8293_a4b5_c6d7_e8f9);
        assert_eq!(boot_id_of("nonsense"), 0);
    }
}
