//! Holes in a log are filled with what stood there, from other replicas of it; never with anything
//! else, and never half.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;
mod mend {
    pub(crate) mod replicas;
}

use common::{device_in, flush};
use mend::replicas::{Content, DIR, Failed, Replica, UUID, Way, batches, content_of, indexes};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use weir_protocol::types::Index;
use weir_sim::disk::{Cut, Damage, SimDisk};
use weir_storage::{LogReader, MendError, Mending, NewBatch, OpenError, Unmendable};

const SEED: u64 = 11;
const INDEXES: u64 = 120;
/// Runs of random damage; `WEIR_MEND_RUNS` in the environment asks for more.
const RUNS: u64 = 30;
const WAYS: [Way; 3] = [Way::Small, Way::Growing, Way::Cut];

fn replicas() -> Vec<Replica> {
    let batches = batches(SEED, INDEXES);
    WAYS.into_iter().map(|way| Replica::of(&batches, way)).collect()
}

fn readers(of: &[Replica]) -> Vec<LogReader> {
    of.iter().map(|replica| replica.fork().open().reader()).collect()
}

/// What every replica holds, as the first of them was written.
fn truth(of: &[Replica]) -> Vec<Content> {
    let held = of[0].contents();
    assert!(held.len() as u64 > INDEXES);
    assert!(of.iter().all(|replica| replica.fork().contents() == held), "replicas are equal");
    held
}

/// Damage of one file each.
type Damaged = Vec<(PathBuf, Damage)>;

/// Every kind of hole in one replica, with its name.
fn kinds(replica: &Replica) -> Vec<(String, Damaged)> {
    let segments = replica.segments();
    let newest = segments.len() - 1;
    let mut found: Vec<(String, Damaged)> = Vec::new();
    for (number, (path, held)) in segments.iter().enumerate() {
        let mut add = |what: &str, damage: Vec<Damage>| {
            let damage = damage.into_iter().map(|damage| (path.clone(), damage)).collect();
            found.push((format!("segment {number} of {newest}: {what}"), damage));
        };
        let bit = |position| Damage::Bit { position, bit: 4 };
        let header = vec![bit(60), bit(2_108)];
        add("both copies of the header", header);
        add("one copy of the header and a batch", vec![bit(60), bit(held[0].0 + 30)]);
        add("the file", vec![Damage::Removed]);
        add("all bytes", vec![Damage::Truncated(0)]);
        add("the end of the file", vec![Damage::Truncated(held[held.len() / 2].0 + 50)]);
        add("between two batches", vec![Damage::Truncated(held[held.len() / 3].0)]);
        let last = held.len() - 1;
        let batches = BTreeSet::from([0, held.len() / 2, last.saturating_sub(1), last]);
        for at in batches {
            add(&format!("the head of batch {at}"), vec![bit(held[at].0 + 17)]);
            let (position, header) = held[at];
            if header.body_len > 0 {
                add(&format!("the body of batch {at}"), vec![bit(position + 130)]);
            }
            let page = position / 4_096 * 4_096;
            add(&format!("the page of batch {at}"), vec![Damage::Zeros(page..page + 4_096)]);
            add(&format!("no page of batch {at}"), vec![Damage::Unreadable(page..page + 4_096)]);
        }
        let (a, b) = (held[held.len() / 4].0, held[held.len() / 4 * 3].0);
        // Of a segment of one batch, a bit that is bent twice is whole.
        if a < b {
            add("two batches", vec![bit(a + 20), bit(b + 20)]);
            add("two pages", vec![Damage::Unreadable(a..a + 1), Damage::Unreadable(b..b + 1)]);
        }
        add("all between", vec![Damage::Noise(a + 7..b + 9, 3)]);
        add("every batch", vec![Damage::Noise(4_096..held[held.len() - 1].0 + 128, 3)]);
        if number < newest {
            let (next, of_next) = &segments[number + 1];
            let tail = (path.clone(), bit(held[held.len().saturating_sub(2)].0 + 20));
            let lost = (next.clone(), Damage::Removed);
            let both = vec![tail.clone(), (next.clone(), bit(of_next[0].0 + 20))];
            found.push((format!("segment {number}: its tail, the next one's beginning"), both));
            found.push((format!("segment {number}: its tail and the next one"), vec![tail, lost]));
        }
    }
    let removed = |of: std::ops::Range<usize>| -> Damaged {
        segments[of].iter().map(|(path, _)| (path.clone(), Damage::Removed)).collect()
    };
    if newest > 3 {
        found.push(("two segments".into(), removed(1..3)));
    }
    found.push(("all but the newest".into(), removed(0..newest)));
    found
}

