//! Owns: how this room writes down what the engine must remember: the hard state in a log's meta,
//! a membership in a CONFIG batch, and the envelope around a checkpoint.
//! Never: the engine's own serialisation, which changes between its releases.
//! Invariants: every form begins with its version; decoding never allocates by an announced
//! length; unknown versions and trailing bytes are refused. All integers are little-endian.
//!
//! ```text
//! hard state (52): version1=1 flags1 zero2 vote_term8 vote_replica8
//!                  committed_term8 committed_index8 purged_term8 purged_index8
//!   flags: 1 vote present, 2 vote committed; an index of 0 means none
//! membership:      version1=1 zero1 configs2 nodes4
//!                  per config: voters4, per voter: replica8
//!                  per node: replica8 broker8
//! checkpoint:      version1=2 zero3 membership_len4 term8 membership_index8 membership_term8
//!                  chain4 zero4 log_end8 log_time_ms8
//!                  membership, then the state of whoever made the checkpoint
//!   version 1 has no chain, log end and log time: it can be opened, but not be sent
//! ```

use super::engine::{self, LogId, Membership, StoredMembership, Vote};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use weir_protocol::types::{BrokerId, Index, Offset, ReplicaId, Term};

const VERSION: u8 = 1;
const HARD_STATE_BYTES: usize = 52;
/// The version of a checkpoint that says what its log continues behind it.
const CHECKPOINT_VERSION: u8 = 2;
const CHECKPOINT_HEADER_BYTES: usize = 32;
const BEHIND_BYTES: usize = 24;
const FLAG_VOTE: u8 = 1;
const FLAG_VOTE_COMMITTED: u8 = 2;
/// Voters of one configuration, and nodes of one membership.
const MEMBERS_MAX: u32 = 64;
/// Configurations of one membership: a joint one has two.
const CONFIGS_MAX: u16 = 2;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by a version that this build does not know.
    #[error("version {0} is not known to this build; use a newer one")]
    Version(u8),
    /// Ends too early, has trailing bytes, or counts beyond their limits.
    #[error("the bytes are cut short or contradict themselves")]
    Malformed,
}

/// What a replica must never forget, apart from its log.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct HardState {
    pub vote: Option<Vote>,
    /// Only a hint that saves replay: a lower value is always safe.
    pub committed: Option<LogId>,
    /// The last index that was trimmed away.
    pub purged: Option<LogId>,
}

impl HardState {
    pub(super) fn encode(&self) -> [u8; HARD_STATE_BYTES] {
        let mut bytes = [0u8; HARD_STATE_BYTES];
        bytes[0] = VERSION;
        if let Some(vote) = &self.vote {
            bytes[1] = FLAG_VOTE | if vote.committed { FLAG_VOTE_COMMITTED } else { 0 };
            bytes[4..12].copy_from_slice(&vote.leader_id.term.to_le_bytes());
            bytes[12..20].copy_from_slice(&vote.leader_id.voted_for.to_le_bytes());
        }
        put_log_id(&mut bytes[20..36], self.committed);
        put_log_id(&mut bytes[36..52], self.purged);
        bytes
    }

    /// No bytes at all stand for a log that was never voted in.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let mut input = Input::versioned(bytes)?;
        let flags = input.u8()?;
        input.skip(2)?;
        let (term, replica) = (input.u64()?, ReplicaId(input.u64()?));
        let vote = (flags & FLAG_VOTE != 0).then(|| match flags & FLAG_VOTE_COMMITTED {
            0 => Vote::new(term, replica),
            _ => Vote::new_committed(term, replica),
        });
        let (committed, purged) = (input.log_id()?, input.log_id()?);
        input.end()?;
        Ok(Self { vote, committed, purged })
    }
}

/// Encodes a membership as the content of a control section, its CRC not included.
pub(super) fn encode_membership(membership: &Membership) -> Vec<u8> {
    let configs = membership.get_joint_config();
    let nodes: Vec<_> = membership.nodes().collect();
    let mut bytes = vec![VERSION, 0];
    bytes.extend_from_slice(&(configs.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&(nodes.len() as u32).to_le_bytes());
    for config in configs {
        bytes.extend_from_slice(&(config.len() as u32).to_le_bytes());
        for voter in config {
            bytes.extend_from_slice(&voter.to_le_bytes());
        }
    }
    for (replica, broker) in nodes {
        bytes.extend_from_slice(&replica.to_le_bytes());
        bytes.extend_from_slice(&broker.to_le_bytes());
    }
    bytes
}

/// Decodes what [`encode_membership`] wrote.
pub(super) fn decode_membership(bytes: &[u8]) -> Result<Membership, CodecError> {
    let mut input = Input::versioned(bytes)?;
    input.skip(1)?;
    let (config_count, node_count) = (input.u16()?, input.u32()?);
    if config_count > CONFIGS_MAX || node_count > MEMBERS_MAX {
        return Err(CodecError::Malformed);
    }
    let mut configs = Vec::new();
    for _ in 0..config_count {
        let voters = input.u32()?;
        if voters > MEMBERS_MAX {
            return Err(CodecError::Malformed);
        }
        let config: Result<BTreeSet<_>, _> = (0..voters).map(|_| input.replica()).collect();
        configs.push(config?);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..node_count {
        nodes.insert(input.replica()?, BrokerId(input.u64()?));
    }
    input.end()?;
    Membership::new(configs, nodes).map_err(|_| CodecError::Malformed)
}

/// What a log continues behind a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Behind {
    /// Chain of the batch the checkpoint stands behind.
    pub chain: u32,
    /// The log end there.
    pub log_end: Offset,
    /// The log time there, milliseconds since the epoch.
    pub log_time_ms: u64,
}

/// A checkpoint as this room stores it: the maker's state and what the engine needs beside it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Checkpoint {
    /// Term of the batch the checkpoint stands behind.
    pub term: Term,
    /// None where an older build wrote it, or before the gate: written back as version 1.
    pub behind: Option<Behind>,
    /// The membership at that place.
    pub membership: StoredMembership,
    /// The maker's state, opaque here.
    pub state: Bytes,
}

