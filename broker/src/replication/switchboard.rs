//! The seam inwards: which replica of this broker a frame is for.
//!
//! Owns: the table of the replicas that take part.
//! Never: holds a lock while one of them works.
//! Invariant: a replica is in the table from its start to its end; one that was opened anew is not
//! taken out by what is left of the one before.

use super::inbox::Inbox;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weir_protocol::peer::PeerRefusal;
use weir_protocol::types::ReplicaId;
use weir_storage::LogReader;

/// The replicas of this broker, for whoever carries frames to them. Cheap to clone.
#[derive(Clone, Default)]
pub struct Switchboard(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    inboxes: BTreeMap<ReplicaId, (u64, Inbox)>,
    /// Of replicas that are being repaired: what is whole of them is served meanwhile.
    lent: BTreeMap<ReplicaId, LogReader>,
    added: u64,
}

impl Switchboard {
    /// The way to a replica of this broker.
    pub fn inbox(&self, replica: ReplicaId) -> Result<Inbox, PeerRefusal> {
        let table = self.table();
        let found = table.inboxes.get(&replica).map(|(_, inbox)| inbox.clone());
        found.ok_or(PeerRefusal::UnknownReplica)
    }

    /// What is stored of a replica of this broker, also while it is being repaired.
    pub fn log(&self, replica: ReplicaId) -> Option<LogReader> {
        let table = self.table();
        let open = table.inboxes.get(&replica).map(|(_, inbox)| inbox.log());
        open.or_else(|| table.lent.get(&replica).cloned())
    }

    /// Lets others read a replica that does not take part yet; ends when it does.
    pub(super) fn lend(&self, replica: ReplicaId, log: LogReader) {
        self.table().lent.insert(replica, log);
    }

    /// Ends what [`Switchboard::lend`] began, of a replica that is not opened after all.
    pub(super) fn take_back(&self, replica: ReplicaId) {
        self.table().lent.remove(&replica);
    }

    pub(super) fn add(&self, replica: ReplicaId, inbox: Inbox) -> Place {
        let mut table = self.table();
        table.lent.remove(&replica);
        table.added += 1;
        let number = table.added;
        table.inboxes.insert(replica, (number, inbox));
        Place { board: self.clone(), replica, number }
    }

    /// Forgets every replica: none of them is reached any more.
    pub fn clear(&self) {
        let (inboxes, lent) = {
            let mut table = self.table();
            (std::mem::take(&mut table.inboxes), std::mem::take(&mut table.lent))
        };
        // What is dropped with them may ask for the table.
        drop((inboxes, lent));
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a replica that takes part; dropping it ends that.
pub(super) struct Place {
    board: Switchboard,
    replica: ReplicaId,
    number: u64,
}

impl Place {
    pub(super) fn leave(&self) {
        let mut table = self.board.table();
        let here = table.inboxes.get(&self.replica).map(|(number, _)| *number);
        if here == Some(self.number) {
            table.inboxes.remove(&self.replica);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}
