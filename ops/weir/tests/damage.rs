//! Damage, from its discovery to the decision: what a broker that runs over it says, and what a
//! start does with it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::Broker;
use common::stopped::{Stopped, file_in, flip, said};
use serde_json::Value;
use std::fs;

const READ_ALL: [&str; 5] = ["sub", "t", "--from", "earliest", "--exit-at-end"];

/// What `weir topic info t -o json` says of the one partition.
fn partition_of(broker: &Broker) -> Value {
    let shown: Value =
        serde_json::from_str(&broker.ok(&["topic", "info", "t", "-o", "json"])).unwrap();
    assert_eq!(shown["health_error"], Value::Null, "{shown}");
    shown["partitions"][0].clone()
}

#[test]
fn a_running_broker_says_what_is_lost_and_how_to_go_on() {
    let stopped = Stopped::new();
    let broker = Broker::start(&stopped.dir);
    assert!(!broker.ok(&["topic", "info", "t"]).contains("damaged"));
    let whole = partition_of(&broker);
    assert_eq!((&whole["state"], &whole["read_only"]), (&"leading".into(), &false.into()));
    assert_eq!(whole["damaged"], serde_json::json!([]));
    assert_eq!(broker.terminate(), Some(0));

    stopped.damage(2);
    let broker = Broker::start(&stopped.dir);
    let shown = broker.ok(&["topic", "info", "t"]);
    for word in
        ["0          damaged", "offsets 2 to 2", "--partition 0 --from 3", "Next: ", "runbook"]
    {
        assert!(shown.contains(word), "{word:?} is not in:\n{shown}");
    }
    assert!(!shown.contains("read-only"), "{shown}");
    let range = &partition_of(&broker)["damaged"][0];
    assert_eq!((&range["first_offset"], &range["last_offset"]), (&2.into(), &2.into()));
    let read = said(broker.weir(&READ_ALL)).expect(3);
    assert_eq!(read.out, "message 0\nmessage 1\n", "what lies in front is printed");
    read.has(&["DAMAGED_RANGE", "offsets 2 to 2", "`weir sub t --partition 0 --from 3`"]);
    let behind = ["sub", "t", "--partition", "0", "--from", "3", "--exit-at-end", "--count", "2"];
    assert_eq!(broker.ok(&behind), "message 3\nmessage 4\n");
    let durable = said(broker.weir(&[&READ_ALL[..], &["--subscription", "audit"]].concat()));
    durable.expect(3).has(&["subscription audit stays in front of it"]);
    broker.ok(&["pub", "t", "-m", "it goes on"]);
    assert_eq!(broker.terminate(), Some(0));

    stopped.data(&["recover", "--accept-loss", "--yes"]).expect(0);
    let broker = Broker::start(&stopped.dir);
    let shown = broker.ok(&["topic", "info", "t"]);
    assert!(
        shown.contains("0          leading") && shown.contains("which was accepted"),
        "{shown}"
    );
    assert!(!shown.contains("Next: "), "{shown}");
}

