//! Segments under construction that no catalog lists yet.
//!
//! In       entries in any order.
//! Out      few segments: full tiers are merged as they come about.
//! Limits   one index run in memory. Dropped without [`Builder::take`] it removes its files; what
//!          a killed process leaves is removed by the next opening of the store.
//! Not here which entries there are (`rebuild`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use carrack_formats::Cid;

use super::interrupted;
use crate::durable;
use crate::error::Result;
use crate::store::index::{
    Merged, RunWriter, Segment, SegmentMeta, merge, plan_merge, segment_name,
};
use crate::store::location::{ContainerId, Location};
use crate::store::{Store, recover};

pub(super) struct Builder<'a> {
    store: &'a Store,
    stop: &'a AtomicBool,
    dir: PathBuf,
    run: RunWriter,
    segments: Vec<SegmentMeta>,
    last: Option<Location>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(store: &'a Store, stop: &'a AtomicBool) -> Result<Self> {
        Ok(Self {
            store,
            stop,
            dir: store.dir.join(recover::SEGMENTS),
            run: store.run_writer()?,
            segments: Vec::new(),
            last: None,
        })
    }

    /// Records where a block lies.
    pub(super) fn push(&mut self, cid: &Cid, location: Location) -> Result<()> {
        self.run.push(cid.hash(), location)?;
        self.last = Some(location);
        if self.run.is_full() {
            return self.seal();
        }
        Ok(())
    }

    /// The byte of a container up to which it was given, if it was the last.
    pub(super) fn reached(&self, container: ContainerId) -> u64 {
        let last = self.last.filter(|last| last.container == container);
        last.map_or(0, |last| last.offset + 1)
    }

    /// Writes the entries so far.
    pub(super) fn seal(&mut self) -> Result<()> {
        if self.run.is_empty() {
            return Ok(());
        }
        let run = std::mem::replace(&mut self.run, self.store.run_writer()?);
        match run.finish()? {
            Some(meta) => self.add(meta),
            None => Ok(()),
        }
    }

    /// Takes a finished segment along.
    pub(super) fn add(&mut self, meta: SegmentMeta) -> Result<()> {
        self.segments.push(meta);
        while let Some(ids) = plan_merge(&self.segments) {
            let (inputs, others): (Vec<_>, Vec<_>) = self
                .segments
                .iter()
                .copied()
                .partition(|meta| ids.contains(&meta.id));
            let opened: Result<Vec<_>> = inputs
                .iter()
                .map(|meta| Segment::open(self.path(meta), meta, false).map(Arc::new))
                .collect();
            let merged = merge(
                &self.dir,
                self.store.new_segment_id(),
                &self.store.gate,
                &opened?,
                &mut |_| Ok(false),
                self.stop,
            )?;
            self.segments = others;
            match merged {
                Merged::Segment(meta) => self.segments.push(meta),
                Merged::Empty => {}
                Merged::Stopped => {
                    self.segments.extend(inputs);
                    return Err(interrupted());
                }
            }
            self.discard(&inputs);
        }
        Ok(())
    }

    /// What is finished.
    pub(super) fn segments(&self) -> &[SegmentMeta] {
        &self.segments
    }

    /// Gives everything away: the caller lists it.
    pub(super) fn take(&mut self) -> Result<Vec<SegmentMeta>> {
        self.seal()?;
        Ok(std::mem::take(&mut self.segments))
    }

    /// Removes segments that nobody lists.
    pub(super) fn discard(&self, segments: &[SegmentMeta]) {
        for meta in segments {
            // The next opening of the store removes what stays.
            let _ = std::fs::remove_file(durable::temporary(&self.path(meta)));
        }
    }

    fn path(&self, meta: &SegmentMeta) -> PathBuf {
        self.dir.join(segment_name(meta.id))
    }
}

impl Drop for Builder<'_> {
    fn drop(&mut self) {
        self.discard(&self.segments);
    }
}
