//! The shell around [`Formation`]: who this broker is, told to others and written down.
//!
//! Owns: the identity while the broker runs, the addresses of the others as far as they are known,
//! and the answers to those who ask who is there.
//! Never: decides when a cluster is formed.
//! Invariants: nobody is told what is not durable; what waits is bounded: one question of each kind
//! for each seed, and [`FORMS_MAX`] brokers that want this one in their cluster.

mod copy;

use super::formation::{Concern, Effect, Event, Formation, Terms};
use super::forward::MetadataClient;
use super::known::Known;
use super::waiting::{Silence, Waiting};
use crate::config::ClusterSettings;
use crate::identity::{Identity, IdentityError};
use crate::peer::ask::{Answer, Ask, Asks};
use crate::replication::PeerLost;
use crate::replication::metadata::{BrokerFacts, Catalog, Change, Command, GATE_CLUSTER};
use crate::seams::{BoxFuture, Entropy, Seams, on_lane};
use crate::task::{self, TaskKind};
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Duration, Instant, MissedTickBehavior};
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::Refusal;
use weir_protocol::peer::{
    Form, ForwardedAnswer, MemberState, Node, PeerRefusal, Probed, Question,
};
use weir_protocol::types::{BrokerId, ReplicaId, RequestId};
use weir_storage::{Disk, Executor, Lane};
use xxhash_rust::xxh64::xxh64;

/// Brokers that want this one in the cluster that they form, at a time.
const FORMS_MAX: usize = 8;
/// How often the seeds are asked who they are.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long any of them may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// What keeps the broker from going on for so long is logged.
const CONCERN_AFTER: Duration = Duration::from_secs(5);

/// The folder of the metadata log in the data directory.
pub const METADATA_FOLDER: &str = "metadata";

/// Where the brokers of the cluster are, as `HOST:PORT`.
pub type Directory = Arc<BTreeMap<BrokerId, String>>;

/// Where the identity is written.
struct Place {
    disk: Arc<dyn Disk>,
    executor: Arc<dyn Executor>,
    data_dir: PathBuf,
}

type Offer = (Form, oneshot::Sender<Result<(), PeerRefusal>>);

/// This broker among others.
pub struct Cluster {
    settings: ClusterSettings,
    place: Place,
    terms: Terms,
    /// Of this process, random.
    instance: u64,
    /// As it is durable.
    identity: watch::Sender<Identity>,
    node: watch::Sender<Node>,
    directory: watch::Sender<Directory>,
    offers: mpsc::Sender<Offer>,
    /// Until somebody looks at them.
    offered: Mutex<Option<mpsc::Receiver<Offer>>>,
    /// Until this broker departs.
    metadata: Mutex<Option<MetadataClient>>,
    waiting: Mutex<Waiting>,
    /// As it is durable.
    known: Mutex<Known>,
}

/// A question under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Errand {
    Probe(usize),
    Form(usize),
    Join,
}

impl Cluster {
    /// Reads who this broker is; in an empty directory it gets a token to be known by.
    pub fn open(
        settings: ClusterSettings,
        seams: &Seams,
        data_dir: &Path,
    ) -> Result<Arc<Self>, IdentityError> {
        let [token, cluster, instance] = [(); 3].map(|()| random(&*seams.entropy));
        if settings.is_secret_exposed {
            tracing::warn!(
                "others than its owner may read the file of cluster.secret_file; chmod 600 it"
            );
        }
        let identity = Identity::open_among(&*seams.disk, data_dir, token)?;
        let known = Known::read(&*seams.disk, data_dir, identity.cluster);
        let place = Place {
            disk: seams.disk.clone(),
            executor: seams.executor.clone(),
            data_dir: data_dir.to_owned(),
        };
        let (offers, offered) = mpsc::channel(FORMS_MAX);
        let node = node_of(&settings, &identity, instance as u64);
        let terms = terms_of(&settings, cluster);
        let seeds = terms.seeds.iter().enumerate();
        let seeds = seeds.map(|(at, seed)| (seed.as_str(), Some(at) == terms.place));
        let waiting = Mutex::new(Waiting::new(seeds));
        let cluster = Self {
            terms,
            waiting,
            settings,
            place,
            instance: instance as u64,
            identity: watch::Sender::new(identity),
            node: watch::Sender::new(node),
            directory: watch::Sender::new(directory_of(&known, identity.broker)),
            known: Mutex::new(known),
            offers,
            offered: Mutex::new(Some(offered)),
            metadata: Mutex::default(),
        };
        Ok(Arc::new(cluster))
    }

