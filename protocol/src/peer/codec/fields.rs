//! The primitives that frames between brokers are made of.
//!
//! ```text
//! vote:    term8 replica8 committed flag      place: term8 index8      address: to8 from8
//! node:    cluster16 broker8 instance8 name   parts: count2, count × { salt8 bytes4 }
//! result:  0 place | 1 place | 2 vote | 3 refusal1
//! answer:  0, value | refusal1                content: crc4; the bytes stand behind the fields
//! ```

use crate::codec::DecodeError;
use crate::codec::fields::{Fields, PutFields};
use crate::limits::{BATCH_ALIGN_BYTES, BATCH_HEADER_BYTES};
use crate::peer::limits::{
    ADDRESS_BYTES_MAX, CONTENT_BYTES_MAX, SEGMENT_PART_BYTES, SEGMENT_PARTS_MAX,
};
use crate::peer::{AppendResult, GroupAddress, LogPlace, Node, PeerRefusal, SegmentPart, Vote};
use crate::types::{BrokerId, Index, ReplicaId, RequestId, StreamId, Term};
use bytes::{BufMut, Bytes, BytesMut};

/// Fields of one frame, and what stands behind them: whoever reads it takes it.
pub(super) struct Input {
    pub(super) fields: Fields,
    pub(super) stream: u32,
    pub(super) body: Bytes,
}

impl Input {
    pub(super) fn stream(&self) -> Result<StreamId, DecodeError> {
        match self.stream {
            0 => Err(self.fields.bad("stream: 0 is the connection")),
            stream => Ok(StreamId(stream)),
        }
    }

    /// Everything behind the fields, whose CRC is the next field.
    pub(super) fn content(&mut self) -> Result<Bytes, DecodeError> {
        let crc = self.fields.u32("content crc")?;
        if self.body.len() > CONTENT_BYTES_MAX {
            return Err(self.fields.bad("content"));
        }
        if crc32fast::hash(&self.body) != crc {
            return Err(self.fields.bad("content crc"));
        }
        Ok(std::mem::take(&mut self.body))
    }

    /// The batches behind the fields: the parts are all of them.
    pub(super) fn parts(&mut self) -> Result<Vec<SegmentPart>, DecodeError> {
        let count = self.fields.count("parts", (SEGMENT_PART_BYTES, SEGMENT_PARTS_MAX))?;
        (0..count).map(|_| self.part()).collect()
    }

    fn part(&mut self) -> Result<SegmentPart, DecodeError> {
        let salt = self.fields.u64("part salt")?;
        let bytes = self.fields.u32("part bytes")? as usize;
        let whole = bytes >= BATCH_HEADER_BYTES && bytes.is_multiple_of(BATCH_ALIGN_BYTES);
        if !whole || bytes > self.body.len() {
            return Err(self.fields.bad("part bytes"));
        }
        Ok(SegmentPart { salt, batches: vec![self.body.split_to(bytes)] })
    }
}

/// The primitives of this protocol.
impl Fields {
    pub(super) fn request(&mut self) -> Result<RequestId, DecodeError> {
        self.u32("request").map(RequestId)
    }

    pub(super) fn vote(&mut self) -> Result<Vote, DecodeError> {
        Ok(Vote {
            term: Term(self.u64("vote term")?),
            replica: ReplicaId(self.u64("vote replica")?),
            committed: self.flag("vote committed")?,
        })
    }

    pub(super) fn place(&mut self, field: &'static str) -> Result<LogPlace, DecodeError> {
        Ok(LogPlace { term: Term(self.u64(field)?), index: Index(self.u64(field)?) })
    }

    pub(super) fn address(&mut self) -> Result<GroupAddress, DecodeError> {
        let (to, from) = (self.u64("address to")?, self.u64("address from")?);
        Ok(GroupAddress { to: ReplicaId(to), from: ReplicaId(from) })
    }

    pub(super) fn node(&mut self) -> Result<Node, DecodeError> {
        Ok(Node {
            cluster: self.u128("cluster")?,
            broker: BrokerId(self.u64("broker")?),
            instance: self.u64("instance")?,
            name: self.name("name")?,
        })
    }

