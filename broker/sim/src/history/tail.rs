//! Owns: check 12: queries for the log end that are under way.
//! Never: judges what the leader thinks it is: only what was known before and published since.

use super::finding::{Check, Report};
use super::log::PartitionLog;

/// A query that awaits its answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct TailQuery {
    pub(super) partition: u16,
    /// Exclusive end of what was stored when it began.
    pub(super) at_least: u32,
}

impl TailQuery {
    pub(super) fn judge(self, at_ns: u64, end: u32, log: &PartitionLog, r: &mut Report) {
        let Self { partition, at_least } = self;
        if end < at_least {
            let text = format_args!(
                "partition {partition} was said to end at {end}, although offset {} was stored \
                 before the query",
                at_least - 1
            );
            r.add(Check::Tail, at_ns, text);
        }
        if end > log.published {
            let text = format_args!(
                "partition {partition} was said to end at {end}, although only {} messages were \
                 published",
                log.published
            );
            r.add(Check::Tail, at_ns, text);
        }
    }
}
