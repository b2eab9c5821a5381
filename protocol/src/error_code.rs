//! Owns: the one vocabulary of refusals: number, name, metric label and sentence.
//! Never: a number that nothing can produce; ERRORS.md documents each one and a test compares.
//! Invariant: the high byte alone tells a client what to do, so that a code of a newer version
//! is handled rightly by an older client.

/// What a client does about a code: its high byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// 01: wait for a grant or the hint, then send the same again.
    Wait,
    /// 02: stop this topic until a grant arrives.
    StopTopic,
    /// 03: go to another node, or reconnect, then send the same again.
    Reconnect,
    /// 04: never send this again as it is.
    Never,
    /// 05: the outcome is unknown; ask again only under the same sequence.
    Unknown,
    /// 06: the stream or connection is over; the client is wrong.
    Fatal,
    /// 07: local to the client, never on the wire.
    Local,
    /// 08: do not retry: load or deadline.
    GiveUp,
    /// 09: resynchronise (sequence, checksum, producer), then go on.
    Resync,
    /// 0A: the result of a settle.
    Settle,
}

impl Action {
    /// The action of any code, known or not; numbers above 0A count as never.
    pub const fn of(code: u16) -> Self {
        match code >> 8 {
            0x01 => Self::Wait,
            0x02 => Self::StopTopic,
            0x03 => Self::Reconnect,
            0x05 => Self::Unknown,
            0x06 => Self::Fatal,
            0x07 => Self::Local,
            0x08 => Self::GiveUp,
            0x09 => Self::Resync,
            0x0a => Self::Settle,
            _ => Self::Never,
        }
    }
}

macro_rules! codes {
    ($($number:literal $variant:ident $name:literal $reason:literal $sentence:literal;)+) => {
        /// A refusal that peers know by number and people by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum ErrorCode {
            $(#[doc = $sentence] $variant = $number,)+
        }

        impl ErrorCode {
            /// Every code, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The code of this number, if this version knows it.
            pub const fn from_u16(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
            /// The name that documents, logs and errors show.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
            /// The metric label `reason`.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$variant => $reason,)+ }
            }
            /// One sentence for people.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)+ }
            }
        }
    };
}

codes! {
    0x0101 OverloadedMemory "OVERLOADED_MEMORY" "memory" "the memory budget is used up";
    0x0102 OverloadedRequest "OVERLOADED_REQUEST" "requests" "too many requests wait for an answer";
    0x0103 ProducerLimit "PRODUCER_LIMIT" "producers" "the table of producers is full";
    0x0104 ConsumerLimit "CONSUMER_LIMIT" "consumers" "the table of consumers is full";
    0x0105 Recovering "RECOVERING" "recovering" "the partition is being opened";
    0x0106 Behind "BEHIND" "behind" "the replica does not hold what was asked for yet";
    0x0201 BacklogFull "BACKLOG_FULL" "backlog" "the topic holds as many bytes as it may and its policy is reject";
    0x0202 StorageLow "STORAGE_LOW" "disk" "the disk has no room for another segment";
    0x0301 NotLeader "NOT_LEADER" "not_leader" "another broker leads this partition";
    0x0302 Draining "DRAINING" "draining" "the broker is shutting down";
    0x0303 StorageFenced "STORAGE_FENCED" "fenced" "a write or flush failed and the partition stopped serving";
    0x0304 OverloadedConnect "OVERLOADED_CONNECT" "connections" "the broker has as many connections as it may";
    0x0401 MessageTooLarge "MESSAGE_TOO_LARGE" "too_large" "the message exceeds the limit of this broker";
    0x0402 UnknownTopic "UNKNOWN_TOPIC" "unknown_topic" "no topic of this name exists";
    0x0403 UnknownPartition "UNKNOWN_PARTITION" "unknown_partition" "the topic has no partition of this number";
    0x0404 TopicExists "TOPIC_EXISTS" "topic_exists" "a topic of this name exists already";
    0x0406 BadRequest "BAD_REQUEST" "bad_request" "the request contradicts itself or its limits";
    0x0407 Unauthenticated "UNAUTHENTICATED" "unauthenticated" "the authentication was refused";
    0x0408 OffsetOutOfRange "OFFSET_OUT_OF_RANGE" "out_of_range" "the offset lies outside the log";
    0x0409 DamagedRange "DAMAGED_RANGE" "damaged" "the range is damaged on this replica and is not served";
    0x040a ProducerFenced "PRODUCER_FENCED" "producer_fenced" "the producer was opened again elsewhere";
    0x040b TopicLimit "TOPIC_LIMIT" "topics" "the broker has as many topics or partitions as it may";
    0x0501 LeaderLost "LEADER_LOST" "leader_lost" "the leader stopped before the outcome was known";
    0x0502 StorageError "STORAGE_ERROR" "storage_error" "storage failed after the batch was accepted";
    0x0601 CreditViolation "CREDIT_VIOLATION" "credit_violation" "more was sent than was granted";
    0x0602 FrameTooLarge "FRAME_TOO_LARGE" "frame_too_large" "a frame exceeds its limit";
    0x0603 BadFrame "BAD_FRAME" "bad_frame" "a frame is malformed";
    0x0604 BadState "BAD_STATE" "bad_state" "the frame does not belong in this state";
    0x0605 UnsupportedVersion "UNSUPPORTED_VERSION" "version" "no protocol version is common to both peers";
    0x0606 PeerSilent "PEER_SILENT" "silent" "the peer was silent for too long";
    0x0607 SlowConsumer "SLOW_CONSUMER" "slow_consumer" "the peer did not read what was sent for too long";
    0x0608 TakenOver "TAKEN_OVER" "taken_over" "a newer consumer reads this partition of the subscription";
    0x0701 WouldBlock "WOULD_BLOCK" "would_block" "sending now would mean waiting";
    0x0702 DeadlineLocal "DEADLINE_LOCAL" "deadline_local" "the deadline passed before the broker answered";
    0x0703 RetryBudgetEmpty "RETRY_BUDGET_EMPTY" "retry_budget" "too large a share of requests are retries";
    0x0704 Closed "CLOSED" "closed" "the client was closed";
    0x0705 Unreachable "UNREACHABLE" "unreachable" "no endpoint could be reached";
    0x0801 DeadlineExpired "DEADLINE_EXPIRED" "deadline" "the deadline passed before the batch was appended";
    0x0901 SequenceGap "SEQUENCE_GAP" "sequence_gap" "the sequence is not the one behind the last stored";
    0x0902 BadChecksum "BAD_CHECKSUM" "checksum" "a checksum does not match its content";
    0x0903 UnknownProducer "UNKNOWN_PRODUCER" "unknown_producer" "the producer is not known to this partition any more";
    0x0a01 SettleOutOfRange "SETTLE_OUT_OF_RANGE" "settle_out_of_range" "the settle lies outside what was delivered";
    0x0a02 Generation "GENERATION" "generation" "a newer assignment gave the partition to another consumer";
}

