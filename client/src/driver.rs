//! The driver: the one task of a client. It connects, visits lanes, and starts anew when a
//! connection is lost.
//!
//! Owns: the connections, the timers of all lanes, the status.
//! Never: waits for an application; everything an application does is a ring of the bell.
//! Invariants: lanes are visited in the order of their numbers; a lane has its stream on one
//! connection, the one that stands in `seats`.

mod asking;
mod dialing;
pub(crate) mod frames;
mod lanes;
pub(crate) mod link;
mod links;
mod router;
pub(crate) mod session;
mod timers;

use crate::consumer::shared::End;
use crate::retry::RetryBudget;
use crate::seams;
use crate::shared::{ClientShared, LaneRef, closed};
use crate::status::Status;
use asking::Asking;
use dialing::Dialing;
use lanes::Lanes;
use link::Turn;
use links::{Connected, Events, LinkId, Links};
use router::Router;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes that wait for the socket before lanes hold their batches back: what is queued here can
/// not be overtaken by a settle or a grant.
const OUT_BYTES_MAX: usize = 1 << 20;
/// A connection that lasted this long was a success: a broker that takes connections only to end
/// them is not stormed.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// A connection that nobody needs is closed after this, unless it is the only one.
const IDLE_AFTER: Duration = Duration::from_secs(30);

/// Starts the driver of a client.
pub(crate) fn start(shared: Arc<ClientShared>) {
    let driver = Driver::new(shared);
    seams::spawn(driver.run());
}

/// Why a connection ends, and when its broker is ready for another.
struct Ended {
    cause: String,
    after: Duration,
}

impl Ended {
    fn lost(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), after: Duration::ZERO }
    }

    fn away(after: Duration) -> Self {
        Self { cause: "the broker is shutting down".to_owned(), after }
    }
}

pub(crate) struct Driver {
    shared: Arc<ClientShared>,
    budget: RetryBudget,
    links: Links,
    router: Router,
    lanes: Lanes,
    dialing: Dialing,
    asking: Asking,
}

impl Driver {
    fn new(shared: Arc<ClientShared>) -> Self {
        let now = Instant::now();
        Self {
            budget: RetryBudget::new(now),
            links: Links::new(),
            router: Router::default(),
            lanes: Lanes::default(),
            dialing: Dialing::new(&shared, now),
            asking: Asking::new(now),
            shared,
        }
    }

    async fn run(mut self) {
        let end = EndGuard(self.shared.clone());
        let shared = self.shared.clone();
        let mut events = Events::default();
        loop {
            let now = Instant::now();
            self.advance(now);
            if self.is_done() {
                break;
            }
            let timer = self.timer(now);
            self.links.turn(&shared.bell, timer, &mut events).await;
            let now = Instant::now();
            for (id, turn) in events.turns.drain(..) {
                self.take_in(id, turn, now);
            }
            for dialled in events.dialled.drain(..) {
                if let Err(error) = self.dialled(dialled, now) {
                    tracing::error!(%error, "the broker refuses this client");
                    self.shared.lock().end_error = Some(error);
                    drop(end);
                    return;
                }
            }
        }
        drop(end);
    }

    /// Does everything that is due.
    fn advance(&mut self, now: Instant) {
        // What ends leaves lanes to visit, and visits leave wishes.
        self.tend(now);
        if std::mem::take(&mut self.lanes.news) {
            self.rehome();
        }
        self.visit_due(now);
        self.ask_due(now);
        self.links.grant_wishes();
        self.dial_due(now);
        self.show_status();
    }

    /// When to come back without being told.
    fn timer(&self, now: Instant) -> Instant {
        let lanes = self.lanes.timers.first();
        let sessions = self.links.sessions().map(|session| session.timer(now)).min();
        let timers = [lanes, sessions, Some(self.ask_timer()), self.dial_timer()];
        timers.into_iter().flatten().min().unwrap_or_else(|| self.ask_timer())
    }

    /// Handles what one turn of a connection has brought.
    fn take_in(&mut self, id: LinkId, turn: io::Result<Turn>, now: Instant) {
        let Some(mut connected) = self.links.take(id) else { return };
        let ended = match turn {
            Ok(turn) => self.take_turn(&mut connected, turn, now),
            Err(error) => Some(Ended::lost(error.to_string())),
        };
        self.links.put_back(id, connected);
        if let Some(ended) = ended {
            self.end(id, &ended, now);
        }
    }

