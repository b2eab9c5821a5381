//! The real broker over a log of which one bit is not what was written.

use weir_sim::world::damage::{Damaged, Spot, run_damaged};

/// Seeds that every run of the tests covers; `WEIR_SIM_SEEDS` in the environment covers more.
const SEEDS: u64 = 6;

fn runs(spot: Spot) -> Vec<Damaged> {
    let asked = std::env::var("WEIR_SIM_SEEDS").ok();
    let seeds = asked.map_or(SEEDS, |seeds| seeds.parse().expect("WEIR_SIM_SEEDS is a number"));
    (0..seeds).map(|seed| run_damaged(seed, spot)).collect()
}

#[test]
fn a_bit_of_a_sealed_segment_costs_its_batch_and_nothing_else() {
    let runs = runs(Spot::Sealed);
    assert!(runs.iter().any(|run| !run.lost.is_empty()), "{runs:?}");
    // A checkpoint was taken behind the seal.
    assert!(runs.iter().all(|run| !run.was_read_only), "{runs:?}");
}

#[test]
fn a_bit_of_the_last_batch_is_never_taken_for_a_torn_tail() {
    let runs = runs(Spot::LastBatch);
    assert!(runs.iter().any(|run| run.was_read_only && !run.lost.is_empty()), "{runs:?}");
}

#[test]
fn the_same_damage_gives_the_same_trace() {
    assert_eq!(run_damaged(3, Spot::LastBatch), run_damaged(3, Spot::LastBatch));
}
