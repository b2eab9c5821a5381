//! What all replicas of one broker have in common.
//!
//! Owns: nothing: it is handed on, with every replica that is opened.

use super::{Gate, NoPeers, Peers, Switchboard};
use crate::peer::ask::{Asks, NoAsks};
use std::sync::Arc;

/// How replicas of a broker reach others and are reached, and what they may write. Cheap to clone.
#[derive(Clone)]
pub struct Wiring {
    /// The way to the others of each group.
    pub peers: Arc<dyn Peers>,
    /// Where the others find them.
    pub switchboard: Switchboard,
    /// How the others are asked for what damage took of a log.
    pub asks: Arc<dyn Asks>,
    /// Which formats may be written.
    pub gate: Gate,
}

impl Wiring {
    /// Of a broker that knows nobody.
    pub fn alone() -> Self {
        let (peers, asks) = (Arc::new(NoPeers), Arc::new(NoAsks));
        Self { peers, switchboard: Switchboard::default(), asks, gate: Gate::default() }
    }
}
