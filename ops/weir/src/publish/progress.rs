//! What `weir pub` shows: a bar on a terminal, a summary at the end.
//!
//! Owns: the counts. Never: prints to stdout.

use indicatif::{ProgressBar, ProgressStyle};
use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// Counts what is stored.
pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
    messages: u64,
    bytes: u64,
    skipped: u64,
}

impl Progress {
    /// The length of the bar is the size of the files, where they all have one.
    pub(crate) fn new(files: &[PathBuf]) -> Self {
        let sizes = files.iter().map(|file| fs::metadata(file).ok().map(|found| found.len()));
        let total = sizes.sum::<Option<u64>>().filter(|total| *total > 0);
        let bar = match total {
            _ if !std::io::stderr().is_terminal() => ProgressBar::hidden(),
            Some(total) => ProgressBar::new(total).with_style(
                ProgressStyle::with_template(
                    "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                )
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
            ),
            None => ProgressBar::new_spinner(),
        };
        Self { bar, started: Instant::now(), messages: 0, bytes: 0, skipped: 0 }
    }

    /// One message is stored.
    pub(crate) fn stored(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes as u64;
        self.bar.inc(bytes as u64 + 1);
    }

    /// One message was stored by an earlier run.
    pub(crate) fn skipped(&mut self, bytes: usize) {
        self.skipped += 1;
        self.bar.inc(bytes as u64 + 1);
    }

    /// Ends the bar and says what was done.
    pub(crate) fn finish(&self) -> String {
        self.bar.finish_and_clear();
        summary(self.messages, self.bytes, self.skipped, self.started.elapsed())
    }
}

fn summary(messages: u64, bytes: u64, skipped: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let rate = messages as f64 / seconds.max(1e-9);
    let skipped = match skipped {
        0 => String::new(),
        count => format!(", {count} skipped (stored by an earlier run)"),
    };
    format!("{messages} messages, {bytes} bytes stored in {seconds:.2} s ({rate:.0}/s){skipped}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_was_stored_and_what_was_not_needed() {
        let text = summary(10, 100, 3, Duration::from_secs(2));
        assert_eq!(
            text,
            "10 messages, 100 bytes stored in 2.00 s (5/s), 3 skipped (stored by an earlier run)"
        );
    }
}
