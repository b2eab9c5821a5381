//! Frames to bytes.

use super::fields::PutFields;
use super::{EncodeBuf, crc_of};
use crate::batch::WIRE_SALT;
use crate::frame::{
    AlterTopic, Assignment, CreateTopic, Deliver, Frame, GoAway, Hello, MetadataPage, Needs,
    OpenPublisher, Publish, Published, PublisherOpened, Refused, Start, Subscribe, Subscribed,
    TopicConfig, TopicView, Welcome,
};
use crate::limits::FRAME_HEADER_BYTES;
use crate::types::{BrokerId, Term};
use bytes::{BufMut, Bytes, BytesMut};

/// Frame types on the wire.
pub(super) mod frame_type {
    pub(in crate::codec) const HELLO: u8 = 0x01;
    pub(in crate::codec) const WELCOME: u8 = 0x02;
    pub(in crate::codec) const AUTH: u8 = 0x03;
    pub(in crate::codec) const READY: u8 = 0x04;
    pub(in crate::codec) const HEARTBEAT: u8 = 0x05;
    pub(in crate::codec) const GO_AWAY: u8 = 0x06;
    pub(in crate::codec) const ERROR: u8 = 0x07;
    pub(in crate::codec) const OPEN_PUBLISHER: u8 = 0x10;
    pub(in crate::codec) const PUBLISHER_OPENED: u8 = 0x11;
    pub(in crate::codec) const PUBLISH: u8 = 0x12;
    pub(in crate::codec) const PUBLISHED: u8 = 0x13;
    pub(in crate::codec) const REFUSED: u8 = 0x14;
    pub(in crate::codec) const GRANT: u8 = 0x15;
    pub(in crate::codec) const DEMAND: u8 = 0x16;
    pub(in crate::codec) const REVOKE: u8 = 0x17;
    pub(in crate::codec) const REVOKED: u8 = 0x18;
    pub(in crate::codec) const CLOSE_STREAM: u8 = 0x19;
    pub(in crate::codec) const STREAM_CLOSED: u8 = 0x1a;
    pub(in crate::codec) const SUBSCRIBE: u8 = 0x20;
    pub(in crate::codec) const SUBSCRIBED: u8 = 0x21;
    pub(in crate::codec) const DELIVER: u8 = 0x22;
    pub(in crate::codec) const SETTLE: u8 = 0x23;
    pub(in crate::codec) const SETTLED: u8 = 0x24;
    pub(in crate::codec) const JOIN: u8 = 0x25;
    pub(in crate::codec) const ASSIGNMENT: u8 = 0x26;
    pub(in crate::codec) const PRESENT: u8 = 0x27;
    pub(in crate::codec) const LEAVE: u8 = 0x28;
    pub(in crate::codec) const METADATA: u8 = 0x30;
    pub(in crate::codec) const METADATA_PAGE: u8 = 0x31;
    pub(in crate::codec) const CREATE_TOPIC: u8 = 0x32;
    pub(in crate::codec) const ALTER_TOPIC: u8 = 0x33;
    pub(in crate::codec) const DELETE_TOPIC: u8 = 0x34;
    pub(in crate::codec) const DONE: u8 = 0x35;
}
use frame_type as t;

/// Of the flags of SUBSCRIBE: any replica may serve.
pub(super) const ANY_REPLICA: u8 = 1;

