//! Parses what people type: names, sizes, durations, times, headers.
//!
//! Owns: the forms of START and TIME.
//! Never: guesses a unit.

use std::time::{Duration, SystemTime};
use weir_broker::config::{parse_bytes as parse_size, parse_duration as parse_span};
use weir_client::{Durability, Name, Overflow, Start};

pub(crate) fn parse_name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|e| e.to_string())
}

pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|e| e.to_string())
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    parse_span(text).map_err(|e| e.to_string())
}

pub(crate) fn parse_durability(text: &str) -> Result<Durability, String> {
    match text {
        "fsync" => Ok(Durability::Fsync),
        "memory" => Ok(Durability::Memory),
        _ => Err("write fsync or memory".to_owned()),
    }
}

pub(crate) fn parse_overflow(text: &str) -> Result<Overflow, String> {
    match text {
        "backpressure" => Ok(Overflow::Backpressure),
        "reject" => Ok(Overflow::Reject),
        "expire" => Ok(Overflow::Expire),
        _ => Err("write backpressure, reject or expire".to_owned()),
    }
}

pub(crate) fn parse_replicas(text: &str) -> Result<u8, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("write 1, 3 or 5".to_owned()),
    }
}

/// `k=v`; the value may hold further equals signs.
pub(crate) fn parse_header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, content)) if !name.is_empty() => Ok((name.to_owned(), content.to_owned())),
        _ => Err("write a header as k=v".to_owned()),
    }
}

/// `earliest`, `latest`, an offset, or a TIME.
pub(crate) fn parse_start(text: &str) -> Result<Start, String> {
    parse_start_at(text, now())
}

fn parse_start_at(text: &str, now: SystemTime) -> Result<Start, String> {
    match text {
        "earliest" => return Ok(Start::Earliest),
        "latest" => return Ok(Start::Latest),
        _ => {}
    }
    if let Ok(offset) = text.parse::<u64>() {
        return Ok(Start::Offset(offset));
    }
    if let Some(ms) = text.strip_prefix('@').and_then(|ms| ms.parse().ok()) {
        return Ok(Start::Time(ms));
    }
    if let Some(ago) = text.strip_prefix('-') {
        let then = now.checked_sub(parse_duration(ago)?).unwrap_or(SystemTime::UNIX_EPOCH);
        return Ok(Start::Time(since_epoch_ms(then)));
    }
    match humantime::parse_rfc3339_weak(text) {
        Ok(time) => Ok(Start::Time(since_epoch_ms(time))),
        Err(_) => Err(format!(
            "{text:?} is none of: earliest, latest, an offset, a time such as \
             2026-11-21T03:00:00Z, -15m or @1763694000000"
        )),
    }
}

fn since_epoch_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

#[expect(clippy::disallowed_methods, reason = "a relative time on the command line means now")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_start_is_read() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(3_600);
        let read = |text| parse_start_at(text, now);
        assert_eq!(read("earliest"), Ok(Start::Earliest));
        assert_eq!(read("42"), Ok(Start::Offset(42)));
        assert_eq!(read("@7"), Ok(Start::Time(7)));
        assert_eq!(read("-15m"), Ok(Start::Time(2_700_000)));
        assert_eq!(read("1970-01-01T00:00:01Z"), Ok(Start::Time(1_000)));
        assert!(read("yesterday").unwrap_err().contains("yesterday"));
        assert!(read("-15").is_err());
    }

    #[test]
    fn a_header_keeps_further_equals_signs() {
        assert_eq!(parse_header("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(parse_header("=b").is_err());
        assert!(parse_header("a").is_err());
    }
}
