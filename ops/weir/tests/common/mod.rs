//! The real binary, in processes of its own.
//!
//! Owns: a broker and its scratch folder; running client commands against it.
//! Never: leaves a process behind.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub mod stopped;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

pub const WEIR: &str = env!("CARGO_BIN_EXE_weir");

/// A broker process.
pub struct Broker {
    child: Child,
    pub native: String,
    pub admin: String,
    pub ready_line: String,
}

impl Broker {
    /// Starts on any ports.
    pub fn start(data_dir: &Path) -> Self {
        Self::start_at(data_dir, "127.0.0.1:0")
    }

    pub fn start_at(data_dir: &Path, listen: &str) -> Self {
        let mut child = Command::new(WEIR)
            .args(["serve", "--admin", "127.0.0.1:0", "--listen", listen, "--data-dir"])
            .arg(data_dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut ready_line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready_line).unwrap();
        let field = |name: &str| {
            let mut words = ready_line.split_whitespace();
            words.find_map(|word| word.strip_prefix(name)).unwrap_or_default().to_owned()
        };
        let (native, admin) = (field("native="), field("admin="));
        Self { child, native, admin, ready_line }
    }

    /// `weir ARGS`, with this broker as its endpoint.
    pub fn weir(&self, args: &[&str]) -> Command {
        let mut command = Command::new(WEIR);
        command
            .args(args)
            .env("WEIR_ENDPOINT", format!("weir://{}", self.native))
            .env("WEIR_ADMIN", &self.admin);
        command
    }

    /// Runs it, which must succeed, and returns what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.weir(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it with this on stdin; it must succeed.
    pub fn ok_with_input(&self, args: &[&str], input: &[u8]) -> String {
        let output = run_with_input(self.weir(args), input);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it, which must fail with this status; returns what it said.
    pub fn fails(&self, status: i32, args: &[&str]) -> String {
        failure(self.weir(args), status)
    }

    /// The body of an admin page, with its status line.
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; returns the exit status.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn run_with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// Runs a command that must fail with this status; returns what it said on stderr.
pub fn failure(mut command: Command, status: i32) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}
