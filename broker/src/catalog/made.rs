//! Which replicas were ever made in this data directory.
//!
//! Owns: the file `replicas.meta`.
//! Never: says what became of a replica.
//! Invariants: a replica is in it, durably, before anything of it is written: one with an empty log
//! that is not in it never voted and never acknowledged anything. The file is replaced as a whole.
//! Where it is missing in a directory that has been used, or is not whole, every replica that the
//! metadata knew by then counts as made.
//!
//! ```text
//!  0 magic8 "WEIRREP\x01"  8 crc4 of [12..)  12 version2=1  14 0u16  16 cluster_id16
//! 32 all_below8 (these were made, as far as anybody knows)  40 replica8, ascending, to the end
//! ```

use super::Rooms;
use super::opening::placed_on;
use crate::replication::metadata::{CLUSTER_PARTITIONS_MAX, Catalog as Topics};
use crate::seams::on_lane;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weir_protocol::types::{BrokerId, ReplicaId};
use weir_storage::{Device, Disk, Lane, OpenError, sealed};

const NAME: &str = "replicas.meta";
const MAGIC: [u8; 8] = *b"WEIRREP\x01";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 40;
const ROW_BYTES: usize = 8;
const FILE_BYTES_MAX: usize = HEAD_BYTES + CLUSTER_PARTITIONS_MAX * ROW_BYTES;

/// The replicas that were made here.
pub(super) struct Made {
    device: Arc<Device>,
    root: PathBuf,
    cluster: u128,
    rows: Mutex<Rows>,
    /// Held by whoever writes: those that come meanwhile are written together, by the next.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rows {
    /// All with a lower number count as made.
    all_below: ReplicaId,
    replicas: BTreeSet<ReplicaId>,
    /// What is to be in the file next, and is not made yet.
    coming: BTreeSet<ReplicaId>,
}

impl Rows {
    /// What is to be held for made by what was read. `belonged`: whether anything may have been made
    /// before.
    fn at_start(read: Option<Self>, topics: &Topics, (broker, belonged): (BrokerId, bool)) -> Self {
        let unknown_from = above_all(topics);
        let all_below = if belonged { unknown_from } else { ReplicaId(0) };
        let mut rows = read.unwrap_or_else(|| Self { all_below, ..Self::default() });
        let placed = topics.partitions().filter_map(|(_, of)| placed_on(of, broker));
        let placed: BTreeSet<_> = placed.map(|placed| placed.replica).collect();
        // No number is given twice: what is placed here no more never will be again. What is not
        // known yet was made after what this copy of the metadata has got to.
        rows.replicas.retain(|made| placed.contains(made) || *made >= unknown_from);
        rows
    }

    fn have(&self, replica: ReplicaId) -> bool {
        replica < self.all_below || self.replicas.contains(&replica)
    }

    fn encode(&self, cluster: u128) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_BYTES];
        bytes[12..14].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&cluster.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.all_below.to_le_bytes());
        self.replicas.iter().for_each(|made| bytes.extend_from_slice(&made.to_le_bytes()));
        sealed::seal(&mut bytes, MAGIC);
        bytes
    }

    fn decode(bytes: &[u8], cluster: u128) -> Option<Self> {
        let (head, rows) = bytes.split_at_checked(HEAD_BYTES)?;
        let version = u16::from_le_bytes(head[12..14].try_into().ok()?);
        let same = u128::from_le_bytes(head[16..32].try_into().ok()?) == cluster;
        if !sealed::is_whole(bytes, MAGIC) || version != VERSION || !same {
            return None;
        }
        let (rows, rest) = rows.as_chunks::<ROW_BYTES>();
        let replicas = rows.iter().map(|row| ReplicaId(u64::from_le_bytes(*row))).collect();
        let all_below = ReplicaId(u64::from_le_bytes(head[32..40].try_into().ok()?));
        rest.is_empty().then_some(Self { all_below, replicas, ..Self::default() })
    }
}

impl Made {
    /// What the data directory says. `topics`: the metadata as it is now.
    pub(super) async fn open(rooms: &Rooms, topics: &Topics) -> Self {
        let (device, root, cluster) = (&rooms.device, &rooms.data_dir, rooms.cluster);
        let read = {
            let (device, root) = (device.clone(), root.clone());
            move || read(&**device.disk(), &root, cluster)
        };
        let read = on_lane(device.executor(), Lane::Read, read).await;
        let is_there = read.is_some();
        let rows = Rows::at_start(read, topics, (rooms.broker, rooms.belonged));
        let (device, root) = (device.clone(), root.clone());
        let writing = tokio::sync::Mutex::default();
        let made = Self { device, root, cluster, rows: Mutex::new(rows.clone()), writing };
        if !is_there && let Err(error) = made.write(&rows).await {
            tracing::warn!(%error, "{NAME} is not written yet; a replica that is made is told then");
        }
        made
    }

