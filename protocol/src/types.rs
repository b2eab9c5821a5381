//! Owns: the newtypes that keep one number from being taken for another.
//! Never: arithmetic that can wrap in silence; parsing is done once, at the edge.

use crate::limits::NAME_BYTES_MAX;
use std::fmt;
use std::sync::Arc;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);
        impl $name {
            /// Encodes as little-endian bytes.
            pub const fn to_le_bytes(self) -> [u8; size_of::<$inner>()] {
                self.0.to_le_bytes()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

number!(
    /// Numbers the records of a partition, dense from 0. As an end it is exclusive.
    Offset(u64)
);
number!(
    /// Raft's number of a batch (or of the several batches of one proposal), from 1; 0 = none.
    Index(u64)
);
number!(
    /// Raft's term: rises with every election.
    Term(u64)
);
number!(
    /// Number of a partition within its topic, from 0.
    PartitionId(u32)
);
number!(
    /// Identity of a topic, never reused, also after the topic is deleted.
    TopicId(u64)
);
number!(
    /// Identity of a producer, assigned by metadata to its name; 0 = none (not idempotent).
    ProducerId(u64)
);
number!(
    /// Numbers the records of a producer within one partition, from 0.
    Sequence(u64)
);
number!(
    /// Identity of a broker within its cluster.
    BrokerId(u64)
);
number!(
    /// Identity of one replica of one partition, never reused.
    ReplicaId(u64)
);
number!(
    /// A stream within one connection: one publisher or one consumer, between brokers the appends
    /// of one leader to one follower, or a snapshot. Chosen by whoever dialed.
    StreamId(u32)
);
number!(
    /// A request within one connection. Chosen by whoever dialed, echoed in the answer.
    RequestId(u32)
);

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has no character.
    #[error("the name is empty; use 1 to 255 of A-Z a-z 0-9 . _ -")]
    Empty,
    /// The name has more than [`NAME_BYTES_MAX`] bytes.
    #[error("the name has {0} bytes, the limit is 255")]
    TooLong(usize),
    /// The name has a character outside the alphabet.
    #[error("the name has {character:?} at byte {at}; use A-Z a-z 0-9 . _ -")]
    BadCharacter {
        /// The character that is not allowed.
        character: char,
        /// Its place, in bytes from the start.
        at: usize,
    },
    /// `.` and `..` are names of folders.
    #[error("{0:?} is not a name")]
    Reserved(String),
}

/// A checked name of a topic, subscription, producer or node.
///
/// Invariant: 1 to 255 bytes of `[A-Za-z0-9._-]`, neither `.` nor `..`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks `text` against the alphabet.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong(text.len()));
        }
        if text == "." || text == ".." {
            return Err(NameError::Reserved(text.to_owned()));
        }
        let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        match text.char_indices().find(|(_, c)| !allowed(c)) {
            Some((at, character)) => Err(NameError::BadCharacter { character, at }),
            None => Ok(Self(text.into())),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

/// The partition that a keyed message belongs to: `xxh64(key, seed 0) mod partitions`.
///
/// Adding partitions moves keys; records already stored stay where they are.
pub fn partition_of_key(key: &[u8], partitions: u32) -> PartitionId {
    let hash = key_hash(key);
    PartitionId((hash % u64::from(partitions.max(1))) as u32)
}

/// The hash of a key as the record table stores it: `xxh64(key, seed 0)`.
pub fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh64::xxh64(key, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_once_and_say_what_is_wrong() {
        assert!(Name::new("orders.v2_eu-1").is_ok());
        assert_eq!(Name::new(""), Err(NameError::Empty));
        assert_eq!(Name::new(&"a".repeat(256)), Err(NameError::TooLong(256)));
        assert_eq!(Name::new("a/b"), Err(NameError::BadCharacter { character: '/', at: 1 }));
        assert_eq!(Name::new(".."), Err(NameError::Reserved("..".into())));
    }

    #[test]
    fn the_partitioner_is_fixed_for_ever() {
        assert_eq!(key_hash(b""), 0xef46_db37_51d8_e999);
        assert_eq!(key_hash(b"c42") % 16, u64::from(partition_of_key(b"c42", 16).0));
        assert_eq!(partition_of_key(b"anything", 1), PartitionId(0));
    }
}
