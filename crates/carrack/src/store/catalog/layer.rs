//! The catalog's file as redb sees it: what the disk does not take is kept aside in memory.
//!
//! In       reads and writes of redb.
//! Out      the file; from the first failure on a frozen file, which redb may go on with.
//! Limits   memory aside: what is written after the failure, at most one transaction.
//! Not here what becomes of a transaction that met a failure (`catalog`).
//!
//! redb refuses everything after one failed write, reads among it, and those who read then would
//! get errors for a disk that is merely full. So a failure is noted and not told: nothing reaches
//! the file from then on, whatever redb writes, and whoever commits looks at the note. What was
//! read before goes on being read. A layer that is frozen from the start lets redb repair, in
//! memory, a file that cannot be written.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use redb::StorageBackend;

use crate::durable::DurableError;

/// Bytes that are kept aside together.
const PAGE_LEN: usize = 4096;

/// The file, and what it did not take. It has no lock of its own: the directory's covers it, and
/// several layers of one process may follow each other on it.
#[derive(Debug)]
pub(super) struct Layer {
    file: Arc<File>,
    path: PathBuf,
    is_frozen: AtomicBool,
    failure: OnceLock<DurableError>,
    /// A read failed. redb reads nothing more through this layer.
    read_failed: AtomicBool,
    aside: Mutex<Option<Aside>>,
}

/// What is written to a frozen file.
#[derive(Debug)]
struct Aside {
    len: u64,
    /// Bytes of the file behind it are not the file's any more.
    file_len: u64,
    pages: HashMap<u64, Box<[u8; PAGE_LEN]>>,
}

impl Layer {
    /// What is written goes to the file.
    pub(super) fn new(file: Arc<File>, path: &Path) -> Arc<Self> {
        Arc::new(Self {
            file,
            path: path.to_owned(),
            is_frozen: AtomicBool::new(false),
            failure: OnceLock::new(),
            read_failed: AtomicBool::new(false),
            aside: Mutex::new(None),
        })
    }

    /// Nothing is written to the file.
    pub(super) fn frozen(file: Arc<File>, path: &Path) -> io::Result<Arc<Self>> {
        let layer = Self::new(file, path);
        drop(layer.freeze()?);
        Ok(layer)
    }

    /// The file.
    pub(super) const fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// What the disk refused first.
    pub(super) fn failure(&self) -> Option<&DurableError> {
        self.failure.get()
    }

    /// Whether a read failed, so that the file is to be opened anew.
    pub(super) fn has_failed_read(&self) -> bool {
        self.read_failed.load(Ordering::Relaxed)
    }

    /// Nothing is written to the file from now on.
    pub(super) fn close(&self) -> io::Result<()> {
        self.freeze().map(drop)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        #[cfg(test)]
        crate::durable::faults::read()?;
        match self.aside().as_deref() {
            Some(Some(aside)) => aside.read(&self.file, offset, out),
            _ => self.file.read_exact_at(out, offset),
        }
    }

    fn hold(&self) -> MutexGuard<'_, Option<Aside>> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn freeze(&self) -> io::Result<MutexGuard<'_, Option<Aside>>> {
        let mut aside = self.hold();
        if aside.is_none() {
            let len = self.file.metadata()?.len();
            *aside = Some(Aside {
                len,
                file_len: len,
                pages: HashMap::new(),
            });
            self.is_frozen.store(true, Ordering::Release);
        }
        Ok(aside)
    }

    /// What is aside, once nothing goes to the file any more.
    fn aside(&self) -> Option<MutexGuard<'_, Option<Aside>>> {
        self.is_frozen.load(Ordering::Acquire).then(|| self.hold())
    }

    /// Notes that the disk did not take something; from now on it is not asked.
    fn failed(&self, failure: DurableError) -> io::Result<MutexGuard<'_, Option<Aside>>> {
        // The first is what an operator must look at.
        let _ = self.failure.set(failure);
        self.freeze()
    }

    fn set_file_len(&self, len: u64) -> io::Result<()> {
        #[cfg(test)]
        crate::durable::faults::next(false)?;
        self.file.set_len(len)
    }

    fn sync_file(&self) -> io::Result<()> {
        #[cfg(test)]
        crate::durable::faults::next(true)?;
        self.file.sync_data()
    }

    fn write_file(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        crate::durable::faults::next(false)?;
        self.file.write_all_at(data, offset)
    }

    fn undone(&self, what: &'static str, source: io::Error) -> DurableError {
        let path = self.path.clone();
        DurableError::Undone { what, path, source }
    }
}

impl Aside {
    fn read(&self, file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.saturating_add(out.len() as u64) > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (page, within, part) in parts(offset, out.len()) {
            let Some(out) = out.get_mut(part) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            match self.pages.get(&page) {
                Some(bytes) => copy(out, bytes.get(within..).unwrap_or_default()),
                None => self.read_file(file, page * PAGE_LEN as u64 + within as u64, out)?,
            }
        }
        Ok(())
    }

    /// Bytes of the file, and zeros where it has none.
    fn read_file(&self, file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = self.file_len.saturating_sub(offset);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(out.len());
        let (head, rest) = out.split_at_mut(there);
        file.read_exact_at(head, offset)?;
        rest.fill(0);
        Ok(())
    }

    fn write(&mut self, file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
        for (page, within, part) in parts(offset, data.len()) {
            let data = data.get(part).unwrap_or_default();
            if !self.pages.contains_key(&page) {
                let mut bytes = Box::new([0; PAGE_LEN]);
                if data.len() < PAGE_LEN {
                    self.read_file(file, page * PAGE_LEN as u64, bytes.as_mut_slice())?;
                }
                self.pages.insert(page, bytes);
            }
            if let Some(bytes) = self.pages.get_mut(&page) {
                copy(bytes.get_mut(within..).unwrap_or_default(), data);
            }
        }
        Ok(())
    }

    fn set_len(&mut self, len: u64) {
        self.len = len;
        self.file_len = self.file_len.min(len);
        self.pages.retain(|page, _| page * (PAGE_LEN as u64) < len);
    }
}

/// The pages that a range touches: number, offset in the page, part of the range.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % PAGE_LEN as u64) as usize;
        let n = (PAGE_LEN - within).min(len - done);
        let part = done..done + n;
        done += n;
        Some((at / PAGE_LEN as u64, within, part))
    })
}

fn copy(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// A layer as redb takes it.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Arc<Layer>);

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        if let Some(aside) = self.0.aside().as_deref()
            && let Some(aside) = aside
        {
            return Ok(aside.len);
        }
        Ok(self.0.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let read = self.0.read(offset, out);
        if read.is_err() {
            self.0.read_failed.store(true, Ordering::Relaxed);
        }
        read
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut aside = match self.0.aside() {
            Some(aside) => aside,
            None => match self.0.set_file_len(len) {
                Ok(()) => return Ok(()),
                Err(error) => self.0.failed(self.0.undone("growing", error))?,
            },
        };
        if let Some(aside) = aside.as_mut() {
            aside.set_len(len);
        }
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        if self.0.is_frozen.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Err(source) = self.0.sync_file() {
            let path = self.0.path.clone();
            drop(self.0.failed(DurableError::Sync { path, source })?);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut aside = match self.0.aside() {
            Some(aside) => aside,
            None => match self.0.write_file(offset, data) {
                Ok(()) => return Ok(()),
                Err(error) => self.0.failed(self.0.undone("writing", error))?,
            },
        };
        match aside.as_mut() {
            Some(aside) => aside.write(&self.0.file, offset, data),
            None => Ok(()),
        }
    }
}
