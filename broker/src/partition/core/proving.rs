//! Whether this replica still leads, as a majority says it does.
//!
//! Owns: the rounds of asking, one at a time, and what the newest one that succeeded proves.
//! Never: believes what was known before it asked: a process that stood still, or was cut off, cannot
//! tell by itself that it was replaced, and the leader that took its place has committed since.
//! Invariant: what a round proves it proves to those who came before it began, and to nobody else.

use weir_protocol::types::Index;

/// A round of asking; they count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Round(u64);

/// What is known, and what is being asked.
#[derive(Debug, Default)]
pub(super) struct Proving {
    /// The newest round that began.
    begun: Round,
    is_under_way: bool,
    /// The newest round that a majority has answered, and how far the state must be for that.
    proven: Option<(Round, Index)>,
    /// The last round failed. Until something moves or time has passed, another would fail as well.
    rests: bool,
}

impl Proving {
    /// The round that proves something to whoever comes now.
    pub(super) fn next(&self) -> Round {
        Round(self.begun.0 + 1)
    }

    /// Whether a majority has answered this round or a later one.
    pub(super) fn is_answered(&self, round: Round) -> bool {
        self.proven.is_some_and(|(proven, _)| round <= proven)
    }

    /// Whether everything that was committed before the round is in a state that stands at `applied`.
    pub(super) fn has_proven(&self, round: Round, applied: Index) -> bool {
        self.proven.is_some_and(|(proven, index)| round <= proven && index <= applied)
    }

    /// Begins the next round, if that is the time.
    pub(super) fn begin(&mut self) -> bool {
        let begins = !self.is_under_way && !self.rests;
        if begins {
            (self.begun, self.is_under_way) = (self.next(), true);
        }
        begins
    }

    /// The round is over. Some: it was led here, and this index holds all that was committed before.
    pub(super) fn ended(&mut self, proof: Option<Index>) {
        self.is_under_way = false;
        self.rests = proof.is_none();
        self.proven = proof.map(|index| (self.begun, index)).or(self.proven);
    }

    /// Something moved, or time has passed.
    pub(super) fn rested(&mut self) {
        self.rests = false;
    }
}
