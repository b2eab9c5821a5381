//! `weir cluster status`: the brokers, and what is not as it shall be.
//!
//! Owns: the words for people; programs get the broker's own JSON.
//! Never: judges: what counts as silent, lost or under-replicated the broker decides.

use crate::admin::{Ask, ask};
use crate::arguments::{Output, StatusArguments};
use crate::failure::Failure;
use crate::output::{bytes_text, print_json, print_table};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

pub(super) const CLUSTER_PATH: &str = "/v1/cluster";

/// What `/v1/cluster` answers.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    cluster: String,
    gate: u32,
    pub(super) told_by: String,
    metadata: Metadata,
    pub(super) brokers: Vec<Broker>,
    moves: Vec<Moving>,
    leaderless: Listed,
    under_replicated: Listed,
    lost: Listed,
    recoveries: Listed,
    links: Vec<Link>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    leader: Option<String>,
    replicas: Vec<Copied>,
}

#[derive(Debug, Deserialize)]
struct Copied {
    broker: String,
    stage: String,
}

/// One broker.
#[derive(Debug, Deserialize)]
pub(super) struct Broker {
    pub(super) id: u64,
    pub(super) name: String,
    client: Option<String>,
    rack: Option<String>,
    state: String,
    condition: Option<Condition>,
    pub(super) replicas: u64,
    led: u64,
    pub(super) metadata_vote: bool,
}

#[derive(Debug, Deserialize)]
struct Condition {
    heard_ms: u64,
    free_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Moving {
    topic: Option<String>,
    partition: u32,
    from: Option<String>,
    to: Option<String>,
    stage: Option<String>,
}

/// How many there are, and the first of them.
#[derive(Debug, Deserialize)]
struct Listed {
    count: u64,
    first: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    topic: Option<String>,
    partition: Option<u32>,
    broker: Option<String>,
    reason: Option<String>,
    replicas: Option<u64>,
    there: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Link {
    broker: String,
    address: String,
    state: String,
    reason: Option<String>,
}

/// What `/v1/cluster` answers before the broker serves.
#[derive(Debug, Deserialize)]
struct Start {
    state: String,
    concern: Option<String>,
    seeds: Vec<Seed>,
}

#[derive(Debug, Deserialize)]
struct Seed {
    address: String,
    said: String,
}

impl Start {
    fn text(&self) -> String {
        let mut text = match self.state.as_str() {
            "forming" => "the broker does not belong to a cluster yet".to_owned(),
            state => format!("the broker is {state} what it holds"),
        };
        if let Some(concern) = &self.concern {
            text = format!("{text}: {concern}");
        }
        text.push('\n');
        for seed in &self.seeds {
            text.push_str(&format!("  {}  {}\n", seed.address, seed.said));
        }
        text
    }
}

/// How the cluster is, as the broker with this admin address sees it.
pub(super) async fn look(admin: &str) -> Result<Status, Failure> {
    let body = ask(admin, Ask::Get, CLUSTER_PATH).await?;
    read(admin, body)
}

fn read(admin: &str, body: Value) -> Result<Status, Failure> {
    if body.get("seeds").is_some() {
        let start: Start = parse(admin, body)?;
        return Err(Failure::NotDone(format!("{admin}: the broker is {}", start.state)));
    }
    parse(admin, body)
}

fn parse<T: serde::de::DeserializeOwned>(admin: &str, body: Value) -> Result<T, Failure> {
    serde_json::from_value(body).map_err(|error| {
        let text = format!("{admin}{CLUSTER_PATH}: {error}; is this `weir` older than the broker?");
        Failure::NotDone(text)
    })
}

/// What is said of a broker that does not serve yet; none where it does.
fn start_text(admin: &str, body: &Value) -> Result<Option<String>, Failure> {
    if body.get("seeds").is_none() {
        return Ok(None);
    }
    let start: Start = parse(admin, body.clone())?;
    Ok(Some(start.text()))
}

pub(super) async fn run(arguments: StatusArguments) -> Result<(), Failure> {
    let admin = &arguments.admin.admin;
    let body = ask(admin, Ask::Get, CLUSTER_PATH).await?;
    if arguments.output.output == Output::Json {
        print_json(&body)?;
        return Ok(());
    }
    if let Some(text) = start_text(admin, &body)? {
        print!("{text}");
        return Ok(());
    }
    let status = read(admin, body)?;
    println!("cluster   {} (gate {})", status.cluster, status.gate);
    println!("metadata  {}\n", status.metadata.text());
    let headings =
        ["broker", "id", "state", "rack", "client", "replicas", "leads", "heard", "free"];
    print_table(headings, status.brokers.iter().map(Broker::row))?;
    let lines = status.lines();
    if lines.is_empty() {
        println!("\neverything is as it shall be, as far as {} knows", status.told_by);
    }
    lines.iter().for_each(|line| println!("\n{line}"));
    Ok(())
}

impl Metadata {
    fn text(&self) -> String {
        let of = |stage: &str| {
            let named = self.replicas.iter().filter(|copied| copied.stage == stage);
            named.map(|copied| copied.broker.as_str()).collect::<Vec<_>>().join(", ")
        };
        let led = match &self.leader {
            Some(leader) => format!("led by {leader}"),
            None => "no leader is known: nothing can be changed, and nothing moves".to_owned(),
        };
        let learners = of("learner");
        let copies = if learners.is_empty() { learners } else { format!("; copies: {learners}") };
        format!("{led}; voters: {}{copies}", of("voter"))
    }
}

impl Broker {
    fn row(&self) -> [String; 9] {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        let heard = |told: &Condition| {
            // The longer ago it is, the less a part of a second says.
            let step = if told.heard_ms < 10_000 { 100 } else { 1_000 };
            let rounded = Duration::from_millis(told.heard_ms / step * step);
            format!("{} ago", humantime::format_duration(rounded))
        };
        let told = self.condition.as_ref();
        [
            self.name.clone(),
            self.id.to_string(),
            self.state.clone(),
            text(&self.rack),
            text(&self.client),
            self.replicas.to_string(),
            self.led.to_string(),
            told.map_or_else(|| "never".to_owned(), heard),
            told.map_or_else(|| "-".to_owned(), |told| bytes_text(told.free_bytes)),
        ]
    }

