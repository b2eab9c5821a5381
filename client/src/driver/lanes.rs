//! How the driver comes to lanes, where each has its stream, and what it does for them.
//!
//! Owns: the order of visits, the seats, and where what a lane says goes.
//! Never: decides what a lane sends; the lane does.
//! Invariants: a lane with a stream, or that asked for one, has a seat at that connection; a
//! homeless lane has none.

use super::links::LinkId;
use super::router::Home;
use super::session::Wish;
use super::timers::Timers;
use super::{Driver, OUT_BYTES_MAX};
use crate::consumer::lane::{ReadLane, Wish as ReadWish};
use crate::consumer::share::Standing;
use crate::consumer::shared::{ConsumerShared, ConsumerState, End};
use crate::error::Reason;
use crate::publisher::shared::PublishLane;
use crate::shared::{LaneId, LaneRef};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::time::Instant;
use weir_protocol::frame::Frame;
use weir_protocol::types::{BrokerId, Name, StreamId, Term};

/// What the driver knows of its lanes.
#[derive(Default)]
pub(super) struct Lanes {
    pub(super) timers: Timers,
    /// Lanes that frames have changed.
    pub(super) touched: BTreeSet<LaneId>,
    /// Lanes that a full socket keeps from sending.
    stalled: BTreeSet<LaneId>,
    pub(super) blocked: BTreeMap<LaneId, Reason>,
    /// The connection that a lane has its stream on.
    pub(super) seats: BTreeMap<LaneId, LinkId>,
    /// Lanes that want a stream while there is nobody to ask for one, with what they are for.
    pub(super) homeless: BTreeMap<LaneId, Place>,
    /// The newest term for whose leader a lane has left a broker without a pause, and that broker.
    followed: BTreeMap<LaneId, (Term, BrokerId)>,
    /// Leaders have become known that were not.
    pub(super) news: bool,
    frames: Vec<Frame>,
    closing_told: bool,
}

impl Lanes {
    pub(super) fn touch_stalled(&mut self) {
        self.touched.append(&mut self.stalled);
    }

    /// The lane has no stream on any connection any more.
    pub(super) fn unseat(&mut self, id: LaneId) -> Option<LinkId> {
        self.touched.insert(id);
        self.stalled.remove(&id);
        self.seats.remove(&id)
    }

    /// Whether a lane that was sent away by a broker goes to the leader of this term at once. All that
    /// this broker says of it counts as one; who is sent on from there waits, or the two could send
    /// the lane to one another for ever.
    pub(super) fn follows(&mut self, id: LaneId, from: BrokerId, term: Term) -> bool {
        let followed = self.followed.entry(id).or_insert((term, from));
        let goes = term > followed.0 || (term, from) == *followed;
        if goes {
            *followed = (term, from);
        }
        goes
    }

    fn forget(&mut self, id: LaneId) {
        self.followed.remove(&id);
        self.timers.set(id, None);
        self.blocked.remove(&id);
        self.stalled.remove(&id);
        self.seats.remove(&id);
        self.homeless.remove(&id);
    }
}

/// What a lane is for, and who may serve it.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) topic: Name,
    pub(super) partition: u32,
    /// Any replica will do, not the leader alone.
    pub(super) anywhere: bool,
}

pub(super) fn place_of(lane: &LaneRef) -> Place {
    match lane {
        LaneRef::Publish(lane) => {
            Place { topic: lane.topic.clone(), partition: lane.partition, anywhere: false }
        }
        LaneRef::Read(consumer, number) => {
            let state = consumer.lock();
            let lane = state.lanes.get(*number);
            let partition = lane.map_or(0, |lane| lane.partition);
            let anywhere = lane.is_some_and(ReadLane::goes_anywhere);
            Place { topic: consumer.topic.clone(), partition, anywhere }
        }
        // The leader of partition 0 knows who reads what.
        LaneRef::Member(consumer) => {
            Place { topic: consumer.topic.clone(), partition: 0, anywhere: false }
        }
    }
}

