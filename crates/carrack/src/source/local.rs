//! Files of this machine, opened read-only and read at offsets.
//!
//! In       a path; for reads an offset and a buffer to fill.
//! Out      bytes, and the [`Validator`] of the file that was really opened.
//! Limits   only regular files: a FIFO, socket or device is refused without blocking on it, and so
//!          is a symlink in any part of the path (`source::nofollow`). What is to be remembered is
//!          no file that the kernel makes up as it is read. Nothing is mapped: a file that others
//!          may cut must not be.
//! Not here hashing; whether a validator is the expected one.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::ReadWriteFlags;

use crate::durable;
use crate::source::nofollow::{self, Kind};
use crate::source::validator::{FileStamp, FileTime, Validator};

/// Longer than the tick by which any common kernel stamps files (4 or 10 ms).
const SETTLE_TIME: Duration = Duration::from_millis(20);

/// Magic numbers of file systems that make up their bytes as they are read, in the order of
/// `linux/magic.h`: proc, sysfs, debugfs, tracefs, securityfs, selinux, cgroup and cgroup2,
/// configfs, bpf, pstore, efivarfs, nsfs.
const MADE_UP: [u64; 13] = [
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xf97c_ff8c,
    0x0027_e0eb,
    0x6367_7270,
    0x6265_6570,
    0xcafe_4a11,
    0x6165_676c,
    0xde5e_81e4,
    0x6e73_6673,
];

/// One open version of one file.
#[derive(Debug)]
pub struct LocalFile {
    file: File,
    /// What the file was when it was opened.
    pub validator: Validator,
}

impl LocalFile {
    /// Opens a regular file of somebody's for reading, by a path that was resolved when it was
    /// named.
    ///
    /// # Errors
    /// Those of `open` and `fstat`; `InvalidInput` if it is not a regular file, or if there is a
    /// symlink in the path.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(nofollow::open(path)?)
    }

    /// Opens a file of the store's own: its directory may lie behind symlinks, and it may have its
    /// temporary name yet.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_own(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let open = |path: &Path| Ok(rustix::fs::open(path, flags, Mode::empty())?);
        Self::of(durable::at_either(path, open)?)
    }

    fn of(file: OwnedFd) -> io::Result<Self> {
        let file = File::from(file);
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(Kind::Special.refused());
        }
        Ok(Self {
            file,
            validator: validator_of(&meta),
        })
    }

    /// Opens a regular file whose bytes will be remembered under its validator. Waits, at most
    /// [`SETTLE_TIME`], until a write that comes after this call is sure to show in the change
    /// time: file systems stamp with the time of the last tick.
    ///
    /// # Errors
    /// As [`Self::open`]; `Unsupported` if the kernel makes up its bytes as they are read.
    pub fn open_settled(path: &Path) -> io::Result<Self> {
        let mut file = Self::open(path)?;
        file.check_bytes_are_kept()?;
        let changed = stamp_of(&file.file.metadata()?).ctime;
        if let Some(rest) = unsettled(changed, crate::clock::unix_nanoseconds()) {
            std::thread::sleep(rest);
            file.validator = file.current_validator()?;
        }
        Ok(file)
    }

    /// Nothing tells what such a file comes to: not its length, not its times.
    fn check_bytes_are_kept(&self) -> io::Result<()> {
        let Validator::File(stamp) = &self.validator else {
            return Ok(());
        };
        // Such file systems have no disk, and so no major number. A file of any other that has
        // bytes but no length is as little worth.
        let is_theirs =
            rustix::fs::major(stamp.dev) == 0 && MADE_UP.contains(&magic_of(&self.file)?);
        if is_theirs || (stamp.size == 0 && self.read_at(&mut [0], 0)? > 0) {
            let what = "the kernel makes up its bytes as they are read";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        Ok(())
    }

    /// The validator as it is now, of the file that is open.
    ///
    /// # Errors
    /// Those of `fstat`.
    pub fn current_validator(&self) -> io::Result<Validator> {
        Ok(validator_of(&self.file.metadata()?))
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before `buf` is full.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    /// Reads up to `buf.len()` bytes from `offset`; 0 is the end of the file.
    ///
    /// # Errors
    /// Those of `pread`.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.file.read_at(buf, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Fills `buf` from `offset` if the kernel holds all of it in memory; `false`: it does not, or
    /// the file system cannot tell, and a read may wait for a disk.
    pub fn read_resident(&self, buf: &mut [u8], offset: u64) -> bool {
        let len = buf.len();
        let read = rustix::io::preadv2(
            self.file.as_fd(),
            &mut [io::IoSliceMut::new(buf)],
            offset,
            ReadWriteFlags::NOWAIT,
        );
        read == Ok(len)
    }

    /// Where the first byte at or after `offset` lies that is not in a hole; the file's length if
    /// there is none. `None`: the file system does not tell, so everything is to be read.
    #[must_use]
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        self.seek(SeekFrom::Data(offset))
    }

    /// Where the first hole at or after `offset` begins; the file's length if there is none.
    #[must_use]
    pub fn next_hole(&self, offset: u64) -> Option<u64> {
        self.seek(SeekFrom::Hole(offset))
    }

    fn seek(&self, to: SeekFrom) -> Option<u64> {
        // Moves the descriptor's own position, which no read here uses.
        match rustix::fs::seek(&self.file, to) {
            Ok(offset) => Some(offset),
            Err(rustix::io::Errno::NXIO) => Some(self.validator.size()),
            Err(_) => None,
        }
    }

    /// Tells the kernel that the file will be read from front to back.
    pub fn advise_sequential(&self) {
        // A hint: a file system that does not take it loses nothing.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::Sequential);
    }
}

