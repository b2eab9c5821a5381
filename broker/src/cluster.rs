//! What a broker is among others.
//!
//! The rooms: `formation` (how brokers become a cluster, pure), `member` (the shell around it),
//! `forward` (the metadata from any broker), `known` (where the others were), `leaders` (who leads,
//! as brokers tell it), `controller` (where replicas shall be and who shall lead, decided on the
//! broker that leads the metadata), `members` (what the leader of a log does so that its group
//! becomes that), `pace` (how often leaderships change without need), `repeat` (what becomes of a
//! change whose answer was lost), `waiting` (what a broker waits for before it belongs to one).
//!
//! Never: opens a socket or a log; names the consensus engine.

pub mod controller;
pub mod formation;
pub mod forward;
mod known;
pub mod leaders;
pub mod member;
pub mod members;
pub mod pace;
mod repeat;
pub mod waiting;

pub use forward::MetadataClient;
pub use member::{Cluster, Directory, METADATA_FOLDER};
