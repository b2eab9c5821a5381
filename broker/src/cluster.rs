//! What a broker is among others.
//!
//! The rooms: `controller` (where replicas are and who leads, decided on the broker that leads the
//! metadata).
//!
//! Never: opens a socket or a log; names the consensus engine.

pub mod controller;
pub mod leaders;
pub mod members;
pub mod pace;
