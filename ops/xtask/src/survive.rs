//! Publishes a file while its broker is killed again and again.
//!
//! Owns: the proof that what was acknowledged is there afterwards, once, in order, byte for byte.
//! Never: resends an acknowledged line: `weir pub` does not, so a lost one would be missing.

use crate::mount::run;
use crate::process::{BrokerProcess, weir_binary};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Publishes the lines of `file` across `kills` kills (SIGKILL) of the broker.
pub(crate) fn kills(root: &Path, file: &Path, kills: u32) -> Result<String, String> {
    let scratch = std::env::temp_dir().join(format!("weir-kills-{}", std::process::id()));
    fs::create_dir_all(&scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
    let run = Run {
        weir: weir_binary(root)?,
        data_dir: scratch.join("data"),
        input: file.to_owned(),
        output: scratch.join("output"),
    };
    let outcome = run.publish_across(kills);
    let _ = fs::remove_dir_all(&scratch);
    let took = outcome?;
    let bytes = fs::metadata(file).map_err(|e| e.to_string())?.len();
    Ok(format!(
        "{kills} kills: {bytes} bytes of lines are there once, in order, byte for byte \
         ({took:.1?})"
    ))
}

struct Run {
    weir: PathBuf,
    data_dir: PathBuf,
    input: PathBuf,
    output: PathBuf,
}

impl Run {
    /// Publishes the input; kills the broker `times` times and starts it anew. Returns how long
    /// publishing took.
    fn publish_across(&self, times: u32) -> Result<Duration, String> {
        let mut broker = BrokerProcess::start(&self.weir, &self.data_dir, 0)?;
        let (endpoint, port) = (broker.endpoint.clone(), broker.port()?);
        let client = || {
            let mut command = Command::new(&self.weir);
            command.env("WEIR_ENDPOINT", &endpoint);
            command
        };
        run(client().args(["topic", "create", "lines"]))?;
        let began = crate::now();
        let mut publisher = client()
            .args(["pub", "lines", "--producer", "survivor"])
            .arg(&self.input)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        for time in 0..times {
            std::thread::sleep(Duration::from_millis(250 + u64::from(time) * 131 % 400));
            if publisher.try_wait().map_err(|e| e.to_string())?.is_some() {
                let time = time + 1;
                return Err(format!("publishing ended before kill {time}: the input is too short"));
            }
            broker.kill()?;
            broker = BrokerProcess::start(&self.weir, &self.data_dir, port)?;
        }
        let published = publisher.wait_with_output().map_err(|e| e.to_string())?;
        let took = began.elapsed();
        if !published.status.success() {
            let said = String::from_utf8_lossy(&published.stderr);
            return Err(format!("weir pub: {}: {said}", published.status));
        }
        let stored = fs::File::create(&self.output).map_err(|e| e.to_string())?;
        run(client().args(["sub", "lines", "--from", "earliest", "--exit-at-end"]).stdout(stored))?;
        broker.kill()?;
        self.compare()?;
        Ok(took)
    }

    /// The last line may lack its newline in the input; what is printed has it.
    fn compare(&self) -> Result<(), String> {
        let input = fs::metadata(&self.input).map_err(|e| e.to_string())?.len();
        let output = fs::metadata(&self.output).map_err(|e| e.to_string())?.len();
        if output != input && output != input + 1 {
            return Err(format!("{input} bytes were published, {output} are there"));
        }
        let limit = format!("--bytes={input}");
        run(Command::new("cmp").arg(limit).arg(&self.input).arg(&self.output)).map(|_| ())
    }
}
