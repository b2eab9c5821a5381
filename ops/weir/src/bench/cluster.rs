//! `weir bench cluster`: what three brokers on this machine reach together.
//!
//! Owns: the flags. Never: measures itself.

use crate::arguments::Output;
use crate::failure::Failure;
use crate::output::print_json;
use crate::values::parse_duration;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;
use weir_bench::cluster::failover::{self, FailoverReport, Going, Plan};
use weir_bench::cluster::paced::Pace;
use weir_bench::cluster::steady::Load;
use weir_bench::cluster::{Place, at_rest, rabbitmq, replicas, slow_follower};

const CLUSTER_HELP: &str = "\
Each starts three brokers of its own, processes of this program on ports of the loopback that are
free, with their data below DIR; both are gone in the end. Every figure stands beside what it shall
be. Exit status: 0 also where a goal is not met; 1 where a record was lost, repeated or refused.";

/// What a cluster reaches, with three brokers of its own.
#[derive(Debug, Args)]
#[command(after_help = CLUSTER_HELP)]
pub(super) struct ClusterBenchArguments {
    #[command(subcommand)]
    command: ClusterBench,
    /// A folder on the disk in question
    #[arg(long, global = true, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum ClusterBench {
    /// Kill -9 one broker after another under load: for how long nobody answers
    Failover {
        /// Brokers that are killed, each the one that leads most
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        kills: u32,
        #[command(flatten)]
        pace: PaceArguments,
    },
    /// Stop one broker after another in order under load: what a hand-over of leaders costs
    Transfer {
        /// Brokers that are stopped, each the one that leads most
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        stops: u32,
        #[command(flatten)]
        pace: PaceArguments,
    },
    /// A topic of three replicas beside one of one replica, in turns
    Replicas(TurnsArguments),
    /// Three replicas with one follower that stands still half of the time, and without, in turns
    SlowFollower(TurnsArguments),
    /// A quorum queue of RabbitMQ and a topic of three replicas in turns; see
    /// benches/compare/rabbitmq
    Rabbitmq {
        /// The node of RabbitMQ that shall lead the queue: HOST:PORT
        #[arg(long, default_value = "127.0.0.1:5672", value_name = "ADDRESS")]
        amqp: String,
        #[command(flatten)]
        turns: TurnsArguments,
    },
    /// What brokers cost that nobody uses
    Idle {
        /// Partitions of three replicas each
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
        partitions: u32,
        /// How long it is looked
        #[arg(long, value_parser = parse_duration, default_value = "60s", value_name = "DURATION")]
        watch: Duration,
    },
}

#[derive(Debug, Args)]
struct PaceArguments {
    /// Partitions of three replicas each
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    /// Messages a second on each; what is between two of them is part of every gap
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,
}

#[derive(Debug, Args)]
struct TurnsArguments {
    /// Turns of both
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Publishers, each with a connection of its own
    #[arg(short, long, default_value_t = 4)]
    publishers: usize,
    /// Unacknowledged messages of one publisher
    #[arg(short, long, default_value_t = 1_000)]
    window: usize,
    /// Bytes of a message
    #[arg(short, long, default_value_t = 1_024)]
    size: usize,
    /// How long each turn is measured
    #[arg(short, long, value_parser = parse_duration, default_value = "5s", value_name = "DURATION")]
    duration: Duration,
}

impl PaceArguments {
    fn plan(&self, going: Going, times: u32) -> Plan {
        let pace = Pace { partitions: self.partitions, rate: f64::from(self.rate) };
        Plan { going, times, pace }
    }
}

impl TurnsArguments {
    fn load(&self) -> Load {
        Load {
            publishers: self.publishers,
            window: self.window,
            message_bytes: self.size,
            seconds: self.duration.as_secs_f64(),
        }
    }
}

pub(super) fn run(arguments: ClusterBenchArguments) -> Result<(), Failure> {
    let ClusterBenchArguments { command, dir, output } = arguments;
    let place = Place { weir: std::env::current_exe()?, dir };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        ClusterBench::Failover { kills, pace } => {
            let plan = pace.plan(Going::Killed, kills);
            tell(&failover::measure(&runtime, &place, plan)?, output)
        }
        ClusterBench::Transfer { stops, pace } => {
            let plan = pace.plan(Going::Stopped, stops);
            tell(&failover::measure(&runtime, &place, plan)?, output)
        }
        ClusterBench::Replicas(turns) => {
            let report = replicas::measure(&runtime, &place, turns.load(), turns.rounds)?;
            print(&report, || report.table(), output)
        }
        ClusterBench::SlowFollower(turns) => {
            let report = slow_follower::measure(&runtime, &place, turns.load(), turns.rounds)?;
            print(&report, || report.table(), output)
        }
        ClusterBench::Rabbitmq { amqp, turns } => {
            let (load, rounds) = (turns.load(), turns.rounds);
            let report = rabbitmq::measure(&runtime, &place, &amqp, load, rounds)?;
            print(&report, || report.table(), output)
        }
        ClusterBench::Idle { partitions, watch } => {
            let report = at_rest::measure(&runtime, &place, partitions, watch)?;
            print(&report, || report.table(), output)
        }
    }
}

fn tell(report: &FailoverReport, output: Output) -> Result<(), Failure> {
    print(report, || report.table(), output)?;
    match report.is_sound() {
        true => Ok(()),
        false => Err(Failure::NotDone("a record was lost, repeated or refused".to_owned())),
    }
}

fn print(
    report: &impl Serialize,
    table: impl FnOnce() -> String,
    output: Output,
) -> Result<(), Failure> {
    match output {
        Output::Json => print_json(report)?,
        Output::Table => print!("{}", table()),
    }
    Ok(())
}
