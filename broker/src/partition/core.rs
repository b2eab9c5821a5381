//! What a partition decides: the pure half of the room.
//!
//! Owns: the replicated state; where the leader is (`standing`); publishes and commands on their way
//! into the log (`proposing`); consumers on their way in (`arriving`), whether it still leads when they
//! come (`proving`), and what they are owed (`consuming`); who of them reads what (`sharing`).
//! Never: a clock, a socket, a file, a random number. `handle(event, now)` appends effects, in the
//! order in which they must be carried out.
//! Invariants:
//! - a publish is answered once: stored after its batch is committed, or refused;
//! - batches enter a run in the order in which they will be in the log, numbered without a gap; a
//!   run that was broken is drained before the next one begins;
//! - the duplicate check sees every record before it lets one pass: nothing is judged before the
//!   replica leads and everything committed is applied;
//! - what only a leader may do is refused by a replica that follows, and by one that waited for a
//!   leader for too long; the state is made of the log alone, the same on every replica;
//! - a state that may lack something changes nothing: it is read from, and that is all.

mod arriving;
mod consuming;
mod proposing;
mod proving;
mod sharing;
mod standing;
#[cfg(test)]
mod tests;

pub(super) use arriving::Arriving;
pub(super) use standing::{Hint, Leader};

use super::command::Command;
use super::refusal::{Loss, PublishRefusal, SubscribeRefusal};
use super::request::{PublisherState, SubscribedState};
use super::retention::{self, Held, Sealed};
use super::state::State;
use super::subscription::consumer::{Registers, Wanted};
use crate::connection::outbox::ConsumerId;
use crate::replication::{Proposal, Refused, Role, StoredOutcome};
use bytes::Bytes;
use consuming::Consuming;
use proposing::Proposing;
use proving::Proving;
use sharing::Sharing;
use tokio::time::Instant;
use weir_protocol::batch::BatchHeader;
use weir_protocol::error_code::reason_bits;
use weir_protocol::frame::{
    Assignment, Deliver, MemberId, Overflow, Settled, StoredRange, TopicConfig,
};
use weir_protocol::types::{Index, Name, Offset, ProducerId, Term};
use weir_storage::BatchSlice;

/// A request whose place for the answer the shell keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(pub(super) u64);

/// One batch to publish. `reply` holds whatever must live until it is answered.
#[derive(Debug)]
pub(super) struct Publish<R> {
    pub(super) header: BatchHeader,
    pub(super) body: Bytes,
    pub(super) deadline: Option<Instant>,
    pub(super) reply: R,
}

/// What the replica shows, once everything committed is applied here.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) role: Role,
    /// The term in which proposals are in order.
    pub(super) leading: Option<Term>,
    /// Another replica that leads, if one is known to.
    pub(super) leader: Option<Hint>,
    /// Whether nobody else votes: if this replica does not lead, nobody does.
    pub(super) sole_voter: bool,
    /// Whether it gave up its lead because it is cut off from the others.
    pub(super) severed: bool,
    /// Whether it gives its lead to another.
    pub(super) hands_over: bool,
    pub(super) refused: Option<Refused>,
    /// Proposals whose fate is open.
    pub(super) in_flight: usize,
}

