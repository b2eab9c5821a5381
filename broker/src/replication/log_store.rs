//! Owns: the engine's log, kept in a [`weir_storage::Log`]: what is stamped, in which order things
//! become durable, and which failure ends the replica.
//! Never: decodes a body; reads the log to apply it.
//! Invariants: a vote reaches the disk after every earlier append of the log is durable; appends
//! complete in their order; after the first failure nothing succeeds any more.

use super::codec;
use super::control_batch;
use super::engine::{self, Batches, EngineEntry, LogId, StoredMembership, Types, Vote};
use super::runs::Runs;
use super::shared::Shared;
use futures_util::{Stream, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use weir_protocol::batch::{ATTR_LAST_OF_INDEX, BatchHeader, BatchType};
use weir_protocol::types::{Index, Term};
use weir_storage::NewBatch;

/// Bytes of batches that are read for a peer at once, beyond the first index.
const SEND_BYTES_MAX: usize = 1 << 20;

/// The writer. The engine owns the only one.
pub(super) struct LogStore {
    shared: Arc<Shared>,
    runs: Runs,
}

/// The reader. The engine makes as many as it needs.
#[derive(Clone)]
pub(super) struct StoreReader {
    shared: Arc<Shared>,
}

impl LogStore {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let map = shared.map();
        let last_term = map.term_at(map.last()).unwrap_or(Term(0));
        drop(map);
        Self { shared, runs: Runs::behind(last_term) }
    }

    /// Turns one of the engine's records into the batches of one index, stamped.
    fn batches_of(&mut self, log_id: LogId, payload: Payload) -> Vec<NewBatch> {
        let (term, index) = place_of(&log_id);
        // The engine's own batches have no clock; log time must not fall.
        let own = |batch_type| {
            let mut header = BatchHeader::empty(batch_type);
            header.log_time_ms = self.shared.reader.bounds().last.map_or(0, |l| l.log_time_ms);
            header
        };
        let mut batches = match payload {
            EntryPayload::Blank => {
                vec![NewBatch { header: own(BatchType::Noop), body: Vec::new() }]
            }
            EntryPayload::Membership(membership) => {
                let content = codec::encode_membership(&membership);
                vec![control_batch(own(BatchType::Config), content)]
            }
            EntryPayload::Normal(Batches::Proposed(batches)) => batches,
            EntryPayload::Normal(Batches::Stored(_)) => {
                unreachable!("nothing that was read back is appended by a group of one voter")
            }
        };
        let last = batches.len() - 1;
        for (position, batch) in batches.iter_mut().enumerate() {
            batch.header.index = index;
            batch.header.term = term;
            batch.header.attrs &= !ATTR_LAST_OF_INDEX;
            if position == last {
                batch.header.attrs |= ATTR_LAST_OF_INDEX;
            }
            self.stamp_turn(&mut batch.header);
        }
        batches
    }

    /// Stamps a data batch VOID that does not stand in its turn.
    fn stamp_turn(&mut self, header: &mut BatchHeader) {
        if !matches!(header.batch_type, BatchType::Data | BatchType::Control) {
            return;
        }
        let in_turn = self.runs.admit(header.term, header.run, header.run_number);
        if !in_turn && header.batch_type == BatchType::Data {
            header.batch_type = BatchType::Void;
        }
    }
}

type Payload = <Types as openraft::RaftTypeConfig>::Payload;

