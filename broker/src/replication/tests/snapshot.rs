//! What was trimmed reaches a follower as a snapshot, and the rest as log.

use super::cluster::{Cluster, append_of};
use super::rig::{A_WHILE, Rig, committed, proposal, trim_unread, until};
use super::simulated::simulate;
use super::*;
use crate::replication::codec::Checkpoint;
use crate::replication::metadata::GATE_CLUSTER;
use crate::task::TaskKind;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use weir_protocol::peer::{
    AppendResult, GroupAddress, LogPlace, PeerRefusal, SnapshotHead, Vote, VoteAsk, VoteKind,
};
use weir_protocol::types::{BrokerId, RequestId};
use weir_sim::disk::{Cut, SimDisk};

/// Trims all replicas but `away`, up to what is committed.
async fn trim(cluster: &Cluster, away: u64, state: &'static str) -> Index {
    let (leader, _) = cluster.leader(&[away]).await;
    let at = cluster.at(leader).state().borrow().committed;
    for (_, replica) in cluster.running.iter().filter(|(n, _)| **n != away) {
        until(replica, |state| state.committed >= at).await;
        replica.checkpoint(at, state.into()).await.unwrap();
        assert_eq!(trim_unread(replica, at).await, Ok(at));
    }
    at
}

async fn assert_installed(replica: &Replica, at: Index, state: &'static str) {
    assert_eq!(replica.state().borrow().installed, Some(at));
    assert_eq!(replica.installed_state().await, Ok(Some((at, state.into()))));
    let bounds = replica.log().bounds();
    assert_eq!(bounds.first_index, Index(at.0 + 1));
}

/// One that does not lead.
fn follower(leader: u64) -> u64 {
    if leader == 1 { 2 } else { 1 }
}

/// The membership of a group that has stood for long is written in a part of the log that is gone.
#[test]
fn voters_change_also_where_what_made_them_so_is_trimmed() {
    simulate(12, async {
        let mut cluster = Cluster::simulated(12).await;
        let (leader, term) = cluster.leader(&[]).await;
        cluster.open(4, Birth::Joins).await;
        let at = cluster.at(leader).add_learner(ReplicaId(4), BrokerId(4)).await.unwrap();
        cluster.write(leader, term, 0, 20).await;
        assert!(trim(&cluster, 0, "twenty").await > at);
        let replica = cluster.at(leader);
        assert_eq!(replica.members().index, at);
        let gone = follower(leader);
        let voters: BTreeSet<_> = (1..=4).filter(|n| *n != gone).map(ReplicaId).collect();
        let stale = replica.change_voters(voters.clone(), Index(at.0 - 1)).await;
        assert!(matches!(stale, Err(MembershipError::Changed(_))), "{stale:?}");
        replica.change_voters(voters.clone(), at).await.unwrap();
        assert_eq!(replica.members().voters, [voters]);
    });
}

#[test]
fn who_was_away_gets_the_snapshot_then_the_log_and_can_lead() {
    simulate(11, async {
        let mut cluster = Cluster::simulated(11).await;
        let (leader, term) = cluster.leader(&[]).await;
        let away = follower(leader);
        cluster.write(leader, term, 0, 20).await;
        cluster.kill(away).await;
        cluster.write(leader, term, 1, 20).await;
        let at = trim(&cluster, away, "forty").await;
        cluster.write(leader, term, 2, 10).await;
        cluster.reopen(away).await;
        cluster.settle().await;
        assert_installed(cluster.at(away), at, "forty").await;
        // It is a replica like any other, also after a restart.
        cluster.kill(away).await;
        cluster.reopen(away).await;
        cluster.settle().await;
        assert_eq!(cluster.at(away).state().borrow().installed, None);
        let (leader, _) = cluster.leader(&[]).await;
        if leader != away {
            cluster.at(leader).transfer(ReplicaId(away)).await.unwrap();
        }
        let (leader, term) = cluster.leader(&[]).await;
        assert_eq!(leader, away);
        cluster.write(leader, term, 0, 10).await;
        cluster.settle().await;
    });
}

#[test]
fn two_snapshots_follow_one_another() {
    simulate(12, async {
        let cluster = Cluster::simulated(12).await;
        let (leader, term) = cluster.leader(&[]).await;
        let away = follower(leader);
        for (run, state) in [(0, "first"), (1, "second")] {
            cluster.net.cut_off(BrokerId(away));
            cluster.write(leader, term, run, 20).await;
            let at = trim(&cluster, away, state).await;
            cluster.net.heal();
            cluster.settle().await;
            assert_installed(cluster.at(away), at, state).await;
        }
        cluster.write(leader, term, 2, 5).await;
        cluster.settle().await;
    });
}

