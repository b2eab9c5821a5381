//! The ways out: what replicas and others ask of other brokers, put on the link that stands.
//!
//! Owns: which broker and which lane a question goes to.
//! Never: waits longer than it was told, or for a link that does not stand.
//! Invariant: no way keeps the room. What the room answers with holds ways itself, and both would keep
//! each other, and the data directory with them, for ever.

use super::Shared;
use super::ask::{Answer, Ask, Asks};
use super::asker::{Asker, Control};
use super::bulk::{Bulk, Sending};
use super::dial::Peer;
use super::link::{Link, Talk};
use super::reader::READER_BYTES_MAX;
use super::sender::Sender;
use super::shake::Shaken;
use super::throttle::Throttle;
use crate::replication::{AppendStream, NoPeers, PeerLost, Peers};
use crate::seams::BoxFuture;
use bytes::Bytes;
use futures_util::FutureExt;
use std::sync::{Arc, Weak};
use tokio::time::Duration;
use weir_protocol::peer::limits::PEER_DEAD_AFTER_MS;
use weir_protocol::peer::{
    AppendResult, Beat, Fetch, Form, Forward, GroupAddress, Lane, PeerFrame, PeerRefusal, Side,
    SnapshotHead, Transfer, TransferAnswer, Vote, VoteAnswer, VoteAsk,
};
use weir_protocol::types::BrokerId;

/// No answer to a beat, a vote or a transfer is waited for longer: who sent nothing for so long is
/// dead.
pub(super) const CALL_WITHIN: Duration = Duration::from_millis(PEER_DEAD_AFTER_MS as u64);

/// The ways out, as long as there is a room.
#[derive(Clone)]
pub(super) struct Ways(pub(super) Weak<Shared>);

impl Ways {
    fn room(&self) -> Result<Arc<Shared>, PeerLost> {
        self.0.upgrade().ok_or(PeerLost::Unreachable)
    }

    /// What is made of a broker that is dialed; none of one that is not.
    fn of_peer<T>(&self, to: BrokerId, make: impl FnOnce(&Peer) -> T) -> Result<T, PeerLost> {
        self.room()?.peers().get(&to).map(make).ok_or(PeerLost::Unreachable)
    }

    fn control(&self, to: BrokerId) -> Result<Arc<Control>, PeerLost> {
        self.of_peer(to, |peer| peer.control.clone())
    }
}

impl Peers for Ways {
    fn append(&self, to: BrokerId, address: GroupAddress) -> Box<dyn AppendStream> {
        match self.of_peer(to, |peer| peer.bulk.clone()) {
            Ok(bulk) => Box::new(Sending::new(bulk, address)),
            Err(_) => Box::new(NoPeers),
        }
    }

    fn beat(&self, to: BrokerId, beat: Beat) -> BoxFuture<'static, Result<AppendResult, PeerLost>> {
        let control = self.control(to);
        async move { control?.beats.beat(beat, CALL_WITHIN).await }.boxed()
    }

    fn vote(&self, to: BrokerId, ask: VoteAsk) -> BoxFuture<'static, Result<VoteAnswer, PeerLost>> {
        let control = self.control(to);
        let asked = async move {
            let make = |request| PeerFrame::Vote(VoteAsk { request, ..ask });
            match control?.calls.call(CALL_WITHIN, make).await? {
                PeerFrame::Voted(voted) => voted.answer.map_err(PeerLost::Refused),
                _ => Err(OTHER_ANSWER),
            }
        };
        asked.boxed()
    }

    fn snapshot(
        &self,
        to: BrokerId,
        head: SnapshotHead,
        state: Bytes,
    ) -> BoxFuture<'static, Result<Vote, PeerLost>> {
        let ways = self.of_peer(to, |peer| (peer.bulk.clone(), peer.snapshots.clone()));
        let sent = async move {
            let (bulk, snapshots) = ways?;
            let _permit = snapshots.acquire().await.map_err(|_| PeerLost::Unreachable)?;
            bulk.snapshot(head, state).await
        };
        sent.boxed()
    }

    fn transfer(
        &self,
        to: BrokerId,
        transfer: Transfer,
    ) -> BoxFuture<'static, Result<TransferAnswer, PeerLost>> {
        let control = self.control(to);
        let asked = async move {
            let make = |request| PeerFrame::Transfer(Transfer { request, ..transfer });
            match control?.calls.call(CALL_WITHIN, make).await? {
                PeerFrame::Transferred(told) => told.answer.map_err(PeerLost::Refused),
                _ => Err(OTHER_ANSWER),
            }
        };
        asked.boxed()
    }
}

