//! Consumers of the model: attached, given records as their credit allows, and settling.

use super::{Consumer, Model, Place, Step, WINDOW_COST, WINDOW_MESSAGES, deliver};
use std::collections::BTreeSet;
use weir_sim::history::{Mode, Peer, SettleResult, Verb, What};

impl Model {
    pub(super) fn attach(&mut self, by: usize) {
        self.consumers[by].era += 1;
        self.consumers[by].is_attached = true;
        self.consumers[by].spent = (0, 0);
        self.consumers[by].limit = (WINDOW_COST, WINDOW_MESSAGES);
        let Consumer { subscription, mode, era, .. } = self.consumers[by];
        let consumer = by as u16;
        for partition in 0..self.partitions.len() as u16 {
            let of = &self.partitions[usize::from(partition)];
            let from = match mode {
                Mode::Stream => of.cursor,
                Mode::Reader => self.random.u32(of.log_start..=of.log.len() as u32),
                _ => 0,
            };
            self.consumers[by].next[usize::from(partition)] = from;
            self.note(What::Subscribe { consumer, subscription, partition, mode, from });
        }
        let peer = Peer::Consumer(consumer);
        let (limit_cost, limit_messages) = (WINDOW_COST, WINDOW_MESSAGES);
        self.note(What::Grant { peer, epoch: era, limit_cost, limit_messages });
        // What the session still has is sent to it again, under the same token.
        for partition in 0..self.partitions.len() as u16 {
            let of = &mut self.partitions[usize::from(partition)];
            let Some(queue) = of.queues.get_mut(&subscription) else { continue };
            let mut again = Vec::new();
            for (offset, (place, attempt)) in (0..).zip(&mut queue.places) {
                if let Place::Leased { to, is_held } = place
                    && *to == by
                {
                    *is_held = false;
                    again.push((offset, *attempt));
                }
            }
            for (offset, attempt) in again {
                self.hand(by, partition, offset, attempt);
            }
        }
    }

    pub(super) fn cut_consumer(&mut self) {
        let by = self.random.usize(..self.consumers.len());
        self.note(What::Detach { consumer: by as u16 });
        self.consumers[by].era += 1;
        self.consumers[by].held.clear();
        if self.random.bool() {
            for queue in self.partitions.iter_mut().flat_map(|of| of.queues.values_mut()) {
                for (place, _) in &mut queue.places {
                    if matches!(place, Place::Leased { to, .. } if *to == by) {
                        *place = Place::Ready;
                    }
                }
            }
        }
        self.attach(by);
    }

    /// Sends a record that the credit allows.
    pub(super) fn hand(&mut self, to: usize, partition: u16, offset: u32, attempt: u16) {
        let message = self.partitions[usize::from(partition)].log[offset as usize];
        let bytes = u64::from(self.sent(message).bytes);
        let consumer = &mut self.consumers[to];
        consumer.spent = (consumer.spent.0 + bytes, consumer.spent.1 + 1);
        if consumer.spent.0 > consumer.limit.0 || consumer.spent.1 > consumer.limit.1 {
            consumer.limit = (consumer.spent.0 + WINDOW_COST, consumer.spent.1 + WINDOW_MESSAGES);
            let (limit_cost, limit_messages) = consumer.limit;
            let (peer, epoch) = (Peer::Consumer(to as u16), consumer.era);
            self.note(What::Grant { peer, epoch, limit_cost, limit_messages });
        }
        let (era, due_ns) = (self.consumers[to].era, self.consumers[to].due_ns);
        let what = deliver(message, offset, to as u16, (attempt, attempt), 0);
        self.consumers[to].due_ns = self.send(due_ns, Step::Hand { to, era, what });
    }

    pub(super) fn on_hand(&mut self, to: usize, era: u16, what: What) {
        let What::Deliver { partition, offset, attempt, .. } = what else { return };
        if self.consumers[to].era != era {
            return;
        }
        self.note(what);
        self.consumers[to].held.push((partition, offset, attempt));
        let subscription = self.consumers[to].subscription;
        let of = &mut self.partitions[usize::from(partition)];
        if let Some(queue) = of.queues.get_mut(&subscription)
            && let (Place::Leased { is_held, to: holder }, _) = &mut queue.places[offset as usize]
        {
            *is_held |= *holder == to;
        }
    }

    /// The subscriptions' turn in one partition: one record each.
    pub(super) fn deliver(&mut self, partition: u16) {
        for by in [0, 5] {
            let of = &self.partitions[usize::from(partition)];
            let next = self.consumers[by].next[usize::from(partition)].max(of.log_start);
            if next < of.log.len() as u32 {
                self.consumers[by].next[usize::from(partition)] = next + 1;
                self.hand(by, partition, next, 0);
            }
        }
        for (subscription, to) in [(1, 1), (2, 3)] {
            let to = to + self.random.usize(..2);
            let Some(offset) = self.pick(partition, subscription) else { continue };
            let of = &mut self.partitions[usize::from(partition)];
            let Some(queue) = of.queues.get_mut(&subscription) else { continue };
            let (place, attempt) = &mut queue.places[offset as usize];
            *place = Place::Leased { to, is_held: false };
            *attempt += 1;
            let attempt = *attempt;
            self.hand(to, partition, offset, attempt);
        }
    }

