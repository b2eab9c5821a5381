//! Fresh numbers that follow from a seed.
//!
//! Owns: their order. Never: asks the operating system.

use std::sync::{Arc, Mutex, PoisonError};
use weir_broker::seams::Entropy;

/// The entropy of one simulated broker.
#[derive(Debug)]
pub struct SimEntropy(Mutex<fastrand::Rng>);

impl SimEntropy {
    /// Numbers that follow from `seed`.
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(fastrand::Rng::with_seed(seed))))
    }
}

impl Entropy for SimEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill(bytes);
    }
}
