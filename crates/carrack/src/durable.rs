//! Files that are whole and durable under their names, or not there at all.
//!
//! In       a file under a temporary name, the name that it is to have.
//! Out      a name that a power cut does not take back once the function has returned: the bytes
//!          are synced before the rename, the directory after it.
//! Not here what a failed sync means for a store (`store::gate`).
//!
//! Every file that carrack makes comes about here or in two steps of it: packs and segments are
//! synced under temporary names before a catalog row names them, and renamed after it.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind as IoKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Behind the name of a file that is not finished.
pub const TEMPORARY: &[u8] = b".tmp";
/// Mode of a file for everybody whom the process's mask allows.
pub const MODE_SHARED: u32 = 0o666;
/// Mode of a file of its owner's alone.
pub const MODE_PRIVATE: u32 = 0o600;
/// The same of a directory.
const DIR_MODE_PRIVATE: u32 = 0o700;

/// What did not work.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
    /// Nothing is known of the bytes any more: a second sync that succeeds proves nothing.
    #[error("fsync of {path} failed")]
    Sync {
        /// What was synced.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It was not done, and may be tried again.
    #[error("{what} {path} failed")]
    Undone {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl DurableError {
    /// The error of the operating system.
    #[must_use]
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Sync { source, .. } | Self::Undone { source, .. } => source,
        }
    }

    fn undone(what: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::Undone { what, path, source }
    }
}

/// Makes a file's bytes and length durable.
///
/// # Errors
/// `Sync`.
pub fn sync_file(file: &File, path: &Path) -> Result<(), DurableError> {
    #[cfg(test)]
    let synced = faults::next(true).and_then(|()| file.sync_all());
    #[cfg(not(test))]
    let synced = file.sync_all();
    synced.map_err(|source| DurableError::Sync {
        path: path.to_owned(),
        source,
    })
}

/// Makes the names in a directory durable: after a creation, a rename or a removal that counts.
///
/// # Errors
/// `Sync`; `Undone` if the directory cannot be opened.
pub fn sync_dir(dir: &Path) -> Result<(), DurableError> {
    // The parent of a relative name.
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    match File::open(dir) {
        Ok(file) => sync_file(&file, dir),
        // Names can be made in it and not be listed: then there is no way to sync it alone.
        Err(error) if error.kind() == IoKind::PermissionDenied => Ok(()),
        Err(error) => Err(DurableError::undone("opening", dir, error)),
    }
}

/// Makes the name of a file or directory durable.
///
/// # Errors
/// As [`sync_dir`].
pub fn sync_name(path: &Path) -> Result<(), DurableError> {
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes a directory that is its owner's alone.
///
/// # Errors
/// Those of `mkdir`.
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().mode(DIR_MODE_PRIVATE).create(dir)
}

/// Makes a directory and those above it that are missing, each durably and its owner's alone: what
/// a store holds is for others only if they are let in by hand.
///
/// # Errors
/// As [`sync_dir`]; `Undone` if one cannot be made.
pub fn create_dir_all(dir: &Path) -> Result<(), DurableError> {
    let exists = dir.as_os_str().is_empty() || dir.is_dir();
    if exists {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        create_dir_all(parent)?;
    }
    #[cfg(test)]
    faults::next(false).map_err(|error| DurableError::undone("making", dir, error))?;
    match create_private_dir(dir) {
        Err(error) if error.kind() == IoKind::AlreadyExists && dir.is_dir() => {}
        made => made.map_err(|error| DurableError::undone("making", dir, error))?,
    }
    sync_name(dir)
}

/// Renames durably, in place of what had the name. Both names are in one directory.
///
/// # Errors
/// As [`sync_name`]; `Undone` if it cannot be renamed.
pub fn rename(from: &Path, to: &Path) -> Result<(), DurableError> {
    std::fs::rename(from, to).map_err(|error| DurableError::undone("renaming", from, error))?;
    sync_name(to)
}

/// Renames durably, unless there is something of that name: false, and nothing has changed.
///
/// # Errors
/// As [`sync_name`]; `Undone` if it cannot be renamed.
pub fn rename_unless_there(from: &Path, to: &Path) -> Result<bool, DurableError> {
    match move_unless_there(from, to) {
        Err(error) => Err(DurableError::undone("renaming", from, error)),
        Ok(false) => Ok(false),
        Ok(true) => sync_name(to).map(|()| true),
    }
}

