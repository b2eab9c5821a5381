//! `weir pub`: messages from text, files or stdin into a topic.
//!
//! Owns: the order of inputs, the pace, the resume behind the last stored line, the summary.
//! Never: calls a message done before its receipt says so.
//! Invariant: at most the publisher's window of messages is held in memory.

pub(crate) mod framing;
mod progress;

use crate::arguments::{PubArguments, WhenFull};
use crate::failure::Failure;
use framing::Messages;
use progress::Progress;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use weir_client::{Client, ErrorCode, Message, Publisher, Reason, Receipt, Status};

/// A receipt is never waited for longer than this: the command's own deadline counts progress.
const RECEIPT_DEADLINE: Duration = Duration::from_secs(24 * 3_600);
/// Receipts that are kept before the oldest is waited for.
const RECEIPTS_MAX: usize = 16_384;
const READ_BUFFER_BYTES: usize = 256 << 10;

pub(crate) async fn run(arguments: PubArguments) -> Result<(), Failure> {
    let client = Client::builder()
        .endpoints(arguments.endpoint.endpoint.iter().map(String::as_str))
        .name("weir pub")
        .connect()
        .await?;
    let mut work = Work::open(&client, &arguments).await?;
    let outcome = work.publish_all(&arguments).await;
    let summary = work.progress.finish();
    eprintln!("{summary}");
    outcome
}

struct Work {
    publisher: Publisher,
    client: Client,
    progress: Progress,
    /// In the order of their messages, with the bytes of each.
    receipts: VecDeque<(Receipt, usize)>,
    /// Messages to skip because an earlier run stored them.
    skip: u64,
    pace: Option<Pace>,
    deadline: Duration,
    on_full: WhenFull,
    message_bytes_max: usize,
}

impl Work {
    async fn open(client: &Client, arguments: &PubArguments) -> Result<Self, Failure> {
        let mut builder = client.publisher(arguments.topic.as_str()).deadline(RECEIPT_DEADLINE);
        let fixed = arguments.producer.as_ref().map(|_| 0);
        if let Some(partition) = arguments.partition.or(fixed) {
            builder = builder.partition(partition);
        }
        if let Some(name) = &arguments.producer {
            builder = builder.idempotent(name.as_str());
        }
        let publisher = builder.build().await?;
        let skip = match arguments.producer {
            Some(_) => publisher.next_sequence(arguments.partition.unwrap_or(0)).await?,
            None => 0,
        };
        Ok(Self {
            message_bytes_max: client.message_bytes_max(),
            publisher,
            client: client.clone(),
            progress: Progress::new(&arguments.files),
            receipts: VecDeque::new(),
            skip,
            pace: arguments.rate.map(Pace::new),
            deadline: arguments.deadline,
            on_full: arguments.on_full,
        })
    }

    async fn publish_all(&mut self, arguments: &PubArguments) -> Result<(), Failure> {
        if let Some(text) = &arguments.message {
            self.publish(arguments, text.clone().into_bytes()).await?;
        } else if arguments.files.is_empty() {
            self.publish_input(arguments, Path::new("-")).await?;
        } else {
            for path in &arguments.files {
                self.publish_input(arguments, path).await?;
            }
        }
        while !self.receipts.is_empty() {
            self.settle_oldest().await?;
        }
        if self.skip > 0 {
            let missing = self.skip;
            return Err(Failure::NotDone(format!(
                "the producer has stored {missing} messages more than this input holds: \
                 is it the input that the producer began with?"
            )));
        }
        Ok(())
    }

    async fn publish_input(
        &mut self,
        arguments: &PubArguments,
        path: &Path,
    ) -> Result<(), Failure> {
        let named = |source: io::Error| Failure::NotDone(format!("{}: {source}", path.display()));
        let input: Box<dyn BufRead> = if path == Path::new("-") {
            Box::new(BufReader::with_capacity(READ_BUFFER_BYTES, io::stdin()))
        } else {
            let file = File::open(path).map_err(named)?;
            Box::new(BufReader::with_capacity(READ_BUFFER_BYTES, file))
        };
        let mut messages = Messages::new(input, arguments.frame, self.message_bytes_max);
        loop {
            let next = messages
                .read_next()
                .map_err(|e| Failure::NotDone(format!("{}: {e}", path.display())))?;
            match next {
                Some(message) => self.publish(arguments, message).await?,
                None => return Ok(()),
            }
        }
    }