/// The tail that nobody else has may end before the snapshot, or behind it.
#[test]
fn a_divergent_tail_goes_with_the_log() {
    for (tail, written) in [(4, 30), (30, 4)] {
        simulate(13, async {
            let cluster = Cluster::simulated(13).await;
            let (first, term) = cluster.leader(&[]).await;
            cluster.write(first, term, 0, 5).await;
            cluster.settle().await;
            cluster.net.cut_off(BrokerId(first));
            for number in 0..tail {
                cluster.at(first).propose(proposal(term, 1, number..number + 1)).unwrap();
            }
            let (second, later) = cluster.leader(&[first]).await;
            cluster.write(second, later, 0, written).await;
            let at = trim(&cluster, first, "theirs").await;
            cluster.net.heal();
            cluster.settle().await;
            assert_installed(cluster.at(first), at, "theirs").await;
            let refused = cluster.at(first).state().borrow().refused;
            let expected = Refused { term, run: 1, number: 0, outcome: StoredOutcome::Unknown };
            assert_eq!((refused, cluster.at(first).in_flight()), (Some(expected), 0));
        });
    }
}

#[test]
fn a_new_learner_whose_records_were_trimmed_ends_equal() {
    simulate(14, async {
        let mut cluster = Cluster::simulated(14).await;
        let (leader, term) = cluster.leader(&[]).await;
        cluster.write(leader, term, 0, 20).await;
        let at = trim(&cluster, 4, "trimmed").await;
        cluster.write(leader, term, 1, 20).await;
        cluster.open(4, Birth::Joins).await;
        cluster.at(leader).add_learner(ReplicaId(4), BrokerId(4)).await.unwrap();
        cluster.settle().await;
        assert_installed(cluster.at(4), at, "trimmed").await;
    });
}

/// A log that was trimmed as far as older builds did may hold records before its newest snapshot that
/// readers still want. It serves them, and nobody begins without them.
#[test]
fn a_snapshot_among_records_that_are_retained_is_not_sent() {
    simulate(17, async {
        let mut cluster = Cluster::simulated(17).await;
        let (leader, term) = cluster.leader(&[]).await;
        cluster.write(leader, term, 0, 20).await;
        let at = trim(&cluster, 4, "among").await;
        let log_end = cluster.at(leader).log().bounds().log_end;
        for n in 1..=3 {
            cluster.running.remove(&n).unwrap().shutdown().await;
        }
        for n in 1..=3 {
            cluster.open_retaining(n, Birth::Continues).await;
        }
        let (leader, term) = cluster.leader(&[]).await;
        cluster.open_retaining(4, Birth::Joins).await;
        cluster.at(leader).add_learner(ReplicaId(4), BrokerId(4)).await.unwrap();
        cluster.at(leader).readers_begin_at(Offset(log_end.0 - 1));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(cluster.at(4).log().bounds().last_index, Index(0));
        cluster.write(leader, term, 1, 20).await;
        let newer = cluster.at(leader).state().borrow().committed;
        cluster.at(leader).checkpoint(newer, "newer".into()).await.unwrap();
        assert_eq!(cluster.at(leader).trim(newer).await, Ok(Index(0)), "nothing more may go");
        cluster.at(leader).readers_begin_at(log_end);
        cluster.settle().await;
        assert_installed(cluster.at(4), at, "among").await;
    });
}

