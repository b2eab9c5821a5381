//! How this broker speaks with the others of its cluster.
//!
//! The rooms: `ask` (questions between brokers, and who answers them here).
//!
//! Never: names the consensus engine; decides about a log, a vote or a cluster.

pub mod ask;
