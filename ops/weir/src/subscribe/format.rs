//! The output format of `weir sub -f`.
//!
//! Owns: the tokens, which `--help` lists from [`TOKENS_HELP`].
//! Never: changes a byte of a payload or key.

use std::io::{self, Write};

/// What `weir sub --help` says about FORMAT.
pub(crate) const TOKENS_HELP: &str = "\
Tokens of FORMAT:
  %s  payload            %S  payload bytes      %k  key (empty without one)
  %K  key bytes, -1 without a key               %o  offset
  %p  partition          %t  topic              %T  timestamp, ms since the epoch
  %h  headers as k=v,k=v %%  a percent sign
  \\n \\r \\t \\0 \\\\  the usual control characters, \\xHH any byte";

/// What a format can show of one message.
pub(crate) struct Shown<'a, H> {
    pub(crate) topic: &'a str,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) timestamp_ms: u64,
    pub(crate) key: Option<&'a [u8]>,
    /// `(name, content)` pairs.
    pub(crate) headers: H,
    pub(crate) payload: &'a [u8],
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    Payload,
    PayloadBytes,
    Key,
    KeyBytes,
    Offset,
    Partition,
    Topic,
    Timestamp,
    Headers,
}

/// A parsed FORMAT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Format(Vec<Part>);

impl Format {
    /// The payload and a newline.
    pub(crate) fn payload_lines() -> Self {
        Self(vec![Part::Payload, Part::Literal(b"\n".to_vec())])
    }

    /// Parses `text`; the error names the token that is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            let part = match c {
                '%' => match token(rest.next())? {
                    Some(part) => part,
                    None => {
                        literal.push(b'%');
                        continue;
                    }
                },
                '\\' => {
                    literal.push(escape(&mut rest)?);
                    continue;
                }
                other => {
                    literal.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
            };
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(part);
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self(parts))
    }

    /// Writes one message.
    pub(crate) fn write<'a, H>(&self, out: &mut impl Write, shown: &Shown<'a, H>) -> io::Result<()>
    where
        H: Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    {
        for part in &self.0 {
            match part {
                Part::Literal(bytes) => out.write_all(bytes)?,
                Part::Payload => out.write_all(shown.payload)?,
                Part::PayloadBytes => write!(out, "{}", shown.payload.len())?,
                Part::Key => out.write_all(shown.key.unwrap_or_default())?,
                Part::KeyBytes => match shown.key {
                    Some(key) => write!(out, "{}", key.len())?,
                    None => out.write_all(b"-1")?,
                },
                Part::Offset => write!(out, "{}", shown.offset)?,
                Part::Partition => write!(out, "{}", shown.partition)?,
                Part::Topic => out.write_all(shown.topic.as_bytes())?,
                Part::Timestamp => write!(out, "{}", shown.timestamp_ms)?,
                Part::Headers => write_headers(out, shown.headers.clone())?,
            }
        }
        Ok(())
    }
}

fn write_headers<'a>(
    out: &mut impl Write,
    headers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> io::Result<()> {
    for (number, (name, content)) in headers.enumerate() {
        if number > 0 {
            out.write_all(b",")?;
        }
        out.write_all(name)?;
        out.write_all(b"=")?;
        out.write_all(content)?;
    }
    Ok(())
}

/// The part of a token; none for `%%`.
fn token(letter: Option<char>) -> Result<Option<Part>, String> {
    Ok(Some(match letter {
        Some('s') => Part::Payload,
        Some('S') => Part::PayloadBytes,
        Some('k') => Part::Key,
        Some('K') => Part::KeyBytes,
        Some('o') => Part::Offset,
        Some('p') => Part::Partition,
        Some('t') => Part::Topic,
        Some('T') => Part::Timestamp,
        Some('h') => Part::Headers,
        Some('%') => return Ok(None),
        Some(other) => return Err(format!("%{other} is not a token; see `weir sub --help`")),
        None => return Err("the format ends with a lone %; write %% for a percent sign".to_owned()),
    }))
}

fn escape(rest: &mut std::str::Chars<'_>) -> Result<u8, String> {
    match rest.next() {
        Some('n') => Ok(b'\n'),
        Some('r') => Ok(b'\r'),
        Some('t') => Ok(b'\t'),
        Some('0') => Ok(0),
        Some('\\') => Ok(b'\\'),
        Some('x') => {
            let digits: String = rest.by_ref().take(2).collect();
            u8::from_str_radix(&digits, 16)
                .ok()
                .filter(|_| digits.len() == 2)
                .ok_or_else(|| format!("\\x{digits} is not a byte; write two hex digits"))
        }
        Some(other) => Err(format!("\\{other} is not known; see `weir sub --help`")),
        None => Err("the format ends with a lone backslash; write \\\\ for one".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(format: &str) -> String {
        let headers = [(&b"a"[..], &b"1"[..]), (b"b", b"2")];
        let shown = Shown {
            topic: "orders",
            partition: 3,
            offset: 42,
            timestamp_ms: 7,
            key: Some(b"c42"),
            headers: headers.into_iter(),
            payload: b"hello",
        };
        let mut out = Vec::new();
        Format::parse(format).unwrap().write(&mut out, &shown).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_token_shows_its_part() {
        let all = shown("%t/%p@%o %T %k(%K) %s(%S) %h 100%%\\t\\x41\\n");
        assert_eq!(all, "orders/3@42 7 c42(3) hello(5) a=1,b=2 100%\tA\n");
    }

    #[test]
    fn a_bad_format_is_named() {
        for (format, part) in [("%q", "%q"), ("a%", "lone %"), ("\\y", "\\y"), ("\\x4", "\\x4")] {
            let error = Format::parse(format).unwrap_err();
            assert!(error.contains(part), "{format}: {error}");
        }
    }
}
