//! Makes things go wrong, and right again.
//!
//! Owns: who is down, and everything that is broken at the moment.
//! Never: breaks anything once [`Nemesis::run`] has returned; has more than a minority of machines
//! down at a time, unless the fault is that all are; damages what more than a minority holds.

mod disk;
mod members;

use super::plan::{Fault, Shape};
use super::{Cluster, NotStarted, rot};
use crate::disk::Cut;
use crate::network::Conditions;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, sleep_until, timeout};
use weir_broker::{IdentityError, StartError};
use weir_storage::Lane;

/// Faults that last at a time.
const AT_ONCE_MAX: usize = 3;
/// Between the beginnings of two faults.
const PAUSE_MS: std::ops::Range<u64> = 50..1_500;
/// How long a fault lasts.
const LASTS_MS: std::ops::Range<u64> = 20..6_000;
/// How long a flush may take on a slow disk.
const STALL_MS: std::ops::Range<u64> = 50..3_000;
const DELAY_MS: std::ops::Range<u64> = 5..300;
const JUMP_MS: std::ops::Range<i64> = -90_000..90_000;
/// A broker that could not start is started again.
const START_AGAIN: Duration = Duration::from_millis(500);
/// Once nothing is broken any more, every broker starts within this time.
const START_WITHIN: Duration = Duration::from_secs(60);

/// Up to six brokers have so many voters of the metadata: a minority of them may be spoilt as well.
const METADATA_VOTERS: u8 = 3;

/// Who makes things go wrong. Cheap to clone.
#[derive(Clone)]
pub(super) struct Nemesis {
    cluster: Arc<Cluster>,
    /// The topic that is judged, and how many partitions it has.
    topic: &'static str,
    partitions: u16,
    /// Disks that may lose what they were given.
    spoilt_max: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    down: BTreeSet<u8>,
    /// Machines whose disk did not keep what it was given: in a whole run the same minority, so that
    /// a majority has all that was acknowledged.
    damaged: BTreeSet<u8>,
    /// Machines whose disk was emptied: what it held is in the others' care.
    wiped: BTreeSet<u8>,
    /// A broker is being taken out of the cluster: a second order of the same name could hit the one
    /// that comes in its place.
    is_leaving: bool,
    /// Machines whose broker found itself taken out, and that were given another.
    renewed: BTreeSet<u8>,
}

impl Nemesis {
    pub(super) fn of(cluster: Arc<Cluster>, topic: &'static str, shape: &Shape) -> Self {
        let spoilt_max = usize::from(shape.replicas.min(METADATA_VOTERS) - 1) / 2;
        let (partitions, state) = (shape.partitions, Arc::default());
        Self { cluster, topic, partitions, spoilt_max, state }
    }

