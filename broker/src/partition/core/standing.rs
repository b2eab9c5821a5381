//! Where the leader of the partition is, as far as this replica knows.
//!
//! Owns: that one fact, and how long it is waited for while nobody leads.
//! Never: refuses anything; it says whether there is anything to wait for.
//! Invariants: whoever waits for a leader waits for at most [`LEADER_PATIENCE`] since there was one;
//! a replica that nobody could replace is waited for until it leads.

use super::Seen;
use crate::partition::limits::LEADER_PATIENCE;
use crate::replication::Role;
use tokio::time::Instant;
use weir_protocol::types::{BrokerId, Term};

/// Who leads instead, for whoever is sent away; none = nobody knows.
pub(in crate::partition) type Hint = Option<(BrokerId, Term)>;

/// Where the leader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::partition) enum Leader {
    /// This replica is the leader.
    Here,
    /// Another replica leads, or nobody has for too long.
    Elsewhere(Hint),
    /// Nobody is known to lead; until then that is waited for. None: only this replica can.
    Awaited(Option<Instant>),
}

impl Leader {
    /// What a partition knows that has just been opened.
    pub(super) fn unknown() -> Self {
        Self::Awaited(None)
    }

    /// Whether what only a leader does is refused here.
    pub(in crate::partition) fn is_elsewhere(self) -> bool {
        matches!(self, Self::Elsewhere(_))
    }

    /// Whether a leader is waited for.
    pub(in crate::partition) fn is_awaited(self) -> bool {
        matches!(self, Self::Awaited(_))
    }

    /// When what waits for a leader has waited for long enough.
    pub(super) fn awaited_until(self) -> Option<Instant> {
        match self {
            Self::Awaited(until) => until,
            Self::Here | Self::Elsewhere(_) => None,
        }
    }

    /// What follows from what the replica shows.
    pub(super) fn seen(self, seen: &Seen, now: Instant) -> Self {
        match (&seen.role, seen.leader) {
            _ if seen.leading.is_some() => Self::Here,
            // Nobody else can lead: what is committed is served here until it is opened again.
            (Role::Fenced(_), _) if seen.sole_voter => Self::Here,
            (Role::Fenced(_), _) => Self::Elsewhere(None),
            (Role::Follower { .. }, Some(leader)) => Self::Elsewhere(leader),
            _ if seen.sole_voter => Self::Awaited(None),
            // Who is elected now is not heard of here.
            _ if seen.severed => Self::Elsewhere(None),
            _ => match self {
                // Nobody has led for too long already: that goes on.
                Self::Elsewhere(None) | Self::Awaited(Some(_)) => self,
                Self::Here | Self::Elsewhere(Some(_)) | Self::Awaited(None) => {
                    Self::Awaited(Some(now + LEADER_PATIENCE))
                }
            },
        }
    }

    /// What follows from the time.
    pub(super) fn after(self, now: Instant) -> Self {
        match self {
            Self::Awaited(Some(until)) if until <= now => Self::Elsewhere(None),
            Self::Here | Self::Elsewhere(_) | Self::Awaited(_) => self,
        }
    }
}
