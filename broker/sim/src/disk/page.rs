//! One page of a file: what the device holds, what the system shows, and all between.
//!
//! Owns: which of its sectors are dirty, their past versions, what the device's cache has taken.
//! Never: makes a sector durable that it was not told of.
//! Invariant: a past version holds nothing older than what is durable.

use std::sync::{Arc, LazyLock};

pub(super) const PAGE_BYTES: usize = 4 << 10;
/// A page can tear at this boundary, and a flush keeps no more than it covers of these.
pub(super) const SECTOR_BYTES: usize = 512;
/// Every sector of a page.
const ALL: u8 = u8::MAX;
/// Versions of a dirty page that a crash may bring back.
const PAST_MAX: usize = 4;

pub(super) type Block = Arc<[u8; PAGE_BYTES]>;

static ZEROS: LazyLock<Block> = LazyLock::new(|| Arc::new([0; PAGE_BYTES]));

pub(super) fn zeros() -> Block {
    ZEROS.clone()
}

/// The sectors that a range of a page touches.
pub(super) fn sectors_of(range: std::ops::Range<usize>) -> u8 {
    let (first, end) = (range.start / SECTOR_BYTES, range.end.div_ceil(SECTOR_BYTES));
    (first..end).fold(0, |sectors, sector| sectors | 1 << sector)
}

fn copy_sectors(into: &mut Block, from: &Block, sectors: u8) {
    if sectors == ALL {
        *into = from.clone();
    } else if sectors != 0 {
        let into = Arc::make_mut(into);
        for sector in (0..8).filter(|sector| sectors & 1 << sector != 0) {
            let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
            into[range.clone()].copy_from_slice(&from[range]);
        }
    }
}

/// What a power cut makes of a dirty page or a pending change of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Lost,
    /// One of the versions between, the oldest first.
    Past(usize),
    /// The newest, of these sectors only.
    Torn(u8),
    Kept,
}

/// What was handed over to the device's cache.
#[derive(Debug, Clone)]
struct Handed {
    block: Block,
    stamp: u64,
    sectors: u8,
    /// Sectors that were written again since: the next flush of the device does not clean them.
    rewritten: u8,
    /// The device has it.
    arrived: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Page {
    pub(super) newest: Block,
    pub(super) durable: Block,
    /// What the device held before its last flush of this page.
    pub(super) earlier: Block,
    pub(super) dirty: u8,
    /// When it was written last.
    pub(super) stamp: u64,
    past: Vec<(u64, Block)>,
    handed: Vec<Handed>,
}

impl Page {
    pub(super) fn holding(block: Block) -> Self {
        Self {
            newest: block.clone(),
            durable: block,
            earlier: zeros(),
            dirty: 0,
            stamp: 0,
            past: Vec::new(),
            handed: Vec::new(),
        }
    }

    pub(super) fn versions(&self) -> usize {
        self.past.len()
    }

    /// Nothing that a power cut could change.
    pub(super) fn is_clean(&self) -> bool {
        self.dirty == 0 && Arc::ptr_eq(&self.newest, &self.durable)
    }

    pub(super) fn write(&mut self, at: usize, bytes: &[u8], stamp: u64) {
        if self.dirty != 0 {
            if self.past.len() == PAST_MAX {
                self.past.remove(0);
            }
            self.past.push((self.stamp, self.newest.clone()));
        }
        let range = at..at + bytes.len();
        let sectors = sectors_of(range.clone());
        Arc::make_mut(&mut self.newest)[range].copy_from_slice(bytes);
        self.stamp = stamp;
        self.dirty |= sectors;
        self.handed.iter_mut().for_each(|handed| handed.rewritten |= sectors);
    }

    pub(super) fn flush(&mut self, sectors: u8) {
        let due = self.dirty & sectors;
        let newest = self.newest.clone();
        self.promote(&newest, due, u64::MAX);
        self.clean(due);
    }

    /// A flush of these failed: they count as clean, and what they held will never be durable.
    pub(super) fn lose(&mut self, sectors: u8) {
        self.clean(self.dirty & sectors);
    }

    pub(super) fn hand_over(&mut self, sectors: u8) {
        let sectors = self.dirty & sectors;
        if sectors != 0 {
            let (block, stamp) = (self.newest.clone(), self.stamp);
            self.handed.push(Handed { block, stamp, sectors, rewritten: 0, arrived: false });
        }
    }

    pub(super) fn handed_over(&mut self, sectors: u8) {
        let due = self.handed.iter_mut().filter(|handed| handed.sectors & sectors != 0);
        due.for_each(|handed| handed.arrived = true);
    }

    /// The device flushed its cache.
    pub(super) fn flush_device(&mut self) {
        for handed in std::mem::take(&mut self.handed) {
            if handed.arrived {
                self.promote(&handed.block, handed.sectors, handed.stamp);
                self.clean(handed.sectors & !handed.rewritten);
            } else {
                self.handed.push(handed);
            }
        }
    }

    fn promote(&mut self, from: &Block, sectors: u8, upto: u64) {
        if sectors == 0 {
            return;
        }
        self.earlier = self.durable.clone();
        copy_sectors(&mut self.durable, from, sectors);
        for (_, past) in self.past.iter_mut().filter(|(stamp, _)| *stamp <= upto) {
            copy_sectors(past, from, sectors);
        }
    }

    fn clean(&mut self, sectors: u8) {
        self.dirty &= !sectors;
        self.handed.iter_mut().for_each(|handed| handed.sectors &= !sectors);
        self.handed.retain(|handed| handed.sectors != 0);
        if self.dirty == 0 {
            self.past.clear();
            if self.durable == self.newest {
                self.newest = self.durable.clone();
            }
        }
    }

    /// Brings what is clean and was lost to what the device holds; the rest to its fate.
    pub(super) fn crash(&mut self, fate: Fate) {
        let dirty = self.dirty;
        let (from, sectors) = match fate {
            Fate::Lost => (self.durable.clone(), 0),
            Fate::Past(version) => (self.past[version].1.clone(), dirty),
            Fate::Torn(sectors) => (self.newest.clone(), dirty & sectors),
            Fate::Kept => (self.newest.clone(), dirty),
        };
        self.promote(&from, sectors, u64::MAX);
        *self = Self { earlier: self.earlier.clone(), ..Self::holding(self.durable.clone()) };
    }

    /// Puts `bytes` there without anybody having written them; only on the device, or for all.
    pub(super) fn spoil(&mut self, at: usize, bytes: &[u8], everywhere: bool) {
        let was_clean = self.is_clean();
        let range = at..at + bytes.len();
        Arc::make_mut(&mut self.durable)[range.clone()].copy_from_slice(bytes);
        if everywhere && was_clean {
            self.newest = self.durable.clone();
        } else if everywhere {
            Arc::make_mut(&mut self.newest)[range].copy_from_slice(bytes);
        }
    }
}
