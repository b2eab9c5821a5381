mod boot;
mod cluster;
mod council;
mod faults;
mod members;
mod metadata;
pub(crate) mod net;
mod offline;
mod rig;
mod simulated;
mod snapshot;

use super::codec::HardState;
use super::engine::{self, EngineEntry, Runtime, Vote};
use super::log_store::LogStore;
use super::payload::{Batches, Record};
use super::*;
use openraft::entry::RaftPayload;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::{OneshotReceiverOf, OneshotSenderOf};
use rig::{A_WHILE, Rig, batch, batches, committed, proposal, trim_unread, until};
use std::io::ErrorKind;
use weir_protocol::batch::BatchType;
use weir_protocol::types::Offset;
use weir_storage::Log;

type Test = tokio::runtime::Runtime;

/// Two workers: a flush that is held back may hold one of them.
fn run<F: Future<Output = ()> + Send + 'static>(test: F) {
    let runtime: Test =
        tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
    let test = runtime.spawn(test);
    runtime.block_on(test).unwrap();
    runtime.shutdown_timeout(std::time::Duration::from_millis(1));
}

#[test]
fn an_empty_log_forms_its_group_and_leads_at_once() {
    run(async {
        let rig = Rig::new();
        let (replica, report) = rig.open().await;
        assert!(report.formed && report.checkpoint.is_none());
        let state = until(&replica, |state| state.leading().is_some()).await;
        assert_eq!((state.leading(), state.committed), (Some(Term(1)), Index(2)));
        assert_eq!(batches(&replica, 1).await, [(BatchType::Config, 0), (BatchType::Noop, 0)]);
    });
}

/// The vote of a group's first member is durable before its first batch: the power may go between.
#[test]
fn a_vote_without_a_log_forms_the_group_anew() {
    run(async {
        let rig = Rig::new();
        let options = rig.options(Durability::Fsync);
        {
            let (mut log, _) =
                Log::open(options.device.clone(), &options.dir, options.log.clone()).unwrap();
            let vote = Some(Vote::new_committed(1, ReplicaId(1)));
            let hard = HardState { vote, committed: None, purged: None };
            log.store_meta(&hard.encode()).unwrap();
        }
        let (replica, _) = rig.leader().await;
        replica.shutdown().await;
    });
}

#[test]
fn a_restarted_leader_takes_a_new_term_without_waiting_for_a_tick() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        replica.propose(proposal(term, 0, 0..1)).unwrap();
        committed(&replica, 3).await;
        replica.shutdown().await;
        let (replica, report) = rig.open().await;
        assert!(!report.formed);
        let state = until(&replica, |state| state.leading().is_some()).await;
        assert_eq!(state.leading(), Some(Term(2)));
        assert_eq!(replica.log().bounds().log_end, Offset(1));
    });
}

/// The runtime goes at any moment, nothing is shut down.
#[test]
fn what_was_committed_survives_a_kill() {
    let rig = Arc::new(Rig::new());
    for life in 0..4u64 {
        let (here, seen) = (rig.clone(), Arc::new(std::sync::Mutex::new(Index(0))));
        let shown = seen.clone();
        let runtime = Test::new().unwrap();
        runtime.block_on(async move {
            let (replica, term) = here.leader().await;
            let mut states = replica.state();
            for number in 0..40 {
                replica.propose(proposal(term, life as u32, number..number + 1)).unwrap();
            }
            while states.borrow_and_update().committed.0 < 20 * (life + 1) {
                states.changed().await.unwrap();
            }
            *shown.lock().unwrap() = states.borrow().committed;
        });
        runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        let committed = *seen.lock().unwrap();
        let (here, reader) = (rig.clone(), Test::new().unwrap());
        reader.block_on(async move {
            let (replica, _) = here.leader().await;
            let headers = replica.log().headers(Index(1), usize::MAX).unwrap();
            let of_life: Vec<_> = headers
                .iter()
                .filter(|h| h.batch_type == BatchType::Data && h.run == life as u32)
                .collect();
            let numbers: Vec<_> = of_life.iter().map(|header| header.run_number).collect();
            assert_eq!(numbers, (0..numbers.len() as u32).collect::<Vec<_>>());
            let last = headers.last().map(|header| header.index);
            assert!(last > Some(committed), "{last:?} after {committed:?} was committed");
            replica.shutdown().await;
        });
    }
}