    fn take_turn(
        &mut self,
        Connected { link, session }: &mut Connected,
        turn: Turn,
        now: Instant,
    ) -> Option<Ended> {
        if turn.written > 0 {
            session.sent_at = now;
            if session.out.len() < OUT_BYTES_MAX / 2 {
                self.lanes.touch_stalled();
            }
        }
        if turn.read > 0 {
            session.heard_at = now;
            loop {
                match link.decode() {
                    Ok(Some(frame)) => {
                        if let Err(error) = self.handle(session, frame, now) {
                            return Some(Ended::lost(error.to_string()));
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return Some(Ended::lost(link::garbled(&error).to_string())),
                }
            }
        }
        turn.ended.then(|| match &session.away {
            Some(away) => Ended::away(away.reconnect_after),
            None => Ended::lost("the broker closed the connection"),
        })
    }

    /// Keeps connections alive, and ends those that are over.
    fn tend(&mut self, now: Instant) {
        for id in self.links.ids() {
            let several = self.links.len() > 1;
            let Some(session) = self.links.session(id) else { continue };
            session.judge(now);
            let ended = if !session.keep_alive(now) {
                Ended::lost("the broker was silent for too long")
            } else if let Some(away) = &session.away
                && (away.deadline <= now || !session.has_flight())
            {
                Ended::away(away.reconnect_after)
            } else if session.idle_for(now) >= IDLE_AFTER && several {
                Ended::lost("the connection was not needed")
            } else {
                continue;
            };
            self.end(id, &ended, now);
        }
    }

    /// A connection is over: its lanes keep what they have and look for another.
    fn end(&mut self, id: LinkId, ended: &Ended, now: Instant) {
        let Some(Connected { mut session, .. }) = self.links.take(id) else { return };
        tracing::debug!(cause = ended.cause, broker = %session.broker, "a connection is over");
        session.fail_requests(&ended.cause);
        self.lose_lanes(id, &ended.cause);
        self.pause_dialing(&session, ended.after, now);
        if self.links.is_empty() {
            self.reconnecting(ended.cause.clone());
        }
    }

    fn is_done(&self) -> bool {
        let registry = self.shared.lock();
        registry.closing
            && registry.lanes.is_empty()
            && self.links.sessions().all(|session| session.out.is_empty())
    }

    fn reconnecting(&self, cause: String) {
        let attempt = self.dialing.attempts();
        self.shared.status.send_replace(Status::Reconnecting { attempt, cause });
    }

    fn show_status(&self) {
        if self.links.is_empty() {
            return;
        }
        let usable = self.links.any().is_some();
        let reason = self.lanes.blocked.values().next().copied().filter(|_| usable);
        self.shared.status.send_if_modified(|status| {
            let next = match (reason, &*status) {
                (Some(reason), Status::Blocked { reason: old, .. }) if *old == reason => {
                    return false;
                }
                (Some(reason), _) => Status::Blocked { reason, since: Instant::now() },
                (None, _) if usable => Status::Connected,
                (None, _) => Status::Draining,
            };
            let changed = *status != next;
            *status = next;
            changed
        });
    }
}

/// Whatever ends the driver, a runtime that is shut down too: nobody waits for it for ever.
struct EndGuard(Arc<ClientShared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        let (lanes, requests, error) = {
            let mut registry = self.0.lock();
            registry.ended = true;
            let error = registry.end_error.clone().unwrap_or_else(closed);
            let lanes = std::mem::take(&mut registry.lanes);
            (lanes, std::mem::take(&mut registry.requests), error)
        };
        for request in requests {
            request.answer(Err(error.clone()));
        }
        for lane in lanes.into_values() {
            match lane {
                LaneRef::Publish(lane) => {
                    let mut core = lane.lock();
                    core.close_window();
                    core.fail(&error);
                    drop(core);
                    lane.changed.notify_waiters();
                }
                LaneRef::Read(consumer, _) | LaneRef::Member(consumer) => {
                    consumer.end(End::Failed(Some(error.clone())))
                }
            }
        }
        self.0.status.send_replace(Status::Closed);
    }
}