fn apply(disk: &SimDisk, damaged: &Damaged) {
    damaged.iter().for_each(|(path, damage)| disk.damage(path, damage));
}

/// A mended log holds everything, says so, and goes on.
fn check_whole(replica: &Replica, truth: &[Content], name: &str) {
    assert!(replica.contents() == truth, "{name}");
    let mut log = replica.open();
    assert_eq!(log.meta(), b"the vote");
    let more = batches(SEED + 1, INDEXES + 3).split_off(INDEXES as usize);
    for batches in more {
        log.append(batches).unwrap();
    }
    flush(&mut log).unwrap();
    drop(log);
    replica.disk.cut_power(Cut::LosesAll);
    let held = replica.contents();
    assert!(held[..truth.len()] == *truth && held.len() >= truth.len() + 3, "{name}, later");
    assert!(replica.disk.paths(".new").is_empty(), "{name}: nothing is left over");
}

/// Only a log that lost its newest segment's header, or the segment, does not open.
fn is_doubtful(kind: &str, newest: usize) -> bool {
    let gone = ["both copies of the header", "the file", "all bytes"];
    let of_newest = gone.map(|what| format!("segment {newest} of {newest}: {what}"));
    // Behind the watermark an unreadable page may hide anything.
    let last_pages = ["no page of batch", "two pages"]
        .map(|what| format!("segment {newest} of {newest}: {what}"));
    of_newest.iter().any(|known| known == kind)
        || last_pages.iter().any(|known| kind.starts_with(known))
        || kind == format!("segment {}: its tail and the next one", newest - 1)
}

#[test]
fn a_hole_of_every_kind_is_filled_from_others() {
    let replicas = replicas();
    let truth = truth(&replicas);
    let mut mended = 0;
    for (number, replica) in replicas.iter().enumerate() {
        let mut others = readers(&replicas);
        others.remove(number);
        let newest = replica.segments().len() - 1;
        assert!(newest >= 1, "{:?}", replica.way);
        for (name, damaged) in kinds(replica) {
            let name = format!("{:?}, {name}", replica.way);
            let hurt = replica.fork();
            apply(&hurt.disk, &damaged);
            let kind = name.split_once(", ").unwrap().1;
            match hurt.mend(&others) {
                Ok(filled) => {
                    assert!(filled > 0 || kind.contains("one copy"), "{name}: nothing was found");
                    check_whole(&hurt, &truth, &name);
                    mended += 1;
                }
                Err(Failed::Doubtful(OpenError::Damaged(_))) if is_doubtful(kind, newest) => {}
                Err(error) => panic!("{name}: {error:?}"),
            }
        }
    }
    assert!(mended > 100, "{mended} were mended");
}

#[test]
fn an_accepted_loss_is_a_hole_and_none_any_more_when_it_is_mended() {
    let replicas = replicas();
    let truth = truth(&replicas);
    let hurt = &replicas[0];
    let (path, held) = hurt.segments().remove(1);
    hurt.disk.damage(&path, &Damage::Bit { position: held[4].0 + 20, bit: 1 });
    let log = hurt.open_accepting();
    assert!(log.reader().damaged_ranges().iter().all(|range| range.accepted));
    drop(log);
    let found = hurt.holes().unwrap();
    assert!(found.len() == 1 && found[0].range.accepted);
    assert_eq!(hurt.mend(&readers(&replicas[1..])).unwrap(), 1);
    check_whole(hurt, &truth, "accepted");
}

#[test]
fn what_cannot_be_mended_is_said() {
    let replicas = replicas();
    let hurt = &replicas[0];
    let mut log = hurt.open();
    let sealed = log.reader().sealed_segments();
    log.trim(sealed[0].last_index).unwrap();
    drop(log);
    let segments = hurt.segments();
    hurt.disk.damage(&segments[0].0, &Damage::Removed);
    let found = hurt.holes().unwrap();
    assert_eq!(found[0].unmendable(), Some(Unmendable::Beginning));
    let begun = Mending::begin(&device_in(&hurt.disk), Path::new(DIR), UUID, &found[0]);
    assert!(matches!(begun.map(drop), Err(MendError::Unmendable { .. })));
    // A hard state that is gone: nobody knows what was voted.
    hurt.disk.damage(&Path::new(DIR).join("meta"), &Damage::Zeros(0..16_384));
    assert!(matches!(hurt.holes(), Err(OpenError::Damaged(_))));
    assert_eq!(Replica { disk: SimDisk::new(), way: Way::Small }.holes().unwrap().len(), 0);
}