    /// Who this broker is, as far as it is durable.
    pub fn identity(&self) -> Identity {
        *self.identity.borrow()
    }

    /// Who this broker says it is to those it meets; changes when it gets its place.
    pub fn node(&self) -> watch::Receiver<Node> {
        self.node.subscribe()
    }

    /// The replicas of the metadata that were known when this broker was last among others; none
    /// where no other was. What is known may be old: nobody is alone because of it.
    pub fn known_metadata(&self) -> Vec<(ReplicaId, BrokerId)> {
        let (known, here) = (self.now_known().metadata(), self.identity().metadata_replica);
        let has_others = known.iter().any(|(replica, _)| *replica != here);
        if has_others { known } else { Vec::new() }
    }

    fn now_known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it waits for before it belongs to a cluster.
    pub fn waiting(&self) -> Waiting {
        let waiting = self.now_waiting().clone();
        Waiting { is_member: self.identity().state == MemberState::Member, ..waiting }
    }

    fn now_waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the others are, as far as they said so or the metadata knows.
    pub fn directory(&self) -> watch::Receiver<Directory> {
        self.directory.subscribe()
    }

    /// Forms a cluster with the other seeds, or joins the one that is there, and returns who this
    /// broker is in it once it has a replica of the metadata to open. Waits for others as long as it
    /// takes; called once.
    pub async fn belong(&self, asks: Arc<dyn Asks>) -> Result<Identity, IdentityError> {
        let offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut offered = offered.expect("a broker looks for its cluster once");
        let mut formation = Formation::new(self.terms.clone(), self.identity());
        let (mut answers, mut under_way) = (FuturesUnordered::new(), BTreeSet::new());
        let mut tick = tokio::time::interval(ASK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut worry = Worry::default();
        while !formation.is_done() {
            let mut reply = None;
            let event = tokio::select! {
                biased;
                Some((form, to)) = offered.recv() => {
                    reply = Some(to);
                    Event::Form(form)
                }
                Some((errand, event)) = answers.next(), if !answers.is_empty() => {
                    under_way.remove(&errand);
                    let Some(event) = event else { continue };
                    event
                }
                _ = tick.tick() => {
                    let concern = formation.concern();
                    self.now_waiting().concern = concern.as_ref().map(Concern::to_string);
                    worry.about(concern);
                    Event::Tick
                }
            };
            let mut effects = VecDeque::from(formation.handle(event, Instant::now()));
            while let Some(effect) = effects.pop_front() {
                let errand = match effect {
                    Effect::Store(identity) => {
                        self.store(identity).await?;
                        effects.extend(formation.handle(Event::Stored, Instant::now()));
                        continue;
                    }
                    Effect::Answer(answer) => {
                        // Whoever asked may have gone.
                        let _ = reply.take().map(|to| to.send(answer));
                        continue;
                    }
                    Effect::Probe(seed) => Errand::Probe(seed),
                    Effect::Form(seed, _) => Errand::Form(seed),
                    Effect::Join { .. } => Errand::Join,
                };
                if under_way.insert(errand) {
                    let event = self.run(effect, &asks);
                    answers.push(event.map(move |event| (errand, event)));
                }
            }
        }
        self.take_metadata_replica(&asks).await?;
        Ok(self.identity())
    }

    /// Asks at the seeds where these brokers are, until all are known or `work` is done: a copy of the
    /// metadata that lacks what only they have does not open before they were asked.
    pub async fn look_for_while<T>(
        &self,
        brokers: &[BrokerId],
        asks: Arc<dyn Asks>,
        work: impl Future<Output = T>,
    ) -> T {
        let found = |id: &BrokerId| self.directory.borrow().contains_key(id);
        let here = self.identity().broker;
        let mut work = std::pin::pin!(work);
        while !brokers.iter().all(|id| *id == here || found(id)) {
            let look = async {
                self.probe_others(&asks).await;
                tokio::time::sleep(ASK_EVERY).await;
            };
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = look => {}
            }
        }
        work.await
    }