impl Driver {
    /// Visits the lanes that were rung, touched by frames, or whose time has come.
    pub(super) fn visit_due(&mut self, now: Instant) {
        let due = {
            let mut registry = self.shared.lock();
            let lanes = &mut self.lanes;
            if registry.closing && !lanes.closing_told {
                lanes.closing_told = true;
                registry.lanes.values().for_each(tell_closing);
                lanes.touched.extend(registry.lanes.keys().copied());
            }
            lanes.touched.append(&mut registry.rung);
            lanes.timers.take_due(now, &mut lanes.touched);
            let due = std::mem::take(&mut lanes.touched);
            due.into_iter()
                .filter_map(|id| Some((id, registry.lanes.get(&id)?.clone())))
                .collect::<Vec<_>>()
        };
        for (id, lane) in due {
            let finished = match &lane {
                LaneRef::Publish(publish) => self.visit_publish(id, publish, now),
                LaneRef::Read(consumer, number) => self.visit_read(id, (consumer, *number), now),
                LaneRef::Member(consumer) => self.visit_member(id, consumer, now),
            };
            if finished {
                self.lanes.forget(id);
                self.shared.lock().lanes.remove(&id);
            }
        }
    }

    fn visit_publish(&mut self, id: LaneId, lane: &Arc<PublishLane>, now: Instant) -> bool {
        // The stream it has left is closed where it was, before it looks for another.
        let left = lane.lock().take_abandoned();
        self.leave(id, left);
        let place = Place { topic: lane.topic.clone(), partition: lane.partition, anywhere: false };
        let link = self.link_for(id, &place);
        let session = link.and_then(|link| self.links.session(link));
        let room = session
            .filter(|session| session.away.is_none())
            .map(|session| OUT_BYTES_MAX.saturating_sub(session.out.len()));
        let visit = lane.lock().visit(now, room, &mut self.lanes.frames);
        self.lanes.timers.set(id, visit.timer);
        match visit.blocked {
            Some(reason) => self.lanes.blocked.insert(id, reason),
            None => self.lanes.blocked.remove(&id),
        };
        if visit.more {
            self.lanes.stalled.insert(id);
        }
        if visit.finished {
            lane.changed.notify_waiters();
        }
        let wish = visit.open.then(|| Wish::Publisher((id, LaneRef::Publish(lane.clone()))));
        self.carry(id, link, visit.close, wish);
        self.note_homeless(id, visit.waits.then_some(place));
        visit.finished
    }

    fn visit_read(
        &mut self,
        id: LaneId,
        (consumer, number): (&Arc<ConsumerShared>, usize),
        now: Instant,
    ) -> bool {
        let left = {
            let mut state = consumer.lock();
            let Some(lane) = state.lanes.get_mut(number) else { return true };
            lane.take_abandoned()
        };
        self.leave(id, left);
        let place = place_of(&LaneRef::Read(consumer.clone(), number));
        let link = self.link_for(id, &place);
        let session = link.and_then(|link| self.links.session(link));
        let connected = session.is_some_and(|session| session.away.is_none());
        let (visit, told) = {
            let mut state = consumer.lock();
            let wish = wish_of(&state);
            let member = state.membership.as_ref().map(|membership| membership.lane_id);
            let Some(lane) = state.lanes.get_mut(number) else { return true };
            let was_going = lane.is_going();
            let visit = lane.visit(now, connected, wish, &mut self.lanes.frames);
            let ends = visit.finished || (was_going && lane.is_away());
            (visit, member.filter(|_| ends))
        };
        // Its membership has something to say, behind the settles.
        told.into_iter().for_each(|member| self.shared.ring(member));
        self.lanes.timers.set(id, visit.timer);
        let wish = visit.open.map(|ask| {
            let owner = (id, LaneRef::Read(consumer.clone(), number));
            Wish::Consumer(owner, ask)
        });
        self.carry(id, link, visit.close, wish);
        self.note_homeless(id, visit.waits.then_some(place));
        visit.finished
    }

