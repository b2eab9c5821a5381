//! Bytes to frames.

use super::DecodeError;
use super::fields::Fields;
use super::write::{ANY_REPLICA, frame_type as t};
use crate::batch::{BatchHeader, HeaderError, WIRE_SALT};
use crate::frame::{
    AlterTopic, Assignment, Auth, BrokerView, CreateTopic, DeleteTopic, Deliver, Demand,
    Durability, ErrorFrame, Frame, GoAway, Hello, Join, MemberId, Metadata, MetadataPage, Needs,
    OpenPublisher, Overflow, PartitionView, Present, Publish, Published, PublisherOpened, Refused,
    Revoke, Revoked, Settle, Settled, Start, StoredRange, StreamClosed, Subscribe, Subscribed,
    TopicConfig, TopicView, Welcome,
};
use crate::limits::{BATCH_HEADER_BYTES, PARTITIONS_MAX};
use crate::types::{
    BrokerId, Offset, PartitionId, ProducerId, RequestId, Sequence, StreamId, Term, TopicId,
};
use bytes::Bytes;

/// Bytes of one row of PUBLISHED, and of one partition and of the least broker in METADATA_PAGE.
const STORED_RANGE_BYTES: usize = 21;
const PARTITION_VIEW_BYTES: usize = 36;
const BROKER_VIEW_BYTES_MIN: usize = 16;
/// The fields of a frame bound the rows, nothing else does.
const ROWS_MAX: usize = u16::MAX as usize;

/// Decodes the fields of a frame whose CRC was checked; none for an unknown type.
pub(super) fn frame(
    frame_type: u8,
    stream: u32,
    fields: Bytes,
    batches: Bytes,
) -> Result<Option<Frame>, DecodeError> {
    let mut fields = Fields { frame_type, rest: fields };
    let has_batches = !batches.is_empty();
    let stream = StreamId(stream);
    let f = &mut fields;
    let frame = match frame_type {
        t::HELLO => Frame::Hello(hello(f)?),
        t::WELCOME => Frame::Welcome(welcome(f)?),
        t::AUTH => Frame::Auth(Auth { method: f.text("method")?, content: f.bytes("content")? }),
        t::READY => Frame::Ready,
        t::HEARTBEAT => Frame::Heartbeat,
        t::GO_AWAY => Frame::GoAway(go_away(f)?),
        t::ERROR => Frame::Error(ErrorFrame { request: request(f)?, refusal: f.refusal()? }),
        t::OPEN_PUBLISHER => Frame::OpenPublisher(open_publisher(stream, f)?),
        t::PUBLISHER_OPENED => Frame::PublisherOpened(publisher_opened(stream, f)?),
        t::PUBLISH => Frame::Publish(publish(stream, f, batches)?),
        t::PUBLISHED => Frame::Published(published(stream, f)?),
        t::REFUSED => Frame::Refused(refused(stream, f)?),
        t::GRANT => Frame::Grant(stream, f.grant()?),
        t::DEMAND => {
            Frame::Demand(stream, Demand { cost: f.u64("cost")?, largest: f.u64("largest")? })
        }
        t::REVOKE => {
            let (epoch, limit_cost) = (f.u32("epoch")?, f.u64("limit_cost")?);
            Frame::Revoke(stream, Revoke { epoch, limit_cost })
        }
        t::REVOKED => {
            let (epoch, spent_cost) = (f.u32("epoch")?, f.u64("spent_cost")?);
            Frame::Revoked(stream, Revoked { epoch, spent_cost })
        }
        t::CLOSE_STREAM => Frame::CloseStream(stream),
        t::STREAM_CLOSED => {
            let refusal = f.option("refusal", |f, _| f.refusal())?;
            Frame::StreamClosed(StreamClosed { stream, refusal })
        }
        t::SUBSCRIBE => Frame::Subscribe(subscribe(stream, f)?),
        t::SUBSCRIBED => Frame::Subscribed(subscribed(stream, f)?),
        t::DELIVER => Frame::Deliver(deliver(stream, f, batches)?),
        t::SETTLE => {
            let (upto, confirm) = (Offset(f.u64("upto")?), f.flag("confirm")?);
            Frame::Settle(Settle { stream, upto, confirm })
        }
        t::SETTLED => {
            let upto = Offset(f.u64("upto")?);
            let refusal = f.option("refusal", |f, _| f.refusal())?;
            Frame::Settled(Settled { stream, upto, refusal })
        }
        t::JOIN => Frame::Join(join(stream, f)?),
        t::ASSIGNMENT => Frame::Assignment(assignment(stream, f)?),
        t::PRESENT => Frame::Present(Present { stream, epoch: f.u64("epoch")? }),
        t::LEAVE => Frame::Leave(stream),
        t::METADATA => Frame::Metadata(Metadata {
            request: request(f)?,
            topic: f.option("topic", Fields::name)?,
            after: f.option("after", Fields::name)?,
        }),
        t::METADATA_PAGE => Frame::MetadataPage(metadata_page(f)?),
        t::CREATE_TOPIC => Frame::CreateTopic(create_topic(f)?),
        t::ALTER_TOPIC => Frame::AlterTopic(alter_topic(f)?),
        t::DELETE_TOPIC => {
            Frame::DeleteTopic(DeleteTopic { request: request(f)?, topic: f.name("topic")? })
        }
        t::DONE => Frame::Done(request(f)?),
        _ => return Ok(None),
    };
    if has_batches && !matches!(frame_type, t::PUBLISH | t::DELIVER) {
        return Err(fields.bad("batches: this frame has none"));
    }
    Ok(Some(frame))
}

