//! Damage that is found while a replica runs is mended while its broker runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, timeout};
use weir_client::{Message, Start, TopicConfig};
use weir_sim::cluster::{Cluster, Machine};
use weir_sim::disk::{Damage, Op};
use weir_sim::paused;
use weir_storage::inspect;

const TOPIC: &str = "damaged";
const BROKERS: u8 = 3;
/// Hosts from here on are clients.
const CLIENTS: u8 = 100;
const LOOKERS: u8 = 120;
const MESSAGE_BYTES: usize = 16 << 10;
const PUBLISH_EVERY: Duration = Duration::from_millis(20);
/// These are more than the first segment holds.
const ENOUGH: u64 = 150;
/// Bytes that rot: in the first segment, and more than a message on every replica.
const ROTTEN: std::ops::Range<u64> = 300_000..400_000;
/// More than mending takes.
const ROOM_BYTES: u64 = 1 << 30;
/// The search, and a turn of each voter.
const MENDED_WITHIN: Duration = Duration::from_secs(30);
/// An election that nobody prepared takes longer.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A publisher and a reader that never see an error.
struct Life {
    stopped: Arc<AtomicBool>,
    tasks: JoinSet<(u64, Duration)>,
}

impl Life {
    async fn start(cluster: &Cluster) -> Self {
        let (stopped, mut tasks) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        let client = cluster.client(CLIENTS, &[1, 2, 3]).await.expect("the brokers are up");
        client.create_topic(TOPIC, TopicConfig::default()).await.expect("it is created");
        let publisher = client.publisher(TOPIC).partition(0).idempotent("life").build().await;
        let (publisher, ends) = (publisher.expect("the topic is there"), stopped.clone());
        tasks.spawn(async move {
            let (mut count, mut longest) = (0, Duration::ZERO);
            while !ends.load(Ordering::Relaxed) {
                let began = Instant::now();
                let receipt = publisher.send(Message::new(content(count))).await;
                let stored = receipt.expect("there is room").await.expect("it is stored");
                assert_eq!(stored.offset, count);
                longest = longest.max(began.elapsed());
                count += 1;
                sleep(PUBLISH_EVERY).await;
            }
            (count, longest)
        });
        let client = cluster.client(CLIENTS + 1, &[1, 2, 3]).await.expect("the brokers are up");
        let reader = client.reader(TOPIC).from(Start::Earliest).subscribe().await;
        let (mut reader, ends) = (reader.expect("the topic is there"), stopped.clone());
        tasks.spawn(async move {
            let mut count = 0;
            while !ends.load(Ordering::Relaxed) {
                let Ok(next) = timeout(Duration::from_secs(1), reader.next()).await else {
                    continue;
                };
                let message = next.expect("there is more").expect("it can be read");
                assert_eq!(
                    (message.offset(), &message.payload()[..]),
                    (count, &content(count)[..])
                );
                count += 1;
            }
            (count, Duration::ZERO)
        });
        Self { stopped, tasks }
    }

    /// How many were acknowledged, and the longest time that one of them took.
    async fn stop(mut self) -> (u64, Duration) {
        self.stopped.store(true, Ordering::Relaxed);
        let mut ends = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            ends.push(ended.expect("neither of them sees an error"));
        }
        assert!(ends.iter().all(|(count, _)| *count > ENOUGH), "{ends:?}");
        ends.into_iter().max_by_key(|(_, longest)| *longest).expect("there are two")
    }
}

/// The content of a message follows from its number.
fn content(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; MESSAGE_BYTES];
    fastrand::Rng::with_seed(number).fill(&mut bytes);
    bytes
}

/// Three brokers that search for rot all the time.
async fn start(seed: u64) -> Cluster {
    let cluster = Cluster::joined(seed, BROKERS);
    for (_, machine) in cluster.machines() {
        machine.set("WEIR__STORAGE__SCRUB_INTERVAL", "1s");
    }
    start_together(&cluster).await;
    cluster
}

async fn start_together(cluster: &Cluster) {
    let [one, two, three] = [1, 2, 3].map(|number| cluster.machine(number).start());
    let started = tokio::join!(biased; one, two, three);
    assert!(matches!(started, (Ok(()), Ok(()), Ok(()))), "{started:?}");
}

/// Starts the brokers, and kills one that does not lead when so many messages are stored.
async fn killed_follower(cluster: &Cluster) -> (u8, u64) {
    start_together(cluster).await;
    let life = Life::start(cluster).await;
    sleep(PUBLISH_EVERY * 4 * ENOUGH as u32).await;
    let (count, _) = life.stop().await;
    let victim = leader(cluster).await % BROKERS + 1;
    cluster.machine(victim).kill().await;
    (victim, count)
}

