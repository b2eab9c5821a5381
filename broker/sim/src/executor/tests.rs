use super::SimExecutor;
use std::sync::{Arc, Mutex};
use tokio::time::{Duration, Instant, sleep};
use weir_storage::{Executor, Lane};

type Ran = Arc<Mutex<Vec<(u32, Duration)>>>;

fn submit(executor: &SimExecutor, lane: Lane, ran: &Ran, number: u32) {
    let (ran, began) = (ran.clone(), Instant::now());
    let job = move || ran.lock().unwrap().push((number, began.elapsed()));
    executor.submit(lane, Box::new(job));
}

fn numbers(ran: &Ran) -> Vec<u32> {
    ran.lock().unwrap().iter().map(|(number, _)| *number).collect()
}

#[tokio::test(start_paused = true)]
async fn a_stalled_lane_holds_its_jobs_back_in_their_order_and_no_other_lane() {
    let executor = SimExecutor::new(7);
    let (stalled, other) = (Ran::default(), Ran::default());
    for number in 0..5 {
        submit(&executor, Lane::Flush, &stalled, number);
    }
    // Those that wait already are held back as well.
    executor.stall(Lane::Flush, Duration::from_secs(3));
    for number in 5..10 {
        submit(&executor, Lane::Flush, &stalled, number);
        submit(&executor, Lane::Read, &other, number);
    }
    sleep(Duration::from_secs(2)).await;
    assert!(stalled.lock().unwrap().is_empty());
    assert_eq!(numbers(&other), (5..10).collect::<Vec<_>>());
    sleep(Duration::from_secs(2)).await;
    assert_eq!(numbers(&stalled), (0..10).collect::<Vec<_>>());
    let ran = stalled.lock().unwrap();
    assert!(ran.iter().all(|(_, at)| *at >= Duration::from_secs(3)), "{ran:?}");
}

#[tokio::test(start_paused = true)]
async fn a_killed_executor_runs_nothing_and_keeps_nothing() {
    let executor = SimExecutor::new(7);
    let ran = Ran::default();
    submit(&executor, Lane::Flush, &ran, 0);
    submit(&executor, Lane::Prepare, &ran, 1);
    executor.kill();
    submit(&executor, Lane::Flush, &ran, 2);
    assert_eq!(Arc::strong_count(&ran), 1, "the jobs were dropped");
    sleep(Duration::from_secs(1)).await;
    assert!(ran.lock().unwrap().is_empty());
}
