//! The judge of histories: takes what is right, and names what is wrong.

#[path = "history/model.rs"]
mod model;

use weir_sim::history::{Event, Limits, Report, check};

/// Histories of the model, each of a few hundred events.
const SEEDS: u64 = 3_000;

fn limits() -> Limits {
    Limits { flight_ns: 5_000_000, ..Limits::default() }
}

fn judge(history: &[Event]) -> Report {
    check(history, limits())
}

#[test]
fn what_keeps_every_promise_is_accepted() {
    let mut events = 0;
    for seed in 0..SEEDS {
        let history = model::history(seed);
        let report = judge(&history);
        assert!(report.is_clean(), "seed {seed}: {report}");
        events += report.events;
    }
    assert!(events > 200 * SEEDS, "{events}");
}
