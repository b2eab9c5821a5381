//! The peer protocol: what brokers of one cluster say to each other. PEER.md is the contract.
//!
//! Owns: the words of replication and of a cluster's formation as they cross the wire, their
//! frames, the bytes of those, and the handshake that proves both ends know the secret.
//! Never: decides about a log or a vote; a nonce, a socket or a clock: those are passed in.
//! Invariants: the frame is the client's, its types are not: a client's frame other than GRANT and
//! DEMAND is no frame here. Batches travel as they are stored.
//!
//! D = the broker that dialed (it asks), A = the one that accepted (it answers). A frame on stream
//! 0 concerns the connection.

mod bulk;
mod codec;
mod control;
mod handshake;
pub mod limits;
mod link;
mod proof;

pub use bulk::{
    Append, AppendResult, Appended, Fetch, Fetched, FetchedBatches, SegmentPart, SnapshotHead,
    SnapshotPart,
};
pub use codec::{PeerDecoder, PeerHead, encode_to_vec};
pub use control::{
    Beat, Beaten, Beats, Form, Formed, Forward, Forwarded, ForwardedAnswer, Led, MemberState, News,
    Probed, Question, Seed, Transfer, TransferAnswer, Transferred, VoteAnswer, VoteAsk, VoteKind,
    Voted,
};
pub use handshake::{Handshake, HandshakeError, OpenPeer, Step, Trust};
pub use link::{Challenge, Hello, Lane, Node, PeerGoAway, Side};
pub use proof::{Mac, Nonce, Secret, SecretError};

use crate::frame::{Demand, Grant};
use crate::types::{Index, ReplicaId, RequestId, StreamId, Term};

/// Any frame between two brokers.
#[derive(Debug, Clone, PartialEq)]
pub enum PeerFrame {
    /// D 0x40: first frame of a connection.
    Hello(Hello),
    /// A 0x41: the answer to HELLO.
    Challenge(Challenge),
    /// D 0x42: the dialer knows the secret.
    Proof(Mac),
    /// A 0x43: the acceptor knows it too; the connection is open.
    Ready(Mac),
    /// DA 0x44: the peer is alive.
    Heartbeat,
    /// DA 0x45: no new work on this connection.
    GoAway(PeerGoAway),
    /// A 0x15: what may be sent on this stream, as absolute limits.
    Grant(StreamId, Grant),
    /// D 0x16: what would be sent on this stream if it might.
    Demand(StreamId, Demand),
    /// D 0x50: opens a stream of appends from a leader to a follower.
    AppendOpen(StreamId, GroupAddress),
    /// D 0x51: records.
    Append(Append),
    /// A 0x52: what became of appends, and the newest grant.
    Appended(Appended),
    /// D 0x53: ends a stream of appends.
    AppendClose(StreamId),
    /// D 0x54: opens a stream that carries a snapshot.
    Snapshot(StreamId, SnapshotHead),
    /// D 0x55: a part of it.
    SnapshotPart(SnapshotPart),
    /// A 0x56: the snapshot is installed, under this vote; or why it is not.
    SnapshotDone(StreamId, Result<Vote, PeerRefusal>),
    /// D 0x57: asks for stored batches of a log, to repair with.
    Fetch(Fetch),
    /// A 0x58: those batches.
    Fetched(Fetched),
    /// D 0x60: leaders say that they lead.
    Beats(Beats),
    /// A 0x61: followers answer, each when it can.
    Beaten(Vec<Beaten>),
    /// D 0x62: asks for a vote.
    Vote(VoteAsk),
    /// A 0x63: the answer to it.
    Voted(Voted),
    /// D 0x64: a leader hands over.
    Transfer(Transfer),
    /// A 0x65: the answer to it.
    Transferred(Transferred),
    /// D 0x66: what the sender leads.
    News(News),
    /// D 0x67: a question to the leader of the metadata.
    Forward(Forward),
    /// A 0x68: the answer to it.
    Forwarded(Forwarded),
    /// D 0x69: who are you?
    Probe(RequestId),
    /// A 0x6a: the answer to it.
    Probed(Probed),
    /// D 0x6b: form a cluster.
    Form(Form),
    /// A 0x6c: the answer to it.
    Formed(Formed),
}

