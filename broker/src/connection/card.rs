//! What may be seen of a connection from outside.
//!
//! Owns: one register per number, written by the connection's task alone.
//! Never: anything that a connection decides by.

use super::outbox::Outbox;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;
use weir_protocol::error_code::ErrorCode;

/// The card of one connection.
#[derive(Debug)]
pub struct Card {
    outbox: Arc<Outbox>,
    peer: SocketAddr,
    since: Instant,
    client_name: OnceLock<String>,
    publishers: AtomicU32,
    consumers: AtomicU32,
    written: AtomicU64,
}

/// A connection at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionView {
    /// Its number, unique in the process.
    pub connection: u64,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// What the client calls itself; none before HELLO.
    pub client_name: Option<String>,
    /// How long it has been there.
    pub age: Duration,
    /// Open publisher streams.
    pub publishers: u32,
    /// Open consumer streams.
    pub consumers: u32,
    /// Bytes that were written to it.
    pub written_bytes: u64,
}

impl Card {
    pub(crate) fn new(connection: u64, peer: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            outbox: Outbox::new(connection),
            peer,
            since: Instant::now(),
            client_name: OnceLock::new(),
            publishers: AtomicU32::new(0),
            consumers: AtomicU32::new(0),
            written: AtomicU64::new(0),
        })
    }

    pub(crate) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// The connection as it is now.
    pub fn view(&self) -> ConnectionView {
        ConnectionView {
            connection: self.outbox.connection(),
            peer: self.peer,
            client_name: self.client_name.get().cloned(),
            age: self.since.elapsed(),
            publishers: self.publishers.load(Ordering::Relaxed),
            consumers: self.consumers.load(Ordering::Relaxed),
            written_bytes: self.written.load(Ordering::Relaxed),
        }
    }

    pub(super) fn name(&self, client_name: String) {
        // A second HELLO is refused before it could name the client anew.
        let _ = self.client_name.set(client_name);
    }

    pub(super) fn note(&self, (publishers, consumers): (u32, u32), written: u64) {
        self.publishers.store(publishers, Ordering::Relaxed);
        self.consumers.store(consumers, Ordering::Relaxed);
        self.written.store(written, Ordering::Relaxed);
    }

    /// Writes that the connection was refused; `suppressed` others were not written before.
    pub(super) fn log_failure(&self, code: ErrorCode, text: &str, suppressed: u64) {
        tracing::warn!(
            connection = self.outbox.connection(),
            peer = %self.peer,
            client = self.client_name.get().map_or("", String::as_str),
            code = code.name(),
            text,
            suppressed,
            "a connection was refused"
        );
    }
}
