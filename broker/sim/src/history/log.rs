//! One partition as the history knows it: which messages, at which offsets.
//!
//! Owns: checks 2 to 6, and which offsets left the log by a trim or were given up.
//! Never: a consumer; readers ask it what they may pass over.
//! Invariants: offsets are dense, so none reaches the number of messages that were published, and
//! no array here grows beyond that number.

use super::event::Message;
use super::finding::{Check, Report, Time};
use std::ops::Range;

/// A time that has not come.
pub(super) const NEVER: u64 = u64::MAX;

/// What the publisher knows of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// A publish is under way.
    Open,
    /// None is, and its outcome is not known.
    Unknown,
    NotStored,
    Stored,
}

/// A message that was published.
#[derive(Debug, Clone, Copy)]
pub(super) struct Published {
    pub(super) bytes: u32,
    pub(super) offset: Option<u32>,
    /// First begun.
    pub(super) invoked_ns: u64,
    /// First acknowledged, or [`NEVER`].
    pub(super) acknowledged_ns: u64,
    /// First acknowledged or delivered, or [`NEVER`]: it was committed by then.
    pub(super) known_ns: u64,
    pub(super) stage: Stage,
    /// An earlier publish of it ended without an outcome.
    had_unknown: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    producer: u16,
    sequence: u32,
}

/// One partition.
#[derive(Debug, Default)]
pub(super) struct PartitionLog {
    producers: Vec<Vec<Published>>,
    slots: Vec<Option<Slot>>,
    /// Messages that were published: no offset and no log end is above.
    pub(super) published: u32,
    /// Exclusive end of what was acknowledged or delivered.
    pub(super) known_end: u32,
    /// (when, log start), both rising.
    trims: Vec<(u64, u32)>,
    damaged: Vec<Range<u32>>,
}

impl PartitionLog {
    pub(super) fn find(&self, message: Message) -> Option<&Published> {
        self.producers.get(usize::from(message.producer))?.get(message.sequence as usize)
    }

    fn find_mut(&mut self, message: Message) -> Option<&mut Published> {
        let producer = self.producers.get_mut(usize::from(message.producer))?;
        producer.get_mut(message.sequence as usize)
    }

    /// Every message with its producer and sequence, in this order.
    pub(super) fn messages(&self) -> impl Iterator<Item = (u16, u32, &Published)> {
        self.producers.iter().enumerate().flat_map(|(producer, all)| {
            all.iter().enumerate().map(move |(at, one)| (producer as u16, at as u32, one))
        })
    }

    /// The messages of each producer, in order of their sequence.
    pub(super) fn by_producer(&self) -> impl Iterator<Item = &[Published]> {
        self.producers.iter().map(Vec::as_slice)
    }

    /// The message at an offset, if any is known to be there.
    pub(super) fn at(&self, partition: u16, offset: u32) -> Option<(Message, &Published)> {
        let Slot { producer, sequence } = (*self.slots.get(offset as usize)?)?;
        let message = Message { producer, partition, sequence };
        self.find(message).map(|published| (message, published))
    }

    pub(super) fn on_publish(&mut self, at_ns: u64, message: Message, bytes: u32, r: &mut Report) {
        let producer = super::checker::slot(&mut self.producers, message.producer);
        let next = producer.len();
        match producer.get_mut(message.sequence as usize) {
            Some(again) if again.stage == Stage::Unknown && again.bytes == bytes => {
                again.stage = Stage::Open;
            }
            None if message.sequence as usize == next => {
                producer.push(Published {
                    bytes,
                    offset: None,
                    invoked_ns: at_ns,
                    acknowledged_ns: NEVER,
                    known_ns: NEVER,
                    stage: Stage::Open,
                    had_unknown: false,
                });
                self.published += 1;
            }
            _ => r.add(
                Check::WellFormed,
                at_ns,
                format_args!("{message} is published out of turn or again"),
            ),
        }
    }

    pub(super) fn on_stored(
        &mut self,
        at_ns: u64,
        message: Message,
        offset: Option<u32>,
        r: &mut Report,
    ) {
        match self.find_mut(message) {
            Some(one) if one.stage == Stage::Open => {
                one.stage = Stage::Stored;
                one.acknowledged_ns = at_ns;
                one.known_ns = one.known_ns.min(at_ns);
            }
            _ => return answer_without_call(at_ns, message, r),
        }
        if let Some(offset) = offset {
            self.place(at_ns, message, offset, r);
        }
    }

    pub(super) fn on_not_stored(&mut self, at_ns: u64, message: Message, r: &mut Report) {
        match self.find_mut(message) {
            // Refused this time: what became of the time before is still open.
            Some(one) if one.stage == Stage::Open && one.had_unknown => one.stage = Stage::Unknown,
            Some(one) if one.stage == Stage::Open => {
                one.stage = Stage::NotStored;
                refuse_delivered(at_ns, message, one, r);
            }
            _ => answer_without_call(at_ns, message, r),
        }
    }

    pub(super) fn on_unknown(&mut self, at_ns: u64, message: Message, r: &mut Report) {
        match self.find_mut(message) {
            Some(one) if one.stage == Stage::Open => {
                one.stage = Stage::Unknown;
                one.had_unknown = true;
            }
            _ => answer_without_call(at_ns, message, r),
        }
    }

