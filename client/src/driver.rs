//! The driver: the one task of a client. It connects, visits lanes, and starts anew when a
//! connection is lost.
//!
//! Owns: the connection, the timers of all lanes, the status.
//! Never: waits for an application; everything an application does is a ring of the bell.
//! Invariant: lanes are visited in the order of their numbers.

pub(crate) mod frames;
mod lanes;
pub(crate) mod link;
pub(crate) mod session;
mod timers;

use crate::consumer::shared::End;
use crate::error::{Error, Reason};
use crate::retry::{Backoff, RetryBudget};
use crate::seams;
use crate::shared::{ClientShared, LaneId, LaneRef, ReplyTo, Request, RequestBody, closed};
use crate::status::Status;
use link::{Link, Turn};
use session::Session;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use timers::Timers;
use tokio::time::Instant;
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::Frame;

/// Bytes that wait for the socket before lanes hold their batches back: what is queued here can
/// not be overtaken by a settle or a grant.
const OUT_BYTES_MAX: usize = 1 << 20;
/// How often topics are asked for added partitions.
const TOPIC_REFRESH: Duration = Duration::from_secs(10);
/// A connection that lasted this long was a success: a broker that takes connections only to end
/// them is not stormed.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// Starts the driver of a client.
pub(crate) fn start(shared: Arc<ClientShared>) {
    let driver = Driver::new(shared);
    seams::spawn(driver.run());
}

/// How a connection ended.
enum Ended {
    /// Connect again, not before this delay.
    Lost { cause: String, after: Duration },
    /// Everything is done.
    Closed,
}

pub(crate) struct Driver {
    shared: Arc<ClientShared>,
    pub(crate) budget: RetryBudget,
    timers: Timers,
    backoff: Backoff,
    /// Number of the endpoint that is tried next.
    endpoint: usize,
    blocked: BTreeMap<LaneId, Reason>,
    /// Lanes that the full socket keeps from sending.
    stalled: BTreeSet<LaneId>,
    /// Lanes that frames have changed.
    pub(crate) touched: BTreeSet<LaneId>,
    frames: Vec<Frame>,
    refresh_at: Instant,
    closing_told: bool,
}

impl Driver {
    fn new(shared: Arc<ClientShared>) -> Self {
        let now = Instant::now();
        Self {
            endpoint: shared.chance.up_to(shared.config.endpoints.len() as u64 - 1) as usize,
            shared,
            budget: RetryBudget::new(now),
            timers: Timers::default(),
            backoff: Backoff::default(),
            blocked: BTreeMap::new(),
            stalled: BTreeSet::new(),
            touched: BTreeSet::new(),
            frames: Vec::new(),
            refresh_at: now + TOPIC_REFRESH,
            closing_told: false,
        }
    }

    async fn run(mut self) {
        let end = EndGuard(self.shared.clone());
        let mut delay = Duration::ZERO;
        loop {
            if self.offline(tokio::time::sleep(delay)).await.is_none() {
                break;
            }
            let (link, welcome) = match self.connect().await {
                Some(Ok(connected)) => connected,
                Some(Err(error)) if link::is_final(&error) => {
                    tracing::error!(%error, "the broker refuses this client");
                    self.shared.lock().end_error = Some(error);
                    break;
                }
                Some(Err(error)) => {
                    delay = self.backoff.next(&self.shared.chance);
                    self.reconnecting(error.to_string());
                    continue;
                }
                None => break,
            };
            self.shared.set_message_bytes_max(welcome.limits.message_bytes_max as usize);
            let began = Instant::now();
            let mut session = Session::new(&welcome, began);
            let ended = self.serve(link, &mut session).await;
            if began.elapsed() >= STABLE_AFTER {
                self.backoff.reset();
            }
            match ended {
                Ended::Closed => break,
                Ended::Lost { cause, after } => {
                    session.fail_requests(&cause);
                    self.lost(&cause);
                    delay = after.max(self.backoff.next(&self.shared.chance));
                    self.reconnecting(cause);
                }
            }
        }
        drop(end);
    }

    /// Connects to the next endpoint. None: the client was closed meanwhile.
    async fn connect(&mut self) -> Option<Result<(Link, weir_protocol::frame::Welcome), Error>> {
        let shared = self.shared.clone();
        let endpoint = &shared.config.endpoints[self.endpoint % shared.config.endpoints.len()];
        self.endpoint += 1;
        let timeout = shared.config.connect_timeout;
        let attempt = async {
            let connecting = shared.config.connector.connect(&endpoint.host, endpoint.port);
            let duplex = match tokio::time::timeout(timeout, connecting).await {
                Ok(Ok(duplex)) => duplex,
                Ok(Err(error)) => {
                    let text = format!("{endpoint}: {error}");
                    return Err(Error::local(ErrorCode::Unreachable, text));
                }
                Err(_) => {
                    let text = format!("{endpoint}: no connection within {timeout:?}");
                    return Err(Error::local(ErrorCode::Unreachable, text));
                }
            };
            let mut link = Link::new(duplex);
            let welcome = link.handshake(&shared.config.name).await?;
            tracing::debug!(%endpoint, broker = welcome.broker_name, "connected");
            Ok((link, welcome))
        };
        self.offline(attempt).await
    }

