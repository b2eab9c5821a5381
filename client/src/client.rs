//! The client: its connections are shared by all its publishers and consumers.
//!
//! Owns: connecting, topic administration, the end. Never: does work of its own; the driver does.

use crate::config::{ClientConfig, ENDPOINTS_MAX, Endpoint};
use crate::consumer::ConsumerBuilder;
use crate::driver;
use crate::error::{Error, Result};
use crate::publisher::{CloseReport, PublisherBuilder, name};
use crate::retry::Backoff;
use crate::seams::{Connector, WallClock};
use crate::shared::{Answer, ClientShared, LaneRef, RequestBody};
use crate::status::Status;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use weir_protocol::error_code::{Action, ErrorCode, Outcome};
use weir_protocol::frame::{
    AlterTopic, BrokerView, Durability, MetadataPage, Overflow, TopicConfig, TopicView,
};
use weir_protocol::types::{Name, RequestId};

/// Ends the driver when the last handle is gone.
pub(crate) struct Handle {
    pub(crate) shared: Arc<ClientShared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.start_closing();
    }
}

/// Builds a [`Client`].
#[must_use = "a builder does nothing until `connect`"]
#[derive(Default)]
pub struct ClientBuilder {
    config: ClientConfig,
    endpoints: Vec<String>,
}

impl ClientBuilder {
    /// Where brokers listen: `weir://HOST:PORT`. Any broker of a cluster will do: it tells of the
    /// others, and publishers and consumers go to the leader of their partition. Give several, so
    /// that one is up.
    pub fn endpoints<I>(mut self, endpoints: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// A name for people: shown in the broker's logs and lists.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// How long [`ClientBuilder::connect`] tries, and how long one endpoint may take to answer.
    /// Default: 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.config.connect_timeout = timeout;
        self
    }

    /// How long a request may take: topic administration, opening publishers and consumers,
    /// confirmed settles. Default: 30 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.config.request_timeout = timeout;
        self
    }

    /// Fixes every random choice (back-off, first partitions): for simulations.
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = Some(seed);
        self
    }

    /// Where connections come from. Default: TCP.
    pub fn connector(mut self, connector: Arc<dyn Connector>) -> Self {
        self.config.connector = connector;
        self
    }

    /// Where timestamps come from. Default: the operating system.
    pub fn wall_clock(mut self, wall: Arc<dyn WallClock>) -> Self {
        self.config.wall = wall;
        self
    }

    /// Connects. Afterwards the client reconnects by itself, see [`Client::status`].
    ///
    /// Cancel safe: dropping the future ends the attempt.
    pub async fn connect(mut self) -> Result<Client> {
        if self.endpoints.is_empty() || self.endpoints.len() > ENDPOINTS_MAX {
            let text = format!("a client has 1 to {ENDPOINTS_MAX} endpoints");
            return Err(Error::invalid(text));
        }
        if self.config.name.len() > 255 {
            return Err(Error::invalid("the client's name has more than 255 bytes"));
        }
        for endpoint in &self.endpoints {
            self.config.endpoints.push(Endpoint::parse(endpoint)?);
        }
        let timeout = self.config.connect_timeout;
        let shared = Arc::new(ClientShared::new(self.config));
        let client = Client { handle: Arc::new(Handle { shared: shared.clone() }) };
        let mut status = client.status();
        driver::start(shared);
        let connected = status.wait_for(|status| match status {
            Status::Connected | Status::Blocked { .. } | Status::Closed => true,
            Status::Reconnecting { .. } | Status::Draining => false,
        });
        match tokio::time::timeout(timeout, connected).await {
            Ok(Ok(status)) if *status != Status::Closed => {}
            Ok(_) => return Err(client.end_error()),
            Err(_) => {
                let text = format!("within {timeout:?}: {}", client.status_text());
                return Err(Error::local(ErrorCode::Unreachable, text));
            }
        }
        Ok(client)
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// A change of a topic; what is `None` stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TopicChange {
    /// More partitions; never fewer.
    pub partitions: Option<u32>,
    /// When a publish is acknowledged.
    pub durability: Option<Durability>,
    /// What happens at the limit.
    pub overflow: Option<Overflow>,
    /// Bytes of each partition that are retained.
    pub max_bytes: Option<u64>,
    /// Age at which records are trimmed, milliseconds; 0 = never.
    pub max_age_ms: Option<u64>,
    /// Replicas of each partition: 1, 3 or 5. This takes as long as copying does, and is asked for
    /// alone: together with another change it is refused with BAD_REQUEST.
    pub replicas: Option<u8>,
}

/// Some topics, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicPage {
    /// The topics.
    pub topics: Vec<TopicView>,
    /// Ask again behind the last one.
    pub more: bool,
}

