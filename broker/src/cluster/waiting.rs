//! What a broker waits for on its way into a cluster, for whoever asks meanwhile.
//!
//! Owns: the last word of each seed, and what keeps the formation from going on.
//! Never: decides anything by it.

use tokio::time::Instant;
use weir_protocol::peer::{MemberState, PeerRefusal, Probed};

/// Why a seed said nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// It was not asked yet, or is this broker.
    NotAsked,
    /// Nobody answers there.
    Unreachable,
    /// Whoever answers there wants nothing to do with this broker.
    Refused(PeerRefusal),
}

/// One seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedSeen {
    /// Where it is, `HOST:PORT`.
    pub address: String,
    /// Whether it is this broker.
    pub is_here: bool,
    /// What it says it is, and to which cluster it belongs (0 = to none).
    pub said: Result<(MemberState, u128), Silence>,
    /// When it was asked last.
    pub asked: Option<Instant>,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Whether this broker belongs to a cluster already, and only opens what it holds.
    pub is_member: bool,
    /// Why it does not go on by itself, in a sentence.
    pub concern: Option<String>,
    /// The seeds, in their order.
    pub seeds: Vec<SeedSeen>,
}

impl Waiting {
    pub(super) fn new<'a>(seeds: impl Iterator<Item = (&'a str, bool)>) -> Self {
        let seen = |(address, is_here): (&str, bool)| SeedSeen {
            address: address.to_owned(),
            is_here,
            said: Err(Silence::NotAsked),
            asked: None,
        };
        Self { seeds: seeds.map(seen).collect(), ..Self::default() }
    }

    /// A seed was asked, and this is what came of it.
    pub(super) fn heard(&mut self, seed: usize, said: Result<&Probed, Silence>, now: Instant) {
        if let Some(seen) = self.seeds.get_mut(seed) {
            seen.said = said.map(|probed| (probed.state, probed.cluster));
            seen.asked = Some(now);
        }
    }
}
