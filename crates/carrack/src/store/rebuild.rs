//! The index made anew from what it was made of: packs, CARs, and the interior nodes of files.
//!
//! In       the catalog; the files of packs and of CARs. Files served in place are not read: the
//!          nodes in the packs say which leaf lies where.
//! Out      new segments in place of all that were listed, in one transaction: until then, and
//!          after any error or kill, the old ones are what counts.
//! Limits   memory: one index run, a bit for each container id, one node a level of a file. No
//!          ingest, removal or merge runs meanwhile; look-ups do.
//! Not here what is below a node (`files`), what is in a CAR (`scan`), a lost catalog (`catalog`),
//!          which command asks (`cli`).

mod build;
mod catalog;
mod files;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use carrack_formats::Cid;

use self::build::Builder;
use self::files::{File, FileWalk};
use self::scan::{ScanError, Trust, scan};
use super::catalog::{
    Batch, ContainerKind, ContainerRecord, PathKey, PathRecord, RootKind, RootRecord, SOURCE_LOCAL,
    Snapshot,
};
use super::index::{Index, Merged, Segment, SegmentMeta, merge, segment_name};
use super::location::ContainerId;
use super::{Store, hold, recover};
use crate::error::{Error, ErrorKind, Result};

pub use self::catalog::{CatalogReport, ROOTS_MAX, rebuild_catalog};
pub(super) use self::scan::Sections;

/// Containers left out that are named one by one; the rest is counted.
pub const LEFT_OUT_SHOWN_MAX: usize = 1000;

/// How to rebuild.
#[derive(Debug, Clone, Copy, Default)]
pub struct RebuildOptions {
    /// Hash every section of packs and CARs; those that are not what they are called stay out.
    pub verify: bool,
}

/// What a rebuild did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebuildReport {
    /// Entries of the new index.
    pub n_entries: u64,
    /// Its segments.
    pub n_segments: usize,
    /// Containers whose blocks were found again.
    pub n_containers: u64,
    /// Containers that cannot be read now, and whose entries the old index still had.
    pub n_kept: u64,
    /// Sections that do not hash to their CID, and so are not in the index.
    pub n_bad: u64,
    /// The first of them.
    pub bad: Vec<BadBlock>,
    /// Containers whose blocks are not in the index now.
    pub n_left_out: u64,
    /// The first of them, and why.
    pub left_out: Vec<(PathBuf, String)>,
    /// Packs and CARs of which a part cannot be read.
    pub cut: Vec<CutPart>,
}

/// A block that is not in the index, for its bytes are others than its CID says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadBlock {
    /// The pack or CAR.
    pub path: PathBuf,
    /// The first byte of its section.
    pub offset: u64,
    /// What it is called; none if that cannot be read.
    pub cid: Option<Cid>,
}

impl BadBlock {
    /// Notes one, unless there are many.
    fn note(bad: &mut Vec<Self>, path: &Path, offset: u64, cid: Option<Cid>) {
        if bad.len() < LEFT_OUT_SHOWN_MAX {
            let path = path.to_owned();
            bad.push(Self { path, offset, cid });
        }
    }
}

/// The part of a pack or CAR that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutPart {
    /// The file.
    pub path: PathBuf,
    /// The first byte of the part.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// Why it cannot be read.
    pub why: String,
    /// The old index had entries for it, which were kept.
    pub is_kept: bool,
}

/// Told how far it is: what is done, how much of it, and of how much if that is known.
pub type Watch<'a> = dyn FnMut(&str, u64, Option<u64>) + 'a;

/// Makes the index anew. Waits for a running ingest; merging rests meanwhile.
///
/// # Errors
/// `Unavailable` if it was stopped, or the disk fails or is full: nothing has changed then.
pub fn rebuild(
    store: &Store,
    options: RebuildOptions,
    watch: &mut Watch<'_>,
    stop: &AtomicBool,
) -> Result<RebuildReport> {
    let _ingest = store.ingest_lock();
    let _merge = hold(&store.merge_lock);
    store.check_writable()?;
    let catalog = store.catalog();
    let old = catalog.segments()?;
    let mut rebuild = Rebuild {
        store,
        options,
        watch,
        stop,
        builder: Builder::new(store, stop)?,
        found: IdSet::default(),
        with_row: IdSet::default(),
        salvaged: IdSet::default(),
        lacks_packs: false,
        unread: BTreeMap::new(),
        reached: BTreeMap::new(),
        cut: BTreeMap::new(),
        report: RebuildReport::default(),
        forgotten: Vec::new(),
        catalog: Arc::clone(&catalog),
    };
    rebuild.note_rows()?;
    rebuild.scan_all()?;
    rebuild.walk_all()?;
    rebuild.keep_unread(&old)?;
    rebuild.finish(&old)
}