#[test]
fn one_index_holds_all_batches_of_a_proposal() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        replica.propose(proposal(term, 0, 0..3)).unwrap();
        replica.propose(proposal(term, 0, 3..4)).unwrap();
        committed(&replica, 4).await;
        let slices = replica.read(Index(3), usize::MAX).await.unwrap();
        let seen: Vec<_> = slices
            .iter()
            .map(|s| (s.header.index.0, s.header.base_offset.0, s.header.is_last_of_index()))
            .collect();
        assert_eq!(seen, [(3, 0, false), (3, 1, false), (3, 2, true), (4, 3, true)]);
        assert!(slices.iter().all(|slice| slice.header.term == term));
    });
}

#[test]
fn a_proposal_of_another_term_is_turned_away() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        let other = Term(term.0 + 1);
        let refused = replica.propose(proposal(other, 0, 0..1));
        assert_eq!(refused, Err(ProposeError::NotLeader(other)));
        assert_eq!(replica.propose(Proposal { term, batches: vec![] }), Err(ProposeError::Empty));
        assert_eq!(replica.log().bounds().last_index, Index(2));
    });
}

#[test]
fn the_engine_fences_a_proposal_whose_term_was_lost_on_the_way() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        let stale =
            Refused { term: Term(term.0 - 1), run: 4, number: 7, outcome: StoredOutcome::Unknown };
        replica.hand_over(stale, vec![batch(4, 7)]).unwrap();
        let state = until(&replica, |state| state.refused.is_some()).await;
        let expected = Refused { outcome: StoredOutcome::NotStored, ..stale };
        assert_eq!(state.refused, Some(expected));
        assert_eq!(replica.in_flight(), 0);
        assert_eq!(replica.log().bounds().last_index, Index(2));
    });
}

#[test]
fn what_follows_a_refused_proposal_is_void() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        replica.propose(proposal(term, 0, 0..1)).unwrap();
        let lost = Refused { term: Term(0), run: 0, number: 1, outcome: StoredOutcome::Unknown };
        replica.hand_over(lost, vec![batch(0, 1)]).unwrap();
        replica.propose(proposal(term, 0, 2..4)).unwrap();
        replica.propose(proposal(term, 1, 0..1)).unwrap();
        committed(&replica, 5).await;
        let expected = [
            (BatchType::Data, 0),
            (BatchType::Void, 2),
            (BatchType::Void, 3),
            (BatchType::Data, 0),
        ];
        assert_eq!(batches(&replica, 3).await, expected);
        assert_eq!(replica.log().bounds().log_end, Offset(2), "VOID takes no offset");
    });
}

#[test]
fn a_control_batch_keeps_its_type_and_its_place_in_the_run() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        let mut header = BatchHeader::empty(BatchType::Control);
        header.run_number = 1;
        let control = control_batch(header, b"settled".to_vec());
        replica
            .propose(Proposal { term, batches: vec![batch(0, 0), control, batch(0, 2)] })
            .unwrap();
        committed(&replica, 3).await;
        let slices = replica.read(Index(3), usize::MAX).await.unwrap();
        let types: Vec<_> = slices.iter().map(|slice| slice.header.batch_type).collect();
        assert_eq!(types, [BatchType::Data, BatchType::Control, BatchType::Data]);
        assert_eq!(control_section(&slices[1]), b"settled");
    });
}

#[test]
fn applying_waits_for_nobody_and_judges_nothing() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        let unread = replica.state();
        for number in 0..200 {
            while replica.in_flight() >= INFLIGHT_MAX {
                tokio::task::yield_now().await;
            }
            replica.propose(proposal(term, 0, number..number + 1)).unwrap();
        }
        let state = committed(&replica, 202).await;
        assert_eq!(state.committed, Index(202), "bodies that nobody could decode are committed");
        assert!(unread.has_changed().unwrap());
        assert_eq!(replica.in_flight(), 0);
    });
}

