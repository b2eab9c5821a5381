//! Imports a file of orders, each line exactly once, however often the import is started again.
//!
//! `cargo run -p weir-client --example publish -- weir://127.0.0.1:7420 orders.txt`

use std::error::Error;
use std::time::Duration;
use weir_client::{Client, ErrorCode, Message, TopicConfig};

/// Imports the lines and returns how many of them an earlier run had stored.
pub async fn run(endpoint: &str, lines: &[String]) -> weir_client::Result<u64> {
    let client = Client::builder().endpoints([endpoint]).name("import").connect().await?;
    match client.create_topic("orders", TopicConfig::default()).await {
        Err(error) if error.error_code() == Some(ErrorCode::TopicExists) => {}
        created => created?,
    }

    // The name is a durable identity: the broker knows how many messages it has stored under it.
    let publisher = client.publisher("orders").partition(0).idempotent("import").build().await?;
    let stored_before = publisher.next_sequence(0).await?;

    // `send` waits only for room in the window, so that many lines share a batch; the receipt
    // tells when its line is durable. A lost connection or a slow broker is nothing to handle:
    // what is unanswered is sent again under the same sequence, until the deadline.
    let mut receipts = Vec::new();
    for line in lines.iter().skip(stored_before as usize) {
        let customer = line.split(' ').next().unwrap_or_default().to_owned();
        receipts.push(publisher.send(Message::new(line.clone()).key(customer)).await?);
    }
    for receipt in receipts {
        let stored = receipt.await?;
        println!("stored at offset {}", stored.offset);
    }

    let report = client.close(Duration::from_secs(5)).await;
    assert!(report.is_clean(), "every receipt was awaited");
    Ok(stored_before)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(endpoint), Some(file)) = (arguments.next(), arguments.next()) else {
        return Err("usage: publish weir://HOST:PORT FILE".into());
    };
    let lines: Vec<_> = std::fs::read_to_string(file)?.lines().map(str::to_owned).collect();
    let stored_before = run(&endpoint, &lines).await?;
    println!("{} lines imported, {stored_before} of them before", lines.len());
    Ok(())
}
