//! How often a group beats, and how long it waits for a leader.
//!
//! Owns: the classes by the number of groups, and what follows from a class.
//! Invariant: every replica of a group has the same pace, because the metadata that all of them
//! follow decides it: a leader of a slow one would lose its place to a follower of a quick one.

use tokio::time::Duration;

/// The pace of a group. Fixed while a replica is open: another one needs it opened anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Milliseconds between the heartbeats of a leader.
    pub heartbeat_ms: u64,
    /// Milliseconds of silence after which a follower calls an election: from here to
    /// [`Pace::lease_ms`], behind the lease of the leader that fell silent.
    pub election_ms: u64,
}

impl Pace {
    /// Where an election costs little, it comes soon: 1.0 to 1.3 s from the end of a leader to the
    /// next one's first batch, measured in simulation.
    pub const QUICK: Self = Self { heartbeat_ms: 130, election_ms: 400 };
    /// 1.5 to 2.0 s.
    pub const STEADY: Self = Self { heartbeat_ms: 200, election_ms: 600 };
    /// 3.0 to 4.0 s. The engine wakes up thirteen times in four heartbeats, for every group, also an
    /// idle one.
    pub const SLOW: Self = Self { heartbeat_ms: 500, election_ms: 1_200 };
    /// Of the metadata: one group, which every change of the cluster waits for.
    pub const METADATA: Self = Self { heartbeat_ms: 100, election_ms: 500 };

    /// The pace in a cluster of so many partitions.
    pub fn of(partitions: usize) -> Self {
        match partitions {
            0..=100 => Self::QUICK,
            101..=300 => Self::STEADY,
            _ => Self::SLOW,
        }
    }

    /// Milliseconds for which a follower that heard its leader grants nobody else a vote; also the
    /// longest that a follower waits behind that before it calls an election.
    pub const fn lease_ms(self) -> u64 {
        self.election_ms * 5 / 3
    }

    /// A leader that no majority has answered for this long gives up its lead. The others can have
    /// elected another by then and not before, so that giving up sooner would help nobody.
    pub const fn silence_max(self) -> Duration {
        Duration::from_millis(self.lease_ms() + self.election_ms)
    }

    /// A beat that was lost, and a look of the engine at its clock, cost no leader its place.
    const fn is_sound(self) -> bool {
        let tick_ms = self.heartbeat_ms * 13 / 64;
        self.heartbeat_ms * 2 + tick_ms < self.election_ms
    }
}

const _: () = assert!(
    Pace::QUICK.is_sound()
        && Pace::STEADY.is_sound()
        && Pace::SLOW.is_sound()
        && Pace::METADATA.is_sound()
);
/// Publishers of a leader that is cut off are sent elsewhere within two seconds.
const _: () = assert!(
    Pace::QUICK.silence_max().as_millis() < 2_000
        && Pace::STEADY.silence_max().as_millis() < 2_000
        && Pace::METADATA.silence_max().as_millis() < 2_000
);
