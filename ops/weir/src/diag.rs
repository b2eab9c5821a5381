//! `weir diag`: why is something slow?
//!
//! Owns: measuring a disk's flushes by hand, and showing who waits for what.
//! Never: changes a broker.

use crate::admin::{Ask, ask};
use crate::arguments::{DiagArguments, DiagCommand, Output};
use crate::failure::Failure;
use crate::output::{print_json, print_table};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io;
use std::path::Path;
use std::time::Duration;

pub(crate) async fn run(arguments: DiagArguments) -> Result<(), Failure> {
    match arguments.command {
        DiagCommand::Fsync { dir, count, output } => fsync(&dir, count, output.output),
        DiagCommand::Flow { admin, output } => flow(&admin.admin, output.output).await,
    }
}

/// Measures what `weir bench floor` calls the device: a small overwrite and its flush.
fn fsync(dir: &Path, count: u32, output: Output) -> Result<(), Failure> {
    let measured = weir_bench::floor::measure_flush(dir, count)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", dir.display())))?;
    let rows = [
        ("p50", measured.p50),
        ("p90", measured.p90),
        ("p99", measured.p99),
        ("max", measured.max),
    ];
    if output == Output::Json {
        let microseconds = rows.map(|(name, value)| (name.to_owned(), json!(value.as_micros())));
        let fields: serde_json::Map<String, Value> = microseconds.into_iter().collect();
        print_json(&json!({ "flushes": count, "microseconds": fields }))?;
        return Ok(());
    }
    print_table(
        ["flush", "time"],
        rows.map(|(name, value)| [name.to_owned(), format!("{value:.1?}")]),
    )?;
    println!("\n{count} flushes of 4 KiB over blocks already written, in {}", dir.display());
    println!("an acknowledged publish takes at least one of these");
    Ok(())
}

/// What the broker says of one partition that holds publishers back.
#[derive(Debug, Deserialize)]
struct Blocked {
    topic: String,
    partition: u32,
    reason: String,
    publishers: u64,
    blocked_ms: u64,
}

async fn flow(admin: &str, output: Output) -> Result<(), Failure> {
    let body = ask(admin, Ask::Get, "/v1/flow").await?;
    if output == Output::Json {
        print_json(&body)?;
        return Ok(());
    }
    let blocked = body.get("blocked").cloned().unwrap_or_default();
    let blocked: Vec<Blocked> = serde_json::from_value(blocked)
        .map_err(|e| Failure::NotDone(format!("{admin}/v1/flow: {e}")))?;
    if blocked.is_empty() {
        println!("no publisher is held back");
        return Ok(());
    }
    let headings = ["topic", "partition", "reason", "publishers", "since"];
    let rows = blocked.iter().map(|row| {
        let since = Duration::from_millis(row.blocked_ms);
        [
            row.topic.clone(),
            row.partition.to_string(),
            row.reason.clone(),
            row.publishers.to_string(),
            format!("{since:.1?}"),
        ]
    });
    print_table(headings, rows)?;
    Ok(())
}
