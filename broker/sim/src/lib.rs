//! Deterministic simulation of the real Weir broker.
//!
//! Owns: a disk that loses what was not flushed, a network, clocks and threads of its own, and the
//! scenarios that run the real broker and the real client on them; the judge of their histories.
//! Never: is imported by what it simulates, but for its tests. Those of the storage take the disk
//! alone, without the feature `broker`.

#![forbid(unsafe_code)]

#[cfg(feature = "broker")]
pub mod clock;
#[cfg(feature = "broker")]
pub mod cluster;
pub mod disk;
#[cfg(feature = "broker")]
pub mod entropy;
#[cfg(feature = "broker")]
pub mod executor;
pub mod history;
#[cfg(feature = "broker")]
pub mod network;
#[cfg(feature = "broker")]
mod runtime;
#[cfg(feature = "broker")]
mod trace;
#[cfg(feature = "broker")]
pub mod world;

#[cfg(feature = "broker")]
pub use runtime::paused;
#[cfg(feature = "broker")]
pub use trace::Trace;
