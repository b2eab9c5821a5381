//! Owns: the term of every index and the memberships of a log, in memory: what the engine asks of
//! a log all the time, answered without reading it.
//! Never: grows with the log, only with elections and membership changes.
//! Invariant: terms rise with the index; the map ends at the log's last index.

use super::engine::{self, LogId, StoredMembership};
use std::collections::BTreeMap;
use weir_protocol::types::{Index, Term};
use weir_storage::Log;

/// Terms and memberships of the indexes (`purged`, `last`].
#[derive(Debug, Default)]
pub(super) struct LogMap {
    /// The last index that was trimmed, with its term.
    purged: Option<(Index, Term)>,
    /// First index of each term, ascending. The purged index counts as one.
    terms: Vec<(Index, Term)>,
    /// Also the one in force at the purged index.
    memberships: BTreeMap<u64, StoredMembership>,
    last: Index,
}

impl LogMap {
    /// The map of a log that begins behind `purged`.
    pub(super) fn behind(purged: Option<(Index, Term)>) -> Self {
        let last = purged.map_or(Index(0), |(index, _)| index);
        Self { purged, terms: purged.into_iter().collect(), memberships: BTreeMap::new(), last }
    }

    /// The map of what `log` holds behind `purged`. Batches that are lost count to the term in front
    /// of them, but the last one: what the log ends with decides for whom the replica may vote, and
    /// its term is known though nothing of it is left.
    pub(super) fn of(log: &Log, purged: Option<(Index, Term)>) -> Self {
        let mut map = Self::behind(purged);
        let (end, terms) = (log.reader().bounds().last_index, log.reader().terms());
        let nexts = terms.iter().skip(1).map(|(next, _)| *next).chain([end]);
        for ((first, term), next) in terms.iter().zip(nexts) {
            let last = Index(next.0 - 1).min(end);
            if *first <= end && last > map.last {
                map.extend(last, *term);
            }
        }
        if map.last.0 + 1 < end.0 {
            // Every batch that would say its term is lost.
            map.extend(Index(end.0 - 1), map.term_at(map.last).unwrap_or(Term(0)));
        }
        if map.last < end {
            map.extend(end, log.term());
        }
        map
    }

    /// Takes in the indexes up to and including `index`, all of `term`.
    pub(super) fn extend(&mut self, index: Index, term: Term) {
        if self.terms.last().is_none_or(|(_, last)| *last != term) {
            self.terms.push((Index(self.last.0 + 1), term));
        }
        self.last = self.last.max(index);
    }

    /// Remembers the membership that came into force at its log id.
    pub(super) fn set_membership(&mut self, membership: StoredMembership) {
        let index = membership.log_id().map_or(Index(0), |id| engine::index_of(id.index()));
        self.memberships.insert(index.0, membership);
    }

    /// The membership at exactly this index.
    pub(super) fn membership_at(&self, index: Index) -> Option<&StoredMembership> {
        self.memberships.get(&index.0)
    }

    /// The membership in force at `index`.
    pub(super) fn membership_before(&self, index: Index) -> Option<&StoredMembership> {
        self.memberships.range(..=index.0).next_back().map(|(_, membership)| membership)
    }

    /// The last index.
    pub(super) const fn last(&self) -> Index {
        self.last
    }

    /// The last index that was trimmed.
    pub(super) fn purged(&self) -> Option<LogId> {
        self.purged.and_then(|(index, term)| engine::log_id(term.0, index))
    }

    /// The term at `index`, if the map reaches it.
    pub(super) fn term_at(&self, index: Index) -> Option<Term> {
        if index > self.last {
            return None;
        }
        let behind = self.terms.partition_point(|(first, _)| *first <= index);
        behind.checked_sub(1).map(|at| self.terms[at].1)
    }

    /// The engine's log id of `index`, if the map reaches it.
    pub(super) fn log_id(&self, index: Index) -> Option<LogId> {
        self.term_at(index).and_then(|term| engine::log_id(term.0, index))
    }

    /// Forgets everything behind `index`.
    pub(super) fn truncate_after(&mut self, index: Index) {
        self.terms.retain(|(first, _)| *first <= index);
        self.memberships.retain(|at, _| *at <= index.0);
        self.last = self.last.min(index);
    }

