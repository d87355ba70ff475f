//! The store: from a CID to the place of its bytes, durable and shared by one process.
//!
//! In       a data directory, batches of catalog rows, finished segments and packs.
//! Out      an [`Index`] and a catalog [`Snapshot`] that never wait for writers.
//! Limits   one process a directory (an exclusive lock), or several that cannot write it; one
//!          commit at a time.
//! Not here reading blocks (`block`), opening containers (`source`), building DAGs (`ingest`).
//!
//! What is not listed in the catalog does not exist: a crash leaves at most files under temporary
//! names, which the next opening for writing removes (`unlisted`). Opening reads headers and the
//! list of packs, whatever the number of blocks.

pub mod block;
pub mod buffers;
pub mod car_stream;
pub mod catalog;
mod copies;
pub mod extent;
pub mod file_reader;
pub mod gate;
pub mod hasher;
pub mod index;
pub mod location;
mod maintain;
pub mod pack;
pub mod rebuild;
mod recover;
pub mod relocate;
pub mod resolve;
pub mod sources;
pub mod stale;
#[cfg(test)]
mod tests;
mod unlisted;

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::catalog::{
    Batch, Catalog, Committed, ContainerRecord, NextIds, Outcome, RootId, Snapshot,
};
use self::gate::WriteGate;
use self::index::{Index, RunWriter, Segment, SegmentId, segment_name};
use self::location::ContainerId;
use self::pack::{PackId, PackWriter};
use self::stale::StaleMarks;
use crate::durable;
use crate::error::{Context, Error, ErrorKind, Result};

pub use self::maintain::{Merger, Step, merge_once};
pub use self::unlisted::Unlisted;

/// How long writes that can wait rest after a commit that the disk refused, and at the longest.
const REST_FIRST: Duration = Duration::from_millis(500);
const REST_MAX: Duration = Duration::from_secs(300);

/// How a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// For writing; a directory that does not exist or is empty becomes an empty store.
    Create,
    /// For writing; without a store it fails with `NotFound`, and leaves the directory alone.
    Existing,
    /// As `Existing`, whatever became of the index: what of it cannot be read is as if it were not
    /// there. For making it anew, not for serving.
    AnyIndex,
    /// For looking at it: nothing is removed, and a store that cannot be written is opened, too.
    Read,
    /// The same, whatever became of the index.
    ReadAnyIndex,
}

impl OpenMode {
    const fn is_reading(self) -> bool {
        matches!(self, Self::Read | Self::ReadAnyIndex)
    }

    const fn may_create(self) -> bool {
        matches!(self, Self::Create | Self::Read)
    }

    const fn takes_any_index(self) -> bool {
        matches!(self, Self::AnyIndex | Self::ReadAnyIndex)
    }
}

/// Bytes of a data directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// The catalog.
    pub catalog: u64,
    /// Index segments, those included that a merge is writing.
    pub index: u64,
    /// Packs.
    pub packs: u64,
    /// Journals of files being added.
    pub journal: u64,
    /// The lock and the like.
    pub other: u64,
}

impl DiskUse {
    /// All of it.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.catalog + self.index + self.packs + self.journal + self.other
    }
}

/// An open store. Share it by `Arc`.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    gate: Arc<WriteGate>,
    catalog: Catalog,
    index: Index,
    /// Listed segments that could not be opened; see [`OpenMode::AnyIndex`].
    lost_segments: Mutex<Vec<(SegmentId, Error)>>,
    ids: Ids,
    /// Held while the catalog, the index and their files change.
    commit_lock: Mutex<()>,
    /// Held by whatever adds or removes roots: what one builds on, another must not remove.
    ingest_lock: Mutex<()>,
    /// Held during a merge: two would merge the same segments.
    merge_lock: Mutex<()>,
    /// Ids below it were given out by earlier processes: without a row they are dead.
    session_first: ContainerId,
    /// Containers that this process removed.
    removed: Mutex<HashSet<ContainerId>>,
    /// Counts commits that removed containers.
    n_removals: AtomicU64,
    commits: watch::Sender<u64>,
    /// When a commit was refused last, and how many were since one succeeded.
    refused: Mutex<Option<(Instant, u32)>>,
    /// Counts commits that removed or moved containers.
    epoch: AtomicU64,
    stale: StaleMarks,
    /// Rows of `removed` whose files are gone.
    gone: Mutex<Vec<unlisted::FileKey>>,
    /// Dropped last: another process may open the store from then on.
    _lock: Option<File>,
}

