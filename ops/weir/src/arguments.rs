//! The command line: every command, flag and default in one place.
//!
//! Owns: the shape of the arguments and the text of `--help`.
//! Never: acts on them.

mod cluster;
mod data;

pub(crate) use cluster::{
    BalanceArguments, BrokerArguments, ClusterArguments, ClusterCommand, DrainArguments,
    MoveArguments, RecoverClusterArguments, StatusArguments,
};
pub(crate) use data::{
    DataArguments, DataCommand, DataOutput, DirectoryArguments, DumpArguments, RecoverArguments,
};

use crate::publish::framing::Framing;
use crate::subscribe::format::TOKENS_HELP;
use crate::values::{
    parse_bytes, parse_duration, parse_header, parse_name, parse_replicas, parse_start,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use weir_client::{Durability, Name, Overflow, Start};

const EXIT_CODES: &str = "\
Exit status: 0 everything was done; 1 something was not done (the reason is on stderr);
2 the command line or the configuration is wrong; 3 data on disk is damaged (`weir data`, or
`weir sub` met a range that is).";

const TIME_HELP: &str = "\
Forms of TIME: 2026-11-21T03:00:00Z (RFC 3339, UTC), -15m (that long ago; ms, s, m, h, d),
@1763694000000 (milliseconds since the epoch). A record's time is the broker's log time.";

/// Weir, a durable message queue broker with back-pressure end to end.
#[derive(Debug, Parser)]
#[command(name = "weir", version, about, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a broker
    Serve(ServeArguments),
    /// Create, list, change and remove topics
    Topic(TopicArguments),
    /// Publish messages from text, files or stdin
    Pub(PubArguments),
    /// Read messages of a topic to stdout
    Sub(SubArguments),
    /// Check a broker: exit status 0 when it is well
    Check(CheckArguments),
    /// Find out why something is slow
    Diag(DiagArguments),
    /// Check a configuration, or show the one in effect
    Config(ConfigArguments),
    /// Verify, show and recover the data of a broker that is stopped
    Data(DataArguments),
    /// See and steer a cluster: its brokers, and what they hold and lead
    Cluster(ClusterArguments),
    /// Measure
    Bench(crate::bench::BenchArguments),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Where the broker listens, for every command that connects to it.
#[derive(Debug, Clone, Args)]
pub(crate) struct EndpointArguments {
    /// Brokers to connect to, separated by commas: weir://HOST:PORT[,weir://HOST:PORT…]
    #[arg(
        long,
        global = true,
        env = "WEIR_ENDPOINT",
        value_delimiter = ',',
        default_value = "weir://127.0.0.1:7420",
        value_name = "URL"
    )]
    pub(crate) endpoint: Vec<String>,
}

/// Where the admin HTTP server listens, for the commands that ask it.
#[derive(Debug, Clone, Args)]
pub(crate) struct AdminArguments {
    /// Admin address of the broker: HOST:PORT
    #[arg(long, env = "WEIR_ADMIN", default_value = "127.0.0.1:7421", value_name = "ADDRESS")]
    pub(crate) admin: String,
}

/// How records and tables are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Columns for people
    Table,
    /// One JSON value, a stable schema for programs
    Json,
}

