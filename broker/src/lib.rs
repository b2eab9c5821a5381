//! The Weir broker as a library: embed it, or run it with the `weir` binary.
//!
//! The rooms: `server` and `connection` (sockets), `budget` and `flow` (what peers may send),
//! `partition` (one log, one owner), `replication` (the only place that names the consensus
//! engine), `catalog` and `router` (which partitions there are), `admin` and `metrics` (what may
//! be seen), `config`, `seams` and `task`.
//!
//! Never: a process global; several brokers live in one process.

#![forbid(unsafe_code)]

pub mod budget;
pub mod config;
pub mod connection;
pub mod flow;
mod log_limit;
pub mod metrics;
pub mod partition;
pub mod replication;
mod reply;
pub mod seams;
mod server;
pub mod task;
