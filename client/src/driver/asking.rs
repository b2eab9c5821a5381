//! What the driver asks brokers: the requests of applications, and who leads what.
//!
//! Owns: when topics are asked about, and whom a request goes to.
//! Never: asks a broker about a topic while it owes an answer about it.
//! Invariant: as long as a lane has nobody to go to, topics are asked about again and again, with
//! growing pauses.

use super::Driver;
use super::lanes::place_of;
use crate::retry::Backoff;
use crate::shared::{ReplyTo, Request, RequestBody};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;
use weir_protocol::frame::Refusal;
use weir_protocol::types::{BrokerId, Name};

/// How often topics are asked for added partitions.
const TOPIC_REFRESH: Duration = Duration::from_secs(10);
/// Pauses between questions for a leader. An election takes one to four seconds, and what is asked
/// is a small question: the longest pause is a small part of that. A leader that hands over is
/// followed within milliseconds: the first pauses are short.
const LEADER_PAUSE_MIN: Duration = Duration::from_millis(20);
const LEADER_PAUSE_MAX: Duration = Duration::from_millis(150);

pub(super) struct Asking {
    /// When every topic that is in use is asked about.
    all_at: Instant,
    /// When topics may be asked about for their leaders' sake.
    leaders_at: Instant,
    backoff: Backoff,
    /// Topics whose leaders are in doubt.
    doubted: BTreeSet<Name>,
    /// Topics to ask about.
    due: BTreeSet<Name>,
    /// Who changes topics, as the last refusal said.
    topics_leader: Option<BrokerId>,
}

impl Asking {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            all_at: now + TOPIC_REFRESH,
            leaders_at: now,
            backoff: Backoff::default(),
            doubted: BTreeSet::new(),
            due: BTreeSet::new(),
            topics_leader: None,
        }
    }

    /// A broker that should know refused to serve this topic.
    pub(super) fn doubt(&mut self, topic: Name) {
        self.doubted.insert(topic);
    }
}

impl Driver {
    /// Asks what is due, as far as the brokers' limits allow.
    pub(super) fn ask_due(&mut self, now: Instant) {
        self.plan_all(now);
        self.plan_leaders(now);
        self.ask_about_topics();
        self.send_requests();
    }

    /// When to ask again without being told.
    pub(super) fn ask_timer(&self) -> Instant {
        if self.seeks_leaders() {
            self.asking.leaders_at.min(self.asking.all_at)
        } else {
            self.asking.all_at
        }
    }

    fn plan_all(&mut self, now: Instant) {
        if now < self.asking.all_at {
            return;
        }
        self.asking.all_at = now + TOPIC_REFRESH;
        let mut registry = self.shared.lock();
        registry.topics.retain(|_, state| state.strong_count() > 0);
        self.asking.due.extend(registry.topics.keys().cloned());
        self.router.retain(|topic| registry.topics.contains_key(topic));
    }

    /// Whether somebody waits to learn of a leader, and there is a broker that may tell.
    fn seeks_leaders(&self) -> bool {
        let wanted = !self.lanes.homeless.is_empty()
            || !self.asking.doubted.is_empty()
            || self.links.sessions().any(|session| session.suspect);
        wanted && self.links.has_sound()
    }

    fn plan_leaders(&mut self, now: Instant) {
        if !self.seeks_leaders() {
            if now >= self.asking.leaders_at {
                self.asking.backoff.reset();
            }
            return;
        }
        if now < self.asking.leaders_at {
            return;
        }
        let longest = LEADER_PAUSE_MIN * (self.asking.backoff.attempts() + 1);
        let pause = self.asking.backoff.next(&self.shared.chance);
        let pause = pause.clamp(LEADER_PAUSE_MIN, longest.min(LEADER_PAUSE_MAX));
        self.asking.leaders_at = now + pause;
        let homeless = self.lanes.homeless.values().map(|place| place.topic.clone());
        self.asking.due.extend(homeless);
        self.asking.due.append(&mut self.asking.doubted);
        for session in self.links.sessions().filter(|session| session.suspect) {
            let lanes = session.lanes().map(|lane| place_of(lane).topic);
            self.asking.due.extend(lanes);
        }
    }

    fn ask_about_topics(&mut self) {
        if self.links.is_empty() {
            return;
        }
        let links = &mut self.links;
        self.asking.due.retain(|topic| {
            let session = links.next_of(|session| {
                session.has_slot() && !session.suspect && !session.refreshes(topic)
            });
            let Some(session) = session else { return true };
            let body = RequestBody::Topics { topic: Some(topic.clone()), after: None };
            session.ask(Request { body, reply: ReplyTo::Refresh(topic.clone()) });
            false
        });
    }

    fn send_requests(&mut self) {
        loop {
            let request = self.shared.lock().requests.pop_front();
            let Some(request) = request else { return };
            if request.is_given_up() {
                continue;
            }
            let changes = !matches!(request.body, RequestBody::Topics { .. });
            let leader = self.asking.topics_leader.filter(|_| changes);
            let leader = leader.and_then(|broker| self.links.of_broker(broker));
            let has_slot =
                leader.and_then(|link| self.links.session(link)).is_some_and(|s| s.has_slot());
            let session = match leader.filter(|_| has_slot) {
                Some(link) => self.links.session(link),
                None => self.links.next_of(|session| session.has_slot()),
            };
            match session {
                Some(session) => session.ask(request),
                None => {
                    self.shared.lock().requests.push_front(request);
                    return;
                }
            }
        }
    }

    /// A broker that does not lead the metadata refused to change it.
    pub(super) fn note_topics_leader(&mut self, refusal: &Refusal) {
        self.asking.topics_leader = refusal.leader().map(|(broker, _)| broker);
        if let Some(broker) = self.asking.topics_leader {
            self.dial_broker(broker);
        }
    }
}
