//! Local checkpoints: the owner's state at an index, so that a start need not replay everything.
//!
//! Owns: the files `<index:020>.ckpt`, and which of them are kept.
//! Never: interprets the content; takes the state of another log.
//!
//! ```text
//! magic8 "WEIRCKP\x02" | crc4 of the rest | len4 | index8 | log_uuid16 | content
//! with the magic "WEIRCKP\x01" there is no log_uuid
//! ```

use crate::device::Device;
use crate::disk::Disk;
use crate::reader::LogReader;
use crate::sealed::{self, FRAME_BYTES};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::types::Index;

const MAGIC: [u8; 8] = *b"WEIRCKP\x02";
const MAGIC_V1: [u8; 8] = *b"WEIRCKP\x01";
const HEADER_BYTES: usize = 40;
const HEADER_BYTES_V1: usize = 24;

/// The checkpoints of one log, beside its writer: appending goes on while one is written. One
/// call at a time.
#[derive(Clone)]
pub struct Checkpoints {
    device: Arc<Device>,
    dir: PathBuf,
    uuid: u128,
    reader: LogReader,
}

impl Checkpoints {
    pub(crate) fn new(device: Arc<Device>, dir: PathBuf, uuid: u128, reader: LogReader) -> Self {
        Self { device, dir, uuid, reader }
    }

    /// Keeps `content` as the owner's state at `index`, durably. Besides the two newest those
    /// stay that lie in the log, and the one that it begins behind.
    pub fn write(&self, index: Index, content: &[u8]) -> io::Result<()> {
        let disk = &**self.device.disk();
        write(disk, &self.dir, (self.uuid, index), content)?;
        let first_index = self.reader.bounds().first_index;
        remove_old(disk, &self.dir, |old| old.0 + 1 >= first_index.0)
    }

    /// The newest whole checkpoint at or below `upto`.
    pub fn latest(&self, upto: Index) -> io::Result<Option<(Index, Vec<u8>)>> {
        let disk = &**self.device.disk();
        for index in list(disk, &self.dir)?.into_iter().filter(|at| *at <= upto) {
            if let Some(content) = read(disk, &self.dir, Some(self.uuid), index)? {
                return Ok(Some((index, content)));
            }
        }
        Ok(None)
    }
}

fn file_name(index: Index) -> String {
    format!("{:020}.ckpt", index.0)
}

/// The index that a checkpoint's name says.
pub(crate) fn index_of(name: &str) -> Option<Index> {
    let index = name.strip_suffix(".ckpt")?.parse().ok().map(Index)?;
    (file_name(index) == name).then_some(index)
}

/// Writes a checkpoint of a log at an index, flushed under its name.
fn write(
    disk: &dyn Disk,
    dir: &Path,
    (uuid, index): (u128, Index),
    content: &[u8],
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + content.len());
    bytes.resize(FRAME_BYTES, 0);
    bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&index.to_le_bytes());
    bytes.extend_from_slice(&uuid.to_le_bytes());
    bytes.extend_from_slice(content);
    sealed::seal(&mut bytes, MAGIC);
    sealed::replace_small(disk, dir, &file_name(index), &bytes)
}

/// The indexes of the checkpoints that exist, newest first.
pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<Index>> {
    let mut found: Vec<Index> = disk.list(dir)?.iter().filter_map(|name| index_of(name)).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Reads a checkpoint; none when it is not whole, or not of the log that is named.
pub(crate) fn read(
    disk: &dyn Disk,
    dir: &Path,
    uuid: Option<u128>,
    index: Index,
) -> io::Result<Option<Vec<u8>>> {
    let read = sealed::read_small(disk, &dir.join(file_name(index)), usize::MAX)?;
    let Some(mut bytes) = read else { return Ok(None) };
    let is_first = bytes.starts_with(&MAGIC_V1);
    let header_bytes = if is_first { HEADER_BYTES_V1 } else { HEADER_BYTES };
    let is_ours = |of: &[u8]| is_first || uuid.is_none_or(|uuid| uuid.to_le_bytes() == *of);
    let whole = bytes.len() >= header_bytes
        && sealed::is_whole(&bytes, if is_first { MAGIC_V1 } else { MAGIC })
        && bytes[16..24] == index.to_le_bytes()
        && is_ours(&bytes[24..header_bytes]);
    Ok(whole.then(|| bytes.split_off(header_bytes)))
}

/// Removes those that are neither among the two newest nor wanted.
fn remove_old(disk: &dyn Disk, dir: &Path, wanted: impl Fn(Index) -> bool) -> io::Result<()> {
    for index in list(disk, dir)?.into_iter().skip(2).filter(|index| !wanted(*index)) {
        disk.remove(&dir.join(file_name(index)))?;
    }
    Ok(())
}
