//! Owns: the state of every check, and which events each is shown.
//! Never: a judgement of its own, but that events come in order of time.
//! Invariants: what a check judges at the end, it judges by arrays, so that the report depends on the
//! history alone.

mod verdict;

use super::Limits;
use super::consumer::{Consumer, Consumers};
use super::credit::Account;
use super::event::{Event, Message, Mode, Peer, SettleResult, What};
use super::finding::{Check, Report};
use super::liveness::Faults;
use super::log::{NEVER, PartitionLog};
use super::queue::{Delivery, Settling};
use super::reader::{self, Place};
use super::replica::Replicas;
use super::subscription::{Owed, SubscriptionLog, Suspect};
use super::tail::TailQuery;

/// The place of a small number in an array that grows with it.
pub(super) fn slot<T: Default>(array: &mut Vec<T>, number: u16) -> &mut T {
    let at = usize::from(number);
    if array.len() <= at {
        array.resize_with(at + 1, T::default);
    }
    &mut array[at]
}

/// Takes a history event by event.
#[derive(Debug, Default)]
pub struct Checker {
    limits: Limits,
    now_ns: u64,
    logs: Vec<PartitionLog>,
    consumers: Consumers,
    /// By subscription, then by partition.
    subscriptions: Vec<Vec<SubscriptionLog>>,
    producers: Vec<Account>,
    streams: Vec<Account>,
    queries: Vec<Option<TailQuery>>,
    replicas: Replicas,
    faults: Faults,
    /// A consumer lost its connection or session at some time.
    any_cut: bool,
    suspects: Vec<Suspect>,
    report: Report,
}

impl Checker {
    /// A checker that has seen nothing.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Takes the next event.
    pub fn see(&mut self, event: Event) {
        let Event { at_ns, what } = event;
        if at_ns < self.now_ns {
            let text = format_args!("time fell from {} ns to {at_ns} ns", self.now_ns);
            self.report.add(Check::WellFormed, at_ns, text);
        }
        self.now_ns = self.now_ns.max(at_ns);
        self.report.events += 1;
        match what {
            What::Publish { .. }
            | What::Stored { .. }
            | What::NotStored { .. }
            | What::Unknown { .. }
            | What::Void { .. } => self.see_publish(what),
            What::Subscribe { consumer, subscription, partition, mode, from } => {
                self.on_subscribe(consumer, (subscription, partition), mode, from);
            }
            What::Detach { consumer } => self.on_detach(consumer),
            What::Deliver { .. } => self.on_deliver(what),
            What::Foreign { consumer, partition, offset, replica } => {
                let text = format_args!(
                    "replica {replica} gave consumer {consumer} a body at offset {offset} of \
                     partition {partition} that nobody made"
                );
                self.report.add(Check::NoInvention, at_ns, text);
            }
            What::Settle { .. }
            | What::Settled { .. }
            | What::Lapse { .. }
            | What::Exit { .. }
            | What::Redriven { .. } => self.see_settle(what),
            What::Grant { .. } | What::Revoke { .. } | What::Spend { .. } => self.see_credit(what),
            _ => self.see_partition(what),
        }
    }

    fn see_publish(&mut self, what: What) {
        let (at_ns, r) = (self.now_ns, &mut self.report);
        let logs = &mut self.logs;
        match what {
            What::Publish { message, bytes } => {
                slot(logs, message.partition).on_publish(at_ns, message, bytes, r);
            }
            What::Stored { message, offset } => {
                slot(logs, message.partition).on_stored(at_ns, message, offset, r);
            }
            What::NotStored { message } => {
                slot(logs, message.partition).on_not_stored(at_ns, message, r);
            }
            What::Unknown { message } => {
                slot(logs, message.partition).on_unknown(at_ns, message, r)
            }
            What::Void { message } => slot(logs, message.partition).on_void(at_ns, message, r),
            _ => {}
        }
    }

    fn see_credit(&mut self, what: What) {
        let (at_ns, r) = (self.now_ns, &mut self.report);
        let (What::Grant { peer, .. } | What::Revoke { peer, .. } | What::Spend { peer, .. }) =
            what
        else {
            return;
        };
        let account = match peer {
            Peer::Producer(producer) => slot(&mut self.producers, producer),
            Peer::Stream(stream) => slot(&mut self.streams, stream),
            Peer::Consumer(consumer) => match self.consumers.known(at_ns, consumer, r) {
                Some(consumer) => &mut consumer.account,
                None => return,
            },
        };
        match what {
            What::Grant { epoch, limit_cost, limit_messages, .. } => {
                account.grant(epoch, limit_cost, limit_messages);
            }
            What::Revoke { epoch, limit_cost, .. } => account.revoke(epoch, limit_cost),
            What::Spend { epoch, cost, messages, .. } => {
                let spent = (u64::from(cost), u64::from(messages));
                account.spend_in(at_ns, peer, (epoch, spent), r);
            }
            _ => {}
        }
    }

