//! The frame that the broker's own files share, and the small files among them, which are replaced
//! as a whole.
//!
//! Owns: how such bytes are sealed and judged, and how a small file is read and replaced.
//! Never: knows what a file says.
//! Invariants: after a stop of any kind a small file is the old one or the new one.
//!
//! ```text
//! 0 magic8   8 crc4 of [12..)   12 what the file says
//! ```

use crate::disk::{Disk, is_unreadable, remove_if_there};
use crate::planted::{Bug, unless};
use std::io;
use std::path::Path;

/// Where what a file says begins.
pub const FRAME_BYTES: usize = 12;

/// Puts the frame in front of what stands in `bytes` from [`FRAME_BYTES`] on.
pub fn seal(bytes: &mut [u8], magic: [u8; 8]) {
    let crc = crc32fast::hash(&bytes[FRAME_BYTES..]);
    bytes[..8].copy_from_slice(&magic);
    bytes[8..FRAME_BYTES].copy_from_slice(&crc.to_le_bytes());
}

/// Whether `bytes` are of the kind that `magic` names, and are what was sealed.
pub fn is_whole(bytes: &[u8], magic: [u8; 8]) -> bool {
    bytes.split_at_checked(FRAME_BYTES).is_some_and(|(frame, content)| {
        frame[..8] == magic && frame[8..] == crc32fast::hash(content).to_le_bytes()
    })
}

/// The small file at `path`, or its first `bytes_max`; none where there is none. One that the device
/// cannot read is empty: not whole.
pub fn read_small(disk: &dyn Disk, path: &Path, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; (file.len() as usize).min(bytes_max)];
    match file.read_at(0, &mut bytes) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if is_unreadable(&error) => Ok(Some(Vec::new())),
        Err(error) => Err(error),
    }
}

/// Puts a file of `bytes` in the place of the small file `name` of `dir`, durably.
pub fn replace_small(disk: &dyn Disk, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let fresh = dir.join(format!("{name}.new"));
    remove_if_there(disk, &fresh)?;
    let file = disk.create(&fresh, bytes.len() as u64)?;
    file.write_at(0, bytes)?;
    unless(Bug::ReplacementNotFlushed, || file.flush(0..bytes.len() as u64))?;
    disk.rename(&fresh, &dir.join(name))?;
    disk.sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os_disk::{Backend, OsDisk};

    const MAGIC: [u8; 8] = *b"WEIRTST\x01";

    #[test]
    fn what_was_sealed_is_whole_and_nothing_else_is() {
        let mut bytes = [0; FRAME_BYTES + 4];
        bytes[FRAME_BYTES..].copy_from_slice(b"said");
        seal(&mut bytes, MAGIC);
        assert!(is_whole(&bytes, MAGIC) && !is_whole(&bytes, *b"WEIROTH\x01"));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_whole(&bytes, MAGIC), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!((0..bytes.len()).all(|cut| !is_whole(&bytes[..cut], MAGIC)));
    }

    #[test]
    fn a_small_file_is_replaced_as_a_whole_whatever_was_left_behind() {
        let (disk, dir) = (OsDisk::new(Backend::Pwrite), tempfile::tempdir().unwrap());
        let read = |max| read_small(&disk, &dir.path().join("small"), max).unwrap();
        assert_eq!(read(9), None);
        std::fs::write(dir.path().join("small.new"), b"of a stop in the middle").unwrap();
        for bytes in [&b"one"[..], b"another"] {
            replace_small(&disk, dir.path(), "small", bytes).unwrap();
            assert_eq!(read(9).as_deref(), Some(bytes));
        }
        assert_eq!(read(2).as_deref(), Some(&b"an"[..]));
        assert_eq!(disk.list(dir.path()).unwrap(), ["small"]);
    }
}
