//! Processes that must not outlive a measurement.
//!
//! Owns: the list of those that run, and their end when the measurement is stopped from outside.
//! Never: signals a process that it did not start: one is listed from its start until its end was
//! waited for, so its number cannot be another's.

use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::io;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

static RUNNING: Mutex<BTreeMap<u32, Pid>> = Mutex::new(BTreeMap::new());

fn running() -> MutexGuard<'static, BTreeMap<u32, Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends all of them at once, for a program that is about to exit. No other can start afterwards.
pub(crate) fn kill_all() {
    let running = running();
    for pid in running.values() {
        // One that has ended by itself is still listed, and nothing is lost.
        let _ = kill_process(*pid, Signal::KILL);
    }
    // Whoever starts or waits for one has to be kept from it until this process is gone.
    std::mem::forget(running);
}

/// A process; killed on drop.
pub(super) struct Process {
    child: Child,
    pid: Pid,
}

impl Process {
    /// Starts it; what it prints is the second.
    pub(super) fn start(command: &mut Command) -> io::Result<(Self, ChildStdout)> {
        let mut running = running();
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().expect("it was asked for");
        let pid = Pid::from_child(&child);
        running.insert(child.id(), pid);
        Ok((Self { child, pid }, stdout))
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// Whether it has ended; it is not listed any more then.
    pub(super) fn has_ended(&mut self) -> io::Result<bool> {
        let mut running = running();
        let ended = self.child.try_wait()?.is_some();
        if ended {
            running.remove(&self.child.id());
        }
        Ok(ended)
    }

    /// Kills it, and waits until it is gone.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        let mut running = running();
        self.child.kill()?;
        self.child.wait()?;
        running.remove(&self.child.id());
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
