//! The catalog's file, opened for reading alone until something is to be written.
//!
//! In       the path of a redb file in a directory that this process holds the lock of.
//! Out      read transactions at once; a write transaction when one is asked for. After a failure
//!          the file as it is on the disk, and writing again once those who read the file as it was
//!          before are done.
//! Limits   page cache [`CACHE_LEN`]; a write waits [`READERS_TIME_MAX`] for such readers.
//! Not here tables and rows (`catalog`), what is kept in memory of a failed write (`layer`).
//!
//! Opening a redb file for writing and closing it costs several waits for the disk, which a command
//! that only reads need not pay, nor should it need a disk that can be written.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use redb::{
    Database, DatabaseError, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, WriteTransaction,
};

use super::layer::{Backend, Layer};
use super::{CACHE_LEN, Snapshot, storage};
use crate::durable::DurableError;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::store::gate::WriteGate;

/// How long a write waits for those who read what was there before a failure.
const READERS_TIME_MAX: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5_000 });
/// Time between two tries to read a file that could not be read.
const LOOK_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 1_000 });
/// Time between two looks at them.
const READERS_INTERVAL: Duration = Duration::from_millis(5);

/// How the file is open.
enum Open {
    /// For reading alone, as it was left by whoever wrote it.
    Reading(ReadOnlyDatabase),
    /// For both.
    Writing(Database, Arc<Layer>),
    /// For reading alone; what had to be repaired is repaired in memory.
    Viewing(Database, Arc<Layer>),
}

/// A database that nothing is read from or written to any more, but by those who do already. It
/// ends with the last of them.
struct Retired {
    _open: Open,
    readers: Vec<Weak<Snapshot>>,
}

/// The open file.
pub(super) struct Access {
    path: PathBuf,
    gate: Arc<WriteGate>,
    open: Open,
    /// Who may be reading from `open`.
    readers: Vec<Weak<Snapshot>>,
    /// What was open when a write failed. Pages that they read may be written over from the second
    /// commit after that on.
    retired: Vec<Retired>,
    /// When the file was last opened anew after a read that failed.
    looked: Option<Instant>,
}

