use super::*;
use crate::replication::metadata::Stage;
use weir_protocol::types::{Offset, Term};

fn led(replica: u64, term: u64) -> Led {
    let (replica, term) = (ReplicaId(replica), Term(term));
    Led { replica, term, log_start: Offset(0), high_watermark: Offset(term.0), bytes: 0 }
}

fn news(led: Vec<Led>) -> News {
    News { free_bytes: 1, draining: false, gate: 1, led }
}

/// Replica n on broker n.
fn placed(replicas: &[u64]) -> Vec<Placement> {
    let place =
        |n: &u64| Placement { replica: ReplicaId(*n), broker: BrokerId(*n), stage: Stage::Voter };
    replicas.iter().map(place).collect()
}

#[tokio::test(start_paused = true)]
async fn the_highest_term_leads_whoever_told_last() {
    let (board, now) = (LeaderBoard::default(), Instant::now());
    let mut changes = board.watch();
    let log = placed(&[1, 2, 3]);
    assert_eq!(board.leader_of(&log, now), None);
    board.note(BrokerId(1), &news(vec![led(1, 4)]), now);
    board.note(BrokerId(2), &news(vec![led(2, 5), led(9, 8)]), now);
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    // One that does not know yet that it was deposed tells its own again, and an older one of itself.
    board.note(BrokerId(1), &news(vec![led(1, 4), led(1, 3)]), now);
    assert!(!changes.has_changed().unwrap(), "nothing new");
    let leader = board.leader_of(&log, now).unwrap();
    assert_eq!((leader.broker, leader.led.term), (BrokerId(2), Term(5)));
    let backwards = board.leader_of(&placed(&[2, 1]), now).unwrap();
    assert_eq!(backwards.broker, BrokerId(2), "in whatever order they stand");
    assert_eq!(board.leader_of(&placed(&[1]), now).unwrap().led.term, Term(4));
    // A replica is asked for where it is: another broker can not lead it.
    let elsewhere = Placement { broker: BrokerId(1), ..placed(&[2])[0] };
    assert_eq!(board.leader_of(&[elsewhere], now), None);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_told_again_is_forgotten_and_news_without_it_do_not_keep_it() {
    let (board, start) = (LeaderBoard::default(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    board.note(BrokerId(1), &news(vec![led(1, 4), led(5, 1)]), at(0));
    board.note(BrokerId(1), &news(vec![led(5, 1)]), at(20));
    assert!(board.leader_of(&placed(&[1]), at(29)).is_some());
    assert!(board.leader_of(&placed(&[1]), at(30)).is_none());
    board.note(BrokerId(1), &news(vec![]), at(40));
    assert_eq!(board.told()[&BrokerId(1)].rows.len(), 1, "the stale row is gone for good");
    assert_eq!(board.conditions()[&BrokerId(1)].heard, at(40));
}

#[tokio::test(start_paused = true)]
async fn it_never_holds_more_than_a_cluster_can_have() {
    let (board, start) = (LeaderBoard::default(), Instant::now());
    for broker in 1..=BROKERS_MAX as u64 + 3 {
        board.note(BrokerId(broker), &news(vec![]), start + Duration::from_secs(broker));
    }
    assert_eq!(board.conditions().len(), BROKERS_MAX);
    assert!(!board.conditions().contains_key(&BrokerId(3)), "the longest silent make room");
    let many = (1..=ROWS_MAX as u64 + 10).map(|replica| led(replica, 1)).collect();
    board.note(BrokerId(9), &news(many), start);
    board.note(BrokerId(9), &news(vec![led(7, 2), led(1 << 40, 2)]), start);
    let told = board.told();
    let rows = &told[&BrokerId(9)].rows;
    assert_eq!((rows.len(), rows[&ReplicaId(7)].led.term), (ROWS_MAX, Term(2)));
}
