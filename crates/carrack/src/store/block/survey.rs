//! All sources at a glance, and what the catalog remembers of those out of service.
//!
//! In       the containers of the catalog, one `lstat` each; the marks that reads have set.
//! Out      [`Change`]s for `carrack status`; rows that outlive the process.
//! Limits   8 bytes a container while it looks.
//! Not here reading blocks, and what makes a mark (`store::block`).

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Blocks;
use crate::error::{Error, ErrorKind, Result};
use crate::source::local;
use crate::store::catalog::{Batch, ContainerKind, StaleMark};
use crate::store::location::ContainerId;

/// A container that is not as it was added.
#[derive(Debug)]
pub struct Change {
    /// Its file.
    pub path: PathBuf,
    /// missing, unreadable, corrupt (a pack), stale (another length or other bytes), or touched
    /// (other times, not read yet).
    pub state: &'static str,
    /// When a read first found it, in seconds since 1970.
    pub since_unix: Option<u64>,
    /// Where that read was, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u32,
}

impl Blocks {
    /// Compares every container's file with what was added, by one `lstat` each, and gives those
    /// that differ or were found bad before.
    ///
    /// # Errors
    /// Those of the catalog.
    pub fn survey(&self, stop: &AtomicBool) -> Result<Vec<Change>> {
        let catalog = self.inner.store.catalog();
        let marks: HashMap<_, _> = self.inner.stale.all().into_iter().collect();
        let mut ids = Vec::new();
        catalog.container_ids(|id| ids.push(id))?;
        let mut changes = Vec::new();
        for id in ids {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Unavailable, "interrupted"));
            }
            let Some(record) = catalog.container(id)? else {
                continue;
            };
            let path = self.path_of(&record);
            let seen = local::validator_at(&path);
            let mark = marks.get(&id);
            let state = match (&seen, record.kind) {
                (Err(error), _) if error.kind() == io::ErrorKind::NotFound => "missing",
                (Err(_), _) => "unreadable",
                (Ok(now), ContainerKind::Pack) if now.size() < record.size => "corrupt",
                (Ok(now), _) if mark.is_some_and(|mark| mark.observed.as_ref() == Some(now)) => {
                    "stale"
                }
                (Ok(_), ContainerKind::Pack) => continue,
                (Ok(now), _) if *now == record.validator => continue,
                (Ok(now), _) if now.size() != record.size => "stale",
                // Its bytes may still be the same: a request or `verify` will tell.
                (Ok(_), _) => "touched",
            };
            changes.push(Change {
                path,
                state,
                since_unix: mark.map(|mark| mark.since_unix),
                offset: mark.map_or(0, |mark| mark.offset),
                len: mark.map_or(0, |mark| mark.len),
            });
        }
        Ok(changes)
    }

    /// Writes what was found out of service to the catalog, if that changed. A failure is logged:
    /// the marks are found again by the next reads.
    pub fn save_stale(&self) {
        let Some(marks) = self.inner.stale.take_changes() else {
            return;
        };
        if let Err(error) = self.save_marks(marks) {
            self.inner.stale.touch();
            tracing::warn!(error = error.chain(), "stale marks were not saved");
        }
    }

    fn save_marks(&self, marks: Vec<(ContainerId, StaleMark)>) -> Result<()> {
        let catalog = self.inner.store.catalog();
        let mut batch = Batch::new();
        let mut kept = HashSet::new();
        for (id, mark) in marks {
            if catalog.has_container(id)? {
                batch.put_stale(id, mark);
                kept.insert(id);
            } else {
                self.inner.stale.clear(id); // It was dropped.
            }
        }
        for (id, _) in catalog.stale_marks()? {
            if !kept.contains(&id) {
                batch.clear_stale(id);
            }
        }
        self.inner.store.commit(batch).map(|_| ())
    }
}
