//! What must hold for any bytes whatsoever.
//!
//! Owns: the promises of the decoders, each as a function over bytes that panics when one breaks.
//! Never: makes up an input. Returns in words what the bytes turned out to be.

use bytes::{Bytes, BytesMut};
use std::fmt::Debug;
use weir_protocol::batch::{
    BatchBuilder, BatchHeader, BodyError, MessageRef, RecordIter, RecordRef, WIRE_SALT,
};
use weir_protocol::codec::{DecodeError, Decoder, encode_to_vec};
use weir_protocol::frame::{CreateTopic, Frame, TopicConfig};
use weir_protocol::limits::{
    BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BATCH_RECORDS_MAX, FRAME_BYTES_MAX,
    HANDSHAKE_FRAME_BYTES_MAX, HEADERS_MAX, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, TEXT_BYTES_MAX,
};
use weir_protocol::types::{Name, RequestId};

/// What one input turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// As a stream of frames.
    pub(crate) frames: String,
    /// As one batch, header and body.
    pub(crate) batch: String,
}

/// Holds every promise against `bytes`.
pub(crate) fn check(bytes: &[u8]) -> Outcome {
    check_names(bytes);
    Outcome { frames: check_frames(bytes), batch: check_batch(bytes, WIRE_SALT) }
}

// ---- frames ----

/// The frames at the start of a stream, each with the position behind it, and what ended them.
#[derive(Debug, PartialEq)]
struct Cut {
    frames: Vec<(usize, Frame)>,
    end: Result<usize, DecodeError>,
}

fn check_frames(bytes: &[u8]) -> String {
    let whole = cut_in_pieces(bytes, FRAME_BYTES_MAX, usize::MAX);
    for piece in [1, 3, 16, 17, 144, 1_000] {
        let pieces = cut_in_pieces(bytes, FRAME_BYTES_MAX, piece);
        assert_eq!(pieces, whole, "in pieces of {piece} bytes");
    }
    assert_eq!(cut_as_needed(bytes), whole, "in pieces of the size that was asked for");
    let mut begin = 0;
    for (end, frame) in &whole.frames {
        // Frames that were skipped count to the one behind them.
        check_head(&bytes[begin..], Ok((end - begin, frame)));
        assert_eq!(Decoder::new(FRAME_BYTES_MAX).needed(&bytes[begin..*end]), Ok(0));
        check_round_trip(frame, end - begin);
        begin = *end;
    }
    if let Err(error) = &whole.end {
        check_head(&bytes[begin..], Err(error));
    }
    check_limit(bytes);
    described(&whole.frames, whole.end, |left| part_of_frame(&bytes[bytes.len() - left..]))
}

/// The names of frames, and what is behind them: `part` tells of so many bytes that are left.
pub(crate) fn described<F: Debug>(
    frames: &[(usize, F)],
    end: Result<usize, DecodeError>,
    part: impl FnOnce(usize) -> String,
) -> String {
    let mut names: Vec<String> = frames.iter().map(|(_, frame)| format!("{frame:?}")).collect();
    names.iter_mut().for_each(|name| name.truncate(name.find('(').unwrap_or(name.len())));
    let names = if names.is_empty() { "none".to_owned() } else { names.join(" ") };
    match end {
        Ok(0) => names,
        Ok(left) => format!("{names}, then {}", part(left)),
        Err(error) => format!("{names}, then {error}"),
    }
}

/// What is known of a frame that is not complete.
fn part_of_frame(input: &[u8]) -> String {
    match Decoder::new(FRAME_BYTES_MAX).peek_publish(input) {
        Ok(Some(head)) => format!("the head of a publish of {} bytes", head.frame_bytes),
        Ok(None) => "part of a frame".to_owned(),
        Err(error) => format!("part of a frame: {error}"),
    }
}

/// Decodes whatever is complete after every `piece` bytes.
fn cut_in_pieces(bytes: &[u8], frame_bytes_max: usize, piece: usize) -> Cut {
    let mut decoder = Decoder::new(frame_bytes_max);
    let (mut input, mut frames, mut fed) = (BytesMut::new(), Vec::new(), 0);
    for piece in bytes.chunks(piece) {
        input.extend_from_slice(piece);
        fed += piece.len();
        if let Err(error) = take_complete(&mut decoder, &mut input, fed, &mut frames) {
            return Cut { frames, end: Err(error) };
        }
    }
    Cut { frames, end: Ok(input.len()) }
}

