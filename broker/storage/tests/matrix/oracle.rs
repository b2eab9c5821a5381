//! What may come of damage, by what was written and what the disk shows now.
//!
//! Owns: which batches are still as they were, and the judgement of everything a log says.
//! Never: asks the code under test what is damaged.
//! Invariants: what is served is byte for byte what was written there; what is not served lies in a
//! range that was reported, and ranges hold nothing that is whole; the end of the log moves only
//! where every trace of a flush behind it is gone.

use super::base::{ACTIVE, Base, OWN, Stored, VOTE};
use crate::common::segments_of;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use weir_protocol::batch::BatchHeader;
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::{Index, Offset};
use weir_sim::disk::SimDisk;
use weir_storage::{BatchSlice, Corruption, CorruptionKind, DamagedRange, Log, Read, ReadError};

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Served,
    Refused,
    /// Its loss was accepted.
    Passed,
    /// Behind the end of the log.
    Cut,
    /// A mark of the log's own.
    Local,
}

/// What the disk shows of a log.
pub(crate) struct Now<'a> {
    base: &'a Base,
    /// Batches whose bytes are what they were.
    whole: Vec<bool>,
    /// Segments whose file is missing, foreign, or without a header.
    gone: BTreeSet<u64>,
    /// Segments whose file is shorter than it was.
    shortened: BTreeSet<u64>,
    /// Files that are not as they were.
    spoiled: BTreeSet<PathBuf>,
    /// From here on the active segment may be taken for a tail that was never flushed.
    may_end_at: Option<u64>,
    /// The log was open when it was damaged: what it cannot read may be an error of the device.
    running: bool,
    /// The last index that the log was found to hold: what lies behind was cut, or came later.
    end: Index,
}

impl<'a> Now<'a> {
    /// Of a log that is to be opened.
    pub(crate) fn down(base: &'a Base, disk: &SimDisk) -> Self {
        Self::of(base, disk, false)
    }

    /// Of a log that was open when it was damaged: it needs neither names nor headers of segments.
    pub(crate) fn running(base: &'a Base, disk: &SimDisk) -> Self {
        Self::of(base, disk, true)
    }

    fn of(base: &'a Base, disk: &SimDisk, running: bool) -> Self {
        let there: BTreeSet<PathBuf> = disk.paths("").into_iter().collect();
        let mut now = Self {
            base,
            whole: vec![false; base.batches.len()],
            gone: BTreeSet::new(),
            shortened: BTreeSet::new(),
            spoiled: BTreeSet::new(),
            may_end_at: None,
            running,
            end: Index(u64::MAX),
        };
        for (path, before) in &base.files {
            if !there.contains(path) || disk.bytes_of(path) != *before {
                now.spoiled.insert(path.clone());
            }
        }
        for (sequence, path) in &base.segments {
            let before = &base.files[path];
            let bytes = match there.contains(path) {
                true => disk.bytes_of(path),
                false if running => before.clone(),
                false => Vec::new(),
            };
            let copy = |at: usize| bytes.get(at..at + 512) == Some(&before[at..at + 512]);
            if !running && !copy(0) && !copy(2_048) {
                now.gone.insert(*sequence);
                continue;
            }
            if bytes.len() < before.len() {
                now.shortened.insert(*sequence);
            }
            now.look(*sequence, &bytes);
            let is_last = *sequence == ACTIVE && segments_of(disk).last() == Some(path);
            if is_last && bytes.len() == before.len() {
                now.may_end_at = now.end_without_trace(&bytes);
            }
        }
        now
    }

    fn look(&mut self, sequence: u64, bytes: &[u8]) {
        for (number, batch) in self.base.batches.iter().enumerate() {
            if batch.sequence == sequence {
                let start = batch.position as usize;
                let found = bytes.get(start..start + batch.bytes.len());
                self.whole[number] = found == Some(&batch.bytes);
            }
        }
    }

    /// The first batch of the active segment that is not whole, if no header that is tells that it
    /// was flushed.
    fn end_without_trace(&self, bytes: &[u8]) -> Option<u64> {
        let headers = self.base.of_segment(ACTIVE).filter(|batch| {
            let start = batch.position as usize;
            bytes[start..start + BATCH_HEADER_BYTES] == batch.bytes[..BATCH_HEADER_BYTES]
        });
        let flushed = headers.map(|batch| batch.header.durable_pos).max().unwrap_or(0);
        let broken = self
            .numbered()
            .find(|(number, batch)| batch.sequence == ACTIVE && !self.whole[*number]);
        broken.map(|(_, batch)| batch.position).filter(|position| *position >= flushed)
    }

    fn numbered(&self) -> impl Iterator<Item = (usize, &'a Stored)> {
        self.base.batches.iter().enumerate()
    }

    pub(crate) fn is_spoiled(&self, path: &Path) -> bool {
        self.spoiled.contains(path)
    }

