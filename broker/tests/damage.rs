//! Bytes on the disk are not what was written: what can be read is served, what cannot is refused
//! by its range, and nothing is built on what may be missing.

#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

mod common;

use common::peer::Peer;
use common::{Node, until};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_client::ErrorCode;
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::frame::{Frame, Refusal, Start};
use weir_protocol::types::Offset;
use weir_storage::inspect::{self, Dumped};
use weir_storage::{Backend, DamagedRange, Device, Log, LogOptions, OsDisk, ThreadExecutor};

const TOPIC: &str = "orders";
/// With this many bytes each, the first segment holds some thirty messages.
const PAYLOAD_BYTES: usize = 30_000;

fn payload(number: u64) -> Vec<u8> {
    vec![number as u8; PAYLOAD_BYTES]
}

/// Publishes these numbers, one batch each, as the durable producer `till`.
async fn publish(node: &Node, numbers: Range<u64>) -> Result<(), Refusal> {
    let mut peer = Peer::connect(node).await;
    let mut producing = peer.open_publisher(1, TOPIC, Some("till")).await?;
    for number in numbers {
        let publish = producing.batch(&[&payload(number)]);
        let stored =
            peer.publish(&mut producing, publish).await.map_err(|refused| refused.refusal)?;
        assert_eq!((stored.base_offset.0, stored.duplicate), (number, false));
        producing.next_sequence += 1;
    }
    Ok(())
}

/// A broker with `count` messages, one batch each.
async fn filled(count: u64) -> Node {
    let node = Node::start().await;
    Peer::connect(&node)
        .await
        .create_topic(TOPIC, weir_client::TopicConfig::default())
        .await
        .unwrap();
    publish(&node, 0..count).await.unwrap();
    node
}

/// Reads from `start` up to `end`, and checks every message: which offsets there are, and why the
/// reading ended earlier.
async fn read(node: &Node, start: u64, end: u64) -> (Vec<u64>, Option<Refusal>) {
    let mut peer = Peer::connect(node).await;
    peer.subscribe(1, TOPIC, None, Start::Offset(Offset(start))).await.unwrap();
    take(&mut peer, end).await
}

async fn take(peer: &mut Peer, end: u64) -> (Vec<u64>, Option<Refusal>) {
    let mut offsets = Vec::new();
    while offsets.last().is_none_or(|last| last + 1 < end) {
        match peer.next().await {
            Frame::Deliver(deliver) => {
                let mut bytes = &deliver.batches.concat()[..];
                while let Some(head) = bytes.first_chunk() {
                    let header = BatchHeader::decode(head, deliver.salt).unwrap();
                    let body = &bytes[128..header.wire_len()];
                    header.check_body(body).unwrap();
                    let content = payload(header.base_offset.0);
                    assert!(body.windows(PAYLOAD_BYTES).any(|window| window == content));
                    offsets.push(header.base_offset.0);
                    bytes = &bytes[header.stored_len()..];
                }
            }
            Frame::StreamClosed(closed) => return (offsets, closed.refusal),
            _ => {}
        }
    }
    (offsets, None)
}

/// Everything but the offsets of the range is read, and the range is refused by its offsets.
async fn serves_all_but(node: &Node, lost: Range<u64>, end: u64) {
    let (before, refusal) = read(node, 0, end).await;
    assert!(before.iter().copied().eq(0..lost.start), "{before:?} {refusal:?}");
    let refusal = refusal.expect("the range is refused");
    is_damaged(&refusal);
    let last = lost.end - 1;
    let wanted = [
        format!("topic {TOPIC}, partition 0: offsets {} to {last} ", lost.start),
        format!("subscribe from offset {}", lost.end),
    ];
    assert!(wanted.iter().all(|named| refusal.text.contains(named)), "{}", refusal.text);
    assert_eq!(refusal.limit, lost.end, "where a client may go on");
    let (behind, refusal) = read(node, lost.end, end).await;
    assert!(behind.into_iter().eq(lost.end..end) && refusal.is_none(), "{refusal:?}");
}

fn is_damaged(refusal: &Refusal) {
    assert_eq!(ErrorCode::from_u16(refusal.code), Some(ErrorCode::DamagedRange), "{refusal:?}");
}

/// The files of the one log.
fn files(node: &Node, extension: &str) -> Vec<PathBuf> {
    let mut files = node.partition_files(|name| name.ends_with(extension));
    files.sort();
    files
}

fn log_dir(node: &Node) -> PathBuf {
    files(node, ".seg")[0].parent().unwrap().to_owned()
}