#[test]
fn a_full_flight_is_refused_and_empties() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        rig.faults.hold();
        for number in 0..INFLIGHT_MAX as u32 {
            replica.propose(proposal(term, 0, number..number + 1)).unwrap();
        }
        let one_more = INFLIGHT_MAX as u32;
        let refused = replica.propose(proposal(term, 0, one_more..one_more + 1));
        assert_eq!(refused, Err(ProposeError::Full));
        rig.faults.release();
        committed(&replica, 2 + u64::from(one_more)).await;
        replica.propose(proposal(term, 0, one_more..one_more + 1)).unwrap();
        let state = committed(&replica, 3 + u64::from(one_more)).await;
        assert_eq!(state.refused, None);
        let last = batches(&replica, state.committed.0).await;
        assert_eq!(last, [(BatchType::Data, one_more)], "its number was free to be used again");
    });
}

#[test]
fn nothing_is_committed_before_it_is_flushed() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        rig.faults.hold();
        replica.propose(proposal(term, 0, 0..1)).unwrap();
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(replica.state().borrow().committed, Index(2));
        rig.faults.release();
        committed(&replica, 3).await;
    });
}

#[test]
fn in_memory_durability_commits_before_the_flush_and_flushes_all_the_same() {
    run(async {
        let rig = Rig::new();
        let (replica, _) = Replica::open(rig.options(Durability::Memory)).await.unwrap();
        let term = until(&replica, |s| s.leading().is_some()).await.leading().unwrap();
        replica.shared.flushed().await.unwrap();
        rig.faults.hold();
        replica.propose(proposal(term, 0, 0..1)).unwrap();
        committed(&replica, 3).await;
        assert!(replica.log().bounds().flushed_index < Index(3));
        rig.faults.release();
        replica.shared.flushed().await.unwrap();
        assert_eq!(replica.log().bounds().flushed_index, Index(3));
    });
}

#[test]
fn in_memory_durability_still_waits_for_its_votes() {
    run(async {
        let rig = Rig::new();
        let (replica, _) = Replica::open(rig.options(Durability::Memory)).await.unwrap();
        let mut store = LogStore::new(replica.shared.clone());
        until(&replica, |s| s.leading().is_some()).await;
        replica.shared.flushed().await.unwrap();
        rig.faults.hold();
        let (record, signal) = noop(9, 9);
        store.append([record], IOFlushed::signal(signal.0)).await.unwrap();
        signal.1.await.unwrap().unwrap();
        let vote = Vote::new(10, ReplicaId(1));
        let mut save = Box::pin(store.save_vote(&vote));
        assert!(tokio::time::timeout(A_WHILE, &mut save).await.is_err());
        rig.faults.release();
        save.await.unwrap();
    });
}

#[test]
fn a_vote_is_saved_only_after_every_earlier_append_is_durable() {
    run(async {
        let rig = Rig::new();
        let (replica, _) = rig.leader().await;
        let mut store = LogStore::new(replica.shared.clone());
        let mut reader = store.get_log_reader().await;
        let before = reader.read_vote().await.unwrap();
        rig.faults.hold();
        let (record, signal) = noop(9, 3);
        store.append([record], IOFlushed::signal(signal.0)).await.unwrap();
        let vote = Vote::new(10, ReplicaId(1));
        let mut save = Box::pin(store.save_vote(&vote));
        assert!(
            tokio::time::timeout(A_WHILE, &mut save).await.is_err(),
            "the append is not durable"
        );
        assert_eq!(reader.read_vote().await.unwrap(), before);
        rig.faults.release();
        save.await.unwrap();
        signal.1.await.unwrap().unwrap();
        assert_eq!(reader.read_vote().await.unwrap(), Some(vote));
    });
}

/// Who was voted for is durable by then, and nothing else of a vote has to be.
#[test]
fn a_vote_that_a_majority_confirms_is_not_flushed_again() {
    run(async {
        let rig = Rig::new();
        let (replica, _) = rig.leader().await;
        let mut store = LogStore::new(replica.shared.clone());
        let mut reader = store.get_log_reader().await;
        store.save_vote(&Vote::new(10, ReplicaId(2))).await.unwrap();
        rig.faults.fail_meta(std::io::ErrorKind::Other);
        let confirmed = Vote::new_committed(10, ReplicaId(2));
        store.save_vote(&confirmed).await.unwrap();
        assert_eq!(reader.read_vote().await.unwrap(), Some(confirmed));
        let of_another_term = Vote::new_committed(11, ReplicaId(2));
        assert!(store.save_vote(&of_another_term).await.is_err(), "it was not voted for before");
    });
}

