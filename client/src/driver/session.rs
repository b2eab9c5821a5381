//! What one connection owes and is owed: streams, requests, heartbeats.
//!
//! Owns: the numbers of streams and requests, and who they belong to.
//! Never: touches the socket; frames go into `out`.

use crate::consumer::lane::Ask;
use crate::shared::{LaneId, LaneRef, ReplyTo, Request, RequestBody};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;
use weir_protocol::codec::EncodeBuf;
use weir_protocol::frame::{
    CreateTopic, DeleteTopic, FEATURE_SHARING, Frame, GoAway, Join, Metadata, OpenPublisher,
    Subscribe, Welcome,
};
use weir_protocol::limits::DEAD_AFTER_MS;
use weir_protocol::types::{BrokerId, Name, PartitionId, RequestId, StreamId};

/// A broker that owes an answer and says nothing for this long may be cut off from the others.
const SUSPECT_AFTER: Duration = Duration::from_secs(3);

/// A lane with its number.
pub(crate) type Owner = (LaneId, LaneRef);

/// A stream that is asked for.
pub(crate) struct Opening {
    /// None: its lane has gone elsewhere meanwhile.
    pub(crate) owner: Option<Owner>,
    pub(crate) stream: StreamId,
}

/// A stream that is to be asked for.
pub(crate) enum Wish {
    Publisher(Owner),
    Consumer(Owner, Ask),
    Member(Owner),
}

impl Wish {
    fn lane(&self) -> LaneId {
        match self {
            Self::Publisher((id, _)) | Self::Consumer((id, _), ..) | Self::Member((id, _)) => *id,
        }
    }
}

/// The broker shuts down.
pub(crate) struct Away {
    pub(crate) deadline: Instant,
    pub(crate) reconnect_after: Duration,
}

/// One connection behind its handshake.
pub(crate) struct Session {
    /// Who is at the other end.
    pub(crate) broker: BrokerId,
    pub(crate) began: Instant,
    /// Since when no lane has anything here.
    idle_since: Option<Instant>,
    /// Since when the broker owes an answer and says nothing.
    owes_since: Option<Instant>,
    /// That is too long: others are asked what they know.
    pub(crate) suspect: bool,
    pub(crate) out: EncodeBuf,
    pub(crate) streams: BTreeMap<StreamId, Owner>,
    pub(crate) openings: BTreeMap<RequestId, Opening>,
    pub(crate) requests: BTreeMap<RequestId, Request>,
    pub(crate) wishes: VecDeque<Wish>,
    pub(crate) away: Option<Away>,
    pub(crate) heard_at: Instant,
    pub(crate) sent_at: Instant,
    /// Its broker knows of consumers that share.
    pub(crate) shares: bool,
    requests_max: usize,
    streams_max: usize,
    heartbeat: Duration,
    last_number: u32,
}

impl Session {
    pub(crate) fn new(welcome: &Welcome, now: Instant) -> Self {
        let limits = &welcome.limits;
        Self {
            broker: welcome.broker_id,
            began: now,
            idle_since: None,
            owes_since: None,
            suspect: false,
            out: EncodeBuf::new(),
            streams: BTreeMap::new(),
            openings: BTreeMap::new(),
            requests: BTreeMap::new(),
            wishes: VecDeque::new(),
            away: None,
            heard_at: now,
            sent_at: now,
            shares: welcome.features & FEATURE_SHARING != 0,
            requests_max: limits.requests_max.max(1) as usize,
            streams_max: limits.streams_max.max(1) as usize,
            heartbeat: Duration::from_millis(u64::from(limits.heartbeat_ms.max(100))),
            last_number: 0,
        }
    }

    /// Numbers of streams and requests rise and are never used twice on a connection.
    fn next_number(&mut self) -> u32 {
        self.last_number += 1;
        self.last_number
    }

