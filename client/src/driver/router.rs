//! Which broker leads a partition, as far as brokers have told: a pure table.
//!
//! Owns: the brokers of the cluster, the leaders of the topics that the client uses.
//! Never: connects or asks; says where to go, and when nobody knows.
//! Invariant: what was said in an older term changes nothing; the leaders of a term differ only
//! by one that was denied since.

use crate::config::Endpoint;
use std::collections::BTreeMap;
use weir_protocol::frame::{MetadataPage, TopicView};
use weir_protocol::types::{BrokerId, Name, Term, TopicId};

/// Where a lane goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// To this broker.
    Broker(BrokerId),
    /// To whatever broker is connected: they tell nothing of each other.
    Any,
    /// Nowhere, until a leader is known.
    Unknown,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Leader {
    broker: Option<BrokerId>,
    term: Term,
}

#[derive(Debug, Default)]
struct Topic {
    id: TopicId,
    /// By number of the partition.
    leaders: Vec<Leader>,
    /// By number of the partition: who holds a replica.
    replicas: Vec<Vec<BrokerId>>,
}

/// What brokers have told of their cluster.
#[derive(Debug, Default)]
pub(crate) struct Router {
    /// With their addresses, where those are of use.
    brokers: BTreeMap<BrokerId, Option<Endpoint>>,
    topics: BTreeMap<Name, Topic>,
}

impl Router {
    pub(crate) fn home(&self, topic: &Name, partition: u32) -> Home {
        let leader = self
            .topics
            .get(topic)
            .and_then(|topic| topic.leaders.get(partition as usize))
            .and_then(|leader| leader.broker);
        match leader {
            Some(broker) if self.brokers.contains_key(&broker) => Home::Broker(broker),
            _ if self.brokers.is_empty() => Home::Any,
            // With one broker there is nowhere else to go.
            _ => match self.brokers.keys().next() {
                Some(only) if self.brokers.len() == 1 => Home::Broker(*only),
                _ => Home::Unknown,
            },
        }
    }

    /// Where a lane goes that any replica may serve: to one on a broker that is `connected`, or else to
    /// the leader, or where nobody is known to lead to any that can be reached.
    pub(crate) fn near(
        &self,
        topic: &Name,
        partition: u32,
        connected: impl Fn(BrokerId) -> bool,
    ) -> Home {
        let known = self.topics.get(topic);
        let replicas = known.and_then(|topic| topic.replicas.get(partition as usize));
        let replicas = replicas.map_or(&[][..], Vec::as_slice);
        let home = self.home(topic, partition);
        match replicas.iter().find(|broker| connected(**broker)) {
            Some(near) => Home::Broker(*near),
            None if home != Home::Unknown => home,
            None => {
                let reachable = replicas.iter().find(|broker| self.address(**broker).is_some());
                reachable.map_or(Home::Unknown, |broker| Home::Broker(*broker))
            }
        }
    }

    /// Whether there is more than one broker to go to.
    pub(crate) fn has_several(&self) -> bool {
        self.addresses().nth(1).is_some()
    }

    /// Where a broker can be reached, if that is known.
    pub(crate) fn address(&self, broker: BrokerId) -> Option<&Endpoint> {
        self.brokers.get(&broker)?.as_ref()
    }

