//! Weir's wire protocol, sans I/O: bytes in, frames out.
//!
//! Owns: the words two peers share: types, limits, error codes, the record batch, the frames and
//! their bytes, between client and broker and between brokers.
//! Never: a tokio runtime, a clock, a socket, a file or a random number; the state of a connection
//! or what a peer has left of its credit (each peer's own).

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod batch;
pub mod codec;
pub mod error_code;
pub mod frame;
pub mod limits;
pub mod peer;
pub mod types;
