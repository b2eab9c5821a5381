//! Listens to what a client and its brokers say to one another about credit.
//!
//! Owns: the streams of each connection, by numbers that no two share.
//! Never: changes or delays a byte.
//! Invariants: what a client sends is noted before it leaves, and what it is sent before the client
//! learns of it: so a grant is never noted behind what was rightly spent of it.

use super::record::Recorder;
use crate::history::{Peer, What};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weir_client::seams::{BoxFuture, Connector, Duplex};
use weir_protocol::codec::Decoder;
use weir_protocol::frame::{Frame, Grant, Publish};
use weir_protocol::limits::{FRAME_BYTES_MAX, MESSAGE_COST_MIN};
use weir_protocol::types::StreamId;

/// The way of a client into the network, listened to.
pub(super) struct Tap {
    pub(super) way: Arc<dyn Connector>,
    pub(super) recorder: Recorder,
}

impl Connector for Tap {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Duplex>> {
        Box::pin(async move {
            let Duplex { reader, writer } = self.way.connect(host, port).await?;
            let streams = Arc::new(Mutex::new(Streams::of(self.recorder.clone())));
            let heard = Heard { reader, ear: Ear::new(), streams: streams.clone() };
            let said = Said { writer, ear: Ear::new(), streams };
            Ok(Duplex { reader: Box::new(heard), writer: Box::new(said) })
        })
    }
}

/// Makes frames of the bytes of one direction.
struct Ear {
    decoder: Decoder,
    bytes: BytesMut,
}

impl Ear {
    fn new() -> Self {
        Self { decoder: Decoder::new(FRAME_BYTES_MAX), bytes: BytesMut::new() }
    }

    /// The frames that are whole with these bytes. Both ends talk as they should.
    fn frames(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.bytes.extend_from_slice(bytes);
        let next = || self.decoder.decode(&mut self.bytes).expect("a peer sends whole frames");
        std::iter::from_fn(next).collect()
    }
}

struct Stream {
    number: u16,
    epoch: u16,
    /// What a revoke asked the limit to be.
    revoked_to: u64,
}

/// The streams of one connection.
struct Streams {
    recorder: Recorder,
    open: BTreeMap<StreamId, Stream>,
}

impl Streams {
    fn of(recorder: Recorder) -> Self {
        Self { recorder, open: BTreeMap::new() }
    }

    fn said(&mut self, frame: &Frame) {
        match frame {
            Frame::OpenPublisher(opens) => self.begin(opens.stream),
            Frame::Subscribe(opens) => {
                self.begin(opens.stream);
                self.grant(opens.stream, &opens.credit);
            }
            Frame::Grant(stream, grant) => self.grant(*stream, grant),
            Frame::Publish(publish) => {
                self.spend(publish.stream, cost_of(publish), publish.header.record_count);
            }
            Frame::Revoked(stream, revoked) => {
                let Some(stream) = self.open.get_mut(stream) else { return };
                let limit_cost = std::mem::take(&mut stream.revoked_to).max(revoked.spent_cost);
                let (peer, epoch) = (Peer::Stream(stream.number), stream.epoch);
                self.recorder.note(What::Revoke { peer, epoch, limit_cost });
            }
            _ => {}
        }
    }

    fn heard(&mut self, frame: &Frame) {
        match frame {
            Frame::Grant(stream, grant) => self.grant(*stream, grant),
            Frame::Published(published) => self.grant(published.stream, &published.grant),
            Frame::Refused(refused) => self.grant(refused.stream, &refused.grant),
            Frame::Revoke(stream, revoke) => {
                if let Some(stream) = self.open.get_mut(stream) {
                    stream.revoked_to = revoke.limit_cost;
                }
            }
            Frame::Deliver(deliver) => {
                let bytes = deliver.batches.iter().map(Bytes::len).sum::<usize>() as u64;
                self.spend(deliver.stream, bytes, deliver.record_count);
            }
            _ => {}
        }
    }

    fn begin(&mut self, stream: StreamId) {
        let number = self.recorder.next_stream();
        self.open.insert(stream, Stream { number, epoch: 0, revoked_to: 0 });
    }

    fn grant(&mut self, stream: StreamId, grant: &Grant) {
        let Some(stream) = self.open.get_mut(&stream) else { return };
        stream.epoch = grant.epoch as u16;
        let Grant { limit_cost, limit_messages, .. } = *grant;
        let (peer, epoch) = (Peer::Stream(stream.number), stream.epoch);
        self.recorder.note(What::Grant { peer, epoch, limit_cost, limit_messages });
    }

    fn spend(&mut self, stream: StreamId, cost: u64, messages: u32) {
        let Some(stream) = self.open.get(&stream) else { return };
        let (peer, epoch, cost) = (Peer::Stream(stream.number), stream.epoch, cost as u32);
        self.recorder.note(What::Spend { peer, epoch, cost, messages });
    }
}

/// What a batch costs its publisher.
fn cost_of(publish: &Publish) -> u64 {
    let least = MESSAGE_COST_MIN * u64::from(publish.header.record_count);
    least.max(publish.body.len() as u64)
}

struct Heard {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    ear: Ear,
    streams: Arc<Mutex<Streams>>,
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(context, into))?;
        let frames = self.ear.frames(&into.filled()[before..]);
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().for_each(|frame| streams.heard(frame));
        Poll::Ready(Ok(()))
    }
}

struct Said {
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    ear: Ear,
    streams: Arc<Mutex<Streams>>,
}

impl AsyncWrite for Said {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Nothing runs between this and the note: one thread simulates everything.
        let written = ready!(Pin::new(&mut self.writer).poll_write(context, bytes))?;
        let frames = self.ear.frames(&bytes[..written]);
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().for_each(|frame| streams.said(frame));
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}
