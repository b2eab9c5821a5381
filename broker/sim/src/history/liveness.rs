//! Owns: check 14, and when faults were about.
//! Never: judges a history whose last fault did not end, or that ends before its time is over.

use super::Limits;
use super::finding::{Check, Report, Time};
use super::log::{NEVER, PartitionLog, Stage};
use super::subscription::SubscriptionLog;

/// Faults, and what followed the last of them.
#[derive(Debug, Default)]
pub(super) struct Faults {
    is_active: bool,
    /// When the last one ended.
    healed_ns: Option<u64>,
    /// By partition: a leader was observed after that; `None` in partitions that never had one.
    led: Vec<Option<bool>>,
}

impl Faults {
    pub(super) fn begin(&mut self) {
        self.is_active = true;
    }

    pub(super) fn heal(&mut self, at_ns: u64) {
        self.is_active = false;
        self.healed_ns = Some(at_ns);
        self.led.iter_mut().flatten().for_each(|led| *led = false);
    }

    pub(super) fn on_leader(&mut self, at_ns: u64, partition: u16, limits: Limits, r: &mut Report) {
        let led = super::checker::slot(&mut self.led, partition);
        let waited = *led == Some(false) && !self.is_active;
        *led = Some(!self.is_active);
        if waited {
            self.judge_leader(at_ns, partition, limits, r);
        }
    }

    /// There was one at any time.
    pub(super) fn were_any(&self) -> bool {
        self.is_active || self.healed_ns.is_some()
    }

    /// There was one since `since_ns`, give or take what was under way.
    pub(super) fn were_since(&self, since_ns: u64, flight_ns: u64) -> bool {
        let healed = self.healed_ns.is_some_and(|at| at.saturating_add(flight_ns) >= since_ns);
        self.is_active || healed
    }

    /// From when on everything must come to its end; `None` while a fault lasts.
    fn calm_ns(&self) -> Option<u64> {
        (!self.is_active).then(|| self.healed_ns.unwrap_or(0))
    }

    /// At the end: partitions that still wait for a leader.
    pub(super) fn judge(&self, end_ns: u64, limits: Limits, r: &mut Report) {
        for (partition, led) in self.led.iter().enumerate() {
            if *led == Some(false) && !self.is_active {
                self.judge_leader(end_ns, partition as u16, limits, r);
            }
        }
    }

    fn judge_leader(&self, at_ns: u64, partition: u16, limits: Limits, r: &mut Report) {
        let healed_ns = self.healed_ns.unwrap_or(0);
        if at_ns > healed_ns.saturating_add(limits.leader_ns) {
            let text = format_args!(
                "partition {partition} had no leader from {} to {}",
                Time(healed_ns),
                Time(at_ns)
            );
            r.add(Check::Liveness, at_ns, text);
        }
    }

    /// At the end: outcomes that a publisher never learnt. Whether a message that was given up is
    /// stored cannot be known any more where something was trimmed.
    pub(super) fn judge_outcomes(
        &self,
        end_ns: u64,
        partition: u16,
        log: &PartitionLog,
        limits: Limits,
        r: &mut Report,
    ) {
        let Some(calm_ns) = self.calm_ns() else { return };
        for (producer, sequence, one) in log.messages() {
            let since = one.invoked_ns.max(calm_ns);
            let is_due = end_ns > since.saturating_add(limits.drain_ns);
            let is_open = match one.stage {
                Stage::Open => true,
                Stage::Unknown => log.log_start() == 0,
                _ => false,
            };
            if is_due && is_open {
                let text = format_args!(
                    "producer {producer} never learnt what became of sequence {sequence} \
                     (partition {partition}), published at {}",
                    Time(one.invoked_ns)
                );
                r.add(Check::Liveness, end_ns, text);
            }
        }
    }

    /// At the end: records that an attached subscription saw late or never.
    pub(super) fn judge_unseen(
        &self,
        end_ns: u64,
        (name, partition): (u16, u16),
        (log, subscription): (&PartitionLog, &SubscriptionLog),
        limits: Limits,
        r: &mut Report,
    ) {
        let Some(calm_ns) = self.calm_ns() else { return };
        for offset in subscription.start..log.known_end {
            let Some((message, one)) = log.at(partition, offset) else { continue };
            let since = one.known_ns.max(calm_ns).max(subscription.since_ns);
            let seen_ns = subscription.lease(offset).first_ns;
            let until = if seen_ns == NEVER { end_ns } else { seen_ns };
            let is_late = until > since.saturating_add(limits.drain_ns);
            if is_late && !(seen_ns == NEVER && subscription.has_left(offset, log)) {
                let text = format_args!(
                    "subscription {name} had not seen {message} at offset {offset} by {}, though \
                     it was due since {}",
                    Time(until),
                    Time(since)
                );
                r.add(Check::Liveness, end_ns, text);
            }
        }
    }
}
