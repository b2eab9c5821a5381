//! The Weir broker as a library: embed it, or run it with the `weir` binary.
//!
//! The rooms: `server` and `connection` (sockets), `budget` and `flow` (what peers may send),
//! `partition` (one log, one owner), `replication` (the only place that names the consensus
//! engine), `peer` (links between brokers), `catalog` (which partitions there are), `cluster`
//! (where replicas are and who leads),
//! `admin` and `metrics` (what may be seen), `config`, `seams` and `task`.
//!
//! Never: a process global; several brokers live in one process.

#![forbid(unsafe_code)]

mod admin;
mod broker;
pub mod budget;
pub mod catalog;
pub mod cluster;
pub mod config;
pub mod connection;
pub mod flow;
mod identity;
mod log_limit;
pub mod metrics;
pub mod partition;
pub mod peer;
mod planted;
pub mod replication;
mod reply;
pub mod seams;
pub mod server;
pub mod task;

pub use broker::{Addresses, Broker, StartError};
pub use config::Config;
pub use identity::{Identity, IdentityError};
pub use seams::Seams;
