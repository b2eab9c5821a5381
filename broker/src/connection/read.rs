//! The reading half: bytes of the socket to frames.
//!
//! Owns: the frame that is not complete yet, and how many bytes may be held for it.
//! Never: holds a body that its stream's credit does not cover; keeps a buffer while idle.
//! Invariants:
//! - what is held for an incomplete frame was drawn before: small frames from the account of read
//!   buffers, large ones from the credit of their stream;
//! - a body is copied once, out of the socket into the buffer that becomes the batch.

use crate::budget::{Account, Draft};
use bytes::{BufMut, BytesMut};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::AsyncReadExt;
use tokio::time::{Duration, Instant};
use weir_protocol::codec::{DecodeError, Decoder, PublishHead};
use weir_protocol::frame::Frame;
use weir_protocol::limits::HANDSHAKE_FRAME_BYTES_MAX;

use crate::seams::Stream;

/// Bytes that one read takes off the socket onto the stack: what small frames pass through.
pub(super) const SCRATCH_BYTES: usize = 16 << 10;
/// A frame without a body that is paid for is at most this long.
const SMALL_FRAME_BYTES_MAX: usize = 4 << 10;
/// A frame must be complete this long after it began, or after its last [`PROGRESS_BYTES`].
pub(super) const PARTIAL_FRAME_MAX: Duration = Duration::from_secs(10);
/// A large frame may take longer as long as this much of it arrives in that time.
const PROGRESS_BYTES: usize = 64 << 10;

const _: () = assert!(SMALL_FRAME_BYTES_MAX >= HANDSHAKE_FRAME_BYTES_MAX);
const _: () = assert!(SMALL_FRAME_BYTES_MAX <= SCRATCH_BYTES);

/// What the reader found.
#[derive(Debug)]
pub(super) enum Event {
    /// A complete frame.
    Frame(Frame),
    /// A publish that its stream's credit does not cover; its body is thrown away.
    Unpaid(PublishHead),
}

/// Why reading cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The bytes are not a frame.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The account of read buffers is used up.
    #[error("the read buffers of this broker are used up")]
    Memory,
}

/// What is known of an incomplete frame.
enum Admission {
    /// Too little to tell.
    Unknown,
    /// It is small: it may be held whole if that can be drawn.
    Small(usize),
    /// It may be held whole: its stream's credit covers it.
    Paid(usize),
    /// It may not.
    Unpaid(PublishHead),
}

struct Partial {
    buffer: BytesMut,
    /// Length of the whole frame, once it may be held.
    whole: Option<usize>,
    /// When it began, or last made progress.
    since: Instant,
    /// Length at that moment.
    since_bytes: usize,
    draft: Option<Draft>,
}

/// The reading half of a connection.
pub(super) struct Reader {
    decoder: Decoder,
    partial: Option<Box<Partial>>,
    /// Bytes of an unpaid body that are still to come.
    skip: usize,
    buffers: Arc<Account>,
}

impl Reader {
    pub(super) fn new(buffers: Arc<Account>) -> Self {
        let decoder = Decoder::new(HANDSHAKE_FRAME_BYTES_MAX);
        Self { decoder, partial: None, skip: 0, buffers }
    }

    /// The handshake is through: frames may be as long as was announced.
    pub(super) fn set_limit(&mut self, frame_bytes_max: usize) {
        self.decoder.set_limit(frame_bytes_max);
    }

