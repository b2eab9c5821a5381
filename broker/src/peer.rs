//! How this broker speaks with the others of its cluster; PEER.md of the protocol is the contract.
//!
//! The rooms: `ask` (questions between brokers, and who answers them here), `shake` (the handshake),
//! `dial` and `accept` (which links there are), `link` (one connection), and what the sides of its
//! lanes say: `asker` and `answerer` on control, `sender` and `receiver` on bulk; `ways` (out).
//!
//! Owns: the listener of the peer protocol, every link, and what waits for one.
//! Never: names the consensus engine; decides about a log, a vote or a cluster; repeats anything.
//! Invariants:
//! - nobody is heard who has not proved to know the cluster's secret, but on the loopback;
//! - everything that waits is bounded, and what is held for others is drawn from one account;
//! - whatever is under way on a link is lost with it, and whoever waits is told.

mod accept;
mod answerer;
pub mod ask;
mod asker;
mod beats;
mod bulk;
mod calls;
mod card;
mod credit;
mod dial;
mod incoming;
mod link;
mod news;
mod outgoing;
mod reader;
mod receiver;
mod replicas;
mod sender;
mod shake;
mod snapshot;
#[cfg(test)]
mod tests;
mod throttle;
mod ways;

pub use card::{LinkState, LinkView};
pub use dial::Directory;
pub use throttle::CatchUpBytes;

use crate::budget::Account;
use crate::log_limit::LogLimit;
use crate::replication::{Peers, Switchboard};
use crate::seams::{Network, Seams};
use crate::server::ListenError;
use crate::task::{self, TaskKind};
use accept::Permits;
use ask::{Answers, Asks};
use card::Cards;
use dial::Peer;
use link::End;
use news::NewsBoard;
use replicas::Replicas;
use shake::Shaker;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use throttle::{CatchUp, Throttle};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ways::Ways;
use weir_protocol::peer::limits::PEER_FRAME_BYTES_MAX;
use weir_protocol::peer::{Lane, News, Node, Secret, Side};
use weir_protocol::types::BrokerId;

/// Below this the account could not take in the largest frame while half of it is in use. Each open
/// link holds about 100 KiB of it.
pub const PEER_MEMORY_BYTES_MIN: u64 = 32 << 20;

const _: () = assert!(PEER_MEMORY_BYTES_MIN >= 2 * PEER_FRAME_BYTES_MAX as u64);

/// How to meet other brokers.
pub struct PeerOptions {
    /// The address to listen on; port 0 picks one.
    pub listen: SocketAddr,
    /// What all brokers of the cluster know. None: only loopback addresses are spoken to.
    pub secret: Option<Secret>,
    /// Who this broker is. Links that were dialed before it changed are dialed anew.
    pub me: watch::Receiver<Node>,
    /// Whom it dials, this broker aside.
    pub directory: watch::Receiver<Directory>,
    /// What frames of others are held on account of; at least [`PEER_MEMORY_BYTES_MIN`].
    pub memory: Arc<Account>,
    /// The replicas of this broker.
    pub switchboard: Switchboard,
    /// Bytes a second that each other broker is sent of what helps it catch up; 0 = as fast as it
    /// goes.
    pub catch_up_bytes_per_s: u64,
    /// Who answers what is not a replica's.
    pub answers: Arc<dyn Answers>,
    /// Seed of the random pauses.
    pub seed: u64,
}

/// The links of this broker. Dropping it cuts them.
pub struct PeerRoom {
    shared: Arc<Shared>,
    address: SocketAddr,
}

/// What all links share.
struct Shared {
    network: Arc<dyn Network>,
    shaker: Shaker,
    memory: Arc<Account>,
    replicas: Arc<dyn Replicas>,
    answers: Arc<dyn Answers>,
    news: Arc<NewsBoard>,
    peers: Mutex<BTreeMap<BrokerId, Peer>>,
    cards: Cards,
    permits: Permits,
    catch_up: CatchUp,
    failures: LogLimit,
    /// Cancelled when links shall end, in order.
    leaving: CancellationToken,
    /// Cancelled when they shall end at once.
    cut: CancellationToken,
    tasks: TaskTracker,
    seed: u64,
}

impl PeerRoom {
    /// Listens, dials whoever the directory names, and answers whoever belongs to the cluster.
    pub async fn start(seams: &Seams, options: PeerOptions) -> Result<Arc<Self>, ListenError> {
        let replicas = Arc::new(options.switchboard.clone());
        Self::start_with(seams, options, replicas).await
    }

