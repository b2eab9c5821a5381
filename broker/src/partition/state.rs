//! The replicated state of a partition: a pure function of its log's prefix.
//!
//! Owns: producers, subscriptions, rosters, log start, high watermark, log time; and how a checkpoint
//! holds them.
//! Never: a clock, a reply, anything that another replica would not have.
//! Invariants: batches are applied in the order of the log, each once; a checkpoint at an index
//! plus the log behind it gives the same state as the whole log.
//!
//! ```text
//! checkpoint = version2 (1, or 2 with rosters) reserved2 high_watermark8 log_start8 log_time_ms8
//!              subscriptions (see `subscription`)  producers (see `dedup`)
//!              and where anything was ever shared, rosters (see `roster`)
//! ```

use super::command::Command;
use super::dedup::{Dedup, DedupLimits};
use super::roster::Rosters;
use super::subscription::Subscriptions;
use super::wire::{Fields, WireError};
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::types::{Index, Offset};
use weir_storage::DamagedRange;

/// Version of the checkpoint: the oldest that has all of the state.
const VERSION: u16 = 1;
const VERSION_SHARING: u16 = 2;

/// What the log up to and including `applied` amounts to.
#[derive(Debug)]
pub(super) struct State {
    pub(super) applied: Index,
    /// Behind the last applied record.
    pub(super) high_watermark: Offset,
    /// Readers get nothing below.
    pub(super) log_start: Offset,
    pub(super) log_time_ms: u64,
    pub(super) subscriptions: Subscriptions,
    pub(super) rosters: Rosters,
    pub(super) dedup: Dedup,
}

impl State {
    /// The state of an empty log.
    pub(super) fn new() -> Self {
        Self {
            applied: Index(0),
            high_watermark: Offset(0),
            log_start: Offset(0),
            log_time_ms: 0,
            subscriptions: Subscriptions::default(),
            rosters: Rosters::default(),
            dedup: Dedup::new(DedupLimits::default()),
        }
    }

    /// Obeys the next batch; `commands` are those of a control batch. Returns the records that a
    /// trim took from subscriptions that had not settled them.
    pub(super) fn apply(&mut self, header: &BatchHeader, commands: &[Command]) -> u64 {
        assert!(header.index > self.applied, "a batch is applied once");
        if header.is_last_of_index() {
            self.applied = header.index;
        }
        self.log_time_ms = self.log_time_ms.max(header.log_time_ms);
        // Batches without records know where the records before them end: also of those that lay
        // beside a loss in one index.
        self.high_watermark = self.high_watermark.max(header.end_offset());
        if header.batch_type == BatchType::Data {
            self.dedup.apply(header);
        }
        let mut expired = 0;
        for command in commands {
            if let Command::Trim { log_start } = command {
                self.log_start = self.log_start.max(*log_start);
            }
            expired += self.subscriptions.apply(command);
            self.rosters.apply(command);
        }
        expired
    }

    /// Passes over batches that are lost: what they said is not in the state.
    pub(super) fn pass_over(&mut self, lost: &DamagedRange) {
        self.applied = self.applied.max(lost.last_index);
        self.high_watermark = self.high_watermark.max(lost.end_offset);
    }

