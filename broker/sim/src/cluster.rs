//! Several brokers and their clients in one runtime, each machine with a disk, threads, a clock and
//! a host of its own.
//!
//! Owns: nothing itself; `machine` is one broker's, `world` is all of them.
//! Never: lets a broker reach what is another one's, but over the network.

mod machine;
mod world;

pub use machine::{Machine, NotStarted};
pub use world::Cluster;
