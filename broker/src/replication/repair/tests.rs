//! Three logs of one group, damaged, that ask one another.

use super::*;
use crate::replication::PeerLost;
use crate::seams::BoxFuture;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use tempfile::TempDir;
use weir_protocol::batch::{ATTR_LAST_OF_INDEX, BatchBuilder};
use weir_protocol::types::Term;
use weir_storage::{Backend, OsDisk, ThreadExecutor};

const UUID: u128 = 7;
const INDEXES: u64 = 60;

/// The log of one replica, on a disk of its own.
struct Node {
    dir: TempDir,
    device: Arc<Device>,
}

fn options() -> LogOptions {
    LogOptions { uuid: UUID, retained_bytes: 8 << 20, ..LogOptions::default() }
}

/// A batch of its index; `of` is another where a replica had another leader.
fn batch(index: u64, of: u64) -> NewBatch {
    let mut builder = BatchBuilder::new(1 << 20);
    let value = vec![(index * of) as u8; 60_000];
    builder.push(index, None, &[], &value).unwrap();
    let built = builder.finish();
    let mut header = built.header;
    (header.index, header.term) = (Index(index), Term(of));
    header.attrs |= ATTR_LAST_OF_INDEX;
    NewBatch { header, body: vec![built.body] }
}

impl Node {
    fn new(batches: impl Iterator<Item = NewBatch>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let executor = Arc::new(ThreadExecutor::start().unwrap());
        let disk = Arc::new(OsDisk::new(Backend::Pwrite));
        let device = Device::open(disk, executor, dir.path(), 1).unwrap();
        let node = Self { dir, device };
        let mut log = node.open();
        batches.for_each(|batch| drop(log.append(vec![batch])));
        let (done, wait) = std::sync::mpsc::sync_channel(1);
        log.flush(Box::new(move |outcome| done.send(outcome).unwrap()));
        wait.recv().unwrap().unwrap();
        log.leave_watermark().unwrap();
        node
    }

    fn whole() -> Self {
        Self::new((1..=INDEXES).map(|index| batch(index, 1)))
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn open(&self) -> Log {
        Log::open(self.device.clone(), &self.folder(), options()).unwrap().0
    }

    /// The segments' files, the oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        let names = std::fs::read_dir(self.folder()).unwrap().map(|item| item.unwrap().path());
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|end| end == "seg");
        let mut paths: Vec<PathBuf> = names.filter(is_segment).collect();
        paths.sort();
        paths
    }

    /// Bends a batch, by its number in a segment: all are of one size.
    fn bend(&self, segment: usize, number: u64) {
        let path = &self.segments()[segment];
        let stored = batch(1, 1).header.stored_len() as u64;
        write(path, 4_096 + stored * number + 300);
        // A start does not read what an index tells it: who reads finds it, and notes it.
        assert!(count_unreadable(&self.open().reader()) > 0);
    }

    fn patient(&self, replica: u64, others: &[u64]) -> Patient {
        Patient {
            device: self.device.clone(),
            dir: self.folder(),
            log: options(),
            replica: ReplicaId(replica),
            others: others.iter().map(|other| (ReplicaId(*other), BrokerId(*other))).collect(),
        }
    }
}

fn write(path: &Path, position: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[!byte[0]], position).unwrap();
}

/// Brokers that can be asked, each with a log to read; who is not there is away.
#[derive(Default)]
struct Brokers {
    logs: Mutex<BTreeMap<u64, LogReader>>,
    asked: Mutex<Vec<u64>>,
}

impl Brokers {
    fn serve(&self, broker: u64, log: LogReader) {
        self.logs.lock().unwrap().insert(broker, log);
    }
}

