//! Reading the catalog as it was after one commit.
//!
//! In       ids, CIDs and paths. Out the rows.
//! Limits   a point read costs about a microsecond when its pages are cached; a scan one page per
//!          twenty rows or so.
//! Not here writing (`batch`).

use redb::{Range, ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata};

use carrack_formats::Cid;

use super::record::{
    ContainerRecord, DirRecord, PathKey, PathRecord, RootId, RootRecord, SOURCE_FIRST,
    SourceRecord, StaleMark, segment_from_bytes, source_range,
};
use super::{
    Bytes, CONTAINERS, DIRS, MEMBERS, META, N_COMMITS, NEXT_SOURCE, PACKS, PATHS, REMOVED,
    ROOT_CIDS, ROOTS, SEGMENTS, SOURCES, STALE, members, storage,
};
use crate::error::Result;
use crate::store::index::{SegmentId, SegmentMeta};
use crate::store::location::ContainerId;
use crate::store::unlisted::FileKey;

/// The catalog after one commit. Later commits do not change it.
pub struct Snapshot {
    containers: ReadOnlyTable<u64, Bytes>,
    packs: ReadOnlyTable<Bytes, u64>,
    paths: ReadOnlyTable<Bytes, Bytes>,
    dirs: ReadOnlyTable<Bytes, Bytes>,
    roots: ReadOnlyTable<u64, Bytes>,
    root_cids: ReadOnlyTable<Bytes, u64>,
    members: ReadOnlyTable<(u64, u32), Bytes>,
    stale: ReadOnlyTable<u64, Bytes>,
    segments: ReadOnlyTable<u64, Bytes>,
    sources: Option<ReadOnlyTable<u32, Bytes>>,
    removed: Option<ReadOnlyTable<Bytes, u64>>,
    next_source: u32,
    n_commits: u64,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").finish_non_exhaustive()
    }
}

impl Snapshot {
    pub(super) fn new(transaction: &ReadTransaction) -> Result<Self> {
        let meta = storage(transaction.open_table(META))?;
        let next_source = storage(meta.get(NEXT_SOURCE))?.map(|value| value.value());
        let n_commits = storage(meta.get(N_COMMITS))?.map_or(0, |value| value.value());
        let sources = if_made(transaction.open_table(SOURCES))?;
        let removed = if_made(transaction.open_table(REMOVED))?;
        // Each table keeps the read transaction alive by itself.
        Ok(Self {
            containers: storage(transaction.open_table(CONTAINERS))?,
            packs: storage(transaction.open_table(PACKS))?,
            paths: storage(transaction.open_table(PATHS))?,
            dirs: storage(transaction.open_table(DIRS))?,
            roots: storage(transaction.open_table(ROOTS))?,
            root_cids: storage(transaction.open_table(ROOT_CIDS))?,
            members: storage(transaction.open_table(MEMBERS))?,
            stale: storage(transaction.open_table(STALE))?,
            segments: storage(transaction.open_table(SEGMENTS))?,
            sources,
            removed,
            next_source: next_source
                .and_then(|next| u32::try_from(next).ok())
                .unwrap_or(SOURCE_FIRST),
            n_commits,
        })
    }

    /// A container; `None` once it was removed.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` if the catalog cannot be read, as for all methods here.
    pub fn container(&self, id: ContainerId) -> Result<Option<ContainerRecord>> {
        let row = storage(self.containers.get(id.0))?;
        row.map(|row| ContainerRecord::from_bytes(row.value()))
            .transpose()
    }

