//! The reading half of a link: bytes of the socket to frames.
//!
//! Owns: the frame that is not complete yet, and how many bytes may be held for it.
//! Never: holds a frame before it was admitted.
//! Invariants:
//! - before a frame is admitted no more of it is held than its header and fields, which every link
//!   has room for from its start;
//! - a large body is copied once, out of the socket into the buffer that becomes the batches; what
//!   is small is copied out, so that nobody holds on to the bytes of others.

use super::link::{Failure, malformed};
use crate::budget::{Account, Draft};
use crate::seams::Stream;
use bytes::{Buf, BufMut, BytesMut};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::AsyncReadExt;
use weir_protocol::limits::{FIELDS_BYTES_MAX, FRAME_HEADER_BYTES};
use weir_protocol::peer::limits::PEER_FRAME_BYTES_MAX;
use weir_protocol::peer::{PeerDecoder, PeerFrame, PeerHead};

/// What one read takes off the socket while no large frame is under way.
const READ_BYTES: usize = 16 << 10;
/// The longest frame without a body: every link may hold one at any time.
pub(super) const PLAIN_FRAME_BYTES_MAX: usize = FRAME_HEADER_BYTES + FIELDS_BYTES_MAX;
/// What a reader may hold without asking: a plain frame, and what one read brought beyond.
pub(super) const READER_BYTES_MAX: usize = PLAIN_FRAME_BYTES_MAX + 2 * READ_BYTES;

const _: () = assert!(READ_BYTES < PLAIN_FRAME_BYTES_MAX);

/// Whether a frame may be held.
#[derive(Debug)]
pub(super) enum Admission {
    /// Yes, on account of this, unless it is a plain one.
    Hold(Option<Draft>),
    /// Nobody wants it any more.
    Skip,
}

/// Admits plain frames, and those with a body of at most `body_bytes_max` as far as there is memory
/// for them. What is not there for a question or an answer costs no more than that one: who asks
/// waits only so long.
pub(super) fn admit_content(
    memory: &Arc<Account>,
    head: &PeerHead,
    body_bytes_max: usize,
) -> Result<Admission, Failure> {
    if head.frame_bytes <= PLAIN_FRAME_BYTES_MAX {
        return Ok(Admission::Hold(None));
    }
    if head.body_bytes > body_bytes_max {
        return Err(malformed("a frame is longer than such a frame may be"));
    }
    let draft = memory.try_draw(head.frame_bytes as u64);
    Ok(draft.map_or(Admission::Skip, |draft| Admission::Hold(Some(draft))))
}

/// The reading half of one link.
pub(super) struct Reader {
    decoder: PeerDecoder,
    buffer: BytesMut,
    /// Length of the whole frame at the start of the buffer, once it may be held, and what holds it.
    admitted: Option<(usize, Option<Draft>)>,
    /// Bytes of unwanted frames that are still to come.
    skip: usize,
}

impl Reader {
    /// Goes on where the handshake left off.
    pub(super) fn new(rest: BytesMut) -> Self {
        let decoder = PeerDecoder::new(PEER_FRAME_BYTES_MAX);
        Self { decoder, buffer: rest, admitted: None, skip: 0 }
    }