    /// Every address that was told, by broker.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &Endpoint> {
        self.brokers.values().flatten()
    }

    /// Forgets everything: this is another cluster.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Forgets the topics that nobody uses any more.
    pub(crate) fn retain(&mut self, used: impl Fn(&Name) -> bool) {
        self.topics.retain(|name, _| used(name));
    }

    /// Takes in a page, but for topics that are not `used`. True: some leader is known that was
    /// not.
    pub(crate) fn note_page(&mut self, page: &MetadataPage, used: impl Fn(&Name) -> bool) -> bool {
        if page.brokers.is_empty() {
            return false;
        }
        let brokers = page.brokers.iter().map(|broker| {
            let endpoint = Endpoint { host: broker.host.clone(), port: broker.port };
            (broker.id, Some(endpoint).filter(|endpoint| !endpoint.host.is_empty()))
        });
        let brokers: BTreeMap<_, _> = brokers.collect();
        let mut news = self.brokers != brokers;
        self.brokers = brokers;
        for view in page.topics.iter().filter(|view| used(&view.name)) {
            news |= self.note_topic(view);
        }
        news
    }

    fn note_topic(&mut self, view: &TopicView) -> bool {
        let topic = self.topics.entry(view.name.clone()).or_default();
        if topic.id != view.id {
            *topic = Topic { id: view.id, ..Topic::default() };
        }
        let mut news = false;
        for partition in &view.partitions {
            let number = partition.partition.0 as usize;
            if number >= view.partitions.len() {
                continue;
            }
            if number >= topic.leaders.len() {
                topic.leaders.resize(number + 1, Leader::default());
                topic.replicas.resize(number + 1, Vec::new());
            }
            topic.replicas[number].clone_from(&partition.replicas);
            let told = Leader { broker: partition.leader, term: partition.term };
            news |= topic.leaders[number].note(told);
        }
        news
    }

    /// This broker leads in this term. True: that was not known.
    pub(crate) fn note_leads(
        &mut self,
        (topic, partition): (&Name, u32),
        broker: BrokerId,
        term: Term,
    ) -> bool {
        let known = self.topics.get_mut(topic);
        let leader = known.and_then(|topic| topic.leaders.get_mut(partition as usize));
        leader.is_some_and(|leader| leader.note(Leader { broker: Some(broker), term }))
    }

    /// This broker says that it does not lead, and perhaps who does. Returns the term of another that
    /// is known to lead, whoever told of it.
    pub(crate) fn note_denial(
        &mut self,
        (topic, partition): (&Name, u32),
        denies: BrokerId,
        hint: Option<(BrokerId, Term)>,
    ) -> Option<Term> {
        let leader = self.topics.get_mut(topic)?.leaders.get_mut(partition as usize)?;
        if leader.broker == Some(denies) {
            leader.broker = None;
        }
        if let Some((broker, term)) = hint.filter(|(broker, _)| *broker != denies) {
            leader.note(Leader { broker: Some(broker), term });
        }
        leader.broker.map(|_| leader.term)
    }
}

