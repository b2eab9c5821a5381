//! Filesystems of our own: loop-mounted images that can lose power or fill up.
//!
//! Owns: the image, its mount point and their removal.
//! Never: touches a filesystem that it did not make.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What an image is formatted as: what Weir's durability is promised on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filesystem {
    /// With its journal
    Ext4,
    /// Takes images of at least 300 MiB
    Xfs,
}

impl Filesystem {
    fn formatter(self) -> Command {
        let (program, arguments): (_, &[&str]) = match self {
            Self::Ext4 => ("mkfs.ext4", &["-q", "-F"]),
            Self::Xfs => ("mkfs.xfs", &["-q", "-f"]),
        };
        let mut command = Command::new(program);
        command.args(arguments);
        command
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "XFS",
        })
    }
}

/// A mounted filesystem, unmounted and removed on drop.
pub(crate) struct Mount {
    folder: PathBuf,
    mounted: bool,
}

impl Mount {
    /// An image of `mebibytes` below `scratch`, formatted and mounted.
    pub(crate) fn new(
        filesystem: Filesystem,
        scratch: &Path,
        mebibytes: u64,
    ) -> Result<Self, String> {
        fs::create_dir_all(scratch.join("mnt")).map_err(|e| e.to_string())?;
        let mut mount = Self { folder: scratch.to_owned(), mounted: false };
        let file = fs::File::create(mount.image()).map_err(|e| e.to_string())?;
        file.set_len(mebibytes << 20).map_err(|e| e.to_string())?;
        run(filesystem.formatter().arg(mount.image()))?;
        mount.mount()?;
        Ok(mount)
    }

    fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("mnt")
    }

    /// Mounts what [`Mount::unmount`] has unmounted.
    pub(crate) fn mount(&mut self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.path()))?;
        self.mounted = true;
        Ok(())
    }

    /// Nobody may have a file open.
    pub(crate) fn unmount(&mut self) -> Result<(), String> {
        run(Command::new("umount").arg(self.path()))?;
        self.mounted = false;
        Ok(())
    }

    /// From now on nothing gets to the image any more: what was not flushed is gone with the page
    /// cache. Only unmounting is of use afterwards.
    ///
    /// The ioctl is EXT4_IOC_SHUTDOWN, which is also XFS_IOC_GOINGDOWN, with the flag NOLOGFLUSH:
    /// the journal is not written either.
    pub(crate) fn shut_down(&self) -> Result<(), String> {
        let script = "open(F, '<', $ARGV[0]) or die $!; \
                      my $flag = pack('L', 2); \
                      defined ioctl(F, 0x8004587d, $flag) or die $!;";
        run(Command::new("perl").args(["-e", script]).arg(self.path())).map(|_| ())
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
