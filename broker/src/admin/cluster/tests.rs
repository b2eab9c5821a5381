//! A made-up cluster in which everything is that can be: five brokers, of which one is silent, one
//! drains and one is shutting down; a move, a lost replica, an accepted loss.

use super::health::{BROKER_STATES, Health};
use super::led::Led;
use super::orders::{MoveOrder, Who, problem_of};
use super::page::{cluster_json, partition_json};
use super::*;
use crate::cluster::members::{CLOSE_BYTES, Progress};
use crate::metrics::Metrics;
use crate::peer::LinkState;
use crate::replication::Fence;
use crate::replication::metadata::{
    Address, BrokerFacts, ChangeError, Command, FOUNDER, GATE_CLUSTER, GATE_HERE, LossReason,
    MetadataStep, NewPartition, Recovery, Refusal, Settings, Standing, State as MetadataState,
};
use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Duration;
use weir_protocol::frame::{Durability, Overflow};
use weir_protocol::peer::{self, Lane, News, PeerRefusal, Side};
use weir_protocol::types::{Index, Name, Offset, PartitionId, ReplicaId, Term, TopicId};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn facts(token: u128, called: &str) -> BrokerFacts {
    let host = |port: u16| Address::new(&format!("{called}.example:{port}")).unwrap();
    BrokerFacts {
        token,
        instance: 1,
        gate: GATE_HERE,
        name: name(called),
        peer: host(7422),
        client: host(7420),
        rack: name(&format!("rack-{}", token % 2)),
    }
}

fn create(topic: &str, partitions: &[&[u64]]) -> Command {
    let settings = Settings {
        durability: Durability::Fsync,
        overflow: Overflow::Backpressure,
        max_bytes: 1 << 30,
        max_age_ms: 0,
    };
    let partitions = partitions.iter().enumerate().map(|(at, brokers)| NewPartition {
        uuid: topic.len() as u128 * 100 + at as u128,
        brokers: brokers.iter().copied().map(BrokerId).collect(),
    });
    let partitions = partitions.collect();
    Command::CreateTopic { name: name(topic), settings, created_ms: 1, partitions }
}

fn alone() -> MetadataState {
    let mut state = MetadataState::default();
    state.apply(&Command::Form { cluster: 0xC1, broker: FOUNDER }).unwrap();
    state
}

/// Brokers n1 and so on.
fn cluster(brokers: u64) -> MetadataState {
    let mut state = alone();
    state.apply(&Command::RaiseGate { gate: GATE_CLUSTER }).unwrap();
    for id in 1..=brokers {
        let broker = (id == 1).then_some(FOUNDER);
        let facts = facts(id.into(), &format!("n{id}"));
        state.apply(&Command::BrokerUp { broker, facts }).unwrap();
    }
    state
}

fn replica(state: &MetadataState, topic: &str, partition: usize, at: usize) -> ReplicaId {
    state.catalog().topics[&name(topic)].partitions[partition].replicas[at].replica
}

fn standing(broker: u64, standing: Standing) -> Command {
    Command::SetStanding { broker: BrokerId(broker), standing }
}

/// orders: 3 replicas of 2 partitions on n1, n2, n3, one on its way from n3 to n4, one of the others
/// lost; audit: one replica on n3.
fn eventful() -> MetadataState {
    let mut state = cluster(5);
    for broker in 2..=4 {
        state.apply(&Command::JoinMetadata { broker: BrokerId(broker) }).unwrap();
    }
    for at in [1, 2] {
        let replica = state.catalog().metadata[at].replica;
        state.apply(&Command::StepMetadata { replica, step: MetadataStep::Voter }).unwrap();
    }
    state.apply(&create("orders", &[&[1, 2, 3], &[2, 3, 1]])).unwrap();
    state.apply(&create("audit", &[&[3]])).unwrap();
    let replicas = vec![
        replica(&state, "orders", 0, 0),
        replica(&state, "orders", 1, 0),
        replica(&state, "audit", 0, 0),
    ];
    state.apply(&Command::NoteFormed { replicas }).unwrap();
    let lost = replica(&state, "orders", 1, 2);
    let reason = LossReason::Damaged;
    state.apply(&Command::LoseReplica { replica: lost, reason }).unwrap();
    let moved = Command::AddReplica {
        topic: TopicId(1),
        partition: PartitionId(0),
        broker: BrokerId(4),
        replaces: Some(replica(&state, "orders", 0, 2)),
    };
    state.apply(&moved).unwrap();
    let recovery = Recovery { epoch: 1, lost_after: Index(40), created_ms: 7 };
    let uuid = state.catalog().topics[&name("orders")].partitions[1].uuid;
    state.apply(&Command::NoteRecovery { uuid, recovery }).unwrap();
    state.apply(&standing(4, Standing::Draining)).unwrap();
    state
}

