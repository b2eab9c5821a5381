//! State commands: what a control batch says.
//!
//! Owns: their bytes. They are part of the log, so every version stays readable for ever.
//! Never: decides or applies one.
//!
//! ```text
//! control section = version2 (1, or 2 with a command of that version) count2, then each command:
//!   create  kind1 = 1  subscription4 cursor8 name_len1 name
//!   settle  kind1 = 2  subscription4 cursor8
//!   delete  kind1 = 3  subscription4
//!   trim    kind1 = 4  log_start8
//! since version 2, in the log of partition 0:
//!   join    kind1 = 5  member8 partitions4 name_len1 name
//!   leave   kind1 = 6  member8 name_len1 name
//!   release kind1 = 7  member8 epoch8 name_len1 name
//! ```

use super::wire::{Fields, WireError, put_name};
use weir_protocol::frame::MemberId;
use weir_protocol::types::{Name, Offset};

/// Version of the encoding: the oldest that has all commands, so that builds that know no others read
/// the log for as long as nobody shares a subscription.
const VERSION: u16 = 1;
const VERSION_SHARING: u16 = 2;
/// Version and count.
const PREFIX_BYTES: usize = 4;

/// Number of a durable subscription within its partition, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SubscriptionId(pub(super) u32);

/// One change of a partition's replicated state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// A durable subscription exists from here on, with this cursor.
    Create {
        /// Its number: one more than any before.
        subscription: SubscriptionId,
        /// Everything below is settled.
        cursor: Offset,
        /// Its name.
        name: Name,
    },
    /// Everything below the cursor is settled.
    Settle {
        /// Whose.
        subscription: SubscriptionId,
        /// The new cursor; one that is lower than the present one changes nothing.
        cursor: Offset,
    },
    /// The subscription is gone.
    Delete {
        /// Which.
        subscription: SubscriptionId,
    },
    /// The log begins here for every reader.
    Trim {
        /// Its new start; one that is lower than the present one changes nothing.
        log_start: Offset,
    },
    /// A member shares a subscription from here on, or its topic has grown.
    Join {
        /// What it shares.
        subscription: Name,
        /// Who.
        member: MemberId,
        /// Partitions of the topic.
        partitions: u32,
    },
    /// A member is gone.
    Leave {
        /// What it shared.
        subscription: Name,
        /// Who.
        member: MemberId,
    },
    /// A member reads nothing any more of what it was told to give up.
    Release {
        /// What it shares.
        subscription: Name,
        /// Who.
        member: MemberId,
        /// Told up to this epoch.
        epoch: u64,
    },
}

impl Command {
    /// Its length within a control section.
    pub(super) fn encoded_len(&self) -> usize {
        match self {
            Self::Create { name, .. } => 1 + 4 + 8 + 1 + name.as_str().len(),
            Self::Settle { .. } => 1 + 4 + 8,
            Self::Delete { .. } => 1 + 4,
            Self::Trim { .. } => 1 + 8,
            Self::Join { subscription, .. } => 1 + 8 + 4 + 1 + subscription.as_str().len(),
            Self::Leave { subscription, .. } => 1 + 8 + 1 + subscription.as_str().len(),
            Self::Release { subscription, .. } => 1 + 8 + 8 + 1 + subscription.as_str().len(),
        }
    }

    fn version(&self) -> u16 {
        match self {
            Self::Create { .. } | Self::Settle { .. } | Self::Delete { .. } | Self::Trim { .. } => {
                VERSION
            }
            Self::Join { .. } | Self::Leave { .. } | Self::Release { .. } => VERSION_SHARING,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Create { subscription, cursor, name } => {
                out.push(1);
                out.extend_from_slice(&subscription.0.to_le_bytes());
                out.extend_from_slice(&cursor.to_le_bytes());
                put_name(out, name);
            }
            Self::Settle { subscription, cursor } => {
                out.push(2);
                out.extend_from_slice(&subscription.0.to_le_bytes());
                out.extend_from_slice(&cursor.to_le_bytes());
            }
            Self::Delete { subscription } => {
                out.push(3);
                out.extend_from_slice(&subscription.0.to_le_bytes());
            }
            Self::Trim { log_start } => {
                out.push(4);
                out.extend_from_slice(&log_start.to_le_bytes());
            }
            Self::Join { subscription, member, partitions } => {
                out.push(5);
                out.extend_from_slice(&member.0.to_le_bytes());
                out.extend_from_slice(&partitions.to_le_bytes());
                put_name(out, subscription);
            }
            Self::Leave { subscription, member } => {
                out.push(6);
                out.extend_from_slice(&member.0.to_le_bytes());
                put_name(out, subscription);
            }
            Self::Release { subscription, member, epoch } => {
                out.push(7);
                out.extend_from_slice(&member.0.to_le_bytes());
                out.extend_from_slice(&epoch.to_le_bytes());
                put_name(out, subscription);
            }
        }
    }

    fn decode(version: u16, fields: &mut Fields<'_>) -> Result<Self, WireError> {
        let kind = fields.u8("command kind")?;
        if kind > 4 && version >= VERSION_SHARING {
            return Self::decode_sharing(kind, fields);
        }
        if kind == 4 {
            return Ok(Self::Trim { log_start: Offset(fields.u64("log start")?) });
        }
        let subscription = SubscriptionId(fields.u32("subscription")?);
        Ok(match kind {
            1 => {
                let cursor = Offset(fields.u64("cursor")?);
                Self::Create { subscription, cursor, name: fields.name("subscription name")? }
            }
            2 => Self::Settle { subscription, cursor: Offset(fields.u64("cursor")?) },
            3 => Self::Delete { subscription },
            _ => return Err(WireError::Content("command kind")),
        })
    }

