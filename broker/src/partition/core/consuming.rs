//! Consumers and what they are owed.
//!
//! Owns: subscriptions that are being created or deleted, settles that somebody waits for.
//! Never: reads or sends: those are effects.
//! Invariants: SUBSCRIBED leaves before the first delivery of its consumer; a settle is confirmed
//! only once it is committed.

use super::arriving::Arrivals;
use super::{Core, Effect, Effects, Hint, Leader, Ticket};
use crate::connection::outbox::ConsumerId;
use crate::partition::command::{Command, SubscriptionId};
use crate::partition::refusal::{Loss, SubscribeRefusal, read_only, settle_beyond};
use crate::partition::request::SubscribedState;
use crate::partition::subscription::consumer::{BeyondDelivered, Consumers, Registers};
use crate::partition::subscription::{Settles, Subscriptions};
use crate::planted::{Bug, is_planted};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;
use weir_protocol::frame::{Deliver, Settled};
use weir_protocol::types::{Name, Offset, StreamId};
use weir_storage::BatchSlice;

/// A consumer that waits for its subscription.
#[derive(Debug)]
pub(super) struct Newcomer {
    pub(super) id: ConsumerId,
    pub(super) registers: Registers,
    /// Of the assignment that sent it; 0 = none did.
    pub(super) epoch: u64,
}

/// The assignments under which a subscription was and is read here.
#[derive(Debug, Default)]
struct Fence {
    highest: u64,
    serving: u64,
}

/// A subscription that does not exist yet, and the consumers that wait for it.
#[derive(Debug)]
struct Creating {
    cursor: Offset,
    waiting: Vec<Newcomer>,
    proposed: bool,
}

#[derive(Debug)]
struct Deleting {
    tickets: Vec<Ticket>,
    proposed: bool,
}

/// The volatile half of consumption.
#[derive(Debug, Default)]
pub(in crate::partition) struct Consuming {
    pub(in crate::partition) consumers: Consumers,
    pub(super) settles: Settles,
    creating: BTreeMap<Name, Creating>,
    deleting: BTreeMap<SubscriptionId, Deleting>,
    fences: BTreeMap<SubscriptionId, Fence>,
    /// Who waits to hear that a settle is committed, and which.
    confirms: BTreeMap<SubscriptionId, (ConsumerId, Offset)>,
    pub(super) arrivals: Arrivals,
    /// Deletions that wait for a leader to be known.
    awaiting: Vec<(Name, Ticket)>,
    /// Readers that any replica may serve.
    anywhere: BTreeSet<ConsumerId>,
}

impl Consuming {
    pub(super) fn close(&mut self, id: ConsumerId) {
        self.consumers.detach(id);
        for creating in self.creating.values_mut() {
            creating.waiting.retain(|waiting| waiting.id != id);
        }
        self.creating.retain(|_, creating| creating.proposed || !creating.waiting.is_empty());
        self.confirms.retain(|_, (waiting, _)| *waiting != id);
        self.arrivals.close(id);
        self.anywhere.remove(&id);
    }

    /// When the first consumer on its way in has waited for long enough.
    pub(super) fn patience_ends(&self) -> Option<Instant> {
        self.arrivals.patience_ends()
    }

    /// Consumers attached or on their way in.
    pub(super) fn count(&self) -> usize {
        let creating: usize = self.creating.values().map(|new| new.waiting.len()).sum();
        self.consumers.len() + creating + self.arrivals.len()
    }

    /// Appends the creations and deletions that are not proposed yet, at most `bytes_max` of them.
    pub(super) fn gather_changes(
        &mut self,
        subscriptions: &Subscriptions,
        bytes_max: usize,
        commands: &mut Vec<Command>,
    ) {
        let mut bytes = 0;
        let mut under_way = self.creating.values().filter(|creating| creating.proposed).count();
        for (name, creating) in self.creating.iter_mut().filter(|(_, new)| !new.proposed) {
            let subscription = subscriptions.next_id(under_way);
            let cursor = creating.cursor;
            let create = Command::Create { subscription, cursor, name: name.clone() };
            bytes += create.encoded_len();
            if bytes > bytes_max {
                return;
            }
            (creating.proposed, under_way) = (true, under_way + 1);
            commands.push(create);
        }
        for (subscription, deleting) in self.deleting.iter_mut().filter(|(_, new)| !new.proposed) {
            let delete = Command::Delete { subscription: *subscription };
            bytes += delete.encoded_len();
            if bytes > bytes_max {
                return;
            }
            deleting.proposed = true;
            commands.push(delete);
        }
    }

