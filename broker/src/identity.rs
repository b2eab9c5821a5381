//! Who this broker is, written into the data directory at the first start.
//!
//! Owns: the file `node.meta`.
//! Never: makes a new identity for a directory whose identity cannot be read.
//! Invariants: a broker that was never one of several keeps version 1, which older builds read. The
//! file is replaced as a whole: a crash leaves the old one or the new one.
//!
//! ```text
//! version 1:  0 magic8 "WEIRNOD\x01"  8 crc4 of [12..64)  12 version2=1  14 0u16
//!            16 broker_id8  24 cluster_id16  40 zeros to 64
//! version 2:  0 magic8  8 crc4 of [12..96)  12 version2=2  14 0u16  16 broker_id8  24 cluster_id16
//!            40 state1 (0 empty, 1 forming, 2 member)  41 flags1 (1 = its metadata was opened)
//!            42 token16  58 founders2  60 founding_voters1  61 0  64 metadata_replica8 (0 = none)
//!            72 zeros to 96
//! ```

use crate::replication::Birth;
use crate::replication::metadata::{Command, FOUNDER, METADATA_REPLICA};
use std::path::{Path, PathBuf};
use weir_protocol::limits::BROKERS_MAX;
use weir_protocol::peer::MemberState;
use weir_protocol::types::{BrokerId, ReplicaId};
use weir_storage::{Disk, sealed};

const NAME: &str = "node.meta";
const MAGIC: [u8; 8] = *b"WEIRNOD\x01";
const VERSION_ALONE: u16 = 1;
const VERSION: u16 = 2;
const FILE_BYTES_ALONE: usize = 64;
const FILE_BYTES: usize = 96;
/// Longer than any version of the file will ever be.
const FILE_BYTES_MAX: usize = 4 << 10;
const FLAG_OPENED: u8 = 1;
/// The salt that sets the metadata log's uuid apart from the cluster's id.
const METADATA_UUID_SALT: u128 = 0x6d65_7461_6461_7461;
/// Brokers from which on the metadata is given more voters.
const BROKERS_FOR_3_VOTERS: u16 = 3;
const BROKERS_FOR_5_VOTERS: u16 = 7;

/// The brokers that form a cluster: they have the ids from 1 on, and the first of them the first
/// voters of the metadata, whose replicas have the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Founders {
    /// How many they are; 0 = the broker joined a cluster that was there.
    pub brokers: u16,
    /// How many of them vote on metadata: 1, 3 or 5.
    pub voters: u8,
}

impl Founders {
    /// `brokers` of them, with `wanted` voters where there are as many brokers; 0 = as many as fit.
    pub fn new(brokers: u16, wanted: u8) -> Self {
        let fit = match brokers {
            0..BROKERS_FOR_3_VOTERS => 1,
            BROKERS_FOR_3_VOTERS..BROKERS_FOR_5_VOTERS => 3,
            BROKERS_FOR_5_VOTERS.. => 5,
        };
        let possible = wanted != 0 && u16::from(wanted) <= brokers;
        Self { brokers, voters: if possible { wanted } else { fit } }
    }

    /// The first voters of the metadata.
    pub fn voters(self) -> Vec<(ReplicaId, BrokerId)> {
        (1..=u64::from(self.voters)).map(|n| (ReplicaId(n), BrokerId(n))).collect()
    }

    /// Whether a cluster may be formed so.
    pub fn is_possible(self) -> bool {
        let voters = u16::from(self.voters);
        let some = matches!(voters, 1 | 3 | 5) && voters <= self.brokers;
        self == Self::default() || some && usize::from(self.brokers) <= BROKERS_MAX
    }
}

