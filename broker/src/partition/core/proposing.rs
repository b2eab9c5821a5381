//! Publishes and commands on their way into the log.
//!
//! Owns: what waits to be proposed, what is proposed and waits for its commit, the run.
//! Never: touches a record: it works per batch.
//! Invariants:
//! - whatever waits is proposed in the order in which it arrived, gathered into as few proposals
//!   as the bounds allow (group commit: what arrived while the last flush ran goes out together);
//! - numbers within a run have no gap;
//! - a batch is judged when it is proposed, against everything before it, so that what is refused
//!   in front of it counts.

mod fates;

use super::consuming::Consuming;
use super::{Core, Effect, Effects, Leader, Publish, Seen, Ticket};
use crate::partition::command::{self, Command};
use crate::partition::dedup::{Numbered, Verdict};
use crate::partition::limits::{
    CONTROL_BYTES_MAX, PROPOSAL_BATCHES_MAX, PROPOSAL_BYTES_MAX, PROPOSALS_INFLIGHT_MAX, TICK,
};
use crate::partition::log_time::LogClock;
use crate::partition::pending::{Pending, Place};
use crate::partition::refusal::{PublishRefusal, SubscribeRefusal};
use crate::partition::request::PublisherState;
use crate::replication::{Fence, Proposal, Role, StoredOutcome, control_batch};
use std::collections::VecDeque;
use tokio::time::Instant;
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::frame::{Overflow, StoredRange};
use weir_protocol::types::{Offset, ProducerId, Sequence, Term};
use weir_storage::NewBatch;

/// Whether proposals are in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// The replica does not lead, or not yet.
    Silent,
    /// It leads and everything before is applied.
    Leading,
    /// A run was broken: the next one begins when nothing is in flight.
    Breaking(StoredOutcome),
}

/// A batch that arrived.
#[derive(Debug)]
struct Waiting<R> {
    publish: Publish<R>,
    /// It arrived when nothing new was taken any more.
    late: bool,
}

/// What is proposed and waits for its commit.
#[derive(Debug)]
enum Owed<R> {
    Publish { reply: R, base_sequence: Sequence, record_count: u32 },
    Commands { settles: bool, trim: bool, roster: bool },
}

/// A repetition of what is in flight: what becomes of that decides.
#[derive(Debug)]
struct Follower<R> {
    batch: Numbered,
    reply: R,
}

/// The way into the log.
#[derive(Debug)]
pub(super) struct Proposing<R> {
    phase: Phase,
    term: Term,
    run: u32,
    number: u32,
    pub(super) clock: LogClock,
    waiting: VecDeque<Waiting<R>>,
    /// Were refused by a replica that hands over: nothing of them is stored. They are answered when
    /// it is known where they are to go. As many at most as credit was spent for.
    sent_back: VecDeque<R>,
    pending: Pending<Owed<R>>,
    /// The last place of each proposal that is not committed.
    flight: VecDeque<Place>,
    followers: Vec<Follower<R>>,
    opens: Vec<(Option<(ProducerId, u32)>, Ticket)>,
    fence: Option<Fence>,
    trim: Trim,
    rest: Rest,
}

/// Commands that were refused are proposed again by the core itself: while a leadership is handed
/// over they would be refused again at once, and again, for as long as that takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// None were refused lately.
    Over,
    /// Some were, and it is not known when.
    Due,
    /// None are proposed before then.
    Until(Instant),
}

#[derive(Debug, Default)]
struct Trim {
    wanted: Option<Offset>,
    in_flight: bool,
}

impl<R> Proposing<R> {
    pub(super) fn new(log_time_ms: u64) -> Self {
        Self {
            phase: Phase::Silent,
            term: Term(0),
            run: 0,
            number: 0,
            clock: LogClock::new(log_time_ms),
            waiting: VecDeque::new(),
            sent_back: VecDeque::new(),
            pending: Pending::new(),
            flight: VecDeque::new(),
            followers: Vec::new(),
            opens: Vec::new(),
            fence: None,
            trim: Trim::default(),
            rest: Rest::Over,
        }
    }

    /// The term that is led.
    pub(super) fn term(&self) -> Option<Term> {
        (self.phase == Phase::Leading).then_some(self.term)
    }

    /// Whether something can be proposed now.
    pub(super) fn has_room(&self) -> bool {
        self.term().is_some() && self.flight.len() < PROPOSALS_INFLIGHT_MAX
    }

    /// When commands that were refused may be proposed again.
    pub(super) fn rest_ends(&self) -> Option<Instant> {
        match self.rest {
            Rest::Until(at) => Some(at).filter(|_| self.has_room()),
            Rest::Over | Rest::Due => None,
        }
    }

    /// Whether commands that were refused have to wait still.
    fn rests(&mut self, now: Instant) -> bool {
        self.rest = match self.rest {
            Rest::Due => Rest::Until(now + TICK),
            Rest::Until(at) if at <= now => Rest::Over,
            rest => rest,
        };
        self.rest != Rest::Over
    }

