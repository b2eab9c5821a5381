//! `weir data`: the files of a broker that is stopped.
//!
//! Owns: the data directory's lock while a command works on it.
//! Never: touches a directory that a broker runs on.
//! Invariant: `verify` and `dump` change no byte but the pid in LOCK.

pub(crate) mod directory;
mod dump;
mod recover;
pub(crate) mod survey;
mod verify;
mod words;

use crate::arguments::{DataArguments, DataCommand, DirectoryArguments};
use crate::failure::Failure;
use std::path::{Path, PathBuf};
use weir_broker::config::{Config, Overrides};
use weir_storage::{Backend, Disk, DiskLock, OsDisk};

pub(crate) use recover::Inline;

const LOCK_FILE: &str = "LOCK";

pub(crate) fn run(arguments: &DataArguments) -> Result<(), Failure> {
    match &arguments.command {
        DataCommand::Verify { directory, output } => {
            verify::run(&data_dir(directory)?, output.output)
        }
        DataCommand::Dump(arguments) => dump::run(arguments),
        DataCommand::Recover(arguments) => {
            recover::run(&data_dir(&arguments.directory)?, arguments)
        }
    }
}

/// The directory that `weir serve` would use in this place.
pub(crate) fn data_dir(arguments: &DirectoryArguments) -> Result<PathBuf, Failure> {
    if let Some(named) = &arguments.data_dir {
        return Ok(named.clone());
    }
    let config = Config::load(None, std::env::vars(), &Overrides::default());
    let config = config.map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(config.data_dir().to_owned())
}

/// A disk that reads by system calls: a sector that cannot be read is an error then, and not the
/// end of the process.
pub(crate) fn disk() -> OsDisk {
    OsDisk::new(Backend::Pwrite)
}

/// Keeps brokers away from `root` for as long as the guard lives.
pub(crate) fn lock(disk: &dyn Disk, root: &Path) -> Result<Box<dyn DiskLock>, Failure> {
    let path = root.join(LOCK_FILE);
    let taken = disk.lock(&path);
    let taken = taken.map_err(|error| Failure::NotDone(format!("{}: {error}", path.display())))?;
    taken.ok_or_else(|| in_use(root))
}

pub(crate) fn in_use(root: &Path) -> Failure {
    let pid = std::fs::read_to_string(root.join(LOCK_FILE)).unwrap_or_default();
    let by = match pid.trim() {
        "" => String::new(),
        pid => format!(" (process {pid})"),
    };
    let root = root.display();
    Failure::NotDone(format!("a broker{by} runs on {root}: stop it first; nothing was changed"))
}
