//! The line between one broker and the others.
//!
//! Owns: whether it is whole. A line that is cut is silent: nothing arrives, and nobody is told.
//! Never: touches what clients say: only connections to and from peers go over it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weir_broker::seams::{BoxFuture, Listener, Network, Stream};

/// A line that can be cut.
#[derive(Clone, Default)]
pub struct Line(Arc<Mutex<Arc<AtomicBool>>>);

impl Line {
    /// Nothing goes over it from now on, in either direction.
    pub fn cut(&self) {
        self.0.lock().unwrap().store(true, Ordering::Release);
    }

    /// New connections go over it again; the old ones stay dead.
    pub fn heal(&self) {
        *self.0.lock().unwrap() = Arc::default();
    }

    /// A network whose connections to other brokers go over this line: all that are dialed, and those
    /// that come to `peers`.
    pub fn around(&self, network: Arc<dyn Network>, peers: SocketAddr) -> Arc<dyn Network> {
        Arc::new(LinedNetwork { inner: network, line: self.clone(), peers })
    }

    fn now(&self) -> Arc<AtomicBool> {
        self.0.lock().unwrap().clone()
    }

    fn over(&self, (stream, from): Connection) -> Connection {
        (Box::new(LinedStream { inner: stream, is_cut: self.now() }), from)
    }
}

type Connection = (Box<dyn Stream>, SocketAddr);

struct LinedNetwork {
    inner: Arc<dyn Network>,
    line: Line,
    peers: SocketAddr,
}

impl Network for LinedNetwork {
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let inner = self.inner.listen(address).await?;
            if address != self.peers {
                return Ok(inner);
            }
            Ok(Box::new(LinedListener { inner, line: self.line.clone() }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move { Ok(self.line.over(self.inner.connect(address).await?)) })
    }
}

struct LinedListener {
    inner: Box<dyn Listener>,
    line: Line,
}

impl Listener for LinedListener {
    fn local_address(&self) -> io::Result<SocketAddr> {
        self.inner.local_address()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Connection>> {
        Box::pin(async move { Ok(self.line.over(self.inner.accept().await?)) })
    }
}

struct LinedStream {
    inner: Box<dyn Stream>,
    is_cut: Arc<AtomicBool>,
}

impl LinedStream {
    /// The stream, if anything goes over it. Whoever finds it cut is never woken by it again.
    fn open(&mut self) -> Option<Pin<&mut (dyn Stream + 'static)>> {
        (!self.is_cut.load(Ordering::Acquire)).then(|| Pin::new(&mut *self.inner))
    }
}

impl AsyncRead for LinedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.open().map_or(Poll::Pending, |stream| stream.poll_read(cx, into))
    }
}

impl AsyncWrite for LinedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.open().map_or(Poll::Pending, |stream| stream.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open().map_or(Poll::Pending, |stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open().map_or(Poll::Pending, |stream| stream.poll_shutdown(cx))
    }
}
