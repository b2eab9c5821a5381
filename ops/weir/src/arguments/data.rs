//! The command line of `weir data`.
//!
//! Owns: its arguments and the text of its `--help`, written for somebody who was woken up.
//! Never: acts on them.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

const DATA_HELP: &str = "\
The broker must be stopped: each of these takes the lock of its data directory. When a disk is
suspected, begin with `verify`, which changes nothing; look closer with `dump`; make a copy of the
data directory; then `recover`.";

const VERIFY_HELP: &str = "\
Reads node.meta, the metadata log, and every byte of every partition's log that means something.
Changes nothing (but for the pid in the file LOCK).

What it says, and what comes next:
  whole                nothing is to be done
  a torn tail          harmless: it was never acknowledged; the next start cuts it off
  damaged              was written once and cannot be read any more. Bring the files back from a
                       backup if there is one; otherwise `weir data recover --accept-loss` gives
                       the range up for good, and readers pass over it. Meanwhile the broker may
                       run: it serves what else there is, and refuses these offsets by name
                       (DAMAGED_RANGE)
  no checkpoint covers it
                       nobody knows what it changed: this partition is read-only (or, if it is
                       the metadata, no broker starts) before that is settled
  the end is lost      the log does not open: as above, but nothing tells how much is gone
  unread               the device failed, or a newer build wrote it: nothing is known of it

Exit status: 0 all is whole (accepted losses included); 3 something is damaged that nobody has
accepted; 1 the directory, or a log in it, could not be read at all (and nothing known is
damaged); 2 the command line is wrong.";

const DUMP_HELP: &str = "\
PATH is the folder of a log (metadata or p-…), or one file: a segment (.seg), meta, damage, an
index (.idx), a checkpoint (.ckpt) or node.meta. Changes nothing (but for the pid in LOCK).

In text, bytes that are no UTF-8 are shown as \\xHH. In JSON there is one object a line, of a
`kind`: batch, unreadable, missing, torn_tail, lost_tail, or the name of the file. Keys, headers
and payloads are strings, or {\"hex\": \"…\"} where they are no UTF-8: nothing is lost.

Batches in a damaged range that are whole in themselves are shown and marked `refused`. Of one
segment by itself also what a later segment cut off is shown. Bytes that cannot be read are shown
where they stand and are no failure here: `weir data verify` judges.";

const RECOVER_HELP: &str = "\
Without --accept-loss it does what the next start does, and nothing of value is ever lost by it:
torn tails (never acknowledged) are cut off, what nothing proves to be flushed is written again
and flushed, damage is noted beside the log. Then it says what keeps a log from being whole.

With --accept-loss it prints what will be given up, asks, and opens the damaged logs such that
readers pass over what cannot be read; a log whose end is lost then ends where it can still be
read. That is for good: make a copy of the data directory first. Where nothing is damaged nothing
is asked and nothing changes.

Exit status: 0 all is whole, or its loss accepted; 3 something is damaged that nobody has accepted;
1 something was not done; 2 the command line is wrong.";

#[derive(Debug, Args)]
#[command(after_help = DATA_HELP)]
pub(crate) struct DataArguments {
    #[command(subcommand)]
    pub(crate) command: DataCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Say whether the data is whole, and what is not; changes nothing
    #[command(after_help = VERIFY_HELP)]
    Verify {
        #[command(flatten)]
        directory: DirectoryArguments,
        #[command(flatten)]
        output: DataOutputArguments,
    },
    /// Print what stands in a log or in one of its files; changes nothing
    Dump(DumpArguments),
    /// Open the logs as a start would; with --accept-loss give up what is damaged
    Recover(RecoverArguments),
}

#[derive(Debug, Args)]
pub(crate) struct DirectoryArguments {
    /// Folder of the data [default: ./weir-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DataOutput {
    /// Lines for people
    Text,
    /// JSON, a stable schema for programs
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct DataOutputArguments {
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: DataOutput,
}

#[derive(Debug, Args)]
#[command(after_help = DUMP_HELP)]
pub(crate) struct DumpArguments {
    /// A log's folder, or one file of it
    pub(crate) path: PathBuf,
    /// Begin with this offset
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    pub(crate) from: u64,
    /// End in front of this offset
    #[arg(long, value_name = "OFFSET", default_value_t = u64::MAX, hide_default_value = true)]
    pub(crate) to: u64,
    /// Only the headers of batches, not their records
    #[arg(long)]
    pub(crate) headers: bool,
    #[command(flatten)]
    pub(crate) output: DataOutputArguments,
}

#[derive(Debug, Args)]
#[command(after_help = RECOVER_HELP)]
pub(crate) struct RecoverArguments {
    #[command(flatten)]
    pub(crate) directory: DirectoryArguments,
    /// Only this log: the name of its folder, p-… or metadata
    #[arg(long, value_name = "FOLDER")]
    pub(crate) partition: Option<String>,
    /// Give up for good what is damaged
    #[arg(long)]
    pub(crate) accept_loss: bool,
    /// Do not ask; for programs that have read what `verify` says
    #[arg(long, requires = "accept_loss")]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) output: DataOutputArguments,
}