    fn visit_member(&mut self, id: LaneId, consumer: &Arc<ConsumerShared>, now: Instant) -> bool {
        let place = place_of(&LaneRef::Member(consumer.clone()));
        let link = self.link_for(id, &place);
        let session = link.and_then(|link| self.links.session(link));
        let connected =
            session.filter(|session| session.away.is_none()).map(|session| session.shares);
        let visit = {
            let mut state = consumer.lock();
            let standing = Standing {
                connected,
                wish: wish_of(&state),
                obeys: !state.lanes.iter().any(ReadLane::is_going),
                reads_nothing: state.lanes.iter().all(|lane| lane.is_over() || lane.is_away()),
            };
            let Some(membership) = &mut state.membership else { return true };
            let visit = membership.visit(now, standing, &mut self.lanes.frames);
            if visit.finished {
                state.share(now);
            }
            visit
        };
        self.lanes.timers.set(id, visit.timer);
        let wish = visit.open.then(|| Wish::Member((id, LaneRef::Member(consumer.clone()))));
        self.carry(id, link, None, wish);
        self.note_homeless(id, visit.waits.then_some(place));
        if visit.finished {
            self.touch_lanes_of(consumer);
            consumer.changed.notify_waiters();
        }
        visit.finished
    }

    /// Partitions were given to a consumer, or taken from it.
    pub(super) fn touch_lanes_of(&mut self, consumer: &Arc<ConsumerShared>) {
        let registry = self.shared.lock();
        let own = registry.lanes.iter().filter(|(_, lane)| match lane {
            LaneRef::Read(of, _) | LaneRef::Member(of) => Arc::ptr_eq(of, consumer),
            LaneRef::Publish(_) => false,
        });
        self.lanes.touched.extend(own.map(|(id, _)| *id));
    }

    /// The lane has left this stream for another.
    fn leave(&mut self, id: LaneId, stream: Option<StreamId>) {
        let Some(stream) = stream else { return };
        let link = self.lanes.seats.remove(&id);
        if let Some(session) = link.and_then(|link| self.links.session(link)) {
            session.close_stream(stream);
        }
    }

    /// The connection that a lane has its stream on, or where it may ask for one.
    fn link_for(&self, id: LaneId, place: &Place) -> Option<LinkId> {
        let seat = self.lanes.seats.get(&id).copied();
        seat.or_else(|| match self.home_of(place) {
            Home::Broker(broker) => self.links.of_broker(broker),
            Home::Any => self.links.any(),
            Home::Unknown => None,
        })
    }

    /// Where a lane goes that has no stream.
    pub(super) fn home_of(&self, place: &Place) -> Home {
        let Place { topic, partition, anywhere } = place;
        if *anywhere {
            let connected = |broker| self.links.of_broker(broker).is_some();
            return self.router.near(topic, *partition, connected);
        }
        self.router.home(topic, *partition)
    }

    /// Lanes that wait for a broker that cannot be reached, or for whoever leads instead of it, look
    /// elsewhere, where others will do.
    pub(super) fn turn_back_from(&mut self, broker: BrokerId) {
        let waits = |place: &Place| {
            let home = self.home_of(place);
            home == Home::Broker(broker) || home == Home::Unknown
        };
        let homeless = self.lanes.homeless.iter().filter(|(_, place)| waits(place));
        let waiting: Vec<LaneId> = homeless.map(|(id, _)| *id).collect();
        let registry = self.shared.lock();
        for id in waiting {
            let Some(LaneRef::Read(consumer, number)) = registry.lanes.get(&id) else { continue };
            if let Some(lane) = consumer.lock().lanes.get_mut(*number) {
                lane.turn_back();
                self.lanes.touched.insert(id);
            }
        }
    }

    /// Brings what a visit led to onto its connection.
    fn carry(
        &mut self,
        id: LaneId,
        link: Option<LinkId>,
        close: Option<StreamId>,
        wish: Option<Wish>,
    ) {
        let Some(session) = link.and_then(|link| self.links.session(link)) else {
            self.lanes.frames.clear();
            return;
        };
        for frame in self.lanes.frames.drain(..) {
            session.out.push(&frame);
        }
        if let Some(stream) = close {
            session.close_stream(stream);
            self.lanes.seats.remove(&id);
        }
        if let (Some(wish), Some(link)) = (wish, link) {
            session.wishes.push_back(wish);
            self.lanes.seats.insert(id, link);
        }
    }