    /// Does `work` while there is no connection; lanes are visited all the same, because their
    /// deadlines go on. None: the client was closed, and nothing is left to do.
    async fn offline<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            let now = Instant::now();
            self.visit_due(None, now);
            if self.is_done() {
                return None;
            }
            let timer = self.timers.first().unwrap_or(now + TOPIC_REFRESH);
            let shared = self.shared.clone();
            tokio::select! {
                biased;
                result = &mut work => return Some(result),
                () = shared.bell.notified() => {}
                () = tokio::time::sleep_until(timer) => {}
            }
        }
    }

    async fn serve(&mut self, mut link: Link, session: &mut Session) -> Ended {
        self.blocked.clear();
        let lanes: Vec<_> = self.shared.lock().lanes.keys().copied().collect();
        self.touched.extend(lanes);
        self.show_status(session);
        loop {
            let now = Instant::now();
            if let Some(ended) = self.advance(session, now) {
                return ended;
            }
            let timer = self.timers.first().map_or(session.timer(), |at| at.min(session.timer()));
            let timer = timer.min(self.refresh_at);
            let shared = self.shared.clone();
            let turn = match link.turn(&mut session.out, &shared.bell, Some(timer)).await {
                Ok(turn) => turn,
                Err(error) => return lost(error.to_string()),
            };
            if let Some(ended) = self.take_in(&mut link, session, turn) {
                return ended;
            }
        }
    }

    /// Handles what one turn has read.
    fn take_in(&mut self, link: &mut Link, session: &mut Session, turn: Turn) -> Option<Ended> {
        let now = Instant::now();
        if turn.written > 0 {
            session.sent_at = now;
            if session.out.len() < OUT_BYTES_MAX / 2 {
                self.touched.append(&mut self.stalled);
            }
        }
        if turn.read > 0 {
            session.heard_at = now;
            loop {
                match link.decode() {
                    Ok(Some(frame)) => {
                        if let Err(error) = self.handle(session, frame, now) {
                            return Some(lost(error.to_string()));
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return Some(lost(link::garbled(&error).to_string())),
                }
            }
        }
        turn.ended.then(|| match &session.away {
            Some(away) => Ended::Lost {
                cause: "the broker is shutting down".to_owned(),
                after: away.reconnect_after,
            },
            None => lost("the broker closed the connection".to_owned()),
        })
    }

    /// Does everything that is due on a connection.
    fn advance(&mut self, session: &mut Session, now: Instant) -> Option<Ended> {
        self.visit_due(Some(session), now);
        self.send_requests(session, now);
        session.grant_wishes();
        self.show_status(session);
        if !session.keep_alive(now) {
            return Some(lost("the broker was silent for too long".to_owned()));
        }
        if let Some(away) = &session.away
            && (away.deadline <= now || !self.has_flight())
        {
            let after = away.reconnect_after;
            return Some(Ended::Lost { cause: "the broker is shutting down".to_owned(), after });
        }
        (self.is_done() && session.out.is_empty()).then_some(Ended::Closed)
    }

    fn send_requests(&mut self, session: &mut Session, now: Instant) {
        let mut registry = self.shared.lock();
        if now >= self.refresh_at {
            self.refresh_at = now + TOPIC_REFRESH;
            registry.topics.retain(|_, state| state.strong_count() > 0);
            let topics: Vec<_> = registry.topics.keys().cloned().collect();
            for topic in topics {
                let body = RequestBody::Topics { topic: Some(topic.clone()), after: None };
                registry.requests.push_back(Request { body, reply: ReplyTo::Refresh(topic) });
            }
        }
        while session.has_slot() {
            let Some(request) = registry.requests.pop_front() else { break };
            if !request.is_given_up() {
                session.ask(request);
            }
        }
    }

    /// Whether a lane waits for an answer to something it sent.
    fn has_flight(&self) -> bool {
        self.shared.lock().lanes.values().any(|lane| match lane {
            LaneRef::Publish(lane) => lane.lock().has_flight(),
            LaneRef::Read(..) => false,
        })
    }

    fn is_done(&self) -> bool {
        let registry = self.shared.lock();
        registry.closing && registry.lanes.is_empty()
    }

    fn reconnecting(&self, cause: String) {
        let attempt = self.backoff.attempts();
        self.shared.status.send_replace(Status::Reconnecting { attempt, cause });
    }

    fn show_status(&self, session: &Session) {
        let reason = self.blocked.values().next().copied();
        self.shared.status.send_if_modified(|status| {
            let next = match (&session.away, reason, &*status) {
                (Some(_), _, _) => Status::Draining,
                (None, Some(reason), Status::Blocked { reason: old, .. }) if *old == reason => {
                    return false;
                }
                (None, Some(reason), _) => Status::Blocked { reason, since: Instant::now() },
                (None, None, _) => Status::Connected,
            };
            let changed = *status != next;
            *status = next;
            changed
        });
    }
}

fn lost(cause: String) -> Ended {
    Ended::Lost { cause, after: Duration::ZERO }
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
                LaneRef::Read(consumer, _) => consumer.end(End::Failed(Some(error.clone()))),
            }
        }
        self.0.status.send_replace(Status::Closed);
    }
}
