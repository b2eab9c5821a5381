//! The two copies of several generations, side by side.
//!
//! Owns: the order in which copies become durable.
//! Never: touches a second copy before the first one is durable.
//! Invariant: however many generations there are, they cost two flushes of a device.

use super::Generation;
use crate::disk::DeviceId;
use crate::flush::together::{Shared, flush_devices, outcome_of};
use crate::planted::{Bug, unless};
use std::io;

/// Writes each generation, and says what became of it.
pub(super) fn write(generations: &[Generation]) -> Vec<io::Result<()>> {
    let mut outcomes: Vec<io::Result<()>> = generations.iter().map(|_| Ok(())).collect();
    for copy in 0..2 {
        write_copies(generations, copy, &mut outcomes);
    }
    outcomes
}

/// Writes one copy of each generation that has not failed.
fn write_copies(generations: &[Generation], copy: u64, outcomes: &mut [io::Result<()>]) {
    let is_alone = generations.len() == 1;
    for (generation, outcome) in generations.iter().zip(&mut *outcomes) {
        if outcome.is_ok() {
            *outcome = generation.file.write_at(generation.copy(copy).start, &generation.bytes);
        }
        if outcome.is_ok() && !is_alone {
            *outcome = generation.file.hand_over(generation.copy(copy));
        }
    }
    let taken: Vec<_> = generations
        .iter()
        .zip(&mut *outcomes)
        .map(|(generation, outcome)| {
            std::mem::replace(outcome, Ok(()))?;
            take(generation, copy, is_alone)
        })
        .collect();
    let shared = generations.iter().zip(&taken).filter_map(|(generation, taken)| {
        let device = taken.as_ref().ok().copied().flatten()?;
        Some(Shared { device, file: &*generation.file, range: generation.copy(copy) })
    });
    let flushed =
        flush_devices(shared, |shared| flush(copy, || shared.file.flush(shared.range.clone())));
    for (taken, outcome) in taken.into_iter().zip(outcomes) {
        *outcome = outcome_of(taken, &flushed);
    }
}

/// Waits for the device to take a copy; flushes it by itself where that is not enough, or nobody is
/// there to share a flush with.
fn take(generation: &Generation, copy: u64, is_alone: bool) -> io::Result<Option<DeviceId>> {
    let range = generation.copy(copy);
    if !is_alone && let Some(device) = generation.file.handed_over(range.clone())? {
        return Ok(Some(device));
    }
    flush(copy, || generation.file.flush(range))?;
    Ok(None)
}

fn flush(copy: u64, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let flush = || unless(Bug::MetaNotFlushed, flush);
    if copy == 0 { unless(Bug::MetaCopiesTogether, flush) } else { flush() }
}