    fn see_partition(&mut self, what: What) {
        let (at_ns, r) = (self.now_ns, &mut self.report);
        match what {
            What::Trim { partition, log_start } => self.on_trim(partition, log_start),
            What::Damaged { partition, from, to } => {
                slot(&mut self.logs, partition).on_damaged(from..to);
            }
            What::Tail { query, partition } => {
                let at_least = slot(&mut self.logs, partition).known_end;
                *slot(&mut self.queries, query) = Some(TailQuery { partition, at_least });
            }
            What::TailEnd { query, end } => match (slot(&mut self.queries, query).take(), end) {
                (Some(open), Some(end)) => {
                    open.judge(at_ns, end, slot(&mut self.logs, open.partition), r);
                }
                (Some(_), None) => {}
                (None, _) => {
                    let text = format_args!("query {query} was answered, and never asked");
                    r.add(Check::WellFormed, at_ns, text);
                }
            },
            What::Chain { replica, partition, index, chain } => {
                self.replicas.on_chain(at_ns, replica, (partition, index), chain, r);
            }
            What::Leader { replica, partition, term } => {
                self.replicas.on_leader(at_ns, replica, partition, term, r);
                self.faults.on_leader(at_ns, partition, self.limits, r);
            }
            What::Fault => self.faults.begin(),
            What::Heal => self.faults.heal(at_ns),
            What::Drained { consumer, partition, replica, end } => {
                let log = slot(&mut self.logs, partition);
                TailQuery { partition, at_least: 0 }.judge(at_ns, end, log, r);
                let end = end.min(log.published);
                if let Some(consumer) = self.consumers.known(at_ns, consumer, r)
                    && let Some(reading) = consumer.reading_mut(partition)
                {
                    reading.ended = Some((replica, end));
                    r.drains += 1;
                }
            }
            _ => {}
        }
    }

    fn on_subscribe(
        &mut self,
        consumer: u16,
        (name, partition): (u16, u16),
        mode: Mode,
        from: u32,
    ) {
        let (at_ns, r) = (self.now_ns, &mut self.report);
        let log = slot(&mut self.logs, partition);
        let log_start = log.log_start();
        if from > log.published {
            let text = format_args!(
                "consumer {consumer} reads partition {partition} from offset {from}, although \
                 only {} messages were published",
                log.published
            );
            return r.add(Check::WellFormed, at_ns, text);
        }
        let attached = slot(&mut self.consumers.0, consumer);
        let attached = attached.get_or_insert_with(|| Consumer::new(name, mode));
        if (attached.subscription, attached.mode) != (name, mode) {
            let text = format_args!("consumer {consumer} changed its subscription or mode");
            return r.add(Check::WellFormed, at_ns, text);
        }
        attached.attach(at_ns, partition, from);
        if matches!(mode, Mode::Reader | Mode::Drain) {
            return;
        }
        let subscription = slot(slot(&mut self.subscriptions, name), partition);
        if subscription.mode.is_none() {
            subscription.mode = Some(mode);
            subscription.start = from.max(log_start);
            subscription.since_ns = at_ns;
            if mode == Mode::Stream {
                subscription.cursor_settled = subscription.start;
                subscription.cursor_asked = subscription.start;
            }
        } else if mode == Mode::Stream {
            let place = Place { at_ns, subscription: name, consumer, partition };
            self.suspects.extend(reader::on_attach(place, from, subscription, r));
        }
    }

    fn on_detach(&mut self, consumer: u16) {
        self.any_cut = true;
        if let Some(consumer) = self.consumers.known(self.now_ns, consumer, &mut self.report) {
            consumer.is_attached = false;
            consumer.cut_ns = Some(self.now_ns);
        }
    }

    fn on_deliver(&mut self, what: What) {
        let What::Deliver { message, offset, consumer, partition, attempt, count, .. } = what
        else {
            return;
        };
        let (at_ns, r) = (self.now_ns, &mut self.report);
        let log = slot(&mut self.logs, partition);
        let is_placed = log.on_delivered(at_ns, partition, message, offset, r);
        let cost = log.find(message).map_or(0, |one| u64::from(one.bytes));
        let Some(to) = self.consumers.known(at_ns, consumer, r) else { return };
        if to.mode != Mode::Drain {
            to.account.spend(at_ns, Peer::Consumer(consumer), (cost, 1), r);
        }
        let (mode, name) = (to.mode, to.subscription);
        let place = Place { at_ns, subscription: name, consumer, partition };
        let Some(reading) = to.reading_mut(partition) else {
            let text = format_args!("consumer {consumer} does not read partition {partition}");
            return r.add(Check::WellFormed, at_ns, text);
        };
        let began_ns = reading.began_ns;
        if !is_placed {
            return;
        }
        if matches!(mode, Mode::Queue | Mode::KeyedQueue) {
            return self.on_lease(place, message, offset, (attempt, count), began_ns);
        }
        self.suspects.extend(reader::on_deliver(place, offset, mode, reading, r));
        if mode == Mode::Stream {
            let subscription = slot(slot(&mut self.subscriptions, name), partition);
            let lease = subscription.lease_mut(offset);
            lease.first_ns = lease.first_ns.min(at_ns);
            subscription.delivered_end = subscription.delivered_end.max(offset + 1);
        }
    }

