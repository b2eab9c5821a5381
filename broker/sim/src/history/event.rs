//! Owns: what a history is made of: events of 32 bytes, stamped by one monotonic clock.
//! Never: a body; a delivered body is turned into the message that it names before it is recorded.
//! Invariants: numbers of producers, consumers, subscriptions and partitions are small and dense, as
//! they index arrays; a consumer's number is its session's, and is never given to another.

/// One thing that happened, when the recorder learnt of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of the one monotonic clock; never falls from one event to the next.
    pub at_ns: u64,
    /// What happened.
    pub what: What,
}

const _: () = assert!(size_of::<Event>() == 32, "a history of ten million events fits in memory");

/// The identity of a message, which its body carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Who published it.
    pub producer: u16,
    /// Where it belongs.
    pub partition: u16,
    /// Numbers the messages of the producer in the partition, dense from 0, in the order in which
    /// the application handed them over. A refused message keeps its number and is never retried.
    pub sequence: u32,
}

/// How a consumer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A plain reader: its own place, no cursor, no settle.
    Reader,
    /// A reader of one replica's whole log at the end of the history, by which loss is judged.
    Drain,
    /// A subscription in mode `stream`: one durable cursor, settled cumulatively.
    Stream,
    /// A subscription in mode `queue`, unordered: a late ack is accepted while nothing is settled.
    Queue,
    /// A subscription in mode `queue`, ordered by key. The workload's key is the producer.
    KeyedQueue,
}

/// How a consumer settles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Done. In mode `stream`: this offset and everything below it.
    Ack,
    /// Give it back.
    Release,
    /// It failed: again, later.
    Fail,
    /// Never again: dead-letter it.
    Reject,
    /// Put it aside.
    Park,
    /// Not done yet: a longer lease.
    Extend,
}

/// What became of a settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettleResult {
    /// It was obeyed.
    Ok,
    /// Somebody settled the record before.
    AlreadySettled,
    /// Refused: stale, not leased, of another generation, or gone.
    Refused,
    /// No answer came.
    Unknown,
}

/// How a record leaves a subscription without an ack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Its time was over, or retention with the policy `expire` took it.
    Expired,
    /// It was copied to the dead-letter topic.
    DeadLettered,
    /// It was put aside, until it is redriven.
    Parked,
    /// A purge, a seek or the policy of a cursor below the log start passed over it.
    Skipped,
}

/// Who holds credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A producer, which spends by publishing.
    Producer(u16),
    /// A consumer, whose credit the broker spends by delivering.
    Consumer(u16),
    /// A stream of one connection, as somebody sees it who listens to the wire: its events are noted
    /// with the bytes that say so, and both directions of it [`What::Spend`].
    Stream(u16),
}

/// The events. Calls are recorded before they leave, answers when they are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the words of ARCHITECTURE.md")]
pub enum What {
    /// A publish begins, for the first time or again after an unknown outcome; `bytes` of body.
    Publish { message: Message, bytes: u32 },
    /// The publish was acknowledged; a duplicate's offset may be forgotten.
    Stored { message: Message, offset: Option<u32> },
    /// The publish was refused for good.
    NotStored { message: Message },
    /// The outcome of the publish is not known.
    Unknown { message: Message },
    /// The log shows the message's batch as VOID: an unknown outcome turns into "not stored".
    Void { message: Message },
    /// A consumer is attached to a partition, or again, and reads from `from` on. Recorded with the
    /// answer, after its predecessor on a subscription in mode `stream` was detached.
    Subscribe { consumer: u16, subscription: u16, partition: u16, mode: Mode, from: u32 },
    /// The consumer's session is over or lost its connection: its leases may end.
    Detach { consumer: u16 },
    /// A record was delivered. `attempt` is the token of its lease and `count` what the application
    /// is told; both are 0 but in queues. `replica` is who delivered.
    Deliver {
        message: Message,
        offset: u32,
        consumer: u16,
        partition: u16,
        attempt: u16,
        count: u16,
        replica: u8,
    },
    /// A body was delivered that nobody made: [`identify`](super::identify) gave `None`.
    Foreign { consumer: u16, partition: u16, offset: u32, replica: u8 },
    /// A settle begins; one of each verb at a time under each token.
    Settle { consumer: u16, partition: u16, offset: u32, attempt: u16, verb: Verb },
    /// A settle was answered, or will not be.
    Settled {
        consumer: u16,
        partition: u16,
        offset: u32,
        attempt: u16,
        verb: Verb,
        result: SettleResult,
    },
    /// The consumer lets the lease run out on purpose.
    Lapse { consumer: u16, partition: u16, offset: u32, attempt: u16 },
    /// The broker says that the record left the subscription; recorded when it did.
    Exit { subscription: u16, partition: u16, offset: u32, exit: Exit },
    /// A parked or dead-lettered record comes back to the subscription.
    Redriven { subscription: u16, partition: u16, offset: u32 },
    /// The log start rose.
    Trim { partition: u16, log_start: u32 },
    /// The operator gave up the damaged offsets `from..to`.
    Damaged { partition: u16, from: u32, to: u32 },
    /// Credit arrived at a producer, or leaves a consumer: cumulative limits within `epoch`, which
    /// rises with each connection. `limit_cost` counts bytes.
    Grant { peer: Peer, epoch: u16, limit_cost: u64, limit_messages: u64 },
    /// Credit that is not spent yet was taken back.
    Revoke { peer: Peer, epoch: u16, limit_cost: u64 },
    /// A producer puts messages of `cost` bytes on the wire. Deliveries to consumers spend by
    /// themselves.
    Spend { peer: Peer, epoch: u16, cost: u32, messages: u32 },
    /// A query for the log end begins; one at a time under each number.
    Tail { query: u16, partition: u16 },
    /// It was answered with the exclusive end, or failed.
    TailEnd { query: u16, end: Option<u32> },
    /// A replica's chained checksum at a committed index.
    Chain { replica: u8, partition: u16, index: u64, chain: u32 },
    /// A replica leads the partition in `term`. An observation: it may be repeated.
    Leader { replica: u8, partition: u16, term: u32 },
    /// A fault begins: crash, cut, pause, full disk.
    Fault,
    /// No fault is left.
    Heal,
    /// A reader in mode [`Mode::Drain`] came to the end of a replica's log.
    Drained { consumer: u16, partition: u16, replica: u8, end: u32 },
}
