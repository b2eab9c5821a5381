//! What was found, in words for people and in JSON for programs.
//!
//! Owns: both forms of a log and of a damaged range, the same in `verify` and `recover`.
//! Never: judges.

use super::directory::{Directory, Owner, Place};
use super::survey::{Found, Surveyed, lacks_checkpoint, stops_a_start, unaccepted};
use crate::output::bytes_text;
use serde_json::{Value, json};
use std::path::PathBuf;
use weir_broker::Identity;
use weir_protocol::types::Offset;
use weir_storage::inspect::{LogReport, SegmentReport};
use weir_storage::{Corruption, DamagedRange};

/// The line of `node.meta`.
pub(super) fn identity_line(directory: &Directory) -> String {
    match &directory.identity {
        Ok(Identity { broker, cluster, .. }) => {
            format!("whole    node.meta: broker {broker} of cluster {cluster:032x}")
        }
        Err(error) => format!("{:<8} node.meta: {error}", error.verdict().word()),
    }
}

/// The line of a log.
pub(super) fn headline(surveyed: &Surveyed) -> String {
    let (verdict, name) = (surveyed.verdict().word(), surveyed.place.name());
    match &surveyed.found {
        Found::Missing => format!("{verdict:<8} {name}: the folder is missing"),
        Found::Refused(error) => format!("{verdict:<8} {name}: {error}"),
        Found::Log(report) => format!("{verdict:<8} {name}: {}", ranges(report)),
    }
}

/// What a log holds.
fn ranges(report: &LogReport) -> String {
    let offsets = offsets_line(report.log_start, report.log_end);
    let (first, last) = (report.first_index, report.last_index);
    let indexes = match first <= last {
        true => format!("indexes {first} to {last}"),
        false => "no batches".to_owned(),
    };
    let bytes = bytes_text(report.segments.iter().map(|segment| segment.bytes).sum());
    let segments = match report.segments.len() {
        1 => "1 segment".to_owned(),
        count => format!("{count} segments"),
    };
    format!("{offsets}, {indexes}, {segments} of {bytes}, {} batches read", report.batches)
}

/// The records between two ends, the second exclusive.
pub(super) fn offsets_line(start: Offset, end: Offset) -> String {
    match start < end {
        true => format!("offsets {start} to {}", end.0 - 1),
        false => format!("no records, the next is offset {end}"),
    }
}

/// Everything beside the line: damage, what the next start does, harmless notes.
pub(super) fn details(surveyed: &Surveyed) -> Vec<String> {
    let mut lines = Vec::new();
    match &surveyed.found {
        Found::Missing => lines.push(
            "unless the broker ended while the topic was being created, its records are lost; the \
             next start begins it empty: bring the folder back from a backup first"
                .to_owned(),
        ),
        Found::Refused(weir_storage::OpenError::Damaged(_)) => lines.push(
            "the log does not open, and this loss cannot be accepted: bring the file back from a \
             backup, or move the folder away and lose the log"
                .to_owned(),
        ),
        Found::Refused(_) => {}
        Found::Log(report) => {
            lines.extend(report.damaged.iter().map(|range| range_line(range, surveyed)));
            lines.extend(report.lost_tail.iter().map(|what| lost_tail_line(what, report)));
            if lacks_checkpoint(report) {
                lines.push(lost_state_line(report));
            }
            if report.torn_bytes > 0 {
                lines.push(format!(
                    "{} bytes of a torn tail, never acknowledged: the next start cuts them",
                    report.torn_bytes
                ));
            }
        }
    }
    lines.extend(surveyed.notes.iter().cloned());
    lines
}

/// A damaged range, with its file and what it means for a start.
pub(super) fn range_line(range: &DamagedRange, surveyed: &Surveyed) -> String {
    let Found::Log(report) = &surveyed.found else { return range.to_string() };
    let file = match file_of(range, &report.segments) {
        Some(path) => format!(" of {}", path.display()),
        None => ", whose file is missing or not what it should be".to_owned(),
    };
    let is_metadata = surveyed.place.owner == Owner::Metadata;
    let fate = match (stops_a_start(range, report), is_metadata) {
        _ if range.accepted => "the loss is accepted: readers pass over it",
        (false, _) => "readers are refused there",
        (true, false) => {
            "no checkpoint covers it: readers are refused there, and the partition is read-only \
             until the file is back or the loss accepted"
        }
        (true, true) => {
            "no checkpoint covers it: the broker does not start, and this loss cannot be accepted, \
             for what follows would be misread: bring the file back from a backup, or see \
             ops/runbook/damaged-metadata.md"
        }
    };
    format!("{range}{file}; {fate}")
}

fn lost_tail_line(what: &Corruption, report: &LogReport) -> String {
    format!(
        "the end is lost: {what}; everything from offset {} (index {}) on is gone, nothing tells \
         how much it was, and the log does not open",
        report.log_end,
        report.last_index.0 + 1
    )
}

