//! Consumers that share subscriptions: who is there, and who is told what.
//!
//! Owns: the sessions of members, volatile, at the leader of partition 0; the commands that follow.
//! Never: decides who reads what (`roster` does, in the log); waits for a member longer than
//! [`MEMBER_SILENCE_MAX`], or for what it gives up longer than [`HAND_OVER_MAX`].
//! Invariants:
//! - at a leader every member of a roster has a session: one that it did not hear of yet has as long
//!   as any other;
//! - commands are asked of the state anew whenever something changed, one batch at a time, so that one
//!   that was lost, or proposed twice, changes nothing;
//! - a member is told nothing that is not committed.

use super::{Core, Effect, Effects, Leader};
use crate::connection::outbox::ConsumerId;
use crate::partition::command::Command;
use crate::partition::limits::{
    CONTROL_BYTES_MAX, HAND_OVER_MAX, MEMBER_RETURN_MAX, MEMBER_SILENCE_MAX, MEMBERS_MAX,
    SUBSCRIPTIONS_MAX,
};
use crate::partition::refusal::SubscribeRefusal;
use crate::partition::roster::Rosters;
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;
use weir_protocol::frame::{Assignment, MemberId};
use weir_protocol::types::{Name, PartitionId, StreamId};

/// A member of those that share a subscription.
pub(super) type Member = (Name, MemberId);

/// What the leader knows of a member beside the roster.
#[derive(Debug)]
struct Session {
    /// Its stream, and whether its JOIN was answered.
    stream: Option<(ConsumerId, bool)>,
    /// Unless it is heard before.
    gone_at: Instant,
    /// It obeys what it was told up to this epoch.
    complied: u64,
    /// Since when it is to give something up.
    owes_since: Option<Instant>,
    told: Option<Vec<PartitionId>>,
    leaves: bool,
}

impl Session {
    fn new(stream: Option<ConsumerId>, now: Instant) -> Self {
        let stream = stream.map(|id| (id, false));
        let gone_at = now + MEMBER_SILENCE_MAX;
        Self { stream, gone_at, complied: 0, owes_since: None, told: None, leaves: false }
    }

    fn is_gone(&self, now: Instant) -> bool {
        self.leaves || self.gone_at <= now
    }
}

/// The members that are there, and what is on its way into the log about them.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    sessions: BTreeMap<Member, Session>,
    by_stream: BTreeMap<ConsumerId, Member>,
    commands: Vec<Command>,
    in_flight: bool,
    /// Something happened since everybody was looked at.
    unsettled: bool,
    due: Option<Instant>,
}

impl Sharing {
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(super) fn streams(&self) -> usize {
        self.by_stream.len()
    }

    /// Something happened: all members are looked at once more.
    pub(super) fn look_again(&mut self) {
        self.unsettled = true;
    }

    /// The stream is gone; its member may come back.
    pub(super) fn close(&mut self, id: ConsumerId, now: Instant) {
        if let Some(session) = self.session(id) {
            session.stream = None;
            session.gone_at = session.gone_at.min(now + MEMBER_RETURN_MAX);
            self.by_stream.remove(&id);
            self.unsettled = true;
        }
    }

    pub(super) fn present(&mut self, id: ConsumerId, epoch: u64, now: Instant) {
        if let Some(session) = self.session(id) {
            session.gone_at = now + MEMBER_SILENCE_MAX;
            let news = epoch > session.complied;
            session.complied = session.complied.max(epoch);
            self.unsettled |= news;
        }
    }

    pub(super) fn leave(&mut self, id: ConsumerId) {
        if let Some(session) = self.session(id) {
            session.leaves = true;
            self.unsettled = true;
        }
    }

    fn session(&mut self, id: ConsumerId) -> Option<&mut Session> {
        self.sessions.get_mut(self.by_stream.get(&id)?)
    }

    fn has_room_for(&self, member: &Member) -> Result<(), SubscribeRefusal> {
        if self.sessions.contains_key(member) {
            return Ok(());
        }
        let names: BTreeSet<&Name> = self.sessions.keys().map(|(name, _)| name).collect();
        if names.len() >= SUBSCRIPTIONS_MAX && !names.contains(&member.0) {
            return Err(SubscribeRefusal::SubscriptionLimit);
        }
        if self.sessions.len() >= MEMBERS_MAX {
            Err(SubscribeRefusal::ConsumerLimit)
        } else {
            Ok(())
        }
    }

    /// Moves what is to be in the log into a control batch, unless one is on its way.
    pub(super) fn take_commands(&mut self, commands: &mut Vec<Command>) -> bool {
        if self.in_flight || self.commands.is_empty() {
            return false;
        }
        commands.append(&mut self.commands);
        self.in_flight = true;
        true
    }

    /// What was on its way is in the log, or lost.
    pub(super) fn commands_ended(&mut self) {
        (self.in_flight, self.unsettled) = (false, true);
    }

    /// Members that came with the log have sessions; those that went have none.
    fn follow<R>(&mut self, rosters: &Rosters, now: Instant, out: &mut Effects<R>) {
        for (name, roster) in rosters.iter() {
            for member in roster.members() {
                let session = || Session::new(None, now);
                self.sessions.entry((name.clone(), *member)).or_insert_with(session);
            }
        }
        let by_stream = &mut self.by_stream;
        self.sessions.retain(|member, session| {
            if is_member(rosters, member) {
                return true;
            }
            // Whatever it was told is over; what it joins now is told anew.
            session.told = None;
            let stays = session.stream.is_some() && !session.is_gone(now);
            if let (false, Some((id, answered))) = (stays, session.stream) {
                by_stream.remove(&id);
                out.push(match session.leaves {
                    true => Effect::Left(id),
                    false => part(id, answered, &SubscribeRefusal::Silent),
                });
            }
            stays
        });
    }