impl Access {
    /// Opens the file as it was left. One that was not closed is repaired: on the disk, or in
    /// memory if `is_view` and the disk takes nothing.
    pub(super) fn open(path: &Path, gate: &Arc<WriteGate>, is_view: bool) -> Result<Self> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_LEN);
        let open = match builder.open_read_only(path) {
            Ok(database) => Open::Reading(database),
            Err(DatabaseError::RepairAborted) => match open_for_writing(path, gate) {
                Err(error) if is_view && error.kind() == ErrorKind::Unavailable => {
                    let file = File::open(path);
                    let file = file.context(ErrorKind::Unavailable, || cannot_open(path))?;
                    view(Arc::new(file), path)?
                }
                opened => opened?,
            },
            Err(error) => return storage(Err(error)),
        };
        Ok(Self {
            path: path.to_owned(),
            gate: Arc::clone(gate),
            open,
            readers: Vec::new(),
            retired: Vec::new(),
            looked: None,
        })
    }

    /// What a failed sync closes.
    pub(super) const fn gate(&self) -> &Arc<WriteGate> {
        &self.gate
    }

    #[cfg(test)]
    pub(super) const fn is_reading(&self) -> bool {
        matches!(self.open, Open::Reading(_))
    }

    /// A transaction that reads what was committed last.
    pub(super) fn begin_read(&self) -> Result<ReadTransaction> {
        match &self.open {
            Open::Reading(database) => storage(database.begin_read()),
            Open::Writing(database, _) | Open::Viewing(database, _) => {
                storage(database.begin_read())
            }
        }
    }

    /// What was committed last.
    pub(super) fn snapshot(&mut self) -> Result<Arc<Snapshot>> {
        let snapshot = Arc::new(Snapshot::new(&self.begin_read()?)?);
        self.readers.retain(|reader| reader.strong_count() > 0);
        self.readers.push(Arc::downgrade(&snapshot));
        Ok(snapshot)
    }

    /// Opens the file for writing; whether it was not before, and so a new snapshot is due.
    /// Transactions that read before go on reading what they read.
    ///
    /// # Errors
    /// `Unavailable`: the disk does not take it, or readers from before a failure go on. Nothing
    /// has changed.
    pub(super) fn begin_writing(&mut self) -> Result<bool> {
        self.gate.check()?;
        self.await_readers()?;
        if matches!(self.open, Open::Writing(..)) {
            return Ok(false);
        }
        let opened = open_for_writing(&self.path, &self.gate)?;
        let before = std::mem::replace(&mut self.open, opened);
        let readers = std::mem::take(&mut self.readers);
        if let Open::Viewing(..) = before {
            let retired = Retired {
                _open: before,
                readers,
            };
            self.retired.push(retired);
        }
        Ok(true)
    }

    /// A transaction that writes. The file is open for writing.
    pub(super) fn begin_write(&self) -> Result<WriteTransaction> {
        match &self.open {
            Open::Writing(database, _) => storage(database.begin_write()),
            _ => {
                let what = "the catalog is not open for writing";
                Err(Error::new(ErrorKind::Internal, what))
            }
        }
    }

    /// What the disk refused since the file was opened for writing.
    pub(super) fn failure(&self) -> Option<&DurableError> {
        match &self.open {
            Open::Writing(_, layer) => layer.failure(),
            _ => None,
        }
    }

    /// Makes what the file holds durable.
    pub(super) fn sync(&self) -> Result<()> {
        match &self.open {
            Open::Writing(_, layer) | Open::Viewing(_, layer) => {
                self.gate.sync_file(layer.file(), &self.path)
            }
            Open::Reading(_) => Ok(()),
        }
    }

    /// After a failure: opens the file as it is now, for reading alone. Those who read go on with
    /// what they have.
    pub(super) fn look_again(&mut self) -> Result<()> {
        let Some(layer) = self.layer() else {
            return Ok(());
        };
        let view = view(Arc::clone(layer.file()), &self.path)?;
        let open = std::mem::replace(&mut self.open, view);
        let readers = std::mem::take(&mut self.readers);
        self.retired.push(Retired {
            _open: open,
            readers,
        });
        Ok(())
    }

    /// What is read through, unless the file is open for reading alone.
    pub(super) fn layer(&self) -> Option<Arc<Layer>> {
        match &self.open {
            Open::Writing(_, layer) | Open::Viewing(_, layer) => Some(Arc::clone(layer)),
            Open::Reading(_) => None,
        }
    }

    /// After a read that failed: as [`Self::look_again`], if it is time for it and the file can be
    /// read.
    pub(super) fn read_anew(&mut self) -> Result<Arc<Snapshot>> {
        let now = Instant::now();
        if self
            .looked
            .is_some_and(|looked| now < looked + LOOK_INTERVAL)
        {
            let what = "the catalog could not be read a moment ago";
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        self.looked = Some(now);
        if let Some(layer) = self.layer() {
            let cannot = || cannot_open(&self.path);
            layer.close().context(ErrorKind::Unavailable, cannot)?;
        }
        self.look_again()?;
        self.snapshot()
    }

    /// Waits for those who read what was there before a failure.
    fn await_readers(&mut self) -> Result<()> {
        let deadline = Instant::now() + READERS_TIME_MAX;
        loop {
            self.retired.retain_mut(|retired| {
                retired.readers.retain(|reader| reader.strong_count() > 0);
                !retired.readers.is_empty()
            });
            if self.retired.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let what = "the disk refused a write, and what was read then is read on";
                return Err(Error::new(ErrorKind::Unavailable, what));
            }
            std::thread::sleep(READERS_INTERVAL);
        }
    }
}

fn cannot_open(path: &Path) -> String {
    format!("cannot open the catalog {}", path.display())
}

fn open_for_writing(path: &Path, gate: &WriteGate) -> Result<Open> {
    let file = File::options().read(true).write(true).open(path);
    let file = file.context(ErrorKind::Unavailable, || cannot_open(path))?;
    let layer = Layer::new(Arc::new(file), path);
    let database = database(&layer)?;
    match layer.failure() {
        None => Ok(Open::Writing(database, layer)),
        Some(failure) => Err(gate.refused(failure)),
    }
}

/// The file as it is, whether or not it can be written.
fn view(file: Arc<File>, path: &Path) -> Result<Open> {
    let layer = Layer::frozen(file, path).context(ErrorKind::Unavailable, || cannot_open(path))?;
    Ok(Open::Viewing(database(&layer)?, layer))
}

/// redb over a layer; a file without a byte becomes an empty database.
pub(super) fn database(layer: &Arc<Layer>) -> Result<Database> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_LEN);
    storage(builder.create_with_backend(Backend(Arc::clone(layer))))
}
