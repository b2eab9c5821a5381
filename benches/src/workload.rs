//! A load, as a YAML file or the command line describes it.

use crate::audit::STAMP_BYTES;
use crate::schedule::Arrivals;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What to do to a broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    /// Shown in reports.
    pub name: String,
    /// The topic. If it does not exist it is made with its defaults, but keeps 1 GiB a partition.
    pub topic: String,
    /// Partitions of a topic that is made.
    pub partitions: u32,
    /// Publishers, each with a connection of its own.
    pub publishers: usize,
    /// Messages a second of all publishers together; 0 = as many as the window lets through.
    pub rate: f64,
    /// How arrivals are spread where there is a rate.
    pub arrivals: Arrivals,
    /// Unacknowledged messages of one publisher.
    pub window: usize,
    /// Bytes of a message.
    pub message_bytes: usize,
    /// How long to publish.
    pub seconds: f64,
    /// How long before that without counting.
    pub warmup_seconds: f64,
    /// Refuse instead of waiting for credit.
    pub fail_when_full: bool,
    /// Read everything beside it and audit it.
    pub consume: bool,
    /// A message later than this does not count as good.
    pub slo_ms: u64,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            name: "load".to_owned(),
            topic: "bench".to_owned(),
            partitions: 1,
            publishers: 1,
            rate: 0.0,
            arrivals: Arrivals::Constant,
            window: 1_000,
            message_bytes: 1_024,
            seconds: 5.0,
            warmup_seconds: 1.0,
            fail_when_full: false,
            consume: false,
            slo_ms: 100,
        }
    }
}

/// Why a workload cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The file cannot be read.
    #[error("{file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The file is not a workload.
    #[error("{file}: {text}")]
    Syntax {
        /// The file.
        file: String,
        /// What and where.
        text: String,
    },
    /// A value that cannot be.
    #[error("{0}")]
    Value(String),
}

impl Workload {
    /// Reads a YAML file.
    pub fn read(path: &Path) -> Result<Self, WorkloadError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| WorkloadError::Read { file: file.clone(), source })?;
        Self::parse(&text).map_err(|text| WorkloadError::Syntax { file, text })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let workload: Self = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
        workload.check().map_err(|error| error.to_string())?;
        Ok(workload)
    }

    /// Checks what no type can say.
    pub fn check(&self) -> Result<(), WorkloadError> {
        let bad = |text: String| Err(WorkloadError::Value(text));
        if self.message_bytes < STAMP_BYTES {
            return bad(format!("message_bytes is at least {STAMP_BYTES}: the stamp of the audit"));
        }
        if self.publishers == 0 || self.window == 0 || self.partitions == 0 {
            return bad("publishers, window and partitions are at least 1".to_owned());
        }
        if !(self.seconds > 0.0 && self.warmup_seconds >= 0.0 && self.rate >= 0.0) {
            return bad("seconds is positive, warmup_seconds and rate not negative".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_of_this_folder_is_one() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
        assert!(!files.is_empty());
        for file in files {
            Workload::read(&file.unwrap().path()).unwrap();
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text| Workload::parse(text).unwrap_err();
        assert!(error("publisherz: 1").contains("publisherz"));
        assert!(error("message_bytes: 3").contains("at least 24"));
        assert!(error("publishers: 0").contains("publishers"));
        assert!(error("seconds: -1").contains("seconds"));
    }
}
