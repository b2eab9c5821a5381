//! A data directory without its broker.
//!
//! Owns: making one, damaging it, and running `weir data` and `weir serve` over it.

use super::{Broker, WEIR};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A data directory whose broker was stopped.
pub struct Stopped {
    _scratch: tempfile::TempDir,
    pub dir: PathBuf,
}

impl Stopped {
    /// Of no broker yet.
    pub fn empty() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        Self { dir: scratch.path().join("data"), _scratch: scratch }
    }

    /// Topic `t`, six batches of one record each.
    pub fn new() -> Self {
        let stopped = Self::empty();
        let broker = Broker::start(&stopped.dir);
        broker.ok(&["topic", "create", "t"]);
        for number in 0..5 {
            broker.ok(&["pub", "t", "-m", &format!("message {number}"), "-k", "k", "-H", "a=1"]);
        }
        broker.ok_with_input(&["pub", "t"], b"no \xff text\x1b\n");
        assert_eq!(broker.terminate(), Some(0));
        stopped
    }

    /// `weir data ARGS --data-dir` this one.
    pub fn data(&self, args: &[&str]) -> Said {
        let mut command = Command::new(WEIR);
        command.arg("data").args(args).arg("--data-dir").arg(&self.dir);
        said(command)
    }

    pub fn folder(&self) -> PathBuf {
        let names = fs::read_dir(&self.dir).unwrap().map(|item| item.unwrap().path());
        let is_partition =
            |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("p-");
        names.into_iter().find(is_partition).unwrap()
    }

    pub fn name(&self) -> String {
        self.folder().file_name().unwrap().to_string_lossy().into_owned()
    }

    pub fn segment(&self) -> PathBuf {
        file_in(&self.folder(), "seg")
    }

    /// Where the batch that holds an offset stands, and how long it is.
    pub fn batch_of(&self, offset: u64) -> (u64, u64) {
        let lines = dump(&self.segment(), &["-o", "json"]).json_lines();
        let holds = |line: &&Value| line["type"] == "data" && line["base_offset"] == offset;
        let batch = lines.iter().find(holds).unwrap();
        (batch["position"].as_u64().unwrap(), batch["bytes"].as_u64().unwrap())
    }

    /// The segment of the metadata, and where its commands stand.
    pub fn metadata_commands(&self) -> (PathBuf, Vec<u64>) {
        let segment = file_in(&self.dir.join("metadata"), "seg");
        let lines = dump(&segment, &["-o", "json"]).json_lines();
        let commands = lines.iter().filter(|line| line["type"] == "control");
        let positions = commands.map(|line| line["position"].as_u64().unwrap()).collect();
        (segment, positions)
    }

    /// Starts a broker that must refuse to; returns what it said.
    pub fn does_not_start(&self) -> Said {
        let mut serve = Command::new(WEIR);
        serve.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir"]);
        serve.arg(&self.dir);
        said(serve).expect(1)
    }

    /// Changes a byte in the payload of the batch that holds an offset.
    pub fn damage(&self, offset: u64) {
        let (position, _) = self.batch_of(offset);
        flip(&self.segment(), position + 140);
    }

    pub fn read_all(&self) -> String {
        let broker = Broker::start(&self.dir);
        let mut reader = broker.weir(&["sub", "t", "--from", "earliest", "--exit-at-end"]);
        let output = reader.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Every file but LOCK, with its bytes.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.dir.clone()];
        while let Some(folder) = folders.pop() {
            for item in fs::read_dir(folder).unwrap() {
                let path = item.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with("LOCK") {
                    files.insert(path.clone(), fs::read(path).unwrap());
                }
            }
        }
        files
    }
}

pub fn file_in(folder: &Path, extension: &str) -> PathBuf {
    let mut paths = fs::read_dir(folder).unwrap().map(|item| item.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|found| found == extension)).unwrap()
}

pub fn flip(path: &Path, position: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[!byte[0]], position).unwrap();
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Said {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    #[track_caller]
    pub fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "{self:?}");
        self
    }

    #[track_caller]
    pub fn has(self, words: &[&str]) -> Self {
        let all = format!("{}{}", self.out, self.err);
        for word in words {
            assert!(all.contains(word), "{word:?} is not in:\n{all}");
        }
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap()
    }

    pub fn json_lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub fn said(mut command: Command) -> Said {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    Said {
        status: status.code(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

pub fn dump(path: &Path, more: &[&str]) -> Said {
    let mut command = Command::new(WEIR);
    command.args(["data", "dump"]).arg(path).args(more);
    said(command)
}