/// How long a file that was `changed` then has to be left alone: at most [`SETTLE_TIME`].
fn unsettled(changed: FileTime, now_ns: i128) -> Option<Duration> {
    let changed_ns = i128::from(changed.secs) * 1_000_000_000 + i128::from(changed.nanos);
    // A change time in the future says that the clock was set back: any later write has another.
    let age_ns = u64::try_from(now_ns - changed_ns).ok()?;
    let rest = SETTLE_TIME.checked_sub(Duration::from_nanos(age_ns));
    rest.filter(|rest| !rest.is_zero())
}

/// The validator of what is at `path`.
#[cfg(test)]
pub fn validator_at(path: &Path) -> io::Result<Validator> {
    Ok(nofollow::look(path)?.validator)
}

/// Whether `path` leads to just this version, and be it through symlinks: a file that is open is
/// the same whichever way leads to it.
#[must_use]
pub fn leads_to(path: &Path, version: &Validator) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| validator_of(&meta) == *version)
}

/// `f_type` of the file system of an open file.
fn magic_of(file: &File) -> io::Result<u64> {
    let magic = rustix::fs::fstatfs(file)?.f_type;
    Ok(u64::from(u32::try_from(magic).unwrap_or(0)))
}

/// The validator that `meta` describes.
#[must_use]
pub fn validator_of(meta: &Metadata) -> Validator {
    Validator::File(stamp_of(meta))
}

fn stamp_of(meta: &Metadata) -> FileStamp {
    FileStamp {
        dev: meta.dev(),
        ino: meta.ino(),
        size: meta.size(),
        mtime: file_time(meta.mtime(), meta.mtime_nsec()),
        ctime: file_time(meta.ctime(), meta.ctime_nsec()),
    }
}

fn file_time(secs: i64, nanos: i64) -> FileTime {
    FileTime {
        secs,
        nanos: u32::try_from(nanos).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::{FileTime, SETTLE_TIME, unsettled};

    /// Whatever clock and file system say of each other, the wait is short.
    #[test]
    fn no_change_time_makes_an_add_wait_for_long() {
        let now = 1_800_000_000_i64;
        let now_ns = i128::from(now) * 1_000_000_000;
        let year = 365 * 86_400;
        for secs in [now + 10 * year, now - 10 * year, 0, -1, i64::MIN, i64::MAX] {
            for nanos in [0, 999_999_999] {
                assert_eq!(unsettled(FileTime { secs, nanos }, now_ns), None);
                assert_eq!(unsettled(FileTime { secs, nanos }, i128::MAX / 2), None);
            }
        }
        let just_now = FileTime {
            secs: now,
            nanos: 0,
        };
        assert_eq!(unsettled(just_now, now_ns), Some(SETTLE_TIME));
        assert_eq!(unsettled(just_now, now_ns + 20_000_000), None);
    }
}
