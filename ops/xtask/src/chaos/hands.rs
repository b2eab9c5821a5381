//! Makes things go wrong, and right again.
//!
//! Owns: three hands, one for processes, one for the network and one for disks. Each does one thing
//! at a time, so that up to three faults combine.
//! Never: leaves anything broken when a hand is taken away; damages the files of more than one
//! machine in a run, so that what it damages is whole on the others.

use super::delay::Delay;
use super::machine::Machine;
use super::mending::wait_until_mended;
use super::network::{CLIENTS, Network};
use std::fmt;
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Between two faults of one hand.
const PAUSE_MS: std::ops::Range<u64> = 500..4_000;
/// How long a fault lasts.
const LASTS_MS: std::ops::Range<u64> = 200..8_000;
/// Sealed segments that rot at a time.
const ROTTEN_MAX: usize = 4;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fault {
    /// One broker is killed and started again
    Kill,
    /// All of them are
    KillAll,
    /// One broker stands still (SIGSTOP)
    Pause,
    /// All brokers are restarted one after the other, in good order
    Roll,
    /// One machine reaches no other, nor clients it
    Isolate,
    /// One machine is heard and does not hear, or the other way round
    OneWay,
    /// Two machines do not reach each other; all others reach both
    Bridge,
    /// Every machine of five reaches its neighbours in a ring only
    Ring,
    /// What gets to one machine is late, and out of order
    Delay,
    /// Little gets to one machine at a time
    Narrow,
    /// The disk of one machine is full
    DiskFull,
    /// Bits of sealed segments flip while a broker is down
    Rot,
    /// They do while it runs
    RotAlive,
}

impl Fault {
    pub(crate) const ALL: [Self; 13] = [
        Self::Kill,
        Self::KillAll,
        Self::Pause,
        Self::Roll,
        Self::Isolate,
        Self::OneWay,
        Self::Bridge,
        Self::Ring,
        Self::Delay,
        Self::Narrow,
        Self::DiskFull,
        Self::Rot,
        Self::RotAlive,
    ];

    fn hand(self) -> Hand {
        match self {
            Self::Kill | Self::KillAll | Self::Pause | Self::Roll => Hand::Processes,
            Self::Isolate
            | Self::OneWay
            | Self::Bridge
            | Self::Ring
            | Self::Delay
            | Self::Narrow => Hand::Network,
            Self::DiskFull | Self::Rot | Self::RotAlive => Hand::Disks,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self).expect("no fault is skipped");
        f.write_str(value.get_name())
    }
}

/// What a fault is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hand {
    Processes,
    Network,
    Disks,
}

impl Hand {
    pub(super) const ALL: [Self; 3] = [Self::Processes, Self::Network, Self::Disks];
}

/// The machines of a run, and the network between them.
pub(super) struct Stage {
    machines: Vec<Mutex<Machine>>,
    network: Network,
    /// The only one whose files rot.
    rotten: usize,
}

impl Stage {
    pub(super) fn new(machines: Vec<Machine>, network: Network, seed: u64) -> Self {
        let rotten = fastrand::Rng::with_seed(seed).usize(..machines.len());
        let machines = machines.into_iter().map(Mutex::new).collect();
        Self { machines, network, rotten }
    }