fn request(f: &mut Fields) -> Result<RequestId, DecodeError> {
    f.u32("request").map(RequestId)
}

fn hello(f: &mut Fields) -> Result<Hello, DecodeError> {
    if f.u32("magic")?.to_le_bytes() != *b"WEIR" {
        return Err(f.bad("magic: is the peer a Weir client?"));
    }
    Ok(Hello {
        version_min: f.u16("version_min")?,
        version_max: f.u16("version_max")?,
        features: f.u64("features")?,
        limits: f.limits()?,
        client_name: f.text("client_name")?,
    })
}

fn welcome(f: &mut Fields) -> Result<Welcome, DecodeError> {
    Ok(Welcome {
        version: f.u16("version")?,
        features: f.u64("features")?,
        limits: f.limits()?,
        message_cost_min: f.u32("message_cost_min")?,
        cluster_id: f.u128("cluster_id")?,
        broker_id: BrokerId(f.u64("broker_id")?),
        broker_name: f.text("broker_name")?,
        auth_methods: f.text("auth_methods")?,
    })
}

fn go_away(f: &mut Fields) -> Result<GoAway, DecodeError> {
    Ok(GoAway {
        code: f.u16("code")?,
        deadline_ms: f.u32("deadline_ms")?,
        reconnect_after_ms: f.u32("reconnect_after_ms")?,
        text: f.text("text")?,
    })
}

fn open_publisher(stream: StreamId, f: &mut Fields) -> Result<OpenPublisher, DecodeError> {
    Ok(OpenPublisher {
        stream,
        request: request(f)?,
        topic: f.name("topic")?,
        partition: PartitionId(f.u32("partition")?),
        producer: f.option("producer", Fields::name)?,
        producer_id: ProducerId(f.u64("producer_id")?),
        producer_epoch: f.u32("producer_epoch")?,
    })
}

fn publisher_opened(stream: StreamId, f: &mut Fields) -> Result<PublisherOpened, DecodeError> {
    Ok(PublisherOpened {
        stream,
        request: request(f)?,
        producer_id: ProducerId(f.u64("producer_id")?),
        producer_epoch: f.u32("producer_epoch")?,
        next_sequence: Sequence(f.u64("next_sequence")?),
        log_end: Offset(f.u64("log_end")?),
        term: term_behind(f)?,
    })
}

/// The term behind the last field of an older version, whose frames end there.
fn term_behind(f: &mut Fields) -> Result<Term, DecodeError> {
    if f.rest.is_empty() { Ok(Term(0)) } else { f.u64("term").map(Term) }
}

/// The batch header among the fields of a PUBLISH, whose body has `body_len` bytes.
pub(super) fn publish_header(fields: &[u8], body_len: usize) -> Result<BatchHeader, DecodeError> {
    let fields = Bytes::copy_from_slice(fields);
    let mut fields = Fields { frame_type: t::PUBLISH, rest: fields };
    let f = &mut fields;
    let (_deadline_ms, _demand) = (f.u32("deadline_ms")?, f.u64("demand")?);
    batch_header(f, body_len)
}

fn batch_header(f: &Fields, body_len: usize) -> Result<BatchHeader, DecodeError> {
    let bytes = f.rest.first_chunk::<BATCH_HEADER_BYTES>().ok_or(f.bad("batch header"))?;
    let header = BatchHeader::decode(bytes, WIRE_SALT)?;
    if header.body_len as usize != body_len {
        return Err(HeaderError::Lengths.into());
    }
    Ok(header)
}