/// A replica with one hole of about `count` indexes in its second segment, and the first of them.
fn with_a_hole(replica: &Replica, count: usize) -> (Replica, Index) {
    let hurt = replica.fork();
    let (path, held) = hurt.segments().remove(1);
    let last = held.len() - 3;
    let begins = (0..last - count).rfind(|at| held[*at].1.is_first_of_index()).unwrap();
    let range = held[begins].0 + 5..held[last].0 + 5;
    hurt.disk.damage(&path, &Damage::Noise(range, 9));
    (hurt, held[begins].1.index)
}

fn all_of(reader: &LogReader, first: Index, last: Index) -> Vec<NewBatch> {
    let of_index = |index| indexes(reader, Index(index), Index(index)).unwrap();
    (first.0..=last.0).flat_map(of_index).collect()
}

/// Everything that a start would look at.
fn files(disk: &SimDisk) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = disk.paths("").into_iter();
    let kept = paths.filter(|path| path.extension().is_none_or(|end| end != "new"));
    kept.map(|path| (path.clone(), disk.bytes_of(&path))).collect()
}

#[test]
fn nothing_but_what_stood_there_gets_into_the_log() {
    let replicas = replicas();
    let (hurt, first) = with_a_hole(&replicas[0], 6);
    let before = files(&hurt.disk);
    let hole = hurt.holes().unwrap().remove(0);
    assert_eq!(hole.range.first_index, first);
    let device = device_in(&hurt.disk);
    let begin = || Mending::begin(&device, Path::new(DIR), UUID, &hole).unwrap();
    let own = all_of(&readers(&replicas)[1], first, hole.range.last_index);
    let other = Replica::of(&batches(SEED + 9, INDEXES), Way::Small);
    let foreign = indexes(&other.open().reader(), first, hole.range.last_index).unwrap();
    assert!(matches!(begin().take(&foreign), Err(MendError::Foreign(_))));
    assert!(matches!(begin().take(&own[1..]), Err(MendError::Foreign(_))), "one left out");
    let turned: Vec<NewBatch> = own.iter().rev().cloned().collect();
    assert!(matches!(begin().take(&turned), Err(MendError::Foreign(_))));
    let mut bent = own.clone();
    let with_body = bent.iter_mut().find(|batch| batch.header.body_len > 0).unwrap();
    let mut body = with_body.body.concat();
    *body.last_mut().unwrap() ^= 1;
    with_body.body = vec![body.into()];
    assert!(matches!(begin().take(&bent), Err(MendError::Batch { .. })));
    let mut bent = own.clone();
    bent[0].header.log_time_ms += 1;
    assert!(matches!(begin().take(&bent), Err(MendError::Foreign(_))), "another header");
    let mut cut_short = begin();
    cut_short.take(&own[..own.len() - 1]).unwrap();
    assert!(!cut_short.is_closed());
    assert!(matches!(cut_short.finish(), Err(MendError::Unfinished(_))));
    assert!(files(&hurt.disk) == before, "the log is as it was");
    let mut mending = begin();
    // What is refused leaves the mending as it was.
    assert!(mending.take(&foreign).is_err());
    mending.take(&own).unwrap();
    assert!(mending.is_closed());
    mending.finish().unwrap();
    drop(device);
    check_whole(&hurt, &hurt.contents(), "mended at last");
    assert!(hurt.contents()[..INDEXES as usize] == replicas[1].contents()[..INDEXES as usize]);
}

#[test]
fn a_disk_without_room_leaves_the_log_as_it_was() {
    let replicas = replicas();
    let truth = truth(&replicas);
    let (hurt, _) = with_a_hole(&replicas[0], 6);
    let before = files(&hurt.disk);
    hurt.disk.leave_room(2 << 20);
    let others = readers(&replicas[1..]);
    let failed = hurt.mend(&others).unwrap_err();
    assert!(matches!(failed, Failed::Mend(MendError::NoSpace(_))), "{failed:?}");
    assert!(files(&hurt.disk) == before);
    hurt.disk.leave_room(1 << 30);
    assert_eq!(hurt.mend(&others).unwrap(), 1);
    check_whole(&hurt, &truth, "once there was room");
}