    /// What was proposed did not get into the log: it is proposed again. Each is idempotent.
    pub(super) fn changes_lost(&mut self) {
        self.creating.values_mut().for_each(|creating| creating.proposed = false);
        self.deleting.values_mut().for_each(|deleting| deleting.proposed = false);
    }
}

impl<R> Core<R> {
    pub(super) fn create(
        &mut self,
        name: Name,
        cursor: Offset,
        newcomer: Newcomer,
        out: &mut Effects<R>,
    ) {
        let id = newcomer.id;
        if let Some(lost) = &self.lost {
            // It may have been created in there.
            let refusal = SubscribeRefusal::ReadOnly(lost.clone());
            out.push(Effect::Subscribed(id, Err(refusal)));
            return;
        }
        let known = self.consuming.creating.contains_key(&name);
        if !known && !self.state.subscriptions.has_room(self.consuming.creating.len()) {
            out.push(Effect::Subscribed(id, Err(SubscribeRefusal::SubscriptionLimit)));
            return;
        }
        let fresh = || Creating { cursor, waiting: Vec::new(), proposed: false };
        let creating = self.consuming.creating.entry(name).or_insert_with(fresh);
        creating.waiting.push(newcomer);
    }

    /// Attaches the consumer of a durable subscription, which stood at `resume` where it came from,
    /// unless another one has come under a newer assignment.
    pub(super) fn attach(
        &mut self,
        Newcomer { id, registers, epoch }: Newcomer,
        subscription: SubscriptionId,
        resume: Offset,
        out: &mut Effects<R>,
    ) {
        let Some(durable) = self.state.subscriptions.by_id(subscription) else { return };
        let fence = self.consuming.fences.entry(subscription).or_default();
        if epoch != 0 && epoch < fence.highest && !is_planted(Bug::OldAssignmentServed) {
            out.push(Effect::Subscribed(id, Err(SubscribeRefusal::Generation)));
            return;
        }
        let both_share = epoch != 0 && fence.serving != 0;
        *fence = Fence { highest: fence.highest.max(epoch), serving: epoch };
        let replaced =
            if both_share { SubscribeRefusal::Generation } else { SubscribeRefusal::TakenOver };
        let cursor = durable.cursor.max(self.first_readable());
        let resume = resume.min(self.state.high_watermark);
        // What was trimmed below the place where it stood it has received.
        let skipped = if resume > cursor { 0 } else { durable.skipped };
        let start = (cursor.max(resume), skipped);
        let older = self.attach_at(id, Some(subscription), start, registers, out);
        out.extend(older.map(|older| Effect::Close(older, replaced)));
    }

    /// Attaches a reader that any replica may serve, or the leader alone.
    pub(super) fn attach_reader(
        &mut self,
        id: ConsumerId,
        any_replica: bool,
        start: (Offset, u64),
        registers: Registers,
        out: &mut Effects<R>,
    ) {
        if any_replica {
            self.consuming.anywhere.insert(id);
        }
        let _none = self.attach_at(id, None, start, registers, out);
    }

    /// Returns the consumer that it replaced.
    fn attach_at(
        &mut self,
        id: ConsumerId,
        subscription: Option<SubscriptionId>,
        (start, skipped): (Offset, u64),
        registers: Registers,
        out: &mut Effects<R>,
    ) -> Option<ConsumerId> {
        let older = self.consuming.consumers.attach(id, subscription, start, registers);
        let (log_start, high_watermark) = (self.first_readable(), self.state.high_watermark);
        let term = self.term().unwrap_or_default();
        let state = SubscribedState { start, log_start, high_watermark, skipped, term };
        out.push(Effect::Subscribed(id, Ok(state)));
        self.feed(id, out);
        older
    }

    pub(super) fn poked(
        &mut self,
        id: ConsumerId,
        registers: Registers,
        settle: Option<(Offset, bool)>,
        now: Instant,
        out: &mut Effects<R>,
    ) {
        self.consuming.consumers.look(id, registers);
        if let Some((upto, confirm)) = settle {
            self.settle(id, upto, confirm, now, out);
        }
        self.feed(id, out);
    }

