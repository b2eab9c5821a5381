//! The leaders of real groups make them what a real metadata says.

use super::cluster::BUSY;
use super::net::Net;
use super::rig::{Rig, committed, proposal};
use crate::cluster::MetadataClient;
use crate::cluster::controller::{self, Controller};
use crate::cluster::leaders::LeaderBoard;
use crate::cluster::members::{KeptLog, MemberKeeper};
use crate::replication::metadata::*;
use crate::replication::*;
use crate::seams::WallClock;
use crate::task::{self, TaskKind};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;
use weir_protocol::frame::Overflow;
use weir_protocol::peer::{Led, News};
use weir_protocol::types::{BrokerId, Name, Offset, PartitionId, TopicId};

const LONG: Duration = Duration::from_secs(60);

struct Noon;

impl WallClock for Noon {
    fn now_ms(&self) -> u64 {
        1
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// The metadata of one voter that knows of four brokers, and a topic on the first three.
async fn metadata(rig: &Rig) -> MetadataClient {
    let options = MetadataOptions {
        replica: rig.options(Durability::Fsync),
        founding: Some(Command::Form { cluster: 77, broker: FOUNDER }),
        wall: Arc::new(Noon),
    };
    let metadata = MetadataClient::alone(Metadata::open(options).await.unwrap(), FOUNDER);
    for token in 1..=4 {
        let facts = BrokerFacts {
            token,
            instance: 1,
            gate: GATE_HERE,
            name: name("b"),
            peer: Address::new("h:1").unwrap(),
            client: Address::new("h:2").unwrap(),
            rack: name("r"),
        };
        metadata.register((token == 1).then_some(FOUNDER), facts).await.unwrap();
    }
    let settings = Settings {
        durability: Durability::Fsync,
        overflow: Overflow::Reject,
        max_bytes: 1 << 30,
        max_age_ms: 0,
    };
    let brokers = (1..=3).map(BrokerId).collect();
    let partitions = vec![NewPartition { uuid: 9, brokers }];
    let create = Command::CreateTopic { name: name("t"), settings, created_ms: 1, partitions };
    metadata.propose(create).await.unwrap();
    metadata
}

fn partition(metadata: &MetadataClient) -> Partition {
    metadata.catalog().partition(TopicId(1), PartitionId(0)).unwrap().clone()
}

/// The replicas of one partition, and all that their brokers have beside them.
struct World {
    metadata: MetadataClient,
    board: Arc<LeaderBoard>,
    net: Arc<Net>,
    rigs: Vec<Rig>,
    replicas: BTreeMap<ReplicaId, (BrokerId, Replica)>,
}

impl World {
    /// Opens a replica, and keeps its group whenever it leads.
    async fn open(&mut self, here: Placement, birth: Birth, voters: &[Placement]) {
        let rig = Rig::new();
        let options = ReplicaOptions {
            replica: here.replica,
            birth,
            voters: voters.iter().map(|voter| (voter.replica, voter.broker)).collect(),
            seed: here.replica.0,
            pace: BUSY,
            wiring: Wiring {
                peers: self.net.peers_of(here.broker),
                switchboard: self.net.board(here.broker),
                ..Wiring::alone()
            },
            ..rig.options(Durability::Fsync)
        };
        let (replica, _) = Replica::open(options).await.unwrap();
        let keeper = MemberKeeper {
            replica: replica.clone(),
            me: here.replica,
            broker: here.broker,
            log: KeptLog::Partition(TopicId(1), PartitionId(0)),
            metadata: self.metadata.clone(),
            board: self.board.clone(),
            pace: Arc::default(),
        };
        self.rigs.push(rig);
        self.replicas.insert(here.replica, (here.broker, replica));
        drop(task::spawn("members", TaskKind::Core, keeper.run()));
    }

    /// Every broker tells what it leads.
    fn tell(&self) {
        for broker in 1..=4 {
            let here = self.replicas.iter().filter(|(_, (at, _))| at.0 == broker);
            let led = here.filter_map(|(id, (_, replica))| {
                let term = replica.state().borrow().leading()?;
                let (log_start, high_watermark) = (Offset(0), Offset(0));
                Some(Led { replica: *id, term, log_start, high_watermark, bytes: 0 })
            });
            let news = News { free_bytes: 1 << 40, draining: false, gate: 1, led: led.collect() };
            self.board.note(BrokerId(broker), &news, Instant::now());
        }
    }

    /// Tells news until the partition is such.
    async fn until(&self, what: &str, holds: impl Fn(&Partition) -> bool) -> Partition {
        let began = Instant::now();
        while began.elapsed() < LONG {
            self.tell();
            let leads = |replica| self.leader().is_some_and(|(leader, _)| leader == replica);
            if let Some(command) = controller::formed(&self.metadata.catalog(), leads) {
                self.metadata.propose(command).await.unwrap();
            }
            let partition = partition(&self.metadata);
            if holds(&partition) {
                return partition;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{what}: {:?}", partition(&self.metadata));
    }

    /// Who leads, and in which term.
    fn leader(&self) -> Option<(ReplicaId, Term)> {
        let leads = self.replicas.iter().filter_map(|(id, (_, replica))| {
            replica.state().borrow().leading().map(|term| (*id, term))
        });
        leads.max_by_key(|(_, term)| *term)
    }

    fn at(&self, replica: ReplicaId) -> &Replica {
        &self.replicas[&replica].1
    }
}

/// The broker that leads drains: its replica is copied to a broker that held none, the lead goes to
/// another, and in the end the group, its leader and the metadata agree.
#[test]
fn the_replica_that_leads_moves_to_another_broker() {
    super::run(async {
        let rig = Rig::new();
        let mut world = World {
            metadata: metadata(&rig).await,
            board: Arc::default(),
            net: Arc::default(),
            rigs: Vec::new(),
            replicas: BTreeMap::new(),
        };
        let placed = partition(&world.metadata).replicas;
        for here in &placed {
            world.open(*here, Birth::Forms, &placed).await;
        }
        let controller =
            Controller::new(world.metadata.clone(), world.board.clone(), FOUNDER, Arc::new(Noon));
        drop(task::spawn("controller", TaskKind::Core, controller.run()));
        let preferred = placed[0].replica;
        let leads =
            |partition: &Partition| world.leader().is_some_and(|(id, _)| id == partition.preferred);
        world.until("it is led by the preferred one", leads).await;
        // As whoever leads does.
        let formed = Command::NoteFormed { replicas: vec![preferred] };
        world.metadata.propose(formed).await.unwrap();
        let formed = partition(&world.metadata);
        assert_eq!(formed.preferred, preferred);
        let (leader, term) = world.leader().unwrap();
        let before = world.at(leader).state().borrow().committed;
        world.at(leader).propose(proposal(term, 0, 0..40)).unwrap();
        let written = committed(world.at(leader), before.0 + 1).await.committed;

        let drain = Command::SetStanding { broker: FOUNDER, standing: Standing::Draining };
        world.metadata.propose(drain).await.unwrap();
        let on_fourth = |partition: &Partition| {
            partition.replicas.iter().find(|here| here.broker == BrokerId(4)).copied()
        };
        let moving = world.until("one joins", |partition| on_fourth(partition).is_some()).await;
        let new = on_fourth(&moving).unwrap();
        world.open(new, Birth::Joins, &[]).await;

        let moved = |partition: &Partition| {
            partition.replicas.iter().all(|here| here.broker != FOUNDER)
                && world.leader().is_some_and(|(id, _)| id == partition.preferred)
        };
        let done = world.until("it has moved", moved).await;
        assert_eq!(done.voters().count(), 3);
        committed(world.at(new.replica), written.0).await;
        let members = world.at(world.leader().unwrap().0).members();
        let voters: BTreeSet<_> = done.voters().map(|here| here.replica).collect();
        assert_eq!(members.voters, [voters]);
        assert!(world.metadata.catalog().moves.is_empty());
        for (_, replica) in world.replicas.values() {
            replica.clone().shutdown().await;
        }
        world.metadata.stop().await;
    });
}
