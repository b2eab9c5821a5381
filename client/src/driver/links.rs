//! The connections of a client, one for each broker it needs, and those in the making.
//!
//! Owns: sockets and sessions, by number; which broker answers at the other end.
//! Never: decides whom to connect to, or when.
//! Invariants: a broker has one connection; numbers are never used twice, so that a lane never
//! takes one connection for another.

use super::link::{Link, Turn};
use super::session::Session;
use crate::config::Endpoint;
use crate::error::{Error, Result};
use crate::seams::BoxFuture;
use crate::shared::ClientShared;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Bound;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::Welcome;
use weir_protocol::types::BrokerId;

/// A timer that never fires within the life of a process.
const FAR: Duration = Duration::from_secs(365 * 24 * 3_600);

/// What a connection is called; never reused.
pub(crate) type LinkId = u32;

/// One connection behind its handshake.
pub(crate) struct Connected {
    pub(crate) link: Link,
    pub(crate) session: Session,
}

/// A connection in the making.
struct Dial {
    endpoint: Endpoint,
    /// Who is to answer; none = whoever does.
    broker: Option<BrokerId>,
    work: BoxFuture<'static, Result<(Link, Welcome)>>,
}

/// How an attempt to connect ended.
pub(crate) struct Dialled {
    pub(crate) endpoint: Endpoint,
    pub(crate) broker: Option<BrokerId>,
    pub(crate) result: Result<(Link, Welcome)>,
}

/// What there is to do something about.
#[derive(Default)]
pub(crate) struct Events {
    pub(crate) turns: Vec<(LinkId, io::Result<Turn>)>,
    pub(crate) dialled: Vec<Dialled>,
}

pub(crate) struct Links {
    connected: BTreeMap<LinkId, Connected>,
    dials: Vec<Dial>,
    last: LinkId,
    /// Who was asked last.
    asked: LinkId,
    timer: Pin<Box<Sleep>>,
}

impl Links {
    pub(crate) fn new() -> Self {
        Self {
            connected: BTreeMap::new(),
            dials: Vec::new(),
            last: 0,
            asked: 0,
            timer: Box::pin(tokio::time::sleep(FAR)),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.connected.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.connected.len()
    }

    pub(crate) fn ids(&self) -> Vec<LinkId> {
        self.connected.keys().copied().collect()
    }

    pub(crate) fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.connected.values().map(|connected| &connected.session)
    }

    pub(crate) fn session(&mut self, id: LinkId) -> Option<&mut Session> {
        self.connected.get_mut(&id).map(|connected| &mut connected.session)
    }

    /// Asks for the streams that are wished for.
    pub(crate) fn grant_wishes(&mut self) {
        for Connected { session, .. } in self.connected.values_mut() {
            session.grant_wishes();
        }
    }

    /// The connection to a broker, unless the broker goes away.
    pub(crate) fn of_broker(&self, broker: BrokerId) -> Option<LinkId> {
        self.find(|session| session.broker == broker && session.away.is_none())
    }

    pub(crate) fn has_broker(&self, broker: BrokerId) -> bool {
        self.find(|session| session.broker == broker).is_some()
    }

    /// A connection whose broker does not go away.
    pub(crate) fn any(&self) -> Option<LinkId> {
        self.find(|session| session.away.is_none())
    }

    /// Whether some broker can be asked who leads, and is likely to know.
    pub(crate) fn has_sound(&self) -> bool {
        self.find(|session| session.away.is_none() && !session.suspect).is_some()
    }

    fn find(&self, fits: impl Fn(&Session) -> bool) -> Option<LinkId> {
        self.connected.iter().find(|(_, one)| fits(&one.session)).map(|(id, _)| *id)
    }

    /// The next connection to ask something that every broker can answer: one after the other, so
    /// that a broker which is cut off from the rest is not the only one that is heard.
    pub(crate) fn next_of(&mut self, fits: impl Fn(&Session) -> bool) -> Option<&mut Session> {
        let behind = (Bound::Excluded(self.asked), Bound::Unbounded);
        let order = self.connected.range(behind).chain(self.connected.range(..=self.asked));
        let id = order.into_iter().find(|(_, one)| fits(&one.session)).map(|(id, _)| *id)?;
        self.asked = id;
        self.session(id)
    }