struct Rebuild<'a, 'w> {
    store: &'a Store,
    options: RebuildOptions,
    watch: &'a mut Watch<'w>,
    stop: &'a AtomicBool,
    builder: Builder<'a>,
    /// Containers whose entries are in the new index.
    found: IdSet,
    /// Containers that a row of `paths` names: files, and CARs of which every block was good.
    with_row: IdSet,
    /// CARs that had bad parts when they were imported.
    salvaged: IdSet,
    lacks_packs: bool,
    /// Containers that cannot be read, and why.
    unread: BTreeMap<ContainerId, (PathBuf, String)>,
    /// Where entries of the old index begin that are kept of files whose nodes broke off.
    reached: BTreeMap<ContainerId, u64>,
    /// Containers whose entries are new up to some byte.
    cut: BTreeMap<ContainerId, CutPart>,
    report: RebuildReport,
    /// Rows of what is left out: the next add or import reads it again.
    forgotten: Vec<PathKey>,
    catalog: Arc<Snapshot>,
}

impl Rebuild<'_, '_> {
    fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        Ok(())
    }

    fn note_rows(&mut self) -> Result<()> {
        for row in self.catalog.all_paths()? {
            if let Some(container) = row?.1.container {
                self.with_row.insert(container);
            }
        }
        Ok(())
    }

    /// Packs and CARs: their sections are their entries.
    fn scan_all(&mut self) -> Result<()> {
        let catalog = Arc::clone(&self.catalog);
        let total = {
            let mut total = 0u64;
            for row in catalog.containers()? {
                let (_, record) = row?;
                if record.kind != ContainerKind::File {
                    total += record.size;
                }
            }
            total
        };
        let mut done = 0;
        for row in catalog.containers()? {
            let (id, record) = row?;
            if record.kind == ContainerKind::File {
                continue;
            }
            self.check_stop()?;
            let path = self.path_of(&record);
            let trust = self.trust(id, &record);
            if trust == Trust::Salvaged {
                self.salvaged.insert(id);
            }
            let before = done;
            let scanned = if record.source > SOURCE_LOCAL {
                Err(ScanError::Unread(
                    "it lies in another source: import it again".to_owned(),
                ))
            } else {
                scan(
                    &path,
                    &record,
                    id,
                    trust,
                    &mut self.builder,
                    &mut |offset| {
                        (self.watch)("scanning", before + offset, Some(total));
                        !self.stop.load(Ordering::Relaxed)
                    },
                )
            };
            done += record.size;
            match scanned {
                Ok(scanned) => {
                    self.report.n_bad += scanned.n_bad;
                    for (offset, cid) in scanned.bad {
                        BadBlock::note(&mut self.report.bad, &path, offset, cid);
                    }
                    self.report.n_containers += 1;
                    self.found.insert(id);
                    if let Some((offset, why)) = scanned.cut {
                        self.note_cut(id, &record, CutPart::of(path, offset, why));
                    }
                }
                Err(ScanError::Unread(why)) => {
                    self.lacks_packs |= record.kind == ContainerKind::Pack;
                    self.unread.insert(id, (path, why));
                }
                Err(ScanError::Fatal(error)) => return Err(error),
            }
        }
        self.builder.seal()
    }

    fn note_cut(&mut self, id: ContainerId, record: &ContainerRecord, mut part: CutPart) {
        part.len = record.size.saturating_sub(part.offset);
        self.lacks_packs |= record.kind == ContainerKind::Pack;
        self.cut.insert(id, part);
    }

    /// Whether the sections of a container are known to be what they are called.
    fn trust(&self, id: ContainerId, record: &ContainerRecord) -> Trust {
        if record.kind == ContainerKind::Pack {
            return if self.options.verify {
                Trust::Hash
            } else {
                Trust::Whole
            };
        }
        if !self.with_row.contains(id) {
            // Damaged when it was imported: its good blocks have to be told from the bad ones.
            Trust::Salvaged
        } else if self.options.verify {
            Trust::Hash
        } else {
            Trust::Whole
        }
    }

    fn path_of(&self, record: &ContainerRecord) -> PathBuf {
        match record.kind {
            ContainerKind::Pack => self.store.pack_path(record),
            _ => PathBuf::from(std::ffi::OsStr::from_bytes(&record.path)),
        }
    }

    /// Files: the nodes that were found say where the leaves are.
    fn walk_all(&mut self) -> Result<()> {
        let dir = self.store.dir.join(recover::SEGMENTS);
        let nodes = Index::open(&dir, self.builder.segments())?;
        let catalog = Arc::clone(&self.catalog);
        let mut walk = FileWalk::new(self.store, &catalog, &nodes);
        let mut n_bytes = 0;
        for row in catalog.all_paths()? {
            let (key, record) = row?;
            let Some(id) = record.container else { continue };
            if self.found.contains(id) || self.unread.contains_key(&id) {
                continue; // A CAR.
            }
            self.walk_file(&mut walk, id, &key, &record)?;
            n_bytes += record.file_len;
            (self.watch)("placing files", n_bytes, None);
        }
        self.walk_older(&mut walk)?;
        self.builder.seal()
    }

    fn walk_file(
        &mut self,
        walk: &mut FileWalk<'_>,
        id: ContainerId,
        key: &PathKey,
        record: &PathRecord,
    ) -> Result<()> {
        self.check_stop()?;
        let file = File {
            cid: record.cid,
            file_len: record.file_len,
            n_blocks: Some(record.n_blocks),
        };
        let walked = walk.file(file, id, &mut self.builder, self.stop);
        match walked {
            Ok(()) => {
                self.report.n_containers += 1;
                self.found.insert(id);
            }
            Err(error) if is_local(&error) => {
                let path = PathBuf::from(std::ffi::OsStr::from_bytes(&key.path));
                self.reached.insert(id, self.builder.reached(id));
                self.unread.insert(id, (path, error.chain()));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Files that have changed since, whose older versions are still part of a root: the root's
    /// directories lead to them.
    fn walk_older(&mut self, walk: &mut FileWalk<'_>) -> Result<()> {
        let catalog = Arc::clone(&self.catalog);
        for root in catalog.roots()? {
            if root.kind != RootKind::Add {
                continue;
            }
            for id in catalog.members(root.id)? {
                if self.found.contains(id) || self.unread.contains_key(&id) {
                    continue;
                }
                let Some(record) = catalog.container(id)? else {
                    continue;
                };
                self.walk_member(walk, &root, id, &record)?;
            }
        }
        Ok(())
    }

    fn walk_member(
        &mut self,
        walk: &mut FileWalk<'_>,
        root: &RootRecord,
        id: ContainerId,
        record: &ContainerRecord,
    ) -> Result<()> {
        self.check_stop()?;
        let base = self.base_of(root)?;
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(&record.path));
        if self.lacks_packs {
            let why = "a pack that may hold its nodes cannot be read".to_owned();
            self.unread.insert(id, (path, why));
            return Ok(());
        }
        let walked = walk.below(root.cid, &base, &path).and_then(|cid| {
            let file = File {
                cid,
                file_len: record.size,
                n_blocks: None,
            };
            walk.file(file, id, &mut self.builder, self.stop)
        });
        match walked {
            Ok(()) => {
                self.report.n_containers += 1;
                self.found.insert(id);
            }
            Err(error) if is_local(&error) => {
                self.reached.insert(id, self.builder.reached(id));
                self.unread.insert(id, (path, error.chain()));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The path of a root as its containers have theirs.
    fn base_of(&self, root: &RootRecord) -> Result<PathBuf> {
        let mut path = root.path.as_slice();
        if root.source > SOURCE_LOCAL
            && let Some(source) = self.catalog.source(root.source)?
        {
            path = path.strip_prefix(source.url.as_bytes()).unwrap_or(path);
            path = path.strip_prefix(b"/").unwrap_or(path);
        }
        Ok(PathBuf::from(std::ffi::OsStr::from_bytes(path)))
    }

    /// What cannot be read keeps the entries that the old index has of it.
    fn keep_unread(&mut self, old: &[SegmentMeta]) -> Result<()> {
        if self.unread.is_empty() && self.cut.is_empty() {
            return Ok(());
        }
        let dir = self.store.dir.join(recover::SEGMENTS);
        let mut is_whole = !old.is_empty();
        let mut kept = IdSet::default();
        for meta in old {
            let segment = match Segment::open(dir.join(segment_name(meta.id)), meta, false) {
                Ok(segment) => segment,
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    is_whole = false;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let (unread, cut, reached) = (&self.unread, &self.cut, &self.reached);
            let merged = merge(
                &dir,
                self.store.new_segment_id(),
                &self.store.gate,
                &[Arc::new(segment)],
                &mut |location| {
                    let id = location.container;
                    let (is_unread, is_cut) = (unread.contains_key(&id), cut.contains_key(&id));
                    let from = match cut.get(&id) {
                        Some(part) => part.offset,
                        None => reached.get(&id).copied().unwrap_or_default(),
                    };
                    // Before that it was found again.
                    let is_behind = location.offset >= from;
                    if is_unread || is_cut && is_behind {
                        kept.insert(id);
                    }
                    Ok(!(is_unread || is_cut) || !is_behind)
                },
                self.stop,
            );
            match merged {
                Ok(Merged::Segment(meta)) => self.builder.add(meta)?,
                Ok(Merged::Empty) => {}
                Ok(Merged::Stopped) => return Err(interrupted()),
                Err(error) if error.kind() == ErrorKind::Corrupt => is_whole = false,
                Err(error) => return Err(error),
            }
        }
        self.sort_out(is_whole, &kept)
    }

    /// Counts what was kept and what was lost. An old index that is damaged may have had more.
    fn sort_out(&mut self, is_whole: bool, kept: &IdSet) -> Result<()> {
        let mut lost = BTreeSet::new();
        for (id, (path, why)) in std::mem::take(&mut self.unread) {
            if is_whole && kept.contains(id) {
                self.report.n_kept += 1;
                continue;
            }
            lost.insert(id);
            self.report.n_left_out += 1;
            if self.report.left_out.len() < LEFT_OUT_SHOWN_MAX {
                self.report.left_out.push((path, why));
            }
        }
        for (id, mut part) in std::mem::take(&mut self.cut) {
            if is_whole && self.salvaged.contains(id) {
                self.report.n_bad += 1; // What its import found behind it is kept.
                continue;
            }
            part.is_kept = is_whole && kept.contains(id);
            if !part.is_kept {
                lost.insert(id);
            }
            self.report.cut.push(part);
        }
        if lost.is_empty() {
            return Ok(());
        }
        for row in self.catalog.all_paths()? {
            let (key, record) = row?;
            if record.container.is_some_and(|id| lost.contains(&id)) {
                self.forgotten.push(key);
            }
        }
        Ok(())
    }

    fn finish(mut self, old: &[SegmentMeta]) -> Result<RebuildReport> {
        self.check_stop()?;
        let mut batch = Batch::new();
        batch.removed_segments = old.iter().map(|meta| meta.id).collect();
        for key in &self.forgotten {
            batch.remove_path(key);
        }
        let segments = self.builder.take()?;
        self.report.n_segments = segments.len();
        self.report.n_entries = segments.iter().map(|meta| meta.n_records).sum();
        for meta in &segments {
            batch.add_segment(*meta);
        }
        self.store.commit(batch)?;
        Ok(self.report)
    }
}

impl CutPart {
    const fn of(path: PathBuf, offset: u64, why: String) -> Self {
        Self {
            path,
            offset,
            len: 0,
            why,
            is_kept: false,
        }
    }
}

fn interrupted() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "interrupted; the index is as it was",
    )
}

/// The fault of one container, not of the disk that is written to.
fn is_local(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::Invalid | ErrorKind::Verification
    )
}

/// Container ids, a bit each: they are given out one after the other.
#[derive(Debug, Default)]
struct IdSet {
    words: Vec<u64>,
}

impl IdSet {
    fn insert(&mut self, id: ContainerId) {
        let word = (id.0 / 64) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        if let Some(word) = self.words.get_mut(word) {
            *word |= 1 << (id.0 % 64);
        }
    }

    fn contains(&self, id: ContainerId) -> bool {
        let word = self.words.get((id.0 / 64) as usize);
        word.is_some_and(|word| word >> (id.0 % 64) & 1 == 1)
    }
}
