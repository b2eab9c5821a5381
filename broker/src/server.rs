//! Where connections come from and where they go.
//!
//! Owns: the listener, one permit per connection, the list of connections, the drain.
//! Never: reads a frame; lets more connections in than there are permits.
//! Invariants:
//! - a permit is taken before the connection's task exists and returned when it has ended;
//! - whoever finds no permit is told so, with a hint, and few are told at once;
//! - a drain ends by its deadline, whatever the peers do.

use crate::connection::{Card, Connection, ConnectionView, Services};
use crate::log_limit::LogLimit;
use crate::seams::{Listener, Network, Stream};
use crate::task::{self, TaskKind};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use weir_protocol::codec::encode_to_vec;
use weir_protocol::error_code::{ErrorCode, Scope};
use weir_protocol::frame::{ErrorFrame, Frame, GoAway, Refusal};
use weir_protocol::types::RequestId;

/// Default number of connections at one time.
pub const CONNECTIONS_MAX_DEFAULT: usize = 10_000;
/// Connections that are accepted before every other task has had its turn, so that a storm of
/// clients does not keep those from working that are in already. A pause instead would let the
/// queue of the operating system run over, and clients beyond it come back a second later.
const ACCEPT_BURST: u32 = 16;
/// Connections that are told at one time that there is no room; more are closed without a word.
const TURNED_AWAY_MAX: usize = 64;
/// How long telling one may take.
const TURN_AWAY_MAX: Duration = Duration::from_secs(1);
/// After an error of the listener (too many open files, say) accepting pauses this long, doubling.
const ACCEPT_RETRY_MIN: Duration = Duration::from_millis(10);
const ACCEPT_RETRY_MAX: Duration = Duration::from_secs(1);
/// Clients that are sent away come back spread over this time.
const RECONNECT_SPREAD_MS: u32 = 2_000;

/// How to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerOptions {
    /// The address; port 0 picks one.
    pub listen: SocketAddr,
    /// An address beyond the loopback is allowed although nothing authenticates or encrypts.
    pub insecure: bool,
    /// Connections at one time.
    pub connections_max: usize,
    /// Seed of the random delays.
    pub seed: u64,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address can be reached from elsewhere and nothing protects it.
    #[error(
        "{0} can be reached from other machines, and there is neither encryption nor \
         authentication; listen on a loopback address, or say --insecure"
    )]
    Insecure(SocketAddr),
    /// The address can be reached from elsewhere, and brokers that know no secret believe anybody.
    #[error(
        "{0} can be reached from other machines, and without a secret anybody could be a broker of \
         the cluster; give all its brokers one secret, or listen on a loopback address"
    )]
    NoSecret(SocketAddr),
    /// The operating system refused.
    #[error("cannot listen on {address}: {error}")]
    Io {
        /// The address.
        address: SocketAddr,
        /// What it said.
        #[source]
        error: io::Error,
    },
}

/// Refuses an address that other machines reach, unless `insecure` allows it.
pub fn check_address(address: SocketAddr, insecure: bool) -> Result<(), ListenError> {
    if insecure || address.ip().to_canonical().is_loopback() {
        Ok(())
    } else {
        Err(ListenError::Insecure(address))
    }
}

/// The server of the native protocol. Cheap to clone.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    services: Arc<Services>,
    address: SocketAddr,
    connections: Mutex<Connections>,
    permits: Arc<Semaphore>,
    connections_max: usize,
    turning_away: Arc<Semaphore>,
    /// Cancelled when nobody is let in any more.
    closed: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    turned_away: LogLimit,
    accept_failed: LogLimit,
}

struct Connections {
    next: u64,
    open: BTreeMap<u64, (Arc<Card>, JoinHandle<()>)>,
    random: fastrand::Rng,
    /// What those who come while the broker drains are told at once.
    draining: Option<Instant>,
}

