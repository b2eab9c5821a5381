//! Replicas of one group, each on a broker and a disk of its own.

use super::net::Net;
use super::rig::{A_WHILE, Rig, proposal, trim_unread, until};
use super::*;
use crate::replication::metadata::GATE_CLUSTER;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;
use weir_protocol::peer::{
    Append, AppendResult, Beat, GroupAddress, LogPlace, PeerRefusal, SegmentPart, Vote, VoteAsk,
    VoteKind,
};
use weir_protocol::types::{BrokerId, RequestId, StreamId};

/// Longer than any election here.
const LONG: Duration = Duration::from_secs(20);

/// Of groups in real time, on however busy a machine.
pub(super) const BUSY: Pace = Pace { heartbeat_ms: 100, election_ms: 700 };

/// A group: replica n lives on broker n.
pub(super) struct Cluster {
    pub(super) net: Arc<Net>,
    pub(super) rigs: BTreeMap<u64, Rig>,
    pub(super) running: BTreeMap<u64, Replica>,
    /// Who forms the group.
    founders: Vec<(ReplicaId, BrokerId)>,
    pub(super) rig: fn() -> Rig,
    pace: Pace,
    seed: u64,
    pub(super) gate: Gate,
}

impl Cluster {
    pub(super) fn of(founders: u64) -> Self {
        let founders = (1..=founders).map(|n| (ReplicaId(n), BrokerId(n))).collect();
        Self {
            net: Arc::default(),
            rigs: BTreeMap::new(),
            running: BTreeMap::new(),
            founders,
            rig: Rig::new,
            pace: BUSY,
            seed: 0,
            gate: of_cluster(),
        }
    }

    /// A group of three at the pace of production, in a time of its own.
    pub(super) async fn simulated(seed: u64) -> Self {
        Self::simulated_on(seed, BTreeMap::new(), 1..=3).await
    }

    /// The same, some of it on disks that are given, and only these opened yet.
    pub(super) async fn simulated_on(
        seed: u64,
        rigs: BTreeMap<u64, Rig>,
        opened: std::ops::RangeInclusive<u64>,
    ) -> Self {
        let mut cluster =
            Self { rigs, rig: Rig::on_one_thread, pace: Pace::STEADY, seed, ..Self::of(3) };
        for n in opened {
            cluster.open(n, Birth::Forms).await;
        }
        cluster
    }

    pub(super) async fn formed(founders: u64) -> Self {
        let mut cluster = Self::of(founders);
        for n in 1..=founders {
            cluster.open(n, Birth::Forms).await;
        }
        cluster
    }

    pub(super) fn options(&mut self, n: u64, birth: Birth) -> ReplicaOptions {
        let rig = self.rigs.entry(n).or_insert_with(self.rig);
        ReplicaOptions {
            replica: ReplicaId(n),
            birth,
            voters: self.founders.clone(),
            seed: self.seed * 10 + n,
            pace: self.pace,
            wiring: Wiring {
                peers: self.net.peers_of(BrokerId(n)),
                switchboard: self.net.board(BrokerId(n)),
                gate: self.gate.clone(),
                ..Wiring::alone()
            },
            ..rig.options(Durability::Fsync)
        }
    }

    /// Opens a replica whose readers want nothing of what its log holds.
    pub(super) async fn open(&mut self, n: u64, birth: Birth) {
        self.open_retaining(n, birth).await;
        let replica = self.at(n);
        replica.readers_begin_at(replica.log().bounds().log_end);
    }

    /// Opens one whose readers may want all of it.
    pub(super) async fn open_retaining(&mut self, n: u64, birth: Birth) {
        let options = self.options(n, birth);
        let (replica, _) = Replica::open(options).await.unwrap();
        self.running.insert(n, replica);
    }

    /// The broker is gone before its replica has ended: nothing of that is heard.
    pub(super) async fn kill(&mut self, n: u64) {
        self.net.cut_off(BrokerId(n));
        self.running.remove(&n).unwrap().shutdown().await;
    }

    pub(super) async fn reopen(&mut self, n: u64) {
        self.net.heal();
        self.open(n, Birth::Continues).await;
    }