/// Who this broker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Unique within the cluster; 0 = none yet.
    pub broker: BrokerId,
    /// Of the cluster that this broker belongs to; 0 = to none yet.
    pub cluster: u128,
    /// How far it belongs to it.
    pub state: MemberState,
    /// Of this data directory, random, for ever: a broker without an id is known by it. 0 = it was
    /// never one of several.
    pub token: u128,
    /// Who formed the cluster, where this broker was among them.
    pub founders: Founders,
    /// Its replica of the metadata; 0 = none yet.
    pub metadata_replica: ReplicaId,
    /// Its metadata was opened and had a leader: an empty log of it is lost from then on.
    pub is_opened: bool,
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
    /// The directory is a broker's that is one of several, and the configuration names no other.
    #[error(
        "{} says that this broker is one of several, but cluster.seeds names none: name them, or \
         move the data directory away to start alone", .0.display()
    )]
    NoSeeds(PathBuf),
    /// The cluster removed this broker, and gives nobody its id again.
    #[error(
        "broker {broker} was removed from its cluster, as {told_by} says, and no removed broker comes \
         back; start it with an empty data directory and the same cluster.seeds, and it joins as a \
         new one: ops/runbook/removed-broker.md"
    )]
    Removed {
        /// As which it was known.
        broker: BrokerId,
        /// The address of the broker that passed the cluster's answer on.
        told_by: String,
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
    /// Reads the identity of a broker that is alone in `root`, or writes a new one made of `random`.
    pub fn open(disk: &dyn Disk, root: &Path, random: u128) -> Result<Self, IdentityError> {
        match Self::read(disk, root)? {
            Some(known) if known.token == 0 => Ok(known),
            Some(_) => Err(IdentityError::NoSeeds(root.join(NAME))),
            None => {
                let alone = Self::alone(random.max(1));
                alone.store(disk, root)?;
                Ok(alone)
            }
        }
    }

    /// Reads the identity of a broker that is one of several in `root`. An empty directory gets a
    /// token made of `random`, and so does a broker that was alone before.
    pub fn open_among(disk: &dyn Disk, root: &Path, random: u128) -> Result<Self, IdentityError> {
        let known = Self::read(disk, root)?;
        if let Some(known) = known.filter(|known| known.token != 0) {
            return Ok(known);
        }
        let identity = Self { token: random.max(1), ..known.unwrap_or(Self::EMPTY) };
        identity.store(disk, root)?;
        Ok(identity)
    }

    const EMPTY: Self = Self {
        broker: BrokerId(0),
        cluster: 0,
        state: MemberState::Empty,
        token: 0,
        founders: Founders { brokers: 0, voters: 0 },
        metadata_replica: ReplicaId(0),
        is_opened: false,
    };

    fn alone(cluster: u128) -> Self {
        Self {
            broker: FOUNDER,
            cluster,
            state: MemberState::Member,
            founders: Founders { brokers: 1, voters: 1 },
            metadata_replica: METADATA_REPLICA,
            ..Self::EMPTY
        }
    }

    /// The identity of the metadata log.
    pub fn metadata_uuid(self) -> u128 {
        self.cluster ^ METADATA_UUID_SALT
    }

    /// What an empty metadata log means. A broker that is alone may have ended before its first
    /// record: it promised nobody anything.
    pub fn metadata_birth(self) -> Birth {
        let votes = self.metadata_replica.0 <= u64::from(self.founders.voters);
        match (self.is_opened, votes) {
            (true, _) => Birth::Continues,
            (false, true) => Birth::Forms,
            (false, false) => Birth::Joins,
        }
    }

    /// The voters that the metadata is opened with: of a group that is formed now, or of one that
    /// can have had no other member. Everywhere else the log knows them.
    pub fn metadata_voters(self) -> Vec<(ReplicaId, BrokerId)> {
        if self.is_opened { Vec::new() } else { self.founders.voters() }
    }

    /// The first command of the metadata, where this broker is among those that form the cluster.
    pub fn founding(self) -> Option<Command> {
        let (cluster, Founders { brokers, voters }) = (self.cluster, self.founders);
        match (self.token, brokers) {
            (_, 0) => None,
            (0, _) => Some(Command::Form { cluster, broker: self.broker }),
            _ => Some(Command::Found { cluster, brokers, voters }),
        }
    }

    /// What `root` says; none if it says nothing. Writes nothing.
    pub fn read(disk: &dyn Disk, root: &Path) -> Result<Option<Self>, IdentityError> {
        let path = root.join(NAME);
        let read = sealed::read_small(disk, &path, FILE_BYTES_MAX);
        let bytes = read.map_err(|source| IdentityError::Device { path: path.clone(), source })?;
        bytes.map(|bytes| Self::decode(&bytes, &path)).transpose()
    }

    /// Writes it down, durably, in place of what was known before.
    pub fn store(self, disk: &dyn Disk, root: &Path) -> Result<(), IdentityError> {
        let path = root.join(NAME);
        let replaced = sealed::replace_small(disk, root, NAME, &self.encode());
        replaced.map_err(|source| IdentityError::Device { path, source })
    }

    fn encode(self) -> Vec<u8> {
        let alone = self.token == 0;
        let mut bytes = vec![0; if alone { FILE_BYTES_ALONE } else { FILE_BYTES }];
        let version = if alone { VERSION_ALONE } else { VERSION };
        bytes[12..14].copy_from_slice(&version.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.broker.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.cluster.to_le_bytes());
        if !alone {
            bytes[40] = self.state as u8;
            bytes[41] = if self.is_opened { FLAG_OPENED } else { 0 };
            bytes[42..58].copy_from_slice(&self.token.to_le_bytes());
            bytes[58..60].copy_from_slice(&self.founders.brokers.to_le_bytes());
            bytes[60] = self.founders.voters;
            bytes[64..72].copy_from_slice(&self.metadata_replica.to_le_bytes());
        }
        sealed::seal(&mut bytes, MAGIC);
        bytes
    }

    fn decode(bytes: &[u8], path: &Path) -> Result<Self, IdentityError> {
        let damaged = || IdentityError::Damaged(path.to_owned());
        // The version decides how much the checksum covers, so a flipped bit of it fails that.
        let whole = |version| match version {
            VERSION_ALONE => bytes.get(..FILE_BYTES_ALONE),
            VERSION => bytes.get(..FILE_BYTES),
            _ => Some(bytes),
        };
        let head = bytes.get(..FILE_BYTES_ALONE).ok_or_else(damaged)?;
        let found = u16::from_le_bytes([head[12], head[13]]);
        let bytes = whole(found).ok_or_else(damaged)?;
        if !sealed::is_whole(bytes, MAGIC) {
            return Err(damaged());
        }
        let number = |from: usize, to: usize| {
            bytes[from..to].iter().rev().fold(0u128, |number, byte| number << 8 | u128::from(*byte))
        };
        let (broker, cluster) = (BrokerId(number(16, 24) as u64), number(24, 40));
        match found {
            VERSION_ALONE => Ok(Self { broker, ..Self::alone(cluster) }),
            VERSION => {
                let founders = Founders { brokers: number(58, 60) as u16, voters: bytes[60] };
                let identity = Self {
                    broker,
                    cluster,
                    state: MemberState::from_u8(bytes[40]).ok_or_else(damaged)?,
                    token: number(42, 58),
                    founders,
                    metadata_replica: ReplicaId(number(64, 72) as u64),
                    is_opened: bytes[41] == FLAG_OPENED,
                };
                if founders.is_possible() { Ok(identity) } else { Err(damaged()) }
            }
            found => Err(IdentityError::Newer { file: path.to_owned(), found }),
        }
    }
}

#[cfg(test)]
mod tests;
