//! `weir bench`: measure.
//!
//! Owns: the flags. Never: measures itself; the harness is a library.

mod cluster;

use crate::arguments::{EndpointArguments, Output, OutputArguments};
use crate::failure::Failure;
use crate::output::{print_json, print_table};
use crate::values::parse_duration;
use clap::{Args, Subcommand, ValueEnum};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;
use weir_bench::load;
use weir_bench::schedule::Arrivals;
use weir_bench::scratch::in_scratch_folder;
use weir_bench::storage::{self, Part, Plan, StorageReport};
use weir_bench::workload::Workload;
use weir_bench::{compare, floor, idle, net_floor};

const BENCH_HELP: &str = "\
Loads are open loop where they have a rate: latency counts from the moment a message was due.
Give --server-pid to account the broker's CPU and memory. Compare figures of one run only, on the
same disk: `weir bench floor` says what the machine can do.";

const STORAGE_HELP: &str = "\
Flushes, reads and bytes are what the kernel counts of the block device below DIR
(/sys/dev/block/MAJ:MIN/stat), of a loop device its own. The disk of a machine that does other work
counts that too: trust medians there, or give DIR on a disk of its own. CPU is that of the process:
what kernel threads do, those of a loop device too, is not in it.

Up to 2 GiB below DIR are taken and given back, more with more sealed segments. Recovery has the
system forget what it has cached: as root everything, else only the files in question.";