/// Appends a frame whose fields `put` writes, and its batches.
pub(crate) fn whole(
    out: &mut EncodeBuf,
    (frame_type, stream): (u8, u32),
    batches: &[Bytes],
    put: impl FnOnce(&mut BytesMut),
) {
    let at = out.small.len();
    out.small.put_bytes(0, FRAME_HEADER_BYTES);
    put(&mut out.small);
    let fields_len = out.small.len() - at - FRAME_HEADER_BYTES;
    let fields_len = u16::try_from(fields_len).expect("pages are cut below the limit of fields");
    let batch_bytes: usize = batches.iter().map(Bytes::len).sum();
    let frame_len = FRAME_HEADER_BYTES - 4 + usize::from(fields_len) + batch_bytes;
    let mut header = [0u8; FRAME_HEADER_BYTES];
    header[..4].copy_from_slice(&(frame_len as u32).to_le_bytes());
    header[4] = frame_type;
    header[6..8].copy_from_slice(&fields_len.to_le_bytes());
    header[8..12].copy_from_slice(&stream.to_le_bytes());
    let crc = crc_of(&header, &out.small[at + FRAME_HEADER_BYTES..]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    out.small[at..at + FRAME_HEADER_BYTES].copy_from_slice(&header);
    out.len += FRAME_HEADER_BYTES + usize::from(fields_len);
    for batch in batches {
        out.push_piece(batch.clone());
    }
}

pub(super) fn frame(frame: &Frame, out: &mut EncodeBuf) {
    match frame {
        Frame::Hello(hello) => put_hello(out, hello),
        Frame::Welcome(welcome) => put_welcome(out, welcome),
        Frame::Auth(auth) => whole(out, (t::AUTH, 0), &[], |f| {
            f.put_prefixed(auth.method.as_bytes());
            f.put_prefixed(&auth.content);
        }),
        Frame::Ready => whole(out, (t::READY, 0), &[], |_| {}),
        Frame::Heartbeat => whole(out, (t::HEARTBEAT, 0), &[], |_| {}),
        Frame::GoAway(go_away) => put_go_away(out, go_away),
        Frame::Error(error) => whole(out, (t::ERROR, 0), &[], |f| {
            f.put_u32_le(error.request.0);
            f.put_refusal(&error.refusal);
        }),
        Frame::Done(request) => whole(out, (t::DONE, 0), &[], |f| f.put_u32_le(request.0)),
        Frame::Metadata(_)
        | Frame::MetadataPage(_)
        | Frame::CreateTopic(_)
        | Frame::AlterTopic(_)
        | Frame::DeleteTopic(_) => topic_frame(frame, out),
        _ => stream_frame(frame, out),
    }
}

fn stream_frame(frame: &Frame, out: &mut EncodeBuf) {
    match frame {
        Frame::OpenPublisher(open) => put_open_publisher(out, open),
        Frame::PublisherOpened(opened) => put_publisher_opened(out, opened),
        Frame::Publish(publish) => put_publish(out, publish),
        Frame::Published(published) => put_published(out, published),
        Frame::Refused(refused) => put_refused(out, refused),
        Frame::Grant(stream, grant) => {
            whole(out, (t::GRANT, stream.0), &[], |f| f.put_grant(grant))
        }
        Frame::Demand(stream, demand) => whole(out, (t::DEMAND, stream.0), &[], |f| {
            f.put_u64_le(demand.cost);
            f.put_u64_le(demand.largest);
        }),
        Frame::Revoke(stream, revoke) => whole(out, (t::REVOKE, stream.0), &[], |f| {
            f.put_u32_le(revoke.epoch);
            f.put_u64_le(revoke.limit_cost);
        }),
        Frame::Revoked(stream, revoked) => whole(out, (t::REVOKED, stream.0), &[], |f| {
            f.put_u32_le(revoked.epoch);
            f.put_u64_le(revoked.spent_cost);
        }),
        Frame::CloseStream(stream) => whole(out, (t::CLOSE_STREAM, stream.0), &[], |_| {}),
        Frame::StreamClosed(closed) => whole(out, (t::STREAM_CLOSED, closed.stream.0), &[], |f| {
            f.put_option(closed.refusal.as_ref(), PutFields::put_refusal);
        }),
        Frame::Subscribe(subscribe) => put_subscribe(out, subscribe),
        Frame::Subscribed(subscribed) => put_subscribed(out, subscribed),
        Frame::Deliver(deliver) => put_deliver(out, deliver),
        Frame::Settle(settle) => whole(out, (t::SETTLE, settle.stream.0), &[], |f| {
            f.put_u64_le(settle.upto.0);
            f.put_flag(settle.confirm);
        }),
        Frame::Settled(settled) => whole(out, (t::SETTLED, settled.stream.0), &[], |f| {
            f.put_u64_le(settled.upto.0);
            f.put_option(settled.refusal.as_ref(), PutFields::put_refusal);
        }),
        Frame::Join(join) => whole(out, (t::JOIN, join.stream.0), &[], |f| {
            f.put_u32_le(join.request.0);
            f.put_prefixed(join.topic.as_str().as_bytes());
            f.put_prefixed(join.subscription.as_str().as_bytes());
            f.put_u64_le(join.member.0);
        }),
        Frame::Assignment(assignment) => put_assignment(out, assignment),
        Frame::Present(present) => whole(out, (t::PRESENT, present.stream.0), &[], |f| {
            f.put_u64_le(present.epoch);
        }),
        Frame::Leave(stream) => whole(out, (t::LEAVE, stream.0), &[], |_| {}),
        other => unreachable!("{other:?} is no frame of a stream"),
    }
}

fn topic_frame(frame: &Frame, out: &mut EncodeBuf) {
    match frame {
        Frame::Metadata(metadata) => whole(out, (t::METADATA, 0), &[], |f| {
            f.put_u32_le(metadata.request.0);
            f.put_option(metadata.topic.as_ref(), |f, n| f.put_prefixed(n.as_str().as_bytes()));
            f.put_option(metadata.after.as_ref(), |f, n| f.put_prefixed(n.as_str().as_bytes()));
        }),
        Frame::MetadataPage(page) => put_metadata_page(out, page),
        Frame::CreateTopic(create) => put_create_topic(out, create),
        Frame::AlterTopic(alter) => put_alter_topic(out, alter),
        Frame::DeleteTopic(delete) => whole(out, (t::DELETE_TOPIC, 0), &[], |f| {
            f.put_u32_le(delete.request.0);
            f.put_prefixed(delete.topic.as_str().as_bytes());
        }),
        other => unreachable!("{other:?} is no frame about topics"),
    }
}

fn put_hello(out: &mut EncodeBuf, hello: &Hello) {
    whole(out, (t::HELLO, 0), &[], |f| {
        f.put_slice(b"WEIR");
        f.put_u16_le(hello.version_min);
        f.put_u16_le(hello.version_max);
        f.put_u64_le(hello.features);
        f.put_limits(&hello.limits);
        f.put_prefixed(hello.client_name.as_bytes());
    });
}

fn put_welcome(out: &mut EncodeBuf, welcome: &Welcome) {
    whole(out, (t::WELCOME, 0), &[], |f| {
        f.put_u16_le(welcome.version);
        f.put_u64_le(welcome.features);
        f.put_limits(&welcome.limits);
        f.put_u32_le(welcome.message_cost_min);
        f.put_u128_le(welcome.cluster_id);
        f.put_u64_le(welcome.broker_id.0);
        f.put_prefixed(welcome.broker_name.as_bytes());
        f.put_prefixed(welcome.auth_methods.as_bytes());
    });
}

fn put_go_away(out: &mut EncodeBuf, go_away: &GoAway) {
    whole(out, (t::GO_AWAY, 0), &[], |f| {
        f.put_u16_le(go_away.code);
        f.put_u32_le(go_away.deadline_ms);
        f.put_u32_le(go_away.reconnect_after_ms);
        f.put_prefixed(go_away.text.as_bytes());
    });
}

fn put_open_publisher(out: &mut EncodeBuf, open: &OpenPublisher) {
    whole(out, (t::OPEN_PUBLISHER, open.stream.0), &[], |f| {
        f.put_u32_le(open.request.0);
        f.put_prefixed(open.topic.as_str().as_bytes());
        f.put_u32_le(open.partition.0);
        f.put_option(open.producer.as_ref(), |f, n| f.put_prefixed(n.as_str().as_bytes()));
        f.put_u64_le(open.producer_id.0);
        f.put_u32_le(open.producer_epoch);
    });
}

fn put_publisher_opened(out: &mut EncodeBuf, opened: &PublisherOpened) {
    whole(out, (t::PUBLISHER_OPENED, opened.stream.0), &[], |f| {
        f.put_u32_le(opened.request.0);
        f.put_u64_le(opened.producer_id.0);
        f.put_u32_le(opened.producer_epoch);
        f.put_u64_le(opened.next_sequence.0);
        f.put_u64_le(opened.log_end.0);
        put_term_behind(f, opened.term);
    });
}

fn put_publish(out: &mut EncodeBuf, publish: &Publish) {
    let header = publish.header.clone().stamp_local(WIRE_SALT);
    whole(out, (t::PUBLISH, publish.stream.0), std::slice::from_ref(&publish.body), |f| {
        f.put_u32_le(publish.deadline_ms);
        f.put_u64_le(publish.demand);
        f.put_slice(&header);
    });
}

fn put_published(out: &mut EncodeBuf, published: &Published) {
    whole(out, (t::PUBLISHED, published.stream.0), &[], |f| {
        f.put_grant(&published.grant);
        f.put_u16_le(published.stored.len() as u16);
        for range in &published.stored {
            f.put_u64_le(range.base_sequence.0);
            f.put_u64_le(range.base_offset.0);
            f.put_u32_le(range.record_count);
            f.put_flag(range.duplicate);
        }
    });
}

fn put_refused(out: &mut EncodeBuf, refused: &Refused) {
    whole(out, (t::REFUSED, refused.stream.0), &[], |f| {
        f.put_u64_le(refused.base_sequence.0);
        f.put_u32_le(refused.record_count);
        f.put_grant(&refused.grant);
        f.put_refusal(&refused.refusal);
    });
}

fn put_subscribe(out: &mut EncodeBuf, subscribe: &Subscribe) {
    whole(out, (t::SUBSCRIBE, subscribe.stream.0), &[], |f| {
        f.put_u32_le(subscribe.request.0);
        f.put_prefixed(subscribe.topic.as_str().as_bytes());
        f.put_u32_le(subscribe.partition.0);
        f.put_option(subscribe.subscription.as_ref(), |f, n| {
            f.put_prefixed(n.as_str().as_bytes());
        });
        let (kind, value) = match subscribe.start {
            Start::Earliest => (0, 0),
            Start::Latest => (1, 0),
            Start::Offset(offset) => (2, offset.0),
            Start::Time(ms) => (3, ms),
        };
        f.put_u8(kind);
        f.put_u64_le(value);
        f.put_grant(&subscribe.credit);
        let needs = subscribe.needs;
        if needs != Needs::default() {
            f.put_u8(if needs.any_replica { ANY_REPLICA } else { 0 });
            f.put_u64_le(needs.reach.0);
            f.put_u64_le(needs.resume.0);
        }
        // As of older versions, where nothing is shared.
        if needs.epoch != 0 {
            f.put_u64_le(needs.epoch);
        }
    });
}

fn put_assignment(out: &mut EncodeBuf, assignment: &Assignment) {
    whole(out, (t::ASSIGNMENT, assignment.stream.0), &[], |f| {
        f.put_u64_le(assignment.epoch);
        let count = u16::try_from(assignment.partitions.len());
        f.put_u16_le(count.expect("a topic has a bounded number of partitions"));
        assignment.partitions.iter().for_each(|partition| f.put_u32_le(partition.0));
    });
}

/// Where there is none, the frame is the same as in older versions.
fn put_term_behind(f: &mut BytesMut, term: Term) {
    if term != Term(0) {
        f.put_u64_le(term.0);
    }
}

fn put_subscribed(out: &mut EncodeBuf, subscribed: &Subscribed) {
    whole(out, (t::SUBSCRIBED, subscribed.stream.0), &[], |f| {
        f.put_u32_le(subscribed.request.0);
        f.put_u64_le(subscribed.start.0);
        f.put_u64_le(subscribed.log_start.0);
        f.put_u64_le(subscribed.high_watermark.0);
        f.put_u64_le(subscribed.skipped);
        put_term_behind(f, subscribed.term);
    });
}

fn put_deliver(out: &mut EncodeBuf, deliver: &Deliver) {
    whole(out, (t::DELIVER, deliver.stream.0), &deliver.batches, |f| {
        f.put_u64_le(deliver.salt);
        f.put_u32_le(deliver.record_count);
        f.put_u64_le(deliver.high_watermark.0);
    });
}

fn put_metadata_page(out: &mut EncodeBuf, page: &MetadataPage) {
    whole(out, (t::METADATA_PAGE, 0), &[], |f| {
        f.put_u32_le(page.request.0);
        f.put_flag(page.more);
        f.put_u16_le(page.topics.len() as u16);
        for topic in &page.topics {
            put_topic_view(f, topic);
        }
        if !page.brokers.is_empty() {
            put_brokers(f, page);
        }
    });
}

/// Who serves what stands behind the topics: a client that does not know of it reads them all the
/// same.
fn put_brokers(f: &mut BytesMut, page: &MetadataPage) {
    f.put_u16_le(page.brokers.len() as u16);
    for broker in &page.brokers {
        f.put_u64_le(broker.id.0);
        f.put_prefixed(broker.host.as_bytes());
        f.put_u16_le(broker.port);
        f.put_prefixed(broker.name.as_bytes());
        f.put_prefixed(broker.rack.as_bytes());
    }
    for partition in page.topics.iter().flat_map(|topic| &topic.partitions) {
        let place = |id: &BrokerId| page.brokers.iter().position(|broker| broker.id == *id);
        let places = partition.replicas.iter().filter_map(place);
        f.put_u64_le(partition.term.0);
        f.put_u8(places.clone().count() as u8);
        places.for_each(|place| f.put_u8(place as u8));
    }
    if page.topics.iter().any(|topic| topic.config.replicas != 0) {
        page.topics.iter().for_each(|topic| f.put_u8(topic.config.replicas));
    }
}

fn put_topic_view(f: &mut BytesMut, topic: &TopicView) {
    f.put_prefixed(topic.name.as_str().as_bytes());
    f.put_u64_le(topic.id.0);
    put_config(f, &topic.config);
    f.put_u16_le(topic.partitions.len() as u16);
    for partition in &topic.partitions {
        f.put_u32_le(partition.partition.0);
        f.put_u64_le(partition.leader.map_or(u64::MAX, |leader| leader.0));
        f.put_u64_le(partition.log_start.0);
        f.put_u64_le(partition.high_watermark.0);
        f.put_u64_le(partition.bytes);
    }
}

fn put_config(f: &mut BytesMut, config: &TopicConfig) {
    f.put_u32_le(config.partitions);
    f.put_u8(config.durability as u8);
    f.put_u8(config.overflow as u8);
    f.put_u64_le(config.max_bytes);
    f.put_u64_le(config.max_age_ms);
}

fn put_create_topic(out: &mut EncodeBuf, create: &CreateTopic) {
    whole(out, (t::CREATE_TOPIC, 0), &[], |f| {
        f.put_u32_le(create.request.0);
        f.put_prefixed(create.topic.as_str().as_bytes());
        put_config(f, &create.config);
        // Who leaves the choice to the broker says what he always said.
        if create.config.replicas != 0 {
            f.put_u8(create.config.replicas);
        }
    });
}

fn put_alter_topic(out: &mut EncodeBuf, alter: &AlterTopic) {
    whole(out, (t::ALTER_TOPIC, 0), &[], |f| {
        f.put_u32_le(alter.request.0);
        f.put_prefixed(alter.topic.as_str().as_bytes());
        f.put_option(alter.partitions, BufMut::put_u32_le);
        f.put_option(alter.durability.map(|durability| durability as u8), BufMut::put_u8);
        f.put_option(alter.overflow.map(|overflow| overflow as u8), BufMut::put_u8);
        f.put_option(alter.max_bytes, BufMut::put_u64_le);
        f.put_option(alter.max_age_ms, BufMut::put_u64_le);
        if alter.replicas.is_some() {
            f.put_option(alter.replicas, BufMut::put_u8);
        }
    });
}
