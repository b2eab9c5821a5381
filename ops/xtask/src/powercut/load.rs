//! Producers that publish as fast as they can until their broker is gone, and the reading back.
//!
//! Owns: which acknowledgements count: all that the broker sent before it died.
//! Never: keeps a client across a cut: a producer goes on where its partition says, which has to
//! be behind what is stored. That one client survives restarts is for `weir pub` to show.

use super::ledger::{Account, Audit};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use weir_client::{Client, Limits, Message, Receipt, Start, Status, TopicConfig};

/// Topics, with partitions, and the producers of each partition.
const TOPICS: [(&str, u32); 2] = [("orders", 2), ("events", 2)];
const PRODUCERS_PER_PARTITION: u32 = 2;
/// Small segments, so that cuts meet new ones; far from full, so that nothing is trimmed.
const PARTITION_BYTES_MAX: u64 = 32 << 20;
/// Of each producer. Beyond what a flush takes, it would only make the lost part longer.
const WINDOW: Limits = Limits { messages: 64, bytes: 256 << 10 };
/// Nothing that a broker on two cores does takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn connect(endpoint: &str) -> Result<Client, String> {
    let client = Client::builder().endpoints([endpoint]).name("powercut").connect();
    client.await.map_err(|e| e.to_string())
}

/// Creates the topics, with an account for each producer.
pub(crate) async fn create_topics(client: &Client) -> Result<Vec<Account>, String> {
    let mut accounts = Vec::new();
    for (topic, partitions) in TOPICS {
        let config =
            TopicConfig { partitions, max_bytes: PARTITION_BYTES_MAX, ..TopicConfig::default() };
        client.create_topic(topic, config).await.map_err(|e| e.to_string())?;
        for partition in 0..partitions {
            for _ in 0..PRODUCERS_PER_PARTITION {
                accounts.push(Account::new(topic, partition, accounts.len() as u64));
            }
        }
    }
    Ok(accounts)
}

/// The producers while they publish.
pub(crate) struct Load {
    client: Client,
    stop: watch::Sender<bool>,
    producers: JoinSet<Result<(Account, Option<String>), String>>,
    creation: JoinSet<Option<String>>,
}

/// What came of a [`Load`].
pub(crate) struct Ended {
    pub(crate) accounts: Vec<Account>,
    /// The topic that was made meanwhile, if that was acknowledged.
    pub(crate) created: Option<String>,
    /// The first refusal of a message.
    pub(crate) refused: Option<String>,
}

impl Load {
    /// After `delay` also a topic of this name is made.
    pub(crate) fn start(
        client: Client,
        accounts: Vec<Account>,
        (topic, delay): (String, Duration),
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (mut producers, mut creation) = (JoinSet::new(), JoinSet::new());
        for account in accounts {
            producers.spawn(publish(client.clone(), account, stopped.clone()));
        }
        creation.spawn(create_late(client.clone(), topic, delay, stopped));
        Self { client, stop, producers, creation }
    }

    /// The broker is dead: takes the acknowledgements that are still on their way, then ends.
    pub(crate) async fn end(mut self) -> Result<Ended, String> {
        let mut status = self.client.status();
        let gone = status.wait_for(|status| matches!(status, Status::Reconnecting { .. }));
        let noticed = tokio::time::timeout(PATIENCE, gone).await;
        noticed.map_err(|_| "a dead broker was not noticed")?.map_err(|e| e.to_string())?;
        self.stop.send_replace(true);
        let (mut accounts, mut refused) = (Vec::new(), None);
        while let Some(ended) = self.producers.join_next().await {
            let (account, refusal) = ended.map_err(|e| e.to_string())??;
            accounts.push(account);
            refused = refused.or(refusal);
        }
        let created = self.creation.join_next().await.transpose();
        let created = created.map_err(|e| e.to_string())?.flatten();
        // A client that is only dropped goes on sending what is queued.
        self.client.close(Duration::ZERO).await;
        accounts.sort_by_key(|account| account.producer);
        Ok(Ended { accounts, created, refused })
    }
}

