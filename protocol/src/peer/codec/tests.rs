use super::*;
use crate::batch::{BatchHeader, BatchType};
use crate::error_code::ErrorCode;
use crate::frame::{Demand, Grant, Refusal};
use crate::limits::BROKERS_MAX;
use crate::limits::FRAME_HEADER_BYTES;
use crate::peer::limits::{BEATS_MAX, CONTENT_BYTES_MAX, NEWS_MAX, SEGMENT_PARTS_MAX};
use crate::peer::*;
use crate::types::{BrokerId, Index, Name, Offset, ReplicaId, RequestId, StreamId, Term};
use proptest::collection::vec;
use proptest::prelude::*;

mod malformed;

fn decode_all(bytes: &[u8], pieces: usize) -> Result<Vec<PeerFrame>, DecodeError> {
    let decoder = PeerDecoder::new(PEER_FRAME_BYTES_MAX);
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

fn restamped(mut bytes: Vec<u8>) -> Vec<u8> {
    let fields_end = FRAME_HEADER_BYTES + usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..12]);
    hasher.update(&bytes[FRAME_HEADER_BYTES..fields_end.min(bytes.len())]);
    bytes[12..16].copy_from_slice(&hasher.finalize().to_le_bytes());
    bytes
}

fn blank(salt: u64) -> Bytes {
    Bytes::copy_from_slice(&BatchHeader::empty(BatchType::Noop).stamp(salt, 0, None))
}

fn append(parts: Vec<SegmentPart>) -> Append {
    let (vote, prev, commit) = (Vote::default(), LogPlace::default(), LogPlace::default());
    Append { stream: StreamId(1), number: 1, vote, prev, commit, parts }
}

#[test]
fn an_append_survives_any_cut_of_the_stream_and_shows_its_head_first() {
    let parts = vec![SegmentPart { salt: 7, batches: vec![blank(7)] }];
    let frame = PeerFrame::Append(append(parts.clone()));
    let bytes = encode_to_vec(&frame);
    for pieces in [1, 2, 15, 16, 17, 1000] {
        assert_eq!(decode_all(&bytes, pieces).unwrap(), std::slice::from_ref(&frame));
    }
    let decoder = PeerDecoder::new(PEER_FRAME_BYTES_MAX);
    let fields_end = bytes.len() - 128;
    assert_eq!(decoder.peek(&bytes[..fields_end - 1]), Ok(None));
    let head = decoder.peek(&bytes[..fields_end]).unwrap().expect("the fields are there");
    assert_eq!(head, PeerHead { stream: StreamId(1), frame_bytes: bytes.len(), body_bytes: 128 });
    assert_eq!(head.cost(), append(parts).cost());
    let mut bent = bytes;
    bent[20] ^= 1;
    assert_eq!(decoder.peek(&bent), Err(DecodeError::Crc(0x51)));
}

#[test]
fn slices_of_one_segment_are_one_part_and_their_batches_are_not_copied() {
    let batches = vec![blank(7), blank(7), blank(7)];
    let frame = PeerFrame::Append(append(vec![SegmentPart { salt: 7, batches: batches.clone() }]));
    let mut buffer = EncodeBuf::new();
    buffer.push_peer(&frame);
    let mut slices = [std::io::IoSlice::new(&[]); 8];
    let filled = buffer.fill_slices(&mut slices);
    assert_eq!(filled, 4, "fields, and each slice as it is");
    let ours = |slice: &[u8]| batches.iter().any(|batch| batch.as_ptr() == slice.as_ptr());
    assert!(slices[1..4].iter().all(|slice| ours(slice)));
    let decoded = decode_all(&encode_to_vec(&frame), usize::MAX).unwrap();
    let [PeerFrame::Append(decoded)] = &decoded[..] else { panic!("{decoded:?}") };
    assert_eq!(decoded.parts, [SegmentPart { salt: 7, batches: vec![batches.concat().into()] }]);
}

#[test]
fn a_newer_peer_may_add_fields_and_ignorable_frames() {
    let bytes = encode_to_vec(&PeerFrame::AppendClose(StreamId(3)));
    let mut longer = bytes.clone();
    longer.extend_from_slice(b"new");
    longer[0] += 3;
    longer[6] += 3;
    let longer = restamped(longer);
    assert_eq!(decode_all(&longer, 99).unwrap(), [PeerFrame::AppendClose(StreamId(3))]);
    let mut unknown = bytes;
    unknown[4] = 0x7f;
    assert_eq!(decode_all(&restamped(unknown.clone()), 99), Err(DecodeError::Type(0x7f)));
    unknown[5] = FLAG_IGNORABLE;
    unknown[0] += 7;
    let mut unknown = restamped(unknown);
    unknown.extend_from_slice(b"batches");
    assert_eq!(decode_all(&unknown, 99).unwrap(), []);
}