    async fn publish(&mut self, arguments: &PubArguments, value: Vec<u8>) -> Result<(), Failure> {
        let bytes = value.len();
        if self.skip > 0 {
            self.skip -= 1;
            self.progress.skipped(bytes);
            return Ok(());
        }
        if let Some(pace) = &mut self.pace {
            pace.wait().await;
        }
        while self.receipts.len() >= RECEIPTS_MAX {
            self.settle_oldest().await?;
        }
        let mut message = Message::new(value);
        if let Some(key) = &arguments.key {
            message = message.key(key.clone());
        }
        for (name, content) in &arguments.headers {
            message = message.header(name.clone(), content.clone());
        }
        let receipt = self.send(message).await?;
        self.receipts.push_back((receipt, bytes));
        self.settle_ready();
        Ok(())
    }

    /// Waits for room as long as something moves.
    async fn send(&mut self, message: Message) -> Result<Receipt, Failure> {
        let publisher = self.publisher.clone();
        let mut sending = std::pin::pin!(publisher.send(message));
        let mut full = std::pin::pin!(full(self.client.clone(), self.on_full));
        loop {
            tokio::select! {
                biased;
                receipt = &mut sending => return Ok(receipt?),
                settled = wait_oldest(&mut self.receipts), if !self.receipts.is_empty() => {
                    self.progress.stored(settled?);
                }
                failure = &mut full => return Err(failure),
                () = tokio::time::sleep(self.deadline) => return Err(self.stalled()),
            }
        }
    }

    async fn settle_oldest(&mut self) -> Result<(), Failure> {
        tokio::select! {
            biased;
            settled = wait_oldest(&mut self.receipts) => self.progress.stored(settled?),
            failure = full(self.client.clone(), self.on_full) => return Err(failure),
            () = tokio::time::sleep(self.deadline) => return Err(self.stalled()),
        }
        Ok(())
    }

    /// Takes the receipts that are done, without waiting.
    fn settle_ready(&mut self) {
        while self.receipts.front().is_some_and(|(receipt, _)| receipt.is_stored()) {
            if let Some((_, bytes)) = self.receipts.pop_front() {
                self.progress.stored(bytes);
            }
        }
    }

    fn stalled(&self) -> Failure {
        Failure::NotDone(format!(
            "no progress for {:?} ({}); what is stored stays stored",
            self.deadline,
            self.client.status_text()
        ))
    }
}

/// Ends when the command is to fail because the topic or the disk is full. Credit that is on its
/// way, or a broker that restarts, is waited for all the same.
async fn full(client: Client, on_full: WhenFull) -> Failure {
    if on_full == WhenFull::Wait {
        return std::future::pending().await;
    }
    let mut status = client.status();
    loop {
        let code = match *status.borrow_and_update() {
            Status::Blocked { reason: Reason::Disk, .. } => Some(ErrorCode::StorageLow),
            Status::Blocked { reason: Reason::Backlog, .. } => Some(ErrorCode::BacklogFull),
            _ => None,
        };
        if let Some(code) = code {
            let (name, number) = (code.name(), code.number());
            return Failure::NotDone(format!(
                "{name} (WEIR-{number:04X}): {}; what is stored stays stored",
                code.sentence()
            ));
        }
        if status.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Waits for the oldest receipt and returns the bytes of its message. Cancel safe: the receipt
/// leaves the queue only when it is done.
async fn wait_oldest(receipts: &mut VecDeque<(Receipt, usize)>) -> Result<usize, Failure> {
    let Some((receipt, bytes)) = receipts.front_mut() else { return Ok(0) };
    let bytes = *bytes;
    let outcome = receipt.await;
    receipts.pop_front();
    outcome?;
    Ok(bytes)
}

/// Spreads messages evenly over time.
struct Pace {
    next: Instant,
    step: Duration,
}

impl Pace {
    fn new(per_second: u64) -> Self {
        Self { next: Instant::now(), step: Duration::from_secs(1) / per_second as u32 }
    }

    async fn wait(&mut self) {
        tokio::time::sleep_until(self.next).await;
        self.next += self.step;
    }
}
