//! The one task of a partition: waits, tells the core, carries out what follows.
//!
//! Owns: the mailbox's receiving end, the places for answers, the replica.
//! Never: decides; waits anywhere but in its one `select!` (and, rarely, for a read of the log
//! that applying needs).
//! Invariants:
//! - completions come before requests, so that what is finished is never behind what is new;
//! - the mailbox is always emptied: what waits, waits in the core, where its credit holds it, so
//!   that settles, polls and openings go on while a disk is slow. A slow disk closes the grants,
//!   because reservations stay held;
//! - at most one maintenance job (checkpoint, trim, reopening) runs at a time.

mod apply;
mod effects;
mod maintain;

use super::core::{Arriving, Core, Effects, Event, Publish, Ticket};
use super::limits::{AGE_TICK, REQUESTS_PER_TURN, TICK};
use super::open::PartitionOptions;
use super::pokes::Pokes;
use super::refusal::{PublishRefusal, SubscribeRefusal};
use super::request::{JoinRequest, PublisherState, Request, SubscribeRequest, SubscribedState};
use super::subscription::consumer::{Registers, Wanted};
use super::view::Board;
use crate::connection::outbox::{ConsumerId, ConsumerPort, PublishReply, RequestReply};
use crate::flow::Reservation;
use crate::metrics::TopicMetrics;
use crate::replication::{Replica, ReplicaState};
use crate::seams::{BoxFuture, on_lane};
use maintain::{Maintained, Upkeep};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use weir_protocol::frame::Start;
use weir_protocol::types::{Index, Offset};
use weir_storage::{BatchSlice, Executor, LogReader, ReadError};

/// What a partition's task takes from around it.
pub(super) struct Surroundings {
    pub(super) options: PartitionOptions,
    pub(super) topic: Arc<TopicMetrics>,
    pub(super) executor: Arc<dyn Executor>,
    pub(super) pokes: Arc<Pokes>,
    pub(super) board: Arc<Board>,
    /// Where cold reads leave what they found.
    pub(super) reads_done: mpsc::Sender<ColdDone>,
}

/// What a cold read found.
pub(super) type ColdDone = (ConsumerId, Result<Vec<BatchSlice>, ReadError>);

/// What lives until a publish is answered: its place for the answer, and its memory.
#[derive(Debug)]
pub(super) struct Paid {
    reply: PublishReply,
    record_count: u32,
    bytes: u64,
    _reservation: Reservation,
}

/// A consumer's or member's port, and the place for the answer to what opened it.
struct Attached {
    port: ConsumerPort,
    reply: Option<Opening>,
}

/// Who waits for a port to be opened.
enum Opening {
    Consumer(RequestReply<SubscribedState>),
    Member(RequestReply<()>),
}

impl Opening {
    fn refused(self, refusal: &SubscribeRefusal) {
        match self {
            Self::Consumer(reply) => reply.done(Err(refusal.to_peer())),
            Self::Member(reply) => reply.done(Err(refusal.to_peer())),
        }
    }
}

/// Who asked, by ticket.
enum Asked {
    Open(RequestReply<PublisherState>),
    Delete(RequestReply<bool>),
    Drain(RequestReply<()>),
    Stop(RequestReply<()>),
}

/// The task's state.
pub(super) struct Task {
    core: Core<Paid>,
    effects: Effects<Paid>,
    replica: Replica,
    log: LogReader,
    state: watch::Receiver<ReplicaState>,
    around: Surroundings,
    consumers: BTreeMap<ConsumerId, Attached>,
    asked: BTreeMap<Ticket, Asked>,
    next_ticket: u64,
    /// Cold reads under way, and those that wait for their turn.
    cold: usize,
    cold_waiting: VecDeque<Wanted>,
    upkeep: Upkeep,
    /// A majority is being asked whether this replica leads.
    proof: Option<BoxFuture<'static, Option<Index>>>,
    tick_at: Option<Instant>,
    /// Requests are answered. Before a leader, here by a batch of its own term, shows how much of the
    /// log is committed, an answer could miss what was acknowledged before a restart. A replica that
    /// waits for a leader in vain answers too: it refuses.
    opened: bool,
    /// Everything is answered: the task ends, and then answers this.
    stop: Option<RequestReply<()>>,
}

/// What the task woke up for.
enum Wake {
    Replica,
    Cold(ColdDone),
    Maintained(Maintained),
    Proven(Option<Index>),
    Time,
    Pokes,
    Requests(usize),
}