impl PeerFrame {
    /// Whether this side of an open connection of this lane may send the frame.
    pub const fn is_sent_by(&self, side: Side, lane: Lane) -> bool {
        match self {
            Self::Hello(_) | Self::Challenge(_) | Self::Proof(_) | Self::Ready(_) => false,
            Self::Heartbeat | Self::GoAway(_) => true,
            Self::Demand(..)
            | Self::AppendOpen(..)
            | Self::Append(_)
            | Self::AppendClose(_)
            | Self::Snapshot(..)
            | Self::SnapshotPart(_)
            | Self::Fetch(_) => matches!((side, lane), (Side::Dialer, Lane::Bulk)),
            Self::Grant(..) | Self::Appended(_) | Self::SnapshotDone(..) | Self::Fetched(_) => {
                matches!((side, lane), (Side::Acceptor, Lane::Bulk))
            }
            Self::Beats(_)
            | Self::Vote(_)
            | Self::Transfer(_)
            | Self::News(_)
            | Self::Forward(_)
            | Self::Probe(_)
            | Self::Form(_) => matches!((side, lane), (Side::Dialer, Lane::Control)),
            Self::Beaten(_)
            | Self::Voted(_)
            | Self::Transferred(_)
            | Self::Forwarded(_)
            | Self::Probed(_)
            | Self::Formed(_) => matches!((side, lane), (Side::Acceptor, Lane::Control)),
        }
    }
}

/// Raft's vote: who leads, or wants to, in which term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Vote {
    /// The term.
    pub term: Term,
    /// Who was voted for.
    pub replica: ReplicaId,
    /// A majority did so: it leads.
    pub committed: bool,
}

/// A place in a log; index 0 = before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct LogPlace {
    /// The term of what stands there.
    pub term: Term,
    /// Its index.
    pub index: Index,
}

/// Two replicas of one partition. As no replica id is ever used twice, they name the partition,
/// and a replica that is gone is addressed by nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupAddress {
    /// Who is addressed. Answers repeat the address as it is.
    pub to: ReplicaId,
    /// Who asks.
    pub from: ReplicaId,
}

macro_rules! refusals {
    ($($number:literal $variant:ident $name:literal $sentence:literal;)+) => {
        /// Why a broker does not do what another asks. The numbers are part of the protocol.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum PeerRefusal {
            $(#[doc = $sentence] $variant = $number,)+
        }

        impl PeerRefusal {
            /// Every refusal, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The refusal of this number, if it is one.
            pub const fn from_u8(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
            /// The name that documents, logs and metrics show.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
            /// One sentence for people.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)+ }
            }
        }
    };
}

// 0 says that nothing was refused.
refusals! {
    1 Malformed "malformed" "a frame is malformed or does not belong in this state";
    2 Version "version" "no version of the peer protocol is common to both";
    3 Unauthenticated "unauthenticated" "the secrets differ, or only one side has one";
    4 WrongCluster "wrong_cluster" "the brokers belong to different clusters";
    5 WrongBroker "wrong_broker" "the broker is not the one that was dialed, or both claim one id";
    6 Itself "itself" "the broker has dialed itself";
    7 Draining "draining" "the broker is shutting down";
    8 Overloaded "overloaded" "the broker has no room for this now";
    9 UnknownReplica "unknown_replica" "no such replica is on this broker";
    10 Opening "opening" "the replica is being opened";
    11 Damaged "damaged" "the replica or the range is damaged";
    12 Fenced "fenced" "a write or flush failed and the replica stopped serving";
}

impl std::fmt::Display for PeerRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.sentence())
    }
}