    /// Waits for a leader among those that run and are not left out.
    pub(super) async fn leader(&self, left_out: &[u64]) -> (u64, Term) {
        let since = Instant::now();
        while since.elapsed() < LONG {
            let running = self.running.iter().filter(|(n, _)| !left_out.contains(n));
            let leading = running.filter_map(|(n, replica)| {
                replica.state().borrow().leading().map(|term| (*n, term))
            });
            if let Some(found) = leading.max_by_key(|(_, term)| *term) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("nobody leads: {:?}", self.states())
    }

    pub(super) fn states(&self) -> Vec<ReplicaState> {
        self.running.values().map(|replica| replica.state().borrow().clone()).collect()
    }

    pub(super) fn at(&self, n: u64) -> &Replica {
        &self.running[&n]
    }

    /// Proposes batches of a run of their own on `n`, and waits until all are committed there.
    pub(super) async fn write(&self, n: u64, term: Term, run: u32, count: u32) -> Index {
        let replica = self.at(n);
        let before = replica.log().bounds().last_index;
        for number in 0..count {
            while replica.propose(proposal(term, run, number..number + 1))
                == Err(ProposeError::Full)
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let last = Index(before.0 + u64::from(count));
        until(replica, |state| state.committed >= last).await;
        last
    }

    /// Waits until everybody has committed what the leader has, and proves that all logs are equal.
    pub(super) async fn settle(&self) {
        let since = Instant::now();
        let last = loop {
            // Who leads may learn only now that it does not.
            let (leader, _) = self.leader(&[]).await;
            let last = self.at(leader).log().bounds().last_index;
            if self.states().iter().all(|state| state.committed >= last) {
                break last;
            }
            assert!(since.elapsed() < LONG, "never equal up to {last}: {:?}", self.states());
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let mut logs = Vec::new();
        for replica in self.running.values() {
            let log = log_of(replica, last).await;
            let chain = log.last().map_or(replica.shared.log().chain(), |(header, _)| header.chain);
            logs.push((chain, log));
        }
        assert!(logs.windows(2).all(|pair| pair[0].0 == pair[1].0), "the chains differ");
        // Who was sent a snapshot does not hold what lies before.
        let mut logs: Vec<_> = logs.into_iter().map(|(_, log)| log).collect();
        let firsts = self.running.values().map(|replica| replica.log().bounds().first_index);
        let from = firsts.max().expect("somebody runs");
        for log in &mut logs {
            log.retain(|(header, _)| header.index >= from);
        }
        assert!(logs.windows(2).all(|pair| pair[0] == pair[1]), "the logs differ");
    }
}

fn of_cluster() -> Gate {
    let gate = Gate::default();
    gate.raise(GATE_CLUSTER);
    gate
}

/// All that every replica must hold alike, up to `last`: the chain covers it.
async fn log_of(replica: &Replica, last: Index) -> Vec<(BatchHeader, Vec<u8>)> {
    let mut log = Vec::new();
    for index in replica.log().bounds().first_index.0..=last.0 {
        for slice in replica.shared.read_index(Index(index)).await.unwrap() {
            let header = BatchHeader { header_crc: 0, durable_pos: 0, ..slice.header };
            log.push((header, slice.bytes[128..].to_vec()));
        }
    }
    log
}

#[test]
fn three_voters_form_one_group_although_one_is_late() {
    run(async {
        let mut cluster = Cluster::of(3);
        cluster.open(1, Birth::Forms).await;
        cluster.open(2, Birth::Forms).await;
        let (leader, term) = cluster.leader(&[]).await;
        cluster.write(leader, term, 0, 10).await;
        cluster.open(3, Birth::Forms).await;
        cluster.settle().await;
    });
}

#[test]
fn a_killed_leader_is_followed_by_another_and_comes_back() {
    run(async {
        let mut cluster = Cluster::formed(3).await;
        let (first, term) = cluster.leader(&[]).await;
        let acknowledged = cluster.write(first, term, 0, 100).await;
        cluster.kill(first).await;
        let (second, later) = cluster.leader(&[]).await;
        assert!(later > term);
        assert!(cluster.at(second).state().borrow().committed >= acknowledged);
        cluster.write(second, later, 0, 100).await;
        cluster.reopen(first).await;
        cluster.settle().await;
    });
}

#[test]
fn what_a_leader_that_was_cut_off_has_alone_is_truncated() {
    run(async {
        let cluster = Cluster::formed(3).await;
        let (first, term) = cluster.leader(&[]).await;
        let common = cluster.write(first, term, 0, 5).await;
        cluster.net.cut_off(BrokerId(first));
        for number in 0..8 {
            cluster.at(first).propose(proposal(term, 1, number..number + 1)).unwrap();
        }
        let (second, later) = cluster.leader(&[first]).await;
        cluster.write(second, later, 0, 3).await;
        assert!(cluster.at(first).log().bounds().last_index > common);
        assert_eq!(cluster.at(first).state().borrow().committed, common);
        cluster.net.heal();
        cluster.settle().await;
        let refused = until(cluster.at(first), |state| state.refused.is_some()).await.refused;
        let expected = Refused { term, run: 1, number: 0, outcome: StoredOutcome::Unknown };
        assert_eq!(refused, Some(expected));
        assert_eq!(cluster.at(first).in_flight(), 0);
    });
}

#[test]
fn a_learner_is_sent_everything_from_the_first_batch() {
    run(async {
        let mut cluster = Cluster::formed(1).await;
        let (leader, term) = cluster.leader(&[]).await;
        cluster.write(leader, term, 0, 300).await;
        cluster.open(2, Birth::Joins).await;
        let at = cluster.at(1).add_learner(ReplicaId(2), BrokerId(2)).await.unwrap();
        cluster.settle().await;
        let members = cluster.at(2).members();
        assert_eq!((members.index, members.brokers.len()), (at, 2));
        assert_eq!(members.voters, [[ReplicaId(1)].into()]);
        // What the leader knows of it follows.
        let since = Instant::now();
        while cluster.at(1).progress()[&ReplicaId(2)] < at {
            assert!(since.elapsed() < LONG, "the leader does not learn of it");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn one_replica_grows_to_three_and_loses_the_first() {
    run(async {
        let mut cluster = Cluster::formed(1).await;
        let (leader, term) = cluster.leader(&[]).await;
        cluster.write(leader, term, 0, 50).await;
        let mut at = Index(0);
        for n in 2..=3 {
            cluster.open(n, Birth::Joins).await;
            at = cluster.at(1).add_learner(ReplicaId(n), BrokerId(n)).await.unwrap();
        }
        let three: BTreeSet<_> = (1..=3).map(ReplicaId).collect();
        let stale = cluster.at(1).change_voters(three.clone(), Index(at.0 - 1)).await;
        assert!(matches!(stale, Err(MembershipError::Changed(_))), "{stale:?}");
        cluster.at(1).change_voters(three.clone(), at).await.unwrap();
        assert_eq!(cluster.at(1).members().voters, [three]);
        cluster.settle().await;
        cluster.kill(1).await;
        let (second, later) = cluster.leader(&[]).await;
        cluster.write(second, later, 0, 50).await;
        cluster.reopen(1).await;
        cluster.settle().await;
    });
}

#[test]
fn a_voter_is_replaced_by_another() {
    run(async {
        let mut cluster = Cluster::formed(3).await;
        let (leader, term) = cluster.leader(&[]).await;
        cluster.write(leader, term, 0, 20).await;
        cluster.open(4, Birth::Joins).await;
        let replica = cluster.at(leader);
        let at = replica.add_learner(ReplicaId(4), BrokerId(4)).await.unwrap();
        let gone = if leader == 3 { 2 } else { 3 };
        let voters = (1..=4).filter(|n| *n != gone).map(ReplicaId).collect();
        replica.change_voters(voters, at).await.unwrap();
        assert!(!replica.members().brokers.contains_key(&ReplicaId(gone)));
        cluster.kill(gone).await;
        cluster.write(leader, term, 1, 20).await;
        cluster.settle().await;
    });
}

/// Whoever changes the voters may die between the two steps of it.
#[test]
fn a_joint_membership_that_was_left_over_is_ended_by_asking_again() {
    run(async {
        let mut cluster = Cluster::formed(3).await;
        let (leader, term) = cluster.leader(&[]).await;
        cluster.open(4, Birth::Joins).await;
        let replica = cluster.at(leader);
        replica.add_learner(ReplicaId(4), BrokerId(4)).await.unwrap();
        let gone = if leader == 3 { 2 } else { 3 };
        let old: BTreeSet<_> = (1..=3).map(ReplicaId).collect();
        let new: BTreeSet<_> = (1..=4).filter(|n| *n != gone).map(ReplicaId).collect();
        let joint = vec![old.clone(), new.clone()];
        let membership = engine::Membership::new(joint.clone(), replica.members().brokers);
        let payload = Record::blank();
        replica.raft.append_membership(membership.unwrap(), payload, []).await.unwrap();
        assert_eq!(replica.members().voters, joint);
        replica.change_voters(new.clone(), replica.members().index).await.unwrap();
        assert_eq!(replica.members().voters, [new]);
        cluster.kill(gone).await;
        cluster.write(leader, term, 0, 5).await;
        cluster.settle().await;
    });
}

#[test]
fn a_leader_can_be_taken_out_of_its_group() {
    run(async {
        let mut cluster = Cluster::formed(3).await;
        let (leader, term) = cluster.leader(&[]).await;
        cluster.write(leader, term, 0, 5).await;
        let at = cluster.at(leader).members().index;
        let voters = (1..=3).filter(|n| *n != leader).map(ReplicaId).collect();
        cluster.at(leader).change_voters(voters, at).await.unwrap();
        let (second, later) = cluster.leader(&[leader]).await;
        cluster.running.remove(&leader).unwrap().shutdown().await;
        cluster.write(second, later, 0, 5).await;
        cluster.settle().await;
    });
}

#[test]
fn nothing_is_committed_that_only_the_leader_has_flushed() {
    run(async {
        let cluster = Cluster::formed(3).await;
        let (leader, term) = cluster.leader(&[]).await;
        let before = cluster.write(leader, term, 0, 3).await;
        cluster.settle().await;
        let followers: Vec<_> = (1..=3).filter(|n| *n != leader).collect();
        followers.iter().for_each(|n| cluster.rigs[n].faults.hold());
        let replica = cluster.at(leader);
        replica.propose(proposal(term, 1, 0..1)).unwrap();
        let held = Index(before.0 + 1);
        for n in &followers {
            let reader = cluster.at(*n).log();
            let since = Instant::now();
            while reader.bounds().last_index < held && since.elapsed() < LONG {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(replica.state().borrow().committed, before);
        cluster.rigs[&followers[0]].faults.release();
        until(replica, |state| state.committed >= held).await;
        cluster.rigs[&followers[1]].faults.release();
        cluster.settle().await;
    });
}

#[test]
fn who_is_cut_off_does_not_raise_the_term() {
    run(async {
        let cluster = Cluster::formed(3).await;
        let (leader, term) = cluster.leader(&[]).await;
        cluster.write(leader, term, 0, 3).await;
        let alone = if leader == 1 { 2 } else { 1 };
        cluster.net.cut_off(BrokerId(alone));
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.net.heal();
        cluster.write(leader, term, 1, 3).await;
        cluster.settle().await;
        assert_eq!(cluster.leader(&[]).await, (leader, term));
    });
}

#[test]
fn a_replica_whose_log_is_lost_does_not_take_part() {
    run(async {
        let mut cluster = Cluster::of(3);
        let options = cluster.options(1, Birth::Continues);
        let refused = Replica::open(options).await.map(|_| ());
        assert!(matches!(refused, Err(OpenReplicaError::Lost(ReplicaId(1)))), "{refused:?}");
    });
}

#[test]
fn a_large_log_reaches_a_follower_that_was_away() {
    run(async {
        let mut cluster = Cluster::formed(3).await;
        let (leader, term) = cluster.leader(&[]).await;
        let away = if leader == 1 { 2 } else { 1 };
        cluster.kill(away).await;
        let replica = cluster.at(leader);
        for number in 0..24 {
            let batches = vec![large(number, 1 << 20)];
            replica.propose(Proposal { term, batches }).unwrap();
        }
        cluster.reopen(away).await;
        cluster.settle().await;
    });
}

#[test]
fn a_follower_without_space_falls_out_and_comes_back_when_it_has_some() {
    run(async {
        let mut cluster = Cluster::formed(3).await;
        let (leader, term) = cluster.leader(&[]).await;
        cluster.write(leader, term, 0, 5).await;
        let full = 1 + leader % 3;
        cluster.rigs[&full].faults.fail(std::io::ErrorKind::StorageFull);
        cluster.write(leader, term, 1, 20).await;
        until(cluster.at(full), |state| state.role == Role::Fenced(Fence::NoSpace)).await;
        let last = cluster.write(leader, term, 2, 20).await;
        cluster.rigs[&full].faults.mend();
        cluster.running.remove(&full).unwrap().shutdown().await;
        cluster.reopen(full).await;
        until(cluster.at(full), |state| state.committed >= last).await;
        cluster.settle().await;
    });
}

#[test]
fn a_follower_that_needs_what_is_damaged_does_not_end_the_leader() {
    run(async {
        let mut cluster = Cluster::formed(1).await;
        let (leader, term) = cluster.leader(&[]).await;
        for number in 0..10 {
            let batches = vec![large(number, 600 << 10)];
            cluster.at(leader).propose(Proposal { term, batches }).unwrap();
        }
        let reached = until(cluster.at(1), |state| state.committed >= Index(12)).await;
        assert_eq!(cluster.at(1).log().sealed_segments()[1].first_index, Index(3));
        cluster.running.remove(&1).unwrap().shutdown().await;
        let options = cluster.options(1, Birth::Continues);
        let files = std::fs::read_dir(&options.dir).unwrap().map(|file| file.unwrap().path());
        let segments = files.filter(|file| file.extension().is_some_and(|e| e == "seg"));
        let segments: BTreeSet<_> = segments.collect();
        let sealed = segments.iter().nth(1).unwrap();
        let mut bytes = std::fs::read(sealed).unwrap();
        bytes[300 << 10] ^= 1;
        std::fs::write(sealed, bytes).unwrap();

        cluster.open(1, Birth::Continues).await;
        let (leader, later) = cluster.leader(&[]).await;
        cluster.open(2, Birth::Joins).await;
        cluster.at(1).add_learner(ReplicaId(2), BrokerId(2)).await.unwrap();
        let state = until(cluster.at(1), |state| state.unreadable.is_some()).await;
        assert_eq!(state.unreadable, Some(Index(3)));
        cluster.write(leader, later, 0, 5).await;
        assert!(cluster.at(1).state().borrow().committed > reached.committed);
        assert_eq!(cluster.at(2).log().bounds().last_index, Index(2));
        let replica = cluster.at(1);
        let at = replica.state().borrow().committed;
        replica.checkpoint(at, "state".into()).await.unwrap();
        assert_eq!(trim_unread(replica, at).await, Err(MaintainError::Held(at)));
    });
}

/// A follower that has not flushed answers nothing, whatever else reaches it: not even a vote that
/// it grants meanwhile makes the append look durable.
#[test]
fn a_follower_answers_what_is_flushed_and_nothing_before() {
    run(async {
        let mut cluster = Cluster::of(2);
        cluster.open(2, Birth::Joins).await;
        let (rig, follower) = (&cluster.rigs[&2], cluster.at(2));
        let inbox = cluster.net.board(BrokerId(2)).inbox(ReplicaId(2)).unwrap();
        let (input, mut answers) = inbox.stream().await;
        let source = Rig::new();
        let (leader, term) = source.leader().await;
        leader.propose(proposal(term, 0, 0..3)).unwrap();
        super::rig::committed(&leader, 3).await;
        let vote = Vote { term: Term(7), replica: ReplicaId(1), committed: true };
        input.push(&append_of(&leader, vote, 1..=2).await, ()).await.unwrap();
        let flushed = LogPlace { term, index: Index(2) };
        assert_eq!(answers.next().await, Some(AppendResult::Flushed(flushed)));
        rig.faults.hold();
        input.push(&append_of(&leader, vote, 3..=3).await, ()).await.unwrap();
        let early = tokio::time::timeout(A_WHILE, answers.next()).await;
        assert!(early.is_err(), "{early:?}");
        assert_eq!(follower.log().bounds().last_index, Index(3));
        let address = GroupAddress { to: ReplicaId(2), from: ReplicaId(3) };
        let next = Vote { term: Term(8), replica: ReplicaId(3), committed: false };
        let place = LogPlace { term, index: Index(9) };
        let (kind, request) = (VoteKind::Transfer, RequestId(0));
        let ask = VoteAsk { request, address, kind, vote: next, last: place };
        let mut granted = Box::pin(inbox.vote(ask));
        assert!(tokio::time::timeout(A_WHILE, &mut granted).await.is_err());
        let early = tokio::time::timeout(A_WHILE, answers.next()).await;
        assert!(early.is_err(), "{early:?}");
        rig.faults.release();
        let flushed = LogPlace { term, index: Index(3) };
        assert_eq!(answers.next().await, Some(AppendResult::Flushed(flushed)));
        assert!(granted.await.unwrap().granted);
    });
}

#[test]
fn a_log_that_differs_from_its_leaders_fences_instead_of_answering() {
    run(async {
        let mut cluster = Cluster::of(2);
        cluster.open(2, Birth::Joins).await;
        let inbox = cluster.net.board(BrokerId(2)).inbox(ReplicaId(2)).unwrap();
        let (input, mut answers) = inbox.stream().await;
        let (one, other) = (Rig::new(), Rig::new());
        let (first, term) = one.leader().await;
        let (second, _) = other.leader().await;
        first.propose(proposal(term, 0, 0..1)).unwrap();
        second.propose(proposal(term, 0, 0..3)).unwrap();
        second.propose(proposal(term, 0, 3..4)).unwrap();
        super::rig::committed(&first, 3).await;
        super::rig::committed(&second, 4).await;
        let vote = Vote { term: Term(7), replica: ReplicaId(1), committed: true };
        input.push(&append_of(&first, vote, 1..=3).await, ()).await.unwrap();
        let flushed = LogPlace { term, index: Index(3) };
        assert_eq!(answers.next().await, Some(AppendResult::Flushed(flushed)));
        input.push(&append_of(&second, vote, 4..=4).await, ()).await.unwrap();
        let answer = answers.next().await;
        assert_eq!(answer, Some(AppendResult::Refused(PeerRefusal::Fenced)));
        let fenced = |state: &ReplicaState| matches!(state.role, Role::Fenced(Fence::Engine(_)));
        until(cluster.at(2), fenced).await;
        assert_eq!(cluster.at(2).log().bounds().last_index, Index(3));
        // Nothing reaches the engine any more, which would complain of each.
        let late = input.push(&append_of(&second, vote, 4..=4).await, ()).await;
        assert_eq!(late, Err(PeerRefusal::Fenced));
        let address = GroupAddress { to: ReplicaId(2), from: ReplicaId(1) };
        let beat = Beat { address, term: Term(7), matching: flushed, commit: flushed };
        assert_eq!(inbox.beat(beat).await, AppendResult::Refused(PeerRefusal::Fenced));
    });
}

#[test]
fn a_leader_that_was_cut_off_serves_no_read() {
    run(async {
        let cluster = Cluster::formed(3).await;
        let (leader, term) = cluster.leader(&[]).await;
        let last = cluster.write(leader, term, 0, 5).await;
        assert_eq!(cluster.at(leader).read_index().await, Ok(last));
        cluster.net.cut_off(BrokerId(leader));
        let read = tokio::time::timeout(3 * A_WHILE, cluster.at(leader).read_index()).await;
        assert!(!matches!(read, Ok(Ok(_))), "{read:?}");
        let (second, later) = cluster.leader(&[leader]).await;
        let last = cluster.write(second, later, 0, 5).await;
        let follower = 6 - leader - second;
        assert_eq!(cluster.at(follower).read_index().await, Err(MembershipError::NotLeader));
        assert_eq!(cluster.at(second).read_index().await, Ok(last));
    });
}

#[test]
fn who_follows_promises_nothing_to_a_shorter_log_and_outvotes_an_older_leader() {
    run(async {
        let cluster = Cluster::formed(3).await;
        let (leader, term) = cluster.leader(&[]).await;
        cluster.write(leader, term, 0, 5).await;
        let follower = 1 + leader % 3;
        let third = 6 - leader - follower;
        let inbox = cluster.net.board(BrokerId(follower)).inbox(ReplicaId(follower)).unwrap();
        let address = GroupAddress { to: ReplicaId(follower), from: ReplicaId(third) };
        let next = Vote { term: Term(term.0 + 1), replica: ReplicaId(third), committed: false };
        let (kind, request, last) = (VoteKind::Trial, RequestId(0), LogPlace::default());
        let ask = VoteAsk { request, address, kind, vote: next, last };
        assert!(!inbox.vote(ask).await.unwrap().granted);
        let older = Term(term.0 - 1);
        let beat = Beat { address, term: older, matching: last, commit: last };
        let answer = inbox.beat(beat).await;
        let outvoted = matches!(answer, AppendResult::Outvoted(vote) if vote.term >= term);
        assert!(outvoted, "{answer:?}");
    });
}

/// These indexes of a log, as its replica would send them.
pub(super) async fn append_of(
    replica: &Replica,
    vote: Vote,
    indexes: std::ops::RangeInclusive<u64>,
) -> Append {
    let place = |index: u64| {
        let term = replica.shared.map().term_at(Index(index));
        LogPlace { term: term.unwrap_or_default(), index: Index(index) }
    };
    let (before, last) = (indexes.start() - 1, *indexes.end());
    let mut parts = Vec::new();
    for index in indexes {
        for slice in replica.shared.read_index(Index(index)).await.unwrap() {
            parts.push(SegmentPart { salt: slice.salt, batches: vec![slice.bytes] });
        }
    }
    let (prev, commit) = (place(before), place(last));
    Append { stream: StreamId(1), number: 1, vote, prev, commit, parts }
}
