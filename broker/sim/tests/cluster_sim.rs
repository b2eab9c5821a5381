//! Real clusters under faults: what was acknowledged is on every replica, once, in its order.

use std::cell::Cell;
use std::io::Write;
use std::ops::Range;
use std::process::Command;
use std::sync::Once;
use tokio::time::Instant;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use weir_sim::cluster::{Fault, Outcome, Shape, run_cluster};

/// Seeds that every run of the tests covers; `WEIR_SIM_SEEDS=FIRST..END` in the environment covers
/// others, as `cargo xtask sim` does, and `WEIR_SIM_SEED` a single one.
const SEEDS: Range<u64> = 0..4;

fn seeds() -> Range<u64> {
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{text:?} is no seed"));
    let asked = |name| std::env::var(name).ok();
    match (asked("WEIR_SIM_SEED"), asked("WEIR_SIM_SEEDS")) {
        (Some(seed), _) => number(&seed)..number(&seed) + 1,
        (None, Some(seeds)) => {
            let (first, end) = seeds.split_once("..").unwrap_or(("0", &seeds));
            number(first)..number(end)
        }
        (None, None) => SEEDS,
    }
}

/// How to see the same again.
fn again(seed: u64) -> String {
    format!("WEIR_SIM_SEED={seed} cargo test -p weir-sim --test cluster_sim -- what_was")
}

thread_local! {
    /// The seed that this thread simulates, and the panics of its tasks.
    static RUNNING: Cell<(Option<u64>, u32)> = const { Cell::new((None, 0)) };
}

/// A panic of the core ends this process, and one of a connection would go unseen: both are told
/// with their seed.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if let (Some(seed), count) = RUNNING.get() {
                RUNNING.set((Some(seed), count + 1));
                // Not by a macro: what those print is lost when the process ends.
                let text = format!("seed {seed}: {panic}\nagain: {}\n", again(seed));
                let _ = std::io::stderr().write_all(text.as_bytes());
            }
            before(panic);
        }));
    });
}

/// Virtual time, from the first line that a thread writes.
struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        thread_local!(static BEGAN: Instant = Instant::now());
        write!(w, "{:11.6}", BEGAN.with(|began| began.elapsed().as_secs_f64()))
    }
}

/// Writes what brokers and clients log, as far as the filter in `WEIR_SIM_LOG` asks for it.
fn watch_logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Ok(filter) = std::env::var("WEIR_SIM_LOG") {
            let lines = tracing_subscriber::fmt().with_env_filter(filter).with_timer(VirtualTime);
            lines.with_ansi(false).with_writer(std::io::stderr).init();
        }
    });
}

/// Runs a seed, which breaks nothing.
fn run(seed: u64) -> Outcome {
    watch_panics();
    watch_logs();
    RUNNING.set((Some(seed), 0));
    let shape = Shape::of(seed);
    let outcome = run_cluster(seed, &shape);
    let (_, panics) = RUNNING.replace((None, 0));
    let outcome = outcome
        .unwrap_or_else(|error| panic!("seed {seed}: {error}\n{shape:?}\nagain: {}", again(seed)));
    let report = &outcome.report;
    assert!(report.is_clean(), "seed {seed}: {report}\n{shape:?}\nagain: {}", again(seed));
    assert_eq!(panics, 0, "seed {seed}: tasks panicked\nagain: {}", again(seed));
    let drains = u32::from(shape.replicas) * u32::from(shape.partitions);
    assert_eq!(report.drains, drains, "seed {seed}: every partition of every replica");
    outcome
}

#[test]
fn what_was_acknowledged_survives_whatever_goes_wrong() {
    let (mut acknowledged, mut faults) = (0, 0);
    for seed in seeds() {
        let outcome = run(seed);
        acknowledged += outcome.acknowledged;
        faults += outcome.faults;
        // `cargo xtask sim` reads it.
        println!(
            "seed {seed}: {:.3} s virtual, {} acknowledged, {} faults, {} events, trace {:016x}",
            outcome.lasted.as_secs_f64(),
            outcome.acknowledged,
            outcome.faults,
            outcome.report.events,
            outcome.trace,
        );
    }
    if seeds() == SEEDS {
        assert!(acknowledged > 400 && faults > 4, "{acknowledged} messages, {faults} faults");
    }
}

#[test]
fn every_kind_of_fault_is_chosen_by_some_seed() {
    let shapes: Vec<Shape> = (0..80).map(Shape::of).collect();
    let chosen = |fault: &Fault| shapes.iter().any(|shape| shape.faults.contains(fault));
    assert!(Fault::ALL.iter().all(chosen));
    assert!([3, 5].iter().all(|brokers| shapes.iter().any(|shape| shape.brokers == *brokers)));
}

/// What the other process is told to come to.
const EXPECTED: &str = "WEIR_SIM_EXPECTED_TRACE";
const CANARY: u64 = 4;

#[test]
fn the_same_seed_gives_the_same_trace_here_and_elsewhere() {
    let outcome = run(CANARY);
    let trace = outcome.trace.to_string();
    if let Ok(expected) = std::env::var(EXPECTED) {
        assert_eq!(trace, expected);
        return;
    }
    assert_eq!(run(CANARY), outcome);
    let this = std::env::current_exe().expect("a test knows its own file");
    let name = "the_same_seed_gives_the_same_trace_here_and_elsewhere";
    let other = Command::new(this).args([name, "--exact"]).env(EXPECTED, trace).output();
    let output = other.expect("the test runs itself");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
