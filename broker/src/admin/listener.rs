//! The admin server over the network seam, with a bound on its connections.

use crate::seams::{Listener, Stream};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Duration, Instant, Sleep};

/// Connections of the admin server at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// A connection ends after this, used or not: scrapers and people reconnect.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);
/// After an error of the listener accepting pauses this long.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

pub(super) struct SeamListener {
    listener: Box<dyn Listener>,
    address: SocketAddr,
    permits: Arc<Semaphore>,
}

impl SeamListener {
    pub(super) fn new(listener: Box<dyn Listener>, address: SocketAddr) -> Self {
        Self { listener, address, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl axum::serve::Listener for SeamListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.expect("nobody closes the permits");
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let life = Box::pin(tokio::time::sleep_until(Instant::now() + CONNECTION_LIFE));
                    return (BoundedStream { stream, life, _permit: permit }, peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin server cannot accept");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// A stream that holds its permit and ends with its life.
pub(super) struct BoundedStream {
    stream: Box<dyn Stream>,
    life: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.life.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut *self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.life.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut *self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(context)
    }
}
