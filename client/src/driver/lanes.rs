//! How the driver comes to lanes and what it does for them.
//!
//! Owns: the order of visits, and where what a lane says goes.
//! Never: decides what a lane sends; the lane does.

use super::session::{Session, Wish};
use super::{Driver, OUT_BYTES_MAX};
use crate::consumer::lane::Wish as ReadWish;
use crate::consumer::shared::{ConsumerShared, End};
use crate::publisher::shared::PublishLane;
use crate::shared::{LaneId, LaneRef};
use std::sync::Arc;
use tokio::time::Instant;

impl Driver {
    /// Visits the lanes that were rung, touched by frames, or whose time has come.
    pub(super) fn visit_due(&mut self, mut session: Option<&mut Session>, now: Instant) {
        let lanes = {
            let mut registry = self.shared.lock();
            if registry.closing && !self.closing_told {
                self.closing_told = true;
                registry.lanes.values().for_each(tell_closing);
                self.touched.extend(registry.lanes.keys().copied());
            }
            self.touched.append(&mut registry.rung);
            self.timers.take_due(now, &mut self.touched);
            let due = std::mem::take(&mut self.touched);
            due.into_iter()
                .filter_map(|id| Some((id, registry.lanes.get(&id)?.clone())))
                .collect::<Vec<_>>()
        };
        for (id, lane) in lanes {
            let finished = match &lane {
                LaneRef::Publish(publish) => {
                    self.visit_publish(id, publish, session.as_deref_mut(), now)
                }
                LaneRef::Read(consumer, number) => {
                    self.visit_read(id, (consumer, *number), session.as_deref_mut(), now)
                }
            };
            if finished {
                self.timers.set(id, None);
                self.blocked.remove(&id);
                self.shared.lock().lanes.remove(&id);
            }
        }
    }

    fn visit_publish(
        &mut self,
        id: LaneId,
        lane: &Arc<PublishLane>,
        session: Option<&mut Session>,
        now: Instant,
    ) -> bool {
        let room = session
            .as_ref()
            .filter(|session| session.away.is_none())
            .map(|session| OUT_BYTES_MAX.saturating_sub(session.out.len()));
        let visit = lane.lock().visit(now, room, &mut self.frames);
        self.timers.set(id, visit.timer);
        match visit.blocked {
            Some(reason) => self.blocked.insert(id, reason),
            None => self.blocked.remove(&id),
        };
        if visit.more {
            self.stalled.insert(id);
        }
        if visit.finished {
            lane.changed.notify_waiters();
        }
        let Some(session) = session else {
            self.frames.clear();
            return visit.finished;
        };
        for frame in self.frames.drain(..) {
            session.out.push(&frame);
        }
        if let Some(stream) = visit.close {
            session.close_stream(stream);
        }
        if visit.open {
            session.wishes.push_back(Wish::Publisher((id, LaneRef::Publish(lane.clone()))));
        }
        visit.finished
    }

    fn visit_read(
        &mut self,
        id: LaneId,
        (consumer, number): (&Arc<ConsumerShared>, usize),
        session: Option<&mut Session>,
        now: Instant,
    ) -> bool {
        let visit = {
            let mut state = consumer.lock();
            let wish = match (&state.end, state.gone) {
                (_, true) | (End::Failed(_), _) => ReadWish::End,
                (End::Drain | End::Stop, false) => ReadWish::Enough,
                (End::No, false) => ReadWish::More,
            };
            let connected = session.as_ref().is_some_and(|session| session.away.is_none());
            let Some(lane) = state.lanes.get_mut(number) else { return true };
            lane.visit(now, connected, wish, &mut self.frames)
        };
        self.timers.set(id, visit.timer);
        let Some(session) = session else {
            self.frames.clear();
            return visit.finished;
        };
        for frame in self.frames.drain(..) {
            session.out.push(&frame);
        }
        if let Some(stream) = visit.close {
            session.close_stream(stream);
        }
        if let Some((start, credit)) = visit.open {
            let owner = (id, LaneRef::Read(consumer.clone(), number));
            session.wishes.push_back(Wish::Consumer(owner, start, credit));
        }
        visit.finished
    }

    /// The connection is gone: lanes keep what they have and ask for new streams later.
    pub(super) fn lost(&mut self, cause: &str) {
        tracing::debug!(cause, "the connection is lost");
        let lanes: Vec<_> = {
            let registry = self.shared.lock();
            registry.lanes.iter().map(|(id, lane)| (*id, lane.clone())).collect()
        };
        for (id, lane) in lanes {
            match lane {
                LaneRef::Publish(lane) => lane.lock().lost(cause),
                LaneRef::Read(consumer, number) => {
                    if let Some(lane) = consumer.lock().lanes.get_mut(number) {
                        lane.lost();
                    }
                }
            }
            self.touched.insert(id);
        }
        self.blocked.clear();
        self.stalled.clear();
    }
}

fn tell_closing(lane: &LaneRef) {
    match lane {
        LaneRef::Publish(lane) => {
            let mut core = lane.lock();
            core.close_window();
            core.finish();
        }
        LaneRef::Read(consumer, _) => {
            consumer.lock().gone = true;
            consumer.end(End::Stop);
        }
    }
}
