//! Bytes to frames and back.
//!
//! Owns: the layout of every frame; SPEC.md draws it.
//! Never: allocates by an announced length; copies a batch body.
//! Invariants: all integers are little-endian; fields behind those this version knows are
//! ignored, so that a newer peer may add some.
//!
//! ```text
//! 0 frame_len4 (bytes behind this field) | 4 type1 | 5 flags1 | 6 fields_len2 | 8 stream4
//! 12 crc4 = crc32([0..12) ‖ fields) | 16 fields | batches (each with CRCs of its own)
//! ```

pub(crate) mod fields;
mod read;
pub(crate) mod write;

use crate::batch::BatchHeader;
use crate::frame::Frame;
use crate::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
use crate::types::StreamId;
use bytes::{Buf, Bytes, BytesMut};

/// Flag bit: a receiver that does not know the frame's type skips it.
pub const FLAG_IGNORABLE: u8 = 1;

/// Why bytes are not a frame. The connection cannot go on behind any of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The announced length exceeds the limit.
    #[error("a frame of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Announced length, header included.
        bytes: u64,
        /// The limit in force.
        limit: usize,
    },
    /// Lengths contradict each other.
    #[error("a frame of {frame_len} bytes announces {fields_len} bytes of fields")]
    Lengths {
        /// Bytes behind the length field.
        frame_len: u32,
        /// Announced bytes of fields.
        fields_len: u16,
    },
    /// The CRC of header and fields does not match.
    #[error("the CRC of frame type {0:#04x} does not match")]
    Crc(u8),
    /// Unknown type that may not be skipped.
    #[error("frame type {0:#04x} is not known to this version")]
    Type(u8),
    /// The fields end too early or hold a value that is none.
    #[error("frame type {frame_type:#04x}: bad {field}")]
    Field {
        /// The frame's type.
        frame_type: u8,
        /// The first field that is wrong.
        field: &'static str,
    },
    /// The batch of a PUBLISH is malformed.
    #[error("the batch of a publish: {0}")]
    Batch(#[from] crate::batch::HeaderError),
}

/// What a PUBLISH says before its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishHead {
    /// The publisher's stream.
    pub stream: StreamId,
    /// Length of the whole frame, header included.
    pub frame_bytes: usize,
    /// Describes the body.
    pub header: BatchHeader,
}

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub struct Decoder {
    frame_bytes_max: usize,
}

impl Decoder {
    /// A decoder that refuses frames longer than `frame_bytes_max`, header included.
    pub fn new(frame_bytes_max: usize) -> Self {
        Self { frame_bytes_max: frame_bytes_max.min(FRAME_BYTES_MAX) }
    }

    /// Changes the limit: handshake frames are shorter than those that follow.
    pub fn set_limit(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max.min(FRAME_BYTES_MAX);
    }

    /// Bytes that `input` lacks until its first frame is complete (or its length is known); 0 when
    /// it is. A shell sizes its reads by this; what it allocates at once is its own decision.
    pub fn needed(&self, input: &[u8]) -> Result<usize, DecodeError> {
        needed(input, self.frame_bytes_max)
    }

    /// Reads the head of the PUBLISH at the start of `input` as soon as its fields are there, so
    /// that a shell decides whether the body is paid for before it holds it. None: another frame,
    /// or more bytes are needed.
    pub fn peek_publish(&self, input: &[u8]) -> Result<Option<PublishHead>, DecodeError> {
        if input.get(4) != Some(&write::frame_type::PUBLISH) {
            return frame_len(input, self.frame_bytes_max).map(|_| None);
        }
        let Some(head) = head(input, self.frame_bytes_max)? else { return Ok(None) };
        let header = read::publish_header(head.fields, head.body_bytes())?;
        let RawHead { stream, frame_bytes, .. } = head;
        Ok(Some(PublishHead { stream: StreamId(stream), frame_bytes, header }))
    }

    /// Takes the first frame off `input`. None: more bytes are needed. Frames of unknown types
    /// that may be skipped are skipped.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, DecodeError> {
        while let Some(frame) = cut(input, self.frame_bytes_max)? {
            if let Some(frame) = decode_whole(frame)? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }
}

/// The length of the frame at the start of `input`, if its length field is there.
fn frame_len(input: &[u8], frame_bytes_max: usize) -> Result<Option<usize>, DecodeError> {
    let Some(prefix) = input.first_chunk::<4>() else { return Ok(None) };
    let frame_len = u32::from_le_bytes(*prefix);
    let bytes = u64::from(frame_len) + 4;
    if bytes > frame_bytes_max as u64 {
        return Err(DecodeError::TooLarge { bytes, limit: frame_bytes_max });
    }
    if (bytes as usize) < FRAME_HEADER_BYTES {
        return Err(DecodeError::Lengths { frame_len, fields_len: 0 });
    }
    Ok(Some(bytes as usize))
}

/// Bytes that `input` lacks until its first frame is complete, or its length known.
pub(crate) fn needed(input: &[u8], frame_bytes_max: usize) -> Result<usize, DecodeError> {
    let whole = frame_len(input, frame_bytes_max)?.unwrap_or(FRAME_HEADER_BYTES);
    Ok(whole.saturating_sub(input.len()))
}

/// Takes the first frame off `input` as it is. None: more bytes are needed.
pub(crate) fn cut(
    input: &mut BytesMut,
    frame_bytes_max: usize,
) -> Result<Option<Bytes>, DecodeError> {
    let whole = frame_len(input, frame_bytes_max)?.filter(|whole| input.len() >= *whole);
    Ok(whole.map(|whole| input.split_to(whole).freeze()))
}