fn publish(stream: StreamId, f: &mut Fields, body: Bytes) -> Result<Publish, DecodeError> {
    let deadline_ms = f.u32("deadline_ms")?;
    let demand = f.u64("demand")?;
    let header = batch_header(f, body.len())?;
    Ok(Publish { stream, deadline_ms, demand, header, body })
}

fn published(stream: StreamId, f: &mut Fields) -> Result<Published, DecodeError> {
    let grant = f.grant()?;
    let count = f.count("stored", (STORED_RANGE_BYTES, ROWS_MAX))?;
    let read = |f: &mut Fields| {
        Ok(StoredRange {
            base_sequence: Sequence(f.u64("base_sequence")?),
            base_offset: Offset(f.u64("base_offset")?),
            record_count: f.u32("record_count")?,
            duplicate: f.flag("duplicate")?,
        })
    };
    let stored = (0..count).map(|_| read(f)).collect::<Result<_, DecodeError>>()?;
    Ok(Published { stream, stored, grant })
}

fn refused(stream: StreamId, f: &mut Fields) -> Result<Refused, DecodeError> {
    Ok(Refused {
        stream,
        base_sequence: Sequence(f.u64("base_sequence")?),
        record_count: f.u32("record_count")?,
        grant: f.grant()?,
        refusal: f.refusal()?,
    })
}

fn subscribe(stream: StreamId, f: &mut Fields) -> Result<Subscribe, DecodeError> {
    let request = request(f)?;
    let topic = f.name("topic")?;
    let partition = PartitionId(f.u32("partition")?);
    let subscription = f.option("subscription", Fields::name)?;
    let kind = f.u8("start")?;
    let value = f.u64("start")?;
    let start = match kind {
        0 => Start::Earliest,
        1 => Start::Latest,
        2 => Start::Offset(Offset(value)),
        3 => Start::Time(value),
        _ => return Err(f.bad("start")),
    };
    let credit = f.grant()?;
    // A frame of an older version ends here.
    let needs = if f.rest.is_empty() { Needs::default() } else { needs(f)? };
    Ok(Subscribe { stream, request, topic, partition, subscription, start, credit, needs })
}

fn needs(f: &mut Fields) -> Result<Needs, DecodeError> {
    Ok(Needs {
        any_replica: f.u8("flags")? & ANY_REPLICA != 0,
        reach: Offset(f.u64("reach")?),
        resume: Offset(f.u64("resume")?),
        epoch: if f.rest.is_empty() { 0 } else { f.u64("epoch")? },
    })
}

fn join(stream: StreamId, f: &mut Fields) -> Result<Join, DecodeError> {
    let request = request(f)?;
    let (topic, subscription) = (f.name("topic")?, f.name("subscription")?);
    let member = MemberId(f.u64("member")?);
    Ok(Join { stream, request, topic, subscription, member })
}

fn assignment(stream: StreamId, f: &mut Fields) -> Result<Assignment, DecodeError> {
    let epoch = f.u64("epoch")?;
    let count = f.count("partitions", (size_of::<u32>(), PARTITIONS_MAX as usize))?;
    let partitions = (0..count).map(|_| f.u32("partition").map(PartitionId));
    Ok(Assignment { stream, epoch, partitions: partitions.collect::<Result<_, _>>()? })
}

fn subscribed(stream: StreamId, f: &mut Fields) -> Result<Subscribed, DecodeError> {
    Ok(Subscribed {
        stream,
        request: request(f)?,
        start: Offset(f.u64("start")?),
        log_start: Offset(f.u64("log_start")?),
        high_watermark: Offset(f.u64("high_watermark")?),
        skipped: f.u64("skipped")?,
        term: term_behind(f)?,
    })
}

fn deliver(stream: StreamId, f: &mut Fields, batches: Bytes) -> Result<Deliver, DecodeError> {
    Ok(Deliver {
        stream,
        salt: f.u64("salt")?,
        record_count: f.u32("record_count")?,
        high_watermark: Offset(f.u64("high_watermark")?),
        batches: vec![batches],
    })
}

