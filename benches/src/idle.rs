//! Many connections that do nothing.
//!
//! Owns: opening them, a few at a time, and how many of them are still there in the end.
//! Never: sends a message.

use crate::load::connect;
use crate::measure::process_cost;
use serde::Serialize;
use std::time::Duration;
use tokio::task::JoinSet;
use weir_client::{Client, Status};

/// Handshakes that are under way at a time.
const HANDSHAKES_MAX: usize = 64;

/// What idle connections cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct IdleReport {
    /// Connections that were opened.
    pub opened: usize,
    /// Of them, connected at the end.
    pub connected: usize,
    /// How long opening all of them took.
    pub opening_seconds: f64,
    /// Anonymous memory of the broker before them.
    pub anonymous_bytes_before: Option<u64>,
    /// And with them, at the end.
    pub anonymous_bytes: Option<u64>,
}

/// Opens `count` connections, holds them for `hold`, and says what they cost.
pub async fn run(
    endpoints: &[String],
    count: usize,
    hold: Duration,
    server_pid: Option<u32>,
) -> weir_client::Result<IdleReport> {
    let anonymous = || server_pid.and_then(process_cost).map(|cost| cost.anonymous_bytes);
    let anonymous_bytes_before = anonymous();
    let began = crate::clock::now();
    let mut clients: Vec<Client> = Vec::with_capacity(count);
    let mut handshakes = JoinSet::new();
    while clients.len() < count {
        while handshakes.len() < HANDSHAKES_MAX && clients.len() + handshakes.len() < count {
            let endpoints = endpoints.to_vec();
            handshakes.spawn(async move { connect(&endpoints).await });
        }
        let Some(joined) = handshakes.join_next().await else { break };
        clients.push(joined.expect("a handshake does not panic")?);
    }
    let opening_seconds = began.elapsed().as_secs_f64();
    tokio::time::sleep(hold).await;
    let is_connected = |client: &&Client| *client.status().borrow() == Status::Connected;
    Ok(IdleReport {
        opened: clients.len(),
        connected: clients.iter().filter(is_connected).count(),
        opening_seconds,
        anonymous_bytes_before,
        anonymous_bytes: anonymous(),
    })
}

impl IdleReport {
    /// For people.
    pub fn table(&self) -> String {
        let mebibytes = |bytes: Option<u64>| match bytes {
            Some(bytes) => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
            None => "unknown (give --server-pid)".to_owned(),
        };
        format!(
            "{} connections opened in {:.2} s, {} connected at the end\n  broker: anonymous {} \
             before, {} with them\n",
            self.opened,
            self.opening_seconds,
            self.connected,
            mebibytes(self.anonymous_bytes_before),
            mebibytes(self.anonymous_bytes)
        )
    }
}