    /// What it holds, or none if that is nothing.
    pub(super) fn holds(&self) -> Option<String> {
        let replicas = match self.replicas {
            1 => "1 replica".to_owned(),
            count => format!("{count} replicas"),
        };
        match (self.replicas, self.metadata_vote) {
            (0, false) => None,
            (0, true) => Some("a vote on the metadata".to_owned()),
            (_, false) => Some(replicas),
            (_, true) => Some(format!("{replicas} and a vote on the metadata")),
        }
    }
}

impl Status {
    /// What is not as it shall be, a paragraph for each kind.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut list = |what: &str, listed: &Listed, row: fn(&Row) -> String| {
            if listed.count > 0 {
                lines.push(listed.text(what, row));
            }
        };
        list("without a leader", &self.leaderless, Row::key);
        list("with fewer replicas in reach than it shall have", &self.under_replicated, |row| {
            let count = |count: Option<u64>| count.unwrap_or_default();
            format!("{} ({} of {})", row.key(), count(row.there), count(row.replicas))
        });
        list("with a lost replica", &self.lost, |row| {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            format!("{} on {} ({})", row.key(), text(&row.broker), text(&row.reason))
        });
        list("recovered by hand: records may be missing", &self.recoveries, Row::key);
        if !self.moves.is_empty() {
            let moves = self.moves.iter().map(Moving::text).collect::<Vec<_>>();
            lines.push(format!("{} on the way:\n  {}", self.moves.len(), moves.join("\n  ")));
        }
        let refused = self.links.iter().filter(|link| link.state == "refused");
        lines.extend(refused.map(|link| {
            let reason = link.reason.as_deref().unwrap_or("no reason was told");
            format!("the link to {} ({}) is refused: {reason}", link.broker, link.address)
        }));
        lines
    }
}

