//! Weir's load harness: what the machine can do, and what Weir makes of it.
//!
//! Owns: the load generator, the floors, storage alone, the audit, the figures and their form.
//! Never: a figure without the command that measured it; a closed loop that calls itself open.

#![forbid(unsafe_code)]

mod amqp;
pub mod audit;
pub mod clock;
pub mod cluster;
pub mod compare;
pub mod device;
pub mod floor;
pub mod idle;
pub mod load;
mod log_writer;
pub mod measure;
pub mod net_floor;
pub mod report;
pub mod schedule;
pub mod scratch;
pub mod storage;
pub mod workload;
