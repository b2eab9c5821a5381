//! Works through orders with a durable subscription: what is settled does not come again, what
//! is not does, after a crash too.
//!
//! `cargo run -p weir-client --example consume -- weir://127.0.0.1:7420`

use std::pin::pin;
use weir_client::{Client, Delivered, Limits};

/// Hands every order to `bill` until `stop` is ready; returns how many it was.
pub async fn run(
    endpoint: &str,
    mut bill: impl FnMut(&Delivered),
    stop: impl Future<Output = ()>,
) -> weir_client::Result<u64> {
    let client = Client::builder().endpoints([endpoint]).name("billing").connect().await?;
    // The subscription is created by its first consumer, at the oldest record. The credit bounds
    // what the broker sends ahead: it returns when messages are settled.
    let credit = Limits { messages: 1_000, bytes: 1 << 20 };
    let mut orders = client.consumer("orders", "billing").credit(credit).subscribe().await?;

    let mut stop = pin!(stop);
    let mut billed = 0;
    loop {
        // `next` is cancel safe: nothing is lost when `stop` is first.
        let order = tokio::select! {
            biased;
            () = &mut stop => break,
            order = orders.next() => order,
        };
        let Some(order) = order else { break };
        // Lost connections are repaired inside; an error is final.
        let order = order?;
        bill(&order);
        billed += 1;
        // Settles this order and all earlier ones of its partition. The broker is told within
        // milliseconds, for many at once; `ack_confirmed` would wait for it.
        order.ack();
    }
    // Waits until the broker has committed the last settle.
    orders.close().await?;
    Ok(billed)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> weir_client::Result<()> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "weir://127.0.0.1:7420".to_owned());
    let bill = |order: &Delivered| {
        let text = String::from_utf8_lossy(order.payload());
        println!("partition {} offset {}: {text}", order.partition(), order.offset());
    };
    let stop = async {
        // Without a handler there is nothing to wait for: the loop ends.
        let _ = tokio::signal::ctrl_c().await;
    };
    let billed = run(&endpoint, bill, stop).await?;
    println!("{billed} orders billed");
    Ok(())
}