#[test]
fn appends_complete_in_their_order() {
    run(async {
        let rig = Rig::new();
        let (replica, _) = rig.leader().await;
        let mut store = LogStore::new(replica.shared.clone());
        rig.faults.hold();
        let mut signals = Vec::new();
        for index in 3..20 {
            let (record, (done, wait)) = noop(9, index);
            store.append([record], IOFlushed::signal(done)).await.unwrap();
            signals.push(wait);
        }
        rig.faults.release();
        signals.pop().unwrap().await.unwrap().unwrap();
        for mut signal in signals {
            assert!(signal.try_recv().is_ok(), "an earlier append completes earlier");
        }
    });
}

#[test]
fn the_committed_hint_is_never_beyond_the_durable_log() {
    run(async {
        let rig = Rig::new();
        let (replica, _) = rig.leader().await;
        let mut store = LogStore::new(replica.shared.clone());
        rig.faults.hold();
        let (record, signal) = noop(9, 3);
        store.append([record], IOFlushed::signal(signal.0)).await.unwrap();
        store.save_committed(engine::log_id(9, Index(3))).await.unwrap();
        assert_eq!(store.read_committed().await.unwrap(), engine::log_id(1, Index(2)));
        rig.faults.release();
        signal.1.await.unwrap().unwrap();
        assert_eq!(store.read_committed().await.unwrap(), engine::log_id(9, Index(3)));
    });
}

#[test]
fn a_checkpoint_waits_for_the_log_it_stands_behind() {
    run(async {
        let rig = Rig::new();
        let (replica, _) = Replica::open(rig.options(Durability::Memory)).await.unwrap();
        let term = until(&replica, |s| s.leading().is_some()).await.leading().unwrap();
        replica.shared.flushed().await.unwrap();
        rig.faults.hold();
        replica.propose(proposal(term, 0, 0..1)).unwrap();
        committed(&replica, 3).await;
        let state = bytes::Bytes::from_static(b"three");
        let mut checkpoint = Box::pin(replica.checkpoint(Index(3), state.clone()));
        assert!(tokio::time::timeout(A_WHILE, &mut checkpoint).await.is_err());
        rig.faults.release();
        checkpoint.await.unwrap();
        let beyond = replica.checkpoint(Index(4), state).await;
        let expected = MaintainError::NotCommitted { at: Index(4), committed: Index(3) };
        assert_eq!(beyond, Err(expected));
    });
}

#[test]
fn a_restart_begins_behind_the_checkpoint_also_after_a_trim() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        for number in 0..6 {
            replica.propose(proposal(term, 0, number..number + 1)).unwrap();
        }
        committed(&replica, 8).await;
        assert_eq!(
            trim_unread(&replica, Index(8)).await,
            Ok(Index(0)),
            "there is no checkpoint yet"
        );
        for at in [4, 6] {
            replica.checkpoint(Index(at), format!("state {at}").into()).await.unwrap();
        }
        assert_eq!(trim_unread(&replica, Index(5)).await, Ok(Index(4)));
        replica.shutdown().await;

        let (replica, report) = rig.open().await;
        assert_eq!(report.checkpoint, Some((Index(6), "state 6".into())));
        let state = until(&replica, |state| state.leading().is_some()).await;
        assert_eq!(state.committed, Index(9));
        assert_eq!(batches(&replica, 7).await[..2], [(BatchType::Data, 4), (BatchType::Data, 5)]);
        assert_eq!(trim_unread(&replica, Index(9)).await, Ok(Index(6)));
    });
}

