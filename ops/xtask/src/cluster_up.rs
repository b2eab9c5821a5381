//! Three brokers of the built binary that are one cluster on this machine.
//!
//! Owns: where they are, the same at every start, and their end, which is orderly.
//! Never: removes what they hold: the next start goes on with it.

use crate::process::{BrokerProcess, weir_binary};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// One broker: its name, and its first port of three: clients, admin, peers.
const BROKERS: [(&str, u16); 3] = [("a", 7420), ("b", 7430), ("c", 7440)];
/// How often it is looked whether all of them still run.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Starts the cluster with its data below `dir`, and stops it when it is told to.
pub(crate) fn run(root: &Path, dir: &Path) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let weir = weir_binary(root)?;
    // Before the first broker runs: whoever interrupts from here on stops them all.
    let (mut interrupted, mut terminated) = {
        let _inside = runtime.enter();
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?)
    };
    let mut brokers = start(&weir, dir)?;
    println!("weir cluster ready");
    for ((name, port), broker) in BROKERS.iter().zip(&brokers) {
        let admin = port + 1;
        println!(
            "  {name}  {}  admin 127.0.0.1:{admin}  data and log below {}",
            broker.endpoint,
            dir.display()
        );
    }
    println!("export WEIR_ENDPOINT={}", endpoints(&brokers));
    let stopped = runtime.block_on(async {
        loop {
            tokio::select! {
                biased;
                _ = interrupted.recv() => return Ok("stopped".to_owned()),
                _ = terminated.recv() => return Ok("stopped".to_owned()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let ended = brokers.iter_mut().position(|broker| !broker.is_running());
            if let Some(at) = ended {
                let name = BROKERS[at].0;
                return Err(format!("broker {name} ended; {}", see_log(dir, name)));
            }
        }
    });
    let ends: Vec<_> = thread::scope(|scope| {
        let stops = brokers.into_iter().map(|broker| scope.spawn(|| broker.stop()));
        let stops: Vec<_> = stops.collect();
        stops.into_iter().map(|stop| stop.join().expect("no stop panics")).collect()
    });
    let outcome = stopped?;
    ends.into_iter().collect::<Result<(), String>>()?;
    Ok(outcome)
}

fn listen(kind: SignalKind) -> Result<Signal, String> {
    signal(kind).map_err(|e| format!("signals cannot be listened for: {e}"))
}

/// All at once: none is ready before the others are there.
fn start(weir: &Path, dir: &Path) -> Result<Vec<BrokerProcess>, String> {
    let started = thread::scope(|scope| {
        let starts = BROKERS.map(|broker| scope.spawn(move || start_one(weir, dir, broker)));
        starts.map(|start| start.join().expect("no start panics"))
    });
    started.into_iter().collect()
}

fn start_one(weir: &Path, dir: &Path, (name, port): (&str, u16)) -> Result<BrokerProcess, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", dir.display());
    fs::create_dir_all(dir).map_err(failed)?;
    let log = File::create(dir.join(format!("{name}.log"))).map_err(failed)?;
    let address = |offset: u16| format!("127.0.0.1:{}", port + offset);
    let seeds = BROKERS.map(|(_, port)| format!("127.0.0.1:{}", port + 2)).join(",");
    let mut command = Command::new(weir);
    command.args(["serve", "--listen", &address(0), "--admin", &address(1)]);
    command.args(["--peers", &address(2), "--seeds", &seeds, "--data-dir"]).arg(dir.join(name));
    command.env("WEIR__NODE__NAME", name).stderr(log);
    BrokerProcess::spawn(&mut command)
        .map_err(|error| format!("broker {name}: {error}; {}", see_log(dir, name)))
}

fn see_log(dir: &Path, name: &str) -> String {
    format!("{} says why", dir.join(format!("{name}.log")).display())
}

fn endpoints(brokers: &[BrokerProcess]) -> String {
    let each: Vec<_> = brokers.iter().map(|broker| broker.endpoint.as_str()).collect();
    each.join(",")
}
