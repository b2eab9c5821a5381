//! Who this broker is, written into the data directory at the first start.
//!
//! Owns: the file `node.meta`.
//! Never: makes a new identity for a directory whose identity cannot be read.
//!
//! ```text
//! 0 magic8 "WEIRNOD\x01"  8 crc4 of [12..64)  12 version2  14 0u16
//! 16 broker_id8  24 cluster_id16  40 zeros to 64
//! ```

use std::path::{Path, PathBuf};
use weir_protocol::types::BrokerId;
use weir_storage::Disk;

const MAGIC: [u8; 8] = *b"WEIRNOD\x01";
const VERSION: u16 = 1;
const FILE_BYTES: usize = 64;
/// The salt that sets the metadata log's uuid apart from the cluster's id.
const METADATA_UUID_SALT: u128 = 0x6d65_7461_6461_7461;

/// Who this broker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Unique within the cluster.
    pub broker: BrokerId,
    /// Of the cluster that this broker formed.
    pub cluster: u128,
}

/// Why the identity is not known.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file is there and is not what was written.
    #[error("{} is damaged; restore it from a backup, or move the data directory away", .0.display())]
    Damaged(PathBuf),
    /// Written by a newer version.
    #[error("{} has version {found}, this build reads up to {VERSION}: use a newer build", file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u16,
    },
    /// The device failed.
    #[error("{}: {source}", path.display())]
    Device {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
}

impl Identity {
    /// Reads the identity in `root`, or writes a new one made of `random`.
    pub fn open(disk: &dyn Disk, root: &Path, random: u128) -> Result<Self, IdentityError> {
        let path = root.join("node.meta");
        let failed = |source| IdentityError::Device { path: path.clone(), source };
        let names = disk.list(root).map_err(failed)?;
        if !names.iter().any(|name| name == "node.meta") {
            let identity = Self { broker: BrokerId(1), cluster: random.max(1) };
            identity.store(disk, root, &path).map_err(failed)?;
            return Ok(identity);
        }
        let file = disk.open(&path).map_err(failed)?;
        if file.len() < FILE_BYTES as u64 {
            return Err(IdentityError::Damaged(path));
        }
        let mut bytes = [0; FILE_BYTES];
        file.read_at(0, &mut bytes).map_err(failed)?;
        Self::decode(&bytes, &path)
    }

    /// The identity of the metadata log.
    pub fn metadata_uuid(self) -> u128 {
        self.cluster ^ METADATA_UUID_SALT
    }

    fn store(self, disk: &dyn Disk, root: &Path, path: &Path) -> std::io::Result<()> {
        let fresh = root.join("node.meta.new");
        if disk.list(root)?.iter().any(|name| name == "node.meta.new") {
            disk.remove(&fresh)?;
        }
        let file = disk.create(&fresh, FILE_BYTES as u64)?;
        file.write_at(0, &self.encode())?;
        file.flush(0..FILE_BYTES as u64)?;
        disk.rename(&fresh, path)?;
        disk.sync_dir(root)
    }

    fn encode(self) -> [u8; FILE_BYTES] {
        let mut bytes = [0; FILE_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[12..14].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.broker.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.cluster.to_le_bytes());
        let crc = crc32fast::hash(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; FILE_BYTES], path: &Path) -> Result<Self, IdentityError> {
        let crc = crc32fast::hash(&bytes[12..]).to_le_bytes();
        if bytes[..8] != MAGIC || bytes[8..12] != crc {
            return Err(IdentityError::Damaged(path.to_owned()));
        }
        let found = u16::from_le_bytes([bytes[12], bytes[13]]);
        if found > VERSION {
            return Err(IdentityError::Newer { file: path.to_owned(), found });
        }
        let number = |from: usize, to: usize| {
            bytes[from..to].iter().rev().fold(0u128, |number, byte| number << 8 | u128::from(*byte))
        };
        Ok(Self { broker: BrokerId(number(16, 24) as u64), cluster: number(24, 40) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_storage::{Backend, OsDisk};

    #[test]
    fn an_identity_is_made_once_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let disk = OsDisk::new(Backend::Map);
        let made = Identity::open(&disk, folder.path(), 77).unwrap();
        assert_eq!(Identity::open(&disk, folder.path(), 78).unwrap(), made);
        assert_eq!(made.cluster, 77);
        let path = folder.path().join("node.meta");
        let whole = std::fs::read(&path).unwrap();
        for bit in (0..40 * 8).step_by(7) {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).unwrap();
            let opened = Identity::open(&disk, folder.path(), 79);
            assert!(matches!(opened, Err(IdentityError::Damaged(_))), "bit {bit}");
        }
    }
}
