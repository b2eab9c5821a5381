//! `weir data`: what it says of a directory that is whole, damaged or in use, and what it changes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::stopped::{Stopped, dump, file_in, flip, said};
use common::{Broker, WEIR};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

/// The log of the topic in what `-o json` printed.
fn log_of(printed: &Value) -> &Value {
    let logs = printed["logs"].as_array().unwrap();
    logs.iter().find(|log| log["topic"] == "t").unwrap()
}

#[test]
fn what_is_whole_is_called_whole_and_stays_as_it_is() {
    let stopped = Stopped::new();
    let before = stopped.files();
    let words = ["whole    t/0 (p-", "offsets 0 to 5", "whole    metadata", "whole    node.meta"];
    stopped.data(&["verify"]).expect(0).has(&words);
    let printed = stopped.data(&["verify", "-o", "json"]).expect(0).json();
    assert_eq!(printed["verdict"], "whole");
    let log = log_of(&printed);
    assert_eq!((&log["log_end"], &log["partition"]), (&Value::from(6), &Value::from(0)));
    // Nothing is asked where nothing is damaged.
    stopped.data(&["recover", "--accept-loss"]).expect(0).has(&["t/0", "left alone"]);
    assert!(stopped.files() == before, "nothing was changed");
    stopped.data(&["recover"]).expect(0).has(&["t/0", "opens, offsets 0 to 5"]);
    assert_eq!(stopped.read_all().lines().count(), 6);
}

#[test]
fn a_running_broker_is_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let broker = Broker::start(scratch.path());
    broker.ok(&["topic", "create", "t"]);
    let dir = scratch.path().to_str().unwrap();
    for args in [&["verify"][..], &["recover"], &["recover", "--accept-loss", "--yes"]] {
        let said = broker.fails(1, &[&["data"], args, &["--data-dir", dir]].concat());
        assert!(said.contains("stop it first") && said.contains(dir), "{said}");
    }
    let said = broker.fails(1, &["data", "dump", &format!("{dir}/metadata")]);
    assert!(said.contains("stop it first"), "{said}");
}