    /// Whether one more request may wait for an answer.
    pub(crate) fn has_slot(&self) -> bool {
        self.away.is_none() && self.openings.len() + self.requests.len() < self.requests_max
    }

    /// Asks for the streams that are wished for, as far as the broker's limits allow.
    pub(crate) fn grant_wishes(&mut self) {
        while self.has_slot() && self.streams.len() + self.openings.len() < self.streams_max {
            let Some(wish) = self.wishes.pop_front() else { return };
            let stream = StreamId(self.next_number());
            let request = RequestId(self.next_number());
            let (owner, frame) = match wish {
                Wish::Publisher(owner) => {
                    let frame = open_publisher(&owner.1, stream, request);
                    (owner, frame)
                }
                Wish::Consumer(owner, ask) => {
                    let frame = subscribe(&owner.1, (stream, request), ask);
                    (owner, frame)
                }
                Wish::Member(owner) => {
                    let frame = join(&owner.1, stream, request);
                    (owner, frame)
                }
            };
            if let Some(frame) = frame {
                self.out.push(&frame);
                self.openings.insert(request, Opening { owner: Some(owner), stream });
            }
        }
    }

    /// Sends a request of the client.
    pub(crate) fn ask(&mut self, request: Request) {
        let id = RequestId(self.next_number());
        let frame = match &request.body {
            RequestBody::Topics { topic, after } => Frame::Metadata(Metadata {
                request: id,
                topic: topic.clone(),
                after: after.clone(),
            }),
            RequestBody::Create { topic, config } => Frame::CreateTopic(CreateTopic {
                request: id,
                topic: topic.clone(),
                config: *config,
            }),
            RequestBody::Alter(alter) => {
                let mut alter = (**alter).clone();
                alter.request = id;
                Frame::AlterTopic(alter)
            }
            RequestBody::Delete { topic } => {
                Frame::DeleteTopic(DeleteTopic { request: id, topic: topic.clone() })
            }
        };
        self.out.push(&frame);
        self.requests.insert(id, request);
    }

    /// Ends a stream, and forgets it: what still arrives for it is ignored.
    pub(crate) fn close_stream(&mut self, stream: StreamId) {
        if self.streams.remove(&stream).is_some() {
            self.out.push(&Frame::CloseStream(stream));
        }
    }

    /// A lane goes elsewhere: it is owed nothing here any more.
    pub(crate) fn forget_lane(&mut self, lane: LaneId) {
        self.wishes.retain(|wish| wish.lane() != lane);
        for opening in self.openings.values_mut() {
            opening.owner.take_if(|(id, _)| *id == lane);
        }
        let streams = self.streams.iter().filter(|(_, (id, _))| *id == lane);
        for stream in streams.map(|(stream, _)| *stream).collect::<Vec<_>>() {
            self.close_stream(stream);
        }
    }

    /// Whether this topic was asked about and the answer is not there.
    pub(crate) fn refreshes(&self, topic: &Name) -> bool {
        let asks =
            |request: &Request| matches!(&request.reply, ReplyTo::Refresh(of) if of == topic);
        self.requests.values().any(asks)
    }

