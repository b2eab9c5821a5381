//! Owns: how each effect of the core is carried out.
//! Invariant: in their order; what an effect gives rise to is told to the core at once, so that
//! nothing is left over when a turn ends.

use super::{Asked, Attached, ColdDone, Opening, Paid, Task, registers_of};
use crate::connection::outbox::ConsumerId;
use crate::partition::core::{Effect, Event, Ticket};
use crate::partition::limits::COLD_READS_MAX;
use crate::partition::refusal::{Loss, PublishRefusal, SubscribeRefusal};
use crate::partition::request::SubscribedState;
use crate::partition::subscription::consumer::Wanted;
use crate::partition::view::SubscriptionView;
use crate::replication::ProposeError;
use std::sync::atomic::Ordering;
use tokio::time::Instant;
use weir_protocol::frame::{Deliver, StoredRange};
use weir_storage::{BatchSlice, Read, ReadError};

impl Task {
    /// Carries out everything, also what follows from it.
    pub(super) fn carry_out(&mut self, now: Instant) {
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                self.carry_out_one(effect, now);
            }
        }
    }

    fn carry_out_one(&mut self, effect: Effect<Paid>, now: Instant) {
        match effect {
            Effect::Propose { proposal, number } => {
                if let Err(error) = self.replica.propose(proposal) {
                    self.not_proposed(&error, number, now);
                }
            }
            Effect::Stored { reply, range } => self.stored(reply, range),
            Effect::Refused { reply, refusal } => reply.reply.refused(refusal.to_peer()),
            Effect::Opened(ticket, result) => {
                if let Some(Asked::Open(reply)) = self.asked.remove(&ticket) {
                    reply.done(result.map_err(|refusal: PublishRefusal| refusal.to_peer()));
                }
            }
            Effect::ProveLead => {
                let replica = self.replica.clone();
                self.proof = Some(Box::pin(async move { replica.read_index().await.ok() }));
            }
            Effect::Subscribed(id, result) => self.subscribed(id, result, now),
            Effect::Close(id, refusal) => self.close_port(id, &refusal),
            Effect::Joined(id, result) => self.joined(id, result),
            Effect::Assigned(id, assignment) => {
                if let Some(Attached { port, .. }) = self.consumers.get(&id) {
                    port.assigned(assignment);
                }
            }
            Effect::Left(id) => {
                if let Some(Attached { port, .. }) = self.consumers.remove(&id) {
                    port.close(None);
                }
            }
            Effect::Read(wanted) => self.read(wanted, now),
            Effect::Deliver(id, deliver) => self.deliver(id, deliver, now),
            Effect::Settled(id, settled) => {
                if let Some(Attached { port, .. }) = self.consumers.get(&id) {
                    port.settled(settled);
                }
            }
            Effect::Deleted(ticket, result) => {
                if let Some(Asked::Delete(reply)) = self.asked.remove(&ticket) {
                    reply.done(result.map_err(|refusal| refusal.to_peer()));
                }
            }
            Effect::Depart(refusal) => {
                let options = &self.around.options;
                options.flow.end(&options.key, &refusal.to_peer());
            }
            Effect::Block(0) => self.around.options.flow.unblock(&self.around.options.key),
            Effect::Block(bits) => self.around.options.flow.block(&self.around.options.key, bits),
            // The segments go with the next look at the log.
            Effect::Trimmed => self.tick_at = Some(now),
            Effect::Expired(count) => self.around.topic.expired(count),
            Effect::Drained(ticket) => self.drained(ticket),
        }
    }

    fn not_proposed(&mut self, error: &ProposeError, number: u32, now: Instant) {
        match error {
            ProposeError::NotLeader(_) | ProposeError::Fenced(_) => {}
            ProposeError::Full | ProposeError::Empty => {
                unreachable!("a proposal has batches, and few are in flight: {error}")
            }
        }
        self.tell(Event::NotProposed { number }, now);
    }

    fn stored(&self, paid: Paid, range: StoredRange) {
        self.around.topic.published(u64::from(paid.record_count), paid.bytes, range.duplicate);
        paid.reply.stored(range);
    }

    fn subscribed(
        &mut self,
        id: ConsumerId,
        result: Result<SubscribedState, SubscribeRefusal>,
        now: Instant,
    ) {
        let Some(attached) = self.consumers.get_mut(&id) else { return };
        let refused = result.is_err();
        if let Some(Opening::Consumer(reply)) = attached.reply.take() {
            reply.done(result.map_err(|refusal| refusal.to_peer()));
        }
        if refused {
            self.consumers.remove(&id);
        } else {
            // It may have given more credit while its subscription was being created.
            self.look(id, now);
        }
    }

    fn joined(&mut self, id: ConsumerId, result: Result<(), SubscribeRefusal>) {
        let Some(attached) = self.consumers.get_mut(&id) else { return };
        let refused = result.is_err();
        if let Some(Opening::Member(reply)) = attached.reply.take() {
            reply.done(result.map_err(|refusal| refusal.to_peer()));
        }
        if refused {
            self.consumers.remove(&id);
        }
    }

    pub(super) fn close_port(&mut self, id: ConsumerId, refusal: &SubscribeRefusal) {
        self.cold_waiting.retain(|wanted| wanted.consumer != id);
        if let Some(Attached { port, reply }) = self.consumers.remove(&id) {
            match reply {
                Some(reply) => reply.refused(refusal),
                None => port.close(Some(refusal.to_peer())),
            }
        }
    }

    fn deliver(&mut self, id: ConsumerId, deliver: Deliver, now: Instant) {
        let Some(Attached { port, .. }) = self.consumers.get(&id) else { return };
        let bytes = deliver.batches.iter().map(|batch| batch.len() as u64).sum();
        self.around.topic.delivered(u64::from(deliver.record_count), bytes);
        port.deliver(deliver);
        let registers = registers_of(port);
        self.tell(Event::Poked { id, registers, settle: None }, now);
    }

    /// Reads what is in memory here, and has the rest read elsewhere, a few at a time.
    fn read(&mut self, wanted: Wanted, now: Instant) {
        match self.log.read_from_offset(wanted.from, wanted.bytes_max) {
            Ok(Read::Hot(slices)) => self.found(wanted.consumer, Ok(slices), now),
            Ok(Read::Cold(_)) if self.cold >= COLD_READS_MAX => self.cold_waiting.push_back(wanted),
            Ok(Read::Cold(cold)) => {
                self.cold += 1;
                let done = self.around.reads_done.clone();
                cold.submit(&self.around.executor, move |found| {
                    // The channel holds every read that may be under way; if it is closed, the
                    // partition has ended.
                    let _ = done.try_send((wanted.consumer, found));
                });
            }
            Err(error) => self.found(wanted.consumer, Err(error), now),
        }
    }

    pub(super) fn cold_done(&mut self, (id, found): ColdDone, now: Instant) {
        self.cold -= 1;
        self.found(id, found, now);
        if let Some(next) = self.cold_waiting.pop_front() {
            self.read(next, now);
        }
    }

    fn found(&mut self, id: ConsumerId, found: Result<Vec<BatchSlice>, ReadError>, now: Instant) {
        match found {
            Ok(slices) => self.tell(Event::Read { id, slices }, now),
            // It was trimmed while the read was on its way: the next read begins at the log start.
            Err(ReadError::OutOfRange { .. }) => {
                self.tell(Event::Read { id, slices: Vec::new() }, now);
            }
            Err(error) => {
                let key = self.around.options.key.clone();
                tracing::error!(partition = ?key, %error, "a read failed");
                let refusal = match error {
                    ReadError::Damaged(range) => SubscribeRefusal::Damaged(Loss { key, range }),
                    error => SubscribeRefusal::Unreadable { text: error.to_string() },
                };
                self.tell(Event::Closed(id), now);
                self.close_port(id, &refusal);
            }
        }
    }

    fn drained(&mut self, ticket: Ticket) {
        match self.asked.remove(&ticket) {
            Some(Asked::Drain(reply)) => reply.done(Ok(())),
            Some(Asked::Stop(reply)) => self.stop = Some(reply),
            Some(Asked::Open(_) | Asked::Delete(_)) | None => {}
        }
    }

    /// Leaves the numbers where everybody may see them.
    pub(super) fn show(&self) {
        let board = &self.around.board;
        let state = self.core.state();
        board.log_start.store(state.log_start.0, Ordering::Release);
        self.replica.readers_begin_at(state.log_start);
        board.high_watermark.store(state.high_watermark.0, Ordering::Release);
        board.blocked_bits.store(self.core.blocked_bits(), Ordering::Release);
        let consumers = self.consumers.len().saturating_sub(self.core.members());
        board.consumers.store(consumers as u32, Ordering::Release);
        board.read_only.store(self.core.is_read_only(), Ordering::Release);
        if let Some(term) = self.core.term() {
            board.term.store(term.0, Ordering::Release);
        }
        let leads = self.core.leads();
        if board.leading.swap(leads, Ordering::AcqRel) != leads {
            self.around.options.lead_changed.notify_one();
        }
        if self.opened && !board.opened.initialized() {
            // Only this task sets it, so nobody can have been before it.
            let _ = board.opened.set(());
        }
    }

    pub(super) fn show_subscriptions(&self) {
        let bounds = self.log.bounds();
        let board = &self.around.board;
        board.log_end.store(bounds.log_end.0, Ordering::Release);
        board.bytes.store(bounds.bytes, Ordering::Release);
        let consumers = &self.core.consuming().consumers;
        let views = self.core.state().subscriptions.iter().map(|(id, durable)| {
            let serving = consumers.serving(id);
            SubscriptionView {
                name: durable.name.clone(),
                cursor: durable.cursor,
                delivered: serving.map_or(durable.cursor, |(_, position)| position),
                attached: serving.is_some(),
                expired: durable.expired,
            }
        });
        board.set_subscriptions(views.collect());
    }
}