/// Holes of the three ways in which files are made anew.
fn ways_of_filling(replica: &Replica) -> Vec<Damaged> {
    let segments = replica.segments();
    let tail = |number: usize| {
        let (path, held) = &segments[number];
        (path.clone(), Damage::Bit { position: held[held.len() - 4].0 + 20, bit: 1 })
    };
    let lost = |number: usize| (segments[number].0.clone(), Damage::Removed);
    vec![vec![tail(1), tail(segments.len() - 1)], vec![lost(1), lost(2)], vec![tail(0), lost(1)]]
}

#[test]
fn a_crash_at_every_change_leaves_the_log_as_it_was_or_mended() {
    let replicas = replicas();
    let truth = truth(&replicas);
    let others = readers(&replicas[1..]);
    let mut crashes = 0;
    for damaged in ways_of_filling(&replicas[0]) {
        let hurt = replicas[0].fork();
        apply(&hurt.disk, &damaged);
        let missing = indexes_missing(&hurt);
        let live = hurt.fork();
        live.disk.record();
        live.mend(&others).unwrap();
        for (step, before) in live.disk.recorded().into_iter().enumerate() {
            let cuts = [
                Cut::LosesAll,
                Cut::KeepsAll,
                Cut::KeepsNewest,
                Cut::KeepsOldest,
                Cut::KeepsSome(step as u64),
            ];
            for cut in cuts {
                let name = format!("{damaged:?}, before change {step}, {cut:?}");
                let crashed = Replica { disk: before.fork(), way: hurt.way };
                crashed.disk.cut_power(cut);
                let left = indexes_missing(&crashed);
                assert!(left.is_subset(&missing), "{name}: {left:?} of {missing:?}");
                let started = crashed.fork();
                check_rest(&started, &truth, &left, &name);
                crashed.mend(&others).unwrap();
                assert!(crashed.contents() == truth, "{name}");
                crashes += 1;
            }
        }
    }
    assert!(crashes > 200, "{crashes} crashes");
}

fn indexes_missing(replica: &Replica) -> BTreeSet<u64> {
    let found = replica.holes().unwrap();
    found.iter().flat_map(|hole| hole.range.first_index.0..=hole.range.last_index.0).collect()
}

/// What a start shows is right, and all that is not missing.
fn check_rest(replica: &Replica, truth: &[Content], missing: &BTreeSet<u64>, name: &str) {
    let log = replica.open();
    let last = log.reader().bounds().last_index.0;
    assert_eq!(last, INDEXES, "{name}");
    let mut held = 0;
    for index in (1..=last).filter(|index| !missing.contains(index)) {
        let batches = indexes(&log.reader(), Index(index), Index(index));
        let batches = batches.unwrap_or_else(|| panic!("{name}: index {index} is there"));
        for batch in batches {
            let content = content_of(&batch.header, &batch.body.concat());
            assert!(truth.contains(&content), "{name}: index {index}");
            held += 1;
        }
    }
    assert!(held > 0, "{name}");
}

#[test]
fn a_device_that_fails_at_any_change_leaves_the_log_as_it_was_or_mended() {
    let replicas = replicas();
    let truth = truth(&replicas);
    let others = readers(&replicas[1..]);
    for damaged in ways_of_filling(&replicas[0]) {
        for step in 0.. {
            let hurt = replicas[0].fork();
            apply(&hurt.disk, &damaged);
            let device = device_in(&hurt.disk);
            hurt.disk.stop_behind(step);
            let outcome = hurt.mend_on(&device, &others);
            if outcome.is_ok() {
                assert!(step > 5);
                break;
            }
            let Err(Failed::Mend(MendError::Device { .. })) = outcome else {
                panic!("{damaged:?}, step {step}: {outcome:?}");
            };
            hurt.disk.cut_power(Cut::LosesAll);
            hurt.mend(&others).unwrap();
            assert!(hurt.contents() == truth, "{damaged:?}, step {step}");
        }
    }
}

/// Indexes of the batches that damage of a file may reach.
fn reached(replica: &Replica, (path, damage): &(PathBuf, Damage)) -> BTreeSet<u64> {
    let (_, held) = replica.segments().into_iter().find(|(at, _)| at == path).unwrap();
    let range = match damage {
        Damage::Bit { position, .. } if *position < 4_096 => 0..u64::MAX,
        Damage::Bit { position, .. } => *position..*position + 1,
        Damage::Zeros(range) | Damage::Noise(range, _) => range.clone(),
        Damage::Unreadable(range) => range.start / 4_096 * 4_096..range.end.next_multiple_of(4_096),
        Damage::Truncated(from) => *from..u64::MAX,
        _ => 0..u64::MAX,
    };
    let touched = held.iter().filter(|(position, header)| {
        position + header.stored_len() as u64 > range.start && *position < range.end
    });
    touched.map(|(_, header)| header.index.0).collect()
}

