//! The frames of a connection between two brokers: handshake, heartbeat, leaving.

use super::{Nonce, PeerRefusal};
use crate::types::{BrokerId, Name};

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// It dialed, and asks.
    Dialer,
    /// It accepted, and answers.
    Acceptor,
}

/// What a connection carries. Each broker that asks another dials two: bulk never delays control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Lane {
    /// Beats, votes, transfers, news, metadata.
    Control = 0,
    /// Appends, snapshots, repair.
    Bulk = 1,
}

impl Lane {
    /// The lane of this number, if it is one.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Control),
            1 => Some(Self::Bulk),
            _ => None,
        }
    }
}

/// Who a broker says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Identity of its cluster; 0 = it belongs to none yet.
    pub cluster: u128,
    /// Its identity within the cluster; 0 = it has none yet.
    pub broker: BrokerId,
    /// Made up anew by each process: tells a broker that it has met itself.
    pub instance: u64,
    /// Shown in logs and lists.
    pub name: Name,
}

/// First frame of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version the dialer speaks.
    pub version_min: u16,
    /// Newest version the dialer speaks.
    pub version_max: u16,
    /// Feature bits that the dialer understands.
    pub features: u64,
    /// What the connection is for.
    pub lane: Lane,
    /// Used once.
    pub nonce: Nonce,
    /// Who dials.
    pub node: Node,
}

/// The answer to HELLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The version that this connection speaks.
    pub version: u16,
    /// Feature bits that both understand.
    pub features: u64,
    /// Whether the acceptor has a secret.
    pub secret: bool,
    /// Used once.
    pub nonce: Nonce,
    /// Who answers.
    pub node: Node,
}

/// No new work on this connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerGoAway {
    /// Why.
    pub refusal: PeerRefusal,
    /// The connection is closed by then; 0 = now.
    pub deadline_ms: u32,
    /// For people.
    pub text: String,
}
