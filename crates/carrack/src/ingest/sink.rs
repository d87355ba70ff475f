//! Where an ingest's results go: ranges into the index, nodes into a pack, rows into the catalog.
//!
//! In       ranges, nodes, files, directories and roots, as they become known.
//! Out      a durable store: what a [checkpoint](Sink::checkpoint) returned from is there after a
//!          crash; a root is visible only with everything below it.
//! Limits   one run of index entries and the rows since the last checkpoint are held in memory;
//!          a checkpoint is due when the run is full, or after [`CHECKPOINT_INTERVAL`].
//!          After a write that failed nothing given since the last checkpoint counts: rows must not
//!          name what was lost.
//! Not here what is hashed and built (`ingest::add`, `ingest::import`).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use carrack_formats::{Cid, cid};

use crate::error::{Error, ErrorKind, Result};
use crate::ingest::journal::Journal;
use crate::ingest::tree::Sum;
use crate::store::Store;
use crate::store::catalog::{
    Batch, ContainerKind, ContainerRecord, DirRecord, PathKey, PathRecord, RootId, RootKind,
    RootRecord, SOURCE_LOCAL, SOURCE_STORE, StaleReason, Validator,
};
use crate::store::index::RunWriter;
use crate::store::location::{ContainerId, Location};
use crate::store::pack::PackWriter;

/// Longest time that hashing may be lost to a crash.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);
/// Rows after which a checkpoint is due, to bound memory.
const ROWS_MAX: usize = 100_000;

/// A file known from an earlier ingest.
#[derive(Debug, Clone)]
pub struct KnownFile {
    /// What it was.
    pub validator: Validator,
    /// Its container, unless it is empty.
    pub container: Option<ContainerId>,
    /// The pack with its nodes, if it has any.
    pub pack: Option<ContainerId>,
    /// What it came to.
    pub sum: Sum,
}

/// A directory known from an earlier ingest.
#[derive(Debug)]
pub struct KnownDirectory {
    /// Its CID.
    pub cid: Cid,
    /// Bytes of its blocks and all below.
    pub dag_len: u64,
    /// Its own blocks.
    pub n_nodes: u64,
    /// The pack they are in.
    pub pack: Option<ContainerId>,
}

/// A root that an earlier ingest made of the same place.
#[derive(Debug)]
pub struct KnownRoot {
    /// Its row.
    pub id: RootId,
    /// Its bytes.
    pub bytes: u64,
    /// Its blocks.
    pub n_blocks: u64,
    /// The containers that it needs, ascending.
    pub members: Vec<ContainerId>,
}

/// Which source an ingest's paths belong to.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Its id in the catalog.
    pub source: u32,
    /// Taken off the front of each path: rows hold what is below it.
    pub base: PathBuf,
    /// Put in front of what is left, for people: the URL of a source elsewhere.
    pub shown: Vec<u8>,
}

impl Default for Origin {
    /// This machine: paths are absolute.
    fn default() -> Self {
        Self {
            source: SOURCE_LOCAL,
            base: PathBuf::new(),
            shown: Vec::new(),
        }
    }
}

impl Origin {
    /// The path as rows have it.
    fn path(&self, path: &Path) -> Vec<u8> {
        if self.base.as_os_str().is_empty() {
            return path.as_os_str().as_bytes().to_vec(); // Even what no file system would have.
        }
        let below = path.strip_prefix(&self.base).unwrap_or(path);
        below.as_os_str().as_bytes().to_vec()
    }

    /// The path as a person reads it.
    fn shown(&self, path: &Path) -> Vec<u8> {
        let mut shown = self.shown.clone();
        if shown.is_empty() {
            return path.as_os_str().as_bytes().to_vec();
        }
        let below = self.path(path);
        if !below.is_empty() && !shown.ends_with(b"/") {
            shown.push(b'/');
        }
        shown.extend_from_slice(&below);
        shown
    }

    fn key(&self, path: &Path, profile: u32) -> PathKey {
        PathKey {
            source: self.source,
            profile,
            path: self.path(path),
        }
    }
}

