//! What was acknowledged out of memory, through the ends of processes and of the machine.

use super::rig::{Rig, committed, proposal, until};
use super::simulated::simulate;
use super::*;
use weir_protocol::types::BrokerId;
use weir_sim::disk::{Cut, SimDisk};

/// Runs of the operating system.
const FIRST: u128 = 0xA;
const SECOND: u128 = 0xB;

fn options(rig: &Rig, boot_id: u128) -> ReplicaOptions {
    ReplicaOptions { boot_id, ..rig.options(Durability::Memory) }
}

/// A disk with five records, as the end of the process leaves it.
async fn left_open() -> SimDisk {
    let disk = SimDisk::new();
    let rig = Rig::in_memory(disk.clone(), 1);
    let (replica, report) = Replica::open(options(&rig, FIRST)).await.unwrap();
    assert_eq!(report.memory_loss, None);
    let term = until(&replica, |state| state.leading().is_some()).await.leading().unwrap();
    replica.propose(proposal(term, 0, 0..5)).unwrap();
    committed(&replica, 3).await;
    disk.copy()
}

#[test]
fn the_end_of_the_process_takes_nothing_that_was_acknowledged_out_of_memory() {
    simulate(1, async {
        let rig = Rig::in_memory(left_open().await, 2);
        let (replica, report) = Replica::open(options(&rig, FIRST)).await.unwrap();
        assert_eq!(report.memory_loss, None);
        assert_eq!(replica.log().bounds().log_end, Offset(5));
        replica.shutdown().await;
        // Closed in order: everything is flushed, and the machine may end.
        let (replica, report) = Replica::open(options(&rig, SECOND)).await.unwrap();
        assert_eq!(report.memory_loss, None);
        replica.shutdown().await;
    });
}

#[test]
fn a_replica_that_is_alone_keeps_what_is_left_and_raises_its_epoch_once() {
    simulate(2, async {
        let disk = left_open().await;
        disk.cut_power(Cut::LosesAll);
        let rig = Rig::in_memory(disk.clone(), 2);
        let (replica, report) = Replica::open(options(&rig, SECOND)).await.unwrap();
        let last = report.memory_loss.expect("the loss is told").lost_after;
        assert_eq!(report.memory_loss, Some(MemoryLoss { epoch: 1, lost_after: last }));
        assert!(replica.log().bounds().first_index == Index(1) && last <= Index(4));
        let term = until(&replica, |state| state.leading().is_some()).await.leading().unwrap();
        replica.propose(proposal(term, 0, 0..1)).unwrap();
        committed(&replica, last.0 + 2).await;
        // The process ends in the same run of the machine: nothing more is lost.
        let rig = Rig::in_memory(disk.copy(), 3);
        drop(replica);
        let (_, report) = Replica::open(options(&rig, SECOND)).await.unwrap();
        assert_eq!(report.memory_loss, Some(MemoryLoss { epoch: 1, lost_after: last }));
        // Nobody knows whether it is the same run.
        let rig = Rig::in_memory(disk.copy(), 4);
        let (_, report) = Replica::open(options(&rig, 0)).await.unwrap();
        assert_eq!(report.memory_loss.map(|loss| loss.epoch), Some(2));
    });
}

#[test]
fn a_replica_among_others_whose_loss_was_accepted_keeps_what_is_left() {
    simulate(4, async {
        let disk = left_open().await;
        disk.cut_power(Cut::KeepsAll);
        let rig = Rig::in_memory(disk.clone(), 2);
        let voters = (1..=3).map(|n| (ReplicaId(n), BrokerId(n))).collect();
        let accepted = ReplicaOptions {
            voters,
            birth: Birth::Continues,
            loss_accepted: true,
            ..options(&rig, SECOND)
        };
        let (replica, report) = Replica::open(accepted).await.unwrap();
        let last = replica.log().bounds().last_index;
        assert!(last > Index(0));
        assert_eq!(report.memory_loss, Some(MemoryLoss { epoch: 1, lost_after: last }));
    });
}

#[test]
fn a_replica_among_others_is_lost_with_the_machine_until_another_takes_its_place() {
    simulate(3, async {
        let disk = left_open().await;
        disk.cut_power(Cut::KeepsAll);
        let rig = Rig::in_memory(disk.clone(), 2);
        let voters = (1..=3).map(|n| (ReplicaId(n), BrokerId(n))).collect();
        let among = ReplicaOptions {
            voters,
            birth: Birth::Continues,
            // The topic was changed meanwhile: what counts is how it acknowledged.
            durability: Durability::Fsync,
            ..options(&rig, SECOND)
        };
        for _ in 0..2 {
            let refused = Replica::open(among.clone()).await.map(|_| ());
            assert!(matches!(refused, Err(OpenReplicaError::Unclean(ReplicaId(1)))), "{refused:?}");
        }
        // In the run that it was open in it is whole.
        let again = ReplicaOptions { boot_id: FIRST, ..among };
        let (replica, _) = Replica::open(again.clone()).await.unwrap();
        drop(replica);
        let flushed = ReplicaOptions { boot_id: SECOND, ..again };
        let rig = Rig::in_memory(disk.copy(), 3);
        let flushed = ReplicaOptions { device: rig.options(Durability::Fsync).device, ..flushed };
        assert!(
            Replica::open(flushed).await.is_ok(),
            "from then on it flushed what it acknowledged"
        );
    });
}