#[test]
fn a_frame_of_a_client_is_none_of_a_broker() {
    for frame in [crate::frame::Frame::Heartbeat, crate::frame::Frame::Ready] {
        let bytes = crate::codec::encode_to_vec(&frame);
        assert_eq!(decode_all(&bytes, 99), Err(DecodeError::Type(bytes[4])));
    }
}

#[test]
fn frames_with_as_many_rows_as_they_may_have_survive() {
    let beat = Beat {
        address: GroupAddress { to: ReplicaId(1), from: ReplicaId(2) },
        term: Term(3),
        matching: LogPlace::default(),
        commit: LogPlace::default(),
    };
    let outvoted = AppendResult::Outvoted(Vote::default());
    let beaten = Beaten { round: 1, address: beat.address, result: outvoted };
    let led = Led {
        replica: ReplicaId(1),
        term: Term(1),
        log_start: Offset(0),
        high_watermark: Offset(0),
        bytes: 0,
    };
    let seed =
        Seed { peer_address: "a".repeat(255), broker: BrokerId(1), voter: Some(ReplicaId(1)) };
    let part = SegmentPart { salt: 1, batches: vec![blank(1)] };
    let (request, cluster, broker) = (RequestId(1), 1, BrokerId(1));
    for frame in [
        PeerFrame::Beats(Beats { round: 1, beats: vec![beat; BEATS_MAX] }),
        PeerFrame::Beaten(vec![beaten; BEATS_MAX]),
        PeerFrame::News(News { free_bytes: 0, draining: true, gate: 0, led: vec![led; NEWS_MAX] }),
        PeerFrame::Form(Form { request, cluster, broker, seeds: vec![seed; BROKERS_MAX] }),
        PeerFrame::Append(append(vec![part; SEGMENT_PARTS_MAX])),
        PeerFrame::Forward(Forward {
            request,
            deadline_ms: 0,
            question: Question::Command(vec![7; CONTENT_BYTES_MAX].into()),
        }),
    ] {
        assert_eq!(decode_all(&encode_to_vec(&frame), usize::MAX).unwrap(), [frame]);
    }
}

fn any_name() -> impl Strategy<Value = Name> {
    "[A-Za-z0-9_-]{1,40}".prop_map(|text| Name::new(&text).unwrap())
}

fn any_refusal() -> impl Strategy<Value = PeerRefusal> {
    proptest::sample::select(PeerRefusal::ALL)
}

prop_compose! {
    fn any_vote()((term, replica, committed) in any::<(u64, u64, bool)>()) -> Vote {
        Vote { term: Term(term), replica: ReplicaId(replica), committed }
    }
}

prop_compose! {
    fn any_place()((term, index) in any::<(u64, u64)>()) -> LogPlace {
        LogPlace { term: Term(term), index: Index(index) }
    }
}

prop_compose! {
    fn any_address()((to, from) in any::<(u64, u64)>()) -> GroupAddress {
        GroupAddress { to: ReplicaId(to), from: ReplicaId(from) }
    }
}

prop_compose! {
    fn any_grant()((limit_cost, ttl_ms, level) in any::<(u64, u32, u8)>()) -> Grant {
        Grant { limit_cost, ttl_ms, level, ..Grant::default() }
    }
}

prop_compose! {
    fn any_node()(name in any_name(), (cluster, broker, instance) in any::<(u128, u64, u64)>())
        -> Node {
        Node { cluster, broker: BrokerId(broker), instance, name }
    }
}

fn any_result() -> impl Strategy<Value = AppendResult> {
    prop_oneof![
        any_place().prop_map(AppendResult::Flushed),
        any_place().prop_map(AppendResult::Conflict),
        any_vote().prop_map(AppendResult::Outvoted),
        any_refusal().prop_map(AppendResult::Refused),
    ]
}

