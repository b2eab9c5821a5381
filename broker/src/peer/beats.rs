//! Beats on their way out, and the answers to them on their way back.
//!
//! Owns: one register for each address: its newest beat, and who waits for its answer.
//! Never: sends a beat twice; keeps one that nobody waits for.
//! Invariants: a newer beat takes the place of an older one, sent or not; at most
//! [`BEATS_WAITING_MAX`] addresses have one.

use crate::planted::{Bug, is_planted};
use crate::replication::PeerLost;
use futures_util::task::AtomicWaker;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Context;
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};
use weir_protocol::peer::limits::BEATS_MAX;
use weir_protocol::peer::{AppendResult, Beat, Beaten, Beats, GroupAddress, PeerRefusal};

/// Beats, or answers to them, of one link leave together if they come within this time.
pub(super) const BEATS_GATHER: Duration = Duration::from_millis(5);
/// Addresses of one link whose beats wait, to be sent or for their answers.
pub(super) const BEATS_WAITING_MAX: usize = 16 * BEATS_MAX;

/// The registers of the beats to one broker.
#[derive(Default)]
pub(super) struct BeatsOut {
    state: Mutex<State>,
    link: AtomicWaker,
}

#[derive(Default)]
struct State {
    registers: BTreeMap<GroupAddress, Register>,
    /// Registers that were not sent yet.
    unsent: BTreeSet<GroupAddress>,
    /// From when on the next frame may leave, while a link stands.
    open_from: Option<Instant>,
    round: u32,
    tickets: u64,
}

struct Register {
    ticket: u64,
    beat: Beat,
    /// The frame it left in; 0 = none yet.
    round: u32,
    answer: oneshot::Sender<AppendResult>,
}

impl State {
    /// When what waits may leave: at once if nothing has left for a while.
    fn due(&self) -> Option<Instant> {
        self.open_from.filter(|_| !self.unsent.is_empty())
    }
}

impl BeatsOut {
    /// A link stands.
    pub(super) fn open(&self) {
        self.state().open_from = Some(Instant::now());
    }

    /// The link takes no more.
    pub(super) fn leave(&self) {
        self.state().open_from = None;
    }

    /// The link is gone, and with it what was under way.
    pub(super) fn close(&self) {
        let mut state = self.state();
        let tickets = state.tickets;
        *state = State { tickets, ..State::default() };
    }

    /// Says a beat, and waits for its answer at most so long.
    pub(super) async fn beat(
        &self,
        beat: Beat,
        within: Duration,
    ) -> Result<AppendResult, PeerLost> {
        let (place, answer) = self.set(beat)?;
        let answered = tokio::time::timeout(within, answer).await;
        drop(place);
        match answered {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) | Err(_) => Err(PeerLost::Broken),
        }
    }

    fn set(&self, beat: Beat) -> Result<(Place<'_>, oneshot::Receiver<AppendResult>), PeerLost> {
        let (sender, answer) = oneshot::channel();
        let mut state = self.state();
        if state.open_from.is_none() {
            return Err(PeerLost::Unreachable);
        }
        let address = beat.address;
        if state.registers.len() >= BEATS_WAITING_MAX && !state.registers.contains_key(&address) {
            return Err(PeerLost::Refused(PeerRefusal::Overloaded));
        }
        state.tickets += 1;
        let ticket = state.tickets;
        state.registers.insert(address, Register { ticket, beat, round: 0, answer: sender });
        let first = state.unsent.is_empty();
        state.unsent.insert(address);
        drop(state);
        if first {
            self.link.wake();
        }
        Ok((Place { beats: self, address, ticket }, answer))
    }

    /// The next frame, if it is time.
    pub(super) fn next(&self, cx: &Context<'_>, now: Instant) -> Option<Beats> {
        self.link.register(cx.waker());
        let mut guard = self.state();
        let state = &mut *guard;
        state.due().filter(|due| *due <= now)?;
        // 0 stands for none, also when the number has gone round.
        state.round = state.round.wrapping_add(1).max(1);
        let mut beats = Vec::new();
        while beats.len() < BEATS_MAX
            && let Some(address) = state.unsent.pop_first()
        {
            if let Some(register) = state.registers.get_mut(&address) {
                register.round = state.round;
                beats.push(register.beat);
            }
        }
        if state.unsent.is_empty() {
            state.open_from = Some(now + BEATS_GATHER);
        }
        Some(Beats { round: state.round, beats })
    }

    /// When there is something to send.
    pub(super) fn due(&self) -> Option<Instant> {
        self.state().due()
    }

    /// An answer has come. One to an older beat than the newest is nobody's any more.
    pub(super) fn beaten(&self, beaten: &Beaten) {
        let mut state = self.state();
        let any = is_planted(Bug::OldAnswerCounts);
        let fits =
            |register: &Register| register.round != 0 && (any || register.round == beaten.round);
        if state.registers.get(&beaten.address).is_some_and(fits)
            && let Some(register) = state.registers.remove(&beaten.address)
        {
            let _ = register.answer.send(beaten.result);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A beat whose answer somebody waits for.
struct Place<'a> {
    beats: &'a BeatsOut,
    address: GroupAddress,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.beats.state();
        if state.registers.get(&self.address).is_some_and(|register| register.ticket == self.ticket)
        {
            state.registers.remove(&self.address);
            state.unsent.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;
    use weir_protocol::peer::LogPlace;
    use weir_protocol::types::{ReplicaId, Term};

    #[tokio::test(start_paused = true)]
    async fn only_the_answer_to_the_newest_beat_is_one() {
        let (beats, context) = (BeatsOut::default(), Context::from_waker(Waker::noop()));
        let address = GroupAddress { to: ReplicaId(1), from: ReplicaId(2) };
        let place = LogPlace::default();
        let beat = |term| Beat { address, term: Term(term), matching: place, commit: place };
        let answer = |round| Beaten { address, round, result: AppendResult::Flushed(place) };
        beats.open();
        let _older = beats.set(beat(1)).unwrap();
        let first = beats.next(&context, Instant::now()).unwrap();
        tokio::time::sleep(BEATS_GATHER).await;
        let (_newer, mut heard) = beats.set(beat(2)).unwrap();
        let second = beats.next(&context, Instant::now()).unwrap();
        beats.beaten(&answer(first.round));
        assert!(heard.try_recv().is_err(), "that was the answer to another");
        beats.beaten(&answer(second.round));
        assert_eq!(heard.try_recv(), Ok(AppendResult::Flushed(place)));
    }
}
