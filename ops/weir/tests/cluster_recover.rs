//! `weir cluster recover`: a broker whose groups lost their majorities goes on alone.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::WEIR;
use common::stopped::{Said, Stopped, flip, said};
use std::process::Command;
use std::sync::Arc;
use weir_protocol::batch::{ATTR_LAST_OF_INDEX, BatchHeader, BatchType, seal_control};
use weir_protocol::types::{Index, Term};
use weir_storage::{Backend, Device, Log, LogOptions, NewBatch, OsDisk, ThreadExecutor, inspect};

fn recover(stopped: &Stopped, args: &[&str]) -> Said {
    let mut command = Command::new(WEIR);
    command.args(["cluster", "recover", "--data-dir"]).arg(&stopped.dir).args(args);
    said(command)
}

/// The bytes of a membership: three voters, the first of them here.
fn three_voters(replica: u64) -> Vec<u8> {
    let members = [(replica, 1u64), (900, 2), (901, 3)];
    let mut bytes = vec![1, 0, 1, 0, 3, 0, 0, 0, 3, 0, 0, 0];
    members.iter().for_each(|(replica, _)| bytes.extend_from_slice(&replica.to_le_bytes()));
    for (replica, broker) in members {
        bytes.extend_from_slice(&replica.to_le_bytes());
        bytes.extend_from_slice(&broker.to_le_bytes());
    }
    bytes
}

/// Gives a log two more voters, on brokers that nobody will ever see again.
fn grow(device: &Arc<Device>, folder: &std::path::Path, replica: u64) {
    let uuid = inspect::uuid_of(&**device.disk(), folder).unwrap().unwrap();
    let options = LogOptions { uuid, ..LogOptions::default() };
    let (mut log, _) = Log::open(device.clone(), folder, options).unwrap();
    let last = log.reader().bounds().last.unwrap();
    let mut content = three_voters(replica);
    seal_control(&mut content);
    let header = BatchHeader {
        index: Index(last.index.0 + 1),
        term: Term(last.term.0),
        log_time_ms: last.log_time_ms,
        attrs: ATTR_LAST_OF_INDEX,
        control_len: content.len() as u32,
        body_len: content.len() as u32,
        body_crc: 0,
        ..BatchHeader::empty(BatchType::Config)
    };
    log.append(vec![NewBatch { header, body: vec![content.into()] }]).unwrap();
    let (done, flushed) = std::sync::mpsc::sync_channel(1);
    log.flush(Box::new(move |outcome| done.send(outcome).unwrap()));
    flushed.recv().unwrap().unwrap();
}

/// A broker with a topic that lost two others of three.
fn survivor() -> Stopped {
    let stopped = Stopped::new();
    let before = recover(&stopped, &["-o", "json"]).expect(0).json();
    let replica_of = |folder: &str| {
        let logs = before["logs"].as_array().unwrap();
        logs.iter().find(|log| log["folder"] == folder).unwrap()["replica"].as_u64().unwrap()
    };
    let disk = Arc::new(OsDisk::new(Backend::Pwrite));
    let executor = Arc::new(ThreadExecutor::start().unwrap());
    let device = Device::open(disk, executor, &stopped.dir, 1).unwrap();
    grow(&device, &stopped.dir.join("metadata"), replica_of("metadata"));
    grow(&device, &stopped.folder(), replica_of(&stopped.name()));
    stopped
}

fn cluster_of(stopped: &Stopped) -> String {
    recover(stopped, &["-o", "json"]).json()["cluster"].as_str().unwrap().to_owned()
}

#[test]
fn a_broker_that_is_alone_anyway_has_nothing_to_recover() {
    let stopped = Stopped::new();
    let before = stopped.files();
    recover(&stopped, &[]).expect(0).has(&["metadata: replica 1 of 1 voters", "t/0 (p-"]);
    assert!(stopped.files() == before);
}

#[test]
fn a_lost_majority_is_shown_refused_and_with_the_loss_accepted_recovered() {
    let stopped = survivor();
    let before = stopped.files();
    let shown = recover(&stopped, &[]).expect(1);
    let cluster = cluster_of(&stopped);
    shown.has(&["of 3 voters", "900 on broker 2", "nothing was changed", "greatest", &cluster]);
    let other = "0".repeat(32);
    recover(&stopped, &["--accept-loss", "--cluster", &other])
        .expect(2)
        .has(&["nothing was changed"]);
    recover(&stopped, &["--accept-loss"]).expect(2);
    assert!(stopped.files() == before);
    let done = recover(&stopped, &["--accept-loss", "--cluster", &cluster, "-o", "json"]).expect(0);
    let logs = done.json()["logs"].clone();
    assert!(logs.as_array().unwrap().iter().all(|log| log["alone"] == true), "{logs}");
    // Again: nothing is left to be done, and nothing changes.
    let after = stopped.files();
    recover(&stopped, &["--accept-loss", "--cluster", &cluster]).expect(0);
    for (path, bytes) in &after {
        let is_log = path.extension().is_some_and(|end| end == "seg");
        assert!(!is_log || stopped.files()[path] == *bytes, "{}", path.display());
    }
    let read = stopped.read_all();
    assert!((0..5).all(|number| read.contains(&format!("message {number}"))), "{read}");
}

#[test]
fn a_damaged_log_is_recovered_first() {
    let stopped = survivor();
    let (position, _) = stopped.batch_of(2);
    flip(&stopped.segment(), position + 140);
    recover(&stopped, &[]).expect(3).has(&["weir data recover"]);
}
