//! The hard state of a log: its owner's bytes and where the log begins.
//!
//! Owns: the file `meta`: two generations of two copies each.
//! Never: takes an unreadable file for a fresh one, an older state for one that was lost, or the
//! state of another log.
//! Invariants: the newer generation is never touched while the older one is written. What a copy says
//! lies in its first sector, which a device writes as a whole or not at all. So no stop of any kind
//! leaves a generation without a valid copy, one flush makes both durable, and a generation that has
//! none was damaged.
//!
//! ```text
//! 4 copies of 4096 bytes: generation A twice, generation B twice
//!   0 magic8 "WEIRMET\x01"   8 crc4 of [12..4096)   12 version2  14 zero2
//!  16 sequence8             24 first_index8         32 blob_len4
//!  36 first_offset8         44 last_segment8
//!  52 mark_segment8 (0 = none)  60 mark_pos8  68 mark_last_index8  76 mark_log_end8
//!  84 mark_term8            92 mark_chain4          96 log_uuid16           112 blob
//! version 1 ended with the blob, at 36, and began with one generation
//! version 3: the log begins behind the mark, every segment up to mark_segment is dead, and at 60
//! stands the log time there
//! ```

mod rounds;
mod together;

pub(crate) use rounds::MetaRounds;
pub use rounds::{MetaDone, MetaStore};

use crate::disk::{Disk, DiskFile, is_unreadable, remove_if_there};
use crate::error::{Corruption, CorruptionKind, OpenError};
use crate::limits::{META_BLOB_BYTES_MAX, META_COPY_BYTES, NUMBERS_END, SECTOR_BYTES};
use crate::planted::{Bug, is_planted};
use crate::scan::Cursor;
use crate::sealed;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::types::{Index, Offset, Term};

const MAGIC: [u8; 8] = *b"WEIRMET\x01";
const VERSION: u16 = 2;
/// Of a log that began anew, until its next watermark.
const VERSION_STARTED: u16 = 3;
const FILE_BYTES: u64 = 4 * META_COPY_BYTES as u64;
const BLOB_AT: usize = 112;
const BLOB_AT_V1: usize = 36;
const _: () = assert!(BLOB_AT + META_BLOB_BYTES_MAX <= SECTOR_BYTES);

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct State {
    sequence: u64,
    /// Whose state it is; version 1 does not say.
    log_uuid: Option<u128>,
    /// Where the log begins.
    pub(crate) first_index: Index,
    pub(crate) first_offset: Offset,
    /// Sequence of the newest segment that was linked: one that is missing was lost.
    pub(crate) last_segment: u64,
    /// How far the log was flushed when it was idle last.
    pub(crate) mark: Option<Mark>,
    /// Where the log began anew; a watermark behind it says all that this does.
    pub(crate) start: Option<Start>,
    /// The owner's bytes.
    pub(crate) blob: Vec<u8>,
}

impl State {
    /// Takes a watermark in, unless the log began anew since: then it is of a dead segment.
    pub(crate) fn note(&mut self, mark: Mark) {
        if self.start.is_none_or(|start| start.sequence < mark.sequence) {
            (self.mark, self.start) = (Some(mark), None);
        }
    }

    /// The log is empty and begins behind `start`, with the owner's bytes `blob`.
    pub(crate) fn begin_anew(&mut self, start: Start, blob: &[u8]) {
        (self.first_index, self.first_offset) = (start.cursor.next_index(), start.cursor.log_end);
        self.last_segment = start.sequence;
        (self.mark, self.start) = (None, Some(start));
        self.blob = blob.to_vec();
    }
}

/// The place that a log begins behind, whatever it held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    /// Every segment up to this one is dead.
    pub(crate) sequence: u64,
    /// The log time there.
    pub(crate) log_time_ms: u64,
    /// What holds there.
    pub(crate) cursor: Cursor,
}

/// Evidence that a segment was flushed up to a position. It lies in another file than what it vouches
/// for, so that nothing takes both away at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) sequence: u64,
    pub(crate) position: u64,
    /// What holds there.
    pub(crate) cursor: Cursor,
}

/// The open hard state.
#[derive(Debug)]
pub(crate) struct Meta {
    file: Arc<dyn DiskFile>,
    pub(crate) path: PathBuf,
    state: State,
    /// Version 1 left a generation without a valid copy.
    lacks_generation: bool,
}

