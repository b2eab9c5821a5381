//! Links that other brokers dial.
//!
//! Owns: how many may be open, and how many may be on their way to it.
//! Never: believes anybody before the handshake is through.
//! Invariant: a stranger costs a permit of its own kind, so that strangers do not keep those out
//! who are in.

use super::Shared;
use super::answerer::Answerer;
use super::link::{Link, Talk};
use super::reader::READER_BYTES_MAX;
use super::receiver::Receiver;
use super::shake::{Shaken, go_away, say_last};
use crate::seams::{Listener, Stream};
use crate::server::accept_each;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::time::{Duration, Instant};
use weir_protocol::limits::BROKERS_MAX;
use weir_protocol::peer::{Lane, OpenPeer, PeerRefusal, Side};

/// Connections of other brokers at one time: their two lanes each, as many that they have not given
/// up yet, and as many that only ask who is there.
const LINKS_MAX: usize = 6 * BROKERS_MAX;
/// Handshakes at one time.
const HANDSHAKES_MAX: usize = 16;
/// A handshake that failed holds its place this long: guesses take time.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// The permits of those who come.
pub(super) struct Permits {
    links: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
}

impl Permits {
    pub(super) fn new() -> Self {
        let links = Arc::new(Semaphore::new(LINKS_MAX));
        Self { links, handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)) }
    }
}

/// Accepts until the room is left.
pub(super) async fn accept(shared: Arc<Shared>, listener: Box<dyn Listener>) {
    let admit = |socket, remote| {
        let Ok(permit) = shared.permits.handshakes.clone().try_acquire_owned() else {
            // Who belongs here dials again.
            return note(&shared, remote, &"as many handshakes are under way as may be");
        };
        let shared_here = shared.clone();
        shared.spawn("peer acceptor", async move {
            let shared = shared_here;
            match shared.shaker.accept(socket, remote).await {
                Ok(shaken) => {
                    drop(permit);
                    serve(&shared, shaken, remote).await;
                }
                Err(error) => {
                    note(&shared, remote, &error);
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        });
    };
    accept_each(listener, &shared.leaving, &shared.failures, admit).await;
}

fn note(shared: &Shared, remote: SocketAddr, error: &dyn std::fmt::Display) {
    if let Some(suppressed) = shared.failures.pass(Instant::now()) {
        tracing::warn!(%remote, %error, suppressed, "a broker was not let in");
    }
}

async fn serve(shared: &Shared, shaken: Shaken, remote: SocketAddr) {
    let Shaken { mut socket, rest, peer } = shaken;
    let permit = shared.permits.links.try_acquire();
    let buffers = shared.memory.try_draw(READER_BYTES_MAX as u64);
    let (Ok(_permit), Some(_buffers)) = (permit, buffers) else {
        note(shared, remote, &PeerRefusal::Overloaded);
        return turn_away(&mut *socket).await;
    };
    let (replicas, answers) = (shared.replicas.clone(), shared.answers.clone());
    let memory = shared.memory.clone();
    let shaken = Shaken { socket, rest, peer };
    match shaken.peer.lane {
        Lane::Control => {
            let from = shaken.peer.node.broker;
            carry(shared, shaken, remote, Answerer::new(from, replicas, answers, memory)).await;
        }
        Lane::Bulk => {
            let catch_up = shared.catch_up_of(shaken.peer.node.broker);
            let receiver = Receiver::new(replicas, answers, memory, catch_up);
            carry(shared, shaken, remote, receiver).await;
        }
    }
}

async fn carry(shared: &Shared, shaken: Shaken, remote: SocketAddr, talk: impl Talk) {
    let Shaken { socket, rest, peer: OpenPeer { node, lane, .. } } = shaken;
    let listed = shared.cards.add((Side::Acceptor, lane), node.broker, &remote.to_string());
    listed.card.opened(&node);
    let leave = shared.leaving.clone();
    let link = Link::new((socket, rest), (Side::Dialer, lane), talk, listed.card.clone(), leave);
    let end = link.run().await;
    shared.note_end(node.broker, &remote.to_string(), (Side::Acceptor, lane), &end);
}

/// A courtesy: who does not read it finds the connection closed.
async fn turn_away(socket: &mut dyn Stream) {
    let refusal = PeerRefusal::Overloaded;
    let words = go_away(refusal, refusal.to_string());
    let _ = tokio::time::timeout(FAILURE_PAUSE, say_last(socket, &words)).await;
}
