//! What must hold for any bytes whatsoever that a broker may get from what claims to be another.
//!
//! Owns: the promises of the peer protocol's decoder and of its handshake, as functions over bytes
//! that panic when one breaks.
//! Never: makes up an input. Returns in words what the bytes turned out to be.

use crate::targets::{self, described};
use bytes::{Bytes, BytesMut};
use weir_protocol::codec::DecodeError;
use weir_protocol::limits::{
    BROKERS_MAX, FRAME_HEADER_BYTES, HANDSHAKE_FRAME_BYTES_MAX, TEXT_BYTES_MAX,
};
use weir_protocol::peer::limits::{
    BEATS_MAX, CONTENT_BYTES_MAX, NEWS_MAX, PEER_FRAME_BYTES_MAX, SEGMENT_PARTS_MAX,
};
use weir_protocol::peer::{
    Handshake, Lane, Node, Nonce, PeerDecoder, PeerFrame, Secret, SegmentPart, Step, Trust,
    encode_to_vec,
};
use weir_protocol::types::{BrokerId, Name};

/// Holds every promise against `bytes`; what they turned out to be.
pub(crate) fn check(bytes: &[u8]) -> String {
    check_handshakes(bytes);
    check_limit(bytes);
    check_frames(bytes)
}

/// The frames at the start of a stream, each with the position behind it, and what ended them.
#[derive(Debug, PartialEq)]
struct Cut {
    frames: Vec<(usize, PeerFrame)>,
    end: Result<usize, DecodeError>,
}

fn check_frames(bytes: &[u8]) -> String {
    let whole = cut_in_pieces(bytes, usize::MAX);
    for piece in [1, 3, 16, 17, 144, 1_000] {
        assert_eq!(cut_in_pieces(bytes, piece), whole, "in pieces of {piece} bytes");
    }
    assert_eq!(cut_as_needed(bytes), whole, "in pieces of the size that was asked for");
    let mut begin = 0;
    for (end, frame) in &whole.frames {
        check_head(&bytes[begin..*end], frame);
        check_bounds(frame);
        check_round_trip(frame, end - begin);
        begin = *end;
    }
    described(&whole.frames, whole.end, |left| part_of_frame(&bytes[bytes.len() - left..]))
}

/// What is known of a frame that is not complete.
fn part_of_frame(input: &[u8]) -> String {
    match PeerDecoder::new(PEER_FRAME_BYTES_MAX).peek(input) {
        Ok(Some(head)) => format!("the head of a frame of {} bytes", head.frame_bytes),
        Ok(None) => "part of a frame".to_owned(),
        Err(error) => format!("part of a frame: {error}"),
    }
}

/// Decodes whatever is complete after every `piece` bytes.
fn cut_in_pieces(bytes: &[u8], piece: usize) -> Cut {
    let decoder = PeerDecoder::new(PEER_FRAME_BYTES_MAX);
    let (mut input, mut frames, mut fed) = (BytesMut::new(), Vec::new(), 0);
    for piece in bytes.chunks(piece) {
        input.extend_from_slice(piece);
        fed += piece.len();
        if let Err(error) = take_complete(&decoder, &mut input, fed, &mut frames) {
            return Cut { frames, end: Err(error) };
        }
    }
    Cut { frames, end: Ok(input.len()) }
}

/// Decodes as a connection reads: never more than the decoder says is needed.
fn cut_as_needed(bytes: &[u8]) -> Cut {
    let decoder = PeerDecoder::new(PEER_FRAME_BYTES_MAX);
    let (mut input, mut frames, mut rest) = (BytesMut::new(), Vec::new(), bytes);
    loop {
        let needed = match decoder.needed(&input) {
            Ok(needed) => needed,
            Err(error) => return Cut { frames, end: Err(error) },
        };
        assert!(needed > 0, "what is complete was decoded");
        assert!(input.len() + needed <= PEER_FRAME_BYTES_MAX, "no frame needs more");
        let (piece, left) = rest.split_at(needed.min(rest.len()));
        if piece.is_empty() {
            return Cut { frames, end: Ok(input.len()) };
        }
        input.extend_from_slice(piece);
        rest = left;
        let fed = bytes.len() - rest.len();
        if let Err(error) = take_complete(&decoder, &mut input, fed, &mut frames) {
            return Cut { frames, end: Err(error) };
        }
    }
}

fn take_complete(
    decoder: &PeerDecoder,
    input: &mut BytesMut,
    fed: usize,
    frames: &mut Vec<(usize, PeerFrame)>,
) -> Result<(), DecodeError> {
    while let Some(frame) = decoder.decode(input)? {
        frames.push((fed - input.len(), frame));
    }
    Ok(())
}

