//! Whether one copy of blocks may go because another holds all of them.
//!
//! In       a pack that is listed, and another container whose entries are in the index.
//! Out      yes or no; no, too, of a pack that cannot be read to its end.
//! Limits   the heads of the pack's sections, read once, and a look-up for each.
//! Not here who decides what goes (`ingest::import`).

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Store;
use super::catalog::ContainerRecord;
use super::location::ContainerId;
use super::rebuild::Sections;
use crate::error::{Error, ErrorKind, Result};
use crate::source::local::LocalFile;

impl Store {
    /// Whether every block of `pack` is in `container`, too.
    ///
    /// # Errors
    /// `Unavailable` if `stop` was raised.
    pub fn is_all_in(
        &self,
        pack: &ContainerRecord,
        container: ContainerId,
        stop: &AtomicBool,
    ) -> Result<bool> {
        let Ok(file) = LocalFile::open_own(&self.pack_path(pack)) else {
            return Ok(false);
        };
        let Ok(mut sections) = Sections::open(&file, pack.size) else {
            return Ok(false);
        };
        while let Ok(next) = sections.next() {
            let Some(section) = next else {
                return Ok(true);
            };
            if stop.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Unavailable, "interrupted"));
            }
            let mut is_there = false;
            self.index.visit(section.cid.hash(), |location| {
                is_there = location.container == container;
                match is_there {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            });
            if !is_there {
                return Ok(false);
            }
        }
        Ok(false)
    }
}
