//! Who shares a durable subscription, and which partition each member reads.
//!
//! Owns: the rosters, a function of the log of partition 0; how a checkpoint holds them.
//! Never: a clock, a connection; whether a member is alive its leader knows (`core::sharing`).
//! Invariants:
//! - a partition has one holder, who alone may read it. It passes on when the holder says that it has
//!   given the partition up, or leaves: never before;
//! - partitions are spread evenly, and no more of them move than that takes;
//! - epochs only rise, also over members that all leave and others that come: whoever reads under a
//!   lower epoch than another consumer is not the holder any more.
//!
//! ```text
//! rosters = epoch8 count4, then each: name_len1 name  members2 × member8
//!           seats4 × { holder2 target2, and where they differ since8 }    (places among the members)
//! ```

#[cfg(test)]
mod tests;

use super::command::Command;
use super::wire::{Fields, WireError, put_name};
use crate::planted::{Bug, is_planted};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use weir_protocol::frame::MemberId;
use weir_protocol::types::{Name, PartitionId};

/// Who reads a partition, and who shall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seat {
    holder: MemberId,
    target: MemberId,
    /// The epoch from which on the holder is to give it up; 0 where it is the target.
    since: u64,
}

/// Those that share one subscription. There is at least one of them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Roster {
    /// In the order in which they joined.
    members: Vec<MemberId>,
    /// By partition.
    seats: Vec<Seat>,
}

impl Roster {
    pub(super) fn members(&self) -> &[MemberId] {
        &self.members
    }

    /// Partitions that are spread over the members.
    pub(super) fn partitions(&self) -> usize {
        self.seats.len()
    }

    /// The partitions that a member reads.
    pub(super) fn read_by(&self, member: MemberId) -> Vec<PartitionId> {
        let seats = (0u32..).zip(&self.seats);
        let own = seats.filter(|(_, seat)| seat.holder == member && seat.target == member);
        own.map(|(partition, _)| PartitionId(partition)).collect()
    }

    /// The first epoch in which a member was told to give something up that it still holds.
    pub(super) fn owed_by(&self, member: MemberId) -> Option<u64> {
        let owed = self.seats.iter().filter(|seat| seat.holder == member && seat.target != member);
        owed.map(|seat| seat.since).min()
    }

    /// Spreads `partitions` over the members. What nobody holds begins to be held at once.
    fn spread(&mut self, partitions: usize, epoch: u64) {
        let targets = self.seats.iter().map(|seat| Some(seat.target));
        let before: Vec<_> = targets.chain(std::iter::repeat(None)).take(partitions).collect();
        let targets = spread(&self.members, &before);
        let seated = targets.into_iter().enumerate().map(|(partition, target)| {
            let seat = self.seats.get(partition).filter(|seat| self.members.contains(&seat.holder));
            let seat = seat.filter(|_| !is_planted(Bug::SeatPassedEarly));
            let holder = seat.map_or(target, |seat| seat.holder);
            let moving = seat.filter(|seat| seat.holder != seat.target);
            let since = if holder == target { 0 } else { moving.map_or(epoch, |seat| seat.since) };
            Seat { holder, target, since }
        });
        self.seats = seated.collect();
    }

    /// The member has given up what it was told to by `epoch`. Says whether that was anything.
    fn release(&mut self, member: MemberId, epoch: u64) -> bool {
        let given_up = |seat: &&mut Seat| {
            seat.holder == member && seat.target != member && seat.since <= epoch
        };
        let released = self.seats.iter_mut().filter(given_up);
        released.map(|seat| (seat.holder, seat.since) = (seat.target, 0)).count() > 0
    }
}

/// Who gets which partition: each as many as any other or one more, and as many as can be the one who
/// had it `before`. The members that have the most keep one more; free partitions go to whoever
/// joined first and has room.
fn spread(members: &[MemberId], before: &[Option<MemberId>]) -> Vec<MemberId> {
    let places: BTreeMap<_, _> = members.iter().copied().zip(0..).collect();
    let before = before.iter().map(|member| member.as_ref().and_then(|m| places.get(m).copied()));
    let mut spread: Vec<Option<usize>> = before.collect();
    let mut had = vec![0usize; members.len()];
    spread.iter().flatten().for_each(|place| had[*place] += 1);
    let mut most: Vec<usize> = (0..members.len()).collect();
    most.sort_by_key(|place| (Reverse(had[*place]), *place));
    let (each, extra) = (spread.len() / members.len(), spread.len() % members.len());
    let mut room = vec![each; members.len()];
    most.into_iter().take(extra).for_each(|place| room[place] += 1);
    for seat in &mut spread {
        match seat {
            Some(place) if room[*place] > 0 => room[*place] -= 1,
            _ => *seat = None,
        }
    }
    let mut free = (0..members.len()).flat_map(|place| std::iter::repeat_n(place, room[place]));
    let seated = spread.into_iter().map(|seat| seat.or_else(|| free.next()));
    seated.map(|place| members[place.expect("the room adds up to the partitions")]).collect()
}

