//! The group of a log whose broker is stopped: who is in it, and how one replica goes on alone when
//! most of it is lost for good.
//!
//! Owns: reading votes and membership out of the log's files, and the records that end the others'.
//! Never: takes a batch away: whatever this replica has stored is kept, committed or not.
//! Invariant: the membership is the last record that is written, so that where it is found everything
//! beside it is found too; until then nothing has changed but a vote, and it can be done again.

use super::CONTROL_CRC_BYTES;
use super::codec::{self, Checkpoint, CodecError, HardState};
use super::control_batch;
use super::engine::{Membership, Vote};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::mpsc;
use weir_protocol::batch::{ATTR_LAST_OF_INDEX, BatchHeader, BatchType};
use weir_protocol::peer::LogPlace;
use weir_protocol::types::{BrokerId, Index, ReplicaId, Term};
use weir_storage::inspect::{self, Dumped, LogReport};
use weir_storage::{AppendError, Disk, FlushError, Log, OpenError};

/// What a replica that is stopped knows of its group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// The last batch: of several copies of a log the one with the greatest term and index has most.
    pub last: LogPlace,
    /// The newest term in which it voted.
    pub voted: Term,
    /// Who votes: one set, or two while they change.
    pub voters: Vec<BTreeSet<ReplicaId>>,
    /// Everybody, with their brokers.
    pub brokers: BTreeMap<ReplicaId, BrokerId>,
}

impl Group {
    /// The replica on a broker.
    pub fn replica_on(&self, broker: BrokerId) -> Option<ReplicaId> {
        self.brokers.iter().find(|(_, of)| **of == broker).map(|(replica, _)| *replica)
    }

    /// Whether nobody but this replica is in it.
    pub fn is_only(&self, replica: ReplicaId) -> bool {
        self.voters == [BTreeSet::from([replica])] && self.brokers.len() == 1
    }
}

/// Why a group is not known, or was not changed.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] io::Error),
    /// The log cannot be looked into.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What was voted, the membership or a checkpoint is not what this build reads.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The log did not take what was written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// It is not durable.
    #[error(transparent)]
    Flush(#[from] FlushError),
}

/// The group of the log in `dir`, which `report` tells of.
pub fn read_group(disk: &dyn Disk, dir: &Path, report: &LogReport) -> Result<Group, GroupError> {
    let mut group = Group::default();
    if let Some(meta) = inspect::meta(disk, dir)? {
        let hard = HardState::decode(&meta.owned)?;
        group.voted = hard.vote.map_or(Term(0), |vote| Term(vote.leader_id.term));
    }
    let newest = report.checkpoints.iter().find(|(at, whole)| *whole && *at <= report.last_index);
    if let Some((at, _)) = newest
        && let Some(bytes) = inspect::checkpoint(disk, dir, *at)?
    {
        let checkpoint = Checkpoint::decode(&Bytes::from(bytes))?;
        group.last = LogPlace { term: checkpoint.term, index: *at };
        group.set(checkpoint.membership.membership());
    }
    let mut outcome = Ok(());
    for segment in &report.segments {
        inspect::dump(disk, segment, |dumped| {
            if let Dumped::Batch { header, body, .. } = dumped
                && !header.batch_type.is_local()
                && header.index <= report.last_index
            {
                outcome = group.note(&header, &body);
            }
            outcome.is_ok()
        })?;
        std::mem::replace(&mut outcome, Ok(()))?;
    }
    Ok(group)
}

impl Group {
    fn note(&mut self, header: &BatchHeader, body: &[u8]) -> Result<(), CodecError> {
        self.last = LogPlace { term: header.term, index: header.index };
        if header.batch_type == BatchType::Config {
            let content = (header.control_len as usize).saturating_sub(CONTROL_CRC_BYTES);
            let content = body.get(..content).unwrap_or_default();
            self.set(&codec::decode_membership(content)?);
        }
        Ok(())
    }

    fn set(&mut self, membership: &Membership) {
        self.voters = membership.get_joint_config().clone();
        self.brokers = membership.nodes().map(|(replica, broker)| (*replica, *broker)).collect();
    }
}

/// Makes `replica` the only member of the group of an open log, durably, in a term that nobody of the
/// group has voted in as far as it is known here. `commands` are control records in front of that;
/// they count once the replica leads, as everything that it has stored does.
///
/// What other replicas acknowledged and this one does not have is lost. They must never come back:
/// their votes could undo it.
pub fn stand_alone(
    log: &mut Log,
    (replica, broker): (ReplicaId, BrokerId),
    voted: Term,
    commands: Vec<Vec<u8>>,
) -> Result<(), GroupError> {
    let bounds = log.reader().bounds();
    let (last_term, log_time_ms) =
        bounds.last.map_or((Term(0), 0), |last| (last.term, last.log_time_ms));
    let term = Term(voted.max(last_term).0 + 1);
    let mut hard = HardState::decode(&log.meta())?;
    hard.vote = Some(Vote::new(term.0, replica));
    log.store_meta(&hard.encode())?;
    let nodes = BTreeMap::from([(replica, broker)]);
    let alone = Membership::new(vec![BTreeSet::from([replica])], nodes);
    let alone = codec::encode_membership(&alone.map_err(|_| CodecError::Malformed)?);
    let commands = commands.into_iter().map(|command| (BatchType::Control, command));
    let records = commands.chain(std::iter::once((BatchType::Config, alone)));
    for (number, (batch_type, content)) in records.enumerate() {
        let header = BatchHeader {
            index: Index(bounds.last_index.0 + 1 + number as u64),
            term,
            log_time_ms,
            run_number: number as u32,
            attrs: ATTR_LAST_OF_INDEX,
            ..BatchHeader::empty(batch_type)
        };
        log.append(vec![control_batch(header, content)])?;
    }
    flush(log)?;
    log.leave_watermark()?;
    Ok(())
}

fn flush(log: &mut Log) -> Result<(), GroupError> {
    let (done, flushed) = mpsc::sync_channel(1);
    log.flush(Box::new(move |outcome| drop(done.send(outcome))));
    flushed.recv().map_err(io::Error::other)??;
    Ok(())
}
