//! A network in memory, which can fall silent or break.

use crate::seams::{Listener, Network, Stream};
use futures_util::task::AtomicWaker;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

use crate::seams::BoxFuture;

/// Bytes that a connection holds in each direction.
pub(super) const WIRE_BYTES: usize = 64 << 10;

#[derive(Default)]
pub(super) struct Net {
    listeners: Mutex<BTreeMap<SocketAddr, mpsc::Sender<(Wire, SocketAddr)>>>,
    /// What is sent arrives nowhere, and nobody is told.
    silent: Arc<AtomicBool>,
    /// Connections of an older era are broken.
    era: Arc<AtomicU64>,
    readers: Arc<Mutex<Vec<Arc<AtomicWaker>>>>,
}

impl Net {
    pub(super) fn fall_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }

    /// Breaks every connection.
    pub(super) fn cut(&self) {
        self.era.fetch_add(1, Ordering::SeqCst);
        self.readers.lock().unwrap().iter().for_each(|waker| waker.wake());
    }

    /// The network as the host of this address sees it.
    pub(super) fn at(self: &Arc<Self>, ip: [u8; 4]) -> Arc<dyn Network> {
        Arc::new(Host { net: self.clone(), ip: Ipv4Addr::from(ip).into() })
    }

    fn wire(&self, stream: DuplexStream) -> Wire {
        let waker = Arc::new(AtomicWaker::new());
        self.readers.lock().unwrap().push(waker.clone());
        let born = self.era.load(Ordering::SeqCst);
        Wire { stream, silent: self.silent.clone(), era: self.era.clone(), born, waker }
    }
}

struct Host {
    net: Arc<Net>,
    ip: IpAddr,
}

impl Network for Host {
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        let (sender, queue) = mpsc::channel(64);
        self.net.listeners.lock().unwrap().insert(address, sender);
        Box::pin(async move { Ok(Box::new(Backlog { address, queue }) as Box<dyn Listener>) })
    }

    fn connect<'a>(
        &'a self,
        address: &'a str,
    ) -> BoxFuture<'a, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(async move {
            let address: SocketAddr = address.parse().map_err(io::Error::other)?;
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let listener = self.net.listeners.lock().unwrap().get(&address).cloned();
            let (ours, theirs) = tokio::io::duplex(WIRE_BYTES);
            let theirs = (self.net.wire(theirs), SocketAddr::new(self.ip, 9));
            listener.ok_or_else(refused)?.send(theirs).await.map_err(|_| refused())?;
            Ok((Box::new(self.net.wire(ours)) as Box<dyn Stream>, address))
        })
    }
}

struct Backlog {
    address: SocketAddr,
    queue: mpsc::Receiver<(Wire, SocketAddr)>,
}

impl Listener for Backlog {
    fn local_address(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(async move {
            match self.queue.recv().await {
                Some((wire, from)) => Ok((Box::new(wire) as Box<dyn Stream>, from)),
                None => std::future::pending().await,
            }
        })
    }
}

struct Wire {
    stream: DuplexStream,
    silent: Arc<AtomicBool>,
    era: Arc<AtomicU64>,
    born: u64,
    waker: Arc<AtomicWaker>,
}

impl Wire {
    fn check(&self) -> io::Result<()> {
        match self.era.load(Ordering::SeqCst) == self.born {
            true => Ok(()),
            false => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.waker.register(cx.waker());
        self.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        if self.silent.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
