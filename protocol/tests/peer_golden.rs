//! The bytes of every frame between brokers, for ever: `tests/vectors/peer_v1.txt` holds a line
//! per frame, and one per proof.
//!
//! To add a frame: add it to `frames`, run with `WEIR_VECTORS=add`, review the new line. Lines
//! that exist are never changed: a difference fails, whatever the variable says.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use weir_protocol::batch::{BatchBuilder, BatchHeader, BatchType};
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::{Demand, Grant, Refusal};
use weir_protocol::peer::limits::PEER_FRAME_BYTES_MAX;
use weir_protocol::peer::*;
use weir_protocol::types::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn vote(term: u64) -> Vote {
    Vote { term: Term(term), replica: ReplicaId(11), committed: true }
}

fn place(term: u64, index: u64) -> LogPlace {
    LogPlace { term: Term(term), index: Index(index) }
}

fn address() -> GroupAddress {
    GroupAddress { to: ReplicaId(12), from: ReplicaId(11) }
}

fn grant() -> Grant {
    Grant { limit_cost: 262_144, limit_messages: u64::MAX, ..Grant::default() }
}

fn node(broker: u64) -> Node {
    Node {
        cluster: 0x0123_4567_89ab_cdef,
        broker: BrokerId(broker),
        instance: 0x1000 + broker,
        name: name(&format!("weir-{broker}")),
    }
}

/// A data batch of one record and a blank of the leader, each as it is stored.
fn stored(salt: u64) -> Bytes {
    let mut builder = BatchBuilder::new(1 << 20);
    builder.push(1_700_000_000_000, Some(b"c42"), &[], b"hello").unwrap();
    let built = builder.finish();
    let mut data = built.header;
    (data.index, data.term, data.base_offset) = (Index(8), Term(3), Offset(100));
    let mut blank = BatchHeader::empty(BatchType::Noop);
    (blank.index, blank.term, blank.base_offset) = (Index(9), Term(3), Offset(101));
    let mut bytes = data.stamp(salt, 0x5eed, None).to_vec();
    bytes.extend_from_slice(&built.body);
    bytes.resize(data.stored_len(), 0);
    bytes.extend_from_slice(&blank.stamp(salt, data.chain, None));
    bytes.into()
}

fn part(salt: u64) -> SegmentPart {
    SegmentPart { salt, batches: vec![stored(salt)] }
}

fn handshake_frames() -> Vec<(&'static str, PeerFrame)> {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        features: 0,
        lane: Lane::Bulk,
        nonce: Nonce([0xd1; 32]),
        node: node(1),
    };
    let challenge = Challenge {
        version: 1,
        features: 0,
        secret: true,
        nonce: Nonce([0xac; 32]),
        node: node(2),
    };
    let go_away = PeerGoAway {
        refusal: PeerRefusal::Draining,
        deadline_ms: 1_000,
        text: "the broker is shutting down".into(),
    };
    vec![
        ("hello", PeerFrame::Hello(hello)),
        ("challenge", PeerFrame::Challenge(challenge)),
        ("proof", PeerFrame::Proof(Mac([0x5a; 32]))),
        ("ready", PeerFrame::Ready(Mac([0xa5; 32]))),
        ("heartbeat", PeerFrame::Heartbeat),
        ("goaway", PeerFrame::GoAway(go_away)),
        ("grant", PeerFrame::Grant(StreamId(1), grant())),
        ("demand", PeerFrame::Demand(StreamId(1), Demand { cost: 1 << 20, largest: 4_096 })),
    ]
}

fn appended(result: AppendResult) -> PeerFrame {
    PeerFrame::Appended(Appended { stream: StreamId(1), number: 7, result, grant: grant() })
}

fn append_frames() -> Vec<(&'static str, PeerFrame)> {
    let append = |parts| {
        PeerFrame::Append(Append {
            stream: StreamId(1),
            number: 7,
            vote: vote(3),
            prev: place(2, 7),
            commit: place(2, 6),
            parts,
        })
    };
    vec![
        ("append_open", PeerFrame::AppendOpen(StreamId(1), address())),
        ("append", append(vec![part(77), part(78)])),
        ("append_nothing", append(vec![])),
        ("appended_flushed", appended(AppendResult::Flushed(place(3, 9)))),
        ("appended_conflict", appended(AppendResult::Conflict(place(1, 7)))),
        ("appended_outvoted", appended(AppendResult::Outvoted(vote(4)))),
        ("appended_refused", appended(AppendResult::Refused(PeerRefusal::UnknownReplica))),
        ("append_close", PeerFrame::AppendClose(StreamId(1))),
    ]
}

