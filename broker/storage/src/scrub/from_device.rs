//! A sealed segment as its device holds it.
//!
//! Owns: the bytes of one piece, how many the device was asked for, and which of them it could not
//! read: those are zeros here.
//! Never: writes; keeps more than a piece and the batch at its end.

use crate::disk::{DeviceId, DiskFile, PAGE_BYTES, is_unreadable, pages};
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub(super) struct FromDevice {
    file: Arc<dyn DiskFile>,
    piece: Range<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is held, from the start of the piece on.
    held: Vec<u8>,
    bytes_read: u64,
    unreadable: Vec<Range<u64>>,
}

impl FromDevice {
    /// Reads `piece` of `file`.
    pub(super) fn holding(file: Arc<dyn DiskFile>, piece: Range<u64>) -> io::Result<Self> {
        let mut held = vec![0; (piece.end - piece.start) as usize];
        let mut state = State::default();
        state.read(&*file, piece.start, &mut held)?;
        Ok(Self { file, piece, state: Mutex::new(State { held, ..state }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that the device was asked for until now.
    pub(super) fn bytes_read(&self) -> u64 {
        self.state().bytes_read
    }

    /// Whether the device could read a range that was asked for.
    pub(super) fn is_readable(&self, range: &Range<u64>) -> bool {
        let lost = |lost: &Range<u64>| lost.start < range.end && range.start < lost.end;
        !self.state().unreadable.iter().any(lost)
    }

    /// Fills `into` from `position`. What begins in the piece is held as far as it reaches, so that
    /// a batch at the end of a piece is not read twice.
    pub(super) fn read(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        if !self.piece.contains(&position) {
            return state.read(&*self.file, position, into);
        }
        let from = (position - self.piece.start) as usize;
        let held = state.held.len();
        if from + into.len() > held {
            let mut more = vec![0; from + into.len() - held];
            state.read(&*self.file, self.piece.start + held as u64, &mut more)?;
            state.held.append(&mut more);
        }
        into.copy_from_slice(&state.held[from..from + into.len()]);
        Ok(())
    }
}

impl State {
    /// Reads, page by page where the device cannot read all: what stands beside a bad place is not
    /// lost with it. A file that lost its end cannot be read there.
    fn read(&mut self, file: &dyn DiskFile, position: u64, into: &mut [u8]) -> io::Result<()> {
        let end = position + into.len() as u64;
        let there = file.len().clamp(position, end);
        let (into, missing) = into.split_at_mut((there - position) as usize);
        missing.fill(0);
        self.lose(there..end);
        if into.is_empty() || self.try_read(file, position, into)? {
            return Ok(());
        }
        for (at, page) in pages(position, into) {
            if !self.try_read(file, at, page)? {
                page.fill(0);
                self.lose(at..at + page.len() as u64);
            }
        }
        Ok(())
    }

    fn lose(&mut self, range: Range<u64>) {
        match self.unreadable.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.unreadable.push(range),
        }
    }

    /// Returns whether the device can read the range.
    fn try_read(
        &mut self,
        file: &dyn DiskFile,
        position: u64,
        into: &mut [u8],
    ) -> io::Result<bool> {
        let end = (position + into.len() as u64).next_multiple_of(PAGE_BYTES);
        self.bytes_read += end - (position - position % PAGE_BYTES);
        match file.read_device(position, into) {
            Ok(()) => Ok(true),
            Err(error) if is_unreadable(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn only_read<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl DiskFile for FromDevice {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        self.read(position, into)
    }

    fn read_device(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        self.read(position, into)
    }

    fn write_at(&self, _position: u64, _bytes: &[u8]) -> io::Result<()> {
        only_read()
    }

    fn flush(&self, _range: Range<u64>) -> io::Result<()> {
        only_read()
    }

    fn hand_over(&self, _range: Range<u64>) -> io::Result<()> {
        only_read()
    }

    fn handed_over(&self, _range: Range<u64>) -> io::Result<Option<DeviceId>> {
        only_read()
    }

    fn prepare(&self, _range: Range<u64>) -> io::Result<()> {
        only_read()
    }

    fn bytes(&self, _range: Range<u64>) -> io::Result<Bytes> {
        only_read()
    }

    fn is_held(&self) -> bool {
        self.file.is_held()
    }
}
