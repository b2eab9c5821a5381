//! One thread whose time is virtual.
//!
//! Owns: how the runtime of a simulation is made. Never: lets it do I/O.

use tokio::runtime::{Builder, RngSeed, Runtime};

/// A runtime whose clock stands while anything can go on, and then jumps; its choices follow from
/// `seed`.
pub fn paused(seed: u64) -> Runtime {
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
        .build()
        .expect("a runtime without I/O asks the operating system for nothing that can fail")
}
