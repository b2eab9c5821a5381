//! Several real brokers in one runtime: each lives and dies by itself.

#[path = "cluster/load.rs"]
mod load;

use load::{Load, content};
use std::path::PathBuf;
use std::process::Command;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::time::{Duration, sleep};
use weir_client::{Durability, Start, TopicConfig};
use weir_sim::cluster::{Cluster, Machine, NotStarted};
use weir_sim::disk::Cut;
use weir_sim::network::Conditions;
use weir_sim::paused;
use weir_storage::Lane;

const BROKERS: u8 = 3;
/// Seeds that every run of the tests covers; `WEIR_SIM_SEEDS` in the environment covers more.
const SEEDS: u64 = 2;
/// How long an undisturbed broker may take between two acknowledgements: its slowest flushes.
const PAUSE_MAX: Duration = Duration::from_millis(400);
const WHILE: Duration = Duration::from_secs(1);
/// What a broker said before it died is there by then.
const ON_THE_WAY: Duration = Duration::from_millis(10);

fn seeds() -> std::ops::Range<u64> {
    let asked = std::env::var("WEIR_SIM_SEEDS").ok();
    0..asked.map_or(SEEDS, |seeds| seeds.parse().expect("WEIR_SIM_SEEDS is a number"))
}

async fn start(cluster: &Cluster) {
    for (number, machine) in cluster.machines() {
        let started = machine.start().await;
        assert!(started.is_ok(), "broker {number}: {started:?}");
    }
}

/// Hosts from here on are clients: publisher N of broker N.
const CLIENTS: u8 = 100;

async fn load(cluster: &Cluster) -> Vec<Load> {
    let mut loads = Vec::new();
    for (number, _) in cluster.machines() {
        loads.push(Load::start(cluster, CLIENTS + number, number).await);
    }
    loads
}

/// Every message that was acknowledged is there once, in its order, with its content.
async fn check(cluster: &Cluster, number: u8, acknowledged: u64) {
    let client = cluster.client(CLIENTS + 50 + number, &[number]).await.expect("the broker is up");
    let reader = client.reader(load::TOPIC).from(Start::Earliest).subscribe().await;
    let mut reader = reader.expect("the topic is there");
    let end = reader.end_offsets()[&0];
    assert!(end >= acknowledged, "broker {number} has {end}, {acknowledged} were acknowledged");
    for offset in 0..end {
        let message = reader.next().await.expect("there is more").expect("it can be read");
        assert_eq!(message.offset(), offset);
        assert_eq!(message.payload()[..], content(number, offset)[..], "{number}: {offset}");
    }
}

/// One of three dies under load, by `cut` with the power, and comes back.
fn one_dies(seed: u64, cut: Option<Cut>) -> u64 {
    paused(seed).block_on(async {
        let cluster = Cluster::new(seed, BROKERS);
        start(&cluster).await;
        let loads = load(&cluster).await;
        sleep(WHILE).await;
        let victim = cluster.machine(2);
        match cut {
            None => victim.kill().await,
            Some(cut) => victim.cut_power(cut).await,
        }
        sleep(ON_THE_WAY).await;
        let before: Vec<u64> = loads.iter().map(Load::acknowledged).collect();
        assert!(before.iter().all(|count| *count > 100), "seed {seed}: {before:?}");
        loads.iter().for_each(Load::forget_pauses);
        sleep(WHILE).await;
        for (load, before) in loads.iter().zip(&before) {
            if load.broker() == 2 {
                assert_eq!(load.acknowledged(), *before, "seed {seed}: a dead broker answered");
            } else {
                assert!(load.acknowledged() > before + 100, "seed {seed}: {}", load.broker());
                let pause = load.longest_pause();
                assert!(pause < PAUSE_MAX, "seed {seed}: {} stood {pause:?}", load.broker());
            }
        }
        let restarted = victim.start().await;
        assert!(restarted.is_ok(), "seed {seed}: {restarted:?}");
        for (load, before) in loads.into_iter().zip(before) {
            let number = load.broker();
            assert!(load.reaches(before + 500).await, "seed {seed}: broker {number} goes on");
            let acknowledged = load.stop().await;
            check(&cluster, number, acknowledged).await;
        }
        cluster.trace()
    })
}