/// The state at the log start is what the engine's snapshot is made of; without it a trimmed log
/// could not be opened.
#[test]
fn the_checkpoint_at_the_log_start_outlives_many_newer_ones() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        let body = bytes::Bytes::from(vec![1u8; 600 << 10]);
        for number in 0..12 {
            let mut large = batch(0, number);
            large.header.body_len = body.len() as u32;
            large.header.body_crc = crc32fast::hash(&body);
            large.body = vec![body.clone()];
            replica.propose(Proposal { term, batches: vec![large] }).unwrap();
            committed(&replica, 3 + u64::from(number)).await;
        }
        let first_segment_ends = replica.log().sealed_segments()[0].last_index;
        replica.checkpoint(first_segment_ends, "start".into()).await.unwrap();
        assert_eq!(trim_unread(&replica, first_segment_ends).await, Ok(first_segment_ends));
        assert_eq!(replica.log().bounds().first_index, Index(first_segment_ends.0 + 1));
        for at in first_segment_ends.0 + 1..=14 {
            replica.checkpoint(Index(at), format!("state {at}").into()).await.unwrap();
        }
        replica.shutdown().await;
        let (replica, report) = rig.open().await;
        assert_eq!(report.checkpoint, Some((Index(14), "state 14".into())));
        until(&replica, |state| state.leading().is_some()).await;
    });
}

#[test]
fn a_trimmed_log_without_a_whole_checkpoint_is_refused_by_name() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        replica.propose(proposal(term, 0, 0..1)).unwrap();
        committed(&replica, 3).await;
        replica.checkpoint(Index(3), "state".into()).await.unwrap();
        trim_unread(&replica, Index(3)).await.unwrap();
        replica.shutdown().await;
        let options = rig.options(Durability::Fsync);
        let file = options.dir.join(format!("{:020}.ckpt", 3));
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let refused = Replica::open(options).await.map(|_| ());
        let Err(OpenReplicaError::Read { index, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(index, Index(3));
    });
}

#[test]
fn a_new_leader_is_ready_only_once_its_own_batch_is_applied() {
    run(async {
        let rig = Rig::new();
        rig.leader().await.0.shutdown().await;
        let before = rig.faults.flushes();
        let (replica, _) = rig.leader().await;
        let until_ready = rig.faults.flushes() - before;
        replica.shutdown().await;
        rig.faults.hold_behind(until_ready - 1);
        let (replica, _) = rig.open().await;
        let leads = |state: &ReplicaState| matches!(state.role, Role::Leader(_));
        let state = until(&replica, leads).await;
        assert_eq!(state.leading(), None, "its NOOP is not flushed yet");
        rig.faults.release();
        let state = until(&replica, |state| state.leading().is_some()).await;
        assert_eq!(state.committed_term, Term(3));
    });
}

#[test]
fn a_failed_flush_fences_for_good() {
    for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
        run(async move {
            let rig = Rig::new();
            let (replica, term) = rig.leader().await;
            rig.faults.fail(kind);
            let flushes = rig.faults.flushes();
            replica.propose(proposal(term, 0, 0..1)).unwrap();
            let state = until(&replica, |state| matches!(state.role, Role::Fenced(_))).await;
            let Role::Fenced(fence) = &state.role else { unreachable!() };
            match kind {
                ErrorKind::StorageFull => assert_eq!(*fence, Fence::NoSpace),
                _ => assert!(matches!(fence, Fence::Device(_)), "{fence}"),
            }
            let after = replica.propose(proposal(term, 0, 1..2));
            assert_eq!(after, Err(ProposeError::Fenced(fence.clone())));
            assert_eq!(state.committed, Index(2));
            let state = until(&replica, |state| state.refused.is_some()).await;
            assert_eq!(state.refused.map(|r| r.outcome), Some(StoredOutcome::Unknown));
            tokio::time::sleep(A_WHILE).await;
            assert_eq!(rig.faults.flushes(), flushes + 1, "a failed flush is never tried again");
            let checkpoint = replica.checkpoint(Index(2), bytes::Bytes::new()).await;
            assert!(matches!(checkpoint, Err(MaintainError::Fenced(_))), "{checkpoint:?}");
        });
    }
}

#[test]
fn a_watermark_that_cannot_be_flushed_fences_like_any_batch() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        replica.propose(proposal(term, 0, 0..1)).unwrap();
        committed(&replica, 3).await;
        assert_eq!(replica.leave_watermark().await, Ok(()));
        let flushes = rig.faults.flushes();
        assert_eq!(rig.faults.flushes(), flushes, "it lies beside the log");
        replica.propose(proposal(term, 0, 1..2)).unwrap();
        committed(&replica, 4).await;
        rig.faults.fail_meta(ErrorKind::Other);
        let left = replica.leave_watermark().await;
        assert!(matches!(left, Err(MaintainError::Fenced(Fence::Device(_)))), "{left:?}");
        until(&replica, |state| matches!(state.role, Role::Fenced(_))).await;
    });
}

