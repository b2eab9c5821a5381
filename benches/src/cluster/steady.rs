//! Two loads in turns, as fast as windows allow.
//!
//! Owns: the turns, so that both see the same minutes of the machine, their medians, what is made of
//! them; and the cluster that such turns run against.

use super::brokers::Brokers;
use super::{BROKERS, Bound, Goal, Place, goal_lines, make_topic, other};
use crate::load;
use crate::measure::median;
use crate::workload::Workload;
use serde::Serialize;
use std::io;
use std::path::Path;
use weir_client::Client;

/// A load.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Load {
    /// Publishers, each with a connection of its own.
    pub publishers: usize,
    /// Unacknowledged messages of one publisher.
    pub window: usize,
    /// Bytes of a message.
    pub message_bytes: usize,
    /// How long it is measured.
    pub seconds: f64,
}

/// How long it runs before that, seconds.
pub(super) const WARMUP_S: f64 = 1.0;

impl Load {
    fn workload(self, topic: &str) -> Workload {
        Workload {
            name: topic.to_owned(),
            topic: topic.to_owned(),
            publishers: self.publishers,
            window: self.window,
            message_bytes: self.message_bytes,
            seconds: self.seconds,
            warmup_seconds: WARMUP_S,
            ..Workload::default()
        }
    }

    /// Messages a second that a topic acknowledges. An error of any is one of the whole: a load that
    /// nothing disturbs has none.
    pub(super) async fn goodput(self, endpoints: &[String], topic: &str) -> io::Result<f64> {
        let report = load::run(endpoints, self.workload(topic), None).await.map_err(other)?;
        match report.refused.is_empty() {
            true => Ok(report.acked_per_second),
            false => Err(other(format!("{topic}: publishers were told {:?}", report.refused))),
        }
    }
}

/// Messages a second, a turn of each after another.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Turns {
    /// What is compared with.
    pub base: Vec<f64>,
    /// What is compared.
    pub measured: Vec<f64>,
}

impl Turns {
    /// The medians of both.
    pub fn medians(&self) -> (f64, f64) {
        (median(&self.base), median(&self.measured))
    }

    /// The median of the ratios of the turns, and the least and the most of them.
    pub fn ratio(&self) -> (f64, f64, f64) {
        let ratios: Vec<_> = self.base.iter().zip(&self.measured).map(|(b, m)| m / b).collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        (median(&ratios), least, ratios.iter().copied().fold(0.0, f64::max))
    }

    /// For people.
    pub(super) fn table(&self, base: &str, measured: &str) -> String {
        let ((of_base, of_measured), (ratio, least, most)) = (self.medians(), self.ratio());
        format!(
            "{base:<32} {of_base:>10.0} messages/s\n{measured:<32} {of_measured:>10.0} \
             messages/s\nratio of {} turns {ratio:.3} ({least:.3}-{most:.3})\n",
            self.base.len()
        )
    }
}

/// Two loads that were compared.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Of both.
    pub load: Load,
    /// What was reached in them.
    pub turns: Turns,
    /// What it shall be.
    pub goals: Vec<Goal>,
    /// What the base and what is measured are called.
    #[serde(skip)]
    names: [String; 2],
}

impl Comparison {
    /// `of` is what the goal is about: `scale` times the ratio of the turns, `least` or more.
    pub(super) fn new(
        (load, turns): (Load, Turns),
        names: [&str; 2],
        (of, scale, least): (&str, f64, f64),
    ) -> Self {
        let goals = vec![Goal::new(of, turns.ratio().0 * scale, Bound::AtLeast(least))];
        Self { load, turns, goals, names: names.map(str::to_owned) }
    }

    /// For people.
    pub fn table(&self) -> String {
        let [base, measured] = &self.names;
        self.turns.table(base, measured) + &goal_lines(&self.goals)
    }
}

/// A cluster with topics of one partition, by name and number of replicas, and a client of it.
/// `settings` of its brokers are named as the environment has them.
pub(super) async fn cluster_with(
    (place, scratch): (&Place, &Path),
    settings: &[(&'static str, &'static str)],
    topics: &[(&str, u8)],
) -> io::Result<(Brokers, Client)> {
    let brokers = Brokers::start_with(place, scratch, BROKERS, settings).await?;
    let client = load::connect(&brokers.endpoints()).await.map_err(other)?;
    for (topic, replicas) in topics {
        make_topic(&brokers, &client, topic, (1, *replicas)).await?;
    }
    Ok((brokers, client))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_that_of_the_turns() {
        let turns = Turns { base: vec![10.0, 100.0, 20.0], measured: vec![5.0, 90.0, 8.0] };
        assert_eq!(turns.medians(), (20.0, 8.0));
        assert_eq!(turns.ratio(), (0.5, 0.4, 0.9));
    }
}