/// A question of one kind was answered by another.
const OTHER_ANSWER: PeerLost = PeerLost::Refused(PeerRefusal::Malformed);

impl Asks for Ways {
    fn ask(
        &self,
        to: BrokerId,
        ask: Ask,
        within: Duration,
    ) -> BoxFuture<'static, Result<Answer, PeerLost>> {
        let ways = self
            .of_peer(to, |peer| (peer.control.clone(), peer.bulk.clone(), peer.fetches.clone()));
        let asked = async move {
            let (control, bulk, fetches) = ways?;
            let _permit = match &ask {
                Ask::Fetch(_) => Some(fetches.acquire().await.map_err(|_| PeerLost::Unreachable)?),
                _ => None,
            };
            put((&control, &bulk), ask, within).await
        };
        async move { tokio::time::timeout(within, asked).await.unwrap_or(Err(PeerLost::Broken)) }
            .boxed()
    }

    fn ask_at(
        &self,
        address: &str,
        ask: Ask,
        within: Duration,
    ) -> BoxFuture<'static, Result<Answer, PeerLost>> {
        let (room, address) = (self.room(), address.to_owned());
        let asked = async move {
            let shared = room?;
            let lane = if matches!(ask, Ask::Fetch(_)) { Lane::Bulk } else { Lane::Control };
            let dialed = shared.shaker.dial(&*shared.network, &address, (lane, None)).await;
            let shaken = dialed.map_err(|error| error.lost())?;
            let bulk = Arc::new(Bulk::new(Throttle::new(0, Arc::default())));
            let control = Arc::<Control>::default();
            let memory = shared.memory.clone();
            let carried = match lane {
                Lane::Control => {
                    let talk = Asker::new(control.clone(), Arc::default(), memory);
                    carry(&shared, shaken, talk, &address).boxed()
                }
                Lane::Bulk => {
                    let talk = Sender::new(bulk.clone(), memory);
                    carry(&shared, shaken, talk, &address).boxed()
                }
            };
            tokio::select! {
                biased;
                answer = put((&control, &bulk), ask, within) => answer,
                () = carried => Err(PeerLost::Broken),
            }
        };
        async move { tokio::time::timeout(within, asked).await.unwrap_or(Err(PeerLost::Broken)) }
            .boxed()
    }
}

/// Carries frames for one question.
async fn carry(shared: &Shared, shaken: Shaken, talk: impl Talk, address: &str) {
    let Shaken { socket, rest, peer } = shaken;
    let Some(_buffers) = shared.memory.try_draw(READER_BYTES_MAX as u64) else { return };
    let listed = shared.cards.add((Side::Dialer, peer.lane), peer.node.broker, address);
    listed.card.opened(&peer.node);
    let (from, leave) = ((Side::Acceptor, peer.lane), shared.leaving.clone());
    Link::new((socket, rest), from, talk, listed.card.clone(), leave).run().await;
}

/// Puts a question to whoever is at the other end of these.
async fn put(
    (control, bulk): (&Control, &Bulk),
    ask: Ask,
    within: Duration,
) -> Result<Answer, PeerLost> {
    let answer = match ask {
        Ask::Probe => control.calls.call(within, PeerFrame::Probe).await?,
        Ask::Form(form) => {
            let make = |request| PeerFrame::Form(Form { request, ..form });
            control.calls.call(within, make).await?
        }
        Ask::Forward(question, patience) => {
            let deadline_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
            let make = |request| PeerFrame::Forward(Forward { request, deadline_ms, question });
            control.calls.call(within, make).await?
        }
        Ask::Fetch(fetch) => {
            let make = |request| PeerFrame::Fetch(Fetch { request, ..fetch });
            bulk.calls.call(within, make).await?
        }
    };
    match answer {
        PeerFrame::Probed(probed) => Ok(Answer::Probed(probed)),
        PeerFrame::Formed(formed) => Ok(Answer::Formed(formed.answer)),
        PeerFrame::Forwarded(forwarded) => Ok(Answer::Forwarded(forwarded.answer)),
        PeerFrame::Fetched(fetched) => Ok(Answer::Fetched(fetched.answer)),
        _ => Err(OTHER_ANSWER),
    }
}
