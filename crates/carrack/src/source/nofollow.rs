//! Paths of this machine in which no symlink is followed.
//!
//! In       an absolute path that was resolved when somebody named it: no part of it was a symlink
//!          then.
//! Out      what it leads to now, open or looked at; what a directory holds. An error if any part
//!          of it is a symlink now.
//! Limits   paths of 4,095 bytes, the kernel's; one descriptor a call, two where the kernel has no
//!          `openat2`.
//! Not here resolving what a person names (`std::fs::canonicalize`, once), reading
//!          (`source::local`).
//!
//! Whoever may write below a folder can put a symlink in the place of a folder or file at any
//! moment, also between two looks at it. So nothing is looked at and then opened by its name: one
//! call does both, and refuses symlinks in every part of the path. Mount points are passed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use crate::source::local::validator_of;
use crate::source::validator::{FileStamp, FileTime, Validator};

/// The kernel was asked for `openat2` and does not have it.
static IS_OLD_KERNEL: AtomicBool = AtomicBool::new(false);

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symlink, which was not followed.
    Symlink,
    /// A socket, FIFO or device.
    Special,
}

impl Kind {
    /// Why something of this kind is not read as a file.
    #[must_use]
    pub fn refused(self) -> io::Error {
        match self {
            Self::Symlink => refused(Errno::LOOP),
            Self::File | Self::Directory | Self::Special => {
                io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
            }
        }
    }
}

/// What lies somewhere, as `lstat` tells it.
#[derive(Debug, Clone)]
pub struct Looked {
    /// What it is.
    pub kind: Kind,
    /// Its version.
    pub validator: Validator,
}

/// Opens a path for reading. It may be a directory or, without waiting for it, a FIFO.
///
/// # Errors
/// Those of `openat2`; `InvalidInput` if there is a symlink in the path.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    // NONBLOCK: opening a FIFO must not wait for its writer. NOCTTY: nor make a terminal ours.
    open_with(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
}

/// What lies at a path, which may be a symlink in its last part.
///
/// # Errors
/// Those of `openat2`; `InvalidInput` if there is a symlink before the last part.
pub fn look(path: &Path) -> io::Result<Looked> {
    let meta = File::from(open_with(path, OFlags::PATH)?).metadata()?;
    let kind = meta.file_type();
    let kind = match () {
        () if kind.is_file() => Kind::File,
        () if kind.is_dir() => Kind::Directory,
        () if kind.is_symlink() => Kind::Symlink,
        () => Kind::Special,
    };
    Ok(Looked {
        kind,
        validator: validator_of(&meta),
    })
}

/// An open directory.
#[derive(Debug)]
pub struct Directory(Dir);

impl Directory {
    /// Opens a directory.
    ///
    /// # Errors
    /// As [`open`]; `NotADirectory`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let directory = open_with(path, OFlags::RDONLY | OFlags::DIRECTORY);
        let directory = directory.map_err(|error| {
            // Of a symlink that is not followed the kernel says no more than that.
            let is_none = error.kind() == io::ErrorKind::NotADirectory;
            match is_none && look(path).is_ok_and(|now| now.kind == Kind::Symlink) {
                true => Kind::Symlink.refused(),
                false => error,
            }
        });
        Ok(Self(Dir::new(directory?)?))
    }

    /// The next name in it, and what that stands for if the file system tells.
    pub fn next_entry(&mut self) -> Option<io::Result<(OsString, Option<Kind>)>> {
        loop {
            let entry = match self.0.read()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error.into())),
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let name = OsString::from_vec(name.to_vec());
            return Some(Ok((name, kind_of(entry.file_type()))));
        }
    }

    /// What it is, whatever it is called: its device and inode.
    ///
    /// # Errors
    /// Those of `fstat`.
    pub fn id(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstat(self.0.fd()?)?;
        Ok((unsigned(stat.st_dev), unsigned(stat.st_ino)))
    }

    /// What lies in it under a name.
    ///
    /// # Errors
    /// Those of `fstatat`.
    pub fn look(&self, name: &OsStr) -> io::Result<Looked> {
        let stat = rustix::fs::statat(self.0.fd()?, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = kind_of(FileType::from_raw_mode(stat.st_mode));
        Ok(Looked {
            kind: kind.unwrap_or(Kind::Special),
            validator: Validator::File(stamp_of(&stat)),
        })
    }

    /// Where a symlink in it points to.
    ///
    /// # Errors
    /// Those of `readlinkat`.
    pub fn read_link(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(self.0.fd()?, name, Vec::new())?.into_bytes())
    }
}

fn open_with(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if !IS_OLD_KERNEL.load(Ordering::Relaxed) {
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened =
            retry_on_intr(|| rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve));
        match opened {
            Err(Errno::NOSYS) => IS_OLD_KERNEL.store(true, Ordering::Relaxed),
            // Filters of system calls that do not know this one may say so.
            Err(Errno::PERM) => {}
            opened => return opened.map_err(refused),
        }
    }
    walk(path, flags)
}