impl Checkpoint {
    pub(super) fn encode(&self) -> Vec<u8> {
        let membership = encode_membership(self.membership.membership());
        let mut bytes = vec![0u8; CHECKPOINT_HEADER_BYTES];
        bytes[0] = if self.behind.is_some() { CHECKPOINT_VERSION } else { VERSION };
        bytes[4..8].copy_from_slice(&(membership.len() as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.term.to_le_bytes());
        let (term, index) = log_id_parts(*self.membership.log_id());
        bytes[16..24].copy_from_slice(&index.to_le_bytes());
        bytes[24..32].copy_from_slice(&term.to_le_bytes());
        if let Some(Behind { chain, log_end, log_time_ms }) = self.behind {
            bytes.extend_from_slice(&u64::from(chain).to_le_bytes());
            bytes.extend_from_slice(&log_end.to_le_bytes());
            bytes.extend_from_slice(&log_time_ms.to_le_bytes());
        }
        bytes.extend_from_slice(&membership);
        bytes.extend_from_slice(&self.state);
        bytes
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, CodecError> {
        let (version, mut input) = Input::of_versions(bytes, CHECKPOINT_VERSION)?;
        input.skip(3)?;
        let membership_len = input.u32()? as usize;
        let term = Term(input.u64()?);
        let (index, membership_term) = (input.u64()?, input.u64()?);
        let behind = if version == VERSION { None } else { Some(input.behind()?) };
        let header_bytes = CHECKPOINT_HEADER_BYTES + behind.map_or(0, |_| BEHIND_BYTES);
        let rest = bytes.slice(header_bytes..);
        if membership_len > rest.len() {
            return Err(CodecError::Malformed);
        }
        let membership = decode_membership(&rest[..membership_len])?;
        let log_id = engine::log_id(membership_term, Index(index));
        Ok(Self {
            term,
            behind,
            membership: StoredMembership::new(log_id, membership),
            state: rest.slice(membership_len..),
        })
    }
}

fn log_id_parts(log_id: Option<LogId>) -> (u64, u64) {
    log_id.map_or((0, 0), |id| (id.committed_leader_id().term, engine::index_of(id.index()).0))
}

fn put_log_id(bytes: &mut [u8], log_id: Option<LogId>) {
    let (term, index) = log_id_parts(log_id);
    bytes[..8].copy_from_slice(&term.to_le_bytes());
    bytes[8..].copy_from_slice(&index.to_le_bytes());
}

/// Takes integers off the front of a slice.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn versioned(bytes: &'a [u8]) -> Result<Self, CodecError> {
        Self::of_versions(bytes, VERSION).map(|(_, input)| input)
    }

