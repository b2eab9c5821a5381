//! placeholder
pub mod budget;
pub mod connection;
pub mod flow;
pub mod partition;
