//! Owns: how far the followers of a leader are: which of them has what it is to be sent since it gave
//! its vote, which is so far behind that what it is sent counts as catch-up, and whether its group can
//! do without it meanwhile.
//! Never: holds anything up: the carrier does, where it is told of catch-up.
//! Invariants: how far a follower is, is known only while a stream to it stands: one that is silent is
//! not counted on. Who gave its vote in a term has flushed what it said it has, and only the leader of
//! that term changes its log.

use crate::planted::{Bug, is_planted};
use crate::replication::shared::Shared;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weir_protocol::peer::LogPlace;
use weir_protocol::types::{Index, ReplicaId, Term};

/// A follower that lacks more than this catches up; one that lacks less is sent what it needs at
/// once.
pub const CATCH_UP_BYTES: u64 = 64 << 20;

/// A group as the log of its leader tells it.
pub(super) trait Group: Send + Sync {
    /// Bytes of the log behind an index.
    fn bytes_behind(&self, index: Index) -> u64;
    /// The term of an index that the log holds.
    fn term_at(&self, index: Index) -> Option<Term>;
    /// Who votes; of two sets both must agree.
    fn voters(&self) -> Vec<BTreeSet<ReplicaId>>;
}

impl Group for Shared {
    fn bytes_behind(&self, index: Index) -> u64 {
        self.reader.bytes_behind(index)
    }

    fn term_at(&self, index: Index) -> Option<Term> {
        self.map().term_at(index)
    }

    fn voters(&self) -> Vec<BTreeSet<ReplicaId>> {
        let map = self.map();
        let membership = map.membership_before(map.last());
        membership.map(|stored| stored.membership().get_joint_config().clone()).unwrap_or_default()
    }
}

/// The followers of one replica, while it leads.
pub(super) struct Followers {
    me: ReplicaId,
    group: Arc<dyn Group>,
    /// What those have flushed to which a stream stands; at most the members of the group.
    reached: Mutex<BTreeMap<ReplicaId, Index>>,
    /// Where the logs of those end that gave this replica their vote in one term, the newest in which
    /// one did; at most the voters of that term.
    granted: Mutex<BTreeMap<ReplicaId, (Term, LogPlace)>>,
}

impl Followers {
    pub(super) fn new(me: ReplicaId, group: Arc<dyn Group>) -> Arc<Self> {
        Arc::new(Self { me, group, reached: Mutex::default(), granted: Mutex::default() })
    }

    /// A replica gave its vote in this term; its log ended here.
    pub(super) fn granted(&self, by: ReplicaId, term: Term, last: LogPlace) {
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        if granted.values().any(|(newest, _)| *newest > term) {
            return;
        }
        granted.retain(|_, (newest, _)| *newest == term);
        granted.insert(by, (term, last));
    }

    /// Whether every majority that must agree has enough of those who are near the end.
    fn has_quorum(&self) -> bool {
        let reached = self.reached().clone();
        let is_near = |voter: &&ReplicaId| {
            **voter == self.me || reached.get(voter).is_some_and(|at| !self.is_behind(*at))
        };
        let voters = self.group.voters();
        voters.iter().all(|voters| voters.iter().filter(is_near).count() > voters.len() / 2)
    }

    fn is_behind(&self, index: Index) -> bool {
        self.group.bytes_behind(index) > CATCH_UP_BYTES
    }

