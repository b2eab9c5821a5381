//! `weir topic`: create, list, show, change and remove topics.
//!
//! Owns: how topics are shown. Never: removes anything without `--yes`.

mod damage;
mod replicas;

use crate::arguments::{Output, TopicArguments, TopicCommand, TopicSettings};
use crate::failure::Failure;
use crate::output::{bytes_text, print_json, print_table};
use damage::Health;
use replicas::{name_of, replicas_of, replicas_text, with_replicas};
use serde_json::{Value, json};
use std::time::Duration;
use weir_client::{Client, Durability, Name, Overflow, TopicChange, TopicConfig, TopicView};

pub(crate) async fn run(arguments: TopicArguments) -> Result<(), Failure> {
    let client = Client::builder()
        .endpoints(arguments.endpoint.endpoint.iter().map(String::as_str))
        .name("weir topic")
        .connect()
        .await?;
    let endpoint = arguments.endpoint.endpoint.first().map_or("", String::as_str);
    match arguments.command {
        TopicCommand::Create { topic, partitions, settings } => {
            client.create_topic(topic.as_str(), config_of(partitions, &settings)?).await?;
            eprintln!("topic {topic} created");
        }
        TopicCommand::Ls { output } => list(&client, output.output).await?,
        TopicCommand::Info { topic, admin, output } => {
            let admin = admin.unwrap_or_else(|| damage::admin_beside(endpoint));
            show(&client, &topic, &admin, output.output).await?;
        }
        TopicCommand::Set { topic, partitions, settings } => {
            client.alter_topic(topic.as_str(), change_of(partitions, &settings)?).await?;
            eprintln!("topic {topic} changed");
        }
        TopicCommand::Rm { topic, yes } => remove(&client, &topic, yes).await?,
    }
    Ok(())
}

fn config_of(partitions: u32, settings: &TopicSettings) -> Result<TopicConfig, Failure> {
    let standard = TopicConfig::default();
    Ok(TopicConfig {
        partitions,
        durability: settings.durability.unwrap_or(standard.durability),
        overflow: settings.overflow.unwrap_or(standard.overflow),
        max_bytes: settings.max_bytes.unwrap_or(standard.max_bytes),
        max_age_ms: settings.max_age.map_or(standard.max_age_ms, age_ms),
        replicas: settings.replicas.unwrap_or(standard.replicas),
    })
}

fn change_of(partitions: Option<u32>, settings: &TopicSettings) -> Result<TopicChange, Failure> {
    let change = TopicChange {
        partitions,
        durability: settings.durability,
        overflow: settings.overflow,
        max_bytes: settings.max_bytes,
        max_age_ms: settings.max_age.map(age_ms),
        replicas: settings.replicas,
    };
    if change == TopicChange::default() {
        return Err(Failure::Usage("nothing to change; see `weir topic set --help`".to_owned()));
    }
    Ok(change)
}

