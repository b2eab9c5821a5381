//! What this broker may hold in memory, shared out before anything is held.
//!
//! Owns: the plan (every part with its worst case) and the accounts that parts are drawn from.
//! Never: waits: what does not fit is refused by whoever asked.
//! Invariants: the parts of a plan fit the budget, or the broker does not start; an account never
//! holds more than its part. Publish credit has an account of its own kind: see [`crate::flow`].
//!
//! Beside the budget stand what each idle connection costs ([`CONNECTION_BYTES_IDLE_MAX`], counted
//! per connection) and the code and tables of the process itself; mapped segments are page cache.

pub use crate::flow::Reservation;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The budget is never less than this, bytes.
pub const BUDGET_BYTES_MIN: u64 = 64 << 20;
/// An idle connection costs at most this, bytes of anonymous memory.
pub const CONNECTION_BYTES_IDLE_MAX: u64 = 8 << 10;

/// The default budget: a quarter of the machine's or the cgroup's memory, at least 64 MiB.
pub fn default_bytes() -> u64 {
    (memory_bytes() / 4).max(BUDGET_BYTES_MIN)
}

/// The memory of the machine, or of the cgroup if that is less; 0 if neither is known.
fn memory_bytes() -> u64 {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let machine = machine_bytes(&read("/proc/meminfo")).unwrap_or(0);
    let cgroup = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .into_iter()
        .find_map(|path| read(path).trim().parse().ok());
    cgroup.map_or(machine, |limit: u64| if machine == 0 { limit } else { limit.min(machine) })
}

fn machine_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// One part of the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// For people and metrics.
    pub name: &'static str,
    /// The most that it can come to, bytes.
    pub bytes: u64,
}

/// The parts do not fit the budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the memory budget of {total} bytes cannot hold {needed} bytes ({list}); \
     raise the budget or lower what asks for it"
)]
pub struct DoesNotFit {
    /// The budget, bytes.
    pub total: u64,
    /// The sum of the parts, bytes.
    pub needed: u64,
    /// The parts, for people.
    pub list: String,
}

/// The memory budget of the broker and how it is shared out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    total: u64,
    parts: Vec<Part>,
}

impl Budget {
    /// Shares `total` bytes out. What the parts leave is nobody's: room for the allocator.
    pub fn plan(total: u64, parts: Vec<Part>) -> Result<Self, DoesNotFit> {
        let needed = parts.iter().map(|part| part.bytes).sum();
        let budget = Self { total, parts };
        if needed > total {
            return Err(DoesNotFit { total, needed, list: budget.list() });
        }
        Ok(budget)
    }

    /// The whole budget, bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The parts.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The worst case of all parts together, bytes.
    pub fn worst_case(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Writes the plan to the log, as it is done once at start.
    pub fn log(&self) {
        tracing::info!(
            total_bytes = self.total,
            worst_case_bytes = self.worst_case(),
            parts = self.list(),
            "memory budget"
        );
    }

    fn list(&self) -> String {
        let each = self.parts.iter().map(|part| format!("{} {}", part.name, part.bytes));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// One part that is drawn from in pieces.
#[derive(Debug)]
pub struct Account {
    part: Part,
    used: AtomicU64,
}

impl Account {
    /// An account over the whole of `part`.
    pub fn new(part: Part) -> Arc<Self> {
        Arc::new(Self { part, used: AtomicU64::new(0) })
    }

    /// Draws `bytes`, unless they are not there.
    pub fn try_draw(self: &Arc<Self>, bytes: u64) -> Option<Draft> {
        let within = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.part.bytes);
        let drawn = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, within);
        drawn.ok().map(|_| Draft { account: Arc::clone(self), bytes })
    }

    /// The part it stands for.
    pub fn part(&self) -> Part {
        self.part
    }

    /// Bytes that are drawn now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }
}

/// Bytes drawn from an account; they return when it is dropped.
pub struct Draft {
    account: Arc<Account>,
    bytes: u64,
}

impl Draft {
    /// How many they are.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Draft({} of {})", self.bytes, self.account.part.name)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.account.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ_BUFFERS: Part = Part { name: "read buffers", bytes: 100 };

    #[test]
    fn a_plan_that_does_not_fit_says_which_parts_ask_for_how_much() {
        let parts = vec![READ_BUFFERS, Part { name: "requests", bytes: 50 }];
        assert_eq!(Budget::plan(150, parts.clone()).map(|plan| plan.worst_case()), Ok(150));
        let refused = Budget::plan(149, parts).expect_err("a byte is missing");
        assert_eq!(
            refused.to_string(),
            "the memory budget of 149 bytes cannot hold 150 bytes (read buffers 100, requests 50); \
             raise the budget or lower what asks for it"
        );
    }

    #[test]
    fn an_account_gives_what_it_has_and_gets_it_back() {
        let account = Account::new(READ_BUFFERS);
        let most = account.try_draw(60).expect("60 of 100");
        assert!(account.try_draw(41).is_none());
        assert!(account.try_draw(u64::MAX).is_none());
        let rest = account.try_draw(40).expect("the rest");
        drop(most);
        assert_eq!(account.used(), 40);
        drop(rest);
        assert_eq!(account.used(), 0);
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        assert_eq!(
            machine_bytes("MemTotal:       24684644 kB\nMemFree: 1 kB\n"),
            Some(24_684_644 << 10)
        );
        assert_eq!(machine_bytes("nonsense"), None);
        assert!(default_bytes() >= BUDGET_BYTES_MIN);
    }
}
