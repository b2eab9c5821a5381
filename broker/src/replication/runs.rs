//! Owns: the rule that decides whether a batch stands in its turn or becomes VOID.
//! Never: sees a clock, a disk or the engine; it is a function of the log's prefix.
//! Invariant: within one run of one term only an unbroken sequence of numbers from 0 is in turn;
//! once a number is missing, nothing of that run is in turn any more. So a refused proposal can
//! never be overtaken by its successor.

use crate::planted::{Bug, is_planted};
use weir_protocol::types::Term;

/// The place that the next batch of the current run must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Runs {
    term: Term,
    run: u32,
    /// `None`: the run is over, only a later one can be in turn.
    next_number: Option<u32>,
}

impl Runs {
    /// Behind a log whose last batch has `term`: a leader of a later term starts runs of its own,
    /// and nobody continues a run of that term, because a restart always begins a new one.
    pub(super) const fn behind(term: Term) -> Self {
        Self { term, run: u32::MAX, next_number: None }
    }

    /// Takes the batch numbered (`term`, `run`, `number`) into account; `true` if it is in turn.
    pub(super) fn admit(&mut self, term: Term, run: u32, number: u32) -> bool {
        let same_run = (term, run) == (self.term, self.run);
        let later_run = (term, run) > (self.term, self.run);
        let in_turn =
            if same_run { self.next_number == Some(number) } else { later_run && number == 0 };
        let in_turn = in_turn || is_planted(Bug::GapInRunIgnored);
        if in_turn {
            *self = Self { term, run, next_number: number.checked_add(1) };
        }
        in_turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn behind_nothing() -> Runs {
        Runs::behind(Term(0))
    }

    #[test]
    fn an_unbroken_run_is_in_turn() {
        let mut runs = behind_nothing();
        assert!((0..5).all(|number| runs.admit(Term(1), 0, number)));
    }

    #[test]
    fn nothing_follows_a_gap_within_its_run() {
        let mut runs = behind_nothing();
        assert!(runs.admit(Term(1), 0, 0));
        assert!(!runs.admit(Term(1), 0, 2), "1 was refused");
        assert!(!runs.admit(Term(1), 0, 3), "a VOID batch does not move the expectation");
        assert!(runs.admit(Term(1), 1, 0), "a new run starts afresh");
        assert!(!runs.admit(Term(1), 0, 1), "an old run never comes back");
    }

    #[test]
    fn a_run_whose_first_proposal_was_refused_is_void_altogether() {
        let mut runs = behind_nothing();
        assert!(!runs.admit(Term(1), 3, 1));
        assert!(!runs.admit(Term(1), 3, 2));
    }

    #[test]
    fn a_restart_ends_every_run_of_the_terms_in_the_log() {
        let mut runs = Runs::behind(Term(4));
        assert!(!runs.admit(Term(4), 0, 0));
        assert!(!runs.admit(Term(4), u32::MAX, 0));
        assert!(runs.admit(Term(5), 0, 0));
    }

    proptest! {
        /// Whatever proposals are lost on the way, the batches in turn of each run are a prefix
        /// of what was proposed in it.
        #[test]
        fn what_is_in_turn_is_a_prefix_of_every_run(
            lost in proptest::collection::vec(any::<bool>(), 1..200),
            run_length in 1u32..20,
        ) {
            let mut runs = behind_nothing();
            let mut admitted: Vec<(u32, u32)> = Vec::new();
            for (position, lost) in lost.iter().enumerate() {
                let (run, number) = (position as u32 / run_length, position as u32 % run_length);
                if !lost && runs.admit(Term(1), run, number) {
                    admitted.push((run, number));
                }
            }
            for (run, number) in &admitted {
                let before = admitted.iter().filter(|(r, n)| r == run && n < number).count();
                prop_assert_eq!(before as u32, *number);
            }
        }
    }
}
