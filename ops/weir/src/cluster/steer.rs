//! `weir cluster add|drain|remove|move|balance`: wishes, sent to any broker.
//!
//! Owns: what is asked and how the answer reads.
//! Never: takes a change back; waits without being asked to.

use super::status::{Broker, CLUSTER_PATH, look};
use crate::admin::{Ask, ask};
use crate::arguments::{
    BalanceArguments, BrokerArguments, DrainArguments, MoveArguments, Output, StatusArguments,
};
use crate::failure::Failure;
use crate::output::{print_json, print_table};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;
use weir_client::Name;

/// Between two looks at a broker that drains.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) async fn add(arguments: BrokerArguments) -> Result<(), Failure> {
    let broker = &arguments.broker;
    let answer = change(&arguments.ask, broker, "add").await?;
    tell(&arguments.ask, &answer, &format!("{broker} is active: it may hold and lead partitions"))
}

pub(super) async fn drain(arguments: DrainArguments) -> Result<(), Failure> {
    let DrainArguments { broker: BrokerArguments { broker, ask: whom }, wait, timeout } = arguments;
    let answer = change(&whom, &broker, "drain").await?;
    if !wait {
        let words = format!(
            "{broker} drains: others take over what it holds; `weir cluster status` shows how far \
             that is"
        );
        return tell(&whom, &answer, &words);
    }
    let id = answer["id"].as_u64();
    let emptied = emptied(&whom.admin.admin, id);
    match timeout {
        None => emptied.await?,
        Some(limit) => tokio::time::timeout(limit, emptied).await.map_err(|_| {
            Failure::NotDone(format!(
                "{broker} is not empty after {}; it goes on: `weir cluster status`",
                humantime::format_duration(limit)
            ))
        })??,
    }
    tell(
        &whom,
        &answer,
        &format!("{broker} holds nothing: `weir cluster remove {broker}` forgets it"),
    )
}

/// Waits until a broker holds nothing, or is not there at all.
async fn emptied(admin: &str, id: Option<u64>) -> Result<(), Failure> {
    let mut told = String::new();
    loop {
        let started = Instant::now();
        let status = look(admin).await?;
        let broker = status.brokers.iter().find(|known| Some(known.id) == id);
        let Some(holds) = broker.and_then(Broker::holds) else { return Ok(()) };
        if holds != told {
            eprintln!("it holds {holds}");
            told = holds;
        }
        tokio::time::sleep_until(started + LOOK_EVERY).await;
    }
}

pub(super) async fn remove(arguments: BrokerArguments) -> Result<(), Failure> {
    let (broker, whom) = (&arguments.broker, &arguments.ask);
    let path = format!("{CLUSTER_PATH}/brokers/{broker}");
    let answer = ask(&whom.admin.admin, Ask::Delete, &path).await?;
    let words = format!(
        "{broker} is removed. Stop it; its data directory must not be used again: one with an empty \
         data directory joins anew"
    );
    tell(whom, &answer, &words)
}

pub(super) async fn move_replica(arguments: MoveArguments) -> Result<(), Failure> {
    let MoveArguments { topic, partition, from, to, ask: whom } = &arguments;
    let order = json!({
        "topic": topic.as_str(),
        "partition": partition,
        "from": from.as_str(),
        "to": to.as_str(),
    });
    let path = format!("{CLUSTER_PATH}/move");
    let answer = ask(&whom.admin.admin, Ask::Post(&order), &path).await?;
    let words = format!(
        "{topic}/{partition} goes from {from} to {to}: `weir cluster status` lists it until it is \
         there"
    );
    tell(whom, &answer, &words)
}

/// What a balance answers.
#[derive(Debug, Deserialize)]
struct Balanced {
    changes: Vec<Row>,
    more: bool,
    moves_under_way: u64,
}

#[derive(Debug, Deserialize)]
struct Row {
    what: String,
    topic: Option<String>,
    partition: u32,
    from: Option<String>,
    to: Option<String>,
    refused: Option<String>,
}

pub(super) async fn balance(arguments: BalanceArguments) -> Result<(), Failure> {
    let BalanceArguments { dry_run, ask: whom } = &arguments;
    let path = format!("{CLUSTER_PATH}/balance");
    let order = json!({ "dry_run": dry_run });
    let answer = ask(&whom.admin.admin, Ask::Post(&order), &path).await?;
    if whom.output.output == Output::Json {
        return Ok(print_json(&answer)?);
    }
    let balanced: Balanced = serde_json::from_value(answer)
        .map_err(|error| Failure::NotDone(format!("{}{path}: {error}", whom.admin.admin)))?;
    if !balanced.changes.is_empty() {
        let headings = ["partition", "change", "from", "to", "refused"];
        print_table(headings, balanced.changes.iter().map(Row::cells))?;
    }
    println!("{}", balanced.words(*dry_run));
    Ok(())
}

impl Row {
    fn cells(&self) -> [String; 5] {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        let change = if self.what == "lead" { "leader" } else { "replica" };
        [
            format!("{}/{}", text(&self.topic), self.partition),
            change.to_owned(),
            text(&self.from),
            text(&self.to),
            text(&self.refused),
        ]
    }
}

impl Balanced {
    fn words(&self, dry_run: bool) -> String {
        let mut words = match (self.changes.is_empty(), dry_run) {
            (true, _) => "nothing to change: leaders and replicas are as even as they can be now",
            (false, true) => "nothing was changed; without --dry-run this is wished for",
            (false, false) => "wished for; it takes a while to show in `weir cluster status`",
        }
        .to_owned();
        if self.moves_under_way > 0 {
            let count = self.moves_under_way;
            words += &format!("; {count} on the way, and replicas are spread once all are there");
        }
        if self.more {
            words += "; there is more: say it again";
        }
        words
    }
}

async fn change(whom: &StatusArguments, broker: &Name, verb: &str) -> Result<Value, Failure> {
    let path = format!("{CLUSTER_PATH}/brokers/{broker}/{verb}");
    ask(&whom.admin.admin, Ask::Post(&json!({})), &path).await
}

/// Programs get the answer, people the words.
fn tell(whom: &StatusArguments, answer: &Value, words: &str) -> Result<(), Failure> {
    match whom.output.output {
        Output::Json => print_json(answer)?,
        Output::Table => eprintln!("{words}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balance_says_what_comes_next() {
        let words = |changes: usize, more, moves_under_way, dry_run| {
            let row =
                json!({ "what": "lead", "topic": "t", "partition": 0, "from": "a", "to": "b" });
            let answer = json!({
                "changes": vec![row; changes], "more": more, "moves_under_way": moves_under_way,
            });
            serde_json::from_value::<Balanced>(answer).unwrap().words(dry_run)
        };
        assert!(words(0, false, 0, false).starts_with("nothing to change"));
        assert!(words(0, false, 2, false).contains("2 on the way"));
        assert!(words(1, false, 0, true).contains("--dry-run"));
        assert!(words(64, true, 0, false).ends_with("say it again"));
    }
}
