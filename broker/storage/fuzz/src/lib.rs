//! Coverage-guided inputs for the formats on disk and for recovery.
//!
//! Owns: which part of a valid log an input takes the place of.
//! Never: judges: the promises, and the breaks that are known, are those of `tests/fuzz_replay`.

#[path = "../../tests/fuzz_replay/bends.rs"]
mod bends;
#[path = "../../tests/fuzz_replay/judge.rs"]
mod judge;
#[path = "../../tests/fuzz_replay/logs.rs"]
mod logs;
#[path = "../../tests/fuzz_replay/memory.rs"]
mod memory;
#[path = "../../tests/fuzz_replay/mend.rs"]
mod mend;
#[path = "../../tests/fuzz_replay/promises.rs"]
mod promises;

use logs::Original;
use mend::{COPY_POSITIONS, Mend, SEGMENT_HEADER_BYTES};
use promises::Bent;
use std::sync::OnceLock;

/// What an input takes the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// One or both copies of a segment's header.
    SegmentHeader,
    /// Everything of a segment behind its header.
    Batches,
    /// Copies of the hard state.
    Meta,
    /// The index of a sealed segment.
    Index,
    /// A checkpoint.
    Checkpoint,
    /// The file of damaged ranges.
    Damage,
}

/// Bytes of an input before the content: log, file, copies, what is mended.
const HEAD_BYTES: usize = 4;

fn originals() -> &'static [Original] {
    static ORIGINALS: OnceLock<Vec<Original>> = OnceLock::new();
    ORIGINALS.get_or_init(logs::all)
}

/// Bends a log as an input says, the format of the corpus in `tests/fuzz_replay`.
pub fn recovery(input: &[u8]) {
    let (judgement, bends) = judge::judge(originals(), input);
    settle(judgement, &bends);
}

/// Puts an input in the place of a part of a log.
pub fn part(part: Part, input: &[u8]) {
    let Some((head, content)) = input.split_first_chunk::<HEAD_BYTES>() else { return };
    let [log, file, copies, how] = head.map(usize::from);
    let original = &originals()[log % originals().len()];
    let how = [Mend::File, Mend::Chain, Mend::Batches, Mend::Nothing][how % 4];
    let mut files = original.files.clone();
    let mut names = files.keys().filter(|name| is_of(part, name));
    let count = names.clone().count().max(1);
    let name = names.nth(file % count).cloned().unwrap_or_else(|| "damage".to_owned());
    let bytes = files.entry(name.clone()).or_default();
    match part {
        Part::SegmentHeader => {
            overlay(bytes, &COPY_POSITIONS, copies, &content[..content.len().min(512)])
        }
        Part::Meta => {
            overlay(bytes, &[0, 4_096, 8_192, 12_288], copies, &content[..content.len().min(4_096)])
        }
        Part::Batches => {
            let room = &mut bytes[SEGMENT_HEADER_BYTES..];
            room.fill(0);
            let len = content.len().min(room.len());
            room[..len].copy_from_slice(&content[..len]);
        }
        Part::Index | Part::Checkpoint | Part::Damage => *bytes = content.to_vec(),
    }
    mend::mend(&name, bytes, how);
    // A checksum is made right over what nobody wrote.
    let bent = Bent::Forged;
    settle(judge::judge_files(original, &files, bent), &name);
}

fn is_of(part: Part, name: &str) -> bool {
    match part {
        Part::SegmentHeader | Part::Batches => name.ends_with(".seg"),
        Part::Meta => name == "meta",
        Part::Index => name.ends_with(".idx"),
        Part::Checkpoint => name.ends_with(".ckpt"),
        Part::Damage => name == "damage",
    }
}

/// Over the copies whose bits are set; over all of them if none is.
fn overlay(bytes: &mut [u8], positions: &[usize], copies: usize, content: &[u8]) {
    let all = copies % (1 << positions.len()) == 0;
    for (copy, at) in positions.iter().enumerate() {
        if (all || copies >> copy & 1 == 1)
            && let Some(room) = bytes.get_mut(*at..at + content.len())
        {
            room.copy_from_slice(content);
        }
    }
}

/// Ends the process over a break that nobody knew, which makes libFuzzer keep the input.
fn settle(judgement: judge::Judgement, bent: &dyn std::fmt::Debug) {
    if let Err(broken) = judgement
        && judge::known(&broken).is_none()
    {
        eprintln!("{broken}\n{bent:#?}");
        std::process::abort();
    }
}
