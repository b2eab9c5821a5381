use super::*;
use proptest::prelude::*;
use weir_protocol::batch::BatchType;

const NAMED: ProducerId = ProducerId(7);

fn table(producers_max: usize) -> Dedup {
    Dedup::new(DedupLimits {
        producers_max,
        idle_ms: 10_000,
        idle_min_ms: 1_000,
        anonymous_idle_min_ms: 100,
    })
}

fn batch(producer: ProducerId, epoch: u32, base: u64, record_count: u32) -> Numbered {
    Numbered { producer, epoch, base: Sequence(base), record_count }
}

fn stored(batch: Numbered, base_offset: u64, log_time_ms: u64) -> BatchHeader {
    let mut header = BatchHeader::empty(BatchType::Data);
    header.producer_id = batch.producer;
    header.producer_epoch = batch.epoch;
    header.base_sequence = batch.base;
    header.record_count = batch.record_count;
    header.base_offset = Offset(base_offset);
    header.log_time_ms = log_time_ms;
    header
}

#[test]
fn a_repetition_is_told_where_it_is_stored() {
    let mut dedup = table(10);
    let first = batch(NAMED, 1, 0, 5);
    assert_eq!(dedup.check(first, 0), Verdict::Fresh);
    dedup.fly(first);
    assert_eq!(dedup.check(first, 0), Verdict::InFlight);
    assert_eq!(dedup.check(batch(NAMED, 1, 5, 5), 0), Verdict::Fresh, "behind what is in flight");
    dedup.apply(&stored(first, 100, 1));
    assert_eq!(dedup.check(first, 0), Verdict::Duplicate(Some(Offset(100))));
    assert_eq!(dedup.check(batch(NAMED, 1, 2, 3), 0), Verdict::Duplicate(Some(Offset(102))));
    assert_eq!(dedup.check(batch(NAMED, 1, 3, 4), 0), Verdict::Gap { expected: Sequence(5) });
    assert_eq!(dedup.check(batch(NAMED, 1, 6, 1), 0), Verdict::Gap { expected: Sequence(5) });
}

#[test]
fn a_refused_batch_can_be_sent_again_once_nothing_flies() {
    let mut dedup = table(10);
    let first = batch(NAMED, 0, 0, 5);
    dedup.fly(first);
    dedup.fly(batch(NAMED, 0, 5, 5));
    dedup.ground();
    assert_eq!(dedup.check(first, 0), Verdict::Fresh);
    assert_eq!(dedup.check(batch(NAMED, 0, 5, 5), 0), Verdict::Unknown);
}

#[test]
fn a_new_epoch_fences_the_old_one_before_it_stores_anything() {
    let mut dedup = table(10);
    dedup.apply(&stored(batch(NAMED, 1, 0, 3), 0, 1));
    assert_eq!(dedup.open(NAMED, 2), Ok(Sequence(3)));
    assert_eq!(dedup.check(batch(NAMED, 1, 3, 1), 1), Verdict::Fenced { epoch: 2 });
    assert_eq!(dedup.open(NAMED, 1), Err(Verdict::Fenced { epoch: 2 }));
    assert_eq!(
        dedup.check(batch(NAMED, 2, 0, 3), 1),
        Verdict::Gap { expected: Sequence(3) },
        "under a new epoch a low number is no repetition"
    );
    assert_eq!(dedup.check(batch(NAMED, 2, 3, 1), 1), Verdict::Fresh);
}

#[test]
fn opening_waits_for_what_is_in_flight() {
    let mut dedup = table(10);
    dedup.fly(batch(NAMED, 1, 0, 3));
    assert_eq!(dedup.open(NAMED, 2), Err(Verdict::InFlight));
    dedup.apply(&stored(batch(NAMED, 1, 0, 3), 0, 1));
    assert_eq!(dedup.open(NAMED, 2), Ok(Sequence(3)));
}

#[test]
fn who_was_idle_for_long_is_unknown_and_never_taken_for_new() {
    let mut dedup = table(10);
    dedup.apply(&stored(batch(NAMED, 1, 0, 3), 0, 1));
    dedup.apply(&stored(batch(ProducerId(8), 1, 0, 3), 3, 10_000));
    assert_eq!(dedup.check(batch(NAMED, 1, 3, 1), 10_000), Verdict::Fresh);
    dedup.apply(&stored(batch(ProducerId(8), 1, 3, 1), 6, 10_001));
    assert_eq!(dedup.check(batch(NAMED, 1, 3, 1), 10_001), Verdict::Unknown);
}

#[test]
fn a_full_table_refuses_until_somebody_was_idle_for_long_enough() {
    let mut dedup = table(2);
    let anonymous = |number: u64| ProducerId(PRODUCER_ANONYMOUS_BIT | number);
    dedup.apply(&stored(batch(NAMED, 0, 0, 1), 0, 0));
    dedup.apply(&stored(batch(anonymous(1), 0, 0, 1), 1, 50));
    let newcomer = batch(anonymous(2), 0, 0, 1);
    assert_eq!(dedup.check(newcomer, 149), Verdict::Full);
    assert_eq!(dedup.check(newcomer, 150), Verdict::Fresh);
    dedup.apply(&stored(newcomer, 2, 150));
    assert_eq!(dedup.len(), 2);
    assert_eq!(dedup.check(batch(anonymous(1), 0, 1, 1), 150), Verdict::Unknown);
    assert_eq!(dedup.check(batch(NAMED, 0, 1, 1), 150), Verdict::Fresh, "a name is kept longer");
}

