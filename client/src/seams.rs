//! Owns: everything the client takes from its surroundings: sockets, the time of day, chance and
//! tasks. A simulator passes its own connector, clock and seed to the builder.
//! Never: a decision.
//! Invariant: monotonic time is `tokio::time::Instant::now()`, which a paused runtime controls.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A boxed future, so that the seams stay object safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The two directions of one connection.
pub struct Duplex {
    /// What the broker sends.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What the broker is sent.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Duplex {
    /// Splits any byte stream.
    pub fn from_stream(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader: Box::new(reader), writer: Box::new(writer) }
    }
}

/// Where connections come from.
pub trait Connector: Send + Sync {
    /// Connects to an endpoint. Dropping the future gives up.
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Duplex>>;
}

/// The time of day, which may jump.
pub trait WallClock: Send + Sync {
    /// Milliseconds since the epoch.
    fn now_ms(&self) -> u64;
}

/// TCP of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Duplex>> {
        Box::pin(async move {
            let stream = TcpStream::connect((host, port)).await?;
            // Frames are written whole; waiting to fill a packet only adds latency.
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            Ok(Duplex { reader: Box::new(reader), writer: Box::new(writer) })
        })
    }
}

/// The operating system's time of day.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsWallClock;

impl WallClock for OsWallClock {
    #[expect(clippy::disallowed_methods, reason = "this is the seam the ban points to")]
    fn now_ms(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_millis() as u64)
    }
}

/// Chance, from one seed.
#[derive(Debug)]
pub(crate) struct Chance(Mutex<fastrand::Rng>);

impl Chance {
    /// Without a seed, every client differs.
    pub(crate) fn new(seed: Option<u64>) -> Self {
        Self(Mutex::new(seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed)))
    }

    /// A number in `0..=limit`.
    pub(crate) fn up_to(&self, limit: u64) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).u64(0..=limit)
    }
}

/// Starts the driver: the one task of a client.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    #[expect(clippy::disallowed_methods, reason = "this is the one place the ban points to")]
    drop(tokio::spawn(future));
}
