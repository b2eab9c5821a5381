//! A group of three replicas whose appends, beats and votes go over three rooms.

use super::net::Net;
use super::rig::{Rig, Spec, start};
use super::*;
use crate::replication::{
    Birth, Durability, Gate, Pace, Proposal, ProposeError, Replica, ReplicaOptions, ReplicaState,
    Wiring,
};
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::types::{Index, ReplicaId, Term};
use weir_storage::{
    Backend, Device, Executor, Job, Lane as ExecutorLane, LogOptions, NewBatch, OsDisk,
};

const LONG: Duration = Duration::from_secs(60);

/// All work of a device happens where it is submitted, so that time may be paused. Flushes wait
/// while they are held.
#[derive(Default)]
struct Here {
    held: Mutex<Option<Vec<Job>>>,
}

impl std::fmt::Debug for Here {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Here")
    }
}

impl Here {
    fn hold(&self) {
        *self.held.lock().unwrap() = Some(Vec::new());
    }

    fn release(&self) {
        let jobs = self.held.lock().unwrap().take();
        jobs.into_iter().flatten().for_each(|job| job());
    }
}

impl Executor for Here {
    fn submit(&self, lane: ExecutorLane, job: Job) {
        let mut held = self.held.lock().unwrap();
        match held.as_mut().filter(|_| lane == ExecutorLane::Flush) {
            Some(jobs) => jobs.push(job),
            None => {
                drop(held);
                job();
            }
        }
    }
}

struct Broker {
    rig: Rig,
    replica: Replica,
    executor: Arc<Here>,
    _dir: tempfile::TempDir,
}

async fn broker(net: &Arc<Net>, n: u64) -> Broker {
    let switchboard = Switchboard::default();
    let others = [1, 2, 3].into_iter().filter(|other| *other != n).collect::<Vec<_>>();
    let spec = Spec { switchboard: Some(switchboard.clone()), ..Spec::of(n, &others) };
    let rig = start(net, spec).await;
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(OsDisk::new(Backend::Map));
    let executor = Arc::new(Here::default());
    let device = Device::open(disk, executor.clone(), dir.path(), 1).unwrap();
    let options = ReplicaOptions {
        replica: ReplicaId(n),
        birth: Birth::Forms,
        voters: (1..=3).map(|n| (ReplicaId(n), BrokerId(n))).collect(),
        dir: dir.path().join("log"),
        device,
        log: LogOptions { uuid: 7, ..LogOptions::default() },
        durability: Durability::Fsync,
        loss_accepted: false,
        boot_id: 1,
        seed: n,
        pace: Pace::STEADY,
        wiring: Wiring {
            peers: rig.room.peers(),
            switchboard,
            asks: rig.room.asks(),
            gate: Gate::default(),
        },
    };
    let (replica, _) = Replica::open(options).await.unwrap();
    Broker { rig, replica, executor, _dir: dir }
}

async fn leader(brokers: &[Broker], left_out: Option<usize>) -> (usize, Term) {
    let found = tokio::time::timeout(LONG, async {
        loop {
            let leads = |(n, broker): (usize, &Broker)| {
                broker.replica.state().borrow().leading().map(|term| (n, term))
            };
            let rest = brokers.iter().enumerate().filter(|(n, _)| Some(*n) != left_out);
            if let Some(found) = rest.filter_map(leads).max_by_key(|(_, term)| *term) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    found.await.expect("somebody leads")
}

fn batch(run: u32, number: u32, bytes: usize) -> NewBatch {
    let mut header = BatchHeader::empty(BatchType::Data);
    header.record_count = 1;
    (header.run, header.run_number) = (run, number);
    let body = bytes::Bytes::from(vec![number as u8; bytes]);
    header.body_len = body.len() as u32;
    header.body_crc = crc32fast::hash(&body);
    NewBatch { header, body: vec![body] }
}

async fn write(broker: &Broker, term: Term, run: u32, sizes: &[usize]) -> Index {
    let before = broker.replica.log().bounds().last_index;
    for (number, bytes) in (0..).zip(sizes) {
        let proposal = || Proposal { term, batches: vec![batch(run, number, *bytes)] };
        while broker.replica.propose(proposal()) == Err(ProposeError::Full) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    Index(before.0 + sizes.len() as u64)
}

async fn committed(broker: &Broker, index: Index) -> ReplicaState {
    let mut states = broker.replica.state();
    let reached = states.wait_for(|state| state.committed >= index);
    let reached = tokio::time::timeout(LONG, reached).await;
    reached.unwrap_or_else(|_| panic!("{index} is never committed")).unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn three_rooms_carry_the_appends_of_a_group() {
    let net = Arc::new(Net::default());
    let mut brokers = Vec::new();
    for n in 1..=3 {
        brokers.push(broker(&net, n).await);
    }
    let (first, term) = leader(&brokers, None).await;
    let sizes: Vec<_> = (0..60).map(|n| [100, 40_000, 900_000][n % 3]).collect();
    let last = write(&brokers[first], term, 0, &sizes).await;
    for broker in &brokers {
        committed(broker, last).await;
    }
    let chain =
        |broker: &Broker| broker.replica.log().bounds().last.map(|last| (last.index, last.chain));
    let chains: Vec<_> = brokers.iter().map(chain).collect();
    assert!(chains[0].is_some() && chains.iter().all(|chain| *chain == chains[0]), "{chains:?}");
    // Every connection breaks: the group goes on over the next ones.
    net.cut();
    let (_, term_now) = leader(&brokers, None).await;
    let (now, _) = leader(&brokers, None).await;
    let last = write(&brokers[now], term_now, 9, &[100; 20]).await;
    for broker in &brokers {
        committed(broker, last).await;
        assert!(broker.rig.memory.used() < 1 << 20, "what was held was given back");
    }
    // The leader's broker goes: the two others choose one of them.
    brokers[now].rig.room.drain(Instant::now()).await;
    let (next, term) = leader(&brokers, Some(now)).await;
    assert_ne!(next, now);
    let last = write(&brokers[next], term, 99, &[100; 20]).await;
    for (n, broker) in brokers.iter().enumerate() {
        if n != now {
            committed(broker, last).await;
        }
    }
    for broker in brokers {
        broker.replica.shutdown().await;
    }
}

/// What a follower has received and not flushed stays on its account, also when the link that
/// brought it is gone.
#[tokio::test(start_paused = true)]
async fn what_is_not_flushed_is_accounted_for_without_its_link() {
    let net = Arc::new(Net::default());
    let mut brokers = Vec::new();
    for n in 1..=3 {
        brokers.push(broker(&net, n).await);
    }
    let (first, term) = leader(&brokers, None).await;
    let follower = &brokers[(first + 1) % 3];
    let sizes = [900_000; 3];
    let received: u64 = sizes.iter().sum::<usize>() as u64;
    follower.executor.hold();
    let last = write(&brokers[first], term, 0, &sizes).await;
    committed(&brokers[first], last).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(follower.rig.memory.used() >= received);
    net.fall_silent(true);
    net.cut();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let links = follower.rig.room.links();
    assert!(links.iter().all(|link| link.state != LinkState::Open), "{links:?}");
    assert!(follower.rig.memory.used() >= received, "{} bytes", follower.rig.memory.used());
    follower.executor.release();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(follower.rig.memory.used() < 1 << 20, "what was held was given back");
    net.fall_silent(false);
    committed(follower, last).await;
    for broker in brokers {
        broker.replica.shutdown().await;
    }
}
