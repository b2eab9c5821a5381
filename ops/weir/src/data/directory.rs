//! The data directory of one broker: who it is and which logs it should hold.
//!
//! Owns: the names of folders, and whose logs they are as far as the metadata can be read.
//! Never: changes a file; takes a missing identity for a fresh one.

use super::survey::Verdict;
use crate::failure::Failure;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_broker::replication::metadata::{Catalog, Partition, Placement, Stage, read_catalog};
use weir_broker::{Identity, IdentityError};
use weir_storage::inspect::{self, LogReport};
use weir_storage::{Disk, LogOptions};

pub(crate) const METADATA_FOLDER: &str = "metadata";
pub(crate) const IDENTITY_FILE: &str = "node.meta";
const PARTITION_PREFIX: &str = "p-";

/// A broker's data directory.
pub(crate) struct Directory {
    pub(crate) root: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
    /// What `node.meta` says, or why it says nothing.
    pub(crate) identity: Result<Identity, NoIdentity>,
    folders: BTreeSet<String>,
}

/// Why nobody knows which broker it is.
#[derive(Debug)]
pub(crate) enum NoIdentity {
    Missing(PathBuf),
    Refused(IdentityError),
}

impl fmt::Display for NoIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(path) => write!(
                f,
                "{} is missing; bring it back from a backup, or the next start makes a new broker",
                path.display()
            ),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl NoIdentity {
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Missing(_) | Self::Refused(IdentityError::Damaged(_)) => Verdict::Damaged,
            Self::Refused(_) => Verdict::Unread,
        }
    }
}

/// Whose log it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    Metadata,
    Partition {
        topic: String,
        partition: u32,
        max_bytes: u64,
    },
    /// The metadata knows nobody: a topic that was deleted, most likely.
    Nobody,
    /// The metadata cannot be read.
    Unknown,
}

/// Where a log lies, or should lie.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) folder: String,
    pub(crate) uuid: u128,
    pub(crate) owner: Owner,
    pub(crate) is_there: bool,
}

impl Place {
    /// As people call it.
    pub(crate) fn name(&self) -> String {
        let folder = &self.folder;
        match &self.owner {
            Owner::Metadata | Owner::Unknown => folder.clone(),
            Owner::Partition { topic, partition, .. } => format!("{topic}/{partition} ({folder})"),
            Owner::Nobody => format!("{folder} (of no topic)"),
        }
    }

    /// What the broker opens the log with.
    pub(crate) fn options(&self) -> LogOptions {
        let retained_bytes = match self.owner {
            Owner::Partition { max_bytes, .. } => max_bytes,
            _ => u64::MAX,
        };
        LogOptions { uuid: self.uuid, retained_bytes, ..LogOptions::default() }
    }
}

impl Directory {
    pub(crate) fn open(disk: Arc<dyn Disk>, root: &Path) -> Result<Self, Failure> {
        let folders = names_in(&*disk, root)?;
        let identity = match Identity::read(&*disk, root) {
            Ok(Some(known)) => Ok(known),
            Ok(None) => Err(NoIdentity::Missing(root.join(IDENTITY_FILE))),
            Err(error) => Err(NoIdentity::Refused(error)),
        };
        Ok(Self { root: root.to_owned(), disk, identity, folders })
    }

    pub(crate) fn path_of(&self, place: &Place) -> PathBuf {
        self.root.join(&place.folder)
    }

    /// The metadata log.
    pub(crate) fn metadata(&self) -> io::Result<Place> {
        let is_there = self.folders.contains(METADATA_FOLDER);
        let uuid = match &self.identity {
            Ok(identity) => identity.metadata_uuid(),
            Err(_) if !is_there => 0,
            // Its own segments know it as well.
            Err(_) => inspect::uuid_of(&*self.disk, &self.root.join(METADATA_FOLDER))
                .map_err(io::Error::other)?
                .unwrap_or(0),
        };
        let folder = METADATA_FOLDER.to_owned();
        Ok(Place { folder, uuid, owner: Owner::Metadata, is_there })
    }

