//! The content of one file, by pages.
//!
//! Owns: its length, its pages, and which of them a power cut would change.
//! Never: knows a name.
//! Invariant: a page that is absent is zeros, also on the device.

use super::page::{Block, Fate, PAGE_BYTES, Page, sectors_of, zeros};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

#[derive(Debug, Clone)]
pub(super) struct Image {
    pub(super) len: u64,
    pages: BTreeMap<u64, Page>,
    /// Pages that are not clean.
    unclean: BTreeSet<u64>,
    /// What the pages held when the file got its name.
    at_naming: Arc<BTreeMap<u64, Block>>,
    /// Pages that the device cannot read; of some the system has the bytes in its cache.
    unreadable: BTreeMap<u64, Cached>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cached {
    Yes,
    No,
}

/// What the operating system says of a place that its device cannot read.
const EIO: i32 = 5;

/// The parts of a range by pages: page, where in it, where in the range.
fn parts(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let bytes = PAGE_BYTES as u64;
    (range.start / bytes..range.end.div_ceil(bytes)).map(move |page| {
        let (start, end) = (range.start.max(page * bytes), range.end.min((page + 1) * bytes));
        let within = (start - page * bytes) as usize..(end - page * bytes) as usize;
        (page, within, (start - range.start) as usize..(end - range.start) as usize)
    })
}

impl Image {
    /// A file of zeros, all of it durable.
    pub(super) fn of_zeros(len: u64) -> Self {
        Self {
            len,
            pages: BTreeMap::new(),
            unclean: BTreeSet::new(),
            at_naming: Arc::default(),
            unreadable: BTreeMap::new(),
        }
    }

    /// A file of these bytes, all of it durable.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut image = Self::of_zeros(bytes.len() as u64);
        for (number, part) in bytes.chunks(PAGE_BYTES).enumerate() {
            if part.iter().any(|byte| *byte != 0) {
                image.spoil((number * PAGE_BYTES) as u64, part, true);
            }
        }
        image
    }

