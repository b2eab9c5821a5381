//! Owns: the words for how a client stands with its brokers.

use crate::error::Reason;
use std::fmt;
use tokio::time::Instant;

/// How a client stands with its brokers; see [`Client::status`](crate::Client::status).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Status {
    /// Connected to at least one broker, and nothing waits for credit.
    Connected,
    /// Connected to no broker; the client tries again by itself.
    Reconnecting {
        /// Attempts since the connection was lost, from 0.
        attempt: u32,
        /// Why there is no connection.
        cause: String,
    },
    /// Connected, but messages wait because the broker grants no credit.
    Blocked {
        /// Why, as the broker says.
        reason: Reason,
        /// Since when.
        since: Instant,
    },
    /// Every broker it is connected to shuts down: what is in flight is finished, then the client
    /// connects to another.
    Draining,
    /// The client was closed.
    Closed,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::Reconnecting { attempt, cause } => {
                write!(f, "reconnecting (attempt {attempt}): {cause}")
            }
            Self::Blocked { reason, since } => {
                write!(f, "blocked by {reason} for {:.1?}", since.elapsed())
            }
            Self::Draining => f.write_str("the broker is draining"),
            Self::Closed => f.write_str("closed"),
        }
    }
}
