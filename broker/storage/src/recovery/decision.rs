//! What the bytes mean at which reading a segment stopped.
//!
//! Owns: the decision table. Never: I/O.
//! Invariant: what is flushed is never taken for the end of a log.

use crate::planted::{Bug, is_planted};

/// What was seen at the first position whose batch cannot be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stop {
    /// The position.
    pub(crate) position: u64,
    /// Where a later segment, or a SEAL, says that this one ends.
    pub(crate) ends_at: Option<u64>,
    /// Everything below was flushed, as any valid header of the segment testifies.
    pub(crate) flushed: u64,
    /// The checksums are right, but the batch does not belong here.
    pub(crate) out_of_place: bool,
    /// The file is shorter than it was made.
    pub(crate) shortened: bool,
    /// The device could not read some of what was looked at: no torn write leaves that.
    pub(crate) unreadable: bool,
    /// It is known what stands behind what was lost: a whole batch, or the watermark of the log.
    pub(crate) resumes: bool,
    /// What lies behind the position.
    pub(crate) rest: Rest,
}

/// What lies behind a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Nothing but zeros.
    Zeros,
    /// Bytes of the file's earlier life, and no header of this one.
    Stale,
    /// Something of this life.
    Written,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The segment ends here.
    End,
    /// What lies behind was never acknowledged: a fresh segment cuts it off.
    Torn,
    /// Flushed batches are lost, up to the next whole one or to the end that is known.
    Damaged,
    /// Flushed batches are lost, and nothing tells how many.
    DamagedTail,
}

/// Decides.
pub(crate) fn decide(stop: &Stop) -> Decision {
    if stop.ends_at == Some(stop.position) {
        return Decision::End;
    }
    let damaged = stop.ends_at.is_some()
        || (stop.position < stop.flushed && !is_planted(Bug::DamageTakenForTorn))
        || stop.out_of_place
        || stop.shortened
        || stop.unreadable;
    match (damaged, stop.rest) {
        (true, _) if stop.resumes || stop.ends_at.is_some() => Decision::Damaged,
        (true, _) => Decision::DamagedTail,
        (false, Rest::Zeros | Rest::Stale) => Decision::End,
        _ if is_planted(Bug::TornTakenForEnd) => Decision::End,
        (false, Rest::Written) => Decision::Torn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLEAN: Stop = Stop {
        position: 5000,
        ends_at: None,
        flushed: 5000,
        out_of_place: false,
        shortened: false,
        unreadable: false,
        resumes: false,
        rest: Rest::Zeros,
    };

    #[test]
    fn every_row_of_the_table() {
        let rows = [
            (CLEAN, Decision::End, "zeros behind"),
            (Stop { rest: Rest::Stale, ..CLEAN }, Decision::End, "an earlier life behind"),
            (Stop { rest: Rest::Written, ..CLEAN }, Decision::Torn, "a torn tail"),
            (
                Stop { rest: Rest::Written, resumes: true, ..CLEAN },
                Decision::Torn,
                "an unflushed window that reached the disk out of order",
            ),
            (
                Stop { flushed: 5001, resumes: true, ..CLEAN },
                Decision::Damaged,
                "below what was flushed",
            ),
            (Stop { flushed: 5001, ..CLEAN }, Decision::DamagedTail, "and nothing behind it"),
            (
                Stop { out_of_place: true, resumes: true, ..CLEAN },
                Decision::Damaged,
                "misplaced, stale or lost writes",
            ),
            (
                Stop { out_of_place: true, rest: Rest::Written, ..CLEAN },
                Decision::DamagedTail,
                "a misplaced batch at the end",
            ),
            (Stop { shortened: true, ..CLEAN }, Decision::DamagedTail, "a shortened file"),
            (
                Stop { unreadable: true, rest: Rest::Written, ..CLEAN },
                Decision::DamagedTail,
                "what cannot be read at the end",
            ),
            (Stop { ends_at: Some(5000), ..CLEAN }, Decision::End, "the cut of a successor"),
            (
                Stop { ends_at: Some(9000), ..CLEAN },
                Decision::Damaged,
                "below the cut of a successor",
            ),
        ];
        for (stop, decision, row) in rows {
            assert_eq!(decide(&stop), decision, "{row}");
        }
    }

    proptest! {
        /// Whatever is seen, nothing that was flushed is given up.
        #[test]
        fn what_is_flushed_is_never_an_end(
            position in 0u64..100, ends_at in proptest::option::of(0u64..100), flushed in 0u64..100,
            bits in 0u8..16, rest in 0u8..3,
        ) {
            let stop = Stop {
                position,
                ends_at: ends_at.map(|end| end.max(position)),
                flushed,
                out_of_place: bits & 1 != 0,
                shortened: bits & 2 != 0,
                resumes: bits & 4 != 0,
                unreadable: bits & 8 != 0,
                rest: [Rest::Zeros, Rest::Stale, Rest::Written][rest as usize],
            };
            let cut_here = stop.ends_at == Some(position);
            if !cut_here && (position < flushed || stop.ends_at.is_some()) {
                prop_assert!(matches!(decide(&stop), Decision::Damaged | Decision::DamagedTail));
            }
        }
    }
}
