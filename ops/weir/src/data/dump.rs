//! `weir data dump`: what stands in a log or in one of its files, in place.
//!
//! Owns: which file PATH is, and the order of what is shown.
//! Never: changes a byte but the pid in LOCK; judges what it shows.

mod beside;
mod json;
mod text;

use super::directory::{IDENTITY_FILE, METADATA_FOLDER, uuid_in};
use super::{LOCK_FILE, disk, lock};
use crate::arguments::{DataOutput, DumpArguments};
use crate::failure::Failure;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::ops::Range;
use std::path::Path;
use weir_broker::{partition, replication::metadata};
use weir_protocol::batch::{BatchHeader, BatchType, RecordIter};
use weir_protocol::types::Offset;
use weir_storage::inspect::{self, Dumped, LogReport, SegmentReport};
use weir_storage::{Corruption, DamagedRange, Disk, DiskLock, OpenError};

const WRITE_BUFFER_BYTES: usize = 256 << 10;
const CONTROL_CRC_BYTES: usize = 4;

pub(super) fn run(arguments: &DumpArguments) -> Result<(), Failure> {
    let path = &arguments.path;
    let disk = disk();
    let found = std::fs::metadata(path)
        .map_err(|error| Failure::NotDone(format!("{}: {error}", path.display())))?;
    let folder = if found.is_dir() { Some(&**path) } else { path.parent() };
    let _lock = lock_above(&disk, folder.unwrap_or(path))?;
    let mut printer = Printer {
        json: arguments.output.output == DataOutput::Json,
        headers_only: arguments.headers,
        offsets: Offset(arguments.from)..Offset(arguments.to),
        out: BufWriter::with_capacity(WRITE_BUFFER_BYTES, io::stdout().lock()),
    };
    if found.is_dir() {
        dump_log(&disk, path, &mut printer)?;
    } else if has_extension(path, "seg") {
        let segment = inspect::segment(&disk, path).map_err(refused)?;
        printer.segment(&disk, &segment, &[])?;
    } else {
        beside::dump(&disk, path, &mut printer)?;
    }
    printer.out.flush()?;
    Ok(())
}

/// The lock of the data directory that a log's folder lies in, where it lies in one.
fn lock_above(disk: &dyn Disk, folder: &Path) -> Result<Option<Box<dyn DiskLock>>, Failure> {
    // By its real name: the folder may be named without the one above it.
    let real = folder.canonicalize()?;
    let roots = [Some(real.as_path()), real.parent()];
    let root = roots.into_iter().flatten().find(|root| root.join(LOCK_FILE).exists());
    root.map(|root| lock(disk, root)).transpose()
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// Why a file cannot be shown: it is damaged, or nothing is known of it.
fn refused(error: OpenError) -> Failure {
    match error {
        OpenError::Damaged(what) => Failure::Damaged(what.to_string()),
        error => Failure::NotDone(error.to_string()),
    }
}

fn dump_log(disk: &dyn Disk, dir: &Path, printer: &mut Printer) -> Result<(), Failure> {
    let names = disk.list(dir)?;
    if names.iter().any(|name| name == IDENTITY_FILE || name == METADATA_FOLDER) {
        return Err(Failure::Usage(format!(
            "{} is a whole data directory: name one of its folders, which `weir data verify` lists",
            dir.display()
        )));
    }
    let named = dir.file_name().and_then(|name| uuid_in(&name.to_string_lossy()));
    let known = match named {
        Some(uuid) => Some(uuid),
        None => inspect::uuid_of(disk, dir).map_err(refused)?,
    };
    let Some(uuid) = known else {
        return Err(Failure::NotDone(format!(
            "{} holds no segment that can be believed",
            dir.display()
        )));
    };
    match inspect::verify(disk, dir, uuid) {
        Ok(report) => printer.log(disk, &report),
        Err(error) => {
            printer.out.flush()?;
            let failure = refused(error);
            Err(match failure {
                Failure::Damaged(what) => Failure::Damaged(format!(
                    "{what}; its segment files (.seg) can still be shown one by one"
                )),
                other => other,
            })
        }
    }
}

/// A batch and where it stands.
struct Stands<'a> {
    segment: &'a SegmentReport,
    position: u64,
    /// It is whole in itself and lies in a damaged range.
    refused: bool,
}

/// Prints what it is given, in the form that was asked for.
struct Printer {
    json: bool,
    headers_only: bool,
    offsets: Range<Offset>,
    out: BufWriter<StdoutLock<'static>>,
}