    /// Reads once, and says how many bytes came. 0: the peer has ended.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut dyn Stream,
    ) -> Poll<io::Result<usize>> {
        let room = match &self.admitted {
            Some((whole, _)) if *whole > READ_BYTES => whole - self.buffer.len(),
            _ => READ_BYTES,
        };
        self.buffer.reserve(room);
        let mut target = (&mut self.buffer).limit(room);
        pin!(socket.read_buf(&mut target)).poll(cx)
    }

    /// Takes the next frame of what was read, with what it is held on account of. None: more has
    /// to be read.
    pub(super) fn next(
        &mut self,
        mut admit: impl FnMut(&PeerHead) -> Result<Admission, Failure>,
    ) -> Result<Option<(PeerFrame, Option<Draft>)>, Failure> {
        loop {
            let skipped = self.skip.min(self.buffer.len());
            self.buffer.advance(skipped);
            self.skip -= skipped;
            if self.admitted.is_none() {
                let Some(head) = self.decoder.peek(&self.buffer)? else { return Ok(None) };
                match admit(&head)? {
                    Admission::Skip => {
                        self.skip = head.frame_bytes;
                        continue;
                    }
                    Admission::Hold(draft) => self.hold(head.frame_bytes, draft),
                }
            }
            let Some((whole, draft)) = self.admitted.take() else { return Ok(None) };
            if self.buffer.len() < whole {
                self.admitted = Some((whole, draft));
                return Ok(None);
            }
            let mut frame = self.take(whole);
            if let Some(frame) = self.decoder.decode(&mut frame)? {
                return Ok(Some((frame, draft)));
            }
        }
    }

    /// The frame may be held: a large one in a buffer of just its length.
    fn hold(&mut self, whole: usize, draft: Option<Draft>) {
        if whole > READ_BYTES && whole > self.buffer.len() {
            let mut buffer = BytesMut::with_capacity(whole);
            buffer.extend_from_slice(&self.buffer);
            self.buffer = buffer;
        }
        self.admitted = Some((whole, draft));
    }

    fn take(&mut self, whole: usize) -> BytesMut {
        if whole > READ_BYTES && whole == self.buffer.len() {
            return std::mem::take(&mut self.buffer);
        }
        let frame = BytesMut::from(&self.buffer[..whole]);
        self.buffer.advance(whole);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use weir_protocol::peer::{Append, LogPlace, SegmentPart, Vote, encode_to_vec};
    use weir_protocol::types::StreamId;

    fn append(number: u64, bytes: usize) -> PeerFrame {
        let batches = vec![Bytes::from(vec![number as u8; bytes])];
        PeerFrame::Append(Append {
            stream: StreamId(3),
            number,
            vote: Vote::default(),
            prev: LogPlace::default(),
            commit: LogPlace::default(),
            parts: vec![SegmentPart { salt: 1, batches }],
        })
    }

    /// Feeds `bytes` as a socket would: never more than the reader asks for.
    fn feed(bytes: &[u8], piece: usize, wanted: impl Fn(&PeerHead) -> bool) -> Vec<PeerFrame> {
        let mut reader = Reader::new(BytesMut::new());
        let mut found = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (mut socket, count) = (&rest[..piece.min(rest.len())], rest.len());
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let mut source = tokio::io::join(&mut socket, tokio::io::sink());
            let Poll::Ready(Ok(read)) = reader.poll_fill(&mut cx, &mut source) else {
                panic!("a slice is always ready")
            };
            rest = &bytes[bytes.len() - (count - read)..];
            let mut admit = |head: &PeerHead| match wanted(head) {
                true => Ok(Admission::Hold(None)),
                false => Ok(Admission::Skip),
            };
            while let Some((frame, _)) = reader.next(&mut admit).unwrap() {
                found.push(frame);
            }
            assert!(reader.buffer.capacity() <= READER_BYTES_MAX.max(300_000));
        }
        assert!(reader.buffer.is_empty() && reader.admitted.is_none());
        found
    }

    #[test]
    fn frames_of_all_sizes_survive_any_cut() {
        let sizes = [128, 16 << 10, 128, 200_000, 60_000, 160];
        let frames: Vec<_> = (1..).zip(sizes).map(|(n, bytes)| append(n, bytes)).collect();
        let bytes: Vec<u8> = frames.iter().flat_map(encode_to_vec).collect();
        for piece in [1, 3, 155, 4_096, READ_BYTES, 1 << 20] {
            assert_eq!(feed(&bytes, piece, |_| true), frames, "in pieces of {piece}");
        }
    }

    #[test]
    fn an_unwanted_frame_is_passed_over_and_reading_goes_on() {
        let frames = [append(1, 200_000), PeerFrame::Heartbeat, append(2, 128)];
        let bytes: Vec<u8> = frames.iter().flat_map(encode_to_vec).collect();
        for piece in [100, READ_BYTES] {
            let found = feed(&bytes, piece, |head| head.body_bytes < 1_000);
            assert_eq!(found, frames[1..]);
        }
    }
}