    fn decode_sharing(kind: u8, fields: &mut Fields<'_>) -> Result<Self, WireError> {
        let member = MemberId(fields.u64("member")?);
        let partitions = if kind == 5 { fields.u32("partitions")? } else { 0 };
        let epoch = if kind == 7 { fields.u64("epoch")? } else { 0 };
        let subscription = fields.name("subscription name")?;
        Ok(match kind {
            5 => Self::Join { subscription, member, partitions },
            6 => Self::Leave { subscription, member },
            7 => Self::Release { subscription, member, epoch },
            _ => return Err(WireError::Content("command kind")),
        })
    }
}

/// A control section's content, without its CRC.
pub(super) fn encode(commands: &[Command]) -> Vec<u8> {
    let len = PREFIX_BYTES + commands.iter().map(Command::encoded_len).sum::<usize>();
    let mut out = Vec::with_capacity(len);
    let version = commands.iter().map(Command::version).max().unwrap_or(VERSION);
    out.extend_from_slice(&version.to_le_bytes());
    let count = u16::try_from(commands.len()).expect("a control batch is bounded in bytes");
    out.extend_from_slice(&count.to_le_bytes());
    for command in commands {
        command.encode(&mut out);
    }
    out
}

/// Reads what [`encode`] wrote, in this version or an earlier one.
pub(super) fn decode(content: &[u8]) -> Result<Vec<Command>, WireError> {
    let mut fields = Fields(content);
    let version = fields.u16("version")?;
    if !(VERSION..=VERSION_SHARING).contains(&version) {
        let known = VERSION_SHARING;
        return Err(WireError::Version { what: "a control batch", version, known });
    }
    let count = fields.u16("count")?;
    let commands =
        (0..count).map(|_| Command::decode(version, &mut fields)).collect::<Result<_, _>>()?;
    fields.end()?;
    Ok(commands)
}

/// A control section's commands in words, for the offline tools.
pub fn describe_commands(content: &[u8]) -> Result<Vec<String>, WireError> {
    let describe = |command: &Command| match command {
        Command::Create { subscription, cursor, name } => {
            format!("create subscription {} {name} with cursor {cursor}", subscription.0)
        }
        Command::Settle { subscription, cursor } => {
            format!("settle everything below {cursor} for subscription {}", subscription.0)
        }
        Command::Delete { subscription } => format!("delete subscription {}", subscription.0),
        Command::Trim { log_start } => format!("trim everything below {log_start}"),
        Command::Join { subscription, member, partitions } => {
            format!("member {:016x} shares {partitions} partitions of {subscription}", member.0)
        }
        Command::Leave { subscription, member } => {
            format!("member {:016x} leaves {subscription}", member.0)
        }
        Command::Release { subscription, member, epoch } => {
            let member = member.0;
            format!("member {member:016x} has given up what it should of {subscription} by {epoch}")
        }
    };
    Ok(decode(content)?.iter().map(describe).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Vec<Command> {
        let subscription = SubscriptionId(3);
        vec![
            Command::Create {
                subscription,
                cursor: Offset(0x0102),
                name: Name::new("audit").unwrap(),
            },
            Command::Settle { subscription, cursor: Offset(0x0304) },
            Command::Delete { subscription },
            Command::Trim { log_start: Offset(u64::MAX) },
        ]
    }

    /// These bytes are in logs: they are never changed, only followed by a new version.
    #[test]
    fn version_1_is_fixed_for_ever() {
        let golden = [
            1, 0, 4, 0, // version 1, four commands
            1, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 5, b'a', b'u', b'd', b'i', b't', // create
            2, 3, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0, // settle
            3, 3, 0, 0, 0, // delete
            4, 255, 255, 255, 255, 255, 255, 255, 255, // trim
        ];
        assert_eq!(encode(&example()), golden);
        assert_eq!(decode(&golden), Ok(example()));
    }

    #[test]
    fn version_2_is_fixed_for_ever() {
        let (subscription, member) = (Name::new("audit").unwrap(), MemberId(0x0506));
        let commands = vec![
            Command::Join { subscription: subscription.clone(), member, partitions: 7 },
            Command::Release { subscription: subscription.clone(), member, epoch: 9 },
            Command::Leave { subscription, member },
        ];
        let mut golden = vec![2, 0, 3, 0];
        golden.extend([5, 6, 5, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 5, b'a', b'u', b'd', b'i', b't']);
        golden.extend([7, 6, 5, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([5, b'a', b'u', b'd', b'i', b't']);
        golden.extend([6, 6, 5, 0, 0, 0, 0, 0, 0, 5, b'a', b'u', b'd', b'i', b't']);
        assert_eq!(encode(&commands), golden);
        assert_eq!(decode(&golden), Ok(commands));
        // A build before would have refused it; nothing of it hides in a batch of its version.
        golden[0] = 1;
        assert_eq!(decode(&golden), Err(WireError::Content("command kind")));
    }

    #[test]
    fn what_no_version_writes_is_refused() {
        let good = encode(&example());
        for len in 0..good.len() {
            assert!(decode(&good[..len]).is_err(), "cut at {len}");
        }
        let mut newer = good.clone();
        newer[0] = 3;
        assert!(matches!(decode(&newer), Err(WireError::Version { version: 3, .. })));
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(decode(&longer), Err(WireError::Trailing(1)));
        let mut unknown = good;
        unknown[4] = 9;
        assert!(decode(&unknown).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes);
        }
    }
}
