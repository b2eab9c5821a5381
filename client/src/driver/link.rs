//! The socket of one connection: bytes in, frames out, in one task.
//!
//! Owns: both directions, the read buffer, the handshake.
//! Never: stops reading because something waits to be written, or the other way round.

use crate::error::{Error, Result};
use crate::seams::Duplex;
use bytes::{Bytes, BytesMut};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite};
use weir_protocol::codec::{DecodeError, Decoder, EncodeBuf};
use weir_protocol::error_code::{Action, ErrorCode};
use weir_protocol::frame::{Auth, FEATURE_SHARING, Frame, Hello, PeerLimits, Welcome};
use weir_protocol::limits::{
    FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX, HANDSHAKE_MS_MAX, HEARTBEAT_MS, MESSAGE_BYTES_MAX,
    PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN, REQUESTS_PER_CONNECTION_MAX,
    STREAMS_PER_CONNECTION_MAX,
};

/// The least that one read asks for.
const READ_BYTES_MIN: usize = 8 << 10;
/// The most that is allocated for a frame before its bytes arrive.
const READ_BYTES_MAX: usize = 1 << 20;
/// Pieces of one vectored write.
const WRITE_SLICES_MAX: usize = 64;

/// What one turn of a connection did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) read: usize,
    pub(crate) written: usize,
    /// The peer closed its side.
    pub(crate) ended: bool,
}

/// One connection.
pub(crate) struct Link {
    duplex: Duplex,
    input: BytesMut,
    decoder: Decoder,
    /// What the last frame took: the next read expects as much.
    expected: usize,
}

impl Link {
    pub(crate) fn new(duplex: Duplex) -> Self {
        Self {
            duplex,
            input: BytesMut::new(),
            decoder: Decoder::new(HANDSHAKE_FRAME_BYTES_MAX),
            expected: READ_BYTES_MIN,
        }
    }

    /// The next frame that is complete.
    pub(crate) fn decode(&mut self) -> std::result::Result<Option<Frame>, DecodeError> {
        let before = self.input.len();
        let frame = self.decoder.decode(&mut self.input)?;
        if frame.is_some() {
            let took = before - self.input.len();
            self.expected = took.clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        }
        Ok(frame)
    }

    /// Reads and writes what can be read and written at once.
    pub(crate) fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut EncodeBuf,
    ) -> Poll<io::Result<Turn>> {
        let mut turn = Turn::default();
        let wrote = self.poll_write(cx, out, &mut turn)?;
        let read = self.poll_read(cx, &mut turn)?;
        if wrote || read { Poll::Ready(Ok(turn)) } else { Poll::Pending }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut EncodeBuf,
        turn: &mut Turn,
    ) -> io::Result<bool> {
        let mut writer = Pin::new(&mut self.duplex.writer);
        if out.is_empty() {
            // A stream that buffers is flushed once everything is in it.
            return match writer.poll_flush(cx) {
                Poll::Ready(Err(error)) => Err(error),
                Poll::Ready(Ok(())) | Poll::Pending => Ok(false),
            };
        }
        let mut slices = [IoSlice::new(&[]); WRITE_SLICES_MAX];
        let filled = out.fill_slices(&mut slices);
        match writer.as_mut().poll_write_vectored(cx, &slices[..filled]) {
            Poll::Ready(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(written)) => {
                out.advance(written);
                turn.written = written;
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(false),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, turn: &mut Turn) -> io::Result<bool> {
        let needed = self.decoder.needed(&self.input).unwrap_or(READ_BYTES_MIN);
        let ahead = if self.input.is_empty() { self.expected } else { needed };
        self.input.reserve(ahead.clamp(1, READ_BYTES_MAX));
        let reading = pin!(self.duplex.reader.read_buf(&mut self.input));
        match reading.poll(cx) {
            Poll::Ready(Ok(0)) => turn.ended = true,
            Poll::Ready(Ok(read)) => turn.read = read,
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(false),
        }
        Ok(true)
    }

    /// Says hello, authenticates, and waits until the broker is ready.
    pub(crate) async fn handshake(&mut self, client_name: &str) -> Result<Welcome> {
        let limit = Duration::from_millis(u64::from(HANDSHAKE_MS_MAX));
        match tokio::time::timeout(limit, self.shake_hands(client_name)).await {
            Ok(result) => result,
            Err(_) => Err(unreachable(format!("no answer to HELLO within {limit:?}"))),
        }
    }

    async fn shake_hands(&mut self, client_name: &str) -> Result<Welcome> {
        let mut out = EncodeBuf::new();
        out.push(&Frame::Hello(hello(client_name)));
        out.push(&Frame::Auth(Auth { method: "anonymous".to_owned(), content: Bytes::new() }));
        let mut welcome = None;
        loop {
            let turn = poll_fn(|cx| self.poll_turn(cx, &mut out)).await;
            let turn = turn.map_err(|error| unreachable(error.to_string()))?;
            while let Some(frame) = self.decode().map_err(|error| garbled(&error))? {
                match frame {
                    Frame::Welcome(found) if welcome.is_none() => welcome = Some(found),
                    Frame::Ready => {
                        let welcome = welcome.ok_or_else(|| unexpected("READY before WELCOME"))?;
                        self.decoder.set_limit(FRAME_BYTES_MAX);
                        return Ok(welcome);
                    }
                    Frame::Error(error) => return Err(Error::refused(&error.refusal)),
                    Frame::GoAway(away) => return Err(unreachable(away.text)),
                    Frame::Heartbeat => {}
                    _ => return Err(unexpected("a frame before READY")),
                }
            }
            if turn.ended {
                return Err(unreachable("the broker closed the connection during HELLO"));
            }
        }
    }
}

fn hello(client_name: &str) -> Hello {
    Hello {
        version_min: PROTOCOL_VERSION_MIN,
        version_max: PROTOCOL_VERSION_MAX,
        features: FEATURE_SHARING,
        limits: PeerLimits {
            frame_bytes_max: FRAME_BYTES_MAX as u32,
            message_bytes_max: MESSAGE_BYTES_MAX as u32,
            streams_max: STREAMS_PER_CONNECTION_MAX as u32,
            requests_max: REQUESTS_PER_CONNECTION_MAX as u32,
            heartbeat_ms: HEARTBEAT_MS,
        },
        client_name: client_name.to_owned(),
    }
}

fn unreachable(text: impl Into<String>) -> Error {
    Error::local(ErrorCode::Unreachable, text)
}

fn unexpected(text: &str) -> Error {
    Error::protocol(ErrorCode::BadState, text)
}

pub(crate) fn garbled(error: &DecodeError) -> Error {
    Error::protocol(ErrorCode::BadFrame, error.to_string())
}

/// Whether connecting again is of no use: the broker will never take this client as it is.
pub(crate) fn is_final(error: &Error) -> bool {
    match error.error_code() {
        Some(ErrorCode::UnsupportedVersion | ErrorCode::Unauthenticated) => true,
        Some(_) => false,
        None => error.code().is_some_and(|code| Action::of(code) == Action::Never),
    }
}
