//! What disks do wrong.
//!
//! Owns: disks that are full, that fail and that lose what they were given.
//! Never: spoils more disks than a minority in a whole run.

use super::super::plan::Fault;
use super::super::rot;
use super::{Nemesis, any_cut};
use crate::disk::Op;
use std::io::ErrorKind;
use tokio::time::{Duration, Instant, sleep};

/// What a full disk has left at most.
const FULL_LEAVES_BYTES: u64 = 2 << 20;
/// What one has left that is not full any more.
const ROOM_BYTES: u64 = 4 << 30;
/// Flushes that still go well before one fails.
const FLUSHES_BEFORE: usize = 100;
/// It is looked at so often whether a flush has failed.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A broker whose device failed ends its process within a second; here it is ended before.
const ENDS_WITHIN_MS: u64 = 900;

impl Nemesis {
    pub(super) async fn fill_disk(&self, one: u8, lasts: Duration, random: &mut fastrand::Rng) {
        let disk = self.cluster.machine(one).disk();
        disk.leave_room(random.u64(..FULL_LEAVES_BYTES));
        sleep(lasts).await;
        disk.leave_room(ROOM_BYTES);
    }

    /// Lets a flush fail and ends the broker, as it does itself. What the flush was to keep is gone
    /// with the power, if that goes as well.
    pub(super) async fn fail_flush(&self, one: u8, lasts: Duration, random: &mut fastrand::Rng) {
        if !self.take(one) {
            return;
        }
        let machine = self.cluster.machine(one);
        let (disk, until) = (machine.disk(), Instant::now() + lasts);
        let skipped = random.usize(..FLUSHES_BEFORE);
        let passes = disk.calls(Op::Flush) + skipped;
        disk.fail(Op::Flush, ErrorKind::Other, skipped, 1);
        while disk.calls(Op::Flush) <= passes && Instant::now() < until {
            sleep(LOOK_EVERY).await;
        }
        sleep(Duration::from_millis(random.u64(..ENDS_WITHIN_MS))).await;
        // A fault that nothing has met yet goes with the power.
        let failed = disk.calls(Op::Flush) > passes;
        match failed && random.bool() {
            true => machine.kill().await,
            false => machine.cut_power(any_cut(random)).await,
        }
        self.start(one).await;
    }

    /// Ends a broker, and takes some or all from its disk before it starts again.
    pub(super) async fn spoil_disk(
        &self,
        fault: Fault,
        one: u8,
        lasts: Duration,
        random: &mut fastrand::Rng,
    ) {
        let one = self.one_to_spoil(one, random);
        // Once: until what a wiped disk held is replaced, half a minute later, it is missing.
        if self.state().wiped.contains(&one) || !self.take(one) {
            return;
        }
        if fault == Fault::Wipe {
            self.state().wiped.insert(one);
        }
        let machine = self.cluster.machine(one);
        machine.kill().await;
        match fault {
            Fault::Wipe => rot::wipe(machine.disk()),
            _ => match rot::rot(machine.disk(), random) {
                Ok(spots) => tracing::info!(one, spots, "a disk rots"),
                Err(error) => tracing::warn!(one, error, "a disk cannot be looked at"),
            },
        }
        sleep(lasts).await;
        self.start(one).await;
    }

    /// This machine, or where a minority is spoilt already one of those.
    fn one_to_spoil(&self, one: u8, random: &mut fastrand::Rng) -> u8 {
        let mut state = self.state();
        let spoilt: Vec<u8> = state.damaged.iter().copied().collect();
        let one = match spoilt.len() < self.spoilt_max {
            true => one,
            false => *random.choice(&spoilt).expect("a minority is not empty"),
        };
        state.damaged.insert(one);
        one
    }
}
