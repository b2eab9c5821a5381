//! One connection that is open, whatever its lane and side.
//!
//! Owns: the socket, its heartbeat and its end.
//! Never: knows what a frame is for: a [`Talk`] does.
//! Invariants:
//! - one task serves both halves and never waits for anything but the socket, its talk and its
//!   timer, so that neither half can hold up the other;
//! - what waits to be written is bounded: the talk is asked for the next frame only while less than
//!   [`WRITE_BYTES_TARGET`] waits;
//! - who is silent for [`PEER_DEAD_AFTER_MS`] is gone.

use super::card::Card;
use super::reader::{Admission, Reader};
use crate::budget::Draft;
use crate::connection::write::Writer;
use crate::seams::Stream;
use bytes::BytesMut;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::{Duration, Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use weir_protocol::codec::DecodeError;
use weir_protocol::peer::limits::{PEER_DEAD_AFTER_MS, PEER_GOAWAY_MS_MAX, PEER_HEARTBEAT_MS};
use weir_protocol::peer::{Lane, PeerFrame, PeerGoAway, PeerHead, PeerRefusal, Side};

/// Bytes that are gathered for one write; a frame beyond is taken once these are written.
const WRITE_BYTES_TARGET: usize = 256 << 10;
/// Turns of writing and reading before the task lets others run.
const STEPS_PER_TURN_MAX: usize = 16;
const HEARTBEAT: Duration = Duration::from_millis(PEER_HEARTBEAT_MS as u64);
const DEAD_AFTER: Duration = Duration::from_millis(PEER_DEAD_AFTER_MS as u64);
const LEAVING_MAX: Duration = Duration::from_millis(PEER_GOAWAY_MS_MAX as u64);

/// What ends a link from this side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) refusal: PeerRefusal,
    pub(super) text: String,
}

impl From<PeerRefusal> for Failure {
    fn from(refusal: PeerRefusal) -> Self {
        Self { refusal, text: refusal.to_string() }
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        Self { refusal: PeerRefusal::Malformed, text: error.to_string() }
    }
}

/// The other end did what it may not.
pub(super) fn malformed(text: impl Into<String>) -> Failure {
    Failure { refusal: PeerRefusal::Malformed, text: text.into() }
}

/// Why a link ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum End {
    #[error("the peer closed the connection, or it broke")]
    Broken,
    #[error("the peer was silent for {PEER_DEAD_AFTER_MS} ms")]
    Dead,
    #[error("{} ({})", .0.refusal, .0.text)]
    Refused(Failure),
    #[error("the peer ended it: {} ({})", .0.refusal, .0.text)]
    RefusedByPeer(Failure),
    #[error("one of both is shutting down")]
    Left,
}

impl End {
    /// Whether people want to read of it, where this broker is `side` of `lane`. An orderly end is
    /// none of their business. Of a connection that is gone, one of the four that two brokers have
    /// tells for all; connections for one question end so every time.
    pub(super) fn is_news(&self, side: Side, lane: Lane) -> bool {
        match self {
            Self::Left => false,
            Self::Broken | Self::Dead => (side, lane) == (Side::Dialer, Lane::Control),
            Self::Refused(_) | Self::RefusedByPeer(_) => true,
        }
    }
}

/// What one side of one lane says and hears.
pub(super) trait Talk: Send {
    /// Whether this frame may be held.
    fn admit(&mut self, head: &PeerHead) -> Result<Admission, Failure>;

    /// Takes a frame that the other side may send on this lane.
    fn on_frame(
        &mut self,
        frame: PeerFrame,
        draft: Option<Draft>,
        now: Instant,
    ) -> Result<(), Failure>;

