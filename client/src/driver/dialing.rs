//! Whom the driver connects to, and when.
//!
//! Owns: the back-off of each broker, and of the endpoints that any broker may answer at.
//! Never: connects to a broker that nobody needs; gives up while the client lives.
//! Invariant: a broker that cannot be reached is tried again no sooner than its back-off says.

use super::link;
use super::links::Dialled;
use super::router::Home;
use super::session::Session;
use super::{Driver, STABLE_AFTER};
use crate::config::Endpoint;
use crate::error::{Error, Result};
use crate::retry::Backoff;
use crate::seams::Chance;
use crate::shared::ClientShared;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;
use weir_protocol::error_code::ErrorCode;
use weir_protocol::types::BrokerId;

/// Attempts at several endpoints at a time, while any broker would do.
const DIALS_MAX: usize = 3;
/// The next endpoint is tried beside one that has not answered for this long.
const STAGGER: Duration = Duration::from_millis(500);

/// When to try again.
#[derive(Debug)]
struct Pace {
    backoff: Backoff,
    at: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { backoff: Backoff::default(), at: now }
    }

    fn pause(&mut self, least: Duration, now: Instant, chance: &Chance) {
        self.at = now + least.max(self.backoff.next(chance));
    }
}

pub(super) struct Dialing {
    /// Of whatever broker answers.
    any: Pace,
    brokers: BTreeMap<BrokerId, Pace>,
    /// Number of the endpoint that is tried next.
    endpoint: usize,
    /// The cluster that the client belongs to.
    cluster: Option<u128>,
}

impl Dialing {
    pub(super) fn new(shared: &ClientShared, now: Instant) -> Self {
        let endpoints = shared.config.endpoints.len() as u64;
        Self {
            any: Pace::new(now),
            brokers: BTreeMap::new(),
            endpoint: shared.chance.up_to(endpoints - 1) as usize,
            cluster: None,
        }
    }

    /// Attempts since any connection stood for long enough.
    pub(super) fn attempts(&self) -> u32 {
        self.any.backoff.attempts()
    }

    /// Forgets the brokers that are no more.
    fn retain(&mut self, known: impl Fn(BrokerId) -> bool) {
        self.brokers.retain(|broker, _| known(*broker));
    }

    fn pace(&mut self, broker: BrokerId, now: Instant) -> &mut Pace {
        self.brokers.entry(broker).or_insert_with(|| Pace::new(now))
    }
}

impl Driver {
    /// Starts the attempts to connect that are due.
    pub(super) fn dial_due(&mut self, now: Instant) {
        while let Some(endpoint) = self.next_endpoint().filter(|_| self.dialing.any.at <= now) {
            self.dialing.endpoint += 1;
            self.dialing.any.at = now + STAGGER;
            self.links.dial(&self.shared, endpoint, None);
        }
        let wanted = self.wanted();
        if !wanted.is_empty() {
            self.dialing.retain(|broker| self.router.address(broker).is_some());
        }
        for broker in wanted {
            if self.dialing.pace(broker, now).at <= now {
                self.dial_broker(broker);
            }
        }
    }

    /// When the next attempt is due.
    pub(super) fn dial_timer(&self) -> Option<Instant> {
        let any = self.next_endpoint().map(|_| self.dialing.any.at);
        let paces = &self.dialing.brokers;
        let wanted = self.wanted().into_iter().filter_map(|broker| Some(paces.get(&broker)?.at));
        wanted.chain(any).min()
    }

    /// Connects to a broker whose address is known, unless that is done already.
    pub(super) fn dial_broker(&mut self, broker: BrokerId) {
        let Some(endpoint) = self.router.address(broker).cloned() else { return };
        if !self.links.has_broker(broker) && !self.links.dials_broker(broker) {
            self.links.dial(&self.shared, endpoint, Some(broker));
        }
    }

