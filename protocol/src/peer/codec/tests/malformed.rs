//! Each field that can be wrong is refused, and the error says which.

use super::*;

/// The error of a frame in which `put` overwrote bytes of the fields, from `at` on.
fn bent(frame: &PeerFrame, at: usize, put: &[u8]) -> DecodeError {
    let mut bytes = encode_to_vec(frame);
    let at = FRAME_HEADER_BYTES + at;
    bytes[at..at + put.len()].copy_from_slice(put);
    decode_all(&restamped(bytes), usize::MAX).unwrap_err()
}

fn assert_bad(frame: &PeerFrame, (at, put): (usize, &[u8]), expected: &str) {
    match bent(frame, at, put) {
        DecodeError::Field { field, .. } => assert_eq!(field, expected, "{frame:?}"),
        other => panic!("{frame:?}: {other}"),
    }
}

fn vectors() -> Vec<(&'static str, PeerFrame)> {
    let text = include_str!("../../../../tests/vectors/peer_v1.txt");
    let frame = |line: &'static str| {
        let (title, hex) = line.split_once(' ')?;
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        Some((title, decode_all(&bytes, usize::MAX).unwrap().remove(0)))
    };
    text.lines().filter_map(frame).collect()
}

fn vector(title: &str) -> PeerFrame {
    let found = vectors().into_iter().find(|(known, _)| *known == title);
    found.unwrap_or_else(|| panic!("no vector {title}")).1
}

#[test]
fn every_number_that_is_none_is_named() {
    let cases: [(&str, usize, u8, &str); 31] = [
        ("hello", 0, b'X', "magic: is the peer a Weir broker?"),
        ("hello", 16, 2, "lane"),
        ("hello", 83, b'/', "name"),
        ("challenge", 10, 2, "secret"),
        ("goaway", 0, 0, "refusal"),
        ("goaway", 0, 13, "refusal"),
        ("append", 24, 2, "vote committed"),
        ("append", 57, 65, "parts"),
        ("append", 67, 1, "part bytes"),
        ("appended_flushed", 8, 4, "result"),
        ("appended_outvoted", 25, 2, "vote committed"),
        ("appended_refused", 9, 0, "refusal"),
        ("snapshot", 32, 2, "vote committed"),
        ("snapshot_part", 8, 0, "content crc"),
        ("snapshot_done", 0, 13, "refusal"),
        ("fetched", 4, 13, "refusal"),
        ("fetched", 5, 2, "more"),
        ("beats", 4, 2, "beats"),
        ("beaten", 0, 9, "beaten"),
        ("vote", 20, 3, "vote kind"),
        ("voted", 5, 2, "granted"),
        ("transferred", 5, 3, "outcome"),
        ("news", 8, 2, "draining"),
        ("news", 13, 2, "led"),
        ("forward", 8, 2, "question"),
        ("forward", 9, 0, "content crc"),
        ("forwarded", 4, 3, "answer"),
        ("probed", 28, 3, "state"),
        ("form", 28, 6, "seeds"),
        ("form", 53, 2, "seed voter"),
        ("formed", 4, 13, "refusal"),
    ];
    for (title, at, byte, expected) in cases {
        assert_bad(&vector(title), (at, &[byte]), expected);
    }
}

#[test]
fn numbers_that_contradict_are_named() {
    assert_bad(&vector("append"), (0, &[0; 8]), "number");
    assert_bad(&vector("append"), (67, &[0; 4]), "part bytes");
    assert_bad(&vector("append"), (67, &u32::MAX.to_le_bytes()), "part bytes");
    assert_bad(&vector("snapshot_part"), (0, &[0xff; 8]), "position");
    assert_bad(&vector("fetch"), (20, &[0; 8]), "first: it is 0 or behind the last");
    assert_bad(&vector("fetch"), (20, &[21]), "first: it is 0 or behind the last");
    assert_bad(&vector("snapshot"), (85, &u16::MAX.to_le_bytes()), "membership");
    for title in ["beats", "beaten", "news", "form"] {
        let at = match title {
            "beats" => 4,
            "beaten" => 0,
            "news" => 13,
            _ => 28,
        };
        assert!(matches!(
            bent(&vector(title), at, &u16::MAX.to_le_bytes()),
            DecodeError::Field { .. }
        ));
    }
}

#[test]
fn frames_of_a_stream_have_one() {
    let zero = |frame: &PeerFrame| {
        let mut bytes = encode_to_vec(frame);
        bytes[8..12].fill(0);
        decode_all(&restamped(bytes), usize::MAX)
    };
    for (title, frame) in vectors() {
        let frame_type = encode_to_vec(&frame)[4];
        let of_stream = matches!(frame_type, 0x15 | 0x16 | 0x50..=0x56);
        let field = "stream: 0 is the connection";
        let expected = match of_stream {
            true => Err(DecodeError::Field { frame_type, field }),
            false => Ok(vec![frame.clone()]),
        };
        assert_eq!(zero(&frame), expected, "{title}");
    }
}

