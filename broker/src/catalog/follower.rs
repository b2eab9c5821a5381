//! The task that makes the table follow the metadata.
//!
//! Owns: which replicas are opened, stopped and removed, in that order of care; what is to be told of
//! those that are lost; opening anew those that are damaged.
//! Never: removes the files of a replica that still runs, or of one that the metadata still places
//! here; waits for one replica to open while another one could.
//! Invariant: what was opened for a metadata that is no more is stopped at once.

use super::keepers::Keepers;
use super::losses::Losses;
use super::made::Made;
use super::mending::Mender;
use super::opening::{Manner, Opening, folders_of, placed_on};
use super::openings::{Opened, Openings, Turn};
use super::refused::{code_of, loss_of};
use super::table::{PartitionHere, PartitionState, Table, TopicPartitions};
use super::{Rooms, config_of};
use crate::cluster::MetadataClient;
use crate::flow::PartitionKey;
use crate::partition::Request;
use crate::replication::MemoryLoss;
use crate::replication::metadata::{
    Catalog as Topics, Command, LossReason, Partition, Placement, Recovery, Stage, Topic,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;
use weir_protocol::error_code::ErrorCode;
use weir_protocol::types::{Name, ReplicaId};
use weir_storage::Lane;

pub(super) struct Follower {
    rooms: Arc<Rooms>,
    metadata: MetadataClient,
    table: Arc<Table>,
    made: Arc<Made>,
    shown: watch::Sender<u64>,
    /// The metadata that the table follows.
    topics: Arc<Topics>,
    openings: Openings,
    /// How each replica that is open, or is being opened, was.
    manners: BTreeMap<ReplicaId, Manner>,
    /// What keeps the groups of those that are open.
    keepers: Keepers,
    losses: Losses,
    mender: Mender,
    /// Replicas that lost what they held in memory, and the recovery epoch at which that was found.
    unclean: BTreeMap<ReplicaId, u32>,
}

impl Follower {
    pub(super) fn new(
        (rooms, table, made): (Arc<Rooms>, Arc<Table>, Arc<Made>),
        metadata: MetadataClient,
        shown: watch::Sender<u64>,
    ) -> Self {
        let keepers = Keepers::new(&rooms, &metadata);
        let losses = Losses::new(metadata.clone());
        let mender = Mender::new(&rooms, &table);
        let openings = Openings::new(&rooms, &made);
        Self {
            rooms,
            metadata,
            table,
            made,
            shown,
            topics: Arc::default(),
            openings,
            manners: BTreeMap::new(),
            keepers,
            losses,
            mender,
            unclean: BTreeMap::new(),
        }
    }

    /// Follows until the metadata ends. The register counts the times that the table had caught up.
    pub(super) async fn follow(mut self) {
        let mut seen = self.metadata.watch();
        let now = seen.borrow_and_update().clone();
        self.catch_up(now).await;
        loop {
            let is_wanted = |of: &Opening| is_wanted((&self.table, &self.manners), of);
            self.openings.start(is_wanted);
            if !self.openings.are_under_way() {
                self.shown.send_modify(|times| *times += 1);
            }
            let is_settled = self.openings.is_empty();
            tokio::select! {
                biased;
                changed = seen.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = seen.borrow_and_update().clone();
                    self.catch_up(now).await;
                }
                turn = self.openings.next() => match turn {
                    Turn::Opened(opened) => {
                        self.take(*opened).await;
                        // Who waits for one topic does not wait for all.
                        self.shown.send_modify(|times| *times += 1);
                    }
                    Turn::Slow => {}
                    Turn::Room => self.open_crowded(),
                },
                () = self.losses.tell() => {}
                // One at a time, and not while anything else is away.
                replica = self.mender.next(), if is_settled => {
                    self.reopen(replica).await;
                }
            }
        }
    }

    async fn catch_up(&mut self, topics: Arc<Topics>) {
        self.topics = topics.clone();
        self.rooms.wiring.gate.raise(topics.gate);
        self.remove_deleted().await;
        for topic in topics.topics.values() {
            self.follow_topic(topic).await;
        }
    }

    async fn take(&mut self, opened: Opened) {
        let Opened { of, outcome } = opened;
        if !is_wanted((&self.table, &self.manners), &of) {
            if let Ok(handle) = outcome {
                handle.stop().await;
            }
            self.remove_if_gone(&of.topic, &of.partition, of.placed);
            return;
        }
        let state = match outcome {
            Ok(handle) => {
                self.keepers.keep(&handle, &of.partition, of.topic.id, of.placed.replica);
                self.mender.opened(of.placed.replica, handle.damaged_ranges());
                // Among others it was accepted before.
                if let Some(loss) = handle.memory_loss().filter(|_| !of.has_others()) {
                    self.note_memory_loss(&of, loss);
                }
                PartitionState::Open(handle)
            }
            Err(error) => {
                let (code, reason) = (code_of(&error), error.to_string());
                tracing::error!(
                    topic = %of.topic.name, partition = of.partition.id.0, code = code.name(),
                    reason, "a partition could not be opened"
                );
                if let Some(reason) = loss_of(&error).filter(|_| of.has_others()) {
                    let replica = of.placed.replica;
                    if reason == LossReason::Unclean {
                        self.unclean.insert(replica, of.partition.recovery.epoch);
                    }
                    self.losses.note(replica, Command::LoseReplica { replica, reason });
                }
                if code == ErrorCode::StorageLow {
                    self.openings.found_no_room(of.placed.replica);
                }
                PartitionState::Failed { code, reason }
            }
        };
        self.set(&of.topic.name, &of.partition, of.placed, state);
    }

    /// The only replica of a partition lost what it held in memory. Its own mark keeps that as well,
    /// so that what the metadata may not hold yet is told with a later start.
    fn note_memory_loss(&mut self, of: &Opening, loss: MemoryLoss) {
        let known = of.partition.recovery;
        let recovery = Recovery {
            epoch: known.epoch.saturating_add(1),
            lost_after: loss.lost_after,
            created_ms: self.rooms.wall.now_ms(),
        };
        let command = Command::NoteRecovery { uuid: of.partition.uuid, recovery };
        let is_new = known.epoch == 0 || known.lost_after < loss.lost_after;
        if is_new && command.gate() <= self.topics.gate {
            self.losses.note(of.placed.replica, command);
        }
    }

    /// Whether a replica that lost its memory was reinstated since that was found here.
    fn is_reinstated(&self, partition: &Partition, placed: Placement) -> bool {
        let found = self.unclean.get(&placed.replica);
        let later = found.is_some_and(|epoch| partition.recovery.epoch > *epoch);
        later && placed.stage == Stage::Voter
    }

    /// Makes every partition of a topic what the metadata says of it.
    async fn follow_topic(&mut self, topic: &Arc<Topic>) {
        let before = self.show_topic(topic);
        let manner = Manner::of(&self.topics, topic);
        for (partition, here) in topic.partitions.iter().zip(before.partitions) {
            let placed = placed_on(partition, self.rooms.broker);
            let same = here.placed.map(|old| old.replica) == placed.map(|new| new.replica);
            let lost = placed.is_some_and(|placed| matches!(placed.stage, Stage::Lost(_)));
            let known = placed.and_then(|placed| self.manners.get(&placed.replica).copied());
            let back = placed.is_some_and(|placed| self.is_reinstated(partition, placed));
            if same && !lost && !back && (placed.is_none() || known == Some(manner)) {
                self.reconfigure(topic, &before.topic, &here);
                continue;
            }
            if same && lost && known.is_none() {
                continue;
            }
            self.close(topic, partition, &here, same).await;
            match placed {
                None => self.set_unplaced(&topic.name, partition),
                Some(placed) if lost => self.give_up(topic, partition, placed),
                Some(placed) => self.begin(topic, partition, placed, manner),
            }
        }
    }

    /// Puts the newest words about a topic into the table; returns what is there.
    fn show_topic(&self, topic: &Arc<Topic>) -> TopicPartitions {
        let mut table = self.table.write();
        let here = table
            .entry(topic.name.clone())
            .or_insert_with(|| TopicPartitions { topic: topic.clone(), partitions: Vec::new() });
        here.partitions.resize_with(topic.partitions.len(), || PartitionHere {
            placed: None,
            state: PartitionState::Elsewhere,
        });
        let before = here.clone();
        here.topic = topic.clone();
        before
    }

    fn begin(&mut self, topic: &Arc<Topic>, partition: &Partition, placed: Placement, as_: Manner) {
        let loss_accepted = self.is_reinstated(partition, placed);
        if loss_accepted {
            self.unclean.remove(&placed.replica);
            self.losses.forget(placed.replica);
        }
        self.manners.insert(placed.replica, as_);
        self.set(&topic.name, partition, placed, PartitionState::Opening);
        self.openings.add(Opening {
            topic: topic.clone(),
            partition: partition.clone(),
            placed,
            manner: as_,
            clustered: self.topics.gate > 0,
            loss_accepted,
        });
    }

    /// Closes a replica in which damage was found, and opens it again: that brings back what is
    /// missing.
    async fn reopen(&mut self, replica: ReplicaId) {
        let topics = self.topics.clone();
        let Some((topic, partition, here, manner)) = self.known(&topics, replica) else { return };
        let (Some(placed), Some(handle)) = (here.placed, here.handle()) else { return };
        self.mender.closed(replica, handle.damaged_ranges());
        tracing::warn!(
            topic = %topic.name, partition = partition.id.0, %replica,
            "a damaged replica is opened anew, to fetch from others what is missing"
        );
        self.close(topic, partition, &here, true).await;
        self.begin(topic, partition, placed, manner);
    }

    /// Opens again what found no room on the disk; there may be some now.
    fn open_crowded(&mut self) {
        let topics = self.topics.clone();
        for replica in self.openings.due_again() {
            let known = self.known(&topics, replica);
            let Some((topic, partition, here, manner)) = known else { continue };
            let waits = matches!(&here.state, PartitionState::Failed { code, .. }
                if *code == ErrorCode::StorageLow);
            if let Some(placed) = here.placed.filter(|_| waits) {
                self.begin(topic, partition, placed, manner);
            }
        }
    }

    /// A replica that is placed here: of what, how it is here, and in which manner it is opened.
    fn known<'a>(
        &self,
        topics: &'a Topics,
        replica: ReplicaId,
    ) -> Option<(&'a Arc<Topic>, &'a Partition, PartitionHere, Manner)> {
        let mut all = topics.partitions();
        let (topic, partition) = all.find(|(_, of)| of.replica(replica).is_some())?;
        let here = self.table.partition(&topic.name, partition.id)?;
        let same = here.placed.is_some_and(|placed| placed.replica == replica);
        let manner = self.manners.get(&replica).copied().filter(|_| same)?;
        Some((topic, partition, here, manner))
    }

    fn give_up(&mut self, topic: &Topic, partition: &Partition, placed: Placement) {
        self.manners.remove(&placed.replica);
        self.losses.forget(placed.replica);
        if placed.stage == Stage::Lost(LossReason::Unclean) {
            let epoch = partition.recovery.epoch;
            self.unclean.entry(placed.replica).or_insert(epoch);
        }
        let reason =
            format!("replica {} was given up: another one takes its place", placed.replica);
        let state = PartitionState::Failed { code: ErrorCode::StorageFenced, reason };
        self.set(&topic.name, partition, placed, state);
    }

    /// Stops what runs of a partition here, and removes it unless it is `kept` to be opened anew.
    async fn close(
        &mut self,
        topic: &Topic,
        partition: &Partition,
        here: &PartitionHere,
        kept: bool,
    ) {
        if let Some(handle) = here.handle() {
            handle.stop().await;
        }
        let Some(placed) = here.placed.filter(|_| !kept) else { return };
        self.manners.remove(&placed.replica);
        self.losses.forget(placed.replica);
        self.mender.forget(placed.replica);
        self.unclean.remove(&placed.replica);
        // What is being opened is removed when that has ended.
        if !here.is_opening() {
            self.remove_if_gone(topic, partition, placed);
        }
    }

    /// Tells an open partition what changed of its topic's settings.
    fn reconfigure(&self, topic: &Topic, before: &Topic, here: &PartitionHere) {
        let Some(handle) = here.handle().filter(|_| config_of(topic) != config_of(before)) else {
            return;
        };
        if handle.try_send(Request::Configure(config_of(topic))).is_err() {
            tracing::warn!(topic = %topic.name, "the partition is too busy to be reconfigured");
        }
    }

    fn set(&self, topic: &Name, partition: &Partition, placed: Placement, state: PartitionState) {
        self.put(topic, partition, PartitionHere { placed: Some(placed), state });
    }

    fn set_unplaced(&self, topic: &Name, partition: &Partition) {
        self.put(
            topic,
            partition,
            PartitionHere { placed: None, state: PartitionState::Elsewhere },
        );
    }

    fn put(&self, topic: &Name, partition: &Partition, here: PartitionHere) {
        let mut table = self.table.write();
        let slot = table.get_mut(topic).and_then(|t| t.partitions.get_mut(partition.id.0 as usize));
        if let Some(slot) = slot {
            *slot = here;
        }
    }

    /// Stops and removes what the metadata does not have any more, also a topic that was deleted
    /// and created again under the same name.
    async fn remove_deleted(&mut self) {
        let gone: Vec<TopicPartitions> = {
            let mut table = self.table.write();
            let is_gone = |name: &Name, here: &mut TopicPartitions| {
                self.topics.topics.get(name).is_none_or(|there| there.id != here.topic.id)
            };
            table.extract_if(.., is_gone).map(|(_, here)| here).collect()
        };
        for topic in gone {
            let name = topic.topic.name.clone();
            for (here, partition) in topic.partitions.iter().zip(&topic.topic.partitions) {
                self.close(&topic.topic, partition, here, false).await;
                let key = PartitionKey { topic: name.clone(), partition: partition.id };
                self.rooms.flow.forget(&key);
            }
            self.rooms.metrics.forget_topic(&name);
        }
    }

    /// Removes the files of a replica that the metadata does not place here any more.
    fn remove_if_gone(&self, topic: &Topic, partition: &Partition, placed: Placement) {
        let now = self.topics.topics.get(&topic.name).filter(|now| now.id == topic.id);
        let now = now.and_then(|now| now.partitions.get(partition.id.0 as usize));
        if now.is_some_and(|now| now.replica(placed.replica).is_some()) {
            return;
        }
        self.made.forget(placed.replica);
        let folders = folders_of(partition, &placed).map(|name| self.rooms.data_dir.join(name));
        let device = self.rooms.device.clone();
        let remove = move || {
            // A replica has the one or the other; its own name goes before the one that others
            // may have used.
            let [plain, own] = folders;
            let removed =
                device.disk().remove_dir(&own).or_else(|_| device.disk().remove_dir(&plain));
            if let Err(error) = removed {
                tracing::warn!(folder = %own.display(), %error, "a log that is not needed stays on disk");
            }
        };
        self.rooms.device.executor().submit(Lane::Checkpoint, Box::new(remove));
    }
}

/// Whether the table still waits for this very opening.
fn is_wanted((table, manners): (&Table, &BTreeMap<ReplicaId, Manner>), of: &Opening) -> bool {
    let table = table.read();
    let here = table.get(&of.topic.name).filter(|here| here.topic.id == of.topic.id);
    let slot = here.and_then(|here| here.partitions.get(of.partition.id.0 as usize));
    let same = |slot: &&PartitionHere| {
        slot.placed.is_some_and(|placed| placed.replica == of.placed.replica)
    };
    slot.filter(same).is_some_and(PartitionHere::is_opening)
        && manners.get(&of.placed.replica) == Some(&of.manner)
}
