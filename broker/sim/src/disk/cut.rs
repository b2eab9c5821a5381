//! What a power cut leaves of what was not made durable.
//!
//! Owns: the fate of every dirty page and of every pending change of names, each by itself.
//! Never: asks for chance beyond the seed it was given.
//! Invariant: what can be lost has one order: pages by file and place, then changes of names.

use super::page::Fate;

/// What a power cut does to what is not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing reached the device.
    LosesAll,
    /// Everything did.
    KeepsAll,
    /// Each by itself, by this seed: lost, an earlier version, torn at sectors, or kept.
    KeepsSome(u64),
    /// Only what was written last.
    KeepsNewest,
    /// Only what was written first.
    KeepsOldest,
    /// The first page of every dirty run, and all names.
    KeepsHeads,
    /// So many of those that were written first.
    KeepsFirst(usize),
    /// Those whose bit is set; behind the last bit none.
    Keeps(u64),
}

/// Something that a power cut can take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loose {
    pub(super) what: What,
    /// When it was written.
    pub(super) stamp: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Page {
        file: u64,
        page: u64,
        /// How many past versions there are.
        versions: usize,
    },
    Name,
}

impl Cut {
    pub(super) fn fates(self, loose: &[Loose]) -> Vec<Fate> {
        let by = |keeps: &dyn Fn(usize) -> bool| {
            let fate = |number| if keeps(number) { Fate::Kept } else { Fate::Lost };
            (0..loose.len()).map(fate).collect()
        };
        let mut by_time: Vec<usize> = (0..loose.len()).collect();
        by_time.sort_by_key(|number| loose[*number].stamp);
        match self {
            Self::LosesAll => by(&|_| false),
            Self::KeepsAll => by(&|_| true),
            Self::KeepsSome(seed) => {
                let mut random = fastrand::Rng::with_seed(seed);
                loose.iter().map(|loose| loose.any_fate(&mut random)).collect()
            }
            Self::KeepsNewest => by(&|number| by_time.last() == Some(&number)),
            Self::KeepsOldest => by(&|number| by_time.first() == Some(&number)),
            Self::KeepsHeads => {
                by(&|number| number == 0 || !loose[number].is_behind(loose[number - 1]))
            }
            Self::KeepsFirst(count) => {
                by(&|number| by_time.iter().take(count).any(|first| *first == number))
            }
            Self::Keeps(bits) => by(&|number| number < 64 && bits & 1 << number != 0),
        }
    }
}

impl Loose {
    fn any_fate(self, random: &mut fastrand::Rng) -> Fate {
        let versions = match self.what {
            What::Page { versions, .. } => versions,
            What::Name => return if random.bool() { Fate::Kept } else { Fate::Lost },
        };
        match random.u8(..8) {
            0 | 1 => Fate::Lost,
            2 if versions > 0 => Fate::Past(random.usize(..versions)),
            3 | 4 => Fate::Torn(random.u8(..)),
            _ => Fate::Kept,
        }
    }

    /// Whether it is the page behind `other`.
    fn is_behind(self, other: Self) -> bool {
        match (self.what, other.what) {
            (What::Page { file, page, .. }, What::Page { file: before_in, page: before, .. }) => {
                file == before_in && page == before + 1
            }
            _ => false,
        }
    }
}