/// The rosters of all subscriptions of a topic, by their names.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Rosters {
    epoch: u64,
    by_name: BTreeMap<Name, Roster>,
}

impl Rosters {
    /// Rises with every change of any of them.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn find(&self, subscription: &Name) -> Option<&Roster> {
        self.by_name.get(subscription)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Name, &Roster)> {
        self.by_name.iter()
    }

    /// Whether nobody ever shared anything: older builds read such a state.
    pub(super) fn are_untouched(&self) -> bool {
        self.epoch == 0
    }

    /// Obeys a committed command. Says whether anything changed.
    pub(super) fn apply(&mut self, command: &Command) -> bool {
        let next = self.epoch + 1;
        let changed = match command {
            Command::Join { subscription, member, partitions } => {
                self.join(subscription, *member, *partitions as usize, next)
            }
            Command::Leave { subscription, member } => self.leave(subscription, *member, next),
            Command::Release { subscription, member, epoch } => {
                let roster = self.by_name.get_mut(subscription);
                roster.is_some_and(|roster| roster.release(*member, *epoch))
            }
            Command::Create { .. }
            | Command::Settle { .. }
            | Command::Delete { .. }
            | Command::Trim { .. } => false,
        };
        self.epoch += u64::from(changed);
        changed
    }

    fn join(&mut self, name: &Name, member: MemberId, partitions: usize, epoch: u64) -> bool {
        let roster = self.by_name.entry(name.clone()).or_default();
        let known = roster.members.contains(&member);
        if known && partitions <= roster.partitions() {
            return false;
        }
        if !known {
            roster.members.push(member);
        }
        roster.spread(partitions.max(roster.partitions()), epoch);
        true
    }

    fn leave(&mut self, name: &Name, member: MemberId, epoch: u64) -> bool {
        let Some(roster) = self.by_name.get_mut(name) else { return false };
        let before = roster.members.len();
        roster.members.retain(|stays| *stays != member);
        if roster.members.is_empty() {
            self.by_name.remove(name);
            return true;
        }
        let left = roster.members.len() < before;
        if left {
            roster.spread(roster.partitions(), epoch);
        }
        left
    }
}

impl Rosters {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.epoch.to_le_bytes());
        let count = u32::try_from(self.by_name.len()).expect("rosters are bounded");
        out.extend_from_slice(&count.to_le_bytes());
        for (name, roster) in &self.by_name {
            put_name(out, name);
            roster.encode(out);
        }
    }

    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<Self, WireError> {
        let mut rosters = Self { epoch: fields.u64("roster epoch")?, by_name: BTreeMap::new() };
        for _ in 0..fields.u32("rosters")? {
            let name = fields.name("subscription name")?;
            rosters.by_name.insert(name, Roster::decode(fields)?);
        }
        Ok(rosters)
    }
}

impl Roster {
    fn encode(&self, out: &mut Vec<u8>) {
        let places: BTreeMap<_, u16> = self.members.iter().copied().zip(0..).collect();
        let count = u16::try_from(self.members.len()).expect("members are bounded");
        out.extend_from_slice(&count.to_le_bytes());
        self.members.iter().for_each(|member| out.extend_from_slice(&member.0.to_le_bytes()));
        let count = u32::try_from(self.seats.len()).expect("partitions are bounded");
        out.extend_from_slice(&count.to_le_bytes());
        for seat in &self.seats {
            out.extend_from_slice(&places[&seat.holder].to_le_bytes());
            out.extend_from_slice(&places[&seat.target].to_le_bytes());
            if seat.holder != seat.target {
                out.extend_from_slice(&seat.since.to_le_bytes());
            }
        }
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, WireError> {
        let mut roster = Self::default();
        for _ in 0..fields.u16("members")? {
            roster.members.push(MemberId(fields.u64("member")?));
        }
        for _ in 0..fields.u32("seats")? {
            let (holder, target) = (roster.member(fields)?, roster.member(fields)?);
            let since = if holder == target { 0 } else { fields.u64("seat")? };
            roster.seats.push(Seat { holder, target, since });
        }
        Ok(roster)
    }

    fn member(&self, fields: &mut Fields<'_>) -> Result<MemberId, WireError> {
        let place = usize::from(fields.u16("seat")?);
        self.members.get(place).copied().ok_or(WireError::Content("seat"))
    }
}
