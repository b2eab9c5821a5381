//! Owns: the engine's log, kept in a [`weir_storage::Log`]: what is stamped, in which order things
//! become durable, and which failure ends the replica.
//! Never: decodes a body; reads the log to apply it.
//! Invariants: a vote reaches the disk after every earlier append of the log is durable; appends
//! complete in their order; after the first failure nothing succeeds any more.

use super::codec;
use super::control_batch;
use super::engine::{self, EngineEntry, LogId, StoredMembership, Types, Vote};
use super::payload::{Batches, Record};
use super::runs::Runs;
use super::shared::Shared;
use super::tail::{Piece, Tail};
use crate::planted::{Bug, is_planted};
use futures_util::{Stream, stream};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use tokio::time::Duration;
use weir_protocol::batch::{ATTR_LAST_OF_INDEX, BatchHeader, BatchType};
use weir_protocol::peer::LogPlace;
use weir_protocol::types::{Index, Term};
use weir_storage::{BatchSlice, NewBatch, ReadError};

/// Bytes of batches that are read for a peer at once, beyond the first index.
const SEND_BYTES_MAX: usize = 1 << 20;

/// A damaged index that a follower needs is looked at again after this long: it may be repaired.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);

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

    /// The batches of one index, as they go into the log behind what has `log_time_ms`.
    fn batches_of(&mut self, place: LogPlace, record: Record, log_time_ms: u64) -> Vec<NewBatch> {
        // The engine's own batches have no clock; log time must not fall.
        let own = |batch_type| BatchHeader { log_time_ms, ..BatchHeader::empty(batch_type) };
        let batches = match (record.batches, record.membership) {
            (Batches::Own, None) => {
                vec![NewBatch { header: own(BatchType::Noop), body: Vec::new() }]
            }
            (Batches::Own, Some(membership)) => {
                let content = codec::encode_membership(&membership);
                vec![control_batch(own(BatchType::Config), content)]
            }
            (Batches::Proposed(batches), _) => batches,
            (Batches::Received(batches), _) => return batches,
            (Batches::Stored(_), _) => unreachable!("what is in a log is received by another"),
        };
        self.stamped(place, batches)
    }

    fn stamped(&mut self, place: LogPlace, mut batches: Vec<NewBatch>) -> Vec<NewBatch> {
        let last = batches.len() - 1;
        for (position, batch) in batches.iter_mut().enumerate() {
            (batch.header.index, batch.header.term) = (place.index, place.term);
            batch.header.attrs &= !ATTR_LAST_OF_INDEX;
            if position == last {
                batch.header.attrs |= ATTR_LAST_OF_INDEX;
            }
            self.stamp_turn(&mut batch.header);
        }
        batches
    }

    /// Stores one piece: memory holds it then, and readers see it.
    async fn store(&self, piece: Piece) -> io::Result<()> {
        self.shared.store(piece.batches).await?;
        let mut map = self.shared.map();
        piece.places.iter().for_each(|place| map.extend(place.index, place.term));
        piece.memberships.into_iter().for_each(|membership| map.set_membership(membership));
        Ok(())
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
        if !is_planted(Bug::VoteOvertakesAppends) {
            self.shared.flushed().await?;
        }
        let before = self.shared.hard().vote.replace(*vote);
        if is_confirmed(before, vote) || is_planted(Bug::VoteNotFlushed) {
            return Ok(());
        }
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
        if is_planted(Bug::CommittedBelieved) {
            return Ok(committed);
        }
        Ok(committed.and_then(|id| map.log_id(engine::index_of(id.index()).min(durable))))
    }

    async fn append<I>(&mut self, records: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = EngineEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut tail = Tail::of(&self.shared);
        let (mut piece, mut held) = (Piece::default(), Vec::new());
        for EngineEntry { log_id, mut payload } in records {
            held.extend(payload.held.take());
            let place = engine::place_of(&log_id);
            let membership = payload.membership.clone();
            let received = matches!(payload.batches, Batches::Received(_));
            let batches = self.batches_of(place, payload, tail.log_time_ms);
            if received && !is_planted(Bug::ReceivedChainNotChecked) {
                tail.check(&batches).map_err(|diverged| self.shared.fenced_by(diverged))?;
            }
            tail.pass(&batches);
            if piece.is_full_before(&batches) {
                self.store(std::mem::take(&mut piece)).await?;
            }
            let membership = membership.map(|m| StoredMembership::new(Some(log_id), m));
            piece.push(place, batches, membership);
        }
        self.store(piece).await?;
        self.shared.flush(callback, held);
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let mut last = last_log_id.map_or(Index(0), |id| engine::index_of(id.index()));
        if is_planted(Bug::TailKept) {
            last = Index(last.0 + 1);
        }
        let shared = self.shared.clone();
        self.shared.on_executor(move || shared.truncate_after(last)).await?;
        let map = self.shared.map();
        self.runs = Runs::behind(map.term_at(map.last()).unwrap_or(Term(0)));
        Ok(())
    }

    /// Writes down what is gone before it goes, so that a crash in between leaves a log that is
    /// merely longer than it need be.
    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let LogPlace { term, index } = engine::place_of(&log_id);
        if !is_planted(Bug::TrimNotNoted) {
            self.shared.hard().purged = Some(log_id);
            self.shared.store_hard_state().await?;
        }
        self.shared.trim(index).await?;
        self.shared.map().trim(index, term);
        Ok(())
    }
}

