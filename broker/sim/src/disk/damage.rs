//! What a device does to files behind everybody's back.
//!
//! Owns: the kinds of damage. All can be done while files are open.
//! Never: touches what nobody named.

use super::SimDisk;
use super::image::Image;
use super::page::PAGE_BYTES;
use super::state::State;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One damage of a file. Pages are of 4 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// One bit of the byte at `position` is another.
    Bit {
        /// Which byte.
        position: u64,
        /// Which of its eight bits.
        bit: u8,
    },
    /// A range reads as zeros.
    Zeros(Range<u64>),
    /// A range reads as anything.
    Noise(Range<u64>, u64),
    /// A page reads as it did before its last flush.
    StaleVersion(u64),
    /// A page reads as it did when the file got its name: what an earlier life of the file left.
    StaleLife(u64),
    /// The page `at` reads as the page `from` of the same file does.
    Misdirected {
        /// The page that is read.
        at: u64,
        /// The page that is found.
        from: u64,
    },
    /// The device cannot read the pages of a range, until somebody stores them anew.
    Unreadable(Range<u64>),
    /// The file ends here.
    Truncated(u64),
    /// So many bytes of noise are behind the end, by a seed.
    Grown(u64, u64),
    /// The file is not there.
    Removed,
    /// The file holds what another holds, and the other what this one does.
    Swapped(PathBuf),
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

impl SimDisk {
    /// Damages a file; the system has nothing of it in its cache, so everybody sees it.
    pub fn damage(&self, path: &Path, damage: &Damage) {
        self.state().damage(path, damage, true);
    }

    /// Damages the bytes of a file under a cache that still holds them as they were: who reads
    /// past the cache sees it, and everybody after a power cut.
    pub fn rot(&self, path: &Path, damage: &Damage) {
        self.state().damage(path, damage, false);
    }
}

impl State {
    fn damage(&mut self, path: &Path, damage: &Damage, everywhere: bool) {
        let id = self.names.file(path).expect("damage is done to a file that is there");
        match damage {
            Damage::Removed => self.names.lose(path),
            Damage::Swapped(other) => {
                let other = self.names.file(other).expect("files are swapped that are there");
                let (one, two) = (self.image(id).clone(), self.image(other).clone());
                (*self.image_mut(id), *self.image_mut(other)) = (two, one);
            }
            damage => spoil(self.image_mut(id), damage, everywhere),
        }
    }
}

fn spoil(image: &mut Image, damage: &Damage, everywhere: bool) {
    let page_start = |page: &u64| page * PAGE_BYTES as u64;
    let (position, bytes) = match damage {
        Damage::Bit { position, bit } => {
            assert!(*position < image.len, "the bit is in the file");
            let mut byte = [0];
            if image.read(*position, &mut byte).is_err() {
                // Its page cannot be read any more, whatever is in it.
                return;
            }
            (*position, vec![byte[0] ^ 1 << bit])
        }
        Damage::Zeros(range) => (range.start, vec![0; (range.end - range.start) as usize]),
        Damage::Noise(range, seed) => {
            (range.start, noise((range.end - range.start) as usize, *seed))
        }
        Damage::StaleVersion(page) => (page_start(page), image.earlier_block(*page).to_vec()),
        Damage::StaleLife(page) => (page_start(page), image.block_at_naming(*page).to_vec()),
        Damage::Misdirected { at, from } => (page_start(at), image.block(*from).to_vec()),
        Damage::Unreadable(range) => return image.make_unreadable(range.clone(), everywhere),
        Damage::Truncated(len) => return image.resize(*len),
        Damage::Grown(bytes, seed) => {
            let position = image.len;
            image.resize(position + bytes);
            (position, noise(*bytes as usize, *seed))
        }
        Damage::Removed | Damage::Swapped(_) => unreachable!("these are of names"),
    };
    let within = (image.len - position).min(bytes.len() as u64) as usize;
    image.spoil(position, &bytes[..within], everywhere);
}