#[test]
fn a_shutdown_shows_and_its_log_is_whole() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = Replica::open(rig.options(Durability::Memory))
            .await
            .map(|(replica, _)| (replica, Term(1)))
            .unwrap();
        until(&replica, |state| state.leading() == Some(term)).await;
        let (other, log) = (replica.clone(), replica.log());
        replica.propose(proposal(term, 0, 0..1)).unwrap();
        committed(&replica, 3).await;
        replica.shutdown().await;
        assert_eq!(log.bounds().flushed_index, Index(3));
        let after = other.propose(proposal(term, 0, 1..2));
        assert_eq!(after, Err(ProposeError::Fenced(Fence::Shutdown)));
    });
}

/// A batch of `bytes`, to be proposed or received.
fn large(number: u32, bytes: usize) -> NewBatch {
    let body = bytes::Bytes::from(vec![number as u8; bytes]);
    let mut large = batch(0, number);
    large.header.body_len = body.len() as u32;
    large.header.body_crc = crc32fast::hash(&body);
    large.body = vec![body];
    large
}

/// The engine joins what a leader sent in many requests; the log takes at most 16 MiB unflushed.
#[test]
fn what_the_engine_joins_is_stored_piece_by_piece() {
    run(async {
        let rig = Rig::new();
        let (replica, _) = rig.leader().await;
        let mut store = LogStore::new(replica.shared.clone());
        rig.faults.hold();
        let records = (3..43).map(|index| {
            let log_id = engine::log_id(9, Index(index)).unwrap();
            let batches = Batches::Proposed(vec![large(index as u32 - 3, 1 << 20)]);
            EngineEntry { log_id, payload: Record { batches, membership: None, held: None } }
        });
        let (done, wait) = Types::oneshot();
        let faults = rig.faults.clone();
        // Beginning a new segment holds up the thread, so another one releases it.
        let released = async move {
            tokio::time::sleep(A_WHILE).await;
            faults.release();
        };
        drop(crate::task::spawn("release", crate::task::TaskKind::Connection, released));
        tokio::task::yield_now().await;
        store.append(records, IOFlushed::signal(done)).await.unwrap();
        wait.await.unwrap().unwrap();
        assert_eq!(replica.log().bounds().flushed_index, Index(42));
        for index in 1..=42 {
            assert_eq!(replica.shared.read_index(Index(index)).await.unwrap().len(), 1);
        }
    });
}

#[test]
fn log_time_does_not_fall_within_one_append() {
    run(async {
        let rig = Rig::new();
        let (replica, _) = rig.leader().await;
        let mut store = LogStore::new(replica.shared.clone());
        let mut timed = batch(0, 0);
        timed.header.log_time_ms = 77;
        let members =
            replica.shared.map().membership_before(Index(2)).unwrap().membership().clone();
        let payloads = [
            Record::blank().with_normal(Batches::Proposed(vec![timed])),
            Record::blank(),
            Record::blank().with_membership(members),
        ];
        let records = payloads.into_iter().zip(3..).map(|(payload, index)| {
            let log_id = engine::log_id(9, Index(index)).unwrap();
            EngineEntry { log_id, payload }
        });
        let (done, wait) = Types::oneshot();
        store.append(records, IOFlushed::signal(done)).await.unwrap();
        wait.await.unwrap().unwrap();
        let headers = replica.log().headers(Index(2), 9).unwrap();
        let seen: Vec<_> = headers.iter().map(|h| (h.batch_type, h.log_time_ms)).collect();
        let timed = [BatchType::Data, BatchType::Noop, BatchType::Config].map(|of| (of, 77));
        assert_eq!(seen[0], (BatchType::Noop, 0));
        assert_eq!(seen[1..], timed);
    });
}

