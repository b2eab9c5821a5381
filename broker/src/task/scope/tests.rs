use super::{Killed, TaskScope};
use crate::task::{TaskKind, spawn};
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;
use tokio::time::{Duration, sleep};

type Ends = Arc<Mutex<Vec<u32>>>;

/// Notes when it is dropped.
struct Holding(Ends, u32);

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(self.1);
    }
}

/// Starts a task that holds `number`, and from within it the one with the next number, up to `last`.
fn start_chain(ends: Ends, number: u32, last: u32) {
    let holding = Holding(ends.clone(), number);
    spawn("chain", TaskKind::Connection, async move {
        if number < last {
            start_chain(ends, number + 1, last);
        }
        std::future::pending::<()>().await;
        drop(holding);
    });
}

#[tokio::test(start_paused = true)]
async fn a_kill_ends_what_was_started_at_any_depth_and_nothing_else() {
    let (ends, others) = (Ends::default(), Ends::default());
    let (scope, other) = (TaskScope::new(), TaskScope::new());
    scope
        .run({
            let ends = ends.clone();
            async move { start_chain(ends, 0, 9) }
        })
        .await
        .unwrap();
    other
        .run({
            let ends = others.clone();
            async move { start_chain(ends, 0, 9) }
        })
        .await
        .unwrap();
    start_chain(others.clone(), 10, 10);
    sleep(Duration::from_millis(1)).await;
    assert_eq!((scope.task_count(), other.task_count()), (10, 10));
    scope.kill().await;
    // Dropped when the kill returns, in the order in which they were started.
    assert_eq!(*ends.lock().unwrap(), (0..10).collect::<Vec<_>>());
    assert_eq!(scope.task_count(), 0);
    sleep(Duration::from_secs(1)).await;
    assert!(others.lock().unwrap().is_empty());
    assert_eq!(other.task_count(), 10);
}

#[tokio::test(start_paused = true)]
async fn no_task_of_a_killed_scope_goes_on_nor_is_one_started() {
    let scope = TaskScope::new();
    let went_on = Arc::new(Mutex::new(Vec::new()));
    let (mut senders, mut holders) = (Vec::new(), Vec::new());
    for number in 0..4 {
        let (sender, receiver) = oneshot::channel::<()>();
        let (went_on, late) = (went_on.clone(), went_on.clone());
        senders.push(sender);
        // What one task drops when it is killed wakes the next, and would start another.
        holders.push(scope.run(async move {
            spawn("waiting", TaskKind::Connection, async move {
                let _starts = StartsWhenDropped(late);
                let _ = receiver.await;
                went_on.lock().unwrap().push(number);
            });
        }));
    }
    for holder in holders {
        holder.await.unwrap();
    }
    tokio::task::yield_now().await;
    // All are ready to run when the kill comes.
    drop(senders);
    scope.kill().await;
    sleep(Duration::from_secs(1)).await;
    assert!(went_on.lock().unwrap().is_empty(), "{went_on:?}");
    assert_eq!(scope.run(async { 7 }).await, Err(Killed));
    assert_eq!(scope.task_count(), 0);
}

struct StartsWhenDropped(Arc<Mutex<Vec<u32>>>);

impl Drop for StartsWhenDropped {
    fn drop(&mut self) {
        let went_on = self.0.clone();
        spawn("late", TaskKind::Connection, async move { went_on.lock().unwrap().push(99) });
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_killed_scope_is_told() {
    let scope = TaskScope::new();
    let waiting = tokio::join!(biased; scope.run(std::future::pending::<()>()), scope.kill());
    assert_eq!(waiting.0, Err(Killed));
}

#[tokio::test]
async fn a_task_that_ends_leaves_nothing_behind() {
    let scope = TaskScope::new();
    for number in 0..100 {
        let outcome = scope.run(async move { number }).await;
        assert_eq!(outcome, Ok(number));
    }
    assert_eq!(scope.task_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_scope_that_is_paused_does_nothing_until_it_goes_on() {
    let (scope, beats) = (TaskScope::new(), Ends::default());
    let beating = beats.clone();
    let beat = async move {
        spawn("beat", TaskKind::Connection, async move {
            for number in 0.. {
                beating.lock().unwrap().push(number);
                sleep(Duration::from_secs(1)).await;
            }
        });
    };
    scope.run(beat).await.unwrap();
    sleep(Duration::from_millis(2_500)).await;
    assert_eq!(beats.lock().unwrap().len(), 3);
    scope.pause();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(beats.lock().unwrap().len(), 3, "it stands still");
    scope.resume();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(beats.lock().unwrap().len(), 4, "what was due meanwhile is done at once");
    scope.pause();
    scope.kill().await;
    assert_eq!(scope.task_count(), 0, "who is paused can be killed");
}