    pub(super) fn network_address(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let text = self.text(field)?;
        if text.len() > ADDRESS_BYTES_MAX { Err(self.bad(field)) } else { Ok(text) }
    }

    pub(super) fn refusal_of_peer(&mut self) -> Result<PeerRefusal, DecodeError> {
        PeerRefusal::from_u8(self.u8("refusal")?).ok_or(self.bad("refusal"))
    }

    pub(super) fn answer<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Result<T, PeerRefusal>, DecodeError> {
        match self.u8("refusal")? {
            0 => read(self).map(Ok),
            number => PeerRefusal::from_u8(number).map(Err).ok_or(self.bad("refusal")),
        }
    }

    pub(super) fn result(&mut self) -> Result<AppendResult, DecodeError> {
        match self.u8("result")? {
            0 => self.place("flushed").map(AppendResult::Flushed),
            1 => self.place("conflict").map(AppendResult::Conflict),
            2 => self.vote().map(AppendResult::Outvoted),
            3 => self.refusal_of_peer().map(AppendResult::Refused),
            _ => Err(self.bad("result")),
        }
    }
}

/// Writes the primitives of this protocol.
pub(super) trait PutPeerFields {
    fn put_vote(&mut self, vote: Vote);
    fn put_place(&mut self, place: LogPlace);
    fn put_address(&mut self, address: GroupAddress);
    fn put_node(&mut self, node: &Node);
    fn put_result(&mut self, result: AppendResult);
    fn put_parts(&mut self, parts: &[SegmentPart]);
    fn put_bytes_whole(&mut self, bytes: &[u8]);
    fn put_answer<T>(&mut self, answer: Result<T, &PeerRefusal>, put: impl FnOnce(&mut Self, T));
}

impl PutPeerFields for BytesMut {
    fn put_vote(&mut self, vote: Vote) {
        self.put_u64_le(vote.term.0);
        self.put_u64_le(vote.replica.0);
        self.put_flag(vote.committed);
    }

    fn put_place(&mut self, place: LogPlace) {
        self.put_u64_le(place.term.0);
        self.put_u64_le(place.index.0);
    }

    fn put_address(&mut self, address: GroupAddress) {
        self.put_u64_le(address.to.0);
        self.put_u64_le(address.from.0);
    }

    fn put_node(&mut self, node: &Node) {
        self.put_u128_le(node.cluster);
        self.put_u64_le(node.broker.0);
        self.put_u64_le(node.instance);
        self.put_prefixed(node.name.as_str().as_bytes());
    }

    fn put_result(&mut self, result: AppendResult) {
        match result {
            AppendResult::Flushed(place) => {
                self.put_u8(0);
                self.put_place(place);
            }
            AppendResult::Conflict(place) => {
                self.put_u8(1);
                self.put_place(place);
            }
            AppendResult::Outvoted(vote) => {
                self.put_u8(2);
                self.put_vote(vote);
            }
            AppendResult::Refused(refusal) => {
                self.put_u8(3);
                self.put_u8(refusal as u8);
            }
        }
    }

    fn put_parts(&mut self, parts: &[SegmentPart]) {
        self.put_u16_le(parts.len() as u16);
        for part in parts {
            self.put_u64_le(part.salt);
            self.put_u32_le(part.len() as u32);
        }
    }

    /// Unlike a text, these bytes mean nothing when they are cut: their own limit is below that
    /// of all fields.
    fn put_bytes_whole(&mut self, bytes: &[u8]) {
        self.put_u16_le(bytes.len() as u16);
        self.put_slice(bytes);
    }

    fn put_answer<T>(&mut self, answer: Result<T, &PeerRefusal>, put: impl FnOnce(&mut Self, T)) {
        match answer {
            Ok(answer) => {
                self.put_u8(0);
                put(self, answer);
            }
            Err(refusal) => self.put_u8(*refusal as u8),
        }
    }
}
