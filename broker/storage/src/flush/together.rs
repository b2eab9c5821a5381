//! One round for several logs: their bytes go to the device side by side, and one flush of its
//! cache makes all of them durable.
//!
//! Owns: the order of a shared flush. Never: counts a log as durable whose bytes the device did not
//! take, or whose device was not flushed afterwards.

use super::{FlushObserver, LogFlush, Turn, clock};
use crate::disk::DeviceId;
use std::io;
use std::sync::Arc;

/// Flushes everything that is dirty now in `logs` and tells those who waited for it.
pub(super) fn flush(logs: &[Arc<LogFlush>], observer: Option<&FlushObserver>) {
    let mut turns = Vec::with_capacity(logs.len());
    for log in logs {
        match log.begin() {
            Ok(turn) => turns.push((log, turn)),
            Err(error) => log.tell(Err(error)),
        }
    }
    let outcomes = {
        let turns: Vec<&Turn<'_>> = turns.iter().map(|(_, turn)| turn).collect();
        flush_turns(&turns, observer)
    };
    for ((log, turn), outcome) in turns.into_iter().zip(outcomes) {
        let outcome = turn.end(outcome, LogFlush::satisfied);
        log.tell(outcome);
    }
}

fn flush_turns(turns: &[&Turn<'_>], observer: Option<&FlushObserver>) -> Vec<io::Result<()>> {
    let started = clock();
    let begun: Vec<io::Result<()>> = turns.iter().map(|turn| hand_over(turn)).collect();
    let taken: Vec<io::Result<Option<DeviceId>>> = turns
        .iter()
        .zip(begun)
        .map(|(turn, begun)| begun.and_then(|()| handed_over(turn, observer)))
        .collect();
    let mut devices: Vec<DeviceId> = taken.iter().filter_map(|t| *t.as_ref().ok()?).collect();
    devices.sort_unstable();
    devices.dedup();
    let mut flushed = Vec::new();
    for device in devices {
        let of_device = |taken: &io::Result<Option<DeviceId>>| {
            taken.as_ref().is_ok_and(|taken| *taken == Some(device))
        };
        let members = turns.iter().zip(&taken).filter(|(_, taken)| of_device(taken));
        let ranges: Vec<_> = members.filter_map(|(turn, _)| turn.dirty.as_ref()).collect();
        let Some((segment, range)) = ranges.last() else { continue };
        let outcome = segment.file.flush(range.clone());
        if let (Ok(()), Some(observer)) = (&outcome, observer) {
            let bytes = ranges.iter().map(|(_, range)| range.end - range.start).sum();
            observer(started.elapsed(), bytes);
        }
        flushed.push((device, outcome));
    }
    taken.into_iter().map(|taken| outcome_of(taken, &flushed)).collect()
}

fn hand_over(turn: &Turn<'_>) -> io::Result<()> {
    turn.dirty.as_ref().map_or(Ok(()), |(segment, range)| segment.file.hand_over(range.clone()))
}

/// Waits for the device to take a log's bytes; flushes them by themselves where that is not enough.
fn handed_over(turn: &Turn<'_>, observer: Option<&FlushObserver>) -> io::Result<Option<DeviceId>> {
    let Some((segment, range)) = &turn.dirty else { return Ok(None) };
    match segment.file.handed_over(range.clone())? {
        Some(device) => Ok(Some(device)),
        None => turn.flush(observer).map(|()| None),
    }
}

/// The log's own failure, or that of the flush that it shared.
fn outcome_of(
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
