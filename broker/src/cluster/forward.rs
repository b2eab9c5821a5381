//! How any broker reaches whoever leads the metadata.
//!
//! Owns: finding the leader, asking it, asking again while nothing can have happened, and waiting
//! until the copy here shows what the leader did.
//! Never: asks again where the first question may have taken effect; that is up to whoever knows
//! what the command means.
//! Invariants: every call ends by its deadline. A question of another broker is passed on once, with
//! half of its time, so that brokers that take each other for the leader soon stop.

use crate::peer::ask::{Answer, Ask, Asks, NoAsks};
use crate::replication::metadata::{
    BrokerFacts, Catalog, Change, ChangeError, Command, GATE_CLUSTER, Metadata, Verdict,
};
use crate::replication::{PeerLost, Role};
use crate::reply;
use futures_util::FutureExt;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::{Duration, Instant};
use weir_protocol::error_code::{ErrorCode, Outcome};
use weir_protocol::frame::Refusal;
use weir_protocol::peer::{ForwardedAnswer, Question};
use weir_protocol::types::BrokerId;

/// How long a command looks for a leader and waits for what becomes of it.
pub const PROPOSE_WITHIN: Duration = Duration::from_secs(5);
/// A leader that was not there is looked for again after this.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// With less time left a question is not passed on.
const PASSED_ON_WITHIN_MIN: Duration = Duration::from_millis(100);

/// The metadata as any broker sees and changes it: the copy here, and the leader wherever it is.
/// Cheap to clone.
#[derive(Clone)]
pub struct MetadataClient {
    metadata: Metadata,
    broker: BrokerId,
    asks: Arc<dyn Asks>,
}

impl MetadataClient {
    /// Over the copy of this broker and the way to the others.
    pub fn new(metadata: Metadata, broker: BrokerId, asks: Arc<dyn Asks>) -> Self {
        Self { metadata, broker, asks }
    }

    /// Of a broker that is alone.
    pub fn alone(metadata: Metadata, broker: BrokerId) -> Self {
        Self::new(metadata, broker, Arc::new(NoAsks))
    }

