//! Work in the background: merging index segments.
//!
//! In       the store, a flag that says stop. Out whether something was merged: call again.
//! Limits   one merge at a time; memory of a merge, and a bit for each container id when many
//!          records are merged. A merge that would fill the disk is not begun.
//! Not here when to run (`node`), how tiers are planned (`index::merge`).

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, TryLockError};
use std::time::{Duration, Instant};

use super::catalog::{Batch, Snapshot};
use super::index::{
    Merged, RESIDENT_LEN_MAX_SERVING, Segment, SegmentId, SegmentMeta, merge, plan_merge,
};
use super::location::ContainerId;
use super::{Store, hold, recover};
use crate::error::{Error, ErrorKind, Result};

/// Bytes that a merge leaves free on the disk: ingest must be able to go on.
const FREE_LEN_MIN: u64 = 64 << 20;
/// Time after the first failure until the next try; twice as long after each further one.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest such time.
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Pages of a segment that are looked at to tell how many of its records are dead.
const SAMPLE_PAGES: u64 = 1024;
/// A segment is written again when one record in so many is dead.
const DEAD_PART: u64 = 4;
/// Segments with fewer records are left to the tiers.
const REWRITE_RECORDS_MIN: u64 = 4096;

/// What a call of [`Merger::step`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was merged, and there may be more.
    Merged,
    /// Nothing to do now.
    Idle,
}

/// Merges for as long as a node runs. A failure is told once and tried again, later each time.
#[derive(Debug, Default)]
pub struct Merger {
    n_failures: u32,
    not_before: Option<Instant>,
    heads_are_loaded: bool,
    /// [`Store::n_removals`] when segments were last searched for dead records, plus one.
    searched: u64,
}

impl Merger {
    /// Merges one full tier, or writes a segment again that is largely of removed containers.
    pub fn step(&mut self, store: &Store, stop: &AtomicBool) -> Step {
        if self.not_before.is_some_and(|time| Instant::now() < time) {
            return Step::Idle;
        }
        if !self.heads_are_loaded {
            self.heads_are_loaded = match store.load_index_heads(RESIDENT_LEN_MAX_SERVING) {
                Ok(is_done) => is_done,
                Err(error) => {
                    tracing::error!(error = error.chain(), "the index cannot be read");
                    true // Look-ups go through the maps, as they do already.
                }
            };
        }
        let worked = match merge_once(store, stop) {
            Ok(false) => self.sweep(store, stop),
            outcome => outcome,
        };
        match worked {
            Ok(worked) => {
                if self.n_failures > 0 {
                    tracing::info!("index segments are merged again");
                }
                (self.n_failures, self.not_before) = (0, None);
                if worked { Step::Merged } else { Step::Idle }
            }
            Err(error) => {
                if self.n_failures == 0 {
                    let error = error.chain();
                    tracing::warn!(error, "index segments were not merged; trying again later");
                }
                let wait = RETRY_FIRST.saturating_mul(1 << self.n_failures.min(16));
                self.not_before = Instant::now().checked_add(wait.min(RETRY_MAX));
                self.n_failures += 1;
                Step::Idle
            }
        }
    }

    /// Looks for a segment worth writing again, once after containers were removed.
    fn sweep(&mut self, store: &Store, stop: &AtomicBool) -> Result<bool> {
        let now = store.n_removals() + 1;
        if self.searched == now {
            return Ok(false);
        }
        let swept = sweep_once(store, stop)?;
        if !swept && !stop.load(Ordering::Relaxed) {
            self.searched = now;
        }
        Ok(swept)
    }
}

/// Merges one full tier of segments; false if there was none, the flag was raised, or somebody
/// else merges or rebuilds.
///
/// Look-ups go on meanwhile, and ingest may commit. Records of containers that have no catalog row
/// are left out, except those that this process may still be adding.
///
/// # Errors
/// `Corrupt` if a segment is damaged, `Unavailable` if the disk fails or is nearly full. Nothing
/// has changed then.
pub fn merge_once(store: &Store, stop: &AtomicBool) -> Result<bool> {
    let _guard = match store.merge_lock.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return Ok(false),
    };
    store.check_writable()?;
    match plan_merge(&store.index.segments()) {
        Some(ids) => merge_ids(store, ids, stop),
        None => Ok(false),
    }
}

