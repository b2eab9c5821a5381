//! A replica on a device whose flushes can be held back or made to fail.

use super::super::*;
use std::path::Path;
use std::time::Duration;
use weir_protocol::batch::BatchType;
use weir_protocol::types::BrokerId;
use weir_storage::{Device, Faults, LogOptions, ThreadExecutor};

/// Nothing a test waits for takes this long, unless it never comes.
const NEVER: Duration = Duration::from_secs(20);
/// Long enough for a thing that must not happen to happen.
pub(super) const A_WHILE: Duration = Duration::from_millis(60);

/// One data directory and its faults.
pub(super) struct Rig {
    pub faults: Arc<Faults>,
    dir: tempfile::TempDir,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self { faults: Arc::default(), dir: tempfile::tempdir().unwrap() }
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn options(&self, durability: Durability) -> ReplicaOptions {
        let device = Device { executor: Arc::new(ThreadExecutor), faults: self.faults.clone() };
        ReplicaOptions {
            replica: ReplicaId(1),
            voters: vec![(ReplicaId(1), BrokerId(1))],
            dir: self.dir().to_owned(),
            device: Arc::new(device),
            log: LogOptions {},
            durability,
            seed: 1,
            heartbeat_ms: HEARTBEAT_MS,
            election_ms: ELECTION_MS,
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

    pub(super) fn hold_flushes(&self) {
        *self.faults.hold.lock().unwrap() = true;
    }

    pub(super) fn release_flushes(&self) {
        *self.faults.hold.lock().unwrap() = false;
        self.faults.cv.notify_all();
    }

    pub(super) fn fail_flushes(&self, kind: std::io::ErrorKind) {
        *self.faults.fail.lock().unwrap() = Some(kind);
    }

    pub(super) fn flushes(&self) -> usize {
        self.faults.flushes.load(std::sync::atomic::Ordering::SeqCst)
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

pub(super) async fn committed(replica: &Replica, index: u64) -> ReplicaState {
    until(replica, |state| state.committed >= Index(index)).await
}

/// A batch of one record that nobody could decode.
pub(super) fn batch(run: u32, number: u32) -> NewBatch {
    let mut header = BatchHeader::empty(BatchType::Data);
    header.record_count = 1;
    (header.run, header.run_number) = (run, number);
    let body = bytes::Bytes::from_static(b"no record table");
    header.body_crc = 0;
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