    /// The endpoint to try next while no broker can be asked for anything.
    fn next_endpoint(&self) -> Option<Endpoint> {
        if self.links.has_sound() || self.links.dials_for_any() >= DIALS_MAX {
            return None;
        }
        // The only broker there is is waited for.
        let alone = !self.router.has_several();
        if alone && !self.links.is_empty() {
            return None;
        }
        let endpoints = &self.shared.config.endpoints;
        let mut all: Vec<&Endpoint> = endpoints.iter().collect();
        if !alone {
            all.extend(self.router.addresses().filter(|told| !endpoints.contains(told)));
        }
        let from = self.dialing.endpoint % all.len();
        all.rotate_left(from);
        all.into_iter().find(|endpoint| !self.links.dials_endpoint(endpoint)).cloned()
    }

    /// Brokers that lanes wait for and that are to be connected to.
    fn wanted(&self) -> BTreeSet<BrokerId> {
        // Without any connection it is not known whether what was told still holds.
        if self.links.any().is_none() {
            return BTreeSet::new();
        }
        let places = self.lanes.homeless.values();
        let homes = places.filter_map(|place| match self.home_of(place) {
            Home::Broker(broker) => Some(broker),
            Home::Any | Home::Unknown => None,
        });
        homes
            .filter(|broker| self.router.address(*broker).is_some())
            .filter(|broker| !self.links.has_broker(*broker) && !self.links.dials_broker(*broker))
            .collect()
    }

    /// An attempt to connect has ended. An error is final: no broker will take this client.
    pub(super) fn dialled(&mut self, dialled: Dialled, now: Instant) -> Result<()> {
        let Dialled { endpoint, broker, result } = dialled;
        let error = match result {
            Err(error) => error,
            Ok((link, welcome)) => match self.unfit(&endpoint, broker, &welcome) {
                Some(error) => error,
                None => {
                    self.shared.set_message_bytes_max(welcome.limits.message_bytes_max as usize);
                    self.links.drop_dials_for_any();
                    self.links.add(link, Session::new(&welcome, now));
                    self.touch_unseated();
                    return Ok(());
                }
            },
        };
        if link::is_final(&error) && self.links.is_empty() {
            return Err(error);
        }
        tracing::debug!(%endpoint, %error, "a broker cannot be reached");
        let chance = &self.shared.chance;
        match broker {
            Some(broker) => {
                let pace = self.dialing.brokers.entry(broker).or_insert_with(|| Pace::new(now));
                pace.pause(Duration::ZERO, now, chance);
                self.turn_back_from(broker);
            }
            None => self.dialing.any.pause(Duration::ZERO, now, chance),
        }
        if self.links.is_empty() {
            self.reconnecting(error.to_string());
        }
        Ok(())
    }

    /// Why a broker that answered is of no use.
    fn unfit(
        &mut self,
        endpoint: &Endpoint,
        expected: Option<BrokerId>,
        welcome: &weir_protocol::frame::Welcome,
    ) -> Option<Error> {
        let unfit =
            |why: &str| Some(Error::local(ErrorCode::Unreachable, format!("{endpoint}: {why}")));
        if expected.is_some_and(|expected| expected != welcome.broker_id) {
            return unfit("another broker answers there");
        }
        if self.links.has_broker(welcome.broker_id) {
            return unfit("the same broker answers at another address");
        }
        if self.dialing.cluster != Some(welcome.cluster_id) {
            if !self.links.is_empty() {
                return unfit("it belongs to another cluster");
            }
            self.dialing.cluster = Some(welcome.cluster_id);
            self.dialing.brokers.clear();
            self.router.clear();
        }
        None
    }

    /// A connection has ended: its broker is left alone for a while.
    pub(super) fn pause_dialing(&mut self, session: &Session, after: Duration, now: Instant) {
        let stable = now.saturating_duration_since(session.began) >= STABLE_AFTER;
        let elsewhere = self.router.has_several() || self.shared.config.endpoints.len() > 1;
        let shared = self.shared.clone();
        let any = &mut self.dialing.any;
        if stable {
            any.backoff.reset();
        }
        // Another broker need not be waited for.
        any.pause(if elsewhere { Duration::ZERO } else { after }, now, &shared.chance);
        let pace = self.dialing.pace(session.broker, now);
        if stable {
            pace.backoff.reset();
        }
        pace.pause(after, now, &shared.chance);
    }
}
