use super::*;
use crate::peer::PeerDecoder;
use crate::types::Name;
use bytes::BytesMut;

mod attacker;

fn node(broker: u64, instance: u64) -> Node {
    Node {
        cluster: 77,
        broker: BrokerId(broker),
        instance,
        name: Name::new(&format!("weir-{broker}")).unwrap(),
    }
}

fn secret() -> Trust {
    Trust::Secret(Secret::new(&[7; 32]).unwrap())
}

fn other_secret() -> Trust {
    Trust::Secret(Secret::new(&[8; 32]).unwrap())
}

fn wire(frame: &PeerFrame) -> Bytes {
    encode_to_vec(frame).into()
}

/// What both ends say in the end. Frames pass through `bend` on their way.
fn shake_bent(
    (mut dialer, hello): (Handshake, PeerFrame),
    mut acceptor: Handshake,
    bend: impl Fn(usize, Bytes) -> Bytes,
) -> [Result<OpenPeer, HandshakeError>; 2] {
    let mut ends = [None, None];
    let mut frame = Some(hello);
    for number in 0.. {
        let Some(sent) = frame.take() else { break };
        let (side, machine) = match number % 2 {
            0 => (1, &mut acceptor),
            _ => (0, &mut dialer),
        };
        frame = match machine.handle(bend(number, wire(&sent))) {
            Step::Send(frame) => Some(frame),
            Step::Open(peer, frame) => {
                ends[side].get_or_insert(Ok(peer));
                frame
            }
            Step::Close(error, frame) => {
                ends[side].get_or_insert(Err(error));
                frame
            }
        };
    }
    ends.map(|end| end.expect("both ends come to an end"))
}

fn shake(
    dialer: (Handshake, PeerFrame),
    acceptor: Handshake,
) -> [Result<OpenPeer, HandshakeError>; 2] {
    shake_bent(dialer, acceptor, |_, frame| frame)
}

fn dial(node: Node, trust: Trust) -> (Handshake, PeerFrame) {
    Handshake::dial(node, trust, Nonce([1; 32]), (Lane::Bulk, None))
}

fn accept(node: Node, trust: Trust) -> Handshake {
    Handshake::accept(node, trust, Nonce([2; 32]))
}

/// Who refuses says why; the other end hears it.
fn assert_refused(ends: [Result<OpenPeer, HandshakeError>; 2], refusal: PeerRefusal) {
    let refused = ends.iter().filter(|end| **end == Err(HandshakeError::Refused(refusal))).count();
    let heard = |end: &&Result<_, _>| matches!(end, Err(HandshakeError::RefusedByPeer { refusal: theirs, .. }) if *theirs == refusal);
    assert_eq!((refused, ends.iter().filter(heard).count()), (1, 1), "{refusal:?}: {ends:?}");
}

#[test]
fn both_ends_open_and_know_each_other() {
    for trust in [secret, || Trust::Loopback] {
        let [dialer, acceptor] = shake(dial(node(1, 1), trust()), accept(node(2, 2), trust()));
        let peer = |node| OpenPeer { node, lane: Lane::Bulk, version: 1, features: 0 };
        assert_eq!(dialer, Ok(peer(node(2, 2))));
        assert_eq!(acceptor, Ok(peer(node(1, 1))));
    }
}

#[test]
fn brokers_without_a_cluster_meet_those_of_any() {
    let empty = |instance| Node { cluster: 0, ..node(0, instance) };
    for (a, b) in [(empty(1), node(2, 2)), (node(1, 1), empty(2)), (empty(1), empty(2))] {
        let ends = shake(dial(a, secret()), accept(b, secret()));
        assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    }
}

#[test]
fn secrets_must_be_the_same_and_on_both_sides() {
    let pairs: [(Trust, Trust); 4] = [
        (secret(), other_secret()),
        (other_secret(), secret()),
        (secret(), Trust::Loopback),
        (Trust::Loopback, secret()),
    ];
    for (a, b) in pairs {
        let ends = shake(dial(node(1, 1), a), accept(node(2, 2), b));
        assert_refused(ends, PeerRefusal::Unauthenticated);
    }
    assert_eq!(Secret::new(&[7; 31]).unwrap_err().bytes, 31);
    assert!(Secret::new(&[7; 4_097]).is_err());
    assert_eq!(format!("{:?}", secret()), "Secret(Secret)");
}

#[test]
fn identities_must_fit() {
    let meet = |a: Node, b: Node| shake(dial(a, secret()), accept(b, secret()));
    let stranger = Node { cluster: 78, ..node(2, 2) };
    assert_refused(meet(node(1, 1), stranger), PeerRefusal::WrongCluster);
    assert_refused(meet(node(1, 1), node(1, 1)), PeerRefusal::Itself);
    assert_refused(meet(node(1, 1), node(1, 2)), PeerRefusal::WrongBroker);
    let expecting = |broker| {
        Handshake::dial(
            node(1, 1),
            secret(),
            Nonce([1; 32]),
            (Lane::Control, Some(BrokerId(broker))),
        )
    };
    assert_refused(shake(expecting(3), accept(node(2, 2), secret())), PeerRefusal::WrongBroker);
    let ends = shake(expecting(2), accept(node(2, 2), secret()));
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
}

