//! What each route shows.
//!
//! Invariant: lists are paged: `limit` (1 to 1000, 100 by default) and `cursor` (the `next` of the
//! page before).

use super::cluster::{self, Look, partition_json};
use super::problem::Problem;
use super::{AdminView, Answer, Shown};
use crate::catalog::{PartitionState, TopicPartitions, config_of};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt::Write;
use weir_protocol::error_code::{ErrorCode, reason_bits};
use weir_protocol::frame::{Durability, Overflow};
use weir_storage::DamagedRange;

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1_000;
/// Publishers that /v1/flow lists by name.
const WAITING_MAX: usize = 1_000;

/// Which page.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    limit: Option<usize>,
    cursor: Option<String>,
}

type PageQuery = Result<Query<Page>, QueryRejection>;

impl Page {
    fn read(query: PageQuery) -> Result<(usize, Option<String>), Problem> {
        let Query(page) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
        let limit = page.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Problem::bad_request(format!("limit is 1 to {LIMIT_MAX}, not {limit}")));
        }
        Ok((limit, page.cursor))
    }
}

/// The process answers.
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// Everything that clients need is open.
pub(super) async fn ready(State(view): Shown, uri: axum::http::Uri) -> Response {
    let draining = *view.draining.borrow();
    let (mut open, mut opening, mut failed) = (0, 0, String::new());
    for here in view.catalog.partitions() {
        for (number, partition) in here.partitions.iter().enumerate() {
            match &partition.state {
                PartitionState::Elsewhere => {}
                PartitionState::Open(handle) if !handle.is_closed() => {
                    open += 1;
                    if handle.view().read_only {
                        let _ = writeln!(failed, "[!] {} {number}: read-only", here.topic.name);
                    }
                }
                PartitionState::Opening => opening += 1,
                PartitionState::Open(_) => {
                    let _ = writeln!(failed, "[!] {} {number}: it has ended", here.topic.name);
                }
                PartitionState::Failed { code, reason } => {
                    let name = code.name();
                    let _ = writeln!(failed, "[!] {} {number}: {name}: {reason}", here.topic.name);
                }
            }
        }
    }
    let ready = !draining && opening == 0;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let verdict = match (ready, draining) {
        (true, _) => "ready",
        (false, true) => "draining",
        (false, false) => "opening",
    };
    if uri.query() != Some("verbose") {
        return (status, format!("{verdict}\n")).into_response();
    }
    let mark = |good| if good { "[+]" } else { "[-]" };
    let (connections, connections_max) = view.server.connection_count();
    let text = format!(
        "{} accepting: {}\n{} partitions: {open} open, {opening} opening\n{failed}[+] connections: \
         {connections} of {connections_max}\n{verdict}\n",
        mark(!draining),
        if draining { "no, draining" } else { "yes" },
        mark(opening == 0),
    );
    (status, text).into_response()
}

