//! The catalog's file, opened for reading alone until something is to be written.
//!
//! In       the path of a redb file in a directory that this process holds the lock of.
//! Out      read transactions at once; write transactions after the first [`Access::writable`].
//! Limits   page cache [`CACHE_LEN`].
//! Not here tables and rows (`catalog`).
//!
//! Opening a redb file for writing and closing it costs several waits for the disk, which a command
//! that only reads need not pay, nor should it need a disk that can be written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use redb::{Database, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, StorageBackend};

use super::{CACHE_LEN, storage};
use crate::error::{Context, ErrorKind, Result};

/// How the file is open.
pub(super) enum Access {
    /// For reading alone.
    Reading(ReadOnlyDatabase),
    /// For both.
    Writing(Database),
}

impl Access {
    /// Opens the file as it was left; one that is new, or was not closed, for writing.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_LEN);
        match builder.open_read_only(path) {
            Ok(database) => Ok(Self::Reading(database)),
            Err(_) => Ok(Self::Writing(open_for_writing(path)?)),
        }
    }

    /// The database for writing. Transactions that read before go on reading what they read.
    pub(super) fn writable(&mut self, path: &Path) -> Result<&Database> {
        if let Self::Reading(_) = self {
            *self = Self::Writing(open_for_writing(path)?);
        }
        match self {
            Self::Writing(database) => Ok(database),
            Self::Reading(_) => Err(crate::Error::new(
                ErrorKind::Internal,
                "the catalog is not open for writing",
            )),
        }
    }

    pub(super) fn begin_read(&self) -> Result<ReadTransaction> {
        match self {
            Self::Reading(database) => storage(database.begin_read()),
            Self::Writing(database) => storage(database.begin_read()),
        }
    }
}

fn open_for_writing(path: &Path) -> Result<Database> {
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false);
    let cannot = || format!("cannot open the catalog {}", path.display());
    let file = file.open(path).context(ErrorKind::Unavailable, cannot)?;
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_LEN);
    storage(builder.create_with_backend(CatalogFile(file)))
}

/// The file without a lock of its own: the directory's lock covers it, and readers of this process
/// may still have it open.
#[derive(Debug)]
struct CatalogFile(File);

impl StorageBackend for CatalogFile {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write_all_at(data, offset)
    }
}