    /// The next frame to write. Pending: whatever brings one wakes the task.
    fn poll_frame(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<PeerFrame>;

    /// When [`Talk::poll_frame`] has to be asked anew, if nothing else happens.
    fn deadline(&self) -> Option<Instant>;

    /// No new questions.
    fn leave(&mut self) {}

    /// Whether nothing is owed to either side.
    fn is_quiet(&self) -> bool;
}

/// One open connection.
pub(super) struct Link<T> {
    socket: Box<dyn Stream>,
    reader: Reader,
    writer: Writer,
    talk: T,
    /// What the other end is, and of which lane.
    peer: (Side, Lane),
    card: Arc<Card>,
    leave: Pin<Box<WaitForCancellationFutureOwned>>,
    /// When a link that is being left is over.
    leaving: Option<Instant>,
    heard: Instant,
    spoke: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<T: Talk> Link<T> {
    /// A link over a socket whose handshake is through; `rest` is what came behind it.
    pub(super) fn new(
        (socket, rest): (Box<dyn Stream>, BytesMut),
        peer: (Side, Lane),
        talk: T,
        card: Arc<Card>,
        leave: CancellationToken,
    ) -> Self {
        let now = Instant::now();
        Self {
            socket,
            reader: Reader::new(rest),
            writer: Writer::default(),
            talk,
            peer,
            card,
            leave: Box::pin(leave.cancelled_owned()),
            leaving: None,
            heard: now,
            spoke: now,
            timer: Box::pin(tokio::time::sleep_until(now)),
        }
    }

    /// Carries frames until the link ends, and says why it did.
    pub(super) async fn run(mut self) -> End {
        let end = poll_fn(|cx| self.poll(cx)).await;
        if let End::Refused(Failure { refusal, text }) = &end {
            let go_away = PeerGoAway { refusal: *refusal, deadline_ms: 0, text: text.clone() };
            self.writer.push_peer(&PeerFrame::GoAway(go_away));
            // A courtesy: who does not read now finds the connection closed.
            let said = poll_fn(|cx| {
                Poll::Ready(self.writer.poll_flush(cx, &mut *self.socket, Instant::now()))
            });
            let _ = said.await;
        }
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.leaving.is_none() && self.leave.as_mut().poll(cx).is_ready() {
            self.start_leaving();
        }
        for _ in 0..STEPS_PER_TURN_MAX {
            let now = Instant::now();
            let stepped = self.poll_write(cx, now).and_then(|wrote| {
                let read = self.poll_read(cx, now)?;
                Ok(wrote || read)
            });
            match stepped {
                Err(end) => return Poll::Ready(end),
                Ok(true) => {}
                Ok(false) => return self.poll_clock(cx, now),
            }
        }
        // Others run before this link goes on.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes what is to be said next and writes. Says whether there may be more.
    fn poll_write(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let mut all = false;
        while self.writer.len() < WRITE_BYTES_TARGET {
            match self.talk.poll_frame(cx, now) {
                Poll::Ready(frame) => self.writer.push_peer(&frame),
                Poll::Pending => {
                    all = true;
                    break;
                }
            }
        }
        let before = self.writer.written();
        let flushed = self.writer.poll_flush(cx, &mut *self.socket, now);
        if self.writer.written() > before {
            self.spoke = now;
            self.card.written(self.writer.written());
        }
        match flushed {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(_)) => Err(End::Broken),
            Poll::Ready(Ok(())) => Ok(!all),
        }
    }

    /// Reads once and hands on what arrived. Says whether there may be more.
    fn poll_read(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        // What came behind the handshake is first.
        self.hear(now)?;
        match self.reader.poll_fill(cx, &mut *self.socket) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) if self.leaving.is_some() => Err(End::Left),
            Poll::Ready(Ok(0) | Err(_)) => Err(End::Broken),
            Poll::Ready(Ok(count)) => {
                self.heard = now;
                self.card.read(count);
                self.hear(now)?;
                Ok(true)
            }
        }
    }

    fn hear(&mut self, now: Instant) -> Result<(), End> {
        let (side, lane) = self.peer;
        loop {
            let talk = &mut self.talk;
            let read = self.reader.next(|head| talk.admit(head)).map_err(End::Refused)?;
            let Some((frame, draft)) = read else { return Ok(()) };
            if !frame.is_sent_by(side, lane) {
                return Err(End::Refused(malformed("the frame is not of this side or lane")));
            }
            match frame {
                PeerFrame::Heartbeat => {}
                PeerFrame::GoAway(go_away) => self.on_go_away(go_away, now)?,
                frame => self.talk.on_frame(frame, draft, now).map_err(End::Refused)?,
            }
        }
    }

    fn on_go_away(&mut self, go_away: PeerGoAway, now: Instant) -> Result<(), End> {
        let PeerGoAway { refusal, deadline_ms, text } = go_away;
        if deadline_ms == 0 {
            return Err(End::RefusedByPeer(Failure { refusal, text }));
        }
        let within = Duration::from_millis(u64::from(deadline_ms)).min(LEAVING_MAX);
        self.talk.leave();
        self.leaving.get_or_insert(now + within);
        Ok(())
    }

    fn start_leaving(&mut self) {
        let refusal = PeerRefusal::Draining;
        let go_away =
            PeerGoAway { refusal, deadline_ms: PEER_GOAWAY_MS_MAX, text: refusal.to_string() };
        self.writer.push_peer(&PeerFrame::GoAway(go_away));
        self.talk.leave();
        self.leaving = Some(Instant::now() + LEAVING_MAX);
    }

    /// Acts on deadlines that have passed, and sleeps until the next.
    fn poll_clock(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<End> {
        let quiet = self.writer.is_empty() && self.talk.is_quiet();
        if self.leaving.is_some_and(|deadline| quiet || now >= deadline) {
            return Poll::Ready(End::Left);
        }
        if now >= self.heard + DEAD_AFTER || self.writer.deadline().is_some_and(|at| now >= at) {
            return Poll::Ready(End::Dead);
        }
        let mut next = self.heard + DEAD_AFTER;
        if self.writer.is_empty() {
            if now >= self.spoke + HEARTBEAT {
                self.writer.push_peer(&PeerFrame::Heartbeat);
                cx.waker().wake_by_ref();
            } else {
                next = next.min(self.spoke + HEARTBEAT);
            }
        }
        // Who takes nothing off the socket has nothing written in time.
        let asked = self.talk.deadline().filter(|_| self.writer.len() < WRITE_BYTES_TARGET);
        let others = [asked, self.leaving, self.writer.deadline()];
        next = others.into_iter().flatten().fold(next, Instant::min);
        if self.timer.deadline() != next || self.timer.is_elapsed() {
            self.timer.as_mut().reset(next);
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_all_connections_with_a_broker_that_is_gone_one_tells_so() {
        let places = [
            (Side::Dialer, Lane::Control),
            (Side::Dialer, Lane::Bulk),
            (Side::Acceptor, Lane::Control),
            (Side::Acceptor, Lane::Bulk),
        ];
        let news =
            |end: End| places.iter().filter(|(side, lane)| end.is_news(*side, *lane)).count();
        let failure = Failure::from(PeerRefusal::Overloaded);
        assert_eq!([End::Left, End::Broken, End::Dead].map(news), [0, 1, 1]);
        assert_eq!([End::Refused(failure.clone()), End::RefusedByPeer(failure)].map(news), [4, 4]);
    }
}
