//! File systems of a test's own. They take root, as tests of full disks always did.
//!
//! In       a length, or a directory.
//! Out      a mount, undone when dropped.
//! Not here faults of single calls.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mount, unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Mount {
    temp: tempfile::TempDir,
}

impl Mount {
    fn new(options: &[&str], what: &Path) -> Self {
        let temp = tempfile::TempDir::new().unwrap();
        let mut command = Command::new("mount");
        let status = command.args(options).arg(what).arg(temp.path()).status();
        assert!(
            status.unwrap().success(),
            "mounting takes root: run this test as root"
        );
        Self { temp }
    }

    /// An empty disk of some bytes.
    pub(crate) fn small_disk(len: u64) -> Self {
        let size = format!("size={len}");
        Self::new(&["-t", "tmpfs", "-o", &size], Path::new("carrack-test"))
    }

    /// A directory, where it cannot be written.
    pub(crate) fn read_only(dir: &Path) -> Self {
        Self::new(&["--bind", "-o", "ro"], dir)
    }

    /// A directory, under another path.
    pub(crate) fn alias(dir: &Path) -> Self {
        Self::new(&["--bind"], dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.temp.path()
    }

    /// Takes all space but `left` bytes.
    pub(crate) fn fill_up_to(&self, left: u64) -> PathBuf {
        let space = rustix::fs::statvfs(self.path()).unwrap();
        let free = space.f_bavail * space.f_frsize;
        let filler = self.path().join("filler");
        let len = usize::try_from(free.saturating_sub(left)).unwrap();
        fs::write(&filler, vec![1; len]).unwrap();
        filler
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.temp.path())
            .status();
    }
}