/// Before the gate nothing is written that an older build could not read, and so nothing is sent.
#[test]
fn a_checkpoint_of_before_the_gate_is_written_anew_to_be_sent() {
    simulate(15, async {
        let disk = SimDisk::new();
        let rigs = BTreeMap::from([(1, Rig::in_memory(disk.clone(), 1))]);
        let mut cluster = Cluster::of(1);
        (cluster.rigs, cluster.gate) = (rigs, Gate::default());
        cluster.open(1, Birth::Forms).await;
        let (leader, term) = cluster.leader(&[]).await;
        let version = || {
            let file = disk.paths(".ckpt").pop().expect("a checkpoint");
            // Behind the header of the file.
            disk.bytes_of(&file)[40]
        };
        cluster.write(leader, term, 0, 20).await;
        let at = trim(&cluster, 2, "alone").await;
        assert_eq!(version(), 1);
        cluster.open(2, Birth::Joins).await;
        cluster.at(1).add_learner(ReplicaId(2), BrokerId(2)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(cluster.at(2).log().bounds().last_index, Index(0));
        assert_eq!(version(), 1);
        cluster.gate.raise(GATE_CLUSTER);
        cluster.settle().await;
        assert_installed(cluster.at(2), at, "alone").await;
        assert_eq!(version(), 2);
    });
}

/// A leader with a trimmed log, and what it would send of it.
async fn source(rig: &Rig, count: u32) -> (Replica, Checkpoint, Index) {
    let (leader, term) = rig.leader().await;
    leader.propose(proposal(term, 0, 0..1)).unwrap();
    leader.shared.gate.raise(GATE_CLUSTER);
    for number in 1..count {
        leader.propose(proposal(term, 0, number..number + 1)).unwrap();
    }
    let at = Index(2 + u64::from(count));
    committed(&leader, at.0).await;
    leader.checkpoint(at, "source".into()).await.unwrap();
    let (_, checkpoint) = leader.shared.checkpoint_at(at).unwrap().unwrap();
    (leader, checkpoint, at)
}

fn head(checkpoint: &Checkpoint, at: Index, term: u64) -> SnapshotHead {
    let address = GroupAddress { to: ReplicaId(2), from: ReplicaId(1) };
    let vote = engine::vote_of(vote_of(term));
    let snapshot = super::super::snapshot::snapshot_of(at, checkpoint.clone());
    super::super::snapshot::head_of(address, &vote, &snapshot).unwrap()
}

fn vote_of(term: u64) -> Vote {
    Vote { term: Term(term), replica: ReplicaId(1), committed: true }
}

#[test]
fn a_snapshot_of_an_outvoted_leader_is_not_installed() {
    run(async {
        let mut cluster = Cluster::of(2);
        cluster.open(2, Birth::Joins).await;
        let inbox = cluster.net.board(BrokerId(2)).inbox(ReplicaId(2)).unwrap();
        let rig = Rig::new();
        let (_leader, checkpoint, at) = source(&rig, 3).await;
        let next = Vote { term: Term(8), replica: ReplicaId(3), committed: false };
        let (kind, request) = (VoteKind::Election, RequestId(0));
        let address = GroupAddress { to: ReplicaId(2), from: ReplicaId(3) };
        let last = LogPlace { term: Term(7), index: Index(9) };
        let ask = VoteAsk { request, address, kind, vote: next, last };
        assert!(inbox.vote(ask).await.unwrap().granted);
        let state = checkpoint.state.clone();
        let answer = inbox.install(head(&checkpoint, at, 7), state.clone()).await;
        assert_eq!(answer, Ok(next), "the vote that is higher");
        assert_eq!(cluster.at(2).state().borrow().installed, None);
        assert_eq!(cluster.at(2).log().bounds().last_index, Index(0));
        // A later leader is obeyed, and its vote stays when the log begins anew.
        assert_eq!(inbox.install(head(&checkpoint, at, 9), state).await, Ok(vote_of(9)));
        assert_installed(cluster.at(2), at, "source").await;
        cluster.running.remove(&2).unwrap().shutdown().await;
        cluster.open(2, Birth::Continues).await;
        let kept = cluster.at(2).shared.hard().vote;
        assert_eq!(kept.as_ref().map(engine::vote_from), Some(vote_of(9)));
        assert_eq!(cluster.at(2).state().borrow().committed, at);
    });
}

#[test]
fn what_is_not_a_snapshot_is_refused() {
    run(async {
        let mut cluster = Cluster::of(2);
        cluster.open(2, Birth::Joins).await;
        let inbox = cluster.net.board(BrokerId(2)).inbox(ReplicaId(2)).unwrap();
        let rig = Rig::new();
        let (_leader, checkpoint, at) = source(&rig, 3).await;
        let whole = head(&checkpoint, at, 7);
        let far = LogPlace { term: Term(1), index: Index(1 << 62) };
        let wrong = [
            SnapshotHead { state_len: 5, ..whole.clone() },
            SnapshotHead { state_crc: 5, ..whole.clone() },
            SnapshotHead { place: LogPlace::default(), ..whole.clone() },
            SnapshotHead { place: far, ..whole.clone() },
            SnapshotHead { membership_place: far, ..whole.clone() },
            SnapshotHead { membership: "?".into(), ..whole.clone() },
            SnapshotHead { vote: vote_of(0), ..whole.clone() },
            SnapshotHead { vote: Vote { committed: false, ..whole.vote }, ..whole.clone() },
        ];
        for head in wrong {
            let answer = inbox.install(head.clone(), checkpoint.state.clone()).await;
            assert_eq!(answer, Err(PeerRefusal::Malformed), "{head:?}");
        }
        assert_eq!(inbox.install(whole, checkpoint.state.clone()).await, Ok(vote_of(7)));
    });
}

/// What the follower holds behind the snapshot may be acknowledged: it stays.
#[test]
fn a_log_that_reaches_beyond_the_snapshot_is_kept() {
    run(async {
        let mut cluster = Cluster::of(2);
        cluster.open(2, Birth::Joins).await;
        let inbox = cluster.net.board(BrokerId(2)).inbox(ReplicaId(2)).unwrap();
        let (rig, other) = (Rig::new(), Rig::new());
        let (leader, checkpoint, at) = source(&rig, 3).await;
        let (_, divergent, _) = source(&other, 4).await;
        leader.propose(proposal(checkpoint.term, 0, 3..5)).unwrap();
        committed(&leader, at.0 + 1).await;
        let mut append = append_of(&leader, vote_of(7), 1..=at.0 + 1).await;
        append.commit = LogPlace::default();
        let (input, mut answers) = inbox.stream().await;
        input.push(&append, ()).await.unwrap();
        let last = LogPlace { term: checkpoint.term, index: Index(at.0 + 1) };
        assert_eq!(answers.next().await, Some(AppendResult::Flushed(last)));
        let chain = cluster.at(2).shared.log().chain();
        let installed = inbox.install(head(&checkpoint, at, 7), checkpoint.state.clone()).await;
        assert_eq!(installed, Ok(vote_of(7)));
        let state = until(cluster.at(2), |state| state.committed == at).await;
        assert_eq!(state.installed, None, "the partition reads its own log");
        assert_eq!(cluster.at(2).log().bounds().last_index, last.index);
        // Should the engine come to install it all the same, the log behind it stays.
        let follower = cluster.at(2).shared.clone();
        follower.install(at, checkpoint).await.unwrap();
        assert_eq!(follower.state.borrow().installed, Some(at));
        let held = cluster.at(2).installed_state().await;
        assert_eq!(held, Ok(Some((at, "source".into()))));
        assert_eq!(
            (follower.reader.bounds().last_index, follower.log().chain()),
            (last.index, chain)
        );
        // One that says something else of what is held here is of another log.
        let wrong = head(&divergent, last.index, 7);
        let refused = inbox.install(wrong, divergent.state.clone()).await;
        assert_eq!(refused, Err(PeerRefusal::Fenced));
        until(cluster.at(2), |state| matches!(state.role, Role::Fenced(Fence::Engine(_)))).await;
    });
}

/// The power of the follower goes before every change of its disk, and it comes back to whatever is
/// left: to the log of before or to the one behind the snapshot, always with its vote, and it ends
/// equal.
#[test]
fn a_follower_that_crashes_while_it_installs_ends_equal() {
    simulate(16, async {
        let disk = SimDisk::new();
        let rigs = BTreeMap::from([(3, Rig::in_memory(disk.clone(), 1))]);
        let mut cluster = Cluster::simulated_on(16, rigs, 1..=3).await;
        let (leader, _) = cluster.leader(&[]).await;
        if leader == 3 {
            cluster.at(3).transfer(ReplicaId(1)).await.unwrap();
        }
        let (leader, term) = cluster.leader(&[]).await;
        cluster.write(leader, term, 0, 10).await;
        cluster.settle().await;
        let held = cluster.at(3).log().bounds().last_index;
        cluster.net.cut_off(BrokerId(3));
        cluster.write(leader, term, 1, 20).await;
        let at = trim(&cluster, 3, "crashed").await;
        disk.record();
        cluster.net.heal();
        until(cluster.at(3), |state| state.installed == Some(at)).await;
        cluster.settle().await;
        let (mut before, mut behind) = (0, 0);
        for (number, changed) in disk.recorded().into_iter().enumerate() {
            for cut in [Cut::LosesAll, Cut::KeepsAll, Cut::KeepsSome(number as u64)] {
                // All of them, because the leader knows what its follower has flushed.
                while let Some((_, replica)) = cluster.running.pop_first() {
                    replica.shutdown().await;
                }
                let crashed = changed.fork();
                crashed.cut_power(cut);
                let seed = 10 * number as u64 + 2;
                cluster.rigs.insert(3, Rig::in_memory(crashed, seed));
                cluster.open(3, Birth::Continues).await;
                let bounds = cluster.at(3).log().bounds();
                let vote = cluster.at(3).shared.hard().vote.expect("it voted");
                assert!(vote.leader_id.term >= term.0, "{vote:?}");
                if bounds.first_index == Index(1) {
                    assert!(bounds.last_index >= held, "{bounds:?}");
                    before += 1;
                } else {
                    assert_eq!(bounds.first_index, Index(at.0 + 1));
                    behind += 1;
                }
                cluster.open(1, Birth::Continues).await;
                cluster.open(2, Birth::Continues).await;
                cluster.settle().await;
                assert!(cluster.at(3).log().bounds().first_index > at);
            }
        }
        assert!(before > 10 && behind > 10, "{before} before, {behind} behind");
    });
}

/// A follower that is sent more than it flushes lets the sender wait, and goes on answering.
#[test]
fn a_follower_takes_no_more_than_it_may_hold_unflushed() {
    run(async {
        let mut cluster = Cluster::of(2);
        cluster.open(2, Birth::Joins).await;
        let rig = Rig::new();
        let (leader, term) = rig.leader().await;
        // Behind these the log is in a segment that takes the rest: a new one waits for flushes.
        let (before, last) = (2 + 23, 2 + 23 + 24);
        for number in 0..last as u32 - 2 {
            let batches = vec![large(number, 1 << 20)];
            leader.propose(Proposal { term, batches }).unwrap();
        }
        committed(&leader, last).await;
        let inbox = cluster.net.board(BrokerId(2)).inbox(ReplicaId(2)).unwrap();
        let (input, mut answers) = inbox.stream().await;
        let flushed = |index| LogPlace { term: Term(u64::from(index > 1)), index: Index(index) };
        for index in 1..=before {
            let append = append_of(&leader, vote_of(7), index..=index).await;
            input.push(&append, ()).await.unwrap();
            let answer = answers.next().await;
            assert_eq!(answer, Some(AppendResult::Flushed(flushed(index))));
        }
        cluster.rigs[&2].faults.hold();
        let (paid, sent) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
        let (paid_with, count) = (paid.clone(), sent.clone());
        let pushing = crate::task::spawn("pushing", TaskKind::Core, async move {
            for index in before + 1..=last {
                let append = append_of(&leader, vote_of(7), index..=index).await;
                input.push(&append, paid_with.clone()).await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        tokio::time::sleep(5 * A_WHILE).await;
        // Eight times a MiB and a header are more than the window.
        assert_eq!(sent.load(Ordering::Relaxed), 7);
        let follower = cluster.at(2);
        assert!(follower.shared.log().unflushed_bytes() <= u64::from(window::RECEIVED_BYTES_MAX));
        assert!(Arc::strong_count(&paid) > 7, "what was paid is held");
        let address = GroupAddress { to: ReplicaId(2), from: ReplicaId(3) };
        let place = LogPlace { term, index: Index(99) };
        let (kind, request) = (VoteKind::Trial, RequestId(0));
        let ask = VoteAsk { request, address, kind, vote: vote_of(8), last: place };
        let asked = tokio::time::timeout(Duration::from_secs(5), inbox.vote(ask)).await;
        assert!(asked.is_ok(), "the engine waits for nothing");
        cluster.rigs[&2].faults.release();
        for index in before + 1..=last {
            let answer = answers.next().await;
            assert_eq!(answer, Some(AppendResult::Flushed(flushed(index))));
        }
        pushing.await.unwrap();
        while Arc::strong_count(&paid) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

/// A new segment waits for the one before to be flushed, and nobody waits for the log meanwhile.
#[test]
fn a_log_that_rolls_over_a_slow_disk_is_free_for_others() {
    run(async {
        let rig = Rig::new();
        let (leader, term) = rig.leader().await;
        rig.faults.hold();
        for number in 0..2 {
            let batches = vec![large(number, 600 << 10)];
            leader.propose(Proposal { term, batches }).unwrap();
            while leader.log().bounds().last_index < Index(3) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        tokio::time::sleep(2 * A_WHILE).await;
        let shared = leader.shared.clone();
        let looked = tokio::task::spawn_blocking(move || shared.log().unflushed_bytes());
        let unflushed = tokio::time::timeout(Duration::from_secs(5), looked).await.unwrap();
        assert!((600 << 10..1 << 20).contains(&unflushed.unwrap()), "the second does not fit");
        rig.faults.release();
        committed(&leader, 4).await;
    });
}
