//! Peers that come through an in-memory listener.

use super::*;
use crate::connection::tests::{auth, hello, services};
use crate::seams::BoxFuture;
use bytes::BytesMut;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use weir_protocol::codec::Decoder;
use weir_protocol::limits::FRAME_BYTES_MAX;

/// A network whose one listener hands out what the test sends; an error where it sends none.
struct Memory(Mutex<Option<mpsc::Receiver<Option<DuplexStream>>>>);

struct MemoryListener(mpsc::Receiver<Option<DuplexStream>>);

impl Network for Memory {
    fn listen(&self, _address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        let sockets = self.0.lock().unwrap().take().expect("listens once");
        Box::pin(async move { Ok(Box::new(MemoryListener(sockets)) as Box<dyn Listener>) })
    }

    fn connect<'a>(
        &'a self,
        _address: &'a str,
    ) -> BoxFuture<'a, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        unreachable!("a server dials nobody")
    }
}

impl Listener for MemoryListener {
    fn local_address(&self) -> io::Result<SocketAddr> {
        Ok("127.0.0.1:7420".parse().unwrap())
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(async move {
            match self.0.recv().await {
                Some(Some(socket)) => {
                    Ok((Box::new(socket) as Box<dyn Stream>, "127.0.0.1:9".parse().unwrap()))
                }
                Some(None) => Err(io::Error::other("too many open files")),
                None => std::future::pending().await,
            }
        })
    }
}

struct World {
    server: Server,
    sockets: mpsc::Sender<Option<DuplexStream>>,
    rest: Arc<crate::connection::tests::Rest>,
}

async fn world(connections_max: usize) -> World {
    let (services, rest, _) = services();
    let (sockets, receiver) = mpsc::channel(1_000);
    let network = Memory(Mutex::new(Some(receiver)));
    let listen = "127.0.0.1:0".parse().unwrap();
    let options = ServerOptions { listen, insecure: false, connections_max, seed: 7 };
    let server = Server::start(&network, services, options).await.unwrap();
    World { server, sockets, rest }
}

impl World {
    async fn connect(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        self.sockets.send(Some(theirs)).await.unwrap();
        ours
    }

    async fn ready(&self) -> DuplexStream {
        let mut socket = self.connect().await;
        socket.write_all(&encode_to_vec(&hello(1, 1))).await.unwrap();
        socket.write_all(&encode_to_vec(&auth("anonymous"))).await.unwrap();
        let mut input = BytesMut::new();
        assert!(matches!(hear(&mut socket, &mut input).await, Some(Frame::Welcome(_))));
        assert_eq!(hear(&mut socket, &mut input).await, Some(Frame::Ready));
        socket
    }
}

async fn hear(socket: &mut DuplexStream, input: &mut BytesMut) -> Option<Frame> {
    let mut decoder = Decoder::new(FRAME_BYTES_MAX);
    loop {
        if let Some(frame) = decoder.decode(input).unwrap() {
            return Some(frame);
        }
        if socket.read_buf(input).await.unwrap() == 0 {
            return None;
        }
    }
}

#[test]
fn an_address_that_others_reach_needs_the_word_insecure() {
    for loopback in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert!(check_address(loopback.parse().unwrap(), false).is_ok(), "{loopback}");
    }
    for public in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "[2001:db8::1]:1"] {
        let address = public.parse().unwrap();
        assert!(matches!(check_address(address, false), Err(ListenError::Insecure(_))), "{public}");
        assert!(check_address(address, true).is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_permit_is_told_when_to_come_back_and_places_return() {
    let world = world(2).await;
    let first = world.ready().await;
    let _second = world.ready().await;
    assert_eq!(world.server.connection_count(), (2, 2));
    let mut third = world.connect().await;
    let mut input = BytesMut::new();
    let Some(Frame::Error(error)) = hear(&mut third, &mut input).await else { panic!("no error") };
    assert_eq!(error.refusal.code, ErrorCode::OverloadedConnect.number());
    assert!((100..2_100).contains(&error.refusal.retry_after_ms));
    assert_eq!(hear(&mut third, &mut input).await, None);
    let counted = world.rest.refused.lock().unwrap().clone();
    assert_eq!(counted, [(None, ErrorCode::OverloadedConnect.number())]);
    drop(first);
    tokio::time::sleep(Duration::from_millis(1)).await;
    world.ready().await;
    let listed = world.server.connections(0, 10);
    assert!(listed.iter().all(|view| view.client_name.as_deref() == Some("test")));
}

#[tokio::test(start_paused = true)]
async fn a_drain_sends_all_away_at_different_times_and_ends_by_its_deadline() {
    let world = world(10).await;
    let mut delays = Vec::new();
    let mut peers = Vec::new();
    for _ in 0..3 {
        peers.push(world.ready().await);
    }
    let server = world.server.clone();
    let began = Instant::now();
    let drained = server.drain(Duration::from_secs(5));
    let told = async {
        for peer in &mut peers {
            let heard = hear(peer, &mut BytesMut::new()).await;
            let Some(Frame::GoAway(go_away)) = heard else { panic!("{heard:?}") };
            assert_eq!((go_away.code, go_away.deadline_ms), (ErrorCode::Draining.number(), 5_000));
            delays.push(go_away.reconnect_after_ms);
        }
        peers.clear();
    };
    let (cut, ()) = tokio::join!(drained, told);
    assert_eq!(cut, 0);
    assert!(began.elapsed() < Duration::from_secs(2), "nobody had to be waited for");
    delays.dedup();
    assert!(delays.len() > 1, "{delays:?}");
    assert!(world.sockets.send(None).await.is_err(), "nobody listens any more");
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_fails_is_not_asked_again_at_once() {
    let world = world(10).await;
    for _ in 0..1_000 {
        world.sockets.send(None).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let asked = 1_000 - (world.sockets.max_capacity() - world.sockets.capacity());
    assert!((5..30).contains(&asked), "asked {asked} times in 10 s");
}
