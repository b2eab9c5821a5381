use super::pipe::WINDOW_BYTES;
use super::{Conditions, SimHost, SimNetwork, SimStream, address_of};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Duration, Instant, sleep, timeout};
use weir_broker::seams::{Listener, Network, Stream};

const SECOND: Duration = Duration::from_secs(1);
/// More than any crossing of an undisturbed link takes.
const SOON: Duration = Duration::from_millis(10);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn slow(delay: Duration, bytes_per_second: u64) -> Conditions {
    Conditions { delay, jitter: Duration::ZERO, bytes_per_second }
}

fn port(host: u8, port: u16) -> SocketAddr {
    SocketAddr::new(address_of(host), port)
}

/// Hosts 1 and 2 of a network, and a listener on host 2.
struct Rig {
    network: SimNetwork,
    one: Arc<SimHost>,
    listener: Box<dyn Listener>,
}

impl Rig {
    async fn new(seed: u64) -> Self {
        let network = SimNetwork::new(seed);
        let one = network.host(1);
        let listener = network.host(2).listen(port(2, 7)).await.unwrap();
        Self { network, one, listener }
    }

    /// The end on host 1 and the end on host 2.
    async fn stream(&mut self) -> (SimStream, Box<dyn Stream>) {
        let ours = self.one.connect(port(2, 7)).await.unwrap();
        let (theirs, from) = self.listener.accept().await.unwrap();
        assert_eq!(from.ip(), address_of(1));
        (ours, theirs)
    }
}

