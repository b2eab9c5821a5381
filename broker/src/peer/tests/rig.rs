//! A room whose replicas and answers the test plays.

use super::net::Net;
use super::*;
use crate::budget::Part;
use crate::peer::replicas::PaidAppend;
use crate::seams::{Entropy, OsWallClock};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use weir_protocol::frame::Refusal;
use weir_protocol::peer::{
    Append, FetchedBatches, ForwardedAnswer, LogPlace, MemberState, Probed, Question, SegmentPart,
};
use weir_protocol::types::{Index, Name, ReplicaId, RequestId, Term};
use weir_storage::{Backend, OsDisk, ThreadExecutor};

pub(super) const CLUSTER: u128 = 0xc1;
pub(super) const MEMORY_BYTES: u64 = 64 << 20;

/// Different every time, and the same in every run.
pub(super) struct Counting(pub(super) AtomicU64);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        let seed = self.0.fetch_add(1, Ordering::SeqCst);
        fastrand::Rng::with_seed(seed).fill(bytes);
    }
}

pub(super) fn node(cluster: u128, broker: u64) -> Node {
    let name = Name::new(&format!("b{broker}")).unwrap();
    Node { cluster, broker: BrokerId(broker), instance: 100 + broker, name }
}

pub(super) fn secret(byte: u8) -> Option<Secret> {
    Some(Secret::new(&[byte; 32]).unwrap())
}

pub(super) fn address_of(broker: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7_000 + broker as u16))
}

/// What a room is started with.
pub(super) struct Spec {
    pub(super) node: Node,
    pub(super) secret: Option<Secret>,
    pub(super) directory: Vec<u64>,
    pub(super) listen: SocketAddr,
    pub(super) ip: [u8; 4],
    pub(super) switchboard: Option<Switchboard>,
    pub(super) memory_bytes: u64,
    pub(super) catch_up_bytes_per_s: u64,
}

impl Spec {
    pub(super) fn of(broker: u64, directory: &[u64]) -> Self {
        Self {
            node: node(CLUSTER, broker),
            secret: secret(7),
            directory: directory.to_vec(),
            listen: address_of(broker),
            ip: [127, 0, 0, 1],
            switchboard: None,
            memory_bytes: MEMORY_BYTES,
            catch_up_bytes_per_s: 0,
        }
    }
}

pub(super) struct Rig {
    pub(super) room: Arc<PeerRoom>,
    pub(super) replicas: Arc<Played>,
    pub(super) me: watch::Sender<Node>,
    pub(super) directory: watch::Sender<Directory>,
    pub(super) memory: Arc<Account>,
}

pub(super) fn seams(net: &Arc<Net>, ip: [u8; 4], seed: u64) -> Seams {
    Seams {
        disk: Arc::new(OsDisk::new(Backend::Pwrite)),
        executor: Arc::new(ThreadExecutor::start().unwrap()),
        network: net.at(ip),
        wall: Arc::new(OsWallClock),
        entropy: Arc::new(Counting(AtomicU64::new(seed << 32))),
        seed,
        boot_id: 1,
    }
}

pub(super) fn directory_of(brokers: &[u64]) -> Directory {
    let address = |broker: &u64| (BrokerId(*broker), address_of(*broker).to_string());
    Arc::new(brokers.iter().map(address).collect())
}

pub(super) async fn try_start(net: &Arc<Net>, spec: Spec) -> Result<Rig, ListenError> {
    let seams = seams(net, spec.ip, spec.node.broker.0);
    let memory = Account::new(Part { name: "peers", bytes: spec.memory_bytes });
    let (me, me_seen) = watch::channel(spec.node);
    let (directory, directory_seen) = watch::channel(directory_of(&spec.directory));
    let replicas = Arc::new(Played::default());
    let options = PeerOptions {
        listen: spec.listen,
        secret: spec.secret,
        me: me_seen,
        directory: directory_seen,
        memory: memory.clone(),
        switchboard: spec.switchboard.clone().unwrap_or_default(),
        catch_up_bytes_per_s: spec.catch_up_bytes_per_s,
        answers: replicas.clone(),
        seed: 1,
    };
    let room = match spec.switchboard {
        Some(_) => PeerRoom::start(&seams, options).await?,
        None => PeerRoom::start_with(&seams, options, replicas.clone()).await?,
    };
    Ok(Rig { room, replicas, me, directory, memory })
}

pub(super) async fn start(net: &Arc<Net>, spec: Spec) -> Rig {
    try_start(net, spec).await.unwrap()
}

impl Rig {
    /// The links that this room dialed.
    pub(super) fn dialed(&self) -> Vec<LinkState> {
        let links = self.room.links().into_iter();
        links.filter(|link| link.side == Side::Dialer).map(|link| link.state).collect()
    }

    pub(super) async fn linked(&self) {
        self.until(|states| {
            !states.is_empty() && states.iter().all(|state| *state == LinkState::Open)
        })
        .await;
    }

