//! What connections ask of the broker.
//!
//! Owns: the answers of the catalog, and which counters they move.

use super::changes::{refusal_of, topic_refusal, unknown};
use super::{Catalog, PartitionHere, PartitionState};
use crate::cluster::leaders::Leader;
use crate::connection::Backend;
use crate::partition::PartitionHandle;
use crate::partition::limits::PRODUCER_ANONYMOUS_BIT;
use crate::replication::metadata::{Change, Command};
use crate::seams::BoxFuture;
use std::sync::{Arc, PoisonError};
use tokio::time::Duration;
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::{
    AlterTopic, CreateTopic, DeleteTopic, Metadata as MetadataRequest, MetadataPage, Refusal,
};
use weir_protocol::types::{Name, PartitionId, ProducerId};

/// What connections ask of the broker, answered by the catalog and counted by the metrics.
pub(crate) struct CatalogBackend(pub(crate) Arc<Catalog>);

impl Backend for CatalogBackend {
    fn partition(&self, topic: &Name, partition: PartitionId) -> Result<PartitionHandle, Refusal> {
        let here = self.0.table.partition(topic, partition);
        let topics = self.0.topics();
        let known = topics.topics.get(topic).ok_or_else(|| unknown(topic))?;
        let placed = known.partitions.get(partition.0 as usize).ok_or_else(|| {
            let count = known.partitions.len();
            let text = format!("topic {topic} has {count} partitions, numbered from 0");
            topic_refusal(ErrorCode::UnknownPartition, text)
        })?;
        let is_formed = placed.formed || topics.gate == 0;
        if let Some(handle) = here.as_ref().and_then(PartitionHere::handle).filter(|_| is_formed) {
            return Ok(handle.clone());
        }
        let leader = self.0.leader_of(known, placed).filter(|_| is_formed);
        Err(refusal_without(
            here.as_ref(),
            leader,
            &format!("partition {partition} of topic {topic}"),
        ))
    }

    fn register_producer(
        &self,
        name: Name,
    ) -> BoxFuture<'static, Result<(ProducerId, u32), Refusal>> {
        let catalog = self.0.clone();
        Box::pin(async move {
            let command = Command::OpenProducer { name: name.clone() };
            match catalog.metadata.propose(command).await {
                Ok(Change::Opened(producer)) => Ok((producer.id, producer.epoch)),
                Ok(other) => unreachable!("opening a producer answered {other:?}"),
                Err(error) => Err(refusal_of(&name, &error)),
            }
        })
    }

    fn anonymous_producer(&self) -> ProducerId {
        let mut random = self.0.random.lock().unwrap_or_else(PoisonError::into_inner);
        ProducerId(random.u64(1..) | PRODUCER_ANONYMOUS_BIT)
    }

    fn metadata(&self, request: &MetadataRequest) -> Result<MetadataPage, Refusal> {
        self.0.page(request)
    }

    fn create_topic(&self, request: CreateTopic) -> BoxFuture<'static, Result<(), Refusal>> {
        Box::pin(self.0.clone().create(request))
    }

    fn alter_topic(&self, request: AlterTopic) -> BoxFuture<'static, Result<(), Refusal>> {
        Box::pin(self.0.clone().alter(request))
    }

    fn delete_topic(&self, request: DeleteTopic) -> BoxFuture<'static, Result<(), Refusal>> {
        Box::pin(self.0.clone().delete(request))
    }

    fn acknowledged(&self, took: Duration) {
        self.0.rooms.metrics.publish_ack.observe(took);
    }

    fn refused(&self, topic: Option<&Name>, code: u16) {
        self.0.rooms.metrics.refused(topic, code);
    }

    fn connection_opened(&self) {
        self.0.rooms.metrics.connection_opened();
    }

    fn connection_closed(&self, reason: &'static str) {
        self.0.rooms.metrics.connection_closed(reason);
    }
}

/// Why a partition is not served here, and where else it may be.
fn refusal_without(
    here: Option<&PartitionHere>,
    leader: Option<Leader>,
    partition: &str,
) -> Refusal {
    if let Some(leader) = leader {
        let text = format!("{partition} is led by broker {}", leader.broker);
        return Refusal::not_leader(Some((leader.broker, leader.led.term)), text);
    }
    match here.map(|here| &here.state) {
        Some(PartitionState::Failed { code, reason }) => {
            topic_refusal(*code, format!("{partition}: {reason}"))
        }
        Some(PartitionState::Elsewhere) => {
            Refusal::not_leader(None, format!("{partition} has no leader that is known here"))
        }
        Some(PartitionState::Opening | PartitionState::Open(_)) | None => {
            let refusal =
                topic_refusal(ErrorCode::Recovering, format!("{partition} is being opened"));
            Refusal { retry_after_ms: 100, ..refusal }
        }
    }
}