/// Whether a vote is the one before, which a majority has given by now. Who was voted for in the term
/// is durable already, and that is all that a vote must keep: whoever starts anew with what is on the
/// disk votes for nobody else in the term, and resumes no lead.
fn is_confirmed(before: Option<Vote>, vote: &Vote) -> bool {
    before.is_some_and(|before| before.leader_id == vote.leader_id)
}

impl StoreReader {
    /// The engine's record of an index without its batches: enough to apply it and to find terms
    /// and memberships, and nothing is read for it.
    fn light(&self, index: Index) -> Option<EngineEntry> {
        let map = self.shared.map();
        let log_id = map.log_id(index)?;
        let membership = map.membership_at(index).map(|stored| stored.membership().clone());
        let payload = Record { batches: Batches::Stored(Vec::new()), membership, held: None };
        Some(EngineEntry { log_id, payload })
    }

    /// At least the first of these indexes. Where it is damaged this waits until it is not: an error
    /// would end the group for everybody, on behalf of one follower.
    async fn read_to_send(&self, first: Index, last: Index) -> io::Result<Vec<EngineEntry>> {
        loop {
            let records = match self.shared.read_whole(first, SEND_BYTES_MAX).await {
                Ok(slices) => self.whole_records(slices, first, last),
                Err(ReadError::Damaged(_)) if !is_planted(Bug::DamageEndsLeader) => Vec::new(),
                Err(error) => return Err(io::Error::other(error)),
            };
            self.shared.readable(first, !records.is_empty());
            if !records.is_empty() {
                return Ok(records);
            }
            tokio::time::sleep(READ_AGAIN_AFTER).await;
        }
    }

    /// The records of what was read, up to the first index that is not whole.
    fn whole_records(
        &self,
        slices: Vec<BatchSlice>,
        first: Index,
        last: Index,
    ) -> Vec<EngineEntry> {
        let mut slices = slices.into_iter().peekable();
        let mut records = Vec::new();
        for index in (first.0..=last.0).map(Index) {
            let of_index = std::iter::from_fn(|| slices.next_if(|s| s.header.index == index));
            let of_index: Vec<_> = of_index.collect();
            let begins = of_index.first().is_some_and(|slice| slice.header.is_first_of_index());
            let ends = of_index.last().is_some_and(|slice| slice.header.is_last_of_index());
            let Some(mut record) = self.light(index).filter(|_| begins && ends) else { break };
            record.payload.batches = Batches::Stored(of_index);
            records.push(record);
        }
        records
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
        if indexes.is_empty() {
            return Ok(Vec::new());
        }
        self.read_to_send(engine::index_of(indexes.start), engine::index_of(indexes.end - 1)).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.hard().vote)
    }
}
