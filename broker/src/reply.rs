//! Internal errors to the one vocabulary that peers know.
//!
//! Owns: the only place where an error of the inside becomes a code.
//! Never: a catch-all: each match names every case, so that a new one must be decided here.

use crate::flow::{Overspend, PartitionKey};
use crate::replication::metadata::ChangeError;
use weir_protocol::batch::{BodyError, HeaderError};
use weir_protocol::codec::DecodeError;
use weir_protocol::error_code::{ErrorCode, Outcome, Scope};
use weir_protocol::frame::Refusal;
use weir_protocol::types::{BrokerId, Term};

/// A refusal of the whole connection.
pub(crate) fn connection(code: ErrorCode, text: impl Into<String>) -> Refusal {
    Refusal { scope: Scope::Connection, ..Refusal::new(code, text) }
}

/// Bytes that are not a frame: the connection cannot go on behind them.
pub(crate) fn decode(error: &DecodeError) -> Refusal {
    let refusal = |code| connection(code, error.to_string());
    match error {
        DecodeError::TooLarge { bytes, limit } => {
            Refusal { observed: *bytes, limit: *limit as u64, ..refusal(ErrorCode::FrameTooLarge) }
        }
        DecodeError::Lengths { .. }
        | DecodeError::Crc(_)
        | DecodeError::Type(_)
        | DecodeError::Field { .. }
        | DecodeError::Batch(_) => refusal(ErrorCode::BadFrame),
    }
}

/// A batch whose header or body does not hold.
pub(crate) fn batch(error: &HeaderError) -> Refusal {
    let code = match error {
        HeaderError::Crc | HeaderError::BodyCrc | HeaderError::ControlCrc => ErrorCode::BadChecksum,
        HeaderError::Magic
        | HeaderError::Type(_)
        | HeaderError::Codec(_)
        | HeaderError::Lengths
        | HeaderError::Offsets => ErrorCode::BadRequest,
    };
    Refusal::new(code, format!("{error}; make the batch again and send it once more"))
}

/// Records that do not hold although their checksum does.
pub(crate) fn body(error: &BodyError) -> Refusal {
    let code = match error {
        BodyError::Table(_) | BodyError::Bounds(_) | BodyError::Record(_) => ErrorCode::BadRequest,
    };
    Refusal::new(code, format!("{error}; the publisher encoded it wrong"))
}

/// A message or a batch beyond the limit of this broker.
pub(crate) fn too_large(bytes: usize, limit: usize) -> Refusal {
    let text = format!("{bytes} bytes exceed the limit of {limit}; split the message");
    let refusal = Refusal::new(ErrorCode::MessageTooLarge, text);
    Refusal { observed: bytes as u64, limit: limit as u64, ..refusal }
}

/// A publish that its stream's credit does not cover.
pub(crate) fn overspend(error: Overspend) -> Refusal {
    let refusal = Refusal::new(ErrorCode::CreditViolation, error.to_string());
    Refusal { observed: error.spent + error.cost, limit: error.limit, ..refusal }
}

/// A batch that costs more than all the credit there is.
pub(crate) fn beyond_pool(cost: u64, pool_cost: u64) -> Refusal {
    let text = format!(
        "a batch that costs {cost} can never be granted out of a pool of {pool_cost}; split it, \
         or raise flow.pool"
    );
    let refusal = Refusal::new(ErrorCode::MessageTooLarge, text);
    Refusal { scope: Scope::Stream, observed: cost, limit: pool_cost, ..refusal }
}

/// The partition ended before it took the request: nothing of it is stored.
pub(crate) fn partition_gone(key: &PartitionKey) -> Refusal {
    let PartitionKey { topic, partition } = key;
    let text = format!("partition {partition} of topic {topic} is being opened or has ended");
    Refusal {
        retry_after_ms: 100,
        scope: Scope::Topic,
        ..Refusal::new(ErrorCode::Recovering, text)
    }
}

/// More requests than may wait for an answer.
pub(crate) fn too_many_requests(limit: usize) -> Refusal {
    let text =
        format!("{limit} requests wait for an answer already; ask again when one is answered");
    let refusal = Refusal::new(ErrorCode::OverloadedRequest, text);
    Refusal { retry_after_ms: 100, observed: limit as u64 + 1, limit: limit as u64, ..refusal }
}

/// A question to the metadata that was not answered; `leader` is who else may lead it.
pub(crate) fn metadata(error: &ChangeError, leader: Option<BrokerId>) -> Refusal {
    let text = error.to_string();
    let refusal = match error {
        // What was judged travels as the metadata encodes it, so this is nobody's answer.
        ChangeError::Refused(_) | ChangeError::Unreadable(_) => {
            Refusal::new(ErrorCode::BadRequest, text)
        }
        ChangeError::Busy => Refusal::new(ErrorCode::OverloadedRequest, text),
        ChangeError::NotLeader => Refusal::not_leader(leader.map(|broker| (broker, Term(0))), text),
        ChangeError::Unknown => Refusal::new(ErrorCode::LeaderLost, text),
        ChangeError::Fenced(_) => Refusal::new(ErrorCode::StorageFenced, text),
    };
    let outcome = match error {
        ChangeError::Unknown => Outcome::Unknown,
        _ => Outcome::NotStored,
    };
    Refusal { outcome, scope: Scope::Message, ..refusal }
}

/// No memory is left for incomplete frames.
pub(crate) fn read_buffers() -> Refusal {
    let text = "too many frames of other connections are incomplete; reconnect and send again";
    Refusal { retry_after_ms: 1_000, ..connection(ErrorCode::OverloadedMemory, text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_did_wrong_is_told_apart_from_damage_on_the_way() {
        let codes = [HeaderError::BodyCrc, HeaderError::Type(9)].map(|error| batch(&error).code);
        assert_eq!(codes, [0x0902, 0x0406]);
        let refusal = decode(&DecodeError::TooLarge { bytes: 9_000, limit: 4_096 });
        assert_eq!((refusal.code, refusal.observed, refusal.limit), (0x0602, 9_000, 4_096));
        assert_eq!(refusal.scope, Scope::Connection);
    }
}