    fn settle(
        &mut self,
        id: ConsumerId,
        upto: Offset,
        confirm: bool,
        now: Instant,
        out: &mut Effects<R>,
    ) {
        let durable = self.consuming.consumers.subscription_of(id);
        let cursor = durable.and_then(|durable| self.state.subscriptions.by_id(durable));
        let cursor = cursor.map_or(upto, |durable| durable.cursor);
        match self.consuming.consumers.settle(id, upto) {
            None => return,
            Some(Err(BeyondDelivered { delivered })) => {
                let refusal = Some(settle_beyond(upto, delivered));
                out.push(Effect::Settled(id, settled(cursor, refusal)));
                return;
            }
            Some(Ok(())) => {}
        }
        match (durable, &self.lost) {
            (Some(_), Some(lost)) if upto > cursor => {
                out.push(Effect::Settled(id, settled(cursor, Some(read_only(lost)))));
            }
            (Some(durable), None) if upto > cursor => {
                self.consuming.settles.add(durable, upto, confirm, now);
                if confirm && is_planted(Bug::SettleNotAwaited) {
                    out.push(Effect::Settled(id, settled(upto, None)));
                } else if confirm {
                    self.consuming.confirms.insert(durable, (id, upto));
                }
            }
            // A reader's settle only gives credit back; one below the cursor is done already.
            _ if confirm => out.push(Effect::Settled(id, settled(cursor, None))),
            _ => {}
        }
    }

    /// Commands are committed: whoever waited for them hears of it.
    pub(super) fn obeyed(&mut self, commands: &[Command], out: &mut Effects<R>) {
        for command in commands {
            match command {
                Command::Create { name, .. } => self.created(name, out),
                Command::Settle { subscription, .. } => self.confirm(*subscription, out),
                Command::Delete { subscription } => self.deleted(*subscription, out),
                Command::Trim { .. } => {}
                Command::Join { .. } | Command::Leave { .. } | Command::Release { .. } => {
                    self.sharing.look_again();
                }
            }
        }
    }

    fn created(&mut self, name: &Name, out: &mut Effects<R>) {
        let Some(creating) = self.consuming.creating.remove(name) else { return };
        let Some(subscription) = self.state.subscriptions.find(name) else { return };
        for newcomer in creating.waiting {
            self.attach(newcomer, subscription, Offset(0), out);
        }
    }

    fn confirm(&mut self, subscription: SubscriptionId, out: &mut Effects<R>) {
        let Some(durable) = self.state.subscriptions.by_id(subscription) else { return };
        let cursor = durable.cursor;
        if let Some((id, upto)) = self.consuming.confirms.get(&subscription).copied()
            && upto <= cursor
        {
            self.consuming.confirms.remove(&subscription);
            out.push(Effect::Settled(id, settled(cursor, None)));
        }
    }

    pub(super) fn delete(&mut self, name: Name, ticket: Ticket, out: &mut Effects<R>) {
        match self.leader {
            Leader::Here => self.delete_here(&name, ticket, out),
            Leader::Awaited(_) => self.consuming.awaiting.push((name, ticket)),
            Leader::Elsewhere(hint) => {
                out.push(Effect::Deleted(ticket, Err(SubscribeRefusal::NotLeader(hint))));
            }
        }
    }

    /// Deletes what waited for a leader to be known.
    pub(super) fn delete_awaiting(&mut self, out: &mut Effects<R>) {
        if !self.leader.is_awaited() {
            for (name, ticket) in std::mem::take(&mut self.consuming.awaiting) {
                self.delete(name, ticket, out);
            }
        }
    }

    fn delete_here(&mut self, name: &Name, ticket: Ticket, out: &mut Effects<R>) {
        if let Some(lost) = &self.lost {
            let refusal = SubscribeRefusal::ReadOnly(lost.clone());
            out.push(Effect::Deleted(ticket, Err(refusal)));
            return;
        }
        let Some(subscription) = self.state.subscriptions.find(name) else {
            out.push(Effect::Deleted(ticket, Ok(false)));
            return;
        };
        let fresh = || Deleting { tickets: Vec::new(), proposed: false };
        let deleting = self.consuming.deleting.entry(subscription).or_insert_with(fresh);
        deleting.tickets.push(ticket);
    }

