//! Runs a workload against a broker.
//!
//! Owns: the publishers, the consumer, the clock they share.
//! Never: lets a slow broker slow the schedule down: latency counts from when a message was due.

use crate::audit::{Audit, Verdict, stamp};
use crate::clock::{self, Moment};
use crate::floor::RETAINED_BYTES;
use crate::measure::{Latencies, process_cost};
use crate::report::{LoadReport, Second};
use crate::schedule::Schedule;
use crate::workload::Workload;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use weir_client::{
    Client, ErrorCode, Limits, Message, OnFull, Outcome, Publisher, Receipt, Start, TopicConfig,
};

/// The bytes of a publisher's window are bounded too.
const WINDOW_BYTES_MAX: usize = 256 << 20;
/// How long the last answers and deliveries may take.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);

/// What one publisher counted.
#[derive(Debug, Default)]
struct Counts {
    offered: u64,
    admitted: u64,
    acked: u64,
    refused: BTreeMap<String, u64>,
    unknown: u64,
    latencies: Latencies,
    good: u64,
    /// Good and acknowledged, by whole seconds from the start.
    seconds: Vec<Second>,
}

/// The whole run, shared by its tasks.
struct Run {
    workload: Workload,
    started: Moment,
    counted_from: Moment,
    ends: Moment,
}

impl Run {
    /// Whether what was due then counts.
    fn counts(&self, due: Moment) -> bool {
        due >= self.counted_from && due < self.ends
    }
}

/// Connects to `endpoints`, runs the workload and reports. `server_pid` is the broker's process,
/// whose cost is then part of the report.
pub async fn run(
    endpoints: &[String],
    workload: Workload,
    server_pid: Option<u32>,
) -> weir_client::Result<LoadReport> {
    let client = connect(endpoints).await?;
    ensure_topic(&client, &workload).await?;
    let mut publishers = Vec::new();
    for _ in 0..workload.publishers {
        publishers.push(open_publisher(&connect(endpoints).await?, &workload).await?);
    }
    let consumer = match workload.consume {
        true => Some(
            connect(endpoints)
                .await?
                .reader(&workload.topic)
                .from(Start::Latest)
                .subscribe()
                .await?,
        ),
        false => None,
    };
    let started = clock::now();
    let counted_from = started.after(Duration::from_secs_f64(workload.warmup_seconds));
    let ends = counted_from.after(Duration::from_secs_f64(workload.seconds));
    let run = Arc::new(Run { workload, started, counted_from, ends });
    let published = Arc::new(AtomicBool::new(false));
    let reading = consumer.map(|consumer| {
        let (run, published) = (run.clone(), published.clone());
        spawn(async move { consume(&run, consumer, &published).await })
    });
    let mut tasks = JoinSet::new();
    for (number, publisher) in publishers.into_iter().enumerate() {
        let publishing = publish(run.clone(), number as u64, publisher);
        if run.workload.rate > 0.0 {
            // The runtime's timers count in milliseconds; a thread can be woken when it should.
            let runtime = tokio::runtime::Handle::current();
            tasks.spawn_blocking(move || runtime.block_on(publishing));
        } else {
            tasks.spawn(publishing);
        }
    }
    tokio::time::sleep_until(run.counted_from.to_tokio()).await;
    let cost_before = server_pid.and_then(process_cost);
    tokio::time::sleep_until(run.ends.to_tokio()).await;
    let cost_after = server_pid.and_then(process_cost);
    let (mut total, mut acknowledged) = (Counts::default(), BTreeMap::new());
    while let Some(done) = tasks.join_next().await {
        let (number, all_acked, counts) = done.expect("a publisher does not panic");
        acknowledged.insert(number, all_acked);
        total.add(counts);
    }
    published.store(true, Ordering::Release);
    let read = match reading {
        Some(reading) => Some(reading.await.expect("the consumer does not panic")),
        None => None,
    };
    Ok(report_of(&run, total, read, &acknowledged, (cost_before, cost_after)))
}

fn report_of(
    run: &Run,
    total: Counts,
    read: Option<(Audit, Latencies)>,
    acknowledged: &BTreeMap<u64, u64>,
    cost: (Option<crate::measure::ProcessCost>, Option<crate::measure::ProcessCost>),
) -> LoadReport {
    let seconds = run.workload.seconds;
    let cpu = match cost {
        (Some(before), Some(after)) => Some(after.cpu_seconds - before.cpu_seconds),
        _ => None,
    };
    LoadReport {
        workload: run.workload.clone(),
        offered: total.offered,
        admitted: total.admitted,
        acked: total.acked,
        good: total.good,
        refused: total.refused,
        unknown: total.unknown,
        acked_per_second: total.acked as f64 / seconds,
        acked_mb_per_second: total.acked as f64 * run.workload.message_bytes as f64 / seconds / 1e6,
        latency: total.latencies.percentiles(),
        seconds: total.seconds,
        audit: read.as_ref().map(|(audit, _)| audit.verdict(acknowledged)),
        end_to_end: read.map(|(_, latencies)| latencies.percentiles()),
        server_cpu_seconds: cpu,
        server_cpu_s_per_million: cpu.map(|cpu| cpu / (total.acked.max(1) as f64 / 1e6)),
        server_anonymous_bytes: cost.1.map(|after| after.anonymous_bytes),
    }
}

