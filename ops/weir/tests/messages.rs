//! Topics, publishing and reading from the command line.

mod common;

use common::{Broker, run_with_input};
use std::fmt::Write;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

const READ_ALL: [&str; 3] = ["--from", "earliest", "--exit-at-end"];

fn read(broker: &Broker, topic: &str, more: &[&str]) -> String {
    broker.ok(&[&["sub", topic], &READ_ALL[..], more].concat())
}

fn numbered_lines(count: u32) -> String {
    let mut text = String::new();
    for number in 0..count {
        let width = number as usize * 7 % 90;
        let _ = writeln!(text, "{number} {:width$}", "");
    }
    text
}

#[test]
fn topics_are_made_shown_changed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    broker.ok(&["topic", "create", "orders", "--partitions", "2", "--max-bytes", "64MiB"]);
    assert!(broker.fails(1, &["topic", "create", "orders"]).contains("TOPIC_EXISTS"));
    assert!(broker.fails(2, &["topic", "create", "no/slash"]).contains("A-Z"));
    assert!(broker.fails(2, &["topic", "create", "x", "--max-bytes", "64"]).contains("unit"));
    let listed: serde_json::Value =
        serde_json::from_str(&broker.ok(&["topic", "ls", "-o", "json"])).unwrap();
    assert!(listed.to_string().contains("\"orders\""), "{listed}");
    broker.ok(&["topic", "set", "orders", "--partitions", "3", "--max-age", "1h"]);
    let shown = broker.ok(&["topic", "info", "orders", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["partitions"].as_array().map(Vec::len), Some(3), "{shown}");
    broker.fails(1, &["topic", "set", "orders", "--partitions", "1"]);
    assert!(broker.fails(1, &["topic", "rm", "orders"]).contains("--yes"));
    broker.ok(&["topic", "rm", "orders", "--yes"]);
    assert!(broker.fails(1, &["topic", "info", "orders"]).contains("UNKNOWN_TOPIC"));
    assert!(broker.fails(1, &["pub", "orders", "-m", "x"]).contains("UNKNOWN_TOPIC"));
    // An endpoint may stand behind the command as well.
    let endpoint = format!("weir://{}", broker.native);
    broker.ok(&["topic", "create", "again", "--endpoint", &endpoint]);
}

#[test]
fn lines_lengths_and_files_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&dir.path().join("data"));
    let text = numbered_lines(2_000) + "\n\nlast line without an end";
    let file = dir.path().join("text");
    fs::write(&file, &text).unwrap();
    broker.ok(&["topic", "create", "lines"]);
    broker.ok(&["pub", "lines", file.to_str().unwrap()]);
    assert_eq!(read(&broker, "lines", &[]), text.clone() + "\n");

    broker.ok(&["topic", "create", "whole"]);
    broker.ok(&["pub", "whole", "--frame", "file", file.to_str().unwrap()]);
    assert_eq!(read(&broker, "whole", &["-f", "%s"]), text);

    broker.ok(&["topic", "create", "sized"]);
    let sized = [&3u32.to_le_bytes()[..], b"a\nb", &0u32.to_le_bytes()].concat();
    broker.ok_with_input(&["pub", "sized", "--frame", "len"], &sized);
    assert_eq!(read(&broker, "sized", &["-f", "[%s]"]), "[a\nb][]");
    let cut = [&9u32.to_le_bytes()[..], b"short"].concat();
    let output = run_with_input(broker.weir(&["pub", "sized", "--frame", "len"]), &cut);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn formats_starts_counts_and_subscriptions() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    broker.ok(&["topic", "create", "t"]);
    broker.ok(&["pub", "t", "-m", "one", "-k", "key", "-H", "a=1", "-H", "b=2"]);
    broker.ok_with_input(&["pub", "t"], b"two\nthree\n");
    let format = "%t/%p/%o %s %S %k %K %h %%\\n";
    let printed = read(&broker, "t", &["-f", format]);
    assert_eq!(printed, "t/0/0 one 3 key 3 a=1,b=2 %\nt/0/1 two 3  -1  %\nt/0/2 three 5  -1  %\n");
    assert_eq!(broker.ok(&["sub", "t", "--from", "1", "--count", "1"]), "two\n");
    assert_eq!(broker.ok(&["sub", "t", "--from", "-1h", "--exit-at-end"]), "one\ntwo\nthree\n");
    let json = read(&broker, "t", &["-o", "json"]);
    let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!(first["offset"], 0, "{first}");
    let durable = ["sub", "t", "--subscription", "s", "--from", "earliest"];
    assert_eq!(broker.ok(&[&durable[..], &["--count", "2"]].concat()), "one\ntwo\n");
    assert_eq!(broker.ok(&[&durable[..], &["--exit-at-end"]].concat()), "three\n");
    assert_eq!(broker.ok(&[&durable[..], &["--exit-at-end"]].concat()), "");
    broker.ok(&["check", "e2e", "t"]);
    broker.fails(2, &["sub", "t", "--from", "yesterday"]);
    broker.fails(2, &["sub", "t", "-f", "%q"]);
}

#[test]
fn a_producer_resumes_behind_what_it_stored() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&dir.path().join("data"));
    broker.ok(&["topic", "create", "t"]);
    let (part, whole) = (dir.path().join("part"), dir.path().join("whole"));
    fs::write(&part, "a\nb\n").unwrap();
    fs::write(&whole, "a\nb\nc\n").unwrap();
    let publish = |file: &std::path::Path| {
        broker.ok(&["pub", "t", "--producer", "p", file.to_str().unwrap()]);
    };
    publish(&part);
    publish(&whole);
    publish(&whole);
    assert_eq!(read(&broker, "t", &[]), "a\nb\nc\n");
    let said = broker.fails(1, &["pub", "t", "--producer", "p", part.to_str().unwrap()]);
    assert!(said.contains("1 messages more"), "{said}");
}

#[test]
fn a_publish_survives_kill_9_of_the_broker_twice() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut broker = Broker::start(&data);
    let native = broker.native.clone();
    broker.ok(&["topic", "create", "t"]);
    let text = numbered_lines(200_000);
    let file = dir.path().join("text");
    fs::write(&file, &text).unwrap();
    let publisher = broker
        .weir(&["pub", "t", "--producer", "p", file.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..2 {
        // Any moment will do: what is checked holds whenever the kill comes.
        std::thread::sleep(Duration::from_millis(150));
        broker.kill();
        broker = Broker::start_at(&data, &native);
    }
    let published = publisher.wait_with_output().unwrap();
    assert!(published.status.success(), "{published:?}");
    assert!(read(&broker, "t", &[]) == text, "every line once, in order, byte for byte");
}

#[test]
fn without_a_broker_the_deadline_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut command = broker.weir(&["topic", "ls"]);
    broker.kill();
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("UNREACHABLE"), "{output:?}");
}
