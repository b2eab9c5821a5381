//! One broker in a namespace of its own, on a filesystem of its own.
//!
//! Owns: the process, its disk, its configuration, and which build it starts with next.
//! Never: takes the end of a process that nobody asked for as one of the faults.

use super::network::Network;
use crate::mount::{Filesystem, Mount, run};
use crate::process::BrokerProcess;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sparse: what a run does not fill takes no room.
const DISK_MEBIBYTES: u64 = 4 << 10;
const SECRET: &str = "a secret of brokers that are about to meet with accidents";
const LOG_LINES: usize = 12;

/// What a broker is started with.
#[derive(Debug, Clone)]
pub(super) struct Build {
    pub(super) binary: PathBuf,
    /// Where it holds the cluster, so that a build that reads no more can take its place. (In the
    /// environment, as that other build may not know the setting and refuse a file that has it.)
    pub(super) gate: Option<u32>,
}

/// Its number, and everything that is needed to start it.
pub(super) struct Machine {
    number: u8,
    network: Network,
    disk: Option<Mount>,
    folder: PathBuf,
    /// The one it starts with next stands first.
    builds: Vec<Build>,
    process: Option<BrokerProcess>,
}

impl Machine {
    /// A machine with an empty disk, on which nothing runs.
    pub(super) fn new(
        (number, brokers): (u8, u8),
        network: Network,
        folder: &Path,
        builds: Vec<Build>,
    ) -> Result<Self, String> {
        let disk = Mount::new(Filesystem::Ext4, &folder.join(number.to_string()), DISK_MEBIBYTES)?;
        let folder = folder.to_owned();
        let disk = Some(disk);
        let machine = Self { number, network, disk, folder, builds, process: None };
        machine.write("secret", SECRET)?;
        machine.write(&format!("{number}.toml"), &machine.config(brokers))?;
        Ok(machine)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), String> {
        let path = self.folder.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn config(&self, brokers: u8) -> String {
        let seeds = (1..=brokers).map(|seed| format!("\"{}:7422\"", Network::address(seed)));
        let (seeds, here) = (seeds.collect::<Vec<_>>().join(", "), Network::address(self.number));
        format!(
            "[node]\nname = \"b{}\"\ndata_dir = {:?}\n\
             [listen]\nnative = \"{here}:7420\"\npeers = \"{here}:7422\"\n\
             admin = \"{here}:7421\"\ninsecure = true\n\
             [storage]\nscrub_interval = \"5s\"\nscrub_bytes_per_second = \"64MiB\"\n\
             [cluster]\nseeds = [{seeds}]\nsecret_file = {:?}\n\
             [limits]\nmemory = \"128MiB\"\n",
            self.number,
            self.data_dir(),
            self.folder.join("secret"),
        )
    }

    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// Where clients find it.
    pub(super) fn endpoint(&self) -> String {
        format!("weir://{}:7420", Network::address(self.number))
    }

    fn root(&self) -> PathBuf {
        self.disk.as_ref().map(Mount::path).unwrap_or_default()
    }

    fn data_dir(&self) -> PathBuf {
        self.root().join("data")
    }

    /// Starts the broker and waits until it is ready; the next start takes the next build.
    pub(super) fn start(&mut self) -> Result<(), String> {
        let path = self.folder.join(format!("{}.log", self.number));
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.map_err(|e| format!("{}: {e}", path.display()))?;
        let mut command = self.network.inside(self.number);
        let build = &self.builds[0];
        command.envs(build.gate.map(|gate| ("WEIR__CLUSTER__GATE_MAX", gate.to_string())));
        command.arg(&build.binary).arg("serve");
        command.arg("--config").arg(self.folder.join(format!("{}.toml", self.number)));
        let started = BrokerProcess::spawn(command.stderr(log));
        self.process = Some(started.map_err(|error| self.failed(&error))?);
        self.builds.rotate_left(1);
        Ok(())
    }

    /// The running process; an error if it ended by itself.
    fn running(&mut self) -> Result<BrokerProcess, String> {
        let mut process = self.process.take();
        let runs = process.as_mut().is_some_and(BrokerProcess::is_running);
        process.filter(|_| runs).ok_or_else(|| self.failed("it ended by itself"))
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) -> Result<(), String> {
        self.running()?.kill()
    }

    /// SIGTERM, and waits until it has ended in good order.
    pub(super) fn stop(&mut self) -> Result<(), String> {
        let stopped = self.running()?.stop();
        stopped.map_err(|error| self.failed(&error))
    }

    /// SIGSTOP or SIGCONT.
    pub(super) fn signal(&mut self, signal: &str) -> Result<(), String> {
        let process = self.running()?;
        let sent = run(Command::new("kill").args([signal, &process.pid().to_string()]));
        self.process = Some(process);
        sent.map(|_| ())
    }

    /// What its broker answers on the admin port.
    pub(super) fn ask(&mut self, path: &str) -> Result<String, String> {
        self.process = Some(self.running()?);
        let url = format!("http://{}:7421/{path}", Network::address(self.number));
        let asked = run(Command::new("curl").args(["-sS", "--fail", "--max-time", "10", &url]));
        asked.map_err(|error| format!("broker {}: {error}", self.number))
    }

    /// Leaves no byte on the disk. The broker goes on, or ends if it has to.
    pub(super) fn fill_disk(&self) -> Result<(), String> {
        let path = self.root().join("filler");
        let free = run(Command::new("df").args(["--output=avail", "-B1"]).arg(self.root()))?;
        let free: u64 = free.split_whitespace().last().and_then(|n| n.parse().ok()).unwrap_or(0);
        fs::write(&path, []).map_err(|e| format!("{}: {e}", path.display()))?;
        // What the broker took meanwhile is missing: then a little less.
        for taken in [0, 1 << 20, 8 << 20, 64 << 20] {
            let bytes = free.saturating_sub(taken).to_string();
            if run(Command::new("fallocate").args(["-l", &bytes]).arg(&path)).is_ok() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Makes room again.
    pub(super) fn empty_disk(&self) -> Result<(), String> {
        let path = self.root().join("filler");
        fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Flips one bit in each of up to `count` sealed segments of partitions.
    pub(super) fn rot(&self, count: usize, random: &mut fastrand::Rng) -> Result<(), String> {
        let failed = |error: io::Error| format!("{}: {error}", self.data_dir().display());
        let mut sealed = Vec::new();
        sealed_below(&self.data_dir(), &mut sealed).map_err(failed)?;
        sealed.sort();
        random.shuffle(&mut sealed);
        sealed.truncate(count);
        let mut flipped = 0;
        for path in &sealed {
            match flip(path, random) {
                Ok(()) => flipped += 1,
                // A broker that runs may have removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        println!("    broker {}: {flipped} segments", self.number);
        Ok(())
    }

    /// What `weir data verify` says of the data. The broker is down.
    pub(super) fn verify(&self, weir: &Path) -> Result<(), String> {
        let mut command = Command::new(weir);
        run(command.args(["data", "verify", "--data-dir"]).arg(self.data_dir())).map(|_| ())
    }

    /// What is on the disk outlives this program, for whoever looks for what went wrong.
    pub(super) fn keep(&mut self) {
        std::mem::forget(self.disk.take());
    }

    fn failed(&self, error: &str) -> String {
        let path = self.folder.join(format!("{}.log", self.number));
        let log = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        format!("broker {}: {error}; its last words:\n{last}", self.number)
    }
}

/// Segments of partitions behind which another one stands.
fn sealed_below(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut segments = Vec::new();
    for child in fs::read_dir(folder)? {
        let path = child?.path();
        if path.is_dir() {
            sealed_below(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "seg") {
            segments.push(path);
        }
    }
    segments.sort();
    segments.pop();
    let is_of_partition = folder.to_string_lossy().contains("/p-");
    found.extend(segments.into_iter().filter(|_| is_of_partition));
    Ok(())
}

fn flip(path: &Path, random: &mut fastrand::Rng) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let (at, mut byte) = (random.u64(..file.metadata()?.len()), [0]);
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << random.u8(..8);
    file.write_all_at(&byte, at)?;
    file.sync_all()
}
