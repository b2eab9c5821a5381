//! Bugs that can be planted: a suite that does not catch them proves nothing.
//!
//! Owns: the list of the broker's bugs; which one is planted the storage knows.
//! Never: is part of a build without the feature `planted`: there the compiler drops every hook.
//! Invariant: no name is the storage's too: at most one bug is planted in a process.

/// What `WEIR_PLANTED` can name. `cargo xtask planted` reads the names here.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bug {
    /// A replica says that it holds what it has not flushed.
    AckedUnflushed,
    /// A flush that failed counts as one that did not.
    FailedFlushAcked,
    /// A vote is not flushed before it is given.
    VoteNotFlushed,
    /// A vote is flushed before the appends that came earlier.
    VoteOvertakesAppends,
    /// What was committed is believed although the log does not reach so far.
    CommittedBelieved,
    /// A checkpoint is flushed before the log that it is made of.
    CheckpointOvertakesLog,
    /// The log is trimmed before that is written down.
    TrimNotNoted,
    /// A truncation leaves one index too many.
    TailKept,
    /// A batch is in turn although one before it in its run was refused.
    GapInRunIgnored,
    /// What a leader sent is stored whatever it chains to.
    ReceivedChainNotChecked,
    /// What a peer sent is believed whatever its checksum says.
    ReceivedBodyNotChecked,
    /// A leader that was restarted goes on in its old term.
    TermResumed,
    /// A replica whose log is gone votes as if it had never had one.
    LostReplicaTakesPart,
    /// So does one that promised out of memory and lost it.
    UncleanReplicaTakesPart,
    /// A change of the group does not say what it changes.
    MembershipUnfenced,
    /// A leader answers for itself without asking anybody.
    LeaseRead,
    /// Who gave its vote is taken to have all that its leader has.
    VoterTakenForWhole,
    /// Everybody who asks whether an election would succeed is told that it would.
    TrialAlwaysGranted,
    /// A beat of a leader of an older term is answered as that of the newest.
    StaleBeatAccepted,
    /// The answer to an older beat counts as that to a newer one.
    OldAnswerCounts,
    /// A snapshot may end behind where readers may begin.
    SnapshotInsideRetained,
    /// A log that differs from a leader's snapshot of it is not noticed.
    SnapshotNotCompared,
    /// Damage that a follower asks for ends the leader.
    DamageEndsLeader,

    /// A leader takes publishes before it has applied what the leaders before it stored.
    OwnTermNotAwaited,
    /// A proposal of an older term is taken.
    TermNotFenced,
    /// A checkpoint forgets what producers have stored.
    CheckpointWithoutDedup,
    /// So does a change of the leader.
    DedupLostWithLeader,
    /// What is in flight is not known to the duplicate check.
    RepetitionInFlightStored,
    /// Records are delivered before they are committed.
    ServedBeyondCommitted,
    /// A reader that is to wait for an offset is let in before.
    ReachIgnored,
    /// A consumer is let in by a leader that may have been replaced before it came.
    LeadNotProven,
    /// A settle is confirmed before it is committed.
    SettleNotAwaited,
    /// A consumer of an older assignment takes the place of one of a newer.
    OldAssignmentServed,
    /// A partition has a new holder before the old one has given it up.
    SeatPassedEarly,
    /// A replica that follows goes on serving those whom only the leader may.
    FollowerServes,

    /// A replica's id is given to another.
    ReplicaIdReused,
    /// The gate rises above what some broker reads.
    GateUnread,
    /// A broker is removed with the replicas that it holds.
    RemovedInUse,
    /// A replica votes before it has the log.
    VoterNotCaughtUp,
    /// A change of the group that was interrupted is left in the middle.
    JointLeft,
    /// Who leads steps out of its group without handing over.
    LeaderStepsOut,
    /// A replica is replaced although the rest is no majority that can be heard of.
    ReplacedWithoutMajority,
    /// The leader of an older term is believed.
    OldLeaderBelieved,
    /// News of an older term take the place of newer ones.
    OldNewsTaken,

    /// What was answered between brokers is not paid back.
    PeerCreditLeaks,
    /// A peer beyond this machine needs no secret.
    NoSecretNeeded,
}

/// Whether this bug is planted.
#[cfg(not(feature = "planted"))]
pub(crate) const fn is_planted(_bug: Bug) -> bool {
    false
}

/// Whether this bug is planted.
#[cfg(feature = "planted")]
pub(crate) fn is_planted(bug: Bug) -> bool {
    weir_storage::is_planted_as(&format!("{bug:?}"))
}
