//! A long input that one `weir pub` publishes across all cuts.
//!
//! Owns: the numbered lines, of different lengths, and their comparison in the end.
//! Never: resends an acknowledged line: `weir pub` does not, so a lost one would be missing.

use crate::mount::run;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const TOPIC: &str = "lines";

pub(crate) struct Lines {
    publisher: Child,
    fed: String,
    count: u64,
}

impl Lines {
    pub(crate) fn publish(weir: &Path, endpoint: &str) -> Result<Self, String> {
        let client = || {
            let mut command = Command::new(weir);
            command.env("WEIR_ENDPOINT", endpoint);
            command
        };
        run(client().args(["topic", "create", TOPIC, "--max-bytes", "32MiB"]))?;
        let publisher = client()
            .args(["pub", TOPIC, "--producer", "survivor"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        Ok(Self { publisher, fed: String::new(), count: 0 })
    }

    /// Gives the publisher so many lines more. It takes them also while there is no broker, up to
    /// the size of its window.
    pub(crate) fn feed(&mut self, lines: u64) -> Result<(), String> {
        let start = self.fed.len();
        for number in self.count..self.count + lines {
            let width = (number * 7 % 150) as usize;
            let _ = writeln!(self.fed, "{number} {:width$}", "");
        }
        self.count += lines;
        let stdin = self.publisher.stdin.as_mut().ok_or("no stdin")?;
        stdin.write_all(&self.fed.as_bytes()[start..]).map_err(|e| format!("weir pub: {e}"))
    }

    /// Waits until everything is acknowledged, and compares. Returns how many lines there are.
    pub(crate) fn finish(mut self, weir: &Path, endpoint: &str) -> Result<u64, String> {
        drop(self.publisher.stdin.take());
        let status = self.publisher.wait().map_err(|e| e.to_string())?;
        if !status.success() {
            let said = self.publisher.stderr.take().and_then(|it| std::io::read_to_string(it).ok());
            return Err(format!("weir pub: {status}: {}", said.unwrap_or_default()));
        }
        let mut reader = Command::new(weir);
        reader.args(["sub", TOPIC, "--from", "earliest", "--exit-at-end"]);
        let stored = run(reader.env("WEIR_ENDPOINT", endpoint))?;
        if stored == self.fed {
            return Ok(self.count);
        }
        let same = self.fed.lines().zip(stored.lines()).take_while(|(fed, found)| fed == found);
        let (first, found) = (same.count(), stored.lines().count());
        Err(format!(
            "topic {TOPIC}: {} lines were acknowledged, {found} are there, and line {first} is \
             another: {:?}",
            self.count,
            stored.lines().nth(first)
        ))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.publisher.kill();
        let _ = self.publisher.wait();
    }
}
