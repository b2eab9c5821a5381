//! A stream between two hosts, and its two ends.
//!
//! Owns: both directions, and who still holds an end.
//! Never: keeps a stream whose ends were both given up.

use super::pipe::{End, Pipe, wake};
use super::{SimNetwork, State};
use bytes::{Bytes, BytesMut};
use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// One stream: side 0 connected, side 1 accepted. Each writes the pipe of its own number.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) hosts: [u8; 2],
    pipes: [Pipe; 2],
    sides: [Side; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Open,
    /// It has said that it sends no more.
    Shut,
    /// Its host has broken it, and its holder does not know yet or has not let go.
    Broken,
    /// Nobody holds it any more.
    Dropped,
}

/// What a read comes to.
enum Read {
    Bytes(Bytes),
    /// Something arrives then.
    At(Instant),
    /// Whoever sends, heals or breaks wakes the reader.
    Later,
}

impl Connection {
    pub(super) fn new(from: u8, to: u8) -> Self {
        Self { hosts: [from, to], pipes: Default::default(), sides: [Side::Open; 2] }
    }

    /// The hosts that the pipe of `side` goes from and to.
    pub(super) fn way(&self, side: usize) -> (u8, u8) {
        (self.hosts[side], self.hosts[1 - side])
    }

    /// Whether somebody on `host` holds an end.
    pub(super) fn is_held_on(&self, host: u8) -> bool {
        (0..2).any(|side| self.hosts[side] == host && self.sides[side] != Side::Dropped)
    }

    pub(super) fn pipe(&mut self, side: usize) -> &mut Pipe {
        &mut self.pipes[side]
    }

    /// The host of `side` breaks the stream; the other side learns it when `at` has come.
    pub(super) fn break_side(&mut self, side: usize, at: Instant) {
        if matches!(self.sides[side], Side::Open | Side::Shut) {
            self.sides[side] = Side::Broken;
            self.end(side, at, End::Reset);
            wake(&mut self.pipes[1 - side].reader);
            wake(&mut self.pipes[side].writer);
        }
    }

    fn end(&mut self, side: usize, at: Instant, end: End) {
        self.pipes[side].send_end(at, end);
        if end != End::Shut {
            self.pipes[1 - side].abandon();
        }
    }

    /// Whether `side` may send.
    fn check_write(&self, side: usize) -> io::Result<()> {
        match (self.sides[side], self.pipes[1 - side].end()) {
            (Side::Broken, _) | (_, Some(End::Reset)) => Err(ErrorKind::ConnectionReset.into()),
            (Side::Shut | Side::Dropped, _) | (_, Some(End::Gone)) => {
                Err(ErrorKind::BrokenPipe.into())
            }
            (Side::Open, Some(End::Shut) | None) => Ok(()),
        }
    }

    fn read(&mut self, side: usize, bytes_max: usize, is_cut: bool) -> io::Result<Read> {
        if self.sides[side] == Side::Broken {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let pipe = &mut self.pipes[1 - side];
        if let Some(bytes) = pipe.take(bytes_max) {
            return Ok(Read::Bytes(bytes));
        }
        match pipe.end() {
            Some(End::Reset) => Err(ErrorKind::ConnectionReset.into()),
            Some(End::Shut | End::Gone) => Ok(Read::Bytes(Bytes::new())),
            None => Ok(pipe.next_at().filter(|_| !is_cut).map_or(Read::Later, Read::At)),
        }
    }
}

impl State {
    /// Takes in what has arrived at `side`. Returns whether the link there is cut.
    fn settle(&mut self, number: u64, side: usize, now: Instant) -> bool {
        let connection = self.connections.get_mut(&number).expect("an end of it is held");
        let (from, to) = connection.way(1 - side);
        let is_cut = self.links.get(&(from, to)).is_some_and(|link| link.cut);
        if !is_cut {
            connection.pipe(1 - side).settle(now);
        }
        is_cut
    }