#[test]
fn a_directory_that_is_none_is_named_and_not_made_one() {
    let scratch = tempfile::tempdir().unwrap();
    let missing = scratch.path().join("missing");
    for (dir, words) in [(missing.as_path(), "No such file"), (scratch.path(), "no data directory")]
    {
        for verb in ["verify", "recover"] {
            let mut command = Command::new(WEIR);
            command.args(["data", verb, "--data-dir"]).arg(dir);
            said(command).expect(1).has(&[words, dir.to_str().unwrap()]);
        }
    }
    dump(&missing, &[]).expect(1).has(&["No such file"]);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn a_damaged_range_is_named_kept_and_accepted_when_told_to() {
    let stopped = Stopped::new();
    let whole = stopped.read_all();
    stopped.damage(2);
    let before = stopped.files();
    let segment = stopped.segment();
    let words =
        ["damaged  t/0", "offsets 2 to 2", segment.to_str().unwrap(), "readers are refused"];
    stopped.data(&["verify"]).expect(3).has(&words).has(&["1 of 2 logs are damaged"]);
    let printed = stopped.data(&["verify", "-o", "json"]).expect(3).json();
    let range = &log_of(&printed)["damaged"][0];
    assert_eq!((&range["first_offset"], &range["end_offset"]), (&Value::from(2), &Value::from(3)));
    assert_eq!(range["accepted"], false);
    let refused = stopped.data(&["recover", "--accept-loss"]).expect(1);
    refused.has(&["given up for good", "offsets 2 to 2", "no terminal", "--yes"]);
    assert!(stopped.files() == before, "nothing was changed");

    // A start loses nothing either: every byte of the segment stays.
    stopped.data(&["recover"]).expect(3).has(&["offsets 2 to 2", "still damaged"]);
    assert!(fs::read(&segment).unwrap() == before[&segment]);
    let dumped = dump(&stopped.folder(), &[]).expect(0);
    dumped.has(&["message 1", "unreadable up to", "the body CRC does not match", "message 3"]);

    let printed = stopped.data(&["recover", "--accept-loss", "--yes", "-o", "json"]).expect(0);
    assert!(printed.err.contains("offsets 2 to 2"), "{printed:?}");
    let printed = printed.json();
    assert_eq!(log_of(&printed)["damaged"][0]["accepted"], true, "{printed}");
    stopped.data(&["verify"]).expect(0).has(&["the loss is accepted"]);
    dump(&stopped.folder().join("damage"), &[]).expect(0).has(&["offsets 2 to 2", "accepted"]);
    let left: String = whole
        .lines()
        .filter(|line| *line != "message 2")
        .fold(String::new(), |text, line| text + line + "\n");
    assert_eq!(stopped.read_all(), left);
}

/// A start believes the index of a sealed segment and does not read it: what was never read since
/// it rotted is found all the same.
#[test]
fn damage_behind_an_index_is_found_and_accepted_too() {
    let stopped = Stopped::empty();
    let broker = Broker::start(&stopped.dir);
    broker.ok(&["topic", "create", "t", "--max-bytes", "40MiB"]);
    let lines = ("x".repeat(1_000) + "\n").repeat(9_000);
    broker.ok_with_input(&["pub", "t"], lines.as_bytes());
    assert_eq!(broker.terminate(), Some(0));
    let index =
        stopped.files().into_keys().filter(|path| path.extension().is_some_and(|e| e == "idx"));
    let index = index.max().unwrap();
    dump(&index, &[]).expect(0).has(&["log_end", "@4096 index"]);
    flip(&index.with_extension("seg"), 5_000);

    let found = stopped.data(&["verify", "-o", "json"]).expect(3).json();
    let range = &log_of(&found)["damaged"][0];
    let lost = range["end_offset"].as_u64().unwrap() - range["first_offset"].as_u64().unwrap();
    stopped.data(&["recover"]).expect(3).has(&["damaged  t/0", "readers are refused"]);
    stopped.data(&["recover", "--accept-loss", "--yes"]).expect(0).has(&["the loss is accepted"]);
    stopped.data(&["verify"]).expect(0);
    assert_eq!(stopped.read_all().lines().count() as u64, 9_000 - lost);

    flip(&index, 20);
    stopped.data(&["verify"]).expect(0).has(&["does not verify: the next start builds it anew"]);
    dump(&index, &[]).expect(3).has(&["does not verify"]);
    fs::remove_file(index.with_extension("seg")).unwrap();
    stopped.data(&["verify"]).expect(3).has(&["whose file is missing"]);
    dump(&stopped.folder(), &["--headers"]).expect(0).has(&["missing: offsets"]);
}

#[test]
fn a_lost_end_keeps_a_log_closed_until_it_is_accepted() {
    let stopped = Stopped::new();
    // The newest segment is gone, and with it how much it held.
    fs::remove_file(stopped.segment()).unwrap();
    let before = stopped.files();
    stopped.data(&["verify"]).expect(3).has(&["the end is lost", "from offset 0", "does not open"]);
    let printed = stopped.data(&["verify", "-o", "json"]).expect(3).json();
    assert_eq!(log_of(&printed)["lost_tail"]["from_offset"], 0);
    stopped.data(&["recover"]).expect(3).has(&["does not open"]);
    assert!(stopped.files() == before, "nothing was changed");
    dump(&stopped.folder(), &[]).expect(0).has(&["the end is lost"]);
    let name = stopped.name();
    let one = ["recover", "--partition", &name, "--accept-loss", "--yes"];
    let said = stopped.data(&one).expect(0);
    said.has(&["everything from offset 0", "nothing tells how much", "the loss is accepted"]);
    stopped.data(&["verify"]).expect(0);
    assert_eq!(stopped.read_all(), "");
}

#[test]
fn a_torn_tail_is_harmless() {
    let stopped = Stopped::new();
    let printed = stopped.data(&["verify", "-o", "json"]).json();
    let end = log_of(&printed)["segments"][0]["end"].as_u64().unwrap();
    let file = fs::OpenOptions::new().write(true).open(stopped.segment()).unwrap();
    file.write_all_at(&[0xaa; 31], end).unwrap();
    let before = stopped.files();
    let words = ["31 bytes of a torn tail, never acknowledged: the next start cuts them"];
    stopped.data(&["verify"]).expect(0).has(&words);
    dump(&stopped.folder(), &[]).expect(0).has(&words);
    assert!(stopped.files() == before, "nothing was changed");
    stopped.data(&["recover"]).expect(0).has(&["31 bytes of a torn tail were cut"]);
    assert!(!stopped.data(&["verify"]).expect(0).out.contains("torn"));
    assert_eq!(stopped.read_all().lines().count(), 6);
}

#[test]
fn what_lies_beside_the_segments_is_looked_at_too() {
    let stopped = Stopped::new();
    flip(&file_in(&stopped.folder(), "ckpt"), 30);
    stopped.data(&["verify"]).expect(0).has(&["checkpoint", "passed over"]);
    let meta = stopped.folder().join("meta");
    let whole = fs::read(&meta).unwrap();
    (0..4).for_each(|copy| flip(&meta, copy * 4096 + 20));
    stopped.data(&["verify"]).expect(3).has(&["has no valid copy", "backup"]);
    stopped.data(&["recover", "--accept-loss", "--yes"]).expect(3).has(&["cannot be accepted"]);
    dump(&stopped.folder(), &[]).expect(3).has(&["one by one"]);
    dump(&stopped.segment(), &[]).expect(0).has(&["message 0"]);
    fs::write(&meta, whole).unwrap();

    let identity = stopped.dir.join("node.meta");
    flip(&identity, 20);
    stopped.data(&["verify"]).expect(3).has(&["node.meta is damaged", "whole    t/0"]);
    flip(&identity, 20);
    fs::rename(stopped.folder(), stopped.dir.join("elsewhere")).unwrap();
    stopped.data(&["verify"]).expect(3).has(&["t/0 (p-", "the folder is missing"]);
    stopped.data(&["recover"]).expect(3).has(&["the folder is missing"]);
    stopped.data(&["verify", "--nothing"]).expect(2);
    stopped.data(&["recover", "--partition", "p-1"]).expect(2).has(&["holds no log p-1"]);
    stopped.data(&["recover", "--yes"]).expect(2);
}

#[test]
fn a_newer_format_is_named() {
    let stopped = Stopped::new();
    let segment = stopped.segment();
    let file = fs::OpenOptions::new().read(true).write(true).open(&segment).unwrap();
    for position in [0, 2048] {
        let mut header = [0; 512];
        file.read_exact_at(&mut header, position).unwrap();
        header[14] = 99;
        let crc = crc32(&header[12..]).to_le_bytes();
        header[8..12].copy_from_slice(&crc);
        file.write_all_at(&header, position).unwrap();
    }
    let before = stopped.files();
    let words = ["version 99", "use a newer build"];
    stopped.data(&["verify"]).expect(1).has(&words).has(&["unread   t/0"]);
    stopped.data(&["recover"]).expect(1).has(&words);
    stopped.data(&["recover", "--accept-loss", "--yes"]).expect(1).has(&words);
    dump(&segment, &[]).expect(1).has(&words);
    assert!(stopped.files()[&segment] == before[&segment]);
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}

#[test]
fn a_dump_shows_everything_and_loses_no_byte() {
    let stopped = Stopped::new();
    let folder = stopped.folder();
    let text = dump(&folder, &[]).expect(0);
    text.has(&["key \"k\" \"a\"=\"1\" \"message 0\"", r#""no \xff text\x1b""#, "config", "noop"]);
    let lines = dump(&folder, &["-o", "json"]).expect(0).json_lines();
    let data: Vec<&Value> = lines.iter().filter(|line| line["type"] == "data").collect();
    assert_eq!(data.len(), 6);
    let (first, last) = (&data[0]["records"][0], &data[5]["records"][0]);
    assert_eq!((&first["payload"], &first["key"]), (&"message 0".into(), &"k".into()));
    assert_eq!(first["headers"][0], serde_json::json!(["a", "1"]));
    assert_eq!(last["payload"]["hex"], "6e6f20ff20746578741b");
    assert_eq!(last["payload_is_utf8"], false);

    let part = dump(&folder, &["--from", "2", "--to", "4"]).expect(0).out;
    assert!(!part.contains("message 1") && !part.contains("message 4"), "{part}");
    assert!(part.contains("message 2") && part.contains("message 3"), "{part}");
    let headers = dump(&folder, &["--headers"]).expect(0).out;
    assert!(headers.contains("offsets 5 to 5") && !headers.contains("message"), "{headers}");

    let metadata = stopped.dir.join("metadata");
    dump(&metadata, &[]).expect(0).has(&["CreateTopic", "\"t\""]);
    dump(&metadata.join("meta"), &[]).expect(0).has(&["first_index 1", "last_segment 1"]);
    let node = dump(&stopped.dir.join("node.meta"), &["-o", "json"]).expect(0).json();
    assert_eq!(node["broker"], 1);
    let checkpoint = file_in(&folder, "ckpt");
    let checkpoint = dump(&checkpoint, &["-o", "json"]).expect(0).json();
    assert_eq!(checkpoint["kind"], "checkpoint");
    dump(&stopped.dir.join("LOCK"), &[]).expect(2).has(&["none of the files"]);
    dump(&stopped.dir, &[]).expect(2).has(&["name one of its folders"]);
}

#[test]
fn a_dump_stops_quietly_when_nobody_reads_it() {
    let stopped = Stopped::new();
    let broker = Broker::start(&stopped.dir);
    // More than a pipe and the buffer in front of it hold.
    let line = "x".repeat(1_000) + "\n";
    broker.ok_with_input(&["pub", "t"], line.repeat(2_000).as_bytes());
    assert_eq!(broker.terminate(), Some(0));
    let mut dumping = Command::new(WEIR)
        .args(["data", "dump"])
        .arg(stopped.folder())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(dumping.stdout.take());
    let output = dumping.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
}
