//! Owns: who is attached where, and how far each consumer has come.
//! Never: what the subscription as a whole was given.

use super::credit::Account;
use super::event::Mode;
use super::finding::{Check, Report};
use std::ops::Range;

/// How far a consumer has come in one partition.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// When it was attached last, and from where.
    pub(super) began_ns: u64,
    pub(super) from: u32,
    /// The offset that comes next; in queues, of first deliveries, as far as it is known.
    pub(super) next: u32,
    /// Mode `drain`: what was not given, records given, and the end: (replica, exclusive end).
    pub(super) missing: Vec<Range<u32>>,
    pub(super) survived: u32,
    pub(super) ended: Option<(u8, u32)>,
}

/// One consumer's session.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) subscription: u16,
    pub(super) mode: Mode,
    pub(super) is_attached: bool,
    /// When its session was last over or its connection lost.
    pub(super) cut_ns: Option<u64>,
    pub(super) account: Account,
    /// By partition.
    pub(super) readings: Vec<Option<Reading>>,
}

impl Consumer {
    pub(super) fn new(subscription: u16, mode: Mode) -> Self {
        Self {
            subscription,
            mode,
            is_attached: false,
            cut_ns: None,
            account: Account::default(),
            readings: Vec::new(),
        }
    }

    pub(super) fn reading_mut(&mut self, partition: u16) -> Option<&mut Reading> {
        self.readings.get_mut(usize::from(partition))?.as_mut()
    }

    /// Attaches it to a partition, for the first time or again.
    pub(super) fn attach(&mut self, at_ns: u64, partition: u16, from: u32) {
        let reading = super::checker::slot(&mut self.readings, partition);
        let is_again = reading.is_some();
        let reading = reading.get_or_insert_default();
        reading.began_ns = at_ns;
        reading.from = from;
        // In queues a session goes on where it was, and never sees a first delivery again.
        if !matches!(self.mode, Mode::Queue | Mode::KeyedQueue) {
            reading.next = from;
        }
        if is_again {
            self.cut_ns = Some(at_ns);
        }
        self.is_attached = true;
    }
}

/// The consumers, by number.
#[derive(Debug, Default)]
pub(super) struct Consumers(pub(super) Vec<Option<Consumer>>);

impl Consumers {
    pub(super) fn find(&self, consumer: u16) -> Option<&Consumer> {
        self.0.get(usize::from(consumer))?.as_ref()
    }

    /// An attached consumer, or a violation by whoever recorded it.
    pub(super) fn known(
        &mut self,
        at_ns: u64,
        consumer: u16,
        r: &mut Report,
    ) -> Option<&mut Consumer> {
        let found = self.0.get_mut(usize::from(consumer)).and_then(Option::as_mut);
        if found.is_none() {
            let text = format_args!("consumer {consumer} is not attached");
            r.add(Check::WellFormed, at_ns, text);
        }
        found
    }
}