    fn deleted(&mut self, subscription: SubscriptionId, out: &mut Effects<R>) {
        if let Some((id, _)) = self.consuming.consumers.serving(subscription) {
            self.consuming.consumers.detach(id);
            out.push(Effect::Close(id, SubscribeRefusal::SubscriptionDeleted));
        }
        self.consuming.confirms.remove(&subscription);
        self.consuming.fences.remove(&subscription);
        if let Some(deleting) = self.consuming.deleting.remove(&subscription) {
            out.extend(
                deleting.tickets.into_iter().map(|ticket| Effect::Deleted(ticket, Ok(true))),
            );
        }
    }

    /// Nothing can be created here any more.
    pub(super) fn refuse_creations(&mut self, out: &mut Effects<R>) {
        for (_, creating) in std::mem::take(&mut self.consuming.creating) {
            for Newcomer { id, .. } in creating.waiting {
                out.push(Effect::Subscribed(id, Err(SubscribeRefusal::Fenced)));
            }
        }
    }

    /// Nothing is changed here any more: whoever waits for a change hears of it.
    pub(super) fn refuse_changes(&mut self, lost: &Loss, out: &mut Effects<R>) {
        self.refuse_subscription_changes(&SubscribeRefusal::ReadOnly(lost.clone()), out);
        self.consuming.settles = Settles::default();
        for (subscription, (id, _)) in std::mem::take(&mut self.consuming.confirms) {
            let durable = self.state.subscriptions.by_id(subscription);
            let cursor = durable.map_or(Offset(0), |durable| durable.cursor);
            out.push(Effect::Settled(id, settled(cursor, Some(read_only(lost)))));
        }
    }

    /// Another replica leads: it serves all consumers but those that any may serve. The end of its
    /// stream tells a consumer that a settle which was not answered may be committed or not.
    pub(super) fn leave_consumers(&mut self, hint: Hint, out: &mut Effects<R>) {
        let refusal = SubscribeRefusal::NotLeader(hint);
        self.refuse_subscription_changes(&refusal, out);
        self.consuming.settles = Settles::default();
        self.consuming.confirms = BTreeMap::new();
        self.consuming.fences = BTreeMap::new();
        let anywhere = &self.consuming.anywhere;
        let stay = |id: &ConsumerId| anywhere.contains(id) || is_planted(Bug::FollowerServes);
        let consumers = self.consuming.consumers.ids().filter(|id| !stay(id));
        for id in consumers.collect::<Vec<_>>() {
            self.consuming.close(id);
            out.push(Effect::Close(id, refusal.clone()));
        }
    }

    fn refuse_subscription_changes(&mut self, why: &SubscribeRefusal, out: &mut Effects<R>) {
        for (_, creating) in std::mem::take(&mut self.consuming.creating) {
            let waiting = creating.waiting.into_iter();
            out.extend(waiting.map(|new| Effect::Subscribed(new.id, Err(why.clone()))));
        }
        for (_, deleting) in std::mem::take(&mut self.consuming.deleting) {
            let tickets = deleting.tickets.into_iter();
            out.extend(tickets.map(|ticket| Effect::Deleted(ticket, Err(why.clone()))));
        }
    }

    /// A read is through.
    pub(super) fn read(&mut self, id: ConsumerId, slices: Vec<BatchSlice>, out: &mut Effects<R>) {
        let high_watermark = self.readable_end();
        let Some(picked) = self.consuming.consumers.read(id, slices, high_watermark) else {
            return;
        };
        let deliver = Deliver {
            stream: StreamId(0),
            salt: picked.salt,
            record_count: picked.record_count,
            high_watermark,
            batches: picked.batches,
        };
        out.push(Effect::Deliver(id, deliver));
    }

    /// What is at it or above is not committed: nobody is served that.
    fn readable_end(&self) -> Offset {
        if is_planted(Bug::ServedBeyondCommitted) {
            return Offset(u64::MAX);
        }
        self.state.high_watermark
    }

    fn feed(&mut self, id: ConsumerId, out: &mut Effects<R>) {
        let (log_start, high_watermark) = (self.first_readable(), self.readable_end());
        out.extend(self.consuming.consumers.want(id, log_start, high_watermark).map(Effect::Read));
    }

    /// The high watermark may have moved: whoever waited for it reads on.
    pub(super) fn feed_hungry(&mut self, out: &mut Effects<R>) {
        for id in self.consuming.consumers.take_hungry() {
            self.feed(id, out);
        }
    }
}

/// The shell fills the stream in.
fn settled(upto: Offset, refusal: Option<weir_protocol::frame::Refusal>) -> Settled {
    Settled { stream: StreamId(0), upto, refusal }
}