impl Printer {
    fn log(&mut self, disk: &dyn Disk, report: &LogReport) -> Result<(), Failure> {
        let held: Vec<u64> = report.segments.iter().map(|segment| segment.sequence).collect();
        let mut missing: Vec<&DamagedRange> =
            report.damaged.iter().filter(|range| !held.contains(&range.sequence)).collect();
        missing.sort_by_key(|range| range.sequence);
        let mut missing = missing.into_iter().peekable();
        for segment in &report.segments {
            while let Some(range) = missing.next_if(|range| range.sequence < segment.sequence) {
                self.missing(range)?;
            }
            self.segment(disk, segment, &report.damaged)?;
        }
        missing.try_for_each(|range| self.missing(range))?;
        if report.torn_bytes > 0 {
            self.torn_tail(report.torn_bytes)?;
        }
        if let Some(what) = &report.lost_tail {
            self.lost_tail(what)?;
        }
        Ok(())
    }

    fn segment(
        &mut self,
        disk: &dyn Disk,
        segment: &SegmentReport,
        damaged: &[DamagedRange],
    ) -> Result<(), Failure> {
        if !self.json {
            text::segment(&mut self.out, segment)?;
        }
        let here = |range: &&DamagedRange| range.sequence == segment.sequence;
        let damaged: Vec<&DamagedRange> = damaged.iter().filter(here).collect();
        let mut written = Ok(());
        let read = inspect::dump(disk, segment, |dumped| {
            let is_behind = matches!(&dumped,
                Dumped::Batch { header, .. } if header.base_offset >= self.offsets.end);
            if !is_behind {
                written = self.dumped(segment, &damaged, &dumped);
            }
            written.is_ok() && !is_behind
        });
        written?;
        let path = segment.path.display();
        read.map_err(|error| Failure::NotDone(format!("{path}: {error}")))
    }

    fn dumped(
        &mut self,
        segment: &SegmentReport,
        damaged: &[&DamagedRange],
        dumped: &Dumped,
    ) -> io::Result<()> {
        match dumped {
            Dumped::Batch { position, header, body } => {
                let refused = damaged.iter().any(|range| range.positions.contains(position));
                let stands = Stands { segment, position: *position, refused };
                if self.is_wanted(header) { self.batch(&stands, header, body) } else { Ok(()) }
            }
            Dumped::Unreadable { position, end, reason } => {
                let range = damaged.iter().find(|range| range.positions.contains(position));
                let place = (*position..*end, reason.as_str());
                match self.json {
                    true => json::unreadable(&mut self.out, segment, place, range.copied()),
                    false => text::unreadable(&mut self.out, place, range.copied()),
                }
            }
        }
    }

    /// A batch without records counts by the offset that it stands in front of.
    fn is_wanted(&self, header: &BatchHeader) -> bool {
        let last = header.end_offset().0.max(header.base_offset.0 + 1);
        self.offsets.start.0 < last
    }

    fn batch(&mut self, stands: &Stands<'_>, header: &BatchHeader, body: &[u8]) -> io::Result<()> {
        let commands = commands(header, body);
        let records = match header.batch_type {
            BatchType::Data if !self.headers_only => RecordIter::new(header, body).map(Some),
            _ => Ok(None),
        };
        let out = &mut self.out;
        match self.json {
            true => json::batch(out, stands, header, &commands, (records, &self.offsets)),
            false => text::batch(out, stands, header, &commands, (records, &self.offsets)),
        }
    }

    fn missing(&mut self, range: &DamagedRange) -> io::Result<()> {
        match self.json {
            true => json::missing(&mut self.out, range),
            false => writeln!(self.out, "missing: {range}"),
        }
    }

    fn torn_tail(&mut self, bytes: u64) -> io::Result<()> {
        match self.json {
            true => json::line(
                &mut self.out,
                &serde_json::json!({ "kind": "torn_tail", "bytes": bytes }),
            ),
            false => writeln!(
                self.out,
                "{bytes} bytes of a torn tail, never acknowledged: the next start cuts them"
            ),
        }
    }

    fn lost_tail(&mut self, what: &Corruption) -> io::Result<()> {
        match self.json {
            true => json::lost_tail(&mut self.out, what),
            false => writeln!(
                self.out,
                "the end is lost: {what}; dump that file by itself to see what stands behind"
            ),
        }
    }
}

/// What a control batch says, or that it cannot be read. The commands of a partition begin with a
/// version of two bytes whose second is 0; those of the metadata have a kind there, never 0.
fn commands(header: &BatchHeader, body: &[u8]) -> Vec<String> {
    if header.batch_type != BatchType::Control {
        return Vec::new();
    }
    let len = (header.control_len as usize).saturating_sub(CONTROL_CRC_BYTES);
    let content = body.get(..len).unwrap_or_default();
    let described = match content.get(1) {
        Some(0) => partition::describe_commands(content).map_err(|error| error.to_string()),
        _ => metadata::Command::decode(content)
            .map(|command| vec![format!("{command:?}")])
            .map_err(|error| error.to_string()),
    };
    described.unwrap_or_else(|error| vec![format!("{len} bytes that are no commands: {error}")])
}
