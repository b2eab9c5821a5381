//! Whether one flush of a device covers the files of others.
//!
//! Owns: what is known of a mounted filesystem, and where a file lay when it was flushed itself.
//! Never: believes a filesystem that is not known to flush its device.

use crate::sys::{self, Extent};
use std::fs::{self, File};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// What a flush of one file does for the others of its filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Nothing that could be relied on.
    None,
    /// The device is flushed whenever a file is (ext4). All blocks of a file are written when it is
    /// made, so that a later store leaves nothing behind but data.
    Device,
    /// The same, unless blocks of the file are shared with a copy, all or some (XFS): a store then
    /// allocates anew, and only a flush of the file itself makes that durable.
    DeviceUnlessCloned,
}

/// Where `/proc/self/mountinfo` says how a device is mounted. With `data=journal` a store is in the
/// journal until its own file is flushed.
pub(super) fn sharing_of(device: u64) -> Sharing {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    sharing_in(&mounts, rustix::fs::major(device), rustix::fs::minor(device))
}

fn sharing_in(mounts: &str, major: u32, minor: u32) -> Sharing {
    let place = format!("{major}:{minor}");
    let mut found = None;
    for line in mounts.lines().filter(|line| line.split(' ').nth(2) == Some(&place)) {
        let Some((_, of_filesystem)) = line.split_once(" - ") else { continue };
        let mut fields = of_filesystem.split(' ');
        let (kind, options) = (fields.next(), fields.nth(1).unwrap_or_default());
        let sharing = match kind {
            Some("ext4") if !options.split(',').any(|option| option == "data=journal") => {
                Sharing::Device
            }
            Some("xfs") => Sharing::DeviceUnlessCloned,
            _ => Sharing::None,
        };
        // Mounted twice, the weaker promise holds.
        found = match found {
            None => Some(sharing),
            Some(known) if known == sharing => Some(known),
            Some(_) => Some(Sharing::None),
        };
    }
    found.unwrap_or(Sharing::None)
}

/// Where a file lay on its device when it was flushed itself for the last time.
#[derive(Debug, Default)]
pub(super) struct Layout(Mutex<Option<Vec<Extent>>>);

impl Layout {
    /// Looks where the file lies, flushes it, and remembers that: the flush made it durable.
    pub(super) fn flushed<E>(
        &self,
        file: &File,
        flush: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if known {
            return flush();
        }
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        let found = sys::extents(file, 0..len);
        flush()?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }

    /// Whether a range that was just written back lies where it lay then. Its stores went in
    /// place in that case and changed nothing but data; a store into a block that was shared has
    /// moved it. It is asked behind the write-back because it is that which moves a block: also
    /// one that the kernel began by itself long before. Who lies elsewhere must be flushed
    /// itself, and is looked at anew then.
    pub(super) fn is_kept(&self, file: &File, range: Range<u64>) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is = sys::extents(file, range);
        let kept = matches!((&*known, is), (Some(was), Some(is)) if lies_within(&is, was));
        if !kept {
            *known = None;
        }
        kept
    }
}

