//! Publishes of the model: in order, refused, of unknown outcome, asked again, given up.

use super::{Known, Model, Place, Sent, Step};
use weir_sim::history::{Message, Peer, What};

impl Model {
    pub(super) fn publish(&mut self, partition: u16) {
        let producer = self.random.u16(..self.producers.len() as u16);
        let sent = &mut self.producers[usize::from(producer)].sent[usize::from(partition)];
        // A client settles what it does not know before it publishes on.
        if sent
            .iter()
            .any(|one| one.known == Known::Unknown || one.had_unknown && one.known == Known::Open)
        {
            return;
        }
        let sequence = sent.len() as u32;
        let bytes = self.random.u32(16..1_500);
        sent.push(Sent {
            bytes,
            known: Known::Open,
            had_unknown: false,
            is_dead: false,
            offset: None,
        });
        self.hand_over(Message { producer, partition, sequence }, bytes);
    }

    pub(super) fn hand_over(&mut self, message: Message, bytes: u32) {
        self.note(What::Publish { message, bytes });
        let cost = bytes.max(512);
        let producer = &mut self.producers[usize::from(message.producer)];
        let (era, due_ns) = (producer.era, producer.due_ns);
        let peer = Peer::Producer(message.producer);
        producer.spent += u64::from(cost);
        let revokes = producer.spent.is_multiple_of(7);
        if revokes && producer.spent <= producer.limit {
            let limit_cost = producer.spent - u64::from(cost);
            producer.limit = limit_cost;
            self.note(What::Revoke { peer, epoch: era, limit_cost });
        }
        let producer = &mut self.producers[usize::from(message.producer)];
        if producer.spent > producer.limit {
            producer.limit = producer.spent + 2_000;
            let limit_cost = producer.limit;
            self.note(What::Grant { peer, epoch: era, limit_cost, limit_messages: u64::MAX });
        }
        self.note(What::Spend { peer, epoch: era, cost, messages: 1 });
        let due_ns = self.send(due_ns, Step::Publish { message, era });
        self.producers[usize::from(message.producer)].due_ns = due_ns;
    }

    pub(super) fn sent(&mut self, message: Message) -> &mut Sent {
        let producer = &mut self.producers[usize::from(message.producer)];
        &mut producer.sent[usize::from(message.partition)][message.sequence as usize]
    }

    pub(super) fn on_publish(&mut self, message: Message, era: u16) {
        let producer = &self.producers[usize::from(message.producer)];
        let sent = &producer.sent[usize::from(message.partition)];
        let is_next = sent[..message.sequence as usize]
            .iter()
            .all(|before| before.is_dead || before.offset.is_some());
        let due_ns = producer.due_ns;
        let refuses = !self.is_ending && self.random.u32(..25) == 0;
        if self.sent(message).is_dead {
            return;
        }
        if self.sent(message).offset.is_none() && is_next && !refuses {
            let log = &mut self.partitions[usize::from(message.partition)];
            log.log.push(message);
            for queue in log.queues.values_mut() {
                queue.places.push((Place::Ready, 0));
            }
            let offset = log.log.len() as u32 - 1;
            self.sent(message).offset = Some(offset);
        }
        let stored = self.sent(message).offset;
        let due_ns = self.send(due_ns, Step::Answer { message, era, stored });
        self.producers[usize::from(message.producer)].due_ns = due_ns;
    }

    pub(super) fn on_answer(&mut self, message: Message, era: u16, stored: Option<u32>) {
        let forgets = self.random.u32(..3) == 0;
        let is_current = self.producers[usize::from(message.producer)].era == era;
        let sent = self.sent(message);
        if !is_current || sent.known != Known::Open {
            return;
        }
        let had_unknown = sent.had_unknown;
        match stored {
            Some(offset) => {
                sent.known = Known::Final;
                let offset = Some(offset).filter(|_| !(forgets && had_unknown));
                self.note(What::Stored { message, offset });
            }
            None => {
                sent.is_dead = !had_unknown;
                sent.known = if had_unknown { Known::Unknown } else { Known::Final };
                self.note(What::NotStored { message });
            }
        }
    }

    pub(super) fn cut_producer(&mut self) {
        let producer = self.random.u16(..self.producers.len() as u16);
        self.producers[usize::from(producer)].era += 1;
        self.producers[usize::from(producer)].limit = 0;
        self.producers[usize::from(producer)].spent = 0;
        for message in self.messages_of(producer, Known::Open) {
            self.sent(message).known = Known::Unknown;
            self.sent(message).had_unknown = true;
            self.note(What::Unknown { message });
        }
    }

    pub(super) fn messages_of(&self, producer: u16, known: Known) -> Vec<Message> {
        let sent = &self.producers[usize::from(producer)].sent;
        let all = (0..).zip(sent).flat_map(|(partition, sent)| {
            (0..).zip(sent).map(move |(sequence, one)| (partition, sequence, one.known))
        });
        all.filter(|(.., of)| *of == known)
            .map(|(partition, sequence, _)| Message { producer, partition, sequence })
            .collect()
    }

    /// Asks again for unknown outcomes, or gives up what a fence has made impossible.
    pub(super) fn resolve(&mut self) {
        for producer in 0..self.producers.len() as u16 {
            let unknown = self.messages_of(producer, Known::Unknown);
            let gives_up = self.random.u32(..4) == 0;
            for message in unknown {
                if self.sent(message).offset.is_none() && gives_up {
                    self.sent(message).is_dead = true;
                    self.sent(message).known = Known::Final;
                    self.note(What::Void { message });
                    continue;
                }
                self.sent(message).known = Known::Open;
                let bytes = self.sent(message).bytes;
                self.hand_over(message, bytes);
            }
        }
    }
}