fn snapshot_frames() -> Vec<(&'static str, PeerFrame)> {
    let (stream, request) = (StreamId(2), RequestId(3));
    let head = SnapshotHead {
        address: address(),
        vote: vote(3),
        place: place(2, 7),
        chain: 0x5eed,
        log_end: Offset(100),
        log_time_ms: 1_700_000_000_000,
        membership_place: place(0, 1),
        membership: Bytes::from_static(b"membership"),
        state_len: 5,
        state_crc: crc32fast::hash(b"state"),
    };
    let content = Bytes::from_static(b"state");
    let batches = FetchedBatches { more: true, parts: vec![part(77)] };
    let (first, last) = (Index(8), Index(20));
    let fetch = Fetch { request, address: address(), first, last, bytes_max: 1 << 20 };
    let fetched = |answer| PeerFrame::Fetched(Fetched { request, answer });
    vec![
        ("snapshot", PeerFrame::Snapshot(stream, head)),
        ("snapshot_part", PeerFrame::SnapshotPart(SnapshotPart { stream, position: 0, content })),
        ("snapshot_done", PeerFrame::SnapshotDone(stream, Ok(vote(3)))),
        ("snapshot_refused", PeerFrame::SnapshotDone(stream, Err(PeerRefusal::Opening))),
        ("fetch", PeerFrame::Fetch(fetch)),
        ("fetched", fetched(Ok(batches))),
        ("fetched_refused", fetched(Err(PeerRefusal::Damaged))),
    ]
}

fn replica_frames() -> Vec<(&'static str, PeerFrame)> {
    let request = RequestId(4);
    let beat =
        Beat { address: address(), term: Term(3), matching: place(3, 9), commit: place(3, 8) };
    let beaten = |result| Beaten { round: 5, address: address(), result };
    let results = [
        AppendResult::Flushed(place(3, 9)),
        AppendResult::Conflict(place(1, 7)),
        AppendResult::Outvoted(vote(4)),
        AppendResult::Refused(PeerRefusal::Fenced),
    ];
    let kind = VoteKind::Trial;
    let ask = VoteAsk { request, address: address(), kind, vote: vote(4), last: place(3, 9) };
    let answer = VoteAnswer { granted: false, vote: vote(5), last: place(3, 10) };
    let target = ReplicaId(12);
    let transfer =
        Transfer { request, address: address(), vote: vote(3), target, last: place(3, 9) };
    let transferred = |answer| PeerFrame::Transferred(Transferred { request, answer });
    vec![
        ("beats", PeerFrame::Beats(Beats { round: 5, beats: vec![beat] })),
        ("beaten", PeerFrame::Beaten(results.map(beaten).into())),
        ("vote", PeerFrame::Vote(ask)),
        ("voted", PeerFrame::Voted(Voted { request, answer: Ok(answer) })),
        ("voted_refused", PeerFrame::Voted(Voted { request, answer: Err(PeerRefusal::Opening) })),
        ("transfer", PeerFrame::Transfer(transfer)),
        ("transferred", transferred(Ok(TransferAnswer::Obeyed))),
        ("transferred_vote", transferred(Ok(TransferAnswer::VoteChanged(vote(4))))),
        ("transferred_flushed", transferred(Ok(TransferAnswer::NotFlushed(place(3, 8))))),
    ]
}

fn cluster_frames() -> Vec<(&'static str, PeerFrame)> {
    let request = RequestId(6);
    let led = Led {
        replica: ReplicaId(11),
        term: Term(3),
        log_start: Offset(10),
        high_watermark: Offset(100),
        bytes: 4_096,
    };
    let news = News { free_bytes: 10 << 30, draining: false, gate: 2, led: vec![led] };
    let forward = |question| PeerFrame::Forward(Forward { request, deadline_ms: 5_000, question });
    let forwarded = |answer| PeerFrame::Forwarded(Forwarded { request, answer });
    let applied = ForwardedAnswer::Applied(Bytes::from_static(b"change"));
    let refusal = Refusal::new(ErrorCode::TopicExists, "orders exists");
    let probed = Probed {
        request,
        cluster: 0,
        broker: BrokerId(0),
        state: MemberState::Empty,
        expect: 3,
        seeds_hash: 0xfeed,
        gate: 2,
        client_address: "10.0.0.1:7420".into(),
        peer_address: "10.0.0.1:7422".into(),
        rack: Some(name("a")),
        name: name("weir-1"),
    };
    let seed = |broker, voter: Option<u64>| Seed {
        peer_address: format!("10.0.0.{broker}:7422"),
        broker: BrokerId(broker),
        voter: voter.map(ReplicaId),
    };
    let seeds = vec![seed(1, Some(1)), seed(2, None)];
    let form = Form { request, cluster: 0x0123_4567, broker: BrokerId(2), seeds };
    let formed = |answer| PeerFrame::Formed(Formed { request, answer });
    vec![
        ("news", PeerFrame::News(news)),
        ("forward", forward(Question::Command(Bytes::from_static(b"command")))),
        ("forward_read_index", forward(Question::ReadIndex)),
        ("forwarded", forwarded(Ok(applied))),
        ("forwarded_read_index", forwarded(Ok(ForwardedAnswer::ReadIndex(Index(40))))),
        ("forwarded_refused", forwarded(Err(refusal))),
        ("probe", PeerFrame::Probe(request)),
        ("probed", PeerFrame::Probed(probed)),
        ("form", PeerFrame::Form(form)),
        ("formed", formed(Ok(()))),
        ("formed_refused", formed(Err(PeerRefusal::WrongCluster))),
    ]
}