impl Server {
    /// Listens, and serves whoever comes. Also starts the ticks of flow control.
    pub async fn start(
        network: &dyn Network,
        services: Arc<Services>,
        options: ServerOptions,
    ) -> Result<Self, ListenError> {
        let ServerOptions { listen, insecure, connections_max, seed } = options;
        check_address(listen, insecure)?;
        let failed = |error| ListenError::Io { address: listen, error };
        let listener = network.listen(listen).await.map_err(failed)?;
        let address = listener.local_address().map_err(failed)?;
        let random = fastrand::Rng::with_seed(seed);
        let connections = Connections { next: 1, open: BTreeMap::new(), random, draining: None };
        let shared = Shared {
            services,
            address,
            connections: Mutex::new(connections),
            permits: Arc::new(Semaphore::new(connections_max)),
            connections_max,
            turning_away: Arc::new(Semaphore::new(TURNED_AWAY_MAX)),
            closed: CancellationToken::new(),
            tasks: Mutex::default(),
            turned_away: LogLimit::new(),
            accept_failed: LogLimit::new(),
        };
        let server = Self(Arc::new(shared));
        let ticks = Arc::clone(&server.0.services.flow).run_ticks();
        let stopped = server.0.closed.child_token();
        let accepting = server.clone().accept(listener);
        let tasks = [
            // Credit is not asked back any more once the broker drains.
            task::spawn("flow ticks", TaskKind::Core, async move {
                let _ = stopped.run_until_cancelled(ticks).await;
            }),
            task::spawn("accept", TaskKind::Core, accepting),
        ];
        server.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend(tasks);
        Ok(server)
    }

    /// The address with its real port.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Open connections, and how many there may be.
    pub fn connection_count(&self) -> (usize, usize) {
        (self.lock().open.len(), self.0.connections_max)
    }

    /// Up to `limit` connections behind number `after`, by number.
    pub fn connections(&self, after: u64, limit: usize) -> Vec<ConnectionView> {
        let connections = self.lock();
        let page = connections.open.range(after.saturating_add(1)..).take(limit);
        page.map(|(_, (card, _))| card.view()).collect()
    }

    /// Lets nobody in any more, grants nothing more, tells every peer to leave, and returns when
    /// all have left or `within` has passed; who is still there then is cut off. Returns how many
    /// that were.
    pub async fn drain(&self, within: Duration) -> usize {
        let deadline = Instant::now() + within;
        self.0.closed.cancel();
        self.0.services.flow.drain();
        let waiting = {
            let mut connections = self.lock();
            connections.draining = Some(deadline);
            let Connections { open, random, .. } = &mut *connections;
            for (card, _) in open.values() {
                card.outbox().go_away(draining(within, random));
            }
            std::mem::take(open)
        };
        let mut cut = 0;
        for (_, (_, task)) in waiting {
            let abort = task.abort_handle();
            if tokio::time::timeout_at(deadline, task).await.is_err() {
                abort.abort();
                cut += 1;
            }
        }
        let tasks =
            std::mem::take(&mut *self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            // They end by themselves once the server is closed.
            let _ = task.await;
        }
        cut
    }

    async fn accept(self, listener: Box<dyn Listener>) {
        let admit = |socket, peer| self.admit(socket, peer);
        accept_each(listener, &self.0.closed, &self.0.accept_failed, admit).await;
    }

    fn admit(&self, socket: Box<dyn Stream>, peer: SocketAddr) {
        match Arc::clone(&self.0.permits).try_acquire_owned() {
            Ok(permit) => self.serve(socket, peer, permit),
            Err(_) => self.turn_away(socket, peer),
        }
    }

