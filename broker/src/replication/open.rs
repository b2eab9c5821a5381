//! Owns: how a replica comes to life: recover the log, read what was voted, build the maps, start
//! the engine, form the group where the replica is born with it, and call an election where nobody
//! else could.
//! Invariants: the engine starts behind the newest checkpoint that the durable log reaches; a
//! replica that led before it ended never leads the same term again; an empty log is the beginning
//! of a replica only where its group says so.

use super::boot::{self, MemoryLoss, OpenMark};
use super::codec::{self, Checkpoint, CodecError, HardState};
use super::engine::{self, Membership, Runtime, StoredMembership, Types};
use super::inbox::Inbox;
use super::log_map::LogMap;
use super::log_store::LogStore;
use super::metadata::LossReason;
use super::network::Ways;
use super::pace::Pace;
use super::refusal::Flight;
use super::repair::{self, Left, Patient, RepairError, Repaired};
use super::shared::{Parts, Shared};
use super::silence::Silence;
use super::state_machine::Shell;
use super::wiring::Wiring;
use super::{
    Durability, ENGINE_CHANNEL_MESSAGES, Fence, Replica, ReplicaState, Role, control_section,
};
use crate::planted::{Bug, is_planted};
use crate::task::{self, TaskKind};
use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use openraft::{Config, Raft, ServerState, SnapshotPolicy};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Duration;
use weir_protocol::types::{BrokerId, Index, ReplicaId, Term};
use weir_storage::{
    DamagedRange, Device, Log, LogOptions, LogReader, MendError, OpenError, Read, Recovered,
};

/// What a replica is opened with.
#[derive(Clone)]
pub struct ReplicaOptions {
    /// Its identity, never reused.
    pub replica: ReplicaId,
    /// What an empty log of it means.
    pub birth: Birth,
    /// The voters of its group, as whoever placed them knows it: of a group that is formed now, and
    /// of one whose only member has lost the record of it. The first of them forms the
    /// group; the others only where it does not.
    pub voters: Vec<(ReplicaId, BrokerId)>,
    /// The folder of the log.
    pub dir: PathBuf,
    /// The device that the folder lies on.
    pub device: Arc<Device>,
    /// How the log is kept.
    pub log: LogOptions,
    /// How far an acknowledgement reaches.
    pub durability: Durability,
    /// What it may have lost with the memory of the machine was accepted to be lost: it takes part
    /// again with what is left.
    pub loss_accepted: bool,
    /// The run of the operating system; 0 = not known.
    pub boot_id: u128,
    /// Seed of the engine's random choices (when to call an election).
    pub seed: u64,
    /// How often its group beats; the same for every replica of it.
    pub pace: Pace,
    /// The others, and what it may write for them.
    pub wiring: Wiring,
}

impl ReplicaOptions {
    /// The others of its group, as far as whoever placed them knows.
    pub(super) fn others(&self) -> Vec<(ReplicaId, BrokerId)> {
        let others = self.voters.iter().filter(|(replica, _)| *replica != self.replica);
        others.copied().collect()
    }

    /// How many voters come before it when one is to call an election; none where it is no voter yet.
    fn turn(&self) -> Option<usize> {
        self.voters.iter().position(|(replica, _)| *replica == self.replica)
    }
}

/// What a group says about a replica of it whose log is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Birth {
    /// The group is formed now: its voters begin with the same record, each on its own.
    Forms,
    /// The group is there, and its leader will send everything.
    Joins,
    /// The replica had a log: it is lost, and what it promised with it.
    Continues,
}

/// Whoever could not be asked for what is missing is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Records of one request to a follower, and of one append of a follower.
const SEND_RECORDS_MAX: u64 = 64;

/// What was found in the log.
#[derive(Debug)]
pub struct OpenReport {
    /// What recovery did.
    pub recovered: Recovered,
    /// The newest checkpoint and the state in it. Its maker begins there and reads the log from
    /// the next index up to [`ReplicaState::committed`].
    pub checkpoint: Option<(Index, Bytes)>,
    /// Whether the group was formed by this call.
    pub formed: bool,
    /// What the log lost of what was acknowledged out of memory, if that ever happened.
    pub memory_loss: Option<MemoryLoss>,
}

