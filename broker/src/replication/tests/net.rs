//! Brokers in one process, and between them a network that takes its time and can be cut.

use super::super::*;
use crate::task::{self, TaskKind};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use weir_protocol::peer::{
    Append, AppendResult, Beat, GroupAddress, SnapshotHead, Transfer, TransferAnswer, Vote,
    VoteAnswer, VoteAsk,
};
use weir_protocol::types::BrokerId;

/// Appends of one stream that are under way.
const UNDER_WAY_MAX: usize = 4;
/// How long one way takes.
const ONE_WAY: Duration = Duration::from_millis(1);

#[derive(Default)]
pub(crate) struct Net {
    boards: Mutex<BTreeMap<BrokerId, Switchboard>>,
    cut_off: Mutex<BTreeSet<BrokerId>>,
    /// Nothing passes this way.
    mute: Mutex<BTreeSet<Way>>,
}

impl Net {
    /// The replicas of a broker.
    pub(crate) fn board(&self, broker: BrokerId) -> Switchboard {
        self.boards.lock().unwrap().entry(broker).or_default().clone()
    }

    /// Nothing passes to or from this broker any more.
    pub(crate) fn cut_off(&self, broker: BrokerId) {
        self.cut_off.lock().unwrap().insert(broker);
    }

    /// Nothing passes from this broker to that one any more.
    pub(crate) fn mute(&self, from: BrokerId, to: BrokerId) {
        self.mute.lock().unwrap().insert((from, to));
    }

    pub(crate) fn heal(&self) {
        self.cut_off.lock().unwrap().clear();
        self.mute.lock().unwrap().clear();
    }

    pub(crate) fn peers_of(self: &Arc<Self>, broker: BrokerId) -> Arc<dyn Peers> {
        Arc::new(From { net: self.clone(), broker })
    }

    async fn pass(&self, way: Way) -> Result<(), PeerLost> {
        tokio::time::sleep(ONE_WAY).await;
        let cut_off = self.cut_off.lock().unwrap();
        let is_mute = self.mute.lock().unwrap().contains(&way);
        match is_mute || cut_off.contains(&way.0) || cut_off.contains(&way.1) {
            true => Err(PeerLost::Unreachable),
            false => Ok(()),
        }
    }

    fn inbox(&self, way: Way, replica: ReplicaId) -> Result<Inbox, PeerLost> {
        self.board(way.1).inbox(replica).map_err(PeerLost::Refused)
    }
}

/// From one broker to another.
type Way = (BrokerId, BrokerId);

fn back((from, to): Way) -> Way {
    (to, from)
}

struct From {
    net: Arc<Net>,
    broker: BrokerId,
}

impl From {
    /// Goes there, does `work`, and comes back.
    fn ask<T, W>(
        &self,
        to: BrokerId,
        address: GroupAddress,
        work: impl FnOnce(Inbox) -> W + Send + 'static,
    ) -> BoxFuture<'static, Result<T, PeerLost>>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, PeerLost>> + Send,
    {
        let (net, way) = (self.net.clone(), (self.broker, to));
        let asked = async move {
            net.pass(way).await?;
            let answer = work(net.inbox(way, address.to)?).await?;
            net.pass(back(way)).await?;
            Ok(answer)
        };
        asked.boxed()
    }
}

impl Peers for From {
    fn append(&self, to: BrokerId, address: GroupAddress) -> Box<dyn AppendStream> {
        let (appends, mut sent) = mpsc::channel(UNDER_WAY_MAX);
        let (answers, answered) = mpsc::channel(UNDER_WAY_MAX + 1);
        let (net, way) = (self.net.clone(), (self.broker, to));
        let carried = async move {
            let outcome = carry(&net, way, address, &mut sent, &answers).await;
            if let Err(lost) = outcome {
                let _ = answers.send(Err(lost)).await;
            }
        };
        drop(task::spawn("net", TaskKind::Connection, carried));
        Box::new(Carried { appends: Some(appends), answered, under_way: 0 })
    }

    fn beat(&self, to: BrokerId, beat: Beat) -> BoxFuture<'static, Result<AppendResult, PeerLost>> {
        self.ask(to, beat.address, move |inbox| async move { Ok(inbox.beat(beat).await) })
    }

    fn vote(&self, to: BrokerId, ask: VoteAsk) -> BoxFuture<'static, Result<VoteAnswer, PeerLost>> {
        self.ask(to, ask.address, move |inbox| async move {
            inbox.vote(ask).await.map_err(PeerLost::Refused)
        })
    }

    fn snapshot(
        &self,
        to: BrokerId,
        head: SnapshotHead,
        state: Bytes,
    ) -> BoxFuture<'static, Result<Vote, PeerLost>> {
        self.ask(to, head.address, move |inbox| async move {
            inbox.install(head, state).await.map_err(PeerLost::Refused)
        })
    }

    fn transfer(
        &self,
        to: BrokerId,
        transfer: Transfer,
    ) -> BoxFuture<'static, Result<TransferAnswer, PeerLost>> {
        self.ask(to, transfer.address, move |inbox| async move {
            inbox.transfer(transfer).await.map_err(PeerLost::Refused)
        })
    }
}

/// Carries one stream until it ends or is cut.
async fn carry(
    net: &Net,
    way: Way,
    address: GroupAddress,
    sent: &mut mpsc::Receiver<Append>,
    answers: &mpsc::Sender<Result<AppendResult, PeerLost>>,
) -> Result<(), PeerLost> {
    net.pass(way).await?;
    let (input, mut results) = net.inbox(way, address.to)?.stream().await;
    let there = async move {
        while let Some(append) = sent.recv().await {
            net.pass(way).await.map_err(|_| PeerLost::Broken)?;
            input.push(&append, ()).await.map_err(PeerLost::Refused)?;
        }
        Ok(())
    };
    let answered = async {
        while let Some(result) = results.next().await {
            net.pass(back(way)).await.map_err(|_| PeerLost::Broken)?;
            let _ = answers.send(Ok(result)).await;
        }
        Ok(())
    };
    tokio::try_join!(there, answered).map(drop)
}

struct Carried {
    appends: Option<mpsc::Sender<Append>>,
    answered: mpsc::Receiver<Result<AppendResult, PeerLost>>,
    under_way: usize,
}

impl AppendStream for Carried {
    fn catch_up(&mut self, _cost: u64, _presses: bool) -> Instant {
        Instant::now()
    }

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), PeerLost>> {
        // The next answer wakes whoever waits.
        if self.under_way < UNDER_WAY_MAX { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn send(&mut self, append: Append) {
        self.under_way += 1;
        // What carries them may have ended; its last answer says why.
        let _ = self.appends.as_ref().unwrap().try_send(append);
    }

    fn close(&mut self) {
        self.appends = None;
    }

    fn poll_answer(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<AppendResult, PeerLost>>> {
        let answer = std::task::ready!(self.answered.poll_recv(context));
        self.under_way = self.under_way.saturating_sub(1);
        Poll::Ready(answer)
    }
}
