//! How often a group beats, and how long it waits for a leader.
//!
//! Owns: the classes by the number of groups, and what follows from a class.
//! Invariant: every replica of a group has the same pace, because the metadata that all of them
//! follow decides it: a leader of a slow one would lose its place to a follower of a quick one.

use std::ops::Range;
use tokio::time::Duration;

/// Voters that wait for different lengths of time.
const TURNS: u64 = 3;

/// The pace of a group. Fixed while a replica is open: another one needs it opened anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Milliseconds between the heartbeats of a leader.
    pub heartbeat_ms: u64,
    /// Milliseconds of silence after which a follower calls an election: from here to
    /// [`Pace::lease_ms`], as its turn is, and behind the lease of the leader that fell silent.
    pub election_ms: u64,
}

impl Pace {
    /// Where an election costs little, it comes soon: 0.9 to 1.3 s behind the last beat, as the turn
    /// is of whoever calls it.
    pub const QUICK: Self = Self { heartbeat_ms: 130, election_ms: 400 };
    /// 1.3 to 2.0 s.
    pub const STEADY: Self = Self { heartbeat_ms: 200, election_ms: 600 };
    /// 2.7 to 4.0 s. The engine wakes up thirteen times in four heartbeats, for every group, also an
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

    /// The longest, in milliseconds, that a follower that heard its leader grants nobody else a vote,
    /// and that it waits behind that before it calls an election.
    pub const fn lease_ms(self) -> u64 {
        self.election_ms * 5 / 3
    }

    /// Between how many milliseconds a follower waits, chosen anew each time; the end is also its
    /// lease. `turn`: how many voters come before it; none where it was no voter when it was opened.
    /// Of three, no two call an election at once: they would split the votes, and the next try is a
    /// whole wait away. Where a broker died that led 167 of 500 groups, two of them did that by chance
    /// and waited for another 1.5 s.
    pub fn patience_ms(self, turn: Option<usize>) -> Range<u64> {
        let step = (self.lease_ms() - self.election_ms) / TURNS;
        let Some(turn) = turn else { return self.election_ms..self.lease_ms() };
        let from = self.election_ms + step * (turn as u64).min(TURNS - 1);
        from..from + step
    }

    /// A leader that no majority has answered for this long gives up its lead. The others have elected
    /// another by then as a rule; sooner, most of those who give up would be elected again.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voters_wait_in_turns_and_nobody_less_or_longer_than_the_pace_says() {
        for pace in [Pace::QUICK, Pace::STEADY, Pace::SLOW, Pace::METADATA] {
            let [first, second, third] = [0, 1, 2].map(|turn| pace.patience_ms(Some(turn)));
            assert!(first.end <= second.start && second.end <= third.start, "{pace:?}");
            assert!(first.start == pace.election_ms && third.end <= pace.lease_ms(), "{pace:?}");
            assert!([first, second, third.clone()].iter().all(|turn| turn.end - turn.start > 80));
            assert_eq!(pace.patience_ms(Some(4)), third, "of five, three share a turn");
            assert_eq!(pace.patience_ms(None), pace.election_ms..pace.lease_ms());
        }
    }
}