/// Writes one segment again of which a good part is dead; false if there is none.
fn sweep_once(store: &Store, stop: &AtomicBool) -> Result<bool> {
    let _guard = match store.merge_lock.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return Ok(false),
    };
    store.check_writable()?;
    for segment in store.index.live_segments() {
        let meta = segment.meta();
        if meta.n_records >= REWRITE_RECORDS_MIN
            && !stop.load(Ordering::Relaxed)
            && dead_of(store, &segment)? >= meta.n_records / DEAD_PART
        {
            return merge_ids(store, vec![meta.id], stop);
        }
    }
    Ok(false)
}

/// Puts one segment in place of those named. The caller holds the merge lock.
fn merge_ids(store: &Store, ids: Vec<SegmentId>, stop: &AtomicBool) -> Result<bool> {
    let inputs: Vec<Arc<Segment>> = store
        .index
        .live_segments()
        .into_iter()
        .filter(|segment| ids.contains(&segment.meta().id))
        .collect();
    let dir = store.dir.join(recover::SEGMENTS);
    check_room(&dir, inputs.iter().map(|input| input.meta()))?;
    let n_records = inputs.iter().map(|input| input.meta().n_records).sum();
    let mut liveness = Liveness::new(store, n_records)?;
    let merged = merge(
        &dir,
        store.new_segment_id(),
        &store.gate,
        &inputs,
        &mut |location| liveness.is_dead(location.container),
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

/// An error if the disk has no room for a merge of `inputs` and something more.
fn check_room(dir: &Path, inputs: impl Iterator<Item = SegmentMeta>) -> Result<()> {
    let needed: u64 = inputs.map(|meta| meta.len).sum();
    // A file system that does not tell is tried.
    let Ok(stat) = rustix::fs::statvfs(dir) else {
        return Ok(());
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= needed.saturating_add(FREE_LEN_MIN) {
        return Ok(());
    }
    let dir = dir.display();
    let what = format!("merging needs {needed} bytes, and {free} are free on the disk of {dir}");
    Err(Error::new(ErrorKind::Unavailable, what))
}

impl Store {
    /// Copies filters and fences of more segments into memory, up to `len_max` bytes in all; false
    /// if a merge or a rebuild is under way: try again later.
    ///
    /// # Errors
    /// `Corrupt` if they do not match their checksums; `Unavailable` if they cannot be read.
    pub fn load_index_heads(&self, len_max: u64) -> Result<bool> {
        let _merge = match self.merge_lock.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        let loaded = self
            .index
            .load_heads(&self.dir.join(recover::SEGMENTS), len_max)?;
        let ids: Vec<SegmentId> = loaded.iter().map(|segment| segment.meta().id).collect();
        let _commit = hold(&self.commit_lock);
        self.index.replace(&ids, loaded);
        Ok(true)
    }

    /// Entries of containers that were removed. Counted in a sample of large segments: their
    /// digests spread them evenly.
    ///
    /// # Errors
    /// Those of the catalog; `Unavailable` if `stop` was raised.
    pub fn dead_entries(&self, stop: &AtomicBool) -> Result<u64> {
        let mut n_dead = 0;
        for segment in self.index.live_segments() {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Unavailable, "interrupted"));
            }
            n_dead += dead_of(self, &segment)?;
        }
        Ok(n_dead)
    }
}

/// Records of a segment that are dead, by a sample of its pages.
fn dead_of(store: &Store, segment: &Segment) -> Result<u64> {
    let mut liveness = Liveness::new(store, SAMPLE_PAGES)?;
    let (mut n_seen, mut n_dead, mut failure) = (0u64, 0u64, None);
    segment.sample(SAMPLE_PAGES, &mut |container| {
        n_seen += 1;
        match liveness.is_dead(container) {
            Ok(is_dead) => n_dead += u64::from(is_dead),
            Err(error) => failure = Some(error),
        }
    });
    match failure {
        Some(error) => Err(error),
        None => {
            let all = u128::from(segment.meta().n_records) * u128::from(n_dead);
            let dead = all / u128::from(n_seen.max(1));
            Ok(u64::try_from(dead).unwrap_or(u64::MAX))
        }
    }
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
