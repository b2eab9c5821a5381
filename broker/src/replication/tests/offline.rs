//! A majority that is lost for good, and the replica that goes on alone.

use super::super::offline::{Group, read_group, stand_alone};
use super::cluster::Cluster;
use super::*;
use std::collections::BTreeSet;
use weir_protocol::types::BrokerId;
use weir_storage::{Log, inspect};

fn group_of(options: &ReplicaOptions) -> (Group, Index) {
    let disk = &**options.device.disk();
    let report = inspect::verify(disk, &options.dir, options.log.uuid).unwrap();
    (read_group(disk, &options.dir, &report).unwrap(), report.last_index)
}

#[test]
fn one_of_three_goes_on_alone_with_all_that_it_has() {
    run(async {
        let mut cluster = Cluster::formed(3).await;
        let (leader, term) = cluster.leader(&[]).await;
        let last = cluster.write(leader, term, 0, 20).await;
        cluster.settle().await;
        for n in 1..=3 {
            cluster.kill(n).await;
        }
        let options = cluster.options(2, Birth::Continues);
        let (group, held) = group_of(&options);
        assert_eq!(group.voters, [BTreeSet::from([1, 2, 3].map(ReplicaId))]);
        assert_eq!((group.last.index, group.last.term), (held, term));
        assert!(held >= last && group.voted >= term);
        assert_eq!(group.replica_on(BrokerId(2)), Some(ReplicaId(2)));
        assert!(!group.is_only(ReplicaId(2)));

        // Twice, as after a stop in between: the second changes nothing but the term.
        for _ in 0..2 {
            let (group, _) = group_of(&options);
            let (mut log, _) =
                Log::open(options.device.clone(), &options.dir, options.log.clone()).unwrap();
            let member = (ReplicaId(2), BrokerId(2));
            stand_alone(&mut log, member, group.voted, Vec::new()).unwrap();
        }
        let (alone, end) = group_of(&options);
        assert!(alone.is_only(ReplicaId(2)) && end == Index(held.0 + 2));
        assert!(alone.last.term > term && alone.voted >= alone.last.term);

        cluster.open(2, Birth::Continues).await;
        let (leader, later) = cluster.leader(&[]).await;
        assert!(leader == 2 && later > alone.last.term);
        assert!(cluster.at(2).state().borrow().committed >= end, "all that it has is committed");
        let held = cluster.at(2).log().headers(Index(1), 100).unwrap();
        assert!(held.iter().filter(|header| header.term == term).count() >= 20);
        cluster.write(2, later, 0, 5).await;
    });
}
