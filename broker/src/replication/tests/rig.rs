//! A replica on a device whose flushes can be held back or made to fail.

use super::super::*;
use super::faults::{Faults, FaultyDisk};
use std::path::{Path, PathBuf};
use std::time::Duration;
use weir_protocol::batch::BatchType;
use weir_protocol::types::BrokerId;
use weir_sim::disk::SimDisk;
use weir_storage::{Backend, Device, Executor, Job, Lane, LogOptions, OsDisk, ThreadExecutor};

/// Nothing a test waits for takes this long, unless it never comes.
pub(super) const NEVER: Duration = Duration::from_secs(20);
/// Long enough for a thing that must not happen to happen.
pub(super) const A_WHILE: Duration = Duration::from_millis(60);

/// One device and its faults.
pub(super) struct Rig {
    pub faults: Arc<Faults>,
    device: Arc<Device>,
    dir: PathBuf,
    /// Of a rig on a real disk.
    _scratch: Option<tempfile::TempDir>,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::on(Arc::new(ThreadExecutor::start().unwrap()))
    }

    /// All work of the device happens where it is submitted.
    pub(super) fn on_one_thread() -> Self {
        Self::on(Arc::new(Here))
    }

    fn on(executor: Arc<dyn Executor>) -> Self {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Arc::new(Faults::default()));
        let disk = FaultyDisk { disk: OsDisk::new(Backend::Map), faults: faults.clone() };
        let device = Device::open(Arc::new(disk), executor, dir.path(), 1).unwrap();
        Self { faults, device, dir: dir.path().join("log"), _scratch: Some(dir) }
    }

    /// On a disk in memory, in the life of a process that `seed` tells from others.
    pub(super) fn in_memory(disk: SimDisk, seed: u64) -> Self {
        let root = Path::new("/data");
        let device = Device::open(Arc::new(disk), Arc::new(Here), root, seed).unwrap();
        Self { faults: Arc::default(), device, dir: root.join("log"), _scratch: None }
    }

    pub(super) fn options(&self, durability: Durability) -> ReplicaOptions {
        ReplicaOptions {
            replica: ReplicaId(1),
            birth: Birth::Forms,
            voters: vec![(ReplicaId(1), BrokerId(1))],
            dir: self.dir.clone(),
            device: self.device.clone(),
            log: LogOptions { uuid: 7, ..LogOptions::default() },
            durability,
            loss_accepted: false,
            boot_id: 1,
            seed: 1,
            pace: Pace::STEADY,
            wiring: Wiring::alone(),
        }
    }

    pub(super) async fn open(&self) -> (Replica, OpenReport) {
        Replica::open(self.options(Durability::Fsync)).await.unwrap()
    }

    /// A replica that leads, and its term.
    pub(super) async fn leader(&self) -> (Replica, Term) {
        let (replica, _) = self.open().await;
        let term = until(&replica, |state| state.leading().is_some()).await.leading().unwrap();
        (replica, term)
    }
}

/// A test that fails while it holds a flush must end all the same.
impl Drop for Rig {
    fn drop(&mut self) {
        self.faults.release();
    }
}

#[derive(Debug)]
struct Here;

impl Executor for Here {
    fn submit(&self, _lane: Lane, job: Job) {
        job();
    }
}

/// Waits until the replica's state is such.
pub(super) async fn until(
    replica: &Replica,
    holds: impl FnMut(&ReplicaState) -> bool,
) -> ReplicaState {
    let mut states = replica.state();
    let reached = tokio::time::timeout(NEVER, states.wait_for(holds)).await;
    reached.expect("the state was never reached").unwrap().clone()
}

/// Trims a log of which no reader wants anything any more.
pub(super) async fn trim_unread(replica: &Replica, upto: Index) -> Result<Index, MaintainError> {
    replica.readers_begin_at(replica.log().bounds().log_end);
    replica.trim(upto).await
}

pub(super) async fn committed(replica: &Replica, index: u64) -> ReplicaState {
    until(replica, |state| state.committed >= Index(index)).await
}

/// A batch of one record that nobody could decode.
pub(super) fn batch(run: u32, number: u32) -> NewBatch {
    let mut header = BatchHeader::empty(BatchType::Data);
    header.record_count = 1;
    (header.run, header.run_number) = (run, number);
    let body = bytes::Bytes::from_static(b"no record table");
    header.body_len = body.len() as u32;
    header.body_crc = crc32fast::hash(&body);
    NewBatch { header, body: vec![body] }
}

pub(super) fn proposal(term: Term, run: u32, numbers: std::ops::Range<u32>) -> Proposal {
    Proposal { term, batches: numbers.map(|number| batch(run, number)).collect() }
}

/// Type and number of every batch from `from` on.
pub(super) async fn batches(replica: &Replica, from: u64) -> Vec<(BatchType, u32)> {
    let slices = replica.read(Index(from), usize::MAX).await.unwrap();
    slices.iter().map(|slice| (slice.header.batch_type, slice.header.run_number)).collect()
}
