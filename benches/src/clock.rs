//! The clocks of the harness: the one module that asks the operating system for the time.

use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Instant);

/// Now.
#[expect(clippy::disallowed_methods, reason = "measuring time is what the harness is for")]
pub fn now() -> Moment {
    Moment(Instant::now())
}

impl Moment {
    /// Time since this moment.
    pub fn elapsed(self) -> Duration {
        now().since(self)
    }

    /// Time from `earlier` to this moment; zero if it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }

    /// The moment `duration` later.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }

    /// As tokio's timers take it.
    pub fn to_tokio(self) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.0)
    }
}

/// CPU that all threads of this process, those that ended too, have used so far, user and system.
pub fn process_cpu() -> Duration {
    cpu(ClockId::ProcessCPUTime)
}

/// CPU that this thread has used so far, user and system.
pub fn thread_cpu() -> Duration {
    cpu(ClockId::ThreadCPUTime)
}

fn cpu(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).expect("what was used is not negative")
}
