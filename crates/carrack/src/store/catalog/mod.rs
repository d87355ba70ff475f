//! What the store knows beside where blocks lie: containers, paths, roots, live segments.
//!
//! In       [`Batch`]es, each one durable transaction. After a failure the file is looked at again:
//!          what became of the transaction is found out, not guessed.
//! Out      a [`Snapshot`] for reading, replaced after each commit: a point read takes about a
//!          microsecond and no lock that a writer holds.
//! Limits   page cache [`CACHE_LEN`]; one writer.
//! Not here the exclusive lock on the directory, and files beside the catalog's own (`store`).
//!
//! Tables and their bytes: `docs/formats/catalog.md`.

mod batch;
mod codec;
#[cfg(test)]
mod faults;
mod file;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod layer;
mod members;
mod record;
mod remove;
mod snapshot;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use carrack_formats::Cid;
use redb::{Database, Durability, ReadTransaction, TableDefinition};

use super::gate::WriteGate;
use crate::error::{Context, Error, ErrorKind, Result};

use self::file::Access;
use self::layer::Layer;

pub use self::batch::{Batch, Committed};
pub use self::record::{
    ContainerKind, ContainerRecord, DirRecord, PathKey, PathRecord, RootId, RootKind, RootRecord,
    SOURCE_FIRST, SOURCE_LOCAL, SOURCE_STORE, SourceRecord, StaleMark, StaleReason,
    validator_bytes,
};
pub use self::snapshot::{Containers, Dirs, Paths, Snapshot};
pub use crate::source::validator::{FileStamp, FileTime, ObjectStamp, Validator};

/// Bytes of redb pages kept in memory.
pub const CACHE_LEN: usize = 24 * 1024 * 1024;
/// The catalog format that this program writes, and the newest it reads.
pub const FORMAT_VERSION: u64 = 1;

type Bytes = &'static [u8];

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const CONTAINERS: TableDefinition<'_, u64, Bytes> = TableDefinition::new("containers");
const PACKS: TableDefinition<'_, Bytes, u64> = TableDefinition::new("packs");
const PATHS: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("paths");
const DIRS: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("dirs");
const ROOTS: TableDefinition<'_, u64, Bytes> = TableDefinition::new("roots");
const ROOT_CIDS: TableDefinition<'_, Bytes, u64> = TableDefinition::new("root_cids");
const MEMBERS: TableDefinition<'_, (u64, u32), Bytes> = TableDefinition::new("members");
const STALE: TableDefinition<'_, u64, Bytes> = TableDefinition::new("stale");
const SEGMENTS: TableDefinition<'_, u64, Bytes> = TableDefinition::new("segments");
/// Made by the first source: a store without any has no such table.
const SOURCES: TableDefinition<'_, u32, Bytes> = TableDefinition::new("sources");
/// Files that a commit took away, and when. Made by the first removal.
const REMOVED: TableDefinition<'_, Bytes, u64> = TableDefinition::new("removed");
/// The row of `meta` with the first source id that was never given out; none before the first.
const NEXT_SOURCE: &str = "next_source";
/// The row of `meta` that counts commits; none in a catalog that an older version wrote.
const N_COMMITS: &str = "commits";

/// The first ids that were never given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NextIds {
    pub(super) container: u64,
    pub(super) root: u64,
    pub(super) segment: u64,
    pub(super) pack: u64,
}

impl NextIds {
    /// Those of an empty store: 0 means none wherever an id is optional.
    const FIRST: Self = Self {
        container: 1,
        root: 1,
        segment: 1,
        pack: 1,
    };

    const fn rows(self) -> [(&'static str, u64); 4] {
        [
            ("next_container", self.container),
            ("next_root", self.root),
            ("next_segment", self.segment),
            ("next_pack", self.pack),
        ]
    }
}

/// The open catalog.
pub(super) struct Catalog {
    access: Mutex<Access>,
    snapshot: ArcSwap<Snapshot>,
    /// What the snapshot is read through, unless it is opened for reading alone.
    layer: ArcSwapOption<Layer>,
}

/// What became of a commit.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is durable and visible.
    Done(Committed),
    /// Nothing has changed.
    Not(Error),
    /// It is visible, and a power cut may take it back. The gate is closed.
    Doubtful(Committed, Error),
    /// The file cannot be looked at. The gate is closed.
    Unknown(Error),
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}

