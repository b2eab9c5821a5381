//! Several generations side by side.
//!
//! Owns: how they become durable.
//! Invariant: however many generations there are, they cost one flush of a device.

use super::Generation;
use crate::disk::DeviceId;
use crate::flush::together::{Shared, flush_devices, outcome_of};
use crate::planted::{Bug, unless};
use std::io;

/// Writes each generation, and says what became of it.
pub(super) fn write(generations: &[Generation]) -> Vec<io::Result<()>> {
    let is_alone = generations.len() == 1;
    let begun: Vec<_> = generations.iter().map(|generation| begin(generation, is_alone)).collect();
    let taken = generations.iter().zip(begun).map(|(generation, begun)| {
        begun?;
        take(generation, is_alone)
    });
    let taken: Vec<_> = taken.collect();
    let shared = generations.iter().zip(&taken).filter_map(|(generation, taken)| {
        let device = taken.as_ref().ok().copied().flatten()?;
        Some(Shared { device, file: &*generation.file, range: generation.range.clone() })
    });
    let flushed = flush_devices(shared, |shared| {
        unless(Bug::MetaNotFlushed, || shared.file.flush(shared.range.clone()))
    });
    taken.into_iter().map(|taken| outcome_of(taken, &flushed)).collect()
}

/// Writes a generation, and begins to hand it over to the device where a flush can be shared.
fn begin(generation: &Generation, is_alone: bool) -> io::Result<()> {
    generation.file.write_at(generation.range.start, &generation.bytes)?;
    if is_alone { Ok(()) } else { generation.file.hand_over(generation.range.clone()) }
}

/// Waits for the device to take a generation; flushes it by itself where that is not enough, or
/// nobody is there to share a flush with.
fn take(generation: &Generation, is_alone: bool) -> io::Result<Option<DeviceId>> {
    let range = generation.range.clone();
    if !is_alone && let Some(device) = generation.file.handed_over(range.clone())? {
        return Ok(Some(device));
    }
    unless(Bug::MetaNotFlushed, || generation.file.flush(range))?;
    Ok(None)
}
