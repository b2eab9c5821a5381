//! How often a group beats, and how long it waits for a leader.
//!
//! Owns: the classes by the number of groups.
//! Invariant: every replica of a group has the same pace, because the metadata that all of them
//! follow decides it: a leader of a slow one would lose its place to a follower of a quick one.

/// The pace of a group. Fixed while a replica is open: another one needs it opened anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Milliseconds between the heartbeats of a leader.
    pub heartbeat_ms: u64,
    /// Milliseconds of silence after which a follower calls an election: from here to this and
    /// two thirds more.
    pub election_ms: u64,
}

impl Pace {
    /// Where an election costs little, it comes soon: 1.0 to 1.3 s from the end of a leader to the
    /// next one's first batch, measured in simulation. Also the pace of the metadata.
    pub const QUICK: Self = Self { heartbeat_ms: 130, election_ms: 400 };
    /// 1.5 to 2.0 s.
    pub const STEADY: Self = Self { heartbeat_ms: 200, election_ms: 600 };
    /// The engine wakes up thirteen times in four heartbeats, for every group, also an idle one.
    pub const SLOW: Self = Self { heartbeat_ms: 500, election_ms: 1_500 };

    /// The pace in a cluster of so many partitions.
    pub fn of(partitions: usize) -> Self {
        match partitions {
            0..=100 => Self::QUICK,
            101..=300 => Self::STEADY,
            _ => Self::SLOW,
        }
    }
}