#[test]
fn what_stands_behind_the_fields_is_what_they_say() {
    for (title, frame) in vectors() {
        let mut bytes = encode_to_vec(&frame);
        let has_content = matches!(
            frame,
            PeerFrame::SnapshotPart(_)
                | PeerFrame::Forward(Forward { question: Question::Command(_), .. })
                | PeerFrame::Forwarded(Forwarded { answer: Ok(ForwardedAnswer::Applied(_)), .. })
        );
        let expected = match has_content {
            true => "content crc",
            false => "body: this frame has none, or a shorter one",
        };
        bytes.extend_from_slice(&[0; 32]);
        let frame_len = (bytes.len() as u32 - 4).to_le_bytes();
        bytes[..4].copy_from_slice(&frame_len);
        match decode_all(&restamped(bytes), usize::MAX) {
            Err(DecodeError::Field { field, .. }) => assert_eq!(field, expected, "{title}"),
            other => panic!("{title}: {other:?}"),
        }
    }
}

#[test]
fn no_frame_is_whole_with_fewer_fields_or_less_behind_them() {
    for (title, frame) in vectors() {
        let bytes = encode_to_vec(&frame);
        let fields_len = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
        for len in 0..fields_len {
            let mut cut = bytes.clone();
            cut.drain(FRAME_HEADER_BYTES + len..FRAME_HEADER_BYTES + fields_len);
            let frame_len = (cut.len() as u32 - 4).to_le_bytes();
            cut[..4].copy_from_slice(&frame_len);
            cut[6..8].copy_from_slice(&(len as u16).to_le_bytes());
            let decoded = decode_all(&restamped(cut), usize::MAX);
            assert!(matches!(decoded, Err(DecodeError::Field { .. })), "{title} of {len} bytes");
        }
        for len in FRAME_HEADER_BYTES + fields_len..bytes.len() {
            let mut cut = bytes[..len].to_vec();
            cut[..4].copy_from_slice(&(len as u32 - 4).to_le_bytes());
            let decoded = decode_all(&restamped(cut), usize::MAX);
            assert!(matches!(decoded, Err(DecodeError::Field { .. })), "{title} cut at {len}");
        }
    }
}

#[test]
fn what_is_longer_than_it_may_be_is_refused() {
    let mut news = vector("probed");
    if let PeerFrame::Probed(probed) = &mut news {
        probed.client_address = "a".repeat(256);
    }
    let decoded = decode_all(&encode_to_vec(&news), usize::MAX);
    let field = "client_address";
    assert_eq!(decoded, Err(DecodeError::Field { frame_type: 0x6a, field }));
    let content = Bytes::from(vec![0; CONTENT_BYTES_MAX + 1]);
    let part = PeerFrame::SnapshotPart(SnapshotPart { stream: StreamId(1), position: 0, content });
    let decoded = decode_all(&encode_to_vec(&part), usize::MAX);
    assert_eq!(decoded, Err(DecodeError::Field { frame_type: 0x55, field: "content" }));
    let part = SegmentPart { salt: 1, batches: vec![blank(1)] };
    let parts = PeerFrame::Append(append(vec![part; SEGMENT_PARTS_MAX + 1]));
    let decoded = decode_all(&encode_to_vec(&parts), usize::MAX);
    assert_eq!(decoded, Err(DecodeError::Field { frame_type: 0x51, field: "parts" }));
}

#[test]
fn lying_lengths_are_refused_before_anything_is_held() {
    let decoder = PeerDecoder::new(usize::MAX);
    let longest = (PEER_FRAME_BYTES_MAX as u32 - 4).to_le_bytes();
    assert_eq!(decoder.needed(&longest), Ok(PEER_FRAME_BYTES_MAX - 4));
    let mut longer = BytesMut::from(&(PEER_FRAME_BYTES_MAX as u32 - 3).to_le_bytes()[..]);
    let too_large = DecodeError::TooLarge {
        bytes: PEER_FRAME_BYTES_MAX as u64 + 1,
        limit: PEER_FRAME_BYTES_MAX,
    };
    assert_eq!(decoder.decode(&mut longer), Err(too_large.clone()));
    assert_eq!(decoder.cut(&mut longer), Err(too_large.clone()));
    assert_eq!(decoder.peek(&longer), Err(too_large));
    let mut frame = encode_to_vec(&PeerFrame::Heartbeat);
    frame[6] = 200;
    assert!(matches!(decode_all(&frame, 99), Err(DecodeError::Lengths { .. })));
}
