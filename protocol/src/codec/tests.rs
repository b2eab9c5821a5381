use super::*;
use crate::batch::{BatchBuilder, BatchHeader};
use crate::error_code::ErrorCode;
use crate::frame::*;
use crate::types::{Name, Offset, PartitionId, RequestId, Sequence, StreamId};
use proptest::prelude::*;

fn publish(values: &[Vec<u8>]) -> Frame {
    let mut builder = BatchBuilder::new(1 << 20);
    for value in values {
        builder.push(1_000, Some(b"key"), &[], value).unwrap();
    }
    let mut built = builder.finish();
    built.header.stamp_local(0);
    let (header, body) = (built.header, built.body);
    Frame::Publish(Publish { stream: StreamId(7), deadline_ms: 5, demand: 9, header, body })
}

fn decode_all(bytes: &[u8], pieces: usize) -> Result<Vec<Frame>, DecodeError> {
    let mut decoder = Decoder::new(FRAME_BYTES_MAX);
    let (mut input, mut frames) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(pieces.max(1)) {
        input.extend_from_slice(piece);
        while let Some(frame) = decoder.decode(&mut input)? {
            frames.push(frame);
        }
    }
    assert!(decoder.needed(&input)? > 0 || input.is_empty());
    Ok(frames)
}

#[test]
fn a_publish_survives_any_cut_of_the_stream() {
    let frame = publish(&[b"one".to_vec(), vec![7; 1000]]);
    let bytes = encode_to_vec(&frame);
    for pieces in [1, 2, 15, 16, 17, 1000] {
        assert_eq!(decode_all(&bytes, pieces).unwrap(), std::slice::from_ref(&frame));
    }
}

#[test]
fn a_publish_shows_its_head_before_its_body() {
    let bytes = encode_to_vec(&publish(&[vec![7; 5_000]]));
    let decoder = Decoder::new(FRAME_BYTES_MAX);
    let fields_end = bytes.len()
        - decode_all(&bytes, 99)
            .unwrap()
            .iter()
            .map(|frame| match frame {
                Frame::Publish(publish) => publish.body.len(),
                _ => 0,
            })
            .sum::<usize>();
    assert_eq!(decoder.peek_publish(&bytes[..fields_end - 1]), Ok(None));
    let head = decoder.peek_publish(&bytes[..fields_end]).unwrap().expect("the fields are there");
    assert_eq!((head.stream, head.frame_bytes), (StreamId(7), bytes.len()));
    assert_eq!(head.header.record_count, 1);
    let mut bent = bytes;
    bent[20] ^= 1;
    assert_eq!(decoder.peek_publish(&bent), Err(DecodeError::Crc(0x12)));
    assert_eq!(decoder.peek_publish(&encode_to_vec(&Frame::Heartbeat)), Ok(None));
}

