//! Publishes: from the frame to the partition's mailbox.
//!
//! Owns: one publisher stream's identity, credit and violations.
//! Never: hands a batch on that is not paid for and checked whole; never waits for a partition.

use super::Connection;
use super::streams::Identity;
use crate::budget::Draft;
use crate::flow::{FlowStream, Overspend, PartitionKey, Reservation};
use crate::partition::{PartitionHandle, PublishRequest, Request};
use crate::reply;
use std::collections::VecDeque;
use tokio::time::{Duration, Instant};
use weir_protocol::batch::{BatchHeader, BatchType, RecordIter};
use weir_protocol::codec::PublishHead;
use weir_protocol::error_code::{ErrorCode, Scope};
use weir_protocol::frame::{Demand, Publish, Refusal, Revoked};
use weir_protocol::limits::BATCH_OVERHEAD_BYTES;
use weir_protocol::types::StreamId;

/// A stream that oversteps its credit this often within [`VIOLATIONS_WITHIN`] is ended.
const VIOLATIONS_MAX: usize = 3;
const VIOLATIONS_WITHIN: Duration = Duration::from_secs(10);

/// One open publisher stream.
pub(super) struct PublisherStream {
    pub(super) key: PartitionKey,
    pub(super) partition: PartitionHandle,
    pub(super) identity: Identity,
    pub(super) flow: FlowStream,
    /// The limit that the client has been told: a higher one that still waits to be written does
    /// not count, so that a client that does not read cannot go on.
    pub(super) told: u64,
    pub(super) spent: u64,
    violations: VecDeque<Instant>,
    _memory: Draft,
}

impl PublisherStream {
    pub(super) fn new(
        key: PartitionKey,
        partition: PartitionHandle,
        identity: Identity,
        flow: FlowStream,
        memory: Draft,
    ) -> Self {
        Self {
            key,
            partition,
            identity,
            flow,
            told: 0,
            spent: 0,
            violations: VecDeque::new(),
            _memory: memory,
        }
    }

    /// Whether the credit covers the memory that the publish needs while it is read.
    pub(super) fn covers(&self, head: &PublishHead) -> bool {
        head.header.cost() <= self.told.saturating_sub(self.spent)
    }

    fn spend(&mut self, cost: u64, behind: u64) -> Result<Reservation, Overspend> {
        if self.spent + cost > self.told {
            return Err(Overspend { cost, spent: self.spent, limit: self.told });
        }
        let reservation = self.flow.spend(cost, behind)?;
        self.spent += cost;
        Ok(reservation)
    }

    /// Notes a violation; says whether it is one too many.
    fn violates(&mut self, now: Instant) -> bool {
        self.violations.push_back(now);
        let expired = |at: &Instant| now.duration_since(*at) > VIOLATIONS_WITHIN;
        while self.violations.front().is_some_and(expired) {
            self.violations.pop_front();
        }
        self.violations.len() >= VIOLATIONS_MAX
    }
}

impl Connection {
    /// One batch has arrived whole.
    pub(super) fn on_publish(&mut self, publish: Publish, now: Instant) -> Result<(), Refusal> {
        let (stream, header) = (publish.stream, publish.header);
        let message_bytes_max = self.services.limits.message_bytes_max as usize;
        let Some(publisher) = self.streams.publisher_mut(stream) else {
            return self.on_stray(stream);
        };
        let reservation = match publisher.spend(header.cost(), publish.demand) {
            Ok(reservation) => reservation,
            // Its stream was ended for its silence; what it had sent before is answered by that.
            Err(_) if publisher.flow.is_over() => return Ok(()),
            Err(overspend) => {
                self.on_overspend(stream, &header, overspend, now);
                return Ok(());
            }
        };
        let reply = self.outbox.publish_reply(stream, header.base_sequence, header.record_count);
        if let Err(refusal) = check(&publish, publisher.identity, message_bytes_max) {
            reply.refused(refusal);
            return Ok(());
        }
        let deadline = match publish.deadline_ms {
            0 => None,
            ms => Some(now + Duration::from_millis(u64::from(ms))),
        };
        let body = publish.body;
        let request = PublishRequest { header, body, deadline, reservation, reply };
        if let Err(Request::Publish(request)) =
            publisher.partition.try_send(Request::Publish(request))
        {
            // A paid publish always finds room, so the partition has ended: it is not stored.
            assert!(publisher.partition.is_closed(), "a paid publish found the mailbox full");
            request.reply.refused(reply::partition_gone(&publisher.key));
        }
        Ok(())
    }

