//! Bytes to frames between brokers and back.
//!
//! Owns: the layout of every frame; PEER.md draws it.
//! Never: allocates by an announced length; copies a batch.
//! Invariants: header, CRC and primitives are the client's; fields behind those this version knows
//! are ignored, so that a newer peer may add some. What follows the fields is covered by the
//! frame's own CRC, or by those of the batches.

mod fields;
mod read;
mod write;

use super::PeerFrame;
use super::limits::{PEER_FRAME_BYTES_MAX, PEER_FRAME_COST};
use crate::codec::{DecodeError, EncodeBuf, FLAG_IGNORABLE, RawFrame, cut, head, needed, open};
use crate::types::StreamId;
use bytes::{Bytes, BytesMut};

/// Frame types on the wire.
mod frame_type {
    pub(super) const GRANT: u8 = 0x15;
    pub(super) const DEMAND: u8 = 0x16;
    pub(super) const HELLO: u8 = 0x40;
    pub(super) const CHALLENGE: u8 = 0x41;
    pub(super) const PROOF: u8 = 0x42;
    pub(super) const READY: u8 = 0x43;
    pub(super) const HEARTBEAT: u8 = 0x44;
    pub(super) const GO_AWAY: u8 = 0x45;
    pub(super) const APPEND_OPEN: u8 = 0x50;
    pub(super) const APPEND: u8 = 0x51;
    pub(super) const APPENDED: u8 = 0x52;
    pub(super) const APPEND_CLOSE: u8 = 0x53;
    pub(super) const SNAPSHOT: u8 = 0x54;
    pub(super) const SNAPSHOT_PART: u8 = 0x55;
    pub(super) const SNAPSHOT_DONE: u8 = 0x56;
    pub(super) const FETCH: u8 = 0x57;
    pub(super) const FETCHED: u8 = 0x58;
    pub(super) const BEATS: u8 = 0x60;
    pub(super) const BEATEN: u8 = 0x61;
    pub(super) const VOTE: u8 = 0x62;
    pub(super) const VOTED: u8 = 0x63;
    pub(super) const TRANSFER: u8 = 0x64;
    pub(super) const TRANSFERRED: u8 = 0x65;
    pub(super) const NEWS: u8 = 0x66;
    pub(super) const FORWARD: u8 = 0x67;
    pub(super) const FORWARDED: u8 = 0x68;
    pub(super) const PROBE: u8 = 0x69;
    pub(super) const PROBED: u8 = 0x6a;
    pub(super) const FORM: u8 = 0x6b;
    pub(super) const FORMED: u8 = 0x6c;
}

/// What a frame says before its batches or its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerHead {
    /// The stream that pays for it.
    pub stream: StreamId,
    /// Length of the whole frame, header included.
    pub frame_bytes: usize,
    /// Bytes behind the fields.
    pub body_bytes: usize,
}

impl PeerHead {
    /// What the frame costs of its stream's credit.
    pub const fn cost(&self) -> u64 {
        self.body_bytes as u64 + PEER_FRAME_COST
    }
}

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub struct PeerDecoder {
    frame_bytes_max: usize,
}

impl PeerDecoder {
    /// A decoder that refuses frames longer than `frame_bytes_max`, header included.
    pub fn new(frame_bytes_max: usize) -> Self {
        Self { frame_bytes_max: frame_bytes_max.min(PEER_FRAME_BYTES_MAX) }
    }

    /// Changes the limit: handshake frames are shorter than those that follow.
    pub fn set_limit(&mut self, frame_bytes_max: usize) {
        *self = Self::new(frame_bytes_max);
    }

    /// Bytes that `input` lacks until its first frame is complete (or its length is known); 0 when
    /// it is. A shell sizes its reads by this; what it allocates at once is its own decision.
    pub fn needed(&self, input: &[u8]) -> Result<usize, DecodeError> {
        needed(input, self.frame_bytes_max)
    }

    /// Reads the head of the frame at the start of `input` as soon as its fields are there, so
    /// that a shell decides whether the rest is paid for before it holds it. None: more bytes are
    /// needed.
    pub fn peek(&self, input: &[u8]) -> Result<Option<PeerHead>, DecodeError> {
        let head = head(input, self.frame_bytes_max)?;
        Ok(head.map(|head| PeerHead {
            stream: StreamId(head.stream),
            frame_bytes: head.frame_bytes,
            body_bytes: head.body_bytes(),
        }))
    }

    /// Takes the first frame off `input` as it is, for the handshake. None: more bytes are needed.
    pub fn cut(&self, input: &mut BytesMut) -> Result<Option<Bytes>, DecodeError> {
        cut(input, self.frame_bytes_max)
    }

    /// Takes the first frame off `input`. None: more bytes are needed. Frames of unknown types
    /// that may be skipped are skipped.
    pub fn decode(&self, input: &mut BytesMut) -> Result<Option<PeerFrame>, DecodeError> {
        while let Some(frame) = cut(input, self.frame_bytes_max)? {
            let raw = open(frame)?;
            let ignorable = raw.flags & FLAG_IGNORABLE != 0;
            match decode_raw(raw) {
                Err(DecodeError::Type(_)) if ignorable => {}
                decoded => return decoded.map(Some),
            }
        }
        Ok(None)
    }
}

/// Decodes one complete frame of a type that must be known.
pub(super) fn decode_whole(frame: Bytes) -> Result<PeerFrame, DecodeError> {
    decode_raw(open(frame)?)
}

fn decode_raw(raw: RawFrame) -> Result<PeerFrame, DecodeError> {
    let frame_type = raw.frame_type;
    read::frame(raw)?.ok_or(DecodeError::Type(frame_type))
}

impl EncodeBuf {
    /// Adds one frame for another broker.
    pub fn push_peer(&mut self, frame: &PeerFrame) {
        write::frame(frame, self);
    }
}

/// Encodes one frame into a buffer of its own; for the handshake, tests and tools.
pub fn encode_to_vec(frame: &PeerFrame) -> Vec<u8> {
    let mut buffer = EncodeBuf::new();
    buffer.push_peer(frame);
    buffer.concat()
}

#[cfg(test)]
mod tests;