fn metadata_page(f: &mut Fields) -> Result<MetadataPage, DecodeError> {
    let request = request(f)?;
    let more = f.flag("more")?;
    let count = f.u16("topics")?;
    let mut topics = (0..count).map(|_| topic_view(f)).collect::<Result<Vec<_>, _>>()?;
    // A page of a broker that does not tell ends here.
    let brokers = if f.rest.is_empty() { Vec::new() } else { broker_views(f)? };
    if !brokers.is_empty() {
        for partition in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
            partition.term = Term(f.u64("term")?);
            let count = f.u8("replicas")?;
            partition.replicas =
                (0..count).map(|_| replica(f, &brokers)).collect::<Result<_, _>>()?;
        }
        for topic in &mut topics {
            topic.config.replicas = replicas(f)?;
        }
    }
    Ok(MetadataPage { request, more, topics, brokers })
}

fn broker_views(f: &mut Fields) -> Result<Vec<BrokerView>, DecodeError> {
    let count = usize::from(f.u16("brokers")?);
    if count * BROKER_VIEW_BYTES_MIN > f.rest.len() {
        return Err(f.bad("brokers"));
    }
    let read = |f: &mut Fields| {
        Ok(BrokerView {
            id: BrokerId(f.u64("broker")?),
            host: f.text("host")?,
            port: f.u16("port")?,
            name: f.text("broker name")?,
            rack: f.text("rack")?,
        })
    };
    (0..count).map(|_| read(f)).collect()
}

/// A broker by its place in the list.
fn replica(f: &mut Fields, brokers: &[BrokerView]) -> Result<BrokerId, DecodeError> {
    let place = usize::from(f.u8("replica")?);
    brokers.get(place).map(|broker| broker.id).ok_or(f.bad("replica"))
}

fn topic_view(f: &mut Fields) -> Result<TopicView, DecodeError> {
    let name = f.name("topic")?;
    let id = TopicId(f.u64("topic id")?);
    let config = config(f)?;
    let count = f.count("partitions", (PARTITION_VIEW_BYTES, ROWS_MAX))?;
    let read = |f: &mut Fields| {
        Ok(PartitionView {
            partition: PartitionId(f.u32("partition")?),
            leader: Some(f.u64("leader")?).filter(|id| *id != u64::MAX).map(BrokerId),
            log_start: Offset(f.u64("log_start")?),
            high_watermark: Offset(f.u64("high_watermark")?),
            bytes: f.u64("bytes")?,
            term: Term(0),
            replicas: Vec::new(),
        })
    };
    let partitions = (0..count).map(|_| read(f)).collect::<Result<_, DecodeError>>()?;
    Ok(TopicView { name, id, config, partitions })
}

fn durability(f: &mut Fields, field: &'static str) -> Result<Durability, DecodeError> {
    match f.u8(field)? {
        0 => Ok(Durability::Fsync),
        1 => Ok(Durability::Memory),
        _ => Err(f.bad(field)),
    }
}

fn overflow(f: &mut Fields, field: &'static str) -> Result<Overflow, DecodeError> {
    match f.u8(field)? {
        0 => Ok(Overflow::Backpressure),
        1 => Ok(Overflow::Reject),
        2 => Ok(Overflow::Expire),
        _ => Err(f.bad(field)),
    }
}

fn config(f: &mut Fields) -> Result<TopicConfig, DecodeError> {
    Ok(TopicConfig {
        partitions: f.u32("partitions")?,
        durability: durability(f, "durability")?,
        overflow: overflow(f, "overflow")?,
        max_bytes: f.u64("max_bytes")?,
        max_age_ms: f.u64("max_age_ms")?,
        replicas: 0,
    })
}

/// Stands where a peer that does not tell has ended its fields.
fn replicas(f: &mut Fields) -> Result<u8, DecodeError> {
    if f.rest.is_empty() { Ok(0) } else { f.u8("replicas") }
}

fn create_topic(f: &mut Fields) -> Result<CreateTopic, DecodeError> {
    let (request, topic, config) = (request(f)?, f.name("topic")?, config(f)?);
    let config = TopicConfig { replicas: replicas(f)?, ..config };
    Ok(CreateTopic { request, topic, config })
}

fn alter_topic(f: &mut Fields) -> Result<AlterTopic, DecodeError> {
    Ok(AlterTopic {
        request: request(f)?,
        topic: f.name("topic")?,
        partitions: f.option("partitions", Fields::u32)?,
        durability: f.option("durability", durability)?,
        overflow: f.option("overflow", overflow)?,
        max_bytes: f.option("max_bytes", Fields::u64)?,
        max_age_ms: f.option("max_age_ms", Fields::u64)?,
        replicas: if f.rest.is_empty() { None } else { f.option("replicas", Fields::u8)? },
    })
}
