//! A partition over a temporary folder, and a peer that talks to it through an outbox.

use crate::connection::outbox::{ConsumerPort, Outbox, RequestReply, Taken};
use crate::flow::{Flow, FlowStream, POOL_COST_DEFAULT, PartitionKey};
use crate::metrics::Metrics;
use crate::partition::{
    PartitionHandle, PartitionOptions, PartitionView, PublishRequest, Request, SubscribeRequest,
    SubscribedState,
};
use crate::replication::{Birth, Durability, Pace, ReplicaOptions, Wiring};
use crate::seams::OsWallClock;
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use tokio::time::Duration;
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::frame::{
    Frame, Grant, Needs, Overflow, Refusal, Settled, Start, StoredRange, TopicConfig,
};
use weir_protocol::types::{
    BrokerId, Name, Offset, PartitionId, ProducerId, ReplicaId, Sequence, StreamId,
};
use weir_storage::{Backend, Device, Disk, DiskFile, DiskLock, LogOptions, OsDisk, ThreadExecutor};

/// Nothing a test waits for takes this long, unless it never comes.
const NEVER: Duration = Duration::from_secs(20);

/// A disk whose free space a test decides.
#[derive(Debug)]
pub(super) struct TestDisk {
    disk: OsDisk,
    free: AtomicU64,
    /// It says that there is space and has none.
    lying: AtomicBool,
}

impl TestDisk {
    pub(super) fn set_free(&self, bytes: Option<u64>) {
        self.free.store(bytes.unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    pub(super) fn set_lying(&self, lying: bool) {
        self.lying.store(lying, Ordering::SeqCst);
    }
}

impl Disk for TestDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }
    fn create(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        if self.lying.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk.create(path, bytes)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        Ok(self.disk.free_bytes(path)?.min(self.free.load(Ordering::SeqCst)))
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        self.disk.lock(path)
    }
}

/// One device with one partition on it.
pub(super) struct Rig {
    pub(super) config: TopicConfig,
    pub(super) disk: Arc<TestDisk>,
    device: Arc<Device>,
    flow: Arc<Flow>,
    dir: tempfile::TempDir,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::over(tempfile::tempdir().unwrap())
    }

    fn over(dir: tempfile::TempDir) -> Self {
        let (free, lying) = (AtomicU64::new(u64::MAX), AtomicBool::new(false));
        let disk = Arc::new(TestDisk { disk: OsDisk::new(Backend::Map), free, lying });
        let executor = Arc::new(ThreadExecutor::start().unwrap());
        let device = Device::open(disk.clone(), executor, dir.path(), 1).unwrap();
        let config = TopicConfig {
            partitions: 1,
            durability: Durability::Fsync,
            overflow: Overflow::Backpressure,
            max_bytes: 1 << 30,
            max_age_ms: 0,
            replicas: 1,
        };
        Self { config, disk, device, flow: Flow::new(POOL_COST_DEFAULT), dir }
    }

    /// What a crash now would leave.
    pub(super) fn copy(&self) -> Self {
        let copy = tempfile::tempdir().unwrap();
        for folder in ["log", "pool"] {
            std::fs::create_dir(copy.path().join(folder)).unwrap();
            for file in std::fs::read_dir(self.dir.path().join(folder)).unwrap() {
                let file = file.unwrap();
                // Spares and half-written checkpoints come and go; segments stay.
                let name = file.file_name();
                let copied = std::fs::copy(file.path(), copy.path().join(folder).join(&name));
                let stays = folder == "log" && name.to_string_lossy().ends_with(".seg");
                assert!(copied.is_ok() || !stays, "{name:?} was not copied: {copied:?}");
            }
        }
        Self::over(copy)
    }

    fn key() -> PartitionKey {
        PartitionKey { topic: Name::new("t").unwrap(), partition: PartitionId(0) }
    }

    pub(super) async fn open(&self) -> PartitionHandle {
        PartitionHandle::open(self.options()).await.unwrap()
    }

    pub(super) fn options(&self) -> PartitionOptions {
        let replica = ReplicaOptions {
            replica: ReplicaId(1),
            birth: Birth::Forms,
            voters: vec![(ReplicaId(1), BrokerId(1))],
            dir: self.dir.path().join("log"),
            device: self.device.clone(),
            log: LogOptions {
                uuid: 7,
                retained_bytes: self.config.max_bytes,
                ..LogOptions::default()
            },
            durability: self.config.durability,
            loss_accepted: false,
            boot_id: 1,
            seed: 1,
            pace: Pace::STEADY,
            wiring: Wiring::alone(),
        };
        PartitionOptions {
            key: Self::key(),
            config: self.config,
            replica,
            flow: self.flow.clone(),
            lead_changed: Arc::default(),
            wall: Arc::new(OsWallClock),
            metrics: Metrics::new("test", 10),
        }
    }
}