/// What happens to a partition.
#[derive(Debug)]
pub(super) enum Event<R> {
    /// A batch arrived.
    Publish(Publish<R>),
    /// A publisher attaches.
    OpenPublisher(Option<(ProducerId, u32)>, Ticket),
    /// A consumer attaches.
    Subscribe(Arriving),
    /// A consumer's registers changed; perhaps it settled.
    Poked { id: ConsumerId, registers: Registers, settle: Option<(Offset, bool)> },
    /// A consumer is gone.
    Closed(ConsumerId),
    /// A consumer joins those that share a subscription.
    Join { id: ConsumerId, subscription: Name, member: MemberId },
    /// A member is there, and has given up what it was told to by this epoch.
    Present { id: ConsumerId, epoch: u64 },
    /// A member leaves, and reads nothing any more.
    Leave(ConsumerId),
    /// A read that was asked for is through.
    Read { id: ConsumerId, slices: Vec<BatchSlice> },
    /// A durable subscription is to go.
    DeleteSubscription(Name, Ticket),
    /// The next batch of the log is committed.
    Applied { header: BatchHeader, commands: Vec<Command> },
    /// The next batches of the log are committed and cannot be read.
    Lost(Loss),
    /// The log was replaced by a leader's snapshot: this is the state, and the log goes on behind it.
    Replaced(Box<State>),
    /// The replica has moved.
    Replica(Seen),
    /// A majority was asked whether this replica leads. Some: it does, and whatever was acknowledged
    /// before that was asked stands at this index or before it.
    LeadProven(Option<Index>),
    /// A proposal was not handed over; its first batch has this number.
    NotProposed { number: u32 },
    /// The topic's configuration changed.
    Configure(TopicConfig),
    /// What the log holds now, from this offset on, with the time of day.
    Holds { sealed: Vec<Sealed>, bytes: u64, held_from: Offset, wall_ms: u64 },
    /// Whether the next proposal surely finds room on the disk.
    Space(bool),
    /// Time has passed.
    Tick,
    /// Nothing new is taken; answered when nothing is owed.
    Drain(Ticket),
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Effect<R> {
    /// Hand this to the replica.
    Propose { proposal: Proposal, number: u32 },
    /// A publish is stored.
    Stored { reply: R, range: StoredRange },
    /// A publish is refused.
    Refused { reply: R, refusal: PublishRefusal },
    /// A publisher is attached, or not.
    Opened(Ticket, Result<PublisherState, PublishRefusal>),
    /// Ask a majority whether this replica still leads.
    ProveLead,
    /// A consumer is attached, or not.
    Subscribed(ConsumerId, Result<SubscribedState, SubscribeRefusal>),
    /// The consumer is over: another one took its place, its subscription was deleted, or another
    /// replica serves it.
    Close(ConsumerId, SubscribeRefusal),
    /// Read for a consumer.
    Read(Wanted),
    /// Send to a consumer; then look at its lane again.
    Deliver(ConsumerId, Deliver),
    /// A settle is committed, or refused.
    Settled(ConsumerId, Settled),
    /// A consumer is a member of those that share, or not.
    Joined(ConsumerId, Result<(), SubscribeRefusal>),
    /// What a member reads from now on.
    Assigned(ConsumerId, Assignment),
    /// A member has left: its stream ends.
    Left(ConsumerId),
    /// A subscription is deleted, or never was; or it cannot be.
    Deleted(Ticket, Result<bool, SubscribeRefusal>),
    /// Another replica leads, or none does: the streams of all publishers end.
    Depart(PublishRefusal),
    /// Publishers get no more credit for these `reason_bits`; 0 = they do.
    Block(u32),
    /// Readers get nothing below any more: the segments below may go.
    Trimmed,
    /// A trim took this many records from subscriptions that had not settled them.
    Expired(u64),
    /// Nothing is owed to any publisher.
    Drained(Ticket),
}

/// Effects, in order.
pub(super) type Effects<R> = Vec<Effect<R>>;

/// The pure core of one partition.
#[derive(Debug)]
pub(super) struct Core<R> {
    config: TopicConfig,
    state: State,
    /// The first record that can be read here: the log of a replica that was given a snapshot may
    /// begin behind the log start.
    held_from: Offset,
    leader: Leader,
    /// Nobody else votes, so that nobody else can lead.
    sole_voter: bool,
    proving: Proving,
    proposing: Proposing<R>,
    consuming: Consuming,
    sharing: Sharing,
    /// More bytes than the topic may hold are needed.
    full: bool,
    has_space: bool,
    blocked_bits: u32,
    drains: Vec<Ticket>,
    draining: bool,
    /// The first loss that nobody accepted: what the state lacks is not known, so nothing may
    /// build on it.
    lost: Option<Loss>,
}

impl<R> Core<R> {
    pub(super) fn new(config: TopicConfig, state: State) -> Self {
        let log_time_ms = state.log_time_ms;
        Self {
            config,
            state,
            held_from: Offset(0),
            leader: Leader::unknown(),
            sole_voter: false,
            proving: Proving::default(),
            proposing: Proposing::new(log_time_ms),
            consuming: Consuming::default(),
            sharing: Sharing::default(),
            full: false,
            has_space: true,
            blocked_bits: 0,
            drains: Vec::new(),
            draining: false,
            lost: None,
        }
    }

