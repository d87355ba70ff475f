//! The disk of the data directory fills up: a clear error, and everything earlier stays served.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Carrack, data};

/// Exit code for a disk that did not do what it was asked.
const UNAVAILABLE: i32 = 8;
const DISK_LEN: u64 = 48 << 20;

/// A tmpfs of its own, unmounted when dropped.
struct SmallDisk {
    temp: tempfile::TempDir,
}

impl SmallDisk {
    fn new() -> Self {
        let temp = tempfile::TempDir::new().unwrap();
        let status = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={DISK_LEN}"),
                "carrack-test",
            ])
            .arg(temp.path())
            .status()
            .unwrap();
        assert!(
            status.success(),
            "mounting a tmpfs takes root: run this test as root"
        );
        Self { temp }
    }

    fn path(&self) -> &Path {
        self.temp.path()
    }

    /// Takes all space but `left` bytes.
    fn fill_up_to(&self, left: u64) -> PathBuf {
        let space = rustix::fs::statvfs(self.path()).unwrap();
        let free = space.f_bavail * space.f_frsize;
        let filler = self.path().join("filler");
        fs::write(
            &filler,
            vec![1; usize::try_from(free.saturating_sub(left)).unwrap()],
        )
        .unwrap();
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.temp.path())
            .status();
    }
}

#[test]
fn a_disk_that_fills_up_loses_nothing() {
    let sources = tempfile::TempDir::new().unwrap();
    let [early, late] = ["early", "late"].map(|name| sources.path().join(name));
    data::tree(&early, 61, 200, 5_000);
    data::folder(&late, 15_000);
    let expected = Carrack::new().add_one(&late);
    let mut n_failed = 0;
    for left in [0, 64 << 10, 256 << 10, 1 << 20, 2 << 20, 4 << 20] {
        let disk = SmallDisk::new();
        let carrack = Carrack::at(&disk.path().join("data"));
        let root = carrack.add_one(&early);
        let filler = disk.fill_up_to(left);
        let outcome = carrack.run(&["add", "-Q", late.to_str().unwrap()]);
        if outcome.code() != 0 {
            n_failed += 1;
            assert_eq!(
                outcome.code(),
                UNAVAILABLE,
                "{left} bytes left: {}",
                outcome.stderr
            );
            let says_why =
                outcome.stderr.contains("No space left") || outcome.stderr.contains("full");
            assert!(says_why, "{left} bytes left: {}", outcome.stderr);
        }
        // Still full: what was there before opens and serves.
        let server = carrack.serve::<&str>(&[]);
        server.get(&format!("/ipfs/{root}?format=car")).ok();
        drop(server);
        carrack.run(&["verify", &root]).ok();
        fs::remove_file(filler).unwrap();
        assert_eq!(carrack.add_one(&late), expected, "{left} bytes left");
        carrack.run(&["verify"]).ok();
    }
    assert!(n_failed > 0, "no add met a full disk");
}
