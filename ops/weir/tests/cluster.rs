//! `weir cluster` over a broker that is alone: what is shown, and what is refused with which words.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::Broker;
use common::stopped::said;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;

fn json_of(broker: &Broker, args: &[&str]) -> Value {
    serde_json::from_str(&broker.ok(args)).unwrap()
}

/// What the admin server answers to a request with a body.
fn send(broker: &Broker, request: &str, content_type: &str, body: &str) -> (String, Value) {
    let mut stream = TcpStream::connect(&broker.admin).unwrap();
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\nContent-Type: {content_type}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().to_owned();
    (status, serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn a_broker_that_is_alone_shows_itself_and_has_nothing_to_steer() {
    let scratch = tempfile::tempdir().unwrap();
    let broker = Broker::start(&scratch.path().join("data"));
    broker.ok(&["topic", "create", "t", "--partitions", "2"]);
    let shown = json_of(&broker, &["cluster", "status", "-o", "json"]);
    let [me] = &shown["brokers"].as_array().unwrap()[..] else { panic!("{shown}") };
    assert_eq!(me["id"], 1, "{shown}");
    assert!(me["state"] == "well" || me["state"] == "full", "{shown}");
    assert_eq!((&me["replicas"], &shown["gate"]), (&2.into(), &0.into()), "{shown}");
    let name = me["name"].as_str().unwrap();
    assert_eq!(shown["metadata"]["leader"], name);
    let table = broker.ok(&["cluster", "status"]);
    assert!(table.contains(&format!("led by {name}; voters: {name}")), "{table}");

    for order in [
        &["cluster", "drain", name][..],
        &["cluster", "drain", name, "--wait"],
        &["cluster", "add", "1"],
        &["cluster", "remove", name],
        &["cluster", "move", "t", "0", "--from", name, "--to", "n2"],
        &["cluster", "balance"],
    ] {
        let words = ["weir: this broker is alone", "cluster.seeds"];
        said(broker.weir(order)).expect(1).has(&words);
    }
    said(broker.weir(&["cluster", "status", "--admin", "127.0.0.1:1"])).expect(1).has(&["--admin"]);
    assert_eq!(broker.terminate(), Some(0));
}

#[test]
fn what_changes_something_takes_json_and_says_what_was_wrong_with_it() {
    let scratch = tempfile::tempdir().unwrap();
    let broker = Broker::start(&scratch.path().join("data"));
    let json = "application/json";
    let drain = "POST /v1/cluster/brokers/1/drain";
    // What a page of a browser may send elsewhere without being asked.
    let (status, problem) = send(&broker, drain, "text/plain", "{}");
    assert_eq!(status, "415", "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("application/json"), "{problem}");
    let (status, problem) = send(&broker, drain, json, "{}");
    assert_eq!((status.as_str(), &problem["title"]), ("409", &"BAD_REQUEST".into()), "{problem}");
    let (status, problem) = send(&broker, "POST /v1/cluster/move", json, "{\"topic\": \"t\"}");
    assert_eq!(status, "422", "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("partition"), "{problem}");
    let order = json!({ "dry_run": true, "fast": true }).to_string();
    let (status, problem) = send(&broker, "POST /v1/cluster/balance", json, &order);
    assert!(status == "422" && problem["detail"].as_str().unwrap().contains("fast"), "{problem}");
    let long = format!("{{\"topic\": \"{}\"}}", "t".repeat(20 << 10));
    let (status, problem) = send(&broker, "POST /v1/cluster/move", json, &long);
    assert_eq!(status, "413", "{problem}");
    let wrong = broker.get("/v1/cluster/move");
    assert!(wrong.starts_with("HTTP/1.1 405") && wrong.contains("POST"), "{wrong}");
}

#[test]
fn a_topic_names_who_leads_and_who_holds_it() {
    let scratch = tempfile::tempdir().unwrap();
    let broker = Broker::start(&scratch.path().join("data"));
    broker.ok(&["topic", "create", "t", "--replicas", "1"]);
    let status = json_of(&broker, &["cluster", "status", "-o", "json"]);
    let name = &status["brokers"][0]["name"];
    let check = |info: &Value| {
        let partition = &info["partitions"][0];
        assert_eq!((&partition["leader"], &partition["preferred"]), (name, name), "{info}");
        assert!(partition["term"].as_u64().unwrap() > 0, "{info}");
        let [replica] = &partition["replicas"].as_array().unwrap()[..] else { panic!("{info}") };
        assert_eq!((&replica["broker"], &replica["leads"]), (name, &true.into()), "{info}");
        replica["stage"].clone()
    };
    let info = json_of(&broker, &["topic", "info", "t", "-o", "json"]);
    assert_eq!(check(&info), "voter");
    let page = broker.get("/v1/topics/t");
    assert_eq!(
        check(&serde_json::from_str(page.split_once("\r\n\r\n").unwrap().1).unwrap()),
        "voter"
    );
    // The names are the cluster's: no admin server is needed for them.
    let unknown = ["topic", "info", "t", "-o", "json", "--admin", "127.0.0.1:1"];
    assert_eq!(check(&json_of(&broker, &unknown)), Value::Null);
    let table = broker.ok(&["topic", "info", "t"]);
    assert!(table.contains("LEADER") && table.contains("REPLICAS"), "{table}");
    let scraped = broker.get("/metrics");
    for metric in ["weir_broker_leaders 1", "weir_metadata_leader 1", "weir_moves 0"] {
        assert!(scraped.contains(metric), "{metric} is not in:\n{scraped}");
    }
    assert!(!scraped.contains("weir_replica_lag_bytes{"), "there are no others to be behind");
}