fn led(replica: ReplicaId, term: u64) -> peer::Led {
    let term = Term(term);
    peer::Led { replica, term, log_start: Offset(0), high_watermark: Offset(9), bytes: 90 }
}

fn link(broker: u64, called: &str, state: LinkState, since: Instant) -> LinkView {
    LinkView {
        broker: BrokerId(broker),
        name: called.to_owned(),
        address: format!("n{broker}.example:7422"),
        lane: Lane::Control,
        side: Side::Dialer,
        state,
        since,
        bytes_in: 10,
        bytes_out: 20,
    }
}

/// What n1 sees of it, forty seconds after n3 was heard of.
fn look(state: &MetadataState) -> Look {
    let (leaders, start) = (LeaderBoard::default(), Instant::now());
    let now = start + Duration::from_secs(40);
    let tell = |broker: u64, free_bytes, draining, led: Vec<peer::Led>, at| {
        let news = News { free_bytes, draining, gate: GATE_HERE, led };
        leaders.note(BrokerId(broker), &news, at);
    };
    let (lately, plenty) = (now - Duration::from_millis(250), 64 << 30);
    let leads = |topic: &str, partition: usize| {
        let topic = state.catalog().topics.get(&name(topic));
        let placed = topic.and_then(|topic| topic.partitions.get(partition));
        placed.map(|placed| led(placed.replicas[0].replica, 5)).into_iter().collect()
    };
    tell(1, plenty, false, leads("orders", 0), lately);
    tell(2, 1 << 20, false, leads("orders", 1), lately);
    tell(3, plenty, false, leads("audit", 0), start);
    tell(4, plenty, false, Vec::new(), lately);
    tell(5, plenty, true, Vec::new(), lately);
    Look {
        catalog: state.catalog().clone(),
        leaders: Arc::new(leaders),
        me: (BrokerId(1), "n1".to_owned()),
        metadata_leader: Some(BrokerId(2)),
        links: vec![
            link(2, "n2", LinkState::Open, start),
            link(3, "", LinkState::Connecting, now),
            link(4, "n4", LinkState::Refused(PeerRefusal::Unauthenticated), now),
        ],
        traffic: vec![(Lane::Control, [30, 40]), (Lane::Bulk, [50, 60])],
        catch_up: CatchUpBytes { sent: 8, delayed: 7 },
        now,
    }
}

#[track_caller]
fn assert_golden(found: &Value, golden: &str) {
    let expected: Value = serde_json::from_str(golden).unwrap();
    assert!(*found == expected, "the page is\n{found:#}");
}

#[tokio::test(start_paused = true)]
async fn the_page_names_everything_that_is_not_as_it_shall_be() {
    let page = cluster_json(&look(&eventful()));
    assert_golden(&page, include_str!("tests/cluster.json"));
}

#[tokio::test(start_paused = true)]
async fn a_partition_names_its_leader_and_its_replicas() {
    let state = eventful();
    let (look, catalog) = (look(&state), state.catalog());
    let partitions = &catalog.topics[&name("orders")].partitions;
    let rows = partitions.iter().map(|partition| {
        partition_json(json!({ "partition": partition.id.0 }), &look, partition, None)
    });
    assert_golden(&rows.collect(), include_str!("tests/partitions.json"));
    let [audit] = &catalog.topics[&name("audit")].partitions[..] else { panic!("one partition") };
    let row = partition_json(json!({}), &look, audit, None);
    assert_eq!((&row["leader"], &row["term"]), (&Value::Null, &Value::Null), "n3 is silent");
}

#[tokio::test(start_paused = true)]
async fn a_healthy_cluster_counts_nothing() {
    let mut state = cluster(3);
    state.apply(&create("orders", &[&[1, 2, 3]])).unwrap();
    let mut look = look(&state);
    look.leaders.note(
        BrokerId(3),
        &News { free_bytes: 1 << 40, draining: false, gate: 1, led: Vec::new() },
        look.now,
    );
    let health = Health::of(&look);
    assert!(health.leaderless.is_empty() && health.lost.is_empty());
    assert!(health.under_replicated.is_empty());
    look.now += Duration::from_secs(31);
    let health = Health::of(&look);
    assert_eq!(health.leaderless.len(), 1, "nobody told for half a minute");
    assert_eq!(health.under_replicated[0].1, 1, "this broker need not hear of itself");
}