    /// There is such a container.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn has_container(&self, id: ContainerId) -> Result<bool> {
        Ok(storage(self.containers.get(id.0))?.is_some())
    }

    /// Number of containers.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn n_containers(&self) -> Result<u64> {
        storage(self.containers.len())
    }

    /// Calls `found` with every container id, ascending.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn container_ids(&self, mut found: impl FnMut(ContainerId)) -> Result<()> {
        for row in storage(ReadableTable::iter(&self.containers))? {
            found(ContainerId(storage(row)?.0.value()));
        }
        Ok(())
    }

    /// File names and container ids of all packs.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn packs(&self) -> Result<Vec<(Vec<u8>, ContainerId)>> {
        let mut packs = Vec::new();
        for row in storage(ReadableTable::iter(&self.packs))? {
            let (name, id) = storage(row)?;
            packs.push((name.value().to_vec(), ContainerId(id.value())));
        }
        Ok(packs)
    }

    /// What the last add found at a file or symlink.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn path(&self, key: &PathKey) -> Result<Option<PathRecord>> {
        let row = storage(self.paths.get(key.to_bytes().as_slice()))?;
        row.map(|row| PathRecord::from_bytes(row.value()))
            .transpose()
    }

    /// Files and symlinks at `top` and below, in the order of a walk by name.
    ///
    /// # Errors
    /// As [`Self::container`]; each item may be an error, too.
    pub fn paths_below(&self, top: &PathKey) -> Result<Paths> {
        let (start, end) = top.tree_range();
        let rows = storage(self.paths.range(start.as_slice()..end.as_slice()))?;
        Ok(Paths { rows })
    }

    /// Files and symlinks of a source, under every profile.
    ///
    /// # Errors
    /// As [`Self::paths_below`].
    pub fn paths_of(&self, source: u32) -> Result<Paths> {
        let (start, end) = source_range(source);
        let rows = storage(self.paths.range(start.as_slice()..end.as_slice()))?;
        Ok(Paths { rows })
    }

    /// Directories of a source, under every profile.
    ///
    /// # Errors
    /// As [`Self::paths_below`].
    pub fn dirs_of(&self, source: u32) -> Result<Dirs> {
        let (start, end) = source_range(source);
        let rows = storage(self.dirs.range(start.as_slice()..end.as_slice()))?;
        Ok(Dirs { rows })
    }

    /// What the last add built for a directory.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn dir(&self, key: &PathKey) -> Result<Option<DirRecord>> {
        let row = storage(self.dirs.get(key.to_bytes().as_slice()))?;
        row.map(|row| DirRecord::from_bytes(row.value()))
            .transpose()
    }

    /// All files and symlinks of all sources and profiles.
    ///
    /// # Errors
    /// As [`Self::paths_below`].
    pub fn all_paths(&self) -> Result<Paths> {
        let rows = storage(self.paths.range::<&[u8]>(..))?;
        Ok(Paths { rows })
    }

    /// All containers, ascending.
    ///
    /// # Errors
    /// As [`Self::paths_below`].
    pub fn containers(&self) -> Result<Containers> {
        let rows = storage(self.containers.range::<u64>(..))?;
        Ok(Containers { rows })
    }

    /// Directories at `top` and below, in the order of a walk by name.
    ///
    /// # Errors
    /// As [`Self::paths_below`].
    pub fn dirs_below(&self, top: &PathKey) -> Result<Dirs> {
        let (start, end) = top.tree_range();
        let rows = storage(self.dirs.range(start.as_slice()..end.as_slice()))?;
        Ok(Dirs { rows })
    }

    /// All roots, oldest first.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn roots(&self) -> Result<Vec<RootRecord>> {
        let mut roots = Vec::new();
        for row in storage(ReadableTable::iter(&self.roots))? {
            let (id, value) = storage(row)?;
            roots.push(RootRecord::from_bytes(RootId(id.value()), value.value())?);
        }
        Ok(roots)
    }

    /// One root.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn root(&self, id: RootId) -> Result<Option<RootRecord>> {
        let row = storage(self.roots.get(id.0))?;
        row.map(|row| RootRecord::from_bytes(id, row.value()))
            .transpose()
    }

    /// The roots with this CID, oldest first: the same content may have come from two places.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn roots_of_cid(&self, cid: &Cid) -> Result<Vec<RootRecord>> {
        let prefix = cid.to_bytes();
        let mut roots = Vec::new();
        for row in storage(self.root_cids.range(prefix.as_slice()..))? {
            let (key, id) = storage(row)?;
            if !key.value().starts_with(&prefix) {
                break;
            }
            roots.extend(self.root(RootId(id.value()))?);
        }
        Ok(roots)
    }

    /// The roots that came from this path, oldest first. Reads all roots.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn roots_of_path(&self, path: &[u8]) -> Result<Vec<RootRecord>> {
        let mut roots = self.roots()?;
        roots.retain(|root| root.path == path);
        Ok(roots)
    }

    /// The containers that a root needs, ascending; none if there is no such root.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn members(&self, id: RootId) -> Result<Vec<ContainerId>> {
        let mut ids = Vec::new();
        for row in storage(self.members.range((id.0, 0)..=(id.0, u32::MAX)))? {
            let (_, chunk) = storage(row)?;
            members::decode(chunk.value(), |member| ids.push(member))?;
        }
        Ok(ids)
    }

    /// The mark of a container that is out of service.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn stale(&self, id: ContainerId) -> Result<Option<StaleMark>> {
        let row = storage(self.stale.get(id.0))?;
        row.map(|row| StaleMark::from_bytes(row.value()))
            .transpose()
    }

    /// All containers that are out of service.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn stale_marks(&self) -> Result<Vec<(ContainerId, StaleMark)>> {
        let mut marks = Vec::new();
        for row in storage(ReadableTable::iter(&self.stale))? {
            let (id, value) = storage(row)?;
            marks.push((
                ContainerId(id.value()),
                StaleMark::from_bytes(value.value())?,
            ));
        }
        Ok(marks)
    }

    /// All configured sources, oldest first.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn sources(&self) -> Result<Vec<(u32, SourceRecord)>> {
        let mut sources = Vec::new();
        let Some(table) = &self.sources else {
            return Ok(sources);
        };
        for row in storage(ReadableTable::iter(table))? {
            let (id, value) = storage(row)?;
            sources.push((id.value(), SourceRecord::from_bytes(value.value())?));
        }
        Ok(sources)
    }

    /// Files that commits took away and that may still be there, and when that was.
    pub(in crate::store) fn removed_files(&self) -> Result<Vec<(FileKey, u64)>> {
        let mut files = Vec::new();
        let Some(table) = &self.removed else {
            return Ok(files);
        };
        for row in storage(ReadableTable::iter(table))? {
            let (key, time) = storage(row)?;
            files.push((key.value().to_vec(), time.value()));
        }
        Ok(files)
    }

    /// One configured source.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn source(&self, id: u32) -> Result<Option<SourceRecord>> {
        let Some(table) = &self.sources else {
            return Ok(None);
        };
        let row = storage(table.get(id))?;
        row.map(|row| SourceRecord::from_bytes(row.value()))
            .transpose()
    }

    /// Whether a root was made from a source, or anything of its paths is remembered.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn has_any_of(&self, source: u32) -> Result<bool> {
        let (start, end) = source_range(source);
        for table in [&self.paths, &self.dirs] {
            let mut rows = storage(table.range(start.as_slice()..end.as_slice()))?;
            if rows.next().is_some() {
                return Ok(true);
            }
        }
        let roots = self.roots()?;
        Ok(roots.iter().any(|root| root.source == source))
    }

    /// The id that the next source is to have: ids are not used again.
    #[must_use]
    pub const fn next_source(&self) -> u32 {
        self.next_source
    }

    /// Commits since the catalog was made, or since a version that counts them wrote it first.
    pub(super) const fn n_commits(&self) -> u64 {
        self.n_commits
    }

    /// The live index segments, oldest first.
    ///
    /// # Errors
    /// As [`Self::container`].
    pub fn segments(&self) -> Result<Vec<SegmentMeta>> {
        let mut segments = Vec::new();
        for row in storage(ReadableTable::iter(&self.segments))? {
            let (id, value) = storage(row)?;
            segments.push(segment_from_bytes(SegmentId(id.value()), value.value())?);
        }
        Ok(segments)
    }
}