/// File and position of the header of the batch that holds `offset`.
fn place_of(node: &Node, offset: u64) -> (PathBuf, u64) {
    let (disk, dir) = (OsDisk::new(Backend::Pwrite), log_dir(node));
    let uuid = inspect::uuid_of(&disk, &dir).unwrap().unwrap();
    let report = inspect::verify(&disk, &dir, uuid).unwrap();
    let mut found = None;
    for segment in &report.segments {
        let see = |dumped| {
            if let Dumped::Batch { position, header, .. } = dumped
                && header.batch_type == BatchType::Data
                && header.base_offset == Offset(offset)
            {
                found = Some((segment.path.clone(), position));
            }
            true
        };
        inspect::dump(&disk, segment, see).unwrap();
    }
    found.unwrap()
}

fn flip(path: &Path, position: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[position as usize] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// What the offline tool does when somebody decides to go on without what is lost.
fn accept_loss(node: &Node) -> Vec<DamagedRange> {
    let disk = Arc::new(OsDisk::new(Backend::Pwrite));
    let dir = log_dir(node);
    let uuid = inspect::uuid_of(&*disk, &dir).unwrap().unwrap();
    let executor = Arc::new(ThreadExecutor::start().unwrap());
    let device = Device::open(disk, executor, node.folder.path(), 1).unwrap();
    let options = LogOptions { uuid, accept_loss: true, ..LogOptions::default() };
    let (_log, recovered) = Log::open(device, &dir, options).unwrap();
    recovered.damaged
}

async fn topic(node: &Node) -> String {
    node.ask(&format!("/v1/topics/{TOPIC}")).await
}

/// A checkpoint behind the damage knows what lay in it: only reading it is refused.
#[tokio::test]
async fn damage_below_the_checkpoint_is_refused_and_everything_else_goes_on() {
    // A bit of a body, and one of a header.
    for within in [5_000, 20] {
        let mut node = filled(40).await;
        node.drain().await;
        let (path, position) = place_of(&node, 7);
        flip(&path, position + within);
        node.restart().await;
        // Its index is believed at a start: the scrubber comes upon it before any reader.
        let series = "weir_damaged_ranges{topic=\"orders\",partition=\"0\"}";
        until("it is found", async || node.metrics().await.value(series) == 1.0).await;
        let passes = "weir_scrub_passes_total";
        until("a pass is complete", async || node.metrics().await.value(passes) == 1.0).await;
        assert!(node.metrics().await.value("weir_scrub_bytes_total") > 900_000.0);
        assert!(node.metrics().await.value("weir_scrub_last_pass_timestamp_seconds") > 1e9);
        serves_all_but(&node, 7..8, 40).await;
        assert!(topic(&node).await.contains(r#""read_only":false"#));
        publish(&node, 40..45).await.unwrap();
        let mut peer = Peer::connect(&node).await;
        let start = Start::Offset(Offset(20));
        peer.subscribe(1, TOPIC, Some("audit"), start).await.unwrap();
        assert!(take(&mut peer, 45).await.0.into_iter().eq(20..45));
        node.drain().await;
        node.restart().await;
        serves_all_but(&node, 7..8, 45).await;
    }
}

/// Above it nobody knows what lay in it.
#[tokio::test]
async fn damage_above_the_checkpoint_makes_the_partition_read_only_until_it_is_accepted() {
    let mut node = filled(40).await;
    until("a checkpoint is taken behind the seal", async || !files(&node, ".ckpt").is_empty())
        .await;
    publish(&node, 40..50).await.unwrap();
    node.kill();
    let checkpoints = files(&node, ".ckpt");
    let (path, position) = place_of(&node, 45);
    flip(&path, position + 5_000);
    node.restart().await;

    serves_all_but(&node, 45..46, 50).await;
    let refusal = publish(&node, 50..51).await.unwrap_err();
    is_damaged(&refusal);
    let wanted = ["offsets 45 to 45 ", "read-only", "weir data recover --accept-loss"];
    assert!(wanted.iter().all(|named| refusal.text.contains(named)), "{}", refusal.text);
    let mut peer = Peer::connect(&node).await;
    is_damaged(&peer.subscribe(1, TOPIC, Some("new"), Start::Earliest).await.unwrap_err());
    let shown = topic(&node).await;
    let range = r#""first_offset":45,"last_offset":45"#;
    assert!(shown.contains(r#""read_only":true"#) && shown.contains(range), "{shown}");
    assert!(node.ask("/readyz?verbose").await.contains("[!] orders 0: read-only"));
    node.drain().await;
    assert_eq!(files(&node, ".ckpt"), checkpoints, "what may be missing never becomes durable");

    let accepted = accept_loss(&node);
    assert!(accepted.iter().all(|range| range.accepted));
    assert_eq!(accepted[0].first_offset..accepted[0].end_offset, Offset(45)..Offset(46));
    node.restart().await;
    let (offsets, refusal) = read(&node, 0, 50).await;
    assert!(offsets.into_iter().eq((0..45).chain(46..50)) && refusal.is_none(), "{refusal:?}");
    publish(&node, 50..55).await.unwrap();
    let mut peer = Peer::connect(&node).await;
    peer.subscribe(1, TOPIC, Some("new"), Start::Offset(Offset(45))).await.unwrap();
    assert!(take(&mut peer, 55).await.0.into_iter().eq(46..55));
    assert_eq!(node.metrics().await.value("weir_damaged_ranges"), 0.0);
    let shown = topic(&node).await;
    assert!(shown.contains(r#""accepted":true"#) && shown.contains(r#""read_only":false"#));
}

#[tokio::test]
async fn a_segment_that_is_gone_is_a_range_like_any_other() {
    // 1 MiB, 4 MiB, and what follows.
    const COUNT: u64 = 200;
    for known in [true, false] {
        let mut node = filled(COUNT).await;
        node.drain().await;
        let segments = files(&node, ".seg");
        assert!(segments.len() >= 3, "{segments:?}");
        std::fs::remove_file(&segments[1]).unwrap();
        if !known {
            files(&node, ".ckpt").iter().for_each(|path| std::fs::remove_file(path).unwrap());
        }
        node.restart().await;
        let (before, refusal) = read(&node, 0, COUNT).await;
        let lost = before.len() as u64..refusal.unwrap().limit;
        assert!(lost.end > lost.start + 50, "most of it: {lost:?}");
        serves_all_but(&node, lost.clone(), COUNT).await;
        let published = publish(&node, COUNT..COUNT + 5).await;
        if known {
            published.unwrap();
            continue;
        }
        is_damaged(&published.unwrap_err());
        node.drain().await;
        accept_loss(&node);
        node.restart().await;
        publish(&node, COUNT..COUNT + 5).await.unwrap();
        let (offsets, refusal) = read(&node, 0, COUNT + 5).await;
        assert!(offsets.into_iter().eq((0..lost.start).chain(lost.end..COUNT + 5)));
        assert_eq!(refusal, None);
    }
}

/// The first batch of a log says who is in its group; a group of one goes on without.
#[tokio::test]
async fn a_log_that_lost_its_beginning_is_led_and_read() {
    // Whether the index beside the segment knows the beginning makes no difference.
    for unknown in [".ckpt", ".idx"] {
        let mut node = filled(40).await;
        node.drain().await;
        for extension in [".ckpt", unknown] {
            files(&node, extension).iter().for_each(|path| drop(std::fs::remove_file(path)));
        }
        lost_its_beginning(node).await;
    }
}

async fn lost_its_beginning(mut node: Node) {
    let (path, position) = place_of(&node, 0);
    (4_096..position + 5_000).step_by(64).for_each(|position| flip(&path, position));
    node.restart().await;
    let (offsets, refusal) = read(&node, 1, 40).await;
    assert!(offsets.into_iter().eq(1..40) && refusal.is_none(), "{refusal:?}");
    is_damaged(&publish(&node, 40..41).await.unwrap_err());
    node.drain().await;
    accept_loss(&node);
    node.restart().await;
    assert!(read(&node, 0, 40).await.0.into_iter().eq(1..40));
    publish(&node, 40..41).await.unwrap();
}

/// Without evidence behind it, damage in what was appended last would look like a torn tail.
#[tokio::test]
async fn damage_in_the_last_batch_of_an_idle_log_is_never_cut() {
    for in_order in [true, false] {
        let mut node = filled(10).await;
        let (path, position) = place_of(&node, 9);
        if in_order {
            node.drain().await;
        } else {
            let end = position + PAYLOAD_BYTES as u64;
            let marked = || watermark(&node).is_some_and(|(_, position)| position > end);
            until("the log is idle", async || marked()).await;
            node.kill();
        }
        flip(&path, position + 5_000);
        files(&node, ".ckpt").iter().for_each(|path| std::fs::remove_file(path).unwrap());
        node.restart().await;
        let mut peer = Peer::connect(&node).await;
        assert_eq!(peer.high_watermark(TOPIC).await, 10, "nothing was cut");
        let (before, refusal) = read(&node, 0, 10).await;
        assert!(before.iter().copied().eq(0..9), "{before:?} {refusal:?}");
        is_damaged(&refusal.unwrap());
        is_damaged(&publish(&node, 10..11).await.unwrap_err());
    }
}

fn watermark(node: &Node) -> Option<(u64, u64)> {
    let disk = OsDisk::new(Backend::Pwrite);
    inspect::meta(&disk, &log_dir(node)).unwrap().unwrap().watermark
}

#[tokio::test]
async fn a_log_that_becomes_idle_leaves_a_watermark() {
    let mut node = filled(1).await;
    for number in 1..4 {
        let before = watermark(&node);
        publish(&node, number..number + 1).await.unwrap();
        until("a watermark is left", async || watermark(&node) > before).await;
    }
    let before = watermark(&node);
    node.drain().await;
    assert_eq!(watermark(&node), before, "nothing was appended since");
}