/// What a store is made of when it is opened.
struct Opened {
    dir: PathBuf,
    gate: Arc<WriteGate>,
    catalog: Catalog,
    next: NextIds,
    gone: Vec<unlisted::FileKey>,
    /// None if the caller keeps it.
    lock: Option<File>,
}

/// What a commit changes in memory beside what it took away.
struct Changes {
    found_again: Vec<ContainerId>,
    removed_segments: Vec<SegmentId>,
}

/// Counters behind the ids that the catalog has promised never to give out again.
#[derive(Debug)]
struct Ids {
    container: AtomicU64,
    root: AtomicU64,
    segment: AtomicU64,
    pack: AtomicU64,
}

impl Ids {
    fn next(&self) -> NextIds {
        NextIds {
            container: self.container.load(Ordering::Relaxed),
            root: self.root.load(Ordering::Relaxed),
            segment: self.segment.load(Ordering::Relaxed),
            pack: self.pack.load(Ordering::Relaxed),
        }
    }
}

impl Store {
    /// Opens the store in `dir`, removes what a crash left there if it may be written to, and holds
    /// it until dropped.
    ///
    /// # Errors
    /// `Busy`, naming the process that holds it; `NotFound` if there is none and none may be made;
    /// `Invalid` if a newer version wrote it, or there is something else in `dir`, in which case
    /// nothing was written; `Corrupt` if its catalog or a listed segment is missing or damaged.
    pub fn open(dir: &Path, mode: OpenMode) -> Result<Self> {
        let held = recover::hold(dir, mode)?;
        let gate = Arc::new(
            held.read_only
                .map_or_else(WriteGate::default, WriteGate::closed),
        );
        if held.is_new {
            recover::make(dir, &gate)?;
        } else if !mode.is_reading() {
            recover::settle(dir, &gate)?;
        }
        let catalog = Catalog::open(&dir.join(recover::CATALOG), &gate, mode.is_reading());
        let (catalog, mut next) = catalog.map_err(|error| recover::lost_catalog(dir, error))?;
        // A catalog that was made a moment ago knows nothing of what lies there.
        let removes = !held.is_new && !mode.is_reading();
        let settled = unlisted::settle(dir, &catalog.snapshot(), removes.then_some(&*gate))?;
        next.segment = next.segment.max(settled.segment);
        next.pack = next.pack.max(settled.pack);
        let opened = Opened {
            dir: dir.to_owned(),
            gate,
            catalog,
            next,
            gone: settled.gone,
            lock: held.lock,
        };
        Self::with_catalog(opened, mode.takes_any_index())
    }

    /// The store of an open catalog.
    fn with_catalog(opened: Opened, takes_any_index: bool) -> Result<Self> {
        let Opened { dir, next, .. } = opened;
        let segment_dir = dir.join(recover::SEGMENTS);
        let snapshot = opened.catalog.snapshot();
        let segments = snapshot.segments()?;
        let (index, lost_segments) = match takes_any_index {
            true => Index::open_what_is_left(&segment_dir, &segments)?,
            false => (Index::open(&segment_dir, &segments)?, Vec::new()),
        };
        Ok(Self {
            dir,
            gate: opened.gate,
            catalog: opened.catalog,
            index,
            lost_segments: Mutex::new(lost_segments),
            ids: Ids {
                container: AtomicU64::new(next.container),
                root: AtomicU64::new(next.root),
                segment: AtomicU64::new(next.segment),
                pack: AtomicU64::new(next.pack),
            },
            commit_lock: Mutex::new(()),
            ingest_lock: Mutex::new(()),
            merge_lock: Mutex::new(()),
            session_first: ContainerId(next.container),
            removed: Mutex::new(HashSet::new()),
            n_removals: AtomicU64::new(0),
            commits: watch::Sender::new(0),
            refused: Mutex::new(None),
            epoch: AtomicU64::new(0),
            stale: StaleMarks::new(snapshot.stale_marks()?),
            gone: Mutex::new(opened.gone),
            _lock: opened.lock,
        })
    }

    /// An error if `dir` is no store and none can be made of it.
    ///
    /// # Errors
    /// `Invalid` if it holds something else, `Corrupt` if it is a store that lost its `format`.
    pub fn check_place(dir: &Path) -> Result<()> {
        recover::check_place(dir)
    }

    /// Whether a directory bears the mark of a store, of any version. Links are not followed.
    #[must_use]
    pub fn is_at(dir: &Path) -> bool {
        recover::is_marked(dir)
    }

