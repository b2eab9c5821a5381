//! When messages are due: fixed before the load begins, so that a slow server does not slow the
//! questions down.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How arrivals are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Evenly.
    #[default]
    Constant,
    /// As independent users do: exponential gaps.
    Poisson,
}

/// The due times of one publisher, as offsets from the start.
#[derive(Debug, Clone)]
pub struct Schedule {
    arrivals: Arrivals,
    gap: f64,
    next: f64,
    random: fastrand::Rng,
}

impl Schedule {
    /// `rate` messages a second, the first one gap in; the same seed gives the same times.
    pub fn new(arrivals: Arrivals, rate: f64, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { arrivals, gap: 1.0 / rate, next: 0.0, random }
    }
}

impl Iterator for Schedule {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        self.next += match self.arrivals {
            Arrivals::Constant => self.gap,
            // 1 - f64() is in (0, 1], whose logarithm is finite.
            Arrivals::Poisson => -(1.0 - self.random.f64()).ln() * self.gap,
        };
        Some(Duration::from_secs_f64(self.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_arrivals_keep_their_rate_and_their_seed() {
        for arrivals in [Arrivals::Constant, Arrivals::Poisson] {
            let last = Schedule::new(arrivals, 1_000.0, 7).nth(99_999).unwrap();
            assert!((last.as_secs_f64() - 100.0).abs() < 2.0, "{arrivals:?}: {last:?}");
            let twice = [7, 7].map(|seed| Schedule::new(arrivals, 10.0, seed).nth(50));
            assert_eq!(twice[0], twice[1]);
        }
    }
}
