use super::consumer::{BeyondDelivered, Consumers, Registers};
use super::*;
use crate::connection::outbox::ConsumerId;
use proptest::prelude::*;
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_storage::BatchSlice;

const ID: ConsumerId = ConsumerId { connection: 1, serial: 1 };
const HW: Offset = Offset(1_000_000);

fn slice(base_offset: u64, record_count: u32, body_len: u32, salt: u64) -> BatchSlice {
    let mut header = BatchHeader::empty(BatchType::Data);
    header.base_offset = Offset(base_offset);
    header.record_count = record_count;
    header.body_len = body_len;
    BatchSlice { header, bytes: vec![0; header.stored_len()].into(), salt }
}

fn registers(limit_bytes: u64, limit_messages: u64) -> Registers {
    Registers { limit_bytes, limit_messages, lane_free: true }
}

fn consumer(limit_bytes: u64, limit_messages: u64) -> Consumers {
    let mut consumers = Consumers::default();
    consumers.attach(ID, None, Offset(0), registers(limit_bytes, limit_messages));
    consumers
}

/// One read of batches of ten records and about `bytes` each; the records that were delivered.
fn read(consumers: &mut Consumers, bytes: u32) -> Option<u32> {
    let wanted = consumers.want(ID, Offset(0), HW)?;
    let from = wanted.from.0 / 10;
    let slices = (from..from + 50).map(|number| slice(number * 10, 10, bytes, 0)).collect();
    Some(consumers.read(ID, slices, HW).map_or(0, |picked| picked.record_count))
}

#[test]
fn credit_in_messages_and_in_bytes_both_bound_a_delivery() {
    let mut by_messages = consumer(1 << 20, 35);
    assert_eq!(read(&mut by_messages, 100), Some(30));
    assert_eq!(read(&mut by_messages, 100), Some(0), "five messages are no whole batch");
    assert_eq!(read(&mut by_messages, 100), None, "and it is not tried again");
    by_messages.look(ID, registers(1 << 20, 40));
    assert_eq!(read(&mut by_messages, 100), Some(10));
    let mut by_bytes = consumer(1_000, 1_000);
    assert_eq!(read(&mut by_bytes, 128), Some(30), "256 bytes are stored of each batch");
}

#[test]
fn a_batch_beyond_the_credit_goes_out_only_while_the_client_holds_nothing() {
    let mut consumers = consumer(1_000, 1_000);
    assert_eq!(read(&mut consumers, 5_000), Some(10), "else it would wait for ever");
    assert_eq!(read(&mut consumers, 5_000), None);
    consumers.look(ID, registers(5_500, 1_010));
    assert_eq!(read(&mut consumers, 5_000), Some(0), "some credit is back, but not all");
    assert_eq!(consumers.settle(ID, Offset(10)), Some(Ok(())));
    assert_eq!(read(&mut consumers, 5_000), Some(10), "all it got is settled");
}

#[test]
fn one_delivery_is_of_one_segment_and_skips_what_is_no_data() {
    let mut consumers = consumer(1 << 20, 1_000);
    let wanted = consumers.want(ID, Offset(0), HW).unwrap();
    assert_eq!(wanted.from, Offset(0));
    let mut control = slice(10, 0, 32, 1);
    control.header.batch_type = BatchType::Control;
    let mut void = slice(10, 5, 32, 1);
    void.header.batch_type = BatchType::Void;
    let slices =
        vec![slice(0, 10, 100, 1), control, void, slice(10, 10, 100, 1), slice(20, 10, 100, 2)];
    let picked = consumers.read(ID, slices, HW).unwrap();
    assert_eq!((picked.salt, picked.record_count, picked.batches.len()), (1, 20, 2));
    assert_eq!(consumers.want(ID, Offset(0), HW).map(|wanted| wanted.from), Some(Offset(20)));
}

#[test]
fn nothing_above_the_high_watermark_is_delivered() {
    let mut consumers = consumer(1 << 20, 1_000);
    consumers.want(ID, Offset(0), Offset(10)).unwrap();
    let slices = vec![slice(0, 10, 100, 1), slice(10, 10, 100, 1)];
    let picked = consumers.read(ID, slices, Offset(10)).unwrap();
    assert_eq!(picked.record_count, 10);
    assert_eq!(consumers.want(ID, Offset(0), Offset(10)), None);
    assert_eq!(consumers.take_hungry(), [ID], "it is fed when the watermark moves");
}

#[test]
fn a_full_lane_or_no_credit_means_no_read() {
    let mut consumers = consumer(0, 0);
    assert_eq!(consumers.want(ID, Offset(0), HW), None);
    consumers.look(ID, Registers { lane_free: false, ..registers(1_000, 10) });
    assert_eq!(consumers.want(ID, Offset(0), HW), None);
    consumers.look(ID, registers(1_000, 10));
    assert!(consumers.want(ID, Offset(0), HW).is_some());
    assert_eq!(consumers.want(ID, Offset(0), HW), None, "one read at a time");
}