    /// The replicated state.
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Whether the state may lack what was lost: it must never become durable.
    pub(super) fn is_read_only(&self) -> bool {
        self.lost.is_some()
    }

    /// Consumers, and how far those of durable subscriptions are.
    pub(super) fn consuming(&self) -> &Consuming {
        &self.consuming
    }

    /// Whether it leads and judges publishes.
    pub(super) fn leads(&self) -> bool {
        self.term().is_some()
    }

    /// Where the leader is, as far as it is known here.
    pub(super) fn leader(&self) -> Leader {
        self.leader
    }

    /// The term that it leads.
    pub(super) fn term(&self) -> Option<Term> {
        self.proposing.term()
    }

    /// Members that have a stream here.
    pub(super) fn members(&self) -> usize {
        self.sharing.streams()
    }

    /// Whether time alone may change something soon.
    pub(super) fn is_restless(&self) -> bool {
        self.blocked_bits != 0 || !self.has_space || self.draining || self.proposing.is_waiting()
    }

    /// Whether publishes are taken as far as the disk is concerned.
    pub(super) fn has_space(&self) -> bool {
        self.has_space
    }

    /// Why publishers get no more credit.
    pub(super) fn blocked_bits(&self) -> u32 {
        self.blocked_bits
    }

    /// Whether records grow too old.
    pub(super) fn ages(&self) -> bool {
        self.config.max_age_ms > 0
    }

    /// Bytes of the batch that is proposed next; 0 = none waits.
    pub(super) fn next_bytes(&self) -> usize {
        self.proposing.next_bytes()
    }

    /// When [`Core::pump`] has something to do that waits for its time.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let members = if self.leads() { self.sharing.due() } else { None };
        let commands = [self.consuming.settles.due(now), members].into_iter().flatten().min();
        // Without room in flight they wait for a proposal to come back, which is no matter of time.
        let commands = self.proposing.has_room().then_some(commands).flatten();
        let rest = self.proposing.rest_ends();
        let commands = commands.map(|due| rest.map_or(due, |ends| ends.max(due))).or(rest);
        let patience = [self.leader.awaited_until(), self.consuming.patience_ends()];
        patience.into_iter().chain([commands]).flatten().min()
    }

    /// Takes one event in. [`Core::pump`] follows when all that has arrived is taken in.
    pub(super) fn handle(&mut self, event: Event<R>, now: Instant, out: &mut Effects<R>) {
        match event {
            Event::Publish(publish) => self.publish(publish),
            Event::OpenPublisher(producer, ticket) => self.open_publisher(producer, ticket, out),
            Event::Subscribe(arriving) => self.subscribe(arriving, now, out),
            Event::Poked { id, registers, settle } => self.poked(id, registers, settle, now, out),
            Event::Closed(id) => {
                self.consuming.close(id);
                self.sharing.close(id, now);
            }
            Event::Join { id, subscription, member } => {
                self.join(id, (subscription, member), now, out);
            }
            Event::Present { id, epoch } => self.sharing.present(id, epoch, now),
            Event::Leave(id) => self.sharing.leave(id),
            Event::Read { id, slices } => self.read(id, slices, out),
            Event::DeleteSubscription(name, ticket) => self.delete(name, ticket, out),
            Event::Applied { header, commands } => self.applied(&header, &commands, out),
            Event::Lost(lost) => self.pass_over(lost, out),
            Event::Replaced(state) => self.replaced(*state, out),
            Event::Replica(seen) => self.replica(&seen, now, out),
            Event::LeadProven(proof) => self.proving.ended(proof),
            Event::NotProposed { number } => self.not_proposed(number, out),
            Event::Configure(config) => {
                self.config = config;
                self.sharing.look_again();
            }
            Event::Holds { sealed, bytes, held_from, wall_ms } => {
                self.held_from = held_from;
                self.retain(&sealed, bytes, wall_ms);
            }
            Event::Space(has_space) => self.has_space = has_space,
            Event::Tick => {
                self.proving.rested();
                self.expire_deadlines(now, out);
            }
            Event::Drain(ticket) => {
                self.draining = true;
                self.drains.push(ticket);
            }
        }
    }