impl Meta {
    /// Reads `dir/meta`, which has to be of this log if one is named; none where there is no such
    /// file.
    pub(crate) fn load(
        disk: &dyn Disk,
        dir: &Path,
        uuid: Option<u128>,
    ) -> Result<Option<Self>, OpenError> {
        let path = dir.join("meta");
        let file = match disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::device(&path)(error)),
        };
        if file.len() < FILE_BYTES {
            return Err(Self::unreadable(dir));
        }
        let mut generations = [None, None];
        for copy in 0..4 {
            let mut bytes = vec![0; META_COPY_BYTES];
            let position = (copy * META_COPY_BYTES) as u64;
            match file.read_at(position, &mut bytes) {
                Err(error) if !is_unreadable(&error) => {
                    return Err(OpenError::device(&path)(error));
                }
                // Of what the device cannot read, nothing is valid.
                _ => {}
            }
            let generation: &mut Option<State> = &mut generations[copy / 2];
            let known = generation.as_ref().map_or(0, |known| known.sequence);
            let belongs_here = |state: &State| {
                let is_ours = uuid.is_none() || state.log_uuid.is_none() || state.log_uuid == uuid;
                is_ours && state.sequence % 2 == copy as u64 / 2 && state.sequence > known
            };
            let newer = decode(&bytes, &path)?.filter(belongs_here);
            *generation = newer.or(generation.take());
        }
        let lacks_generation = generations.iter().any(Option::is_none);
        let newest = generations.into_iter().flatten().max_by_key(|state| state.sequence);
        let is_whole = |state: &State| !lacks_generation || state.log_uuid.is_none();
        let Some(mut state) = newest.filter(is_whole) else { return Err(Self::unreadable(dir)) };
        state.log_uuid = state.log_uuid.or(uuid);
        Ok(Some(Self { file, path, state, lacks_generation }))
    }

    /// The error of a log whose hard state is gone.
    pub(crate) fn unreadable(dir: &Path) -> OpenError {
        let (file, kind) = (dir.join("meta"), CorruptionKind::Meta);
        OpenError::Damaged(Corruption { file, position: 0, kind })
    }

    /// Makes the hard state of a fresh log, in both generations.
    /// A crash in between leaves `meta.new`, which the next try replaces.
    pub(crate) fn create(disk: &dyn Disk, dir: &Path, uuid: u128) -> Result<Self, OpenError> {
        let (fresh, path) = (dir.join("meta.new"), dir.join("meta"));
        remove_if_there(disk, &fresh).map_err(OpenError::device(&fresh))?;
        let file = disk.create(&fresh, FILE_BYTES).map_err(OpenError::device(&fresh))?;
        let (log_uuid, first_index) = (Some(uuid), Index(1));
        let state = State { sequence: 1, log_uuid, first_index, ..State::default() };
        let mut meta = Self { file, path, state, lacks_generation: true };
        meta.settle().map_err(OpenError::device(&fresh))?;
        disk.rename(&fresh, &meta.path).map_err(OpenError::device(&fresh))?;
        disk.sync_dir(dir).map_err(OpenError::device(dir))?;
        Ok(meta)
    }

    /// What is kept now.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Makes a new state durable, in place of the older generation.
    pub(crate) fn store(&mut self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        let state = self.changed(change);
        self.write(&state)?;
        self.state = state;
        Ok(())
    }

    /// What a change makes of the state, under the next sequence.
    fn changed(&self, change: impl FnOnce(&mut State)) -> State {
        let mut state = self.state.clone();
        change(&mut state);
        assert!(state.blob.len() <= META_BLOB_BYTES_MAX, "the owner keeps its hard state short");
        state.sequence += 1;
        state
    }

    /// Makes durable what was found. After a failed flush the page cache may show what the disk
    /// does not hold; the other generation, which it may still hold, is not touched. Where there is
    /// none, it is made first: until then what was found is all there is.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        if !self.lacks_generation {
            return self.write(&self.state);
        }
        self.store(|_| ())?;
        self.store(|_| ())?;
        self.lacks_generation = false;
        Ok(())
    }

    fn write(&self, state: &State) -> io::Result<()> {
        let mut written = together::write(&[self.generation(state)]);
        written.pop().expect("each generation has an outcome")
    }

    /// The generation that a state is written to: the older one.
    fn generation(&self, state: &State) -> Generation {
        let slot = if is_planted(Bug::NewestMetaOverwritten) { 0 } else { state.sequence % 2 };
        let bytes = encode(state).repeat(2);
        let start = slot * bytes.len() as u64;
        let range = start..start + bytes.len() as u64;
        Generation { file: self.file.clone(), range, bytes }
    }
}

