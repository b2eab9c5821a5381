//! The metadata over a real log.

use super::rig::{Rig, until};
use super::run;
use crate::replication::metadata::*;
use crate::replication::{Durability, Fence, Role};
use crate::seams::WallClock;
use std::io::ErrorKind;
use std::sync::Arc;
use weir_protocol::types::{BrokerId, Index, Name, ProducerId};

/// A wall clock that falls with every look.
#[derive(Default)]
struct FallingClock(std::sync::atomic::AtomicU64);

impl WallClock for FallingClock {
    fn now_ms(&self) -> u64 {
        1_000_000 - self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }
}

async fn open(rig: &Rig) -> Metadata {
    let options = MetadataOptions {
        replica: rig.options(Durability::Fsync),
        founding: Some(Command::Form { cluster: 77, broker: FOUNDER }),
        wall: Arc::new(FallingClock::default()),
    };
    Metadata::open(options).await.unwrap()
}

fn producer(text: &str) -> Command {
    Command::OpenProducer { name: Name::new(text).unwrap() }
}

fn topic(text: &str) -> Command {
    Command::CreateTopic {
        name: Name::new(text).unwrap(),
        settings: Settings {
            durability: Durability::Fsync,
            overflow: weir_protocol::frame::Overflow::Reject,
            max_bytes: 1 << 30,
            max_age_ms: 0,
        },
        created_ms: 5,
        partitions: vec![NewPartition { uuid: 9, brokers: vec![BrokerId(1)] }],
    }
}

#[test]
fn what_was_answered_survives_a_restart() {
    run(async {
        let rig = Rig::new();
        let metadata = open(&rig).await;
        assert_eq!(metadata.catalog().cluster, 77);
        let Ok(Change::Created(created)) = metadata.propose(topic("orders")).await else {
            panic!()
        };
        assert_eq!(metadata.propose(topic("orders")).await, Err(Refusal::TopicExists.into()));
        assert_eq!(metadata.catalog().topics[&created.name], created);
        metadata.propose(producer("p")).await.unwrap();
        metadata.replica().clone().shutdown().await;

        let metadata = open(&rig).await;
        assert_eq!(metadata.catalog().cluster, 77);
        assert_eq!(metadata.catalog().topics[&created.name], created);
        let again = Producer { id: ProducerId(1), epoch: 2 };
        assert_eq!(metadata.propose(producer("p")).await, Ok(Change::Opened(again)));
    });
}