    /// The state as a checkpoint at `applied` holds it.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let shares = !self.rosters.are_untouched();
        let version = if shares { VERSION_SHARING } else { VERSION };
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&self.high_watermark.to_le_bytes());
        out.extend_from_slice(&self.log_start.to_le_bytes());
        out.extend_from_slice(&self.log_time_ms.to_le_bytes());
        self.subscriptions.encode(&mut out);
        self.dedup.encode(&mut out);
        if shares {
            self.rosters.encode(&mut out);
        }
        out
    }

    /// Reads the checkpoint at `applied`.
    pub(super) fn decode(applied: Index, bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        let version = fields.u16("version")?;
        if !(VERSION..=VERSION_SHARING).contains(&version) {
            let known = VERSION_SHARING;
            return Err(WireError::Version { what: "a checkpoint", version, known });
        }
        fields.u16("reserved")?;
        let state = Self {
            applied,
            high_watermark: Offset(fields.u64("high watermark")?),
            log_start: Offset(fields.u64("log start")?),
            log_time_ms: fields.u64("log time")?,
            subscriptions: Subscriptions::decode(&mut fields)?,
            dedup: Dedup::decode(DedupLimits::default(), &mut fields)?,
            rosters: match version {
                VERSION_SHARING => Rosters::decode(&mut fields)?,
                _ => Rosters::default(),
            },
        };
        fields.end()?;
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::command::SubscriptionId;
    use weir_protocol::frame::MemberId;
    use weir_protocol::types::{Name, ProducerId, Sequence};

    fn example() -> State {
        let mut state = State::new();
        let mut data = BatchHeader::empty(BatchType::Data);
        (data.index, data.record_count, data.log_time_ms) = (Index(3), 10, 77);
        (data.producer_id, data.producer_epoch) = (ProducerId(9), 2);
        state.apply(&data, &[]);
        let mut control = BatchHeader::empty(BatchType::Control);
        (control.index, control.log_time_ms) = (Index(4), 78);
        let create = Command::Create {
            subscription: SubscriptionId(0),
            cursor: Offset(2),
            name: Name::new("s").unwrap(),
        };
        let expired = state.apply(&control, &[create, Command::Trim { log_start: Offset(5) }]);
        assert_eq!(expired, 3);
        state
    }

    /// These bytes are in data directories: they are never changed, only followed by a version.
    #[test]
    fn version_1_of_the_checkpoint_is_fixed_for_ever() {
        let mut golden = vec![1, 0, 0, 0];
        for number in [10u64, 5, 78] {
            golden.extend_from_slice(&number.to_le_bytes());
        }
        golden.extend_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // next, count, id
        for number in [5u64, 3, 3] {
            golden.extend_from_slice(&number.to_le_bytes());
        }
        golden.extend_from_slice(&[1, b's', 1, 0, 0, 0]); // name; one producer
        golden.extend_from_slice(&9u64.to_le_bytes());
        golden.extend_from_slice(&2u32.to_le_bytes());
        for number in [10u64, 77] {
            golden.extend_from_slice(&number.to_le_bytes());
        }
        golden.push(1);
        for number in [0u64, 0, 10] {
            golden.extend_from_slice(&number.to_le_bytes());
        }
        assert_eq!(example().encode(), golden);
        let read = State::decode(Index(4), &golden).unwrap();
        assert_eq!((read.applied, read.high_watermark), (Index(4), Offset(10)));
        assert_eq!((read.log_start, read.log_time_ms), (Offset(5), 78));
        assert_eq!(read.encode(), golden);
    }

    #[test]
    fn version_2_of_the_checkpoint_is_fixed_for_ever() {
        let mut state = example();
        let older = state.encode();
        let mut control = BatchHeader::empty(BatchType::Control);
        (control.index, control.log_time_ms) = (Index(5), 78);
        let subscription = Name::new("s").unwrap();
        let join = |member| {
            let (subscription, member) = (subscription.clone(), MemberId(member));
            Command::Join { subscription, member, partitions: 2 }
        };
        state.apply(&control, &[join(6), join(7)]);
        let mut golden = older;
        golden[0] = 2;
        golden.extend_from_slice(&2u64.to_le_bytes()); // epoch
        golden.extend_from_slice(&[1, 0, 0, 0, 1, b's', 2, 0]); // one roster of two
        golden.extend_from_slice(&6u64.to_le_bytes());
        golden.extend_from_slice(&7u64.to_le_bytes());
        golden.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]); // seats: 6; 6 to 7
        golden.extend_from_slice(&2u64.to_le_bytes());
        assert_eq!(state.encode(), golden);
        let read = State::decode(Index(5), &golden).unwrap();
        assert_eq!(read.rosters, state.rosters);
        for len in 0..golden.len() {
            assert!(State::decode(Index(5), &golden[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_checkpoint_that_is_cut_or_newer_is_refused() {
        let good = example().encode();
        for len in 0..good.len() {
            assert!(State::decode(Index(4), &good[..len]).is_err(), "cut at {len}");
        }
        let mut newer = good;
        newer[0] = 3;
        assert!(matches!(State::decode(Index(4), &newer), Err(WireError::Version { .. })));
    }

    #[test]
    #[should_panic(expected = "applied once")]
    fn a_batch_is_applied_once() {
        let mut state = example();
        let mut data = BatchHeader::empty(BatchType::Data);
        (data.index, data.base_sequence) = (Index(4), Sequence(10));
        state.apply(&data, &[]);
    }
}
