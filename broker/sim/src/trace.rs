//! What tells two runs apart.
//!
//! Owns: a hash over events, each with the virtual time at which it happens.
//! Never: hashes anything that another process would see differently.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use tokio::time::Instant;

/// Hashes events with the virtual time at which they happen.
pub struct Trace {
    hasher: DefaultHasher,
    began: Instant,
}

impl Trace {
    /// A trace that begins now. Call it within the runtime.
    pub fn start() -> Self {
        Self { hasher: DefaultHasher::new(), began: Instant::now() }
    }

    /// Takes in that `event` happened, to `number`, now.
    pub fn note(&mut self, event: &str, number: u64) {
        (self.began.elapsed().as_nanos(), event, number).hash(&mut self.hasher);
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }
}
