//! Why a command changed nothing.

use super::state::{MOVES_MAX, PRODUCERS_MAX};
use weir_protocol::limits::{BROKERS_MAX, PARTITIONS_MAX};

/// Why a command changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name is taken.
    #[error("a topic of this name exists already")]
    TopicExists,
    /// No such topic, or no longer.
    #[error("no such topic exists")]
    UnknownTopic,
    /// No such partition.
    #[error("no such partition exists")]
    UnknownPartition,
    /// The topic changed since the command was made from it.
    #[error("the topic was changed meanwhile; read it again")]
    TopicChanged,
    /// A topic or partition too many.
    #[error("the cluster has as many topics or partitions as it may")]
    TopicLimit,
    /// A producer name too many.
    #[error("the cluster knows as many producer names as it may ({PRODUCERS_MAX})")]
    ProducerLimit,
    /// The producer cannot be opened once more.
    #[error("the producer was opened too often; use another name")]
    EpochLimit,
    /// No partition, too many of them, or a bad number of replicas.
    #[error("a topic has 1 to {PARTITIONS_MAX} partitions with 1 to 7 different brokers each")]
    BadPartitions,
    /// A number of replicas that no topic has.
    #[error("a partition has 1, 3 or 5 replicas, all partitions of a topic the same number")]
    BadReplicas,
    /// The cluster does not read this yet.
    #[error("a broker of the cluster is too old for this, or was not told to pass the gate yet")]
    GateClosed,
    /// The gate is higher than what a broker is known to read.
    #[error("a broker of the cluster does not read what is behind this gate")]
    GateUnread,
    /// The broker's build is too old for the cluster.
    #[error("the cluster is beyond what this broker's build reads: use a newer build")]
    GateAbove,
    /// No broker ever had this id.
    #[error("no such broker exists")]
    UnknownBroker,
    /// The broker was removed; its id never returns.
    #[error("the broker was removed from the cluster; an empty data directory joins anew")]
    BrokerRemoved,
    /// The broker is unknown, drains or was removed.
    #[error("the broker is not an active one of the cluster")]
    BrokerNotActive,
    /// The broker still holds replicas.
    #[error("the broker holds replicas: drain it first")]
    BrokerInUse,
    /// A broker too many.
    #[error("the cluster has as many brokers as it may ({BROKERS_MAX})")]
    BrokerLimit,
    /// Too few brokers are active.
    #[error("fewer brokers are active than replicas are wanted")]
    TooFewBrokers,
    /// A broker without the token of its data directory.
    #[error("a broker tells the token of its data directory, never 0")]
    NoToken,
    /// The id and the token belong to different brokers.
    #[error("this broker's id and its data directory's token do not belong together")]
    TokenMismatch,
    /// No replica ever had this id.
    #[error("no such replica exists")]
    UnknownReplica,
    /// The replica is gone; its id never returns.
    #[error("the replica is gone")]
    ReplicaGone,
    /// The broker holds a replica of the same log.
    #[error("the broker holds a replica of the same log already")]
    BrokerHoldsReplica,
    /// The partition has the replicas it shall have.
    #[error("the partition has as many replicas as it shall have")]
    EnoughReplicas,
    /// The partition has replicas that must go first.
    #[error("the partition has too many replicas; some of them must go first")]
    TooManyReplicas,
    /// The step does not follow from where the replica is.
    #[error("the replica is not where this step begins")]
    BadStep,
    /// The replica does not vote.
    #[error("the replica is not a voter of the partition")]
    NotAVoter,
    /// Too few voters would be left.
    #[error("too few voters would be left")]
    TooFewVoters,
    /// The partition never had a leader.
    #[error("the partition is not formed yet")]
    NotFormed,
    /// Another move of the partition is not done.
    #[error("another replica of the partition is on its way")]
    MoveUnderWay,
    /// A move too many.
    #[error("as many moves as may be are under way ({MOVES_MAX})")]
    MoveLimit,
    /// A recovery is told that is not behind the known one.
    #[error("a later recovery of this log is known")]
    OldEpoch,
}
