//! Which replica leaves its group for a moment, because damage was found in it while it ran: its
//! opening brings back from the others what is missing.
//!
//! Owns: when that is, who leads meanwhile, and what of each replica's damage was tried.
//! Never: closes or opens anything, which is the follower's; takes a replica away while another
//! voter of its group is silent, or is the only one.
//! Invariants: damage that was tried is not tried again for [`AGAIN_AFTER`], unless more is found;
//! who leads has handed over before it is named; the voters of a group are never named at the same
//! time, as far as the clocks of their brokers agree.

use super::Rooms;
use super::table::Table;
use crate::cluster::members::ANSWERS_WITHIN;
use crate::replication::{Members, MembershipError, Replica, Role};
use crate::seams::BoxFuture;
use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use tokio::time::{Duration, Instant};
use weir_protocol::types::{BrokerId, Index, ReplicaId};
use weir_storage::DamagedRange;

/// How often damage is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What nobody had is asked for again after this: somebody may be back who has it.
const AGAIN_AFTER: Duration = Duration::from_secs(3_600);
/// How long it is the turn of one voter of a group. It leaves in the first half: the second is for
/// coming back.
const TURN_MS: u64 = 4_000;
const _: () = assert!(LOOK_EVERY.as_millis() as u64 * 2 <= TURN_MS / 2);

pub(super) struct Mender {
    rooms: Arc<Rooms>,
    table: Arc<Table>,
    ledger: Ledger,
    look_at: Instant,
    handing_over: Option<HandingOver>,
}

/// A lead that is just being given up.
struct HandingOver {
    replica: ReplicaId,
    done: BoxFuture<'static, Result<(), MembershipError>>,
}

impl Mender {
    pub(super) fn new(rooms: &Arc<Rooms>, table: &Arc<Table>) -> Self {
        Self {
            rooms: rooms.clone(),
            table: table.clone(),
            ledger: Ledger::default(),
            look_at: Instant::now() + LOOK_EVERY,
            handing_over: None,
        }
    }

    /// Notes that a replica is closed for what is known to be damaged in it by now.
    pub(super) fn closed(&mut self, replica: ReplicaId, damaged: Vec<DamagedRange>) {
        self.ledger.closed(replica, damaged, Instant::now());
    }

    /// Notes what is damaged in a replica that was just opened: all that its opening could not mend.
    pub(super) fn opened(&mut self, replica: ReplicaId, damaged: Vec<DamagedRange>) {
        self.ledger.opened(replica, damaged, Instant::now());
    }

    /// The replica is not here any more.
    pub(super) fn forget(&mut self, replica: ReplicaId) {
        self.ledger.forget(replica);
    }

    /// The next replica that is to be closed and opened again; it does not lead. Never returns while
    /// there is none. Nothing is lost where this is dropped.
    pub(super) async fn next(&mut self) -> ReplicaId {
        if self.rooms.metadata_voters.is_none() {
            // Nobody else has what is missing.
            return pending().await;
        }
        loop {
            if let Some(handing_over) = &mut self.handing_over {
                let done = handing_over.done.as_mut().await;
                let replica = handing_over.replica;
                self.handing_over = None;
                match done {
                    Ok(()) => return replica,
                    Err(error) => {
                        tracing::warn!(%replica, %error, "a damaged replica leads on for now");
                        self.look_at = Instant::now() + Duration::from_millis(TURN_MS);
                    }
                }
            }
            tokio::time::sleep_until(self.look_at).await;
            self.look_at = Instant::now() + LOOK_EVERY;
            match self.choose() {
                None => {}
                Some((replica, Way::Close)) => return replica.id(),
                Some((replica, Way::HandOver(heir))) => {
                    let id = replica.id();
                    tracing::info!(replica = %id, %heir, "a damaged replica hands its lead over");
                    let done = Box::pin(async move { replica.transfer(heir).await });
                    self.handing_over = Some(HandingOver { replica: id, done });
                }
            }
        }
    }

    fn choose(&self) -> Option<(Replica, Way)> {
        let (now, now_ms) = (Instant::now(), self.rooms.wall.now_ms());
        let open = self.table.open().into_iter();
        let hurt = open.filter_map(|handle| {
            let (replica, damaged) = (handle.replica()?, handle.damaged_ranges());
            self.ledger.has_more(replica.id(), &damaged, now).then_some(replica)
        });
        let mut ready = hurt.filter_map(|replica| {
            let way = self.group_of(&replica, now)?.way(now_ms)?;
            Some((replica, way))
        });
        ready.next()
    }

