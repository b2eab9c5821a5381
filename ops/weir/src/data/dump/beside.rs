//! The files beside the segments: `meta`, `damage`, indexes, checkpoints and `node.meta`.
//!
//! Owns: which is which, by its name, and the fields that are shown.
//! Never: shows a file that does not verify.

use super::text::time_text;
use super::{Printer, has_extension, json, refused};
use crate::data::directory::IDENTITY_FILE;
use crate::data::words::range_fields;
use crate::failure::Failure;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::Path;
use weir_broker::{Identity, IdentityError};
use weir_protocol::types::Index;
use weir_storage::inspect::{self, IndexReport, MetaReport};
use weir_storage::{DamagedRange, Disk};

pub(super) fn dump(disk: &dyn Disk, path: &Path, printer: &mut Printer) -> Result<(), Failure> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let unwhole = || Failure::Damaged(format!("{} does not verify", path.display()));
    let failed = |error: io::Error| Failure::NotDone(format!("{}: {error}", path.display()));
    match &*name {
        "meta" => {
            let found = inspect::meta(disk, dir).map_err(refused)?.ok_or_else(unwhole)?;
            Ok(printer.fields(&meta_json(&found))?)
        }
        "damage" => {
            let ranges = inspect::damage(disk, dir).map_err(failed)?.ok_or_else(unwhole)?;
            Ok(ranges.iter().try_for_each(|range| printer.range(range))?)
        }
        IDENTITY_FILE => {
            let found = Identity::read(disk, dir).map_err(|error| match error {
                IdentityError::Damaged(_) => Failure::Damaged(error.to_string()),
                error => Failure::NotDone(error.to_string()),
            })?;
            let found = found.ok_or_else(unwhole)?;
            let cluster = format!("{:032x}", found.cluster);
            let (kind, broker) = (IDENTITY_FILE, found.broker.0);
            let fields = json!({ "kind": kind, "broker": broker, "cluster": cluster });
            Ok(printer.fields(&fields)?)
        }
        _ if has_extension(path, "idx") => {
            let found = inspect::index(disk, path).map_err(failed)?.ok_or_else(unwhole)?;
            Ok(printer.index(&found)?)
        }
        _ if has_extension(path, "ckpt") => {
            let at = name.strip_suffix(".ckpt").and_then(|digits| digits.parse().ok());
            let at = Index(at.ok_or_else(unwhole)?);
            let read = inspect::checkpoint(disk, dir, at).map_err(failed)?;
            Ok(printer.checkpoint(at, &read.ok_or_else(unwhole)?)?)
        }
        _ => Err(Failure::Usage(format!(
            "{} is none of the files of a log: *.seg, meta, damage, *.idx, *.ckpt, node.meta",
            path.display()
        ))),
    }
}

fn meta_json(meta: &MetaReport) -> Value {
    json!({
        "kind": "meta",
        "first_index": meta.first_index.0,
        "first_offset": meta.first_offset.0,
        "last_segment": meta.last_segment,
        "watermark": meta.watermark.map(|(segment, position)| {
            serde_json::json!({ "segment": segment, "position": position })
        }),
        "owned_hex": json::hex(&meta.owned),
    })
}

fn index_json(index: &IndexReport) -> Value {
    let rows = index.rows.iter().map(|row| {
        json!({
            "position": row.position,
            "index": row.index.0,
            "offset": row.offset.0,
            "log_time_ms": row.log_time_ms,
        })
    });
    let terms = index.terms.iter().map(|(first, term)| json!([first.0, term.0]));
    json!({
        "kind": "index",
        "end": index.end,
        "last_index": index.last_index.0,
        "log_end": index.log_end.0,
        "terms": terms.collect::<Vec<Value>>(),
        "configs": index.configs.iter().map(|at| at.0).collect::<Vec<u64>>(),
        "rows": rows.collect::<Vec<Value>>(),
    })
}

impl Printer {
    /// Every field on a line of its own, or all in one object.
    fn fields(&mut self, object: &Value) -> io::Result<()> {
        if self.json {
            return json::line(&mut self.out, object);
        }
        let fields = object.as_object().into_iter().flatten().filter(|(name, _)| *name != "kind");
        fields.into_iter().try_for_each(|(name, value)| match value {
            Value::String(text) => writeln!(self.out, "{name} {text}"),
            value => writeln!(self.out, "{name} {value}"),
        })
    }

    fn range(&mut self, range: &DamagedRange) -> io::Result<()> {
        if self.json {
            let object = json!({ "kind": "damage", "damaged": range_fields(range) });
            return json::line(&mut self.out, &object);
        }
        writeln!(self.out, "{range}{}", if range.accepted { "; accepted" } else { "" })
    }

    fn index(&mut self, index: &IndexReport) -> io::Result<()> {
        let mut object = index_json(index);
        if self.json {
            return json::line(&mut self.out, &object);
        }
        if let Some(fields) = object.as_object_mut() {
            fields.remove("rows");
        }
        self.fields(&object)?;
        index.rows.iter().try_for_each(|row| {
            let time = time_text(row.log_time_ms);
            let (position, at, offset) = (row.position, row.index, row.offset);
            writeln!(self.out, "  @{position} index {at} offset {offset} log time {time}")
        })
    }

    /// Only the broker knows what the content means: people are told how much it is.
    fn checkpoint(&mut self, at: Index, content: &[u8]) -> io::Result<()> {
        let mut object = json!({ "kind": "checkpoint", "index": at.0, "bytes": content.len() });
        if self.json {
            object["content_hex"] = json!(json::hex(content));
        }
        self.fields(&object)
    }
}
