//! Questions between brokers: what one may ask, and who answers here.
//!
//! Owns: the two traits between the room that carries frames and those that decide.
//! Never: a frame's number: the carrier gives it, so `request` is 0 on both sides of these traits.
//! Invariant: a question is asked once; whoever asks decides whether to ask again.

use crate::replication::PeerLost;
use crate::seams::BoxFuture;
use tokio::time::Duration;
use weir_protocol::frame::Refusal;
use weir_protocol::peer::{
    Fetch, FetchedBatches, Form, ForwardedAnswer, News, PeerRefusal, Probed, Question,
};
use weir_protocol::types::BrokerId;

/// What one broker asks another.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// Who is there.
    Probe,
    /// Takes its place in a cluster that is formed now.
    Form(Form),
    /// Something for whoever leads the metadata, and how long the answer is waited for.
    Forward(Question, Duration),
    /// Stored batches, to repair with.
    Fetch(Fetch),
}

/// What it is answered: the variant of its question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Who is there.
    Probed(Probed),
    /// Whether the place is taken, durably.
    Formed(Result<(), PeerRefusal>),
    /// What the metadata's leader says.
    Forwarded(Result<ForwardedAnswer, Refusal>),
    /// Batches.
    Fetched(Result<FetchedBatches, PeerRefusal>),
}

/// The way of questions to other brokers.
pub trait Asks: Send + Sync {
    /// Asks a broker that this one has an address of, on the connection that stands.
    fn ask(
        &self,
        to: BrokerId,
        ask: Ask,
        within: Duration,
    ) -> BoxFuture<'static, Result<Answer, PeerLost>>;

    /// Asks whoever is found at `address` (`HOST:PORT`), on a connection of its own.
    fn ask_at(
        &self,
        address: &str,
        ask: Ask,
        within: Duration,
    ) -> BoxFuture<'static, Result<Answer, PeerLost>>;
}

/// The way to others of a broker that is alone.
#[derive(Debug, Clone, Copy)]
pub struct NoAsks;

impl Asks for NoAsks {
    fn ask(
        &self,
        _to: BrokerId,
        _ask: Ask,
        _within: Duration,
    ) -> BoxFuture<'static, Result<Answer, PeerLost>> {
        Box::pin(std::future::ready(Err(PeerLost::Unreachable)))
    }

    fn ask_at(
        &self,
        _address: &str,
        _ask: Ask,
        _within: Duration,
    ) -> BoxFuture<'static, Result<Answer, PeerLost>> {
        Box::pin(std::future::ready(Err(PeerLost::Unreachable)))
    }
}

/// Who answers here. Each call is made by a connection that has proved to belong to the cluster.
pub trait Answers: Send + Sync {
    /// Who this broker is.
    fn probed(&self) -> Probed;

    /// Takes the place; answers once that is durable.
    fn form(&self, form: Form) -> BoxFuture<'static, Result<(), PeerRefusal>>;

    /// Answers where this broker leads the metadata.
    fn forward(
        &self,
        question: Question,
        within: Duration,
    ) -> BoxFuture<'static, Result<ForwardedAnswer, Refusal>>;

    /// Reads what is stored here, at most `bytes_max` of it beyond the first index.
    fn fetch(&self, fetch: Fetch) -> BoxFuture<'static, Result<FetchedBatches, PeerRefusal>>;

    /// What a broker tells of itself; the newest replaces what it told before. Never waits.
    fn news(&self, from: BrokerId, news: News);
}