/// Why a replica could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenReplicaError {
    /// The log could not be opened.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The log cannot be read.
    #[error("the log cannot be read at index {index}: {reason}")]
    Read {
        /// Where.
        index: Index,
        /// Why.
        reason: String,
    },
    /// What was voted, or the checkpoint, cannot be read.
    #[error("the {what} cannot be read: {reason}")]
    Codec {
        /// What was to be read.
        what: &'static str,
        /// Why not.
        reason: CodecError,
    },
    /// The log is empty and the replica is not among the voters of the group to form.
    #[error("replica {0} is not among the voters of its new group")]
    NotAVoter(ReplicaId),
    /// The log is empty, and the replica had one. It must not take part again: what it acknowledged
    /// is gone. Another replica takes its place.
    #[error("the log of replica {0} is lost")]
    Lost(ReplicaId),
    /// The replica acknowledged out of memory, and the operating system ended before it had flushed
    /// everything. It must not take part again. Another replica takes its place.
    #[error("replica {0} lost what it held in memory when the operating system ended")]
    Unclean(ReplicaId),
    /// What is missing of the log has no place in it any more. Another replica takes its place.
    #[error("the log of replica {0} cannot be repaired")]
    Unmendable(ReplicaId),
    /// What was brought to repair the log could not be stored.
    #[error("the log could not be repaired: {0}")]
    Mend(MendError),
    /// The engine did not start, for another reason than a full disk.
    #[error("replication did not start: {0}")]
    Engine(String),
}

impl OpenReplicaError {
    /// Why the replica will never serve again, if that is what it says. What a newer version wrote is
    /// whole, and a device may be mended.
    pub fn loss(&self) -> Option<LossReason> {
        match self {
            Self::Lost(_) => Some(LossReason::Empty),
            Self::Unclean(_) => Some(LossReason::Unclean),
            Self::Log(OpenError::Damaged(_))
            | Self::Codec { reason: CodecError::Malformed, .. }
            | Self::Read { .. }
            | Self::Unmendable(_) => Some(LossReason::Damaged),
            Self::Log(
                OpenError::NoSpace(_) | OpenError::Newer { .. } | OpenError::Device { .. },
            )
            | Self::Codec { reason: CodecError::Version(_), .. }
            | Self::NotAVoter(_)
            | Self::Mend(_)
            | Self::Engine(_) => None,
        }
    }
}

impl From<RepairError> for OpenReplicaError {
    fn from(error: RepairError) -> Self {
        match error {
            RepairError::Lost(what) => Self::Log(OpenError::Damaged(what)),
            RepairError::Log(error) => Self::Log(error),
            RepairError::Mend(error) => Self::Mend(error),
        }
    }
}

pub(super) async fn open(
    options: ReplicaOptions,
) -> Result<(Replica, OpenReport), OpenReplicaError> {
    let found = recover(&options).await?;
    let Found { shared, checkpoint, recovered, mark } = found;
    let shell = Shell::new(shared.clone(), checkpoint.as_ref().map(|(at, taken)| (*at, taken)));
    let store = LogStore::new(shared.clone());
    let empty = shared.map().last() == Index(0);
    check_birth(&options, empty && shared.hard().vote.is_none())?;
    let forms = empty && options.birth == Birth::Forms;
    let alone = if forms { options.voters.len() == 1 } else { shared.is_only_member() };
    let ways = Ways::new(options.wiring.peers.clone(), shared.clone());
    let raft = Runtime::scope(options.seed, start(&options, (store, shell, ways), alone)).await;
    let raft = raft.map_err(|error| shared.caused(error, &options.dir))?;
    let flight = Flight::new(shared.state.clone());
    watch_role(&raft, &options, shared.clone());
    let inbox = Inbox::new(raft.clone(), shared.clone());
    let place = Arc::new(options.wiring.switchboard.add(options.replica, inbox));
    let memory_loss = mark.as_ref().and_then(OpenMark::loss);
    let replica = Replica { raft, shared, flight, place, mark: mark.map(Arc::new) };
    let formed = replica.take_part(&options, forms).await;
    let formed = formed.map_err(|error| replica.shared.caused(error, &options.dir))?;
    let checkpoint = checkpoint.map(|(at, taken)| (at, taken.state));
    Ok((replica, OpenReport { recovered, checkpoint, formed, memory_loss }))
}

impl Shared {
    /// What the engine stopped for: of a full disk it knows no more than a text.
    fn caused(&self, error: OpenReplicaError, dir: &Path) -> OpenReplicaError {
        match (error, self.check()) {
            (OpenReplicaError::Engine(_), Err(Fence::NoSpace)) => {
                OpenError::NoSpace(dir.to_owned()).into()
            }
            (error, _) => error,
        }
    }
}