#[test]
fn versions_and_features_must_be_common() {
    let hello = |change: fn(&mut Hello)| {
        let (_, hello) = dial(node(1, 1), secret());
        let PeerFrame::Hello(mut hello) = hello else { panic!() };
        change(&mut hello);
        accept(node(2, 2), secret()).handle(wire(&PeerFrame::Hello(hello)))
    };
    let refused = |step| match step {
        Step::Close(HandshakeError::Refused(refusal), Some(PeerFrame::GoAway(go_away))) => {
            assert_eq!(go_away.refusal, refusal);
            refusal
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(hello(|hello| hello.version_max = 0)), PeerRefusal::Version);
    assert_eq!(refused(hello(|hello| hello.version_min = 2)), PeerRefusal::Version);
    let newer = hello(|hello| (hello.version_max, hello.features) = (9, u64::MAX));
    let Step::Send(PeerFrame::Challenge(challenge)) = newer else { panic!("{newer:?}") };
    assert_eq!((challenge.version, challenge.features), (1, 0));
    let answered = |change: fn(&mut Challenge)| {
        let (mut dialer, _) = dial(node(1, 1), secret());
        let mut challenge = challenge.clone();
        change(&mut challenge);
        refused(dialer.handle(wire(&PeerFrame::Challenge(challenge))))
    };
    assert_eq!(answered(|challenge| challenge.version = 2), PeerRefusal::Version);
    assert_eq!(answered(|challenge| challenge.version = 0), PeerRefusal::Version);
    assert_eq!(answered(|challenge| challenge.features = 1), PeerRefusal::Malformed);
}

#[test]
fn no_byte_of_a_handshake_changes_unnoticed() {
    let frames = std::cell::RefCell::new(Vec::new());
    let ends = (dial(node(1, 1), secret()), accept(node(2, 2), secret()));
    let opened = shake_bent(ends.0, ends.1, |_, frame| {
        frames.borrow_mut().push(frame.len());
        frame
    });
    assert!(opened.iter().all(Result::is_ok));
    for (number, length) in frames.take().into_iter().enumerate() {
        for at in 0..length {
            let ends = (dial(node(1, 1), secret()), accept(node(2, 2), secret()));
            let ends = shake_bent(ends.0, ends.1, |sent, frame| match sent == number {
                true => flipped(&frame, at),
                false => frame,
            });
            // Flags and stream of a proof mean nothing, and no proof covers them.
            let means_nothing = number >= 2 && (at == 5 || (8..12).contains(&at));
            let opened = ends.iter().all(Result::is_ok);
            assert_eq!(opened, means_nothing, "frame {number}, byte {at}: {ends:?}");
        }
    }
}

/// The frame with another byte at `at`, and a CRC that is right unless it is what changed.
fn flipped(frame: &Bytes, at: usize) -> Bytes {
    let mut bytes = frame.to_vec();
    bytes[at] ^= 1;
    if (12..16).contains(&at) { bytes.into() } else { restamped(bytes) }
}

fn restamped(mut bytes: Vec<u8>) -> Bytes {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..12]);
    hasher.update(&bytes[16..]);
    bytes[12..16].copy_from_slice(&hasher.finalize().to_le_bytes());
    bytes.into()
}

#[test]
fn fields_of_a_newer_peer_are_proved_too() {
    let longer = |number: usize, frame: Bytes| {
        let mut bytes = frame.to_vec();
        if number <= 1 {
            bytes.extend_from_slice(b"new");
            bytes[0] += 3;
            bytes[6] += 3;
        }
        restamped(bytes)
    };
    // A newer peer would prove what it said; one that did not say it proves something else.
    for number in [0, 1] {
        let ends = (dial(node(1, 1), secret()), accept(node(2, 2), secret()));
        let ends = shake_bent(ends.0, ends.1, |sent, frame| match sent == number {
            true => longer(sent, frame),
            false => frame,
        });
        assert_refused(ends, PeerRefusal::Unauthenticated);
    }
    let (mut dialer, _) = dial(node(1, 1), secret());
    let mut acceptor = accept(node(2, 2), secret());
    let Step::Send(challenge) = acceptor.handle(wire(&dial(node(1, 1), secret()).1)) else {
        panic!()
    };
    let answer = dialer.handle(longer(1, wire(&challenge)));
    assert!(matches!(answer, Step::Send(PeerFrame::Proof(_))), "it is read all the same");
}

#[test]
fn frames_out_of_order_end_it_for_good() {
    let (_, hello) = dial(node(1, 1), secret());
    for frame in [
        PeerFrame::Heartbeat,
        PeerFrame::Proof(Mac::NONE),
        PeerFrame::Ready(Mac::NONE),
        PeerFrame::Probe(crate::types::RequestId(1)),
    ] {
        let mut acceptor = accept(node(2, 2), secret());
        let malformed = HandshakeError::Refused(PeerRefusal::Malformed);
        for frame in [&frame, &hello] {
            match acceptor.handle(wire(frame)) {
                Step::Close(error, Some(_)) => assert_eq!(error, malformed),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_frame_that_is_cut_opens_nothing() {
    let (_, hello) = dial(node(1, 1), secret());
    let bytes = wire(&hello);
    for len in 0..bytes.len() {
        let cut = bytes.slice(..len);
        let waits = PeerDecoder::new(4_096).cut(&mut BytesMut::from(&*cut));
        assert_eq!(waits, Ok(None), "{len} bytes are no frame");
        match accept(node(2, 2), secret()).handle(cut) {
            Step::Close(HandshakeError::Malformed(_), Some(PeerFrame::GoAway(go_away))) => {
                assert_eq!(go_away.refusal, PeerRefusal::Malformed);
            }
            other => panic!("{len}: {other:?}"),
        }
    }
}