    fn reached(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Index>> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them, while a stream to it stands.
pub(super) struct Follower {
    pub(super) all: Arc<Followers>,
    pub(super) replica: ReplicaId,
}

impl Follower {
    /// It has flushed all up to here.
    pub(super) fn flushed(&self, index: Index) {
        self.all.reached().insert(self.replica, index);
    }

    /// Whether it is known to have flushed the log of the leader of this term up to `end`: its log
    /// ended there or later when it gave its vote, and at a place of the leader's own log. Two logs
    /// that have one place in common are the same before it (Raft, Log Matching).
    pub(super) fn has(&self, term: Term, end: LogPlace) -> bool {
        let granted = self.all.granted.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((given_in, last)) = granted.get(&self.replica).copied() else { return false };
        let reaches = end.index <= last.index || is_planted(Bug::VoterTakenForWhole);
        given_in == term && reaches && self.all.group.term_at(last.index) == Some(last.term)
    }

    /// Whether what it is sent behind `index` is catch-up, and then whether its group waits for it.
    pub(super) fn catches_up(&self, index: Index) -> Option<bool> {
        self.all.is_behind(index).then(|| !self.all.has_quorum())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.all.reached().remove(&self.replica);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A log of which every index takes 1 MiB, and replicas that vote in it.
    pub(in crate::replication::network) struct Played {
        pub(in crate::replication::network) last: u64,
        pub(in crate::replication::network) voters: Vec<BTreeSet<ReplicaId>>,
    }

    impl Group for Played {
        fn bytes_behind(&self, index: Index) -> u64 {
            (self.last - index.0) << 20
        }

        fn term_at(&self, index: Index) -> Option<Term> {
            (index.0 <= self.last).then_some(Term(1))
        }

        fn voters(&self) -> Vec<BTreeSet<ReplicaId>> {
            self.voters.clone()
        }
    }

    pub(in crate::replication::network) fn followers(
        last: u64,
        voters: &[&[u64]],
    ) -> Arc<Followers> {
        let set = |ids: &&[u64]| ids.iter().copied().map(ReplicaId).collect();
        let voters = voters.iter().map(set).collect();
        Followers::new(ReplicaId(1), Arc::new(Played { last, voters }))
    }

    fn one(all: &Arc<Followers>, replica: u64) -> Follower {
        Follower { all: all.clone(), replica: ReplicaId(replica) }
    }

    #[test]
    fn who_lacks_little_does_not_catch_up() {
        let all = followers(100, &[&[1, 2, 3]]);
        assert_eq!(one(&all, 3).catches_up(Index(36)), None);
        assert_eq!(one(&all, 3).catches_up(Index(35)), Some(true));
    }

    #[test]
    fn a_group_waits_for_a_follower_only_while_too_few_others_are_near() {
        let all = followers(100, &[&[1, 2, 3]]);
        let (near, far) = (one(&all, 2), one(&all, 3));
        far.flushed(Index(1));
        near.flushed(Index(30));
        assert_eq!(far.catches_up(Index(1)), Some(true), "the other is far behind as well");
        near.flushed(Index(90));
        assert_eq!(far.catches_up(Index(1)), Some(false));
        drop(near);
        assert_eq!(far.catches_up(Index(1)), Some(true), "nothing is known of the other any more");
    }

    #[test]
    fn while_voters_change_both_majorities_count() {
        let all = followers(100, &[&[1, 2, 3], &[1, 4, 5]]);
        let (two, far) = (one(&all, 2), one(&all, 5));
        two.flushed(Index(100));
        assert_eq!(far.catches_up(Index(1)), Some(true));
        let four = one(&all, 4);
        four.flushed(Index(100));
        assert_eq!(far.catches_up(Index(1)), Some(false));
    }
    #[test]
    fn who_gave_its_vote_has_what_its_log_held_and_no_more() {
        let all = followers(100, &[&[1, 2, 3]]);
        let place = |term, index| LogPlace { term: Term(term), index: Index(index) };
        let two = one(&all, 2);
        assert!(!two.has(Term(5), place(1, 10)), "it was not asked");
        all.granted(ReplicaId(2), Term(5), place(1, 90));
        assert!(two.has(Term(5), place(1, 90)) && two.has(Term(5), place(1, 1)));
        assert!(!two.has(Term(5), place(1, 91)));
        assert!(!two.has(Term(6), place(1, 90)), "others may have led since");
        assert!(!one(&all, 3).has(Term(5), place(1, 1)));
        all.granted(ReplicaId(3), Term(6), place(1, 80));
        all.granted(ReplicaId(2), Term(5), place(1, 90));
        assert!(!two.has(Term(5), place(1, 1)), "what is of an older term is forgotten");
        assert!(one(&all, 3).has(Term(6), place(1, 80)));
        for elsewhere in [place(2, 90), place(1, 101), place(0, 0)] {
            all.granted(ReplicaId(2), Term(6), elsewhere);
            let known = two.has(Term(6), place(1, 1));
            assert!(!known, "{elsewhere:?} is not in the leader's log, or says nothing");
        }
    }
}