    /// Proposes what is due, gathered, and says what follows from all that was taken in.
    pub(super) fn pump(&mut self, wall_ms: u64, now: Instant, out: &mut Effects<R>) {
        self.lose_patience(now, out);
        self.share(now, out);
        // Who is let in may have something to propose.
        self.let_in(now, out);
        self.propose(wall_ms, now, out);
        let bits = self.reasons_to_block();
        if bits != self.blocked_bits {
            self.blocked_bits = bits;
            out.push(Effect::Block(bits));
        }
        let owes =
            self.proposing.owes() || (self.leads() && self.consuming.settles.are_under_way());
        if !self.drains.is_empty() && !owes {
            out.extend(self.drains.drain(..).map(Effect::Drained));
        }
        self.prove_lead(out);
    }

    /// The first offset that readers may ask for here.
    fn first_readable(&self) -> Offset {
        self.state.log_start.max(self.held_from)
    }

    /// Goes on from another state, which a leader made of the log that is the group's. Readers below
    /// go on at its start, as behind a trim; what was lost here is not missing in it.
    fn replaced(&mut self, state: State, out: &mut Effects<R>) {
        // Nothing of the log below is here any more.
        self.held_from = state.high_watermark;
        self.proposing.clock.seen(state.log_time_ms);
        self.state = state;
        self.sharing.look_again();
        self.lost = None;
        out.push(Effect::Trimmed);
    }

    /// Goes on behind batches that are lost. Unless somebody accepted that, nothing is changed any
    /// more: neither a duplicate nor a cursor could be told for sure.
    fn pass_over(&mut self, lost: Loss, out: &mut Effects<R>) {
        self.state.pass_over(&lost.range);
        if lost.range.accepted || self.lost.is_some() {
            return;
        }
        self.lost = Some(lost.clone());
        self.drain_run(StoredOutcome::Unknown, out);
        self.answer_opens(out);
        self.proposing.trim_to(None);
        self.refuse_changes(&lost, out);
        self.sharing.look_again();
    }

    /// Another replica leads, or none has for too long. What is replicated stays as it is; what is
    /// volatile goes, and whoever it belongs to is told where to go.
    fn step_down(&mut self, hint: Hint, out: &mut Effects<R>) {
        self.full = false;
        self.proposing.trim_to(None);
        self.leave_consumers(hint, out);
        self.send_members_away(&SubscribeRefusal::NotLeader(hint), out);
        out.push(Effect::Depart(PublishRefusal::NotLeader(hint)));
    }

    fn reasons_to_block(&self) -> u32 {
        if self.leader.is_elsewhere() {
            // Who publishes here is sent away: there is no credit to hold back.
            return 0;
        }
        let backlog = self.full && self.config.overflow == Overflow::Backpressure;
        let bit = |holds: bool, bit: u32| if holds { bit } else { 0 };
        bit(backlog, reason_bits::BACKLOG) | bit(!self.has_space, reason_bits::DISK)
    }

    fn retain(&mut self, sealed: &[Sealed], bytes: u64, wall_ms: u64) {
        if self.leader.is_elsewhere() {
            // The leader decides, and the log tells.
            return;
        }
        let held = Held {
            sealed,
            bytes,
            log_start: self.state.log_start,
            high_watermark: self.state.high_watermark,
            floor: self.state.subscriptions.floor(),
            now_ms: wall_ms,
            newest_ms: self.state.log_time_ms,
        };
        let retained = retention::decide(&self.config, &held);
        self.full = retained.full;
        self.proposing.trim_to(retained.trim_to.filter(|_| self.lost.is_none()));
    }
}
