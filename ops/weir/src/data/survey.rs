//! Looks at every log of a data directory.
//!
//! Owns: the verdict over each.
//! Never: changes a file.

use super::directory::{Directory, Owner, Place};
use crate::failure::Failure;
use std::io;
use weir_storage::inspect::{self, LogReport};
use weir_storage::{DamagedRange, OpenError};

/// What was found where a log should be.
pub(crate) struct Surveyed {
    pub(crate) place: Place,
    pub(crate) found: Found,
    /// What is not as it should be and harms nobody.
    pub(crate) notes: Vec<String>,
}

pub(crate) enum Found {
    Missing,
    Log(LogReport),
    /// It cannot be looked into.
    Refused(OpenError),
}

/// What a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Everything can be read, or its loss was accepted.
    Whole,
    /// Nothing is known.
    Unread,
    Damaged,
}

impl Verdict {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Damaged => "damaged",
            Self::Unread => "unread",
        }
    }
}

impl Surveyed {
    pub(crate) fn verdict(&self) -> Verdict {
        match &self.found {
            Found::Missing | Found::Refused(OpenError::Damaged(_)) => Verdict::Damaged,
            Found::Refused(_) => Verdict::Unread,
            Found::Log(report) if is_damaged(report) => Verdict::Damaged,
            Found::Log(_) => Verdict::Whole,
        }
    }

    /// Whether giving up what is damaged makes the log usable: there are ranges nobody has
    /// accepted, or its end is lost. A command that the metadata lacks would change the meaning of
    /// all that follow, so it is never passed over.
    pub(crate) fn can_be_accepted(&self) -> bool {
        let Found::Log(report) = &self.found else { return false };
        let is_metadata = self.place.owner == Owner::Metadata;
        let kept = unaccepted(report).any(|range| is_metadata && stops_a_start(range, report));
        !kept && (report.lost_tail.is_some() || unaccepted(report).next().is_some())
    }
}

/// Whether a start has to read the range: it lies behind the newest checkpoint.
pub(crate) fn stops_a_start(range: &DamagedRange, report: &LogReport) -> bool {
    let newest = report.checkpoints.iter().find(|(at, whole)| *whole && *at <= report.last_index);
    let from = newest.map_or(0, |(at, _)| at.0);
    !range.accepted && !range.is_empty() && range.last_index.0 > from
}

fn is_damaged(report: &LogReport) -> bool {
    let unaccepted = unaccepted(report).next().is_some();
    unaccepted || report.lost_tail.is_some() || lacks_checkpoint(report)
}

/// The damaged ranges that nobody has accepted.
pub(crate) fn unaccepted(report: &LogReport) -> impl Iterator<Item = &DamagedRange> {
    report.damaged.iter().filter(|range| !range.accepted)
}

/// Whether the state in front of the log is lost: the head was trimmed away, and only a checkpoint
/// knows what it said.
pub(crate) fn lacks_checkpoint(report: &LogReport) -> bool {
    let before = report.first_index.0 - 1;
    let reaches = |at: u64| before <= at && at <= report.last_index.0;
    before > 0 && !report.checkpoints.iter().any(|(at, whole)| *whole && reaches(at.0))
}

/// Looks at every log, or at one of them, and calls `each` as soon as it is known.
pub(crate) fn survey(
    directory: &Directory,
    only: Option<&str>,
    mut each: impl FnMut(&Surveyed) -> io::Result<()>,
) -> Result<Vec<Surveyed>, Failure> {
    let mut all = Vec::new();
    let mut keep = |surveyed: Surveyed| -> io::Result<()> {
        if only.is_none_or(|folder| folder == surveyed.place.folder) {
            each(&surveyed)?;
            all.push(surveyed);
        }
        Ok(())
    };
    let mut metadata = look_at(directory, directory.metadata()?)?;
    let (mut catalog, mut is_certain) = (None, false);
    if let Found::Log(report) = &metadata.found {
        match directory.catalog(report) {
            Ok(read) => catalog = Some(read),
            Err(error) => metadata.notes.push(format!("its topics are not known: {error}")),
        }
        // What cannot be read may have made or removed topics.
        is_certain = report.damaged.is_empty() && report.lost_tail.is_none();
        if !is_certain {
            metadata.notes.push("topics are named as far as it can be read".to_owned());
        }
    }
    keep(metadata)?;
    for place in directory.partitions(catalog.as_deref(), is_certain) {
        if only.is_none_or(|folder| folder == place.folder) {
            keep(look_at(directory, place)?)?;
        }
    }
    match (only, all.is_empty()) {
        (Some(folder), true) => Err(Failure::Usage(format!(
            "{} holds no log {folder}; `weir data verify` lists them",
            directory.root.display()
        ))),
        _ => Ok(all),
    }
}

fn look_at(directory: &Directory, place: Place) -> io::Result<Surveyed> {
    if !place.is_there {
        return Ok(Surveyed { place, found: Found::Missing, notes: Vec::new() });
    }
    let dir = directory.path_of(&place);
    let (found, notes) = match inspect::verify(&*directory.disk, &dir, place.uuid) {
        Ok(report) => {
            let notes = notes_on(directory, &place, &report)?;
            (Found::Log(report), notes)
        }
        Err(error) => (Found::Refused(error), Vec::new()),
    };
    Ok(Surveyed { place, found, notes })
}

fn notes_on(directory: &Directory, place: &Place, report: &LogReport) -> io::Result<Vec<String>> {
    let (disk, dir) = (&*directory.disk, directory.path_of(place));
    let names = disk.list(&dir)?;
    let mut notes = Vec::new();
    for segment in &report.segments {
        let path = segment.path.with_extension("idx");
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        if names.contains(&name) && inspect::index(disk, &path)?.is_none() {
            notes.push(format!("the index {name} does not verify: the next start builds it anew"));
        }
    }
    for (at, _) in report.checkpoints.iter().filter(|(_, whole)| !whole) {
        notes.push(format!("the checkpoint at index {at} does not verify: it is passed over"));
    }
    if inspect::damage(disk, &dir)?.is_none() {
        let note = "the file of damaged ranges does not verify: the next start reads the whole log";
        notes.push(note.to_owned());
    }
    match report.dead.len() {
        0 => {}
        count => notes.push(format!("{count} files are not needed: the next start removes them")),
    }
    if place.owner == Owner::Nobody {
        notes.push("no topic knows it: no start opens it, and it may be removed".to_owned());
    }
    Ok(notes)
}
