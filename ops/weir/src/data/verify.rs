//! `weir data verify`: is the data whole, and what is not?
//!
//! Owns: the verdict over a data directory, and its exit status.
//! Never: changes a byte but the pid in LOCK.

use super::directory::Directory;
use super::survey::{Surveyed, Verdict, survey};
use super::words::{details, headline, identity_json, identity_line, surveyed_json};
use super::{disk, lock};
use crate::arguments::DataOutput;
use crate::failure::Failure;
use crate::output::print_json;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

pub(super) fn run(root: &Path, output: DataOutput) -> Result<(), Failure> {
    let disk = Arc::new(disk());
    // Looked at first: a folder that is none of ours gets no lock file.
    drop(Directory::open(disk.clone(), root)?);
    let _lock = lock(&*disk, root)?;
    let directory = Directory::open(disk, root)?;
    let text = output == DataOutput::Text;
    if text {
        writeln!(io::stdout(), "{}", identity_line(&directory))?;
    }
    let all = survey(&directory, None, |surveyed| if text { print(surveyed) } else { Ok(()) })?;
    if !text {
        print_json(&json!({
            "data_dir": root.display().to_string(),
            "verdict": worst(&directory, &all).word(),
            "identity": identity_json(&directory),
            "logs": all.iter().map(surveyed_json).collect::<Vec<Value>>(),
        }))?;
    }
    judge(&directory, &all)
}

/// A log's line and what there is to say beside it.
fn print(surveyed: &Surveyed) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", headline(surveyed))?;
    details(surveyed).iter().try_for_each(|line| writeln!(out, "         {line}"))?;
    out.flush()
}

fn worst(directory: &Directory, all: &[Surveyed]) -> Verdict {
    let identity = directory.identity.as_ref().err().map(|error| error.verdict());
    all.iter().map(Surveyed::verdict).chain(identity).max().unwrap_or(Verdict::Whole)
}

/// The exit status over everything, with what comes next.
fn judge(directory: &Directory, all: &[Surveyed]) -> Result<(), Failure> {
    let root = directory.root.display();
    let count = |verdict| all.iter().filter(|surveyed| surveyed.verdict() == verdict).count();
    let (damaged, unread, of) = (count(Verdict::Damaged), count(Verdict::Unread), all.len());
    let node = if directory.identity.is_ok() { "" } else { ", and node.meta cannot be read" };
    match worst(directory, all) {
        Verdict::Whole => Ok(()),
        Verdict::Unread => Err(Failure::NotDone(format!(
            "{root}: {unread} of {of} logs could not be read{node}; the others are whole"
        ))),
        Verdict::Damaged => Err(Failure::Damaged(format!(
            "{root}: {damaged} of {of} logs are damaged, {unread} could not be read{node}; nothing \
             was changed; `weir data verify --help` says what comes next"
        ))),
    }
}
