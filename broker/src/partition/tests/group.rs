//! Three replicas of one partition, each on a broker and a disk of its own.

use super::rig::{Peer, Rig, until};
use crate::partition::PartitionHandle;
use crate::replication::metadata::GATE_CLUSTER;
use crate::replication::tests::net::Net;
use crate::replication::{Birth, Pace, Replica};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use tokio::time::{Duration, Instant};
use weir_protocol::batch::BatchType;
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::{Needs, Refusal, Start};
use weir_protocol::types::{BrokerId, Index, Offset, ProducerId, ReplicaId, Sequence, Term};
use weir_storage::Read;

/// Longer than any election here.
const LONG: Duration = Duration::from_secs(20);
const ANYWHERE: Needs = Needs { any_replica: true, reach: Offset(0), resume: Offset(0), epoch: 0 };

/// A group: replica n lives on broker n.
struct Group {
    net: Arc<Net>,
    rigs: BTreeMap<u64, Rig>,
    running: BTreeMap<u64, PartitionHandle>,
}

impl Group {
    async fn formed(change: impl Fn(&mut Rig)) -> Self {
        let rigs = (1..=3).map(|n| {
            let mut rig = Rig::new();
            change(&mut rig);
            (n, rig)
        });
        let mut group =
            Self { net: Arc::default(), rigs: rigs.collect(), running: BTreeMap::new() };
        for n in 1..=3 {
            group.open(n, Birth::Forms).await;
        }
        for partition in group.running.values() {
            tokio::time::timeout(LONG, partition.opened()).await.expect("a follower opens as well");
        }
        group
    }

    async fn open(&mut self, n: u64, birth: Birth) {
        let mut options = self.rigs[&n].options();
        let replica = &mut options.replica;
        (replica.replica, replica.birth, replica.seed) = (ReplicaId(n), birth, n);
        replica.voters = (1..=3).map(|n| (ReplicaId(n), BrokerId(n))).collect();
        replica.pace = Pace { heartbeat_ms: 100, election_ms: 700 };
        replica.wiring.gate.raise(GATE_CLUSTER);
        replica.wiring.peers = self.net.peers_of(BrokerId(n));
        replica.wiring.switchboard = self.net.board(BrokerId(n));
        self.running.insert(n, PartitionHandle::open(options).await.unwrap());
    }