    fn write(
        &mut self,
        (number, side): (u64, usize),
        pieces: &[IoSlice<'_>],
        context: &Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let now = Instant::now();
        self.settle(number, side, now);
        let connection = self.connections.get_mut(&number).expect("an end of it is held");
        connection.check_write(side)?;
        let (from, to) = connection.way(side);
        let pipe = connection.pipe(side);
        let room = pipe.room();
        if room == 0 {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let bytes = gather(pieces, room);
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let arrival = self.arrival(from, to, bytes.len(), now);
        self.note(now, number, side, &bytes);
        let count = bytes.len();
        let connection = self.connections.get_mut(&number).expect("an end of it is held");
        connection.pipe(side).send(arrival, bytes);
        Poll::Ready(Ok(count))
    }

    /// Ends what `side` sends.
    pub(super) fn end(&mut self, number: u64, side: usize, end: End) {
        let now = Instant::now();
        let Some(connection) = self.connections.get(&number) else { return };
        let (from, to) = connection.way(side);
        let at = self.arrival(from, to, 0, now);
        let connection = self.connections.get_mut(&number).expect("it was there a moment ago");
        match (end, connection.sides[side]) {
            (End::Reset, _) => connection.break_side(side, at),
            (End::Shut, Side::Open) => {
                connection.sides[side] = Side::Shut;
                connection.end(side, at, end);
            }
            (End::Gone, Side::Open | Side::Shut) => {
                connection.sides[side] = Side::Dropped;
                connection.end(side, at, end);
            }
            (End::Gone, Side::Broken) => connection.sides[side] = Side::Dropped,
            (End::Shut | End::Gone, _) => {}
        }
        if connection.sides == [Side::Dropped; 2] {
            self.connections.remove(&number);
        }
    }
}

fn gather(pieces: &[IoSlice<'_>], bytes_max: usize) -> Bytes {
    let all: usize = pieces.iter().map(|piece| piece.len()).sum();
    let mut bytes = BytesMut::with_capacity(all.min(bytes_max));
    for piece in pieces {
        let room = bytes_max - bytes.len();
        bytes.extend_from_slice(&piece[..room.min(piece.len())]);
    }
    bytes.freeze()
}

/// One end of a stream.
pub struct SimStream {
    network: SimNetwork,
    number: u64,
    side: usize,
    /// Until the next bytes arrive.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl SimStream {
    /// Both ends of a new stream: of who connects, and of who accepts.
    pub(super) fn pair(network: &SimNetwork, from: u8, to: u8) -> [Self; 2] {
        let mut state = network.state();
        let number = state.next_connection;
        state.next_connection += 1;
        state.connections.insert(number, Connection::new(from, to));
        [0, 1].map(|side| Self { network: network.clone(), number, side, sleep: None })
    }

    fn try_read(&self, bytes_max: usize, context: &Context<'_>) -> io::Result<Read> {
        let mut state = self.network.state();
        let is_cut = state.settle(self.number, self.side, Instant::now());
        let connection = state.connections.get_mut(&self.number).expect("this end of it is held");
        let read = connection.read(self.side, bytes_max, is_cut)?;
        if !matches!(read, Read::Bytes(_)) {
            connection.pipe(1 - self.side).reader = Some(context.waker().clone());
        }
        Ok(read)
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let at = match self.try_read(buffer.remaining(), context)? {
                Read::Bytes(bytes) => {
                    buffer.put_slice(&bytes);
                    return Poll::Ready(Ok(()));
                }
                Read::Later => return Poll::Pending,
                Read::At(at) => at,
            };
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if sleep.deadline() != at {
                sleep.as_mut().reset(at);
            }
            ready!(sleep.as_mut().poll(context));
        }
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.network.state().write((self.number, self.side), pieces, context)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.network.state().end(self.number, self.side, End::Shut);
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.network.state().end(self.number, self.side, End::Gone);
        self.network.0.changed.send_replace(());
    }
}