    /// From now on questions to the metadata are answered, this broker is made known with what it
    /// tells of itself, and the directory follows the metadata.
    pub fn attend(self: &Arc<Self>, metadata: MetadataClient, asks: Arc<dyn Asks>) {
        *self.metadata.lock().unwrap_or_else(PoisonError::into_inner) = Some(metadata.clone());
        let here = self.clone();
        drop(task::spawn("cluster", TaskKind::Core, async move {
            here.follow(&metadata, &asks).await;
        }));
    }

    /// From now on no question to the metadata is answered, and nothing here keeps them open.
    pub fn depart(&self) {
        // Dropped behind the lock: it may be the last one.
        let metadata = self.metadata.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(metadata);
    }

    fn metadata(&self) -> Option<MetadataClient> {
        self.metadata.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who this broker is, to whoever asks.
    pub fn probed(&self) -> Probed {
        let identity = self.identity();
        Probed {
            request: RequestId(0),
            cluster: identity.cluster,
            broker: identity.broker,
            state: identity.state,
            expect: self.terms.seeds.len() as u16,
            seeds_hash: self.terms.seeds_hash,
            gate: self.settings.gate,
            client_address: self.settings.client.as_str().to_owned(),
            peer_address: self.settings.peer.as_str().to_owned(),
            rack: Some(self.settings.rack.clone()),
            name: self.settings.name.clone(),
        }
    }

    /// Takes a place in the cluster that another broker forms; answers once that is durable.
    pub fn form(&self, form: Form) -> BoxFuture<'static, Result<(), PeerRefusal>> {
        let offered = (form.cluster, form.broker);
        let (reply, answer) = oneshot::channel();
        let is_full =
            matches!(self.offers.try_send((form, reply)), Err(mpsc::error::TrySendError::Full(_)));
        let identity = self.identity.subscribe();
        async move {
            if is_full {
                return Err(PeerRefusal::Overloaded);
            }
            if let Ok(answer) = answer.await {
                return answer;
            }
            // Nobody looks at offers any more.
            let identity = *identity.borrow();
            match identity.state {
                MemberState::Member if (identity.cluster, identity.broker) == offered => Ok(()),
                MemberState::Member => Err(PeerRefusal::WrongCluster),
                MemberState::Empty | MemberState::Forming => Err(PeerRefusal::Draining),
            }
        }
        .boxed()
    }