/// What is left of a leader when all others are gone still takes itself for one.
#[tokio::test(start_paused = true)]
async fn a_leader_whom_no_majority_can_answer_leads_nothing() {
    let mut state = cluster(3);
    for broker in [2, 3] {
        state.apply(&Command::JoinMetadata { broker: BrokerId(broker) }).unwrap();
        let replica = state.catalog().metadata.last().unwrap().replica;
        state.apply(&Command::StepMetadata { replica, step: MetadataStep::Voter }).unwrap();
    }
    state.apply(&create("orders", &[&[1, 2, 3]])).unwrap();
    let mut look = look(&state);
    look.metadata_leader = Some(BrokerId(1));
    let told = |look: &Look| {
        let page = cluster_json(look);
        (page["metadata"]["leader"].clone(), page["leaderless"]["count"].clone())
    };
    assert_eq!(told(&look), (json!("n1"), json!(0)), "n2 is there as well");
    look.now += Duration::from_secs(31);
    let own = News { free_bytes: 1 << 40, draining: false, gate: 1, led: Vec::new() };
    let led = vec![led(replica(&state, "orders", 0, 0), 5)];
    look.leaders.note(BrokerId(1), &News { led, ..own }, look.now);
    assert_eq!(told(&look), (Value::Null, json!(1)));
    let page = Metrics::new("n1", 10).render(|page| render(page, &look, &[]));
    assert!(page.contains("weir_metadata_leader 0\n"), "{page}");
}

#[tokio::test(start_paused = true)]
async fn a_broker_is_found_by_name_or_id_and_never_by_chance() {
    let mut state = cluster(2);
    let meet = |state: &mut MetadataState, token: u128, called| {
        let command = Command::BrokerUp { broker: None, facts: facts(token, called) };
        state.apply(&command).unwrap();
    };
    meet(&mut state, 7, "n2");
    meet(&mut state, 8, "2");
    let look = look(&state);
    let id = |who| look.broker(&who).map(|card| card.id.0);
    assert_eq!(id(Who::Name("n1".into())), Ok(1));
    assert_eq!((id(Who::Id(3)), id(Who::Name("3".into()))), (Ok(3), Ok(3)));
    assert_eq!((id(Who::Id(2)), id(Who::Name("2".into()))), (Ok(2), Ok(4)), "a name goes first");
    let two = id(Who::Name("n2".into())).unwrap_err();
    assert!(two.status == StatusCode::CONFLICT && two.detail.contains("2, 3"), "{two:?}");
    let none = id(Who::Name("n9".into())).unwrap_err();
    assert_eq!(none.status, StatusCode::NOT_FOUND);
    assert!(none.detail.contains("n9") && none.detail.contains("cluster.seeds"), "{none:?}");
}

