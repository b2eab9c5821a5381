//! The forms of values: sizes, durations, addresses, counts.
//!
//! Never: guesses a unit.

use crate::budget::BUDGET_BYTES_MIN;
use std::net::SocketAddr;
use std::time::Duration;

/// What is wrong with a value, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(String);

impl ValueError {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// A number and its unit, apart.
fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// A size with its unit: `512B`, `64KiB`, `10MiB`, `1GiB`, `2TiB`.
pub fn parse_bytes(text: &str) -> Result<u64, ValueError> {
    let wrong = || ValueError::new("write a size with its unit: 512B, 64KiB, 10MiB, 1GiB or 2TiB");
    let (number, unit) = split_unit(text.trim());
    let shift = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let bytes = u128::from(number) << shift;
    u64::try_from(bytes).map_err(|_| ValueError::new("the size is beyond 16EiB"))
}

/// A duration with its unit: `250ms`, `30s`, `5m`, `12h`, `7d`.
pub fn parse_duration(text: &str) -> Result<Duration, ValueError> {
    let wrong = || ValueError::new("write a duration with its unit: 250ms, 30s, 5m, 12h or 7d");
    let (number, unit) = split_unit(text.trim());
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let too_long = || ValueError::new("the duration is beyond what can be counted");
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(too_long)
}

/// A size, or a share of `total`.
pub(super) fn parse_memory(text: &str, total: u64) -> Result<u64, ValueError> {
    let bytes = match text.trim().strip_suffix('%') {
        Some(share) => match share.trim().parse::<u64>() {
            Ok(share) if (1..=90).contains(&share) => (total / 100 * share).max(BUDGET_BYTES_MIN),
            _ => return Err(ValueError::new("write a share from 1% to 90%, or a size")),
        },
        None => parse_bytes(text)?,
    };
    if bytes < BUDGET_BYTES_MIN {
        return Err(ValueError::new("write at least 64MiB"));
    }
    Ok(bytes)
}

pub(super) fn parse_listen(text: &str) -> Result<SocketAddr, ValueError> {
    text.parse().map_err(|_| ValueError::new("write an address and a port: 127.0.0.1:7420"))
}

pub(super) fn parse_bool(text: &str) -> Result<bool, ValueError> {
    text.parse().map_err(|_| ValueError::new("write true or false"))
}

pub(super) fn parse_count(text: &str, least: usize, most: usize) -> Result<usize, ValueError> {
    match text.parse() {
        Ok(count) if (least..=most).contains(&count) => Ok(count),
        _ => Err(ValueError::new(format!("write a whole number from {least} to {most}"))),
    }
}