    fn on_lease(
        &mut self,
        place: Place,
        message: Message,
        offset: u32,
        (attempt, count): (u16, u16),
        began_ns: u64,
    ) {
        let flight_ns = self.limits.flight_ns;
        let subscription = slot(slot(&mut self.subscriptions, place.subscription), place.partition);
        let lease = subscription.lease(offset);
        let is_excused = if lease.attempt == 0 {
            self.any_cut || self.faults.were_any()
        } else {
            let holder_cut = self.consumers.find(lease.consumer).and_then(|holder| holder.cut_ns);
            holder_cut.is_some_and(|cut_ns| cut_ns >= lease.last_ns)
                || self.faults.were_since(lease.last_ns, flight_ns)
        };
        let r = &mut self.report;
        // First deliveries are cut from the queue in order, also on their way to one consumer.
        if subscription.mode == Some(Mode::Queue)
            && attempt == 1
            && !lease.was_out()
            && let Some(to) = self.consumers.known(place.at_ns, place.consumer, r)
            && let Some(reading) = to.reading_mut(place.partition)
        {
            reader::on_deliver(place, offset, Mode::Queue, reading, r);
        }
        let delivery = Delivery { place, message, offset, attempt, count, began_ns, is_excused };
        subscription.on_lease(delivery, flight_ns, r);
    }

    fn see_settle(&mut self, what: What) {
        let (at_ns, r) = (self.now_ns, &mut self.report);
        let (name, partition, offset, consumer) = match what {
            What::Settle { consumer, partition, offset, .. }
            | What::Settled { consumer, partition, offset, .. }
            | What::Lapse { consumer, partition, offset, .. } => {
                let Some(known) = self.consumers.known(at_ns, consumer, r) else { return };
                (known.subscription, partition, offset, consumer)
            }
            What::Exit { subscription, partition, offset, .. }
            | What::Redriven { subscription, partition, offset } => {
                (subscription, partition, offset, 0)
            }
            _ => return,
        };
        if offset >= slot(&mut self.logs, partition).published {
            let text = format_args!("offset {offset} of partition {partition} cannot be settled");
            return r.add(Check::WellFormed, at_ns, text);
        }
        let place = Place { at_ns, subscription: name, consumer, partition };
        let subscription = slot(slot(&mut self.subscriptions, name), partition);
        match what {
            What::Settle { .. } if subscription.mode == Some(Mode::Stream) => {
                subscription.cursor_asked = subscription.cursor_asked.max(offset + 1);
            }
            What::Settle { attempt, verb, .. } => {
                subscription.on_settle(Settling { place, offset, attempt, verb });
            }
            What::Settled { attempt, verb, result, .. } => {
                self.on_settled(Settling { place, offset, attempt, verb }, result);
            }
            What::Lapse { attempt, .. } => {
                let lease = subscription.lease_mut(offset);
                lease.is_ended |= lease.attempt == attempt;
            }
            What::Exit { exit, .. } => {
                let lease = subscription.lease_mut(offset);
                lease.exit = Some((exit, at_ns));
                lease.is_declared = true;
            }
            What::Redriven { .. } => {
                let lease = subscription.lease_mut(offset);
                lease.exit = None;
                lease.is_declared = false;
                lease.settled_ns = NEVER;
                lease.is_ended = true;
            }
            _ => {}
        }
    }

    fn on_settled(&mut self, settling: Settling, result: SettleResult) {
        let Place { subscription: name, consumer, partition, .. } = settling.place;
        let subscription = slot(slot(&mut self.subscriptions, name), partition);
        let r = &mut self.report;
        if subscription.mode != Some(Mode::Stream) {
            self.suspects.extend(subscription.on_settle_answered(settling, result, r));
            return;
        }
        let next = self.consumers.known(settling.place.at_ns, consumer, r);
        let next = next.and_then(|from| from.reading_mut(partition)).map_or(0, |at| at.next);
        reader::on_settled(settling.place, settling.offset, result, next, subscription, r);
    }

    fn on_trim(&mut self, partition: u16, log_start: u32) {
        let at_ns = self.now_ns;
        let log = slot(&mut self.logs, partition);
        let before = log.log_start();
        if !log.on_trim(at_ns, log_start, &mut self.report) {
            return;
        }
        for (name, partitions) in self.subscriptions.iter().enumerate() {
            let Some(subscription) = partitions.get(usize::from(partition)) else { continue };
            if !subscription.is_durable() {
                continue;
            }
            let place = Place { at_ns, subscription: name as u16, consumer: 0, partition };
            let owed = (before.max(subscription.start)..log_start)
                .filter(|offset| !subscription.is_asked(*offset))
                .map(|offset| place.owes(Owed::Trimmed, offset..offset + 1));
            self.suspects.extend(owed);
        }
    }
}