fn age_ms(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

async fn list(client: &Client, output: Output) -> Result<(), Failure> {
    let topics = client.topics().await?;
    match output {
        Output::Json => print_json(&topics.iter().map(topic_json).collect::<Vec<_>>())?,
        Output::Table => {
            let headings = ["topic", "partitions", "records", "bytes", "durability", "overflow"];
            print_table(headings, topics.iter().map(topic_row))?;
        }
    }
    Ok(())
}

async fn show(client: &Client, topic: &Name, admin: &str, output: Output) -> Result<(), Failure> {
    let (topic, brokers) = client.topic_and_brokers(topic.as_str()).await?;
    let health = damage::ask(admin, &topic).await;
    if output == Output::Json {
        let named = with_replicas(topic_json(&topic), &topic, &brokers, &health);
        print_json(&with_health(named, &health))?;
        return Ok(());
    }
    let config = &topic.config;
    println!("topic       {}", topic.name);
    println!("durability  {}", durability_text(config.durability));
    println!("overflow    {}", overflow_text(config.overflow));
    println!("replicas    {} of each partition", config.replicas);
    println!("max bytes   {} per partition", bytes_text(config.max_bytes));
    match config.max_age_ms {
        0 => println!("max age     none"),
        ms => println!("max age     {}", humantime::format_duration(Duration::from_millis(ms))),
    }
    println!();
    let known = health.as_deref().unwrap_or_default();
    let headings =
        ["partition", "state", "leader", "replicas", "log start", "high watermark", "bytes"];
    let rows = topic.partitions.iter().map(|partition| {
        let health = known.iter().find(|health| health.partition == partition.partition.0);
        [
            partition.partition.to_string(),
            health.map_or("unknown", Health::word).to_owned(),
            partition.leader.map_or("none".to_owned(), |leader| name_of(&brokers, leader)),
            replicas_text(&replicas_of(partition, &brokers, health)),
            partition.log_start.to_string(),
            partition.high_watermark.to_string(),
            bytes_text(partition.bytes),
        ]
    });
    print_table(headings, rows)?;
    match &health {
        Ok(known) => damage::report(&topic, known).iter().for_each(|line| println!("\n{line}")),
        Err(error) => println!("\nwhether anything is damaged is not known: {error}"),
    }
    Ok(())
}

async fn remove(client: &Client, topic: &Name, yes: bool) -> Result<(), Failure> {
    let found = client.topic(topic.as_str()).await?;
    let (records, bytes) = (records_of(&found), bytes_text(bytes_of(&found)));
    if !yes {
        return Err(Failure::NotDone(format!(
            "this would remove topic {topic} with {records} records ({bytes}); say --yes to do it"
        )));
    }
    client.delete_topic(topic.as_str()).await?;
    eprintln!("topic {topic} removed with {records} records ({bytes})");
    Ok(())
}

fn records_of(topic: &TopicView) -> u64 {
    topic.partitions.iter().map(|p| p.high_watermark.0 - p.log_start.0).sum()
}

fn bytes_of(topic: &TopicView) -> u64 {
    topic.partitions.iter().map(|p| p.bytes).sum()
}

fn topic_row(topic: &TopicView) -> [String; 6] {
    [
        topic.name.to_string(),
        topic.config.partitions.to_string(),
        records_of(topic).to_string(),
        bytes_text(bytes_of(topic)),
        durability_text(topic.config.durability).to_owned(),
        overflow_text(topic.config.overflow).to_owned(),
    ]
}

fn topic_json(topic: &TopicView) -> Value {
    let partitions = topic.partitions.iter().map(|partition| {
        json!({
            "partition": partition.partition.0,
            "leader_id": partition.leader.map(|leader| leader.0),
            "term": partition.term.0,
            "log_start": partition.log_start.0,
            "high_watermark": partition.high_watermark.0,
            "bytes": partition.bytes,
        })
    });
    json!({
        "name": topic.name.as_str(),
        "id": topic.id.0,
        "durability": durability_text(topic.config.durability),
        "overflow": overflow_text(topic.config.overflow),
        "max_bytes": topic.config.max_bytes,
        "max_age_ms": topic.config.max_age_ms,
        "replicas": topic.config.replicas,
        "partitions": partitions.collect::<Vec<_>>(),
    })
}

/// Adds to each partition how it is; null where that is not known, and then `health_error` says why.
fn with_health(mut topic: Value, health: &Result<Vec<Health>, String>) -> Value {
    let known = health.as_deref().unwrap_or_default();
    for partition in topic["partitions"].as_array_mut().into_iter().flatten() {
        let health = known.iter().find(|health| partition["partition"] == health.partition);
        partition["state"] = json!(health.map(|health| &health.state));
        partition["read_only"] = json!(health.and_then(|health| health.read_only));
        partition["damaged"] = json!(health.map(|health| &health.damaged));
    }
    topic["health_error"] = json!(health.as_ref().err());
    topic
}

fn durability_text(durability: Durability) -> &'static str {
    match durability {
        Durability::Fsync => "fsync",
        Durability::Memory => "memory (weaker: power loss may lose acknowledged records)",
    }
}

fn overflow_text(overflow: Overflow) -> &'static str {
    match overflow {
        Overflow::Backpressure => "backpressure",
        Overflow::Reject => "reject",
        Overflow::Expire => "expire",
    }
}
