//! Owns: one error per verb of the log. Never: an error that only says "other".

use crate::damage::DamagedRange;
use std::io;
use std::path::{Path, PathBuf};
use weir_protocol::batch::HeaderError;

/// Where and how bytes are not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is damaged at byte {position}: {kind}", file.display())]
pub struct Corruption {
    /// The file.
    pub file: PathBuf,
    /// Bytes from its start.
    pub position: u64,
    /// What is wrong there.
    pub kind: CorruptionKind,
}

/// What is wrong with damaged bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CorruptionKind {
    /// Both copies of a segment header.
    #[error("no copy of the segment header is valid")]
    SegmentHeader,
    /// A batch below what was flushed.
    #[error("{0}, below what was flushed")]
    Batch(HeaderError),
    /// Checksums match but the batch does not belong here.
    #[error("a valid batch that does not follow the one before it (misplaced or stale)")]
    OutOfPlace,
    /// The segment is of another log, or has another segment's name.
    #[error("the segment belongs to another log or place")]
    Foreign,
    /// A segment is missing.
    #[error("a segment is missing")]
    Hole,
    /// The device cannot read it.
    #[error("the device cannot read it")]
    Unreadable,
    /// The file is shorter than it was made.
    #[error("the file is shorter than it was made")]
    Shortened,
    /// The hard state.
    #[error("the hard state, or one generation of it, has no valid copy")]
    Meta,
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Something is damaged that was flushed; nothing was changed.
    #[error(transparent)]
    Damaged(#[from] Corruption),
    /// Written by a newer version.
    #[error("{} has format version {found}, this build reads up to {known}: use a newer build", file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u16,
        /// The newest that this build reads.
        known: u16,
    },
    /// The disk has no room for what opening needs.
    #[error("no room on the disk to open {}", .0.display())]
    NoSpace(PathBuf),
    /// The device failed.
    #[error("{}: {source}", path.display())]
    Device {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Another broker uses it, in this process or another.
    #[error(
        "the data directory {} is in use by another broker; stop it, or give this one another \
         node.data_dir",
        .0.display()
    )]
    InUse(PathBuf),
    /// It cannot be written.
    #[error(
        "the data directory {}: {source}; node.data_dir must be a folder that this process may \
         write",
        path.display()
    )]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

/// Why batches were not appended. Nothing of them is in the log.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// No segment can be made: a refusal, not a failure.
    #[error("the disk has no room for another segment")]
    NoSpace,
    /// The log failed earlier, or just now, and takes nothing more.
    #[error(transparent)]
    Fenced(FlushError),
}

/// Why bytes are not known to be durable; the log is fenced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the log is fenced: {text}")]
pub struct FlushError {
    /// The disk is full: opening the log anew recovers it once there is room. Otherwise the
    /// device failed.
    pub out_of_space: bool,
    /// The file, and what the operating system says.
    pub text: String,
}

impl FlushError {
    pub(crate) fn new(path: &Path, error: &io::Error) -> Self {
        Self { out_of_space: is_no_space(error), text: format!("{}: {error}", path.display()) }
    }
}

/// Why a range cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The range lies outside the log.
    #[error("outside the log, which holds {first} to {end} (exclusive)")]
    OutOfRange {
        /// First number held.
        first: u64,
        /// Exclusive end.
        end: u64,
    },
    /// The bytes are not what was written; what lies beside them can be read.
    #[error("{0}")]
    Damaged(DamagedRange),
    /// The device failed.
    #[error("{}: {source}", file.display())]
    Device {
        /// The file.
        file: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

impl OpenError {
    /// What the operating system said of `path`.
    pub fn device(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| {
            if is_no_space(&source) {
                Self::NoSpace(path.to_owned())
            } else {
                Self::Device { path: path.to_owned(), source }
            }
        }
    }
}

pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