fn any_answer<T: std::fmt::Debug>(
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = Result<T, PeerRefusal>> {
    prop_oneof![value.prop_map(Ok), any_refusal().prop_map(Err)]
}

fn any_parts() -> impl Strategy<Value = Vec<SegmentPart>> {
    let part = (any::<u64>(), 4usize..20, any::<u8>()).prop_map(|(salt, lines, byte)| {
        SegmentPart { salt, batches: vec![vec![byte; lines * 32].into()] }
    });
    vec(part, 0..5)
}

fn any_content() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn link_frame() -> impl Strategy<Value = PeerFrame> {
    let stream = (1u32..).prop_map(StreamId);
    let lane = prop_oneof![Just(Lane::Control), Just(Lane::Bulk)];
    prop_oneof![
        (any::<(u16, u16, u64, [u8; 32])>(), lane, any_node()).prop_map(
            |((version_min, version_max, features, nonce), lane, node)| {
                let nonce = Nonce(nonce);
                PeerFrame::Hello(Hello { version_min, version_max, features, lane, nonce, node })
            }
        ),
        (any::<(u16, u64, bool, [u8; 32])>(), any_node()).prop_map(
            |((version, features, secret, nonce), node)| {
                let nonce = Nonce(nonce);
                PeerFrame::Challenge(Challenge { version, features, secret, nonce, node })
            }
        ),
        any::<[u8; 32]>().prop_map(|mac| PeerFrame::Proof(Mac(mac))),
        any::<[u8; 32]>().prop_map(|mac| PeerFrame::Ready(Mac(mac))),
        Just(PeerFrame::Heartbeat),
        (any_refusal(), any::<u32>(), ".{0,60}").prop_map(|(refusal, deadline_ms, text)| {
            PeerFrame::GoAway(PeerGoAway { refusal, deadline_ms, text })
        }),
        (stream.clone(), any_grant()).prop_map(|(stream, grant)| PeerFrame::Grant(stream, grant)),
        (stream, any::<(u64, u64)>()).prop_map(|(stream, (cost, largest))| {
            PeerFrame::Demand(stream, Demand { cost, largest })
        }),
    ]
}

fn bulk_frame() -> impl Strategy<Value = PeerFrame> {
    let stream = || (1u32..).prop_map(StreamId);
    let request = any::<u32>().prop_map(RequestId);
    let head = (
        (any_address(), any_vote(), any_place(), any_place()),
        any::<(u32, u64, u64, u64, u32)>(),
        vec(any::<u8>(), 0..300),
    );
    prop_oneof![
        (stream(), any_address())
            .prop_map(|(stream, address)| PeerFrame::AppendOpen(stream, address)),
        (stream(), 1u64.., any_vote(), any_place(), any_place(), any_parts()).prop_map(
            |(stream, number, vote, prev, commit, parts)| {
                PeerFrame::Append(Append { stream, number, vote, prev, commit, parts })
            }
        ),
        (stream(), any::<u64>(), any_result(), any_grant()).prop_map(
            |(stream, number, result, grant)| {
                PeerFrame::Appended(Appended { stream, number, result, grant })
            }
        ),
        stream().prop_map(PeerFrame::AppendClose),
        (stream(), head).prop_map(
            |(stream, ((address, vote, place, membership_place), numbers, membership))| {
                let (chain, log_end, log_time_ms, state_len, state_crc) = numbers;
                let (log_end, membership) = (Offset(log_end), membership.into());
                #[rustfmt::skip]
                let head = SnapshotHead {
                    address, vote, place, chain, log_end, log_time_ms, membership_place,
                    membership, state_len, state_crc,
                };
                PeerFrame::Snapshot(stream, head)
            }
        ),
        (stream(), 0..u64::MAX - 300, any_content()).prop_map(|(stream, position, content)| {
            PeerFrame::SnapshotPart(SnapshotPart { stream, position, content })
        }),
        (stream(), any_answer(any_vote()))
            .prop_map(|(stream, answer)| PeerFrame::SnapshotDone(stream, answer)),
        (request.clone(), any_address(), 1u64.., any::<u64>(), any::<u32>()).prop_map(
            |(request, address, first, more, bytes_max)| {
                let last = Index(first.saturating_add(more));
                let first = Index(first);
                PeerFrame::Fetch(Fetch { request, address, first, last, bytes_max })
            }
        ),
        (request, any_answer((any::<bool>(), any_parts()))).prop_map(|(request, answer)| {
            let answer = answer.map(|(more, parts)| FetchedBatches { more, parts });
            PeerFrame::Fetched(Fetched { request, answer })
        }),
    ]
}

fn replica_frame() -> impl Strategy<Value = PeerFrame> {
    let request = || any::<u32>().prop_map(RequestId);
    let kind =
        prop_oneof![Just(VoteKind::Election), Just(VoteKind::Trial), Just(VoteKind::Transfer)];
    let outcome = prop_oneof![
        Just(TransferAnswer::Obeyed),
        any_vote().prop_map(TransferAnswer::VoteChanged),
        any_place().prop_map(TransferAnswer::NotFlushed),
    ];
    let beat = (any_address(), any::<u64>(), any_place(), any_place()).prop_map(
        |(address, term, matching, commit)| Beat { address, term: Term(term), matching, commit },
    );
    let beaten = (any::<u32>(), any_address(), any_result())
        .prop_map(|(round, address, result)| Beaten { round, address, result });
    let said = (any::<bool>(), any_vote(), any_place())
        .prop_map(|(granted, vote, last)| VoteAnswer { granted, vote, last });
    prop_oneof![
        (any::<u32>(), vec(beat, 0..9))
            .prop_map(|(round, beats)| PeerFrame::Beats(Beats { round, beats })),
        vec(beaten, 0..9).prop_map(PeerFrame::Beaten),
        (request(), any_address(), kind, any_vote(), any_place()).prop_map(
            |(request, address, kind, vote, last)| {
                PeerFrame::Vote(VoteAsk { request, address, kind, vote, last })
            }
        ),
        (request(), any_answer(said))
            .prop_map(|(request, answer)| PeerFrame::Voted(Voted { request, answer })),
        (request(), any_address(), any_vote(), any::<u64>(), any_place()).prop_map(
            |(request, address, vote, target, last)| {
                let target = ReplicaId(target);
                PeerFrame::Transfer(Transfer { request, address, vote, target, last })
            }
        ),
        (request(), any_answer(outcome))
            .prop_map(|(request, answer)| PeerFrame::Transferred(Transferred { request, answer })),
    ]
}

fn cluster_frame() -> impl Strategy<Value = PeerFrame> {
    let request = || any::<u32>().prop_map(RequestId);
    let state = prop_oneof![
        Just(MemberState::Empty),
        Just(MemberState::Forming),
        Just(MemberState::Member)
    ];
    let led = any::<(u64, u64, u64, u64, u64)>().prop_map(|(replica, term, start, end, bytes)| {
        let (log_start, high_watermark) = (Offset(start), Offset(end));
        Led { replica: ReplicaId(replica), term: Term(term), log_start, high_watermark, bytes }
    });
    let seed = (".{0,60}", any::<(u64, Option<u64>)>()).prop_map(|(peer_address, (id, voter))| {
        Seed { peer_address, broker: BrokerId(id), voter: voter.map(ReplicaId) }
    });
    let question =
        prop_oneof![any_content().prop_map(Question::Command), Just(Question::ReadIndex)];
    let answer = prop_oneof![
        any_content().prop_map(|change| Ok(ForwardedAnswer::Applied(change))),
        any::<u64>().prop_map(|index| Ok(ForwardedAnswer::ReadIndex(Index(index)))),
        ".{0,60}".prop_map(|text| Err(Refusal::new(ErrorCode::NotLeader, text))),
    ];
    let names = (any_name(), proptest::option::of(any_name()));
    prop_oneof![
        (any::<(u64, bool, u32)>(), vec(led, 0..9)).prop_map(
            |((free_bytes, draining, gate), led)| {
                PeerFrame::News(News { free_bytes, draining, gate, led })
            }
        ),
        (request(), any::<u32>(), question).prop_map(|(request, deadline_ms, question)| {
            PeerFrame::Forward(Forward { request, deadline_ms, question })
        }),
        (request(), answer)
            .prop_map(|(request, answer)| PeerFrame::Forwarded(Forwarded { request, answer })),
        request().prop_map(PeerFrame::Probe),
        (request(), any::<(u128, u64, u16, u64, u32)>(), state, ".{0,60}", ".{0,60}", names)
            .prop_map(|(request, numbers, state, client_address, peer_address, (name, rack))| {
                let (cluster, broker, expect, seeds_hash, gate) = numbers;
                let broker = BrokerId(broker);
                #[rustfmt::skip]
                let probed = Probed {
                    request, cluster, broker, state, expect, seeds_hash, gate, client_address,
                    peer_address, rack, name,
                };
                PeerFrame::Probed(probed)
            }),
        (request(), any::<(u128, u64)>(), vec(seed, 0..5)).prop_map(
            |(request, (cluster, broker), seeds)| {
                PeerFrame::Form(Form { request, cluster, broker: BrokerId(broker), seeds })
            }
        ),
        (request(), any_answer(Just(())))
            .prop_map(|(request, answer)| PeerFrame::Formed(Formed { request, answer })),
    ]
}

fn any_frame() -> impl Strategy<Value = PeerFrame> {
    prop_oneof![link_frame(), bulk_frame(), replica_frame(), cluster_frame()]
}

proptest! {
    #[test]
    fn frames_survive_the_wire(frames in vec(any_frame(), 1..5), cut in 1usize..300) {
        let bytes: Vec<u8> = frames.iter().flat_map(encode_to_vec).collect();
        prop_assert_eq!(decode_all(&bytes, cut).unwrap(), frames);
    }

    #[test]
    fn no_flipped_bit_of_header_or_fields_goes_unnoticed(
        frame in any_frame(), at: usize, bit in 0u8..8
    ) {
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
    fn garbage_never_panics(bytes in vec(any::<u8>(), 0..600)) {
        let _ = decode_all(&bytes, 64);
    }
}