/// What is said of a frame before the rest of it is there is true of the whole frame. Frames that
/// were skipped count to the one behind them.
fn check_head(mut input: &[u8], frame: &PeerFrame) {
    let decoder = PeerDecoder::new(PEER_FRAME_BYTES_MAX);
    let mut head = decoder.peek(input).unwrap().expect("a frame was decoded");
    while head.frame_bytes < input.len() {
        input = &input[head.frame_bytes..];
        head = decoder.peek(input).unwrap().expect("a frame was decoded");
    }
    assert_eq!(head.frame_bytes, input.len());
    assert_eq!(decoder.needed(input), Ok(0));
    let early = decoder.peek(&input[..input.len() - head.body_bytes]);
    assert_eq!(early, Ok(Some(head)), "the fields are enough");
    let parts_len = |parts: &[SegmentPart]| parts.iter().map(SegmentPart::len).sum::<usize>();
    match frame {
        PeerFrame::Append(append) => {
            assert_eq!(append.stream, head.stream);
            assert_eq!(append.cost(), head.cost());
            assert_eq!(parts_len(&append.parts), head.body_bytes);
        }
        PeerFrame::SnapshotPart(part) => assert_eq!(part.cost(), head.cost()),
        _ => {}
    }
}

/// Nothing that is read is longer than its limit.
fn check_bounds(frame: &PeerFrame) {
    match frame {
        PeerFrame::Beats(beats) => assert!(beats.beats.len() <= BEATS_MAX),
        PeerFrame::Beaten(beaten) => assert!(beaten.len() <= BEATS_MAX),
        PeerFrame::News(news) => assert!(news.led.len() <= NEWS_MAX),
        PeerFrame::Form(form) => assert!(form.seeds.len() <= BROKERS_MAX),
        PeerFrame::SnapshotPart(part) => {
            assert!(part.content.len() <= CONTENT_BYTES_MAX);
            assert!(part.position.checked_add(part.content.len() as u64).is_some());
        }
        PeerFrame::Append(append) => check_parts(&append.parts),
        PeerFrame::Fetched(fetched) => {
            fetched.answer.iter().for_each(|batches| check_parts(&batches.parts));
        }
        _ => {}
    }
}

fn check_parts(parts: &[SegmentPart]) {
    assert!(parts.len() <= SEGMENT_PARTS_MAX);
    for part in parts {
        assert!(part.len().is_multiple_of(32) && !part.is_empty());
        targets::check_delivery(&part.batches.concat(), part.salt);
    }
}

fn check_round_trip(frame: &PeerFrame, taken: usize) {
    let bytes = encode_to_vec(frame);
    assert!(bytes.len() <= taken, "{frame:?} of {taken} bytes grew to {}", bytes.len());
    let again = cut_in_pieces(&bytes, usize::MAX);
    assert_eq!((again.end, again.frames.len()), (Ok(0), 1), "what was encoded is decoded");
    let again = &again.frames[0].1;
    // Texts for people are cut when they are written; all else survives.
    if taken <= TEXT_BYTES_MAX {
        assert_eq!(again, frame);
    }
    assert_eq!(encode_to_vec(again), bytes, "what was written once is written the same again");
}

/// A length beyond the limit is refused as soon as it is there, and nothing is made for it.
fn check_limit(bytes: &[u8]) {
    let limit = HANDSHAKE_FRAME_BYTES_MAX;
    let Some(prefix) = bytes.first_chunk::<4>() else { return };
    let announced = u64::from(u32::from_le_bytes(*prefix)) + 4;
    let decoder = PeerDecoder::new(limit);
    let mut input = BytesMut::from(&prefix[..]);
    let held = (input.as_ptr(), input.len(), input.capacity());
    let cut = decoder.cut(&mut input);
    if announced > limit as u64 {
        let refused = DecodeError::TooLarge { bytes: announced, limit };
        assert_eq!(cut, Err(refused.clone()));
        assert_eq!(decoder.needed(bytes), Err(refused.clone()));
        assert_eq!(decoder.peek(bytes), Err(refused));
    }
    assert_eq!((input.as_ptr(), input.len(), input.capacity()), held, "nothing was held for it");
}

/// Who does not know the secret opens nothing, and a handshake that is over stays over.
fn check_handshakes(bytes: &[u8]) {
    let node = Node {
        cluster: 0,
        broker: BrokerId(0),
        instance: 7,
        name: Name::new("fuzzed").expect("it is a name"),
    };
    let trust = || Trust::Secret(Secret::new(&[7; 32]).expect("it is long enough"));
    let nonce = Nonce([9; 32]);
    let (dialer, _) = Handshake::dial(node.clone(), trust(), nonce, (Lane::Bulk, None));
    for mut machine in [dialer, Handshake::accept(node, trust(), nonce)] {
        let decoder = PeerDecoder::new(HANDSHAKE_FRAME_BYTES_MAX);
        let (mut input, mut over) = (BytesMut::from(bytes), false);
        while let Ok(Some(frame)) = decoder.cut(&mut input) {
            over = handle(&mut machine, frame, over);
        }
        handle(&mut machine, Bytes::copy_from_slice(bytes), over);
    }
}

fn handle(machine: &mut Handshake, frame: Bytes, over: bool) -> bool {
    match machine.handle(frame) {
        Step::Open(peer, _) => panic!("{peer:?} knows no secret"),
        Step::Send(frame) => {
            assert!(!over, "{frame:?} is sent when all is over");
            assert!(encode_to_vec(&frame).len() <= HANDSHAKE_FRAME_BYTES_MAX);
            false
        }
        Step::Close(_, frame) => {
            let len = frame.map_or(FRAME_HEADER_BYTES, |frame| encode_to_vec(&frame).len());
            assert!(len <= HANDSHAKE_FRAME_BYTES_MAX);
            true
        }
    }
}
