//! A real `weir` broker in a process of its own.
//!
//! Owns: the child, its ready line and its end.
//! Never: leaves it running: it is killed on drop.

use crate::mount::run;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// No start of these chores takes a tenth of it.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A running broker.
pub(crate) struct BrokerProcess {
    child: Child,
    /// `weir://HOST:PORT`.
    pub(crate) endpoint: String,
}

impl BrokerProcess {
    /// Starts `weir serve` and waits for its ready line. Port 0 picks one.
    pub(crate) fn start(weir: &Path, data_dir: &Path, port: u16) -> Result<Self, String> {
        Self::spawn(&mut serve(weir, data_dir, port))
    }

    /// The same, with a configuration file.
    pub(crate) fn start_with(
        weir: &Path,
        data_dir: &Path,
        port: u16,
        config: &Path,
    ) -> Result<Self, String> {
        Self::spawn(serve(weir, data_dir, port).arg("--config").arg(config))
    }

    /// The same, and what it logs goes into a file.
    pub(crate) fn start_logging(
        weir: &Path,
        data_dir: &Path,
        port: u16,
        log: File,
    ) -> Result<Self, String> {
        Self::spawn(serve(weir, data_dir, port).stderr(log))
    }

    /// Runs any `weir serve` and waits for its ready line.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self, String> {
        let mut child =
            command.stdout(Stdio::piped()).spawn().map_err(|e| format!("{command:?}: {e}"))?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let Some(line) = first_line(stdout) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("the broker did not get ready within {READY_WITHIN:?}"));
        };
        let field = |name: &str| {
            let prefix = format!("{name}=");
            line.split_whitespace().find_map(|word| word.strip_prefix(&prefix)).map(str::to_owned)
        };
        match (line.starts_with("weir ready "), field("native")) {
            (true, Some(native)) => Ok(Self { child, endpoint: format!("weir://{native}") }),
            _ => {
                let status = child.wait().map_err(|e| e.to_string())?;
                Err(format!("the broker did not get ready: {line:?}, {status}"))
            }
        }
    }

    /// The port of the native listener.
    pub(crate) fn port(&self) -> Result<u16, String> {
        let port = self.endpoint.rsplit(':').next().and_then(|port| port.parse().ok());
        port.ok_or_else(|| format!("{} has no port", self.endpoint))
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) fn kill(mut self) -> Result<(), String> {
        self.child.kill().map_err(|e| e.to_string())?;
        self.child.wait().map(|_| ()).map_err(|e| e.to_string())
    }

    /// SIGTERM, and waits until the broker has drained.
    pub(crate) fn stop(mut self) -> Result<(), String> {
        run(Command::new("kill").args(["-TERM", &self.pid().to_string()]))?;
        let status = self.child.wait().map_err(|e| e.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("a broker ended with {status}")) }
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process that hangs never prints is not waited for any longer: the reading thread ends
/// with the process.
fn first_line(stdout: ChildStdout) -> Option<String> {
    let (found, line) = mpsc::sync_channel(1);
    let read = move || {
        let mut line = String::new();
        let _ = BufReader::new(stdout).read_line(&mut line);
        let _ = found.send(line);
    };
    thread::Builder::new().spawn(read).ok()?;
    line.recv_timeout(READY_WITHIN).ok()
}

fn serve(weir: &Path, data_dir: &Path, port: u16) -> Command {
    let mut command = Command::new(weir);
    command.args(["serve", "--admin", "127.0.0.1:0", "--listen"]).arg(format!("127.0.0.1:{port}"));
    command.arg("--data-dir").arg(data_dir);
    command
}

/// The release binary of this workspace.
pub(crate) fn weir_binary(root: &Path) -> Result<PathBuf, String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let binary = target.join("release/weir");
    if binary.is_file() {
        Ok(binary)
    } else {
        Err(format!("{} is missing: cargo build --release -p weir", binary.display()))
    }
}
