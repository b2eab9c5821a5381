//! The primitives that frames are made of.
//!
//! ```text
//! text: len2, UTF-8 bytes      bytes: len2, bytes      name: text, checked
//! option: 0 | 1, value         flag: 0 | 1
//! ```

use super::DecodeError;
use crate::error_code::{Outcome, Scope};
use crate::frame::{Grant, PeerLimits, Refusal};
use crate::types::Name;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Reads fields in order; remembers which frame they belong to for its errors.
pub(crate) struct Fields {
    pub(crate) frame_type: u8,
    pub(crate) rest: Bytes,
}

impl Fields {
    pub(crate) fn bad(&self, field: &'static str) -> DecodeError {
        DecodeError::Field { frame_type: self.frame_type, field }
    }

    pub(crate) fn take<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let taken = *self.rest.first_chunk::<N>().ok_or(self.bad(field))?;
        self.rest.advance(N);
        Ok(taken)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.take::<1>(field).map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.take(field).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.take(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.take(field).map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self, field: &'static str) -> Result<u128, DecodeError> {
        self.take(field).map(u128::from_le_bytes)
    }

    pub(crate) fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.bad(field)),
        }
    }

    pub(crate) fn bytes(&mut self, field: &'static str) -> Result<Bytes, DecodeError> {
        let len = usize::from(self.u16(field)?);
        if len > self.rest.len() {
            return Err(self.bad(field));
        }
        Ok(self.rest.split_to(len))
    }

    /// A row count that rows of at least `row_bytes` could follow: nothing is made for a lie.
    pub(crate) fn count(
        &mut self,
        field: &'static str,
        (row_bytes, rows_max): (usize, usize),
    ) -> Result<usize, DecodeError> {
        let count = usize::from(self.u16(field)?);
        if count > rows_max || count * row_bytes > self.rest.len() {
            return Err(self.bad(field));
        }
        Ok(count)
    }

    pub(crate) fn text(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let bytes = self.bytes(field)?;
        String::from_utf8(bytes.into()).map_err(|_| self.bad(field))
    }

    pub(crate) fn name(&mut self, field: &'static str) -> Result<Name, DecodeError> {
        let text = self.text(field)?;
        Name::new(&text).map_err(|_| self.bad(field))
    }

    pub(crate) fn option<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut Self, &'static str) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        if self.flag(field)? { read(self, field).map(Some) } else { Ok(None) }
    }

    pub(crate) fn limits(&mut self) -> Result<PeerLimits, DecodeError> {
        Ok(PeerLimits {
            frame_bytes_max: self.u32("frame_bytes_max")?,
            message_bytes_max: self.u32("message_bytes_max")?,
            streams_max: self.u32("streams_max")?,
            requests_max: self.u32("requests_max")?,
            heartbeat_ms: self.u32("heartbeat_ms")?,
        })
    }

    pub(crate) fn grant(&mut self) -> Result<Grant, DecodeError> {
        Ok(Grant {
            epoch: self.u32("grant epoch")?,
            limit_cost: self.u64("limit_cost")?,
            limit_messages: self.u64("limit_messages")?,
            ttl_ms: self.u32("ttl_ms")?,
            level: self.u8("level")?,
            reason_bits: self.u32("reason_bits")?,
        })
    }

    pub(crate) fn refusal(&mut self) -> Result<Refusal, DecodeError> {
        let code = self.u16("code")?;
        let outcome = Outcome::from_u8(self.u8("outcome")?).ok_or(self.bad("outcome"))?;
        let scope = Scope::from_u8(self.u8("scope")?).ok_or(self.bad("scope"))?;
        Ok(Refusal {
            code,
            outcome,
            scope,
            retry_after_ms: self.u32("retry_after_ms")?,
            reason_bits: self.u32("reason_bits")?,
            observed: self.u64("observed")?,
            limit: self.u64("limit")?,
            text: self.text("text")?,
        })
    }
}

/// Writes fields in order.
pub(crate) trait PutFields {
    fn put_flag(&mut self, flag: bool);
    fn put_prefixed(&mut self, bytes: &[u8]);
    fn put_limits(&mut self, limits: &PeerLimits);
    fn put_grant(&mut self, grant: &Grant);
    fn put_refusal(&mut self, refusal: &Refusal);
    fn put_option<T>(&mut self, option: Option<T>, put: impl FnOnce(&mut Self, T));
}

impl PutFields for BytesMut {
    fn put_flag(&mut self, flag: bool) {
        self.put_u8(u8::from(flag));
    }

    /// Longer content than a length of two bytes can say is cut: texts for people only; names
    /// and authentication are shorter by their own limits.
    fn put_prefixed(&mut self, bytes: &[u8]) {
        let mut len = bytes.len().min(crate::limits::TEXT_BYTES_MAX);
        while len < bytes.len() && len > 0 && bytes[len] & 0xc0 == 0x80 {
            len -= 1;
        }
        self.put_u16_le(len as u16);
        self.put_slice(&bytes[..len]);
    }

    fn put_limits(&mut self, limits: &PeerLimits) {
        self.put_u32_le(limits.frame_bytes_max);
        self.put_u32_le(limits.message_bytes_max);
        self.put_u32_le(limits.streams_max);
        self.put_u32_le(limits.requests_max);
        self.put_u32_le(limits.heartbeat_ms);
    }

    fn put_grant(&mut self, grant: &Grant) {
        self.put_u32_le(grant.epoch);
        self.put_u64_le(grant.limit_cost);
        self.put_u64_le(grant.limit_messages);
        self.put_u32_le(grant.ttl_ms);
        self.put_u8(grant.level);
        self.put_u32_le(grant.reason_bits);
    }

    fn put_refusal(&mut self, refusal: &Refusal) {
        self.put_u16_le(refusal.code);
        self.put_u8(refusal.outcome as u8);
        self.put_u8(refusal.scope as u8);
        self.put_u32_le(refusal.retry_after_ms);
        self.put_u32_le(refusal.reason_bits);
        self.put_u64_le(refusal.observed);
        self.put_u64_le(refusal.limit);
        self.put_prefixed(refusal.text.as_bytes());
    }

    fn put_option<T>(&mut self, option: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.put_flag(option.is_some());
        if let Some(value) = option {
            put(self, value);
        }
    }
}