#[test]
fn a_peer_would_be_sent_whole_indexes_with_the_bytes_as_stored() {
    run(async {
        let rig = Rig::new();
        let (replica, term) = rig.leader().await;
        replica.propose(proposal(term, 0, 0..3)).unwrap();
        replica.propose(proposal(term, 0, 3..4)).unwrap();
        committed(&replica, 4).await;
        let mut reader = LogStore::new(replica.shared.clone()).get_log_reader().await;
        let records = reader.limited_get_log_entries(0, 9).await.unwrap();
        let ids: Vec<_> = records.iter().map(|record| Some(record.log_id)).collect();
        let terms = [(0, 1), (1, 2), (1, 3), (1, 4)];
        assert_eq!(ids, terms.map(|(term, index)| engine::log_id(term, Index(index))));
        assert!(records[0].payload.membership.is_some());
        for (index, record) in (1..).zip(&records) {
            let Batches::Stored(sent) = &record.payload.batches else { panic!("{record:?}") };
            let stored = replica.shared.read_index(Index(index)).await.unwrap();
            assert_eq!(sent.len(), if index == 3 { 3 } else { 1 });
            assert!(sent.iter().zip(&stored).all(|(sent, stored)| sent.bytes == stored.bytes));
        }

        let light = reader.try_get_log_entries(2..4).await.unwrap();
        let is_light = |record: &EngineEntry| matches!(&record.payload.batches, Batches::Stored(slices) if slices.is_empty());
        assert!(light.iter().all(is_light));
    });
}

#[test]
fn an_outsider_cannot_form_a_group() {
    run(async {
        let rig = Rig::new();
        let options = ReplicaOptions { replica: ReplicaId(5), ..rig.options(Durability::Fsync) };
        let refused = Replica::open(options).await.map(|_| ());
        assert!(matches!(refused, Err(OpenReplicaError::NotAVoter(ReplicaId(5)))), "{refused:?}");
    });
}

#[test]
fn refusals_of_one_run_widen_and_a_newer_run_replaces_them() {
    let refused = |term, run, number, outcome| Refused { term: Term(term), run, number, outcome };
    let (sure, open) = (StoredOutcome::NotStored, StoredOutcome::Unknown);
    let wide = refused(1, 2, 7, sure).merge(refused(1, 2, 5, open));
    assert_eq!(wide, refused(1, 2, 5, open));
    assert_eq!(wide.merge(refused(1, 1, 0, open)), wide);
    assert_eq!(wide.merge(refused(2, 0, 9, sure)), refused(2, 0, 9, sure));
}

#[test]
fn the_seed_decides_when_the_engine_would_call_elections() {
    let election_ms = |seed: u64| -> Vec<u64> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(Runtime::scope(seed, async {
            let config = openraft::Config {
                election_timeout_min: 600,
                election_timeout_max: 1_000_000,
                ..Default::default()
            };
            (0..4).map(|_| config.new_rand_election_timeout::<Runtime>()).collect()
        }))
    };
    assert_eq!(election_ms(7), election_ms(7));
    assert_ne!(election_ms(7), election_ms(8));
}

/// What the simulator relies on: one thread, a paused clock, seeded choices.
#[test]
fn the_same_seed_gives_the_same_run() {
    let trace_of = |seed: u64| -> Vec<(u128, ReplicaState)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()))
            .build()
            .unwrap();
        runtime.block_on(async {
            let rig = Rig::on_one_thread();
            let start = tokio::time::Instant::now();
            let mut trace = Vec::new();
            for _ in 0..2 {
                let (replica, _) = rig.open().await;
                let mut states = replica.state();
                let mut number = 0;
                while number < 40 {
                    let state = states.borrow_and_update().clone();
                    if let Some(term) = state.leading() {
                        let more = 1 + number % 3;
                        replica.propose(proposal(term, 0, number..number + more)).unwrap();
                        number += more;
                    }
                    trace.push((start.elapsed().as_nanos(), state));
                    states.changed().await.unwrap();
                }
                replica.shutdown().await;
            }
            trace
        })
    };
    let first = trace_of(3);
    assert!(first.len() > 40, "{}", first.len());
    assert_eq!(first, trace_of(3));
}

type Signal =
    (OneshotSenderOf<Types, std::io::Result<()>>, OneshotReceiverOf<Types, std::io::Result<()>>);

/// The engine's record of a NOOP, and where its completion shows.
fn noop(term: u64, index: u64) -> (EngineEntry, Signal) {
    let log_id = engine::log_id(term, Index(index)).unwrap();
    (EngineEntry { log_id, payload: Record::blank() }, Types::oneshot())
}