/// Decodes as a connection reads: never more than the decoder says is needed.
fn cut_as_needed(bytes: &[u8]) -> Cut {
    let mut decoder = Decoder::new(FRAME_BYTES_MAX);
    let (mut input, mut frames, mut rest) = (BytesMut::new(), Vec::new(), bytes);
    loop {
        let needed = match decoder.needed(&input) {
            Ok(needed) => needed,
            Err(error) => return Cut { frames, end: Err(error) },
        };
        assert!(needed > 0, "what is complete was decoded");
        assert!(input.len() + needed <= FRAME_BYTES_MAX, "no more is needed than a frame may have");
        let (piece, left) = rest.split_at(needed.min(rest.len()));
        if piece.is_empty() {
            return Cut { frames, end: Ok(input.len()) };
        }
        input.extend_from_slice(piece);
        rest = left;
        let fed = bytes.len() - rest.len();
        if let Err(error) = take_complete(&mut decoder, &mut input, fed, &mut frames) {
            return Cut { frames, end: Err(error) };
        }
    }
}

fn take_complete(
    decoder: &mut Decoder,
    input: &mut BytesMut,
    fed: usize,
    frames: &mut Vec<(usize, Frame)>,
) -> Result<(), DecodeError> {
    while let Some(frame) = decoder.decode(input)? {
        frames.push((fed - input.len(), frame));
    }
    Ok(())
}

/// What is said of a PUBLISH before its body is there is what the whole frame says.
fn check_head(input: &[u8], decoded: Result<(usize, &Frame), &DecodeError>) {
    match (Decoder::new(FRAME_BYTES_MAX).peek_publish(input), decoded) {
        (Ok(Some(head)), Ok((taken, Frame::Publish(publish)))) => {
            assert_eq!(head.frame_bytes, taken);
            assert_eq!((head.stream, head.header), (publish.stream, publish.header));
        }
        (Ok(Some(head)), other) => panic!("{head:?} became {other:?}"),
        (Err(error), Err(of_whole)) => assert_eq!(error, *of_whole),
        (Err(error), Ok(other)) => panic!("{error} became {other:?}"),
        (Ok(None), Ok((taken, Frame::Publish(_)))) => {
            assert!(taken > first_frame_len(input), "it stands behind a frame that was skipped");
        }
        (Ok(None), _) => {}
    }
}

fn first_frame_len(input: &[u8]) -> usize {
    let prefix = input.first_chunk::<4>().expect("a frame was decoded");
    u32::from_le_bytes(*prefix) as usize + 4
}

fn check_round_trip(frame: &Frame, taken: usize) {
    let bytes = encode_to_vec(frame);
    assert!(bytes.len() <= taken, "{frame:?} of {taken} bytes grew to {}", bytes.len());
    let again = decode_one(&bytes);
    // Texts for people are cut when they are written; all else survives.
    if taken <= TEXT_BYTES_MAX {
        assert_eq!(comparable(&again), comparable(frame));
    }
    assert_eq!(encode_to_vec(&again), bytes, "what was written once is written the same again");
    match frame {
        Frame::Publish(publish) => {
            assert_eq!(publish.header.body_len as usize, publish.body.len());
            let batch = [&publish.header.encode()[..], &publish.body].concat();
            check_batch(&batch, WIRE_SALT);
        }
        Frame::Deliver(deliver) => check_delivery(&deliver.batches.concat(), deliver.salt),
        _ => {}
    }
}

fn decode_one(bytes: &[u8]) -> Frame {
    let mut cut = cut_in_pieces(bytes, FRAME_BYTES_MAX, usize::MAX);
    assert_eq!(cut.end, Ok(0), "what was encoded is decoded");
    assert_eq!(cut.frames.len(), 1);
    cut.frames.remove(0).1
}

/// The frame without the CRC of a batch header: writing stamps it anew, and it covers reserved
/// bytes that a reader does not keep.
fn comparable(frame: &Frame) -> Frame {
    let mut frame = frame.clone();
    if let Frame::Publish(publish) = &mut frame {
        publish.header.header_crc = 0;
    }
    frame
}

