//! Owns: the runtime under the engine: tokio, but for waits too short for its timer.
//! Never: changes what the engine computes; only when a task goes on. Survives a panic of the
//! engine: it ends the process. Starts a task but through [`task::start`].
//! Why: after each flush the engine pauses for one microsecond to gather completions. Tokio's
//! timer counts whole milliseconds, so two completions close together would hold every answer
//! back for one to two milliseconds. Such a wait becomes a yield, or some.

use crate::task;
use futures_util::FutureExt;
use openraft_rt::{AsyncRuntime, Instant, OptionalSend};
use openraft_rt_tokio::{TokioInstant, TokioRuntime};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Waits below this only let the others run.
const YIELD_BELOW: Duration = Duration::from_micros(50);

/// Tokio with prompt naps.
#[derive(Debug)]
pub(super) struct PromptRuntime(TokioRuntime);

/// A wait that yields, or sleeps.
#[derive(Debug)]
pub(super) enum Nap {
    /// Lets the others run, once or (`false`) no more.
    Yield(bool),
    /// Lets the others run until this time, while the clock moves from one look at it (`seen`) to
    /// the next. It never ends early: the engine's loop of ticks would tick again, and under a
    /// paused clock without end.
    Until { deadline: TokioInstant, seen: Option<TokioInstant> },
    /// Waits for the timer.
    Sleep(Pin<Box<tokio::time::Sleep>>),
}

impl Future for Nap {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let nap = self.get_mut();
        match nap {
            Self::Yield(pending) => {
                if !std::mem::take(pending) {
                    return Poll::Ready(());
                }
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Self::Until { deadline, seen } => {
                let now = TokioInstant::now();
                if now >= *deadline {
                    return Poll::Ready(());
                }
                if seen.replace(now) == Some(now) {
                    // A paused clock: only its timer moves it.
                    *nap = Self::Sleep(Box::pin(TokioRuntime::sleep_until(*deadline)));
                    return Pin::new(nap).poll(context);
                }
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Self::Sleep(sleep) => sleep.as_mut().poll(context),
        }
    }
}

type Timeout<R, F> = <TokioRuntime as AsyncRuntime>::Timeout<R, F>;

impl AsyncRuntime for PromptRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = Nap;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, F: Future<Output = R> + OptionalSend> = Timeout<R, F>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        // The engine's state can no longer be trusted once one of its tasks has panicked, and
        // recovery from the log can.
        task::start(async move {
            let outcome = AssertUnwindSafe(future).catch_unwind().await;
            outcome.unwrap_or_else(|_| {
                tracing::error!("a task of the consensus engine panicked");
                std::process::abort()
            })
        })
    }

    fn sleep(duration: Duration) -> Nap {
        if duration < YIELD_BELOW {
            return Nap::Yield(true);
        }
        Nap::Sleep(Box::pin(TokioRuntime::sleep(duration)))
    }

    fn sleep_until(deadline: TokioInstant) -> Nap {
        if deadline < TokioInstant::now() + YIELD_BELOW {
            return Nap::Until { deadline, seen: None };
        }
        Nap::Sleep(Box::pin(TokioRuntime::sleep_until(deadline)))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: TokioInstant,
        future: F,
    ) -> Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_wait_only_yields_and_a_long_one_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let start = TokioInstant::now();
            PromptRuntime::sleep(Duration::from_micros(1)).await;
            assert_eq!(TokioInstant::now(), start);
            PromptRuntime::sleep(Duration::from_millis(5)).await;
            assert!(TokioInstant::now() - start >= Duration::from_millis(5));
        });
    }

    #[test]
    fn a_deadline_is_never_met_early_under_a_clock_that_moves_or_one_that_is_paused() {
        for paused in [false, true] {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(paused)
                .build()
                .unwrap();
            runtime.block_on(async {
                for wait in [0, 1, 20, 49, 51].map(Duration::from_micros) {
                    let deadline = TokioInstant::now() + wait;
                    PromptRuntime::sleep_until(deadline).await;
                    assert!(TokioInstant::now() >= deadline, "{wait:?} after, paused: {paused}");
                }
            });
        }
    }
}