fn order(topic: &str, partition: u32, from: &str, to: &str) -> MoveOrder {
    let who = |text: &str| Who::Name(text.to_owned());
    MoveOrder { topic: topic.to_owned(), partition, from: who(from), to: who(to) }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, crate::admin::problem::Problem>, words: &[&str]) {
    let problem = outcome.unwrap_err();
    for word in words {
        assert!(problem.detail.contains(word), "{word:?} is not in: {}", problem.detail);
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_alone_has_nothing_to_steer() {
    let look = look(&alone());
    let me = Who::Name("n1".into());
    let words = ["alone", "cluster.seeds"];
    refused(look.draining(&me), &words);
    refused(look.addition(&me), &words);
    refused(look.removal(&me), &words);
    refused(look.moving(&order("t", 0, "n1", "n2")), &words);
    refused(look.balance().map(|plan| plan.more), &words);
    assert_eq!(look.broker(&me).map(|card| card.id), Ok(FOUNDER), "but it knows its name");
}

#[tokio::test(start_paused = true)]
async fn what_would_never_end_is_not_begun() {
    let mut state = cluster(3);
    let who = |text: &str| Who::Name(text.to_owned());
    state.apply(&create("small", &[&[2]])).unwrap();
    let command = look(&state).draining(&who("n2")).unwrap();
    assert_eq!(command, standing(2, Standing::Draining));
    state.apply(&create("orders", &[&[1, 2, 3]])).unwrap();
    let words = ["without n2 only 2", "orders has 3", "start another broker", "--replicas"];
    refused(look(&state).draining(&who("n2")), &words);
    let mut two = cluster(2);
    two.apply(&standing(1, Standing::Draining)).unwrap();
    refused(look(&two).draining(&who("n2")), &["last active", "weir cluster add"]);
    assert_eq!(look(&two).addition(&who("1")), Ok(standing(1, Standing::Active)));
}

#[tokio::test(start_paused = true)]
async fn a_broker_is_removed_when_nothing_stands_on_it() {
    let mut state = eventful();
    let who = |text: &str| Who::Name(text.to_owned());
    let words = ["n1 holds replicas of 2 partitions, orders/0", "weir cluster drain n1 --wait"];
    refused(look(&state).removal(&who("n1")), &words);
    // Its copy goes last, and not while anything else keeps the broker.
    for broker in ["n1", "n2", "n4", "n5"] {
        assert_eq!(look(&state).last_copy(&who(broker)), Ok(None), "{broker}");
    }
    refused(look(&state).removal(&who("n4")), &["replicas of 1 partitions", "it drains"]);
    state.apply(&Command::DeleteTopic { topic: TopicId(1) }).unwrap();
    refused(look(&state).removal(&who("n4")), &["a copy of the metadata", "it drains"]);
    let replica = state.catalog().metadata[3].replica;
    assert_eq!(look(&state).last_copy(&who("n4")), Ok(Some(replica)));
    assert_eq!(look(&state).last_copy(&who("n1")), Ok(None), "it does not drain");
    for command in [
        Command::LoseReplica { replica, reason: LossReason::GivenUp },
        Command::StepMetadata { replica, step: MetadataStep::Gone },
    ] {
        state.apply(&command).unwrap();
        assert_eq!(look(&state).last_copy(&who("n4")), Ok(None));
    }
    assert!(look(&state).removal(&who("n4")).is_ok());
    let command = look(&state).removal(&who("n5")).unwrap();
    state.apply(&command).unwrap();
    refused(look(&state).removal(&who("n5")), &["no broker n5"]);
}

#[tokio::test(start_paused = true)]
async fn a_move_names_what_is_there_and_goes_where_nothing_is() {
    let mut state = cluster(4);
    state.apply(&create("orders", &[&[1, 2, 3]])).unwrap();
    state.apply(&Command::NoteFormed { replicas: vec![replica(&state, "orders", 0, 0)] }).unwrap();
    let seen = look(&state);
    refused(seen.moving(&order("other", 0, "n1", "n4")), &["\"other\" does not exist"]);
    refused(seen.moving(&order("orders", 1, "n1", "n4")), &["1 partitions", "none is 1"]);
    refused(seen.moving(&order("orders", 0, "n4", "n1")), &["n4 holds no", "n1, n2, n3"]);
    refused(seen.moving(&order("orders", 0, "n1", "n2")), &["n2 holds a replica", "none of n1"]);
    refused(seen.moving(&order("orders", 0, "n1", "n1")), &["n1 holds a replica"]);
    let command = seen.moving(&order("orders", 0, "n1", "n4")).unwrap();
    let shown = seen.change_json(&command);
    let expected =
        json!({ "what": "move", "topic": "orders", "partition": 0, "from": "n1", "to": "n4" });
    assert_eq!(shown, expected);
    state.apply(&command).unwrap();
    // A lost replica may be made anew where it was.
    let lost = replica(&state, "orders", 0, 1);
    state.apply(&Command::LoseReplica { replica: lost, reason: LossReason::Empty }).unwrap();
    let again = look(&state).moving(&order("orders", 0, "n2", "n2")).unwrap();
    assert_eq!(state.apply(&again), Err(Refusal::MoveUnderWay), "one at a time");
    let problem = problem_of(&Refusal::MoveUnderWay.into());
    assert_eq!(problem.status, StatusCode::CONFLICT);
    assert!(problem.detail.contains("weir cluster status"), "{problem:?}");
}

#[tokio::test(start_paused = true)]
async fn a_balance_is_what_the_controller_would_wish_all_at_once() {
    let mut state = cluster(3);
    let on_all: [&[u64]; 6] = [&[1, 2, 3]; 6];
    state.apply(&create("orders", &on_all)).unwrap();
    let topic = TopicId(1);
    let firsts: Vec<_> = (0..6).map(|at| replica(&state, "orders", at, 0)).collect();
    state.apply(&Command::NoteFormed { replicas: firsts }).unwrap();
    for broker in 1..=3 {
        state.apply(&Command::JoinMetadata { broker: BrokerId(broker) }).unwrap();
    }
    let mut seen = look(&state);
    let told = News { free_bytes: 1 << 40, draining: false, gate: 1, led: Vec::new() };
    seen.leaders.note(BrokerId(3), &told, seen.now);
    seen.leaders.note(BrokerId(2), &told, seen.now);
    let plan = seen.balance().unwrap();
    assert!(!plan.more && plan.commands.len() == 4, "{:?}", plan.commands);
    let shown = seen.change_json(&plan.commands[0]);
    assert_eq!((&shown["what"], &shown["from"]), (&"lead".into(), &"n1".into()), "{shown}");
    for command in &plan.commands {
        state.apply(command).unwrap();
    }
    seen.catalog = state.catalog().clone();
    assert!(seen.balance().unwrap().commands.is_empty(), "it is even now");
    let at = |partition: &Partition| partition.replica(partition.preferred).unwrap().broker.0;
    let mut homes: Vec<u64> = seen.catalog.partitions().map(|(_, p)| at(p)).collect();
    homes.sort_unstable();
    assert_eq!((homes, topic), (vec![1, 1, 2, 2, 3, 3], TopicId(1)));
}

#[test]
fn every_refusal_over_http_says_what_to_do() {
    let unknown = problem_of(&ChangeError::Unknown);
    assert_eq!((unknown.status, unknown.code.name()), (StatusCode::GATEWAY_TIMEOUT, "LEADER_LOST"));
    assert!(unknown.detail.contains("/v1/cluster"), "{unknown:?}");
    for (error, status, code) in [
        (ChangeError::NotLeader, StatusCode::SERVICE_UNAVAILABLE, "NOT_LEADER"),
        (ChangeError::Busy, StatusCode::SERVICE_UNAVAILABLE, "OVERLOADED_REQUEST"),
        (Fence::Shutdown.into(), StatusCode::SERVICE_UNAVAILABLE, "STORAGE_FENCED"),
        (Refusal::UnknownTopic.into(), StatusCode::NOT_FOUND, "UNKNOWN_TOPIC"),
        (Refusal::UnknownPartition.into(), StatusCode::NOT_FOUND, "UNKNOWN_PARTITION"),
        (Refusal::BrokerNotActive.into(), StatusCode::CONFLICT, "BAD_REQUEST"),
    ] {
        let problem = problem_of(&error);
        assert_eq!((problem.status, problem.code.name()), (status, code), "{error:?}");
        assert!(problem.detail.starts_with(&format!("{error}; ")), "{problem:?}");
    }
}

#[test]
fn a_replica_is_whole_when_it_answers_and_is_near() {
    let mut state = cluster(3);
    state.apply(&create("orders", &[&[1, 2, 3]])).unwrap();
    let partition = state.catalog().partitions().next().unwrap().1.clone();
    let progress = |at: usize, lag_bytes, answers| {
        (partition.replicas[at].replica, Progress { lag_bytes, answers })
    };
    let whole = |second, third| Led { others: [second, third].into() }.whole(&partition);
    assert_eq!(whole(progress(1, 0, true), progress(2, CLOSE_BYTES - 1, true)), 3);
    assert_eq!(whole(progress(1, 0, false), progress(2, CLOSE_BYTES, true)), 1);
    assert_eq!(Led::default().lag_bytes(), None);
    let led = Led { others: [progress(1, 5, true), progress(2, 9, false)].into() };
    assert_eq!(led.lag_bytes(), Some(9));
}

#[tokio::test(start_paused = true)]
async fn the_scraped_page_counts_what_the_shown_page_names() {
    let (look, metrics) = (look(&eventful()), Metrics::new("n1", 10));
    let page = metrics.render(|page| render(page, &look, &[]));
    let mut expected = vec![
        "weir_leaderless_partitions 2".to_owned(),
        "weir_lost_replicas 1".to_owned(),
        "weir_moves 1".to_owned(),
        "weir_metadata_leader 0".to_owned(),
        "weir_broker_leaders 0".to_owned(),
        "weir_peer_links{state=\"refused\"} 1".to_owned(),
        "weir_peer_links{state=\"open\"} 1".to_owned(),
        "weir_peer_bytes_total{direction=\"out\",lane=\"control\"} 40".to_owned(),
        "weir_peer_bytes_total{direction=\"in\",lane=\"bulk\"} 50".to_owned(),
        "weir_peer_catchup_bytes_total 8".to_owned(),
        "weir_peer_catchup_delayed_bytes_total 7".to_owned(),
        "weir_catching_up_replicas 0".to_owned(),
    ];
    let one_each =
        BROKER_STATES.map(|state| format!("weir_cluster_brokers{{state=\"{state}\"}} 1"));
    expected.extend(one_each);
    for line in expected {
        assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
    }
}
