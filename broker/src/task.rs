//! Owns: the only place that starts a task. Every task has a name and a kind, and belongs to the
//! [`TaskScope`] of whoever starts it, if there is one.
//! Never: detaches a failure: a panic in a connection ends that connection; a panic in the core
//! (partitions, replication, metadata) aborts the process, because its state can no longer be
//! trusted and recovery from the log can.

mod scope;

pub use scope::{Killed, TaskScope};

pub(crate) use scope::start;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use tokio::task::JoinHandle;

/// What a panic of the task means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// Serves one peer: its end is the end of that connection.
    Connection,
    /// Owns state that others rely on: its panic ends the process.
    Core,
}

/// Starts `future` as a task.
pub fn spawn<F>(name: &'static str, kind: TaskKind, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    start(async move {
        let outcome = futures_util::FutureExt::catch_unwind(AssertUnwindSafe(future)).await;
        if outcome.is_err() {
            tracing::error!(task = name, "the task panicked");
            if kind == TaskKind::Core {
                std::process::abort();
            }
        }
    })
}
