//! Topics and brokers as clients see them.
//!
//! Owns: who is said to lead a partition, and how much of a page is whose.
//! Never: asks another broker: what it does not know it does not say.

use super::Catalog;
use super::PartitionHere;
use super::changes::{config_of, unknown};
use crate::cluster::leaders::Leader;
use crate::partition::{PartitionHandle, PartitionView};
use crate::replication::metadata::{BrokerFacts, Catalog as Topics, Partition, Topic};
use std::net::SocketAddr;
use tokio::time::Instant;
use weir_protocol::frame::{
    BrokerView, Metadata as MetadataRequest, MetadataPage, PartitionView as WirePartition, Refusal,
    TopicView,
};
use weir_protocol::limits::{
    BROKER_VIEW_BYTES_MAX, BROKERS_MAX, FIELDS_BYTES_MAX, PARTITION_VIEW_BYTES_MAX, PARTITIONS_MAX,
};
use weir_protocol::peer::Led;
use weir_protocol::types::{BrokerId, Name, Offset};

/// What the fixed part of a topic takes in a page of metadata.
const TOPIC_VIEW_BYTES: usize = 320;
/// What topics may take of a page: the brokers stand behind them.
const TOPICS_BYTES_MAX: usize =
    FIELDS_BYTES_MAX - TOPIC_VIEW_BYTES - BROKERS_MAX * BROKER_VIEW_BYTES_MAX;

impl Catalog {
    pub(super) fn page(&self, request: &MetadataRequest) -> Result<MetadataPage, Refusal> {
        let topics = self.topics();
        let brokers = self.broker_views(&topics);
        let mut page =
            MetadataPage { request: request.request, more: false, topics: Vec::new(), brokers };
        if let Some(name) = &request.topic {
            let topic = topics.topics.get(name).ok_or_else(|| unknown(name))?;
            page.topics.push(self.view_of(topic));
            return Ok(page);
        }
        let mut room = TOPICS_BYTES_MAX;
        let behind = |name: &&Name| request.after.as_ref().is_none_or(|after| *name > after);
        for (_, topic) in topics.topics.iter().filter(|(name, _)| behind(name)) {
            let bytes = TOPIC_VIEW_BYTES + topic.partitions.len() * PARTITION_VIEW_BYTES_MAX;
            let Some(left) = room.checked_sub(bytes) else {
                page.more = true;
                break;
            };
            room = left;
            page.topics.push(self.view_of(topic));
        }
        Ok(page)
    }

    /// Who leads a partition, and what it last said of it. A replica here may know more by now.
    pub(super) fn leader_of(&self, topic: &Topic, partition: &Partition) -> Option<Leader> {
        let here = self.table.partition(&topic.name, partition.id);
        let view = here.as_ref().and_then(PartitionHere::handle).map(PartitionHandle::view);
        match view {
            Some(view) if view.leading => {
                let PartitionView { term, log_start, high_watermark, bytes, .. } = view;
                let replica = here.and_then(|here| here.placed)?.replica;
                let led = Led { replica, term, log_start, high_watermark, bytes };
                Some(Leader { broker: self.rooms.broker, led })
            }
            _ => {
                let told = self.rooms.leaders.leader_of(&partition.replicas, Instant::now());
                told.map(|leader| Leader {
                    led: newest(leader.led, view.map(|view| (view.log_start, view.high_watermark))),
                    ..leader
                })
            }
        }
    }

    fn view_of(&self, topic: &Topic) -> TopicView {
        let partitions = topic.partitions.iter().map(|partition| {
            let leader = self.leader_of(topic, partition);
            let told = leader.map(|leader| leader.led);
            WirePartition {
                partition: partition.id,
                leader: leader.map(|leader| leader.broker),
                log_start: told.map(|led| led.log_start).unwrap_or_default(),
                high_watermark: told.map(|led| led.high_watermark).unwrap_or_default(),
                bytes: told.map_or(0, |led| led.bytes),
                term: told.map(|led| led.term).unwrap_or_default(),
                replicas: replicas_of(partition),
            }
        });
        TopicView {
            name: topic.name.clone(),
            id: topic.id,
            config: config_of(topic),
            partitions: partitions.collect(),
        }
    }

    fn broker_views(&self, topics: &Topics) -> Vec<BrokerView> {
        let views = topics.brokers.values().map(|card| match &card.facts {
            Some(facts) => view_of(card.id, facts),
            // A broker that is alone has nobody to tell where it is.
            None if card.id == self.rooms.broker => self.broker_view(),
            None => unknown_broker(card.id),
        });
        views.collect()
    }

    fn broker_view(&self) -> BrokerView {
        // An address that stands for all of this host is none to go to from elsewhere.
        let address = self.address.get().filter(|address| !address.ip().is_unspecified());
        BrokerView {
            id: self.rooms.broker,
            host: address.map(|address| address.ip().to_string()).unwrap_or_default(),
            port: address.map_or(0, SocketAddr::port),
            name: self.rooms.name.clone(),
            rack: String::new(),
        }
    }
}

/// What a leader told, as far as a replica here has not heard of more: `here` is its log start and
/// its high watermark.
fn newest(told: Led, here: Option<(Offset, Offset)>) -> Led {
    let (log_start, high_watermark) = here.unwrap_or_default();
    Led {
        log_start: told.log_start.max(log_start),
        high_watermark: told.high_watermark.max(high_watermark),
        ..told
    }
}

fn view_of(id: BrokerId, facts: &BrokerFacts) -> BrokerView {
    let (host, port) = facts.client.as_str().rsplit_once(':').unwrap_or_default();
    BrokerView {
        id,
        host: host.trim_matches(['[', ']']).to_owned(),
        port: port.parse().unwrap_or_default(),
        name: facts.name.to_string(),
        rack: facts.rack.to_string(),
    }
}

/// A broker of a cluster that is just formed, which has not told anything yet.
fn unknown_broker(id: BrokerId) -> BrokerView {
    BrokerView { id, host: String::new(), port: 0, name: String::new(), rack: String::new() }
}

/// Whoever should lead comes first.
fn replicas_of(partition: &Partition) -> Vec<BrokerId> {
    let mut placed: Vec<_> = partition.replicas.iter().collect();
    placed.sort_by_key(|placed| placed.replica != partition.preferred);
    let mut brokers: Vec<BrokerId> = Vec::with_capacity(placed.len());
    for placed in placed {
        if !brokers.contains(&placed.broker) {
            brokers.push(placed.broker);
        }
    }
    brokers
}

const _: () = assert!(
    TOPIC_VIEW_BYTES + PARTITIONS_MAX as usize * PARTITION_VIEW_BYTES_MAX <= TOPICS_BYTES_MAX,
    "the largest topic fits a page"
);

#[cfg(test)]
mod tests {
    use super::*;
    use weir_protocol::types::{ReplicaId, Term};

    #[test]
    fn the_numbers_of_a_partition_are_the_newest_that_are_known_here() {
        let told = |log_start, end| Led {
            replica: ReplicaId(2),
            term: Term(3),
            log_start: Offset(log_start),
            high_watermark: Offset(end),
            bytes: 9,
        };
        let here = Some((Offset(2), Offset(7)));
        assert_eq!(newest(told(0, 0), here), told(2, 7));
        assert_eq!(newest(told(4, 9), here), told(4, 9));
        assert_eq!(newest(told(0, 0), None), told(0, 0));
    }
}