    pub(super) async fn until(&self, holds: impl Fn(&[LinkState]) -> bool) {
        let found = tokio::time::timeout(Duration::from_secs(30), async {
            while !holds(&self.dialed()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("the links stay {:?}", self.dialed()));
    }
}

/// Replicas and answers that do as the test says.
pub(super) struct Played {
    /// Replicas that answer nothing.
    pub(super) held: watch::Sender<BTreeSet<ReplicaId>>,
    pub(super) beats: Mutex<Vec<Beat>>,
    pub(super) installed: Mutex<Vec<Bytes>>,
    pub(super) news: Mutex<Vec<(BrokerId, News)>>,
    pub(super) forwarded: Mutex<Vec<Question>>,
}

impl Default for Played {
    fn default() -> Self {
        Self {
            held: watch::Sender::new(BTreeSet::new()),
            beats: Mutex::default(),
            installed: Mutex::default(),
            news: Mutex::default(),
            forwarded: Mutex::default(),
        }
    }
}

impl Played {
    pub(super) fn hold(&self, replica: u64, held: bool) {
        let replica = ReplicaId(replica);
        self.held.send_modify(|all| {
            if held {
                all.insert(replica)
            } else {
                all.remove(&replica)
            };
        });
    }

    fn released(&self, replica: ReplicaId) -> impl Future<Output = ()> + Send + 'static {
        let mut held = self.held.subscribe();
        async move {
            let _ = held.wait_for(|held| !held.contains(&replica)).await;
        }
    }
}

impl Replicas for Played {
    fn stream(
        &self,
        to: ReplicaId,
        appends: BoxStream<'static, PaidAppend>,
    ) -> BoxStream<'static, AppendResult> {
        let held = self.held.clone();
        appends
            .then(move |(append, paid_with)| {
                let mut held = held.subscribe();
                async move {
                    let _ = held.wait_for(|held| !held.contains(&to)).await;
                    drop(paid_with);
                    flushed(append.number)
                }
            })
            .boxed()
    }

    fn beat(&self, beat: Beat) -> BoxFuture<'static, AppendResult> {
        self.beats.lock().unwrap().push(beat);
        let released = self.released(beat.address.to);
        async move {
            released.await;
            AppendResult::Flushed(beat.matching)
        }
        .boxed()
    }

    fn vote(&self, ask: VoteAsk) -> BoxFuture<'static, Result<VoteAnswer, PeerRefusal>> {
        let released = self.released(ask.address.to);
        async move {
            released.await;
            Ok(VoteAnswer { granted: true, vote: ask.vote, last: ask.last })
        }
        .boxed()
    }

    fn install(
        &self,
        head: SnapshotHead,
        state: Bytes,
    ) -> BoxFuture<'static, Result<Vote, PeerRefusal>> {
        let released = self.released(head.address.to);
        self.installed.lock().unwrap().push(state);
        async move {
            released.await;
            Ok(head.vote)
        }
        .boxed()
    }

    fn transfer(
        &self,
        transfer: Transfer,
    ) -> BoxFuture<'static, Result<TransferAnswer, PeerRefusal>> {
        async move { Ok(TransferAnswer::NotFlushed(transfer.last)) }.boxed()
    }
}

impl Answers for Played {
    fn probed(&self) -> Probed {
        Probed {
            request: RequestId(0),
            cluster: CLUSTER,
            broker: BrokerId(5),
            state: MemberState::Member,
            expect: 3,
            seeds_hash: 9,
            gate: 1,
            client_address: "c:1".to_owned(),
            peer_address: "p:1".to_owned(),
            rack: None,
            name: Name::new("b").unwrap(),
        }
    }

    fn form(&self, form: Form) -> BoxFuture<'static, Result<(), PeerRefusal>> {
        let fits = form.cluster == CLUSTER;
        async move { if fits { Ok(()) } else { Err(PeerRefusal::WrongCluster) } }.boxed()
    }

    fn forward(
        &self,
        question: Question,
        _within: Duration,
    ) -> BoxFuture<'static, Result<ForwardedAnswer, Refusal>> {
        self.forwarded.lock().unwrap().push(question.clone());
        async move {
            Ok(match question {
                Question::Command(command) => ForwardedAnswer::Applied(command),
                Question::ReadIndex => ForwardedAnswer::ReadIndex(Index(77)),
            })
        }
        .boxed()
    }

    fn fetch(&self, fetch: Fetch) -> BoxFuture<'static, Result<FetchedBatches, PeerRefusal>> {
        let batches = vec![vec![fetch.first.0 as u8; 256 << 10].into()];
        async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(FetchedBatches { more: true, parts: vec![SegmentPart { salt: 1, batches }] })
        }
        .boxed()
    }

    fn news(&self, from: BrokerId, news: News) {
        self.news.lock().unwrap().push((from, news));
    }
}

pub(super) fn address(to: u64) -> GroupAddress {
    GroupAddress { to: ReplicaId(to), from: ReplicaId(1) }
}

pub(super) fn place(index: u64) -> LogPlace {
    LogPlace { term: Term(1), index: Index(index) }
}

pub(super) fn flushed(index: u64) -> AppendResult {
    AppendResult::Flushed(place(index))
}

pub(super) fn beat(to: u64, index: u64) -> Beat {
    Beat { address: address(to), term: Term(1), matching: place(index), commit: place(index) }
}

pub(super) fn vote_ask(to: u64) -> VoteAsk {
    VoteAsk {
        request: RequestId(0),
        address: address(to),
        kind: weir_protocol::peer::VoteKind::Election,
        vote: Vote { term: Term(2), replica: ReplicaId(1), committed: false },
        last: place(5),
    }
}

/// An append of so many bytes that nobody could decode; played replicas do not.
pub(super) fn append(bytes: usize) -> Append {
    let batches = vec![vec![0; bytes].into()];
    let parts = if bytes == 0 { Vec::new() } else { vec![SegmentPart { salt: 1, batches }] };
    Append {
        stream: weir_protocol::types::StreamId(0),
        number: 0,
        vote: Vote { term: Term(1), replica: ReplicaId(1), committed: true },
        prev: place(0),
        commit: place(0),
        parts,
    }
}