    /// When the incomplete frame, if there is one, has taken too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.partial.as_ref().map(|partial| partial.since + PARTIAL_FRAME_MAX)
    }

    /// Whether the rest of a large frame goes straight into its buffer.
    pub(super) fn is_filling(&self) -> bool {
        self.partial.as_ref().is_some_and(|partial| partial.lacking() > SMALL_FRAME_BYTES_MAX)
    }

    /// Reads into the buffer of the large frame under way. 0 bytes: the peer has ended.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut dyn Stream,
        now: Instant,
    ) -> Poll<std::io::Result<usize>> {
        let Some(partial) = &mut self.partial else { return Poll::Ready(Ok(0)) };
        let lacking = partial.lacking();
        let mut target = (&mut partial.buffer).limit(lacking);
        let read = pin!(stream.read_buf(&mut target)).poll(cx);
        partial.note_progress(now);
        read
    }

    /// Takes the next frame out of `input`, in which more may follow. None: `input` is used up,
    /// and what remained of it is kept. `paid` says whether a stream's credit covers a publish.
    pub(super) fn next(
        &mut self,
        input: &mut &[u8],
        now: Instant,
        paid: impl Fn(&PublishHead) -> bool,
    ) -> Result<Option<Event>, ReadError> {
        loop {
            let skipped = self.skip.min(input.len());
            self.skip -= skipped;
            *input = &input[skipped..];
            let found = match self.partial.take() {
                Some(partial) => self.complete(partial, input, now, &paid)?,
                None if input.is_empty() => return Ok(None),
                None => self.begin(input, now, &paid)?,
            };
            if found.is_some() {
                return Ok(found);
            }
            if input.is_empty() {
                return Ok(None);
            }
        }
    }

    /// A frame begins with `input`.
    fn begin(
        &mut self,
        input: &mut &[u8],
        now: Instant,
        paid: impl Fn(&PublishHead) -> bool,
    ) -> Result<Option<Event>, ReadError> {
        let lacking = self.decoder.needed(input)?;
        if lacking == 0 {
            let whole = whole_of(input);
            // The same answer, however many reads a frame came in.
            if whole > SMALL_FRAME_BYTES_MAX && self.decoder.peek_publish(input)?.is_none() {
                return Err(too_long(whole));
            }
            let mut bytes = BytesMut::from(&input[..whole]);
            *input = &input[whole..];
            return Ok(self.decoder.decode(&mut bytes)?.map(Event::Frame));
        }
        let held = std::mem::take(input);
        let (whole, draft, capacity) = match self.admit(held, paid)? {
            Admission::Unknown => {
                let draft = self.draw(SMALL_FRAME_BYTES_MAX)?;
                (None, Some(draft), held.len())
            }
            Admission::Small(whole) => (Some(whole), Some(self.draw(whole)?), whole),
            Admission::Paid(whole) => (Some(whole), None, whole),
            Admission::Unpaid(head) => {
                self.skip = head.frame_bytes - held.len();
                return Ok(Some(Event::Unpaid(head)));
            }
        };
        let mut buffer = BytesMut::with_capacity(capacity);
        buffer.extend_from_slice(held);
        let since_bytes = held.len();
        let partial = Partial { buffer, whole, since: now, since_bytes, draft };
        self.partial = Some(Box::new(partial));
        Ok(None)
    }

    /// A frame goes on with `input`, which may be empty.
    fn complete(
        &mut self,
        mut partial: Box<Partial>,
        input: &mut &[u8],
        now: Instant,
        paid: impl Fn(&PublishHead) -> bool,
    ) -> Result<Option<Event>, ReadError> {
        loop {
            let lacking = self.decoder.needed(&partial.buffer)?;
            if lacking == 0 {
                return Ok(self.decoder.decode(&mut partial.buffer)?.map(Event::Frame));
            }
            let room = match partial.whole {
                Some(_) => lacking,
                None => lacking.min(SMALL_FRAME_BYTES_MAX.saturating_sub(partial.buffer.len())),
            };
            let (taken, rest) = input.split_at(room.min(input.len()));
            partial.buffer.extend_from_slice(taken);
            partial.note_progress(now);
            *input = rest;
            if partial.whole.is_none() {
                match self.admit(&partial.buffer, &paid)? {
                    Admission::Unknown => {}
                    // What was drawn for the unknown frame covers any small one.
                    Admission::Small(whole) => partial.whole = Some(whole),
                    Admission::Paid(whole) => {
                        let mut buffer = BytesMut::with_capacity(whole);
                        buffer.extend_from_slice(&partial.buffer);
                        partial.buffer = buffer;
                        partial.whole = Some(whole);
                        partial.draft = None;
                    }
                    Admission::Unpaid(head) => {
                        self.skip = head.frame_bytes - partial.buffer.len();
                        return Ok(Some(Event::Unpaid(head)));
                    }
                }
            }
            if input.is_empty() && self.decoder.needed(&partial.buffer)? > 0 {
                self.partial = Some(partial);
                return Ok(None);
            }
        }
    }

    /// Decides whether the incomplete frame that begins with `bytes` may be held.
    fn admit(
        &self,
        bytes: &[u8],
        paid: impl Fn(&PublishHead) -> bool,
    ) -> Result<Admission, ReadError> {
        if bytes.len() < size_of::<u32>() {
            return Ok(Admission::Unknown);
        }
        let whole = whole_of(bytes);
        if whole <= SMALL_FRAME_BYTES_MAX {
            return Ok(Admission::Small(whole));
        }
        match self.decoder.peek_publish(bytes)? {
            Some(head) if paid(&head) => Ok(Admission::Paid(whole)),
            Some(head) => Ok(Admission::Unpaid(head)),
            None if bytes.len() >= SMALL_FRAME_BYTES_MAX => Err(too_long(whole)),
            None => Ok(Admission::Unknown),
        }
    }

    fn draw(&self, bytes: usize) -> Result<Draft, ReadError> {
        self.buffers.try_draw(bytes as u64).ok_or(ReadError::Memory)
    }
}

impl Partial {
    /// Bytes that may be read straight into the buffer.
    fn lacking(&self) -> usize {
        self.whole.map_or(0, |whole| whole - self.buffer.len())
    }