/// As [`rename_unless_there`], and a power cut may take it back.
///
/// # Errors
/// Those of `rename`.
pub fn move_unless_there(from: &Path, to: &Path) -> io::Result<bool> {
    let moved = match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system knows the flag; a second name does not replace, either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            std::fs::hard_link(from, to).and_then(|()| std::fs::remove_file(from))
        }
        moved => moved.map_err(Into::into),
    };
    match moved {
        Err(error) if error.kind() == IoKind::AlreadyExists => Ok(false),
        moved => moved.map(|()| true),
    }
}

/// The name of a file while it is not finished.
#[must_use]
pub fn temporary(path: &Path) -> PathBuf {
    named(path, ".tmp")
}

/// Does something with a file that has its temporary name yet, or its own, which whoever finished
/// it may give it at any moment.
///
/// # Errors
/// Those of what is done; `NotFound` if there is neither.
pub fn at_either<T>(path: &Path, mut done: impl FnMut(&Path) -> io::Result<T>) -> io::Result<T> {
    match done(path) {
        Err(error) if error.kind() == IoKind::NotFound => {}
        other => return other,
    }
    match done(&temporary(path)) {
        Err(error) if error.kind() == IoKind::NotFound => done(path),
        other => other,
    }
}

/// A file under a temporary name beside its own. Dropped before it is published, it is removed.
#[derive(Debug)]
pub struct Temporary {
    /// To be written.
    pub file: File,
    path: PathBuf,
    target: PathBuf,
    is_published: bool,
}

