//! Single steps; whole ways are walked in the controller's tests.

use super::*;
use crate::replication::metadata::{LossReason, Stage};

/// A group of replicas 1 to 3, each on the broker of its number, led by 1.
struct Case {
    wanted: Wanted,
    members: Members,
    progress: BTreeMap<ReplicaId, Progress>,
    going: BTreeSet<BrokerId>,
    me: ReplicaId,
}

fn set(replicas: &[u64]) -> BTreeSet<ReplicaId> {
    replicas.iter().map(|id| ReplicaId(*id)).collect()
}

fn well() -> Progress {
    Progress { lag_bytes: 0, answers: true }
}

impl Case {
    fn new() -> Self {
        let seats = (1..=3).map(|id| Seat {
            replica: ReplicaId(id),
            broker: BrokerId(id),
            stage: Stage::Voter,
            wish: Wish::Vote,
        });
        Self {
            wanted: Wanted {
                log: Log::Partition,
                seats: seats.collect(),
                moved: None,
                preferred: Some(ReplicaId(1)),
            },
            members: Members {
                index: Index(7),
                voters: vec![set(&[1, 2, 3])],
                brokers: (1..=3).map(|id| (ReplicaId(id), BrokerId(id))).collect(),
            },
            progress: (1..=3).map(|id| (ReplicaId(id), well())).collect(),
            going: BTreeSet::new(),
            me: ReplicaId(1),
        }
    }

    /// Replica 4 replaces one, has this stage, and is in the group, as far behind as told.
    fn moving(mut self, leaves: u64, stage: Stage, lag_bytes: u64) -> Self {
        let wish = if stage == Stage::Joining { Wish::Learn } else { Wish::Vote };
        let (replica, broker) = (ReplicaId(4), BrokerId(4));
        self.wanted.seats.push(Seat { replica, broker, stage, wish });
        self.wanted.moved = Some((replica, ReplicaId(leaves)));
        self.members.brokers.insert(replica, broker);
        self.progress.insert(replica, Progress { lag_bytes, answers: true });
        self
    }

    fn stage(&mut self, replica: u64, stage: Stage) {
        let seat = &mut self.wanted.seats[replica as usize - 1];
        (seat.stage, seat.wish) = (stage, Wish::Leave);
    }

    fn is_silent(&mut self, replica: u64) {
        let silent = Progress { lag_bytes: CLOSE_BYTES, answers: false };
        self.progress.insert(ReplicaId(replica), silent);
    }

    fn next(&self) -> Option<MemberStep> {
        let Self { members, progress, going, me, .. } = self;
        next_step(&self.wanted, Group { me: *me, members, progress, going })
    }
}

fn voters(replicas: &[u64]) -> Option<MemberStep> {
    Some(MemberStep::ChangeVoters { voters: set(replicas), expected: Index(7) })
}

fn note(replica: u64, step: Step) -> Option<MemberStep> {
    let replica = ReplicaId(replica);
    Some(MemberStep::Note(Command::StepReplica { replica, step }))
}

#[test]
fn a_group_that_is_as_it_shall_be_is_left_alone() {
    let case = Case::new();
    assert_eq!(case.next(), None);
    assert!(case.wanted.is_met(&case.members, ReplicaId(1)));
    assert!(!case.wanted.is_met(&case.members, ReplicaId(2)), "another is preferred");
}

#[test]
fn one_joins_as_a_learner_is_ready_when_it_is_close_and_votes_then() {
    let mut case = Case::new().moving(3, Stage::Joining, CLOSE_BYTES);
    assert!(!case.wanted.is_met(&case.members, ReplicaId(1)));
    assert_eq!(case.next(), None, "it is still far behind");
    case.members.brokers.remove(&ReplicaId(4));
    assert_eq!(case.next(), Some(MemberStep::AddLearner(ReplicaId(4), BrokerId(4))));
    assert_eq!(Case::new().moving(3, Stage::Joining, CLOSE_BYTES - 1).next(), note(4, Step::Ready));
    assert_eq!(Case::new().moving(3, Stage::Ready, CLOSE_BYTES).next(), None, "it fell back");
    let mut case = Case::new().moving(3, Stage::Ready, 0);
    assert_eq!(case.next(), voters(&[1, 2, 4]), "one change for both");
    case.members.voters = vec![set(&[1, 2, 4])];
    case.members.brokers.remove(&ReplicaId(3));
    assert_eq!(case.next(), note(4, Step::Voter));
    case.wanted.seats[3].stage = Stage::Voter;
    assert_eq!(case.next(), None, "who gave way is not taken in again");
    case.stage(3, Stage::Leaving);
    assert_eq!(case.next(), note(3, Step::Gone));
}

#[test]
fn a_majority_that_does_not_answer_is_never_made() {
    let mut case = Case::new();
    case.stage(3, Stage::Leaving);
    assert_eq!(case.next(), voters(&[1, 2]));
    case.is_silent(2);
    assert_eq!(case.next(), None, "with 2 silent, 3 is needed");
    case.is_silent(3);
    case.progress.insert(ReplicaId(2), well());
    assert_eq!(case.next(), voters(&[1, 2]));
}

