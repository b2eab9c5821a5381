//! One machine: what survives its broker, and the broker while it runs.
//!
//! Owns: the disk and the clock for good; the scope, the executor and the broker of each life.
//! Never: chooses when anything goes wrong.
//! Invariant: when a kill has returned, nothing of that life is left: no task, no job, no stream,
//! and the data directory is free. What the process wrote is there.

use crate::clock::SimWallClock;
use crate::disk::{Cut, SimDisk};
use crate::entropy::SimEntropy;
use crate::executor::SimExecutor;
use crate::network::{SimNetwork, address_of};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Duration;
use weir_broker::config::Overrides;
use weir_broker::task::{Killed, TaskScope};
use weir_broker::{Broker, Config, Seams, StartError};
use weir_storage::{Disk, Lane};

const DATA_DIR: &str = "/data";
const NATIVE_PORT: u16 = 7420;
const ADMIN_PORT: u16 = 7421;
const PEER_PORT: u16 = 7422;
/// The same on every machine that simulates, whatever memory it has.
const MEMORY: &str = "256MiB";
/// A clock is off by up to so much, as those of machines that synchronise theirs.
const CLOCK_OFFSET_MS: i64 = 50;
/// And gains or loses up to so much, as quartz does.
const CLOCK_DRIFT_PPM: i64 = 100;

/// Why a broker does not run.
#[derive(Debug)]
pub enum NotStarted {
    /// It gave up itself.
    Failed(StartError),
    /// It was killed before it served.
    Killed,
}

/// One machine of a cluster.
pub struct Machine {
    number: u8,
    seed: u64,
    disk: SimDisk,
    wall: Arc<SimWallClock>,
    network: SimNetwork,
    /// Machines that form one cluster, this one among them; none: it is alone.
    seeds: Vec<u8>,
    process: Mutex<Process>,
}

#[derive(Default)]
struct Process {
    /// Counts the lives, so that no two make the same choices.
    lives: u64,
    /// Power cuts so far: each begins another run of the operating system.
    power_cuts: u64,
    /// Settings of the lives to come, as the environment names them.
    settings: Vec<(String, String)>,
    life: Option<Life>,
}

/// The broker's process from its start to its end.
struct Life {
    scope: TaskScope,
    executor: Arc<SimExecutor>,
    /// Once it serves.
    broker: Option<Broker>,
}

