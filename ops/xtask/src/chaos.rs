//! Chaos with real processes: a cluster whose brokers, network and disks are broken under load.
//!
//! Owns: the frame around a run: whatever becomes of it, nothing stays behind but the folder of one
//! that failed.
//! Never: touches the network of this machine: brokers and clients live in namespaces without a way
//! out.
//!
//! The rooms: `network` is the namespaces and what is cut between them, `delay` holds packets back,
//! `machine` is one broker with a filesystem of its own, `mending` waits for what rotted there,
//! `hands` is what goes wrong, `run` one whole run. Clients and the judge of their history are those
//! of the simulation.

mod delay;
mod hands;
mod machine;
mod mending;
mod network;
mod run;

pub(crate) use delay::hold;
pub(crate) use hands::Fault;

use crate::process::weir_binary;
use network::Network;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

const SECONDS_MAX: u64 = 24 * 3_600;

/// What is to be run.
#[derive(Debug, clap::Args)]
pub(crate) struct Wish {
    /// How long things go wrong; they come to rest and are judged every ten minutes
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    pub(crate) seconds: u64,
    /// Repeats a run, as far as its timing allows [default: a random one]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Brokers: 3 or 5
    #[arg(long, default_value_t = 3, value_parser = parse_brokers)]
    pub(crate) brokers: u8,
    /// What goes wrong [default: everything]; with `roll` alone no client may see an error
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) faults: Vec<Fault>,
    /// The broker's binary [default: the release binary of this workspace]
    #[arg(long, value_name = "FILE")]
    pub(crate) weir: Option<PathBuf>,
    /// An older build of it: brokers begin with that one, and change at each start, all of them
    /// there and back again before anything else goes wrong
    #[arg(long, value_name = "FILE")]
    pub(crate) other: Option<PathBuf>,
    /// Have this build hold the cluster at a gate that the other reads, so that it can come back
    #[arg(long, requires = "other")]
    pub(crate) gate: Option<u32>,
    /// The namespaces that were made for this run: it begins in that of the clients
    #[arg(long, hide = true)]
    inside: Option<String>,
}

fn parse_brokers(text: &str) -> Result<u8, String> {
    match text {
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("write 3 or 5".to_owned()),
    }
}

impl Wish {
    /// What goes wrong is only that brokers are restarted one by one.
    pub(crate) fn is_calm(&self) -> bool {
        self.faults.iter().all(|fault| *fault == Fault::Roll)
    }

    fn arguments(&self, seed: u64) -> Vec<String> {
        let mut all = vec![format!("--seconds={}", self.seconds), format!("--seed={seed}")];
        all.push(format!("--brokers={}", self.brokers));
        all.extend(self.gate.map(|gate| format!("--gate={gate}")));
        all.extend(self.faults.iter().map(|fault| format!("--faults={fault}")));
        let files = [("weir", &self.weir), ("other", &self.other)];
        let named = files.iter().filter_map(|(name, file)| {
            file.as_ref().map(|file| format!("--{name}={}", file.display()))
        });
        all.extend(named);
        all
    }
}

/// Runs one.
pub(crate) fn check(root: &Path, mut wish: Wish) -> Result<String, String> {
    if wish.faults.is_empty() {
        wish.faults = Fault::ALL.into();
    }
    if wish.weir.is_none() {
        wish.weir = Some(weir_binary(root)?);
    }
    match wish.inside.take() {
        Some(prefix) => run::run(&wish, &prefix),
        None => frame(&wish),
    }
}

/// Makes the network, runs this program in it, and takes it down again.
fn frame(wish: &Wish) -> Result<String, String> {
    let seed = wish.seed.unwrap_or_else(|| fastrand::u64(..));
    let again = format!("cargo xtask chaos {}", wish.arguments(seed).join(" "));
    network::clean_up_of_others()?;
    let prefix = network::prefix_of_this();
    let folder = folder_of(&prefix);
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let network = Network::new(&prefix);
    let outcome = network.make(wish.brokers).and_then(|()| {
        let this = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = network.inside(network::CLIENTS);
        command.arg(this).arg("chaos").args(wish.arguments(seed)).arg("--inside").arg(&prefix);
        wait_for(&mut command)
    });
    network.take_down();
    match outcome {
        Ok(()) => {
            let _ = fs::remove_dir_all(&folder);
            Ok(format!("chaos: nothing broke (seed {seed})"))
        }
        Err(error) => Err(format!("{error}\nlogs and data: {}\nagain: {again}", folder.display())),
    }
}

/// Where a run keeps what it has.
fn folder_of(prefix: &str) -> PathBuf {
    std::env::temp_dir().join(prefix)
}

/// A signal ends the run; what is left of it is cleaned up afterwards.
fn wait_for(command: &mut Command) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let listen = |kind| signal(kind).map_err(|e| format!("no signals: {e}"));
        let mut interrupted = listen(SignalKind::interrupt())?;
        let mut terminated = listen(SignalKind::terminate())?;
        let mut child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
        loop {
            if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
                let failed = || Err("the run failed, see above".to_owned());
                return if status.success() { Ok(()) } else { failed() };
            }
            tokio::select! {
                biased;
                _ = interrupted.recv() => break,
                _ = terminated.recv() => break,
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        Err("interrupted".to_owned())
    })
}