    /// The topics, where the metadata log can be read.
    pub(crate) fn catalog(&self, metadata: &LogReport) -> Result<Arc<Catalog>, String> {
        let dir = self.root.join(METADATA_FOLDER);
        read_catalog(&*self.disk, &dir, metadata).map_err(|error| error.to_string())
    }

    /// Its replicas on this broker; all where nobody knows which broker this is.
    fn placed_here<'a>(&self, partition: &'a Partition) -> impl Iterator<Item = &'a Placement> {
        let here = self.identity.as_ref().ok().map(|identity| identity.broker);
        partition.replicas.iter().filter(move |placed| here.is_none_or(|id| placed.broker == id))
    }

    /// The partitions' logs, those of topics first, in order. Where the catalog may lack topics,
    /// nothing is known of the other folders.
    pub(crate) fn partitions(&self, catalog: Option<&Catalog>, is_certain: bool) -> Vec<Place> {
        let mut left: BTreeSet<&String> =
            self.folders.iter().filter(|name| uuid_in(name).is_some()).collect();
        let mut places = Vec::new();
        for topic in catalog.iter().flat_map(|catalog| catalog.topics.values()) {
            for partition in &topic.partitions {
                let owner = Owner::Partition {
                    topic: topic.name.to_string(),
                    partition: partition.id.0,
                    max_bytes: topic.settings.max_bytes,
                };
                for placed in self.placed_here(partition) {
                    let folder = folder_of(partition.uuid, placed, &self.folders);
                    let is_there = left.remove(&folder);
                    // What was lost here, or has not come yet, is not missed.
                    if is_there || placed.stage == Stage::Voter {
                        let (uuid, owner) = (partition.uuid, owner.clone());
                        places.push(Place { folder, uuid, owner, is_there });
                    }
                }
            }
        }
        let owner = if catalog.is_some() && is_certain { Owner::Nobody } else { Owner::Unknown };
        places.extend(left.into_iter().map(|folder| Place {
            folder: folder.clone(),
            uuid: uuid_in(folder).unwrap_or(0),
            owner: owner.clone(),
            is_there: true,
        }));
        places
    }
}

/// Every replica has a folder of its own, but that a broker that was alone keeps the plain name.
fn folder_of(uuid: u128, placed: &Placement, folders: &BTreeSet<String>) -> String {
    let plain = format!("{PARTITION_PREFIX}{uuid:032x}");
    let own = format!("{plain}-{}", placed.replica);
    if folders.contains(&own) { own } else { plain }
}

/// The identity of a partition's log, as the name of its folder says it: alone, or with the number
/// of the replica behind it.
pub(crate) fn uuid_in(folder: &str) -> Option<u128> {
    let name = folder.strip_prefix(PARTITION_PREFIX)?;
    let (digits, replica) = name.split_once('-').unwrap_or((name, "0"));
    replica.parse::<u64>().ok()?;
    (digits.len() == 32).then(|| u128::from_str_radix(digits, 16).ok())?
}

/// The names in a data directory; a failure where it is none.
fn names_in(disk: &dyn Disk, root: &Path) -> Result<BTreeSet<String>, Failure> {
    let shown = root.display();
    let listed = disk.list(root);
    let names = listed.map_err(|error| {
        Failure::NotDone(format!("the data directory {shown}: {error}; --data-dir names another"))
    })?;
    let is_known =
        |name: &String| name == IDENTITY_FILE || name == METADATA_FOLDER || uuid_in(name).is_some();
    if names.iter().any(is_known) {
        return Ok(names.into_iter().collect());
    }
    Err(Failure::NotDone(format!(
        "{shown} is no data directory: it holds no {IDENTITY_FILE} and no log; --data-dir names \
         another"
    )))
}

#[cfg(test)]
mod tests {
    use super::uuid_in;

    #[test]
    fn a_folder_names_its_log_with_and_without_its_replica() {
        let plain = format!("p-{:032x}", 7);
        assert_eq!(uuid_in(&plain), Some(7));
        assert_eq!(uuid_in(&format!("{plain}-12")), Some(7));
        for other in ["p-7", "p-", "pool", &format!("{plain}-"), &format!("{plain}-x")] {
            assert_eq!(uuid_in(other), None, "{other}");
        }
    }
}
