//! The command line of `weir cluster`.
//!
//! Owns: its arguments and the text of its `--help`, written for somebody who was woken up.
//! Never: acts on them.

use super::data::{DataOutputArguments, DirectoryArguments};
use clap::{Args, Subcommand};

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
    /// Let a stopped broker go on alone when the majority of its cluster is lost for good
    Recover(RecoverClusterArguments),
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