/// Waits until what everybody may see is such.
pub(super) async fn until(
    partition: &PartitionHandle,
    holds: impl Fn(&PartitionView) -> bool,
) -> PartitionView {
    let reached = async {
        loop {
            let view = partition.view();
            if holds(&view) {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let reached = tokio::time::timeout(NEVER, reached).await;
    reached.unwrap_or_else(|_| panic!("never came to be: {:?}", partition.view()))
}

/// One connection with one publisher (producer 1) and at most one consumer at a time.
pub(super) struct Peer {
    outbox: Arc<Outbox>,
    flow: FlowStream,
    partition: PartitionHandle,
    port: Option<ConsumerPort>,
    streams: u32,
    frames: VecDeque<Frame>,
    /// Where the next delivery must begin.
    position: Option<u64>,
    credit: Grant,
}

const PUBLISHER: StreamId = StreamId(1);

impl Peer {
    pub(super) fn new(rig: &Rig, partition: &PartitionHandle) -> Self {
        static CONNECTIONS: AtomicU64 = AtomicU64::new(1);
        let outbox = Outbox::new(CONNECTIONS.fetch_add(1, Ordering::SeqCst));
        let flow = rig.flow.open(Rig::key(), outbox.grant_register(PUBLISHER));
        let partition = partition.clone();
        let credit = Grant { limit_cost: 1 << 20, limit_messages: 1_000, ..Grant::default() };
        let (port, frames, position) = (None, VecDeque::new(), None);
        Self { outbox, flow, partition, port, streams: 1, frames, position, credit }
    }

    pub(super) async fn publish(&mut self, base: u64, records: u32, bytes: u32) {
        let cost = u64::from(bytes.max(records * 512));
        while self.flow.unspent() < cost {
            self.flow.demand(cost, cost);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let reservation = self.flow.spend(cost, 0).unwrap();
        let mut header = BatchHeader::empty(BatchType::Data);
        header.producer_id = ProducerId(1);
        (header.base_sequence, header.record_count) = (Sequence(base), records);
        let body = Bytes::from(vec![base as u8; bytes as usize]);
        (header.body_len, header.body_crc) = (bytes, crc32fast::hash(&body));
        let reply = self.outbox.publish_reply(PUBLISHER, Sequence(base), records);
        let publish = PublishRequest { header, body, deadline: None, reservation, reply };
        self.partition.try_send(Request::Publish(publish)).unwrap();
    }

    pub(super) async fn answer(&mut self) -> Result<StoredRange, Refusal> {
        match self.frame(|frame| matches!(frame, Frame::Published(_) | Frame::Refused(_))).await {
            Frame::Published(mut published) => {
                let first = published.stored.remove(0);
                if !published.stored.is_empty() {
                    self.frames.push_front(Frame::Published(published));
                }
                Ok(first)
            }
            Frame::Refused(refused) => Err(refused.refusal),
            other => panic!("no answer: {other:?}"),
        }
    }

    pub(super) async fn answers(&mut self, count: usize) -> Vec<StoredRange> {
        let mut stored = Vec::new();
        while stored.len() < count {
            stored.push(self.answer().await.unwrap());
        }
        stored
    }

    pub(super) async fn next_sequence(
        &mut self,
        producer: ProducerId,
        epoch: u32,
    ) -> Result<Sequence, Refusal> {
        let (reply, answer) = RequestReply::channel();
        let open = Request::OpenPublisher { producer: Some((producer, epoch)), reply };
        self.partition.try_send(open).unwrap();
        answer.await.unwrap().map(|state| state.next_sequence)
    }

    pub(super) async fn subscribe(
        &mut self,
        name: Option<&str>,
        start: Start,
    ) -> Result<SubscribedState, Refusal> {
        self.subscribe_with(name, start, Needs::default()).await
    }

    pub(super) async fn subscribe_with(
        &mut self,
        name: Option<&str>,
        start: Start,
        needs: Needs,
    ) -> Result<SubscribedState, Refusal> {
        self.streams += 1;
        let port = self.outbox.open_consumer(StreamId(self.streams), self.credit);
        let (reply, answer) = RequestReply::channel();
        let subscription = name.map(|name| Name::new(name).unwrap());
        let ask = SubscribeRequest { subscription, start, needs, port: port.clone(), reply };
        self.partition.try_send(Request::Subscribe(ask)).unwrap();
        let state = answer.await.unwrap()?;
        self.port = Some(port);
        self.position = Some(state.start.0);
        Ok(state)
    }

    /// Takes deliveries, giving credit back, until `count` more records have arrived in order.
    pub(super) async fn delivered(&mut self, count: u64) {
        let mut left = count;
        while left > 0 {
            let frame = self.frame(|frame| matches!(frame, Frame::Deliver(_))).await;
            let Frame::Deliver(deliver) = frame else { panic!("no delivery: {frame:?}") };
            let mut records = 0;
            for batch in &deliver.batches {
                let head = batch.first_chunk().expect("a delivery holds whole batches");
                let header = BatchHeader::decode(head, deliver.salt).unwrap();
                header.check_body(&batch[128..header.wire_len()]).unwrap();
                let position = self.position.unwrap();
                assert!(header.base_offset.0 <= position && position < header.end_offset().0);
                records += header.end_offset().0 - position;
                self.position = Some(header.end_offset().0);
                self.credit.limit_cost += batch.len() as u64;
            }
            assert!(self.position <= Some(deliver.high_watermark.0));
            self.credit.limit_messages += u64::from(deliver.record_count);
            let stream = StreamId(self.streams);
            if self.outbox.consumer_credit(stream, self.credit) {
                self.poke();
            }
            left = left.checked_sub(records).expect("no more is delivered than there is");
        }
    }

    pub(super) fn settle(&mut self, upto: u64, confirm: bool) {
        if self.outbox.consumer_settle(StreamId(self.streams), Offset(upto), confirm) {
            self.poke();
        }
    }

    pub(super) async fn settled(&mut self) -> Offset {
        match self.frame(|frame| matches!(frame, Frame::Settled(_))).await {
            Frame::Settled(Settled { upto, refusal: None, .. }) => upto,
            other => panic!("not settled: {other:?}"),
        }
    }

    pub(super) async fn closed(&mut self) -> Option<Refusal> {
        match self.frame(|frame| matches!(frame, Frame::StreamClosed(_))).await {
            Frame::StreamClosed(closed) => closed.refusal,
            other => panic!("not closed: {other:?}"),
        }
    }

    fn poke(&self) {
        if let Some(port) = &self.port {
            self.partition.try_send(Request::Poke(port.id())).unwrap();
        }
    }

    /// The next frame of a kind; others are kept.
    async fn frame(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        let arrives = async {
            loop {
                if let Some(at) = self.frames.iter().position(&wanted) {
                    return self.frames.remove(at).expect("it was found there");
                }
                let taken = poll_fn(|context| {
                    self.outbox.register(context.waker());
                    let mut taken = Taken::default();
                    self.outbox.take(&mut taken);
                    let nothing = taken.frames.is_empty() && taken.pokes.is_empty();
                    if nothing { Poll::Pending } else { Poll::Ready(taken) }
                })
                .await;
                self.frames.extend(taken.frames);
                if !taken.pokes.is_empty() {
                    self.poke();
                }
            }
        };
        tokio::time::timeout(NEVER, arrives).await.expect("the frame never came")
    }
}
