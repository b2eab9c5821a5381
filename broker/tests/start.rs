//! A broker that cannot start says what is wrong, where, and what to do, changes nothing, and
//! leaves the data directory to whoever starts next.

#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

mod common;

use common::peer::Peer;
use common::{Node, any_port, config, start_in, start_with, when_free};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;
use weir_broker::config::Overrides;
use weir_broker::{Broker, Config, Seams, StartError};
use weir_client::{Client, ErrorCode, TopicConfig};

/// Why no broker starts over `folder`.
async fn refused(folder: &Path) -> StartError {
    match start_in(folder).await {
        Ok(_) => panic!("a broker started over {}", folder.display()),
        Err(error) => error,
    }
}

/// The text names the path and says what to do.
fn says(error: &StartError, path: &Path, what_to_do: &str) {
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()), "no path: {text}");
    assert!(text.contains(what_to_do), "what to do: {text}");
}

/// Writes a number into a file and gives the bytes from `from` to `to` their CRC again.
fn rewrite(path: &Path, (at, bytes): (usize, &[u8]), crc_at: usize, (from, to): (usize, usize)) {
    let mut content = std::fs::read(path).unwrap();
    content[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32fast::hash(&content[from..to]);
    content[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(path, content).unwrap();
}

#[tokio::test]
async fn a_data_directory_has_one_broker() {
    let node = Node::start().await;
    let client = node.client().await;
    client.create_topic("orders", TopicConfig::default()).await.unwrap();
    let error = refused(node.folder.path()).await;
    says(&error, node.folder.path(), "stop it");
    let publisher = client.publisher("orders").build().await.unwrap();
    publisher.publish("the first is not disturbed").await.unwrap();
}

#[tokio::test]
async fn a_file_in_place_of_the_data_directory_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data");
    std::fs::write(&file, "somebody's notes").unwrap();
    for path in [file.clone(), file.join("below")] {
        let config = Config::embedded(&path);
        let error = Seams::os(&config).err().expect("a file is no folder");
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()), "no path: {text}");
        assert!(text.contains("node.data_dir"), "what to do: {text}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "somebody's notes");
}

#[tokio::test]
async fn a_folder_in_place_of_a_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("LOCK")).unwrap();
    let error = refused(folder.path()).await;
    says(&error, folder.path(), "node.data_dir");
}

#[tokio::test]
async fn an_address_in_use_is_named_and_the_data_directory_stays_free() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for _ in 0..2 {
        match when_free(async || start_with(config(folder.path(), address)).await).await {
            Ok(_) => panic!("{address} was taken"),
            Err(error) => assert!(error.to_string().contains(&address.to_string()), "{error}"),
        }
    }
    drop(taken);
    let started = when_free(async || start_with(config(folder.path(), address)).await).await;
    let (broker, runtime) = started.unwrap();
    assert_eq!(broker.addresses().native, address);
    runtime.spawn(broker.drain()).await.unwrap();
    std::thread::scope(|scope| scope.spawn(|| drop(runtime)).join()).unwrap();
}

/// As an application that embeds a broker would: one after the other on one runtime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_has_ended_or_not_begun_leaves_the_data_directory_free() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let free = Config::embedded(folder.path());
    let start = async |native: SocketAddr, admin: SocketAddr| {
        let overrides = Overrides {
            data_dir: Some(folder.path().to_owned()),
            native: Some(native),
            admin: Some(admin),
            ..Overrides::default()
        };
        let config = Config::load(None, [], &overrides).unwrap();
        let start = async || Broker::start(config.clone(), Seams::os(&free).unwrap()).await;
        when_free(start).await
    };
    for (native, admin) in [(address, any_port()), (any_port(), address)] {
        match start(native, admin).await {
            Err(StartError::Listen(error)) => {
                assert!(error.to_string().contains(&address.to_string()), "{error}");
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("{address} was taken"),
        }
    }
    for _ in 0..2 {
        let broker = start(any_port(), any_port()).await.unwrap_or_else(|e| panic!("{e}"));
        // Peers that only listen do not keep what has ended.
        let addresses = broker.addresses();
        let _admin = TcpStream::connect(addresses.admin).unwrap();
        let _native = TcpStream::connect(addresses.native).unwrap();
        broker.drain().await;
    }
}