async fn register(
    metadata: &Metadata,
    broker: Option<BrokerId>,
    facts: BrokerFacts,
) -> Result<BrokerId, ChangeError> {
    metadata.propose(Command::RaiseGate { gate: GATE_CLUSTER }).await?;
    match metadata.propose(Command::BrokerUp { broker, facts }).await? {
        Change::BrokerUp(broker) => Ok(broker),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_broker_that_registers_keeps_its_id_over_restarts_and_checkpoints() {
    run(async {
        let rig = Rig::new();
        let facts = |token| BrokerFacts {
            token,
            instance: 5,
            gate: GATE_HERE,
            name: Name::new("b").unwrap(),
            peer: Address::new("127.0.0.1:7422").unwrap(),
            client: Address::new("127.0.0.1:7420").unwrap(),
            rack: Name::new("r").unwrap(),
        };
        let metadata = open(&rig).await;
        assert_eq!(metadata.catalog().gate, 0, "alone it stays readable for older builds");
        assert!(metadata.catalog().is_active(FOUNDER));
        let last = metadata.replica().log().bounds().last_index;
        let join = Command::JoinMetadata { broker: FOUNDER };
        assert_eq!(metadata.propose(join).await, Err(Refusal::GateClosed.into()));
        assert_eq!(metadata.replica().log().bounds().last_index, last, "and nothing is logged");
        assert_eq!(register(&metadata, Some(FOUNDER), facts(1)).await, Ok(FOUNDER));
        assert_eq!(register(&metadata, None, facts(2)).await, Ok(BrokerId(2)));
        metadata.stop().await;

        let metadata = open(&rig).await;
        assert_eq!(register(&metadata, None, facts(2)).await, Ok(BrokerId(2)), "by its token");
        let mismatch = Err(Refusal::TokenMismatch.into());
        assert_eq!(register(&metadata, Some(FOUNDER), facts(2)).await, mismatch);
        let catalog = metadata.catalog();
        assert_eq!(catalog.brokers[&FOUNDER].facts, Some(facts(1)));
        assert_eq!((catalog.gate, catalog.brokers.len()), (GATE_CLUSTER, 2));
    });
}

#[test]
fn many_at_once_are_answered_each_with_its_own() {
    run(async {
        let rig = Rig::new();
        let metadata = open(&rig).await;
        let all = (0..200).map(|number| {
            let metadata = metadata.clone();
            async move { metadata.propose(producer(&format!("p{number}"))).await }
        });
        let mut ids = std::collections::BTreeSet::new();
        for answer in futures_util::future::join_all(all).await {
            let Ok(Change::Opened(producer)) = answer else { panic!("{answer:?}") };
            assert_eq!(producer.epoch, 1);
            ids.insert(producer.id);
        }
        assert_eq!(ids.len(), 200);
        let log = metadata.replica().log();
        let commands = log.headers(Index(3), usize::MAX).unwrap();
        assert!(commands.is_sorted_by_key(|header| header.log_time_ms), "log time never falls");
    });
}

#[test]
fn a_checkpoint_replaces_the_log_behind_it() {
    run(async {
        let rig = Rig::new();
        let metadata = open(&rig).await;
        let replica = metadata.replica().clone();
        let all = (0..200).map(|number| metadata.propose(producer(&format!("p{number}"))));
        futures_util::future::join_all(all).await;
        let mut state = State::default();
        state.apply(&Command::Form { cluster: 1, broker: BrokerId(1) }).unwrap();
        let at = replica.state().borrow().committed;
        replica.checkpoint(at, state.encode().into()).await.unwrap();
        assert_eq!(replica.trim(at).await, Ok(at));
        replica.shutdown().await;
        let metadata = open(&rig).await;
        assert_eq!(metadata.catalog().cluster, 1, "it began with the checkpoint");
        let first = Producer { id: ProducerId(1), epoch: 1 };
        assert_eq!(metadata.propose(producer("p7")).await, Ok(Change::Opened(first)));
    });
}

#[test]
fn nothing_is_answered_before_it_is_durable_and_a_fence_ends_every_wait() {
    run(async {
        let rig = Rig::new();
        let metadata = open(&rig).await;
        rig.faults.hold();
        let mut waits = Box::pin(metadata.propose(producer("p")));
        assert!(tokio::time::timeout(super::rig::A_WHILE, &mut waits).await.is_err());
        rig.faults.fail(ErrorKind::Other);
        rig.faults.release();
        assert_eq!(waits.await, Err(ChangeError::Unknown));
        until(&metadata.replica(), |state| matches!(state.role, Role::Fenced(_))).await;
        let after = metadata.propose(producer("p")).await;
        assert!(matches!(after, Err(ChangeError::Fenced(Fence::Device(_)))), "{after:?}");
    });
}

#[test]
fn a_copy_that_ran_out_of_space_is_opened_again_when_there_is_room() {
    run(async {
        let rig = Rig::new();
        let metadata = open(&rig).await;
        metadata.propose(producer("p")).await.unwrap();
        rig.faults.fail(ErrorKind::StorageFull);
        assert_eq!(metadata.propose(producer("lost")).await, Err(ChangeError::Unknown));
        let ended = metadata.replica();
        until(&ended, |state| state.role == Role::Fenced(Fence::NoSpace)).await;
        rig.faults.mend();
        // Nobody has to ask for it.
        let mut catalogs = metadata.watch();
        let reopened = async {
            while metadata.replica().state().borrow().leading().is_none() {
                tokio::time::sleep(super::rig::A_WHILE).await;
            }
            metadata.propose(topic("orders")).await.unwrap();
            catalogs.wait_for(|catalog| !catalog.topics.is_empty()).await.unwrap();
        };
        tokio::time::timeout(super::rig::NEVER, reopened).await.expect("it stays closed");
        assert_eq!(metadata.catalog().cluster, 77);
        metadata.stop().await;

        let metadata = open(&rig).await;
        assert_eq!(metadata.catalog().topics.len(), 1);
        let again = Producer { id: ProducerId(1), epoch: 2 };
        assert_eq!(metadata.propose(producer("p")).await, Ok(Change::Opened(again)));
    });
}

#[test]
fn a_broken_run_is_settled_and_the_next_one_goes_on() {
    run(async {
        let rig = Rig::new();
        let metadata = open(&rig).await;
        let replica = metadata.replica();
        let broken = crate::replication::Refused {
            term: weir_protocol::types::Term(1),
            run: 0,
            number: 1,
            outcome: crate::replication::StoredOutcome::NotStored,
        };
        replica.shared.state.send_modify(|state| state.refused = Some(broken));
        metadata.propose(producer("p")).await.unwrap();
        let last = replica.log().bounds().last.unwrap();
        assert_eq!((last.run, last.run_number), (1, 0));
    });
}

#[test]
fn a_mailbox_that_is_full_says_so() {
    run(async {
        let rig = Rig::new();
        let metadata = open(&rig).await;
        rig.faults.hold();
        let all = (0..600).map(|number| metadata.propose(producer(&format!("p{number}"))));
        let mut all: futures_util::stream::FuturesUnordered<_> = all.collect();
        let first = futures_util::StreamExt::next(&mut all).await;
        assert_eq!(first, Some(Err(ChangeError::Busy)));
        rig.faults.release();
        let rest: Vec<_> = futures_util::StreamExt::collect(all).await;
        assert!(rest.iter().all(|answer| matches!(answer, Ok(_) | Err(ChangeError::Busy))));
        assert!(rest.iter().filter(|answer| answer.is_ok()).count() >= 256);
    });
}