    /// Forgets everything up to and including `index`, but for its term.
    pub(super) fn trim(&mut self, index: Index, term: Term) {
        self.purged = Some((index, term));
        let keep = self.terms.partition_point(|(first, _)| *first <= index);
        let mut terms = vec![(index, term)];
        terms.extend(self.terms.drain(keep..));
        self.terms = terms;
        if let Some((&in_force, _)) = self.memberships.range(..=index.0).next_back() {
            self.memberships.retain(|at, _| *at >= in_force);
        }
        self.last = self.last.max(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;
    use weir_protocol::batch::{ATTR_LAST_OF_INDEX, BatchHeader, BatchType};
    use weir_storage::{Backend, Device, LogOptions, NewBatch, OsDisk, ThreadExecutor};

    fn map_of(terms: &[u64]) -> LogMap {
        let mut map = LogMap::default();
        for (position, term) in terms.iter().enumerate() {
            map.extend(Index(position as u64 + 1), Term(*term));
        }
        map
    }

    #[test]
    fn the_engine_counts_from_zero() {
        let map = map_of(&[0, 1, 1]);
        assert_eq!(map.log_id(Index(1)), engine::log_id(0, Index(1)));
        assert_eq!(map.log_id(Index(1)).map(|id| id.index()), Some(0));
        assert_eq!(map.log_id(Index(0)), None);
        assert_eq!(map.log_id(Index(4)), None);
    }

    const STORED_BYTES: usize = 128;

    fn noop(index: u64, term: u64) -> NewBatch {
        let mut header = BatchHeader::empty(BatchType::Noop);
        (header.index, header.term) = (Index(index), Term(term));
        header.attrs |= ATTR_LAST_OF_INDEX;
        NewBatch { header, body: Vec::new() }
    }

    #[test]
    fn what_the_log_ends_with_is_known_though_its_last_batches_are_lost() {
        let terms = [1, 1, 2, 2];
        for lost_from in 1..=terms.len() {
            let folder = tempfile::tempdir().unwrap();
            let executor = Arc::new(ThreadExecutor::start().unwrap());
            let disk = Arc::new(OsDisk::new(Backend::Pwrite));
            let device = Device::open(disk, executor, folder.path(), 1).unwrap();
            let dir = folder.path().join("log");
            let open = || Log::open(device.clone(), &dir, LogOptions::default()).unwrap().0;
            let mut log = open();
            for (index, term) in (1..).zip(terms) {
                log.append(vec![noop(index, term)]).unwrap();
            }
            let (done, wait) = std::sync::mpsc::sync_channel(1);
            log.flush(Box::new(move |outcome| done.send(outcome).unwrap()));
            wait.recv().unwrap().unwrap();
            log.leave_watermark().unwrap();
            drop(log);
            let files = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path());
            let segment = files.filter(|path| path.extension().is_some_and(|end| end == "seg"));
            let segment = segment.last().unwrap();
            let mut bytes = std::fs::read(&segment).unwrap();
            let lost = 4_096 + (lost_from - 1) * STORED_BYTES..4_096 + terms.len() * STORED_BYTES;
            bytes[lost].fill(0);
            std::fs::write(&segment, bytes).unwrap();
            let map = LogMap::of(&open(), None);
            assert_eq!(map.last(), Index(4), "lost from {lost_from} on");
            assert_eq!(map.term_at(Index(4)), Some(Term(2)), "lost from {lost_from} on");
            for index in 1..lost_from {
                assert_eq!(map.term_at(Index(index as u64)), Some(Term(terms[index - 1])));
            }
        }
    }

    proptest! {
        /// Against a plain list of terms, after a trim and a truncation anywhere.
        #[test]
        fn it_agrees_with_a_list(
            steps in proptest::collection::vec(0u64..2, 1..60), trim in 0usize..60, cut in 0usize..60,
        ) {
            let terms: Vec<u64> = steps.iter().scan(0, |term, step| { *term += step; Some(*term) }).collect();
            let mut map = map_of(&terms);
            let trim = trim.min(terms.len());
            if trim > 0 {
                map.trim(Index(trim as u64), Term(terms[trim - 1]));
            }
            let cut = cut.clamp(trim, terms.len());
            map.truncate_after(Index(cut as u64));
            prop_assert_eq!(map.last(), Index(cut as u64));
            for index in trim.max(1)..=cut {
                prop_assert_eq!(map.term_at(Index(index as u64)), Some(Term(terms[index - 1])));
            }
            for index in cut + 1..=terms.len() {
                prop_assert_eq!(map.term_at(Index(index as u64)), None);
            }
        }
    }
}
