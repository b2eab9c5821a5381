//! Questions with one answer each.
//!
//! Owns: which questions wait, to be sent or for their answer.
//! Never: asks twice; keeps a question that nobody waits for.
//! Invariant: at most [`CALLS_MAX`] questions wait at one time, and each for as long as its asker
//! said; when the link goes, all of them are broken.

use crate::replication::PeerLost;
use futures_util::task::AtomicWaker;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Context;
use tokio::sync::oneshot;
use tokio::time::Duration;
use weir_protocol::peer::{PeerFrame, PeerRefusal};
use weir_protocol::types::RequestId;

/// Questions to one broker on one lane at a time.
pub(super) const CALLS_MAX: usize = 1_024;

/// The questions to one broker on one lane.
#[derive(Default)]
pub(super) struct Calls {
    state: Mutex<State>,
    link: AtomicWaker,
}

#[derive(Default)]
struct State {
    /// A link stands and takes questions.
    open: bool,
    last: u32,
    waiting: BTreeMap<RequestId, oneshot::Sender<PeerFrame>>,
    queue: VecDeque<(RequestId, PeerFrame)>,
}

impl Calls {
    /// A link stands.
    pub(super) fn open(&self) {
        self.state().open = true;
    }

    /// The link takes no more questions.
    pub(super) fn leave(&self) {
        self.state().open = false;
    }

    /// The link is gone.
    pub(super) fn close(&self) {
        let mut state = self.state();
        let last = state.last;
        *state = State { last, ..State::default() };
    }

    /// Has the link look for what else there is to send.
    pub(super) fn wake(&self) {
        self.link.wake();
    }

    /// Asks, and waits for the answer at most so long.
    pub(super) async fn call(
        &self,
        within: Duration,
        make: impl FnOnce(RequestId) -> PeerFrame,
    ) -> Result<PeerFrame, PeerLost> {
        let (request, answer) = self.begin(make)?;
        let _place = Place { calls: self, request };
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(frame)) => Ok(frame),
            Ok(Err(_)) | Err(_) => Err(PeerLost::Broken),
        }
    }

    fn begin(
        &self,
        make: impl FnOnce(RequestId) -> PeerFrame,
    ) -> Result<(RequestId, oneshot::Receiver<PeerFrame>), PeerLost> {
        let (sender, answer) = oneshot::channel();
        let mut state = self.state();
        if !state.open {
            return Err(PeerLost::Unreachable);
        }
        if state.waiting.len() >= CALLS_MAX {
            return Err(PeerLost::Refused(PeerRefusal::Overloaded));
        }
        state.last = state.last.wrapping_add(1);
        let request = RequestId(state.last);
        state.waiting.insert(request, sender);
        state.queue.push_back((request, make(request)));
        drop(state);
        self.link.wake();
        Ok((request, answer))
    }

    /// The next question to send.
    pub(super) fn next(&self, cx: &Context<'_>) -> Option<PeerFrame> {
        self.link.register(cx.waker());
        self.state().queue.pop_front().map(|(_, frame)| frame)
    }

    /// An answer has come. One that nobody waits for any more is dropped.
    pub(super) fn answer(&self, request: RequestId, frame: PeerFrame) {
        if let Some(asker) = self.state().waiting.remove(&request) {
            let _ = asker.send(frame);
        }
    }

    /// Whether nobody waits.
    pub(super) fn is_quiet(&self) -> bool {
        self.state().waiting.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that somebody waits for.
struct Place<'a> {
    calls: &'a Calls,
    request: RequestId,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.calls.state();
        if state.waiting.remove(&self.request).is_some() {
            state.queue.retain(|(request, _)| *request != self.request);
        }
    }
}
