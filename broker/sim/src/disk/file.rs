//! An open file of the disk, and the bytes that it handed out.
//!
//! Owns: the life of every `Bytes` that was shared.
//! Never: outlives a power cut: what was opened before it is of no use behind it.
//! Invariant: bytes that somebody holds never change; who stores others over them is wrong.

use super::SimDisk;
use super::faults::{Effect, Op};
use super::page::PAGE_BYTES;
use super::state::State;
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::sync::{Arc, MutexGuard, Weak};
use weir_storage::{DeviceId, DiskFile};

/// The one device of a simulated disk.
const DEVICE: DeviceId = DeviceId(0);

/// Ranges of one file that were handed out.
#[derive(Debug, Default)]
pub(super) struct Shared {
    ranges: Vec<(Range<u64>, Weak<()>)>,
}

impl Shared {
    fn add(&mut self, range: Range<u64>) -> Arc<()> {
        if self.ranges.len() % 64 == 63 {
            self.ranges.retain(|(_, life)| life.strong_count() > 0);
        }
        let life = Arc::new(());
        self.ranges.push((range, Arc::downgrade(&life)));
        life
    }

    fn held(&self) -> impl Iterator<Item = &Range<u64>> {
        let held = self.ranges.iter().filter(|(_, life)| life.strong_count() > 0);
        held.map(|(range, _)| range)
    }
}

/// What a `Bytes` holds: a copy, because nothing of a file lies in one piece here.
struct Slice {
    copy: Vec<u8>,
    _life: Arc<()>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.copy
    }
}

#[derive(Debug)]
pub(super) struct SimFile {
    disk: SimDisk,
    id: u64,
    len: u64,
    /// Power cuts before it was opened.
    era: u64,
}

impl SimFile {
    pub(super) fn open(disk: SimDisk, state: &mut State, id: u64) -> Arc<dyn DiskFile> {
        *state.process.open.entry(id).or_default() += 1;
        let (len, era) = (state.image(id).len, state.era);
        Arc::new(Self { disk, id, len, era })
    }

    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.era == self.era { Ok(state) } else { Err(io::Error::other("the power went")) }
    }

    /// Does something that loses the dirty bytes of its range when it fails.
    fn durably(
        &self,
        op: Op,
        range: Range<u64>,
        act: impl FnOnce(&mut State, Range<u64>),
    ) -> io::Result<()> {
        let met = self.disk.meet(op);
        let mut state = self.state()?;
        match met {
            Ok(_) => act(&mut state, range),
            // As an operating system does it: a failure is told once, and what could not be kept
            // counts as clean from then on.
            Err(_) => state.image_mut(self.id).lose(range),
        }
        met.map(drop)
    }

    /// The bytes must not change under who holds them. Recovery writes the same bytes again, also
    /// beside readers of an earlier life of its log in the process.
    fn check_held(&self, state: &State, position: u64, bytes: &[u8]) {
        let end = position + bytes.len() as u64;
        let shared = state.process.shared.get(&self.id);
        for held in shared.into_iter().flat_map(Shared::held) {
            let (from, to) = (held.start.max(position), held.end.min(end));
            if from >= to {
                continue;
            }
            let mut now = vec![0; (to - from) as usize];
            let read = state.image(self.id).read(from, &mut now);
            let same = now == bytes[(from - position) as usize..(to - position) as usize];
            assert!(
                read.is_err() || same,
                "{position}..{end} is stored to while somebody holds {held:?} of the file",
            );
        }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Ok(mut state) = self.state() {
            state.close(self.id);
        }
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.meet(Op::Read)?;
        self.state()?.image(self.id).read(position, into)
    }

    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let effect = self.disk.meet(Op::Write)?;
        let mut state = self.state()?;
        let (position, stored, outcome) = match effect {
            Some(Effect::Tears(kind, stored)) => {
                (position, &bytes[..stored.min(bytes.len())], Err(kind.into()))
            }
            Some(Effect::Lands(pages)) => (position + pages * PAGE_BYTES as u64, bytes, Ok(())),
            _ => (position, bytes, Ok(())),
        };
        state.image(self.id).check(position, stored.len())?;
        if effect.is_none() {
            self.check_held(&state, position, stored);
        }
        let stamp = state.next_stamp();
        state.image_mut(self.id).write(position, stored, stamp)?;
        outcome
    }

    fn flush(&self, range: Range<u64>) -> io::Result<()> {
        self.durably(Op::Flush, range, |state, range| {
            state.image_mut(self.id).flush(range);
            state.flush_device();
        })
    }

    fn hand_over(&self, range: Range<u64>) -> io::Result<()> {
        self.durably(Op::HandOver, range, |state, range| {
            state.image_mut(self.id).hand_over(range);
        })
    }

    fn handed_over(&self, range: Range<u64>) -> io::Result<Option<DeviceId>> {
        self.durably(Op::HandedOver, range, |state, range| {
            state.image_mut(self.id).handed_over(range);
        })?;
        Ok(Some(DEVICE))
    }

    fn prepare(&self, range: Range<u64>) -> io::Result<()> {
        self.disk.meet(Op::Prepare)?;
        self.state()?.image(self.id).check_in_memory(&range)
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.disk.meet(Op::Share)?;
        let mut state = self.state()?;
        let readable = state.image(self.id).check_in_memory(&range);
        assert!(readable.is_ok(), "SIGBUS: {range:?} is shared and was not read in before");
        let mut copy = vec![0; (range.end - range.start) as usize];
        state.image(self.id).read(range.start, &mut copy)?;
        let life = state.process.shared.entry(self.id).or_default().add(range);
        Ok(Bytes::from_owner(Slice { copy, _life: life }))
    }

    fn is_held(&self) -> bool {
        let Ok(state) = self.state() else { return false };
        let shared = state.process.shared.get(&self.id);
        state.process.open[&self.id] > 1
            || shared.is_some_and(|shared| shared.held().next().is_some())
    }

    fn read_device(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.meet(Op::Read)?;
        self.state()?.image(self.id).read_device(position, into)
    }
}