    /// Lets things go wrong for as long as the shape says. When it returns, nothing is broken and
    /// every broker serves; otherwise an error says who does not.
    pub(super) async fn run(&self, shape: &Shape, seed: u64) -> Result<u64, String> {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x6e65_6d65_7369_7300);
        let until = Instant::now() + shape.lasts;
        let mut faults = JoinSet::new();
        let mut count = 0;
        loop {
            let next = Instant::now() + Duration::from_millis(random.u64(PAUSE_MS));
            if next >= until {
                break;
            }
            sleep_until(next).await;
            while faults.len() >= AT_ONCE_MAX {
                faults.join_next().await.transpose().map_err(|e| format!("a fault: {e}"))?;
            }
            let fault = *random.choice(&shape.faults).expect("a shape has faults");
            faults.spawn(self.clone().inflict(fault, random.fork()));
            count += 1;
        }
        sleep_until(until).await;
        self.heal_network();
        let ended = timeout(START_WITHIN, async {
            while let Some(ended) = faults.join_next().await {
                ended.map_err(|e| format!("a fault: {e}"))?;
                // What began late has ended late.
                self.heal_network();
            }
            Ok(count)
        });
        ended.await.unwrap_or_else(|_| {
            Err(format!(
                "{START_WITHIN:?} after the last fault these do not serve: {:?}",
                self.state().down
            ))
        })
    }

    fn heal_network(&self) {
        let network = self.cluster.network();
        network.heal_all();
        for from in 1..=self.cluster.brokers() {
            for to in (1..=self.cluster.brokers()).filter(|to| *to != from) {
                network.set(from, to, Conditions::LOCAL);
            }
        }
    }

    async fn inflict(self, fault: Fault, mut random: fastrand::Rng) {
        let lasts = Duration::from_millis(random.u64(LASTS_MS));
        let one = random.u8(1..=self.cluster.brokers());
        tracing::info!(?fault, one, ?lasts, "a fault begins");
        match fault {
            Fault::Kill | Fault::PowerCut | Fault::Drain => {
                self.stop_one(fault, one, lasts, &mut random).await;
            }
            Fault::KillAll | Fault::PowerCutAll => self.stop_all(fault, lasts, &mut random).await,
            Fault::Isolate | Fault::OneWay | Fault::Bridge | Fault::Ring => {
                self.part(fault, one, lasts, &mut random).await;
            }
            Fault::Reset => {
                let other = self.other_than(one, &mut random);
                self.cluster.network().reset(one, other);
            }
            Fault::Far => self.slow_down(one, lasts, &mut random).await,
            Fault::SlowDisk => {
                let stall = Duration::from_millis(random.u64(STALL_MS));
                if let Some(executor) = self.cluster.machine(one).executor() {
                    executor.stall(Lane::Flush, stall);
                }
            }
            Fault::Clock => self.cluster.machine(one).wall().jump(random.i64(JUMP_MS)),
            Fault::Pause => {
                self.cluster.machine(one).pause(lasts);
                sleep(lasts).await;
                self.cluster.machine(one).resume();
            }
            Fault::FullDisk => self.fill_disk(one, lasts, &mut random).await,
            Fault::FailedFlush => self.fail_flush(one, lasts, &mut random).await,
            Fault::Move => self.move_replica(self.topic, &mut random).await,
            Fault::Retire => self.retire(one, &mut random).await,
            Fault::Balance => self.balance(&mut random).await,
            Fault::Rot | Fault::Wipe => self.spoil_disk(fault, one, lasts, &mut random).await,
        }
        tracing::info!(?fault, one, "a fault is over");
    }

    async fn stop_one(&self, fault: Fault, one: u8, lasts: Duration, random: &mut fastrand::Rng) {
        if !self.take(one) {
            return;
        }
        let machine = self.cluster.machine(one);
        match fault {
            Fault::Drain => drop(machine.drain().await),
            Fault::PowerCut => machine.cut_power(any_cut(random)).await,
            _ => machine.kill().await,
        }
        sleep(lasts).await;
        self.start(one).await;
    }

    async fn stop_all(&self, fault: Fault, lasts: Duration, random: &mut fastrand::Rng) {
        {
            let down = &mut self.state().down;
            if !down.is_empty() {
                return;
            }
            down.extend(1..=self.cluster.brokers());
        }
        for (_, machine) in self.cluster.machines() {
            match fault {
                Fault::PowerCutAll => machine.cut_power(any_cut(random)).await,
                _ => machine.kill().await,
            }
        }
        sleep(lasts).await;
        let mut starts = JoinSet::new();
        for number in 1..=self.cluster.brokers() {
            let (this, late) = (self.clone(), Duration::from_millis(random.u64(..2_000)));
            starts.spawn(async move {
                sleep(late).await;
                this.start(number).await;
            });
        }
        starts.join_all().await;
    }

    /// Starts a broker that is down, until it serves.
    async fn start(&self, number: u8) {
        loop {
            match self.cluster.machine(number).start().await {
                Ok(()) => break,
                Err(NotStarted::Killed) => {}
                Err(NotStarted::Failed(error)) => {
                    tracing::warn!(number, %error, "a broker did not start");
                    if matches!(error, StartError::Identity(IdentityError::Removed { .. })) {
                        // As the error says: it comes back as another, with an empty disk.
                        rot::wipe(self.cluster.machine(number).disk());
                        self.state().renewed.insert(number);
                    }
                }
            }
            sleep(START_AGAIN).await;
        }
        self.state().down.remove(&number);
    }

    async fn part(&self, fault: Fault, one: u8, lasts: Duration, random: &mut fastrand::Rng) {
        let brokers = self.cluster.brokers();
        let others = || (1..=brokers).filter(|other| *other != one);
        let both = |(a, b): (u8, u8)| [(a, b), (b, a)];
        let cuts: Vec<(u8, u8)> = match fault {
            Fault::Isolate => others().flat_map(|other| both((one, other))).collect(),
            Fault::OneWay if random.bool() => others().map(|other| (one, other)).collect(),
            Fault::OneWay => others().map(|other| (other, one)).collect(),
            Fault::Bridge => both((one, self.other_than(one, random))).into(),
            _ => {
                let pairs = (1..=brokers).flat_map(|a| (a + 1..=brokers).map(move |b| (a, b)));
                let apart = |(a, b): &(u8, u8)| b - a != 1 && (*a, *b) != (1, brokers);
                pairs.filter(apart).flat_map(both).collect()
            }
        };
        let network = self.cluster.network();
        cuts.iter().for_each(|(from, to)| network.cut(*from, *to));
        sleep(lasts).await;
        cuts.iter().for_each(|(from, to)| network.heal(*from, *to));
    }

    async fn slow_down(&self, one: u8, lasts: Duration, random: &mut fastrand::Rng) {
        let delay = Duration::from_millis(random.u64(DELAY_MS));
        let far = Conditions { delay, jitter: delay, ..Conditions::LOCAL };
        let network = self.cluster.network();
        let others = || (1..=self.cluster.brokers()).filter(|other| *other != one);
        others().for_each(|other| network.set(one, other, far));
        sleep(lasts).await;
        others().for_each(|other| network.set(one, other, Conditions::LOCAL));
    }

    fn other_than(&self, one: u8, random: &mut fastrand::Rng) -> u8 {
        let other = random.u8(1..self.cluster.brokers());
        if other < one { other } else { other + 1 }
    }

    /// Whether this machine may go down now; it counts as down from here on.
    fn take(&self, number: u8) -> bool {
        let (minority, mut state) = (self.minority(), self.state());
        state.down.len() < minority && state.down.insert(number)
    }

    fn minority(&self) -> usize {
        usize::from(self.cluster.brokers() - 1) / 2
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn any_cut(random: &mut fastrand::Rng) -> Cut {
    match random.u8(..4) {
        0 => Cut::LosesAll,
        1 => Cut::KeepsNewest,
        _ => Cut::KeepsSome(random.u64(..)),
    }
}
