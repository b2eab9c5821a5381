//! The hard state of a log: its owner's bytes and where the log begins.
//!
//! Owns: the file `meta`: two generations of two copies each.
//! Never: takes an unreadable file for a fresh one.
//! Invariant: the newer generation is never touched while the older one is written.
//!
//! ```text
//! 4 copies of 4096 bytes: generation A twice, generation B twice
//!   0 magic8 "WEIRMET\x01"   8 crc4 of [12..4096)   12 version2  14 0u16
//!  16 sequence8             24 first_index8         32 blob_len4  36 blob
//! ```

use crate::disk::{Disk, DiskFile};
use crate::error::{Corruption, CorruptionKind, OpenError};
use crate::limits::{META_BLOB_BYTES_MAX, META_COPY_BYTES};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::types::Index;

const MAGIC: [u8; 8] = *b"WEIRMET\x01";
const VERSION: u16 = 1;
const FILE_BYTES: u64 = 4 * META_COPY_BYTES as u64;
const BLOB_AT: usize = 36;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct State {
    sequence: u64,
    first_index: Index,
    blob: Vec<u8>,
}

/// The open hard state.
#[derive(Debug)]
pub(crate) struct Meta {
    file: Arc<dyn DiskFile>,
    pub(crate) path: PathBuf,
    state: State,
}

impl Meta {
    /// Opens `dir/meta`. One that does not exist is made if the log is `fresh` (no segment
    /// exists either); otherwise its absence is damage.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path, fresh: bool) -> Result<Self, OpenError> {
        let path = dir.join("meta");
        let names = disk.list(dir).map_err(OpenError::device(dir))?;
        let damaged = || {
            let kind = CorruptionKind::Meta;
            OpenError::Damaged(Corruption { file: path.clone(), position: 0, kind })
        };
        if !names.iter().any(|name| name == "meta") {
            if !fresh {
                return Err(damaged());
            }
            return Self::create(disk, dir, path);
        }
        let file = disk.open(&path).map_err(OpenError::device(&path))?;
        if file.len() < FILE_BYTES {
            return Err(damaged());
        }
        let mut newest: Option<State> = None;
        for copy in 0..4 {
            let mut bytes = vec![0; META_COPY_BYTES];
            let position = copy * META_COPY_BYTES as u64;
            file.read_at(position, &mut bytes).map_err(OpenError::device(&path))?;
            let known = newest.as_ref().map_or(0, |known| known.sequence);
            newest = decode(&bytes, &path)?.filter(|state| state.sequence > known).or(newest);
        }
        let state = newest.ok_or_else(damaged)?;
        Ok(Self { file, path, state })
    }

    /// A crash in between leaves `meta.new`, which the next try replaces.
    fn create(disk: &dyn Disk, dir: &Path, path: PathBuf) -> Result<Self, OpenError> {
        let fresh = dir.join("meta.new");
        let names = disk.list(dir).map_err(OpenError::device(dir))?;
        if names.iter().any(|name| name == "meta.new") {
            disk.remove(&fresh).map_err(OpenError::device(&fresh))?;
        }
        let file = disk.create(&fresh, FILE_BYTES).map_err(OpenError::device(&fresh))?;
        let mut meta = Self { file, path, state: State::default() };
        meta.store(Index(1), &[]).map_err(OpenError::device(&fresh))?;
        disk.rename(&fresh, &meta.path).map_err(OpenError::device(&fresh))?;
        disk.sync_dir(dir).map_err(OpenError::device(dir))?;
        Ok(meta)
    }

    pub(crate) fn blob(&self) -> &[u8] {
        &self.state.blob
    }

    pub(crate) fn first_index(&self) -> Index {
        self.state.first_index
    }

    /// Makes a new state durable: both copies of the older generation, one flush.
    pub(crate) fn store(&mut self, first_index: Index, blob: &[u8]) -> io::Result<()> {
        assert!(blob.len() <= META_BLOB_BYTES_MAX, "the owner keeps its hard state short");
        let sequence = self.state.sequence + 1;
        let state = State { sequence, first_index, blob: blob.to_vec() };
        self.write(&state)?;
        self.state = state;
        Ok(())
    }

    /// Makes durable what was found. After a failed flush the page cache may show what the disk
    /// does not hold; the other generation, which it may still hold, is not touched.
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.write(&self.state)
    }

    fn write(&self, state: &State) -> io::Result<()> {
        let bytes = encode(state);
        let generation = state.sequence % 2 * 2 * META_COPY_BYTES as u64;
        self.file.write_at(generation, &bytes)?;
        self.file.write_at(generation + META_COPY_BYTES as u64, &bytes)?;
        self.file.flush(generation..generation + 2 * META_COPY_BYTES as u64)
    }
}

fn encode(state: &State) -> Vec<u8> {
    let mut bytes = vec![0u8; META_COPY_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[12..14].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&state.sequence.to_le_bytes());
    bytes[24..32].copy_from_slice(&state.first_index.to_le_bytes());
    bytes[32..36].copy_from_slice(&(state.blob.len() as u32).to_le_bytes());
    bytes[BLOB_AT..BLOB_AT + state.blob.len()].copy_from_slice(&state.blob);
    let crc = crc32fast::hash(&bytes[12..]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The state in one copy; none when the copy is not valid.
fn decode(bytes: &[u8], path: &Path) -> Result<Option<State>, OpenError> {
    let u32_at =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    if bytes[..8] != MAGIC || u32_at(8) != crc32fast::hash(&bytes[12..]) {
        return Ok(None);
    }
    let found = u16::from_le_bytes([bytes[12], bytes[13]]);
    if found > VERSION {
        return Err(OpenError::Newer { file: path.to_owned(), found, known: VERSION });
    }
    let blob_len = u32_at(32) as usize;
    let blob = bytes.get(BLOB_AT..BLOB_AT + blob_len).map(<[u8]>::to_vec);
    Ok(blob.map(|blob| State { sequence: u64_at(16), first_index: Index(u64_at(24)), blob }))
}
