//! How far a long run came, in a file that the next one goes on with.
//!
//! Owns: its lines: `commit HASH`, `done FIRST..END`, `failed SEED REASON`.
//! Never: changes a line: it only adds some.
//! Invariant: what a run of another commit has done counts only if the user says so.

use super::Seeds;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What is done, and where that is written down.
#[derive(Debug, Default)]
pub(super) struct Record {
    file: Option<(File, PathBuf)>,
    done: BTreeSet<u64>,
    failed: Vec<u64>,
}

impl Record {
    /// Reads the file, which need not be there; without one nothing is done or written down.
    pub(super) fn open(
        path: Option<&Path>,
        commit: &str,
        any_commit: bool,
    ) -> Result<Self, String> {
        let Some(path) = path else { return Ok(Self::default()) };
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        let text = match fs::read_to_string(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            read => read.map_err(failed)?,
        };
        let mut record = Self::default();
        let mut of = None;
        for (number, line) in text.lines().enumerate() {
            let known = match line.split_once(' ') {
                Some(("commit", hash)) => {
                    of = Some(hash);
                    true
                }
                Some((word, rest)) => record.take(word, rest),
                None => false,
            };
            if !known {
                let (path, number) = (path.display(), number + 1);
                return Err(format!(
                    "{path}:{number}: {line:?} is no line of a simulation's record"
                ));
            }
        }
        if let Some(other) = of.filter(|other| *other != commit && !any_commit) {
            return Err(format!(
                "{} was written at commit {other}, and this is {commit}: name another file, or go \
                 on nevertheless with --any-commit",
                path.display()
            ));
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        record.file = Some((file, path.to_owned()));
        if of != Some(commit) {
            record.write(&format!("commit {commit}"))?;
        }
        Ok(record)
    }

    /// Takes in a line that tells of seeds. False: it does not.
    fn take(&mut self, word: &str, rest: &str) -> bool {
        match word {
            "done" => rest.parse::<Seeds>().map(|Seeds(seeds)| self.done.extend(seeds)).is_ok(),
            "failed" => {
                let seed = rest.split(' ').next().and_then(|seed| seed.parse().ok());
                seed.map(|seed| self.failed.push(seed)).is_some()
            }
            _ => false,
        }
    }

    pub(super) fn is_done(&self, seed: u64) -> bool {
        self.done.contains(&seed)
    }

    /// Seeds that failed in earlier runs.
    pub(super) fn failed(&self) -> &[u64] {
        &self.failed
    }

    /// Writes down that a seed failed.
    pub(super) fn failed_at(&mut self, seed: u64, reason: &str) -> Result<(), String> {
        self.write(&format!("failed {seed} {reason}"))
    }

    /// Writes down that seeds are done.
    pub(super) fn done(&mut self, seeds: &Range<u64>) -> Result<(), String> {
        self.write(&format!("done {}", Seeds(seeds.clone())))
    }

    fn write(&mut self, line: &str) -> Result<(), String> {
        let Some((file, path)) = &mut self.file else { return Ok(()) };
        writeln!(file, "{line}").map_err(|e| format!("{}: {e}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::Record;
    use std::fs;

    #[test]
    fn a_run_goes_on_where_the_last_one_of_its_commit_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let open = |commit, any| Record::open(Some(&path), commit, any);
        let mut first = open("abc", false).unwrap();
        assert!(!first.is_done(4));
        first.failed_at(6, "it hung").unwrap();
        first.done(&(4..7)).unwrap();
        drop(first);
        let second = open("abc", false).unwrap();
        assert!(second.is_done(4) && second.is_done(6) && !second.is_done(7));
        assert_eq!(second.failed(), [6]);
        let refused = open("def", false).unwrap_err();
        assert!(refused.contains("abc") && refused.contains("--any-commit"), "{refused}");
        assert!(open("def", true).unwrap().is_done(5));
        // From now on it is the other one's.
        assert!(open("def", false).is_ok() && open("abc", false).is_err());
    }

    #[test]
    fn a_file_of_something_else_is_named_with_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        fs::write(&path, "commit abc\ndone 4-7\n").unwrap();
        let refused = Record::open(Some(&path), "abc", false).unwrap_err();
        assert!(refused.contains(":2:") && refused.contains("done 4-7"), "{refused}");
    }
}