impl Catalog {
    /// Makes an empty catalog in an empty file, which the caller makes durable and names.
    ///
    /// # Errors
    /// `Unavailable` if the disk does not take it.
    pub(super) fn make(file: &File, path: &Path, gate: &WriteGate) -> Result<()> {
        let file = file.try_clone();
        let file = file.context(ErrorKind::Unavailable, || path.display().to_string())?;
        let layer = Layer::new(Arc::new(file), path);
        let made = file::database(&layer).and_then(|database| initialize(&database));
        match layer.failure() {
            None => made,
            Some(failure) => Err(gate.refused(failure)),
        }
    }

    /// Opens a catalog. With `is_view` one that cannot be written is opened, too.
    ///
    /// # Errors
    /// `Invalid` if a newer version wrote it, `Corrupt` if it is none or is damaged, `NotFound`.
    pub(super) fn open(
        path: &Path,
        gate: &Arc<WriteGate>,
        is_view: bool,
    ) -> Result<(Self, NextIds)> {
        let cannot = || format!("cannot look at the catalog {}", path.display());
        let meta = match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::with(ErrorKind::NotFound, cannot(), error));
            }
            meta => meta.context(ErrorKind::Unavailable, cannot)?,
        };
        let no_catalog = || Error::new(ErrorKind::Corrupt, "the file holds no catalog");
        if meta.len() == 0 {
            return Err(no_catalog()); // redb would make one of it.
        }
        let mut access = Access::open(path, gate, is_view)?;
        let next = read_meta(&access.begin_read()?)?.ok_or_else(no_catalog)?;
        let snapshot = ArcSwap::new(access.snapshot()?);
        let layer = ArcSwapOption::new(access.layer());
        let access = Mutex::new(access);
        let catalog = Self {
            access,
            snapshot,
            layer,
        };
        Ok((catalog, next))
    }

    /// The state after the last commit. Keep it for one request, not for ever: redb cannot reuse
    /// the pages that it needs.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        let layer = self.layer.load();
        if layer.as_ref().is_some_and(|layer| layer.has_failed_read()) {
            self.read_anew();
        }
        self.snapshot.load_full()
    }

    /// redb reads nothing more once a read has failed: the file is opened anew.
    #[cold]
    fn read_anew(&self) {
        // Whoever has it writes, and finds out by itself.
        let Ok(mut access) = self.access.try_lock() else {
            return;
        };
        match access.read_anew() {
            Ok(snapshot) => {
                self.show(&access, snapshot);
                tracing::info!("the catalog is read again");
            }
            Err(error) => tracing::debug!(error = error.chain(), "the catalog is not read"),
        }
    }

    /// Lets everybody read what was committed last.
    fn show(&self, access: &Access, snapshot: Arc<Snapshot>) {
        self.snapshot.store(snapshot);
        self.layer.store(access.layer());
    }

    /// [`Snapshot::next_source`] of the state after the last commit.
    pub(super) fn next_source(&self) -> u32 {
        self.snapshot.load().next_source()
    }

    /// Opens the file for writing now rather than at the first commit, for a process whose readers
    /// may keep a snapshot over more than one commit.
    pub(super) fn begin_writing(&self) -> Result<()> {
        self.writing().map(drop)
    }

    fn writing(&self) -> Result<MutexGuard<'_, Access>> {
        let mut access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
        if access.begin_writing()? {
            let snapshot = access.snapshot()?;
            self.show(&access, snapshot);
        }
        Ok(access)
    }

    /// Writes a batch durably.
    pub(super) fn commit(&self, batch: Batch, next: NextIds) -> Outcome {
        let mut access = match self.writing() {
            Ok(access) => access,
            Err(error) => return Outcome::Not(error),
        };
        let n_commits = self.snapshot.load().n_commits() + 1;
        let mut committed = None;
        let written = write(&access, batch, next, n_commits, &mut committed);
        if written.is_ok()
            && access.failure().is_none()
            && let Ok(snapshot) = access.snapshot()
        {
            self.show(&access, snapshot);
            return Outcome::Done(committed.unwrap_or_default());
        }
        self.find_out(&mut access, written, n_commits, committed)
    }

    /// What became of a commit that met a failure: the file tells.
    fn find_out(
        &self,
        access: &mut Access,
        written: Result<()>,
        n_commits: u64,
        committed: Option<Committed>,
    ) -> Outcome {
        let gate = Arc::clone(access.gate());
        let error = match (access.failure(), written) {
            (Some(failure), _) => gate.refused(failure),
            (None, Err(error)) => error,
            (None, Ok(())) => Error::new(ErrorKind::Unavailable, "a commit cannot be read"),
        };
        let seen = access.look_again().and_then(|()| access.snapshot());
        let snapshot = match seen {
            Ok(snapshot) => snapshot,
            Err(unseen) => {
                gate.close(format!("what a commit did is unknown ({})", unseen.chain()));
                return Outcome::Unknown(error);
            }
        };
        let is_there = snapshot.n_commits() == n_commits;
        self.show(access, snapshot);
        let Some(committed) = committed.filter(|_| is_there) else {
            return Outcome::Not(error);
        };
        match access.sync() {
            Ok(()) => Outcome::Done(committed),
            Err(_) => Outcome::Doubtful(committed, error),
        }
    }
}

