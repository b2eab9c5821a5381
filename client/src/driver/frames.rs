//! What the broker's frames do to lanes and requests.
//!
//! Owns: who each frame is for. Never: fails for a frame on a stream that was just closed.

use super::Driver;
use super::lanes::{self, Place};
use super::session::{Opening, Session};
use crate::consumer::shared::End;
use crate::error::{Error, Result};
use crate::publisher::answers::Retries;
use crate::publisher::lane::LaneCore;
use crate::publisher::shared::PublishLane;
use crate::shared::{Answer, LaneId, LaneRef, ReplyTo, RequestBody};
use std::sync::atomic::Ordering;
use tokio::time::Instant;
use weir_protocol::error_code::{Action, ErrorCode, Outcome};
use weir_protocol::frame::{
    Assignment, Deliver, ErrorFrame, Frame, MetadataPage, PublisherOpened, Refusal, Refused,
    Settled, StreamClosed, Subscribed,
};
use weir_protocol::types::{BrokerId, RequestId, StreamId, Term};

impl Driver {
    /// Takes in one frame. An error ends the connection.
    pub(crate) fn handle(
        &mut self,
        session: &mut Session,
        frame: Frame,
        now: Instant,
    ) -> Result<()> {
        match frame {
            Frame::Heartbeat => Ok(()),
            Frame::GoAway(away) => {
                tracing::info!(text = away.text, "the broker asks to go away");
                session.go_away(&away, now);
                Ok(())
            }
            Frame::Error(error) => self.refused_request(session, error, now),
            Frame::PublisherOpened(opened) => self.publisher_opened(session, &opened, now),
            Frame::Published(published) => {
                let stream = published.stream;
                self.with_publisher(session, stream, now, |core, retries| {
                    core.published(&published, retries);
                });
                Ok(())
            }
            Frame::Refused(refused) => {
                self.refused_batch(session, &refused, now);
                Ok(())
            }
            Frame::Grant(stream, grant) => {
                self.with_publisher(session, stream, now, |core, _| core.granted(&grant));
                Ok(())
            }
            Frame::Revoke(stream, revoke) => {
                let mut answer = None;
                self.with_publisher(session, stream, now, |core, _| {
                    answer = core.revoke(stream, &revoke);
                });
                if let Some(frame) = answer {
                    session.out.push(&frame);
                }
                Ok(())
            }
            Frame::StreamClosed(closed) => {
                self.stream_closed(session, &closed, now);
                Ok(())
            }
            Frame::Subscribed(subscribed) => self.subscribed(session, &subscribed),
            Frame::Deliver(deliver) => {
                self.delivered(session, &deliver);
                Ok(())
            }
            Frame::Settled(settled) => {
                self.settled(session, &settled);
                Ok(())
            }
            Frame::Assignment(assignment) => {
                self.assigned(session, &assignment, now);
                Ok(())
            }
            Frame::MetadataPage(page) => self.page(session, page),
            Frame::Done(request) if session.openings.contains_key(&request) => {
                self.joined(session, request)
            }
            Frame::Done(request) => match session.requests.remove(&request) {
                Some(asked) => {
                    asked.answer(Ok(Answer::Done));
                    Ok(())
                }
                None => Err(unasked(request)),
            },
            other => {
                let text = format!("a broker does not send {other:?}");
                Err(Error::protocol(ErrorCode::BadState, text))
            }
        }
    }

    fn refused_batch(&mut self, session: &Session, refused: &Refused, now: Instant) {
        let Some((id, lane)) = session.streams.get(&refused.stream) else { return };
        let moved = self.note_refusal(session.broker, (*id, lane), &refused.refusal);
        self.with_publisher(session, refused.stream, now, |core, retries| {
            retries.moved = moved;
            core.refused(refused, retries);
        });
    }