impl ErrorCode {
    /// The number on the wire.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// What a client does about it.
    pub const fn action(self) -> Action {
        Action::of(self.number())
    }
}

/// What became of a publish that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// It is certainly not in the log and never will be.
    NotStored = 0,
    /// It may be in the log; only the same sequence can tell.
    Unknown = 1,
    /// It is in the log.
    Stored = 2,
}

impl Outcome {
    /// The outcome of this number, if it is one.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::NotStored),
            1 => Some(Self::Unknown),
            2 => Some(Self::Stored),
            _ => None,
        }
    }
}

/// What a refusal applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Scope {
    /// One batch or one request.
    Message = 0,
    /// The stream.
    Stream = 1,
    /// The topic.
    Topic = 2,
    /// The connection.
    Connection = 3,
    /// The broker.
    Broker = 4,
}

impl Scope {
    /// The scope of this number, if it is one.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Message),
            1 => Some(Self::Stream),
            2 => Some(Self::Topic),
            3 => Some(Self::Connection),
            4 => Some(Self::Broker),
            _ => None,
        }
    }
}

/// Why a grant is smaller than what was asked for; bits, so that several can hold at once.
pub mod reason_bits {
    /// The pool of this device is shared out.
    pub const POOL: u32 = 1;
    /// The topic is full and holds publishers back.
    pub const BACKLOG: u32 = 2;
    /// The disk has no room for another segment.
    pub const DISK: u32 = 4;
    /// The broker is shutting down.
    pub const DRAINING: u32 = 8;
    /// Every bit with the metric label that it shares with the error codes.
    pub const ALL: [(u32, &str); 4] =
        [(POOL, "memory"), (BACKLOG, "backlog"), (DISK, "disk"), (DRAINING, "draining")];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_names_are_unique_and_the_high_byte_decides() {
        assert!(ErrorCode::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_u16(code.number()), Some(*code));
            assert_eq!(code.action(), Action::of(code.number()));
            let same_name = ErrorCode::ALL.iter().filter(|other| other.name() == code.name());
            assert_eq!(same_name.count(), 1);
        }
        assert_eq!(Action::of(0x01ff), Action::Wait);
        assert_eq!(Action::of(0xff01), Action::Never);
    }
}