/// One transaction. `committed` is set as soon as there is something to commit.
fn write(
    access: &Access,
    batch: Batch,
    next: NextIds,
    n_commits: u64,
    committed: &mut Option<Committed>,
) -> Result<()> {
    let mut transaction = access.begin_write()?;
    storage(transaction.set_durability(Durability::Immediate))?;
    // Without it the first open after a crash would read the whole catalog.
    transaction.set_quick_repair(true);
    let applied = batch.apply(&transaction, next, n_commits)?;
    if access.failure().is_some() {
        return storage(transaction.abort()); // Nothing of it may reach the disk.
    }
    *committed = Some(applied);
    storage(transaction.commit())
}

/// The ids of an existing catalog; `None` if the file is new.
fn read_meta(transaction: &ReadTransaction) -> Result<Option<NextIds>> {
    let table = match transaction.open_table(META) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return storage(Err(error)),
    };
    let read = |name: &str| -> Result<u64> {
        storage(table.get(name))?
            .map(|value| value.value())
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("the catalog has no {name}")))
    };
    let version = read("format")?;
    if version != FORMAT_VERSION {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("the catalog has format {version}, this program knows {FORMAT_VERSION}"),
        ));
    }
    Ok(Some(NextIds {
        container: read("next_container")?,
        root: read("next_root")?,
        segment: read("next_segment")?,
        pack: read("next_pack")?,
    }))
}

/// Makes every table, so that a snapshot can open them all.
fn initialize(database: &Database) -> Result<()> {
    let mut transaction = storage(database.begin_write())?;
    transaction.set_quick_repair(true);
    {
        let mut meta = storage(transaction.open_table(META))?;
        storage(meta.insert("format", FORMAT_VERSION))?;
        for (name, value) in NextIds::FIRST.rows() {
            storage(meta.insert(name, value))?;
        }
        storage(transaction.open_table(CONTAINERS))?;
        storage(transaction.open_table(PACKS))?;
        storage(transaction.open_table(PATHS))?;
        storage(transaction.open_table(DIRS))?;
        storage(transaction.open_table(ROOTS))?;
        storage(transaction.open_table(ROOT_CIDS))?;
        storage(transaction.open_table(MEMBERS))?;
        storage(transaction.open_table(STALE))?;
        storage(transaction.open_table(SEGMENTS))?;
    }
    storage(transaction.commit())
}

/// CIDs delimit themselves, so all roots of a CID are the keys that begin with its bytes.
#[expect(clippy::big_endian_bytes, reason = "keys sort as bytes")]
fn root_cid_key(cid: &Cid, id: RootId) -> Vec<u8> {
    let mut key = cid.to_bytes();
    key.extend_from_slice(&id.0.to_be_bytes());
    key
}

/// Gives an error of redb its kind.
fn storage<T>(result: std::result::Result<T, impl Into<redb::Error>>) -> Result<T> {
    result.map_err(|error| {
        let error = error.into();
        let (kind, what) = match error {
            redb::Error::Corrupted(_) => (ErrorKind::Corrupt, "the catalog is damaged"),
            redb::Error::Io(ref error) if error.kind() == std::io::ErrorKind::InvalidData => {
                (ErrorKind::Corrupt, "the file is no catalog")
            }
            redb::Error::DatabaseAlreadyOpen => (ErrorKind::Busy, "the catalog is in use"),
            redb::Error::UpgradeRequired(_) => (
                ErrorKind::Invalid,
                "another version of redb wrote the catalog",
            ),
            _ => (
                ErrorKind::Unavailable,
                "the catalog could not be read or written",
            ),
        };
        Error::with(kind, what, error)
    })
}
