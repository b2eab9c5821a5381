//! The control lane between two rooms, or a room and a script.

use super::net::Net;
use super::rig::{CLUSTER, Rig, Spec, address, address_of, beat, flushed, place, start, vote_ask};
use super::script::Script;
use super::*;
use futures_util::future::join_all;
use weir_protocol::frame::Demand;
use weir_protocol::peer::limits::NEWS_MAX;
use weir_protocol::peer::{
    Append, Beaten, Beats, ForwardedAnswer, Led, Question, SnapshotPart, encode_to_vec,
};
use weir_protocol::types::{Index, Offset, ReplicaId, RequestId, StreamId, Term};

const TO: BrokerId = BrokerId(2);
const LONG: Duration = Duration::from_secs(20);

async fn pair() -> (Arc<Net>, Rig, Rig) {
    let net = Arc::new(Net::default());
    let b = start(&net, Spec::of(2, &[])).await;
    let a = start(&net, Spec::of(1, &[1, 2])).await;
    a.linked().await;
    (net, a, b)
}

/// A room that has dialed a script on its control lane.
async fn scripted() -> (Arc<Net>, Rig, Script) {
    let net = Arc::new(Net::default());
    let mut listener = net.at([127, 0, 0, 1]).listen(address_of(2)).await.unwrap();
    let room = start(&net, Spec::of(1, &[2])).await;
    loop {
        let (script, lane) = Script::accept(&mut *listener, 2).await;
        if lane == Lane::Control {
            tokio::time::sleep(Duration::from_millis(50)).await;
            return (net, room, script);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn questions_are_answered() {
    let (_net, a, b) = pair().await;
    let peers = a.room.peers();
    assert_eq!(peers.beat(TO, beat(7, 4)).await, Ok(flushed(4)));
    assert_eq!(b.replicas.beats.lock().unwrap()[..], [beat(7, 4)]);
    let vote = Vote { term: Term(2), replica: ReplicaId(1), committed: true };
    let request = RequestId(0);
    let (last, target) = (place(9), ReplicaId(3));
    let transfer = Transfer { request, address: address(7), vote, target, last };
    let told = peers.transfer(TO, transfer).await;
    assert_eq!(told, Ok(TransferAnswer::NotFlushed(last)));
    let asks = a.room.asks();
    let command = Question::Command(vec![5; 200_000].into());
    for question in [command, Question::ReadIndex] {
        let expected = match &question {
            Question::Command(command) => ForwardedAnswer::Applied(command.clone()),
            Question::ReadIndex => ForwardedAnswer::ReadIndex(Index(77)),
        };
        let answer = asks.ask(TO, Ask::Forward(question, LONG), LONG).await;
        assert_eq!(answer, Ok(Answer::Forwarded(Ok(expected))));
    }
    for (cluster, expected) in [(CLUSTER, Ok(())), (1, Err(PeerRefusal::WrongCluster))] {
        let form = Form { request, cluster, broker: TO, seeds: vec![] };
        let formed = asks.ask(TO, Ask::Form(form), LONG).await;
        assert_eq!(formed, Ok(Answer::Formed(expected)));
    }
    let probed = asks.ask_at(&address_of(2).to_string(), Ask::Probe, LONG).await;
    assert!(matches!(probed, Ok(Answer::Probed(probed)) if probed.broker == BrokerId(5)));
    assert_eq!(a.memory.used(), 2 * crate::peer::reader::READER_BYTES_MAX as u64);
    assert_eq!(a.room.links().len(), 2, "the connection of one question is closed");
    let alone = asks.ask_at("127.0.0.1:1", Ask::Probe, LONG).await;
    assert_eq!(alone, Err(PeerLost::Unreachable));
    assert_eq!(asks.ask(BrokerId(8), Ask::Probe, LONG).await, Err(PeerLost::Unreachable));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_asks_itself_is_told_so() {
    let (_net, a, _b) = pair().await;
    let probed = a.room.asks().ask_at(&address_of(1).to_string(), Ask::Probe, LONG).await;
    assert_eq!(probed, Err(PeerLost::Refused(PeerRefusal::Itself)));
}

#[tokio::test(start_paused = true)]
async fn beats_of_many_replicas_share_frames_and_so_do_their_answers() {
    let (_net, a, mut script) = scripted().await;
    let peers = a.room.peers();
    let all = join_all((1..=500).map(|to| peers.beat(TO, beat(to, to))));
    let played = async {
        let (mut beats, mut frames) = (Vec::new(), 0);
        while beats.len() < 500 {
            let Some(PeerFrame::Beats(frame)) = script.hear().await else { panic!("beats") };
            frames += 1;
            let answer = |beat: &Beat| Beaten {
                round: frame.round,
                address: beat.address,
                result: AppendResult::Flushed(beat.matching),
            };
            script.say(&PeerFrame::Beaten(frame.beats.iter().map(answer).collect())).await;
            beats.extend(frame.beats);
        }
        (beats, frames)
    };
    let (answers, (mut beats, frames)) = tokio::join!(all, played);
    assert!(frames <= 2, "{frames} frames");
    beats.sort_by_key(|beat| beat.address);
    assert_eq!(beats, (1..=500).map(|to| beat(to, to)).collect::<Vec<_>>());
    assert!(answers.iter().zip(1..).all(|(answer, to)| *answer == Ok(flushed(to))));
}

#[tokio::test(start_paused = true)]
async fn a_beat_waits_at_most_the_time_of_gathering() {
    let (_net, a, mut script) = scripted().await;
    let began = Instant::now();
    let (first, second) = (a.room.peers(), a.room.peers());
    let later = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        second.beat(TO, beat(2, 1)).await
    };
    let played = async {
        let mut at = Vec::new();
        for _ in 0..2 {
            let Some(PeerFrame::Beats(Beats { beats, round })) = script.hear().await else {
                panic!("beats")
            };
            at.push((beats.len(), began.elapsed()));
            let (address, result) = (beats[0].address, flushed(1));
            script.say(&PeerFrame::Beaten(vec![Beaten { round, address, result }])).await;
        }
        at
    };
    let (_, _, at) = tokio::join!(first.beat(TO, beat(1, 1)), later, played);
    assert_eq!(at[0], (1, Duration::ZERO));
    assert!(at[1].1 <= crate::peer::beats::BEATS_GATHER + Duration::from_millis(1), "{at:?}");
}

#[tokio::test(start_paused = true)]
async fn a_replica_whose_log_is_slow_delays_nobody() {
    let (_net, a, b) = pair().await;
    b.replicas.hold(7, true);
    let peers = a.room.peers();
    let mut held = std::pin::pin!(peers.beat(TO, beat(7, 1)));
    assert!(futures_util::poll!(&mut held).is_pending());
    tokio::time::sleep(Duration::from_millis(20)).await;
    let began = Instant::now();
    for to in [8, 9] {
        assert_eq!(peers.beat(TO, beat(to, 1)).await, Ok(flushed(1)));
        assert!(peers.vote(TO, vote_ask(to)).await.unwrap().granted);
    }
    assert!(began.elapsed() < Duration::from_millis(20), "{:?}", began.elapsed());
    // A newer beat reaches the replica at once, and takes the place of the one that waits.
    let newer = tokio::join!(peers.beat(TO, beat(7, 2)), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let of_seven = b.replicas.beats.lock().unwrap().clone();
        b.replicas.hold(7, false);
        of_seven.iter().filter(|beat| beat.address.to == ReplicaId(7)).count()
    });
    assert_eq!(newer, (Ok(flushed(2)), 2));
    assert_eq!(held.await, Err(PeerLost::Broken));
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_waited_for_only_so_long_and_leaves_nothing_behind() {
    let (_net, a, b) = pair().await;
    b.replicas.hold(7, true);
    let peers = a.room.peers();
    let began = Instant::now();
    let calls = (0..1_500).map(|_| peers.vote(TO, vote_ask(7)));
    let answers = join_all(calls).await;
    let overloaded = Err(PeerLost::Refused(PeerRefusal::Overloaded));
    let refused = answers.iter().filter(|answer| **answer == overloaded).count();
    assert_eq!(refused, 1_500 - crate::peer::calls::CALLS_MAX);
    assert!(answers.iter().all(Result::is_err) && began.elapsed() == CALL_WITHIN);
    b.replicas.hold(7, false);
    assert!(peers.vote(TO, vote_ask(7)).await.unwrap().granted);
    a.linked().await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_link_is_found_within_three_seconds() {
    let (net, a, b) = pair().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    a.linked().await;
    net.fall_silent(true);
    let (began, peers) = (Instant::now(), a.room.peers());
    assert_eq!(peers.vote(TO, vote_ask(7)).await, Err(PeerLost::Broken));
    let dead = Duration::from_millis(u64::from(PEER_DEAD_AFTER_MS));
    a.until(|states| !states.contains(&LinkState::Open)).await;
    assert!(began.elapsed() <= dead + Duration::from_millis(2), "{:?}", began.elapsed());
    assert!(b.room.links().is_empty());
    assert_eq!(peers.vote(TO, vote_ask(7)).await, Err(PeerLost::Unreachable));
    net.fall_silent(false);
    a.linked().await;
    assert!(peers.vote(TO, vote_ask(7)).await.unwrap().granted);
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_is_lost_with_its_link() {
    let (net, a, b) = pair().await;
    b.replicas.hold(7, true);
    let peers = a.room.peers();
    let asked = async { tokio::join!(peers.vote(TO, vote_ask(7)), peers.beat(TO, beat(7, 1))) };
    let cut = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        net.cut();
    };
    let ((vote, beaten), ()) = tokio::join!(asked, cut);
    assert_eq!((vote, beaten), (Err(PeerLost::Broken), Err(PeerLost::Broken)));
    b.replicas.hold(7, false);
    tokio::time::sleep(Duration::from_millis(200)).await;
    a.linked().await;
    assert_eq!(peers.beat(TO, beat(7, 2)).await, Ok(flushed(2)));
}

fn led(replica: u64, bytes: u64) -> Led {
    let (log_start, high_watermark) = (Offset(0), Offset(9));
    Led { replica: ReplicaId(replica), term: Term(1), log_start, high_watermark, bytes }
}

#[tokio::test(start_paused = true)]
async fn news_reach_every_broker_when_they_change_and_all_of_them_every_ten_seconds() {
    let (_net, a, b) = pair().await;
    let news = |rows: &[Led]| News { free_bytes: 1, draining: false, gate: 1, led: rows.to_vec() };
    let heard = || std::mem::take(&mut *b.replicas.news.lock().unwrap());
    a.room.announce(news(&[led(1, 1), led(2, 1)]));
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(heard(), [(BrokerId(1), news(&[led(1, 1), led(2, 1)]))]);
    a.room.announce(news(&[led(1, 1), led(2, 2)]));
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(heard(), [(BrokerId(1), news(&[led(2, 2)]))]);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(heard(), [(BrokerId(1), news(&[led(1, 1), led(2, 2)]))]);
    let many: Vec<_> = (0..NEWS_MAX as u64 + 1).map(|n| led(n, 3)).collect();
    a.room.announce(news(&many));
    tokio::time::sleep(Duration::from_millis(10)).await;
    let rows: Vec<_> = heard().into_iter().flat_map(|(_, news)| news.led).collect();
    assert_eq!(rows, many);
}

#[tokio::test(start_paused = true)]
async fn whatever_comes_behind_ready_ends_the_link_at_most() {
    let net = Arc::new(Net::default());
    let b = start(&net, Spec::of(2, &[])).await;
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let lane = if random.bool() { Lane::Control } else { Lane::Bulk };
        let mut script = Script::dial(&net, 2, lane).await;
        // A frame that is whole, and noise where its fields or its batches are.
        let mut bytes = encode_to_vec(&PeerFrame::Vote(vote_ask(7)));
        if random.bool() {
            let at = random.usize(..bytes.len());
            bytes[at] ^= 1 << random.u8(..8);
        } else {
            bytes.resize(random.usize(16..9_000), 0);
            random.fill(&mut bytes);
            bytes[..4].copy_from_slice(&random.u32(12..8_000).to_le_bytes());
        }
        bytes.resize(bytes.len().max(70_000), random.u8(..));
        let _ = tokio::io::AsyncWriteExt::write_all(&mut script.socket, &bytes).await;
        assert!(script.end().await.is_some(), "seed {seed} was not refused");
    }
    assert_eq!((b.room.links().len(), b.memory.used()), (0, 0));
    let _still_served = Script::dial(&net, 2, Lane::Control).await;
}

/// Frames that decode and make no sense: fields of others with some of their bytes changed.
#[tokio::test(start_paused = true)]
async fn frames_that_make_no_sense_end_the_link_at_most() {
    let net = Arc::new(Net::default());
    let b = start(&net, Spec::of(2, &[])).await;
    let idle = b.memory.used();
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let lane = if random.bool() { Lane::Control } else { Lane::Bulk };
        let models = models(lane);
        let mut bytes = Vec::new();
        for _ in 0..random.usize(1..60) {
            let mut frame = encode_to_vec(&models[random.usize(..models.len())]);
            if random.u8(..3) == 0 {
                disturb(&mut frame, &mut random);
            }
            bytes.extend(frame);
        }
        // Noise ends what is still open; a panic would end it without a word.
        bytes.extend([0xff; 64]);
        let mut script = Script::dial(&net, 2, lane).await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut script.socket, &bytes).await;
        let refused = script.end().await;
        assert!(refused.is_some(), "seed {seed}: the link ended without a word");
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((b.room.links().len(), b.memory.used()), (0, idle));
}

fn models(lane: Lane) -> Vec<PeerFrame> {
    let request = RequestId(4);
    let beats = vec![beat(7, 1), beat(8, 1)];
    match lane {
        Lane::Control => vec![
            PeerFrame::Beats(Beats { round: 1, beats }),
            PeerFrame::Vote(vote_ask(7)),
            PeerFrame::Probe(request),
            PeerFrame::Forward(Forward {
                request,
                deadline_ms: 5,
                question: Question::Command(vec![1; 100].into()),
            }),
            PeerFrame::Form(Form { request, cluster: CLUSTER, broker: TO, seeds: vec![] }),
            PeerFrame::News(News { free_bytes: 1, draining: false, gate: 1, led: vec![led(1, 1)] }),
        ],
        Lane::Bulk => {
            let append = super::rig::append(256);
            let stream = StreamId(1);
            let content = bytes::Bytes::from_static(b"content");
            let (first, last) = (Index(1), Index(2));
            vec![
                PeerFrame::AppendOpen(stream, address(7)),
                PeerFrame::Append(Append { stream, number: 1, ..append.clone() }),
                PeerFrame::Append(Append { stream, number: 2, ..append }),
                PeerFrame::Demand(stream, Demand { cost: 1 << 40, largest: 5 }),
                PeerFrame::AppendClose(stream),
                PeerFrame::Snapshot(StreamId(2), super::bulk::snapshot(&content)),
                PeerFrame::SnapshotPart(SnapshotPart { stream: StreamId(2), position: 0, content }),
                PeerFrame::Fetch(Fetch { request, address: address(7), first, last, bytes_max: 9 }),
            ]
        }
    }
}

/// Changes a stream number or a byte of the fields, and makes the CRC fit.
fn disturb(frame: &mut [u8], random: &mut fastrand::Rng) {
    let fields = usize::from(u16::from_le_bytes([frame[6], frame[7]]));
    match random.u8(..3) {
        0 if fields > 0 => frame[16 + random.usize(..fields)] = random.u8(..),
        1 => frame[8] = random.u8(..4),
        _ => frame[4] = frame[4] & 0xf0 | random.u8(..16),
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&frame[..12]);
    crc.update(&frame[16..16 + fields]);
    frame[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
}

#[tokio::test(start_paused = true)]
async fn a_frame_of_the_wrong_side_or_lane_ends_the_link() {
    let net = Arc::new(Net::default());
    let _b = start(&net, Spec::of(2, &[])).await;
    let vote = PeerFrame::Vote(vote_ask(7));
    let mut bulk = Script::dial(&net, 2, Lane::Bulk).await;
    bulk.say(&vote).await;
    assert_eq!(bulk.end().await, Some(PeerRefusal::Malformed));
    let mut control = Script::dial(&net, 2, Lane::Control).await;
    control.say(&PeerFrame::Beaten(vec![])).await;
    assert_eq!(control.end().await, Some(PeerRefusal::Malformed));
}

#[tokio::test(start_paused = true)]
async fn a_drain_answers_what_was_asked_and_ends_in_time() {
    let (_net, a, b) = pair().await;
    b.replicas.hold(7, true);
    let peers = a.room.peers();
    let began = Instant::now();
    let asked = peers.vote(TO, vote_ask(7));
    let drained = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        tokio::join!(b.room.drain(began + LONG), async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(peers.vote(TO, vote_ask(8)).await, Err(PeerLost::Unreachable));
            b.replicas.hold(7, false);
        });
    };
    let (answer, ()) = tokio::join!(asked, drained);
    assert!(answer.unwrap().granted && began.elapsed() < Duration::from_secs(1));
    assert!(b.room.links().is_empty());
}