#[test]
fn a_lone_producer_is_remembered_far_back_and_a_mixed_one_for_five_runs() {
    let mut dedup = table(10);
    for number in 0..100u64 {
        dedup.apply(&stored(batch(NAMED, 0, number, 1), number, 0));
    }
    assert_eq!(dedup.check(batch(NAMED, 0, 0, 1), 0), Verdict::Duplicate(Some(Offset(0))));
    for number in 0..6u64 {
        dedup.apply(&stored(batch(ProducerId(8), 0, number, 1), 100 + number * 2, 0));
    }
    assert_eq!(dedup.check(batch(ProducerId(8), 0, 0, 1), 0), Verdict::Duplicate(None));
    assert_eq!(
        dedup.check(batch(ProducerId(8), 0, 1, 1), 0),
        Verdict::Duplicate(Some(Offset(102)))
    );
}

#[derive(Debug, Clone)]
enum Step {
    Send { producer: u64, base: u64, record_count: u32 },
    CommitAll,
    LoseAll,
    Checkpoint,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let send = (1u64..4, 0u64..12, 1u32..4).prop_map(|(producer, base, record_count)| Step::Send {
        producer,
        base,
        record_count,
    });
    let step = prop_oneof![
        6 => send,
        2 => Just(Step::CommitAll),
        1 => Just(Step::LoseAll),
        1 => Just(Step::Checkpoint),
    ];
    proptest::collection::vec(step, 1..80)
}

/// What is stored, kept as plainly as can be: (producer, sequence, offset) of every record.
#[derive(Default)]
struct Model {
    records: Vec<(u64, u64, u64)>,
    flying: Vec<Numbered>,
}

impl Model {
    fn stored_next(&self, producer: u64) -> Option<u64> {
        self.records.iter().filter(|(id, ..)| *id == producer).map(|(_, seq, _)| seq + 1).max()
    }

    fn flying_next(&self, producer: u64) -> Option<u64> {
        let mine = self.flying.iter().filter(|batch| batch.producer.0 == producer);
        mine.map(|batch| batch.end().0).max()
    }

    fn offset_of(&self, producer: u64, sequence: u64) -> Option<Offset> {
        let found = self.records.iter().find(|(id, seq, _)| (*id, *seq) == (producer, sequence));
        found.map(|(_, _, offset)| Offset(*offset))
    }
}

proptest! {
    /// Whatever is sent, lost, committed and restarted: every record is stored once and in order,
    /// and a repetition is never told a wrong offset.
    #[test]
    fn every_record_is_stored_once_and_in_order(steps in steps()) {
        let mut dedup = table(100);
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Send { producer, base, record_count } => {
                    let sent = batch(ProducerId(producer), 0, base, record_count);
                    let stored_next = model.stored_next(producer);
                    let next = model.flying_next(producer).or(stored_next);
                    let verdict = dedup.check(sent, 0);
                    match (next, verdict) {
                        (None, Verdict::Fresh) => prop_assert_eq!(base, 0),
                        (None, Verdict::Unknown) => prop_assert_ne!(base, 0),
                        (Some(next), Verdict::Fresh) => prop_assert_eq!(base, next),
                        (Some(next), Verdict::Gap { expected }) => {
                            prop_assert_eq!(expected.0, next);
                            prop_assert!(sent.end().0 > next && base != next);
                        }
                        (Some(next), Verdict::InFlight) => {
                            prop_assert!(sent.end().0 <= next);
                            prop_assert!(sent.end().0 > stored_next.unwrap_or(0));
                        }
                        (Some(_), Verdict::Duplicate(offset)) => {
                            prop_assert!(sent.end().0 <= stored_next.unwrap_or(0));
                            if offset.is_some() {
                                prop_assert_eq!(offset, model.offset_of(producer, base));
                            }
                        }
                        other => prop_assert!(false, "{:?}", other),
                    }
                    if verdict == Verdict::Fresh {
                        dedup.fly(sent);
                        model.flying.push(sent);
                    }
                }
                Step::CommitAll => {
                    for batch in std::mem::take(&mut model.flying) {
                        let base_offset = model.records.len() as u64;
                        dedup.apply(&stored(batch, base_offset, 0));
                        for at in 0..u64::from(batch.record_count) {
                            let record = (batch.producer.0, batch.base.0 + at, base_offset + at);
                            prop_assert!(model.offset_of(record.0, record.1).is_none());
                            model.records.push(record);
                        }
                    }
                }
                Step::LoseAll => {
                    model.flying.clear();
                    dedup.ground();
                }
                Step::Checkpoint => {
                    let mut bytes = Vec::new();
                    dedup.encode(&mut bytes);
                    let mut fields = Fields(&bytes);
                    dedup = Dedup::decode(dedup.limits, &mut fields).unwrap();
                    prop_assert!(fields.end().is_ok());
                    model.flying.clear();
                }
            }
        }
    }
}
