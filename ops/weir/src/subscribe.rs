//! `weir sub`: the messages of a topic on stdout.
//!
//! Owns: where reading ends, and that a durable cursor moves only behind what was printed.
//! Never: prints anything but messages on stdout.

pub(crate) mod format;

use crate::arguments::{RecordOutput, SubArguments};
use crate::failure::Failure;
use format::{Format, Shown};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{self, BufWriter, StdoutLock, Write};
use weir_client::{Client, Consumer, Record, RecordBatch};

const WRITE_BUFFER_BYTES: usize = 256 << 10;

pub(crate) async fn run(arguments: SubArguments) -> Result<(), Failure> {
    let form = match (&arguments.format, arguments.output) {
        (Some(text), _) => Form::Text(Format::parse(text).map_err(Failure::Usage)?),
        (None, RecordOutput::Json) => Form::Json,
        (None, RecordOutput::Text) => Form::Text(Format::payload_lines()),
    };
    let client = Client::builder()
        .endpoints(arguments.endpoint.endpoint.iter().map(String::as_str))
        .name("weir sub")
        .connect()
        .await?;
    let explain = |error| explained(error, &arguments);
    let mut consumer = attach(&client, &arguments).await.map_err(explain)?;
    let mut printer = Printer {
        form,
        topic: arguments.topic.to_string(),
        out: BufWriter::with_capacity(WRITE_BUFFER_BYTES, io::stdout().lock()),
        left: arguments.count.unwrap_or(u64::MAX),
        ends: arguments.exit_at_end.then(|| consumer.end_offsets()),
    };
    let outcome = printer.print_all(&mut consumer).await;
    printer.out.flush()?;
    let closed = consumer.close().await;
    outcome.map_err(explain)?;
    Ok(closed?)
}

/// What a damaged range means for whoever reads here, and how to go on.
fn explained(failure: Failure, arguments: &SubArguments) -> Failure {
    let Failure::Client(error) = &failure else { return failure };
    let Some((partition, end)) = error.partition().zip(error.damaged_end()) else { return failure };
    let topic = &arguments.topic;
    let stays = match &arguments.subscription {
        Some(name) => format!(
            "subscription {name} stays in front of it until it is restored or its loss accepted; "
        ),
        None => String::new(),
    };
    Failure::Damaged(format!(
        "{error}\nall that this command read in front of it was printed; {stays}`weir sub {topic} \
         --partition {partition} --from {end}` reads on behind it; `weir topic info {topic}` says \
         what to do about it"
    ))
}

async fn attach(client: &Client, arguments: &SubArguments) -> Result<Consumer, Failure> {
    let builder = match &arguments.subscription {
        Some(name) => client.consumer(arguments.topic.as_str(), name.as_str()),
        None => client.reader(arguments.topic.as_str()),
    };
    let builder = builder.from(arguments.from);
    let builder = match arguments.partition {
        Some(partition) => builder.partition(partition),
        None => builder,
    };
    Ok(builder.subscribe().await?)
}

enum Form {
    Text(Format),
    Json,
}

struct Printer {
    form: Form,
    topic: String,
    out: BufWriter<StdoutLock<'static>>,
    /// Messages that are still to be printed.
    left: u64,
    /// Exclusive ends by partition; reading stops when every one is reached.
    ends: Option<BTreeMap<u32, u64>>,
}

impl Printer {
    async fn print_all(&mut self, consumer: &mut Consumer) -> Result<(), Failure> {
        if let Some(ends) = &mut self.ends {
            let positions = consumer.positions();
            ends.retain(|partition, end| positions.get(partition).is_none_or(|at| at < end));
        }
        while !self.is_done() {
            let Some(batch) = consumer.next_batch().await else { return Ok(()) };
            let batch = batch?;
            let behind = self.print_batch(&batch)?;
            // What is on stdout counts as done; the cursor never runs ahead of it.
            self.out.flush()?;
            consumer.settle(batch.partition(), behind);
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.left == 0 || self.ends.as_ref().is_some_and(BTreeMap::is_empty)
    }

    /// Prints the records that are wanted and returns the offset behind the last one.
    fn print_batch(&mut self, batch: &RecordBatch) -> Result<u64, Failure> {
        let partition = batch.partition();
        let end = self.end_of(partition);
        let mut behind = batch.base_offset();
        for record in batch.records() {
            let record = record?;
            if self.left == 0 || record.offset >= end {
                break;
            }
            self.print(partition, &record)?;
            self.left -= 1;
            behind = record.offset + 1;
        }
        let reached = behind.max(batch.end_offset().min(end)) >= end;
        if let Some(ends) = self.ends.as_mut().filter(|_| reached) {
            ends.remove(&partition);
        }
        Ok(behind)
    }

    fn end_of(&self, partition: u32) -> u64 {
        match &self.ends {
            Some(ends) => ends.get(&partition).copied().unwrap_or(0),
            None => u64::MAX,
        }
    }

    fn print(&mut self, partition: u32, record: &Record<'_>) -> io::Result<()> {
        match &self.form {
            Form::Text(format) => {
                let shown = Shown {
                    topic: &self.topic,
                    partition,
                    offset: record.offset,
                    timestamp_ms: record.timestamp_ms,
                    key: record.key(),
                    headers: record.headers(),
                    payload: record.payload(),
                };
                format.write(&mut self.out, &shown)
            }
            Form::Json => {
                let object = json_object(&self.topic, partition, record);
                serde_json::to_writer(&mut self.out, &object)?;
                self.out.write_all(b"\n")
            }
        }
    }
}

/// Text that is not UTF-8 is shown with replacement characters, and flagged.
fn json_object(topic: &str, partition: u32, record: &Record<'_>) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers =
        record.headers().map(|(name, content)| (text(name), Value::String(text(content))));
    json!({
        "topic": topic,
        "partition": partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": record.key().map(text),
        "headers": headers.collect::<Map<_, _>>(),
        "payload": text(record.payload()),
        "payload_is_utf8": std::str::from_utf8(record.payload()).is_ok(),
    })
}
