//! One direction of one stream.
//!
//! Owns: what is under way, what has arrived and was not read, and how it ended.
//! Never: asks for the time: it is told when things arrive.
//! Invariants: parcels arrive in the order in which they were sent; no more than
//! [`WINDOW_BYTES`] are held.

use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::task::Waker;
use tokio::time::Instant;

/// Bytes that one direction holds, like a socket's buffers.
pub(super) const WINDOW_BYTES: usize = 256 << 10;

/// How the other side ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It sends no more.
    Shut,
    /// It neither sends nor reads any more.
    Gone,
    /// It broke the stream, or died.
    Reset,
}

#[derive(Debug)]
enum Parcel {
    Bytes(Bytes),
    End(End),
}

#[derive(Debug, Default)]
pub(super) struct Pipe {
    flying: VecDeque<(Instant, Parcel)>,
    arrived: VecDeque<Bytes>,
    /// In flight and arrived together.
    held_bytes: usize,
    /// What arrived behind all bytes.
    end: Option<End>,
    /// Its reader takes nothing any more, and what comes is dropped.
    abandoned: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

impl Pipe {
    /// Bytes that may be sent now.
    pub(super) fn room(&self) -> usize {
        if self.abandoned { WINDOW_BYTES } else { WINDOW_BYTES - self.held_bytes }
    }

    /// Sends what fits into [`Pipe::room`], to arrive at `at` or behind what was sent before.
    pub(super) fn send(&mut self, at: Instant, bytes: Bytes) {
        if !self.abandoned {
            self.held_bytes += bytes.len();
            self.put(at, Parcel::Bytes(bytes));
        }
    }

    /// Sends that nothing follows.
    pub(super) fn send_end(&mut self, at: Instant, end: End) {
        if !self.abandoned {
            self.put(at, Parcel::End(end));
        }
    }

    fn put(&mut self, at: Instant, parcel: Parcel) {
        let at = self.flying.back().map_or(at, |(before, _)| at.max(*before));
        self.flying.push_back((at, parcel));
        wake(&mut self.reader);
    }

    /// Takes in what has arrived by now.
    pub(super) fn settle(&mut self, now: Instant) {
        while self.flying.front().is_some_and(|(at, _)| *at <= now) {
            match self.flying.pop_front() {
                Some((_, Parcel::Bytes(bytes))) => self.arrived.push_back(bytes),
                Some((_, Parcel::End(end))) => self.end = Some(end),
                None => {}
            }
        }
    }

    /// When the next parcel arrives.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.flying.front().map(|(at, _)| *at)
    }

    /// How the other side ended, as far as that has arrived.
    pub(super) fn end(&self) -> Option<End> {
        self.end
    }

    /// Up to `bytes_max` of what has arrived.
    pub(super) fn take(&mut self, bytes_max: usize) -> Option<Bytes> {
        let front = self.arrived.front_mut()?;
        let taken = front.split_to(bytes_max.min(front.len()));
        if !front.has_remaining() {
            self.arrived.pop_front();
        }
        self.held_bytes -= taken.len();
        wake(&mut self.writer);
        Some(taken)
    }

    /// Its reader is gone.
    pub(super) fn abandon(&mut self) {
        self.flying.clear();
        self.arrived.clear();
        self.held_bytes = 0;
        self.abandoned = true;
        wake(&mut self.writer);
    }
}

pub(super) fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
