//! Owns: how committed batches reach the core: headers off the log, commands out of control
//! batches, in order, each once; what is damaged is passed over, and the core is told.
//! Never: passes over a batch that can be read.

use super::Task;
use crate::partition::command::{self, Command};
use crate::partition::core::{Event, Seen};
use crate::partition::limits::{HEADERS_PER_READ, PROPOSAL_BYTES_MAX};
use crate::partition::refusal::Loss;
use crate::partition::state::State;
use crate::partition::wire::WireError;
use crate::replication::{MaintainError, control_section};
use crate::seams::on_lane;
use tokio::time::Instant;
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::types::Index;
use weir_storage::{DamagedRange, Lane, ReadError};

/// Indexes that surely still have their headers in memory: beyond them another thread reads.
const HOT_INDEXES: u64 = 8;

/// Why the log cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the snapshot of index {at}: {reason}")]
    Snapshot { at: Index, reason: WireError },
    #[error(transparent)]
    Installed(#[from] MaintainError),
    #[error("index {index}: {reason}")]
    Control { index: Index, reason: WireError },
    #[error("index {0} is committed and not in the log")]
    Missing(Index),
}

impl Task {
    /// Applies everything committed, then tells what the replica is.
    pub(super) async fn catch_up(&mut self, now: Instant) -> Result<(), ApplyError> {
        let seen = self.state.borrow_and_update().clone();
        if self.core.state().applied < seen.committed {
            self.busy(now);
        }
        self.go_on_from_snapshot(now).await?;
        while self.core.state().applied < seen.committed {
            let Err(error) = self.apply_some(seen.committed, now).await else { continue };
            if self.go_on_from_snapshot(now).await? {
                // What could not be read is gone, and what it said is in the state.
                continue;
            }
            let lost = self.lost_in(error)?;
            if lost.last_index > seen.committed {
                // The rest of it is about to be committed: no term ends in the middle of it.
                break;
            }
            self.pass_over(lost, now);
        }
        let leader = self.replica.other_leader();
        let seen = Seen {
            leading: seen.leading(),
            leader: leader.map(|(broker, term)| Some((broker?, term))),
            sole_voter: self.replica.is_only_voter(),
            severed: seen.severed,
            hands_over: seen.hands_over,
            role: seen.role,
            refused: seen.refused,
            in_flight: self.replica.in_flight(),
        };
        self.role_seen(&seen.role, now);
        let led = self.core.leads();
        self.tell(Event::Replica(seen), now);
        if self.core.leads() && !led {
            // Whether the topic is full, only a leader asks.
            self.hold(now);
        }
        self.segments_seen(now);
        Ok(())
    }

    /// Takes over the state of a snapshot that replaced the log; says whether there was one. The
    /// replica shows it before the log goes.
    async fn go_on_from_snapshot(&mut self, now: Instant) -> Result<bool, ApplyError> {
        let installed = self.state.borrow().installed;
        let Some(at) = installed.filter(|at| *at > self.core.state().applied) else {
            return Ok(false);
        };
        let Some((at, bytes)) = self.replica.installed_state().await? else {
            return Err(ApplyError::Missing(at));
        };
        let state =
            State::decode(at, &bytes).map_err(|reason| ApplyError::Snapshot { at, reason })?;
        tracing::info!(partition = ?self.around.options.key, %at, "the log begins at a snapshot");
        self.tell(Event::Replaced(Box::new(state)), now);
        self.replaced(at);
        Ok(true)
    }

    async fn apply_some(&mut self, committed: Index, now: Instant) -> Result<(), ApplyError> {
        for header in self.committed_headers(committed).await? {
            let commands = match header.batch_type {
                BatchType::Control => self.commands_of(&header).await?,
                _ => Vec::new(),
            };
            self.tell(Event::Applied { header, commands }, now);
        }
        Ok(())
    }

    /// The damaged range that keeps the log from being applied; the error where there is none.
    fn lost_in(&self, error: ApplyError) -> Result<DamagedRange, ApplyError> {
        let applied = self.core.state().applied;
        let known = match &error {
            ApplyError::Read(ReadError::Damaged(range)) => Some(range.clone()),
            ApplyError::Missing(index) => self
                .log
                .damaged_ranges()
                .into_iter()
                .find(|range| range.first_index <= *index && *index <= range.last_index),
            ApplyError::Read(_)
            | ApplyError::Snapshot { .. }
            | ApplyError::Installed(_)
            | ApplyError::Control { .. } => None,
        };
        known.filter(|range| range.last_index > applied).ok_or(error)
    }

    fn pass_over(&mut self, range: DamagedRange, now: Instant) {
        let lost = Loss { key: self.around.options.key.clone(), range };
        match lost.range.accepted {
            true => tracing::warn!("passed over what is lost and was accepted: {lost}"),
            false => tracing::error!("the partition is read-only: {lost}"),
        }
        self.tell(Event::Lost(lost), now);
    }

    /// Headers of the next committed indexes, whole ones only, up to where indexes are missing.
    async fn committed_headers(
        &mut self,
        committed: Index,
    ) -> Result<Vec<BatchHeader>, ApplyError> {
        let from = Index(self.core.state().applied.0 + 1);
        let mut headers = if committed.0 - from.0 < HOT_INDEXES {
            self.log.headers(from, HEADERS_PER_READ)?
        } else {
            let log = self.log.clone();
            let read = move || log.headers(from, HEADERS_PER_READ);
            on_lane(&self.around.executor, Lane::Read, read).await?
        };
        let mut next = from;
        let jump = headers.iter().position(|header| {
            let jumps = header.index > next;
            next = Index(header.index.0 + 1);
            jumps
        });
        headers.truncate(jump.unwrap_or(headers.len()));
        let whole = |header: &BatchHeader| header.is_last_of_index() && header.index <= committed;
        let count = headers.iter().rposition(whole).map_or(0, |last| last + 1);
        headers.truncate(count);
        match headers.first() {
            Some(first) if first.index == from => Ok(headers),
            _ => Err(ApplyError::Missing(from)),
        }
    }

    /// The commands of a control batch, which lies in front of the others of its index.
    async fn commands_of(&mut self, header: &BatchHeader) -> Result<Vec<Command>, ApplyError> {
        let wanted = (header.run, header.run_number);
        for bytes_max in [1, 2 * PROPOSAL_BYTES_MAX] {
            let slices = self.replica.read(header.index, bytes_max).await?;
            let found = slices.iter().find(|slice| {
                (slice.header.run, slice.header.run_number) == wanted
                    && slice.header.batch_type == BatchType::Control
            });
            if let Some(slice) = found {
                let index = header.index;
                let wrong = |reason| ApplyError::Control { index, reason };
                return command::decode(control_section(slice)).map_err(wrong);
            }
        }
        Err(ApplyError::Missing(header.index))
    }
}