    fn note_homeless(&mut self, id: LaneId, place: Option<Place>) {
        match place {
            Some(place) => self.lanes.homeless.insert(id, place),
            None => self.lanes.homeless.remove(&id),
        };
    }

    /// Leaders have become known: who sits elsewhere moves, and who waits looks again.
    pub(super) fn rehome(&mut self) {
        let lanes = self.lanes_where(|_| true);
        for (id, lane, link) in lanes {
            let place = place_of(&lane);
            if place.anywhere {
                continue;
            }
            let Home::Broker(broker) = self.home_of(&place) else { continue };
            let Some(session) = self.links.session(link) else { continue };
            if session.broker != broker {
                session.forget_lane(id);
                self.lanes.unseat(id);
                lose(&lane, "another broker leads the partition");
            }
        }
        let homeless = self.lanes.homeless.keys().copied();
        self.lanes.touched.extend(homeless);
    }

    /// A connection is gone: its lanes keep what they have and ask for new streams elsewhere.
    pub(super) fn lose_lanes(&mut self, gone: LinkId, cause: &str) {
        for (id, lane, _) in self.lanes_where(|link| link == gone) {
            lose(&lane, cause);
            self.lanes.unseat(id);
            self.lanes.blocked.remove(&id);
        }
    }

    /// Lanes with a seat at a connection that `fits`.
    fn lanes_where(&self, fits: impl Fn(LinkId) -> bool) -> Vec<(LaneId, LaneRef, LinkId)> {
        let registry = self.shared.lock();
        let seats = self.lanes.seats.iter().filter(|(_, link)| fits(**link));
        seats.filter_map(|(id, link)| Some((*id, registry.lanes.get(id)?.clone(), *link))).collect()
    }

    /// A connection is there: whoever has no stream looks again.
    pub(super) fn touch_unseated(&mut self) {
        let registry = self.shared.lock();
        let unseated = registry.lanes.keys().filter(|id| !self.lanes.seats.contains_key(id));
        self.lanes.touched.extend(unseated);
    }
}

/// What the application wants of its consumer.
fn wish_of(state: &ConsumerState) -> ReadWish {
    match (&state.end, state.gone) {
        (_, true) | (End::Failed(_), _) => ReadWish::End,
        (End::Drain | End::Stop, false) => ReadWish::Enough,
        (End::No, false) => ReadWish::More,
    }
}

fn lose(lane: &LaneRef, cause: &str) {
    match lane {
        LaneRef::Publish(lane) => lane.lock().lost(cause),
        LaneRef::Read(consumer, number) => {
            if let Some(lane) = consumer.lock().lanes.get_mut(*number) {
                lane.lost();
            }
        }
        LaneRef::Member(consumer) => {
            if let Some(membership) = &mut consumer.lock().membership {
                membership.lost();
            }
        }
    }
}

fn tell_closing(lane: &LaneRef) {
    match lane {
        LaneRef::Publish(lane) => {
            let mut core = lane.lock();
            core.close_window();
            core.finish();
        }
        LaneRef::Read(consumer, _) | LaneRef::Member(consumer) => {
            consumer.lock().gone = true;
            consumer.end(End::Stop);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lane_follows_a_leader_at_once_and_none_goes_round_in_circles() {
        let mut lanes = Lanes::default();
        let (old, new) = (BrokerId(1), BrokerId(2));
        let mut follows = |lane, from, term| lanes.follows(lane, from, Term(term));
        assert!(follows(1, old, 6));
        assert!(follows(2, old, 6), "another lane learns of it later");
        assert!(follows(1, old, 6), "its stream is closed behind what was refused on it");
        assert!(!follows(1, new, 6), "the leader of this term sends it back");
        assert!(!follows(1, new, 5));
        assert!(follows(1, new, 7));
        assert!(!follows(1, old, 6));
        lanes.forget(1);
        assert!(lanes.followed.keys().eq([&2]));
    }
}
