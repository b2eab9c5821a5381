//! Owns: what a caller chooses: limits, policies, endpoints, and the defaults.
//! Never: a number that the protocol fixes.
//! Invariant: every bound is finite: windows, deadlines and delays.

use crate::error::{Error, Result};
use crate::seams::{Connector, OsWallClock, TcpConnector, WallClock};
use std::sync::Arc;
use std::time::Duration;
use weir_protocol::limits::PORT_NATIVE;

/// Default window of a publisher.
pub const WINDOW_DEFAULT: Limits = Limits { messages: 16_384, bytes: 32 << 20 };
/// Default credit of a consumer.
pub const CREDIT_DEFAULT: Limits = Limits { messages: 65_536, bytes: 8 << 20 };
/// Default deadline of a message: waiting for the window, retries and the answer together.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);
/// Longer deadlines are cut to this.
pub(crate) const DEADLINE_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Default linger: it applies only while something is in flight.
pub const LINGER_DEFAULT: Duration = Duration::from_millis(1);
/// Longer lingers are cut to this.
pub(crate) const LINGER_MAX: Duration = Duration::from_secs(1);
/// Default time for the first connection.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// Default time for a request: topic administration, opening publishers and consumers.
pub const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Most endpoints of one client.
pub(crate) const ENDPOINTS_MAX: usize = 64;

/// Bounds by count and by bytes; both hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Messages.
    pub messages: usize,
    /// Bytes of key, headers and payload.
    pub bytes: usize,
}

impl Limits {
    /// Keeps both within what the window can count, and at least one.
    pub(crate) fn clamped(self) -> Self {
        let cap = u32::MAX as usize;
        Self { messages: self.messages.clamp(1, cap), bytes: self.bytes.clamp(1, cap) }
    }
}

/// What a publisher does when its window is full or the broker grants nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFull {
    /// `publish`, `send` and `reserve` wait, until the deadline.
    #[default]
    Wait,
    /// They fail at once, with the reason and a hint when to try again.
    Fail,
}

/// Where a consumer starts. A durable subscription that exists starts at its cursor instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// At the oldest record.
    #[default]
    Earliest,
    /// Behind the newest record.
    Latest,
    /// At this offset, in every partition that is read.
    Offset(u64),
    /// At the first record stored at or after this time, milliseconds since the epoch.
    Time(u64),
}

/// One `weir://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Endpoint {
    /// Parses `weir://HOST:PORT`; the port may be left out, IPv6 addresses stand in brackets.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::invalid(format!("endpoint {text:?}: {why}; write weir://HOST:{PORT_NATIVE}"))
        };
        let place = text.strip_prefix("weir://").ok_or_else(|| bad("it starts with weir://"))?;
        let place = place.strip_suffix('/').unwrap_or(place);
        let (host, port) = match place.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or_else(|| bad("a ] is missing"))?;
                (host, rest.strip_prefix(':').or(rest.is_empty().then_some("")))
            }
            None => match place.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (place, Some("")),
            },
        };
        let port = match port {
            None => return Err(bad("only :PORT may follow the ]")),
            Some("") if !place.ends_with(':') => PORT_NATIVE,
            Some(port) => match port.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(bad("the port is not a number from 1 to 65535")),
            },
        };
        if host.is_empty() || host.contains(['/', '@', '?', '#', ' ']) {
            return Err(bad("the host is not a name or an address"));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "weir://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "weir://{}:{}", self.host, self.port)
        }
    }
}

/// What a client was built with.
pub(crate) struct ClientConfig {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) name: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) seed: Option<u64>,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) wall: Arc<dyn WallClock>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            name: String::new(),
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            request_timeout: REQUEST_TIMEOUT_DEFAULT,
            seed: None,
            connector: Arc::new(TcpConnector),
            wall: Arc::new(OsWallClock),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_bad_ones_say_what_is_wrong() {
        let read = |text: &str| Endpoint::parse(text).map(|e| (e.host, e.port));
        assert_eq!(read("weir://127.0.0.1:7420").unwrap(), ("127.0.0.1".to_owned(), 7420));
        assert_eq!(read("weir://broker.local/").unwrap(), ("broker.local".to_owned(), 7420));
        assert_eq!(read("weir://[::1]:9").unwrap(), ("::1".to_owned(), 9));
        assert_eq!(read("weir://[::1]").unwrap(), ("::1".to_owned(), 7420));
        assert_eq!(Endpoint::parse("weir://[::1]:9").unwrap().to_string(), "weir://[::1]:9");
        for (text, why) in [
            ("127.0.0.1:7420", "starts with weir://"),
            ("weir://", "host"),
            ("weir://:7420", "host"),
            ("weir://a:", "port"),
            ("weir://a:0", "port"),
            ("weir://a:70000", "port"),
            ("weir://[::1", "]"),
            ("weir://[::1]x", "]"),
            ("weir://user@a:1", "host"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.to_string().contains(why), "{text}: {error}");
            assert_eq!(error.kind(), crate::ErrorKind::InvalidInput);
        }
    }
}
