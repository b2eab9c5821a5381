//! One run, within the namespace of its clients: a cluster forms, is used, broken and healed, and
//! every replica of it is drained.
//!
//! Owns: the order of all that, and the verdict.
//! Never: ends well while a broker does not serve, or ended although nobody asked it to.

use super::hands::{Fault, Hand, Stage};
use super::machine::Machine;
use super::network::Network;
use super::{Wish, folder_of};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use weir_client::seams::{BoxFuture, Connector, Duplex, TcpConnector};
use weir_client::{Client, DEADLINE_DEFAULT};
use weir_sim::cluster::{Crowd, Load, Recorder};
use weir_sim::history::{Event, Limits, Mode, Report, What, check};

const TOPIC: &str = "judged";
const PARTITIONS: u16 = 4;
const PRODUCERS: u16 = 6;
const CONNECTED_WITHIN: Duration = Duration::from_secs(30);
/// A message of a patient producer outlives every fault.
const PATIENT: Duration = Duration::from_secs(600);
const IMPATIENT: Duration = Duration::from_secs(2);
/// Publishes go on so long before the first fault and after the last one.
const CALM: Duration = Duration::from_secs(2);
/// The search for rot, which begins with each start, is through a log of this size by then.
const ROT_FOUND_WITHIN: Duration = Duration::from_secs(15);
/// Behind what the history's checks allow, so that they name what is missing.
const SETTLED_WITHIN: Duration = Duration::from_secs(65);
/// Processes share two cores with whatever else runs: times are those of a busy machine.
const LIMITS: Limits =
    Limits { leader_ns: 15_000_000_000, drain_ns: 60_000_000_000, flight_ns: 5_000_000_000 };

/// Runs one.
pub(super) fn run(wish: &Wish, prefix: &str) -> Result<String, String> {
    let seed = wish.seed.unwrap_or_default();
    let network = Network::new(prefix);
    let weir = wish.weir.clone().ok_or("no binary")?;
    let binaries: Vec<_> = wish.other.iter().cloned().chain([weir]).collect();
    let folder = folder_of(prefix);
    let machines = (1..=wish.brokers).map(|number| {
        let place = (number, wish.brokers);
        Machine::new(place, network.clone(), &folder, binaries.clone())
    });
    let stage = Arc::new(Stage::new(machines.collect::<Result<_, _>>()?, network, seed));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let outcome = runtime.block_on(whole(wish, seed, &stage));
    if outcome.is_err() {
        stage.machines().for_each(|mut machine| machine.keep());
    }
    outcome
}

async fn whole(wish: &Wish, seed: u64, stage: &Arc<Stage>) -> Result<String, String> {
    stage.start_all()?;
    let endpoints: Vec<String> = stage.machines().map(|machine| machine.endpoint()).collect();
    let calm = wish.is_calm();
    let load = Load {
        topic: TOPIC,
        partitions: PARTITIONS,
        replicas: wish.brokers,
        producers: PRODUCERS,
        deadlines: if calm { vec![DEADLINE_DEFAULT] } else { vec![IMPATIENT, PATIENT, PATIENT] },
        members: 2,
        keeps_bytes: None,
        churns_topics: !calm,
    };
    let clients = async || connect(&endpoints, Arc::new(TcpConnector)).await;
    let mut crowd = Crowd::gather(load, Recorder::start(), seed, clients).await?;
    sleep(CALM).await;
    crowd.note(What::Fault);
    let faults = break_things(wish, seed, stage).await?;
    if wish.faults.contains(&Fault::Rot) {
        sleep(ROT_FOUND_WITHIN).await;
        let stage = stage.clone();
        let restarted = tokio::task::spawn_blocking(move || stage.restart_rotten()).await;
        restarted.map_err(|error| error.to_string())??;
    }
    crowd.note(What::Heal);
    println!("healed after {faults} faults; {} messages acknowledged", crowd.acknowledged());
    let until = Instant::now() + SETTLED_WITHIN;
    sleep(CALM).await;
    crowd.come_to_rest(until).await;
    let ends = crowd.ends(&connect(&endpoints, Arc::new(TcpConnector)).await?).await?;
    for (replica, endpoint) in (1..).zip(&endpoints) {
        let only = Arc::new(Only(endpoint.clone()));
        crowd.drain((connect(std::slice::from_ref(endpoint), only).await?, replica), &ends).await?;
    }
    crowd.leave().await;
    stage.stop_all()?;
    let events = crowd.events();
    judge(wish, &check(&events, LIMITS))?;
    if calm {
        nobody_saw_an_error(&events)?;
    }
    let weir = wish.weir.as_ref().ok_or("no binary")?;
    stage.machines().try_for_each(|machine| machine.verify(weir))?;
    Ok(format!(
        "{faults} faults, {} messages acknowledged, {} events, every replica drained",
        crowd.acknowledged(),
        events.len()
    ))
}

/// Lets all hands work at once. What one of them finds ends the run when the others are done.
async fn break_things(wish: &Wish, seed: u64, stage: &Arc<Stage>) -> Result<u64, String> {
    let until = crate::now() + Duration::from_secs(wish.seconds);
    let mut hands = JoinSet::new();
    for hand in Hand::ALL {
        let (stage, faults) = (stage.clone(), wish.faults.clone());
        hands.spawn_blocking(move || stage.work(hand, &faults, (seed, until)));
    }
    let mut count = 0;
    while let Some(ended) = hands.join_next().await {
        count += ended.map_err(|error| error.to_string())??;
    }
    Ok(count)
}

async fn connect(endpoints: &[String], connector: Arc<dyn Connector>) -> Result<Client, String> {
    let connected = async {
        loop {
            let builder = Client::builder().endpoints(endpoints.iter().cloned());
            match builder.connector(connector.clone()).connect().await {
                Ok(client) => return client,
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    };
    let late = |_| format!("no client reached {endpoints:?} within {CONNECTED_WITHIN:?}");
    timeout(CONNECTED_WITHIN, connected).await.map_err(late)
}

/// Reaches one broker, so that no other answers for it.
struct Only(String);

impl Connector for Only {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Duplex>> {
        Box::pin(async move {
            if self.0 != format!("weir://{host}:{port}") {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            TcpConnector.connect(host, port).await
        })
    }
}

fn judge(wish: &Wish, report: &Report) -> Result<(), String> {
    if !report.is_clean() {
        return Err(report.to_string());
    }
    let drains = u32::from(wish.brokers) * u32::from(PARTITIONS);
    match report.drains == drains {
        true => Ok(()),
        false => Err(format!("{} replicas of {drains} were drained", report.drains)),
    }
}

/// Every message was stored within its deadline, and no plain reader had to begin anew: within one
/// session the history's checks let nothing come twice.
fn nobody_saw_an_error(events: &[Event]) -> Result<(), String> {
    let failed = events
        .iter()
        .filter(|event| matches!(event.what, What::NotStored { .. } | What::Unknown { .. }));
    let failed = failed.count();
    let mut readers: BTreeMap<u16, BTreeSet<u16>> = BTreeMap::new();
    for event in events {
        if let What::Subscribe { subscription, consumer, mode: Mode::Reader, .. } = event.what {
            readers.entry(subscription).or_default().insert(consumer);
        }
    }
    let again: usize = readers.values().map(|sessions| sessions.len() - 1).sum();
    match failed + again {
        0 => Ok(()),
        _ => Err(format!(
            "brokers were restarted one by one: {failed} publishes failed, and readers had to begin \
             anew {again} times"
        )),
    }
}