impl Machine {
    pub(super) fn new(number: u8, seed: u64, network: &SimNetwork, seeds: Vec<u8>) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let offset_ms = random.i64(-CLOCK_OFFSET_MS..=CLOCK_OFFSET_MS);
        let drift_ppm = random.i64(-CLOCK_DRIFT_PPM..=CLOCK_DRIFT_PPM);
        Self {
            number,
            seed,
            disk: SimDisk::new(),
            wall: SimWallClock::skewed(offset_ms, drift_ppm),
            network: network.clone(),
            seeds,
            process: Mutex::default(),
        }
    }

    /// Its disk, which outlives every broker.
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// Its time of day, which outlives every broker too.
    pub fn wall(&self) -> &SimWallClock {
        &self.wall
    }

    /// The threads of the broker that runs.
    pub fn executor(&self) -> Option<Arc<SimExecutor>> {
        self.process().life.as_ref().map(|life| life.executor.clone())
    }

    /// Where clients reach the broker.
    pub fn native(&self) -> SocketAddr {
        SocketAddr::new(address_of(self.number), NATIVE_PORT)
    }

    /// Where the broker shows itself.
    pub fn admin(&self) -> SocketAddr {
        SocketAddr::new(address_of(self.number), ADMIN_PORT)
    }

    /// Configures the lives to come: `name` as the environment has it, as `WEIR__STORAGE__BACKEND`.
    pub fn set(&self, name: &str, value: &str) {
        self.process().settings.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the broker on what the disk holds. It serves when this returns.
    pub async fn start(&self) -> Result<(), NotStarted> {
        let (scope, seams, life) = {
            let mut process = self.process();
            assert!(process.life.is_none(), "broker {} runs already", self.number);
            process.lives += 1;
            let life = process.lives;
            let (scope, executor) = (TaskScope::new(), SimExecutor::new(self.seed ^ life));
            let seams = self.seams(executor.clone(), life, process.power_cuts);
            process.life = Some(Life { scope: scope.clone(), executor, broker: None });
            (scope, seams, life)
        };
        let started = match scope.run(Broker::start(self.config(), seams)).await {
            Ok(Ok(broker)) => Ok(broker),
            Ok(Err(error)) => Err(NotStarted::Failed(error)),
            Err(Killed) => Err(NotStarted::Killed),
        };
        if let Err(NotStarted::Failed(_)) = &started {
            self.kill().await;
        }
        let broker = started?;
        let mut process = self.process();
        let is_same = process.lives == life;
        let Some(now) = process.life.as_mut().filter(|_| is_same) else {
            // It was killed just when it began to serve.
            drop(process);
            drop(broker);
            return Err(NotStarted::Killed);
        };
        now.broker = Some(broker);
        Ok(())
    }

    /// Ends the process where it stands, as SIGKILL does. What it wrote is there for the next one,
    /// durable or not.
    pub async fn kill(&self) {
        let Some(life) = self.process().life.take() else { return };
        // What is dropped now may still want to change or to send something; a process that is
        // dead does neither.
        self.disk.stop_behind(0);
        self.network.kill(self.number);
        life.executor.kill();
        drop(life.broker);
        life.scope.kill().await;
        // Tasks that others started for the broker, as the HTTP server does, end with their streams.
        self.network.let_go(self.number).await;
        let lock = self.disk.lock(&Path::new(DATA_DIR).join("LOCK"));
        let is_free = lock.is_ok_and(|lock| lock.is_some());
        assert!(is_free, "broker {} was killed and still holds its data directory", self.number);
        self.disk.go_on();
    }

    /// The process stands still, as by SIGSTOP, for so long or until [`Machine::resume`].
    pub fn pause(&self, lasts: Duration) {
        let process = self.process();
        let Some(life) = &process.life else { return };
        life.scope.pause();
        for lane in [Lane::Flush, Lane::Prepare, Lane::Read, Lane::Checkpoint] {
            life.executor.stall(lane, lasts);
        }
    }

    /// The process goes on where it stood.
    pub fn resume(&self) {
        if let Some(life) = &self.process().life {
            life.scope.resume();
        }
    }

    /// Drains the broker, as SIGTERM does: what it leads goes to others first. False: it does not
    /// serve, or was killed meanwhile.
    pub async fn drain(&self) -> bool {
        let drained = {
            let mut process = self.process();
            let Some(life) = process.life.as_mut() else { return false };
            let Some(broker) = life.broker.take() else { return false };
            let scope = life.scope.clone();
            async move { scope.run(broker.drain()).await }
        };
        let drained = drained.await.is_ok();
        if drained {
            self.kill().await;
        }
        drained
    }

    /// The power goes, and with it the process and what the disk had not made durable. Peers hear
    /// the end of their streams; cut the links before, if they are to hear nothing.
    pub async fn cut_power(&self, cut: Cut) {
        self.kill().await;
        self.disk.cut_power(cut);
        self.process().power_cuts += 1;
    }

    fn config(&self) -> Config {
        let peers = |number: &u8| SocketAddr::new(address_of(*number), PEER_PORT);
        let seeds = self.seeds.iter().map(|number| peers(number).to_string());
        let seeds: Vec<String> = seeds.collect();
        let overrides = Overrides {
            data_dir: Some(Path::new(DATA_DIR).to_owned()),
            native: Some(self.native()),
            admin: Some(self.admin()),
            peers: Some(peers(&self.number)),
            seeds: Some(seeds.join(",")).filter(|seeds| !seeds.is_empty()),
            ..Overrides::default()
        };
        let mut environment = vec![
            ("WEIR__NODE__NAME".to_owned(), format!("broker-{}", self.number)),
            ("WEIR__LIMITS__MEMORY".to_owned(), MEMORY.to_owned()),
        ];
        environment.extend(self.process().settings.iter().cloned());
        let config = Config::load(None, environment, &overrides);
        config.unwrap_or_else(|error| panic!("the configuration of a simulated broker: {error}"))
    }

    fn seams(&self, executor: Arc<SimExecutor>, life: u64, power_cuts: u64) -> Seams {
        let seed = self.seed ^ (life << 32);
        Seams {
            disk: Arc::new(self.disk.clone()),
            executor,
            network: self.network.host(self.number),
            wall: self.wall.clone(),
            entropy: SimEntropy::new(seed),
            seed,
            boot_id: u128::from(self.seed) << 64 | u128::from(power_cuts + 1),
        }
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
