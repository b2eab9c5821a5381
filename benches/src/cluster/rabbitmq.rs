//! Weir beside a quorum queue of RabbitMQ: three nodes each, all on this machine.
//!
//! Owns: the turns; the load is the same: publishers, window, bytes of a message, and both flush
//! to a majority before they confirm.
//! Never: starts RabbitMQ: `benches/compare/rabbitmq` does.

use super::steady::{Comparison, Load, Turns, WARMUP_S, cluster_with};
use super::{Place, REPLICAS, other};
use crate::amqp::Connection;
use crate::clock;
use crate::scratch::in_scratch_folder;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;

const TOPIC: &str = "bench";
/// Of the goodput of the quorum queue.
const TIMES: f64 = 3.0;

/// Runs it with a cluster of its own beside the node at `amqp` (HOST:PORT), which leads the queue.
/// RabbitMQ is the base.
pub fn measure(
    runtime: &Runtime,
    place: &Place,
    amqp: &str,
    load: Load,
    rounds: u32,
) -> io::Result<Comparison> {
    let turns = in_scratch_folder(&place.dir, |scratch| {
        let topics = [(TOPIC, REPLICAS)];
        let cluster = runtime.block_on(cluster_with((place, scratch), &[], &topics));
        let (brokers, _client) = cluster?;
        let mut turns = Turns::default();
        for _ in 0..rounds {
            turns.base.push(quorum_queue(amqp, load)?);
            let weir = runtime.block_on(load.goodput(&brokers.endpoints(), TOPIC))?;
            turns.measured.push(weir);
        }
        Ok(turns)
    })?;
    let names = ["RabbitMQ, quorum queue x 3", "Weir, one partition x 3"];
    Ok(Comparison::new((load, turns), names, ("Weir over RabbitMQ", 1.0, TIMES)))
}

/// Messages a second that an empty quorum queue confirms.
fn quorum_queue(amqp: &str, load: Load) -> io::Result<f64> {
    let named = |error: io::Error| other(format!("{amqp}: {error}"));
    let mut control = Connection::open(amqp).map_err(named)?;
    control.declare_quorum(TOPIC).map_err(named)?;
    let counted_from = clock::now().after(Duration::from_secs_f64(WARMUP_S));
    let ends = counted_from.after(Duration::from_secs_f64(load.seconds));
    let confirmed = AtomicU64::new(0);
    let publish = || {
        let shape = (load.message_bytes, load.window);
        let go_on = || clock::now() < ends;
        let count = |more| {
            let now = clock::now();
            if now >= counted_from && now < ends {
                confirmed.fetch_add(more, Ordering::Relaxed);
            }
        };
        Connection::open(amqp)?.publish(TOPIC, shape, go_on, count)
    };
    let published = std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..load.publishers).map(|_| scope.spawn(publish)).collect();
        let ends = publishers.into_iter().map(|one| one.join().expect("no publisher panics"));
        ends.collect::<io::Result<Vec<()>>>()
    });
    control.delete(TOPIC).map_err(named)?;
    published.map_err(named)?;
    Ok(confirmed.into_inner() as f64 / load.seconds)
}
