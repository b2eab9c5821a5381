//! The life of a connection: its phases, its deadlines and its last words.
//!
//! Owns: when a connection ends and why.
//! Never: waits longer than a deadline that stands here.

use super::Connection;
use crate::reply;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::{Duration, Instant, Sleep};
use weir_protocol::error_code::{Action, ErrorCode};
use weir_protocol::frame::{ErrorFrame, Frame, GoAway, Refusal};
use weir_protocol::limits::{DEAD_AFTER_MS, HANDSHAKE_MS_MAX, HEARTBEAT_MS};
use weir_protocol::types::RequestId;

/// A peer to which nothing was said for this long hears a HEARTBEAT.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(HEARTBEAT_MS as u64);
const DEAD_AFTER: Duration = Duration::from_millis(DEAD_AFTER_MS as u64);
const HANDSHAKE_MAX: Duration = Duration::from_millis(HANDSHAKE_MS_MAX as u64);
/// How long the last words may take to be read.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);
/// A connection that leaves is closed when nothing was owed or heard for this long.
const QUIET: Duration = Duration::from_millis(250);

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The peer closed it, with nothing left to say.
    Closed,
    /// The socket failed, or the peer closed it in the middle.
    Broken,
    /// The peer did something wrong, or nothing at all.
    Refused(ErrorCode),
    /// The broker shuts down.
    Drained,
}

impl End {
    /// The metric label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Broken => "broken",
            Self::Refused(code) => code.reason(),
            Self::Drained => "drained",
        }
    }
}

/// Where in its life a connection is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    /// HELLO is due.
    Hello,
    /// AUTH is due.
    Auth,
    /// Everything goes.
    Open,
    /// No new streams; what is owed is answered until then.
    Leaving(Instant),
    /// The last words are on their way; nothing is heard any more.
    Ending(End, Instant),
    /// That was it.
    Over(End),
}

impl Phase {
    pub(super) fn is_handshake(&self) -> bool {
        matches!(self, Self::Hello | Self::Auth)
    }

    /// Whether what the peer says is not listened to any more.
    pub(super) fn is_deaf(&self) -> bool {
        matches!(self, Self::Ending(..) | Self::Over(_))
    }

    /// What it means that the peer sends no more.
    pub(super) fn end_of_input(&self) -> End {
        match self {
            Self::Ending(end, _) | Self::Over(end) => *end,
            Self::Leaving(_) => End::Drained,
            Self::Hello | Self::Auth | Self::Open => End::Closed,
        }
    }
}

/// The deadlines that every connection has, and its one timer.
pub(super) struct Clock {
    began: Instant,
    heard: Instant,
    spoke: Instant,
    /// The timer fires at this time.
    armed: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Clock {
    pub(super) fn start() -> Self {
        let now = Instant::now();
        let armed = now + HANDSHAKE_MAX;
        let timer = Box::pin(tokio::time::sleep_until(armed));
        Self { began: now, heard: now, spoke: now, armed, timer }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    pub(super) fn spoke(&mut self, now: Instant) {
        self.spoke = now;
    }
}

impl Connection {
    /// Acts on deadlines that have passed, and sleeps until the next.
    ///
    /// Deadlines mostly move away while a connection is busy, so the timer is only set anew when
    /// it fires or when one comes nearer.
    pub(super) fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let next = self.next_deadline();
        if next < self.clock.armed {
            self.clock.armed = next;
            self.clock.timer.as_mut().reset(next);
        }
        while self.clock.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.on_time(now) {
                // Something is to be written, or the connection is over.
                cx.waker().wake_by_ref();
            }
            if let Phase::Over(end) = self.phase {
                return Poll::Ready(end);
            }
            let next = self.next_deadline();
            self.clock.armed = next;
            self.clock.timer.as_mut().reset(next);
        }
        Poll::Pending
    }