pub(super) fn lost_state_line(report: &LogReport) -> String {
    format!(
        "no checkpoint at index {} or behind is whole, and what lay before was trimmed: the log \
         does not open, and this loss cannot be accepted: bring a .ckpt file back from a backup",
        report.first_index.0 - 1
    )
}

/// What accepting gives up for good.
pub(super) fn given_up(surveyed: &Surveyed) -> Vec<String> {
    let Found::Log(report) = &surveyed.found else { return Vec::new() };
    let mut lines: Vec<String> = unaccepted(report)
        .map(|range| {
            let bytes = range.positions.end - range.positions.start;
            match file_of(range, &report.segments) {
                Some(path) => format!("{range} of {} ({bytes} bytes)", path.display()),
                None => format!("{range}, whose file is missing or not what it should be"),
            }
        })
        .collect();
    lines.extend(report.lost_tail.iter().map(|what| {
        let (offset, index) = (report.log_end, report.last_index.0 + 1);
        format!(
            "everything from offset {offset} (index {index}) on: nothing tells how much ({what})"
        )
    }));
    if surveyed.place.owner == Owner::Metadata && report.lost_tail.is_some() {
        lines.extend([
            "topics that were made there are forgotten; the folders of their partitions stay"
                .to_owned(),
            "named producers that were first opened there are forgotten: another name may get the \
             id of one, and a partition then counts on from what that one stored"
                .to_owned(),
        ]);
    }
    lines
}

fn file_of(range: &DamagedRange, segments: &[SegmentReport]) -> Option<PathBuf> {
    let segment = segments.iter().find(|segment| segment.sequence == range.sequence);
    segment.map(|segment| segment.path.clone())
}

/// Who a log belongs to, as fields.
pub(super) fn place_json(place: &Place) -> Value {
    let (topic, partition) = match &place.owner {
        Owner::Partition { topic, partition, .. } => (Some(topic), Some(partition)),
        _ => (None, None),
    };
    json!({ "folder": place.folder, "topic": topic, "partition": partition })
}

/// Who the broker is.
pub(super) fn identity_json(directory: &Directory) -> Value {
    match &directory.identity {
        Ok(identity) => json!({
            "broker": identity.broker.0,
            "cluster": format!("{:032x}", identity.cluster),
        }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

/// Everything about a log.
pub(super) fn surveyed_json(surveyed: &Surveyed) -> Value {
    let mut object = place_json(&surveyed.place);
    object["verdict"] = json!(surveyed.verdict().word());
    object["notes"] = json!(surveyed.notes);
    match &surveyed.found {
        Found::Missing => object["error"] = json!("the folder is missing"),
        Found::Refused(error) => object["error"] = json!(error.to_string()),
        Found::Log(report) => put_report(&mut object, report),
    }
    object
}

fn put_report(object: &mut Value, report: &LogReport) {
    let ranges = report.damaged.iter().map(|range| range_json(range, &report.segments));
    let segments = report.segments.iter().map(segment_json);
    let lost_tail = report.lost_tail.as_ref().map(|what| {
        json!({
            "file": what.file.display().to_string(),
            "position": what.position,
            "reason": what.kind.to_string(),
            "from_offset": report.log_end.0,
            "from_index": report.last_index.0 + 1,
        })
    });
    object["first_index"] = json!(report.first_index.0);
    object["last_index"] = json!(report.last_index.0);
    object["log_start"] = json!(report.log_start.0);
    object["log_end"] = json!(report.log_end.0);
    object["batches_read"] = json!(report.batches);
    object["segments"] = segments.collect();
    object["damaged"] = ranges.collect();
    object["lost_tail"] = json!(lost_tail);
    object["lacks_checkpoint"] = json!(lacks_checkpoint(report));
    object["torn_bytes"] = json!(report.torn_bytes);
    object["unproven_bytes"] = json!(report.unproven_bytes);
}

pub(super) fn segment_json(segment: &SegmentReport) -> Value {
    json!({
        "file": segment.path.display().to_string(),
        "sequence": segment.sequence,
        "first_index": segment.first_index.0,
        "first_offset": segment.first_offset.0,
        "end": segment.end,
        "bytes": segment.bytes,
        "sealed": segment.sealed,
        "recycled": segment.recycled,
    })
}

/// A damaged range with the file that it lies in.
pub(super) fn range_json(range: &DamagedRange, segments: &[SegmentReport]) -> Value {
    let mut object = range_fields(range);
    object["file"] = json!(file_of(range, segments).map(|path| path.display().to_string()));
    object
}

/// A damaged range; ends are exclusive but for `last_index`.
pub(super) fn range_fields(range: &DamagedRange) -> Value {
    json!({
        "segment": range.sequence,
        "start": range.positions.start,
        "end": range.positions.end,
        "first_index": range.first_index.0,
        "last_index": range.last_index.0,
        "first_offset": range.first_offset.0,
        "end_offset": range.end_offset.0,
        "accepted": range.accepted,
    })
}