/// A client of the harness.
pub async fn connect(endpoints: &[String]) -> weir_client::Result<Client> {
    let endpoints = endpoints.iter().map(String::as_str);
    Client::builder().endpoints(endpoints).name("weir bench").connect().await
}

async fn ensure_topic(client: &Client, workload: &Workload) -> weir_client::Result<()> {
    let config = TopicConfig {
        partitions: workload.partitions,
        max_bytes: RETAINED_BYTES,
        ..TopicConfig::default()
    };
    match client.create_topic(&workload.topic, config).await {
        Err(error) if error.error_code() == Some(ErrorCode::TopicExists) => Ok(()),
        other => other.map(|_| ()),
    }
}

async fn open_publisher(client: &Client, workload: &Workload) -> weir_client::Result<Publisher> {
    let on_full = if workload.fail_when_full { OnFull::Fail } else { OnFull::Wait };
    let window = Limits { messages: workload.window, bytes: WINDOW_BYTES_MAX };
    let deadline = Duration::from_secs_f64(workload.seconds + workload.warmup_seconds + 30.0);
    client
        .publisher(&workload.topic)
        .window(window)
        .on_full(on_full)
        .deadline(deadline)
        .build()
        .await
}

#[expect(clippy::disallowed_methods, reason = "the harness is a program, not a part of the broker")]
pub(crate) fn spawn<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::spawn(work)
}

/// Sends until the run ends. Returns how many of its messages were acknowledged in all.
async fn publish(run: Arc<Run>, number: u64, publisher: Publisher) -> (u64, u64, Counts) {
    let (sender, receipts) = mpsc::channel(run.workload.window);
    let collector = spawn(collect(run.clone(), receipts));
    let mut counts = Counts::default();
    let mut message = vec![0; run.workload.message_bytes];
    let rate = run.workload.rate / run.workload.publishers as f64;
    let mut schedule = Schedule::new(run.workload.arrivals, rate.max(1e-9), number);
    let (mut sequence, mut acked) = (0, 0);
    loop {
        let (due, permit) = match rate > 0.0 {
            true => (run.started.after(schedule.next().expect("schedules do not end")), None),
            // Without a rate a message is due as soon as the window has room for it.
            false => {
                let permit = publisher.reserve(message.len()).await;
                (clock::now(), Some(permit))
            }
        };
        if due >= run.ends {
            break;
        }
        counts.offered += u64::from(run.counts(due));
        if rate > 0.0 {
            // With a rate this runs on a thread of its own.
            std::thread::sleep(due.since(clock::now()));
        }
        if clock::now() >= run.ends {
            // The schedule goes on without the generator: what it could not send was offered.
            continue;
        }
        let due_us = due.since(run.started).as_micros() as u64;
        stamp(&mut message, number, sequence, due_us);
        let content = Message::new(message.clone());
        let sent = match permit {
            Some(permit) => permit.map(|permit| permit.send(content)),
            None => publisher.send(content).await,
        };
        match sent {
            Ok(receipt) => {
                sequence += 1;
                counts.admitted += u64::from(run.counts(due));
                if run.workload.window == 1 {
                    // As an application does that publishes one message after the other.
                    acked += u64::from(counts.answered(&run, receipt, due).await);
                } else {
                    sender.send((receipt, due)).await.expect("the collector outlives the sender");
                }
            }
            Err(error) => counts.refuse(&error, run.counts(due)),
        }
    }
    drop(sender);
    let (collected_acks, collected) = collector.await.expect("the collector does not panic");
    counts.add(collected);
    (number, acked + collected_acks, counts)
}

async fn collect(run: Arc<Run>, mut receipts: mpsc::Receiver<(Receipt, Moment)>) -> (u64, Counts) {
    let (mut counts, mut acked) = (Counts::default(), 0);
    while let Some((receipt, due)) = receipts.recv().await {
        acked += u64::from(counts.answered(&run, receipt, due).await);
    }
    (acked, counts)
}

impl Counts {
    /// Waits for the answer to a message; returns whether it was acknowledged.
    async fn answered(&mut self, run: &Run, receipt: Receipt, due: Moment) -> bool {
        let outcome = receipt.await;
        let counted = run.counts(due);
        match &outcome {
            Ok(_) if counted => {
                let slo = Duration::from_millis(run.workload.slo_ms);
                self.acknowledge(due.elapsed(), slo, clock::now().since(run.counted_from));
            }
            Ok(_) => {}
            Err(error) => self.refuse(error, counted),
        }
        outcome.is_ok()
    }