/// How messages are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RecordOutput {
    /// The payload and a newline, or what --format says
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct OutputArguments {
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

const CREATE_HELP: &str = "\
Defaults: --durability fsync, --max-bytes 10GiB, --max-age 0s, --overflow backpressure.";

const SERVE_HELP: &str = "\
When it serves, one line appears on stdout, with the real ports:

  weir ready native=127.0.0.1:7420 admin=127.0.0.1:7421 data_dir=./weir-data

From then on /readyz on the admin address answers 200. SIGTERM and SIGINT drain: what is paid
for is answered, clients are told to go, logs are closed; this takes at most
shutdown.drain_timeout (30s by default; clients are cut off after four fifths of it), then the
exit status is 0. A second SIGINT ends it at once with 1. A device that fails ends it by SIGABRT:
what was acknowledged is found at the next start.";

/// Run a broker.
#[derive(Debug, Args)]
#[command(after_help = SERVE_HELP)]
pub(crate) struct ServeArguments {
    /// Folder of the data [default: ./weir-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address for clients; port 0 picks one [default: 127.0.0.1:7420]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
    /// Address for metrics, health and the admin API; port 0 picks one [default: 127.0.0.1:7421]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin: Option<SocketAddr>,
    /// Address for other brokers, if --seeds names any [default: 127.0.0.1:7422]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) peers: Option<SocketAddr>,
    /// Brokers that form the cluster, apart by commas, the same on each; none: this one is alone
    #[arg(long, value_name = "HOST:PORT,...")]
    pub(crate) seeds: Option<String>,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Accept a public address although there is neither TLS nor authentication
    #[arg(long)]
    pub(crate) insecure: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TopicArguments {
    #[command(subcommand)]
    pub(crate) command: TopicCommand,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic
    #[command(after_help = CREATE_HELP)]
    Create {
        /// Its name: 1 to 255 of A-Z a-z 0-9 . _ -
        #[arg(value_parser = parse_name)]
        topic: Name,
        /// Partitions; more can be added later, never fewer
        #[arg(long, default_value_t = 1)]
        partitions: u32,
        #[command(flatten)]
        settings: TopicSettings,
    },
    /// List the topics
    Ls {
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Show a topic and its partitions: who leads and holds them, and what of them is damaged
    Info {
        #[arg(value_parser = parse_name)]
        topic: Name,
        /// Admin address of the broker: HOST:PORT [default: the endpoint's host, port 7421]
        #[arg(long, env = "WEIR_ADMIN", value_name = "ADDRESS")]
        admin: Option<String>,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Change a topic: its replicas alone, or the rest
    Set {
        #[arg(value_parser = parse_name)]
        topic: Name,
        /// Add partitions up to this number; keys may then move to another partition
        #[arg(long)]
        partitions: Option<u32>,
        #[command(flatten)]
        settings: TopicSettings,
    },
    /// Remove a topic and every record in it
    Rm {
        #[arg(value_parser = parse_name)]
        topic: Name,
        /// Do it; without this only what would be lost is printed
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TopicSettings {
    /// When a publish is acknowledged: flushed, or (weaker: power loss may lose it) in memory
    #[arg(long, value_parser = crate::values::parse_durability, value_name = "fsync|memory")]
    pub(crate) durability: Option<Durability>,
    /// Bytes that each partition retains, with a unit: 10GiB
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub(crate) max_bytes: Option<u64>,
    /// Age at which records go, with a unit: 7d; 0s = never
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) max_age: Option<Duration>,
    /// What happens to publishers at max-bytes while a durable subscription holds the oldest
    #[arg(
        long,
        value_parser = crate::values::parse_overflow,
        value_name = "backpressure|reject|expire"
    )]
    pub(crate) overflow: Option<Overflow>,
    /// Replicas of each partition, on as many brokers: 1, 3 or 5; by default three where as many
    /// brokers are, else one
    #[arg(long, value_parser = parse_replicas, value_name = "1|3|5")]
    pub(crate) replicas: Option<u8>,
}

/// What `--on-full` chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WhenFull {
    /// Wait for room
    Wait,
    /// Stop with the broker's reason
    Fail,
}

const PUB_HELP: &str = "\
With --producer NAME a publish can be resumed: when this command dies and is started again with
the same NAME and the same input, it skips what is stored already and continues behind it, so
that every message is stored once. A producer keeps to one partition of the topic
(--partition, 0 by default).

A summary (messages, bytes, seconds, messages skipped because an earlier run stored them) goes
to stderr.";

/// Publish messages.
#[derive(Debug, Args)]
#[command(after_help = PUB_HELP)]
pub(crate) struct PubArguments {
    /// The topic; it must exist
    #[arg(value_parser = parse_name)]
    pub(crate) topic: Name,
    /// Files to publish, `-` or nothing for stdin
    #[arg(conflicts_with = "message")]
    pub(crate) files: Vec<PathBuf>,
    /// Publish this one message
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// How messages are told apart: a line each; a u32 little-endian length before each; or the
    /// whole file
    #[arg(long, value_enum, default_value = "line")]
    pub(crate) frame: Framing,
    /// Key of every message; messages of one key stay in order in one partition
    #[arg(short, long)]
    pub(crate) key: Option<String>,
    /// Header of every message, k=v; may be repeated
    #[arg(short = 'H', long = "header", value_parser = parse_header, value_name = "K=V")]
    pub(crate) headers: Vec<(String, String)>,
    /// Publish to this partition instead of one chosen by key
    #[arg(long)]
    pub(crate) partition: Option<u32>,
    /// At most this many messages a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// Durable name of this producer, to resume after this command itself died
    #[arg(long, value_parser = parse_name, value_name = "NAME", conflicts_with = "key")]
    pub(crate) producer: Option<Name>,
    /// What to do when the topic or the broker's disk is full
    #[arg(long, value_enum, default_value = "wait")]
    pub(crate) on_full: WhenFull,
    /// Give up after this long without progress, with a unit: 60s
    #[arg(long, value_parser = parse_duration, default_value = "60s", value_name = "DURATION")]
    pub(crate) deadline: Duration,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArguments,
}

/// Read messages.
#[derive(Debug, Args)]
#[command(after_help = format!("{TOKENS_HELP}\n\n{TIME_HELP}"))]
pub(crate) struct SubArguments {
    /// The topic
    #[arg(value_parser = parse_name)]
    pub(crate) topic: Name,
    /// Durable subscription: the cursor is kept by the broker and moves as messages are printed
    #[arg(long, value_parser = parse_name, value_name = "NAME")]
    pub(crate) subscription: Option<Name>,
    /// Where to start: earliest, latest, an offset or a TIME; a durable subscription that exists
    /// goes on at its cursor
    #[arg(
        long,
        value_parser = parse_start,
        default_value = "latest",
        value_name = "START",
        allow_hyphen_values = true
    )]
    pub(crate) from: Start,
    /// Only this partition
    #[arg(long)]
    pub(crate) partition: Option<u32>,
    /// Stop after this many messages
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Stop at the end: the high watermark of each partition when this command started
    #[arg(long)]
    pub(crate) exit_at_end: bool,
    /// What to print of each message [default: the payload and a newline]
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Form of the output; json not together with --format
    #[arg(short, long, value_enum, default_value = "text", conflicts_with = "format")]
    pub(crate) output: RecordOutput,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArguments,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    #[command(subcommand)]
    pub(crate) command: CheckCommand,
    /// Fail when the answer takes longer, with a unit
    #[arg(long, value_parser = parse_duration, default_value = "5s", value_name = "DURATION")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CheckCommand {
    /// The process answers
    Live {
        #[command(flatten)]
        admin: AdminArguments,
    },
    /// Everything that clients need is open
    Ready {
        #[command(flatten)]
        admin: AdminArguments,
    },
    /// A message published now is stored and read back
    E2e {
        /// The topic to use; it must exist, and gets one message more
        #[arg(value_parser = parse_name)]
        topic: Name,
        #[command(flatten)]
        endpoint: EndpointArguments,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DiagArguments {
    #[command(subcommand)]
    pub(crate) command: DiagCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DiagCommand {
    /// Measure how long this disk takes to flush small writes
    Fsync {
        /// A folder on the disk in question
        #[arg(long, default_value = ".", value_name = "DIR")]
        dir: PathBuf,
        /// Flushes to measure
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        count: u32,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Show which publishers wait, for what, since when
    Flow {
        #[command(flatten)]
        admin: AdminArguments,
        #[command(flatten)]
        output: OutputArguments,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArguments {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Read a configuration file and say what is wrong with it
    Check {
        /// Configuration file (TOML)
        file: PathBuf,
    },
    /// Print every setting with its value and where it comes from
    Effective {
        /// Configuration file (TOML)
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        output: OutputArguments,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
