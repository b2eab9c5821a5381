//! Prints tables for people and JSON for programs.
//!
//! Owns: the form of both. Never: decides what is shown.

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, Write};

/// Prints rows under headings.
pub(crate) fn print_table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.map(str::to_uppercase));
    for row in rows {
        table.add_row(row);
    }
    writeln!(io::stdout(), "{}", table.trim_fmt())
}

/// Prints one JSON value and a newline.
pub(crate) fn print_json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

/// A byte count with a binary unit, as configuration reads it back where it is exact.
pub(crate) fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() == 0.0 {
        format!("{value:.0}{}", UNITS[unit])
    } else {
        format!("{value:.1}{}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_are_short() {
        assert_eq!(bytes_text(0), "0B");
        assert_eq!(bytes_text(10 << 30), "10GiB");
        assert_eq!(bytes_text(1536), "1.5KiB");
    }
}