/// Header and fields of a frame whose CRC was checked; what stands behind them need not be there.
pub(crate) struct RawHead<'a> {
    frame_type: u8,
    flags: u8,
    pub(crate) stream: u32,
    /// Length of the whole frame, header included.
    pub(crate) frame_bytes: usize,
    fields: &'a [u8],
}

impl RawHead<'_> {
    /// Bytes behind the fields.
    pub(crate) fn body_bytes(&self) -> usize {
        self.frame_bytes - FRAME_HEADER_BYTES - self.fields.len()
    }
}

/// Reads the head of the frame at the start of `input` as soon as its fields are there.
pub(crate) fn head(
    input: &[u8],
    frame_bytes_max: usize,
) -> Result<Option<RawHead<'_>>, DecodeError> {
    let Some(frame_bytes) = frame_len(input, frame_bytes_max)? else { return Ok(None) };
    let Some((header, rest)) = input.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Ok(None);
    };
    let [l0, l1, l2, l3, frame_type, flags, f0, f1, s0, s1, s2, s3, c0, c1, c2, c3] = *header;
    let fields_len = u16::from_le_bytes([f0, f1]);
    if usize::from(fields_len) > frame_bytes - FRAME_HEADER_BYTES {
        let frame_len = u32::from_le_bytes([l0, l1, l2, l3]);
        return Err(DecodeError::Lengths { frame_len, fields_len });
    }
    let Some(fields) = rest.get(..usize::from(fields_len)) else { return Ok(None) };
    if crc_of(header, fields) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(DecodeError::Crc(frame_type));
    }
    let stream = u32::from_le_bytes([s0, s1, s2, s3]);
    Ok(Some(RawHead { frame_type, flags, stream, frame_bytes, fields }))
}

/// A complete frame whose CRC was checked.
pub(crate) struct RawFrame {
    pub(crate) frame_type: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) fields: Bytes,
    pub(crate) body: Bytes,
}

/// Takes one complete frame apart.
pub(crate) fn open(mut frame: Bytes) -> Result<RawFrame, DecodeError> {
    let head = match head(&frame, usize::MAX)? {
        Some(head) if head.frame_bytes == frame.len() => head,
        _ => return Err(DecodeError::Lengths { frame_len: frame.len() as u32, fields_len: 0 }),
    };
    let RawHead { frame_type, flags, stream, fields, .. } = head;
    let fields_len = fields.len();
    frame.advance(FRAME_HEADER_BYTES);
    let fields = frame.split_to(fields_len);
    Ok(RawFrame { frame_type, flags, stream, fields, body: frame })
}

/// Decodes one complete frame; none for an unknown type that may be skipped.
fn decode_whole(frame: Bytes) -> Result<Option<Frame>, DecodeError> {
    let RawFrame { frame_type, flags, stream, fields, body } = open(frame)?;
    match read::frame(frame_type, stream, fields, body)? {
        Some(frame) => Ok(Some(frame)),
        None if flags & FLAG_IGNORABLE != 0 => Ok(None),
        None => Err(DecodeError::Type(frame_type)),
    }
}

fn crc_of(header: &[u8; FRAME_HEADER_BYTES], fields: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..12]);
    hasher.update(fields);
    hasher.finalize()
}

/// Encoded frames on their way to a socket: small parts in one buffer, batches as they are.
///
/// Invariant: the pieces, in order, are the bytes of the frames, in order.
#[derive(Debug, Default)]
pub struct EncodeBuf {
    pieces: std::collections::VecDeque<Bytes>,
    small: BytesMut,
    len: usize,
}

impl EncodeBuf {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds one frame.
    pub fn push(&mut self, frame: &Frame) {
        write::frame(frame, self);
    }

    /// Fills `slices` with what waits, for one vectored write, and returns how many were filled.
    pub fn fill_slices<'a>(&'a self, slices: &mut [std::io::IoSlice<'a>]) -> usize {
        let waiting = self.pieces.iter().map(|piece| &piece[..]);
        let tail = Some(&self.small[..]).filter(|small| !small.is_empty());
        let mut filled = 0;
        for (slot, piece) in slices.iter_mut().zip(waiting.chain(tail)) {
            *slot = std::io::IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    /// Forgets the first `count` bytes: they were written.
    pub fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "no more is written than waits");
        self.len -= count;
        while count > 0 {
            match self.pieces.front_mut() {
                Some(piece) if piece.len() <= count => {
                    count -= piece.len();
                    self.pieces.pop_front();
                }
                Some(piece) => {
                    piece.advance(count);
                    count = 0;
                }
                None => {
                    self.small.advance(count);
                    count = 0;
                }
            }
        }
    }

    /// Releases the buffer's memory when nothing waits: an idle connection holds none.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// What waits, in one piece.
    pub(crate) fn concat(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.pieces.iter().flatten().copied().collect();
        bytes.extend_from_slice(&self.small);
        bytes
    }

    fn push_piece(&mut self, piece: Bytes) {
        if !self.small.is_empty() {
            self.pieces.push_back(self.small.split().freeze());
        }
        self.len += piece.len();
        self.pieces.push_back(piece);
    }
}

/// Encodes one frame into a buffer of its own; for tests and tools.
pub fn encode_to_vec(frame: &Frame) -> Vec<u8> {
    let mut buffer = EncodeBuf::new();
    buffer.push(frame);
    buffer.concat()
}

#[cfg(test)]
mod tests;
