//! A disk without a log: its counters, and the least that it can be asked for.
//!
//! Owns: what the kernel counts of a block device, pwrite and fdatasync over written blocks, plain
//! reads, and forgetting what is cached.
//! Never: tells whose a counted byte is: a device counts for every process.

use crate::clock;
use crate::measure::Latencies;
use rustix::fs::Advice;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes that a file is filled with before anything is measured.
const FILE_BYTES: u64 = 64 << 20;
/// The files are written in steps of this size, as Weir's segments are.
const FILL_BYTES: usize = 16 << 10;
/// Plain reads are this large.
const READ_BYTES: usize = 1 << 20;
/// A device that writes nothing for so long is done with what was asked of it.
const QUIET: Duration = Duration::from_millis(300);
/// Others may never be done.
const QUIET_WAITS: u32 = 50;

/// What a block device has done so far, for whomever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Cache flushes.
    pub flushes: u64,
}

impl DeviceCounters {
    /// What happened since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            reads: self.reads - before.reads,
            read_bytes: self.read_bytes - before.read_bytes,
            written_bytes: self.written_bytes - before.written_bytes,
            flushes: self.flushes - before.flushes,
        }
    }
}

/// The block device below a folder.
#[derive(Debug)]
pub struct BlockDevice {
    stat: PathBuf,
    /// The kernel counts the flushes of a partition for the whole disk only.
    flush_stat: PathBuf,
}

impl BlockDevice {
    /// The device below `path`; none where the filesystem has no one device (tmpfs, overlay,
    /// btrfs), or the kernel counts no flushes.
    pub fn below(path: &Path) -> Option<Self> {
        let device = rustix::fs::stat(path).ok()?.st_dev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let disk = match folder.join("partition").exists() {
            true => folder.join(".."),
            false => folder.clone(),
        };
        let found = Self { stat: folder.join("stat"), flush_stat: disk.join("stat") };
        found.counters().ok().map(|_| found)
    }

    /// Reads the counters.
    pub fn counters(&self) -> io::Result<DeviceCounters> {
        let fields = numbers_of(&self.stat)?;
        let flush_fields = match self.flush_stat == self.stat {
            true => None,
            false => Some(numbers_of(&self.flush_stat)?),
        };
        // Documentation/block/stat.rst: sectors are 512 bytes whatever the device says.
        let field = |number: usize| fields.get(number).copied().ok_or(io::ErrorKind::Unsupported);
        let flushes = flush_fields.as_ref().unwrap_or(&fields).get(15);
        Ok(DeviceCounters {
            reads: field(0)?,
            read_bytes: field(2)? * 512,
            written_bytes: field(6)? * 512,
            flushes: *flushes.ok_or(io::ErrorKind::Unsupported)?,
        })
    }

    /// Waits until nobody has written to the device for a while, if that comes about: what is
    /// prepared for later is none of what is measured.
    pub fn wait_until_quiet(&self) -> io::Result<()> {
        for _ in 0..QUIET_WAITS {
            let before = self.counters()?;
            std::thread::sleep(QUIET);
            if self.counters()?.since(before).written_bytes == 0 {
                break;
            }
        }
        Ok(())
    }
}

fn numbers_of(path: &Path) -> io::Result<Vec<u64>> {
    Ok(std::fs::read_to_string(path)?.split_whitespace().flat_map(str::parse).collect())
}

/// Makes a file of zeros whose every block is written.
pub(crate) fn zeroed_file(path: &Path) -> io::Result<File> {
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    let zeros = vec![0; FILL_BYTES];
    for _ in 0..FILE_BYTES / FILL_BYTES as u64 {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    Ok(file)
}

/// Writes groups over a [`zeroed_file`], round and round, each flushed before the next.
pub(crate) struct GroupWriter<'a> {
    file: &'a File,
    group: Vec<u8>,
    position: u64,
}

impl<'a> GroupWriter<'a> {
    pub(crate) fn new(file: &'a File, group_bytes: usize) -> Self {
        Self { file, group: vec![7; group_bytes], position: 0 }
    }

    /// pwrite and fdatasync of one group.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.group, self.position)?;
        rustix::fs::fdatasync(self.file)?;
        let group_bytes = self.group.len() as u64;
        self.position = (self.position + group_bytes) % (FILE_BYTES - group_bytes);
        self.position -= self.position % 4096;
        Ok(())
    }
}

/// Times `count` groups over a [`zeroed_file`].
pub(crate) fn time_groups(file: &File, group_bytes: usize, count: u32) -> io::Result<Latencies> {
    let mut writer = GroupWriter::new(file, group_bytes);
    let mut times = Latencies::default();
    for _ in 0..count {
        let started = clock::now();
        writer.write()?;
        times.record(started.elapsed());
    }
    Ok(times)
}

/// Reads the files from start to end, one after another; returns their bytes.
pub(crate) fn read_through(files: &[PathBuf]) -> io::Result<u64> {
    let (mut block, mut total) = (vec![0; READ_BYTES], 0);
    for path in files {
        let mut file = File::open(path)?;
        rustix::fs::fadvise(&file, 0, None, Advice::Sequential)?;
        loop {
            match file.read(&mut block)? {
                0 => break,
                count => total += count as u64,
            }
        }
    }
    Ok(total)
}

/// Has the page cache forget the files, which nobody maps and which are flushed. Root has it forget
/// everything, so that the folders, the extents and what lies below a loop device are cold too.
pub(crate) fn forget(files: &[PathBuf]) -> io::Result<()> {
    for path in files {
        rustix::fs::fadvise(&File::open(path)?, 0, None, Advice::DontNeed)?;
    }
    match std::fs::write("/proc/sys/vm/drop_caches", "3") {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        // A container's root may find it read-only.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        forgot => forgot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filesystem_in_memory_has_no_counters() {
        // Everything below /proc is of no device, as tmpfs is.
        assert!(BlockDevice::below(Path::new("/proc")).is_none());
    }

    #[test]
    fn what_is_read_through_is_every_byte() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = (1..4).map(|n| dir.path().join(n.to_string())).collect();
        for (number, path) in files.iter().enumerate() {
            std::fs::write(path, vec![7; number * READ_BYTES + 1]).unwrap();
        }
        assert_eq!(read_through(&files).unwrap(), 3 * READ_BYTES as u64 + 3);
    }
}
