//! Publishes readings of a sensor that cannot wait: under overload it sheds what the broker or
//! the client would have queued, and knows why.
//!
//! `cargo run -p weir-client --example shed -- weir://127.0.0.1:7420 < readings.txt`

use std::collections::BTreeMap;
use weir_client::{Client, ErrorCode, Limits, Message, Reason, TopicConfig};

/// What became of the readings.
#[derive(Debug, Default)]
pub struct Tally {
    /// Those that are stored.
    pub stored: u64,
    /// Those that were shed, with the reason.
    pub shed: Vec<(Message, Reason)>,
}

/// Publishes the readings as they come, without ever queuing more than a few.
pub async fn run(
    endpoint: &str,
    readings: impl IntoIterator<Item = String>,
) -> weir_client::Result<Tally> {
    let client = Client::builder().endpoints([endpoint]).name("sensor").connect().await?;
    match client.create_topic("readings", TopicConfig::default()).await {
        Err(error) if error.error_code() == Some(ErrorCode::TopicExists) => {}
        created => created?,
    }
    let window = Limits { messages: 16, bytes: 64 << 10 };
    let publisher = client.publisher("readings").window(window).build().await?;

    let mut tally = Tally::default();
    for reading in readings {
        // Never waits: neither for room in the window nor for the broker's credit.
        match publisher.try_send(reading) {
            // The receipt may be dropped: `flush` below waits for all of them.
            Ok(_receipt) => tally.stored += 1,
            Err(refused) => {
                let error = refused.error();
                let Some(reason) = error.overload() else { return Err(refused.into()) };
                let pause = error.retry_after().unwrap_or_default();
                eprintln!("overloaded ({reason}), trying again in {pause:?}");
                // The message is given back, to keep it elsewhere. Here the next reading is
                // newer and worth more.
                tally.shed.push((refused.into_message(), reason));
                tokio::time::sleep(pause).await;
            }
        }
    }
    publisher.flush().await?;
    Ok(tally)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> weir_client::Result<()> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "weir://127.0.0.1:7420".to_owned());
    let readings = std::io::stdin().lines().map_while(Result::ok);
    let tally = run(&endpoint, readings).await?;
    let mut reasons = BTreeMap::<_, u64>::new();
    for (_, reason) in &tally.shed {
        *reasons.entry(reason.as_str()).or_default() += 1;
    }
    println!("{} stored, {} shed: {reasons:?}", tally.stored, tally.shed.len());
    Ok(())
}