/// A state on its way to its two copies.
struct Generation {
    file: Arc<dyn DiskFile>,
    range: Range<u64>,
    /// Both copies.
    bytes: Vec<u8>,
}

fn encode(state: &State) -> Vec<u8> {
    let mut bytes = vec![0u8; META_COPY_BYTES];
    let version = if state.start.is_some() { VERSION_STARTED } else { VERSION };
    bytes[12..14].copy_from_slice(&version.to_le_bytes());
    bytes[16..24].copy_from_slice(&state.sequence.to_le_bytes());
    bytes[24..32].copy_from_slice(&state.first_index.to_le_bytes());
    bytes[32..36].copy_from_slice(&(state.blob.len() as u32).to_le_bytes());
    bytes[36..44].copy_from_slice(&state.first_offset.to_le_bytes());
    bytes[44..52].copy_from_slice(&state.last_segment.to_le_bytes());
    let marked = state.mark.map(|mark| (mark.sequence, mark.position, mark.cursor));
    let started = state.start.map(|start| (start.sequence, start.log_time_ms, start.cursor));
    if let Some((sequence, second, cursor)) = started.or(marked) {
        let Cursor { last_index, log_end, term, .. } = cursor;
        let numbers = [sequence, second, last_index.0, log_end.0, term.0];
        for (number, field) in numbers.iter().zip(bytes[52..92].chunks_mut(8)) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        bytes[92..96].copy_from_slice(&cursor.chain.to_le_bytes());
    }
    bytes[96..112].copy_from_slice(&state.log_uuid.unwrap_or_default().to_le_bytes());
    bytes[BLOB_AT..BLOB_AT + state.blob.len()].copy_from_slice(&state.blob);
    sealed::seal(&mut bytes, MAGIC);
    bytes
}

/// The state in one copy; none when the copy is not valid.
fn decode(bytes: &[u8], path: &Path) -> Result<Option<State>, OpenError> {
    let u32_at =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    if !sealed::is_whole(bytes, MAGIC) {
        return Ok(None);
    }
    let found = u16::from_le_bytes([bytes[12], bytes[13]]);
    if found > VERSION_STARTED {
        return Err(OpenError::Newer { file: path.to_owned(), found, known: VERSION_STARTED });
    }
    let is_first = found == 1;
    let later = |at: usize| if is_first { 0 } else { u64_at(at) };
    let cursor = || Cursor {
        last_index: Index(u64_at(68)),
        open_index: false,
        log_end: Offset(u64_at(76)),
        term: Term(u64_at(84)),
        chain: u32_at(92),
    };
    let is_started = found == VERSION_STARTED;
    let is_marked = !is_started && later(52) != 0;
    let (sequence, second) = (later(52), later(60));
    let start = is_started.then(|| Start { sequence, log_time_ms: second, cursor: cursor() });
    let mark = is_marked.then(|| Mark { sequence, position: second, cursor: cursor() });
    let blob_len = u32_at(32) as usize;
    let marked = match is_started || is_marked {
        true => [sequence, second, u64_at(68), u64_at(76)],
        false => [0; 4],
    };
    let numbers = [u64_at(16), u64_at(24), later(36), later(44)].into_iter().chain(marked);
    // A log that began anew holds nothing at or before where it began.
    let begins_later = u64_at(68) < u64_at(24) && u64_at(76) <= later(36);
    let is_possible = !is_started || begins_later;
    if blob_len > META_BLOB_BYTES_MAX || numbers.max() >= Some(NUMBERS_END) || !is_possible {
        // No log writes that.
        return Ok(None);
    }
    let blob_at = if is_first { BLOB_AT_V1 } else { BLOB_AT };
    let log_uuid = u128::from(u64_at(96)) | u128::from(u64_at(104)) << 64;
    let blob = bytes.get(blob_at..blob_at + blob_len).map(<[u8]>::to_vec);
    Ok(blob.map(|blob| State {
        sequence: u64_at(16),
        log_uuid: (!is_first).then_some(log_uuid),
        first_index: Index(u64_at(24)),
        first_offset: Offset(later(36)),
        last_segment: later(44),
        mark,
        start,
        blob,
    }))
}
