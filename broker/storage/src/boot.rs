//! The file `boot.meta` of a log whose appends are acknowledged before they are flushed: in which
//! run of the operating system it was open, and whether it was closed in order.
//!
//! Owns: the file, its format, and what a mark says about the end before it.
//! Never: guesses in favour of what may be lost: a mark that is not whole was left by no orderly
//! end.
//! Invariants: the file is replaced as a whole. The end of a process alone loses nothing, because
//! the operating system keeps what was written; so the run of that is what counts.
//!
//! ```text
//!  0 magic8 "WEIRBOO\x01"  8 crc4 of [12..64)  12 version2=1  14 flags1 (1 = closed in order)  15 zero1
//! 16 boot_id16            32 log_uuid16        48 losses4     52 zero4    56 lost_after8
//! ```

use crate::disk::Disk;
use crate::error::OpenError;
use crate::sealed;
use std::io;
use std::path::Path;
use weir_protocol::types::Index;

const NAME: &str = "boot.meta";
const MAGIC: [u8; 8] = *b"WEIRBOO\x01";
const VERSION: u16 = 1;
const FILE_BYTES: usize = 64;
/// A newer version may be longer; its checksum covers all of it.
const FILE_BYTES_MAX: usize = 4 << 10;
const FLAG_IN_ORDER: u8 = 1;

/// What `boot.meta` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BootMark {
    /// Identity of the log.
    pub uuid: u128,
    /// The run of the operating system in which the log was opened last; 0 = not known.
    pub boot_id: u128,
    /// Everything was flushed when it was closed.
    pub in_order: bool,
    /// How often the operating system ended with what was acknowledged and not flushed.
    pub losses: u32,
    /// Behind this index something is missing, since the last of these.
    pub lost_after: Index,
}

impl BootMark {
    /// Whether a log that is opened in the run `boot_id` may lack what it acknowledged. Two runs that
    /// are not known count as two.
    pub fn may_lack(&self, boot_id: u128) -> bool {
        !self.in_order && (self.boot_id != boot_id || boot_id == 0)
    }

    /// Reads the mark of the log `uuid` in `dir`; none where no such log was ever opened there.
    pub fn read(disk: &dyn Disk, dir: &Path, uuid: u128) -> Result<Option<Self>, OpenError> {
        let path = dir.join(NAME);
        let read = sealed::read_small(disk, &path, FILE_BYTES_MAX);
        let Some(bytes) = read.map_err(OpenError::device(&path))? else { return Ok(None) };
        let unknown = Self { uuid, ..Self::default() };
        if bytes.len() < FILE_BYTES || !sealed::is_whole(&bytes, MAGIC) {
            return Ok(Some(unknown));
        }
        let found = u16::from_le_bytes([bytes[12], bytes[13]]);
        if found != VERSION {
            return Err(OpenError::Newer { file: path, found, known: VERSION });
        }
        let mark = Self::decode(&bytes);
        Ok(Some(if mark.uuid == uuid { mark } else { unknown }))
    }

    /// Writes it down, durably, in place of what was said before.
    pub fn store(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        sealed::replace_small(disk, dir, NAME, &self.encode())
    }

    fn encode(&self) -> [u8; FILE_BYTES] {
        let mut bytes = [0; FILE_BYTES];
        bytes[12..14].copy_from_slice(&VERSION.to_le_bytes());
        bytes[14] = if self.in_order { FLAG_IN_ORDER } else { 0 };
        bytes[16..32].copy_from_slice(&self.boot_id.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.uuid.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.losses.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.lost_after.to_le_bytes());
        sealed::seal(&mut bytes, MAGIC);
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let number = |from: usize, to: usize| {
            bytes[from..to].iter().rev().fold(0u128, |number, byte| number << 8 | u128::from(*byte))
        };
        Self {
            uuid: number(32, 48),
            boot_id: number(16, 32),
            in_order: bytes[14] & FLAG_IN_ORDER != 0,
            losses: number(48, 52) as u32,
            lost_after: Index(number(56, 64) as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os_disk::{Backend, OsDisk};

    const MARK: BootMark =
        BootMark { uuid: 0xAB, boot_id: 0xB007, in_order: true, losses: 2, lost_after: Index(9) };

    #[test]
    fn a_mark_has_its_golden_bytes_and_no_flipped_bit_makes_a_clean_one() {
        let (disk, dir) = (OsDisk::new(Backend::Map), tempfile::tempdir().unwrap());
        let read = || BootMark::read(&disk, dir.path(), 0xAB).unwrap();
        assert_eq!(read(), None);
        MARK.store(&disk, dir.path()).unwrap();
        assert_eq!(read(), Some(MARK));
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        let hex: String = whole.iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = "57454952424f4f01b7716c420100010007b00000000000000000000000000000ab00000000000000000000000000000002000000000000000900000000000000";
        assert_eq!(hex, golden);
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).unwrap();
            let bent = read().expect("the file is there");
            assert!(bent.may_lack(MARK.boot_id), "bit {bit}: {bent:?}");
        }
        for cut in [0, 11, 63] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(read().unwrap().may_lack(MARK.boot_id), "cut {cut}");
        }
        std::fs::write(&path, &whole).unwrap();
        let other = BootMark::read(&disk, dir.path(), 0xAC).unwrap().unwrap();
        assert!(other.may_lack(MARK.boot_id), "it is of another log");
    }

    #[test]
    fn a_mark_of_a_newer_version_is_not_read() {
        let (disk, dir) = (OsDisk::new(Backend::Map), tempfile::tempdir().unwrap());
        let mut bytes = MARK.encode();
        bytes[12] = 2;
        sealed::seal(&mut bytes, MAGIC);
        std::fs::write(dir.path().join(NAME), bytes).unwrap();
        let read = BootMark::read(&disk, dir.path(), 0xAB);
        assert!(matches!(read, Err(OpenError::Newer { found: 2, known: 1, .. })), "{read:?}");
    }

    #[test]
    fn only_the_end_of_the_operating_system_takes_what_was_not_flushed() {
        let open = BootMark { in_order: false, ..MARK };
        assert!(!open.may_lack(MARK.boot_id), "the process ended alone");
        assert!(open.may_lack(MARK.boot_id + 1));
        assert!(!MARK.may_lack(MARK.boot_id + 1), "it was closed in order");
        assert!(BootMark { boot_id: 0, ..open }.may_lack(0), "neither run is known");
    }
}
