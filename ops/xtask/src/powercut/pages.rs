//! What the page cache held when the power went, and how some of it got to the disk all the same.
//!
//! Owns: the copy, and the choice of what is put back.
//! Never: makes a file, or one longer: what has no durable name or length stays gone.
//!
//! A kernel may write dirty pages back whenever it likes and in any order, and a disk tears a page
//! at its sectors. A cut alone shows little of that: it keeps what was flushed and loses the rest.

use super::at;
use fastrand::Rng;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::ops::AddAssign;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const PAGE_BYTES: usize = 4 << 10;
const SECTOR_BYTES: usize = 512;
/// Pages that are read at once.
const READ_PAGES: usize = 64;
/// One page of so many that are put back is torn.
const TORN_ONE_IN: u32 = 4;

/// A file whatever its name: a rename that was not durable leaves the pages with the old one. The
/// birth tells it from a later file with the same inode.
type Identity = (u64, SystemTime);

/// The files of a folder as the page cache shows them; pages of zeros are left out.
#[derive(Default)]
pub(crate) struct VolatileCopy {
    files: HashMap<Identity, Pages>,
}

/// By their number; the last one may be short.
struct Pages {
    bytes: u64,
    written: BTreeMap<u64, Vec<u8>>,
}

/// What [`VolatileCopy::put_some_back`] has put back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PutBack {
    /// Whole pages.
    pub(crate) pages: u64,
    /// Sectors of torn pages.
    pub(crate) sectors: u64,
}

impl AddAssign for PutBack {
    fn add_assign(&mut self, more: Self) {
        self.pages += more.pages;
        self.sectors += more.sectors;
    }
}

impl VolatileCopy {
    pub(crate) fn of(folder: &Path) -> Result<Self, String> {
        let mut files = HashMap::new();
        for (path, identity) in files_below(folder)? {
            let bytes = fs::metadata(&path).map_err(at(&path))?.len();
            let mut written = BTreeMap::new();
            for_each_page(&path, |number, page| {
                if page != &[0; PAGE_BYTES][..page.len()] {
                    written.insert(number, page.to_vec());
                }
                Ok(())
            })?;
            files.insert(identity, Pages { bytes, written });
        }
        Ok(Self { files })
    }

    /// Overwrites a random part of the pages that differ. Each file gets a share of its own, so
    /// that all, none, a single one and all but one occur.
    pub(crate) fn put_some_back(&self, folder: &Path, random: &mut Rng) -> Result<PutBack, String> {
        let mut put_back = PutBack::default();
        for (path, identity) in files_below(folder)? {
            if let Some(pages) = self.files.get(&identity) {
                let share = random.f64() * 1.4 - 0.2;
                pages.put_some_back(&path, share, random, &mut put_back)?;
            }
        }
        Ok(put_back)
    }
}

impl Pages {
    fn put_some_back(
        &self,
        path: &Path,
        share: f64,
        random: &mut Rng,
        put_back: &mut PutBack,
    ) -> Result<(), String> {
        let file = OpenOptions::new().write(true).open(path).map_err(at(path))?;
        let before = *put_back;
        for_each_page(path, |number, durable| {
            let start = number * PAGE_BYTES as u64;
            let len = durable.len().min(self.bytes.saturating_sub(start) as usize);
            let zeros = [0; PAGE_BYTES];
            let newest = self.written.get(&number).map_or(&zeros[..], Vec::as_slice);
            let (durable, newest) = (&durable[..len], &newest[..len]);
            if durable == newest || random.f64() >= share {
                return Ok(());
            }
            if random.u32(..TORN_ONE_IN) > 0 {
                put_back.pages += 1;
                return file.write_all_at(newest, start).map_err(at(path));
            }
            for sector in (0..len).step_by(SECTOR_BYTES).filter(|_| random.bool()) {
                let range = sector..len.min(sector + SECTOR_BYTES);
                put_back.sectors += 1;
                file.write_all_at(&newest[range], start + sector as u64).map_err(at(path))?;
            }
            Ok(())
        })?;
        if *put_back != before { file.sync_all().map_err(at(path)) } else { Ok(()) }
    }
}

fn for_each_page(
    path: &Path,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let mut file = File::open(path).map_err(at(path))?;
    let mut buffer = vec![0; READ_PAGES * PAGE_BYTES];
    let mut number = 0;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..]).map_err(at(path))? {
                0 => break,
                read => filled += read,
            }
        }
        for page in buffer[..filled].chunks(PAGE_BYTES) {
            visit(number, page)?;
            number += 1;
        }
        if filled < buffer.len() {
            return Ok(());
        }
    }
}

/// In an order that a seed can rely on.
fn files_below(folder: &Path) -> Result<Vec<(PathBuf, Identity)>, String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(&folder).map_err(at(&folder))? {
            let path = item.map_err(at(&folder))?.path();
            let metadata = fs::symlink_metadata(&path).map_err(at(&path))?;
            if metadata.is_dir() {
                folders.push(path);
            } else {
                let born = metadata.created().map_err(at(&path))?;
                found.push((path, (metadata.ino(), born)));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_back(seed: u64, newest: &[u8], durable: &[u8]) -> (PutBack, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, newest).unwrap();
        let copy = VolatileCopy::of(folder.path()).unwrap();
        fs::write(&path, durable).unwrap();
        fs::write(folder.path().join("another"), durable).unwrap();
        let put_back = copy.put_some_back(folder.path(), &mut Rng::with_seed(seed)).unwrap();
        assert_eq!(fs::read(folder.path().join("another")).unwrap(), durable);
        (put_back, fs::read(path).unwrap())
    }

    #[test]
    fn every_sector_is_old_or_new_and_seeds_reach_every_share() {
        let newest = [vec![2; 40 * PAGE_BYTES], vec![0; PAGE_BYTES], vec![2; 100]].concat();
        let durable = vec![1; newest.len()];
        let (mut none, mut some, mut torn, mut all) = (0, 0, 0, 0);
        for seed in 0..200 {
            let (put_back, found) = put_back(seed, &newest, &durable);
            assert_eq!(found.len(), durable.len());
            let mut changed = 0;
            for (number, sector) in found.chunks(SECTOR_BYTES).enumerate() {
                let start = number * SECTOR_BYTES;
                let new = sector == &newest[start..start + sector.len()];
                assert!(new || sector == &durable[start..start + sector.len()]);
                changed += u64::from(new);
            }
            torn += u64::from(put_back.sectors > 0);
            none += u64::from(put_back == PutBack::default() && changed == 0);
            all += u64::from(put_back.pages > 0 && changed as usize > 41 * 7);
            some += u64::from(changed > 0);
        }
        assert!(none > 10 && some > 100 && torn > 100 && all > 0, "{none} {some} {torn} {all}");
    }

    #[test]
    fn what_is_not_durable_stays_gone() {
        let long = vec![2; 3 * PAGE_BYTES + 9];
        for seed in 0..20 {
            let (_, found) = put_back(seed, &long, &[1; PAGE_BYTES + 5]);
            assert_eq!(found.len(), PAGE_BYTES + 5);
            let (_, found) = put_back(seed, &[2; 10], &[1; 2 * PAGE_BYTES]);
            assert_eq!(found.len(), 2 * PAGE_BYTES);
            assert!(found[10..].iter().all(|byte| *byte == 1));
        }
    }
}
