//! Whom to ask next for what is missing.
//!
//! Owns: the order, and when it is over. Never: asks; judges an answer.
//! Invariant: it ends: everybody is asked once more only when something was brought meanwhile.

use crate::replication::PeerLost;
use weir_protocol::peer::limits::APPEND_BYTES_TARGET;
use weir_protocol::peer::{Fetch, GroupAddress, PeerRefusal};
use weir_protocol::types::{BrokerId, Index, ReplicaId, RequestId};

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// Some of it continues the log.
    Progress,
    /// The replica does not have it, or something else in its place.
    Nothing,
    /// It could not be asked, or cannot tell yet.
    Away,
}

impl From<PeerRefusal> for Told {
    fn from(refusal: PeerRefusal) -> Self {
        match refusal {
            PeerRefusal::Damaged | PeerRefusal::UnknownReplica | PeerRefusal::Malformed => {
                Self::Nothing
            }
            _ => Self::Away,
        }
    }
}

impl From<PeerLost> for Told {
    fn from(lost: PeerLost) -> Self {
        match lost {
            PeerLost::Refused(refusal) => Self::from(refusal),
            PeerLost::Unreachable | PeerLost::Broken => Self::Away,
        }
    }
}

/// The search for one hole's batches.
pub(super) struct Search<'a> {
    replica: ReplicaId,
    others: &'a [(ReplicaId, BrokerId)],
    /// Who is asked.
    at: usize,
    /// Who was asked in vain since something was brought.
    in_vain: usize,
    /// One of them could not be asked.
    away: bool,
}

impl<'a> Search<'a> {
    /// Begins with the other at `first`.
    pub(super) fn new(
        replica: ReplicaId,
        others: &'a [(ReplicaId, BrokerId)],
        first: usize,
    ) -> Self {
        Self { replica, others, at: first, in_vain: 0, away: false }
    }

    /// The next question, for what is missing from `first` to `last`; none when it is over.
    pub(super) fn ask(&self, first: Index, last: Index) -> Option<(BrokerId, Fetch)> {
        if self.in_vain >= self.others.len() || first > last {
            return None;
        }
        let (to, broker) = self.others[self.at % self.others.len()];
        let address = GroupAddress { to, from: self.replica };
        let bytes_max = APPEND_BYTES_TARGET as u32;
        Some((broker, Fetch { request: RequestId(0), address, first, last, bytes_max }))
    }

    /// Takes the answer to the question.
    pub(super) fn told(&mut self, told: Told) {
        match told {
            Told::Progress => (self.in_vain, self.away) = (0, false),
            Told::Nothing | Told::Away => {
                self.away |= told == Told::Away;
                self.in_vain += 1;
                self.at += 1;
            }
        }
    }

    /// Whether somebody who may have what is missing could not be asked.
    pub(super) fn is_somebody_away(&self) -> bool {
        self.away
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHERS: [(ReplicaId, BrokerId); 2] =
        [(ReplicaId(7), BrokerId(2)), (ReplicaId(9), BrokerId(3))];

    fn asked(search: &Search<'_>) -> Option<(u64, u64)> {
        let (broker, fetch) = search.ask(Index(5), Index(8))?;
        assert_eq!((fetch.first, fetch.last), (Index(5), Index(8)));
        assert_eq!(fetch.address.from, ReplicaId(4));
        Some((broker.0, fetch.address.to.0))
    }

    #[test]
    fn everybody_is_asked_once_more_after_each_progress_and_then_it_is_over() {
        let mut search = Search::new(ReplicaId(4), &OTHERS, 1);
        assert_eq!(asked(&search), Some((3, 9)));
        search.told(Told::Away);
        assert_eq!(asked(&search), Some((2, 7)));
        search.told(Told::Progress);
        assert_eq!(asked(&search), Some((2, 7)), "who has it goes on");
        assert!(!search.is_somebody_away(), "others were asked in vain for something else");
        search.told(Told::Nothing);
        assert_eq!(asked(&search), Some((3, 9)));
        search.told(Told::Away);
        assert_eq!(asked(&search), None);
        assert!(search.is_somebody_away());
    }

    #[test]
    fn nothing_is_asked_where_nothing_is_missing_or_nobody_is_there() {
        let search = Search::new(ReplicaId(4), &OTHERS, 0);
        assert_eq!(search.ask(Index(9), Index(8)), None);
        assert_eq!(Search::new(ReplicaId(4), &[], 0).ask(Index(1), Index(8)), None);
    }

    #[test]
    fn who_is_damaged_has_nothing_and_who_opens_may_have_it_later() {
        for refusal in PeerRefusal::ALL {
            let nothing = ["damaged", "unknown_replica", "malformed"].contains(&refusal.name());
            let told = if nothing { Told::Nothing } else { Told::Away };
            assert_eq!(Told::from(*refusal), told, "{}", refusal.name());
        }
    }
}