    pub(super) fn on_void(&mut self, at_ns: u64, message: Message, r: &mut Report) {
        match self.find_mut(message) {
            Some(one) if one.stage == Stage::Unknown => {
                one.stage = Stage::NotStored;
                refuse_delivered(at_ns, message, one, r);
            }
            _ => answer_without_call(at_ns, message, r),
        }
    }

    /// A delivered message: false if it may not be taken for one of this partition's.
    pub(super) fn on_delivered(
        &mut self,
        at_ns: u64,
        partition: u16,
        message: Message,
        offset: u32,
        r: &mut Report,
    ) -> bool {
        let mine = message.partition == partition;
        let Some(one) = self.find_mut(message).filter(|_| mine) else {
            r.add(
                Check::NoInvention,
                at_ns,
                format_args!(
                    "{message} was delivered at offset {offset} of partition {partition}: \
                     nobody published it there"
                ),
            );
            return false;
        };
        one.known_ns = one.known_ns.min(at_ns);
        if one.stage == Stage::NotStored {
            refuse_delivered(at_ns, message, one, r);
        }
        self.place(at_ns, message, offset, r)
    }

    /// Ties a message to its offset; false if either is tied to another.
    fn place(&mut self, at_ns: u64, message: Message, offset: u32, r: &mut Report) -> bool {
        let published = self.published;
        let mut fail = |text| {
            r.add(Check::OneOffset, at_ns, text);
            false
        };
        if offset >= published {
            return fail(format_args!(
                "{message} is at offset {offset}, although only {published} messages were published"
            ));
        }
        if let Some((other, _)) = self.at(message.partition, offset).filter(|(m, _)| *m != message)
        {
            return fail(format_args!("offset {offset} is {other}, and is {message} too"));
        }
        let before = self.find(message).and_then(|one| one.offset);
        if let Some(before) = before.filter(|before| *before != offset) {
            return fail(format_args!("{message} is at offset {before}, and at {offset} too"));
        }
        if self.slots.len() <= offset as usize {
            self.slots.resize(offset as usize + 1, None);
        }
        let Message { producer, sequence, .. } = message;
        self.slots[offset as usize] = Some(Slot { producer, sequence });
        self.known_end = self.known_end.max(offset + 1);
        if let Some(one) = self.find_mut(message) {
            one.offset = Some(offset);
        }
        true
    }

    /// False if the log cannot begin there.
    pub(super) fn on_trim(&mut self, at_ns: u64, log_start: u32, r: &mut Report) -> bool {
        let (before, published) = (self.log_start(), self.published);
        let is_possible = (before..=published).contains(&log_start);
        if is_possible {
            self.trims.push((at_ns, log_start));
        } else {
            let text = format_args!(
                "the log start went from {before} to {log_start}, of {published} messages"
            );
            r.add(Check::WellFormed, at_ns, text);
        }
        is_possible
    }

    pub(super) fn on_damaged(&mut self, range: Range<u32>) {
        self.damaged.push(range);
    }

    pub(super) fn log_start(&self) -> u32 {
        self.trims.last().map_or(0, |(_, log_start)| *log_start)
    }

    /// The log start at a time, as far as it was recorded.
    pub(super) fn log_start_at(&self, at_ns: u64) -> u32 {
        let later = self.trims.partition_point(|(when, _)| *when <= at_ns);
        later.checked_sub(1).map_or(0, |last| self.trims[last].1)
    }

    /// The operator gave the offset up. Ranges are few.
    pub(super) fn is_damaged(&self, offset: u32) -> bool {
        self.damaged.iter().any(|range| range.contains(&offset))
    }

    /// Checks 5 and 6, at the end.
    pub(super) fn judge_order(&self, partition: u16, at_ns: u64, r: &mut Report) {
        let mut last: Option<(u16, u32, u32)> = None;
        for (producer, sequence, one) in self.messages() {
            let Some(offset) = one.offset else { continue };
            if let Some((_, before, above)) = last.filter(|(p, _, o)| *p == producer && *o > offset)
            {
                let text = format_args!(
                    "producer {producer} (partition {partition}): sequence {before} is at offset \
                     {above}, sequence {sequence} below at {offset}"
                );
                r.add(Check::ProducerOrder, at_ns, text);
            }
            last = Some((producer, sequence, offset));
        }
        let mut newest: Option<(u64, Message)> = None;
        for offset in 0..self.slots.len() as u32 {
            let Some((message, one)) = self.at(partition, offset) else { continue };
            if let Some((begun, below)) = newest.filter(|(begun, _)| one.known_ns < *begun) {
                let text = format_args!(
                    "{message} was stored at offset {offset} by {}, before {below} was published \
                     at {}, which is at a lower offset",
                    Time(one.known_ns),
                    Time(begun)
                );
                r.add(Check::RealTimeOrder, at_ns, text);
            }
            if newest.is_none_or(|(begun, _)| one.invoked_ns > begun) {
                newest = Some((one.invoked_ns, message));
            }
        }
    }
}

fn refuse_delivered(at_ns: u64, message: Message, one: &Published, r: &mut Report) {
    if one.known_ns != NEVER {
        let text = format_args!("{message} was refused, and delivered at {}", Time(one.known_ns));
        r.add(Check::NoAbortedRead, at_ns, text);
    }
}

fn answer_without_call(at_ns: u64, message: Message, r: &mut Report) {
    let text = format_args!("an outcome of {message}, which has no publish that awaits it");
    r.add(Check::WellFormed, at_ns, text);
}
