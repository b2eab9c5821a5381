//! `weir cluster`: what is seen of a cluster as a whole, and done to it.
//!
//! The rooms: `status` (what is shown), `steer` (what is changed, over the admin server of any
//! broker), `recover` (over the data of a stopped one).
//!
//! Owns: which of its commands is run. Never: talks to a client's port.

mod recover;
mod status;
mod steer;

use crate::arguments::{ClusterArguments, ClusterCommand};
use crate::block_on;
use crate::failure::Failure;

pub(crate) fn run(arguments: ClusterArguments) -> Result<(), Failure> {
    match arguments.command {
        ClusterCommand::Recover(arguments) => recover::run(&arguments),
        ClusterCommand::Status(arguments) => block_on(status::run(arguments)),
        ClusterCommand::Add(arguments) => block_on(steer::add(arguments)),
        ClusterCommand::Drain(arguments) => block_on(steer::drain(arguments)),
        ClusterCommand::Remove(arguments) => block_on(steer::remove(arguments)),
        ClusterCommand::Move(arguments) => block_on(steer::move_replica(arguments)),
        ClusterCommand::Balance(arguments) => block_on(steer::balance(arguments)),
    }
}