impl RaftLogStorage<Types> for LogStore {
    type LogReader = StoreReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let map = self.shared.map();
        let last_purged_log_id = map.purged();
        Ok(LogState {
            last_log_id: map.log_id(map.last()).max(last_purged_log_id),
            last_purged_log_id,
        })
    }

    async fn get_log_reader(&mut self) -> StoreReader {
        StoreReader { shared: self.shared.clone() }
    }

    /// Waits until every earlier append is durable. The engine keeps one watermark for all its
    /// writes: a vote that overtook an append would make it count as durable.
    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.shared.flushed().await?;
        self.shared.hard().vote = Some(*vote);
        self.shared.store_hard_state().await
    }

    /// Kept in memory, written along with the next vote or trim: an older value only costs replay.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.shared.hard().committed = committed;
        Ok(())
    }

    /// Never beyond the durable log, or the engine would refuse to start.
    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let committed = self.shared.hard().committed;
        let map = self.shared.map();
        let durable = map.last().min(self.shared.reader.bounds().flushed_index);
        Ok(committed.and_then(|id| map.log_id(engine::index_of(id.index()).min(durable))))
    }

    async fn append<I>(&mut self, records: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = EngineEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batches = Vec::new();
        for EngineEntry { log_id, payload } in records {
            if let EntryPayload::Membership(membership) = &payload {
                let stored = StoredMembership::new(Some(log_id), membership.clone());
                self.shared.map().set_membership(stored);
            }
            let (term, index) = place_of(&log_id);
            self.shared.map().extend(index, term);
            batches.extend(self.batches_of(log_id, payload));
        }
        self.shared.append(batches, callback)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let last = last_log_id.map_or(Index(0), |id| engine::index_of(id.index()));
        let shared = self.shared.clone();
        self.shared.on_executor(move || shared.truncate_after(last)).await?;
        let map = self.shared.map();
        self.runs = Runs::behind(map.term_at(map.last()).unwrap_or(Term(0)));
        Ok(())
    }

    /// Writes down what is gone before it goes, so that a crash in between leaves a log that is
    /// merely longer than it need be.
    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let (term, index) = place_of(&log_id);
        self.shared.hard().purged = Some(log_id);
        self.shared.store_hard_state().await?;
        self.shared.trim(index).await?;
        self.shared.map().trim(index, term);
        Ok(())
    }
}

impl StoreReader {
    /// The engine's record of an index without its batches: enough to apply it and to find terms
    /// and memberships, and nothing is read for it.
    fn light(&self, index: Index) -> Option<EngineEntry> {
        let map = self.shared.map();
        let log_id = map.log_id(index)?;
        let payload = match map.membership_at(index) {
            Some(membership) => EntryPayload::Membership(membership.membership().clone()),
            None => EntryPayload::Normal(Batches::Stored(Vec::new())),
        };
        Some(EngineEntry { log_id, payload })
    }

    fn indexes(&self, range: impl RangeBounds<u64>) -> std::ops::Range<u64> {
        let map = self.shared.map();
        let first = map.purged().map_or(0, |id| id.index() + 1);
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        start.max(first)..end.min(map.last().0)
    }
}

impl RaftLogReader<Types> for StoreReader {
    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = io::Result<EngineEntry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let reader = self.clone();
        let indexes = self.indexes(range);
        stream::iter(indexes.filter_map(move |at| reader.light(engine::index_of(at)).map(Ok)))
    }

    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<EngineEntry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Ok(self.indexes(range).filter_map(|at| self.light(engine::index_of(at))).collect())
    }

    /// What is sent to a peer: whole indexes with the bytes of their batches, at least one index.
    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<EngineEntry>> {
        let indexes = self.indexes(start..end);
        let mut records: Vec<EngineEntry> = Vec::new();
        let mut bytes = 0;
        for at in indexes {
            let index = engine::index_of(at);
            let Some(mut record) = self.light(index) else { break };
            let slices = self.shared.read_index(index).await.map_err(io::Error::other)?;
            bytes += slices.iter().map(|slice| slice.bytes.len()).sum::<usize>();
            if bytes > SEND_BYTES_MAX && !records.is_empty() {
                break;
            }
            if let EntryPayload::Normal(stored) = &mut record.payload {
                *stored = Batches::Stored(slices);
            }
            records.push(record);
        }
        Ok(records)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.hard().vote)
    }
}

fn place_of(log_id: &LogId) -> (Term, Index) {
    (Term(log_id.committed_leader_id().term), engine::index_of(log_id.index()))
}