#[test]
fn one_of_three_dies_and_loses_nothing_and_disturbs_nobody() {
    for seed in seeds() {
        one_dies(seed, None);
        one_dies(seed, Some(Cut::LosesAll));
        one_dies(seed, Some(Cut::KeepsSome(seed)));
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let trace = one_dies(1, None);
    assert_eq!(one_dies(1, None), trace);
    assert_ne!(one_dies(2, None), trace);
}

/// What the other process is told to come to.
const EXPECTED: &str = "WEIR_SIM_EXPECTED_TRACE";

#[test]
fn the_same_seed_gives_the_same_bytes_in_another_process() {
    let trace = one_dies(7, Some(Cut::KeepsSome(7)));
    if let Ok(expected) = std::env::var(EXPECTED) {
        assert_eq!(trace.to_string(), expected);
        return;
    }
    let this = std::env::current_exe().expect("a test knows its own file");
    let name = "the_same_seed_gives_the_same_bytes_in_another_process";
    let other =
        Command::new(this).args([name, "--exact"]).env(EXPECTED, trace.to_string()).output();
    let output = other.expect("the test runs itself");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// Tasks of a client that publishes: its driver, and the publisher's own.
const CLIENT_TASKS: usize = 2;

#[test]
fn nothing_of_a_killed_broker_is_left() {
    paused(5).block_on(async {
        let cluster = Cluster::new(5, 1);
        let machine = cluster.machine(1);
        let alive = || Handle::current().metrics().num_alive_tasks();
        machine.start().await.expect("it starts");
        let load = Load::start(&cluster, CLIENTS, 1).await;
        for _ in 0..3 {
            // A connection of the HTTP server, which starts tasks of its own, kept open.
            let host = cluster.network().host(CLIENTS + 1);
            let mut admin = host.connect(machine.admin()).await.expect("it listens");
            admin.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("it is taken");
            let mut answer = [0; 15];
            admin.read_exact(&mut answer).await.expect("it answers");
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
            sleep(WHILE).await;
            assert!(alive() > CLIENT_TASKS + 10);
            machine.kill().await;
            let mut rest = Vec::new();
            assert!(admin.read_to_end(&mut rest).await.is_err(), "the connection was broken");
            // Jobs that nobody waits for any more come to their time.
            sleep(WHILE).await;
            assert_eq!(alive(), CLIENT_TASKS);
            machine.start().await.expect("it starts again");
        }
        let acknowledged = load.stop().await;
        check(&cluster, 1, acknowledged).await;
    });
}

/// What the broker shows of a topic.
async fn shown(cluster: &Cluster, host: u8) -> String {
    page_of(cluster, host, &format!("/v1/topics/{}", load::TOPIC)).await
}

/// A page of the first broker.
async fn page_of(cluster: &Cluster, host: u8, path: &str) -> String {
    let host = cluster.network().host(host);
    let mut admin = host.connect(cluster.machine(1).admin()).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    admin.write_all(request.as_bytes()).await.expect("it is taken");
    let mut answer = String::new();
    admin.read_to_string(&mut answer).await.expect("it answers");
    answer
}

/// What was acknowledged out of memory outlives the process. A power cut takes what was not flushed
/// by then, which is told, and the broker goes on with the rest.
#[test]
fn memory_durability_loses_with_the_power_alone_and_says_so() {
    for seed in seeds() {
        paused(seed).block_on(async {
            let cluster = Cluster::new(seed, 1);
            let machine = cluster.machine(1);
            machine.start().await.expect("it starts");
            let client = cluster.client(CLIENTS, &[1]).await.expect("the broker is up");
            let config = TopicConfig { durability: Durability::Memory, ..TopicConfig::default() };
            client.create_topic(load::TOPIC, config).await.expect("it is created");
            let load = Load::start(&cluster, CLIENTS + 1, 1).await;
            sleep(WHILE).await;
            machine.executor().expect("it runs").stall(Lane::Flush, 60 * WHILE);
            let acknowledged = load.stop().await;
            assert!(acknowledged > 100, "seed {seed}: {acknowledged}");
            machine.kill().await;
            machine.start().await.expect("it starts again");
            check(&cluster, 1, acknowledged).await;
            let answer = shown(&cluster, CLIENTS + 2).await;
            assert!(answer.contains("\"memory_loss\":null"), "seed {seed}: {answer}");

            let load = Load::start(&cluster, CLIENTS + 3, 1).await;
            sleep(WHILE).await;
            machine.executor().expect("it runs").stall(Lane::Flush, 60 * WHILE);
            assert!(load.reaches(load.acknowledged() + 10).await, "seed {seed}");
            load.stop().await;
            machine.cut_power(Cut::LosesAll).await;
            machine.start().await.expect("it starts without what is lost");
            // Those that were flushed before the device stood still are there.
            check(&cluster, 1, acknowledged).await;
            for life in 0..2 {
                let answer = shown(&cluster, CLIENTS + 4 + life).await;
                assert!(answer.contains("\"recovery_epoch\":1"), "seed {seed}: {answer}");
                machine.kill().await;
                machine.start().await.expect("it starts again");
            }
        });
    }
}

/// Starts all of them at once: none serves before the others are there.
async fn start_together(cluster: &Cluster) {
    let [one, two, three] = [1, 2, 3].map(|number| cluster.machine(number).start());
    let started = tokio::join!(biased; one, two, three);
    assert!(matches!(started, (Ok(()), Ok(()), Ok(()))), "{started:?}");
}

/// A topic that promises no more than memory comes back when the power of all its brokers goes, by
/// itself, with what was flushed by then, and says that something may be missing.
#[test]
fn a_topic_of_memory_comes_back_from_the_loss_of_all_power_at_once() {
    for (seed, first) in [(3, 1), (4, 2)] {
        paused(seed).block_on(async {
            let cluster = Cluster::joined(seed, BROKERS);
            start_together(&cluster).await;
            let client = cluster.client(CLIENTS, &[1, 2, 3]).await.expect("the brokers are up");
            let config = TopicConfig { durability: Durability::Memory, ..TopicConfig::default() };
            client.create_topic(load::TOPIC, config).await.expect("it is created");
            drop(client);
            let load = Load::start(&cluster, CLIENTS + 1, 1).await;
            assert!(load.reaches(200).await, "seed {seed}");
            let acknowledged = load.acknowledged();
            // All of these are flushed by then, and what comes later is not.
            sleep(5 * WHILE).await;
            for (_, machine) in cluster.machines() {
                machine.executor().expect("it runs").stall(Lane::Flush, 60 * WHILE);
            }
            sleep(WHILE).await;
            assert!(load.acknowledged() > acknowledged, "seed {seed}");
            drop(load);
            // All of them, or most: then one is left that lacks nothing, and no majority.
            for (number, machine) in cluster.machines() {
                match number < first {
                    true => machine.kill().await,
                    false => machine.cut_power(Cut::LosesAll).await,
                }
            }
            start_together(&cluster).await;
            let load = Load::start(&cluster, CLIENTS + 3, 1).await;
            assert!(load.reaches(1).await, "seed {seed}: nothing leads");
            let first = load.acknowledged();
            assert!(first > acknowledged, "seed {seed}: {first}, and {acknowledged} were flushed");
            assert!(load.reaches(first + 50).await, "seed {seed}");
            let acknowledged = load.stop().await;
            check(&cluster, 1, acknowledged).await;
            let page = page_of(&cluster, CLIENTS + 4, "/v1/cluster").await;
            assert!(page.contains("\"recoveries\":{\"count\":1"), "seed {seed}: {page}");
        });
    }
}

#[test]
fn a_broker_that_waits_for_others_says_so_and_is_not_ready() {
    paused(17).block_on(async {
        let cluster = Cluster::joined(17, BROKERS);
        let looks = async {
            sleep(8 * WHILE).await;
            let ready = page_of(&cluster, CLIENTS, "/readyz").await;
            assert!(ready.starts_with("HTTP/1.1 503") && ready.ends_with("forming\n"), "{ready}");
            let alive = page_of(&cluster, CLIENTS, "/livez").await;
            assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
            let topics = page_of(&cluster, CLIENTS, "/v1/topics").await;
            assert!(topics.starts_with("HTTP/1.1 503"), "{topics}");
            page_of(&cluster, CLIENTS, "/v1/cluster").await
        };
        let first = cluster.machine(1);
        let page = tokio::select! {
            biased;
            started = first.start() => panic!("alone it formed a cluster: {started:?}"),
            page = looks => page,
        };
        assert!(page.contains("\"state\":\"forming\""), "{page}");
        assert_eq!(page.matches("does not answer").count(), 2, "{page}");
        assert!(page.contains("waiting for "), "{page}");
        first.kill().await;
        start_together(&cluster).await;
        let ready = page_of(&cluster, CLIENTS + 1, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    });
}

/// The file with what the metadata log of a broker holds, and where that ends.
fn metadata_of(machine: &Machine) -> (PathBuf, usize) {
    let mut paths = machine.disk().paths(".seg").into_iter();
    let path = paths.find(|path| path.components().any(|part| part.as_os_str() == "metadata"));
    let path = path.expect("the metadata has a log");
    let written = machine.disk().bytes_of(&path).iter().rposition(|byte| *byte != 0);
    (path, written.expect("something is written"))
}

#[test]
fn what_rots_in_the_metadata_of_one_broker_is_fetched_from_the_others() {
    paused(19).block_on(async {
        let cluster = Cluster::joined(19, BROKERS);
        start_together(&cluster).await;
        let client = cluster.client(CLIENTS, &[1]).await.expect("the brokers are up");
        for number in 0..8 {
            let created = client.create_topic(&format!("t{number}"), TopicConfig::default()).await;
            created.expect("it is created");
        }
        sleep(5 * WHILE).await;
        let victim = cluster.machine(3);
        victim.kill().await;
        let (path, end) = metadata_of(victim);
        let mut bytes = victim.disk().bytes_of(&path);
        let middle = end / 2;
        bytes[middle..middle + 200].iter_mut().for_each(|byte| *byte ^= 0x55);
        victim.disk().put(&path, &bytes);
        victim.start().await.expect("what is missing is fetched");
        client.create_topic("later", TopicConfig::default()).await.expect("it is created");
        let there = cluster.client(CLIENTS + 1, &[3]).await.expect("the broker is up");
        let topic = there.topic("later").await;
        assert!(topic.is_ok(), "its copy of the metadata goes on: {topic:?}");
        let fetched = victim.disk().bytes_of(&metadata_of(victim).0);
        assert_ne!(fetched[middle..middle + 200], bytes[middle..middle + 200]);
    });
}

#[test]
fn a_broker_whose_metadata_is_beyond_repair_takes_another_copy() {
    paused(23).block_on(async {
        let cluster = Cluster::joined(23, BROKERS);
        start_together(&cluster).await;
        let client = cluster.client(CLIENTS, &[1]).await.expect("the brokers are up");
        client.create_topic("early", TopicConfig::default()).await.expect("it is created");
        sleep(5 * WHILE).await;
        let victim = cluster.machine(3);
        victim.kill().await;
        let (path, end) = metadata_of(victim);
        let folder = path.parent().expect("a file has a folder").to_owned();
        for path in victim.disk().paths("") {
            if path.starts_with(&folder) {
                let mut bytes = victim.disk().bytes_of(&path);
                bytes.iter_mut().take(end + 1).for_each(|byte| *byte ^= 0x55);
                victim.disk().put(&path, &bytes);
            }
        }
        victim.start().await.expect("it takes part anew");
        client.create_topic("later", TopicConfig::default()).await.expect("it is created");
        let there = cluster.client(CLIENTS + 1, &[3]).await.expect("the broker is up");
        for name in ["early", "later"] {
            let topic = there.topic(name).await;
            assert!(topic.is_ok(), "its copy of the metadata is whole: {topic:?}");
        }
        // From then on it is a copy like any other.
        victim.kill().await;
        victim.start().await.expect("it starts again");
    });
}

#[test]
fn a_broker_can_be_killed_at_any_moment_of_its_start() {
    let mut killed = 0;
    for seed in 0..20 {
        paused(seed).block_on(async {
            let cluster = Cluster::new(seed, 1);
            let machine = cluster.machine(1);
            let early = async {
                sleep(Duration::from_millis(seed)).await;
                machine.kill().await;
            };
            match tokio::join!(biased; machine.start(), early).0 {
                Err(NotStarted::Killed) => killed += 1,
                Err(NotStarted::Failed(error)) => panic!("seed {seed}: {error}"),
                Ok(()) => {}
            }
            machine.start().await.expect("what is left can be started on");
            let load = Load::start(&cluster, CLIENTS, 1).await;
            sleep(Duration::from_millis(200)).await;
            let acknowledged = load.stop().await;
            assert!(acknowledged > 10, "seed {seed}");
            check(&cluster, 1, acknowledged).await;
        });
    }
    assert!(killed > 5, "{killed} were killed while they started");
}

#[test]
fn links_of_clients_are_cut_slowed_and_healed_one_way_or_both() {
    paused(11).block_on(async {
        let cluster = Cluster::new(11, BROKERS);
        start(&cluster).await;
        let loads = load(&cluster).await;
        sleep(WHILE).await;
        let network = cluster.network();
        // The requests of one client, the answers of another.
        network.cut(CLIENTS + 1, 1);
        network.cut(2, CLIENTS + 2);
        // What the first broker has already is still answered.
        sleep(PAUSE_MAX).await;
        let before: Vec<u64> = loads.iter().map(Load::acknowledged).collect();
        loads.iter().for_each(Load::forget_pauses);
        sleep(WHILE).await;
        assert_eq!([loads[0].acknowledged(), loads[1].acknowledged()], before[..2]);
        assert!(loads[2].longest_pause() < PAUSE_MAX);
        network.heal_all();
        // Half a second each way: a round trip is a second.
        let far = Conditions { delay: Duration::from_millis(500), ..Conditions::LOCAL };
        network.set(CLIENTS + 3, 3, far);
        network.set(3, CLIENTS + 3, far);
        loads.iter().for_each(Load::forget_pauses);
        sleep(3 * WHILE).await;
        assert!(loads[2].longest_pause() >= Duration::from_millis(900));
        for (load, before) in loads.into_iter().zip(before) {
            let number = load.broker();
            assert!(load.reaches(before + 100).await, "broker {number} goes on");
            let acknowledged = load.stop().await;
            check(&cluster, number, acknowledged).await;
        }
    });
}

#[test]
fn a_stalled_disk_holds_its_own_broker_only() {
    paused(13).block_on(async {
        let cluster = Cluster::new(13, BROKERS);
        start(&cluster).await;
        let loads = load(&cluster).await;
        sleep(WHILE).await;
        loads.iter().for_each(Load::forget_pauses);
        let executor = cluster.machine(1).executor().expect("it runs");
        executor.stall(Lane::Flush, WHILE);
        sleep(2 * WHILE).await;
        assert!(loads[0].longest_pause() >= WHILE - PAUSE_MAX, "{:?}", loads[0].longest_pause());
        assert!(loads[1..].iter().all(|load| load.longest_pause() < PAUSE_MAX));
        for load in loads {
            let (number, acknowledged) = (load.broker(), load.stop().await);
            check(&cluster, number, acknowledged).await;
        }
    });
}