#[tokio::test]
async fn a_memory_budget_that_is_too_small_says_what_asks_for_how_much() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), any_port()).with_memory_bytes(1 << 20);
    let error = start_with(config).await.err().expect("1 MiB holds nothing");
    let text = error.to_string();
    assert!(text.contains("1048576") && text.contains("publish credit"), "{text}");
}

#[tokio::test]
async fn an_identity_of_a_newer_version_is_left_alone() {
    let mut node = Node::start().await;
    node.drain().await;
    let path = node.folder.path().join("node.meta");
    let before = std::fs::read(&path).unwrap();
    rewrite(&path, (12, &3u16.to_le_bytes()), 8, (12, before.len()));
    let newer = std::fs::read(&path).unwrap();
    let error = refused(node.folder.path()).await;
    says(&error, &path, "use a newer build");
    assert_eq!(std::fs::read(&path).unwrap(), newer, "nothing was changed");
    std::fs::write(&path, before).unwrap();
    node.restart().await;
}

#[tokio::test]
async fn a_damaged_identity_is_not_replaced() {
    let mut node = Node::start().await;
    node.drain().await;
    let path = node.folder.path().join("node.meta");
    std::fs::write(&path, [0; 64]).unwrap();
    let error = refused(node.folder.path()).await;
    says(&error, &path, "restore it from a backup");
    assert_eq!(std::fs::read(&path).unwrap(), [0; 64]);
}

#[tokio::test]
async fn metadata_of_a_newer_version_is_left_alone() {
    let mut node = Node::start().await;
    node.drain().await;
    let path = node.folder.path().join("metadata").join("meta");
    let before = std::fs::read(&path).unwrap();
    for copy in 0..before.len() / 4_096 {
        let from = copy * 4_096;
        let version = (from + 12, &7u16.to_le_bytes()[..]);
        rewrite(&path, version, from + 8, (from + 12, from + 4_096));
    }
    let error = refused(node.folder.path()).await;
    says(&error, &path, "use a newer build");
    assert!(error.to_string().contains('7'), "{error}");
    std::fs::write(&path, before).unwrap();
    node.restart().await;
}

#[tokio::test]
async fn a_partition_of_a_newer_version_is_not_served_and_the_others_are() {
    let mut node = Node::start().await;
    let client = node.client().await;
    client.create_topic("orders", TopicConfig::default()).await.unwrap();
    let publisher = client.publisher("orders").build().await.unwrap();
    publisher.publish("of the future").await.unwrap();
    node.drain().await;
    let segments = node.partition_files(|name| name.ends_with(".seg"));
    assert_eq!(segments.len(), 1);
    let before = std::fs::read(&segments[0]).unwrap();
    // Both copies of the header ask for a reader of version 9.
    for from in [0, 512] {
        rewrite(&segments[0], (from + 14, &9u16.to_le_bytes()), from + 8, (from + 12, from + 512));
    }

    node.restart().await;
    let mut peer = Peer::connect(&node).await;
    let refusal = peer.open_publisher(1, "orders", None).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::StorageFenced.number());
    assert!(refusal.text.contains("use a newer build"), "{}", refusal.text);
    let hasty = Client::builder()
        .endpoints([format!("weir://{}", node.addresses.native)])
        .request_timeout(Duration::from_millis(300));
    let error = hasty.connect().await.unwrap().publisher("orders").build().await.err().unwrap();
    assert!(error.to_string().contains("STORAGE_FENCED"), "the client says why: {error}");
    let client = node.client().await;
    let ready = node.ask("/readyz?verbose").await;
    assert!(ready.contains(&segments[0].display().to_string()), "{ready}");
    assert!(ready.contains("use a newer build"), "{ready}");
    let metrics = node.metrics().await;
    assert_eq!(metrics.value("weir_partitions{state=\"failed\"}"), 1.0);
    client.create_topic("others", TopicConfig::default()).await.unwrap();
    let others = client.publisher("others").build().await.unwrap();
    others.publish("are served").await.unwrap();

    node.drain().await;
    std::fs::write(&segments[0], before).unwrap();
    node.restart().await;
    let client = node.client().await;
    let mut reader = client.reader("orders").subscribe().await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap().payload()[..], b"of the future"[..]);
}
