//! The writing half of a connection, to clients or to other brokers: frames to bytes of the socket.
//!
//! Owns: what is encoded and not written yet.
//! Never: copies a body, waits, or takes more than one delivery at a time.

use crate::seams::Stream;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::{Duration, Instant};
use weir_protocol::codec::EncodeBuf;
use weir_protocol::frame::Frame;
use weir_protocol::peer::PeerFrame;

/// A peer that takes not a byte for this long is given up.
pub(crate) const WRITE_STALLED_MAX: Duration = Duration::from_secs(30);
/// Pieces of one vectored write.
const SLICES_MAX: usize = 32;

/// The writing half of a connection.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    out: EncodeBuf,
    /// Since when the peer has not taken a byte of what waits.
    stalled: Option<Instant>,
    /// Bytes written since the connection began.
    written: u64,
}

impl Writer {
    /// Adds one frame.
    pub(crate) fn push(&mut self, frame: &Frame) {
        self.out.push(frame);
    }

    /// Adds one frame for another broker.
    pub(crate) fn push_peer(&mut self, frame: &PeerFrame) {
        self.out.push_peer(frame);
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether everything was written.
    pub(crate) fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Bytes written since the connection began.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// When the peer, if it takes nothing, has taken nothing for too long.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.stalled.map(|since| since + WRITE_STALLED_MAX)
    }

    /// Writes until all is written or the socket takes no more.
    pub(crate) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut dyn Stream,
        now: Instant,
    ) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let filled = self.out.fill_slices(&mut slices);
            match Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..filled]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    self.out.advance(count);
                    self.written += count as u64;
                    self.stalled = None;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.stalled.get_or_insert(now);
                    return Poll::Pending;
                }
            }
        }
        self.out.shrink();
        Poll::Ready(Ok(()))
    }
}
