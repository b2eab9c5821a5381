//! Coverage-guided inputs for the decoders of the wire.
//!
//! Owns: the checksums that are made right before a decoder sees an input.
//! Never: judges: the promises are those of `tests/fuzz_replay`.

// A part of the promises' words is for the tests alone.
#[allow(dead_code)]
#[path = "../../tests/fuzz_replay/targets.rs"]
mod targets;

#[path = "../../tests/fuzz_replay/peer.rs"]
mod peer_targets;

use weir_protocol::limits::{BATCH_HEADER_BYTES, FRAME_HEADER_BYTES};

/// Holds the promises against an input as it is, or with its frames' checksums made right: the
/// first byte says which.
pub fn frame(input: &[u8]) {
    let Some((how, rest)) = input.split_first() else { return };
    let mut bytes = rest.to_vec();
    if how % 8 > 0 {
        mend_frames(&mut bytes);
    }
    targets::check(&bytes);
}

/// The same for frames between brokers.
pub fn peer(input: &[u8]) {
    let Some((how, rest)) = input.split_first() else { return };
    let mut bytes = rest.to_vec();
    if how % 8 > 0 {
        mend_frames(&mut bytes);
    }
    peer_targets::check(&bytes);
}

/// The same for one batch.
pub fn batch(input: &[u8]) {
    let Some((how, rest)) = input.split_first() else { return };
    let mut bytes = rest.to_vec();
    if how % 8 > 0 {
        mend_batch(&mut bytes);
    }
    targets::check(&bytes);
}

fn mend_frames(mut rest: &mut [u8]) {
    while let Some(prefix) = rest.first_chunk::<4>() {
        let len = (u32::from_le_bytes(*prefix) as usize).saturating_add(4);
        if len < FRAME_HEADER_BYTES || len > rest.len() {
            return;
        }
        let (frame, behind) = rest.split_at_mut(len);
        rest = behind;
        let fields_end = FRAME_HEADER_BYTES + usize::from(u16::from_le_bytes([frame[6], frame[7]]));
        if fields_end > len {
            return;
        }
        // A PUBLISH has its batch header among its fields, a DELIVER its batches behind them, and so
        // has an APPEND; other frames between brokers have the CRC of what follows as a field.
        match frame[4] {
            0x12 => mend_batch(frame.get_mut(FRAME_HEADER_BYTES + 12..).unwrap_or_default()),
            0x22 | 0x51 => mend_batch(&mut frame[fields_end..]),
            0x55 => mend_content(frame, 8, fields_end),
            0x67 => mend_content(frame, 9, fields_end),
            0x68 => mend_content(frame, 5, fields_end),
            _ => {}
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&frame[..12]);
        hasher.update(&frame[FRAME_HEADER_BYTES..fields_end]);
        frame[12..16].copy_from_slice(&hasher.finalize().to_le_bytes());
    }
}

fn mend_content(frame: &mut [u8], crc_at: usize, fields_end: usize) {
    let (head, content) = frame.split_at_mut(fields_end);
    let crc = head.get_mut(FRAME_HEADER_BYTES + crc_at..);
    if let Some(crc) = crc.and_then(|rest| rest.first_chunk_mut::<4>()) {
        *crc = crc32fast::hash(content).to_le_bytes();
    }
}

/// The checksums of the body, the control section and the header, for salt 0: that of the wire.
fn mend_batch(batch: &mut [u8]) {
    let Some((header, body)) = batch.split_at_mut_checked(BATCH_HEADER_BYTES) else { return };
    let number = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize
    };
    let body = body.get_mut(..number(8)).unwrap_or_default();
    let (control, records) = body.split_at_mut(number(68).min(body.len()));
    if let Some((content, crc)) = control.split_last_chunk_mut::<4>() {
        *crc = crc32fast::hash(content).to_le_bytes();
    }
    header[12..16].copy_from_slice(&crc32fast::hash(records).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[0; 8]);
    hasher.update(&header[8..]);
    header[4..8].copy_from_slice(&hasher.finalize().to_le_bytes());
}
