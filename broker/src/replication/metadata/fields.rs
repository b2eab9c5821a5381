//! Owns: the bytes of what commands and the snapshot have in common.
//! Invariants: decoding checks every value; a length is read before what it counts.
//!
//! ```text
//! name:     length1 bytes               config: durability1 overflow1 max_bytes8 max_age_ms8
//! facts:    token16 instance8 gate4 name peer(length1 bytes) client(length1 bytes) rack name
//! recovery: epoch4 lost_after8 created_ms8
//! ```

use super::state::{Address, BrokerFacts, LossReason, Recovery, Settings};
use crate::replication::codec::{CodecError, Input};
use weir_protocol::frame::{Durability, Overflow};
use weir_protocol::types::{Index, Name};

pub(super) fn put_name(bytes: &mut Vec<u8>, name: &Name) {
    put_text(bytes, name.as_str());
}

/// A name or an address has at most 255 bytes, checked where it was made.
fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(text.len() as u8);
    bytes.extend_from_slice(text.as_bytes());
}

pub(super) fn name(input: &mut Input<'_>) -> Result<Name, CodecError> {
    Name::new(text(input)?).map_err(|_| CodecError::Malformed)
}

fn address(input: &mut Input<'_>) -> Result<Address, CodecError> {
    Address::new(text(input)?).ok_or(CodecError::Malformed)
}

fn text<'a>(input: &mut Input<'a>) -> Result<&'a str, CodecError> {
    let length = usize::from(input.u8()?);
    std::str::from_utf8(input.bytes(length)?).map_err(|_| CodecError::Malformed)
}

pub(super) fn put_settings(bytes: &mut Vec<u8>, settings: &Settings) {
    bytes.extend_from_slice(&[settings.durability as u8, settings.overflow as u8]);
    bytes.extend_from_slice(&settings.max_bytes.to_le_bytes());
    bytes.extend_from_slice(&settings.max_age_ms.to_le_bytes());
}

pub(super) fn settings(input: &mut Input<'_>) -> Result<Settings, CodecError> {
    let durability = match input.u8()? {
        0 => Durability::Fsync,
        1 => Durability::Memory,
        _ => return Err(CodecError::Malformed),
    };
    let overflow = match input.u8()? {
        0 => Overflow::Backpressure,
        1 => Overflow::Reject,
        2 => Overflow::Expire,
        _ => return Err(CodecError::Malformed),
    };
    Ok(Settings { durability, overflow, max_bytes: input.u64()?, max_age_ms: input.u64()? })
}

pub(super) fn put_facts(bytes: &mut Vec<u8>, facts: &BrokerFacts) {
    bytes.extend_from_slice(&facts.token.to_le_bytes());
    bytes.extend_from_slice(&facts.instance.to_le_bytes());
    bytes.extend_from_slice(&facts.gate.to_le_bytes());
    put_name(bytes, &facts.name);
    put_text(bytes, facts.peer.as_str());
    put_text(bytes, facts.client.as_str());
    put_name(bytes, &facts.rack);
}

pub(super) fn facts(input: &mut Input<'_>) -> Result<BrokerFacts, CodecError> {
    Ok(BrokerFacts {
        token: input.u128()?,
        instance: input.u64()?,
        gate: input.u32()?,
        name: name(input)?,
        peer: address(input)?,
        client: address(input)?,
        rack: name(input)?,
    })
}

pub(super) fn put_recovery(bytes: &mut Vec<u8>, recovery: Recovery) {
    bytes.extend_from_slice(&recovery.epoch.to_le_bytes());
    bytes.extend_from_slice(&recovery.lost_after.to_le_bytes());
    bytes.extend_from_slice(&recovery.created_ms.to_le_bytes());
}

pub(super) fn recovery(input: &mut Input<'_>) -> Result<Recovery, CodecError> {
    let (epoch, lost_after) = (input.u32()?, Index(input.u64()?));
    Ok(Recovery { epoch, lost_after, created_ms: input.u64()? })
}

pub(super) fn loss(byte: u8) -> Result<LossReason, CodecError> {
    match byte {
        1 => Ok(LossReason::Empty),
        2 => Ok(LossReason::Damaged),
        3 => Ok(LossReason::Unclean),
        4 => Ok(LossReason::GivenUp),
        _ => Err(CodecError::Malformed),
    }
}
