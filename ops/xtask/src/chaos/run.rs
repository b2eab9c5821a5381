//! One run, within the namespace of its clients: a cluster forms, and round by round it is used,
//! broken and healed, and every replica of it is drained.
//!
//! Owns: the order of all that, and the verdict.
//! Never: ends well while a broker does not serve, or ended although nobody asked it to.
//! Invariant: a round has a topic and a history of its own, so that a run of a day takes no more
//! memory and disk than its longest round.

use super::hands::{Fault, Hand, Stage};
use super::machine::{Build, Machine};
use super::network::Network;
use super::{Wish, folder_of};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use weir_client::seams::{BoxFuture, Connector, Duplex, TcpConnector};
use weir_client::{Client, DEADLINE_DEFAULT, ErrorCode};
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
/// How long things go wrong until they come to rest and are judged.
const ROUND_SECONDS_MAX: u64 = 600;
/// All brokers run the newer build so long before it is taken back: unless the cluster is held at a
/// gate, that is too late by then.
const GATE_RISES_WITHIN: Duration = Duration::from_secs(5);
/// Until the topic of the last round is gone.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(30);
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
    let builds = wish.other.iter().map(|binary| Build { binary: binary.clone(), gate: None });
    let builds: Vec<_> = builds.chain([Build { binary: weir, gate: wish.gate }]).collect();
    let folder = folder_of(prefix);
    let machines = (1..=wish.brokers).map(|number| {
        let place = (number, wish.brokers);
        Machine::new(place, network.clone(), &folder, builds.clone())
    });
    let stage = Arc::new(Stage::new(machines.collect::<Result<_, _>>()?, network, seed));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let outcome = runtime.block_on(all_rounds(wish, seed, &stage));
    if outcome.is_err() {
        stage.machines().for_each(|mut machine| machine.keep());
    }
    outcome
}

async fn all_rounds(wish: &Wish, seed: u64, stage: &Arc<Stage>) -> Result<String, String> {
    let endpoints: Vec<String> = stage.machines().map(|machine| machine.endpoint()).collect();
    let weir = wish.weir.as_ref().ok_or("no binary")?;
    let mut sum = Done::default();
    let (mut left, mut number) = (wish.seconds, 0);
    while left > 0 {
        let seconds = left.min(ROUND_SECONDS_MAX);
        stage.start_all()?;
        if number > 0 {
            forget(&endpoints).await?;
        }
        let round = Round { wish, stage, endpoints: &endpoints, seed: seed ^ number, seconds };
        let done = round.whole().await?;
        stage.stop_all()?;
        stage.machines().try_for_each(|machine| machine.verify(weir))?;
        number += 1;
        left -= seconds;
        println!("round {number}: {done}, every replica drained");
        sum.add(done);
    }
    Ok(format!("{number} rounds: {sum}"))
}