/// A table that not every catalog has.
fn if_made<T>(opened: std::result::Result<T, redb::TableError>) -> Result<Option<T>> {
    match opened {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => storage(Err(error)),
    }
}

/// Rows of `paths`; see [`Snapshot::paths_below`].
pub struct Paths {
    rows: Range<'static, Bytes, Bytes>,
}

/// Rows of `dirs`; see [`Snapshot::dirs_below`].
pub struct Dirs {
    rows: Range<'static, Bytes, Bytes>,
}

/// Rows of `containers`; see [`Snapshot::containers`].
pub struct Containers {
    rows: Range<'static, u64, Bytes>,
}

impl Iterator for Containers {
    type Item = Result<(ContainerId, ContainerRecord)>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.rows.next()?;
        Some(storage(row).and_then(|(id, value)| {
            let record = ContainerRecord::from_bytes(value.value())?;
            Ok((ContainerId(id.value()), record))
        }))
    }
}

impl std::fmt::Debug for Containers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Containers").finish_non_exhaustive()
    }
}

impl Iterator for Paths {
    type Item = Result<(PathKey, PathRecord)>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.rows.next()?;
        Some(storage(row).and_then(|(key, value)| {
            Ok((
                PathKey::from_bytes(key.value())?,
                PathRecord::from_bytes(value.value())?,
            ))
        }))
    }
}

impl Iterator for Dirs {
    type Item = Result<(PathKey, DirRecord)>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.rows.next()?;
        Some(storage(row).and_then(|(key, value)| {
            Ok((
                PathKey::from_bytes(key.value())?,
                DirRecord::from_bytes(value.value())?,
            ))
        }))
    }
}

impl std::fmt::Debug for Paths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paths").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Dirs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dirs").finish_non_exhaustive()
    }
}
