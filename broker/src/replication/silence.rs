//! A leader that no majority answers gives up its lead: the engine by itself leads on for ever, and
//! whoever waits for it would wait as long.
//!
//! Owns: how long that is waited for, and how the lead is given up.
//! Never: judges by a time in which this process stood still: what came meanwhile is not heard yet.
//! Invariant: the lead is given up by a vote for another voter in the next term, as any candidate
//! could ask for one. Nobody counts that vote, so it elects nobody and can hurt nothing.

use super::engine::{self, DataSeen, ServerSeen};
use super::pace::Pace;
use super::shared::Shared;
use super::switchboard::Switchboard;
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use std::sync::Arc;
use tokio::time::{Duration, Instant};
use weir_protocol::peer::{GroupAddress, Vote, VoteAsk, VoteKind};
use weir_protocol::types::{ReplicaId, RequestId, Term};

/// Looks after the lead of one replica. It does not hold the engine, which ends with the last that
/// does.
pub(super) struct Silence {
    pub shared: Arc<Shared>,
    pub pace: Pace,
    /// Where the replica is found.
    pub switchboard: Switchboard,
    pub data: DataSeen,
    pub server: ServerSeen,
}

impl Silence {
    /// Of a replica that leads with other voters: gives up its lead once they have been silent for
    /// too long, and tries again where the engine has heard of them since. Never returns; it is
    /// dropped when the replica does not lead any more.
    pub(super) async fn watch(&self) {
        let silent_for = || Some(self.data.borrow_watched().last_quorum_acked.as_ref()?.elapsed());
        loop {
            silence(silent_for, self.pace).await;
            self.give_up().await;
        }
    }

    /// Votes for another voter. The engine refuses if a majority has answered it after all.
    async fn give_up(&self) {
        let me = self.shared.replica;
        let Ok(inbox) = self.switchboard.inbox(me) else { return };
        let Some((term, other)) = self.next_vote() else { return };
        let last = {
            let map = self.shared.map();
            engine::place_from(map.log_id(map.last()).as_ref())
        };
        let ask = VoteAsk {
            request: RequestId(0),
            address: GroupAddress { to: me, from: other },
            kind: VoteKind::Election,
            vote: Vote { term, replica: other, committed: false },
            last,
        };
        // Shown before the role changes: nobody is to be waited for then.
        self.shared.severed(true);
        match inbox.vote(ask).await {
            Ok(answer) if answer.granted => {
                tracing::warn!(replica = %me, "no majority answers: the replica leads no more");
            }
            Ok(_) | Err(_) => self.shared.severed(false),
        }
    }

    /// The next term, and a voter that is not this replica.
    fn next_vote(&self) -> Option<(Term, ReplicaId)> {
        let seen = self.server.borrow_watched();
        let other = seen.membership_config.voter_ids().find(|id| *id != self.shared.replica)?;
        Some((Term(seen.vote.leader_id.term + 1), other))
    }
}

/// Waits until a majority has answered nothing for [`Pace::silence_max`] while this process ran.
/// `silent_for`: how long ago the last question was asked that a majority has answered.
async fn silence(silent_for: impl Fn() -> Option<Duration>, pace: Pace) {
    let stalled_after = Duration::from_millis(pace.heartbeat_ms);
    let mut since = Instant::now();
    loop {
        let silent = silent_for().map_or(since.elapsed(), |silent| silent.min(since.elapsed()));
        if silent >= pace.silence_max() {
            return;
        }
        let due = Instant::now() + (pace.silence_max() - silent);
        tokio::time::sleep_until(due).await;
        if due.elapsed() > stalled_after {
            since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use tokio::time::{advance, timeout};

    const PACE: Pace = Pace::QUICK;
    /// The clock of a test jumps over whole milliseconds.
    const A_MOMENT: Duration = Duration::from_millis(2);

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_the_last_answer() {
        let start = Instant::now();
        let heard = Cell::new(None::<Instant>);
        let answered = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            heard.set(Some(Instant::now()));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = silence(|| Some(heard.get()?.elapsed()), PACE) => {}
            () = answered => {}
        }
        let expected = Duration::from_millis(500) + PACE.silence_max();
        assert!(start.elapsed() >= expected && start.elapsed() < expected + A_MOMENT);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_stalled_process_did_not_hear_is_no_silence() {
        let mut silent = std::pin::pin!(silence(|| None, PACE));
        assert!(timeout(PACE.silence_max() / 2, &mut silent).await.is_err());
        advance(20 * PACE.silence_max()).await;
        let awake = Instant::now();
        silent.await;
        assert!(awake.elapsed() >= PACE.silence_max(), "{:?}", awake.elapsed());
    }
}