/// What a broker says of the topic.
async fn shown(cluster: &Cluster, number: u8) -> String {
    let host = cluster.network().host(LOOKERS + number);
    let mut admin = host.connect(cluster.machine(number).admin()).await.expect("it listens");
    let path = format!("/v1/topics/{TOPIC}");
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    admin.write_all(request.as_bytes()).await.expect("it is taken");
    let mut answer = String::new();
    admin.read_to_string(&mut answer).await.expect("it answers");
    answer
}

async fn leader(cluster: &Cluster) -> u8 {
    loop {
        for (number, _) in cluster.machines() {
            if shown(cluster, number).await.contains("\"state\":\"leading\"") {
                return number;
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn is_damaged(cluster: &Cluster, number: u8) -> bool {
    !shown(cluster, number).await.contains("\"damaged\":[]")
}

/// The first segment of the topic.
fn sealed(machine: &Machine) -> PathBuf {
    segments(machine).swap_remove(0)
}

/// The segments of the topic, the last of which is not sealed.
fn segments(machine: &Machine) -> Vec<PathBuf> {
    let of_topic = |path: &PathBuf| {
        let folder = path.parent().and_then(|folder| folder.file_name());
        folder.is_some_and(|name| name.to_string_lossy().starts_with("p-"))
    };
    let mut paths: Vec<_> = machine.disk().paths(".seg").into_iter().filter(of_topic).collect();
    paths.sort();
    assert!(paths.len() > 1, "the first is not sealed: {paths:?}");
    paths
}

/// Whether a device holds every byte of the topic as it was written.
fn is_whole(machine: &Machine) -> bool {
    let folder = sealed(machine).parent().expect("a file has a folder").to_owned();
    let disk = machine.disk().copy();
    let uuid = inspect::uuid_of(&disk, &folder).expect("it can be read").expect("it is a log");
    inspect::verify(&disk, &folder, uuid).expect("it can be read").damaged.is_empty()
}

async fn wait_until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waits = async {
        while !so().await {
            sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(timeout(MENDED_WITHIN, waits).await.is_ok(), "{what}");
}

/// Everything can be read from this very broker.
async fn check(cluster: &Cluster, number: u8, count: u64) {
    let client = cluster.client(CLIENTS + 50 + number, &[number]).await.expect("it is up");
    let reader = client.reader(TOPIC).any_replica().reach(0, count).from(Start::Earliest);
    let mut reader = reader.subscribe().await.expect("the topic is there");
    for offset in 0..count {
        let message = reader.next().await.expect("there is more").expect("it can be read");
        assert_eq!((message.offset(), &message.payload()[..]), (offset, &content(offset)[..]));
    }
}

#[test]
fn what_rots_under_a_running_replica_is_mended_while_its_broker_runs() {
    for (seed, leads) in [(31, false), (32, true)] {
        paused(seed).block_on(async {
            let cluster = start(seed).await;
            let life = Life::start(&cluster).await;
            sleep(PUBLISH_EVERY * 3 * ENOUGH as u32).await;
            let leader = leader(&cluster).await;
            let victim = if leads { leader } else { leader % BROKERS + 1 };
            let machine = cluster.machine(victim);
            machine.disk().damage(&sealed(machine), &Damage::Noise(ROTTEN, seed));
            assert!(!is_whole(machine));
            wait_until("the damage is found", async || is_damaged(&cluster, victim).await).await;
            wait_until("the replica is whole again", async || {
                is_whole(machine) && !is_damaged(&cluster, victim).await
            })
            .await;
            let (count, longest) = life.stop().await;
            assert!(longest < PAUSE_MAX, "leads: {leads}: one message took {longest:?}");
            for (number, machine) in cluster.machines() {
                assert!(is_whole(machine), "broker {number}");
                check(&cluster, number, count).await;
            }
        });
    }
}

/// One search finds it all, also what stands behind the damage that its replica was closed for.
#[test]
fn a_search_goes_on_in_a_replica_that_was_opened_anew() {
    paused(35).block_on(async {
        let cluster = Cluster::joined(35, BROKERS);
        for (_, machine) in cluster.machines() {
            // A segment is read in half a minute or more: voters come to their turns meanwhile.
            machine.set("WEIR__STORAGE__SCRUB_BYTES_PER_SECOND", "32KiB");
        }
        let (victim, count) = killed_follower(&cluster).await;
        let machine = cluster.machine(victim);
        let segments = segments(machine);
        assert!(segments.len() > 2, "the second is not sealed: {segments:?}");
        for path in &segments[..2] {
            machine.disk().damage(path, &Damage::Noise(ROTTEN, 35));
        }
        machine.start().await.expect("a start does not read what is sealed");
        assert!(!is_whole(machine));
        sleep(8 * MENDED_WITHIN).await;
        assert!(is_whole(machine) && !is_damaged(&cluster, victim).await);
        check(&cluster, victim, count).await;
    });
}

/// With one more away, a majority would be.
#[test]
fn a_damaged_replica_stays_while_another_voter_is_silent() {
    paused(34).block_on(async {
        let cluster = start(34).await;
        let life = Life::start(&cluster).await;
        sleep(PUBLISH_EVERY * 3 * ENOUGH as u32).await;
        let leader = leader(&cluster).await;
        let [victim, silent] = [1, 2].map(|step| (leader + step - 1) % BROKERS + 1);
        cluster.machine(silent).kill().await;
        sleep(Duration::from_secs(5)).await;
        let machine = cluster.machine(victim);
        machine.disk().damage(&sealed(machine), &Damage::Noise(ROTTEN, 34));
        wait_until("the damage is found", async || is_damaged(&cluster, victim).await).await;
        sleep(MENDED_WITHIN).await;
        assert!(is_damaged(&cluster, victim).await, "it left while another voter was silent");
        cluster.machine(silent).start().await.expect("it comes back");
        wait_until("the replica is whole again", async || {
            is_whole(machine) && !is_damaged(&cluster, victim).await
        })
        .await;
        let (count, longest) = life.stop().await;
        assert!(longest < PAUSE_MAX, "one message took {longest:?}");
        check(&cluster, victim, count).await;
    });
}

/// What mending needs is not there when the broker starts, and is later.
#[test]
fn what_found_no_room_at_its_start_opens_by_itself_when_there_is_some() {
    paused(36).block_on(async {
        let cluster = Cluster::joined(36, BROKERS);
        let (victim, count) = killed_follower(&cluster).await;
        let machine = cluster.machine(victim);
        let open = segments(machine).pop().expect("there is one");
        machine.disk().damage(&open, &Damage::Noise(ROTTEN, 36));
        assert!(!is_whole(machine));
        machine.disk().leave_room(0);
        machine.start().await.expect("one partition that cannot be opened stops no broker");
        let has_no_room = async || shown(&cluster, victim).await.contains("STORAGE_LOW");
        wait_until("it has no room", has_no_room).await;
        // However often it is tried.
        sleep(MENDED_WITHIN).await;
        wait_until("it has no room", has_no_room).await;
        assert!(!is_whole(machine));
        machine.disk().leave_room(ROOM_BYTES);
        wait_until("the replica is open and whole", async || {
            is_whole(machine) && shown(&cluster, victim).await.contains("high_watermark")
        })
        .await;
        check(&cluster, victim, count).await;
    });
}

/// Reads past the damage only: what is lost on all replicas is lost.
#[test]
fn what_nobody_can_mend_is_tried_once() {
    paused(33).block_on(async {
        let cluster = start(33).await;
        let life = Life::start(&cluster).await;
        sleep(PUBLISH_EVERY * 3 * ENOUGH as u32).await;
        // An opening looks at what is in the data directory; nothing else here does.
        let openings = || cluster.machines().map(|(_, machine)| machine.disk().calls(Op::List));
        let healthy: Vec<_> = openings().collect();
        for (_, machine) in cluster.machines() {
            machine.disk().damage(&sealed(machine), &Damage::Noise(ROTTEN, 33));
        }
        for number in 1..=BROKERS {
            wait_until("the damage is found", async || is_damaged(&cluster, number).await).await;
        }
        // Each has had its turns by then.
        sleep(2 * MENDED_WITHIN).await;
        let before: Vec<_> = openings().collect();
        let tried = before.iter().zip(&healthy).all(|(after, before)| after > before);
        assert!(tried, "{healthy:?}, {before:?}");
        sleep(2 * MENDED_WITHIN).await;
        assert_eq!(openings().collect::<Vec<_>>(), before, "the replicas stay open");
        for number in 1..=BROKERS {
            assert!(is_damaged(&cluster, number).await, "nobody had what is missing");
        }
        life.stop().await;
    });
}
