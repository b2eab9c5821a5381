//! Folders that a measurement fills and nobody wants to keep.
//!
//! Owns: their removal: at the end, after an error, and when the measurement is stopped by SIGINT or
//! SIGTERM, then with the end of the processes that fill them.
//! Never: removes what it did not make.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Runs `measure` with a folder below `dir` that is removed afterwards.
pub fn in_scratch_folder<T>(
    dir: &Path,
    measure: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let scratch = dir.join(format!("weir-bench-{}", std::process::id()));
    remove_when_stopped(scratch.clone())?;
    std::fs::create_dir_all(&scratch)?;
    let measured = measure(&scratch);
    let removed = std::fs::remove_dir_all(&scratch);
    let report = measured?;
    removed?;
    Ok(report)
}

/// From now on the signals that stop a program remove `scratch` before they end it.
fn remove_when_stopped(scratch: PathBuf) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let stop = move || {
        let stopped_by = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
            }
        });
        crate::cluster::kill_all();
        // What is measured may go on making files until it finds that its folder has gone.
        for _ in 0..100 {
            match std::fs::remove_dir_all(&scratch) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => break,
            }
        }
        std::process::exit(128 + stopped_by.as_raw_value());
    };
    std::thread::Builder::new().name("weir-bench-stop".to_owned()).spawn(stop)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_a_measurement_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        let failed = in_scratch_folder(dir.path(), |scratch| -> io::Result<()> {
            std::fs::write(scratch.join("file"), "figures")?;
            Err(io::Error::other("the disk is gone"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "the disk is gone");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