    fn note_progress(&mut self, now: Instant) {
        if self.buffer.len() >= self.since_bytes + PROGRESS_BYTES {
            self.since = now;
            self.since_bytes = self.buffer.len();
        }
    }
}

/// A frame without a paid body that is longer than such a frame may be.
fn too_long(whole: usize) -> ReadError {
    DecodeError::TooLarge { bytes: whole as u64, limit: SMALL_FRAME_BYTES_MAX }.into()
}

/// Length of the frame whose length field was checked.
fn whole_of(bytes: &[u8]) -> usize {
    let length = bytes.first_chunk::<4>().copied().unwrap_or_default();
    u32::from_le_bytes(length) as usize + size_of::<u32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Part;
    use weir_protocol::batch::BatchBuilder;
    use weir_protocol::codec::encode_to_vec;
    use weir_protocol::frame::{Publish, Settle};
    use weir_protocol::limits::FRAME_BYTES_MAX;
    use weir_protocol::types::{Offset, StreamId};

    fn reader(bytes: u64) -> Reader {
        let mut reader = Reader::new(Account::new(Part { name: "read buffers", bytes }));
        reader.set_limit(FRAME_BYTES_MAX);
        reader
    }

    fn publish(bytes: usize) -> Frame {
        let mut builder = BatchBuilder::new(8 << 20);
        builder.push(1, None, &[], &vec![7; bytes]).unwrap();
        let built = builder.finish();
        let mut header = built.header;
        header.stamp_local(0);
        let (stream, body) = (StreamId(7), built.body);
        Frame::Publish(Publish { stream, deadline_ms: 0, demand: 3, header, body })
    }

    fn settle(upto: u64) -> Frame {
        Frame::Settle(Settle { stream: StreamId(1), upto: Offset(upto), confirm: false })
    }

    fn feed(reader: &mut Reader, bytes: &[u8], piece: usize, paid: bool) -> Vec<Event> {
        let mut events = Vec::new();
        for mut input in bytes.chunks(piece) {
            while let Some(event) = reader.next(&mut input, Instant::now(), |_| paid).unwrap() {
                events.push(event);
            }
        }
        events
    }

    #[test]
    fn frames_of_all_sizes_survive_any_cut_and_leave_nothing_behind() {
        let frames =
            [settle(1), publish(100), publish(5_000), settle(2), publish(300_000), settle(3)];
        let bytes: Vec<u8> = frames.iter().flat_map(encode_to_vec).collect();
        for piece in [1, 3, 17, 155, 156, 157, 4_095, 4_096, 4_097, SCRATCH_BYTES] {
            let mut reader = reader(SMALL_FRAME_BYTES_MAX as u64);
            let events = feed(&mut reader, &bytes, piece, true);
            let found = events.into_iter().map(|event| match event {
                Event::Frame(frame) => frame,
                Event::Unpaid(head) => panic!("{head:?} was paid"),
            });
            assert_eq!(found.collect::<Vec<_>>(), frames, "in pieces of {piece}");
            assert_eq!(reader.buffers.used(), 0, "an idle reader holds nothing");
            assert!(reader.partial.is_none() && reader.deadline().is_none());
        }
    }

    #[test]
    fn an_unpaid_body_is_thrown_away_and_reading_goes_on() {
        let bytes: Vec<u8> = [publish(300_000), settle(9)].iter().flat_map(encode_to_vec).collect();
        for piece in [100, SCRATCH_BYTES] {
            let mut reader = reader(SMALL_FRAME_BYTES_MAX as u64);
            let events = feed(&mut reader, &bytes, piece, false);
            assert!(matches!(events[0], Event::Unpaid(head) if head.header.record_count == 1));
            assert!(matches!(&events[1], Event::Frame(frame) if *frame == settle(9)));
        }
    }

    #[test]
    fn a_long_frame_that_is_no_publish_is_refused_before_it_is_held() {
        let mut bytes = encode_to_vec(&settle(1));
        bytes[..4].copy_from_slice(&100_000u32.to_le_bytes());
        bytes.resize(5_000, 0);
        let mut whole = bytes.clone();
        whole[..4].copy_from_slice(&4_996u32.to_le_bytes());
        for bytes in [bytes, whole] {
            let mut reader = reader(1 << 20);
            let refused = reader.next(&mut &bytes[..], Instant::now(), |_| true);
            assert!(matches!(refused, Err(ReadError::Decode(DecodeError::TooLarge { .. }))));
            assert_eq!(reader.buffers.used(), 0);
        }
    }

    #[test]
    fn when_the_read_buffers_are_used_up_nothing_more_is_held() {
        let bytes = encode_to_vec(&settle(1));
        let mut reader = reader(3);
        let refused = reader.next(&mut &bytes[..20], Instant::now(), |_| true);
        assert!(matches!(refused, Err(ReadError::Memory)));
    }
}