    /// Notes durably that a replica is made from now on; returns whether it was before.
    pub(super) async fn add(&self, replica: ReplicaId) -> Result<bool, OpenError> {
        {
            let mut rows = self.rows();
            if rows.have(replica) {
                return Ok(true);
            }
            rows.coming.insert(replica);
        }
        let _turn = self.writing.lock().await;
        let mut next = self.rows().clone();
        if next.have(replica) {
            // Whoever wrote before took it along.
            return Ok(false);
        }
        next.replicas.append(&mut next.coming);
        let written = self.write(&next).await;
        let mut rows = self.rows();
        match &written {
            Ok(()) => {
                rows.coming.retain(|coming| !next.replicas.contains(coming));
                rows.replicas = next.replicas;
            }
            Err(_) => drop(rows.coming.remove(&replica)),
        }
        written?;
        Ok(false)
    }

    /// The replica is gone, and its files with it.
    pub(super) fn forget(&self, replica: ReplicaId) {
        self.rows().replicas.remove(&replica);
    }

    async fn write(&self, rows: &Rows) -> Result<(), OpenError> {
        let (device, root, bytes) =
            (self.device.clone(), self.root.clone(), rows.encode(self.cluster));
        let write = move || sealed::replace_small(&**device.disk(), &root, NAME, &bytes);
        let written = on_lane(self.device.executor(), Lane::Checkpoint, write).await;
        written.map_err(OpenError::device(&self.root.join(NAME)))
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Above every replica that the metadata knows.
fn above_all(topics: &Topics) -> ReplicaId {
    let known = topics.partitions().flat_map(|(_, of)| &of.replicas).map(|placed| placed.replica.0);
    ReplicaId(known.max().map_or(0, |newest| newest + 1))
}

/// What the file says; none where it says nothing that is whole about this cluster.
fn read(disk: &dyn Disk, root: &Path, cluster: u128) -> Option<Rows> {
    match sealed::read_small(disk, &root.join(NAME), FILE_BYTES_MAX) {
        Ok(bytes) => {
            let bytes = bytes?;
            let rows = Rows::decode(&bytes, cluster);
            if rows.is_none() {
                tracing::warn!(
                    "{NAME} is damaged: an empty replica here counts as one that was lost"
                );
            }
            rows
        }
        Err(error) => {
            tracing::warn!(%error, "{NAME} cannot be read: an empty replica here counts as lost");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::sweep::tests::topics;

    fn rows() -> Rows {
        let replicas = [9, 12, 300].map(ReplicaId).into();
        Rows { all_below: ReplicaId(7), replicas, ..Rows::default() }
    }

    #[test]
    fn the_file_is_the_golden_one() {
        let hex: String = rows().encode(0xC1).iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = concat!(
            "5745495252455001d3fee16901000000c1000000000000000000000000000000",
            "070000000000000009000000000000000c000000000000002c01000000000000",
        );
        assert_eq!(hex, golden);
        assert_eq!(Rows::decode(&rows().encode(0xC1), 0xC1), Some(rows()));
        assert_eq!(Rows::decode(&rows().encode(0xC1), 0xC2), None, "of another cluster");
    }

    #[test]
    fn what_is_not_whole_is_not_believed() {
        let whole = rows().encode(0xC1);
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Rows::decode(&bytes, 0xC1), None, "bit {bit}");
        }
        for cut in 0..whole.len() {
            assert_eq!(Rows::decode(&whole[..cut], 0xC1), None, "cut at {cut}");
        }
    }

    #[test]
    fn without_a_file_all_that_is_known_counts_as_made_but_in_a_new_directory() {
        // Its partition has the replicas 4, 5 and 6 on the brokers 1, 2 and 3.
        let here = BrokerId(2);
        let used = Rows::at_start(None, &topics(), (here, true));
        assert!([4, 5, 6].map(ReplicaId).iter().all(|replica| used.have(*replica)));
        assert!(!used.have(ReplicaId(7)), "what is placed later is new");
        assert!(!Rows::at_start(None, &topics(), (here, false)).have(ReplicaId(5)));
    }

    #[test]
    fn the_file_counts_for_more_but_for_what_is_not_placed_here_any_more() {
        let replicas = [4, 5, 300].map(ReplicaId).into();
        let read = Rows { replicas, ..Rows::default() };
        let known = Rows::at_start(Some(read), &topics(), (BrokerId(2), true));
        assert!(known.have(ReplicaId(5)) && !known.have(ReplicaId(4)), "that is another broker's");
        assert!(known.have(ReplicaId(300)), "this copy of the metadata does not know it yet");
    }

    /// At a start the metadata may be read only in part, or not at all yet.
    #[test]
    fn what_was_made_stays_made_while_the_metadata_is_old() {
        let read = rows();
        let known = Rows::at_start(Some(read.clone()), &Topics::default(), (BrokerId(2), true));
        assert_eq!(known, read);
    }

    #[test]
    fn what_was_made_is_known_and_what_is_new_is_not() {
        let rows = rows();
        let have: Vec<u64> = (0..15).filter(|number| rows.have(ReplicaId(*number))).collect();
        assert_eq!(have, [0, 1, 2, 3, 4, 5, 6, 9, 12]);
    }
}
