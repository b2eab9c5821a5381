//! Reads little-endian fields out of bytes that this broker wrote earlier.
//!
//! Owns: the bounds check of every field.
//! Never: allocates by an announced length; panics on what it reads.

use weir_protocol::types::Name;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// They end within a field.
    #[error("the bytes end within {0}")]
    Short(&'static str),
    /// Their version is newer than this build.
    #[error("{what} has version {version}, this build reads up to {known}; use a newer build")]
    Version {
        /// What was read.
        what: &'static str,
        /// Its version.
        version: u16,
        /// The newest this build reads.
        known: u16,
    },
    /// A field has a content that nothing writes.
    #[error("{0} has a content that no version writes")]
    Content(&'static str),
    /// Bytes are left over.
    #[error("{0} bytes are left over")]
    Trailing(usize),
}

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, WireError> {
        self.array::<1>(what).map(|bytes| bytes[0])
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, WireError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, WireError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, WireError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length in one byte, then the name.
    pub(super) fn name(&mut self, what: &'static str) -> Result<Name, WireError> {
        let len = usize::from(self.u8(what)?);
        let (text, rest) = self.0.split_at_checked(len).ok_or(WireError::Short(what))?;
        self.0 = rest;
        let text = std::str::from_utf8(text).map_err(|_| WireError::Content(what))?;
        Name::new(text).map_err(|_| WireError::Content(what))
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Trailing(self.0.len())) }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireError> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(WireError::Short(what))?;
        self.0 = rest;
        Ok(*bytes)
    }
}

/// Writes a length in one byte, then the name.
pub(super) fn put_name(out: &mut Vec<u8>, name: &Name) {
    let text = name.as_str().as_bytes();
    out.push(u8::try_from(text.len()).expect("a name has at most 255 bytes"));
    out.extend_from_slice(text);
}
