//! Who is let in, and who is not.

use super::net::Net;
use super::rig::{CLUSTER, Rig, Spec, address_of, node, secret, start, try_start, vote_ask};
use super::script::{Script, trust};
use super::*;
use bytes::BytesMut;
use weir_protocol::limits::HANDSHAKE_MS_MAX;
use weir_protocol::peer::{Handshake, Nonce, PeerDecoder, Step, Trust, encode_to_vec};

/// Two rooms of which the first dials the second.
async fn pair(change: impl FnOnce(&mut Spec, &mut Spec)) -> (Arc<Net>, Rig, Rig) {
    let net = Arc::new(Net::default());
    let (mut a, mut b) = (Spec::of(1, &[1, 2]), Spec::of(2, &[]));
    change(&mut a, &mut b);
    let b = start(&net, b).await;
    let a = start(&net, a).await;
    (net, a, b)
}

async fn refused(change: impl FnOnce(&mut Spec, &mut Spec)) -> PeerRefusal {
    let (_net, a, b) = pair(change).await;
    a.until(|states| matches!(states, [LinkState::Refused(_), LinkState::Refused(_)])).await;
    assert!(b.room.links().is_empty(), "the other side holds no link either");
    let lost = a.room.peers().vote(BrokerId(2), vote_ask(2)).await;
    assert_eq!(lost, Err(PeerLost::Unreachable));
    match a.dialed()[0] {
        LinkState::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn brokers_of_one_cluster_and_secret_are_linked() {
    let (_net, a, b) = pair(|_, _| {}).await;
    a.linked().await;
    let links = b.room.links();
    assert_eq!(links.iter().map(|link| link.broker).collect::<Vec<_>>(), [BrokerId(1); 2]);
    assert_eq!(a.room.links()[0].name, "b2");
    let answer = a.room.peers().vote(BrokerId(2), vote_ask(2)).await.unwrap();
    assert!(answer.granted);
}

#[tokio::test(start_paused = true)]
async fn brokers_without_a_secret_are_linked_on_the_loopback_only() {
    let (_net, a, _b) = pair(|a, b| (a.secret, b.secret) = (None, None)).await;
    a.linked().await;
    let far = refused(|a, b| {
        (a.secret, b.secret) = (None, None);
        a.ip = [10, 0, 0, 1];
    });
    assert_eq!(far.await, PeerRefusal::Unauthenticated);
}

#[tokio::test(start_paused = true)]
async fn a_room_without_a_secret_does_not_listen_beyond_the_loopback() {
    let mut spec = Spec::of(1, &[]);
    (spec.secret, spec.listen) = (None, "10.0.0.1:7422".parse().unwrap());
    let refused = try_start(&Arc::new(Net::default()), spec).await;
    assert!(matches!(refused, Err(ListenError::NoSecret(_))));
}

/// The dialer's own check: nothing is said to an address that is not believed.
#[tokio::test(start_paused = true)]
async fn without_a_secret_nobody_beyond_the_loopback_is_dialed() {
    let net = Arc::new(Net::default());
    let far: SocketAddr = "10.0.0.2:7422".parse().unwrap();
    let mut listener = net.at([10, 0, 0, 2]).listen(far).await.unwrap();
    let mut spec = Spec::of(1, &[]);
    spec.secret = None;
    let room = start(&net, spec).await;
    let asked = room.room.asks().ask_at(&far.to_string(), Ask::Probe, Duration::from_secs(9));
    assert_eq!(asked.await, Err(PeerLost::Refused(PeerRefusal::Unauthenticated)));
    let (mut socket, _) = listener.accept().await.unwrap();
    let read = tokio::io::AsyncReadExt::read(&mut socket, &mut [0; 16]).await;
    assert_eq!(read.unwrap(), 0, "not a byte was said");
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_belong_is_refused() {
    type Change = fn(&mut Spec, &mut Spec);
    let cases: [(&str, Change, PeerRefusal); 6] = [
        ("secret", |_, b| b.secret = secret(8), PeerRefusal::Unauthenticated),
        ("only a has one", |_, b| b.secret = None, PeerRefusal::Unauthenticated),
        ("only b has one", |a, _| a.secret = None, PeerRefusal::Unauthenticated),
        ("cluster", |_, b| b.node.cluster += 1, PeerRefusal::WrongCluster),
        ("broker", |_, b| b.node.broker = BrokerId(3), PeerRefusal::WrongBroker),
        ("itself", |a, b| b.node.instance = a.node.instance, PeerRefusal::Itself),
    ];
    for (name, change, expected) in cases {
        assert_eq!(refused(change).await, expected, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_versions_are_refused() {
    let net = Arc::new(Net::default());
    let _room = start(&net, Spec::of(1, &[])).await;
    let mut script = Script::connect(&net, [127, 0, 0, 1], 1).await;
    let (_, hello) = hello([9; 32]);
    let PeerFrame::Hello(mut hello) = hello else { panic!("a dialer says HELLO") };
    (hello.version_min, hello.version_max) = (7, 8);
    script.say(&PeerFrame::Hello(hello)).await;
    assert_eq!(script.end().await, Some(PeerRefusal::Version));
}

fn hello(nonce: [u8; 32]) -> (Handshake, PeerFrame) {
    Handshake::dial(node(CLUSTER, 9), trust(), Nonce(nonce), (Lane::Control, None))
}

/// What was overheard once opens nothing: the acceptor's nonce is another.
#[tokio::test(start_paused = true)]
async fn a_proof_is_good_for_one_connection() {
    let net = Arc::new(Net::default());
    let room = start(&net, Spec::of(1, &[])).await;
    let mut first = Script::connect(&net, [127, 0, 0, 1], 1).await;
    let (mut handshake, hello) = hello([9; 32]);
    first.say(&hello).await;
    let challenge = first.cut().await.unwrap();
    let Step::Send(proof) = handshake.handle(challenge) else { panic!("a proof is sent") };
    first.say(&proof).await;
    assert!(matches!(first.hear().await, Some(PeerFrame::Ready(_))));
    let mut second = Script::connect(&net, [127, 0, 0, 1], 1).await;
    second.say(&hello).await;
    assert!(matches!(second.hear().await, Some(PeerFrame::Challenge(_))));
    second.say(&proof).await;
    assert_eq!(second.end().await, Some(PeerRefusal::Unauthenticated));
    assert_eq!(room.room.links().len(), 1);
}

/// Whoever makes a broker dial him gives its own proof back.
#[tokio::test(start_paused = true)]
async fn a_reflected_proof_is_none() {
    let net = Arc::new(Net::default());
    let mut listener = net.at([127, 0, 0, 1]).listen(address_of(2)).await.unwrap();
    let room = start(&net, Spec::of(1, &[2])).await;
    for _ in 0..2 {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut handshake = Handshake::accept(node(CLUSTER, 2), trust(), Nonce([8; 32]));
        let hello = whole(&mut *socket).await;
        let Step::Send(challenge) = handshake.handle(hello) else { panic!("a challenge") };
        write(&mut *socket, &challenge).await;
        let proof = whole(&mut *socket).await;
        let decoded = PeerDecoder::new(4_096).decode(&mut BytesMut::from(&proof[..])).unwrap();
        let Some(PeerFrame::Proof(mac)) = decoded else { panic!("a proof") };
        write(&mut *socket, &PeerFrame::Ready(mac)).await;
    }
    let refused = LinkState::Refused(PeerRefusal::Unauthenticated);
    room.until(|states| states == [refused; 2]).await;
}

async fn whole(socket: &mut dyn crate::seams::Stream) -> Bytes {
    use tokio::io::AsyncReadExt;
    let mut input = BytesMut::new();
    loop {
        if let Some(frame) = PeerDecoder::new(4_096).cut(&mut input).unwrap() {
            return frame;
        }
        assert!(socket.read_buf(&mut input).await.unwrap() > 0);
    }
}

async fn write(socket: &mut dyn crate::seams::Stream, frame: &PeerFrame) {
    use tokio::io::AsyncWriteExt;
    socket.write_all(&encode_to_vec(frame)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_closed_and_strangers_do_not_keep_brokers_out_for_long() {
    let net = Arc::new(Net::default());
    let room = start(&net, Spec::of(1, &[])).await;
    let began = Instant::now();
    let mut strangers = Vec::new();
    for _ in 0..40 {
        strangers.push(Script::connect(&net, [10, 0, 0, 9], 1).await);
    }
    for stranger in &mut strangers {
        assert_eq!(stranger.end().await, None);
    }
    let late = Duration::from_millis(u64::from(HANDSHAKE_MS_MAX) + 1_100);
    assert!(began.elapsed() <= late, "{:?}", began.elapsed());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _linked = Script::dial(&net, 1, Lane::Bulk).await;
    assert_eq!(room.room.links().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_became_somebody_dials_anew_as_such() {
    let net = Arc::new(Net::default());
    let mut spec = Spec::of(1, &[2]);
    (spec.node.cluster, spec.node.broker) = (0, BrokerId(0));
    let b = start(&net, Spec::of(2, &[])).await;
    let a = start(&net, spec).await;
    a.linked().await;
    assert!(b.room.links().iter().all(|link| link.broker == BrokerId(0)));
    a.me.send(node(CLUSTER, 1)).unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    a.linked().await;
    let known: Vec<_> = b.room.links().iter().map(|link| link.broker).collect();
    assert_eq!(known, [BrokerId(1); 2]);
    a.directory.send(Directory::default()).unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(a.room.links().is_empty() && b.room.links().is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_secret_a_mac_is_none() {
    let net = Arc::new(Net::default());
    let mut spec = Spec::of(1, &[]);
    spec.secret = None;
    let _room = start(&net, spec).await;
    let mut script = Script::connect(&net, [127, 0, 0, 1], 1).await;
    let me = node(CLUSTER, 9);
    let lane = (Lane::Control, None);
    let (mut handshake, hello) = Handshake::dial(me, Trust::Loopback, Nonce([9; 32]), lane);
    script.say(&hello).await;
    let Step::Send(PeerFrame::Proof(mut mac)) = handshake.handle(script.cut().await.unwrap())
    else {
        panic!("a proof is sent")
    };
    mac.0[0] = 1;
    script.say(&PeerFrame::Proof(mac)).await;
    assert_eq!(script.end().await, Some(PeerRefusal::Unauthenticated));
}