/// A client of a cluster: one connection to each broker it needs. Clones share them; they end with
/// the last clone, publisher and consumer.
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.handle.shared.config.name)
            .field("status", &*self.handle.shared.status.borrow())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Starts with the endpoints and a name.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    fn shared(&self) -> &ClientShared {
        &self.handle.shared
    }

    /// Publishes to a topic.
    pub fn publisher(&self, topic: &str) -> PublisherBuilder {
        PublisherBuilder::new(self.clone(), topic)
    }

    /// Reads a topic without leaving a trace: nothing is remembered when it ends.
    pub fn reader(&self, topic: &str) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), topic, None)
    }

    /// Reads a topic through a durable subscription (mode `stream`): its cursor is kept by the
    /// broker. The first consumer creates it; several, of any clients, share its partitions, and when
    /// one leaves or dies the others take over behind what it settled.
    pub fn consumer(&self, topic: &str, subscription: &str) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), topic, Some(subscription))
    }

    /// How the client stands with its brokers, now and whenever that changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared().status.subscribe()
    }

    /// The status as one line for people.
    pub fn status_text(&self) -> String {
        self.shared().status.borrow().to_string()
    }

    /// The longest message (key, headers and payload) that the broker takes.
    pub fn message_bytes_max(&self) -> usize {
        self.shared().message_bytes_max()
    }

    /// Creates a topic. Publishing never does.
    ///
    /// Not cancel safe, as all requests that change something: it may be carried out all the same.
    pub async fn create_topic(&self, topic: &str, config: TopicConfig) -> Result<()> {
        let topic = name(topic, "topic")?;
        self.ask(RequestBody::Create { topic, config }).await.map(|_| ())
    }

    /// Changes a topic.
    pub async fn alter_topic(&self, topic: &str, change: TopicChange) -> Result<()> {
        let alter = AlterTopic {
            request: RequestId(0),
            topic: name(topic, "topic")?,
            partitions: change.partitions,
            durability: change.durability,
            overflow: change.overflow,
            max_bytes: change.max_bytes,
            max_age_ms: change.max_age_ms,
            replicas: change.replicas,
        };
        self.ask(RequestBody::Alter(Box::new(alter))).await.map(|_| ())
    }

    /// Removes a topic with all its records and subscriptions.
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        let topic = name(topic, "topic")?;
        self.ask(RequestBody::Delete { topic }).await.map(|_| ())
    }

    /// One topic.
    pub async fn topic(&self, topic: &str) -> Result<TopicView> {
        self.topic_and_brokers(topic).await.map(|(topic, _)| topic)
    }

    /// One topic, and the brokers of its cluster, which its partitions name by their ids.
    pub async fn topic_and_brokers(&self, topic: &str) -> Result<(TopicView, Vec<BrokerView>)> {
        let topic = name(topic, "topic")?;
        let page = self.page(Some(topic.clone()), None).await?;
        let found = page.topics.into_iter().find(|view| view.name == topic);
        found.map(|view| (view, page.brokers)).ok_or_else(|| {
            Error::local(
                ErrorCode::UnknownTopic,
                format!("no topic {topic} exists; create it first"),
            )
        })
    }

    /// All topics, by name. For many of them, [`Client::topics_page`] holds less at once.
    pub async fn topics(&self) -> Result<Vec<TopicView>> {
        let mut all: Vec<TopicView> = Vec::new();
        loop {
            let after = all.last().map(|view| view.name.clone());
            let page = self.page(None, after).await?;
            let ended = page.topics.is_empty() || !page.more;
            all.extend(page.topics);
            if ended {
                return Ok(all);
            }
        }
    }

    /// Some topics, by name, behind this one.
    pub async fn topics_page(&self, after: Option<&str>) -> Result<TopicPage> {
        let after = after.map(|text| name(text, "topic")).transpose()?;
        let page = self.page(None, after).await?;
        Ok(TopicPage { topics: page.topics, more: page.more })
    }

    async fn page(&self, topic: Option<Name>, after: Option<Name>) -> Result<MetadataPage> {
        match self.ask(RequestBody::Topics { topic, after }).await? {
            Answer::Page(page) => Ok(page),
            Answer::Done => {
                Err(Error::protocol(ErrorCode::BadState, "the broker answered without topics"))
            }
        }
    }

    /// Asks until there is an answer that a retry would not change, within the request timeout.
    async fn ask(&self, body: RequestBody) -> Result<Answer> {
        let shared = self.shared();
        let mut backoff = Backoff::default();
        let work = async {
            loop {
                let error = match shared.request(body.clone()).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => error,
                };
                let action = error.code().map(Action::of);
                let again =
                    matches!(action, Some(Action::Wait | Action::StopTopic | Action::Reconnect));
                // Reading twice harms nobody; a change that may have been made is not repeated.
                let harmless = matches!(body, RequestBody::Topics { .. })
                    && error.error_code() == Some(ErrorCode::LeaderLost);
                let certain = again && error.outcome() == Outcome::NotStored;
                if !harmless && !certain {
                    return Err(error);
                }
                let hint = error.retry_after().unwrap_or(Duration::ZERO);
                tokio::time::sleep(hint.max(backoff.next(&shared.chance))).await;
            }
        };
        shared.within_request_timeout("a request", work).await
    }

    /// Ends the client: consumers stop, publishers take nothing more, what is queued is sent, and
    /// the answers are awaited for at most `timeout`. Other clones are closed too.
    ///
    /// Cancel safe: what is queued is still sent.
    pub async fn close(self, timeout: Duration) -> CloseReport {
        let shared = self.shared();
        shared.start_closing();
        let mut status = self.status();
        let ended = status.wait_for(|status| *status == Status::Closed);
        let mut report = CloseReport::default();
        if tokio::time::timeout(timeout, ended).await.is_err() {
            let lanes: Vec<_> = shared.lock().lanes.values().cloned().collect();
            for lane in lanes {
                if let LaneRef::Publish(lane) = lane {
                    let mut core = lane.lock();
                    report.unconfirmed += core.unconfirmed();
                    core.fail(&crate::shared::closed());
                    drop(core);
                    shared.ring(lane.id);
                }
            }
        }
        report
    }

    fn end_error(&self) -> Error {
        self.shared().lock().end_error.clone().unwrap_or_else(crate::shared::closed)
    }
}
