//! One round: the bytes of its logs go to the device side by side, and one flush of its cache makes
//! all of them durable.
//!
//! Owns: the order of a shared flush. Never: counts a log as durable whose bytes the device did not
//! take, or whose device was not flushed afterwards.

use super::{FlushObserver, LogFlush, Turn, clock};
use crate::disk::{DeviceId, DiskFile};
use crate::planted::{Bug, is_planted, unless};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use weir_protocol::types::Index;

/// How often a round takes in who asked while the device took the bytes of others: what is gained by
/// one flush less must not be lost by waiting.
const JOINS_MAX: usize = 4;

/// A log's flush, and what became of beginning to hand its bytes over.
type Begun = (Turn, io::Result<()>);
/// A log's flush, and the device that took its bytes; none where it flushed by itself.
type Taken = (Turn, io::Result<Option<DeviceId>>);

/// Flushes everything that is dirty now in `logs`, and in those that `late` names while the device
/// takes the bytes of these, and tells those who waited for it.
pub(super) fn flush(
    logs: Vec<Arc<LogFlush>>,
    late: impl Fn(&[Arc<LogFlush>]) -> Vec<Arc<LogFlush>>,
    observer: Option<&FlushObserver>,
) {
    let started = clock();
    let (mut round, mut taken, mut next) = (Vec::new(), Vec::new(), logs);
    for joins in 0..=JOINS_MAX {
        let begun: Vec<Begun> = next.iter().filter_map(begin).collect();
        taken.extend(begun.into_iter().map(|begun| take(begun, observer)));
        round.append(&mut next);
        if joins < JOINS_MAX {
            next = late(&round);
        }
        if next.is_empty() {
            break;
        }
    }
    let flushed = flush_logs(&taken, started, observer);
    for (turn, taken) in taken {
        let log = turn.log.clone();
        let outcome = turn.end(outcome_of(taken, &flushed), LogFlush::satisfied);
        log.tell(outcome);
    }
}

fn begin(log: &Arc<LogFlush>) -> Option<Begun> {
    if is_planted(Bug::ToldBeforeFlushed) {
        log.tell(Ok(log.satisfied(Index(u64::MAX))));
    }
    match log.begin() {
        Ok(turn) => {
            let begun = hand_over(&turn);
            Some((turn, begun))
        }
        Err(error) => {
            log.tell(Err(error));
            None
        }
    }
}

/// Bytes of a file that a device took and has not made durable.
pub(crate) struct Shared<'a> {
    pub(crate) device: DeviceId,
    pub(crate) file: &'a dyn DiskFile,
    pub(crate) range: Range<u64>,
}

/// Flushes each device that took bytes, once: by `flush`, of one of the files on it.
pub(crate) fn flush_devices<'a>(
    taken: impl Iterator<Item = Shared<'a>>,
    flush: impl Fn(&Shared<'a>) -> io::Result<()>,
) -> Vec<(DeviceId, io::Result<()>)> {
    let last: BTreeMap<_, _> = taken.map(|shared| (shared.device, shared)).collect();
    last.into_iter().map(|(device, shared)| (device, flush(&shared))).collect()
}

/// Flushes the devices that took the bytes of logs.
fn flush_logs(
    taken: &[Taken],
    started: Instant,
    observer: Option<&FlushObserver>,
) -> Vec<(DeviceId, io::Result<()>)> {
    let members = || {
        taken.iter().filter_map(|(turn, outcome)| {
            let device = outcome.as_ref().ok().copied().flatten()?;
            let (segment, range) = turn.dirty.as_ref()?;
            Some(Shared { device, file: &*segment.file, range: range.clone() })
        })
    };
    flush_devices(members(), |shared| {
        unless(Bug::SharedFlushSkipped, || shared.file.flush(shared.range.clone()))?;
        if let Some(observer) = observer {
            let here = members().filter(|member| member.device == shared.device);
            observer(started.elapsed(), here.map(|it| it.range.end - it.range.start).sum());
        }
        Ok(())
    })
}

fn hand_over(turn: &Turn) -> io::Result<()> {
    turn.dirty.as_ref().map_or(Ok(()), |(segment, range)| segment.file.hand_over(range.clone()))
}

/// Waits for the device to take a log's bytes; flushes them by themselves where that is not enough.
fn take((turn, begun): Begun, observer: Option<&FlushObserver>) -> Taken {
    let begun = if is_planted(Bug::FailedHandOverCounted) { Ok(()) } else { begun };
    let taken = begun.and_then(|()| {
        let Some((segment, range)) = &turn.dirty else { return Ok(None) };
        match segment.file.handed_over(range.clone())? {
            Some(device) => Ok(Some(device)),
            None => turn.flush(observer).map(|()| None),
        }
    });
    (turn, taken)
}

/// What became of bytes that a device took: their own failure, or that of the flush that they shared.
pub(crate) fn outcome_of(
    taken: io::Result<Option<DeviceId>>,
    flushed: &[(DeviceId, io::Result<()>)],
) -> io::Result<()> {
    let Some(device) = taken? else { return Ok(()) };
    match flushed.iter().find(|(of, _)| *of == device) {
        Some((_, Err(error))) => Err(io::Error::new(error.kind(), error.to_string())),
        Some((_, Ok(()))) => Ok(()),
        None => unreachable!("every device that took bytes was flushed"),
    }
}
