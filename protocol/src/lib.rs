//! Weir's wire protocol, sans I/O: bytes in, frames out.
//!
//! Owns: the words two peers share: types, limits, error codes, the record batch, the frames,
//! credit accounting and the state of a connection.
//! Never: a tokio runtime, a clock, a socket, a file or a random number.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod batch;
pub mod codec;
pub mod error_code;
pub mod frame;
pub mod limits;
pub mod types;
