//! Weir's storage: append, flush, read, recover. Sync, no tokio.
//!
//! Owns: segment files of partitions, their recovery, and the flush coordinator of a device.
//! Never: knows replication, subscriptions or a network; retries a failed flush.

#![warn(missing_docs)]

mod boot;
mod checkpoint;
mod damage;
mod device;
mod disk;
mod error;
mod executor;
mod flush;
mod index;
pub mod inspect;
pub mod limits;
mod log;
mod mend;
mod meta;
mod os_disk;
mod planted;
mod pool;
mod reader;
mod recovery;
mod scan;
mod scrub;
pub mod sealed;
mod segment;
mod sys;

pub use boot::BootMark;
pub use checkpoint::Checkpoints;
pub use damage::DamagedRange;
pub use device::Device;
pub use disk::{DeviceId, Disk, DiskFile, DiskLock};
pub use error::{
    AppendError, Corruption, CorruptionKind, DeviceError, FlushError, OpenError, ReadError,
};
pub use executor::{Executor, Job, Lane, ThreadExecutor};
pub use flush::{FlushDone, FlushObserver, Flusher};
pub use log::{
    Appended, Log, LogOptions, LogStart, NewBatch, Recovered, Trimmed, Watermark, is_out_of_space,
};
pub use mend::{Hole, MendError, Mending, Unmendable, holes};
pub use meta::{MetaDone, MetaStore};
pub use os_disk::{Backend, OsDisk};
#[cfg(feature = "planted")]
pub use planted::is_planted_as;
pub use reader::{BatchSlice, ColdRead, LogBounds, LogReader, Read, SegmentView};
pub use scrub::{ScrubPiece, ScrubPlace, Scrubbed};