    async fn start_with(
        seams: &Seams,
        options: PeerOptions,
        replicas: Arc<dyn Replicas>,
    ) -> Result<Arc<Self>, ListenError> {
        let bytes_per_s = options.catch_up_bytes_per_s;
        let catch_up = CatchUp { bytes_per_s, tally: Arc::default() };
        let PeerOptions { listen, secret, me, directory, memory, answers, seed, .. } = options;
        if secret.is_none() && !listen.ip().to_canonical().is_loopback() {
            return Err(ListenError::NoSecret(listen));
        }
        let failed = |error| ListenError::Io { address: listen, error };
        let listener = seams.network.listen(listen).await.map_err(failed)?;
        let address = listener.local_address().map_err(failed)?;
        let shared = Arc::new(Shared {
            network: seams.network.clone(),
            shaker: Shaker { entropy: seams.entropy.clone(), secret, me: me.clone() },
            memory,
            replicas,
            answers,
            news: Arc::default(),
            peers: Mutex::default(),
            cards: Cards::default(),
            permits: Permits::new(),
            catch_up,
            failures: LogLimit::new(),
            leaving: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
            seed,
        });
        shared.spawn("peer accept", accept::accept(shared.clone(), listener));
        shared.spawn("peer directory", dial::follow(shared.clone(), me, directory));
        Ok(Arc::new(Self { shared, address }))
    }

    /// The address with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The way of replicas to others.
    pub fn peers(&self) -> Arc<dyn Peers> {
        Arc::new(Ways(Arc::downgrade(&self.shared)))
    }

    /// The way of questions to others.
    pub fn asks(&self) -> Arc<dyn Asks> {
        Arc::new(Ways(Arc::downgrade(&self.shared)))
    }

    /// Tells every broker, in place of what was announced before. All rows are to be given: what
    /// has not changed is not sent again at once.
    pub fn announce(&self, news: News) {
        self.shared.news.announce(news);
        for peer in self.shared.peers().values() {
            peer.control.calls.wake();
        }
    }

    /// What frames of others are held on account of.
    pub fn memory(&self) -> &Arc<Account> {
        &self.shared.memory
    }

    /// Every link there is or is tried for.
    pub fn links(&self) -> Vec<LinkView> {
        self.shared.cards.views()
    }

    /// Bytes read and written since the start, over all links of a lane.
    pub fn traffic(&self, lane: Lane) -> [u64; 2] {
        self.shared.cards.traffic(lane)
    }

    /// What others were sent to catch up.
    pub fn catch_up_bytes(&self) -> CatchUpBytes {
        self.shared.catch_up.tally.read()
    }

    /// Leaves: no new question, what was asked is answered, links are closed. Whatever is not over
    /// by `until` is cut.
    pub async fn drain(&self, until: Instant) {
        let Shared { leaving, cut, tasks, .. } = &*self.shared;
        leaving.cancel();
        tasks.close();
        let _ = tokio::time::timeout_at(until, tasks.wait()).await;
        cut.cancel();
        tasks.wait().await;
    }
}

impl Drop for PeerRoom {
    fn drop(&mut self) {
        self.shared.cut.cancel();
    }
}

impl Shared {
    /// Starts a task that ends when the room is cut.
    fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let (token, cut) = (self.tasks.token(), self.cut.clone());
        let task = task::spawn(name, TaskKind::Connection, async move {
            let _ = cut.run_until_cancelled_owned(future).await;
            drop(token);
        });
        // The room waits for all of them by their tokens.
        drop(task);
    }

    /// Logs the end of a link, as loud as it is news.
    fn note_end(&self, broker: BrokerId, address: &str, (side, lane): (Side, Lane), end: &End) {
        if !end.is_news(side, lane) {
            tracing::debug!(broker = broker.0, address, ?side, ?lane, %end, "a link ended");
        } else if let Some(suppressed) = self.failures.pass(Instant::now()) {
            let broker = broker.0;
            tracing::info!(broker, address, ?side, ?lane, %end, suppressed, "a link to a broker ended");
        }
    }

    /// What a broker may be sent as catch-up, where it is one that is dialed.
    fn catch_up_of(&self, broker: BrokerId) -> Option<Arc<Throttle>> {
        self.peers().get(&broker).map(|peer| peer.bulk.throttle().clone())
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<BrokerId, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