    fn next_deadline(&self) -> Instant {
        let silent = self.clock.heard + DEAD_AFTER;
        let beat = self.clock.spoke + self.heartbeat;
        let phase = match self.phase {
            Phase::Hello | Phase::Auth => self.clock.began + HANDSHAKE_MAX,
            Phase::Open => beat,
            Phase::Leaving(deadline) => {
                deadline.min(self.clock.heard.max(self.clock.spoke) + QUIET)
            }
            Phase::Ending(_, deadline) => return deadline,
            Phase::Over(_) => return self.clock.armed,
        };
        let halves = [self.reader.deadline(), self.writer.deadline()];
        // A peer that reads nothing is not told that the broker is alive.
        let phase =
            if self.writer.deadline().is_some() { phase.max(beat + DEAD_AFTER) } else { phase };
        halves.into_iter().flatten().fold(silent.min(phase), Instant::min)
    }

    /// Acts on what is due. Says whether something is to be written.
    fn on_time(&mut self, now: Instant) -> bool {
        if let Phase::Ending(end, deadline) = self.phase {
            if now >= deadline {
                self.phase = Phase::Over(end);
            }
            return false;
        }
        if self.writer.deadline().is_some_and(|deadline| now >= deadline) {
            // Words would not be read either.
            self.services.backend.refused(None, ErrorCode::SlowConsumer.number());
            self.phase = Phase::Over(End::Refused(ErrorCode::SlowConsumer));
        } else if self.reader.deadline().is_some_and(|deadline| now >= deadline) {
            self.fail(reply::connection(
                ErrorCode::PeerSilent,
                "a frame was begun and not finished",
            ));
        } else if now >= self.clock.heard + DEAD_AFTER {
            self.fail(reply::connection(ErrorCode::PeerSilent, "nothing was heard for too long"));
        } else {
            return self.on_phase_time(now);
        }
        true
    }

    fn on_phase_time(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::Hello | Phase::Auth if now >= self.clock.began + HANDSHAKE_MAX => {
                let text = "HELLO and AUTH did not arrive in time";
                self.fail(reply::connection(ErrorCode::PeerSilent, text));
            }
            Phase::Leaving(deadline) => {
                let owes = self.outbox.owes() || !self.requests.is_empty();
                if now >= deadline || (!owes && self.writer.is_empty()) {
                    self.phase = Phase::Ending(End::Drained, now + LAST_WORDS_MAX);
                } else {
                    // Looked at again after another quiet moment.
                    self.clock.spoke(now);
                }
            }
            Phase::Open if now >= self.clock.spoke + self.heartbeat && self.writer.is_empty() => {
                self.clock.spoke(now);
                self.send(&Frame::Heartbeat);
            }
            _ => return false,
        }
        true
    }

    /// The peer did something that the connection does not survive: it is told so, and counted.
    pub(super) fn fail(&mut self, refusal: Refusal) {
        if self.phase.is_deaf() {
            return;
        }
        let code = ErrorCode::from_u16(refusal.code).unwrap_or(ErrorCode::BadState);
        if let Some(suppressed) = self.services.failures.pass(Instant::now()) {
            self.card.log_failure(code, &refusal.text, suppressed);
        }
        let go_away = GoAway {
            code: refusal.code,
            deadline_ms: 0,
            reconnect_after_ms: if code.action() == Action::Wait { 1_000 } else { 0 },
            text: refusal.text.clone(),
        };
        self.send(&Frame::Error(ErrorFrame { request: RequestId(0), refusal }));
        self.send(&Frame::GoAway(go_away));
        self.phase = Phase::Ending(End::Refused(code), Instant::now() + LAST_WORDS_MAX);
    }

    /// No new work; the connection ends when nothing is owed any more, or then at the latest.
    pub(super) fn leave_within(&mut self, within: Duration) {
        if matches!(self.phase, Phase::Hello | Phase::Auth | Phase::Open) {
            self.phase = Phase::Leaving(Instant::now() + within);
        }
    }

    /// The client says that it leaves: it is answered what it is owed.
    pub(super) fn leave_when_quiet(&mut self, now: Instant) {
        if let Phase::Open = self.phase {
            self.phase = Phase::Leaving(now + DEAD_AFTER);
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving(_))
    }

    /// Everything was written: the peer is told so by the socket, and may still send what it will.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(Err(_)) = Pin::new(&mut *self.socket).poll_shutdown(cx)
            && let Phase::Ending(end, _) = self.phase
        {
            self.phase = Phase::Over(end);
        }
    }
}
