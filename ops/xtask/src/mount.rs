//! Filesystems of our own: loop-mounted images that can lose power or fill up.
//!
//! Owns: the image, its mount point and their removal.
//! Never: touches a filesystem that it did not make.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted filesystem, unmounted and removed on drop.
pub(crate) struct Mount {
    folder: PathBuf,
    mounted: bool,
}

impl Mount {
    /// An ext4 image of `mebibytes` below `scratch`, mounted.
    pub(crate) fn ext4(scratch: &Path, mebibytes: u64) -> Result<Self, String> {
        fs::create_dir_all(scratch.join("mnt")).map_err(|e| e.to_string())?;
        let mount = Self { folder: scratch.to_owned(), mounted: false };
        let file = fs::File::create(mount.image()).map_err(|e| e.to_string())?;
        file.set_len(mebibytes << 20).map_err(|e| e.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(mount.image()))?;
        mount.mounted()
    }

    fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("mnt")
    }

    fn mounted(mut self) -> Result<Self, String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.path()))?;
        self.mounted = true;
        Ok(self)
    }

    /// Cuts the power: what was not flushed is gone. The filesystem is mounted again afterwards.
    ///
    /// The ioctl is EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: the journal is not
    /// written either. Nobody may have a file open, or unmounting fails.
    pub(crate) fn cut_power(&mut self) -> Result<(), String> {
        let script = "open(F, '<', $ARGV[0]) or die $!; \
                      my $flag = pack('L', 2); \
                      defined ioctl(F, 0x8004587d, $flag) or die $!;";
        run(Command::new("perl").args(["-e", script]).arg(self.path()))?;
        run(Command::new("umount").arg(self.path()))?;
        self.mounted = false;
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.path()))?;
        self.mounted = true;
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            let _ = run(Command::new("umount").arg("-l").arg(self.path()));
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Runs a command to its end; an error carries what it said.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}: {}", output.status, said.trim()))
}