    /// The data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where ingest keeps its journals. The store itself never looks into it.
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        self.dir.join(recover::JOURNAL)
    }

    /// The file of a container of kind pack.
    #[must_use]
    pub fn pack_path(&self, container: &ContainerRecord) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(&container.path);
        self.dir.join(recover::PACKS).join(name)
    }

    /// Bytes of everything below the data directory, by what it is.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be looked at.
    pub fn disk_use(&self) -> Result<DiskUse> {
        let mut used = DiskUse::default();
        let mut left = vec![self.dir.clone()];
        while let Some(dir) = left.pop() {
            let unreadable = || format!("cannot look at {}", dir.display());
            for entry in std::fs::read_dir(&dir).context(ErrorKind::Unavailable, unreadable)? {
                // What a merge has just removed does not count.
                let Ok(entry) = entry else { continue };
                let Ok(meta) = entry.metadata() else { continue };
                let path = entry.path();
                if meta.is_dir() {
                    left.push(path);
                    continue;
                }
                let below = path.strip_prefix(&self.dir).unwrap_or(&path);
                let top = below.iter().next().and_then(|name| name.to_str());
                *match top.unwrap_or_default() {
                    recover::CATALOG => &mut used.catalog,
                    recover::SEGMENTS => &mut used.index,
                    recover::PACKS => &mut used.packs,
                    recover::JOURNAL => &mut used.journal,
                    _ => &mut used.other,
                } += meta.len();
            }
        }
        Ok(used)
    }

    /// What is wrong with each listed segment that could not be opened; see
    /// [`OpenMode::AnyIndex`].
    #[must_use]
    pub fn lost_segments(&self) -> Vec<String> {
        let lost = hold(&self.lost_segments);
        lost.iter().map(|(_, error)| error.chain()).collect()
    }

    /// Whether any source is configured beside this machine's paths.
    #[must_use]
    pub fn has_sources(&self) -> bool {
        self.catalog.next_source() > catalog::SOURCE_FIRST
    }

    /// Where blocks lie.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The catalog after the last commit. For one request, not to be kept: see `catalog`.
    #[must_use]
    pub fn catalog(&self) -> Arc<Snapshot> {
        self.catalog.snapshot()
    }

    /// Gets ready to write, which `commit` would do otherwise: for a node that serves meanwhile.
    ///
    /// # Errors
    /// `Unavailable` if the catalog cannot be opened for writing.
    pub fn begin_writing(&self) -> Result<()> {
        self.catalog.begin_writing()
    }

    /// Waits until no other ingest or removal is under way, and keeps the next from starting.
    pub fn ingest_lock(&self) -> MutexGuard<'_, ()> {
        hold(&self.ingest_lock)
    }

    /// A container id that was never given out. It is void if the process ends before a commit.
    #[must_use]
    pub fn new_container_id(&self) -> ContainerId {
        ContainerId(self.ids.container.fetch_add(1, Ordering::Relaxed))
    }

    /// A root id that was never given out.
    #[must_use]
    pub fn new_root_id(&self) -> RootId {
        RootId(self.ids.root.fetch_add(1, Ordering::Relaxed))
    }

    fn new_segment_id(&self) -> SegmentId {
        SegmentId(self.ids.segment.fetch_add(1, Ordering::Relaxed))
    }

    /// An empty index run. What it writes is live after [`Batch::add_segment`] and a commit.
    ///
    /// # Errors
    /// `Unavailable` if the store is read-only.
    pub fn run_writer(&self) -> Result<RunWriter> {
        self.gate.check()?;
        let dir = self.dir.join(recover::SEGMENTS);
        Ok(RunWriter::new(
            &dir,
            self.new_segment_id(),
            Arc::clone(&self.gate),
        ))
    }

    /// A new pack. It stays after [`Batch::put_container`] with its name and a commit.
    ///
    /// # Errors
    /// `Unavailable` if the store is read-only or the file cannot be created.
    pub fn pack_writer(&self) -> Result<PackWriter> {
        let id = PackId(self.ids.pack.fetch_add(1, Ordering::Relaxed));
        PackWriter::create(&self.dir.join(recover::PACKS), id, Arc::clone(&self.gate))
    }

    /// An error if the store is read-only: it cannot be written, or an fsync failed.
    ///
    /// # Errors
    /// `Unavailable`, naming the failure.
    pub fn check_writable(&self) -> Result<()> {
        self.gate.check()
    }

    /// Whether a write that can wait should wait: the store is read-only, or the disk refused a
    /// commit a moment ago. Longer after each one that was refused.
    #[must_use]
    pub fn is_resting(&self) -> bool {
        let refused = *hold(&self.refused);
        let is_soon = refused.is_some_and(|(time, n)| {
            let rest = REST_FIRST.saturating_mul(1 << n.min(16)).min(REST_MAX);
            time.elapsed() < rest
        });
        is_soon || self.gate.check().is_err()
    }

    /// Makes a batch durable, then visible: catalog first, so that whoever finds a new location in
    /// the index finds its container, too.
    ///
    /// Packs and segments that the batch names must have been synced and finished. A container may
    /// be named by a segment that was committed before its row, in the same process.
    ///
    /// # Errors
    /// `Unavailable`. While the store can still be written nothing has changed then, and the
    /// batch's segments are gone. Otherwise an fsync failed, and a restart will tell.
    pub fn commit(&self, mut batch: Batch) -> Result<Committed> {
        let _guard = hold(&self.commit_lock);
        self.gate.check()?;
        if batch.is_empty() {
            return Ok(Committed::default());
        }
        let dir = self.dir.join(recover::SEGMENTS);
        let changes = Changes {
            found_again: batch.found_again.clone(),
            removed_segments: batch.removed_segments.clone(),
        };
        let new: Vec<SegmentId> = batch.segments.iter().map(|meta| meta.id).collect();
        let listed = batch.listed_files();
        let added = self
            .index
            .open_more(&dir, &batch.segments, &batch.removed_segments);
        let added = added.inspect_err(|_| self.discard(&new))?;
        let dropped = self.rows_to_drop().inspect_err(|_| self.discard(&new))?;
        batch.gone_files.clone_from(&dropped);
        let outcome = self.catalog.commit(batch, self.ids.next());
        if !matches!(outcome, Outcome::Done(_)) {
            hold(&self.gone).extend(dropped);
        }
        match outcome {
            Outcome::Done(mut committed) => {
                *hold(&self.refused) = None;
                unlisted::give_names(&self.dir, &listed);
                self.show(&committed, &changes, added);
                // Readers that still hold them keep them open; the next opening removes what stays.
                let removed = std::mem::take(&mut committed.removed_files);
                hold(&self.gone).extend(unlisted::unlink(&self.dir, removed));
                Ok(committed)
            }
            Outcome::Not(error) => {
                self.discard(&new);
                let mut refused = hold(&self.refused);
                let n = refused.map_or(0, |(_, n)| n);
                *refused = Some((Instant::now(), n.saturating_add(1)));
                Err(error)
            }
            Outcome::Doubtful(committed, error) => {
                self.show(&committed, &changes, added);
                Err(error)
            }
            Outcome::Unknown(error) => Err(error),
        }
    }

    /// Lets everybody see what was committed.
    fn show(&self, committed: &Committed, changes: &Changes, added: Vec<Arc<Segment>>) {
        if !committed.removed_containers.is_empty() {
            hold(&self.removed).extend(&committed.removed_containers);
            self.n_removals.fetch_add(1, Ordering::Release);
        }
        if !committed.removed_containers.is_empty() || !changes.found_again.is_empty() {
            self.epoch.fetch_add(1, Ordering::Release);
        }
        let found_again = changes.found_again.iter();
        found_again.for_each(|id| self.stale.clear(*id));
        let removed_segments = &changes.removed_segments;
        if !added.is_empty() || !removed_segments.is_empty() {
            self.index.replace(removed_segments, added);
        }
        hold(&self.lost_segments).retain(|(id, _)| !removed_segments.contains(id));
        self.commits.send_modify(|n| *n += 1);
    }

    /// Removes segments that no catalog has listed.
    fn discard(&self, segments: &[SegmentId]) {
        for id in segments {
            let path = self.dir.join(recover::SEGMENTS).join(segment_name(*id));
            let _ = std::fs::remove_file(durable::temporary(&path));
        }
    }

    /// Changes whenever containers were removed.
    #[must_use]
    pub fn n_removals(&self) -> u64 {
        self.n_removals.load(Ordering::Acquire)
    }

    /// Changes whenever containers were removed or moved: who keeps some open looks again then.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The number of commits, which tells whoever waits that something may have come.
    #[must_use]
    pub fn commits(&self) -> watch::Receiver<u64> {
        self.commits.subscribe()
    }

    /// What is out of service.
    #[must_use]
    pub fn stale(&self) -> &StaleMarks {
        &self.stale
    }

    /// Removes a root and the containers that only it needed.
    ///
    /// # Errors
    /// Those of [`Self::commit`].
    pub fn remove_root(&self, id: RootId) -> Result<Committed> {
        let mut batch = Batch::new();
        batch.remove_root(id);
        self.commit(batch)
    }
}

/// Takes a lock. One that a panicking thread held guards nothing that could be half done.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `job` on a blocking thread of the runtime. A caller that leaves does not end it.
async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(job).await;
    done.context(ErrorKind::Internal, || "a blocking job failed".to_owned())?
}