/// A consumer's walk over the batches of a delivery.
pub(crate) fn check_delivery(mut rest: &[u8], salt: u64) {
    while let Some(bytes) = rest.first_chunk::<BATCH_HEADER_BYTES>() {
        let Ok(header) = BatchHeader::decode(bytes, salt) else { return };
        let (batch, _) = rest.split_at(header.wire_len().min(rest.len()));
        check_batch(batch, salt);
        rest = &rest[header.stored_len().min(rest.len())..];
    }
}

/// A length beyond the limit is refused as soon as it is there, and nothing is made for it.
fn check_limit(bytes: &[u8]) {
    let limit = HANDSHAKE_FRAME_BYTES_MAX;
    let Some(prefix) = bytes.first_chunk::<4>() else { return };
    let announced = u64::from(u32::from_le_bytes(*prefix)) + 4;
    let mut decoder = Decoder::new(limit);
    let mut input = BytesMut::from(&prefix[..]);
    let held = (input.as_ptr(), input.len(), input.capacity());
    let decoded = decoder.decode(&mut input);
    if announced > limit as u64 {
        let refused = DecodeError::TooLarge { bytes: announced, limit };
        assert_eq!(decoded, Err(refused.clone()));
        assert_eq!(decoder.needed(bytes), Err(refused.clone()));
        assert_eq!(decoder.peek_publish(bytes), Err(refused));
    }
    assert_eq!((input.as_ptr(), input.len(), input.capacity()), held, "nothing was held for it");
}

// ---- batches ----

fn check_batch(bytes: &[u8], salt: u64) -> String {
    let Some((header, body)) = bytes.split_first_chunk::<BATCH_HEADER_BYTES>() else {
        return "shorter than a header".to_owned();
    };
    let header = match BatchHeader::decode(header, salt) {
        Ok(header) => header,
        Err(error) => return error.to_string(),
    };
    check_header(&header, salt);
    let of_body = header.check_body(body);
    // Records are read only behind this check, but must not depend on it: CRCs can be made.
    let records = check_records(&header, body);
    match (of_body, records) {
        (Err(error), _) => error.to_string(),
        (Ok(_), Err(error)) => error.to_string(),
        (Ok(_), Ok(records)) => format!("{:?} of {records} records", header.batch_type),
    }
}

fn check_header(header: &BatchHeader, salt: u64) {
    let again = BatchHeader::decode(&header.clone().stamp_local(salt), salt);
    let again = again.map(|again| BatchHeader { header_crc: header.header_crc, ..again });
    assert_eq!(again.as_ref(), Ok(header));
    assert!(header.wire_len() <= BATCH_BYTES_MAX);
    assert!(header.record_count as usize <= BATCH_RECORDS_MAX);
    assert!(header.stored_len() - header.wire_len() < 32);
    assert!(header.cost() >= u64::from(header.body_len));
    assert!(header.end_offset() >= header.base_offset);
}

/// Reads the records; returns how many there are.
fn check_records(header: &BatchHeader, body: &[u8]) -> Result<usize, BodyError> {
    let records = RecordIter::new(header, body)?;
    let validated = records.clone().validate();
    let read: Vec<Result<RecordRef<'_>, BodyError>> = records.collect();
    let behind_last = check_places(read.iter().flatten(), body);
    assert!(read.len() <= header.record_count as usize);
    let errors = read.iter().filter(|record| record.is_err()).count();
    assert!(errors <= 1, "reading ends behind the first error");
    if let Some(Err(error)) = read.last() {
        assert_eq!(validated, Err(*error));
    }
    validated?;
    let read: Vec<RecordRef<'_>> = read.into_iter().collect::<Result<_, _>>()?;
    assert_eq!(read.len(), header.record_count as usize);
    assert!(read.is_empty() || behind_last == body.len(), "the payload is used up");
    for (number, record) in read.iter().enumerate() {
        assert_eq!(record.offset.0, header.base_offset.0 + number as u64);
        assert!(record.timestamp_ms >= header.base_ts_ms);
    }
    check_rebuilt(&read);
    Ok(read.len())
}

