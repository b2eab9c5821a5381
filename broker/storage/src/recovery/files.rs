//! Which files make up a log, and in which order.
//!
//! Owns: opening segment files, following their links, naming those that are missing or foreign.
//! Never: changes anything.

use crate::disk::{Disk, DiskFile};
use crate::error::{Corruption, CorruptionKind, OpenError};
use crate::limits::{NUMBERS_END, SEGMENT_HEADER_BYTES};
use crate::segment::{SEGMENT_VERSION, SegmentHeader, SegmentHeaderError};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::types::Index;

/// A segment file whose header can be believed.
pub(crate) struct File {
    pub(crate) header: SegmentHeader,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
}

impl File {
    /// Whether the file is shorter than it was made.
    pub(crate) fn is_shortened(&self) -> bool {
        self.file.len() < self.header.capacity
    }
}

/// A file that has the name of a segment.
enum Candidate {
    Whole(File),
    /// Its header is damaged, or it is of another log.
    Foreign(Corruption),
}

/// One place in the order of a log.
pub(crate) enum Link {
    /// A segment, with where its successor cuts it.
    Segment(File, Option<u64>),
    /// A segment that is missing or cannot be believed.
    Lost { sequence: u64, what: Corruption },
}

/// What a folder holds.
pub(crate) struct Files {
    candidates: BTreeMap<u64, Candidate>,
}

impl Files {
    /// Opens every segment file of the log `uuid`.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path, uuid: u128) -> Result<Self, OpenError> {
        let mut candidates = BTreeMap::new();
        for name in disk.list(dir).map_err(OpenError::device(dir))? {
            let Some((base_index, sequence)) = parse_name(&name) else { continue };
            let path = dir.join(&name);
            let file = match disk.open(&path) {
                Ok(file) => file,
                // An earlier life of this log in this process still removes what it trimmed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(OpenError::device(&path)(error)),
            };
            let loaded = SegmentHeader::load(&*file).map_err(OpenError::device(&path))?;
            let foreign =
                |kind| Candidate::Foreign(Corruption { file: path.clone(), position: 0, kind });
            let candidate = match loaded {
                Err(SegmentHeaderError::Newer(found)) => {
                    return Err(OpenError::Newer { file: path, found, known: SEGMENT_VERSION });
                }
                Err(SegmentHeaderError::Damaged) => foreign(CorruptionKind::SegmentHeader),
                Ok(header) if !header.is_possible() => foreign(CorruptionKind::SegmentHeader),
                Ok(header)
                    if (header.partition_uuid, header.base_index, header.sequence)
                        != (uuid, base_index, sequence) =>
                {
                    foreign(CorruptionKind::Foreign)
                }
                Ok(header) => Candidate::Whole(File { header, path, file }),
            };
            candidates.insert(sequence, candidate);
        }
        Ok(Self { candidates })
    }

    /// The largest sequence of any file: no later segment may get it again.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.candidates.keys().next_back().copied().unwrap_or(0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    /// Follows the links from the newest segment back to the one that holds `first`.
    /// `last_sequence` is known to have been linked; everything up to `dead_sequence` is of a log
    /// that was before this one.
    pub(crate) fn linked(
        &mut self,
        dir: &Path,
        first: Index,
        (last_sequence, dead_sequence): (u64, u64),
    ) -> VecDeque<Link> {
        let mut linked = VecDeque::new();
        // A file behind the last that was linked holds nothing that was acknowledged: if its header
        // cannot be believed it never was a part of the log. (Version 1 did not note the last.)
        let counts = |(sequence, candidate): &(&u64, &Candidate)| {
            let whole = matches!(candidate, Candidate::Whole(_));
            whole || last_sequence == 0 || **sequence <= last_sequence
        };
        let found = self.candidates.iter().rev().find(counts).map_or(0, |(sequence, _)| *sequence);
        let (mut wanted, mut cut) = (found.max(last_sequence), None);
        // Where the segment that was linked last begins.
        let mut begins = None;
        while wanted > dead_sequence && begins.is_none_or(|begins| begins > first) {
            let what = match self.candidates.remove(&wanted) {
                Some(Candidate::Whole(file)) => {
                    begins = Some(file.header.base_index);
                    let next = (file.header.prev_sequence, file.header.prev_cut_pos);
                    linked.push_front(Link::Segment(file, cut));
                    (wanted, cut) = (next.0, Some(next.1));
                    continue;
                }
                Some(Candidate::Foreign(what)) => what,
                None => {
                    let kind = CorruptionKind::Hole;
                    Corruption { file: dir.to_owned(), position: 0, kind }
                }
            };
            linked.push_front(Link::Lost { sequence: wanted, what });
            (wanted, cut) = (self.before(wanted, begins), None);
        }
        linked
    }

    /// The newest segment in front of one that is lost.
    fn before(&self, sequence: u64, begins: Option<Index>) -> u64 {
        let older = self.candidates.range(..sequence).rev();
        let mut whole = older.filter_map(|(sequence, candidate)| match candidate {
            Candidate::Whole(file) => Some((*sequence, file.header.base_index)),
            Candidate::Foreign(_) => None,
        });
        let in_front = |(_, base): &(u64, Index)| begins.is_none_or(|begins| *base < begins);
        whole.find(in_front).map_or(0, |(sequence, _)| sequence)
    }

    /// The paths of files that no link reaches. A file that cannot be believed is none of them.
    pub(crate) fn unlinked(self) -> impl Iterator<Item = PathBuf> {
        self.candidates.into_values().filter_map(|candidate| match candidate {
            Candidate::Whole(file) => Some(file.path),
            Candidate::Foreign(_) => None,
        })
    }
}

/// Base index and sequence in a segment's name.
pub(crate) fn parse_name(name: &str) -> Option<(Index, u64)> {
    let (base_index, sequence) = name.strip_suffix(".seg")?.split_once('-')?;
    let sequence = u64::from_str_radix(sequence, 16).ok()?;
    // No log gets so far: a name like that is nobody's.
    (sequence < NUMBERS_END).then_some((Index(base_index.parse().ok()?), sequence))
}

/// The name of a segment.
pub(crate) fn segment_name(base_index: Index, sequence: u64) -> String {
    format!("{:020}-{sequence:08x}.seg", base_index.0)
}

/// A cut that lies within the file of the segment that it cuts, also where the file grew or shrank.
pub(crate) fn is_cut_within(file: &File, cut: Option<u64>) -> bool {
    let end = file.header.capacity.max(file.file.len());
    cut.is_none_or(|cut| (SEGMENT_HEADER_BYTES..=end).contains(&cut))
}