    /// Who leads in a newer term than `than`, and that term.
    async fn leader(&self, than: Term) -> (u64, Term) {
        let since = Instant::now();
        while since.elapsed() < LONG {
            let views = self.running.iter().map(|(n, partition)| (*n, partition.view()));
            let leading = views.filter(|(_, view)| view.leading && view.term > than);
            if let Some((n, view)) = leading.max_by_key(|(_, view)| view.term) {
                return (n, view.term);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("nobody leads: {:?}", self.running)
    }

    fn peer(&self, n: u64) -> Peer {
        Peer::new(&self.rigs[&n], &self.running[&n])
    }

    /// A new replica takes the place of `gone`, and leads.
    async fn replace(&mut self, (leader, term): (u64, Term), gone: u64, new: u64) {
        self.running.remove(&gone).unwrap().stop().await;
        self.rigs.insert(new, Rig::new());
        self.open(new, Birth::Joins).await;
        let leads = self.running[&leader].replica().unwrap();
        let learns = leads.add_learner(ReplicaId(new), BrokerId(new)).await.unwrap();
        until(&self.running[&new], |view| {
            view.high_watermark >= self.running[&leader].view().high_watermark
        })
        .await;
        let voters = (1..=new).filter(|n| *n != gone).map(ReplicaId).collect();
        leads.change_voters(voters, learns).await.unwrap();
        leads.transfer(ReplicaId(new)).await.unwrap();
        assert_eq!(self.leader(term).await.0, new);
    }

    fn others(&self, than: u64) -> [u64; 2] {
        let mut others = (1..=3).filter(|n| *n != than);
        std::array::from_fn(|_| others.next().unwrap())
    }

    async fn stop(self) {
        for partition in self.running.values() {
            partition.stop().await;
        }
    }
}

/// The records of a log from `from` on, one in each batch, by their offsets.
async fn records(replica: &Replica, from: Offset) -> BTreeMap<u64, Bytes> {
    let (log, mut found) = (replica.log(), BTreeMap::new());
    let mut next = from;
    while next < log.bounds().log_end {
        let slices = match log.read_from_offset(next, 1 << 20).unwrap() {
            Read::Hot(slices) => slices,
            Read::Cold(cold) => tokio::task::spawn_blocking(|| cold.run()).await.unwrap().unwrap(),
        };
        assert!(!slices.is_empty(), "nothing is stored at {next}");
        for slice in slices.iter().filter(|slice| slice.header.batch_type == BatchType::Data) {
            let body = slice.bytes.slice(128..slice.header.wire_len());
            found.insert(slice.header.base_offset.0, body);
            next = slice.header.end_offset();
        }
    }
    found
}

fn names(refusal: &Refusal, leader: u64, term: Term) {
    assert_eq!(refusal.code, ErrorCode::NotLeader.number(), "{refusal:?}");
    assert_eq!(refusal.leader(), Some((BrokerId(leader), term)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_group_serves_its_readers_everywhere_and_moves_everybody_else_with_its_leader() {
    let group = Group::formed(|_| {}).await;
    let (first, term) = group.leader(Term(0)).await;
    let [second, third] = group.others(first);
    let mut publisher = group.peer(first);
    for number in 0..10 {
        publisher.publish(number * 10, 10, 1_000).await;
    }
    publisher.answers(10).await;
    let mut consumer = group.peer(first);
    let subscribed = consumer.subscribe(Some("s"), Start::Earliest).await.unwrap();
    assert_eq!(subscribed.term, term);
    consumer.delivered(100).await;
    consumer.settle(40, true);
    assert_eq!(consumer.settled().await, Offset(40));

    // A follower names the leader, and serves readers that allow it what was published before.
    let mut stray = group.peer(second);
    stray.publish(0, 1, 1_000).await;
    names(&stray.answer().await.unwrap_err(), first, term);
    names(&stray.next_sequence(ProducerId(1), 0).await.unwrap_err(), first, term);
    names(&stray.subscribe(Some("s"), Start::Earliest).await.unwrap_err(), first, term);
    names(&stray.subscribe(None, Start::Earliest).await.unwrap_err(), first, term);
    let mut reader = group.peer(third);
    let reaching = Needs { reach: Offset(100), ..ANYWHERE };
    let read = reader.subscribe_with(None, Start::Earliest, reaching).await.unwrap();
    assert_eq!((read.start, read.term), (Offset(0), Term(0)));
    reader.delivered(100).await;

    // A move: everybody is told where to go.
    let replica = group.running[&first].replica().unwrap();
    replica.transfer(ReplicaId(second)).await.unwrap();
    let (leader, later) = group.leader(term).await;
    assert_eq!(leader, second);
    names(&consumer.closed().await.unwrap(), second, later);
    names(&publisher.closed().await.unwrap(), second, later);
    let mut moved = group.peer(second);
    let resume = Needs { resume: Offset(100), ..Needs::default() };
    let resumed = moved.subscribe_with(Some("s"), Start::Earliest, resume).await.unwrap();
    assert_eq!((resumed.start, resumed.term), (Offset(100), later));
    moved.settle(90, true);
    assert_eq!(moved.settled().await, Offset(90), "what it received before the move");
    assert_eq!(moved.next_sequence(ProducerId(1), 0).await, Ok(Sequence(100)));
    moved.publish(90, 10, 1_000).await;
    let repeated = moved.answer().await.unwrap();
    assert_eq!((repeated.base_offset, repeated.duplicate), (Offset(90), true));
    moved.publish(100, 5, 1_000).await;
    assert_eq!(moved.answer().await.unwrap().base_offset, Offset(100));
    moved.delivered(5).await;
    reader.delivered(5).await;
    group.stop().await;
}

/// Whoever publishes while the lead is handed over is told who leads next, and never to ask around.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_publisher_is_sent_on_by_a_leader_that_hands_over() {
    let group = Group::formed(|_| {}).await;
    let (first, term) = group.leader(Term(0)).await;
    let [second, _] = group.others(first);
    let mut publisher = group.peer(first);
    publisher.publish(0, 1, 1_000).await;
    publisher.answers(1).await;
    let replica = group.running[&first].replica().unwrap();
    let mut transfer = pin!(replica.transfer(ReplicaId(second)));
    let mut next = 1;
    loop {
        tokio::select! {
            biased;
            given = &mut transfer => break given.unwrap(),
            // Few enough to need no more credit.
            () = publisher.publish(next, 1, 1_000), if next < 40 => next += 1,
        }
        tokio::task::yield_now().await;
    }
    let (leader, later) = group.leader(term).await;
    assert_eq!(leader, second);
    for sequence in 1..next {
        match publisher.answer().await {
            Ok(stored) => assert!(!stored.duplicate),
            Err(refusal) if refusal.code == ErrorCode::NotLeader.number() => {
                names(&refusal, second, later);
            }
            // It was in flight when the next leader was heard of, which can be asked.
            Err(refusal) => {
                assert_eq!(refusal.code, ErrorCode::LeaderLost.number(), "{sequence}: {refusal:?}");
            }
        }
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_leader_that_is_cut_off_comes_back_as_a_follower_with_the_same_state() {
    let mut group = Group::formed(|_| {}).await;
    let (first, term) = group.leader(Term(0)).await;
    let mut publisher = group.peer(first);
    publisher.publish(0, 10, 1_000).await;
    publisher.answers(1).await;
    group.net.cut_off(BrokerId(first));
    // In flight where no majority hears of it: never stored, and answered when it gives up its lead.
    publisher.publish(10, 10, 1_000).await;
    let alone = group.running.remove(&first).unwrap();
    let (second, later) = group.leader(term).await;
    let mut elsewhere = group.peer(second);
    assert_eq!(elsewhere.next_sequence(ProducerId(1), 0).await, Ok(Sequence(10)));
    elsewhere.publish(10, 7, 1_000).await;
    assert_eq!(elsewhere.answers(1).await[0].base_offset, Offset(10));
    let refused = publisher.answer().await.unwrap_err();
    let honest = [ErrorCode::NotLeader, ErrorCode::LeaderLost].map(ErrorCode::number);
    assert!(honest.contains(&refused.code), "{refused:?}");
    let closed = publisher.closed().await.unwrap();
    let nobody = (ErrorCode::NotLeader.number(), None);
    assert_eq!((closed.code, closed.leader()), nobody, "it hears of no leader");
    group.net.heal();
    group.running.insert(first, alone);
    let back = until(&group.running[&first], |view| view.high_watermark == Offset(17)).await;
    assert!(!back.leading);
    let asked = group.peer(first).next_sequence(ProducerId(1), 0).await;
    names(&asked.unwrap_err(), second, later);
    group.stop().await;
}

/// It cannot know whether another leads by now, and what was settled there.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_leader_that_is_cut_off_attaches_nobody() {
    let group = Group::formed(|_| {}).await;
    let (first, term) = group.leader(Term(0)).await;
    let mut before = group.peer(first);
    assert_eq!(before.subscribe(Some("s"), Start::Earliest).await.unwrap().term, term);
    group.net.cut_off(BrokerId(first));
    let mut consumer = group.peer(first);
    let refused = consumer.subscribe(Some("s"), Start::Earliest).await.unwrap_err();
    let nobody = (ErrorCode::NotLeader.number(), None);
    assert_eq!((refused.code, refused.leader()), nobody, "it hears of no leader");
    group.net.heal();
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_follower_trims_with_its_leader_and_starts_from_its_own_checkpoint() {
    let mut group = Group::formed(|rig| rig.config.max_bytes = 8 << 20).await;
    let (first, _) = group.leader(Term(0)).await;
    let [second, _] = group.others(first);
    let mut publisher = group.peer(first);
    for number in 0..200 {
        publisher.publish(number, 1, 100_000).await;
        publisher.answers(1).await;
    }
    let trimmed = |view: &crate::partition::PartitionView| {
        view.high_watermark == Offset(200) && view.log_start > Offset(0) && view.bytes < 11 << 20
    };
    let leads = until(&group.running[&first], trimmed).await;
    let follows =
        until(&group.running[&second], |view| trimmed(view) && view.log_start >= leads.log_start)
            .await;
    assert!(!follows.leading);
    group.running.remove(&second).unwrap().stop().await;
    group.open(second, Birth::Continues).await;
    let again = until(&group.running[&second], |view| view.high_watermark == Offset(200)).await;
    assert!(again.log_start >= follows.log_start);
    let mut reader = group.peer(second);
    let read = reader.subscribe_with(None, Start::Earliest, ANYWHERE).await.unwrap();
    reader.delivered(200 - read.start.0).await;
    group.stop().await;
}

/// What a trim leaves is all there for whoever joins behind it, although the segments that stay begin
/// among the records that readers may still ask for.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_replica_that_joins_behind_a_trim_has_every_record_that_is_retained() {
    let mut group = Group::formed(|rig| rig.config.max_bytes = 8 << 20).await;
    let (first, term) = group.leader(Term(0)).await;
    let [second, _] = group.others(first);
    let mut publisher = group.peer(first);
    for number in 0..200 {
        publisher.publish(number, 1, 100_000).await;
        publisher.answers(1).await;
    }
    let replica = group.running[&first].replica().unwrap();
    until(&group.running[&first], |view| {
        view.bytes < 11 << 20 && replica.log().bounds().first_index > Index(1)
    })
    .await;
    let log_start = group.running[&first].view().log_start;
    let retained = records(&replica, log_start).await;
    assert_eq!(
        retained.keys().copied().collect::<Vec<_>>(),
        (log_start.0..200).collect::<Vec<_>>()
    );

    group.replace((first, term), second, 4).await;
    let joined = group.running[&4].replica().unwrap();
    assert!(joined.log().bounds().first_index > Index(1), "it began at a snapshot");
    assert_eq!(records(&joined, log_start).await, retained);
    let mut reader = group.peer(4);
    let read = reader.subscribe_with(None, Start::Earliest, ANYWHERE).await.unwrap();
    assert_eq!(read.start, log_start);
    reader.delivered(200 - log_start.0).await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_finds_nobody_opens_and_says_that_nobody_leads() {
    let mut group =
        Group { net: Arc::default(), rigs: [(1, Rig::new())].into(), running: BTreeMap::new() };
    group.open(1, Birth::Forms).await;
    tokio::time::timeout(LONG, group.running[&1].opened()).await.expect("it waits for nobody");
    let mut peer = group.peer(1);
    peer.publish(0, 1, 1_000).await;
    let refused = peer.answer().await.unwrap_err();
    assert_eq!((refused.code, refused.leader()), (ErrorCode::NotLeader.number(), None));
    let read = peer.subscribe_with(None, Start::Latest, ANYWHERE).await.unwrap();
    assert_eq!(read.high_watermark, Offset(0));
    group.stop().await;
}