/// Returns the topic if it was made before it was stopped.
async fn create_late(
    client: Client,
    topic: String,
    delay: Duration,
    mut stopped: watch::Receiver<bool>,
) -> Option<String> {
    let create = async {
        tokio::time::sleep(delay).await;
        client.create_topic(&topic, TopicConfig::default()).await
    };
    let created = tokio::select! {
        biased;
        created = create => created.is_ok(),
        _ = stopped.wait_for(|stopped| *stopped) => false,
    };
    created.then_some(topic)
}

/// Publishes until it is stopped; returns also the first refusal.
async fn publish(
    client: Client,
    mut account: Account,
    mut stopped: watch::Receiver<bool>,
) -> Result<(Account, Option<String>), String> {
    let mut receipts = Vec::new();
    let first = account.stored();
    let outcome = tokio::select! {
        biased;
        _ = stopped.wait_for(|stopped| *stopped) => Ok(()),
        outcome = publish_all(&client, &mut account, &mut receipts) => outcome,
    };
    let mut refused = match outcome {
        Ok(()) => None,
        Err(Refusal::Told(error)) => Some(format!("{account}: {error}")),
        Err(Refusal::Elsewhere(next)) => {
            return Err(format!("{account}: {first} messages are stored, and it opens at {next}"));
        }
    };
    for (number, receipt) in (first..).zip(receipts) {
        match receipt.outcome() {
            Some(Ok(stored)) => account.acknowledge(number, stored.offset),
            Some(Err(error)) if refused.is_none() => {
                refused = Some(format!("{account}: message {number}: {error}"));
            }
            Some(Err(_)) | None => {}
        }
    }
    Ok((account, refused))
}

/// Why a producer does not go on.
enum Refusal {
    Told(weir_client::Error),
    /// The broker knows of another number of messages than are stored.
    Elsewhere(u64),
}

impl From<weir_client::Error> for Refusal {
    fn from(error: weir_client::Error) -> Self {
        Self::Told(error)
    }
}

/// Never ends but with an error.
async fn publish_all(
    client: &Client,
    account: &mut Account,
    receipts: &mut Vec<Receipt>,
) -> Result<(), Refusal> {
    let builder = client.publisher(account.topic).partition(account.partition).window(WINDOW);
    let publisher = builder.idempotent(format!("producer-{}", account.producer)).build().await?;
    let next = publisher.next_sequence(account.partition).await?;
    if next != account.stored() {
        return Err(Refusal::Elsewhere(next));
    }
    for number in next.. {
        let message = Message::new(account.send(number));
        receipts.push(publisher.send(message).await?);
    }
    Ok(())
}

/// Every topic that was made is there.
pub(crate) async fn find_topics(client: &Client, made: &[String]) -> Result<(), String> {
    let topics = client.topics().await.map_err(|e| e.to_string())?;
    let lost = made.iter().find(|name| topics.iter().all(|topic| topic.name.as_str() != *name));
    lost.map_or(Ok(()), |name| Err(format!("topic {name} was created, and is lost")))
}

/// Reads every partition from its beginning to its end.
pub(crate) async fn read_back(client: &Client, accounts: &mut [Account]) -> Result<(), String> {
    let mut audit = Audit::new(accounts);
    for (topic, partitions) in TOPICS {
        for partition in 0..partitions {
            let reading = read_partition(client, (topic, partition), &mut audit);
            tokio::time::timeout(PATIENCE, reading).await.map_err(|_| {
                format!("topic {topic}, partition {partition}: not read within {PATIENCE:?}")
            })??;
        }
    }
    audit.finish()
}

async fn read_partition(
    client: &Client,
    (topic, partition): (&str, u32),
    audit: &mut Audit<'_>,
) -> Result<(), String> {
    let text = |error| format!("topic {topic}, partition {partition}: {error}");
    let reader = client.reader(topic).partition(partition).from(Start::Earliest);
    let mut reader = reader.subscribe().await.map_err(text)?;
    let end = reader.end_offsets().get(&partition).copied().unwrap_or(0);
    let mut next = 0;
    while next < end {
        let batch = reader.next_batch().await.ok_or("a reader was stopped")?.map_err(text)?;
        for record in batch.records() {
            let record = record.map_err(text)?;
            if record.offset != next {
                let found = record.offset;
                return Err(format!(
                    "topic {topic}, partition {partition}: offset {found} follows {next}"
                ));
            }
            audit.found((topic, partition), record.offset, record.payload())?;
            next += 1;
        }
    }
    Ok(())
}