/// Removes the topic of the last round.
async fn forget(endpoints: &[String]) -> Result<(), String> {
    let client = connect(endpoints, Arc::new(TcpConnector)).await?;
    let gone = async {
        while let Err(error) = client.delete_topic(TOPIC).await {
            // By an earlier request, of which nobody knew what became of it.
            if error.error_code() == Some(ErrorCode::UnknownTopic) {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    let late = |_| format!("topic {TOPIC} was not deleted within {FORGOTTEN_WITHIN:?}");
    timeout(FORGOTTEN_WITHIN, gone).await.map_err(late)
}

/// What was done and seen.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    faults: u64,
    acknowledged: u64,
    events: u64,
}

impl Done {
    fn add(&mut self, other: Self) {
        self.faults += other.faults;
        self.acknowledged += other.acknowledged;
        self.events += other.events;
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { faults, acknowledged, events } = self;
        write!(f, "{faults} faults, {acknowledged} messages acknowledged, {events} events")
    }
}

/// A topic, from its creation to the verdict on its history.
struct Round<'a> {
    wish: &'a Wish,
    stage: &'a Arc<Stage>,
    endpoints: &'a [String],
    seed: u64,
    seconds: u64,
}

impl Round<'_> {
    /// The cluster runs.
    async fn whole(&self) -> Result<Done, String> {
        let mut crowd = self.gather().await?;
        sleep(CALM).await;
        if self.wish.other.is_some() {
            on_thread(self.stage, Stage::roll).await?;
            sleep(GATE_RISES_WITHIN).await;
            if let Some(gate) = self.wish.gate {
                on_thread(self.stage, move |stage| stage.is_held_at(gate)).await?;
            }
            on_thread(self.stage, Stage::roll).await?;
            println!("every broker was upgraded, and the upgrade taken back");
        }
        crowd.note(What::Fault);
        let faults = self.break_things().await?;
        if self.wish.faults.iter().any(|fault| matches!(fault, Fault::Rot | Fault::RotAlive)) {
            on_thread(self.stage, |stage| stage.mend((TOPIC, PARTITIONS))).await?;
        }
        crowd.note(What::Heal);
        println!("healed after {faults} faults; {} messages acknowledged", crowd.acknowledged());
        let until = Instant::now() + SETTLED_WITHIN;
        sleep(CALM).await;
        crowd.come_to_rest(until).await;
        self.drain_all(&mut crowd).await?;
        crowd.leave().await;
        let (acknowledged, events) = (crowd.acknowledged(), crowd.events());
        judge(self.wish, &check(&events, LIMITS))?;
        if self.wish.is_calm() {
            nobody_saw_an_error(&events)?;
        }
        Ok(Done { faults, acknowledged, events: events.len() as u64 })
    }

    async fn gather(&self) -> Result<Crowd, String> {
        let calm = self.wish.is_calm();
        let load = Load {
            topic: TOPIC,
            partitions: PARTITIONS,
            replicas: self.wish.brokers,
            producers: PRODUCERS,
            deadlines: if calm {
                vec![DEADLINE_DEFAULT]
            } else {
                vec![IMPATIENT, PATIENT, PATIENT]
            },
            members: 2,
            keeps_bytes: None,
            churns_topics: !calm,
        };
        let clients = async || connect(self.endpoints, Arc::new(TcpConnector)).await;
        Crowd::gather(load, Recorder::start(), self.seed, clients).await
    }

    /// Lets all hands work at once. What one of them finds ends the run when the others are done.
    async fn break_things(&self) -> Result<u64, String> {
        let until = crate::now() + Duration::from_secs(self.seconds);
        let mut hands = JoinSet::new();
        for hand in Hand::ALL {
            let (stage, faults, seed) = (self.stage.clone(), self.wish.faults.clone(), self.seed);
            hands.spawn_blocking(move || stage.work(hand, &faults, (seed, until)));
        }
        let mut count = 0;
        while let Some(ended) = hands.join_next().await {
            count += ended.map_err(|error| error.to_string())??;
        }
        Ok(count)
    }

    async fn drain_all(&self, crowd: &mut Crowd) -> Result<(), String> {
        let client = connect(self.endpoints, Arc::new(TcpConnector)).await?;
        let ends = crowd.ends(&client).await?;
        for (replica, endpoint) in (1..).zip(self.endpoints) {
            let only = Arc::new(Only(endpoint.clone()));
            let client = connect(std::slice::from_ref(endpoint), only).await?;
            crowd.drain((client, replica), &ends).await?;
        }
        Ok(())
    }
}

/// Clients go on meanwhile.
async fn on_thread(
    stage: &Arc<Stage>,
    act: impl FnOnce(&Stage) -> Result<(), String> + Send + 'static,
) -> Result<(), String> {
    let stage = stage.clone();
    let done = tokio::task::spawn_blocking(move || act(&stage)).await;
    done.map_err(|error| error.to_string())?
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