    fn with_publisher(
        &mut self,
        session: &Session,
        stream: StreamId,
        now: Instant,
        act: impl FnOnce(&mut LaneCore, &mut Retries<'_>),
    ) {
        if let Some((id, LaneRef::Publish(lane))) = session.streams.get(&stream) {
            self.lanes.touched.insert(*id);
            self.with_lane(lane, now, act);
        }
    }

    fn with_lane(
        &mut self,
        lane: &PublishLane,
        now: Instant,
        act: impl FnOnce(&mut LaneCore, &mut Retries<'_>),
    ) {
        let shared = self.shared.clone();
        let budget = &mut self.budget;
        let mut retries = Retries { budget, chance: &shared.chance, now, moved: false };
        act(&mut lane.lock(), &mut retries);
    }

    fn publisher_opened(
        &mut self,
        session: &mut Session,
        opened: &PublisherOpened,
        now: Instant,
    ) -> Result<()> {
        let Some(Opening { owner, stream }) = session.openings.remove(&opened.request) else {
            return Err(unasked(opened.request));
        };
        let Some(owner) = owner else {
            session.out.push(&Frame::CloseStream(stream));
            return Ok(());
        };
        let LaneRef::Publish(lane) = owner.1.clone() else { return Err(unasked(opened.request)) };
        self.note_leads(session.broker, &owner.1, opened.term);
        self.lanes.touched.insert(owner.0);
        session.streams.insert(stream, owner);
        let broker = session.broker;
        self.with_lane(&lane, now, |core, retries| core.opened(broker, stream, opened, retries));
        if let Some(identity) = lane.lock().identity().filter(|_| lane.producer.is_some()) {
            // Set by the first lane; later ones were opened under it.
            let _ = lane.identity.set(identity);
        }
        lane.changed.notify_waiters();
        Ok(())
    }

    fn subscribed(&mut self, session: &mut Session, subscribed: &Subscribed) -> Result<()> {
        let Some(Opening { owner, stream }) = session.openings.remove(&subscribed.request) else {
            return Err(unasked(subscribed.request));
        };
        let Some(owner) = owner else {
            session.out.push(&Frame::CloseStream(stream));
            return Ok(());
        };
        let LaneRef::Read(consumer, lane) = owner.1.clone() else {
            return Err(unasked(subscribed.request));
        };
        self.note_leads(session.broker, &owner.1, subscribed.term);
        self.lanes.touched.insert(owner.0);
        session.streams.insert(stream, owner);
        consumer.lock().lanes[lane].opened(stream, subscribed);
        consumer.changed.notify_waiters();
        Ok(())
    }

    fn settled(&mut self, session: &Session, settled: &Settled) {
        let Some((id, LaneRef::Read(consumer, lane))) = session.streams.get(&settled.stream) else {
            return;
        };
        let going = {
            let mut state = consumer.lock();
            state.lanes[*lane].settled(settled);
            state.lanes[*lane].is_going()
        };
        self.lanes.touched.extend(going.then_some(*id));
        consumer.changed.notify_waiters();
    }

    fn joined(&mut self, session: &mut Session, request: RequestId) -> Result<()> {
        let Some(Opening { owner, stream }) = session.openings.remove(&request) else {
            return Err(unasked(request));
        };
        let Some(owner) = owner else {
            session.out.push(&Frame::CloseStream(stream));
            return Ok(());
        };
        let LaneRef::Member(consumer) = owner.1.clone() else { return Err(unasked(request)) };
        self.lanes.touched.insert(owner.0);
        session.streams.insert(stream, owner);
        if let Some(membership) = &mut consumer.lock().membership {
            membership.opened(stream);
        }
        Ok(())
    }

    fn assigned(&mut self, session: &Session, assignment: &Assignment, now: Instant) {
        let Some((_, LaneRef::Member(consumer))) = session.streams.get(&assignment.stream) else {
            return;
        };
        {
            let mut state = consumer.lock();
            if let Some(membership) = &mut state.membership {
                membership.assigned(assignment, now);
            }
            state.share(now);
        }
        self.touch_lanes_of(consumer);
        consumer.changed.notify_waiters();
    }

    fn delivered(&mut self, session: &Session, deliver: &Deliver) {
        let Some((id, LaneRef::Read(consumer, lane))) = session.streams.get(&deliver.stream) else {
            return;
        };
        let mut state = consumer.lock();
        let taken = state.lanes[*lane].delivered(deliver);
        if !matches!(taken, Ok(false)) {
            self.lanes.touched.insert(*id);
        }
        let failed = taken.err().and_then(|error| state.lanes[*lane].unreadable(error));
        let waker = state.mark_ready(*lane);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        if let Some(error) = failed {
            consumer.end(End::Failed(Some(error)));
        }
    }

    fn stream_closed(&mut self, session: &mut Session, closed: &StreamClosed, now: Instant) {
        let Some((id, lane)) = session.streams.remove(&closed.stream) else { return };
        self.lanes.unseat(id);
        let refusal = closed.refusal.clone().unwrap_or_else(|| {
            Refusal::new(ErrorCode::LeaderLost, "the broker closed the stream without a reason")
        });
        self.refused_stream(session.broker, (id, &lane), &refusal, now);
    }

    fn refused_stream(
        &mut self,
        broker: BrokerId,
        (id, lane): (LaneId, &LaneRef),
        refusal: &Refusal,
        now: Instant,
    ) {
        let moved = self.note_refusal(broker, (id, lane), refusal);
        match lane {
            LaneRef::Publish(lane) => {
                self.with_lane(lane, now, |core, retries| {
                    retries.moved = moved;
                    core.refused_stream(refusal, retries);
                });
                lane.changed.notify_waiters();
            }
            LaneRef::Member(consumer) => {
                let chance = Some(&self.shared.chance).filter(|_| !moved);
                if let Some(membership) = &mut consumer.lock().membership {
                    membership.refused(refusal, now, chance);
                }
            }
            LaneRef::Read(consumer, number) => {
                let chance = Some(&self.shared.chance).filter(|_| !moved);
                let mut state = consumer.lock();
                let failed = state.lanes[*number].refused(refusal, now, chance);
                if state.lanes[*number].is_away() {
                    let membership = state.membership.as_ref();
                    self.lanes.touched.extend(membership.map(|membership| membership.lane_id));
                }
                drop(state);
                if let Some(error) = failed {
                    consumer.end(End::Failed(Some(error)));
                }
            }
        }
    }

    /// Learns what a refusal tells of the leader of a lane's partition. True: the lane may go to
    /// another broker at once.
    fn note_refusal(
        &mut self,
        broker: BrokerId,
        (id, lane): (LaneId, &LaneRef),
        refusal: &Refusal,
    ) -> bool {
        let recovers = refusal.code == ErrorCode::Recovering.number();
        if Action::of(refusal.code) != Action::Reconnect && !recovers {
            return false;
        }
        let Place { topic, partition, .. } = lanes::place_of(lane);
        let leader = refusal.leader();
        if leader.is_some() || self.router.has_several() {
            self.asking.doubt(topic.clone());
        }
        if refusal.code != ErrorCode::NotLeader.number() {
            return false;
        }
        self.lanes.news |= leader.is_some();
        let term = self.router.note_denial((&topic, partition), broker, leader);
        term.is_some_and(|term| self.lanes.follows(id, broker, term))
    }

    /// The broker leads the partition of a lane in this term, unless it does not tell.
    fn note_leads(&mut self, broker: BrokerId, lane: &LaneRef, term: Term) {
        if term != Term(0) {
            let Place { topic, partition, .. } = lanes::place_of(lane);
            self.lanes.news |= self.router.note_leads((&topic, partition), broker, term);
        }
    }

    fn refused_request(
        &mut self,
        session: &mut Session,
        error: ErrorFrame,
        now: Instant,
    ) -> Result<()> {
        if let Some(Opening { owner, .. }) = session.openings.remove(&error.request) {
            if let Some((id, lane)) = owner {
                self.lanes.unseat(id);
                self.refused_stream(session.broker, (id, &lane), &error.refusal, now);
            }
            return Ok(());
        }
        if let Some(asked) = session.requests.remove(&error.request) {
            if error.refusal.code == ErrorCode::NotLeader.number() {
                self.note_topics_leader(&error.refusal);
            }
            asked.answer(Err(Error::refused(&error.refusal)));
            return Ok(());
        }
        Err(Error::refused(&error.refusal))
    }

    fn page(&mut self, session: &mut Session, page: MetadataPage) -> Result<()> {
        let Some(asked) = session.requests.remove(&page.request) else {
            return Err(unasked(page.request));
        };
        self.note_page(&asked.body, &page);
        let ReplyTo::Refresh(topic) = &asked.reply else {
            asked.answer(Ok(Answer::Page(page)));
            return Ok(());
        };
        let Some(view) = page.topics.iter().find(|view| view.name == *topic) else { return Ok(()) };
        let (state, lanes) = {
            let registry = self.shared.lock();
            let state = registry.topics.get(topic).and_then(std::sync::Weak::upgrade);
            (state, registry.lanes.values().cloned().collect::<Vec<_>>())
        };
        let Some(state) = state else { return Ok(()) };
        let before = state.partitions.fetch_max(view.config.partitions, Ordering::Relaxed);
        if before < view.config.partitions {
            for lane in lanes {
                if let LaneRef::Read(consumer, 0) = lane {
                    consumer.wake();
                }
            }
        }
        Ok(())
    }

    /// Learns who leads the topics of a page that are used, or are about to be.
    fn note_page(&mut self, asked: &RequestBody, page: &MetadataPage) {
        let one = matches!(asked, RequestBody::Topics { topic: Some(_), .. });
        let news = {
            let registry = self.shared.lock();
            self.router.note_page(page, |topic| one || registry.topics.contains_key(topic))
        };
        self.lanes.news |= news;
    }
}

impl Session {
    /// The connection is gone: whoever asked learns that nobody knows.
    pub(crate) fn fail_requests(&mut self, cause: &str) {
        for (_, request) in std::mem::take(&mut self.requests) {
            let error = Error::local(ErrorCode::LeaderLost, cause).with_outcome(Outcome::Unknown);
            request.answer(Err(error));
        }
    }
}

fn unasked(request: RequestId) -> Error {
    Error::protocol(
        ErrorCode::BadState,
        format!("an answer to request {request}, which was not asked"),
    )
}