    /// Answers a question to the metadata, or passes it on.
    pub fn forward(
        &self,
        question: Question,
        within: Duration,
    ) -> BoxFuture<'static, Result<ForwardedAnswer, Refusal>> {
        let metadata = self.metadata();
        async move {
            let opening = || {
                let text = "the metadata is being opened on this broker; ask another, or again";
                Refusal { retry_after_ms: 100, ..Refusal::new(ErrorCode::Recovering, text) }
            };
            metadata.ok_or_else(opening)?.answer(question, within).await
        }
        .boxed()
    }

    /// What this broker tells the metadata of itself.
    pub fn facts(&self) -> BrokerFacts {
        BrokerFacts {
            token: self.identity().token,
            instance: self.instance,
            gate: self.settings.gate,
            name: self.settings.name.clone(),
            peer: self.settings.peer.clone(),
            client: self.settings.client.clone(),
            rack: self.settings.rack.clone(),
        }
    }

    async fn store(&self, identity: Identity) -> Result<(), IdentityError> {
        let (disk, data_dir) = (self.place.disk.clone(), self.place.data_dir.clone());
        let store = move || identity.store(&*disk, &data_dir);
        on_lane(&self.place.executor, Lane::Checkpoint, store).await?;
        self.identity.send_replace(identity);
        self.node.send_replace(node_of(&self.settings, &identity, self.instance));
        Ok(())
    }

    fn address(&self, seed: usize) -> &str {
        self.terms.seeds[seed].as_str()
    }

    /// Asks, and says what came of it; none where nobody answered.
    fn run(&self, effect: Effect, asks: &Arc<dyn Asks>) -> BoxFuture<'_, Option<Event>> {
        let asks = asks.clone();
        async move {
            match effect {
                Effect::Probe(seed) => Some(Event::Probed(seed, self.probe(seed, &asks).await?)),
                Effect::Form(seed, form) => {
                    let asked = asks.ask_at(self.address(seed), Ask::Form(form), ANSWER_WITHIN);
                    match asked.await.ok()? {
                        Answer::Formed(answer) => Some(Event::Formed(seed, answer)),
                        _ => None,
                    }
                }
                Effect::Join { seed, cluster } => {
                    let command = Command::BrokerUp { broker: None, facts: self.facts() };
                    match self.propose_at(self.address(seed), command, &asks).await?.ok()? {
                        Change::BrokerUp(broker) => Some(Event::Joined { cluster, broker }),
                        _ => None,
                    }
                }
                Effect::Store(_) | Effect::Answer(_) => None,
            }
        }
        .boxed()
    }

    async fn probe_others(&self, asks: &Arc<dyn Asks>) {
        let others = (0..self.terms.seeds.len()).filter(|seed| Some(*seed) != self.terms.place);
        let probes = others.map(|seed| self.probe(seed, asks));
        futures_util::future::join_all(probes).await;
    }

    async fn probe(&self, seed: usize, asks: &Arc<dyn Asks>) -> Option<Probed> {
        let asked = asks.ask_at(self.address(seed), Ask::Probe, ANSWER_WITHIN).await;
        let said = match asked {
            Ok(Answer::Probed(probed)) => Ok(probed),
            Ok(_) => Err(PeerLost::Refused(PeerRefusal::Malformed)),
            Err(error) => Err(error),
        };
        let silence = |lost: &PeerLost| match lost {
            PeerLost::Refused(refusal) => Silence::Refused(*refusal),
            PeerLost::Unreachable | PeerLost::Broken => Silence::Unreachable,
        };
        let told = said.as_ref().map_err(silence);
        self.now_waiting().heard(seed, told, Instant::now());
        let probed = match said {
            Ok(probed) => probed,
            Err(error) => {
                tracing::debug!(seed = self.address(seed), %error, "a seed was not reached");
                return None;
            }
        };
        if probed.cluster == self.identity().cluster && probed.broker != BrokerId(0) {
            self.note(probed.broker, &probed.peer_address);
        }
        Some(probed)
    }

    /// Notes where a broker said that it is, unless the metadata knows better.
    fn note(&self, broker: BrokerId, address: &str) {
        let catalog = self.metadata().as_ref().map(MetadataClient::catalog).unwrap_or_default();
        if catalog.brokers.get(&broker).is_some_and(|card| card.facts.is_some()) {
            return;
        }
        self.directory.send_if_modified(|directory| {
            let is_new = directory.get(&broker).is_none_or(|known| known != address);
            if is_new {
                Arc::make_mut(directory).insert(broker, address.to_owned());
            }
            is_new
        });
    }

    /// Keeps the directory, and what the metadata knows of this broker, as they are to be.
    async fn follow(&self, metadata: &MetadataClient, asks: &Arc<dyn Asks>) {
        let mut catalogs = metadata.watch();
        // Before clusters nobody tells what it is.
        let (mut is_known, mut told) = (self.settings.gate < GATE_CLUSTER, None);
        loop {
            let catalog = catalogs.borrow_and_update().clone();
            self.note_catalog(&catalog);
            self.keep_known(&catalog).await;
            if catalog.cluster != 0 && !self.identity().is_opened {
                let opened = Identity { is_opened: true, ..self.identity() };
                if let Err(error) = self.store(opened).await {
                    tracing::warn!(%error, "it was not noted that the metadata is open");
                }
            }
            let finds_all =
                catalog.cluster != 0 && catalog.brokers.values().all(|c| c.facts.is_some());
            if is_known && finds_all {
                if catalogs.changed().await.is_err() {
                    return;
                }
                continue;
            }
            // Before the metadata can be read, its voters have to find each other.
            let probes = self.probe_others(asks);
            let registers = async {
                let here = Some(self.identity().broker);
                if is_known {
                    Ok(())
                } else {
                    metadata.register(here, self.facts()).await.map(drop)
                }
            };
            let (_, registered) = tokio::join!(probes, registers);
            if let Err(error) = &registered
                && told.as_ref() != Some(error)
            {
                tracing::warn!(%error, "the metadata does not know of this start yet");
            }
            told = registered.err();
            is_known = told.is_none();
            let pause = tokio::time::sleep(ASK_EVERY);
            tokio::select! {
                biased;
                changed = catalogs.changed() => if changed.is_err() { return },
                () = pause => {}
            }
        }
    }

    /// Writes down where the others are, where that has changed.
    async fn keep_known(&self, catalog: &Catalog) {
        let known = Known::of(catalog);
        if known.cluster != self.identity().cluster
            || known == *self.now_known()
            || !self.is_current(catalog)
        {
            return;
        }
        let (disk, data_dir) = (self.place.disk.clone(), self.place.data_dir.clone());
        let kept = known.clone();
        let store = move || kept.store(&*disk, &data_dir);
        match on_lane(&self.place.executor, Lane::Checkpoint, store).await {
            Ok(()) => *self.now_known() = known,
            Err(error) => tracing::warn!(%error, "it was not noted where the others are"),
        }
    }

    /// Whether the metadata shows this very start. What an earlier one kept is newer than what comes
    /// before that in the log, where others may not be named yet.
    fn is_current(&self, catalog: &Catalog) -> bool {
        let card = catalog.brokers.get(&self.identity().broker);
        let facts = card.and_then(|card| card.facts.as_ref());
        facts.is_some_and(|facts| facts.instance == self.instance)
    }

    /// What the metadata says of a broker's address is newer than what it said itself before. Who
    /// lost its data and came back as another is found there no more.
    fn note_catalog(&self, catalog: &Catalog) {
        self.directory.send_if_modified(|directory| {
            let there = catalog.brokers.values().filter(|card| !catalog.is_succeeded(card.id));
            let told = there.filter_map(|card| {
                let facts = card.facts.as_ref()?;
                Some((card.id, facts.peer.as_str().to_owned()))
            });
            let mut next = BTreeMap::clone(directory);
            // Who was removed is found no more.
            if catalog.cluster != 0 {
                next.retain(|broker, _| catalog.brokers.contains_key(broker));
            }
            next.retain(|broker, _| !catalog.is_succeeded(*broker));
            next.extend(told);
            let is_new = next != **directory;
            if is_new {
                *directory = Arc::new(next);
            }
            is_new
        });
    }
}

