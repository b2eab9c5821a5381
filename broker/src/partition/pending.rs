//! Answers that wait for their batch to appear in the log.
//!
//! Owns: what was proposed and is neither committed nor lost, in the order of the log.
//! Never: answers; it gives back what waited.
//! Invariant: places only rise, and they are found in the order in which they were taken in.

use std::collections::VecDeque;
use weir_protocol::types::Term;

/// The place of a batch among all that one leader ever proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) term: Term,
    pub(super) run: u32,
    pub(super) number: u32,
}

/// What waits, by place.
#[derive(Debug)]
pub(super) struct Pending<T> {
    queue: VecDeque<(Place, T)>,
}

impl<T> Pending<T> {
    pub(super) fn new() -> Self {
        Self { queue: VecDeque::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// `waiting` waits for the batch at `place`, which lies behind all others.
    pub(super) fn push(&mut self, place: Place, waiting: T) {
        let behind = self.queue.back().is_none_or(|(last, _)| *last < place);
        assert!(behind, "proposals leave in the order of their places");
        self.queue.push_back((place, waiting));
    }

    /// The next that waited for a place before `place`: the log has passed it by, so its batch
    /// will never be in it.
    pub(super) fn pop_before(&mut self, place: Place) -> Option<T> {
        self.pop_if(|front| front < place)
    }

    /// What waited for the batch at `place`, if it was proposed here. Take what lies before it
    /// first.
    pub(super) fn pop_at(&mut self, place: Place) -> Option<T> {
        let front = self.queue.front().map(|(front, _)| *front);
        assert!(front.is_none_or(|front| front >= place), "what lies before is taken first");
        self.pop_if(|front| front == place)
    }

    /// The last, if it waits for `place` or one behind it.
    pub(super) fn pop_back_from(&mut self, place: Place) -> Option<T> {
        let (last, _) = self.queue.back()?;
        if *last < place { None } else { self.queue.pop_back().map(|(_, waiting)| waiting) }
    }

    /// Whatever still waits, in order.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.queue.drain(..).map(|(_, waiting)| waiting)
    }

    fn pop_if(&mut self, wanted: impl FnOnce(Place) -> bool) -> Option<T> {
        let (front, _) = self.queue.front()?;
        if wanted(*front) { self.queue.pop_front().map(|(_, waiting)| waiting) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(run: u32, number: u32) -> Place {
        Place { term: Term(3), run, number }
    }

    #[test]
    fn answers_are_found_in_order_and_only_at_their_place() {
        let mut pending = Pending::new();
        pending.push(place(0, 0), 'a');
        pending.push(place(0, 1), 'b');
        pending.push(place(1, 0), 'c');
        assert_eq!(pending.pop_before(place(0, 0)), None);
        assert_eq!(pending.pop_at(place(0, 0)), Some('a'));
        assert_eq!(pending.pop_before(place(1, 0)), Some('b'), "the log passed it by");
        assert_eq!(pending.pop_at(place(1, 0)), Some('c'));
        assert_eq!(pending.pop_at(place(1, 1)), None, "proposed elsewhere");
        assert!(pending.is_empty());
    }

    #[test]
    #[should_panic(expected = "in the order of their places")]
    fn a_place_that_does_not_rise_is_a_bug() {
        let mut pending = Pending::new();
        pending.push(place(1, 0), ());
        pending.push(place(0, 9), ());
    }

    #[test]
    #[should_panic(expected = "taken first")]
    fn answering_past_one_that_waits_is_a_bug() {
        let mut pending = Pending::new();
        pending.push(place(0, 0), ());
        pending.pop_at(place(0, 1));
    }

    proptest! {
        /// Whatever part of a run the log shows, everything proposed is given back exactly once,
        /// in order, either found or passed by or left to drain.
        #[test]
        fn everything_is_given_back_once_and_in_order(
            shown in proptest::collection::vec(any::<bool>(), 0..60),
        ) {
            let mut pending = Pending::new();
            for number in 0..shown.len() as u32 {
                pending.push(place(0, number), number);
            }
            let mut given = Vec::new();
            for (number, _) in shown.iter().enumerate().filter(|(_, shown)| **shown) {
                let at = place(0, number as u32);
                while let Some(lost) = pending.pop_before(at) {
                    prop_assert!(!shown[lost as usize]);
                    given.push(lost);
                }
                let found = pending.pop_at(at);
                prop_assert_eq!(found, Some(number as u32));
                given.extend(found);
            }
            given.extend(pending.drain());
            prop_assert!(given.iter().copied().eq(0..shown.len() as u32));
        }
    }
}