/// Measure.
#[derive(Debug, Args)]
#[command(after_help = BENCH_HELP)]
pub(crate) struct BenchArguments {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Run a workload file
    Run {
        /// Workload (YAML); benches/workloads has some
        file: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    /// Publish as fast as a window allows, or at a rate
    Pub(LoadArguments),
    /// Read a topic from start to end
    Sub {
        /// The topic
        #[arg(long, default_value = "bench")]
        topic: String,
        /// Look at every message: content, order, repetition
        #[arg(long)]
        audit: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Publish at a rate and read beside it, every message audited
    E2e(LoadArguments),
    /// Hold connections that do nothing, and say what they cost
    Idle {
        /// How many
        #[arg(long, default_value_t = 1_000)]
        connections: usize,
        /// How long to hold them
        #[arg(long, value_parser = parse_duration, default_value = "5s", value_name = "DURATION")]
        hold: Duration,
        #[command(flatten)]
        common: Common,
    },
    /// Measure a cluster of three brokers on this machine
    Cluster(cluster::ClusterBenchArguments),
    /// Run workload files in turns with the floors of the same disk, and print medians
    Compare {
        /// Workloads (YAML)
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// A folder on the disk of the broker
        #[arg(long, default_value = ".", value_name = "DIR")]
        dir: PathBuf,
        /// Turns of all floors and the broker
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        #[command(flatten)]
        common: Common,
    },
    /// What storage alone reaches, by the counters of the disk
    #[command(after_help = STORAGE_HELP)]
    Storage(StorageArguments),
    /// What this disk and machine can do without a broker
    Floor {
        /// A folder on the disk in question
        #[arg(long, default_value = ".", value_name = "DIR")]
        dir: PathBuf,
        /// Turns of device and storage at each group size
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// Length of each load on the net floor
        #[arg(long, value_parser = parse_duration, default_value = "3s", value_name = "DURATION")]
        seconds: Duration,
        /// Serve the net floor on any port, with its log at this path
        #[arg(long, hide = true, value_name = "PATH")]
        serve_net: Option<PathBuf>,
        #[command(flatten)]
        output: OutputArguments,
    },
}

#[derive(Debug, Args)]
struct StorageArguments {
    /// A folder on the disk in question
    #[arg(long, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Turns of everything
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure only these; may be repeated [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    only: Vec<PartArgument>,
    /// Logs that flush at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=64))]
    partitions: u32,
    /// Sealed segments of 1 MiB in the log that is opened
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    sealed: usize,
    #[command(flatten)]
    output: OutputArguments,
}

/// A part of the figures of storage.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum PartArgument {
    /// Groups of one log: flushes, bytes written, time, beside pwrite and fdatasync
    Groups,
    /// Small groups in a row, with the rolls and segments beside them: means
    Steady,
    /// Many logs that flush at once, against one
    Partitions,
    /// CPU of append and flush per GiB
    Cpu,
    /// Opening logs that are not in memory, beside a plain read of their files
    Recovery,
}

#[derive(Debug, Args)]
struct Common {
    /// Process of the broker, to account its CPU and memory
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    #[command(flatten)]
    output: OutputArguments,
    #[command(flatten)]
    endpoint: EndpointArguments,
}

/// How arrivals are spread.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ArrivalsArgument {
    /// Evenly
    Constant,
    /// As independent users do
    Poisson,
}

#[derive(Debug, Args)]
struct LoadArguments {
    /// The topic; if it does not exist it is made, and keeps 1 GiB a partition
    #[arg(long, default_value = "bench")]
    topic: String,
    /// Partitions of a topic that is made
    #[arg(long, default_value_t = 1)]
    partitions: u32,
    /// Publishers, each with a connection of its own
    #[arg(short, long, default_value_t = 1)]
    publishers: usize,
    /// Unacknowledged messages of one publisher
    #[arg(short, long, default_value_t = 1_000)]
    window: usize,
    /// Messages a second of all publishers; without it as many as the window lets through
    #[arg(short, long)]
    rate: Option<f64>,
    /// How arrivals are spread where there is a rate
    #[arg(long, value_enum, default_value = "constant")]
    arrivals: ArrivalsArgument,
    /// Bytes of a message
    #[arg(short, long, default_value_t = 1_024)]
    size: usize,
    /// How long to measure
    #[arg(short, long, value_parser = parse_duration, default_value = "5s", value_name = "DURATION")]
    duration: Duration,
    /// How long to publish before that
    #[arg(long, value_parser = parse_duration, default_value = "1s", value_name = "DURATION")]
    warmup: Duration,
    /// Count as refused what would have to wait for credit
    #[arg(long)]
    fail_when_full: bool,
    /// A message later than this is not good
    #[arg(long, default_value_t = 100)]
    slo_ms: u64,
    #[command(flatten)]
    common: Common,
}

impl LoadArguments {
    fn workload(&self, name: &str, consume: bool) -> Workload {
        Workload {
            name: name.to_owned(),
            topic: self.topic.clone(),
            partitions: self.partitions,
            publishers: self.publishers,
            rate: self.rate.unwrap_or(0.0),
            arrivals: match self.arrivals {
                ArrivalsArgument::Constant => Arrivals::Constant,
                ArrivalsArgument::Poisson => Arrivals::Poisson,
            },
            window: self.window,
            message_bytes: self.size,
            seconds: self.duration.as_secs_f64(),
            warmup_seconds: self.warmup.as_secs_f64(),
            fail_when_full: self.fail_when_full,
            consume,
            slo_ms: self.slo_ms,
        }
    }
}

pub(crate) fn run(arguments: BenchArguments) -> Result<(), Failure> {
    match arguments.command {
        BenchCommand::Run { file, common } => {
            let workload = Workload::read(&file).map_err(|e| Failure::Usage(e.to_string()))?;
            load(workload, &common)
        }
        BenchCommand::Pub(arguments) => load(arguments.workload("pub", false), &arguments.common),
        BenchCommand::E2e(arguments) => load(arguments.workload("e2e", true), &arguments.common),
        BenchCommand::Sub { topic, audit, common } => drain(&topic, audit, &common),
        BenchCommand::Idle { connections, hold, common } => idle(connections, hold, &common),
        BenchCommand::Cluster(arguments) => cluster::run(arguments),
        BenchCommand::Compare { files, dir, rounds, common } => {
            compare_with_floors(&files, &dir, rounds, &common)
        }
        BenchCommand::Storage(arguments) => measure_storage(&arguments),
        BenchCommand::Floor { serve_net: Some(path), .. } => serve_net(&path),
        BenchCommand::Floor { dir, rounds, seconds, output, .. } => {
            let measured = floor::measure(&dir, rounds, seconds.as_secs_f64());
            let report = measured.map_err(|error| with_dir(&dir, &error))?;
            match output.output {
                Output::Json => print_json(&report)?,
                Output::Table => print!("{}", report.table()),
            }
            Ok(())
        }
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}

fn load(workload: Workload, common: &Common) -> Result<(), Failure> {
    workload.check().map_err(|e| Failure::Usage(e.to_string()))?;
    let report = block_on(load::run(&common.endpoint.endpoint, workload, common.server_pid))??;
    match common.output.output {
        Output::Json => print_json(&report)?,
        Output::Table => print!("{}", report.table()),
    }
    let broken = report.audit.is_some_and(|audit| audit.lost + audit.duplicated > 0);
    if broken {
        return Err(Failure::NotDone("the audit found lost or repeated messages".to_owned()));
    }
    Ok(())
}

fn idle(connections: usize, hold: Duration, common: &Common) -> Result<(), Failure> {
    let endpoints = &common.endpoint.endpoint;
    let report = block_on(idle::run(endpoints, connections, hold, common.server_pid))??;
    match common.output.output {
        Output::Json => print_json(&report)?,
        Output::Table => print!("{}", report.table()),
    }
    if report.connected < connections {
        return Err(Failure::NotDone("not all connections lasted".to_owned()));
    }
    Ok(())
}

fn compare_with_floors(
    files: &[PathBuf],
    dir: &Path,
    rounds: u32,
    common: &Common,
) -> Result<(), Failure> {
    let workloads: Result<Vec<_>, _> = files.iter().map(|file| Workload::read(file)).collect();
    let workloads = workloads.map_err(|e| Failure::Usage(e.to_string()))?;
    let comparisons = in_scratch_folder(dir, |scratch| {
        compare::measure(scratch, workloads, rounds, |workload| {
            block_on(load::run(&common.endpoint.endpoint, workload, common.server_pid))?
                .map_err(io::Error::other)
        })
    })?;
    match common.output.output {
        Output::Json => print_json(&comparisons)?,
        Output::Table => print!("{}", compare::table(&comparisons)),
    }
    Ok(())
}

fn with_dir(dir: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", dir.display()))
}

fn measure_storage(arguments: &StorageArguments) -> Result<(), Failure> {
    let parts = arguments.only.iter().map(|part| match part {
        PartArgument::Groups => Part::Groups,
        PartArgument::Steady => Part::Steady,
        PartArgument::Partitions => Part::Partitions,
        PartArgument::Cpu => Part::Cpu,
        PartArgument::Recovery => Part::Recovery,
    });
    let plan = Plan {
        rounds: arguments.rounds,
        partitions: arguments.partitions,
        sealed: arguments.sealed,
        parts: parts.collect(),
    };
    let measured = storage::measure(&arguments.dir, &plan);
    let report = measured.map_err(|error| with_dir(&arguments.dir, &error))?;
    match arguments.output.output {
        Output::Json => print_json(&report)?,
        Output::Table => print_storage(&report)?,
    }
    Ok(())
}

fn print_storage(report: &StorageReport) -> io::Result<()> {
    println!("medians of {} rounds, over single groups where there are some", report.rounds);
    if let Some(figures) = &report.groups {
        println!("\nappend and flush of one log beside pwrite and fdatasync over written blocks");
        print_table(storage::groups::HEADINGS, figures.iter().map(|figure| figure.row()))?;
    }
    if let Some(figure) = &report.steady {
        println!("\nsmall groups of one log, and all that is written beside them");
        print_table(storage::steady::HEADINGS, [figure.row()])?;
    }
    if let Some(figure) = &report.partitions {
        println!("\nlogs of one device that flush at once");
        print_table(storage::partitions::HEADINGS, figure.rows())?;
    }
    if let Some(figures) = &report.cpu {
        println!("\nCPU of append and flush, seconds per GiB");
        print_table(storage::cpu::HEADINGS, figures.iter().map(|figure| figure.row()))?;
    }
    if let Some(figures) = &report.recovery {
        println!("\nopening logs that are not in memory");
        let rows = figures.iter().flat_map(|figure| figure.rows());
        print_table(storage::recovery::HEADINGS, rows)?;
    }
    Ok(())
}

fn drain(topic: &str, audit: bool, common: &Common) -> Result<(), Failure> {
    let nobody = BTreeMap::new();
    let audited = audit.then_some(&nobody);
    let draining = load::drain(&common.endpoint.endpoint, topic, audited, common.server_pid);
    let report = block_on(draining)??;
    match common.output.output {
        Output::Json => print_json(&report)?,
        Output::Table => {
            let (messages, seconds) = (report.messages, report.seconds);
            println!("{messages} messages in {seconds:.2} s: {:.0}/s", report.messages_s);
            if let Some(audit) = report.audit {
                println!("duplicated {}  reordered {}", audit.duplicated, audit.reordered);
            }
            if let Some(cpu) = report.server_cpu_s_per_million {
                println!("broker: {cpu:.2} CPU s per million messages");
            }
        }
    }
    Ok(())
}

fn serve_net(path: &Path) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", listener.local_addr()?)?;
        out.flush()?;
    }
    Ok(net_floor::serve(&listener, path)?)
}