    /// A log that does not open says where it is damaged.
    pub(crate) fn check_refusal(&self, what: &Corruption) {
        let missing = what.kind == CorruptionKind::Hole && what.file == Path::new(OWN);
        assert!(missing || self.spoiled.contains(&what.file), "{what} is not what is damaged");
        assert!(!missing || !self.gone.is_empty(), "{what}: none is missing");
    }

    fn is_index_whole(&self, index: Index) -> bool {
        self.numbered().all(|(number, batch)| batch.header.index != index || self.whole[number])
    }

    /// A range holds nothing that is whole, but for a part of an index.
    pub(crate) fn check_range(&self, range: &DamagedRange) {
        for (number, batch) in self.numbered().filter(|(number, _)| self.whole[*number]) {
            let Stored { sequence, position, header, .. } = batch;
            if self.gone.contains(sequence) {
                continue;
            }
            let index = (range.first_index..=range.last_index).contains(&header.index);
            let (start, end) = (range.first_offset.max(header.base_offset), header.end_offset());
            let offsets = start < range.end_offset.min(end);
            let bytes = range.sequence == *sequence
                && range.positions.start < batch.end()
                && *position < range.positions.end;
            assert!(
                !offsets
                    && !bytes
                    && (!index || batch.is_local() || !self.is_index_whole(header.index)),
                "{range} holds batch {number} at {sequence}:{position}, index {}, which is whole",
                header.index,
            );
        }
    }

    /// Judges everything that a log says of its batches.
    pub(crate) fn judge(&mut self, log: &Log) -> Vec<Fate> {
        let bounds = log.reader().bounds();
        self.end = self.end.min(bounds.last_index);
        let (first, last) = (bounds.first_index, self.end);
        let oldest = self.numbered().map(|(_, batch)| batch.header.index).next().unwrap();
        assert!(first <= oldest, "the log begins at {first}, not at {oldest}");
        self.sweep(log);
        let fates: Vec<Fate> = self
            .numbered()
            .map(|(number, batch)| match batch.header.index > last {
                _ if batch.is_local() => Fate::Local,
                true => Fate::Cut,
                false if self.is_near(number) => self.ask(log, number, batch),
                false => Fate::Served,
            })
            .collect();
        for range in log.reader().damaged_ranges() {
            self.check_range(&range);
        }
        fates
    }

    /// All that is near to damage is asked for by itself, and a part of the rest.
    fn is_near(&self, number: usize) -> bool {
        let near = &self.whole[number.saturating_sub(5)..(number + 5).min(self.whole.len())];
        number.is_multiple_of(23) || near.iter().any(|whole| !whole)
    }

    /// Nothing before the end of the log is cut, unless no trace of it is left.
    /// Returns whether anything is.
    pub(crate) fn check_cut(&self, fates: &[Fate], given_up: bool) -> bool {
        let cut = self.numbered().filter(|(number, _)| fates[*number] == Fate::Cut);
        for (number, batch) in cut {
            let Stored { sequence, position, header, .. } = batch;
            let behind = |end: u64| *sequence == ACTIVE && *position >= end;
            let starts = self.numbered().find(|(n, b)| b.sequence == ACTIVE && !self.whole[*n]);
            let lost = starts.is_some_and(|(_, batch)| behind(batch.position));
            let partial = !self.is_index_whole(header.index);
            let untraced = self.may_end_at.is_some_and(|end| behind(end) || partial);
            assert!(
                untraced || (given_up && (lost || partial || self.gone.contains(&ACTIVE))),
                "batch {number} at {sequence}:{position}, index {}, was cut",
                header.index
            );
        }
        fates.contains(&Fate::Cut)
    }

    /// Reads the log in large steps: everything that is whole comes by.
    fn sweep(&self, log: &Log) {
        let bounds = log.reader().bounds();
        let mut seen = vec![false; self.whole.len()];
        let mut next = bounds.first_index;
        while next <= bounds.last_index {
            match read(log.reader().read_from_index(next, 1 << 20)) {
                Ok(slices) => {
                    let Some(last) = slices.last() else { break };
                    next = Index(last.header.index.0 + 1);
                    let places = slices.iter().filter_map(|slice| self.check_slice(slice));
                    places.for_each(|number| seen[number] = true);
                }
                Err(ReadError::Damaged(range)) => {
                    assert!(!range.accepted, "{range} is passed over");
                    assert!(range.last_index >= next, "{range} does not hold index {next}");
                    next = Index(range.last_index.0 + 1);
                }
                Err(error) => {
                    self.check_failure(&error);
                    next = Index(next.0 + 1);
                }
            }
        }
        for (number, batch) in self.numbered().filter(|(number, _)| !seen[*number]) {
            let Stored { sequence, position, header, .. } = batch;
            let unreadable = self.running && self.is_spoiled(&self.base.segments[sequence]);
            assert!(
                batch.is_local()
                    || header.index > self.end
                    || !self.is_index_whole(header.index)
                    || unreadable,
                "batch {number} at {sequence}:{position}, index {}, is whole and left out",
                header.index
            );
        }
    }

