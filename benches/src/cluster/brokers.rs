//! The brokers of one cluster, each a process of its own on the loopback.
//!
//! Owns: their addresses, which they keep over their lives, their folders and their ends.
//! Never: leaves one running, nor its data.

use super::processes::Process;
use super::{PATIENCE, Place, found, other};
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};

/// Below those that the operating system gives to who dials, so that nobody takes the port of a
/// broker that is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// The budget of a broker: several share the machine.
const MEMORY: &str = "1GiB";

/// The cluster.
pub(super) struct Brokers {
    weir: PathBuf,
    members: Vec<Member>,
    seeds: String,
    /// Of all of them, as the environment names them.
    settings: Vec<(&'static str, &'static str)>,
}

struct Member {
    name: String,
    folder: PathBuf,
    native: SocketAddr,
    admin: SocketAddr,
    peers: SocketAddr,
    process: Option<Process>,
}

impl Brokers {
    /// Starts `count` brokers with their data below `dir`, and waits until they are one cluster.
    pub(super) async fn start(place: &Place, dir: &Path, count: usize) -> io::Result<Self> {
        Self::start_with(place, dir, count, &[]).await
    }

    /// The same, with settings beside the usual.
    pub(super) async fn start_with(
        place: &Place,
        dir: &Path,
        count: usize,
        settings: &[(&'static str, &'static str)],
    ) -> io::Result<Self> {
        let mut ports = PORTS.skip(std::process::id() as usize * 64 % PORTS.len());
        let members: io::Result<Vec<_>> = ["a", "b", "c", "d", "e"]
            .iter()
            .take(count)
            .map(|name| Member::new(name, &dir.join(name), &mut ports))
            .collect();
        let members = members?;
        let seeds: Vec<_> = members.iter().map(|member| member.peers.to_string()).collect();
        let (weir, settings) = (place.weir.clone(), settings.to_vec());
        let mut brokers = Self { weir, members, seeds: seeds.join(","), settings };
        let mut outputs = Vec::new();
        for number in 0..count {
            outputs.push(brokers.spawn(number)?);
        }
        for (number, output) in outputs.into_iter().enumerate() {
            brokers.ready(number, output).await?;
        }
        Ok(brokers)
    }

    fn spawn(&mut self, number: usize) -> io::Result<ChildStdout> {
        let member = &mut self.members[number];
        fs::create_dir_all(&member.folder)?;
        let log = File::options().create(true).append(true).open(member.log())?;
        let mut command = Command::new(&self.weir);
        command.args(["serve", "--listen", &member.native.to_string()]);
        command.args(["--admin", &member.admin.to_string()]);
        command.args(["--peers", &member.peers.to_string(), "--seeds", &self.seeds]);
        command.arg("--data-dir").arg(member.folder.join("data"));
        command.env("WEIR__NODE__NAME", &member.name).env("WEIR__LIMITS__MEMORY", MEMORY);
        command.envs(self.settings.iter().copied());
        let (process, output) = Process::start(command.stderr(log))?;
        member.process = Some(process);
        Ok(output)
    }

    /// Waits for the line that says that it serves.
    async fn ready(&self, number: usize, output: ChildStdout) -> io::Result<()> {
        let first_line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(PATIENCE, first_line).await;
        let line = line.map_err(|_| other("it took too long"))?.map_err(other)??;
        if line.starts_with("weir ready ") {
            return Ok(());
        }
        let member = &self.members[number];
        let said = fs::read_to_string(member.log()).unwrap_or_default();
        let last = said.lines().last().unwrap_or_default();
        Err(other(format!("broker {} did not get ready: {last}", member.name)))
    }

    /// Starts one that is down, and waits until it serves.
    pub(super) async fn restart(&mut self, number: usize) -> io::Result<()> {
        let output = self.spawn(number)?;
        self.ready(number, output).await
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self, number: usize) -> io::Result<()> {
        self.members[number].process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Stops one in order: SIGTERM, and waits until it is gone.
    pub(super) async fn stop(&mut self, number: usize) -> io::Result<()> {
        let Some(mut process) = self.members[number].process.take() else { return Ok(()) };
        process.signal(Signal::TERM)?;
        let what = format!("broker {} drains", self.members[number].name);
        found(&what, async || process.has_ended().unwrap_or(true).then_some(())).await
    }

    /// Sends a signal to one.
    pub(super) fn signal(&self, number: usize, signal: Signal) -> io::Result<()> {
        self.members[number].process.as_ref().map_or(Ok(()), |process| process.signal(signal))
    }

    /// The processes of those that run.
    pub(super) fn pids(&self) -> Vec<u32> {
        let running = self.members.iter().filter_map(|member| member.process.as_ref());
        running.map(Process::id).collect()
    }

    /// Where clients connect.
    pub(super) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("weir://{}", member.native)).collect()
    }

    /// What each is called, by number.
    pub(super) fn name(&self, number: usize) -> &str {
        &self.members[number].name
    }

    /// Which broker is called so.
    pub(super) fn number_of(&self, name: &str) -> Option<usize> {
        self.members.iter().position(|member| member.name == name)
    }

    /// What `weir cluster status` says, asked of a broker that runs.
    pub(super) async fn status(&self) -> io::Result<Value> {
        let runs = self.members.iter().position(|member| member.process.is_some());
        self.ask(runs.ok_or_else(|| other("no broker runs"))?, &["cluster", "status"]).await
    }

    /// What a command of `weir` learns from one broker, as JSON.
    pub(super) async fn ask(&self, number: usize, arguments: &[&str]) -> io::Result<Value> {
        let member = &self.members[number];
        let mut command = Command::new(&self.weir);
        command.args(arguments).args(["-o", "json", "--admin", &member.admin.to_string()]);
        command.env("WEIR_ENDPOINT", format!("weir://{}", member.native)).stdin(Stdio::null());
        let ran = tokio::task::spawn_blocking(move || command.output()).await.map_err(other)??;
        if !ran.status.success() {
            let text = String::from_utf8_lossy(&ran.stderr).into_owned();
            return Err(other(format!("weir {}: {text}", arguments.join(" "))));
        }
        serde_json::from_slice(&ran.stdout).map_err(other)
    }
}

impl Member {
    fn new(name: &str, folder: &Path, ports: &mut impl Iterator<Item = u16>) -> io::Result<Self> {
        let mut address = || {
            let free = ports
                .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
                .find(|address| TcpListener::bind(address).is_ok());
            free.ok_or_else(|| other(format!("no port of {PORTS:?} is free")))
        };
        Ok(Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
            native: address()?,
            admin: address()?,
            peers: address()?,
            process: None,
        })
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }
}