/// Whether the replica may take part with the log that it has; `fresh` if it has neither log nor
/// vote.
fn check_birth(options: &ReplicaOptions, fresh: bool) -> Result<(), OpenReplicaError> {
    let votes = options.voters.iter().any(|(replica, _)| *replica == options.replica);
    match options.birth {
        Birth::Continues if fresh && !is_planted(Bug::LostReplicaTakesPart) => {
            Err(OpenReplicaError::Lost(options.replica))
        }
        Birth::Forms if fresh && !votes => Err(OpenReplicaError::NotAVoter(options.replica)),
        Birth::Forms | Birth::Joins | Birth::Continues => Ok(()),
    }
}

struct Found {
    shared: Arc<Shared>,
    checkpoint: Option<(Index, Checkpoint)>,
    recovered: Recovered,
    mark: Option<OpenMark>,
}

/// Opens the log, whole as far as anybody has what is missing, on the executor: recovery reads from
/// the device.
async fn recover(options: &ReplicaOptions) -> Result<Found, OpenReplicaError> {
    let here = options.clone();
    let found = repair::on_executor(&options.device, move || boot::look(&here)).await?;
    let opened = open_log(options).await;
    if opened.is_err() {
        options.wiring.switchboard.take_back(options.replica);
    }
    let (log, recovered) = opened?;
    let here = options.clone();
    repair::on_executor(&options.device, move || recover_here(&here, found, (log, recovered))).await
}