    fn serve(&self, socket: Box<dyn Stream>, peer: SocketAddr, permit: OwnedSemaphorePermit) {
        let mut connections = self.lock();
        let number = connections.next;
        connections.next += 1;
        let card = Card::new(number, peer);
        if let Some(deadline) = connections.draining {
            let left = deadline.saturating_duration_since(Instant::now());
            card.outbox().go_away(draining(left, &mut connections.random));
        }
        let connection = Connection::new(socket, Arc::clone(&self.0.services), Arc::clone(&card));
        let server = self.clone();
        let task = task::spawn("connection", TaskKind::Connection, async move {
            // The place is given back however the connection ends.
            let _place = Place { server, number, _permit: permit };
            connection.run().await;
        });
        connections.open.insert(number, (card, task));
    }

    /// Tells a peer that there is no room. Few are told at one time; the others find out.
    fn turn_away(&self, mut socket: Box<dyn Stream>, peer: SocketAddr) {
        self.0.services.backend.refused(None, ErrorCode::OverloadedConnect.number());
        if let Some(suppressed) = self.0.turned_away.pass(Instant::now()) {
            let limit = self.0.connections_max;
            tracing::warn!(
                %peer,
                limit,
                suppressed,
                code = ErrorCode::OverloadedConnect.name(),
                "as many connections are open as may be"
            );
        }
        let Ok(permit) = Arc::clone(&self.0.turning_away).try_acquire_owned() else { return };
        let limit = self.0.connections_max as u64;
        let text = format!("{limit} connections are open, which is the limit of this broker");
        let refusal = Refusal {
            scope: Scope::Broker,
            retry_after_ms: 100 + self.lock().random.u32(..RECONNECT_SPREAD_MS),
            observed: limit + 1,
            limit,
            ..Refusal::new(ErrorCode::OverloadedConnect, text)
        };
        let words = encode_to_vec(&Frame::Error(ErrorFrame { request: RequestId(0), refusal }));
        task::spawn("turn away", TaskKind::Connection, async move {
            let told = async {
                socket.write_all(&words).await?;
                socket.shutdown().await?;
                // Closing with something unread would take the words back.
                let mut unread = [0; 512];
                while socket.read(&mut unread).await? > 0 {}
                io::Result::Ok(())
            };
            // Who does not listen is closed all the same.
            let _ = tokio::time::timeout(TURN_AWAY_MAX, told).await;
            drop(permit);
        });
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.0.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands every connection that comes to `admit`, until `closed` is cancelled.
pub(crate) async fn accept_each(
    mut listener: Box<dyn Listener>,
    closed: &CancellationToken,
    failed: &LogLimit,
    mut admit: impl FnMut(Box<dyn Stream>, SocketAddr),
) {
    let mut retry = ACCEPT_RETRY_MIN;
    let mut burst = 0u32;
    loop {
        let pause = match closed.run_until_cancelled(listener.accept()).await {
            None => return,
            Some(Ok((socket, peer))) => {
                admit(socket, peer);
                retry = ACCEPT_RETRY_MIN;
                burst = burst.wrapping_add(1);
                if burst.is_multiple_of(ACCEPT_BURST) {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            Some(Err(error)) => {
                // Too many open files, say: trying again at once would only spin.
                if let Some(suppressed) = failed.pass(Instant::now()) {
                    tracing::error!(%error, suppressed, "cannot accept connections");
                }
                let pause = retry;
                retry = (retry * 2).min(ACCEPT_RETRY_MAX);
                pause
            }
        };
        let slept = tokio::time::sleep(pause);
        if closed.run_until_cancelled(slept).await.is_none() {
            return;
        }
    }
}

/// A connection's place: its permit and its line in the list.
struct Place {
    server: Server,
    number: u64,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.lock().open.remove(&self.number);
    }
}

fn draining(within: Duration, random: &mut fastrand::Rng) -> GoAway {
    GoAway {
        code: ErrorCode::Draining.number(),
        deadline_ms: u32::try_from(within.as_millis()).unwrap_or(u32::MAX),
        reconnect_after_ms: random.u32(..RECONNECT_SPREAD_MS),
        text: "the broker shuts down; what was accepted is still answered".to_owned(),
    }
}

#[cfg(test)]
mod tests;
