//! What one broker of several in a process has running, so that it can be killed as a process is.
//!
//! Owns: the tasks of each scope that have not ended, by the number in which they were started.
//! Never: asks what a task does; costs more than one look where there is no scope, which is
//! everywhere but in a simulation.
//! Invariants: a task belongs to the scope of the task that starts it; once a scope is killed, none
//! of its tasks goes on, and [`TaskScope::kill`] returns when what they held has been dropped.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};

tokio::task_local! {
    static CURRENT: TaskScope;
}

/// Starts `future` as a task of the current scope, if there is one. What its panic means is the
/// caller's affair.
pub(crate) fn start<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match CURRENT.try_with(TaskScope::clone) {
        Ok(scope) => scope.start(future),
        Err(_) => spawn(future),
    }
}

fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[expect(clippy::disallowed_methods, reason = "this is the one place the ban points to")]
    tokio::spawn(future)
}

/// The scope was killed before it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tasks of this scope were killed")]
pub struct Killed;

/// Tasks that are killed together. Cheap to clone, which names the same scope again.
#[derive(Clone, Default)]
pub struct TaskScope(Arc<Shared>);

#[derive(Default)]
struct Shared {
    tasks: Mutex<Tasks>,
    /// Raised when the last task of a killed scope has been dropped.
    emptied: Notify,
}

#[derive(Default)]
struct Tasks {
    next: u64,
    /// Tasks that have not been dropped; `None` for a moment, while one is being started.
    alive: BTreeMap<u64, Option<AbortHandle>>,
    killed: bool,
    /// While none of them runs: those that would.
    paused: Option<BTreeMap<u64, Waker>>,
}

impl TaskScope {
    /// A scope without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future`, and all that it starts, in this scope. A panic of it is the caller's.
    pub async fn run<F>(&self, future: F) -> Result<F::Output, Killed>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match self.start(future).await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(output) => Ok(output),
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Err(Err(_)) => Err(Killed),
        }
    }

    /// Ends every task where it stands, in the order in which they were started, and returns when
    /// each has been dropped. What is started in the scope from now on is never run.
    pub async fn kill(&self) {
        let tasks: Vec<AbortHandle> = {
            let mut tasks = self.tasks();
            tasks.killed = true;
            tasks.alive.values().flatten().cloned().collect()
        };
        // All before the first is dropped: none of them sees another one gone.
        tasks.iter().for_each(AbortHandle::abort);
        loop {
            let emptied = self.0.emptied.notified();
            if self.task_count() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Lets none of its tasks run until [`TaskScope::resume`], as SIGSTOP does to a process: time
    /// goes on.
    pub fn pause(&self) {
        self.tasks().paused.get_or_insert_default();
    }

    /// Lets its tasks go on where they stood.
    pub fn resume(&self) {
        let waiting = self.tasks().paused.take();
        waiting.into_iter().flatten().for_each(|(_, task)| task.wake());
    }

    /// Tasks that have not been dropped.
    pub fn task_count(&self) -> usize {
        self.tasks().alive.len()
    }

    fn start<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let place = self.enter();
        let number = place.number;
        let task = Task { future: Box::pin(future), _place: place };
        let handle = spawn(CURRENT.scope(self.clone(), task));
        let mut tasks = self.tasks();
        if tasks.killed {
            handle.abort();
        } else if let Some(abort) = tasks.alive.get_mut(&number) {
            *abort = Some(handle.abort_handle());
        }
        drop(tasks);
        handle
    }

    fn enter(&self) -> Place {
        let mut tasks = self.tasks();
        let number = tasks.next;
        tasks.next += 1;
        tasks.alive.insert(number, None);
        Place { scope: self.clone(), number }
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task and its place, which is given up behind all that the task holds: fields are dropped in
/// their order.
struct Task<F> {
    future: Pin<Box<F>>,
    _place: Place,
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if let Some(paused) = &mut self._place.scope.tasks().paused {
            paused.insert(self._place.number, context.waker().clone());
            return Poll::Pending;
        }
        self.future.as_mut().poll(context)
    }
}

struct Place {
    scope: TaskScope,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut tasks = self.scope.tasks();
        tasks.alive.remove(&self.number);
        if let Some(paused) = &mut tasks.paused {
            paused.remove(&self.number);
        }
        if tasks.killed && tasks.alive.is_empty() {
            self.scope.0.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests;
