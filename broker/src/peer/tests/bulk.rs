//! The bulk lane between two rooms, or a room and a script.

use super::net::Net;
use super::rig::{MEMORY_BYTES, Rig, Spec, address, address_of, append, flushed, place, start};
use super::script::Script;
use super::*;
use crate::peer::bulk::IDLE_MAX;
use crate::peer::reader::READER_BYTES_MAX;
use futures_util::poll;
use std::future::poll_fn;
use weir_protocol::frame::Grant;
use weir_protocol::peer::limits::{
    APPEND_BYTES_MAX, INITIAL_CREDIT_BYTES, PEER_FRAME_COST, STREAM_WINDOW_BYTES_MAX,
};
use weir_protocol::peer::{Append, Appended, SnapshotPart, encode_to_vec};
use weir_protocol::types::{Index, Offset, ReplicaId, RequestId, StreamId, Term};

const TO: BrokerId = BrokerId(2);
const MIB: usize = 1 << 20;

async fn pair() -> (Arc<Net>, Rig, Rig) {
    pair_with(MEMORY_BYTES).await
}

async fn pair_with(memory_bytes: u64) -> (Arc<Net>, Rig, Rig) {
    let net = Arc::new(Net::default());
    let b = start(&net, Spec { memory_bytes, ..Spec::of(2, &[]) }).await;
    let a = start(&net, Spec::of(1, &[1, 2])).await;
    a.linked().await;
    (net, a, b)
}

async fn scripted() -> (Rig, Script) {
    let net = Arc::new(Net::default());
    let mut listener = net.at([127, 0, 0, 1]).listen(address_of(2)).await.unwrap();
    let room = start(&net, Spec::of(1, &[2])).await;
    loop {
        let (script, lane) = Script::accept(&mut *listener, 2).await;
        if lane == Lane::Bulk {
            tokio::time::sleep(Duration::from_millis(50)).await;
            return (room, script);
        }
    }
}

type Stream = Box<dyn AppendStream>;

async fn ready(stream: &mut Stream) -> Result<(), PeerLost> {
    poll_fn(|cx| stream.poll_ready(cx)).await
}

async fn answer(stream: &mut Stream) -> Option<Result<AppendResult, PeerLost>> {
    let answered = poll_fn(|cx| stream.poll_answer(cx));
    tokio::time::timeout(Duration::from_secs(60), answered).await.expect("an answer, or an end")
}

/// Sends as many appends as may be sent now, and says how many that were.
async fn send_all(stream: &mut Stream, bytes: usize, most: usize) -> usize {
    let mut sent = 0;
    while sent < most {
        // What carries them has its turns in between.
        tokio::time::sleep(Duration::from_millis(1)).await;
        match poll!(poll_fn(|cx| stream.poll_ready(cx))) {
            std::task::Poll::Ready(Ok(())) => stream.send(append(bytes)),
            _ => break,
        }
        sent += 1;
    }
    sent
}

fn grant(limit_cost: u64) -> Grant {
    Grant { limit_cost, limit_messages: u64::MAX, ..Grant::default() }
}

fn appended(number: u64, limit: u64) -> PeerFrame {
    let (stream, result) = (StreamId(1), flushed(number));
    PeerFrame::Appended(Appended { stream, number, result, grant: grant(limit) })
}

#[tokio::test(start_paused = true)]
async fn appends_of_all_sizes_arrive_in_order_and_are_answered() {
    let (_net, a, b) = pair().await;
    let mut stream = a.room.peers().append(TO, address(7));
    let sizes = [0, 128, 300_000, APPEND_BYTES_MAX - 32, 0, MIB, 5_024, MIB];
    for bytes in sizes {
        ready(&mut stream).await.unwrap();
        stream.send(append(bytes));
    }
    stream.close();
    let mut last = None;
    while let Some(result) = answer(&mut stream).await {
        let before = last.replace(index(result.unwrap()));
        assert!(before < last);
    }
    assert_eq!(last, Some(Index(sizes.len() as u64)));
    assert_eq!(b.memory.used(), 2 * READER_BYTES_MAX as u64, "only the links hold something");
}