fn random(entropy: &dyn Entropy) -> u128 {
    let mut bytes = [0; 16];
    entropy.fill(&mut bytes);
    u128::from_le_bytes(bytes).max(1)
}

fn node_of(settings: &ClusterSettings, identity: &Identity, instance: u64) -> Node {
    let Identity { cluster, broker, .. } = *identity;
    Node { cluster, broker, instance, name: settings.name.clone() }
}

/// Where others were, `here` aside.
fn directory_of(known: &Known, here: BrokerId) -> Directory {
    let others = known.brokers.iter().filter(|(broker, _)| **broker != here);
    Arc::new(others.map(|(broker, it)| (*broker, it.peer.as_str().to_owned())).collect())
}

fn terms_of(settings: &ClusterSettings, cluster: u128) -> Terms {
    let seeds: Vec<_> = settings.seeds.iter().map(|seed| seed.as_str()).collect();
    Terms {
        place: settings.seeds.iter().position(|seed| *seed == settings.peer),
        voters: settings.metadata_voters,
        cluster,
        seeds_hash: xxh64(seeds.join("\n").as_bytes(), 0),
        seeds: settings.seeds.clone(),
    }
}

/// What keeps a broker waiting, told once it has done so for a while.
#[derive(Default)]
struct Worry {
    concern: Option<(Concern, Instant)>,
    is_told: bool,
}

impl Worry {
    fn about(&mut self, concern: Option<Concern>) {
        let known = self.concern.as_ref().map(|(known, _)| known);
        if concern.as_ref() != known {
            self.concern = concern.map(|concern| (concern, Instant::now()));
            self.is_told = false;
        }
        if let Some((concern, since)) = &self.concern
            && !self.is_told
            && since.elapsed() >= CONCERN_AFTER
        {
            self.is_told = true;
            tracing::warn!(%concern, "this broker does not belong to a cluster yet");
        }
    }
}

#[cfg(test)]
mod tests;