    /// What the queue delivers next: redeliveries first; in order of its key where it is ordered.
    pub(super) fn pick(&self, partition: u16, subscription: u16) -> Option<u32> {
        let of = &self.partitions[usize::from(partition)];
        let mut busy = BTreeSet::new();
        let mut fresh = None;
        for (offset, (place, attempt)) in (0..).zip(&of.queues[&subscription].places) {
            let key = of.log[offset as usize].producer;
            let is_free = subscription == 1 || !busy.contains(&key);
            match place {
                Place::Ready if is_free && *attempt > 0 => return Some(offset),
                Place::Ready if is_free => fresh = fresh.or(Some(offset)),
                _ => {}
            }
            if matches!(place, Place::Ready | Place::Leased { .. }) {
                busy.insert(key);
            }
        }
        fresh
    }

    pub(super) fn settle(&mut self) {
        for by in 0..self.consumers.len() {
            if self.consumers[by].held.is_empty() {
                continue;
            }
            let at = self.random.usize(..self.consumers[by].held.len());
            let (partition, offset, attempt) = self.consumers[by].held.remove(at);
            let verb = match self.random.u32(..20) {
                0 if by != 0 && !self.is_ending => Verb::Release,
                1 if by != 0 && !self.is_ending => Verb::Fail,
                2 if by != 0 => Verb::Reject,
                3 if by != 0 => Verb::Park,
                4 if by != 0 && !self.is_settling(by) => Verb::Extend,
                _ => Verb::Ack,
            };
            if self.consumers[by].mode == Mode::Reader {
                continue;
            }
            if verb == Verb::Extend {
                self.consumers[by].held.push((partition, offset, attempt));
            }
            let consumer = by as u16;
            self.note(What::Settle { consumer, partition, offset, attempt, verb });
            let (era, due_ns) = (self.consumers[by].era, self.consumers[by].due_ns);
            let step = Step::Settle { by, era, partition, offset, attempt, verb };
            self.consumers[by].due_ns = self.send(due_ns, step);
        }
    }

    /// A settle is on its way, or its answer is.
    fn is_settling(&self, who: usize) -> bool {
        self.steps.values().any(
            |step| matches!(step, Step::Settle { by, .. } | Step::Settled { by, .. } if *by == who),
        )
    }

    pub(super) fn on_settle(
        &mut self,
        by: usize,
        (partition, offset, attempt): (u16, u32, u16),
        verb: Verb,
    ) -> SettleResult {
        let of = &mut self.partitions[usize::from(partition)];
        let subscription = self.consumers[by].subscription;
        let Some(queue) = of.queues.get_mut(&subscription) else {
            of.cursor = of.cursor.max(offset + 1);
            return SettleResult::Ok;
        };
        let (place, newest) = &mut queue.places[offset as usize];
        let is_holder = matches!(place, Place::Leased { to, .. } if *to == by);
        let is_current = is_holder && *newest == attempt;
        match (*place, verb) {
            (Place::Settled, Verb::Ack) => return SettleResult::AlreadySettled,
            (Place::Settled | Place::Out { .. }, _) => return SettleResult::Refused,
            (_, Verb::Ack) if is_current || subscription == 1 => *place = Place::Settled,
            (_, Verb::Release | Verb::Fail) if is_current => *place = Place::Ready,
            (_, Verb::Reject) if is_current => *place = Place::Out { parked_ns: None },
            (_, Verb::Extend) if is_current => {}
            (_, Verb::Park) if is_current => {
                *place = Place::Out { parked_ns: Some(self.now_ns) };
            }
            _ => return SettleResult::Refused,
        }
        SettleResult::Ok
    }

    /// A consumer lets a lease run out, and may settle late all the same.
    pub(super) fn lapse(&mut self) {
        let by = self.random.usize(1..5);
        let Some(&(partition, offset, attempt)) = self.consumers[by].held.first() else { return };
        let subscription = self.consumers[by].subscription;
        let of = &mut self.partitions[usize::from(partition)];
        let Some(queue) = of.queues.get_mut(&subscription) else { return };
        let (place, newest) = &mut queue.places[offset as usize];
        if *newest == attempt && *place == (Place::Leased { to: by, is_held: true }) {
            *place = Place::Ready;
            let consumer = by as u16;
            self.note(What::Lapse { consumer, partition, offset, attempt });
        }
    }
}
