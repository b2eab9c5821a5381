//! Several brokers and their clients in one runtime, each machine with a disk, threads, a clock and
//! a host of its own.
//!
//! The rooms: `machine` is one broker's, `world` is all of them; `run` is a whole simulation: `plan`
//! chooses what goes wrong and `nemesis` does it while a `crowd` is `publishing` and `reading`,
//! `drain` looks at what is left, and `record` keeps what the history's checks judge. The crowd uses real
//! processes as well.
//! Never: lets a broker reach what is another one's, but over the network.

mod crowd;
mod drain;
mod machine;
mod nemesis;
mod order;
mod placement;
mod plan;
mod publishing;
mod reading;
mod record;
mod rot;
mod run;
mod tap;
mod watching;
mod world;

pub use crowd::{Crowd, Load};
pub use machine::{Machine, NotStarted};
pub use plan::{Fault, Shape};
pub use record::Recorder;
pub use run::{Outcome, run_cluster};
pub use world::Cluster;
