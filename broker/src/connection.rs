//! One connection: its peer's frames in, what it is owed out.
//!
//! Owns: the socket, the streams of the peer, the outbox.
//! Never: stops reading: whatever a peer may send was reserved before it was told so.

pub(crate) mod lane;
pub mod outbox;
pub(crate) mod reply;