    /// The copy here.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The catalog as of the last command that was applied here.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.metadata.catalog()
    }

    /// The register that always holds the latest catalog.
    pub fn watch(&self) -> watch::Receiver<Arc<Catalog>> {
        self.metadata.watch()
    }

    /// Ends the copy here, checkpointed.
    pub async fn stop(&self) {
        self.metadata.stop().await;
    }

    /// Lets the leader commit a command, and waits until what it did shows in the catalog here.
    /// Whether it is worth asking again after [`ChangeError::Unknown`] is for the caller to know.
    pub async fn propose(&self, command: Command) -> Result<Change, ChangeError> {
        let deadline = Instant::now() + PROPOSE_WITHIN;
        let question = Question::Command(command.encode().into());
        let ForwardedAnswer::Applied(bytes) = self.ask(&question, deadline).await? else {
            return Err(ChangeError::Unknown);
        };
        let verdict = Verdict::decode(&bytes).map_err(|_| ChangeError::Unknown)?;
        // What became of it is known, also where the copy here is too slow to show it in time.
        let _ = tokio::time::timeout_at(deadline, self.metadata.reaches(verdict.applied)).await;
        Ok(verdict.outcome?)
    }

    /// Waits until the catalog here shows everything that was answered anywhere before this call.
    pub async fn catch_up(&self, within: Duration) -> Result<(), ChangeError> {
        let deadline = Instant::now() + within;
        let ForwardedAnswer::ReadIndex(index) = self.ask(&Question::ReadIndex, deadline).await?
        else {
            return Err(ChangeError::NotLeader);
        };
        let reached = tokio::time::timeout_at(deadline, self.metadata.reaches(index)).await;
        reached.unwrap_or(Err(ChangeError::NotLeader))
    }

    /// Makes a broker known with what it tells of itself, and the cluster ready for others. Asked at
    /// every start of a broker that is one of several; again and again does no harm.
    pub async fn register(
        &self,
        broker: Option<BrokerId>,
        facts: BrokerFacts,
    ) -> Result<BrokerId, ChangeError> {
        if self.catalog().gate == 0 {
            self.propose(Command::RaiseGate { gate: GATE_CLUSTER }).await?;
        }
        match self.propose(Command::BrokerUp { broker, facts }).await? {
            Change::BrokerUp(broker) => Ok(broker),
            // Whoever answers so is not understood.
            _ => Err(ChangeError::Unknown),
        }
    }

    /// Who leads, as far as it is known here.
    pub fn leader(&self) -> Option<BrokerId> {
        let replica = self.metadata.replica();
        let leading = match replica.state().borrow().role {
            Role::Leader(_) => return Some(self.broker),
            Role::Follower { leader } => leader?,
            Role::Candidate | Role::Fenced(_) => return None,
        };
        replica.members().brokers.get(&leading).copied()
    }

    /// Answers another broker. Who does not lead passes the question on.
    pub async fn answer(
        &self,
        question: Question,
        within: Duration,
    ) -> Result<ForwardedAnswer, Refusal> {
        let within = if within.is_zero() { PROPOSE_WITHIN } else { within.min(PROPOSE_WITHIN) };
        let (leader, half) = (self.leader(), within / 2);
        let is_late = leader != Some(self.broker) && half < PASSED_ON_WITHIN_MIN;
        let tried = match is_late {
            true => Err(ChangeError::NotLeader),
            false => self.ask_once(leader, &question, Instant::now() + half).await,
        };
        tried.map_err(|error| reply::metadata(&error, leader))
    }

    /// Asks until there is an answer, or the question may have taken effect.
    async fn ask(
        &self,
        question: &Question,
        deadline: Instant,
    ) -> Result<ForwardedAnswer, ChangeError> {
        loop {
            let tried = self.ask_once(self.leader(), question, deadline).await;
            let again = Instant::now() + AGAIN_AFTER;
            if tried != Err(ChangeError::NotLeader) || again >= deadline {
                return tried;
            }
            tokio::time::sleep_until(again).await;
        }
    }

    /// Asks whoever is taken for the leader. [`ChangeError::NotLeader`] if nothing can have happened.
    async fn ask_once(
        &self,
        leader: Option<BrokerId>,
        question: &Question,
        deadline: Instant,
    ) -> Result<ForwardedAnswer, ChangeError> {
        if let Role::Fenced(fence) = &self.metadata.replica().state().borrow().role {
            return Err(fence.clone().into());
        }
        let lost = match question {
            Question::Command(_) => ChangeError::Unknown,
            Question::ReadIndex => ChangeError::NotLeader,
        };
        let asked = match leader {
            None => return Err(ChangeError::NotLeader),
            Some(here) if here == self.broker => self.ask_here(question).boxed(),
            Some(there) => self.ask_there(there, question, deadline).boxed(),
        };
        match tokio::time::timeout_at(deadline, asked).await {
            Ok(Err(ChangeError::Unknown)) | Err(_) => Err(lost),
            Ok(answered) => answered,
        }
    }

    async fn ask_here(&self, question: &Question) -> Result<ForwardedAnswer, ChangeError> {
        let bytes = match question {
            Question::ReadIndex => {
                return self.metadata.read_index().await.map(ForwardedAnswer::ReadIndex);
            }
            Question::Command(bytes) => bytes,
        };
        let command = Command::decode(bytes).map_err(ChangeError::Unreadable)?;
        let outcome = match self.metadata.propose(command).await {
            Ok(change) => Ok(change),
            Err(ChangeError::Refused(refusal)) => Err(refusal),
            Err(error) => return Err(error),
        };
        let verdict = Verdict { applied: self.metadata.applied(), outcome };
        Ok(ForwardedAnswer::Applied(verdict.encode().into()))
    }

    async fn ask_there(
        &self,
        broker: BrokerId,
        question: &Question,
        deadline: Instant,
    ) -> Result<ForwardedAnswer, ChangeError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let ask = Ask::Forward(question.clone(), left);
        match self.asks.ask(broker, ask, left).await {
            Ok(Answer::Forwarded(Ok(answer))) => Ok(answer),
            Ok(Answer::Forwarded(Err(refusal))) => Err(error_of(&refusal)),
            Err(PeerLost::Unreachable | PeerLost::Refused(_)) => Err(ChangeError::NotLeader),
            Err(PeerLost::Broken) | Ok(_) => Err(ChangeError::Unknown),
        }
    }
}

/// What a refusal of the leader says about the command.
fn error_of(refusal: &Refusal) -> ChangeError {
    match (refusal.outcome, ErrorCode::from_u16(refusal.code)) {
        (Outcome::Unknown | Outcome::Stored, _) => ChangeError::Unknown,
        (Outcome::NotStored, Some(ErrorCode::OverloadedRequest)) => ChangeError::Busy,
        (Outcome::NotStored, _) => ChangeError::NotLeader,
    }
}