    fn acknowledge(&mut self, latency: Duration, slo: Duration, at: Duration) {
        self.acked += 1;
        self.latencies.record(latency);
        let good = latency <= slo;
        self.good += u64::from(good);
        let second = at.as_secs() as usize;
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, Second::default());
        }
        self.seconds[second].acked += 1;
        self.seconds[second].good += u64::from(good);
    }

    fn refuse(&mut self, error: &weir_client::Error, counted: bool) {
        if counted {
            let code = error.error_code().map_or("other", ErrorCode::name);
            *self.refused.entry(code.to_owned()).or_default() += 1;
            self.unknown += u64::from(error.outcome() == Outcome::Unknown);
        }
    }

    fn add(&mut self, other: Self) {
        self.offered += other.offered;
        self.admitted += other.admitted;
        self.acked += other.acked;
        self.good += other.good;
        self.unknown += other.unknown;
        self.latencies.merge(&other.latencies);
        for (code, count) in other.refused {
            *self.refused.entry(code).or_default() += count;
        }
        let len = self.seconds.len().max(other.seconds.len());
        self.seconds.resize(len, Second::default());
        for (sum, second) in self.seconds.iter_mut().zip(other.seconds) {
            sum.acked += second.acked;
            sum.good += second.good;
        }
    }
}

/// Reads until everything that was published has arrived, or too long has passed.
async fn consume(
    run: &Run,
    mut consumer: weir_client::Consumer,
    published: &AtomicBool,
) -> (Audit, Latencies) {
    let (mut audit, mut latencies) = (Audit::default(), Latencies::default());
    let mut quiet_since = clock::now();
    loop {
        let next = tokio::time::timeout(Duration::from_millis(200), consumer.next_batch()).await;
        let batch = match next {
            Ok(Some(Ok(batch))) => batch,
            Ok(_) => break,
            Err(_) if published.load(Ordering::Acquire) => {
                // Nothing for a while behind the last acknowledgement: that was all.
                if quiet_since.elapsed() > Duration::from_secs(1) {
                    break;
                }
                continue;
            }
            Err(_) => continue,
        };
        let now_us = run.started.elapsed().as_micros() as u64;
        for record in batch.records().flatten() {
            let Some(due_us) = audit.received(record.payload()) else { continue };
            if run.counts(run.started.after(Duration::from_micros(due_us))) {
                latencies.record(Duration::from_micros(now_us.saturating_sub(due_us)));
            }
        }
        consumer.settle(batch.partition(), batch.end_offset());
        quiet_since = clock::now();
        if run.ends.elapsed() > DRAIN_WITHIN {
            break;
        }
    }
    (audit, latencies)
}

/// What draining a topic reached.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DrainReport {
    /// Messages read.
    pub messages: u64,
    /// Payload bytes read.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Messages a second.
    pub messages_s: f64,
    /// Whether every content was one that the harness made, in order, once.
    pub audit: Option<Verdict>,
    /// CPU of the broker, seconds per million messages.
    pub server_cpu_s_per_million: Option<f64>,
}

/// Reads `topic` from its start to its end of now. `audited`: looks at every message, beside how
/// many of each publisher were acknowledged.
pub async fn drain(
    endpoints: &[String],
    topic: &str,
    audited: Option<&BTreeMap<u64, u64>>,
    server_pid: Option<u32>,
) -> weir_client::Result<DrainReport> {
    let client = connect(endpoints).await?;
    let mut consumer = client.reader(topic).from(Start::Earliest).subscribe().await?;
    let mut left = consumer.end_offsets();
    left.retain(|partition, end| consumer.starts().get(partition).is_none_or(|start| start < end));
    let (mut messages, mut bytes, mut audit) = (0, 0, Audit::default());
    let cost_before = server_pid.and_then(process_cost);
    let started = clock::now();
    while !left.is_empty() {
        let Some(batch) = consumer.next_batch().await else { break };
        let batch = batch?;
        messages += batch.len() as u64;
        for record in batch.records().flatten() {
            bytes += record.payload().len() as u64;
            if audited.is_some() {
                audit.received(record.payload());
            }
        }
        let partition = batch.partition();
        if left.get(&partition).is_some_and(|end| batch.end_offset() >= *end) {
            left.remove(&partition);
        }
        consumer.settle(partition, batch.end_offset());
    }
    let seconds = started.elapsed().as_secs_f64();
    let cost = cost_before.zip(server_pid.and_then(process_cost));
    let cpu = cost.map(|(before, after)| after.cpu_seconds - before.cpu_seconds);
    Ok(DrainReport {
        messages,
        bytes,
        seconds,
        messages_s: messages as f64 / seconds,
        audit: audited.map(|acknowledged| audit.verdict(acknowledged)),
        server_cpu_s_per_million: cpu.map(|cpu| cpu / ((messages as f64).max(1.0) / 1e6)),
    })
}
