//! A network within the process: byte streams between a client and the simulated broker.
//!
//! Owns: which addresses are listened on, and every stream, so that a crash cuts them all.
//! Never: loses or reorders bytes of a stream that stands (TCP does not either).

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::{mpsc, watch};
use weir_broker::seams::{BoxFuture, Listener, Network, Stream};

/// Bytes that a stream holds in each direction, like a socket's buffers.
const STREAM_BUFFER_BYTES: usize = 256 << 10;
/// Connections that wait to be accepted.
const BACKLOG_MAX: usize = 128;

/// The network of one simulation. Cheap to clone.
#[derive(Clone, Default)]
pub struct SimNetwork(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    listeners: BTreeMap<SocketAddr, mpsc::Sender<(SimStream, SocketAddr)>>,
    /// Raised by a crash: every stream of an older era is broken.
    era: Option<watch::Sender<u64>>,
    next_port: u16,
}

impl SimNetwork {
    /// Connects to a listener.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<SimStream> {
        let (ours, theirs) = tokio::io::duplex(STREAM_BUFFER_BYTES);
        let (listener, cut, from) = {
            let mut state = self.state();
            let cut = state.era().subscribe();
            let from = state.pick_address();
            (state.listeners.get(&address).cloned(), cut, from)
        };
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let listener = listener.ok_or_else(refused)?;
        let theirs = SimStream::new(theirs, cut.clone());
        listener.send((theirs, from)).await.map_err(|_| refused())?;
        Ok(SimStream::new(ours, cut))
    }

    /// Breaks every stream and closes every listener, as the end of a process does.
    pub fn cut_all(&self) {
        let mut state = self.state();
        state.listeners.clear();
        state.era().send_modify(|era| *era += 1);
        state.era = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn era(&mut self) -> &watch::Sender<u64> {
        self.era.get_or_insert_with(|| watch::Sender::new(0))
    }

    fn pick_address(&mut self) -> SocketAddr {
        self.next_port += 1;
        SocketAddr::from((Ipv4Addr::LOCALHOST, 20_000 + self.next_port))
    }
}

impl Network for SimNetwork {
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let (sender, receiver) = mpsc::channel(BACKLOG_MAX);
            let mut state = self.state();
            let address = if address.port() == 0 { state.pick_address() } else { address };
            if state.listeners.get(&address).is_some_and(|old| !old.is_closed()) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            state.listeners.insert(address, sender);
            Ok(Box::new(SimListener { address, receiver }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(
        &'a self,
        address: &'a str,
    ) -> BoxFuture<'a, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(async move {
            let address: SocketAddr = address.parse().map_err(io::Error::other)?;
            let stream = Self::connect(self, address).await?;
            Ok((Box::new(stream) as Box<dyn Stream>, address))
        })
    }
}

struct SimListener {
    address: SocketAddr,
    receiver: mpsc::Receiver<(SimStream, SocketAddr)>,
}

impl Listener for SimListener {
    fn local_address(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(async move {
            match self.receiver.recv().await {
                Some((stream, from)) => Ok((Box::new(stream) as Box<dyn Stream>, from)),
                None => std::future::pending().await,
            }
        })
    }
}

/// One end of a stream; broken when the network is cut.
pub struct SimStream {
    stream: DuplexStream,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_cut: bool,
}

impl SimStream {
    fn new(stream: DuplexStream, mut era: watch::Receiver<u64>) -> Self {
        let cut = Box::pin(async move {
            // An error means that the era's owner is gone: the network was cut.
            let _ = era.changed().await;
        });
        Self { stream, cut, is_cut: false }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if !self.is_cut && self.cut.as_mut().poll(context).is_ready() {
            self.is_cut = true;
        }
        if self.is_cut { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
