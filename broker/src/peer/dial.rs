//! Links that this broker dials: two to every other broker of the directory.
//!
//! Owns: whom it dials, as whom, and when it tries again.
//! Never: a link to itself.
//! Invariant: what was dialed under another identity or to another address is given up first.

use super::Shared;
use super::asker::{Asker, Control};
use super::bulk::Bulk;
use super::card::{LinkState, Listed};
use super::link::{End, Link, Talk};
use super::reader::READER_BYTES_MAX;
use super::receiver::{FETCHES_MAX, SNAPSHOTS_MAX};
use super::sender::Sender;
use super::shake::{ShakeError, Shaken};
use super::throttle::{CatchUp, Throttle};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Duration, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use weir_protocol::peer::{Lane, Node, PeerRefusal, Side};
use weir_protocol::types::BrokerId;

/// The first pause before a broker is dialed again, and the longest; each is drawn from 0 to there.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Who was refused tries again after this: nothing will have changed at once.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Where brokers are reached, `HOST:PORT` each.
pub type Directory = Arc<BTreeMap<BrokerId, String>>;

/// One broker that is dialed; dropping it ends both links.
pub(super) struct Peer {
    pub(super) control: Arc<Control>,
    pub(super) bulk: Arc<Bulk>,
    pub(super) fetches: Arc<Semaphore>,
    pub(super) snapshots: Arc<Semaphore>,
    address: String,
    _stop: DropGuard,
}

impl Peer {
    fn start(shared: &Arc<Shared>, broker: BrokerId, address: &str) -> Self {
        let CatchUp { bytes_per_s, tally } = &shared.catch_up;
        let bulk = Bulk::new(Throttle::new(*bytes_per_s, tally.clone()));
        let (control, bulk) = (Arc::<Control>::default(), Arc::new(bulk));
        let stop = CancellationToken::new();
        for lane in [Lane::Control, Lane::Bulk] {
            let dialer = Dialer {
                shared: shared.clone(),
                broker,
                address: address.to_owned(),
                lane,
                ways: (control.clone(), bulk.clone()),
                random: fastrand::Rng::with_seed(shared.seed ^ (broker.0 << 1) ^ lane as u64),
            };
            let stop = stop.clone();
            shared.spawn("peer dialer", async move {
                let _ = stop.run_until_cancelled(dialer.run()).await;
            });
        }
        Self {
            control,
            bulk,
            fetches: Arc::new(Semaphore::new(FETCHES_MAX)),
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)),
            address: address.to_owned(),
            _stop: stop.drop_guard(),
        }
    }
}

/// Dials whoever the directory names, until the room is left.
pub(super) async fn follow(
    shared: Arc<Shared>,
    mut me: watch::Receiver<Node>,
    mut directory: watch::Receiver<Directory>,
) {
    loop {
        let before = me.borrow_and_update().clone();
        let wanted = directory.borrow_and_update().clone();
        {
            let mut peers = shared.peers();
            peers.retain(|broker, peer| wanted.get(broker) == Some(&peer.address));
            for (broker, address) in wanted.iter().filter(|(broker, _)| **broker != before.broker) {
                peers.entry(*broker).or_insert_with(|| Peer::start(&shared, *broker, address));
            }
        }
        tokio::select! {
            biased;
            () = shared.leaving.cancelled() => return,
            () = changed(&mut me) => shared.peers().clear(),
            () = changed(&mut directory) => {}
        }
    }
}

/// Who tells no more changes nothing more.
async fn changed<T>(told: &mut watch::Receiver<T>) {
    if told.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Keeps one link.
struct Dialer {
    shared: Arc<Shared>,
    broker: BrokerId,
    address: String,
    lane: Lane,
    ways: (Arc<Control>, Arc<Bulk>),
    random: fastrand::Rng,
}

impl Dialer {
    async fn run(mut self) {
        let place = (Side::Dialer, self.lane);
        let listed = self.shared.cards.add(place, self.broker, &self.address);
        let mut pause = RETRY_MIN;
        while !self.shared.leaving.is_cancelled() {
            let (network, whom) = (&*self.shared.network, (self.lane, Some(self.broker)));
            let dialed = self.shared.shaker.dial(network, &self.address, whom).await;
            let refused = match dialed {
                Ok(shaken) => {
                    listed.card.opened(&shaken.peer.node);
                    let end = self.serve(shaken, &listed).await;
                    self.shared.note_end(self.broker, &self.address, place, &end);
                    pause = RETRY_MIN;
                    match end {
                        End::Refused(failure) | End::RefusedByPeer(failure) => {
                            Some(failure.refusal)
                        }
                        End::Broken | End::Dead | End::Left => None,
                    }
                }
                Err(error) => {
                    self.note(&error);
                    error.refusal()
                }
            };
            listed.card.lost(refused.map_or(LinkState::Connecting, LinkState::Refused));
            let random = pause.mul_f64(self.random.f64());
            let wait = if refused.is_some() { REFUSED_PAUSE } else { random };
            pause = (pause * 2).min(RETRY_MAX);
            let slept = tokio::time::sleep(wait);
            let _ = self.shared.leaving.run_until_cancelled(slept).await;
        }
    }

    async fn serve(&self, shaken: Shaken, listed: &Listed) -> End {
        let (shared, (control, bulk)) = (&self.shared, self.ways.clone());
        let memory = shared.memory.clone();
        let Some(_buffers) = memory.try_draw(READER_BYTES_MAX as u64) else {
            return End::Refused(PeerRefusal::Overloaded.into());
        };
        match self.lane {
            Lane::Control => {
                let talk = Asker::new(control, shared.news.clone(), memory);
                self.carry(shaken, talk, listed).await
            }
            Lane::Bulk => self.carry(shaken, Sender::new(bulk, memory), listed).await,
        }
    }

    async fn carry(&self, shaken: Shaken, talk: impl Talk, listed: &Listed) -> End {
        let peer = (Side::Acceptor, self.lane);
        let leave = self.shared.leaving.clone();
        let socket = (shaken.socket, shaken.rest);
        Link::new(socket, peer, talk, listed.card.clone(), leave).run().await
    }

    fn note(&self, error: &ShakeError) {
        if error.refusal().is_some()
            && let Some(suppressed) = self.shared.failures.pass(Instant::now())
        {
            tracing::warn!(
                broker = self.broker.0, address = self.address, %error, suppressed,
                "a broker that was dialed is no peer"
            );
        }
    }
}
