//! Threads as submissions with completions.
//!
//! Owns: the lanes and the threads behind them.
//! Never: starts a thread elsewhere in the crate; grows without bound: a lane has a fixed number
//! of threads and a queue of fixed length, and who submits to a full one waits.

use std::fmt::Debug;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// What a job is about: lanes do not wait for one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Device flushes; one thread, because a device has one queue.
    Flush,
    /// Making and preparing segments.
    Prepare,
    /// Cold reads.
    Read,
    /// Checkpoints, hard state, recovery.
    Checkpoint,
}

/// A job for another thread.
pub type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs elsewhere.
pub trait Executor: Send + Sync + Debug {
    /// Hands a job over. Blocks only while the lane's queue is full.
    fn submit(&self, lane: Lane, job: Job);
}

/// Jobs of one lane that wait.
const QUEUE_MAX: usize = 4_096;

/// Real threads.
#[derive(Debug)]
pub struct ThreadExecutor {
    lanes: [SyncSender<Job>; 4],
}

impl ThreadExecutor {
    /// Starts the threads: two for cold reads, one for each other lane.
    pub fn start() -> io::Result<Self> {
        Ok(Self {
            lanes: [
                start_lane("weir-flush", 1)?,
                start_lane("weir-prepare", 1)?,
                start_lane("weir-read", 2)?,
                start_lane("weir-ckpt", 1)?,
            ],
        })
    }
}

impl Executor for ThreadExecutor {
    fn submit(&self, lane: Lane, job: Job) {
        let number = match lane {
            Lane::Flush => 0,
            Lane::Prepare => 1,
            Lane::Read => 2,
            Lane::Checkpoint => 3,
        };
        self.lanes[number].send(job).expect("lanes end only with their executor");
    }
}

fn start_lane(name: &str, threads: usize) -> io::Result<SyncSender<Job>> {
    let (sender, receiver) = sync_channel(QUEUE_MAX);
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..threads {
        let receiver = receiver.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(256 << 10)
            .spawn(move || run(&receiver))?;
    }
    Ok(sender)
}

fn run(receiver: &Mutex<Receiver<Job>>) {
    loop {
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        // A panic in storage leaves state that nobody may trust: recovery from the log can.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            std::process::abort();
        }
    }
}
