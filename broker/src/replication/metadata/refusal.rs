//! Why a command changed nothing.
//!
//! Invariant: a number stands for one refusal for ever: brokers tell each other by it.

use super::state::{MOVES_MAX, PRODUCERS_MAX};
use weir_protocol::limits::{BROKERS_MAX, PARTITIONS_MAX};

macro_rules! refusals {
    ($($number:literal $variant:ident $about:literal $sentence:literal;)+) => {
        /// Why a command changed nothing.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
        #[repr(u8)]
        pub enum Refusal {
            $(#[doc = $about] #[error($sentence)] $variant = $number,)+
        }

        impl Refusal {
            /// Every refusal, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The refusal of this number, if it is one.
            pub const fn from_u8(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

refusals! {
    1 TopicExists "The name is taken."
        "a topic of this name exists already";
    2 UnknownTopic "No such topic, or no longer."
        "no such topic exists";
    3 UnknownPartition "No such partition."
        "no such partition exists";
    4 TopicChanged "The topic changed since the command was made from it."
        "the topic was changed meanwhile; read it again";
    5 TopicLimit "A topic or partition too many."
        "the cluster has as many topics or partitions as it may";
    6 ProducerLimit "A producer name too many."
        "the cluster knows as many producer names as it may ({PRODUCERS_MAX})";
    7 EpochLimit "The producer cannot be opened once more."
        "the producer was opened too often; use another name";
    8 BadPartitions "No partition, too many of them, or a bad number of replicas."
        "a topic has 1 to {PARTITIONS_MAX} partitions with 1 to 7 different brokers each";
    9 BadReplicas "A number of replicas that no topic has."
        "a partition has 1, 3 or 5 replicas, all partitions of a topic the same number";
    10 GateClosed "The cluster does not read this yet."
        "a broker of the cluster is too old for this, or was not told to pass the gate yet";
    11 GateUnread "The gate is higher than what a broker is known to read."
        "a broker of the cluster does not read what is behind this gate";
    12 GateAbove "The broker's build is too old for the cluster."
        "the cluster is beyond what this broker's build reads: use a newer build";
    13 UnknownBroker "No broker ever had this id."
        "no such broker exists";
    14 BrokerRemoved "The broker was removed; its id never returns."
        "the broker was removed from the cluster; an empty data directory joins anew";
    15 BrokerNotActive "The broker is unknown, drains or was removed."
        "the broker is not an active one of the cluster";
    16 BrokerInUse "The broker still holds replicas."
        "the broker holds replicas: drain it first";
    17 BrokerLimit "A broker too many."
        "the cluster has as many brokers as it may ({BROKERS_MAX})";
    18 TooFewBrokers "Too few brokers are active."
        "fewer brokers are active than replicas are wanted";
    19 NoToken "A broker without the token of its data directory."
        "a broker tells the token of its data directory, never 0";
    20 TokenMismatch "The id and the token belong to different brokers."
        "this broker's id and its data directory's token do not belong together";
    21 UnknownReplica "No replica ever had this id."
        "no such replica exists";
    22 ReplicaGone "The replica is gone; its id never returns."
        "the replica is gone";
    23 BrokerHoldsReplica "The broker holds a replica of the same log."
        "the broker holds a replica of the same log already";
    24 EnoughReplicas "The partition has the replicas it shall have."
        "the partition has as many replicas as it shall have";
    25 TooManyReplicas "The partition has replicas that must go first."
        "the partition has too many replicas; some of them must go first";
    26 BadStep "The step does not follow from where the replica is."
        "the replica is not where this step begins";
    27 NotAVoter "The replica does not vote."
        "the replica is not a voter of the partition";
    28 TooFewVoters "Too few voters would be left."
        "too few voters would be left";
    29 NotFormed "The partition never had a leader."
        "the partition is not formed yet";
    30 MoveUnderWay "Another move of the partition is not done."
        "another replica of the partition is on its way";
    31 MoveLimit "A move too many."
        "as many moves as may be are under way ({MOVES_MAX})";
    32 OldEpoch "A recovery is told that is not behind the known one."
        "a later recovery of this log is known";
}