#[test]
fn a_batch_costs_its_body_and_never_less_than_the_floor_of_its_records() {
    let cost = |sizes: &[usize]| {
        let values: Vec<Vec<u8>> = sizes.iter().map(|size| vec![7; *size]).collect();
        match publish(&values) {
            Frame::Publish(publish) => (publish.header.cost(), publish.body.len() as u64),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(cost(&[1]).0, 512);
    assert_eq!(cost(&[1; 100]).0, 51_200);
    let (large, body) = cost(&[100_000, 1]);
    assert_eq!(large, body);
}

#[test]
fn a_newer_peer_may_add_fields_and_ignorable_frames() {
    let bytes = encode_to_vec(&Frame::CloseStream(StreamId(3)));
    let mut longer = bytes.clone();
    longer.extend_from_slice(b"new");
    longer[0] += 3;
    longer[6] += 3;
    let restamp = |frame: &mut Vec<u8>| {
        let (header, fields) = frame.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
        let crc = crc_of(header, fields);
        frame[12..16].copy_from_slice(&crc.to_le_bytes());
    };
    restamp(&mut longer);
    assert_eq!(decode_all(&longer, 99).unwrap(), [Frame::CloseStream(StreamId(3))]);
    let mut unknown = bytes;
    unknown[4] = 0x7f;
    restamp(&mut unknown);
    assert_eq!(decode_all(&unknown, 99), Err(DecodeError::Type(0x7f)));
    unknown[5] = FLAG_IGNORABLE;
    restamp(&mut unknown);
    assert_eq!(decode_all(&unknown, 99).unwrap(), []);
    unknown[0] += 7;
    restamp(&mut unknown);
    unknown.extend_from_slice(b"batches");
    assert_eq!(decode_all(&unknown, 99).unwrap(), []);
}

#[test]
fn lying_lengths_are_refused_before_anything_is_held() {
    let mut decoder = Decoder::new(1_000);
    let mut huge = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
    assert!(matches!(decoder.decode(&mut huge), Err(DecodeError::TooLarge { .. })));
    let mut zero = BytesMut::from(&[0u8; 16][..]);
    assert!(matches!(decoder.decode(&mut zero), Err(DecodeError::Lengths { .. })));
    let mut frame = encode_to_vec(&Frame::Heartbeat);
    frame[6] = 200;
    assert!(matches!(decode_all(&frame, 99), Err(DecodeError::Lengths { .. })));
}

#[test]
fn what_was_written_leaves_the_buffer_in_order() {
    let frames = [Frame::Heartbeat, publish(&[vec![1; 500]]), Frame::Ready];
    let mut buffer = EncodeBuf::new();
    frames.iter().for_each(|frame| buffer.push(frame));
    let mut written = Vec::new();
    while !buffer.is_empty() {
        let mut slices = [std::io::IoSlice::new(&[]); 4];
        let filled = buffer.fill_slices(&mut slices);
        let bytes: Vec<u8> = slices[..filled].iter().flat_map(|s| s.to_vec()).take(33).collect();
        buffer.advance(bytes.len());
        written.extend(bytes);
    }
    assert_eq!(decode_all(&written, 4096).unwrap(), frames);
}

fn any_name() -> impl Strategy<Value = Name> {
    "[A-Za-z0-9_-]{1,40}".prop_map(|text| Name::new(&text).unwrap())
}

fn any_grant() -> impl Strategy<Value = Grant> {
    any::<(u32, u64, u64, u32, u8, u32)>().prop_map(|(epoch, cost, messages, ttl, level, bits)| {
        Grant {
            epoch,
            limit_cost: cost,
            limit_messages: messages,
            ttl_ms: ttl,
            level,
            reason_bits: bits,
        }
    })
}

fn any_refusal() -> impl Strategy<Value = Refusal> {
    (any::<(u64, u64, u32)>(), ".{0,60}").prop_map(|((observed, limit, after), text)| Refusal {
        observed,
        limit,
        retry_after_ms: after,
        ..Refusal::new(ErrorCode::SequenceGap, text)
    })
}

fn any_frame_of_sharing() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (
            any::<u32>().prop_map(StreamId),
            any::<u64>(),
            proptest::collection::vec(any::<u32>(), 0..9)
        )
            .prop_map(|(stream, epoch, partitions)| {
                let partitions = partitions.into_iter().map(PartitionId).collect();
                Frame::Assignment(Assignment { stream, epoch, partitions })
            }),
        (
            any::<u32>().prop_map(StreamId),
            any::<u32>().prop_map(RequestId),
            any_name(),
            any::<u64>()
        )
            .prop_map(|(stream, request, topic, member)| {
                let (subscription, member) = (topic.clone(), MemberId(member));
                Frame::Join(Join { stream, request, topic, subscription, member })
            }),
    ]
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let stream = any::<u32>().prop_map(StreamId);
    let request = any::<u32>().prop_map(RequestId);
    prop_oneof![
        (stream.clone(), any_grant()).prop_map(|(stream, grant)| Frame::Grant(stream, grant)),
        (request.clone(), any_refusal())
            .prop_map(|(request, refusal)| Frame::Error(ErrorFrame { request, refusal })),
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20)
            .prop_map(|values| publish(&values)),
        (
            stream.clone(),
            any_grant(),
            proptest::collection::vec(any::<(u64, u64, u32, bool)>(), 0..9)
        )
            .prop_map(|(stream, grant, rows)| {
                let stored = rows.into_iter().map(|(sequence, offset, record_count, duplicate)| {
                    let (base_sequence, base_offset) = (Sequence(sequence), Offset(offset));
                    StoredRange { base_sequence, base_offset, record_count, duplicate }
                });
                Frame::Published(Published { stream, stored: stored.collect(), grant })
            }),
        (
            stream.clone(),
            request.clone(),
            any_name(),
            any::<u32>(),
            any::<Option<u64>>(),
            any_grant()
        )
            .prop_map(|(stream, request, topic, partition, time, credit)| {
                Frame::Subscribe(Subscribe {
                    stream,
                    request,
                    subscription: time.map(|_| topic.clone()),
                    topic,
                    partition: PartitionId(partition),
                    start: time.map_or(Start::Latest, Start::Time),
                    needs: Needs {
                        any_replica: time.is_none(),
                        reach: Offset(credit.limit_cost),
                        resume: Offset(time.unwrap_or(0)),
                        epoch: time.map_or(0, |time| time / 2),
                    },
                    credit,
                })
            }),
        any_frame_of_sharing(),
        (stream, any::<u64>(), proptest::option::of(any_refusal())).prop_map(
            |(stream, upto, refusal)| {
                Frame::Settled(Settled { stream, upto: Offset(upto), refusal })
            }
        ),
        (request, any_name(), any::<Option<u32>>(), any::<Option<u64>>()).prop_map(
            |(request, topic, partitions, max_bytes)| {
                Frame::AlterTopic(AlterTopic {
                    request,
                    topic,
                    partitions,
                    durability: partitions.map(|_| Durability::Memory),
                    overflow: max_bytes.map(|_| Overflow::Expire),
                    max_bytes,
                    max_age_ms: max_bytes,
                    replicas: max_bytes.map(|bytes| bytes as u8),
                })
            }
        ),
    ]
}

proptest! {
    #[test]
    fn frames_survive_the_wire(frames in proptest::collection::vec(any_frame(), 1..5), cut in 1usize..300) {
        let bytes: Vec<u8> = frames.iter().flat_map(encode_to_vec).collect();
        prop_assert_eq!(decode_all(&bytes, cut).unwrap(), frames);
    }

    #[test]
    fn no_flipped_bit_of_header_or_fields_goes_unnoticed(frame in any_frame(), at: usize, bit in 0u8..8) {
        let mut bytes = encode_to_vec(&frame);
        let fields_len = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
        let at = at % (FRAME_HEADER_BYTES + fields_len);
        bytes[at] ^= 1 << bit;
        // A longer length only makes the decoder wait for more.
        if let Ok(frames) = decode_all(&bytes, usize::MAX) {
            prop_assert_eq!(frames, []);
        }
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode_all(&bytes, 64);
    }
}

#[test]
fn a_batch_header_has_room_for_every_field() {
    assert_eq!(BatchHeader::empty(crate::batch::BatchType::Data).encode().len(), 128);
}
