//! Bugs that can be planted: a suite that does not catch them proves nothing.
//!
//! Owns: the list of bugs, and which of them is planted.
//! Never: is part of a build without the feature `planted`: there the compiler drops every hook.
//! Invariant: at most one bug is planted in a process.

use std::io;

/// What `WEIR_PLANTED` can name. `cargo xtask planted` reads the names here.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bug {
    /// Who waits for a flush is told before it begins.
    ToldBeforeFlushed,
    /// A flush of one log says that all is well, and none took place.
    FlushSkipped,
    /// The same of the flush that several logs share.
    SharedFlushSkipped,
    /// A log counts as flushed although the device did not take its bytes.
    FailedHandOverCounted,
    /// A log goes on after a flush that failed, and the next flush says that all is well.
    FenceForgotten,
    /// A truncation does not wait for the flush that is under way.
    FlushUnderWayIgnored,
    /// Who waits for what was cut goes on waiting.
    WaitersOfCutKept,
    /// Those who are satisfied are picked out when the next flush may have begun.
    ToldOutsideTheTurn,
    /// More may be unflushed than recovery counts on.
    UnflushedWithoutLimit,

    /// A segment is followed by another before it is flushed.
    SegmentNotSettled,
    /// A segment gets its name before its header is flushed.
    SegmentHeaderNotFlushed,
    /// The name of a new segment is not made durable.
    SegmentNameNotSynced,
    /// A segment chains to another batch than the last.
    ChainBrokenByRoll,
    /// All segments of a process have the same salt.
    SaltReused,
    /// The header of a recycled segment does not say so.
    RecycledNotSaid,
    /// It is not noted which segment is the newest.
    NewestSegmentNotNoted,
    /// A batch says that everything before it was flushed.
    DurablePosTooLarge,
    /// No batch says that anything was flushed.
    DurablePosNeverSaid,
    /// A watermark is not flushed.
    WatermarkNotFlushed,

    /// A truncation removes segments before what replaces them is linked.
    TruncatedTooEarly,
    /// A trim removes segments before it is noted.
    TrimmedTooEarly,
    /// The segments of a log that begins anew go before the hard state says so.
    RestartedTooEarly,
    /// A segment is written anew while somebody reads it.
    RecycledUnderReaders,
    /// The old name of a recycled segment may come back.
    RecycledNameNotSynced,

    /// The hard state is always written to the same place.
    NewestMetaOverwritten,
    /// The hard state is not flushed.
    MetaNotFlushed,
    /// A checkpoint or a list of damaged ranges gets its name before it is flushed.
    ReplacementNotFlushed,
    /// Damage that is found by a reader is not kept.
    DamageMetNotKept,
    /// Damage that is found by a start is not kept.
    DamageFoundNotKept,

    /// A start acts on a hard state that may not be durable.
    FoundMetaNotSettled,
    /// A start acts on names that may not be durable.
    FoundNamesNotSynced,
    /// A start flushes what nothing proves, and does not write it again.
    UnprovenNotRewritten,
    /// What a torn write left in the padding of a batch stays there.
    PaddingNotCleaned,
    /// A start cuts the log at a batch that is damaged below what was flushed.
    DamageTakenForTorn,
    /// A start takes a torn tail for the end, and goes on over it.
    TornTakenForEnd,
    /// A start keeps some batches of an index whose last is missing.
    OpenIndexKept,
    /// A start opens a log whose end is lost.
    LostTailIgnored,
    /// A batch is accepted whatever it chains to.
    ChainNotChecked,
    /// The index of a segment is believed whatever its successor says.
    IndexBelieved,
    /// A reader hands bytes out that it did not verify.
    ReadUnverified,
    /// What is brought to fill a hole is taken whatever it chains to.
    MendedUnchained,
    /// A hole counts as filled although the log behind it does not continue what was brought.
    MendedUnclosed,
}

/// Whether this bug is planted.
#[cfg(not(feature = "planted"))]
pub(crate) const fn is_planted(_bug: Bug) -> bool {
    false
}

/// Whether this bug is planted.
#[cfg(feature = "planted")]
pub(crate) fn is_planted(bug: Bug) -> bool {
    is_planted_as(&format!("{bug:?}"))
}

/// Whether the bug of this name is planted, here or in what builds on this.
#[cfg(feature = "planted")]
pub fn is_planted_as(name: &str) -> bool {
    static PLANTED: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("WEIR_PLANTED").ok());
    PLANTED.as_ref().is_some_and(|planted| planted == name)
}

/// Does what must be done, unless this bug is planted.
pub(crate) fn unless(bug: Bug, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if is_planted(bug) { Ok(()) } else { act() }
}

/// Lets others do first what must not come first: a bug that needs a race is no chance.
pub(crate) fn lose_the_race() {
    std::thread::sleep(std::time::Duration::from_millis(20));
}

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("bugs are planted in tests, never in what is shipped");
