//! The segment behind the active one, made before it is needed.
//!
//! Owns: the spare that one log took out of the pool to roll into, and the jobs that make it.
//! Never: makes a spare twice: who needs one that is being made waits for it.
//! Invariant: `state` is locked for moments only, `making` as long as a spare takes; whoever wants
//! both locks `making` first.

use crate::device::Device;
use crate::executor::Lane;
use crate::limits::{CONTROL_RESERVE_BYTES, SEGMENT_HEADER_BYTES};
use crate::pool::Spare;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

enum State {
    None,
    Asked,
    Ready(Spare),
}

/// The next segment of one log.
pub(super) struct NextSegment {
    device: Arc<Device>,
    state: Mutex<State>,
    making: Mutex<()>,
}

impl NextSegment {
    pub(super) fn new(device: Arc<Device>) -> Arc<Self> {
        Arc::new(Self { device, state: Mutex::new(State::None), making: Mutex::new(()) })
    }

    /// Has the pool get a spare of `bytes`, for whoever needs it first.
    pub(super) fn announce(&self, bytes: u64) {
        let device = self.device.clone();
        let provide = move || {
            if let Err(error) = device.pool.provide(bytes) {
                tracing::warn!(%error, "a spare segment could not be made");
            }
        };
        self.device.executor().submit(Lane::Prepare, Box::new(provide));
    }

    /// Has a spare of `bytes` taken or made elsewhere, unless one is there or on its way. If it is asked for,
    /// `begun` is called, and `ended` later: with the bytes of batches that the spare takes, if it
    /// was made.
    pub(super) fn ask(
        self: &Arc<Self>,
        bytes: u64,
        begun: impl FnOnce(),
        ended: impl FnOnce(Option<u64>) + Send + 'static,
    ) {
        {
            let mut state = self.state();
            if !matches!(*state, State::None) {
                return;
            }
            *state = State::Asked;
            begun();
        }
        let next = self.clone();
        let make = move || next.make(bytes, ended);
        self.device.executor().submit(Lane::Prepare, Box::new(make));
    }

    fn make(&self, bytes: u64, ended: impl FnOnce(Option<u64>)) {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*self.state(), State::Asked) {
            return ended(None);
        }
        let made = self.device.pool.take(bytes).unwrap_or_else(|error| {
            tracing::warn!(%error, "a spare segment could not be made");
            None
        });
        let mut state = self.state();
        ended(made.as_ref().map(room_of));
        match (&*state, made) {
            (State::Asked, Some(spare)) => {
                *state = State::Ready(spare);
            }
            (State::Asked, None) => *state = State::None,
            // The log has gone meanwhile.
            (_, Some(spare)) => drop(self.device.pool.put_back(spare)),
            (_, None) => {}
        }
    }

    /// The spare, if it holds `needed` bytes, or a new one of `bytes`; none when the disk has no
    /// room for it. Waits for one that is being made.
    pub(super) fn take(&self, needed: u64, bytes: u64) -> io::Result<Option<Spare>> {
        let _made = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *self.state(), State::None) {
            State::Ready(spare) if spare.file.len() >= needed => return Ok(Some(spare)),
            State::Ready(spare) => self.device.pool.put_back(spare)?,
            State::Asked | State::None => {}
        }
        self.device.pool.take(bytes)
    }

    /// Tells `note` how many bytes of batches the spare takes; 0 while there is none. Nothing
    /// becomes ready meanwhile.
    pub(super) fn with_room(&self, note: impl FnOnce(u64)) {
        let state = self.state();
        note(match &*state {
            State::Ready(spare) => room_of(spare),
            State::Asked | State::None => 0,
        });
    }

    /// Gives the spare back, when the log is gone.
    pub(super) fn drop_spare(&self) {
        if let State::Ready(spare) = std::mem::replace(&mut *self.state(), State::None) {
            // A leftover is removed at the next start.
            let _ = self.device.pool.put_back(spare);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn room_of(spare: &Spare) -> u64 {
    spare.file.len() - SEGMENT_HEADER_BYTES - CONTROL_RESERVE_BYTES
}