/// The parts of all records stand one behind the other within the body. Returns the position
/// behind the last.
fn check_places<'a>(records: impl Iterator<Item = &'a RecordRef<'a>>, body: &[u8]) -> usize {
    let mut behind = 0;
    let mut step = |part: &[u8]| {
        let begin = part.as_ptr() as usize - body.as_ptr() as usize;
        assert!(begin >= behind, "parts of records overlap");
        behind = begin + part.len();
        assert!(behind <= body.len());
    };
    for RecordRef { message, .. } in records {
        message.key.into_iter().for_each(&mut step);
        for (name, content) in message.headers() {
            step(name);
            step(content);
        }
        step(message.value);
        assert!(message.headers().count() <= HEADERS_MAX);
    }
    behind
}

fn owned_headers(message: &MessageRef<'_>) -> Vec<(Bytes, Bytes)> {
    let owned = |(name, content)| (Bytes::copy_from_slice(name), Bytes::copy_from_slice(content));
    message.headers().map(owned).collect()
}

/// What was read and a publisher may send survives being built and read again.
fn check_rebuilt(records: &[RecordRef<'_>]) {
    let mut builder = BatchBuilder::new(MESSAGE_BYTES_MAX);
    for record in records {
        let message = &record.message;
        let headers = owned_headers(message);
        if builder.push(record.timestamp_ms, message.key, &headers, message.value).is_err() {
            return;
        }
    }
    let built = builder.finish();
    assert_eq!(built.header.check_body(&built.body), Ok(None));
    let rebuilt = RecordIter::new(&built.header, &built.body).expect("it was just built");
    assert_eq!(rebuilt.clone().validate(), Ok(()));
    assert_eq!(rebuilt.clone().count(), records.len());
    for (rebuilt, record) in rebuilt.flatten().zip(records) {
        let (rebuilt, record) = (&rebuilt.message, &record.message);
        assert_eq!((rebuilt.key, rebuilt.value), (record.key, record.value));
        assert_eq!(owned_headers(rebuilt), owned_headers(record));
    }
}

// ---- names and configurations ----

/// Takes the first byte as the length of a name, the rest as the configuration behind it.
fn check_names(bytes: &[u8]) {
    let (len, rest) = bytes.split_first().map_or((0, bytes), |(len, rest)| (*len, rest));
    let (name, rest) = rest.split_at(usize::from(len).min(rest.len()));
    let mut config = [0; 23];
    let taken = rest.len().min(config.len());
    config[..taken].copy_from_slice(&rest[..taken]);
    let allowed = is_name(name);
    if let Ok(text) = std::str::from_utf8(name) {
        assert_eq!(Name::new(text).is_ok(), allowed, "{text:?}");
    }
    let name_len = (name.len() as u16).to_le_bytes();
    let fields = [&[1, 0, 0, 0][..], &name_len, name, &config].concat();
    let frame = with_head(0x32, 0, &fields);
    let cut = cut_in_pieces(&frame, FRAME_BYTES_MAX, usize::MAX);
    let accepted = allowed && config[4] <= 1 && config[5] <= 2;
    assert_eq!(cut.end.is_ok(), accepted, "{cut:?}");
    let Some((taken, Frame::CreateTopic(create))) = cut.frames.first() else {
        return assert!(!accepted);
    };
    check_round_trip(&cut.frames[0].1, *taken);
    check_create(create, name, &config);
}

fn check_create(create: &CreateTopic, name: &[u8], config: &[u8; 23]) {
    assert_eq!((create.request, create.topic.as_str().as_bytes()), (RequestId(1), name));
    let TopicConfig { partitions, durability, overflow, max_bytes, max_age_ms, replicas } =
        create.config;
    let mut again = partitions.to_le_bytes().to_vec();
    again.extend([durability as u8, overflow as u8]);
    again.extend(max_bytes.to_le_bytes());
    again.extend(max_age_ms.to_le_bytes());
    again.push(replicas);
    assert_eq!(again, config);
}

/// The rule of SPEC.md, written down a second time.
fn is_name(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
        && name != b"."
        && name != b".."
}

/// A frame of these fields, its CRC as it must be.
fn with_head(frame_type: u8, stream: u32, fields: &[u8]) -> Vec<u8> {
    let mut frame = ((12 + fields.len()) as u32).to_le_bytes().to_vec();
    frame.extend([frame_type, 0]);
    frame.extend((fields.len() as u16).to_le_bytes());
    frame.extend(stream.to_le_bytes());
    let crc = crc32fast::hash(&[&frame, fields].concat());
    frame.extend(crc.to_le_bytes());
    frame.extend(fields);
    frame
}
