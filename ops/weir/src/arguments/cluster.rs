//! The command line of `weir cluster`.
//!
//! Owns: its arguments and the text of its `--help`, written for somebody who was woken up.
//! Never: acts on them.

use super::data::{DataOutputArguments, DirectoryArguments};
use super::{AdminArguments, OutputArguments};
use crate::values::{parse_duration, parse_name};
use clap::{Args, Subcommand};
use std::time::Duration;
use weir_client::Name;

const DRAIN_HELP: &str = "\
Everything that the broker holds is copied to others first, and others lead what it led; nothing is
interrupted. It goes on until the broker holds nothing, also when nobody waits. `weir cluster add`
takes it back. For a broker that is only restarted none of this is needed: `weir serve` hands its
leaderships over when it is told to stop.";

const STATUS_HELP: &str = "\
STATE in one word: silent (not heard of for 30 s), going (shutting down), draining, full (less than
1 GiB left: it gets no more replicas) or well. Every broker tells from its own copy of the metadata
and from what it heard; ask another one with --admin where you doubt it.";

const MOVE_HELP: &str = "\
The new replica gets the partition's log first, the old one goes when it votes. `weir cluster status`
lists it until it is done. Where copies are uneven afterwards the cluster may move others.";

const BALANCE_HELP: &str = "\
The cluster evens itself out, slowly: a few leaders every ten seconds, one copy between two brokers
at a time. This wishes for all leaders at once and for the next copies now. --dry-run only shows it.";

const RECOVER_HELP: &str = "\
For when most brokers of a cluster are gone for good, disks and all. As long as they may come back,
bring them back: nothing is lost then. The broker must be stopped.

Without --accept-loss it changes nothing. It shows, for the metadata and for every partition with a
replica here, who votes and the last batch that is here. Several brokers are left? Run it on each:
the copy whose last batch has the greatest term, and then the greatest index, has most. Choose the
broker by the metadata and by the partitions that matter; recover on one broker only.

With --accept-loss and the cluster's id, every replica here becomes the only one of its group. What
the others acknowledged and this broker does not have is lost. What it does have is kept, also what
was never acknowledged. Each of these logs gets a later recovery epoch, which the metadata keeps,
and its other replicas are given up.

Then start this broker. The data directories of all the others must never be used again: move them
away. Brokers with empty ones join anew and get new replicas.

It can be done again after a stop of any kind. Exit status: 0 done, or nothing to do; 3 a log is
damaged (`weir data recover` comes first); 1 nothing was changed, or not all was done; 2 the command
line is wrong.";

#[derive(Debug, Args)]
pub(crate) struct ClusterArguments {
    #[command(subcommand)]
    pub(crate) command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show the brokers, what they hold and lead, and what is not as it shall be
    #[command(after_help = STATUS_HELP)]
    Status(StatusArguments),
    /// Let a broker hold and lead partitions again after it was drained
    Add(BrokerArguments),
    /// Let a broker hand over all that it holds and leads, before it is removed
    #[command(after_help = DRAIN_HELP)]
    Drain(DrainArguments),
    /// Forget a broker that holds nothing any more
    Remove(BrokerArguments),
    /// Move one replica of a partition to another broker
    #[command(after_help = MOVE_HELP)]
    Move(MoveArguments),
    /// Spread leaders and copies evenly now
    #[command(after_help = BALANCE_HELP)]
    Balance(BalanceArguments),
    /// Let a stopped broker go on alone when the majority of its cluster is lost for good
    Recover(RecoverClusterArguments),
}

/// Whom to ask, and how the answer is printed.
#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    pub(crate) admin: AdminArguments,
    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

#[derive(Debug, Args)]
pub(crate) struct BrokerArguments {
    /// The broker: its name or its id
    #[arg(value_parser = parse_name)]
    pub(crate) broker: Name,
    #[command(flatten)]
    pub(crate) ask: StatusArguments,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArguments {
    #[command(flatten)]
    pub(crate) broker: BrokerArguments,
    /// Wait until it holds nothing
    #[arg(long)]
    pub(crate) wait: bool,
    /// Give up waiting after this long, with a unit: 30m; what was begun goes on
    #[arg(long, value_parser = parse_duration, value_name = "DURATION", requires = "wait")]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct MoveArguments {
    /// The topic
    #[arg(value_parser = parse_name)]
    pub(crate) topic: Name,
    /// The number of the partition
    pub(crate) partition: u32,
    /// The broker that holds the replica now: its name or its id
    #[arg(long, value_parser = parse_name, value_name = "BROKER")]
    pub(crate) from: Name,
    /// The broker that shall hold it
    #[arg(long, value_parser = parse_name, value_name = "BROKER")]
    pub(crate) to: Name,
    #[command(flatten)]
    pub(crate) ask: StatusArguments,
}

#[derive(Debug, Args)]
pub(crate) struct BalanceArguments {
    /// Only show what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) ask: StatusArguments,
}

#[derive(Debug, Args)]
#[command(after_help = RECOVER_HELP)]
pub(crate) struct RecoverClusterArguments {
    #[command(flatten)]
    pub(crate) directory: DirectoryArguments,
    /// The id of the cluster, as this command shows it
    #[arg(long, value_name = "ID", requires = "accept_loss")]
    pub(crate) cluster: Option<String>,
    /// Give up for good what only lost brokers have
    #[arg(long, requires = "cluster")]
    pub(crate) accept_loss: bool,
    #[command(flatten)]
    pub(crate) output: DataOutputArguments,
}