/// Whether all of `is` lies where `was` says.
fn lies_within(is: &[Extent], was: &[Extent]) -> bool {
    let shift = |extent: &Extent| extent.physical.wrapping_sub(extent.logical);
    is.iter().all(|extent| {
        let (mut from, end) = (extent.logical, extent.logical + extent.len);
        let mut left = was.iter().skip_while(|was| was.logical + was.len <= extent.logical);
        while from < end {
            match left.next() {
                Some(was) if was.logical <= from && shift(was) == shift(extent) => {
                    from = was.logical + was.len;
                }
                _ => return false,
            }
        }
        true
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
23 1 8:2 / /journal rw - ext4 /dev/sda2 rw,data=journal
24 1 8:3 / /x rw,noatime - xfs /dev/sda3 rw,attr2,inode64
25 1 0:30 / /tmp rw - tmpfs tmpfs rw
26 1 8:3 /sub /y rw shared:2 master:1 - xfs /dev/sda3 rw,attr2,inode64
";

    #[test]
    fn only_filesystems_that_flush_the_device_share_a_flush() {
        assert_eq!(sharing_in(MOUNTS, 8, 1), Sharing::Device);
        assert_eq!(sharing_in(MOUNTS, 8, 2), Sharing::None, "data in the journal");
        assert_eq!(sharing_in(MOUNTS, 8, 3), Sharing::DeviceUnlessCloned);
        assert_eq!(sharing_in(MOUNTS, 0, 30), Sharing::None);
        assert_eq!(sharing_in(MOUNTS, 9, 9), Sharing::None, "nothing is known");
    }

    #[test]
    fn what_moved_is_noticed_wherever_it_lies() {
        let at = |logical, physical, len| Extent { logical, physical, len };
        let was = [at(0, 1000, 10), at(10, 5000, 20), at(30, 5020, 10)];
        assert!(lies_within(&was, &was));
        assert!(lies_within(&[at(4, 1004, 2)], &was));
        assert!(lies_within(&[at(10, 5000, 30)], &was), "in one piece now");
        assert!(lies_within(&[at(0, 1000, 5), at(5, 1005, 5)], &was), "in two pieces now");
        assert!(!lies_within(&[at(0, 1000, 10), at(10, 7000, 4), at(14, 5004, 16)], &was));
        assert!(!lies_within(&[at(10, 5000, 31)], &was), "behind what is known");
        assert!(!lies_within(&[at(10, 5000, 2)], &[]));
    }

    #[test]
    fn a_file_lies_somewhere_and_stays_there() {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 64 << 10]).unwrap();
        file.sync_all().unwrap();
        let layout = Layout::default();
        assert!(!layout.is_kept(&file, 0..4096), "nothing is known");
        layout.flushed(&file, || file.sync_all()).unwrap();
        // A filesystem in memory cannot say.
        if sys::extents(&file, 0..64 << 10).is_some() {
            assert!(layout.is_kept(&file, 5000..6000));
            assert!(!layout.is_kept(&file, 60 << 10..128 << 10), "a hole");
            assert!(!layout.is_kept(&file, 5000..6000), "until it is flushed itself");
            layout.flushed(&file, || file.sync_all()).unwrap();
            assert!(layout.is_kept(&file, 5000..6000));
        }
    }

    /// Only where the filesystem lets files share blocks (XFS) there is anything to notice.
    #[test]
    fn a_store_into_blocks_that_a_copy_shares_is_noticed() {
        use std::os::unix::fs::FileExt;
        let (file, copy) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        file.write_all_at(&[7; 256 << 10], 0).unwrap();
        file.sync_all().unwrap();
        let layout = Layout::default();
        layout.flushed(&file, || file.sync_all()).unwrap();
        let store = |position| {
            file.write_all_at(&[8; 4096], position).unwrap();
            assert!(sys::write_back(&file, position..position + 4096).unwrap());
            layout.is_kept(&file, position..position + 4096)
        };
        let can_tell = store(128 << 10);
        let mut from = 64 << 10;
        rustix::fs::copy_file_range(&file, Some(&mut from), &copy, None, 64 << 10).unwrap();
        copy.sync_all().unwrap();
        let place = |of: &File, at| sys::extents(of, at..at + 4096).map(|at| at[0].physical);
        let shared = can_tell && place(&copy, 0) == place(&file, 64 << 10);
        assert_eq!(store(8192), can_tell, "beside what is shared");
        assert_eq!(store(96 << 10), can_tell && !shared);
        assert!(!shared || !store(8192), "until the file is flushed itself");
        layout.flushed(&file, || file.sync_all()).unwrap();
        assert_eq!(store(96 << 10), can_tell, "it has blocks of its own now");
    }
}