#[test]
fn a_settle_beyond_what_was_delivered_is_refused() {
    let mut consumers = consumer(1 << 20, 10);
    read(&mut consumers, 100);
    let delivered = Offset(10);
    assert_eq!(consumers.settle(ID, Offset(11)), Some(Err(BeyondDelivered { delivered })));
    assert_eq!(consumers.settle(ID, Offset(10)), Some(Ok(())));
    consumers.detach(ID);
    assert_eq!(consumers.settle(ID, Offset(10)), None);
}

#[test]
fn a_trim_raises_cursors_and_counts_what_it_passed_over() {
    let mut subscriptions = Subscriptions::default();
    let create = |id, cursor: u64, name: &str| Command::Create {
        subscription: SubscriptionId(id),
        cursor: Offset(cursor),
        name: Name::new(name).unwrap(),
    };
    subscriptions.apply(&create(0, 5, "a"));
    subscriptions.apply(&create(1, 50, "b"));
    assert_eq!(subscriptions.floor(), Some(Offset(5)));
    assert_eq!(subscriptions.apply(&Command::Trim { log_start: Offset(20) }), 15);
    let passed = subscriptions.by_id(SubscriptionId(0)).unwrap();
    assert_eq!((passed.cursor, passed.skipped, passed.expired), (Offset(20), 15, 15));
    let settle = Command::Settle { subscription: SubscriptionId(0), cursor: Offset(30) };
    subscriptions.apply(&settle);
    let settled = subscriptions.by_id(SubscriptionId(0)).unwrap();
    assert_eq!((settled.cursor, settled.skipped, settled.expired), (Offset(30), 0, 15));
    subscriptions.apply(&create(7, 0, "a"));
    assert_eq!(subscriptions.floor(), Some(Offset(30)), "the first creation counts");
    assert_eq!(subscriptions.next_id(0), SubscriptionId(8));
}

#[derive(Debug, Clone)]
enum Step {
    Grant { bytes: u64, messages: u64 },
    Read,
    Settle { share: u64 },
}

proptest! {
    /// Whatever is granted, read and settled: records leave in order, each once, and the client
    /// never holds more than its credit, but for one batch when it holds nothing else.
    #[test]
    fn credit_is_never_overdrawn_but_by_one_batch_alone(
        window in (1u64..5_000, 1u64..60),
        sizes in proptest::collection::vec((1u32..12, 1u32..2_000), 1..40),
        steps in proptest::collection::vec(
            prop_oneof![
                (0u64..4_000, 0u64..40).prop_map(|(bytes, messages)| Step::Grant { bytes, messages }),
                Just(Step::Read),
                (0u64..100).prop_map(|share| Step::Settle { share }),
            ],
            1..80,
        ),
    ) {
        let mut log = Vec::new();
        let mut end = 0;
        for (records, bytes) in sizes {
            log.push(slice(end, records, bytes, 0));
            end += u64::from(records);
        }
        let (mut bytes, mut messages) = window;
        let mut consumers = consumer(bytes, messages);
        let (mut spent_bytes, mut spent_messages, mut position, mut settled) = (0u64, 0u64, 0u64, 0u64);
        for step in steps {
            match step {
                Step::Grant { bytes: more, messages: more_messages } => {
                    (bytes, messages) = (bytes + more, messages + more_messages);
                    consumers.look(ID, registers(bytes, messages));
                }
                Step::Settle { share } => {
                    settled = settled.max(position * share / 100);
                    prop_assert_eq!(consumers.settle(ID, Offset(settled)), Some(Ok(())));
                }
                Step::Read => {
                    let Some(wanted) = consumers.want(ID, Offset(0), Offset(end)) else { continue };
                    prop_assert_eq!(wanted.from, Offset(position));
                    let found = log.iter().filter(|s| s.header.end_offset().0 > position).cloned();
                    let Some(picked) = consumers.read(ID, found.collect(), Offset(end)) else { continue };
                    let held_nothing = settled == position
                        || (bytes - spent_bytes.min(bytes) >= window.0
                            && messages - spent_messages.min(messages) >= window.1);
                    spent_bytes += picked.batches.iter().map(|batch| batch.len() as u64).sum::<u64>();
                    spent_messages += u64::from(picked.record_count);
                    position += u64::from(picked.record_count);
                    let within = spent_bytes <= bytes && spent_messages <= messages;
                    prop_assert!(within || (held_nothing && picked.batches.len() == 1));
                }
            }
        }
    }
}