    /// Whether any publisher waits for an answer.
    pub(super) fn owes(&self) -> bool {
        !(self.waiting.is_empty()
            && self.sent_back.is_empty()
            && self.pending.is_empty()
            && self.followers.is_empty()
            && self.opens.is_empty())
    }

    /// Whether publishes wait to be proposed.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Bytes of the batch that is proposed next.
    pub(super) fn next_bytes(&self) -> usize {
        self.waiting.front().map_or(0, |next| next.publish.header.stored_len())
    }

    /// The log should begin at `log_start`.
    pub(super) fn trim_to(&mut self, log_start: Option<Offset>) {
        self.trim.wanted = log_start;
    }

    fn begin(&mut self, term: Term) {
        self.run = if term == self.term { self.run + 1 } else { 0 };
        (self.phase, self.term, self.number) = (Phase::Leading, term, 0);
    }

    /// Takes `owed` into account under the next number.
    fn number(&mut self, header: &mut BatchHeader, log_time_ms: u64, owed: Owed<R>) {
        let place = Place { term: self.term, run: self.run, number: self.number };
        (header.run, header.run_number) = (self.run, self.number);
        header.log_time_ms = log_time_ms;
        self.number = self.number.checked_add(1).expect("a run ends long before its numbers do");
        self.pending.push(place, owed);
    }
}

/// The way in.
impl<R> Core<R> {
    pub(super) fn publish(&mut self, publish: Publish<R>) {
        self.proposing.waiting.push_back(Waiting { publish, late: self.draining });
    }

    pub(super) fn open_publisher(
        &mut self,
        producer: Option<(ProducerId, u32)>,
        ticket: Ticket,
        out: &mut Effects<R>,
    ) {
        if self.draining {
            out.push(Effect::Opened(ticket, Err(PublishRefusal::Draining)));
            return;
        }
        self.proposing.opens.push((producer, ticket));
        self.answer_opens(out);
    }

    /// Proposes what is due while there is room in flight.
    pub(super) fn propose(&mut self, wall_ms: u64, now: Instant, out: &mut Effects<R>) {
        self.refuse_where_nothing_leads(out);
        while let Some(term) = self.proposing.term() {
            if self.proposing.flight.len() >= PROPOSALS_INFLIGHT_MAX {
                return;
            }
            let first = self.proposing.number;
            let log_time_ms = self.proposing.clock.tell(wall_ms, now);
            let mut batches = Vec::new();
            self.gather_commands(log_time_ms, now, &mut batches);
            self.gather_publishes(log_time_ms, now, &mut batches, out);
            if batches.is_empty() {
                return;
            }
            let number = self.proposing.number - 1;
            let last = Place { term, run: self.proposing.run, number };
            self.proposing.flight.push_back(last);
            out.push(Effect::Propose { proposal: Proposal { term, batches }, number: first });
        }
    }

    fn gather_publishes(
        &mut self,
        log_time_ms: u64,
        now: Instant,
        batches: &mut Vec<NewBatch>,
        out: &mut Effects<R>,
    ) {
        let mut bytes = 0;
        while let Some(next) = self.proposing.waiting.front() {
            bytes += next.publish.header.stored_len();
            let full = bytes > PROPOSAL_BYTES_MAX || batches.len() >= PROPOSAL_BATCHES_MAX;
            if full && !batches.is_empty() {
                return;
            }
            let Some(Waiting { publish, late }) = self.proposing.waiting.pop_front() else {
                return;
            };
            let Publish { mut header, body, deadline, reply } = publish;
            let expired = deadline.is_some_and(|deadline| deadline < now);
            match self.judge(&header, late, expired) {
                Judged::Propose => {
                    let batch = Numbered::of(&header);
                    if batch.producer != ProducerId(0) {
                        self.state.dedup.fly(batch);
                    }
                    let (base_sequence, record_count) = (header.base_sequence, header.record_count);
                    let owed = Owed::Publish { reply, base_sequence, record_count };
                    self.proposing.number(&mut header, log_time_ms, owed);
                    batches.push(NewBatch { header, body: vec![body] });
                }
                Judged::Stored(offset) => out.push(stored_again(&header, offset, reply)),
                Judged::Follow => {
                    let batch = Numbered::of(&header);
                    self.proposing.followers.push(Follower { batch, reply });
                }
                Judged::Refuse(refusal) => out.push(Effect::Refused { reply, refusal }),
            }
        }
    }

    fn judge(&self, header: &BatchHeader, late: bool, expired: bool) -> Judged {
        let lost = self.lost.clone();
        let refuse = if late {
            Some(PublishRefusal::Draining)
        } else if let Some(lost) = lost {
            Some(PublishRefusal::ReadOnly { lost, outcome: StoredOutcome::NotStored })
        } else if expired {
            Some(PublishRefusal::Deadline)
        } else if !self.has_space {
            Some(PublishRefusal::StorageLow)
        } else if self.full && self.config.overflow == Overflow::Reject {
            Some(PublishRefusal::BacklogFull { limit: self.config.max_bytes })
        } else {
            None
        };
        let fresh = refuse.map_or(Judged::Propose, Judged::Refuse);
        if header.producer_id == ProducerId(0) {
            return fresh;
        }
        match self.state.dedup.check(Numbered::of(header), self.proposing.clock.newest_ms()) {
            Verdict::Fresh => fresh,
            // What is stored is stored: a repetition is told so whatever holds now.
            Verdict::Duplicate(offset) => Judged::Stored(offset),
            // The other verdicts could be of what is not known.
            _ if self.is_read_only() => fresh,
            Verdict::InFlight => Judged::Follow,
            other => Judged::Refuse(refusal_of(other)),
        }
    }