    fn number_of(&self, slice: &BatchSlice) -> Option<usize> {
        let BatchHeader { index, base_offset, chain, .. } = slice.header;
        let batches = &self.base.batches;
        let from = batches.partition_point(|batch| batch.header.index < index);
        let same = |batch: &Stored| {
            let header = &batch.header;
            !batch.is_local()
                && (header.index, header.base_offset, header.chain) == (index, base_offset, chain)
        };
        batches[from..].iter().take(4).position(same).map(|at| from + at)
    }

    /// The number of a batch that is served as it was written; none for those that came later.
    fn check_slice(&self, slice: &BatchSlice) -> Option<usize> {
        let ours =
            slice.header.index <= self.end.min(self.base.batches.last().unwrap().header.index);
        let Some(number) = self.number_of(slice) else {
            assert!(!ours, "a batch is served that was never written: {:?}", slice.header);
            return None;
        };
        let stored = &self.base.batches[number];
        assert_eq!(slice.header, stored.header);
        let wire = &slice.bytes[..slice.header.wire_len()];
        assert!(wire == stored.bytes, "batch {number} is served with other bytes");
        Some(number)
    }

    fn check_failure(&self, error: &ReadError) {
        let named = matches!(error, ReadError::Device { file, .. } if self.spoiled.contains(file));
        assert!(self.running && named, "{error}");
    }

    /// Asks for one batch by index and by offset.
    fn ask(&self, log: &Log, number: usize, batch: &Stored) -> Fate {
        let header = &batch.header;
        let by_index = read(log.reader().read_from_index(header.index, 1));
        let index_whole = self.is_index_whole(header.index);
        let fate = self
            .judge_read(number, index_whole, by_index, &|found| found.header.index == header.index);
        if header.record_count == 0 {
            return fate;
        }
        let by_offset = read(log.reader().read_from_offset(header.base_offset, 1));
        self.judge_read(number, self.whole[number], by_offset, &|found| {
            let Offset(offset) = header.base_offset;
            (found.header.base_offset.0..found.header.end_offset().0).contains(&offset)
        })
    }

    fn judge_read(
        &self,
        number: usize,
        whole: bool,
        found: Result<Vec<BatchSlice>, ReadError>,
        is_it: &dyn Fn(&BatchSlice) -> bool,
    ) -> Fate {
        let fate = match found {
            Ok(slices) => {
                for slice in &slices {
                    self.check_slice(slice);
                }
                match slices.first().is_some_and(is_it) {
                    true => Fate::Served,
                    false => Fate::Passed,
                }
            }
            Err(ReadError::Damaged(range)) => {
                self.check_range(&range);
                Fate::Refused
            }
            Err(error) => {
                self.check_failure(&error);
                return Fate::Refused;
            }
        };
        assert!(!whole || fate == Fate::Served, "batch {number} is whole, and {fate:?}");
        fate
    }

    /// What is not whole was found.
    pub(crate) fn check_found(&self, log: &Log) {
        let ranges = log.reader().damaged_ranges();
        let last = self.end;
        for (number, batch) in self.numbered().filter(|(number, _)| !self.whole[*number]) {
            let Stored { sequence, position, header, .. } = batch;
            let unreadable = self.running && self.shortened.contains(sequence);
            if batch.is_local() || unreadable || header.index > last {
                continue;
            }
            let holds = |range: &DamagedRange| {
                (range.first_index..=range.last_index).contains(&header.index)
            };
            let mut others = self.numbered().filter(|(_, b)| b.header.index == header.index);
            let part = if others.any(|(other, _)| self.whole[other]) { "part" } else { "all" };
            assert!(
                ranges.iter().any(holds),
                "batch {number} at {sequence}:{position}, {part} of index {}, is not noted",
                header.index
            );
        }
    }

    /// The owner's own: the vote that was cast last, and checkpoints as they were written, but for
    /// those of what was given up.
    pub(crate) fn check_owner(&self, log: &Log) {
        assert!(log.meta() == VOTE, "another vote than the one that was cast last");
        let [older, newest] = self.base.checkpoint_files().map(|path| !self.is_spoiled(&path));
        let found = log.latest_checkpoint(Index(u64::MAX)).unwrap();
        let mut wanted =
            self.base.checkpoints.iter().map(|(index, content)| (Index(*index), content));
        let (before, last) = (wanted.next(), wanted.next());
        let last_index = log.reader().bounds().last_index;
        let held = |(index, _): &(Index, &Vec<u8>)| *index <= last_index;
        let last = last.filter(|last| newest && held(last));
        let expected = last.or(before.filter(|before| older && held(before)));
        let found = found.as_ref().map(|(index, content)| (*index, content));
        assert!(found == expected, "checkpoint {:?}", found.map(|(index, _)| index));
    }
}

pub(crate) fn read(found: Result<Read, ReadError>) -> Result<Vec<BatchSlice>, ReadError> {
    match found? {
        Read::Hot(slices) => Ok(slices),
        Read::Cold(read) => read.run(),
    }
}
