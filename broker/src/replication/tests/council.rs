//! The metadata of a cluster: several voters, asked from any broker.

use super::cluster::Cluster;
use super::rig::until;
use super::run;
use crate::cluster::MetadataClient;
use crate::peer::ask::{Answer, Ask, Asks};
use crate::replication::metadata::*;
use crate::replication::{Birth, Durability, PeerLost};
use crate::seams::{BoxFuture, OsWallClock};
use futures_util::FutureExt;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::time::{Duration, Instant};
use weir_protocol::frame::Overflow;
use weir_protocol::types::{BrokerId, Name};

/// Longer than any election here.
const LONG: Duration = Duration::from_secs(20);

/// The brokers by their ids; questions between them, some of whose answers get lost.
#[derive(Default)]
struct Ways {
    clients: Mutex<BTreeMap<BrokerId, MetadataClient>>,
    losses: AtomicUsize,
    asked: AtomicUsize,
}

struct Way(Arc<Ways>);

impl Asks for Way {
    fn ask(
        &self,
        to: BrokerId,
        ask: Ask,
        within: Duration,
    ) -> BoxFuture<'static, Result<Answer, PeerLost>> {
        let ways = self.0.clone();
        let Ask::Forward(question, _) = ask else { panic!("{ask:?}") };
        async move {
            ways.asked.fetch_add(1, Ordering::Relaxed);
            let there = ways.clients.lock().unwrap().get(&to).cloned();
            let answer = there.ok_or(PeerLost::Unreachable)?.answer(question, within).await;
            let lost = ways
                .losses
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if lost.is_ok() { Err(PeerLost::Broken) } else { Ok(Answer::Forwarded(answer)) }
        }
        .boxed()
    }

    fn ask_at(
        &self,
        address: &str,
        _ask: Ask,
        _within: Duration,
    ) -> BoxFuture<'static, Result<Answer, PeerLost>> {
        unreachable!("{address} has an id")
    }
}

/// Metadata replicas of one group, each on a broker of its own.
struct Council {
    cluster: Cluster,
    ways: Arc<Ways>,
}

impl Council {
    async fn founded(founders: u64) -> Self {
        let mut council = Self { cluster: Cluster::of(founders), ways: Arc::default() };
        for n in 1..=founders {
            let founding =
                Command::Found { cluster: 77, brokers: founders as u16, voters: founders as u8 };
            council.open(n, Birth::Forms, Some(founding)).await;
        }
        council
    }

    async fn open(&mut self, n: u64, birth: Birth, founding: Option<Command>) {
        let replica = self.cluster.options(n, birth);
        let wall = Arc::new(OsWallClock);
        let metadata = Metadata::open(MetadataOptions { replica, founding, wall }).await.unwrap();
        let way = Arc::new(Way(self.ways.clone()));
        let client = MetadataClient::new(metadata, BrokerId(n), way);
        self.ways.clients.lock().unwrap().insert(BrokerId(n), client);
    }

    fn at(&self, n: u64) -> MetadataClient {
        self.ways.clients.lock().unwrap()[&BrokerId(n)].clone()
    }

    /// Cuts a broker off and ends what it runs.
    async fn kill(&mut self, n: u64) {
        self.cluster.net.cut_off(BrokerId(n));
        let gone = self.ways.clients.lock().unwrap().remove(&BrokerId(n)).unwrap();
        gone.metadata().replica().clone().shutdown().await;
    }