    /// Every machine, free of every hand.
    pub(super) fn machines(&self) -> impl Iterator<Item = MutexGuard<'_, Machine>> {
        self.machines.iter().map(held)
    }

    /// All at once: none is ready before a majority is there.
    pub(super) fn start_all(&self) -> Result<(), String> {
        self.each_at_once(|_, machine| machine.start())
    }

    /// Restarts every broker in good order, one after the other.
    pub(super) fn roll(&self) -> Result<(), String> {
        self.machines().try_for_each(|mut machine| {
            machine.stop()?;
            machine.start()
        })
    }

    /// No broker reads more than this gate, or knows of more that was passed.
    pub(super) fn is_held_at(&self, gate: u32) -> Result<(), String> {
        let said = held(&self.machines[0]).ask("v1/cluster")?;
        match said.matches("\"gate\":").count()
            == said.matches(&format!("\"gate\":{gate},")).count()
        {
            true => Ok(()),
            false => Err(format!("the cluster is not held at gate {gate}: {said}")),
        }
    }

    /// Waits until what rotted of a topic of so many partitions was found and brought back from the
    /// others.
    pub(super) fn mend(&self, topic: (&str, u16)) -> Result<(), String> {
        wait_until_mended(&mut held(&self.machines[self.rotten]), topic)
    }

    /// Stops every broker in good order.
    pub(super) fn stop_all(&self) -> Result<(), String> {
        self.each_at_once(|_, machine| machine.stop())
    }

    /// Begins with none before all are free of other hands.
    fn each_at_once(
        &self,
        act: impl Fn(usize, &mut Machine) -> Result<(), String> + Sync,
    ) -> Result<(), String> {
        let (act, all_held) = (&act, &Barrier::new(self.machines.len()));
        thread::scope(|scope| {
            let acts = self.machines.iter().enumerate().map(|(at, machine)| {
                scope.spawn(move || {
                    let mut machine = held(machine);
                    all_held.wait();
                    act(at, &mut machine)
                })
            });
            let acts: Vec<_> = acts.collect();
            acts.into_iter().try_for_each(|act| act.join().expect("no act panics"))
        })
    }

    /// Lets this hand do these faults until then. Returns how many it did, undone again.
    pub(super) fn work(
        &self,
        hand: Hand,
        faults: &[Fault],
        (seed, until): (u64, Instant),
    ) -> Result<u64, String> {
        // Of three, everybody is everybody's neighbour in a ring.
        let is_there = |fault: &&Fault| **fault != Fault::Ring || self.machines.len() > 3;
        let mine = faults.iter().filter(|fault| fault.hand() == hand).filter(is_there);
        let faults: Vec<_> = mine.collect();
        let mut random = fastrand::Rng::with_seed(seed ^ (hand as u64 + 1));
        let mut count = 0;
        while let Some(fault) = random.choice(&faults) {
            thread::sleep(Duration::from_millis(random.u64(PAUSE_MS)));
            if crate::now() >= until {
                break;
            }
            println!("  {fault}");
            self.inflict(**fault, &mut random).map_err(|error| format!("{fault}: {error}"))?;
            count += 1;
        }
        Ok(count)
    }

    fn inflict(&self, fault: Fault, random: &mut fastrand::Rng) -> Result<(), String> {
        let lasts = Duration::from_millis(random.u64(LASTS_MS));
        let one = random.usize(..self.machines.len());
        let node = one as u8 + 1;
        match fault {
            Fault::Kill => {
                let mut machine = held(&self.machines[one]);
                machine.kill()?;
                thread::sleep(lasts);
                machine.start()
            }
            Fault::KillAll => self.each_at_once(|at, machine| {
                machine.kill()?;
                // Not all come back at the same moment.
                thread::sleep(lasts / (at as u32 + 1));
                machine.start()
            }),
            Fault::Pause => {
                let mut machine = held(&self.machines[one]);
                machine.signal("-STOP")?;
                thread::sleep(lasts);
                machine.signal("-CONT")
            }
            Fault::Roll => self.roll(),
            Fault::Delay => {
                let delay = Delay::begin(&self.network, node)?;
                thread::sleep(lasts);
                delay.end()
            }
            Fault::Narrow => {
                self.network.narrow(node)?;
                thread::sleep(lasts);
                self.network.widen(node)
            }
            Fault::Isolate | Fault::OneWay | Fault::Bridge | Fault::Ring => {
                let cuts = self.cuts(fault, node, random);
                cuts.iter().try_for_each(|way| self.network.cut(*way))?;
                thread::sleep(lasts);
                cuts.iter().try_for_each(|way| self.network.heal(*way))
            }
            Fault::DiskFull => {
                held(&self.machines[one]).fill_disk()?;
                thread::sleep(lasts);
                held(&self.machines[one]).empty_disk()
            }
            Fault::Rot => {
                let mut machine = held(&self.machines[self.rotten]);
                machine.kill()?;
                machine.rot(ROTTEN_MAX, random)?;
                thread::sleep(lasts / 4);
                machine.start()
            }
            Fault::RotAlive => held(&self.machines[self.rotten]).rot(ROTTEN_MAX, random),
        }
    }

    /// Which ways are cut.
    fn cuts(&self, fault: Fault, one: u8, random: &mut fastrand::Rng) -> Vec<(u8, u8)> {
        let brokers = self.machines.len() as u8;
        let others = || (1..=brokers).filter(|other| *other != one);
        let both = |(a, b): (u8, u8)| [(a, b), (b, a)];
        match fault {
            Fault::Isolate => {
                let also_of_clients = random.bool().then_some(CLIENTS);
                others().chain(also_of_clients).flat_map(|other| both((one, other))).collect()
            }
            Fault::OneWay if random.bool() => others().map(|other| (one, other)).collect(),
            Fault::OneWay => others().map(|other| (other, one)).collect(),
            Fault::Bridge => {
                let other = random.choice(others().collect::<Vec<_>>()).expect("there are others");
                both((one, other)).into()
            }
            _ => {
                let pairs = (1..=brokers).flat_map(|a| (a + 1..=brokers).map(move |b| (a, b)));
                let apart = |(a, b): &(u8, u8)| b - a != 1 && (*a, *b) != (1, brokers);
                pairs.filter(apart).flat_map(both).collect()
            }
        }
    }
}

fn held(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}
