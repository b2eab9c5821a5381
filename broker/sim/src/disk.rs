//! A disk that loses what was not flushed, fails when it is told to, and can be damaged.
//!
//! Owns: two images of every file, durable and volatile, by pages of 4 KiB; names that are durable
//! and names that are not; a device with a cache.
//! Never: more durable than it was told: `flush(range)` promotes exactly that range, and a name
//! only `sync_dir`. A kernel may do more; code that needs more is wrong.
//! Invariant: what happens follows from what was asked for alone, seeds included.

mod cut;
mod damage;
mod faults;
mod file;
mod image;
mod names;
mod page;
mod state;

pub use cut::Cut;
pub use damage::Damage;
pub use faults::Op;

use faults::{Effect, Faults};
use file::SimFile;
use image::Image;
use state::State;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weir_storage::{Disk, DiskFile, DiskLock};

/// The disk of one simulated machine. Cheap to clone, which names the same disk again.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Machine>);

#[derive(Debug)]
struct Machine {
    state: Mutex<State>,
    faults: Mutex<Faults>,
    /// The disk before each change since it was asked for.
    recorded: Mutex<Option<Vec<SimDisk>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::of(State::empty())
    }

    fn of(state: State) -> Self {
        let (state, faults) = (Mutex::new(state), Mutex::default());
        Self(Arc::new(Machine { state, faults, recorded: Mutex::default() }))
    }

    /// Goes on counting where another disk is.
    fn counting_as(self, other: &Self) -> Self {
        *self.faults() = other.faults().counts();
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.0.faults)
    }

    /// Another disk in the same state, dirty pages and pending names included. Nobody has anything
    /// open on it, and no fault is planned for it.
    pub fn fork(&self) -> Self {
        let state = self.state().clone();
        Self::of(state).counting_as(self)
    }

    /// Another disk with what this one shows, all of it durable.
    pub fn copy(&self) -> Self {
        let copy = Self::new().counting_as(self);
        let state = self.state();
        for (path, id) in state.names.files() {
            copy.put(path, &state.image(id).read_all());
        }
        drop(state);
        copy
    }

    /// Puts a file there, durably, instead of one that there may be.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state();
        let id = state.add(Image::of(bytes));
        state.names.place(path, id);
    }

    /// What a file shows.
    pub fn bytes_of(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        let id = state.names.file(path).expect("the file is there");
        state.image(id).read_all()
    }

    /// Paths that end so, sorted.
    pub fn paths(&self, end: &str) -> Vec<PathBuf> {
        let state = self.state();
        let paths = state.names.files().map(|(path, _)| path.to_owned());
        paths.filter(|path| path.to_string_lossy().ends_with(end)).collect()
    }

    /// The `times` calls of `op` behind the next `skip` fail. A flush that fails loses what it was
    /// to keep, and the next one says that all is well.
    pub fn fail(&self, op: Op, kind: io::ErrorKind, skip: usize, times: usize) {
        self.faults().plan(op, Effect::Fails(kind), skip, times);
    }

    /// The next `times` calls of `op` fail with a number of the operating system.
    pub fn fail_with(&self, op: Op, number: i32, times: usize) {
        self.faults().plan(op, Effect::FailsWith(number), 0, times);
    }

    /// The write behind the next `skip` stores `bytes` of what it was given, then fails.
    pub fn tear_write(&self, bytes: usize, kind: io::ErrorKind, skip: usize) {
        self.faults().plan(Op::Write, Effect::Tears(kind, bytes), skip, 1);
    }

    /// The write behind the next `skip` lands so many pages further on.
    pub fn misdirect_write(&self, pages: u64, skip: usize) {
        self.faults().plan(Op::Write, Effect::Lands(pages), skip, 1);
    }

    /// How often `op` was called.
    pub fn calls(&self, op: Op) -> usize {
        self.faults().calls(op)
    }

    /// How often anything was changed that a power cut may show.
    pub fn changes(&self) -> usize {
        self.faults().changes()
    }

    /// Flushes of files and folders so far.
    pub fn flushes(&self) -> u64 {
        (self.calls(Op::Flush) + self.calls(Op::SyncDir)) as u64
    }

    /// The machine stops behind so many changes more: every later one fails.
    pub fn stop_behind(&self, changes: usize) {
        self.faults().stop_behind(changes);
    }

    /// Ends [`SimDisk::stop_behind`]: other faults that are planned stay.
    pub fn go_on(&self) {
        self.faults().go_on();
    }

    /// Whether the machine stopped.
    pub fn is_stopped(&self) -> bool {
        self.faults().is_stopped()
    }

    /// From now on the disk has room for so many bytes besides what it holds.
    pub fn leave_room(&self, bytes: u64) {
        let mut state = self.state();
        state.capacity = state.used() + bytes;
    }

    /// From now on a fork is kept of the disk before each of its changes.
    pub fn record(&self) {
        *lock(&self.0.recorded) = Some(Vec::new());
    }

    /// The forks that were kept since this was asked for last, in their order.
    pub fn recorded(&self) -> Vec<SimDisk> {
        lock(&self.0.recorded).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// How many pages and changes of names a power cut could take now.
    pub fn loose(&self) -> usize {
        self.state().loose().len()
    }

    /// The power goes and comes back. Every file that is open is gone, and so are the faults that
    /// were planned.
    pub fn cut_power(&self, cut: Cut) {
        self.state().crash(cut);
        self.faults().clear();
    }

    fn meet(&self, op: Op) -> io::Result<Option<Effect>> {
        if let Some(recorded) = lock(&self.0.recorded).as_mut().filter(|_| op.is_change()) {
            recorded.push(self.fork());
        }
        self.faults().meet(op)
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let stamp = state.next_stamp();
        state.names.create_dir(path, stamp);
        Ok(())
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.meet(Op::Create)?;
        let mut state = self.state();
        state.names.check_free(path)?;
        if state.used() + bytes > state.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let id = state.add(Image::of_zeros(bytes));
        let stamp = state.next_stamp();
        state.names.create(path, id, stamp);
        Ok(SimFile::open(self.clone(), &mut state, id))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.meet(Op::Open)?;
        let mut state = self.state();
        let id = state.names.file(path)?;
        Ok(SimFile::open(self.clone(), &mut state, id))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.meet(Op::List)?;
        self.state().names.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.meet(Op::Rename)?;
        let mut state = self.state();
        let (id, stamp) = (state.names.file(from)?, state.next_stamp());
        state.names.rename(from, to, stamp)?;
        state.image_mut(id).named();
        state.drop_unnamed();
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.meet(Op::Remove)?;
        let mut state = self.state();
        let stamp = state.next_stamp();
        state.names.remove(path, stamp)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.meet(Op::Remove)?;
        let mut state = self.state();
        let stamp = state.next_stamp();
        state.names.remove_dir(path, stamp)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.meet(Op::SyncDir)?;
        let mut state = self.state();
        state.names.sync_dir(path)?;
        state.drop_unnamed();
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = self.state();
        Ok(state.capacity.saturating_sub(state.used()))
    }

    fn lock(&self, _path: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        let mut state = self.state();
        if std::mem::replace(&mut state.process.locked, true) {
            return Ok(None);
        }
        Ok(Some(Box::new(SimLock { disk: self.clone(), era: state.era })))
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    era: u64,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.era == self.era {
            state.process.locked = false;
        }
    }
}