impl Listed {
    fn text(&self, what: &str, row: fn(&Row) -> String) -> String {
        let mut rows: Vec<String> = self.first.iter().map(row).collect();
        let more = self.count.saturating_sub(rows.len() as u64);
        if more > 0 {
            rows.push(format!("and {more} more"));
        }
        format!("{} {what}:\n  {}", self.count, rows.join("\n  "))
    }
}

impl Row {
    fn key(&self) -> String {
        match (&self.topic, self.partition) {
            (Some(topic), Some(partition)) => format!("{topic}/{partition}"),
            _ => "the metadata".to_owned(),
        }
    }
}

impl Moving {
    fn text(&self) -> String {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "nobody".to_owned());
        let topic = self.topic.as_deref().unwrap_or("a topic that is gone");
        let stage = self.stage.as_deref().unwrap_or("gone");
        format!(
            "{topic}/{}: from {} to {}, which is {stage}",
            self.partition,
            text(&self.from),
            text(&self.to)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page that the broker's own tests hold.
    fn eventful() -> Status {
        let page = include_str!("../../../../broker/src/admin/cluster/tests/cluster.json");
        read("here", serde_json::from_str(page).unwrap()).unwrap()
    }

    #[test]
    fn every_trouble_is_told_and_named() {
        let status = eventful();
        let text = format!("{}\n{}", status.metadata.text(), status.lines().join("\n"));
        for words in [
            "led by n2; voters: n1, n2, n3; copies: n4",
            "2 without a leader:\n  audit/0\n  orders/1",
            "3 with fewer replicas in reach than it shall have:\n  audit/0 (0 of 1)\n",
            "1 with a lost replica:\n  orders/1 on n1 (its log is damaged)",
            "1 recovered by hand: records may be missing:\n  orders/1",
            "1 on the way:\n  orders/0: from n3 to n4, which is joining",
            "the link to n4 (n4.example:7422) is refused: the secrets differ",
        ] {
            assert!(text.contains(words), "{words:?} is not in:\n{text}");
        }
        let rows: Vec<_> = status.brokers.iter().map(|broker| broker.row().join(" ")).collect();
        assert_eq!(rows[2], "n3 3 silent rack-1 n3.example:7420 3 0 40s ago 64GiB");
    }

    /// The same, of a broker that waits for others.
    const FORMING: &str = include_str!("../../../../broker/src/admin/cluster/tests/forming.json");

    #[test]
    fn a_broker_on_its_way_into_a_cluster_says_for_whom_it_waits() {
        let page: Value = serde_json::from_str(FORMING).unwrap();
        let expected = "\
the broker does not belong to a cluster yet: waiting for c:1
  a:1  this broker
  b:1  empty
  c:1  does not answer
  d:1  the secrets differ, or only one side has one
";
        assert_eq!(start_text("n1:7421", &page).unwrap().unwrap(), expected);
        let mut opens = page.clone();
        opens["state"] = "opening".into();
        opens["concern"] = Value::Null;
        let text = start_text("n1:7421", &opens).unwrap().unwrap();
        assert!(text.starts_with("the broker is opening what it holds\n"), "{text}");
        // Whoever needs more than that is told why there is no more.
        let error = read("n1:7421", page).unwrap_err().to_string();
        assert!(error.contains("n1:7421: the broker is forming"), "{error}");
        let serves = include_str!("../../../../broker/src/admin/cluster/tests/cluster.json");
        let serves: Value = serde_json::from_str(serves).unwrap();
        assert!(start_text("n1:7421", &serves).unwrap().is_none());
    }

    #[test]
    fn what_a_broker_holds_is_said_or_it_is_empty() {
        let holds = |broker: &Broker| broker.holds();
        let all: Vec<_> = eventful().brokers.iter().map(holds).collect();
        assert_eq!(all[0].as_deref(), Some("2 replicas and a vote on the metadata"));
        // A copy without a vote goes with the broker's removal.
        assert_eq!(all[3].as_deref(), Some("1 replica"));
        assert_eq!(all[4], None);
    }

    #[test]
    fn a_long_list_says_how_long_it_is() {
        let mut status = eventful();
        status.leaderless.count = 250;
        assert!(status.lines()[0].ends_with("and 248 more"), "{}", status.lines()[0]);
    }
}