impl Leader {
    /// True: somebody is known to lead who was not.
    fn note(&mut self, told: Self) -> bool {
        let newer = told.term > self.term;
        let named = told.term == self.term && self.broker.is_none() && told.broker.is_some();
        if newer || named {
            *self = told;
        }
        (newer || named) && told.broker.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_protocol::frame::{BrokerView, PartitionView, TopicConfig};
    use weir_protocol::types::{Offset, PartitionId, RequestId};

    fn name() -> Name {
        Name::new("orders").unwrap()
    }

    fn page(brokers: u64, topic: u64, leaders: &[(u64, u64)]) -> MetadataPage {
        let partition = |(number, (leader, term)): (usize, &(u64, u64))| PartitionView {
            partition: PartitionId(number as u32),
            leader: Some(BrokerId(*leader)).filter(|leader| leader.0 > 0),
            log_start: Offset(0),
            high_watermark: Offset(0),
            bytes: 0,
            term: Term(*term),
            replicas: Vec::new(),
        };
        let partitions: Vec<_> = leaders.iter().enumerate().map(partition).collect();
        let config = TopicConfig { partitions: leaders.len() as u32, ..TopicConfig::default() };
        let broker = |id: u64| BrokerView {
            id: BrokerId(id),
            host: format!("b{id}"),
            port: 1,
            name: String::new(),
            rack: String::new(),
        };
        MetadataPage {
            request: RequestId(1),
            more: false,
            topics: vec![TopicView { name: name(), id: TopicId(topic), config, partitions }],
            brokers: (1..=brokers).map(broker).collect(),
        }
    }

    fn told(page: &MetadataPage) -> Router {
        let mut router = Router::default();
        router.note_page(page, |_| true);
        router
    }

    #[test]
    fn a_broker_that_tells_of_no_other_is_home_to_all() {
        assert_eq!(told(&page(0, 1, &[(2, 0)])).home(&name(), 0), Home::Any);
        assert_eq!(told(&page(1, 1, &[(0, 0)])).home(&name(), 0), Home::Broker(BrokerId(1)));
        let router = told(&page(3, 1, &[(2, 5), (0, 4)]));
        assert_eq!(router.home(&name(), 0), Home::Broker(BrokerId(2)));
        assert_eq!(router.home(&name(), 1), Home::Unknown);
        assert_eq!(router.home(&name(), 2), Home::Unknown, "a partition that was added");
    }

    #[test]
    fn the_higher_term_wins_whoever_says_it() {
        let mut router = told(&page(3, 1, &[(2, 5)]));
        assert!(!router.note_page(&page(3, 1, &[(1, 4)]), |_| true), "an old page");
        assert_eq!(router.home(&name(), 0), Home::Broker(BrokerId(2)));
        assert!(router.note_page(&page(3, 1, &[(3, 6)]), |_| true));
        assert_eq!(router.home(&name(), 0), Home::Broker(BrokerId(3)));
        let hint = Some((BrokerId(2), Term(5)));
        let known = router.note_denial((&name(), 0), BrokerId(1), hint);
        assert_eq!(known, Some(Term(6)), "an old hint");
        assert_eq!(router.home(&name(), 0), Home::Broker(BrokerId(3)));
        router.note_page(&page(3, 2, &[(1, 1)]), |_| true);
        assert_eq!(router.home(&name(), 0), Home::Broker(BrokerId(1)), "a topic made anew");
    }

    #[test]
    fn a_reader_goes_to_a_replica_that_is_near_or_else_to_the_leader() {
        let mut told_page = page(4, 1, &[(2, 5), (0, 5)]);
        for partition in &mut told_page.topics[0].partitions {
            partition.replicas = [1, 2, 3].map(BrokerId).to_vec();
        }
        let mut router = told(&told_page);
        let near = |router: &Router, partition, here: u64| {
            router.near(&name(), partition, |broker| broker == BrokerId(here))
        };
        assert_eq!(near(&router, 0, 3), Home::Broker(BrokerId(3)));
        assert_eq!(near(&router, 0, 4), Home::Broker(BrokerId(2)), "no replica is there");
        assert_eq!(near(&router, 1, 4), Home::Broker(BrokerId(1)), "nobody leads, all can serve");
        assert!(router.note_leads((&name(), 0), BrokerId(1), Term(6)));
        assert!(!router.note_leads((&name(), 0), BrokerId(3), Term(6)), "one leads in a term");
        assert_eq!(router.home(&name(), 0), Home::Broker(BrokerId(1)));
        assert_eq!(near(&Router::default(), 0, 1), Home::Any);
    }

    #[test]
    fn a_denial_tells_of_whoever_else_is_known_to_lead() {
        let mut router = told(&page(3, 1, &[(1, 5)]));
        let hint = |broker| Some((BrokerId(broker), Term(6)));
        let mut deny = |denies, hint| router.note_denial((&name(), 0), BrokerId(denies), hint);
        assert_eq!(deny(1, hint(2)), Some(Term(6)));
        assert_eq!(deny(1, hint(2)), Some(Term(6)), "for whoever else was there");
        assert_eq!(deny(2, hint(1)), Some(Term(6)), "of no newer term");
        assert_eq!(deny(2, None), Some(Term(6)));
        assert_eq!(deny(1, None), None, "each has denied it");
        assert_eq!(deny(2, hint(2)), None, "it denies itself");
        assert_eq!(router.home(&name(), 0), Home::Unknown);
    }
}