impl Temporary {
    /// One for `target` under a name that nobody else uses.
    ///
    /// # Errors
    /// Those of creating a file.
    pub fn new(target: &Path, mode: u32) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = named(target, &format!(".{}-{n}.tmp", std::process::id()));
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(mode);
            match options.open(&path) {
                // Left by a process that had the same id and was killed.
                Err(error) if error.kind() == IoKind::AlreadyExists => {}
                opened => return Ok(Self::opened(opened?, path, target)),
            }
        }
    }

    /// One for `target`, once those that kills have left are removed: for whoever holds the lock of
    /// the directory. A file that only has a like name stays.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_owner(target: &Path, mode: u32) -> io::Result<Self> {
        for entry in std::fs::read_dir(directory_of(target))? {
            let entry = entry?;
            if is_temporary_of(&entry.file_name(), target) {
                let _ = std::fs::remove_file(entry.path()); // If it stays, it is in nobody's way.
            }
        }
        Self::new(target, mode)
    }

    fn opened(file: File, path: PathBuf, target: &Path) -> Self {
        Self {
            file,
            path,
            target: target.to_owned(),
            is_published: false,
        }
    }

    /// Where it is until then.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, in place of what had it.
    ///
    /// # Errors
    /// As [`sync_name`]; `Undone` if it cannot be renamed.
    pub fn publish(mut self) -> Result<(), DurableError> {
        sync_file(&self.file, &self.path)?;
        #[cfg(test)]
        faults::next(false).map_err(|error| DurableError::undone("renaming", &self.path, error))?;
        std::fs::rename(&self.path, &self.target)
            .map_err(|error| DurableError::undone("renaming", &self.path, error))?;
        self.is_published = true;
        sync_name(&self.target)
    }

    /// Gives it its name unless there is such a file, which stays then.
    ///
    /// # Errors
    /// As [`sync_name`]; `Undone` if it cannot be renamed.
    pub fn publish_unless_there(mut self) -> Result<bool, DurableError> {
        sync_file(&self.file, &self.path)?;
        self.is_published = rename_unless_there(&self.path, &self.target)?;
        Ok(self.is_published)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_published {
            // Made by this process under a name of its own.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether a name is one that [`Temporary::new`] gives to what is to become `target`.
#[must_use]
pub fn is_temporary_of(name: &OsStr, target: &Path) -> bool {
    let numbers = target.file_name().and_then(|target| {
        let behind = name.as_bytes().strip_prefix(target.as_bytes())?;
        let numbers = behind.strip_prefix(b".")?.strip_suffix(TEMPORARY)?;
        std::str::from_utf8(numbers).ok()?.split_once('-')
    });
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    numbers.is_some_and(|(process, n)| is_number(process) && is_number(n))
}

/// The directory that a name is in.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `path` with more behind its last name.
fn named(path: &Path, more: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(more);
    path.with_file_name(name)
}

/// Failures by position, of the thread that asks for them.
#[cfg(test)]
pub(crate) mod faults {
    use std::cell::Cell;
    use std::io;

    use rustix::io::Errno;

    #[derive(Clone, Copy)]
    struct Faults {
        /// Writes and syncs that succeed yet.
        n: u64,
        /// How many fail then.
        n_failures: u64,
        has_failed: bool,
    }

    thread_local! {
        static FAULTS: Cell<Option<Faults>> = const { Cell::new(None) };
        static READS_FAIL: Cell<bool> = const { Cell::new(false) };
    }

    /// Reads fail, or succeed again.
    pub(crate) fn fail_reads(fail: bool) {
        READS_FAIL.set(fail);
    }

    pub(crate) fn read() -> io::Result<()> {
        match READS_FAIL.get() {
            true => Err(Errno::IO.into()),
            false => Ok(()),
        }
    }

    /// After `n` writes and syncs `n_failures` fail.
    pub(crate) fn fail_after(n: u64, n_failures: u64) {
        FAULTS.set(Some(Faults {
            n,
            n_failures,
            has_failed: false,
        }));
    }

    /// Whether something failed.
    pub(crate) fn has_failed() -> bool {
        FAULTS.get().is_some_and(|faults| faults.has_failed)
    }

    /// Nothing fails any more; whether something did.
    pub(crate) fn clear() -> bool {
        FAULTS.take().is_some_and(|faults| faults.has_failed)
    }

    pub(crate) fn next(is_sync: bool) -> io::Result<()> {
        let Some(mut faults) = FAULTS.get() else {
            return Ok(());
        };
        let fails = faults.n == 0 && faults.n_failures > 0;
        if fails {
            faults.n_failures -= 1;
            faults.has_failed = true;
        }
        faults.n = faults.n.saturating_sub(1);
        FAULTS.set(Some(faults));
        match (fails, is_sync) {
            (false, _) => Ok(()),
            (true, true) => Err(Errno::IO.into()),
            (true, false) => Err(Errno::NOSPC.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::{MODE_SHARED, Temporary, create_dir_all, rename_unless_there};

    #[test]
    fn a_file_appears_under_its_name_only_when_it_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for make in [Temporary::new, Temporary::of_owner] {
            let mut file = make(&path, MODE_SHARED).unwrap();
            file.file.write_all(b"half").unwrap();
            assert!(!path.is_file());
            drop(file);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
        let mut file = Temporary::new(&path, MODE_SHARED).unwrap();
        file.file.write_all(b"whole").unwrap();
        file.publish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        let other = Temporary::new(&path, MODE_SHARED).unwrap();
        assert!(!other.publish_unless_there().unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_has_the_name_is_not_written_over_unless_that_is_meant() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        std::fs::write(&a, b"a").unwrap();
        std::fs::write(&b, b"b").unwrap();
        assert!(!rename_unless_there(&a, &b).unwrap());
        assert_eq!(std::fs::read(&b).unwrap(), b"b");
        assert!(rename_unless_there(&a, &dir.path().join("c")).unwrap());
    }

    #[test]
    fn what_kills_left_is_removed_and_files_of_like_names_stay() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("key");
        let mine = [
            "key.tmp",
            "key.1.tmp",
            "key.1-.tmp",
            "key.a-1.tmp",
            "key.1-1.tmp.x",
        ];
        for name in mine.iter().chain(&["key.1-1.tmp", "key.77-0.tmp"]) {
            std::fs::write(dir.path().join(name), b"mine").unwrap();
        }
        drop(Temporary::of_owner(&target, MODE_SHARED).unwrap());
        for name in mine {
            assert_eq!(
                std::fs::read(dir.path().join(name)).unwrap(),
                b"mine",
                "{name}"
            );
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), mine.len());
    }

    #[test]
    fn directories_are_made_with_those_above_them() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dir_all(&deep).unwrap();
        create_dir_all(&deep).unwrap();
        assert!(deep.is_dir());
        std::fs::write(dir.path().join("file"), b"").unwrap();
        create_dir_all(&dir.path().join("file/x")).unwrap_err();
    }
}