    /// Also tells which version it is, of those from 1 to `newest`.
    pub(super) fn of_versions(bytes: &'a [u8], newest: u8) -> Result<(u8, Self), CodecError> {
        let mut input = Self(bytes);
        match input.u8()? {
            known if (1..=newest).contains(&known) => Ok((known, input)),
            other => Err(CodecError::Version(other)),
        }
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CodecError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(CodecError::Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn skip(&mut self, count: usize) -> Result<(), CodecError> {
        self.bytes(count).map(|_| ())
    }

    pub(super) fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn u128(&mut self) -> Result<u128, CodecError> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    pub(super) fn replica(&mut self) -> Result<ReplicaId, CodecError> {
        self.u64().map(ReplicaId)
    }

    fn log_id(&mut self) -> Result<Option<LogId>, CodecError> {
        let (term, index) = (self.u64()?, self.u64()?);
        Ok(engine::log_id(term, Index(index)))
    }

    fn behind(&mut self) -> Result<Behind, CodecError> {
        let chain = self.u32()?;
        self.skip(4)?;
        Ok(Behind { chain, log_end: Offset(self.u64()?), log_time_ms: self.u64()? })
    }

    pub(super) fn end(&self) -> Result<(), CodecError> {
        if self.0.is_empty() { Ok(()) } else { Err(CodecError::Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn three_voters() -> Membership {
        let voters: BTreeSet<_> = [1, 2, 3].map(ReplicaId).into();
        let nodes: BTreeMap<_, _> = (1..=4).map(|n| (ReplicaId(n), BrokerId(n * 10))).collect();
        Membership::new(vec![voters], nodes).unwrap()
    }

    #[test]
    fn the_hard_state_has_its_golden_bytes() {
        let state = HardState {
            vote: Some(Vote::new_committed(7, ReplicaId(0x0102))),
            committed: engine::log_id(6, Index(300)),
            purged: engine::log_id(2, Index(9)),
        };
        let golden = concat!(
            "01030000",
            "0700000000000000",
            "0201000000000000",
            "0600000000000000",
            "2c01000000000000",
            "0200000000000000",
            "0900000000000000",
        );
        assert_eq!(hex(&state.encode()), golden);
        assert_eq!(HardState::decode(&state.encode()), Ok(state));
    }

    #[test]
    fn a_fresh_log_has_the_empty_hard_state() {
        assert_eq!(HardState::decode(&[]), Ok(HardState::default()));
        assert_eq!(HardState::decode(&HardState::default().encode()), Ok(HardState::default()));
    }

    #[test]
    fn a_membership_has_its_golden_bytes() {
        let golden = concat!(
            "0100010004000000",
            "03000000",
            "0100000000000000",
            "0200000000000000",
            "0300000000000000",
            "01000000000000000a00000000000000",
            "02000000000000001400000000000000",
            "03000000000000001e00000000000000",
            "04000000000000002800000000000000",
        );
        assert_eq!(hex(&encode_membership(&three_voters())), golden);
        assert_eq!(decode_membership(&encode_membership(&three_voters())), Ok(three_voters()));
    }

    #[test]
    fn a_joint_membership_survives() {
        let nodes: BTreeMap<_, _> = (1..=4).map(|n| (ReplicaId(n), BrokerId(n))).collect();
        let configs =
            vec![[1, 2, 3].map(ReplicaId).into(), BTreeSet::from([1, 2, 4].map(ReplicaId))];
        let joint = Membership::new(configs, nodes).unwrap();
        assert_eq!(decode_membership(&encode_membership(&joint)), Ok(joint));
    }

    fn checkpoint(behind: Option<Behind>) -> Checkpoint {
        let only: BTreeMap<_, _> = [(ReplicaId(1), BrokerId(1))].into();
        Checkpoint {
            term: Term(5),
            behind,
            membership: StoredMembership::new(
                engine::log_id(0, Index(1)),
                Membership::new(vec![[ReplicaId(1)].into()], only).unwrap(),
            ),
            state: Bytes::from_static(b"state"),
        }
    }

    #[test]
    fn a_checkpoint_has_its_golden_bytes() {
        let behind =
            Behind { chain: 0x0102_0304, log_end: Offset(77), log_time_ms: 0x018f_0000_0000 };
        let golden = concat!(
            "02000000",
            "24000000",
            "0500000000000000",
            "0100000000000000",
            "0000000000000000",
            "0403020100000000",
            "4d00000000000000",
            "000000008f010000",
            "0100010001000000",
            "01000000",
            "0100000000000000",
            "01000000000000000100000000000000",
            "7374617465",
        );
        let checkpoint = checkpoint(Some(behind));
        let bytes = Bytes::from(checkpoint.encode());
        assert_eq!(hex(&bytes), golden);
        assert_eq!(Checkpoint::decode(&bytes), Ok(checkpoint));
        for cut in 0..bytes.len() - 5 {
            assert_eq!(Checkpoint::decode(&bytes.slice(..cut)), Err(CodecError::Malformed));
        }
    }

    #[test]
    fn a_checkpoint_of_version_1_is_written_and_read_for_ever() {
        let golden = concat!(
            "01000000",
            "24000000",
            "0500000000000000",
            "0100000000000000",
            "0000000000000000",
            "0100010001000000",
            "01000000",
            "0100000000000000",
            "01000000000000000100000000000000",
            "7374617465",
        );
        let checkpoint = checkpoint(None);
        let bytes = Bytes::from(checkpoint.encode());
        assert_eq!(hex(&bytes), golden);
        assert_eq!(Checkpoint::decode(&bytes), Ok(checkpoint));
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = HardState::default().encode();
        bytes[0] = 9;
        assert_eq!(HardState::decode(&bytes), Err(CodecError::Version(9)));
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = HardState::decode(&bytes);
            let _ = decode_membership(&bytes);
            let _ = Checkpoint::decode(&Bytes::from(bytes));
        }

        #[test]
        fn every_cut_of_a_membership_is_refused(cut in 0usize..100) {
            let bytes = encode_membership(&three_voters());
            prop_assert_eq!(decode_membership(&bytes[..cut]), Err(CodecError::Malformed));
        }
    }
}