/// Damage of one replica at random, in what the others have whole.
fn random_damage(
    replica: &Replica,
    random: &mut fastrand::Rng,
    taken: &BTreeSet<u64>,
) -> (Damaged, BTreeSet<u64>) {
    let segments = replica.segments();
    let (mut damaged, mut own) = (Damaged::new(), BTreeSet::new());
    for _ in 0..random.usize(1..6) {
        let (path, held) = &segments[random.usize(..segments.len())];
        let (position, header) = held[random.usize(..held.len())];
        let end = position + header.stored_len() as u64;
        let within = random.u64(position..end);
        let far = (within + random.u64(1..40_000)).min(held[held.len() - 1].0 + 128);
        let all = match random.u8(..12) {
            0..4 => vec![Damage::Bit { position: within, bit: random.u8(..8) }],
            4 => vec![Damage::Zeros(within.min(far)..far)],
            5 => vec![Damage::Noise(within.min(far)..far, random.u64(..))],
            6 => vec![Damage::Unreadable(within.min(far - 1)..far)],
            7 => vec![Damage::Truncated(within)],
            8..10 => {
                let copy = |at| Damage::Bit { position: at + random.u64(12..400), bit: 3 };
                [0, 2_048].map(copy).into()
            }
            _ => vec![Damage::Removed],
        };
        let of_file: Damaged = all.into_iter().map(|damage| (path.clone(), damage)).collect();
        let reached: BTreeSet<u64> =
            of_file.iter().flat_map(|damage| reached(replica, damage)).collect();
        let gone = damaged.iter().any(|(known, damage): &(PathBuf, Damage)| {
            known == path && matches!(damage, Damage::Removed | Damage::Truncated(_))
        });
        if taken.is_disjoint(&reached) && !gone {
            own.extend(reached);
            damaged.extend(of_file);
        }
    }
    (damaged, own)
}

/// Every batch is whole on two of three replicas: each is mended out of what the others have left,
/// or says that nobody may believe it.
#[test]
fn damage_on_disjoint_minorities_is_always_mended() {
    let healthy = replicas();
    let truth = truth(&healthy);
    let runs = std::env::var("WEIR_MEND_RUNS").ok();
    let runs: u64 = runs.map_or(RUNS, |runs| runs.parse().expect("WEIR_MEND_RUNS is a number"));
    let (mut mended, mut doubtful) = (0, 0);
    for seed in 0..runs {
        let mut random = fastrand::Rng::with_seed(seed);
        let hurt: Vec<Replica> = healthy.iter().map(Replica::fork).collect();
        let mut taken = BTreeSet::new();
        let mut all = Vec::new();
        for replica in &hurt {
            let (damaged, own) = random_damage(replica, &mut random, &taken);
            apply(&replica.disk, &damaged);
            taken.extend(own);
            all.push(damaged);
        }
        let opened = |replica: &Replica| {
            let fork = replica.fork();
            let opens = fork.holes().is_ok();
            opens.then(|| fork.open().reader())
        };
        let others: Vec<Option<LogReader>> = hurt.iter().map(opened).collect();
        for (number, replica) in hurt.iter().enumerate() {
            let name = format!("seed {seed}, replica {number}: {:?}", all[number]);
            let from: Vec<LogReader> = others
                .iter()
                .enumerate()
                .filter_map(|(other, reader)| reader.clone().filter(|_| other != number))
                .collect();
            match replica.mend(&from) {
                Ok(filled) => {
                    check_whole(replica, &truth, &name);
                    mended += filled;
                }
                // Its end is doubtful: another replica takes its place.
                Err(Failed::Doubtful(OpenError::Damaged(_))) => {
                    let newest = healthy[number].segments().pop().unwrap().0;
                    assert!(all[number].iter().any(|(path, _)| *path == newest), "{name}");
                    doubtful += 1;
                }
                // Others are doubtful in turn, and what they held is not asked of them.
                Err(Failed::Mend(MendError::Unfinished(_))) if from.len() < 2 => doubtful += 1,
                Err(error) => panic!("{name}: {error:?}"),
            }
        }
    }
    assert!(mended as u64 > runs, "{mended} holes were mended");
    assert!(doubtful * 4 < mended, "{doubtful} replicas of {runs} runs were doubtful");
}