#[test]
fn one_that_is_lost_votes_no_longer_and_learns_no_longer() {
    let mut case = Case::new();
    case.stage(2, Stage::Lost(LossReason::Empty));
    case.is_silent(2);
    assert_eq!(case.next(), voters(&[1, 3]));
    case.members.voters = vec![set(&[1, 3])];
    let remove = MemberStep::RemoveLearner { replica: ReplicaId(2), expected: Index(7) };
    assert_eq!(case.next(), Some(remove));
    case.members.brokers.remove(&ReplicaId(2));
    assert_eq!(case.next(), None, "the controller lets it go");
}

#[test]
fn the_leader_hands_over_before_it_goes_to_the_nearest_that_may_lead() {
    let mut case = Case::new().moving(1, Stage::Ready, 0);
    case.progress.insert(ReplicaId(2), Progress { lag_bytes: 9, answers: true });
    assert_eq!(case.next(), Some(MemberStep::HandOver(ReplicaId(3))));
    case.going = [BrokerId(3)].into();
    assert_eq!(case.next(), Some(MemberStep::HandOver(ReplicaId(2))));
    // Nobody else votes: both do, until the new one leads.
    let mut alone = Case::new().moving(1, Stage::Ready, 0);
    alone.wanted.seats = vec![alone.wanted.seats[0], alone.wanted.seats[3]];
    alone.members.voters = vec![set(&[1])];
    alone.members.brokers.retain(|id, _| [1, 4].contains(&id.0));
    assert_eq!(alone.next(), voters(&[1, 4]));
    alone.members.voters = vec![set(&[1, 4])];
    assert_eq!(alone.next(), note(4, Step::Voter));
    alone.wanted.seats[1].stage = Stage::Voter;
    assert_eq!(alone.next(), Some(MemberStep::HandOver(ReplicaId(4))));
    alone.me = ReplicaId(4);
    assert_eq!(alone.next(), voters(&[4]));
}

#[test]
fn a_joint_membership_that_was_left_is_ended_by_who_stays() {
    let mut case = Case::new().moving(3, Stage::Ready, 0);
    case.members.voters = vec![set(&[1, 2, 3]), set(&[1, 2, 4])];
    assert_eq!(case.next(), voters(&[1, 2, 4]));
    case.me = ReplicaId(3);
    assert_eq!(case.next(), Some(MemberStep::HandOver(ReplicaId(1))));
    case.is_silent(1);
    assert_eq!(case.next(), Some(MemberStep::HandOver(ReplicaId(2))));
    case.is_silent(2);
    assert_eq!(case.next(), None);
}

#[test]
fn the_preferred_one_leads_again_when_it_is_well() {
    let mut case = Case::new();
    case.wanted.preferred = Some(ReplicaId(2));
    assert_eq!(case.next(), Some(MemberStep::Restore(ReplicaId(2))));
    case.going = [BrokerId(2)].into();
    assert_eq!(case.next(), None);
    case.going = [BrokerId(1)].into();
    assert_eq!(case.next(), Some(MemberStep::HandOver(ReplicaId(2))), "its broker shuts down");
    case.is_silent(2);
    assert_eq!(case.next(), Some(MemberStep::HandOver(ReplicaId(3))));
}

#[test]
fn a_metadata_that_is_older_than_the_group_decides_nothing() {
    let mut case = Case::new();
    case.members.brokers.insert(ReplicaId(4), BrokerId(4));
    assert_eq!(case.next(), None, "a younger member is none to be removed");
    let mut case = Case::new().moving(3, Stage::Joining, 0);
    case.members.voters = vec![set(&[1, 2, 4])];
    assert_eq!(case.next(), None, "one that votes is not far behind");
    // One that is older than those that are known was forgotten.
    let mut case = Case::new();
    case.wanted.seats.remove(1);
    case.members.voters = vec![set(&[1, 3])];
    let remove = MemberStep::RemoveLearner { replica: ReplicaId(2), expected: Index(7) };
    assert_eq!(case.next(), Some(remove));
}

#[test]
fn votes_on_the_metadata_change_all_at_once() {
    let mut case = Case::new();
    (case.wanted.log, case.wanted.preferred) = (Log::Metadata, None);
    for seat in &mut case.wanted.seats[1..] {
        seat.stage = Stage::Joining;
    }
    case.members.voters = vec![set(&[1])];
    case.is_silent(3);
    assert_eq!(case.next(), None, "two are worse than one");
    case.progress.insert(ReplicaId(3), well());
    assert_eq!(case.next(), voters(&[1, 2, 3]));
    let step = |replica: u64, step| {
        let replica = ReplicaId(replica);
        Some(MemberStep::Note(Command::StepMetadata { replica, step }))
    };
    case.members.voters = vec![set(&[1, 2, 3])];
    assert_eq!(case.next(), step(2, MetadataStep::Voter));
    for seat in &mut case.wanted.seats {
        seat.stage = Stage::Voter;
    }
    assert_eq!(case.next(), None);
    case.wanted.seats[1].wish = Wish::Learn;
    assert_eq!(case.next(), voters(&[1, 3]));
    case.members.voters = vec![set(&[1, 3])];
    case.members.brokers.remove(&ReplicaId(2));
    assert_eq!(case.next(), step(2, MetadataStep::Learner));
    case.wanted.seats[1].wish = Wish::Leave;
    assert_eq!(case.next(), step(2, MetadataStep::Gone));
}
