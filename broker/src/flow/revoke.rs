//! Gets parked credit back for those who wait, and ends streams whose peers no longer act.
//!
//! Owns: what a tick does. Ticks happen only while somebody waits or owes an answer.
//! Never: takes credit without the peer's answer; a peer that does not answer loses its stream.

use super::REVOKE_TICK;
use super::core::{FlowCore, Signal, Signals, StreamKey};
use super::stream::Stream;
use tokio::time::{Duration, Instant};

/// Unspent credit of a stream that sent nothing for this long is asked back when others wait.
const PARKED_AFTER: Duration = Duration::from_secs(1);
/// The same while somebody gets nothing at all.
const PARKED_AFTER_STARVING: Duration = REVOKE_TICK;
/// A revoke that is not answered for this long ends its stream.
const REVOKE_ANSWER_MAX: Duration = Duration::from_secs(3);
/// Most revokes that one tick sends, so that a tick stays short.
const REVOKES_PER_TICK_MAX: usize = 1_024;

impl FlowCore {
    /// Asks parked credit back for those who wait, and ends streams that owe an answer too long.
    pub(super) fn tick(&mut self, now: Instant, signals: &mut Signals) {
        if self.revoking > 0 {
            for key in self.silent(now) {
                signals.push((key, Signal::Silent));
                self.close(key, now, signals);
            }
        }
        self.distribute(now, signals);
        for key in self.parked(now) {
            self.revoke(key, now, signals);
        }
    }

    fn silent(&self, now: Instant) -> Vec<StreamKey> {
        let owes_long = |stream: &Stream| {
            stream.revoking.is_some_and(|r| now.duration_since(r.since) >= REVOKE_ANSWER_MAX)
        };
        self.keys().filter(|key| self.peek(*key).is_some_and(owes_long)).collect()
    }

    /// The streams to ask, those that sent nothing for longest first, as many as are needed.
    fn parked(&self, now: Instant) -> Vec<StreamKey> {
        let Some(front) = self.ring.front().copied() else { return Vec::new() };
        let waiting = self.ring.iter().filter_map(|key| self.peek(*key));
        let wanted: u64 = waiting.map(Stream::needs).sum();
        let coming = self.keys().filter_map(|key| self.peek(key));
        let coming: u64 = coming.filter(|s| s.revoking.is_some()).map(Stream::unspent).sum();
        let mut short = wanted.min(self.pool_cost).saturating_sub(self.available() + coming);
        let starving = self
            .peek(front)
            .and_then(|stream| stream.starved_since)
            .is_some_and(|since| now.duration_since(since) >= PARKED_AFTER_STARVING);
        let parked_after = if starving { PARKED_AFTER_STARVING } else { PARKED_AFTER };
        let mut parked: Vec<(Instant, StreamKey, u64)> = self
            .keys()
            .filter(|key| *key != front)
            .filter_map(|key| self.peek(key).map(|stream| (key, stream)))
            .filter(|(_, stream)| stream.revoking.is_none() && stream.unspent() > 0)
            .filter(|(_, stream)| now.duration_since(stream.last_spent) >= parked_after)
            .map(|(key, stream)| (stream.last_spent, key, stream.unspent()))
            .collect();
        parked.sort_unstable();
        let mut asked = Vec::new();
        for (_, key, unspent) in parked.into_iter().take(REVOKES_PER_TICK_MAX) {
            if short == 0 {
                break;
            }
            short = short.saturating_sub(unspent);
            asked.push(key);
        }
        asked
    }
}
