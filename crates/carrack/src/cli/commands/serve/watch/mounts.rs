//! When file systems come to a place that is watched, or go: inotify does not tell.
//!
//! In       `/proc/self/mountinfo`, of which the kernel tells when it changes.
//! Out      when that may be so, and what of it concerns a place.
//! Not here what is done then (`watch`).

use std::ffi::OsString;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Runtime;

const TABLE: &str = "/proc/self/mountinfo";

/// The mounts of this process, as long as it watches.
#[derive(Debug)]
pub(super) struct Mounts {
    runtime: Runtime,
    table: AsyncFd<File>,
}

impl Mounts {
    /// Begins to listen for changes.
    ///
    /// # Errors
    /// There is no `/proc`, or no descriptor is left.
    pub(super) fn listen() -> io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build()?;
        let file = File::open(TABLE)?;
        let table = {
            let _guard = runtime.enter();
            #[expect(
                deprecated,
                reason = "a file keeps its descriptor open; what replaces it is unsafe code"
            )]
            let table = AsyncFd::with_interest(file, Interest::PRIORITY)?;
            table
        };
        Ok(Self { runtime, table })
    }

    /// Waits until something is mounted or unmounted, for `time_max` at most; whether it was.
    pub(super) fn wait(&self, time_max: Duration) -> bool {
        self.runtime.block_on(async {
            let ready = self.table.ready(Interest::PRIORITY);
            match tokio::time::timeout(time_max, ready).await {
                Ok(Ok(mut ready)) => {
                    ready.clear_ready();
                    true
                }
                Ok(Err(_)) | Err(_) => false,
            }
        })
    }
}

/// What is mounted now; nothing if that cannot be read.
pub(super) fn now() -> Vec<u8> {
    std::fs::read(TABLE).unwrap_or_default()
}

/// A hash of those of `mounts` that `path` lies in, or that lie in it.
pub(super) fn concerning(path: &Path, mounts: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for line in mounts.split(|byte| *byte == b'\n') {
        let Some(point) = line.split(|byte| *byte == b' ').nth(4) else {
            continue;
        };
        let point = unescaped(point);
        if point.starts_with(path) || path.starts_with(&point) {
            line.hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// A path of the table, where blanks and backslashes are octal: `\040`.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        rest = after;
        let code = match (first, after) {
            (
                b'\\',
                [
                    a @ b'0'..=b'3',
                    b @ b'0'..=b'7',
                    c @ b'0'..=b'7',
                    beyond @ ..,
                ],
            ) => {
                rest = beyond;
                ((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0')
            }
            _ => *first,
        };
        path.push(code);
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_at_above_and_below_concern_a_place_and_no_others() {
        let root = "22 1 8:1 / / rw - ext4 /dev/sda rw\n";
        let of = |more: &str| concerning(Path::new("/a b/c"), format!("{root}{more}").as_bytes());
        let line = |point: &str| format!("30 22 0:40 / {point} rw - tmpfs none rw\n");
        let none = of("");
        for point in ["/a\\040b", "/a\\040b/c", "/a\\040b/c/d\\134e"] {
            assert_ne!(of(&line(point)), none, "{point}");
        }
        for point in ["/a\\040b/cc", "/a\\040b/d", "/a"] {
            assert_eq!(of(&line(point)), none, "{point}");
        }
        assert_eq!(unescaped(b"/d\\134e\\04"), Path::new("/d\\e\\04"));
    }
}