/// The admin server of another broker says nothing of this one's topics, nor does one that is away.
#[test]
fn whose_health_is_not_known_is_not_called_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let broker = Broker::start(&scratch.path().join("one"));
    let other = Broker::start(&scratch.path().join("other"));
    broker.ok(&["topic", "create", "t"]);
    for (admin, words) in [(other.admin.as_str(), "does not exist"), ("127.0.0.1:1", "--admin")] {
        let shown = broker.ok(&["topic", "info", "t", "--admin", admin]);
        assert!(shown.contains("0          unknown") && shown.contains(words), "{shown}");
    }
    other.ok(&["topic", "create", "first"]);
    other.ok(&["topic", "create", "t"]);
    let shown = broker.ok(&["topic", "info", "t", "--admin", &other.admin, "-o", "json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert!(shown["health_error"].as_str().unwrap().contains("another broker"), "{shown}");
    assert_eq!(shown["partitions"][0]["damaged"], Value::Null);
}

/// A broker that was killed left no checkpoint behind: its start has to read everything.
#[test]
fn what_a_start_has_to_read_is_told_apart() {
    let stopped = Stopped::empty();
    let broker = Broker::start(&stopped.dir);
    broker.ok(&["topic", "create", "t"]);
    for number in 0..4 {
        broker.ok(&["pub", "t", "-m", &format!("message {number}")]);
    }
    broker.ok(&["topic", "set", "t", "--max-age", "1h"]);
    broker.kill();
    stopped.damage(1);
    let words = ["offsets 1 to 1", "no checkpoint covers it", "read-only"];
    stopped.data(&["verify"]).expect(3).has(&words);
    let broker = Broker::start(&stopped.dir);
    assert_eq!(partition_of(&broker)["read_only"], true);
    let shown = broker.ok(&["topic", "info", "t"]);
    assert!(shown.contains("0          read-only") && shown.contains("are refused"), "{shown}");
    let refused = broker.fails(1, &["pub", "t", "-m", "no"]);
    for word in ["DAMAGED_RANGE", "topic t, partition 0", "read-only", "offsets 1 to 1", "runbook"]
    {
        assert!(refused.contains(word), "{word:?} is not in: {refused}");
    }
    broker.kill();
    stopped.data(&["recover", "--accept-loss", "--yes"]).expect(0);
    assert_eq!(stopped.read_all(), "message 0\nmessage 2\nmessage 3\n");

    // What made a topic is never passed over: the numbers of all later ones would change.
    let (metadata, commands) = stopped.metadata_commands();
    flip(&metadata, commands[1] + 140);
    let words = ["the broker does not start", "cannot be accepted", "damaged-metadata.md"];
    stopped.data(&["verify"]).expect(3).has(&words);
    let words = ["cannot be read to its end", "are damaged: segment 1", "damaged-metadata.md"];
    stopped.does_not_start().has(&words);
    let before = stopped.files();
    let words = ["left alone", "cannot be accepted", "still damaged"];
    stopped.data(&["recover", "--accept-loss", "--yes"]).expect(3).has(&words);
    assert!(stopped.files() == before, "nothing was changed");
    // The bytes of an older copy stand in the same place.
    flip(&metadata, commands[1] + 140);
    stopped.data(&["verify"]).expect(0);
    assert_eq!(stopped.read_all(), "message 0\nmessage 2\nmessage 3\n");
}

/// A broker that was stopped in order has checkpointed its metadata.
#[test]
fn metadata_that_rots_below_its_checkpoint_keeps_nobody_from_starting() {
    let stopped = Stopped::new();
    let (metadata, commands) = stopped.metadata_commands();
    assert!(commands.len() >= 2, "the cluster was formed and a topic made");
    commands.iter().for_each(|position| flip(&metadata, position + 140));
    stopped.data(&["verify"]).expect(3).has(&["1 of 2 logs are damaged", "t/0 (p-"]);
    assert_eq!(stopped.read_all().lines().count(), 6);
    let broker = Broker::start(&stopped.dir);
    broker.ok(&["topic", "create", "later"]);
    broker.ok(&["pub", "t", "-m", "it goes on"]);
    broker.kill();
    stopped.data(&["recover", "--accept-loss", "--yes"]).expect(0).has(&["indexes", "accepted"]);
    let broker = Broker::start(&stopped.dir);
    let topics = broker.ok(&["topic", "ls"]);
    assert!(topics.contains("later") && topics.contains('t'), "{topics}");
    broker.kill();
    assert_eq!(stopped.read_all().lines().count(), 7);

    // The loss was accepted because a checkpoint knew what was lost: without it nothing is.
    for path in stopped.files().into_keys().filter(|path| path.parent() == metadata.parent()) {
        if path.extension().is_some_and(|extension| extension == "ckpt") {
            fs::remove_file(path).unwrap();
        }
    }
    let words =
        ["cannot be read to its end", "is committed but not in the log", "damaged-metadata.md"];
    stopped.does_not_start().has(&words);
}

/// What was checkpointed behind the end that is left belongs to another life of the log: once the
/// log is as long again, nothing may begin with it.
#[test]
fn a_lost_end_takes_the_checkpoints_behind_it_along() {
    let stopped = Stopped::new();
    let metadata = stopped.dir.join("metadata");
    for folder in [stopped.folder(), metadata] {
        fs::remove_file(file_in(&folder, "seg")).unwrap();
    }
    let words = [
        "everything from offset 0 (index 1) on",
        "topics that were made there are forgotten",
        "named producers",
    ];
    stopped.data(&["recover", "--accept-loss", "--yes"]).expect(0).has(&words);
    let broker = Broker::start(&stopped.dir);
    for number in 0..6 {
        broker.ok(&["topic", "create", &format!("again{number}")]);
    }
    let names = |broker: &Broker| {
        let topics: Value =
            serde_json::from_str(&broker.ok(&["topic", "ls", "-o", "json"])).unwrap();
        topics.as_array().unwrap().iter().map(|topic| topic["name"].clone()).collect::<Vec<_>>()
    };
    let topics = names(&broker);
    broker.kill();
    let broker = Broker::start(&stopped.dir);
    assert_eq!(names(&broker), topics);

    let stopped = Stopped::new();
    fs::remove_file(stopped.segment()).unwrap();
    stopped.data(&["recover", "--accept-loss", "--yes"]).expect(0);
    let broker = Broker::start(&stopped.dir);
    let mut stored = String::new();
    for number in 0..20 {
        broker.ok(&["pub", "t", "-m", &format!("again {number}")]);
        stored += &format!("again {number}\n");
    }
    broker.kill();
    assert_eq!(stopped.read_all(), stored);
}