    /// The lanes that have a stream here, or have asked for one.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = &LaneRef> {
        let opening = self.openings.values().filter_map(|opening| opening.owner.as_ref());
        self.streams.values().chain(opening).map(|(_, lane)| lane)
    }

    /// Whether a lane waits here for an answer to something it sent.
    pub(crate) fn has_flight(&self) -> bool {
        self.streams.values().any(|(_, lane)| match lane {
            LaneRef::Publish(lane) => lane.lock().has_flight(),
            LaneRef::Read(..) | LaneRef::Member(_) => false,
        })
    }

    /// Whether the broker has been silent for so long, owing an answer, that it is suspect.
    pub(crate) fn judge(&mut self, now: Instant) {
        let silent = now >= self.heard_at + SUSPECT_AFTER;
        if !silent || !self.owes() {
            (self.owes_since, self.suspect) = (None, false);
            return;
        }
        // What waits for the socket is owed nothing before now.
        let sent_at = if self.out.is_empty() { self.sent_at.max(self.heard_at) } else { now };
        let since = *self.owes_since.get_or_insert(sent_at);
        self.suspect = now >= since + SUSPECT_AFTER;
    }

    fn owes(&self) -> bool {
        !self.openings.is_empty() || !self.requests.is_empty() || self.has_flight()
    }

    /// For how long nothing was wanted of this connection.
    pub(crate) fn idle_for(&mut self, now: Instant) -> Duration {
        let idle = self.streams.is_empty()
            && self.openings.is_empty()
            && self.wishes.is_empty()
            && self.requests.values().all(|asked| matches!(asked.reply, ReplyTo::Refresh(_)));
        if !idle {
            self.idle_since = None;
            return Duration::ZERO;
        }
        now.saturating_duration_since(*self.idle_since.get_or_insert(now))
    }

    pub(crate) fn go_away(&mut self, away: &GoAway, now: Instant) {
        let ms = |ms: u32| Duration::from_millis(u64::from(ms));
        self.away = Some(Away {
            deadline: now + ms(away.deadline_ms),
            reconnect_after: ms(away.reconnect_after_ms),
        });
    }

    /// Sends a heartbeat when one is due. False: the broker is silent for too long.
    pub(crate) fn keep_alive(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.sent_at) >= self.heartbeat && self.out.is_empty() {
            self.out.push(&Frame::Heartbeat);
            self.sent_at = now;
        }
        now < self.dead_at()
    }

    fn dead_at(&self) -> Instant {
        self.heard_at + Duration::from_millis(u64::from(DEAD_AFTER_MS))
    }

    /// When to look again without being told.
    pub(crate) fn timer(&self, now: Instant) -> Instant {
        let beat = self.sent_at + self.heartbeat;
        let next = if self.out.is_empty() { beat.min(self.dead_at()) } else { self.dead_at() };
        let judged = self.owes_since.unwrap_or(self.heard_at) + SUSPECT_AFTER;
        let judged = Some(judged).filter(|at| *at > now);
        let away = self.away.as_ref().map(|away| away.deadline);
        judged.into_iter().chain(away).fold(next, Instant::min)
    }
}

fn open_publisher(lane: &LaneRef, stream: StreamId, request: RequestId) -> Option<Frame> {
    let LaneRef::Publish(lane) = lane else { return None };
    let identity = {
        let mut core = lane.lock();
        if let (None, Some(known)) = (core.identity(), lane.identity.get()) {
            core.adopt(*known);
        }
        core.identity().unwrap_or_default()
    };
    Some(Frame::OpenPublisher(OpenPublisher {
        stream,
        request,
        topic: lane.topic.clone(),
        partition: PartitionId(lane.partition),
        producer: lane.producer.clone(),
        producer_id: identity.id,
        producer_epoch: identity.epoch,
    }))
}

fn join(lane: &LaneRef, stream: StreamId, request: RequestId) -> Option<Frame> {
    let LaneRef::Member(consumer) = lane else { return None };
    let member = consumer.lock().membership.as_ref()?.member;
    let (topic, subscription) = (consumer.topic.clone(), consumer.subscription.clone()?);
    Some(Frame::Join(Join { stream, request, topic, subscription, member }))
}

fn subscribe(lane: &LaneRef, (stream, request): (StreamId, RequestId), ask: Ask) -> Option<Frame> {
    let LaneRef::Read(consumer, lane) = lane else { return None };
    let partition = consumer.lock().lanes.get(*lane)?.partition;
    Some(Frame::Subscribe(Subscribe {
        stream,
        request,
        topic: consumer.topic.clone(),
        partition: PartitionId(partition),
        subscription: consumer.subscription.clone(),
        start: ask.start,
        credit: ask.credit,
        needs: ask.needs,
    }))
}
