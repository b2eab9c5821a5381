//! The real broker on a simulated disk, through crashes.

use weir_sim::world::run;

/// Seeds that every run of the tests covers; `WEIR_SIM_SEEDS` in the environment covers more.
const SEEDS: u64 = 12;

#[test]
fn what_was_acknowledged_survives_crashes() {
    let asked = std::env::var("WEIR_SIM_SEEDS").ok();
    let seeds = asked.map_or(SEEDS, |seeds| seeds.parse().expect("WEIR_SIM_SEEDS is a number"));
    let mut acknowledged = 0;
    for seed in 0..seeds {
        acknowledged += run(seed, 3).acknowledged;
    }
    assert!(acknowledged > 2_000, "the runs published something: {acknowledged}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 7] {
        assert_eq!(run(seed, 2), run(seed, 2), "seed {seed}");
    }
    assert_ne!(run(1, 2).trace, run(2, 2).trace);
}