/// The same, one part of the path after the other.
fn walk(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    const STEP: OFlags = OFlags::PATH
        .union(OFlags::DIRECTORY)
        .union(OFlags::NOFOLLOW)
        .union(OFlags::CLOEXEC);
    let mut parts = path.components().peekable();
    let start = parts.next_if_eq(&Component::RootDir).map_or(".", |_| "/");
    if parts.peek().is_none() {
        return retry_on_intr(|| rustix::fs::open(start, flags, Mode::empty())).map_err(refused);
    }
    let mut directory = rustix::fs::open(start, STEP, Mode::empty())?;
    while let Some(part) = parts.next() {
        let name = part.as_os_str();
        if parts.peek().is_none() {
            let open = || rustix::fs::openat(&directory, name, flags, Mode::empty());
            return retry_on_intr(open).map_err(|error| met(&directory, name, error));
        }
        let next = rustix::fs::openat(&directory, name, STEP, Mode::empty());
        directory = next.map_err(|error| met(&directory, name, error))?;
    }
    Err(Errno::NOENT.into())
}

/// Why a part of a path cannot be opened: of a symlink where a directory is wanted the kernel says
/// no more than that it is none.
fn met(directory: &OwnedFd, name: &OsStr, error: Errno) -> io::Error {
    let is_symlink = || {
        let stat = rustix::fs::statat(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
    };
    match error {
        Errno::NOTDIR if is_symlink() => refused(Errno::LOOP),
        error => refused(error),
    }
}

fn refused(error: Errno) -> io::Error {
    match error {
        Errno::LOOP => io::Error::new(
            io::ErrorKind::InvalidInput,
            "a symlink is in its place, or in that of a folder above it, and is not followed",
        ),
        error => error.into(),
    }
}

fn kind_of(kind: FileType) -> Option<Kind> {
    match kind {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Directory),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::Unknown => None,
        _ => Some(Kind::Special),
    }
}

/// As `source::local` has it of what is open.
fn stamp_of(stat: &Stat) -> FileStamp {
    FileStamp {
        dev: unsigned(stat.st_dev),
        ino: unsigned(stat.st_ino),
        size: unsigned(stat.st_size),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
    }
}

fn time(secs: impl TryInto<i64>, nanos: impl TryInto<u32>) -> FileTime {
    FileTime {
        secs: secs.try_into().unwrap_or(0),
        nanos: nanos.try_into().unwrap_or(0),
    }
}

/// The types of these numbers differ from processor to processor.
fn unsigned(number: impl TryInto<u64>) -> u64 {
    number.try_into().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    use rustix::fs::OFlags;

    use super::{Directory, Kind, Looked, look, open, open_with, walk};
    use crate::source::local::validator_of;

    fn tree() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/b/file"), b"data").unwrap();
        symlink("b", top.join("a/link")).unwrap();
        symlink("file", top.join("a/b/last")).unwrap();
        (dir, top)
    }

    /// `openat2`, and what stands for it on kernels that have none.
    fn both(path: &Path, flags: OFlags) -> [io::Result<Looked>; 2] {
        let nofollow = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        [open_with(path, flags), walk(path, nofollow)].map(|opened| {
            let meta = fs::File::from(opened?).metadata()?;
            Ok(Looked {
                kind: match meta.is_symlink() {
                    true => Kind::Symlink,
                    false => Kind::File,
                },
                validator: validator_of(&meta),
            })
        })
    }

    #[test]
    fn no_symlink_is_followed_in_any_part_of_a_path() {
        let (_dir, top) = tree();
        for path in ["a/link/file", "a/b/last", "a/link/last"] {
            for opened in both(&top.join(path), OFlags::RDONLY) {
                let error = opened.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
                assert!(error.to_string().contains("symlink"), "{path}: {error}");
            }
        }
        for opened in both(&top.join("a/b/last"), OFlags::PATH) {
            assert_eq!(opened.unwrap().kind, Kind::Symlink);
        }
        assert_eq!(look(&top.join("a/link")).unwrap().kind, Kind::Symlink);
        assert!(look(&top.join("a/link/file")).is_err());
        let error = Directory::open(&top.join("a/link")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn both_ways_lead_to_the_same_and_fail_alike() {
        let (_dir, top) = tree();
        for path in ["a/b/file", "a/b", "a"].map(|path| top.join(path)) {
            let expected = validator_of(&fs::metadata(&path).unwrap());
            for opened in both(&path, OFlags::RDONLY) {
                assert_eq!(opened.unwrap().validator, expected);
            }
        }
        for path in [Path::new("/"), Path::new("/proc"), Path::new(".")] {
            let [one, two] = both(path, OFlags::RDONLY).map(Result::unwrap);
            assert_eq!(one.validator, two.validator, "{}", path.display());
        }
        for path in ["a/none", "a/b/file/below", "none/x"] {
            let [one, two] = both(&top.join(path), OFlags::RDONLY).map(Result::unwrap_err);
            assert_eq!(one.raw_os_error(), two.raw_os_error(), "{path}");
            assert!(one.raw_os_error().is_some());
        }
        assert!(open(&top.join("a/b/file")).is_ok());
    }

    #[test]
    fn a_directory_tells_its_names_and_what_they_stand_for() {
        let (_dir, top) = tree();
        let mut directory = Directory::open(&top.join("a")).unwrap();
        let mut found = Vec::new();
        while let Some(entry) = directory.next_entry() {
            found.push(entry.unwrap().0);
        }
        found.sort();
        assert_eq!(found, ["b", "link"]);
        let b = directory.look("b".as_ref()).unwrap();
        assert_eq!(b.kind, Kind::Directory);
        let meta = fs::symlink_metadata(top.join("a/b")).unwrap();
        assert_eq!(b.validator, validator_of(&meta), "by both system calls");
        assert_eq!(directory.look("link".as_ref()).unwrap().kind, Kind::Symlink);
        assert_eq!(directory.read_link("link".as_ref()).unwrap(), b"b");
    }
}
