//! The judge of histories: takes what is right, and names what is wrong.

#[path = "history/model.rs"]
mod model;
#[path = "history/mutators.rs"]
mod mutators;

use std::collections::BTreeSet;

use mutators::{Case, MUTATORS, SILENT};
use weir_sim::history::{CHECKS, Check, Event, Limits, Peer, Report, What, check};

/// Histories of the model, each of a few hundred events; `WEIR_SIM_SEEDS` in the environment covers
/// more.
const SEEDS: u64 = 3_000;
/// One in so many of them is what every mutator is tried on.
const MUTATED_ONE_IN: u64 = 5;

fn seeds() -> u64 {
    let asked = std::env::var("WEIR_SIM_SEEDS").ok();
    asked.map_or(SEEDS, |seeds| seeds.parse().expect("WEIR_SIM_SEEDS is a number"))
}

fn judge(history: &[Event]) -> Report {
    check(history, Limits { flight_ns: 5_000_000, ..Limits::default() })
}

#[test]
fn what_keeps_every_promise_is_accepted() {
    let mut events = 0;
    for seed in 0..seeds() {
        let history = model::history(seed);
        let report = judge(&history);
        assert!(report.is_clean(), "seed {seed}: {report}");
        assert_eq!(report.unmetered, 0, "seed {seed}");
        events += report.events;
    }
    assert!(events > 200 * seeds(), "{events}");
}

#[test]
fn the_model_does_everything_that_may_be_recorded() {
    let mut kinds = BTreeSet::new();
    for seed in 0..200 {
        for event in model::history(seed) {
            let text = format!("{:?}", event.what);
            kinds.insert(text.split(' ').next().unwrap_or("").to_owned());
            if let What::Settled { verb, result, .. } = event.what {
                kinds.insert(format!("{verb:?} {result:?}"));
            }
        }
    }
    let all = "Publish Stored NotStored Unknown Void Subscribe Detach Deliver Settle Settled Lapse \
        Exit Redriven Trim Damaged Grant Revoke Spend Tail TailEnd Chain Leader Fault Heal Drained";
    for kind in all.split_whitespace() {
        assert!(kinds.contains(kind), "{kind}");
    }
    let answers = "Ack Ok,Ack AlreadySettled,Ack Refused,Ack Unknown,Release Ok,Release Refused,\
        Fail Ok,Reject Ok,Reject Refused,Park Ok,Extend Ok,Extend Refused";
    for answer in answers.split(',') {
        assert!(kinds.contains(answer), "{answer}");
    }
}

#[test]
fn every_mutator_is_caught_by_its_check_wherever_it_applies() {
    let mut applied = vec![0_u32; MUTATORS.len() + SILENT.len()];
    for seed in 0..seeds() / MUTATED_ONE_IN {
        let history = model::history(seed);
        for (number, (name, check, apply)) in MUTATORS.iter().chain(&SILENT).enumerate() {
            let mut case = Case::new(history.clone(), seed);
            if apply(&mut case).is_none() {
                continue;
            }
            applied[number] += 1;
            let report = judge(&case.history);
            assert!(report.count(*check) > 0, "seed {seed}, {name}, {check:?} missed it: {report}");
            assert!(report.violations.iter().any(|violation| violation.check == *check));
        }
    }
    for ((name, ..), applied) in MUTATORS.iter().chain(&SILENT).zip(&applied) {
        assert!(*applied >= 10, "{name} was applicable in {applied} histories");
    }
    let is_named = |check: &Check| MUTATORS.iter().chain(&SILENT).any(|(_, by, _)| by == check);
    assert!(CHECKS.iter().all(is_named), "every check has a mutator");
}

#[test]
fn the_same_history_gives_the_same_report() {
    for seed in 0..20 {
        for (_, _, apply) in MUTATORS {
            let mut case = Case::new(model::history(seed), seed);
            // Whether it applies makes no difference here.
            let _ = apply(&mut case);
            assert_eq!(judge(&case.history), judge(&case.history));
        }
    }
}

/// Removes from every drain of replica 1 the offsets that `is_lost` names, out of `0..end`.
fn lossy(seed: u64, is_lost: impl Fn(u32, u32) -> bool) -> (u32, Report) {
    let mut history = model::history(seed);
    let ends = history.iter().find_map(|event| match event.what {
        What::Drained { partition: 0, end, .. } => Some(end),
        _ => None,
    });
    let end = ends.expect("partition 0 is drained");
    let first = history.iter().position(|event| matches!(event.what, What::Chain { .. }));
    let drains = first.unwrap_or(0);
    let mut at = 0;
    let mut lost = 0;
    history.retain(|event| {
        at += 1;
        let gone = at > drains
            && matches!(event.what, What::Deliver { partition: 0, replica: 1, offset, .. }
                if is_lost(offset, end));
        lost += u32::from(gone);
        !gone
    });
    (lost, judge(&history))
}

#[test]
fn what_is_lost_is_told_by_replica_and_by_place() {
    let untrimmed = |seed: &u64| {
        let history = model::history(*seed);
        let trims = |event: &Event| matches!(event.what, What::Trim { .. } | What::Damaged { .. });
        let records = history.iter().filter(|event| matches!(event.what, What::Stored { .. }));
        !history.iter().any(trims) && records.count() > 40
    };
    let seed = (0..SEEDS).find(untrimmed).expect("some histories trim nothing");
    let (lost, report) = lossy(seed, |offset, _| offset < 2);
    let loss = report.losses[0];
    assert_eq!((report.losses.len(), loss.replica, loss.partition), (1, 1, 0));
    assert_eq!((lost, loss.prefix, loss.middle, loss.postfix), (2, 2, 0, 0), "{report}");
    let (lost, report) = lossy(seed, |offset, _| offset == 3 || offset == 5);
    let loss = report.losses[0];
    assert_eq!((lost, loss.prefix, loss.middle, loss.postfix), (2, 0, 2, 0), "{report}");
    let (lost, report) = lossy(seed, |offset, end| offset + 3 >= end);
    let loss = report.losses[0];
    assert_eq!((lost, loss.prefix, loss.middle, loss.postfix), (3, 0, 0, 3), "{report}");
    assert_eq!(loss.total(), 3);
}

#[test]
fn a_stream_on_the_wire_spends_no_more_than_it_was_granted() {
    let (peer, epoch) = (Peer::Stream(3), 1);
    let grant = What::Grant { peer, epoch, limit_cost: 1_000, limit_messages: 10 };
    let spend = |cost, messages| What::Spend { peer, epoch, cost, messages };
    let violations = |spent: &[What]| {
        let noted = std::iter::once(&grant).chain(spent);
        let history: Vec<_> = noted.map(|what| Event { at_ns: 1, what: *what }).collect();
        judge(&history).count(Check::Credit)
    };
    assert_eq!(violations(&[spend(600, 6), spend(400, 4)]), 0);
    assert_eq!(violations(&[spend(600, 6), spend(500, 4)]), 1, "too many bytes");
    assert_eq!(violations(&[spend(100, 6), spend(100, 5)]), 1, "too many messages");
    assert_eq!(violations(&[spend(4_000, 20)]), 0, "one batch that is larger than all credit");
    assert!(violations(&[spend(10, 1), spend(4_000, 20)]) > 0, "and only when it is alone");
}
