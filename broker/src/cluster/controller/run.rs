//! The controller at work.
//!
//! Owns: when it is decided, and that what was decided is proposed.
//! Never: acts on a broker that does not lead the metadata; insists: what was refused or lost is
//! decided anew from what stands then.

use super::reinstate::reinstate;
use super::view::{View, Watch};
use super::{decide, wanted_metadata};
use crate::cluster::MetadataClient;
use crate::cluster::leaders::LeaderBoard;
use crate::cluster::members::Wanted;
use crate::cluster::pace::TransferPace;
use crate::replication::metadata::{ChangeError, Command};
use crate::seams::WallClock;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::{Duration, Instant};
use weir_protocol::types::{BrokerId, Term};

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(1);

/// Decides on the broker that leads the metadata.
pub struct Controller {
    metadata: MetadataClient,
    board: Arc<LeaderBoard>,
    me: BrokerId,
    wall: Arc<dyn WallClock>,
    pace: TransferPace,
    /// The term in which it leads the metadata, and its eyes since then.
    leads: Option<(Term, Watch)>,
}

impl Controller {
    /// The controller of the broker `me`.
    pub fn new(
        metadata: MetadataClient,
        board: Arc<LeaderBoard>,
        me: BrokerId,
        wall: Arc<dyn WallClock>,
    ) -> Self {
        Self { metadata, board, me, wall, pace: TransferPace::default(), leads: None }
    }

    /// Decides once a second, while this broker leads the metadata. Never returns.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(ROUND);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let leading = self.metadata.metadata().replica().state().borrow().leading();
            if let Some(term) = leading {
                self.round(term, Instant::now()).await;
            }
        }
    }

    async fn round(&mut self, term: Term, now: Instant) {
        let watch = match self.leads {
            Some((led, watch)) if led == term => watch,
            _ => Watch { since: now, me: self.me },
        };
        self.leads = Some((term, watch));
        let commands = self.decide(&watch, now);
        let preferred = commands.iter().filter(|command| matches!(command, Command::Prefer { .. }));
        self.pace.take(now, preferred.count());
        for command in commands {
            match self.metadata.propose(command.clone()).await {
                Ok(_) => {}
                Err(ChangeError::Refused(refusal)) => {
                    tracing::debug!(?command, %refusal, "the metadata has changed meanwhile");
                }
                Err(error) => {
                    tracing::debug!(?command, %error, "the controller stops for this round");
                    return;
                }
            }
        }
    }

    fn decide(&mut self, watch: &Watch, now: Instant) -> Vec<Command> {
        let catalog = self.metadata.catalog();
        let reach = watch.reach(&catalog, &self.board, now);
        let leaders = self.board.leaders(&catalog, now);
        let preferences = self.pace.allowed(now, catalog.partitions().count());
        let view = View { catalog: &catalog, leaders: &leaders, reach: &reach, preferences };
        let mut commands = reinstate(&catalog, self.wall.now_ms());
        commands.extend(decide(&view));
        commands
    }
}

/// What the metadata's own group shall be, seen with the eyes of its leader. `setting`: how many
/// vote; 0 = by the number of brokers.
pub(in crate::cluster) fn wanted_copies(
    metadata: &MetadataClient,
    board: &LeaderBoard,
    (watch, setting): (Watch, u8),
    now: Instant,
) -> Wanted {
    let catalog = metadata.catalog();
    let reach = watch.reach(&catalog, board, now);
    let leaders = BTreeSet::new();
    let view = View { catalog: &catalog, leaders: &leaders, reach: &reach, preferences: 0 };
    wanted_metadata(&view, setting)
}