    /// Somebody leads and has named the cluster; says who, of those that run.
    async fn leader(&self) -> u64 {
        let since = Instant::now();
        while since.elapsed() < LONG {
            let clients = self.ways.clients.lock().unwrap().clone();
            let leads = |client: &MetadataClient| {
                let leading = client.metadata().replica().state().borrow().leading().is_some();
                leading && client.catalog().cluster != 0
            };
            if let Some((broker, _)) = clients.iter().find(|(_, client)| leads(client)) {
                return broker.0;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("nobody leads the metadata");
    }
}

fn facts(token: u128) -> BrokerFacts {
    BrokerFacts {
        token,
        instance: 5,
        gate: GATE_HERE,
        name: Name::new("b").unwrap(),
        peer: Address::new("127.0.0.1:7422").unwrap(),
        client: Address::new("127.0.0.1:7420").unwrap(),
        rack: Name::new("r").unwrap(),
    }
}

fn producer(text: &str) -> Command {
    Command::OpenProducer { name: Name::new(text).unwrap() }
}

/// The epoch that opening a producer gave.
fn epoch(answer: Result<Change, ChangeError>) -> u32 {
    let Ok(Change::Opened(producer)) = answer else { panic!("{answer:?}") };
    producer.epoch
}

#[test]
fn three_voters_name_their_cluster_once_and_any_of_them_takes_commands() {
    run(async {
        let council = Council::founded(3).await;
        council.leader().await;
        for n in 1..=3 {
            assert_eq!(
                council.at(n).register(Some(BrokerId(n)), facts(n.into())).await,
                Ok(BrokerId(n))
            );
            let told = council.at(n).catalog().brokers[&BrokerId(n)].facts.clone();
            assert_eq!(told, Some(facts(n.into())), "who is answered finds it in its own catalog");
        }
        for n in 1..=3 {
            council.at(n).catch_up(LONG).await.unwrap();
            let catalog = council.at(n).catalog();
            assert_eq!((catalog.cluster, catalog.gate), (77, GATE_CLUSTER));
            assert!(catalog.brokers.values().all(|card| card.facts.is_some()));
            assert_eq!(catalog.metadata.len(), 3);
            let mismatch = council.at(n).register(Some(BrokerId(n)), facts(9)).await;
            assert_eq!(mismatch, Err(Refusal::TokenMismatch.into()), "refusals travel too");
        }
        // A newcomer has neither a copy nor an id; the ids go on behind those of the founders.
        assert_eq!(council.at(2).register(None, facts(4)).await, Ok(BrokerId(4)));
        let joined = council.at(1).propose(Command::JoinMetadata { broker: BrokerId(4) }).await;
        let Ok(Change::Placed(placed)) = joined else { panic!("{joined:?}") };
        assert_eq!((placed.replica.0, placed.stage), (4, Stage::Joining));
    });
}

#[test]
fn a_command_finds_the_next_leader_and_a_lost_answer_is_told_as_unknown() {
    run(async {
        let mut council = Council::founded(3).await;
        let first = council.leader().await;
        let others = (1..=3).filter(|n| *n != first).collect::<Vec<_>>();
        assert_eq!(epoch(council.at(others[0]).propose(producer("p")).await), 1);

        council.ways.losses.store(1, Ordering::Relaxed);
        let lost = council.at(others[0]).propose(producer("p")).await;
        assert_eq!(lost, Err(ChangeError::Unknown), "it may have been applied");
        assert_eq!(epoch(council.at(others[0]).propose(producer("p")).await), 3, "and it was");

        council.kill(first).await;
        assert_eq!(epoch(council.at(others[1]).propose(producer("p")).await), 4);
        council.at(others[0]).catch_up(LONG).await.unwrap();

        // Nobody leads one of three, and nobody waits for ever to learn that.
        council.kill(others[1]).await;
        let since = Instant::now();
        let alone = council.at(others[0]);
        let stale = alone.catch_up(Duration::from_millis(300)).await;
        assert_eq!(stale, Err(ChangeError::NotLeader), "a read is not stale in silence");
        let refused = alone.propose(producer("p")).await;
        assert!(
            matches!(refused, Err(ChangeError::NotLeader | ChangeError::Unknown)),
            "{refused:?}"
        );
        assert!(since.elapsed() < LONG);
    });
}

fn topic(uuid: u128) -> Command {
    let settings = Settings {
        durability: Durability::Fsync,
        overflow: Overflow::Backpressure,
        max_bytes: 1 << 30,
        max_age_ms: 0,
    };
    let brokers = (1..=3).map(BrokerId).collect();
    let partitions = vec![NewPartition { uuid, brokers }];
    Command::CreateTopic { name: Name::new("t").unwrap(), settings, created_ms: 1, partitions }
}

#[test]
fn a_topic_whose_creation_was_not_answered_is_created_once_and_that_is_told() {
    run(async {
        let council = Council::founded(3).await;
        let leader = council.leader().await;
        let client = council.at(1 + leader % 3);
        let raised = client.propose(Command::RaiseGate { gate: GATE_CLUSTER }).await;
        assert_eq!(raised, Ok(Change::Gate(GATE_CLUSTER)));

        council.ways.losses.store(2, Ordering::Relaxed);
        assert_eq!(client.carry_through(topic(1)).await, Ok(Change::Done));
        let created = client.catalog().topics[&Name::new("t").unwrap()].clone();
        assert_eq!(created.partitions[0].uuid, 1);
        council.ways.losses.store(1, Ordering::Relaxed);
        let other = client.carry_through(topic(2)).await;
        assert_eq!(other, Err(Refusal::TopicExists.into()), "somebody else's is none of ours");

        council.ways.losses.store(1, Ordering::Relaxed);
        let delete = Command::DeleteTopic { topic: created.id };
        assert_eq!(client.carry_through(delete.clone()).await, Ok(Change::Done));
        let again = client.carry_through(delete).await;
        assert_eq!(again, Err(Refusal::UnknownTopic.into()));
    });
}

#[test]
fn brokers_that_take_each_other_for_the_leader_stop_asking() {
    run(async {
        let council = Council::founded(3).await;
        let leader = council.leader().await;
        let follower = (1..=3).find(|n| *n != leader).unwrap();
        let client = council.at(follower);
        until(&client.metadata().replica(), |state| {
            matches!(state.role, crate::replication::Role::Follower { leader: Some(_) })
        })
        .await;
        // Whoever is asked as the leader is the follower itself.
        council.ways.clients.lock().unwrap().insert(BrokerId(leader), client.clone());
        let since = Instant::now();
        let answer =
            client.answer(weir_protocol::peer::Question::ReadIndex, Duration::from_secs(4)).await;
        assert_eq!(answer.unwrap_err().code, 0x0301);
        let asked = council.ways.asked.load(Ordering::Relaxed);
        assert!((1..10).contains(&asked), "passed on {asked} times");
        assert!(since.elapsed() < LONG);
    });
}

#[test]
fn all_voters_restart_and_go_on_where_they_were() {
    run(async {
        let mut council = Council::founded(3).await;
        let leader = council.leader().await;
        assert_eq!(epoch(council.at(leader).propose(producer("p")).await), 1);
        for n in 1..=3 {
            council.kill(n).await;
        }
        council.cluster.net.heal();
        for n in 1..=3 {
            // Though it is offered a founding again.
            let again = Command::Found { cluster: 78, brokers: 3, voters: 3 };
            council.open(n, Birth::Continues, Some(again)).await;
        }
        council.leader().await;
        assert_eq!(epoch(council.at(1).propose(producer("p")).await), 2);
        assert_eq!(council.at(1).catalog().cluster, 77, "a name is for ever");
    });
}