/// The page that Prometheus scrapes.
pub(super) async fn metrics(State(view): Shown) -> Response {
    let topics = view.catalog.partitions();
    let page = view.metrics.render(|page| {
        for (topic, times) in view.flow.blocked_times() {
            for (reason, time) in times.by_reason() {
                let labels = [("topic", topic.as_str()), ("reason", reason)];
                page.sample("weir_flow_blocked_seconds_total", &labels, time.as_secs_f64());
            }
        }
        let flow = view.flow.view(0);
        for here in &topics {
            let name = here.topic.name.as_str();
            let starved = flow.partitions.iter().filter(|p| p.key.topic == here.topic.name);
            let starved = starved.filter(|p| p.starved > 0).count();
            page.sample("weir_publishers_blocked", &[("topic", name)], starved as f64);
        }
        let mut sum = |family: &str, of: fn(&crate::partition::PartitionView) -> u64| {
            for here in &topics {
                let total: u64 = open_views(here).iter().map(|(_, view)| of(view)).sum();
                page.sample(family, &[("topic", here.topic.name.as_str())], total as f64);
            }
        };
        sum("weir_topic_messages", |view| view.high_watermark.0.saturating_sub(view.log_start.0));
        sum("weir_topic_bytes", |view| view.bytes);
        render_lag(page, &topics);
        render_damage(page, &topics);
        render_memory(page, &view);
        cluster::render(page, &view.cluster.look(), &topics);
    });
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

fn render_lag(page: &mut crate::metrics::Exposition, topics: &[TopicPartitions]) {
    for here in topics {
        let mut lags = std::collections::BTreeMap::<_, u64>::new();
        for (_, view) in open_views(here) {
            for subscription in view.subscriptions.iter() {
                let lag = view.high_watermark.0.saturating_sub(subscription.cursor.0);
                *lags.entry(subscription.name.clone()).or_default() += lag;
            }
        }
        for (subscription, lag) in lags {
            let labels =
                [("topic", here.topic.name.as_str()), ("subscription", subscription.as_str())];
            page.sample("weir_subscription_lag_messages", &labels, lag as f64);
        }
    }
}

/// Only partitions that have any: what is healthy has no series.
fn render_damage(page: &mut crate::metrics::Exposition, topics: &[TopicPartitions]) {
    for here in topics {
        for (number, handle) in here.open() {
            let open = handle.damaged_ranges().iter().filter(|range| !range.accepted).count();
            if open > 0 {
                let number = number.to_string();
                let labels = [("topic", here.topic.name.as_str()), ("partition", &number)];
                page.sample("weir_damaged_ranges", &labels, open as f64);
            }
        }
    }
}

fn render_memory(page: &mut crate::metrics::Exposition, view: &AdminView) {
    let flow = view.flow.view(0);
    let services = &view.services;
    let own = [&services.read_buffers, &services.request_memory, &services.stream_memory];
    let accounts = own.into_iter().chain(view.cluster.room.iter().map(|room| room.memory()));
    let mut pools = vec![("publish credit", flow.reserved_cost, flow.pool_cost)];
    pools.extend(accounts.map(|account| {
        let part = account.part();
        (part.name, account.used(), part.bytes)
    }));
    for (pool, used, _) in &pools {
        page.sample("weir_memory_used_bytes", &[("pool", pool)], *used as f64);
    }
    for (pool, _, limit) in &pools {
        page.sample("weir_memory_limit_bytes", &[("pool", pool)], *limit as f64);
    }
    if let Ok(free) = view.device.free_bytes() {
        page.sample("weir_disk_free_bytes", &[], free as f64);
    }
    let mut states = [("open", 0), ("opening", 0), ("failed", 0)];
    for here in view.catalog.partitions().iter().flat_map(|topic| &topic.partitions) {
        let at = match &here.state {
            PartitionState::Elsewhere => continue,
            PartitionState::Open(handle) if !handle.is_closed() => 0,
            PartitionState::Opening => 1,
            PartitionState::Open(_) | PartitionState::Failed { .. } => 2,
        };
        states[at].1 += 1;
    }
    for (state, count) in states {
        page.sample("weir_partitions", &[("state", state)], f64::from(count));
    }
}

fn open_views(here: &TopicPartitions) -> Vec<(usize, crate::partition::PartitionView)> {
    here.open().map(|(number, handle)| (number, handle.view())).collect()
}

fn topic_json(here: &TopicPartitions, look: &Look) -> Value {
    let config = config_of(&here.topic);
    let states = here.partitions.iter().enumerate().map(|(number, here)| match &here.state {
        PartitionState::Elsewhere => json!({ "partition": number, "state": "elsewhere" }),
        PartitionState::Open(handle) => {
            let view = handle.view();
            json!({
                "partition": number,
                "state": if view.leading { "leading" } else { "not leading" },
                "log_start": view.log_start.0,
                "high_watermark": view.high_watermark.0,
                "bytes": view.bytes,
                "consumers": view.consumers,
                "blocked": reasons_of(view.blocked_bits),
                "read_only": view.read_only,
                "memory_loss": handle.memory_loss().map(|loss| json!({
                    "recovery_epoch": loss.epoch,
                    "lost_after_index": loss.lost_after.0,
                })),
                "damaged": handle.damaged_ranges().iter().map(damaged_json).collect::<Vec<_>>(),
            })
        }
        PartitionState::Opening => json!({ "partition": number, "state": "opening" }),
        PartitionState::Failed { code, reason } => {
            json!({ "partition": number, "state": "failed", "code": code.name(), "reason": reason })
        }
    });
    let placed = here.topic.partitions.iter().zip(&here.partitions);
    let partitions = states
        .zip(placed)
        .map(|(row, (placed, here))| partition_json(row, look, placed, here.handle()));
    json!({
        "name": here.topic.name.as_str(),
        "id": here.topic.id.0,
        "durability": match config.durability {
            Durability::Fsync => "fsync",
            Durability::Memory => "memory",
        },
        "overflow": match config.overflow {
            Overflow::Backpressure => "backpressure",
            Overflow::Reject => "reject",
            Overflow::Expire => "expire",
        },
        "max_bytes": config.max_bytes,
        "max_age_ms": config.max_age_ms,
        "replicas": here.topic.replicas,
        "created_ms": here.topic.created_ms,
        "partitions": partitions.collect::<Vec<_>>(),
    })
}

/// `last_offset` is null where no record is in the range, only what the partition wrote itself.
fn damaged_json(range: &DamagedRange) -> Value {
    let records = range.first_offset < range.end_offset;
    json!({
        "first_offset": range.first_offset.0,
        "last_offset": records.then(|| range.end_offset.0 - 1),
        "segment": range.sequence,
        "accepted": range.accepted,
    })
}

fn reasons_of(bits: u32) -> Vec<&'static str> {
    let named = reason_bits::ALL.iter().filter(|(bit, _)| bits & bit != 0);
    named.map(|(_, reason)| *reason).collect()
}