    pub(super) fn check(&self, position: u64, len: usize) -> io::Result<Range<u64>> {
        match position.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(position..end),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn copy<'a>(
        &'a self,
        range: Range<u64>,
        into: &mut [u8],
        block: impl Fn(&'a Page) -> &'a Block,
    ) {
        for (page, within, part) in parts(range) {
            match self.pages.get(&page) {
                Some(page) => into[part].copy_from_slice(&block(page)[within]),
                None => into[part].fill(0),
            }
        }
    }

    pub(super) fn read(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        let range = self.check(position, into.len())?;
        self.check_in_memory(&range)?;
        self.copy(range, into, |page| &page.newest);
        Ok(())
    }

    fn check_readable(
        &self,
        range: &Range<u64>,
        counts: impl Fn(Cached) -> bool,
    ) -> io::Result<()> {
        let mut pages = parts(range.clone()).filter_map(|(page, ..)| self.unreadable.get(&page));
        match pages.any(|cached| counts(*cached)) {
            true => Err(io::Error::from_raw_os_error(EIO)),
            false => Ok(()),
        }
    }

    /// An error where a range cannot be brought into memory.
    pub(super) fn check_in_memory(&self, range: &Range<u64>) -> io::Result<()> {
        self.check_readable(range, |cached| cached == Cached::No)
    }

    /// The device cannot read the pages of a range any more, nor, with `everywhere`, has the cache
    /// them.
    pub(super) fn make_unreadable(&mut self, range: Range<u64>, everywhere: bool) {
        let cached = if everywhere { Cached::No } else { Cached::Yes };
        self.unreadable.extend(parts(range).map(|(page, ..)| (page, cached)));
    }

    /// As a direct read does it: what is dirty is brought to the device before, what is clean is
    /// read from there, whatever the cache says.
    pub(super) fn read_device(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        let range = self.check(position, into.len())?;
        self.check_readable(&range, |_| true)?;
        self.copy(range, into, |page| if page.dirty == 0 { &page.durable } else { &page.newest });
        Ok(())
    }

    pub(super) fn read_all(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.copy(0..self.len, &mut bytes, |page| &page.newest);
        bytes
    }

    /// Stores up to the first page that a part is stored to and that cannot be read: the system reads
    /// such a page in before. One that is stored whole it does not read: from then on it is in memory
    /// whatever the device makes of it, and the device puts it elsewhere when it is brought there. (A
    /// store through a map reads in every page, and is answered by a signal: who does that prepares
    /// before, where it learns the same.)
    pub(super) fn write(&mut self, position: u64, bytes: &[u8], stamp: u64) -> io::Result<()> {
        for (page, within, part) in parts(position..position + bytes.len() as u64) {
            if let Some(cached @ Cached::No) = self.unreadable.get_mut(&page) {
                if within != (0..PAGE_BYTES) {
                    return Err(io::Error::from_raw_os_error(EIO));
                }
                *cached = Cached::Yes;
            }
            self.unclean.insert(page);
            self.page(page).write(within.start, &bytes[part], stamp);
        }
        Ok(())
    }

    fn page(&mut self, page: u64) -> &mut Page {
        self.pages.entry(page).or_insert_with(|| Page::holding(zeros()))
    }

    /// Does something to every page of a range that is not clean, with the sectors of the range.
    /// Returns those that are now.
    fn each_unclean(
        &mut self,
        range: Range<u64>,
        mut act: impl FnMut(&mut Page, u8),
    ) -> BTreeSet<u64> {
        let mut cleaned = BTreeSet::new();
        for (page, within, _) in parts(range.start..range.end.min(self.len)) {
            if self.unclean.contains(&page) {
                let of = self.page(page);
                act(of, sectors_of(within));
                if of.is_clean() {
                    self.unclean.remove(&page);
                    cleaned.insert(page);
                }
            }
        }
        cleaned
    }

    /// A device that is given a page anew puts it where it can read it.
    fn replace_unreadable(&mut self, flushed: &BTreeSet<u64>) {
        self.unreadable.retain(|page, _| !flushed.contains(page));
    }

    pub(super) fn flush(&mut self, range: Range<u64>) {
        let flushed = self.each_unclean(range, Page::flush);
        self.replace_unreadable(&flushed);
    }

    pub(super) fn lose(&mut self, range: Range<u64>) {
        self.each_unclean(range, Page::lose);
    }

    pub(super) fn hand_over(&mut self, range: Range<u64>) {
        self.each_unclean(range, Page::hand_over);
    }

    pub(super) fn handed_over(&mut self, range: Range<u64>) {
        self.each_unclean(range, Page::handed_over);
    }

    pub(super) fn is_clean(&self) -> bool {
        self.unclean.is_empty() && self.unreadable.values().all(|cached| *cached == Cached::No)
    }

    /// The device flushed its cache.
    pub(super) fn flush_device(&mut self) {
        let mut flushed = self.unclean.clone();
        flushed.retain(|page| {
            let of = self.page(*page);
            of.flush_device();
            of.is_clean()
        });
        self.unclean.retain(|page| !flushed.contains(page));
        self.replace_unreadable(&flushed);
    }

    /// The pages that have anything to lose.
    pub(super) fn dirty(&self) -> impl Iterator<Item = (u64, &Page)> {
        let pages = self.unclean.iter().map(|page| (*page, &self.pages[page]));
        pages.filter(|(_, page)| page.dirty != 0)
    }

    /// What is left when the power went. A page without a fate had nothing to lose but the lie of
    /// a failed flush.
    pub(super) fn crash(&mut self, fates: &BTreeMap<u64, Fate>) {
        self.unreadable.values_mut().for_each(|cached| *cached = Cached::No);
        for page in std::mem::take(&mut self.unclean) {
            let fate = fates.get(&page).copied().unwrap_or(Fate::Lost);
            self.page(page).crash(fate);
            if matches!(fate, Fate::Kept | Fate::Past(_)) {
                self.unreadable.remove(&page);
            }
        }
    }

    /// Puts `bytes` there without anybody having written them; only on the device, or for all.
    pub(super) fn spoil(&mut self, position: u64, bytes: &[u8], everywhere: bool) {
        for (page, within, part) in parts(position..position + bytes.len() as u64) {
            let of = self.page(page);
            of.spoil(within.start, &bytes[part], everywhere);
            if !of.is_clean() {
                self.unclean.insert(page);
            }
        }
    }

    /// The file has another length, and zeros where it was longer before.
    pub(super) fn resize(&mut self, len: u64) {
        if len < self.len {
            self.spoil(len, &vec![0; (self.len - len) as usize], true);
        }
        self.len = len;
    }

    /// The file got its name: what it holds now is of an earlier life.
    pub(super) fn named(&mut self) {
        let blocks = self.pages.iter().map(|(number, page)| (*number, page.newest.clone()));
        self.at_naming = Arc::new(blocks.collect());
    }

    pub(super) fn block(&self, page: u64) -> Block {
        self.pages.get(&page).map_or_else(zeros, |page| page.newest.clone())
    }

    pub(super) fn earlier_block(&self, page: u64) -> Block {
        self.pages.get(&page).map_or_else(zeros, |page| page.earlier.clone())
    }

    pub(super) fn block_at_naming(&self, page: u64) -> Block {
        self.at_naming.get(&page).cloned().unwrap_or_else(zeros)
    }
}
