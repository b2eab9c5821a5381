//! `weir cluster`: what is done to a cluster as a whole.
//!
//! Owns: which of its commands is run. Never: talks to a client's port.

mod recover;

use crate::arguments::{ClusterArguments, ClusterCommand};
use crate::failure::Failure;

pub(crate) fn run(arguments: &ClusterArguments) -> Result<(), Failure> {
    match &arguments.command {
        ClusterCommand::Recover(arguments) => recover::run(arguments),
    }
}