    /// The group of a replica, unless it is changing, or has no leader.
    fn group_of(&self, replica: &Replica, now: Instant) -> Option<Group> {
        let leads = match &replica.state().borrow().role {
            Role::Leader(_) => true,
            Role::Follower { leader: Some(_) } => false,
            Role::Follower { leader: None } | Role::Candidate | Role::Fenced(_) => return None,
        };
        let Members { voters, brokers, .. } = replica.members();
        let [voters] = &voters[..] else { return None };
        let (conditions, silence) = (self.rooms.leaders.conditions(), replica.silence());
        let stays = |broker: &BrokerId| {
            let condition = conditions.get(broker);
            let heard = |heard| now.saturating_duration_since(heard) < ANSWERS_WITHIN;
            condition.is_some_and(|it| heard(it.heard) && !it.going)
        };
        // Only who leads hears of each of them.
        let answers = |id: &ReplicaId| {
            let heard = silence.get(id).is_some_and(|silent| *silent < ANSWERS_WITHIN);
            !leads || *id == replica.id() || heard
        };
        let progress = replica.progress();
        let reached = |id: &ReplicaId| {
            let lives = brokers.get(id).is_some_and(stays) && answers(id);
            lives.then(|| progress.get(id).copied().unwrap_or_default())
        };
        let voters = voters.iter().map(|id| (*id, reached(id))).collect();
        Some(Group { me: replica.id(), leads, voters })
    }
}

/// How a replica leaves its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Close,
    /// This one leads first.
    HandOver(ReplicaId),
}

/// The group of a damaged replica.
#[derive(Debug)]
struct Group {
    me: ReplicaId,
    leads: bool,
    /// Who votes, and how far it is known to hold the log; none where it does not live, or is about
    /// to go.
    voters: BTreeMap<ReplicaId, Option<Index>>,
}

impl Group {
    /// How the replica leaves at `now_ms` of the day's clock, if it may.
    fn way(&self, now_ms: u64) -> Option<Way> {
        let live: Option<Vec<(Index, ReplicaId)>> =
            self.voters.iter().map(|(id, reached)| Some(((*reached)?, *id))).collect();
        let heir = live?.into_iter().filter(|(_, id)| *id != self.me).max()?.1;
        match (self.is_turn(now_ms), self.leads) {
            (false, _) => None,
            (true, true) => Some(Way::HandOver(heir)),
            (true, false) => Some(Way::Close),
        }
    }

    /// Voters take turns by the time of day, so that two that are damaged do not leave at once
    /// without having to ask one another. Who does not vote keeps nobody waiting.
    fn is_turn(&self, now_ms: u64) -> bool {
        let Some(place) = self.voters.keys().position(|id| *id == self.me) else { return true };
        let turn = now_ms / TURN_MS % self.voters.len() as u64;
        turn == place as u64 && now_ms % TURN_MS < TURN_MS / 2
    }
}

/// What was tried of the replicas that are open here: no more than two sets of ranges for each.
#[derive(Debug, Default)]
struct Ledger(BTreeMap<ReplicaId, Tried>);

#[derive(Debug)]
struct Tried {
    since: Instant,
    /// What it was closed for. Mended and found once more, it is not closed for it at once: its
    /// device may spoil whatever is written there.
    closed_for: Vec<DamagedRange>,
    /// What its last opening left, because nobody had it.
    left: Vec<DamagedRange>,
}

impl Ledger {
    fn closed(&mut self, replica: ReplicaId, damaged: Vec<DamagedRange>, now: Instant) {
        let tried = Tried { since: now, closed_for: damaged, left: Vec::new() };
        self.0.insert(replica, tried);
    }

    fn opened(&mut self, replica: ReplicaId, left: Vec<DamagedRange>, now: Instant) {
        match self.0.get_mut(&replica) {
            Some(tried) if tried.is_fresh(now) => tried.left = left,
            _ if left.is_empty() => drop(self.0.remove(&replica)),
            _ => {
                let tried = Tried { since: now, closed_for: Vec::new(), left };
                self.0.insert(replica, tried);
            }
        }
    }

    fn forget(&mut self, replica: ReplicaId) {
        self.0.remove(&replica);
    }

    /// Whether anything is damaged that was not tried.
    fn has_more(&self, replica: ReplicaId, damaged: &[DamagedRange], now: Instant) -> bool {
        let tried = self.0.get(&replica).filter(|tried| tried.is_fresh(now));
        let is_known = |range: &DamagedRange| tried.is_some_and(|tried| tried.holds(range));
        !damaged.iter().all(|range| range.accepted || is_known(range))
    }
}

impl Tried {
    fn is_fresh(&self, now: Instant) -> bool {
        now < self.since + AGAIN_AFTER
    }

