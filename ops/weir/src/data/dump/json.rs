//! What a dump looks like to programs: one object a line.
//!
//! Owns: the fields. Those of a record are named as `weir sub -o json` names them.
//! Never: loses a byte: what is no UTF-8 becomes `{"hex": "…"}`.

use super::Stands;
use super::text::type_name;
use crate::data::words::range_fields;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::ops::Range;
use weir_protocol::batch::{BatchHeader, BodyError, RecordIter, RecordRef};
use weir_protocol::types::Offset;
use weir_storage::inspect::SegmentReport;
use weir_storage::{Corruption, DamagedRange};

pub(super) fn line(out: &mut impl Write, value: &Value) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

pub(super) fn unreadable(
    out: &mut impl Write,
    segment: &SegmentReport,
    (bytes, reason): (Range<u64>, &str),
    range: Option<&DamagedRange>,
) -> io::Result<()> {
    line(
        out,
        &json!({
            "kind": "unreadable",
            "file": segment.path.display().to_string(),
            "position": bytes.start,
            "end": bytes.end,
            "reason": reason,
            "damaged": range.map(range_fields),
        }),
    )
}

/// A range whose segment is not there.
pub(super) fn missing(out: &mut impl Write, range: &DamagedRange) -> io::Result<()> {
    line(out, &json!({ "kind": "missing", "damaged": range_fields(range) }))
}

pub(super) fn lost_tail(out: &mut impl Write, what: &Corruption) -> io::Result<()> {
    line(
        out,
        &json!({
            "kind": "lost_tail",
            "file": what.file.display().to_string(),
            "position": what.position,
            "reason": what.kind.to_string(),
        }),
    )
}

pub(super) fn batch(
    out: &mut impl Write,
    stands: &Stands<'_>,
    header: &BatchHeader,
    commands: &[String],
    (records, offsets): (Result<Option<RecordIter<'_>>, BodyError>, &Range<Offset>),
) -> io::Result<()> {
    let mut object = json!({
        "kind": "batch",
        "file": stands.segment.path.display().to_string(),
        "position": stands.position,
        "bytes": header.stored_len(),
        "refused": stands.refused,
        "type": type_name(header.batch_type),
        "index": header.index.0,
        "last_of_index": header.is_last_of_index(),
        "term": header.term.0,
        "base_offset": header.base_offset.0,
        "record_count": header.record_count,
        "log_time_ms": header.log_time_ms,
        "base_timestamp_ms": header.base_ts_ms,
        "producer": header.producer_id.0,
        "producer_epoch": header.producer_epoch,
        "base_sequence": header.base_sequence.0,
        "run": header.run,
        "run_number": header.run_number,
        "body_bytes": header.body_len,
        "commands": commands,
    });
    match records {
        Ok(None) => {}
        Ok(Some(records)) => put_records(&mut object, records, offsets),
        Err(error) => object["error"] = json!(error.to_string()),
    }
    line(out, &object)
}

fn put_records(object: &mut Value, records: RecordIter<'_>, offsets: &Range<Offset>) {
    let mut shown = Vec::new();
    for record in records {
        match record {
            Ok(record) if offsets.contains(&record.offset) => shown.push(record_json(&record)),
            Ok(_) => {}
            Err(error) => object["error"] = json!(error.to_string()),
        }
    }
    object["records"] = Value::Array(shown);
}

/// Headers are pairs in a list: a name may stand there twice.
fn record_json(record: &RecordRef<'_>) -> Value {
    let message = &record.message;
    let headers = message.headers().map(|(name, content)| json!([bytes(name), bytes(content)]));
    json!({
        "offset": record.offset.0,
        "timestamp_ms": record.timestamp_ms,
        "key": message.key.map(bytes),
        "headers": headers.collect::<Vec<Value>>(),
        "payload": bytes(message.value),
        "payload_is_utf8": std::str::from_utf8(message.value).is_ok(),
    })
}

/// A string, or the bytes in hex where they are no UTF-8.
pub(super) fn bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": hex(bytes) }),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