/// One ingest's results.
#[derive(Debug)]
pub struct Sink<'a> {
    store: &'a Arc<Store>,
    origin: Origin,
    run: RunWriter,
    pack: Option<(ContainerId, PackWriter)>,
    batch: Batch,
    n_rows: usize,
    last_checkpoint: Instant,
    journals: Vec<Journal>,
    journal_dir: PathBuf,
    /// The pack is listed by [`Self::finish`] alone: nothing of it is to be seen before.
    is_all_or_nothing: bool,
    /// The pack's row was, or may have been, committed.
    pack_is_listed: bool,
    /// A write failed. What was given since the last checkpoint may be lost in part.
    is_broken: bool,
}

impl<'a> Sink<'a> {
    /// A sink into `store`, whose ingest lock the caller holds.
    ///
    /// # Errors
    /// `Unavailable` if the store is read-only after a failed write.
    pub fn new(store: &'a Arc<Store>) -> Result<Self> {
        Self::of(store, Origin::default())
    }

    /// A sink for what lies in another source than this machine's paths.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(store: &'a Arc<Store>, origin: Origin) -> Result<Self> {
        Ok(Self {
            store,
            origin,
            run: store.run_writer()?,
            pack: None,
            batch: Batch::default(),
            n_rows: 0,
            last_checkpoint: Instant::now(),
            journals: Vec::new(),
            journal_dir: store.journal_dir(),
            is_all_or_nothing: false,
            pack_is_listed: false,
            is_broken: false,
        })
    }

    /// A sink of which nothing is to be seen unless [`Self::finish`] succeeds.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn all_or_nothing(store: &'a Arc<Store>) -> Result<Self> {
        let mut sink = Self::new(store)?;
        sink.is_all_or_nothing = true;
        Ok(sink)
    }

    /// A path as a person reads it: of a source elsewhere, its URL.
    #[must_use]
    pub fn shown(&self, path: &Path) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.origin.shown(path)))
    }

    /// Where everything goes.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        self.store
    }

    /// Where journals are kept.
    #[must_use]
    pub fn journal_dir(&self) -> &Path {
        &self.journal_dir
    }

    /// An id for a container that will be recorded once it is known to be whole.
    pub fn new_container(&self) -> ContainerId {
        self.store.new_container_id()
    }

    /// The pack of this ingest, if anything was written.
    #[must_use]
    pub fn pack_id(&self) -> Option<ContainerId> {
        self.pack.as_ref().map(|(container, _)| *container)
    }

    /// A block that lies in a container.
    ///
    /// # Errors
    /// Those of writing a run.
    pub fn range(&mut self, cid: &Cid, location: Location) -> Result<()> {
        self.run.push(cid.hash(), location)?;
        if self.run.is_full() {
            self.checkpoint()
        } else {
            Ok(())
        }
    }

    /// A block that lies nowhere yet; gives the pack it is written to.
    ///
    /// # Errors
    /// Those of writing.
    pub fn node(&mut self, cid: &Cid, block: &[u8]) -> Result<ContainerId> {
        let (container, pack) = match &mut self.pack {
            Some((container, pack)) => (*container, pack),
            None => {
                let container = self.store.new_container_id();
                let pack = self.pack.insert((container, self.store.pack_writer()?));
                (container, &mut pack.1)
            }
        };
        if cid::identity_data(cid).is_none() {
            let offset = pack.append(cid, block);
            self.is_broken |= offset.is_err();
            let offset = offset?;
            let len = u32::try_from(block.len()).unwrap_or(u32::MAX);
            self.range(
                cid,
                Location {
                    container,
                    offset,
                    len,
                    wrapped: false,
                },
            )?;
        }
        Ok(container)
    }

    /// A container whose ranges were given.
    pub fn container(
        &mut self,
        id: ContainerId,
        kind: ContainerKind,
        path: &Path,
        validator: &Validator,
    ) {
        let record = ContainerRecord {
            kind,
            source: self.origin.source,
            path: self.origin.path(path),
            size: validator.size(),
            validator: validator.clone(),
        };
        self.batch.put_container(id, &record);
        self.n_rows += 1;
    }

    /// A file that is whole.
    pub fn file(
        &mut self,
        path: &Path,
        profile: u32,
        validator: &Validator,
        container: Option<ContainerId>,
        pack: Option<ContainerId>,
        sum: Sum,
    ) {
        let record = PathRecord {
            container,
            pack,
            validator: validator.clone(),
            cid: sum.cid,
            file_len: sum.file_len,
            dag_len: sum.dag_len,
            n_blocks: sum.n_blocks,
        };
        self.batch
            .put_path(&self.origin.key(path, profile), &record);
        self.n_rows += 1;
    }

    /// A directory whose nodes were given.
    #[expect(clippy::too_many_arguments, reason = "the columns of one row")]
    pub fn directory(
        &mut self,
        path: &Path,
        profile: u32,
        fingerprint: [u8; 32],
        pack: ContainerId,
        sum: &Sum,
        n_nodes: u64,
        n_entries: u64,
    ) {
        let record = DirRecord {
            fingerprint,
            pack: Some(pack),
            cid: sum.cid,
            file_len: sum.file_len,
            dag_len: sum.dag_len,
            n_blocks: n_nodes,
            n_entries,
        };
        self.batch.put_dir(&self.origin.key(path, profile), &record);
        self.n_rows += 1;
    }

    /// A root with everything it needs. Visible from the next checkpoint on.
    ///
    /// # Errors
    /// Those of the catalog.
    pub fn root(
        &mut self,
        cid: &Cid,
        path: &Path,
        kind: RootKind,
        profile: u32,
        sum: Sum,
        mut members: Vec<ContainerId>,
    ) -> Result<()> {
        members.sort_unstable();
        members.dedup();
        let shown = self.origin.shown(path);
        let record = RootRecord {
            id: self.store.new_root_id(),
            cid: *cid,
            name: Path::new(OsStr::from_bytes(&shown))
                .file_name()
                .unwrap_or_default()
                .as_bytes()
                .to_vec(),
            path: shown,
            source: self.origin.source,
            kind,
            profile,
            created_unix: crate::clock::unix_seconds(),
            bytes: sum.file_len,
            n_blocks: sum.n_blocks,
            n_files: sum.n_files,
            is_whole: false,
        };
        for known in self.known_roots(cid, path, kind, profile)? {
            if known.members == members {
                return Ok(()); // Added before, and nothing changed.
            }
            self.batch.remove_root(known.id); // The new one takes its place.
        }
        self.batch.put_root(record, members);
        self.n_rows += 1;
        Ok(())
    }

    /// Roots that earlier ingests made of the same place in the same way.
    ///
    /// # Errors
    /// Those of the catalog.
    pub fn known_roots(
        &self,
        cid: &Cid,
        path: &Path,
        kind: RootKind,
        profile: u32,
    ) -> Result<Vec<KnownRoot>> {
        let (catalog, shown) = (self.store.catalog(), self.origin.shown(path));
        let mut known = Vec::new();
        for root in catalog.roots_of_cid(cid)? {
            if root.path == shown && root.kind == kind && root.profile == profile {
                known.push(KnownRoot {
                    id: root.id,
                    bytes: root.bytes,
                    n_blocks: root.n_blocks,
                    members: catalog.members(root.id)?,
                });
            }
        }
        Ok(known)
    }

    /// What an earlier ingest knows of a file.
    ///
    /// # Errors
    /// Those of the catalog.
    pub fn known_file(&self, path: &Path, profile: u32) -> Result<Option<KnownFile>> {
        let record = self.store.catalog().path(&self.origin.key(path, profile))?;
        let record = record.filter(|record| {
            // Other bytes, and the times do not tell.
            let marks = self.store.stale();
            let refuted = |id| marks.is_refuted(id, &record.validator);
            !record.container.is_some_and(refuted)
        });
        Ok(record.map(|record| KnownFile {
            validator: record.validator,
            container: record.container,
            pack: record.pack,
            sum: Sum {
                cid: record.cid,
                file_len: record.file_len,
                dag_len: record.dag_len,
                n_blocks: record.n_blocks,
                n_files: 1,
            },
        }))
    }

    /// Whether an earlier ingest left a row of this file.
    ///
    /// # Errors
    /// Those of the catalog.
    pub fn has_row(&self, path: &Path, profile: u32) -> Result<bool> {
        let row = self.store.catalog().path(&self.origin.key(path, profile))?;
        Ok(row.is_some())
    }

    /// Calls `found` with each file and symlink that earlier ingests know at `top` and below.
    ///
    /// # Errors
    /// Those of the catalog.
    pub fn rows_below(
        &self,
        top: &Path,
        profile: u32,
        found: &mut dyn FnMut(&Path, &PathRecord),
    ) -> Result<()> {
        let catalog = self.store.catalog();
        for row in catalog.paths_below(&self.origin.key(top, profile))? {
            let (key, record) = row?;
            found(
                &self.origin.base.join(OsStr::from_bytes(&key.path)),
                &record,
            );
        }
        Ok(())
    }

    /// Forgets a file that is gone. What an older root has of it stays.
    pub fn forget_file(&mut self, path: &Path, profile: u32) {
        self.batch.remove_path(&self.origin.key(path, profile));
        self.n_rows += 1;
    }

    /// A container was found at the place that was just given for it.
    pub fn found_again(&mut self, container: ContainerId) {
        self.batch.found_again(container);
    }

    /// A container is where it was, and is the version that was added. Blocks of it that were found
    /// damaged stay out of service.
    pub fn still_there(&self, container: ContainerId) {
        let stale = self.store.stale();
        stale.clear_if(container, |mark| {
            matches!(mark.reason, StaleReason::Missing | StaleReason::Changed)
        });
    }

    /// What an earlier ingest knows of a directory with just these entries.
    ///
    /// # Errors
    /// Those of the catalog.
    pub fn known_directory(
        &self,
        path: &Path,
        profile: u32,
        fingerprint: &[u8; 32],
    ) -> Result<Option<KnownDirectory>> {
        let record = self.store.catalog().dir(&self.origin.key(path, profile))?;
        let record = record.filter(|record| record.fingerprint == *fingerprint);
        Ok(record.map(|record| KnownDirectory {
            cid: record.cid,
            dag_len: record.dag_len,
            n_nodes: record.n_blocks,
            pack: record.pack,
        }))
    }

    /// A journal that is of no use once the next checkpoint is durable.
    pub fn forget_after_commit(&mut self, journal: Option<Journal>) {
        self.journals.extend(journal);
    }

    /// Whether it is time for a checkpoint.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.n_rows > ROWS_MAX || self.last_checkpoint.elapsed() > CHECKPOINT_INTERVAL
    }

    /// Makes everything given so far durable, in the order in which it depends on each other: the
    /// pack's bytes, the index run, then the rows that make both count.
    ///
    /// # Errors
    /// Those of writing; nothing new counts then, nor later: the sink is of no use any more.
    pub fn checkpoint(&mut self) -> Result<()> {
        self.last_checkpoint = Instant::now();
        if self.is_broken {
            let what = "an earlier write failed";
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        self.is_broken = true; // Until all of it succeeded.
        if let Some((container, pack)) = &mut self.pack {
            let size = pack.sync()?;
            if !self.is_all_or_nothing {
                let record = pack_record(pack, size);
                self.batch.put_container(*container, &record);
            }
        }
        if !self.run.is_empty() {
            let run = std::mem::replace(&mut self.run, self.store.run_writer()?);
            if let Some(segment) = run.finish()? {
                self.batch.add_segment(segment);
            }
        }
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() {
            let committed = self.store.commit(batch);
            // What a commit did is known unless the store has turned read-only.
            if committed.is_ok() || self.store.check_writable().is_err() {
                self.pack_is_listed |= self.pack.is_some() && !self.is_all_or_nothing;
            }
            committed?;
        }
        self.n_rows = 0;
        self.journals.drain(..).for_each(Journal::remove);
        self.is_broken = false;
        Ok(())
    }

    /// The last checkpoint.
    ///
    /// # Errors
    /// As [`Self::checkpoint`].
    pub fn finish(mut self) -> Result<()> {
        self.is_all_or_nothing = false;
        self.checkpoint()
    }
}

impl Drop for Sink<'_> {
    fn drop(&mut self) {
        if let Some((_, pack)) = self.pack.take()
            && !self.pack_is_listed
        {
            pack.discard(); // Nothing refers to it.
        }
    }
}

fn pack_record(pack: &PackWriter, size: u64) -> ContainerRecord {
    ContainerRecord {
        kind: ContainerKind::Pack,
        source: SOURCE_STORE,
        path: pack.name().as_bytes().to_vec(),
        size,
        validator: Validator::default(),
    }
}
