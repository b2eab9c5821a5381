//! Owns: bodies that prove which message they are.
//! Never: a body that stands for two messages: every byte of it is covered.
//!
//! ```text
//!  0 crc4 = crc32([4..))   4 producer2   6 partition2   8 sequence4   12 len4   16 noise
//! ```

use super::event::Message;

/// The shortest body that carries an identity.
pub const BODY_BYTES_MIN: usize = 16;

/// The body of a message, of `len` bytes or [`BODY_BYTES_MIN`] if that is more.
pub fn body_of(message: Message, len: usize) -> Vec<u8> {
    let Message { producer, partition, sequence } = message;
    let len = len.max(BODY_BYTES_MIN);
    let mut body = vec![0; len];
    body[4..6].copy_from_slice(&producer.to_le_bytes());
    body[6..8].copy_from_slice(&partition.to_le_bytes());
    body[8..12].copy_from_slice(&sequence.to_le_bytes());
    body[12..16].copy_from_slice(&(len as u32).to_le_bytes());
    noise(message).fill(&mut body[16..]);
    let crc = crc32fast::hash(&body[4..]);
    body[..4].copy_from_slice(&crc.to_le_bytes());
    body
}

/// The message that a body is, or `None` if it is not as [`body_of`] made it.
pub fn identify(body: &[u8]) -> Option<Message> {
    let (crc, rest) = body.split_first_chunk::<4>()?;
    let (producer, rest) = rest.split_first_chunk::<2>()?;
    let (partition, rest) = rest.split_first_chunk::<2>()?;
    let (sequence, rest) = rest.split_first_chunk::<4>()?;
    let (len, _) = rest.split_first_chunk::<4>()?;
    let is_whole = u32::from_le_bytes(*len) as usize == body.len();
    let message = Message {
        producer: u16::from_le_bytes(*producer),
        partition: u16::from_le_bytes(*partition),
        sequence: u32::from_le_bytes(*sequence),
    };
    (is_whole && crc32fast::hash(&body[4..]) == u32::from_le_bytes(*crc)).then_some(message)
}

fn noise(message: Message) -> fastrand::Rng {
    let high = u64::from(message.producer) << 48 | u64::from(message.partition) << 32;
    fastrand::Rng::with_seed((high | u64::from(message.sequence)) ^ 0x0062_6f64_7921)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_names_its_message_and_no_change_goes_unseen() {
        let message = Message { producer: 3, partition: 2, sequence: 70_000 };
        for len in [0, 16, 17, 300] {
            let body = body_of(message, len);
            assert_eq!(identify(&body), Some(message));
            for at in 0..body.len() {
                let mut changed = body.clone();
                changed[at] ^= 1 << (at % 8);
                assert_eq!(identify(&changed), None, "byte {at} of {len}");
                assert_eq!(identify(&body[..at]), None, "cut at {at} of {len}");
            }
        }
    }
}
