//! What a dump looks like to people.
//!
//! Owns: the lines, and how bytes are escaped.
//! Never: leaves a byte of a terminal's control sequences in them.

use super::Stands;
use crate::output::bytes_text;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::ops::Range;
use std::time::{Duration, SystemTime};
use weir_protocol::batch::{BatchHeader, BatchType, BodyError, RecordIter};
use weir_protocol::types::Offset;
use weir_storage::DamagedRange;
use weir_storage::inspect::SegmentReport;

pub(super) fn segment(out: &mut impl Write, segment: &SegmentReport) -> io::Result<()> {
    let SegmentReport { path, sequence, first_index, first_offset, end, bytes, .. } = segment;
    let sealed = if segment.sealed { ", sealed" } else { "" };
    let recycled = match segment.recycled {
        true => ", recycled: behind its batches lie bytes of an earlier life",
        false => "",
    };
    let bytes = bytes_text(*bytes);
    writeln!(
        out,
        "segment {sequence} {}: from index {first_index}, offset {first_offset}; batches up to \
         byte {end} of {bytes}{sealed}{recycled}",
        path.display()
    )
}

pub(super) fn unreadable(
    out: &mut impl Write,
    (bytes, reason): (Range<u64>, &str),
    range: Option<&DamagedRange>,
) -> io::Result<()> {
    let Range { start, end } = bytes;
    write!(out, "  @{start} unreadable up to byte {end} ({} bytes): {reason}", end - start)?;
    match range {
        Some(range) => writeln!(out, "; {}{range}", if range.accepted { "accepted: " } else { "" }),
        None => writeln!(out),
    }
}

pub(super) fn batch(
    out: &mut impl Write,
    stands: &Stands<'_>,
    header: &BatchHeader,
    commands: &[String],
    (records, offsets): (Result<Option<RecordIter<'_>>, BodyError>, &Range<Offset>),
) -> io::Result<()> {
    let BatchHeader { index, term, record_count, .. } = header;
    let name = type_name(header.batch_type);
    write!(out, "  @{} index {index} term {term} {name}", stands.position)?;
    if header.batch_type == BatchType::Data {
        let (first, last) = (header.base_offset, header.end_offset().0.saturating_sub(1));
        write!(out, " offsets {first} to {last}, {record_count} records")?;
    }
    write!(out, ", {} bytes", header.stored_len())?;
    if header.log_time_ms != 0 {
        write!(out, ", log time {}", time_text(header.log_time_ms))?;
    }
    if header.producer_id.0 != 0 {
        let (id, epoch, sequence) =
            (header.producer_id, header.producer_epoch, header.base_sequence);
        write!(out, ", producer {id} epoch {epoch} sequence {sequence}")?;
    }
    writeln!(
        out,
        "{}",
        if stands.refused { ", REFUSED: it does not follow what is left" } else { "" }
    )?;
    commands.iter().try_for_each(|command| writeln!(out, "    {command}"))?;
    let records = match records {
        Ok(None) => return Ok(()),
        Ok(Some(records)) => records,
        Err(error) => return writeln!(out, "    its body cannot be read: {error}"),
    };
    for record in records {
        match record {
            Ok(record) if offsets.contains(&record.offset) => {
                write!(out, "    {} {}", record.offset, time_text(record.timestamp_ms))?;
                if let Some(key) = record.message.key {
                    write!(out, " key {}", escaped(key))?;
                }
                for (name, content) in record.message.headers() {
                    write!(out, " {}={}", escaped(name), escaped(content))?;
                }
                writeln!(out, " {}", escaped(record.message.value))?;
            }
            Ok(_) => {}
            Err(error) => writeln!(out, "    the rest cannot be read: {error}")?,
        }
    }
    Ok(())
}

pub(super) fn type_name(batch_type: BatchType) -> &'static str {
    match batch_type {
        BatchType::Data => "data",
        BatchType::Control => "control",
        BatchType::Void => "void",
        BatchType::Noop => "noop",
        BatchType::Config => "config",
        BatchType::Seal => "seal",
        BatchType::Watermark => "watermark",
    }
}

/// Milliseconds since the epoch as a date, where they are one of four digits.
pub(super) fn time_text(ms: u64) -> String {
    const YEAR_10000_MS: u64 = 253_402_300_800_000;
    match SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)) {
        Some(time) if ms < YEAR_10000_MS => humantime::format_rfc3339_millis(time).to_string(),
        _ => format!("@{ms}"),
    }
}

/// Text in quotes; what is no UTF-8, or would do something to a terminal, as `\xHH`.
pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    let hex = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            let _ = write!(text, "\\x{byte:02x}");
        }
    };
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            match c {
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '"' | '\\' => text.extend(['\\', c]),
                c if c.is_control() => hex(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => text.push(c),
            }
        }
        hex(&mut text, part.invalid());
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_told_apart() {
        assert_eq!(escaped("grüße \"x\" \\".as_bytes()), r#""grüße \"x\" \\""#);
        assert_eq!(escaped(b"a\nb\t\x1b[0m\xff\xfe"), r#""a\nb\t\x1b[0m\xff\xfe""#);
        assert_eq!(escaped(b""), "\"\"");
    }

    #[test]
    fn no_time_is_too_large_to_be_shown() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time_text(u64::MAX), format!("@{}", u64::MAX));
    }
}
