//! Waits until what rotted was found and brought back.
//!
//! Owns: what a broker says of that, and how long it may take.
//! Never: has the last word: the files are verified once their broker is down.

use super::machine::Machine;
use crate::now;
use std::thread;
use std::time::Duration;

/// From the last bit that flipped. A replica is opened anew for what was found in it, and searched
/// once more some seconds later.
const MENDED_WITHIN: Duration = Duration::from_secs(90);
const ASK_EVERY: Duration = Duration::from_millis(500);
const PASSES: &str = "weir_scrub_passes_total";
/// What the admin API says of an open partition without damage.
const WHOLE: &str = "\"damaged\":[]";

/// What a broker says of its search for rot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Search {
    /// Through everything, since the broker was started.
    passes: u64,
    /// Partitions of the topic that are open and not damaged, as far as is known.
    whole: usize,
}

impl Search {
    fn ask(machine: &mut Machine, topic: &str) -> Result<Self, String> {
        let metrics = machine.ask("metrics")?;
        Ok(Self::read(&metrics, &machine.ask(&format!("v1/topics/{topic}"))?))
    }

    fn read(metrics: &str, topic: &str) -> Self {
        let passes =
            metrics.lines().find_map(|line| line.strip_prefix(PASSES)?.trim().parse().ok());
        Self { passes: passes.unwrap_or(0), whole: topic.matches(WHOLE).count() }
    }
}

/// Waits until the broker has searched everything once more, and says of so many partitions of the
/// topic that nothing of them is damaged.
pub(super) fn wait_until_mended(
    machine: &mut Machine,
    (topic, partitions): (&str, u16),
) -> Result<(), String> {
    let began = now();
    // A pass that is under way may be past what rotted last.
    let behind = Search::ask(machine, topic)?.passes + 2;
    loop {
        let search = Search::ask(machine, topic)?;
        if search.passes >= behind && search.whole == usize::from(partitions) {
            return Ok(());
        }
        if began.elapsed() > MENDED_WITHIN {
            return Err(format!(
                "broker {}: what rotted was not found and brought back within {MENDED_WITHIN:?}: \
                 it should have searched {behind} times, and {partitions} partitions of {topic} \
                 should be whole; it says {search:?}",
                machine.number()
            ));
        }
        thread::sleep(ASK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_says_how_far_its_search_is_and_what_is_whole() {
        let metrics = "# HELP weir_scrub_passes_total Times\n\
                       # TYPE weir_scrub_passes_total counter\n\
                       weir_scrub_passes_total 3\n";
        let topic = r#"{"partitions":[{"damaged":[],"state":"leading"},{"state":"opening"},
            {"damaged":[{"accepted":false}],"state":"not leading"}]}"#;
        assert_eq!(Search::read(metrics, topic), Search { passes: 3, whole: 1 });
        assert_eq!(Search::read("", "{}"), Search { passes: 0, whole: 0 });
    }
}
