//! `weir check`: is a broker well? For probes and people in a hurry.
//!
//! Owns: one line of verdict. Never: changes anything but, for `e2e`, one message more.

use crate::admin::fetch;
use crate::arguments::{CheckArguments, CheckCommand, EndpointArguments};
use crate::failure::Failure;
use std::time::Duration;
use tokio::time::Instant;
use weir_client::{Client, Message, Name, Start};

pub(crate) async fn run(arguments: CheckArguments) -> Result<(), Failure> {
    let limit = arguments.timeout;
    match arguments.command {
        CheckCommand::Live { admin } => probe(&admin.admin, "/livez", limit).await,
        CheckCommand::Ready { admin } => probe(&admin.admin, "/readyz?verbose", limit).await,
        CheckCommand::E2e { topic, endpoint } => {
            let round = round_trip(&topic, &endpoint, limit);
            let elapsed = tokio::time::timeout(limit, round).await.map_err(|_| {
                Failure::NotDone(format!("e2e {topic}: no round trip within {limit:?}"))
            })??;
            println!("ok: e2e {topic}: published, flushed and read back in {elapsed:.1?}");
            Ok(())
        }
    }
}

async fn probe(address: &str, path: &str, limit: Duration) -> Result<(), Failure> {
    let answer = fetch(address, path, limit).await?;
    let body = answer.body.trim_end();
    if answer.status == 200 {
        println!("{body}");
        return Ok(());
    }
    Err(Failure::NotDone(format!("{address}{path} answers {}:\n{body}", answer.status)))
}

async fn round_trip(
    topic: &Name,
    endpoint: &EndpointArguments,
    limit: Duration,
) -> Result<Duration, Failure> {
    let client = Client::builder()
        .endpoints(endpoint.endpoint.iter().map(String::as_str))
        .name("weir check")
        .connect()
        .await?;
    let started = Instant::now();
    let publisher = client.publisher(topic.as_str()).deadline(limit).build().await?;
    let mark = format!("weir check {}", std::process::id());
    let stored = publisher.publish(Message::new(mark.clone())).await?;
    let mut reader = client
        .reader(topic.as_str())
        .partition(stored.partition)
        .from(Start::Offset(stored.offset))
        .subscribe()
        .await?;
    let Some(found) = reader.next().await else {
        return Err(Failure::NotDone(format!("{topic}: the reader ended")));
    };
    let found = found?;
    if found.payload() != mark.as_bytes() {
        let offset = stored.offset;
        return Err(Failure::NotDone(format!("{topic}: offset {offset} holds something else")));
    }
    Ok(started.elapsed())
}