    fn gather_commands(&mut self, log_time_ms: u64, now: Instant, batches: &mut Vec<NewBatch>) {
        if self.proposing.rests(now) {
            return;
        }
        let mut commands = Vec::new();
        let trim = !self.proposing.trim.in_flight;
        let trim = trim.then(|| self.proposing.trim.wanted.take()).flatten();
        commands.extend(trim.map(|log_start| Command::Trim { log_start }));
        let urgent = self.draining;
        let Consuming { settles, .. } = &mut self.consuming;
        let due = settles.due(now).is_some_and(|due| urgent || due <= now);
        if due {
            commands.append(&mut settles.take());
        }
        self.consuming.gather_changes(
            &self.state.subscriptions,
            CONTROL_BYTES_MAX / 4,
            &mut commands,
        );
        let roster = self.sharing.take_commands(&mut commands);
        if commands.is_empty() {
            return;
        }
        self.proposing.trim.in_flight |= trim.is_some();
        let mut header = BatchHeader::empty(BatchType::Control);
        let owed = Owed::Commands { settles: due, trim: trim.is_some(), roster };
        self.proposing.number(&mut header, log_time_ms, owed);
        batches.push(control_batch(header, command::encode(&commands)));
    }

    /// Refuses whatever waits behind its deadline. Only the front: order is kept.
    pub(super) fn expire_deadlines(&mut self, now: Instant, out: &mut Effects<R>) {
        let expired = |waiting: &Waiting<R>| {
            !self.has_space || waiting.publish.deadline.is_some_and(|deadline| deadline < now)
        };
        while self.proposing.waiting.front().is_some_and(expired) {
            let Some(Waiting { publish, .. }) = self.proposing.waiting.pop_front() else { return };
            let refusal =
                if self.has_space { PublishRefusal::Deadline } else { PublishRefusal::StorageLow };
            out.push(Effect::Refused { reply: publish.reply, refusal });
        }
    }

    /// Answers those that were refused in a hand-over; they stand before all that waits.
    pub(super) fn answer_sent_back(&mut self, refusal: &PublishRefusal, out: &mut Effects<R>) {
        let sent_back = self.proposing.sent_back.drain(..);
        out.extend(sent_back.map(|reply| Effect::Refused { reply, refusal: refusal.clone() }));
    }

    /// A replica that has ended or follows another takes nothing, and says so at once.
    fn refuse_where_nothing_leads(&mut self, out: &mut Effects<R>) {
        let refusal = match (self.leader, &self.proposing.fence) {
            (Leader::Elsewhere(hint), _) => PublishRefusal::NotLeader(hint),
            (_, Some(fence)) => PublishRefusal::of_fence(fence, StoredOutcome::NotStored),
            (Leader::Here | Leader::Awaited(_), None) => return,
        };
        self.answer_sent_back(&refusal, out);
        for Waiting { publish, .. } in self.proposing.waiting.drain(..) {
            out.push(Effect::Refused { reply: publish.reply, refusal: refusal.clone() });
        }
        for (_, ticket) in self.proposing.opens.drain(..) {
            out.push(Effect::Opened(ticket, Err(refusal.clone())));
        }
        self.refuse_creations(out);
        self.send_members_away(&SubscribeRefusal::Fenced, out);
    }
}

enum Judged {
    Propose,
    Stored(Option<Offset>),
    Follow,
    Refuse(PublishRefusal),
}

fn stored_again<R>(header: &BatchHeader, offset: Option<Offset>, reply: R) -> Effect<R> {
    Effect::Stored { reply, range: range_of(header.base_sequence, header.record_count, offset) }
}

fn range_of(base_sequence: Sequence, record_count: u32, offset: Option<Offset>) -> StoredRange {
    let base_offset = offset.unwrap_or(Offset(u64::MAX));
    StoredRange { base_sequence, base_offset, record_count, duplicate: true }
}

fn refusal_of(verdict: Verdict) -> PublishRefusal {
    match verdict {
        Verdict::Gap { expected } => PublishRefusal::Gap { expected },
        Verdict::Fenced { epoch } => PublishRefusal::ProducerFenced { epoch },
        Verdict::Unknown => PublishRefusal::UnknownProducer,
        Verdict::Full => PublishRefusal::ProducerLimit,
        Verdict::Fresh | Verdict::InFlight | Verdict::Duplicate(_) => {
            unreachable!("these are no refusals")
        }
    }
}
