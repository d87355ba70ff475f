//! Work in the background: merging index segments.
//!
//! In       the store, a flag that says stop. Out true if something was merged: call again.
//! Limits   one merge at a time; memory of a merge, and a bit for each container id when many
//!          records are merged.
//! Not here when to run (`node`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::catalog::{Batch, Snapshot};
use super::index::{Merged, Segment, merge, plan_merge};
use super::location::ContainerId;
use super::{Store, hold, recover};
use crate::error::Result;

/// Merges one full tier of segments; false if there was none, or the flag was raised.
///
/// Look-ups go on meanwhile, and ingest may commit. Records of containers that have no catalog row
/// are left out, except those that this process may still be adding.
///
/// # Errors
/// `Corrupt` if a segment is damaged, `Unavailable` if the disk fails. Nothing has changed then.
pub fn merge_once(store: &Store, stop: &AtomicBool) -> Result<bool> {
    let _guard = hold(&store.merge_lock);
    store.check_writable()?;
    let Some(ids) = plan_merge(&store.index.segments()) else {
        return Ok(false);
    };
    let inputs: Vec<Arc<Segment>> = store
        .index
        .live_segments()
        .into_iter()
        .filter(|segment| ids.contains(&segment.meta().id))
        .collect();
    let n_records = inputs.iter().map(|input| input.meta().n_records).sum();
    let mut liveness = Liveness::new(store, n_records)?;
    let merged = merge(
        &store.dir.join(recover::SEGMENTS),
        store.new_segment_id(),
        &store.gate,
        &inputs,
        &mut |container| liveness.is_dead(container),
        stop,
    )?;
    let mut batch = Batch::new();
    batch.removed_segments = ids;
    match merged {
        Merged::Stopped => return Ok(false),
        Merged::Empty => {}
        Merged::Segment(meta) => batch.add_segment(meta),
    }
    store.commit(batch)?;
    Ok(true)
}

/// Which containers are dead, as of the start of a merge.
struct Liveness<'a> {
    store: &'a Store,
    snapshot: Arc<Snapshot>,
    /// One bit an id, set for those with a row; empty if they are looked up one by one.
    live: Vec<u64>,
    known: HashMap<ContainerId, bool>,
}

impl<'a> Liveness<'a> {
    fn new(store: &'a Store, n_records: u64) -> Result<Self> {
        let snapshot = store.catalog();
        let mut live = Vec::new();
        // A scan reads a row in a tenth of the time of a look-up.
        if n_records > snapshot.n_containers()? / 10 {
            snapshot.container_ids(|id| {
                let word = (id.0 / 64) as usize;
                if word >= live.len() {
                    live.resize(word + 1, 0);
                }
                if let Some(word) = live.get_mut(word) {
                    *word |= 1u64 << (id.0 % 64);
                }
            })?;
        }
        Ok(Self {
            store,
            snapshot,
            live,
            known: HashMap::new(),
        })
    }

    fn is_dead(&mut self, id: ContainerId) -> Result<bool> {
        let has_row = if self.live.is_empty() {
            match self.known.get(&id) {
                Some(&has_row) => has_row,
                None => {
                    let has_row = self.snapshot.has_container(id)?;
                    self.known.insert(id, has_row);
                    has_row
                }
            }
        } else {
            let word = self.live.get((id.0 / 64) as usize);
            word.is_some_and(|word| word >> (id.0 % 64) & 1 == 1)
        };
        if has_row {
            return Ok(false);
        }
        // An ingest under way commits rows after segments: its ids are new in this process.
        Ok(id < self.store.session_first || hold(&self.store.removed).contains(&id))
    }
}
