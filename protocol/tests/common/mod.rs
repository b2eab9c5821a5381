//! What every table of golden bytes must hold.
//!
//! Never: changes a line that exists: a difference fails, whatever `WEIR_VECTORS` says.

use std::collections::BTreeMap;
use std::path::Path;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Holds each encoded frame against its line in `vectors/FILE`; `WEIR_VECTORS=add` adds the lines
/// that are missing.
pub(crate) fn check_vectors(file: &str, frames: impl IntoIterator<Item = (&'static str, Vec<u8>)>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let known: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(' ')).collect();
    let mut added = String::new();
    for (title, bytes) in frames {
        match known.get(title) {
            Some(line) => assert_eq!(*line, hex(&bytes), "{title} changed"),
            None => added += &format!("{title} {}\n", hex(&bytes)),
        }
    }
    if std::env::var("WEIR_VECTORS").as_deref() == Ok("add") {
        std::fs::write(&path, text + &added).unwrap();
    } else {
        assert_eq!(added, "", "frames without a vector: run with WEIR_VECTORS=add");
    }
}
