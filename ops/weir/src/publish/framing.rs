//! Cuts an input into messages.
//!
//! Owns: the three framings of `weir pub`: `line`, `len` and `file`.
//! Never: holds more than one message and one read buffer in memory.
//! Invariant: the messages of `line` framing, each followed by `\n`, are the input again, byte
//! for byte, but for a missing `\n` behind the last line.

use clap::ValueEnum;
use std::io::{self, BufRead, Read};

/// How messages are told apart in an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Framing {
    /// A message a line; the newline is not part of it (a carriage return is)
    Line,
    /// A u32, little-endian, says how many bytes of message follow
    Len,
    /// The whole input is one message
    File,
}

/// Why an input cannot be cut into messages.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FramingError {
    #[error("message {number} has {bytes} bytes or more, the limit is {limit}")]
    TooLarge { number: u64, bytes: u64, limit: usize },
    #[error("message {number} announces {announced} bytes but the input ends after {found}")]
    Truncated { number: u64, announced: u32, found: usize },
    #[error("reading message {number}: {source}")]
    Read { number: u64, source: io::Error },
}

/// The messages of one input, in order.
pub(crate) struct Messages<R> {
    input: R,
    framing: Framing,
    message_bytes_max: usize,
    /// Messages returned so far.
    number: u64,
    ended: bool,
}

impl<R: BufRead> Messages<R> {
    pub(crate) fn new(input: R, framing: Framing, message_bytes_max: usize) -> Self {
        Self { input, framing, message_bytes_max, number: 0, ended: false }
    }

    /// The next message, or none at the end of the input.
    pub(crate) fn read_next(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        if self.ended {
            return Ok(None);
        }
        let message = match self.framing {
            Framing::Line => self.read_line()?,
            Framing::Len => self.read_len()?,
            Framing::File => {
                self.ended = true;
                Some(self.read_up_to_limit()?)
            }
        };
        self.ended |= message.is_none();
        self.number += u64::from(message.is_some());
        Ok(message)
    }

    fn read_line(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        let mut line = Vec::new();
        // One byte for the newline and one to see that the limit is exceeded.
        let mut limited = (&mut self.input).take(self.message_bytes_max as u64 + 2);
        let read = limited.read_until(b'\n', &mut line);
        let read = read.map_err(|source| FramingError::Read { number: self.number + 1, source })?;
        if read == 0 {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        self.check_len(line.len())?;
        Ok(Some(line))
    }

    fn read_len(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        let number = self.number + 1;
        let at_end = self.input.fill_buf().map(<[u8]>::is_empty);
        if at_end.map_err(|source| FramingError::Read { number, source })? {
            return Ok(None);
        }
        let mut prefix = Vec::new();
        self.read_exactly(4, &mut prefix)?;
        let Ok(prefix) = <[u8; 4]>::try_from(prefix.as_slice()) else {
            return Err(FramingError::Truncated { number, announced: 4, found: prefix.len() });
        };
        let announced = u32::from_le_bytes(prefix);
        self.check_len(announced as usize)?;
        let mut message = Vec::new();
        self.read_exactly(announced, &mut message)?;
        if message.len() < announced as usize {
            return Err(FramingError::Truncated { number, announced, found: message.len() });
        }
        Ok(Some(message))
    }

    /// Reads up to `bytes`; fewer only at the end of the input.
    fn read_exactly(&mut self, bytes: u32, into: &mut Vec<u8>) -> Result<(), FramingError> {
        let read = (&mut self.input).take(u64::from(bytes)).read_to_end(into);
        read.map(|_| ()).map_err(|source| FramingError::Read { number: self.number + 1, source })
    }

    fn read_up_to_limit(&mut self) -> Result<Vec<u8>, FramingError> {
        let mut message = Vec::new();
        self.read_exactly(self.message_bytes_max as u32 + 1, &mut message)?;
        self.check_len(message.len())?;
        Ok(message)
    }

    fn check_len(&self, bytes: usize) -> Result<(), FramingError> {
        if bytes > self.message_bytes_max {
            let (number, limit) = (self.number + 1, self.message_bytes_max);
            return Err(FramingError::TooLarge { number, bytes: bytes as u64, limit });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(input: &[u8], framing: Framing, limit: usize) -> Result<Vec<Vec<u8>>, FramingError> {
        let mut messages = Messages::new(input, framing, limit);
        let mut found = Vec::new();
        while let Some(message) = messages.read_next()? {
            found.push(message);
        }
        Ok(found)
    }

    #[test]
    fn lines_keep_every_byte_but_the_newline() {
        let found = cut(b"a\r\n\n\xff\0b\nlast", Framing::Line, 10).unwrap();
        assert_eq!(found, [&b"a\r"[..], b"", b"\xff\0b", b"last"]);
        assert_eq!(cut(b"", Framing::Line, 10).unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(cut(b"12345\n", Framing::Line, 5).unwrap().len(), 1);
    }

    #[test]
    fn a_line_beyond_the_limit_is_named_by_its_number() {
        let error = cut(b"ok\n123456\n", Framing::Line, 5).unwrap_err().to_string();
        assert_eq!(error, "message 2 has 6 bytes or more, the limit is 5");
    }

    #[test]
    fn length_prefixes_are_little_endian_and_lies_are_found() {
        let found = cut(b"\x02\0\0\0ab\0\0\0\0", Framing::Len, 5).unwrap();
        assert_eq!(found, [&b"ab"[..], b""]);
        let error = cut(b"\x05\0\0\0ab", Framing::Len, 5).unwrap_err().to_string();
        assert_eq!(error, "message 1 announces 5 bytes but the input ends after 2");
        assert!(cut(b"\x05\0", Framing::Len, 5).is_err());
        assert!(cut(b"\xff\xff\xff\xffab", Framing::Len, 5).is_err());
    }

    #[test]
    fn a_file_is_one_message_even_when_empty() {
        assert_eq!(cut(b"a\nb", Framing::File, 5).unwrap(), [b"a\nb"]);
        assert_eq!(cut(b"", Framing::File, 5).unwrap(), [b""]);
        assert!(cut(b"123456", Framing::File, 5).is_err());
    }
}
