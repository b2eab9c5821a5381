//! Rooms that meet over a network in memory, and peers that a test plays, in a time of their own.

mod bulk;
mod control;
mod group;
mod handshake;
mod net;
mod rig;
mod script;

use super::ask::{Answer, Ask};
use super::ways::CALL_WITHIN;
use super::*;
use crate::replication::{AppendStream, PeerLost};
use crate::seams::BoxFuture;
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Duration;
use weir_protocol::peer::limits::PEER_DEAD_AFTER_MS;
use weir_protocol::peer::{
    AppendResult, Beat, Fetch, Form, Forward, GroupAddress, PeerFrame, PeerRefusal, SnapshotHead,
    Transfer, TransferAnswer, Vote, VoteAnswer, VoteAsk,
};