impl Task {
    pub(super) fn new(
        core: Core<Paid>,
        replica: Replica,
        checkpoint: Index,
        around: Surroundings,
    ) -> Self {
        Self {
            core,
            effects: Vec::new(),
            log: replica.log(),
            state: replica.state(),
            replica,
            around,
            consumers: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_ticket: 0,
            cold: 0,
            cold_waiting: VecDeque::new(),
            upkeep: Upkeep::new(checkpoint),
            proof: None,
            tick_at: None,
            opened: false,
            stop: None,
        }
    }

    /// Runs until it is stopped or nobody can ask for anything any more.
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut reads: mpsc::Receiver<ColdDone>,
    ) {
        let mut arrived = Vec::with_capacity(16);
        // What the log holds is applied before anything else is looked at.
        self.state.mark_changed();
        while self.stop.is_none() {
            let now = Instant::now();
            let wake_at = self.wake_at(now);
            let wake = tokio::select! {
                biased;
                changed = self.state.changed() => match changed {
                    Ok(()) => Wake::Replica,
                    Err(_) => break,
                },
                Some(done) = reads.recv() => Wake::Cold(done),
                done = ended(&mut self.upkeep.job) => Wake::Maintained(done),
                proof = ended(&mut self.proof) => Wake::Proven(proof),
                () = tokio::time::sleep_until(wake_at) => Wake::Time,
                () = self.around.pokes.arrived() => Wake::Pokes,
                count = requests.recv_many(&mut arrived, REQUESTS_PER_TURN), if self.opened => {
                    Wake::Requests(count)
                }
            };
            let now = Instant::now();
            if !matches!(wake, Wake::Time) {
                // Whatever happened is looked at once more, unless that is about to be anyway.
                let soon = now + TICK;
                self.tick_at = Some(self.tick_at.map_or(soon, |at| at.min(soon)));
            }
            match wake {
                Wake::Replica => {
                    if let Err(error) = self.catch_up(now).await {
                        let partition = &self.around.options.key;
                        tracing::error!(?partition, %error, "the log cannot be applied");
                        break;
                    }
                }
                Wake::Cold(done) => self.cold_done(done, now),
                Wake::Maintained(done) => self.maintained(done, now),
                Wake::Proven(proof) => self.tell(Event::LeadProven(proof), now),
                Wake::Time => {
                    self.idle(now);
                    self.tick(now);
                }
                Wake::Pokes => self.poked(now),
                // All handles are gone: nobody can ask for anything any more.
                Wake::Requests(0) => break,
                Wake::Requests(_) => {}
            }
            // What has arrived meanwhile goes into the same proposal.
            while self.opened
                && arrived.len() < REQUESTS_PER_TURN
                && let Ok(request) = requests.try_recv()
            {
                arrived.push(request);
            }
            for request in arrived.drain(..) {
                self.request(request, now).await;
            }
            self.turn(now);
        }
        requests.close();
        while let Ok(request) = requests.try_recv() {
            turn_away(request);
        }
        drop(requests);
        self.end().await;
    }

    /// When time alone changes something.
    fn wake_at(&self, now: Instant) -> Instant {
        let due = self.core.due(now);
        let far = now + std::time::Duration::from_secs(3_600);
        [due, self.tick_at, self.upkeep.idle_at()].into_iter().flatten().min().unwrap_or(far)
    }

    /// Tells the core of one thing that happened.
    fn tell(&mut self, event: Event<Paid>, now: Instant) {
        self.core.handle(event, now, &mut self.effects);
    }

    async fn request(&mut self, request: Request, now: Instant) {
        match request {
            Request::Publish(publish) => {
                let paid = Paid {
                    reply: publish.reply,
                    record_count: publish.header.record_count,
                    bytes: publish.header.stored_len() as u64,
                    _reservation: publish.reservation,
                };
                let (header, body) = (publish.header, publish.body);
                let publish = Publish { header, body, deadline: publish.deadline, reply: paid };
                self.tell(Event::Publish(publish), now);
            }
            Request::OpenPublisher { producer, reply } => {
                let ticket = self.ask(Asked::Open(reply));
                self.tell(Event::OpenPublisher(producer, ticket), now);
            }
            Request::Subscribe(subscribe) => self.subscribe(subscribe, now).await,
            Request::Join(join) => {
                let JoinRequest { subscription, member, port, reply } = join;
                let (id, reply) = (port.id(), Some(Opening::Member(reply)));
                self.consumers.insert(id, Attached { port, reply });
                self.tell(Event::Join { id, subscription, member }, now);
            }
            Request::Poke(id) => self.look(id, now),
            Request::CloseConsumer(id) => self.close(id, now),
            Request::Configure(config) => {
                self.tell(Event::Configure(config), now);
                self.tick_at = Some(now);
            }
            Request::DeleteSubscription { name, reply } => {
                let ticket = self.ask(Asked::Delete(reply));
                self.tell(Event::DeleteSubscription(name, ticket), now);
            }
            Request::Drain { done } => {
                let ticket = self.ask(Asked::Drain(done));
                self.tell(Event::Drain(ticket), now);
            }
            Request::Stop { done } => {
                let ticket = self.ask(Asked::Stop(done));
                self.tell(Event::Drain(ticket), now);
            }
        }
    }

    fn ask(&mut self, asked: Asked) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.asked.insert(ticket, asked);
        ticket
    }

    async fn subscribe(&mut self, subscribe: SubscribeRequest, now: Instant) {
        let SubscribeRequest { subscription, start, needs, port, reply } = subscribe;
        let start = match start {
            Start::Time(time_ms) => match self.offset_for_time(time_ms).await {
                Ok(offset) => Start::Offset(offset),
                Err(error) => {
                    let text = error.to_string();
                    return reply.done(Err(SubscribeRefusal::Unreadable { text }.to_peer()));
                }
            },
            other => other,
        };
        let (id, registers) = (port.id(), registers_of(&port));
        self.consumers.insert(id, Attached { port, reply: Some(Opening::Consumer(reply)) });
        let arriving = Arriving { id, subscription, start, needs, registers };
        self.tell(Event::Subscribe(arriving), now);
    }

    /// The first offset at or after a time, within what readers may see.
    async fn offset_for_time(&mut self, time_ms: u64) -> Result<Offset, ReadError> {
        let log = self.log.clone();
        let find = move || log.offset_for_time(time_ms);
        let found = on_lane(&self.around.executor, weir_storage::Lane::Read, find).await?;
        let state = self.core.state();
        Ok(found.max(state.log_start).min(state.high_watermark))
    }

    fn poked(&mut self, now: Instant) {
        let poked = self.around.pokes.take();
        for id in poked.changed {
            self.look(id, now);
        }
        for id in poked.closed {
            self.close(id, now);
        }
    }

    /// Looks at a consumer's registers.
    fn look(&mut self, id: ConsumerId, now: Instant) {
        let Some(Attached { port, .. }) = self.consumers.get(&id) else { return };
        // Before the registers are read: what changes from here on is told by another poke.
        port.take_poke();
        let settle = port.settle();
        let registers = registers_of(port);
        let (present, leaves) = port.membership();
        if let Some(epoch) = present {
            self.tell(Event::Present { id, epoch }, now);
        }
        if leaves {
            self.tell(Event::Leave(id), now);
        }
        self.tell(Event::Poked { id, registers, settle }, now);
    }

    fn close(&mut self, id: ConsumerId, now: Instant) {
        self.consumers.remove(&id);
        self.cold_waiting.retain(|wanted| wanted.consumer != id);
        self.tell(Event::Closed(id), now);
    }

    /// Limits, space, deadlines, age; and what everybody may see.
    fn tick(&mut self, now: Instant) {
        if self.tick_at.is_none_or(|at| at > now) {
            return;
        }
        self.tick_at = None;
        self.tell(Event::Tick, now);
        self.hold(now);
        self.maintain(now);
        self.show_subscriptions();
        if self.core.is_restless() || self.upkeep.is_restless() {
            self.tick_at = Some(now + TICK);
        } else if self.core.ages() {
            self.tick_at = Some(now + AGE_TICK);
        }
    }

    /// Everything that has arrived is told: propose, and carry out what follows.
    fn turn(&mut self, now: Instant) {
        self.check_space(now);
        self.core.pump(self.around.options.wall.now_ms(), now, &mut self.effects);
        self.opened |= !self.core.leader().is_awaited();
        // Before the answers leave: who was told that a batch is stored finds it in the view.
        self.show();
        self.carry_out(now);
        self.show();
    }
}

/// Waits for a job, if one runs. Cancel safe: the job stays where it is.
async fn ended<T>(job: &mut Option<BoxFuture<'static, T>>) -> T {
    match job {
        Some(running) => {
            let done = running.await;
            *job = None;
            done
        }
        None => std::future::pending().await,
    }
}

/// Answers a request that arrived behind the end. Places for other answers say so themselves.
fn turn_away(request: Request) {
    if let Request::Publish(publish) = request {
        publish.reply.refused(PublishRefusal::Draining.to_peer());
    }
}

fn registers_of(port: &ConsumerPort) -> Registers {
    let (limit_bytes, limit_messages) = port.credit();
    Registers { limit_bytes, limit_messages, lane_free: port.lane_free() }
}
