//! What a disk was told to do wrong, and when.
//!
//! Owns: the planned faults, how often each operation was called, and when the machine stops.
//! Never: decides by chance.

use std::io;

/// What can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// [`weir_storage::Disk::create`].
    Create,
    /// [`weir_storage::Disk::open`].
    Open,
    /// [`weir_storage::Disk::list`].
    List,
    /// [`weir_storage::Disk::rename`].
    Rename,
    /// [`weir_storage::Disk::remove`] and [`weir_storage::Disk::remove_dir`].
    Remove,
    /// [`weir_storage::Disk::sync_dir`].
    SyncDir,
    /// [`weir_storage::DiskFile::write_at`].
    Write,
    /// [`weir_storage::DiskFile::flush`].
    Flush,
    /// [`weir_storage::DiskFile::hand_over`].
    HandOver,
    /// [`weir_storage::DiskFile::handed_over`].
    HandedOver,
    /// [`weir_storage::DiskFile::read_at`] and [`weir_storage::DiskFile::read_device`].
    Read,
    /// [`weir_storage::DiskFile::prepare`].
    Prepare,
    /// [`weir_storage::DiskFile::bytes`].
    Share,
}

impl Op {
    /// Every one, in the order of their numbers.
    const ALL: [Self; 13] = [
        Self::Create,
        Self::Open,
        Self::List,
        Self::Rename,
        Self::Remove,
        Self::SyncDir,
        Self::Write,
        Self::Flush,
        Self::HandOver,
        Self::HandedOver,
        Self::Read,
        Self::Prepare,
        Self::Share,
    ];

    /// Whether a machine that stops before it leaves something else than one that stops behind it.
    pub(super) fn is_change(self) -> bool {
        use Op::{Create, Flush, Remove, Rename, SyncDir, Write};
        matches!(self, Create | Rename | Remove | SyncDir | Write | Flush)
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Fails(io::ErrorKind),
    /// Fails with this number of the operating system.
    FailsWith(i32),
    /// Stores so many bytes, then fails.
    Tears(io::ErrorKind, usize),
    /// Says that all is well, and stores so many pages further on.
    Lands(u64),
}

#[derive(Debug)]
struct Fault {
    op: Op,
    effect: Effect,
    /// Calls that still pass.
    skip: usize,
    /// Calls that go wrong then.
    times: usize,
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    planned: Vec<Fault>,
    calls: [usize; Op::ALL.len()],
    /// Changes that still pass before the machine stops.
    changes_left: Option<usize>,
}

impl Faults {
    pub(super) fn plan(&mut self, op: Op, effect: Effect, skip: usize, times: usize) {
        self.planned.push(Fault { op, effect, skip, times });
    }

    pub(super) fn stop_behind(&mut self, changes: usize) {
        self.changes_left = Some(changes);
    }

    pub(super) fn go_on(&mut self) {
        self.changes_left = None;
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.changes_left == Some(0)
    }

    pub(super) fn calls(&self, op: Op) -> usize {
        self.calls[op as usize]
    }

    pub(super) fn changes(&self) -> usize {
        Op::ALL.iter().filter(|op| op.is_change()).map(|op| self.calls(*op)).sum()
    }

    /// The machine starts again: what was planned for it is over.
    pub(super) fn clear(&mut self) {
        self.planned.clear();
        self.changes_left = None;
    }

    /// The counts alone.
    pub(super) fn counts(&self) -> Self {
        Self { calls: self.calls, ..Self::default() }
    }

    pub(super) fn meet(&mut self, op: Op) -> io::Result<Option<Effect>> {
        self.calls[op as usize] += 1;
        if op.is_change() {
            match &mut self.changes_left {
                Some(0) => return Err(io::Error::other("the machine stopped")),
                Some(left) => *left -= 1,
                None => {}
            }
        }
        for fault in self.planned.iter_mut().filter(|fault| fault.op == op) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                return match fault.effect {
                    Effect::Fails(kind) => Err(kind.into()),
                    Effect::FailsWith(number) => Err(io::Error::from_raw_os_error(number)),
                    effect => Ok(Some(effect)),
                };
            }
        }
        Ok(None)
    }
}