/// Both proofs of one handshake with this secret: what a second implementation checks itself by.
fn proofs() -> Vec<(&'static str, PeerFrame)> {
    let trust = || Trust::Secret(Secret::new(b"correct horse battery staple 000").unwrap());
    let (mut dialer, hello) =
        Handshake::dial(node(1), trust(), Nonce([0xd1; 32]), (Lane::Control, None));
    let mut acceptor = Handshake::accept(node(2), trust(), Nonce([0xac; 32]));
    let bytes = |frame: &PeerFrame| Bytes::from(encode_to_vec(frame));
    let Step::Send(challenge) = acceptor.handle(bytes(&hello)) else { panic!() };
    let Step::Send(proof) = dialer.handle(bytes(&challenge)) else { panic!() };
    let Step::Open(_, Some(ready)) = acceptor.handle(bytes(&proof)) else { panic!() };
    vec![
        ("proved_hello", hello),
        ("proved_challenge", challenge),
        ("proved_proof", proof),
        ("proved_ready", ready),
    ]
}

fn all_frames() -> Vec<(&'static str, PeerFrame)> {
    let frames = [
        handshake_frames(),
        append_frames(),
        snapshot_frames(),
        replica_frames(),
        cluster_frames(),
    ];
    frames.into_iter().flatten().collect()
}

#[test]
fn every_frame_has_the_bytes_it_always_had() {
    let encoded = all_frames().into_iter().chain(proofs()).map(|(title, frame)| {
        let bytes = encode_to_vec(&frame);
        let decoded = PeerDecoder::new(PEER_FRAME_BYTES_MAX).decode(&mut BytesMut::from(&*bytes));
        assert_eq!(decoded, Ok(Some(frame)), "{title} does not survive");
        (title, bytes)
    });
    common::check_vectors("peer_v1.txt", encoded);
}

#[test]
fn the_page_names_every_refusal() {
    let page = include_str!("../PEER.md");
    for refusal in PeerRefusal::ALL {
        let row = format!("| {} | {} | {} |", *refusal as u8, refusal.name(), refusal.sentence());
        assert!(page.contains(&row), "PEER.md lacks {row}");
    }
}

/// The types of PEER.md: number, sides, and the lane that its section 2 gives them.
fn types_of_page() -> BTreeMap<u8, String> {
    let page = include_str!("../PEER.md");
    let rows = page.split("### Types").nth(1).unwrap().split("### Refusals").next().unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let number = cells.get(1).and_then(|cell| u8::from_str_radix(cell, 16).ok())?;
        Some((number, cells[3].to_owned()))
    };
    rows.lines().filter_map(row).collect()
}

#[test]
fn the_page_names_every_type_and_who_sends_it() {
    let mut types = types_of_page();
    let mut seen = BTreeMap::new();
    for (title, frame) in all_frames() {
        let number = encode_to_vec(&frame)[4];
        let sides = types.get(&number).unwrap_or_else(|| panic!("PEER.md lacks {title}"));
        for (side, letter) in [(Side::Dialer, 'D'), (Side::Acceptor, 'A')] {
            for lane in [Lane::Control, Lane::Bulk] {
                let on_lane = match number {
                    0x40..=0x43 => false,
                    0x44 | 0x45 => true,
                    0x60.. => lane == Lane::Control,
                    _ => lane == Lane::Bulk,
                };
                let expected = sides.contains(letter) && on_lane;
                assert_eq!(frame.is_sent_by(side, lane), expected, "{title}, {side:?}, {lane:?}");
            }
        }
        seen.insert(number, title);
    }
    types.retain(|number, _| !seen.contains_key(number));
    assert_eq!(types, BTreeMap::new(), "types without a vector");
}