async fn read(stream: &mut (impl Stream + ?Sized), count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

async fn is_silent(stream: &mut (impl Stream + ?Sized), lasts: Duration) -> bool {
    timeout(lasts, stream.read_u8()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn bytes_arrive_late_whole_and_in_their_order() {
    let mut rig = Rig::new(3).await;
    let wild = Conditions { delay: ms(5), jitter: ms(300), bytes_per_second: 10_000_000 };
    rig.network.set(1, 2, wild);
    let (mut ours, mut theirs) = rig.stream().await;
    let began = Instant::now();
    let sent: Vec<u8> = (0..100_000u32).map(|number| (number % 251) as u8).collect();
    let send = async {
        for part in sent.chunks(1_234) {
            ours.write_all(part).await.unwrap();
            sleep(ms(1)).await;
        }
    };
    let (received, ()) = tokio::join!(biased; read(&mut *theirs, sent.len()), send);
    assert!(received == sent);
    assert!(began.elapsed() >= ms(80 + 5), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn delay_and_bandwidth_hold_one_way_and_are_shared_by_streams() {
    let mut rig = Rig::new(3).await;
    let (mut ours, mut theirs) = rig.stream().await;
    let (mut other, mut others) = rig.stream().await;
    rig.network.set(1, 2, slow(ms(500), 100_000));
    let began = Instant::now();
    ours.write_all(&[1; 100_000]).await.unwrap();
    other.write_all(&[2; 100_000]).await.unwrap();
    read(&mut *theirs, 1).await;
    assert_eq!(began.elapsed(), ms(1_500));
    read(&mut *others, 1).await;
    assert_eq!(began.elapsed(), ms(2_500));
    let began = Instant::now();
    theirs.write_u8(9).await.unwrap();
    assert_eq!(ours.read_u8().await.unwrap(), 9);
    assert!(began.elapsed() < SOON, "the way back is as it was");
}

#[tokio::test(start_paused = true)]
async fn a_cut_is_silence_one_way_and_loses_nothing() {
    let mut rig = Rig::new(3).await;
    let (mut ours, mut theirs) = rig.stream().await;
    ours.write_all(b"ab").await.unwrap();
    sleep(SOON).await;
    // Arrived before the cut, under way, and sent behind it.
    rig.network.set(1, 2, slow(ms(50), 1_000_000));
    ours.write_all(b"cd").await.unwrap();
    rig.network.cut(1, 2);
    ours.write_all(b"ef").await.unwrap();
    assert_eq!(read(&mut *theirs, 2).await, b"ab");
    assert!(is_silent(&mut *theirs, 600 * SECOND).await);
    let began = Instant::now();
    theirs.write_all(b"back").await.unwrap();
    assert_eq!(read(&mut ours, 4).await, b"back");
    assert!(began.elapsed() < SOON, "the other direction goes on");
    let network = rig.network.clone();
    let heal = async move {
        sleep(SECOND).await;
        network.heal(1, 2);
    };
    let (rest, ()) = tokio::join!(biased; read(&mut *theirs, 4), heal);
    assert_eq!(rest, b"cdef");
}

#[tokio::test(start_paused = true)]
async fn a_connection_across_a_cut_hangs_until_it_is_healed() {
    for (from, to) in [(1, 2), (2, 1)] {
        let rig = Rig::new(3).await;
        rig.network.cut(from, to);
        let connecting = rig.one.connect(port(2, 7));
        let mut connecting = std::pin::pin!(connecting);
        assert!(timeout(600 * SECOND, &mut connecting).await.is_err());
        rig.network.heal_all();
        let connected = timeout(SOON, connecting).await.unwrap();
        assert!(connected.is_ok(), "{from} to {to}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_listen_refuses_and_nobody_binds_what_is_another_ones() {
    let mut rig = Rig::new(3).await;
    let refused = rig.one.connect(port(2, 8)).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let nowhere = rig.one.connect("10.0.0.2:7".parse().unwrap()).await.err().unwrap();
    assert_eq!(nowhere.kind(), ErrorKind::AddrNotAvailable);
    let named = Network::connect(&*rig.one, "broker-2:7").await.err().unwrap();
    assert!(named.to_string().contains("broker-2:7"), "{named}");
    let of_another = rig.one.listen(port(2, 9)).await.err().unwrap();
    assert_eq!(of_another.kind(), ErrorKind::AddrNotAvailable);
    let taken = rig.network.host(2).listen(port(2, 7)).await.err().unwrap();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    rig.stream().await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_one_side_travels_behind_its_bytes() {
    let mut rig = Rig::new(3).await;
    rig.network.set(1, 2, slow(ms(200), u64::MAX));
    let (mut ours, mut theirs) = rig.stream().await;
    ours.write_all(b"last").await.unwrap();
    ours.shutdown().await.unwrap();
    assert_eq!(ours.write_u8(1).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    let began = Instant::now();
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).await.unwrap();
    assert_eq!((&rest[..], began.elapsed()), (&b"last"[..], ms(200)));
    // Who only sends no more still reads; who is gone does not, and that is learnt over the link.
    theirs.write_all(b"answer").await.unwrap();
    assert_eq!(read(&mut ours, 6).await, b"answer");
    drop(ours);
    theirs.write_u8(1).await.unwrap();
    sleep(ms(200)).await;
    assert_eq!(theirs.write_u8(1).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn what_one_stream_holds_is_bounded_and_goes_on_when_it_is_read() {
    let mut rig = Rig::new(3).await;
    let (mut ours, mut theirs) = rig.stream().await;
    let bytes = vec![7; 3 * WINDOW_BYTES];
    let writing = ours.write_all(&bytes);
    let mut writing = std::pin::pin!(writing);
    assert!(timeout(SECOND, &mut writing).await.is_err());
    read(&mut *theirs, WINDOW_BYTES).await;
    assert!(is_silent(&mut *theirs, SECOND).await, "no more than the window was taken");
    let (written, rest) = tokio::join!(biased; writing, read(&mut *theirs, 2 * WINDOW_BYTES));
    written.unwrap();
    assert_eq!(rest.len(), 2 * WINDOW_BYTES);
    // Nobody reads any more: who writes is not held for ever.
    drop(theirs);
    timeout(SECOND, ours.write_all(&bytes)).await.unwrap().unwrap();
    sleep(SOON).await;
    assert_eq!(ours.write_u8(1).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn a_killed_host_is_silent_at_once_and_missed_when_the_link_tells() {
    let mut rig = Rig::new(3).await;
    let (mut ours, mut theirs) = rig.stream().await;
    let (idle, waiting) = rig.stream().await;
    rig.network.set(2, 1, slow(ms(100), u64::MAX));
    theirs.write_all(b"last").await.unwrap();
    rig.network.kill(2);
    assert_eq!(theirs.write_u8(1).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(theirs.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let began = Instant::now();
    assert_eq!(read(&mut ours, 4).await, b"last");
    assert_eq!(ours.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(began.elapsed(), ms(100));
    let refused = rig.one.connect(port(2, 7)).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // Held until those who had them let go, whatever the other host does.
    assert_eq!(rig.network.held_streams(2), 2);
    assert!(timeout(SECOND, rig.network.let_go(2)).await.is_err());
    drop((theirs, waiting));
    timeout(SECOND, rig.network.let_go(2)).await.unwrap();
    drop((ours, idle));
    assert_eq!(rig.network.held_streams(1), 0);
    rig.listener = rig.network.host(2).listen(port(2, 7)).await.unwrap();
    rig.stream().await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_breaks_both_ends_at_once_and_the_link_stands() {
    let mut rig = Rig::new(3).await;
    let (mut ours, mut theirs) = rig.stream().await;
    rig.network.cut(1, 2);
    rig.network.reset(1, 2);
    assert_eq!(theirs.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(ours.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    rig.network.heal(1, 2);
    rig.stream().await;
}

#[tokio::test(start_paused = true)]
async fn the_seed_decides_when_bytes_arrive() {
    async fn trace(seed: u64) -> (u64, Duration) {
        let mut rig = Rig::new(seed).await;
        rig.network.set(1, 2, Conditions { jitter: ms(500), ..Conditions::LOCAL });
        let began = Instant::now();
        let (mut ours, mut theirs) = rig.stream().await;
        for number in 0..50 {
            ours.write_u8(number).await.unwrap();
            assert_eq!(theirs.read_u8().await.unwrap(), number);
        }
        (rig.network.trace(), began.elapsed())
    }
    assert_eq!(trace(5).await, trace(5).await);
    assert_ne!(trace(5).await, trace(6).await);
}