    /// What the log lacks of what is known here.
    fn ask(&mut self, rosters: &Rosters, partitions: u32, now: Instant) {
        self.commands.clear();
        let mut bytes = 0;
        for ((name, member), session) in &mut self.sessions {
            let (subscription, member) = (name.clone(), *member);
            let roster = rosters.find(name).filter(|roster| roster.members().contains(&member));
            let owed = roster.and_then(|roster| roster.owed_by(member));
            session.owes_since = owed.map(|_| session.owes_since.unwrap_or(now));
            let late = session.owes_since.is_some_and(|since| since + HAND_OVER_MAX <= now);
            let grows = roster.is_some_and(|roster| roster.partitions() < partitions as usize);
            let command = match owed {
                _ if roster.is_some() && session.is_gone(now) => {
                    Command::Leave { subscription, member }
                }
                _ if roster.is_none() || grows => {
                    Command::Join { subscription, member, partitions }
                }
                Some(_) if late => {
                    Command::Release { subscription, member, epoch: rosters.epoch() }
                }
                Some(epoch) if epoch <= session.complied => {
                    Command::Release { subscription, member, epoch: session.complied }
                }
                _ => continue,
            };
            bytes += command.encoded_len();
            if bytes > CONTROL_BYTES_MAX / 4 {
                return;
            }
            self.commands.push(command);
        }
    }

    /// Tells whoever has something new to hear.
    fn tell<R>(&mut self, rosters: &Rosters, out: &mut Effects<R>) {
        for ((name, member), session) in &mut self.sessions {
            let Some(roster) = rosters.find(name) else { continue };
            let Some((id, answered)) = &mut session.stream else { continue };
            if !roster.members().contains(member) {
                continue;
            }
            if !std::mem::replace(answered, true) {
                out.push(Effect::Joined(*id, Ok(())));
            }
            let partitions = roster.read_by(*member);
            if session.told.as_ref() != Some(&partitions) {
                session.told = Some(partitions.clone());
                let (stream, epoch) = (StreamId(0), rosters.epoch());
                out.push(Effect::Assigned(*id, Assignment { stream, epoch, partitions }));
            }
        }
    }

    /// When time alone changes something.
    fn next_due(&self) -> Option<Instant> {
        let times = self.sessions.values().flat_map(|session| {
            let late = session.owes_since.map(|since| since + HAND_OVER_MAX);
            late.into_iter().chain([session.gone_at])
        });
        times.min()
    }
}

fn is_member(rosters: &Rosters, (name, member): &Member) -> bool {
    rosters.find(name).is_some_and(|roster| roster.members().contains(member))
}

impl<R> Core<R> {
    pub(super) fn join(
        &mut self,
        id: ConsumerId,
        member: Member,
        now: Instant,
        out: &mut Effects<R>,
    ) {
        let room = self.sharing.has_room_for(&member);
        let refusal = match (&self.lost, self.leader) {
            _ if self.draining => Some(SubscribeRefusal::Draining),
            (_, Leader::Elsewhere(hint)) => Some(SubscribeRefusal::NotLeader(hint)),
            (Some(lost), _) => Some(SubscribeRefusal::ReadOnly(lost.clone())),
            _ => room.err(),
        };
        if let Some(refusal) = refusal {
            out.push(Effect::Joined(id, Err(refusal)));
            return;
        }
        let fresh = Session::new(Some(id), now);
        let session = self.sharing.sessions.entry(member.clone()).or_insert(fresh);
        let older = session.stream.replace((id, false)).filter(|(older, _)| *older != id);
        session.gone_at = now + MEMBER_SILENCE_MAX;
        (session.told, session.leaves) = (None, false);
        self.sharing.by_stream.insert(id, member);
        self.sharing.look_again();
        if let Some((older, answered)) = older {
            self.sharing.by_stream.remove(&older);
            out.push(part(older, answered, &SubscribeRefusal::TakenOver));
        }
    }

    /// Looks at all members, if anything happened or time is over for one.
    pub(super) fn share(&mut self, now: Instant, out: &mut Effects<R>) {
        let due = self.sharing.due.is_some_and(|due| due <= now);
        if !self.leads() || !(due || self.sharing.unsettled) {
            return;
        }
        self.sharing.unsettled = false;
        if let Some(lost) = self.lost.clone() {
            return self.send_members_away(&SubscribeRefusal::ReadOnly(lost), out);
        }
        let rosters = &self.state.rosters;
        self.sharing.follow(rosters, now, out);
        self.sharing.tell(rosters, out);
        if !self.sharing.in_flight {
            self.sharing.ask(rosters, self.config.partitions, now);
        }
        // What is asked for brings everybody back here when it is answered.
        let busy = self.sharing.in_flight || !self.sharing.commands.is_empty();
        self.sharing.due = if busy { None } else { self.sharing.next_due() };
    }

    /// Nobody shares anything here now: whoever does is told why.
    pub(super) fn send_members_away(&mut self, why: &SubscribeRefusal, out: &mut Effects<R>) {
        let sharing = std::mem::take(&mut self.sharing);
        let streams = sharing.sessions.into_values().filter_map(|session| session.stream);
        out.extend(streams.map(|(id, answered)| part(id, answered, why)));
    }
}

/// Ends the stream of a member, or answers its JOIN.
fn part<R>(id: ConsumerId, answered: bool, why: &SubscribeRefusal) -> Effect<R> {
    match answered {
        true => Effect::Close(id, why.clone()),
        false => Effect::Joined(id, Err(why.clone())),
    }
}