impl Asks for Brokers {
    fn ask(
        &self,
        to: BrokerId,
        ask: Ask,
        _within: Duration,
    ) -> BoxFuture<'static, Result<Answer, PeerLost>> {
        let Ask::Fetch(asked) = ask else { panic!("{ask:?}") };
        assert_eq!(asked.address.to.0, to.0);
        self.asked.lock().unwrap().push(to.0);
        let log = self.logs.lock().unwrap().get(&to.0).cloned();
        let answer = log.map(|log| Answer::Fetched(fetch(&log, &asked)));
        Box::pin(async move { answer.ok_or(PeerLost::Unreachable) })
    }

    fn ask_at(
        &self,
        _address: &str,
        _ask: Ask,
        _within: Duration,
    ) -> BoxFuture<'static, Result<Answer, PeerLost>> {
        Box::pin(async { Err(PeerLost::Unreachable) })
    }
}

/// What a log holds.
fn contents(log: &LogReader) -> Vec<bytes::Bytes> {
    let of_index = |index| {
        let slices = indexes(log, Index(index), Index(index), 1).unwrap();
        let [slice] = slices.as_slice() else { panic!("index {index}: {slices:?}") };
        // Without the fields of one disk.
        assert_eq!(slice.header.index, Index(index));
        slice.bytes.slice(128..slice.header.wire_len())
    };
    (1..=INDEXES).map(of_index).collect()
}

async fn repair(
    node: &Node,
    replica: u64,
    others: &[u64],
    brokers: &Brokers,
) -> Result<Repaired, RepairError> {
    open_whole(node.patient(replica, others), brokers, |log| brokers.serve(replica, log)).await
}

#[tokio::test]
async fn three_damaged_replicas_mend_one_another_while_they_open() {
    let nodes = [Node::whole(), Node::whole(), Node::whole()];
    let truth = contents(&Node::whole().open().reader());
    nodes[0].bend(0, 3);
    nodes[0].bend(1, 2);
    nodes[1].bend(0, 5);
    write(&nodes[2].segments()[2], 60);
    write(&nodes[2].segments()[2], 2_108);
    let brokers = Brokers::default();
    // Before it knows how to read the others, each waits; then they serve what they have.
    for (number, node) in nodes.iter().enumerate() {
        let replica = number as u64 + 1;
        let others: Vec<u64> = (1..=3).filter(|other| *other != replica).collect();
        let opened = repair(node, replica, &others, &brokers).await.unwrap();
        assert_eq!(opened.left.is_empty(), number > 0, "{:?}", opened.left);
        if number == 0 {
            assert!(opened.left.iter().all(|(_, why)| matches!(why, Left::NotReachable)));
        }
    }
    for (number, node) in nodes.iter().enumerate() {
        let replica = number as u64 + 1;
        let others: Vec<u64> = (1..=3).filter(|other| *other != replica).collect();
        let opened = repair(node, replica, &others, &brokers).await.unwrap();
        assert!(opened.left.is_empty() && opened.recovered.damaged.is_empty());
        assert_eq!(opened.mended, if number == 0 { 2 } else { 0 });
        assert!(contents(&opened.log.reader()) == truth);
    }
}

#[tokio::test]
async fn what_nobody_has_is_told_and_the_rest_is_open() {
    let nodes = [Node::whole(), Node::whole(), Node::whole()];
    nodes.iter().for_each(|node| node.bend(0, 3));
    nodes[0].bend(0, 6);
    let brokers = Brokers::default();
    (1..3).for_each(|at| brokers.serve(at as u64 + 1, nodes[at].open().reader()));
    let opened = repair(&nodes[0], 1, &[2, 3], &brokers).await.unwrap();
    assert_eq!(opened.mended, 1);
    let [(range, Left::NobodyHasIt)] = opened.left.as_slice() else { panic!("{:?}", opened.left) };
    assert_eq!((range.first_index, range.last_index), (Index(4), Index(4)));
    assert_eq!(opened.recovered.damaged, std::slice::from_ref(range));
    assert!(indexes(&opened.log.reader(), Index(7), Index(7), 1).unwrap().len() == 1);
}

