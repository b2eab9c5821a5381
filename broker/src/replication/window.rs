//! Owns: how much of what leaders sent one replica takes in before it is flushed.
//! Invariant: what is held here travels with the batches it stands for and is given back when they
//! are flushed, or dropped without. So the log never holds up the engine over what is unflushed.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weir_storage::limits::UNFLUSHED_BYTES_MAX;

/// Bytes of batches that were received and are not flushed; one append that is larger goes alone.
pub(super) const RECEIVED_BYTES_MAX: u32 = 8 << 20;
const _: () = assert!(2 * RECEIVED_BYTES_MAX as u64 <= UNFLUSHED_BYTES_MAX);

/// The room of one replica. Cheap to clone.
#[derive(Clone)]
pub(super) struct Window(Arc<Semaphore>);

/// Room that an append takes, and the memory that its bytes were paid with.
pub(super) struct Held {
    _room: OwnedSemaphorePermit,
    _paid_with: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

impl Window {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(RECEIVED_BYTES_MAX as usize)))
    }

    /// Waits until `bytes` more have room.
    pub(super) async fn take(
        &self,
        bytes: usize,
        paid_with: impl Send + Sync + 'static,
    ) -> Arc<Held> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(RECEIVED_BYTES_MAX);
        let room = self.0.clone().acquire_many_owned(bytes).await;
        let room = room.expect("the window is never closed");
        Arc::new(Held { _room: room, _paid_with: Box::new(paid_with) })
    }
}