/// A log that lacks what only somebody away may have is not opened before that one was asked.
async fn open_log(options: &ReplicaOptions) -> Result<(Log, Recovered), OpenReplicaError> {
    loop {
        let patient = Patient {
            device: options.device.clone(),
            dir: options.dir.clone(),
            log: options.log.clone(),
            replica: options.replica,
            others: options.others(),
        };
        let lend = |log| options.wiring.switchboard.lend(options.replica, log);
        let Repaired { log, recovered, mended, left } =
            repair::open_whole(patient, &*options.wiring.asks, lend).await?;
        if mended > 0 {
            tracing::warn!(
                replica = %options.replica, mended, "damage was repaired from other replicas"
            );
        }
        let open = |(range, _): &&(DamagedRange, Left)| !range.accepted;
        let mut waits = false;
        for (range, why) in left.iter().filter(open) {
            match why {
                Left::Unmendable(_) if !options.others().is_empty() => {
                    return Err(OpenReplicaError::Unmendable(options.replica));
                }
                Left::NotReachable => waits = true,
                Left::Unmendable(_) | Left::NobodyHasIt => tracing::error!(
                    replica = %options.replica, ?range, "nobody has what is missing"
                ),
            }
        }
        if !waits {
            return Ok((log, recovered));
        }
        tracing::warn!(
            replica = %options.replica,
            "what is missing may be on a broker that cannot be reached; it is asked again"
        );
        drop(log);
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn recover_here(
    options: &ReplicaOptions,
    marked: boot::Found,
    (log, recovered): (Log, Recovered),
) -> Result<Found, OpenReplicaError> {
    let unreadable = |what| move |reason| OpenReplicaError::Codec { what, reason };
    let mut hard = HardState::decode(&log.meta()).map_err(unreadable("hard state"))?;
    let last = log.reader().bounds().last_index;
    if last == Index(0) && options.birth == Birth::Forms && options.voters.len() == 1 {
        // The process ended between its first vote and its first batch. Alone it promised nobody
        // anything by that vote, and nobody else would ever form the group.
        hard.vote = None;
    }
    let newest = log.latest_checkpoint(last).map_err(|error| OpenReplicaError::Read {
        index: last,
        reason: format!("the checkpoint: {error}"),
    })?;
    let checkpoint = match newest {
        Some((at, bytes)) => {
            let taken =
                Checkpoint::decode(&Bytes::from(bytes)).map_err(unreadable("checkpoint"))?;
            Some((at, taken))
        }
        None => None,
    };
    let start = hard.purged.map_or(Index(0), |id| engine::index_of(id.index()));
    if checkpoint.as_ref().map_or(Index(0), |(at, _)| *at) < start {
        let reason = "the log was trimmed up to here, but no checkpoint behind it is whole".into();
        return Err(OpenReplicaError::Read { index: start, reason });
    }
    let map = map_of(&log, &hard, checkpoint.as_ref(), options)?;
    let mark = marked.opened(options, last)?;
    let (at, term) =
        checkpoint.as_ref().map_or((Index(0), Term(0)), |(at, taken)| (*at, taken.term));
    let state = ReplicaState {
        role: Role::Follower { leader: None },
        committed: at,
        committed_term: term,
        refused: None,
        unreadable: None,
        installed: None,
        severed: false,
        hands_over: false,
    };
    let shared = Shared::new(Parts {
        replica: options.replica,
        durability: options.durability,
        gate: options.wiring.gate.clone(),
        device: options.device.clone(),
        log,
        map,
        hard,
        state: watch::Sender::new(state),
    });
    Ok(Found { shared, checkpoint, recovered, mark })
}

/// The terms and memberships of the log. Memberships that the checkpoint covers are not read; one
/// behind it that is damaged is an error, unless nobody else could be in the group: it never had
/// another member, and `options` know the one.
fn map_of(
    log: &Log,
    hard: &HardState,
    checkpoint: Option<&(Index, Checkpoint)>,
    options: &ReplicaOptions,
) -> Result<LogMap, OpenReplicaError> {
    let reader = log.reader();
    let purged =
        hard.purged.map(|id| (engine::index_of(id.index()), Term(id.committed_leader_id().term)));
    let mut map = LogMap::of(log, purged);
    let mut covered = map.purged().map_or(Index(0), |id| engine::index_of(id.index()));
    if let Some((at, taken)) = checkpoint {
        map.set_membership(taken.membership.clone());
        covered = covered.max(*at);
    }
    let alone = options.voters.len() == 1 && options.voters[0].0 == options.replica;
    for index in reader.config_indexes().into_iter().filter(|index| *index > covered) {
        match membership_at(&reader, index) {
            Err(error) if alone => tracing::error!(%error, "the membership is lost; it is known"),
            read => map.set_membership(read?),
        }
    }
    if map.last() > Index(0) && map.membership_before(map.last()).is_none() && alone {
        let nodes: BTreeMap<_, _> = options.voters.iter().copied().collect();
        let group = Membership::new(vec![[options.replica].into()], nodes);
        let group = group.map_err(|error| OpenReplicaError::Engine(error.to_string()))?;
        map.set_membership(StoredMembership::new(map.log_id(Index(covered.0 + 1)), group));
    }
    Ok(map)
}

fn membership_at(reader: &LogReader, index: Index) -> Result<StoredMembership, OpenReplicaError> {
    let read = |reason: String| OpenReplicaError::Read { index, reason };
    let found = match reader.read_from_index(index, 1) {
        Ok(Read::Hot(slices)) => Ok(slices),
        Ok(Read::Cold(cold)) => cold.run(),
        Err(error) => Err(error),
    };
    let slices = found.map_err(|error| read(error.to_string()))?;
    let slice = slices.first().filter(|slice| slice.header.index == index);
    let slice = slice.ok_or_else(|| read("no batch has it".into()))?;
    let membership = codec::decode_membership(control_section(slice))
        .map_err(|reason| OpenReplicaError::Codec { what: "membership", reason })?;
    Ok(StoredMembership::new(engine::log_id(slice.header.term.0, index), membership))
}

/// Builds the engine and starts its tasks; they inherit the seed of the scope around this.
async fn start(
    options: &ReplicaOptions,
    (store, shell, ways): (LogStore, Shell, Ways),
    alone: bool,
) -> Result<Raft<Types, Shell>, OpenReplicaError> {
    let patience = options.pace.patience_ms(options.turn());
    let config = Config {
        cluster_name: options.dir.display().to_string(),
        heartbeat_interval: options.pace.heartbeat_ms,
        election_timeout_min: patience.start,
        election_timeout_max: patience.end,
        // A restarted leader would otherwise resume its term, while everything volatile is gone.
        enable_leader_restore: Some(is_planted(Bug::TermResumed)),
        enable_pre_vote: Some(true),
        // Nobody to beat for and nobody to miss: without the tick an idle group costs nothing. It
        // begins with the first other member.
        enable_tick: !alone,
        snapshot_policy: SnapshotPolicy::Never,
        // Trimming is the partition's decision alone.
        max_in_snapshot_log_to_keep: u64::MAX / 2,
        max_payload_entries: SEND_RECORDS_MAX,
        max_append_entries: Some(SEND_RECORDS_MAX),
        // Who acknowledged an append needs no beat.
        heartbeat_min_interval: Some(options.pace.heartbeat_ms),
        // A leader whose followers do not answer falls silent now and then, so that those who reach
        // one another can elect another.
        quorum_loss_probe_interval: Some(2 * options.pace.lease_ms()),
        api_channel_size: Some(ENGINE_CHANNEL_MESSAGES),
        notification_channel_size: Some(4096),
        state_machine_channel_size: Some(64),
        ..Config::default()
    };
    let config = config.validate().map_err(|error| OpenReplicaError::Engine(error.to_string()))?;
    let raft = Raft::new(options.replica, Arc::new(config), ways, store, shell).await;
    raft.map_err(|error| OpenReplicaError::Engine(error.to_string()))
}

impl Replica {
    /// Forms the group if it is formed now, and tells whether this replica did; calls an election
    /// where no other voter could.
    async fn take_part(
        &self,
        options: &ReplicaOptions,
        forms: bool,
    ) -> Result<bool, OpenReplicaError> {
        let first = options.voters.first().is_some_and(|(first, _)| *first == options.replica);
        if forms && first {
            let formed = self.form(&options.voters).await?;
            if options.voters.len() > 1 {
                self.begin("replica-campaign", self.clone().campaign(options.pace));
            }
            return Ok(formed);
        }
        if forms {
            self.begin("replica-stand-in", self.clone().stand_in(options.clone()));
        } else if self.shared.is_only_voter() {
            let called = self.raft.trigger().elect(false).await;
            called.map_err(|error| OpenReplicaError::Engine(error.to_string()))?;
        }
        Ok(false)
    }

    fn begin(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        drop(task::spawn(name, TaskKind::Core, work));
    }

    /// Writes the first record of the group and asks for votes; false if somebody has formed it.
    async fn form(&self, voters: &[(ReplicaId, BrokerId)]) -> Result<bool, OpenReplicaError> {
        let voters: BTreeMap<_, _> = voters.iter().copied().collect();
        match self.raft.initialize(voters).await {
            Ok(()) => Ok(true),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(false),
            Err(error) => Err(OpenReplicaError::Engine(error.to_string())),
        }
    }

    /// Asks for the votes of a group that is just formed until somebody leads, or anybody would ask.
    /// The engine asks once, when the others may not be there yet.
    async fn campaign(self, pace: Pace) {
        for _ in 0..pace.election_ms / pace.heartbeat_ms {
            let within = Duration::from_millis(pace.heartbeat_ms);
            if self.hears_of_a_leader(within).await
                || self.raft.trigger().elect(true).await.is_err()
            {
                return;
            }
        }
    }

    /// Forms the group if the first of its voters does not. All at once would each vote for itself.
    async fn stand_in(self, options: ReplicaOptions) {
        let within = Duration::from_millis(options.pace.lease_ms());
        if self.hears_of_a_leader(within).await || self.shared.map().last() > Index(0) {
            return;
        }
        if let Err(error) = self.form(&options.voters).await {
            tracing::warn!(replica = %self.id(), %error, "the group was not formed");
        }
    }

    /// Whether somebody leads by then, or this replica has ended.
    async fn hears_of_a_leader(&self, within: Duration) -> bool {
        let me = self.id();
        let hears = |state: &ReplicaState| match state.role {
            Role::Leader(_) | Role::Fenced(_) => true,
            Role::Follower { leader } => leader.is_some_and(|leader| leader != me),
            Role::Candidate => false,
        };
        let mut states = self.state();
        tokio::time::timeout(within, states.wait_for(hears)).await.is_ok()
    }
}

/// Follows the engine's role until it ends.
fn watch_role(raft: &Raft<Types, Shell>, options: &ReplicaOptions, shared: Arc<Shared>) {
    let (mut roles, ends) = (raft.server_metrics(), raft.metrics());
    let silence = Silence {
        shared: shared.clone(),
        pace: options.pace,
        switchboard: options.wiring.switchboard.clone(),
        data: raft.data_metrics(),
        server: raft.server_metrics(),
    };
    task::spawn("replica-role", TaskKind::Core, async move {
        loop {
            let role = role_of(&roles.borrow_watched());
            let needs_others = matches!(role, Role::Leader(_)) && !shared.is_only_voter();
            shared.role(role);
            let changed = tokio::select! {
                biased;
                changed = roles.changed() => changed,
                () = silence.watch(), if needs_others => continue,
            };
            if changed.is_err() {
                break;
            }
        }
        let reason = match &ends.borrow_watched().running_state {
            Err(openraft::errors::Fatal::Stopped) | Ok(()) => Fence::Shutdown,
            Err(error) => Fence::Engine(error.to_string()),
        };
        shared.fence(reason);
    });
}

fn role_of(seen: &openraft::metrics::RaftServerMetrics<Types>) -> Role {
    match seen.state {
        ServerState::Leader if seen.vote.committed => Role::Leader(Term(seen.vote.leader_id.term)),
        ServerState::Leader | ServerState::Candidate => Role::Candidate,
        _ => Role::Follower { leader: seen.current_leader },
    }
}