    fn holds(&self, range: &DamagedRange) -> bool {
        self.closed_for.iter().chain(&self.left).any(|known| {
            known.sequence == range.sequence
                && known.positions.start <= range.positions.start
                && range.positions.end <= known.positions.end
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;
    use weir_protocol::types::Offset;

    const ME: ReplicaId = ReplicaId(5);

    fn group(leads: bool, voters: &[(u64, Option<u64>)]) -> Group {
        let voter = |(id, reached): &(u64, Option<u64>)| (ReplicaId(*id), reached.map(Index));
        Group { me: ME, leads, voters: voters.iter().map(voter).collect() }
    }

    fn range(positions: Range<u64>) -> DamagedRange {
        let (first_index, last_index) = (Index(positions.start), Index(positions.end));
        let (first_offset, end_offset) = (Offset(positions.start), Offset(positions.end));
        let (sequence, accepted) = (3, false);
        #[rustfmt::skip]
        return DamagedRange { sequence, positions, first_index, last_index, first_offset, end_offset, accepted };
    }

    /// The second voter's turn.
    const TURN: u64 = 300 * TURN_MS + TURN_MS;

    #[test]
    fn a_replica_leaves_only_a_group_whose_others_all_live() {
        let all = [(4, Some(7)), (5, Some(7)), (6, Some(7))];
        assert_eq!(group(false, &all).way(TURN), Some(Way::Close));
        for silent in [0, 2] {
            let mut voters = all;
            voters[silent].1 = None;
            assert_eq!(group(false, &voters).way(TURN), None);
            assert_eq!(group(true, &voters).way(TURN), None);
        }
        // Nobody else has what is missing.
        assert!((0..3 * TURN_MS).all(|ms| group(false, &[(5, Some(7))]).way(ms).is_none()));
        assert!((0..3 * TURN_MS).all(|ms| group(true, &[(5, Some(7))]).way(ms).is_none()));
    }

    #[test]
    fn who_leads_hands_over_to_the_one_that_has_most() {
        let of = |first, last| group(true, &[(4, Some(first)), (5, Some(99)), (6, Some(last))]);
        assert_eq!(of(8, 7).way(TURN), Some(Way::HandOver(ReplicaId(4))));
        assert_eq!(of(7, 8).way(TURN), Some(Way::HandOver(ReplicaId(6))));
    }

    #[test]
    fn voters_leave_one_after_the_other_and_each_comes_to_its_turn() {
        let ids = [4, 5, 6];
        let mut turns = [0; 3];
        for ms in 0..3 * TURN_MS {
            let all = ids.map(|id| (id, Some(7)));
            let of = |me| Group { me: ReplicaId(me), ..group(false, &all) };
            let leave = ids.map(|me| of(me).way(ms).is_some());
            let leaving = leave.iter().filter(|leaves| **leaves).count();
            assert!(leaving <= 1, "{leaving} voters leave at {ms}");
            // Who left in the turn before has half a turn to come back.
            assert!(ms % TURN_MS < TURN_MS / 2 || leaving == 0);
            (0..3).for_each(|at| turns[at] += u64::from(leave[at]));
        }
        assert_eq!(turns, [TURN_MS / 2; 3]);
        let learner = group(false, &[(1, Some(7)), (2, Some(7))]);
        assert!((0..TURN_MS).all(|ms| learner.way(ms) == Some(Way::Close)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_tried_is_tried_again_when_there_is_more_or_after_an_hour() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let (one, more) = ([range(100..200)], [range(100..200), range(500..600)]);
        assert!(!ledger.has_more(ME, &[], start));
        assert!(ledger.has_more(ME, &one, start));
        ledger.closed(ME, one.to_vec(), start);
        // Nobody had it, and recovery draws it wider than whoever found it.
        let left = [range(90..210)];
        ledger.opened(ME, left.to_vec(), start);
        assert!(!ledger.has_more(ME, &left, start));
        assert!(!ledger.has_more(ME, &one, start));
        assert!(ledger.has_more(ME, &more, start));
        assert!(ledger.has_more(ME, &[range(90..211)], start));
        assert!(ledger.has_more(ReplicaId(6), &one, start), "another replica's");
        let accepted = [DamagedRange { accepted: true, ..range(700..800) }];
        assert!(!ledger.has_more(ME, &accepted, start), "it was given up");
        let late = start + AGAIN_AFTER;
        assert!(!ledger.has_more(ME, &left, late - Duration::from_millis(1)));
        assert!(ledger.has_more(ME, &left, late));
        ledger.closed(ME, one.to_vec(), late);
        ledger.opened(ME, Vec::new(), late);
        assert!(!ledger.has_more(ME, &one, late), "its device spoils what is mended");
        assert!(ledger.has_more(ME, &left, late));
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_tries_all_that_is_damaged_then() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let one = [range(100..200)];
        ledger.opened(ME, one.to_vec(), start);
        assert!(!ledger.has_more(ME, &one, start));
        ledger.opened(ME, Vec::new(), start + AGAIN_AFTER);
        assert!(ledger.0.is_empty());
        ledger.opened(ME, one.to_vec(), start);
        ledger.forget(ME);
        assert!(ledger.has_more(ME, &one, start));
    }
}
