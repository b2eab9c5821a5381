//! Owns: what is judged at the end of a history, when every exit is known.
//! Never: takes another event.

use super::Checker;
use crate::history::event::Mode;
use crate::history::finding::{Check, Report};
use crate::history::loss;
use crate::history::reader::Place;
use crate::history::subscription::SubscriptionLog;

impl Checker {
    /// Judges what can be judged at the end only.
    pub fn finish(mut self) -> Report {
        let (end_ns, limits) = (self.now_ns, self.limits);
        let r = &mut self.report;
        let nothing = SubscriptionLog::default();
        for suspect in &self.suspects {
            let subscription = self.subscriptions.get(usize::from(suspect.subscription));
            let subscription = subscription.and_then(|all| all.get(usize::from(suspect.partition)));
            let log = &self.logs[usize::from(suspect.partition)];
            suspect.judge(limits.flight_ns, log, subscription.unwrap_or(&nothing), r);
        }
        for (partition, log) in self.logs.iter().enumerate() {
            let partition = partition as u16;
            log.judge_order(partition, end_ns, r);
            self.faults.judge_outcomes(end_ns, partition, log, limits, r);
        }
        self.faults.judge(end_ns, limits, r);
        self.judge_subscriptions();
        self.judge_drains();
        self.report
    }

    fn judge_subscriptions(&mut self) {
        let (at_ns, limits, r) = (self.now_ns, self.limits, &mut self.report);
        let mut attached = vec![false; self.subscriptions.len()];
        for consumer in self.consumers.0.iter().flatten().filter(|one| one.is_attached) {
            if let Some(attached) = attached.get_mut(usize::from(consumer.subscription)) {
                *attached |= !matches!(consumer.mode, Mode::Reader | Mode::Drain);
            }
        }
        for (name, partitions) in self.subscriptions.iter().enumerate() {
            for (partition, subscription) in partitions.iter().enumerate() {
                if !subscription.is_durable() {
                    continue;
                }
                let log = &self.logs[partition];
                let (name, partition) = (name as u16, partition as u16);
                if subscription.mode != Some(Mode::Stream)
                    && !self.faults.were_any()
                    && !self.any_cut
                {
                    let place = Place { at_ns, subscription: name, consumer: 0, partition };
                    subscription.judge_gaps(place, log, r);
                }
                if attached[usize::from(name)] {
                    let what = (log, subscription);
                    self.faults.judge_unseen(at_ns, (name, partition), what, limits, r);
                }
            }
        }
    }

    fn judge_drains(&mut self) {
        let (end_ns, r) = (self.now_ns, &mut self.report);
        let mut drained = vec![false; self.logs.len()];
        for consumer in self.consumers.0.iter().flatten().filter(|one| one.mode == Mode::Drain) {
            for (partition, reading) in consumer.readings.iter().enumerate() {
                let Some(reading) = reading else { continue };
                drained[partition] |= reading.ended.is_some();
                loss::judge_drain(end_ns, partition as u16, reading, &self.logs[partition], r);
            }
        }
        for (partition, log) in self.logs.iter().enumerate() {
            if log.known_end > 0 && !drained[partition] {
                let text = format_args!(
                    "partition {partition}: no drain came to its end, of {} records",
                    log.known_end
                );
                r.add(Check::NoLoss, end_ns, text);
            }
        }
    }
}