    /// The head of a publish whose body is thrown away, because no credit covers it.
    pub(super) fn on_unpaid(&mut self, head: &PublishHead, now: Instant) -> Result<(), Refusal> {
        let Some(publisher) = self.streams.publisher(head.stream) else {
            return self.on_stray(head.stream);
        };
        let cost = head.header.cost();
        let overspend = Overspend { cost, spent: publisher.spent, limit: publisher.told };
        self.on_overspend(head.stream, &head.header, overspend, now);
        Ok(())
    }

    fn on_overspend(
        &mut self,
        stream: StreamId,
        header: &BatchHeader,
        overspend: Overspend,
        now: Instant,
    ) {
        let refusal = reply::overspend(overspend);
        self.outbox.refuse(stream, header.base_sequence, header.record_count, refusal.clone());
        let ends = self.streams.publisher_mut(stream).is_some_and(|p| p.violates(now));
        if ends {
            // Dropping the stream returns what credit it has left.
            self.streams.end(stream);
            let refusal = Refusal { scope: Scope::Stream, ..refusal };
            self.outbox.close_publisher(stream, Some(refusal));
        }
    }

    /// A frame for a stream that is not what the frame is for. What was on its way to a stream
    /// that has ended is no error; anything else is.
    pub(super) fn on_stray(&self, stream: StreamId) -> Result<(), Refusal> {
        if self.streams.has_ended(stream) {
            return Ok(());
        }
        let text = format!("stream {stream} is not open for this; open it and wait for the answer");
        Err(reply::connection(ErrorCode::BadState, text))
    }

    pub(super) fn on_demand(&mut self, stream: StreamId, demand: Demand) -> Result<(), Refusal> {
        let Some(publisher) = self.streams.publisher(stream) else {
            return self.on_stray(stream);
        };
        let pool_cost = self.services.flow.pool_cost();
        if demand.largest > pool_cost {
            // It could wait for ever without learning why.
            self.streams.end(stream);
            self.outbox
                .close_publisher(stream, Some(reply::beyond_pool(demand.largest, pool_cost)));
            return Ok(());
        }
        publisher.flow.demand(demand.cost, demand.largest);
        Ok(())
    }

    pub(super) fn on_revoked(&mut self, stream: StreamId, revoked: Revoked) -> Result<(), Refusal> {
        let Some(publisher) = self.streams.publisher_mut(stream) else {
            return self.on_stray(stream);
        };
        publisher.flow.revoked(revoked.spent_cost);
        publisher.told = publisher.told.min(publisher.flow.grant().limit_cost);
        Ok(())
    }

    /// A grant is on its way to the client, which may use it from now on.
    pub(super) fn on_told(&mut self, stream: StreamId, limit_cost: u64) {
        if let Some(publisher) = self.streams.publisher_mut(stream) {
            publisher.told = publisher.told.max(limit_cost);
        }
    }
}

/// What is wrong with a batch, if anything is.
fn check(publish: &Publish, identity: Identity, message_bytes_max: usize) -> Result<(), Refusal> {
    let (header, body) = (&publish.header, &publish.body[..]);
    check_header(header, identity, message_bytes_max)?;
    header.check_body(body).map_err(|error| reply::batch(&error))?;
    let records = RecordIter::new(header, body).map_err(|error| reply::body(&error))?;
    records.clone().validate().map_err(|error| reply::body(&error))?;
    if body.len() <= message_bytes_max {
        return Ok(());
    }
    for record in records {
        let message = record.map_err(|error| reply::body(&error))?.message;
        let headers = message.headers().map(|(name, content)| name.len() + content.len());
        let key = message.key.map_or(0, <[u8]>::len);
        let bytes = key + headers.sum::<usize>() + message.value.len();
        if bytes > message_bytes_max {
            return Err(reply::too_large(bytes, message_bytes_max));
        }
    }
    Ok(())
}

fn check_header(
    header: &BatchHeader,
    identity: Identity,
    message_bytes_max: usize,
) -> Result<(), Refusal> {
    let bad = |text: &str| Err(Refusal::new(ErrorCode::BadRequest, text));
    if header.batch_type != BatchType::Data || header.control_len != 0 {
        return bad("a publish carries one batch of type data, without a control section");
    }
    if header.record_count == 0 {
        return bad("the batch has no record");
    }
    let of_header = (header.producer_id, header.producer_epoch);
    if of_header != (identity.producer_id, identity.producer_epoch) {
        return bad("the batch names another producer than the one its stream was opened for");
    }
    if header.wire_len() > message_bytes_max + BATCH_OVERHEAD_BYTES {
        return Err(reply::too_large(header.wire_len(), message_bytes_max + BATCH_OVERHEAD_BYTES));
    }
    // Without a codec the payload is what it unpacks to: later readers go by this number.
    if header.payload_raw_len != header.body_len - header.table_len {
        return bad("payload_raw_len is not the length of the payload");
    }
    Ok(())
}
