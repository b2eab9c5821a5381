//! What can be seen of links.
//!
//! Owns: the list of connections between this broker and others, and of those it tries to make.
//! Never: a decision.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;
use weir_protocol::peer::{Lane, Node, PeerRefusal, Side};
use weir_protocol::types::BrokerId;

/// How a link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// It is not there, and tried for.
    Connecting,
    /// It was refused, by this side or the other, and is tried for again.
    Refused(PeerRefusal),
    /// It is there.
    Open,
}

/// One link, for people and metrics.
#[derive(Debug, Clone)]
pub struct LinkView {
    /// Who is there, as far as that is known.
    pub broker: BrokerId,
    /// Its name; empty until it was met.
    pub name: String,
    /// Its address, as it was dialed or as it came.
    pub address: String,
    /// What the link carries.
    pub lane: Lane,
    /// Which end this broker is.
    pub side: Side,
    /// How it stands.
    pub state: LinkState,
    /// Since when.
    pub since: Instant,
    /// Bytes read since it stands.
    pub bytes_in: u64,
    /// Bytes written since it stands.
    pub bytes_out: u64,
}

/// One line of the list.
pub(super) struct Card {
    seen: Mutex<LinkView>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    traffic: Arc<Traffic>,
    lane: Lane,
}

/// What went over all links that ever were.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    control: [AtomicU64; 2],
    bulk: [AtomicU64; 2],
}

impl Traffic {
    /// Bytes read and bytes written.
    fn of(&self, lane: Lane) -> &[AtomicU64; 2] {
        match lane {
            Lane::Control => &self.control,
            Lane::Bulk => &self.bulk,
        }
    }
}

impl Card {
    fn seen(&self) -> MutexGuard<'_, LinkView> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn opened(&self, node: &Node) {
        self.bytes_in.store(0, Ordering::Relaxed);
        self.bytes_out.store(0, Ordering::Relaxed);
        let mut seen = self.seen();
        (seen.broker, seen.name) = (node.broker, node.name.to_string());
        (seen.state, seen.since) = (LinkState::Open, Instant::now());
    }

    pub(super) fn lost(&self, state: LinkState) {
        let mut seen = self.seen();
        if seen.state != state {
            (seen.state, seen.since) = (state, Instant::now());
        }
    }

    pub(super) fn read(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        let [read, _] = self.traffic.of(self.lane);
        read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn written(&self, all: u64) {
        let before = self.bytes_out.swap(all, Ordering::Relaxed);
        let [_, written] = self.traffic.of(self.lane);
        written.fetch_add(all.saturating_sub(before), Ordering::Relaxed);
    }

    fn view(&self) -> LinkView {
        LinkView {
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            ..self.seen().clone()
        }
    }
}

/// The list.
#[derive(Clone, Default)]
pub(super) struct Cards {
    table: Arc<Mutex<Table>>,
    traffic: Arc<Traffic>,
}

#[derive(Default)]
struct Table {
    next: u64,
    cards: BTreeMap<u64, Arc<Card>>,
}

/// A line that stands in the list until it is dropped.
pub(super) struct Listed {
    pub(super) card: Arc<Card>,
    cards: Cards,
    number: u64,
}

impl Cards {
    pub(super) fn add(&self, (side, lane): (Side, Lane), broker: BrokerId, at: &str) -> Listed {
        let view = LinkView {
            broker,
            name: String::new(),
            address: at.to_owned(),
            lane,
            side,
            state: LinkState::Connecting,
            since: Instant::now(),
            bytes_in: 0,
            bytes_out: 0,
        };
        let (bytes_in, bytes_out) = (AtomicU64::new(0), AtomicU64::new(0));
        let (seen, traffic) = (Mutex::new(view), self.traffic.clone());
        let card = Arc::new(Card { seen, bytes_in, bytes_out, traffic, lane });
        let mut table = self.table();
        table.next += 1;
        let number = table.next;
        table.cards.insert(number, card.clone());
        Listed { card, cards: self.clone(), number }
    }

    pub(super) fn views(&self) -> Vec<LinkView> {
        self.table().cards.values().map(|card| card.view()).collect()
    }

    /// Bytes read and written over all links of a lane, those that are gone included.
    pub(super) fn traffic(&self, lane: Lane) -> [u64; 2] {
        self.traffic.of(lane).each_ref().map(|bytes| bytes.load(Ordering::Relaxed))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.cards.table().cards.remove(&self.number);
    }
}
