//! Where the others of the cluster were when this broker was last among them.
//!
//! Owns: the file `peers.meta`, from which a broker finds the others again when its seeds are gone or
//! were changed, and knows whom to ask for what damage took of its copy of the metadata.
//! Never: decides anything by it: whoever is found there proves who it is.
//! Invariants: what is not whole, or is of another cluster, is as good as none, and written anew
//! before long. The file is replaced as a whole.
//!
//! ```text
//!  0 magic8 "WEIRPEE\x01"  8 crc4 of [12..)  12 version2=1  14 count2  16 cluster_id16
//! 32 count times: broker8 metadata_replica8 (0 = none) len1 address
//! ```

use crate::replication::metadata::{Address, Catalog, Stage};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use weir_protocol::limits::BROKERS_MAX;
use weir_protocol::types::{BrokerId, ReplicaId};
use weir_storage::{Disk, sealed};

const NAME: &str = "peers.meta";
const MAGIC: [u8; 8] = *b"WEIRPEE\x01";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 32;
/// Broker, replica and the length of the address.
const ROW_BYTES: usize = 17;
const FILE_BYTES_MAX: usize = HEAD_BYTES + BROKERS_MAX * (ROW_BYTES + u8::MAX as usize);

/// One broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownBroker {
    /// Where it listens for peers.
    pub(super) peer: Address,
    /// Its replica of the metadata; 0 = none.
    pub(super) metadata_replica: ReplicaId,
}

/// What is known of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Which; 0 = of none.
    pub(super) cluster: u128,
    pub(super) brokers: BTreeMap<BrokerId, KnownBroker>,
}

impl Known {
    /// What the metadata says.
    pub(super) fn of(catalog: &Catalog) -> Self {
        let there = catalog.brokers.values().filter(|card| !catalog.is_succeeded(card.id));
        let known = there.filter_map(|card| {
            let mut copies = catalog.metadata.iter().filter(|copy| copy.broker == card.id);
            let whole = copies.find(|copy| !matches!(copy.stage, Stage::Lost(_) | Stage::Leaving));
            let metadata_replica = whole.map_or(ReplicaId(0), |copy| copy.replica);
            let peer = card.facts.as_ref()?.peer.clone();
            Some((card.id, KnownBroker { peer, metadata_replica }))
        });
        Self { cluster: catalog.cluster, brokers: known.collect() }
    }

    /// The replicas of the metadata that are known.
    pub(super) fn metadata(&self) -> Vec<(ReplicaId, BrokerId)> {
        let copies = self.brokers.iter().map(|(id, known)| (known.metadata_replica, *id));
        copies.filter(|(replica, _)| replica.0 != 0).collect()
    }

    /// What `root` says of this cluster; nothing where it says nothing that is whole.
    pub(super) fn read(disk: &dyn Disk, root: &Path, cluster: u128) -> Self {
        let none = Self { cluster, ..Self::default() };
        let bytes = match sealed::read_small(disk, &root.join(NAME), FILE_BYTES_MAX + 1) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return none,
            Err(error) => {
                tracing::warn!(%error, "{NAME} cannot be read; the others are looked for by cluster.seeds");
                return none;
            }
        };
        match Self::decode(&bytes) {
            Some(known) if known.cluster == cluster => known,
            Some(_) => none,
            None => {
                tracing::warn!("{NAME} is damaged; the others are looked for by cluster.seeds");
                none
            }
        }
    }

    /// Writes it down, durably, in place of what was known before.
    pub(super) fn store(&self, disk: &dyn Disk, root: &Path) -> io::Result<()> {
        sealed::replace_small(disk, root, NAME, &self.encode())
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_BYTES];
        bytes[12..14].copy_from_slice(&VERSION.to_le_bytes());
        bytes[14..16].copy_from_slice(&(self.brokers.len() as u16).to_le_bytes());
        bytes[16..32].copy_from_slice(&self.cluster.to_le_bytes());
        for (broker, known) in &self.brokers {
            bytes.extend_from_slice(&broker.to_le_bytes());
            bytes.extend_from_slice(&known.metadata_replica.to_le_bytes());
            let address = known.peer.as_str().as_bytes();
            bytes.push(address.len() as u8);
            bytes.extend_from_slice(address);
        }
        sealed::seal(&mut bytes, MAGIC);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, mut rows) = bytes.split_at_checked(HEAD_BYTES)?;
        let version = u16::from_le_bytes(head[12..14].try_into().ok()?);
        if !sealed::is_whole(bytes, MAGIC) || version != VERSION {
            return None;
        }
        let count = u16::from_le_bytes(head[14..16].try_into().ok()?);
        let cluster = u128::from_le_bytes(head[16..32].try_into().ok()?);
        let mut brokers = BTreeMap::new();
        for _ in 0..count {
            let (row, rest) = rows.split_at_checked(ROW_BYTES)?;
            let (address, rest) = rest.split_at_checked(usize::from(row[16]))?;
            let broker = BrokerId(u64::from_le_bytes(row[..8].try_into().ok()?));
            let metadata_replica = ReplicaId(u64::from_le_bytes(row[8..16].try_into().ok()?));
            let peer = Address::new(std::str::from_utf8(address).ok()?)?;
            brokers.insert(broker, KnownBroker { peer, metadata_replica });
            rows = rest;
        }
        let is_whole = rows.is_empty() && brokers.len() == usize::from(count);
        is_whole.then_some(Self { cluster, brokers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_storage::{Backend, OsDisk};

    fn known() -> Known {
        let broker = |id: u64, peer: &str, replica| {
            let peer = Address::new(peer).unwrap();
            (BrokerId(id), KnownBroker { peer, metadata_replica: ReplicaId(replica) })
        };
        Known { cluster: 0xC1, brokers: [broker(1, "a:1", 1), broker(4, "bc:22", 0)].into() }
    }

    #[test]
    fn what_is_known_has_its_golden_bytes() {
        let hex: String = known().encode()[12..].iter().map(|b| format!("{b:02x}")).collect();
        let golden = concat!(
            "01000200",
            "c1000000000000000000000000000000",
            "01000000000000000100000000000000",
            "03613a31",
            "04000000000000000000000000000000",
            "0562633a3232",
        );
        assert_eq!(hex, golden);
        assert_eq!(known().encode()[..8], MAGIC);
        assert_eq!(Known::decode(&known().encode()), Some(known()));
        assert_eq!(known().metadata(), [(ReplicaId(1), BrokerId(1))]);
    }

    #[test]
    fn what_is_not_whole_is_as_good_as_none() {
        let whole = known().encode();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Known::decode(&bytes), None, "bit {bit}");
        }
        for cut in 0..whole.len() {
            assert_eq!(Known::decode(&whole[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn it_is_found_again_and_that_of_another_cluster_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, root) = (OsDisk::new(Backend::Pwrite), folder.path());
        let none = Known { cluster: 0xC1, ..Known::default() };
        assert_eq!(Known::read(&disk, root, 0xC1), none);
        for _ in 0..2 {
            known().store(&disk, root).unwrap();
            assert_eq!(Known::read(&disk, root, 0xC1), known());
        }
        assert!(Known::read(&disk, root, 0xC2).brokers.is_empty());
        std::fs::write(root.join(NAME), b"WEIR").unwrap();
        assert_eq!(Known::read(&disk, root, 0xC1), none);
    }
}
