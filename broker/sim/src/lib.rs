//! Deterministic simulation of the real Weir broker.
//!
//! Owns: a disk that loses what was not flushed, a network, clocks and threads of its own, and the
//! scenarios that run the real broker and the real client on them.
//! Never: is imported by what it simulates.

#![forbid(unsafe_code)]

pub mod clock;
pub mod disk;
pub mod executor;
pub mod network;
pub mod world;
