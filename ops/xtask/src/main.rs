//! The project's chores. `cargo xtask --help` lists them.
//!
//! Owns: checks that need the whole tree, and what needs root or mounts.
//! Never: is needed to build, test or run Weir.

#![forbid(unsafe_code)]

mod advisories;
mod chaos;
mod cluster_up;
mod diskfull;
mod fuzz;
mod links;
mod mount;
mod planted;
mod powercut;
mod process;
mod reference;
mod sim;
mod stall;
mod survive;
mod tidy;

use clap::{Parser, Subcommand, ValueEnum};
use mount::Filesystem;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's chores")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Check the rules of CONTRIBUTING.md that the compiler does not know
    Tidy,
    /// Check Cargo.lock against a snapshot of the RustSec advisories
    Advisories {
        /// Folder of the snapshot (it holds `crates/`)
        #[arg(long, env = "ADVISORY_DB")]
        db: PathBuf,
    },
    /// Plant bugs in the storage and the broker, one at a time, and see that a test catches each
    Planted {
        /// Ask the simulation of clusters alone: it takes its time, and misses some
        #[arg(long)]
        sim: bool,
        /// Names of `broker/storage/src/planted.rs` and `broker/src/planted.rs` [default: all]
        bugs: Vec<String>,
    },
    /// Cut the power under a loaded broker on loop-mounted filesystems (needs root)
    Powercut {
        /// How often
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        cuts: u32,
        /// Where; half of the cuts each for both
        #[arg(long, value_enum, default_value = "both")]
        filesystem: Where,
        /// Repeats a run, as far as its timing allows [default: a random one]
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Publish the lines of a file to a broker that is killed and started again
    Kill {
        /// The file
        file: PathBuf,
        /// How often
        #[arg(long, default_value_t = 2)]
        kills: u32,
    },
    /// Freeze the disk of a loaded broker on a loop-mounted ext4 (needs root)
    Stall {
        /// Connections, nearly all of them idle
        #[arg(long, default_value_t = 10_000)]
        connections: u64,
        /// How long the disk stands still
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Write the generated reference pages in ops/book
    Reference {
        /// Only compare them with the code
        #[arg(long)]
        check: bool,
    },
    /// Feed the decoders and recovery inputs that libFuzzer finds by coverage
    Fuzz {
        /// For how long each target
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Begins with the same inputs each time [default: a random one]
        #[arg(long)]
        seed: Option<u32>,
        /// Which targets [default: all]
        targets: Vec<String>,
    },
    /// Simulate clusters under faults, a cluster for each seed
    Sim {
        /// Which, as FIRST..END
        #[arg(long, default_value = "0..1000")]
        seeds: sim::Seeds,
        /// Processes at a time
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
        jobs: u8,
        /// Records in this file what is done, and leaves out what it says is done
        #[arg(long, value_name = "FILE")]
        resume: Option<PathBuf>,
        /// Go on with a file that another commit has written
        #[arg(long, requires = "resume")]
        any_commit: bool,
    },
    /// Start three brokers that are one cluster on this machine; Ctrl-C stops them
    ClusterUp {
        /// Where their data goes, and is found again
        #[arg(long, default_value = "cluster")]
        dir: PathBuf,
    },
    /// Break brokers, network and disks of a cluster of real processes under load (needs root)
    Chaos(chaos::Wish),
    /// Hold back what a netfilter queue hands over: a part of `chaos`
    #[command(hide = true)]
    ChaosDelay {
        /// Of the namespace that this runs in
        queue: u16,
    },
    /// Fill the disk of a broker on a loop-mounted ext4 and make room again (needs root)
    Diskfull,
}

#[derive(Clone, Copy, ValueEnum)]
enum Where {
    Ext4,
    Xfs,
    Both,
}

impl Where {
    fn filesystems(self) -> &'static [Filesystem] {
        match self {
            Self::Ext4 => &[Filesystem::Ext4],
            Self::Xfs => &[Filesystem::Xfs],
            Self::Both => &[Filesystem::Ext4, Filesystem::Xfs],
        }
    }
}

fn main() -> ExitCode {
    let root = workspace_root();
    let outcome = match Arguments::parse().chore {
        Chore::Tidy => tidy::check(&root),
        Chore::Advisories { db } => advisories::check(&root.join("Cargo.lock"), &db),
        Chore::Planted { sim, bugs } => planted::check(&root, sim, &bugs),
        Chore::Powercut { cuts, filesystem, seed } => {
            let seed = seed.unwrap_or_else(|| fastrand::u64(..));
            powercut::check(&root, cuts, filesystem.filesystems(), seed)
        }
        Chore::Kill { file, kills } => survive::kills(&root, &file, kills),
        Chore::Stall { connections, seconds } => stall::check(&root, connections, seconds),
        Chore::Reference { check } => reference::run(&root, check),
        Chore::Fuzz { seconds, seed, targets } => {
            // libFuzzer takes 0 for a random one.
            fuzz::run(&root, (seconds, seed.unwrap_or(0)), &targets)
        }
        Chore::Sim { seeds, jobs, resume, any_commit } => {
            sim::run(&root, &sim::Plan { seeds, jobs, resume, any_commit })
        }
        Chore::ClusterUp { dir } => cluster_up::run(&root, &dir),
        Chore::Chaos(wish) => chaos::check(&root, wish),
        Chore::ChaosDelay { queue } => chaos::hold(queue),
        Chore::Diskfull => diskfull::check(&root),
    };
    match outcome {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(problems) => {
            eprintln!("{problems}");
            ExitCode::FAILURE
        }
    }
}

fn workspace_root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map(PathBuf::from).expect("xtask lies two folders below the root")
}

#[expect(clippy::disallowed_methods, reason = "a chore is a program, not a part of the broker")]
fn now() -> Instant {
    Instant::now()
}
