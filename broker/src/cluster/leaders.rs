//! Who leads, as brokers tell it.
//!
//! Owns: the latest news of each broker: how it is, and the replicas that it leads.
//! Never: is committed anywhere or decides who leads: five hundred elections at once must not be
//! five hundred commands of the metadata.
//! Invariants: of two replicas of a log that are told to lead, the one of the higher term does; what
//! is not told again within [`ROW_LASTS`] is forgotten; there are no more brokers than
//! [`BROKERS_MAX`] and no more rows of one than the cluster has logs.

#[cfg(test)]
mod tests;

use crate::planted::{Bug, is_planted};
use crate::replication::metadata::{CLUSTER_PARTITIONS_MAX, Catalog, Placement};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};
use weir_protocol::limits::BROKERS_MAX;
use weir_protocol::peer::{Led, News};
use weir_protocol::types::{BrokerId, ReplicaId};

/// How long a replica counts as leading after that was told. All that lead are told anew three times
/// within this.
pub const ROW_LASTS: Duration = Duration::from_secs(30);
/// Rows of one broker: it leads at most one replica of each log, the metadata's included.
const ROWS_MAX: usize = CLUSTER_PARTITIONS_MAX + 1;

/// How a broker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// When it told.
    pub heard: Instant,
    /// Bytes that its disks have left.
    pub free_bytes: u64,
    /// It is shutting down: it shall lead nothing.
    pub going: bool,
    /// The newest gate that its build can pass.
    pub gate: u32,
}

/// A replica that leads its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    /// Where it is.
    pub broker: BrokerId,
    /// Which replica, its term, and the numbers of its log.
    pub led: Led,
}

/// What brokers told of themselves; this broker's own news belong here too.
#[derive(Debug)]
pub struct LeaderBoard {
    told: Mutex<BTreeMap<BrokerId, Told>>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Told {
    condition: Condition,
    rows: BTreeMap<ReplicaId, Row>,
}

#[derive(Debug)]
struct Row {
    led: Led,
    noted: Instant,
}

impl Row {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.noted) < ROW_LASTS
    }
}

impl Default for LeaderBoard {
    fn default() -> Self {
        Self { told: Mutex::default(), changes: watch::channel(0).0 }
    }
}

impl LeaderBoard {
    /// Notes what a broker told at `now`.
    pub fn note(&self, from: BrokerId, news: &News, now: Instant) {
        let News { free_bytes, draining: going, gate, .. } = *news;
        let condition = Condition { heard: now, free_bytes, going, gate };
        let mut all = self.told();
        if !all.contains_key(&from) && all.len() >= BROKERS_MAX {
            let silent = all.iter().min_by_key(|(_, told)| told.condition.heard);
            if let Some(silent) = silent.map(|(broker, _)| *broker) {
                all.remove(&silent);
            }
        }
        let told = all.entry(from).or_insert_with(|| Told { condition, rows: BTreeMap::new() });
        told.condition = condition;
        told.rows.retain(|_, row| row.is_fresh(now));
        let mut changed = false;
        for led in &news.led {
            changed |= told.note(*led, now);
        }
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Who leads the log that has these replicas.
    pub fn leader_of(&self, replicas: &[Placement], now: Instant) -> Option<Leader> {
        leader_of(&self.told(), replicas, now)
    }

    /// The replicas that lead, at most one of each log.
    pub fn leaders(&self, catalog: &Catalog, now: Instant) -> BTreeSet<ReplicaId> {
        let told = self.told();
        let partitions = catalog.partitions().map(|(_, partition)| &partition.replicas);
        let logs = partitions.chain([&catalog.metadata]);
        logs.filter_map(|log| leader_of(&told, log, now)).map(|leader| leader.led.replica).collect()
    }

    /// How many logs a broker leads.
    pub fn led_by(&self, broker: BrokerId, now: Instant) -> usize {
        let told = self.told();
        let rows = told.get(&broker).into_iter().flat_map(|told| told.rows.values());
        rows.filter(|row| row.is_fresh(now)).count()
    }

    /// How each broker was when it told last.
    pub fn conditions(&self) -> BTreeMap<BrokerId, Condition> {
        self.told().iter().map(|(broker, told)| (*broker, told.condition)).collect()
    }

    /// The brokers that shall lead nothing, because they are shutting down.
    pub fn going(&self) -> BTreeSet<BrokerId> {
        let told = self.told();
        told.iter().filter(|(_, told)| told.condition.going).map(|(broker, _)| *broker).collect()
    }

    /// Moves whenever another replica leads than before.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Each change is whole before the lock is left, so that a panic elsewhere spoils nothing.
    fn told(&self) -> MutexGuard<'_, BTreeMap<BrokerId, Told>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    /// Whether that replica was not known to lead in this term.
    fn note(&mut self, led: Led, now: Instant) -> bool {
        let known = self.rows.get(&led.replica).map(|row| row.led.term);
        let is_old = known.is_some_and(|known| known > led.term);
        let is_old = is_old && !is_planted(Bug::OldNewsTaken);
        if is_old || (known.is_none() && self.rows.len() >= ROWS_MAX) {
            return false;
        }
        self.rows.insert(led.replica, Row { led, noted: now });
        known != Some(led.term)
    }
}

fn leader_of(
    told: &BTreeMap<BrokerId, Told>,
    replicas: &[Placement],
    now: Instant,
) -> Option<Leader> {
    let rows = replicas.iter().filter_map(|here| {
        let row = told.get(&here.broker)?.rows.get(&here.replica)?;
        row.is_fresh(now).then_some(Leader { broker: here.broker, led: row.led })
    });
    if is_planted(Bug::OldLeaderBelieved) {
        return rows.min_by_key(|leader| leader.led.term);
    }
    rows.max_by_key(|leader| leader.led.term)
}
