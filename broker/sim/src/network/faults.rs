//! What goes wrong on the network.
//!
//! Owns: cutting, healing, slowing and resetting.
//! Never: chooses what goes wrong.
//! Invariant: what one call does, it does to streams in the order in which they were opened.

use super::link::Conditions;
use super::pipe::{End, wake};
use super::{SimNetwork, State};
use tokio::time::Instant;

impl SimNetwork {
    /// From now on bytes from one host to another take so long. What is under way does not change.
    pub fn set(&self, from: u8, to: u8, conditions: Conditions) {
        assert!(conditions.bytes_per_second > 0, "a link without bandwidth is a cut");
        self.state().link(from, to).conditions = conditions;
    }

    /// Silence from one host to another: what is under way and what is sent from now on is held,
    /// not lost, until the link is healed. The other direction goes on.
    pub fn cut(&self, from: u8, to: u8) {
        let now = Instant::now();
        let mut state = self.state();
        if std::mem::replace(&mut state.link(from, to).cut, true) {
            return;
        }
        // What has arrived is there, whether it was read or not.
        for (connection, side) in state.ways(from, to) {
            if let Some(connection) = state.connections.get_mut(&connection) {
                connection.pipe(side).settle(now);
            }
        }
    }

    /// Ends a [`SimNetwork::cut`].
    pub fn heal(&self, from: u8, to: u8) {
        let mut state = self.state();
        state.link(from, to).cut = false;
        for (connection, side) in state.ways(from, to) {
            if let Some(connection) = state.connections.get_mut(&connection) {
                wake(&mut connection.pipe(side).reader);
            }
        }
        drop(state);
        self.0.changed.send_replace(());
    }

    /// Ends every cut.
    pub fn heal_all(&self) {
        let cut: Vec<_> = {
            let state = self.state();
            state.links.iter().filter(|(_, link)| link.cut).map(|(pair, _)| *pair).collect()
        };
        for (from, to) in cut {
            self.heal(from, to);
        }
    }

    /// Breaks every stream between two hosts, at both ends at once.
    pub fn reset(&self, a: u8, b: u8) {
        let mut state = self.state();
        for (connection, side) in state.ways(a, b) {
            state.end(connection, side, End::Reset);
            state.end(connection, 1 - side, End::Reset);
        }
    }

    /// The process on a host dies: its listeners are closed and its streams broken. The other ends
    /// learn it over the link, behind what was sent before.
    pub fn kill(&self, host: u8) {
        let mut state = self.state();
        state.listeners.retain(|address, _| address.ip() != super::address_of(host));
        for (connection, side) in state.sides_on(host) {
            state.end(connection, side, End::Reset);
        }
    }

    /// Waits until nobody on the host holds an end of a stream any more.
    pub async fn let_go(&self, host: u8) {
        let mut changed = self.0.changed.subscribe();
        while self.held_streams(host) > 0 {
            changed.changed().await.expect("the network lives as long as who asks it");
        }
    }

    /// Streams of which somebody on the host holds an end.
    pub fn held_streams(&self, host: u8) -> usize {
        let state = self.state();
        state.connections.values().filter(|connection| connection.is_held_on(host)).count()
    }
}

impl State {
    /// Streams with the side that sends from one host to another.
    fn ways(&self, from: u8, to: u8) -> Vec<(u64, usize)> {
        self.sides(|way| way == (from, to))
    }

    fn sides_on(&self, host: u8) -> Vec<(u64, usize)> {
        self.sides(|(from, _)| from == host)
    }

    fn sides(&self, wanted: impl Fn((u8, u8)) -> bool) -> Vec<(u64, usize)> {
        let all = self.connections.iter().flat_map(|(number, connection)| {
            [0, 1].map(|side| ((*number, side), connection.way(side)))
        });
        all.filter(|(_, way)| wanted(*way)).map(|(side, _)| side).collect()
    }
}