/// A page of topics.
pub(super) async fn topics(State(view): Shown, query: PageQuery) -> Answer {
    let (limit, cursor) = Page::read(query)?;
    let all = view.catalog.partitions();
    let behind = |here: &&TopicPartitions| {
        cursor.as_deref().is_none_or(|cursor| here.topic.name.as_str() > cursor)
    };
    let mut left = all.iter().filter(behind);
    let page: Vec<&TopicPartitions> = left.by_ref().take(limit).collect();
    let next = left.next().and(page.last()).map(|here| here.topic.name.to_string());
    let look = view.cluster.look();
    let items: Vec<Value> = page.into_iter().map(|here| topic_json(here, &look)).collect();
    Ok(Json(json!({ "topics": items, "next": next })))
}

/// One topic.
pub(super) async fn topic(State(view): Shown, Path(name): Path<String>) -> Answer {
    let all = view.catalog.partitions();
    match all.iter().find(|here| here.topic.name.as_str() == name) {
        Some(here) => Ok(Json(topic_json(here, &view.cluster.look()))),
        None => {
            let detail = format!("topic {name:?} does not exist");
            Err(Problem::new(StatusCode::NOT_FOUND, ErrorCode::UnknownTopic, detail))
        }
    }
}

/// A page of durable subscriptions, a row per partition.
pub(super) async fn subscriptions(State(view): Shown, query: PageQuery) -> Answer {
    let (limit, cursor) = Page::read(query)?;
    let skip: usize = match cursor.map(|cursor| cursor.parse()) {
        None => 0,
        Some(Ok(skip)) => skip,
        Some(Err(_)) => return Err(Problem::bad_request("cursor is not one of this list")),
    };
    let mut rows = Vec::new();
    let mut count = 0;
    for here in view.catalog.partitions() {
        for (number, view) in open_views(&here) {
            for subscription in view.subscriptions.iter() {
                count += 1;
                if count > skip && rows.len() < limit {
                    rows.push(json!({
                        "topic": here.topic.name.as_str(),
                        "partition": number,
                        "subscription": subscription.name.as_str(),
                        "cursor": subscription.cursor.0,
                        "delivered": subscription.delivered.0,
                        "lag": view.high_watermark.0.saturating_sub(subscription.cursor.0),
                        "attached": subscription.attached,
                        "expired": subscription.expired,
                    }));
                }
            }
        }
    }
    let next = (count > skip + rows.len()).then(|| (skip + rows.len()).to_string());
    Ok(Json(json!({ "subscriptions": rows, "next": next })))
}

/// A page of connections.
pub(super) async fn connections(State(view): Shown, query: PageQuery) -> Answer {
    let (limit, cursor) = Page::read(query)?;
    let after: u64 = match cursor.map(|cursor| cursor.parse()) {
        None => 0,
        Some(Ok(after)) => after,
        Some(Err(_)) => return Err(Problem::bad_request("cursor is not one of this list")),
    };
    let page = view.server.connections(after, limit + 1);
    let next = page.get(limit).and(page.get(limit - 1)).map(|last| last.connection.to_string());
    let items = page.iter().take(limit).map(|connection| {
        json!({
            "connection": connection.connection,
            "peer": connection.peer.to_string(),
            "client": connection.client_name,
            "age_ms": connection.age.as_millis() as u64,
            "publishers": connection.publishers,
            "consumers": connection.consumers,
            "written_bytes": connection.written_bytes,
        })
    });
    Ok(Json(json!({ "connections": items.collect::<Vec<_>>(), "next": next })))
}

/// Who is blocked, by what, since when.
pub(super) async fn flow(State(view): Shown) -> Json<Value> {
    let flow = view.flow.view(WAITING_MAX);
    let blocked = flow.partitions.iter().filter_map(|partition| {
        let since = partition.starved_for?;
        let waiting = flow.waiting.iter().find(|waiting| waiting.key == partition.key);
        let bits = waiting.map_or(partition.blocked_bits, |waiting| waiting.reason_bits);
        Some(json!({
            "topic": partition.key.topic.as_str(),
            "partition": partition.key.partition.0,
            "reason": reasons_of(bits).join("+"),
            "publishers": partition.starved,
            "blocked_ms": since.as_millis() as u64,
        }))
    });
    let waiting = flow.waiting.iter().map(|waiting| {
        json!({
            "connection": waiting.connection,
            "stream": waiting.stream.0,
            "topic": waiting.key.topic.as_str(),
            "partition": waiting.key.partition.0,
            "reason": reasons_of(waiting.reason_bits).join("+"),
            "waited_ms": waiting.waited.as_millis() as u64,
            "wanted_cost": waiting.wanted_cost,
        })
    });
    let (blocked, waiting): (Vec<_>, Vec<_>) = (blocked.collect(), waiting.collect());
    Json(json!({
        "pool_cost": flow.pool_cost,
        "granted_cost": flow.granted_cost,
        "reserved_cost": flow.reserved_cost,
        "publishers": flow.streams,
        "blocked": blocked,
        "waiting": waiting,
    }))
}