    pub(crate) fn add(&mut self, link: Link, session: Session) -> LinkId {
        self.last += 1;
        self.connected.insert(self.last, Connected { link, session });
        self.last
    }

    pub(crate) fn take(&mut self, id: LinkId) -> Option<Connected> {
        self.connected.remove(&id)
    }

    /// What was taken and goes on.
    pub(crate) fn put_back(&mut self, id: LinkId, connected: Connected) {
        self.connected.insert(id, connected);
    }

    /// Attempts that any broker is welcome to answer.
    pub(crate) fn dials_for_any(&self) -> usize {
        self.dials.iter().filter(|dial| dial.broker.is_none()).count()
    }

    pub(crate) fn dials_endpoint(&self, endpoint: &Endpoint) -> bool {
        self.dials.iter().any(|dial| dial.endpoint == *endpoint)
    }

    pub(crate) fn dials_broker(&self, broker: BrokerId) -> bool {
        self.dials.iter().any(|dial| dial.broker == Some(broker))
    }

    /// Gives up the attempts that any broker was welcome to answer: one has.
    pub(crate) fn drop_dials_for_any(&mut self) {
        self.dials.retain(|dial| dial.broker.is_some());
    }

    pub(crate) fn dial(
        &mut self,
        shared: &Arc<ClientShared>,
        endpoint: Endpoint,
        broker: Option<BrokerId>,
    ) {
        let work = Box::pin(connect(shared.clone(), endpoint.clone()));
        self.dials.push(Dial { endpoint, broker, work });
    }

    /// Waits until something was read or written, an attempt to connect ended, the bell rang or
    /// the time has come; does all that can be done at once.
    pub(crate) async fn turn(&mut self, bell: &Notify, until: Instant, events: &mut Events) {
        if self.timer.deadline() != until {
            self.timer.as_mut().reset(until);
        }
        let mut rung = pin!(bell.notified());
        poll_fn(|cx| {
            let mut turned = self.poll_all(cx, events);
            turned |= rung.as_mut().poll(cx).is_ready();
            turned |= self.timer.as_mut().poll(cx).is_ready();
            if turned { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn poll_all(&mut self, cx: &mut Context<'_>, events: &mut Events) -> bool {
        for (id, Connected { link, session }) in &mut self.connected {
            if let Poll::Ready(turn) = link.poll_turn(cx, &mut session.out) {
                events.turns.push((*id, turn));
            }
        }
        for dial in std::mem::take(&mut self.dials) {
            self.poll_dial(cx, dial, events);
        }
        !(events.turns.is_empty() && events.dialled.is_empty())
    }

    fn poll_dial(&mut self, cx: &mut Context<'_>, mut dial: Dial, events: &mut Events) {
        match dial.work.as_mut().poll(cx) {
            Poll::Pending => self.dials.push(dial),
            Poll::Ready(result) => {
                let Dial { endpoint, broker, .. } = dial;
                events.dialled.push(Dialled { endpoint, broker, result });
            }
        }
    }
}

/// Connects to an endpoint and says hello.
async fn connect(shared: Arc<ClientShared>, endpoint: Endpoint) -> Result<(Link, Welcome)> {
    let timeout = shared.config.connect_timeout;
    let unreachable =
        |why: String| Error::local(ErrorCode::Unreachable, format!("{endpoint}: {why}"));
    let connecting = shared.config.connector.connect(&endpoint.host, endpoint.port);
    let duplex = match tokio::time::timeout(timeout, connecting).await {
        Ok(Ok(duplex)) => duplex,
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => return Err(unreachable(format!("no connection within {timeout:?}"))),
    };
    let mut link = Link::new(duplex);
    let welcome = link.handshake(&shared.config.name).await?;
    tracing::debug!(%endpoint, broker = welcome.broker_name, "connected");
    Ok((link, welcome))
}