#[tokio::test]
async fn a_replica_that_went_another_way_mends_nothing_and_keeps_nobody_from_it() {
    let hurt = Node::whole();
    hurt.bend(1, 2);
    let held = hurt.open().reader().damaged_ranges();
    let first = held[0].first_index.0;
    // The same up to the hole, and another leader's behind: its chain continues ours.
    let strayed = Node::new((1..=INDEXES).map(|i| batch(i, if i < first { 1 } else { 2 })));
    let good = Node::whole();
    let brokers = Brokers::default();
    brokers.serve(2, strayed.open().reader());
    let opened = repair(&hurt, 1, &[2, 3], &brokers).await.unwrap();
    assert!(matches!(opened.left.as_slice(), [(_, Left::NotReachable)]), "{:?}", opened.left);
    drop(opened);
    brokers.serve(3, good.open().reader());
    let opened = repair(&hurt, 1, &[2, 3], &brokers).await.unwrap();
    assert_eq!((opened.mended, opened.left.len()), (1, 0));
    assert!(contents(&opened.log.reader()) == contents(&good.open().reader()));
}

fn count_unreadable(log: &LogReader) -> usize {
    (1..=INDEXES).filter(|i| indexes(log, Index(*i), Index(*i), 1).is_err()).count()
}

#[tokio::test]
async fn a_replica_with_doubtful_votes_is_lost_and_asks_nobody() {
    let hurt = Node::whole();
    let meta = hurt.folder().join("meta");
    (0..4).for_each(|copy| write(&meta, copy * 4_096 + 20));
    let brokers = Brokers::default();
    let opened = repair(&hurt, 1, &[2, 3], &brokers).await;
    assert!(matches!(opened, Err(RepairError::Lost(_))));
    assert!(brokers.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_whole_log_and_a_lonely_one_ask_nobody() {
    let (whole, lonely) = (Node::whole(), Node::whole());
    lonely.bend(0, 3);
    let brokers = Brokers::default();
    let opened = repair(&whole, 1, &[2, 3], &brokers).await.unwrap();
    assert!(opened.left.is_empty());
    let opened = repair(&lonely, 1, &[], &brokers).await.unwrap();
    assert!(matches!(opened.left.as_slice(), [(_, Left::NobodyHasIt)]));
    assert!(brokers.asked.lock().unwrap().is_empty());
}

#[test]
fn what_is_asked_for_comes_whole_and_bounded() {
    let node = Node::whole();
    let log = node.open().reader();
    let ask = |first, last, bytes_max| Fetch {
        request: weir_protocol::types::RequestId(0),
        address: weir_protocol::peer::GroupAddress { to: ReplicaId(1), from: ReplicaId(2) },
        first: Index(first),
        last: Index(last),
        bytes_max,
    };
    let count = |fetched: &FetchedBatches| {
        fetched.parts.iter().map(|part| part.batches.len()).sum::<usize>()
    };
    let one = fetch(&log, &ask(5, INDEXES, 1)).unwrap();
    assert_eq!((count(&one), one.more), (1, true), "the first comes whole all the same");
    let all = fetch(&log, &ask(5, INDEXES, u32::MAX)).unwrap();
    assert!(count(&all) < 20 && count(&all) > 14 && all.more, "{} of 60 KB each", count(&all));
    assert!(all.parts.len() > 1, "of several segments");
    let records = records_in(&all.parts).unwrap();
    assert_eq!(records.len(), count(&all));
    let end = fetch(&log, &ask(INDEXES - 1, INDEXES + 5, u32::MAX)).unwrap();
    assert_eq!(count(&end), 2);
    assert_eq!(fetch(&log, &ask(INDEXES + 1, INDEXES + 5, 100)), Err(PeerRefusal::Damaged));
    node.bend(0, 7);
    let log = node.open().reader();
    assert_eq!(fetch(&log, &ask(8, 20, u32::MAX)), Err(PeerRefusal::Damaged));
    assert_eq!(count(&fetch(&log, &ask(5, 20, u32::MAX)).unwrap()), 3, "up to what is damaged");
}