fn index(result: AppendResult) -> Index {
    match result {
        AppendResult::Flushed(place) => place.index,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_window_is_never_exceeded() {
    let (a, mut script) = scripted().await;
    let mut stream = a.room.peers().append(TO, address(7));
    let sent = send_all(&mut stream, 64 << 10, 100).await;
    assert_eq!(script.hear().await, Some(PeerFrame::AppendOpen(StreamId(1), address(7))));
    let mut limit = INITIAL_CREDIT_BYTES;
    let (mut cost, mut received, mut demands) = (0, 0, 0);
    for step in 0..3 {
        loop {
            let heard = tokio::time::timeout(Duration::from_millis(300), script.hear()).await;
            match heard {
                Err(_) => break,
                Ok(Some(PeerFrame::Append(append))) => {
                    received += 1;
                    assert_eq!(append.number, received);
                    cost += append.cost();
                }
                Ok(Some(PeerFrame::Demand(StreamId(1), demand))) => {
                    demands += 1;
                    assert_eq!((demand.cost, demand.largest), ((64 << 10) + 512, (64 << 10) + 512));
                }
                Ok(other) => panic!("{other:?}"),
            }
        }
        assert!(cost <= limit && cost > limit - (66 << 10), "step {step}: {cost} of {limit}");
        assert_eq!(demands, step + 1, "what waits is asked for once");
        limit += 512 << 10;
        script.say(&PeerFrame::Grant(StreamId(1), grant(limit))).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        send_all(&mut stream, 64 << 10, 100).await;
    }
    assert_eq!(sent, 4, "three are covered, and one waits");
}

#[tokio::test(start_paused = true)]
async fn a_frame_larger_than_all_credit_goes_alone() {
    let (a, mut script) = scripted().await;
    let mut stream = a.room.peers().append(TO, address(7));
    for _ in 0..2 {
        ready(&mut stream).await.unwrap();
        stream.send(append(MIB));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(matches!(script.hear().await, Some(PeerFrame::AppendOpen(..))));
    assert!(matches!(script.hear().await, Some(PeerFrame::Append(Append { number: 1, .. }))));
    assert!(matches!(script.hear().await, Some(PeerFrame::Demand(..))));
    script.say(&appended(1, INITIAL_CREDIT_BYTES)).await;
    assert!(matches!(script.hear().await, Some(PeerFrame::Append(Append { number: 2, .. }))));
    assert_eq!(answer(&mut stream).await, Some(Ok(flushed(1))));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stops_reading_costs_a_bounded_outbox() {
    let (a, mut script) = scripted().await;
    let mut stream = a.room.peers().append(TO, address(7));
    send_all(&mut stream, 1_024, 1).await;
    assert!(matches!(script.hear().await, Some(PeerFrame::AppendOpen(..))));
    // A grant beyond what may be granted counts as far as one may be.
    script.say(&PeerFrame::Grant(StreamId(1), grant(u64::MAX))).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let sent = send_all(&mut stream, MIB, 1_000).await;
    let most = STREAM_WINDOW_BYTES_MAX as usize / MIB + 1;
    assert!((most - 2..=most).contains(&sent), "{sent} were taken");
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_lost_with_its_link_and_the_next_one_works() {
    let (net, a, b) = pair().await;
    b.replicas.hold(7, true);
    let mut stream = a.room.peers().append(TO, address(7));
    ready(&mut stream).await.unwrap();
    stream.send(append(256));
    tokio::time::sleep(Duration::from_millis(20)).await;
    net.cut();
    assert_eq!(answer(&mut stream).await, Some(Err(PeerLost::Broken)));
    assert_eq!(ready(&mut stream).await, Err(PeerLost::Broken));
    let mut next = a.room.peers().append(TO, address(7));
    assert_eq!(ready(&mut next).await, Err(PeerLost::Unreachable));
    b.replicas.hold(7, false);
    tokio::time::sleep(Duration::from_millis(200)).await;
    a.linked().await;
    let mut next = a.room.peers().append(TO, address(7));
    ready(&mut next).await.unwrap();
    next.send(append(256));
    assert_eq!(answer(&mut next).await, Some(Ok(flushed(1))));
    assert_eq!(ready(&mut stream).await, Err(PeerLost::Broken), "what is lost stays so");
    assert_eq!(b.memory.used(), 2 * READER_BYTES_MAX as u64);
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_an_answer_is_lost_and_others_go_on() {
    let (_net, a, b) = pair().await;
    b.replicas.hold(7, true);
    let began = Instant::now();
    let (mut held, mut other) =
        (a.room.peers().append(TO, address(7)), a.room.peers().append(TO, address(8)));
    for stream in [&mut held, &mut other] {
        ready(stream).await.unwrap();
        stream.send(append(256));
    }
    assert_eq!(answer(&mut other).await, Some(Ok(flushed(1))));
    assert!(began.elapsed() < Duration::from_millis(10));
    assert_eq!(answer(&mut held).await, Some(Err(PeerLost::Broken)));
    assert!(began.elapsed() >= IDLE_MAX && began.elapsed() <= IDLE_MAX + Duration::from_secs(2));
    ready(&mut other).await.unwrap();
    other.send(append(256));
    assert_eq!(answer(&mut other).await, Some(Ok(flushed(2))));
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(b.memory.used(), 2 * READER_BYTES_MAX as u64, "nothing is held for the lost one");
}

#[tokio::test(start_paused = true)]
async fn the_receiver_holds_what_was_drawn_until_it_is_answered() {
    let (_net, a, b) = pair_with(READER_BYTES_MAX as u64 * 2 + 3 * MIB as u64).await;
    let idle = b.memory.used();
    b.replicas.hold(7, true);
    let mut streams: Vec<_> = (0..6).map(|_| a.room.peers().append(TO, address(7))).collect();
    for stream in &mut streams {
        ready(stream).await.unwrap();
        stream.send(append(MIB - 512));
    }
    let mut refused = 0;
    for stream in &mut streams {
        let answered = tokio::time::timeout(Duration::from_secs(1), answer(stream)).await;
        if let Ok(answered) = answered {
            let overloaded = AppendResult::Refused(PeerRefusal::Overloaded);
            assert_eq!(answered, Some(Ok(overloaded)));
            refused += 1;
        }
    }
    assert_eq!((refused, b.memory.used() - idle), (3, 3 * MIB as u64));
    b.replicas.hold(7, false);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(b.memory.used(), idle);
    a.linked().await;
}

#[tokio::test(start_paused = true)]
async fn windows_grow_for_who_asks_and_not_beyond_their_limit() {
    let (_net, a, b) = pair().await;
    b.replicas.hold(7, true);
    let mut stream = a.room.peers().append(TO, address(7));
    let mut sent = 0;
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        sent += send_all(&mut stream, MIB, 64).await;
    }
    let window = STREAM_WINDOW_BYTES_MAX as usize / MIB;
    assert!((window - 1..=window + 1).contains(&sent), "{sent} MiB");
    assert!(b.memory.used() <= STREAM_WINDOW_BYTES_MAX + 2 * READER_BYTES_MAX as u64);
    b.replicas.hold(7, false);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(b.replicas_appended(&mut stream).await, sent as u64);
}

impl Rig {
    /// The last append that was answered on the stream.
    async fn replicas_appended(&self, stream: &mut Stream) -> u64 {
        match answer(stream).await {
            Some(Ok(AppendResult::Flushed(place))) => place.index.0,
            other => panic!("{other:?}"),
        }
    }
}

fn opened(stream: u32) -> Vec<u8> {
    encode_to_vec(&PeerFrame::AppendOpen(StreamId(stream), address(7)))
}

fn sent(stream: u32, number: u64, bytes: usize) -> Vec<u8> {
    let append = Append { stream: StreamId(stream), number, ..append(bytes) };
    encode_to_vec(&PeerFrame::Append(append))
}

#[tokio::test(start_paused = true)]
async fn who_breaks_the_rules_of_streams_is_closed() {
    let net = Arc::new(Net::default());
    let b = start(&net, Spec::of(2, &[])).await;
    b.replicas.hold(7, true);
    let cases = [
        ("not opened", vec![sent(1, 1, 256)]),
        ("opened twice", vec![opened(1), opened(1)]),
        ("a gap", vec![opened(1), sent(1, 2, 256)]),
        ("beyond its credit", vec![opened(1), sent(1, 1, 256), sent(1, 2, 256 << 10)]),
        ("two large ones", vec![opened(1), sent(1, 1, MIB), sent(1, 2, MIB)]),
    ];
    for (name, frames) in cases {
        let mut script = Script::dial(&net, 2, Lane::Bulk).await;
        let bytes = frames.concat();
        let _ = tokio::io::AsyncWriteExt::write_all(&mut script.socket, &bytes).await;
        assert_eq!(script.end().await, Some(PeerRefusal::Malformed), "{name}");
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(b.memory.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_comes_on_a_stream_that_is_over_is_passed_over() {
    let net = Arc::new(Net::default());
    let b = start(&net, Spec::of(2, &[])).await;
    let mut script = Script::dial(&net, 2, Lane::Bulk).await;
    let close = encode_to_vec(&PeerFrame::AppendClose(StreamId(1)));
    let bytes = [opened(1), close, sent(1, 1, 100_000), opened(2), sent(2, 1, 100_000)].concat();
    tokio::io::AsyncWriteExt::write_all(&mut script.socket, &bytes).await.unwrap();
    let Some(PeerFrame::Appended(appended)) = script.hear().await else { panic!("an answer") };
    assert_eq!((appended.stream, appended.number), (StreamId(2), 1));
    assert_eq!(appended.result, AppendResult::Flushed(place(1)));
    assert_eq!(b.memory.used(), READER_BYTES_MAX as u64);
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_what_was_not_sent_ends_the_link() {
    let (a, mut script) = scripted().await;
    let mut stream = a.room.peers().append(TO, address(7));
    ready(&mut stream).await.unwrap();
    stream.send(append(256));
    assert!(matches!(script.hear().await, Some(PeerFrame::AppendOpen(..))));
    script.say(&appended(2, 0)).await;
    assert_eq!(script.end().await, Some(PeerRefusal::Malformed));
    assert_eq!(answer(&mut stream).await, Some(Err(PeerLost::Broken)));
}

fn fetch(first: u64) -> Fetch {
    Fetch {
        request: RequestId(0),
        address: address(7),
        first: Index(first),
        last: Index(9),
        bytes_max: 1 << 20,
    }
}

#[tokio::test(start_paused = true)]
async fn batches_are_fetched_two_at_a_time() {
    let (_net, a, _b) = pair().await;
    let asks = a.room.asks();
    let within = Duration::from_secs(5);
    let all = (1..=7).map(|first| asks.ask(TO, Ask::Fetch(fetch(first)), within));
    for (answer, first) in futures_util::future::join_all(all).await.into_iter().zip(1u8..) {
        let Ok(Answer::Fetched(Ok(fetched))) = answer else { panic!("{answer:?}") };
        assert!(fetched.more && fetched.parts[0].batches[0].iter().all(|byte| *byte == first));
    }
    assert_eq!(a.memory.used(), 2 * READER_BYTES_MAX as u64);
}

pub(super) fn snapshot(state: &Bytes) -> SnapshotHead {
    SnapshotHead {
        address: address(7),
        vote: Vote { term: Term(3), replica: ReplicaId(1), committed: true },
        place: place(9),
        chain: 1,
        log_end: Offset(5),
        log_time_ms: 6,
        membership_place: place(1),
        membership: Bytes::from_static(b"members"),
        state_len: state.len() as u64,
        state_crc: crc32fast::hash(state),
    }
}

fn state_of(bytes: usize) -> Bytes {
    (0..bytes).map(|n| (n / 7) as u8).collect::<Vec<_>>().into()
}

#[tokio::test(start_paused = true)]
async fn snapshots_of_all_sizes_arrive_whole() {
    let (_net, a, b) = pair().await;
    let idle = b.memory.used();
    for bytes in [0, 1, 128 << 10, 5 * MIB + 3] {
        let state = state_of(bytes);
        let head = snapshot(&state);
        let vote = a.room.peers().snapshot(TO, head.clone(), state.clone()).await;
        assert_eq!(vote, Ok(head.vote));
        assert_eq!(b.replicas.installed.lock().unwrap().pop(), Some(state));
        assert_eq!(b.memory.used(), idle);
    }
    let state = state_of(300_000);
    let head = SnapshotHead { state_crc: 1, ..snapshot(&state) };
    let refused = a.room.peers().snapshot(TO, head, state).await;
    assert_eq!(refused, Err(PeerLost::Refused(PeerRefusal::Malformed)));
    assert!(b.replicas.installed.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_for_which_there_is_no_memory_is_refused_and_one_given_up_leaves_nothing() {
    let (net, a, b) = pair_with(8 * MIB as u64).await;
    let (idle, state) = (b.memory.used(), state_of(9 * MIB));
    let refused = a.room.peers().snapshot(TO, snapshot(&state), state).await;
    assert_eq!(refused, Err(PeerLost::Refused(PeerRefusal::Overloaded)));
    // Given up in the middle.
    let mut script = Script::dial(&net, 2, Lane::Bulk).await;
    let (stream, state) = (StreamId(1), state_of(2 * MIB));
    script.say(&PeerFrame::Snapshot(stream, snapshot(&state))).await;
    let content = state.slice(..1_000);
    script.say(&PeerFrame::SnapshotPart(SnapshotPart { stream, position: 0, content })).await;
    assert!(matches!(script.hear().await, Some(PeerFrame::Grant(StreamId(1), _))));
    assert_eq!(b.memory.used(), idle + (READER_BYTES_MAX + 2 * MIB) as u64);
    script.say(&PeerFrame::AppendClose(stream)).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(b.memory.used(), idle + READER_BYTES_MAX as u64);
    drop(script);
    // What is whole is being installed: two at a time, as long as that takes.
    b.replicas.hold(7, true);
    for installing in [1, 2, 2] {
        let sent = a.room.peers().snapshot(TO, snapshot(&state), state.clone());
        let given_up = tokio::time::timeout(Duration::from_millis(50), sent).await;
        assert_eq!(b.replicas.installed.lock().unwrap().len(), installing);
        let refused = Ok(Err(PeerLost::Refused(PeerRefusal::Overloaded)));
        assert!(given_up.is_err() || installing == 2 && given_up == refused, "{given_up:?}");
    }
    b.replicas.hold(7, false);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(b.memory.used(), idle);
    let sent = a.room.peers().snapshot(TO, snapshot(&state), state.clone()).await;
    assert!(sent.is_ok(), "{sent:?}");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_does_not_move_is_given_up() {
    let (a, mut script) = scripted().await;
    let state = state_of(MIB);
    let began = Instant::now();
    let sent = a.room.peers().snapshot(TO, snapshot(&state), state.clone());
    let heard = async {
        let mut bytes = 0;
        loop {
            let heard = tokio::time::timeout(Duration::from_secs(1), script.hear()).await;
            match heard {
                // The link itself stays alive.
                Err(_) => script.say(&PeerFrame::Heartbeat).await,
                Ok(Some(PeerFrame::Snapshot(StreamId(1), _))) => {}
                Ok(Some(PeerFrame::SnapshotPart(part))) => bytes += part.content.len(),
                Ok(Some(PeerFrame::AppendClose(StreamId(1)))) => return bytes,
                Ok(other) => panic!("{other:?}"),
            }
        }
    };
    let (lost, bytes) = tokio::join!(sent, heard);
    assert_eq!(lost, Err(PeerLost::Broken));
    assert!(bytes as u64 <= INITIAL_CREDIT_BYTES);
    assert!(began.elapsed() >= IDLE_MAX && began.elapsed() <= IDLE_MAX + Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn what_helps_replicas_catch_up_goes_at_the_rate_and_holds_up_nobody_else() {
    let net = Arc::new(Net::default());
    let _b = start(&net, Spec::of(2, &[])).await;
    let spec = Spec { catch_up_bytes_per_s: MIB as u64, ..Spec::of(1, &[2]) };
    let a = start(&net, spec).await;
    a.linked().await;
    let began = tokio::time::Instant::now();
    let (mut far, mut other) =
        (a.room.peers().append(TO, address(7)), a.room.peers().append(TO, address(8)));
    for turn in 0..3 {
        let stream = if turn == 1 { &mut other } else { &mut far };
        let one = append(MIB - 512);
        let at = stream.catch_up(one.cost(), false);
        tokio::time::sleep_until(at).await;
        ready(stream).await.unwrap();
        stream.send(one);
        assert!(matches!(answer(stream).await, Some(Ok(_))));
    }
    let took = began.elapsed();
    assert!(
        (1_750..2_000).contains(&took.as_millis()),
        "{took:?} for 3 MiB, a part of them at once"
    );
    let waiting = far.catch_up(100 << 20, false);
    assert!(waiting > tokio::time::Instant::now());
    let (mut near, before) = (a.room.peers().append(TO, address(9)), tokio::time::Instant::now());
    ready(&mut near).await.unwrap();
    near.send(append(MIB));
    assert!(matches!(answer(&mut near).await, Some(Ok(_))));
    assert!(
        near.catch_up(1 << 20, true) <= tokio::time::Instant::now(),
        "what presses goes at once"
    );
    assert!(before.elapsed() < Duration::from_millis(50));
    let expected = CatchUpBytes { sent: 3 * MIB as u64, delayed: 2 * MIB as u64 };
    assert_eq!(a.room.catch_up_bytes(), expected);
}

/// A replica that has to be mended is missing until then.
#[tokio::test(start_paused = true)]
async fn what_mends_a_log_waits_for_nothing_and_what_else_catches_up_waits_for_it() {
    let net = Arc::new(Net::default());
    let spec = Spec { catch_up_bytes_per_s: MIB as u64, ..Spec::of(2, &[1]) };
    let b = start(&net, spec).await;
    let a = start(&net, Spec::of(1, &[2])).await;
    a.linked().await;
    b.linked().await;
    let began = tokio::time::Instant::now();
    for first in 1..=8 {
        let answer = a.room.asks().ask(TO, Ask::Fetch(fetch(first)), Duration::from_secs(5)).await;
        assert!(matches!(answer, Ok(Answer::Fetched(Ok(_)))), "{answer:?}");
    }
    assert!(began.elapsed() < Duration::from_millis(250), "{:?}", began.elapsed());
    let expected = CatchUpBytes { sent: 2 * MIB as u64 + 8 * PEER_FRAME_COST, delayed: 0 };
    assert_eq!(b.room.catch_up_bytes(), expected);
    let waits = b.room.peers().append(BrokerId(1), address(8)).catch_up(1, false) - began;
    assert!((1_700..2_000).contains(&waits.as_millis()), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_waits_for_its_turn_like_all_that_helps_to_catch_up() {
    let net = Arc::new(Net::default());
    let _b = start(&net, Spec::of(2, &[])).await;
    let spec = Spec { catch_up_bytes_per_s: MIB as u64, ..Spec::of(1, &[2]) };
    let a = start(&net, spec).await;
    a.linked().await;
    let began = tokio::time::Instant::now();
    for _ in 0..2 {
        let state = Bytes::from(vec![7; 2 * MIB]);
        a.room.peers().snapshot(TO, snapshot(&state), state).await.unwrap();
    }
    let took = began.elapsed();
    assert!((1_750..2_000).contains(&took.as_millis()), "{took:?}");
}
