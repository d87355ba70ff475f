//! Rows that become visible together, and the transaction that writes them.
//!
//! In       rows in any order, encoded where they are made: many threads may fill batches.
//! Out      one redb transaction.
//! Limits   memory: about 250 bytes a file added. Ingest commits every few ten thousand files.
//! Not here what removing a root takes with it (`remove`).

use std::collections::BTreeMap;

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::record::{
    ContainerKind, ContainerRecord, DirRecord, PathKey, PathRecord, RootId, RootRecord,
    SourceRecord, StaleMark, segment_to_bytes,
};
use super::{
    CONTAINERS, DIRS, MEMBERS, META, N_COMMITS, NEXT_SOURCE, NextIds, PACKS, PATHS, REMOVED,
    ROOT_CIDS, ROOTS, SEGMENTS, SOURCES, STALE, members, remove, root_cid_key, storage,
};
use crate::error::Result;
use crate::store::index::{SegmentId, SegmentMeta, segment_name};
use crate::store::location::ContainerId;
use crate::store::recover::{PACKS as DIR_PACKS, SEGMENTS as DIR_SEGMENTS};
use crate::store::unlisted::{FileKey, file_key};

/// Changes to the catalog that happen together or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    containers: Vec<(u64, Vec<u8>)>,
    packs: Vec<(Vec<u8>, u64)>,
    paths: Vec<Row>,
    dirs: Vec<Row>,
    roots: Vec<(RootRecord, Vec<ContainerId>)>,
    stale: Vec<(u64, Option<Vec<u8>>)>,
    pub(in crate::store) found_again: Vec<ContainerId>,
    sources: Vec<(u32, Option<Vec<u8>>)>,
    removed_roots: Vec<RootId>,
    sweeps: bool,
    pub(in crate::store) segments: Vec<SegmentMeta>,
    pub(in crate::store) removed_segments: Vec<SegmentId>,
    /// Rows of `removed` to drop.
    pub(in crate::store) gone_files: Vec<FileKey>,
}

/// A key and its new value, or nothing to remove the row.
type Row = (Vec<u8>, Option<Vec<u8>>);

/// What a commit took away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// Containers that no root needs any more: their rows are gone.
    pub removed_containers: Vec<ContainerId>,
    /// Packs among them, and segments: their files are to be unlinked.
    pub(in crate::store) removed_files: Vec<FileKey>,
}

impl Batch {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n_rows() == 0
            && self.removed_roots.is_empty()
            && self.segments.is_empty()
            && self.removed_segments.is_empty()
            && !self.sweeps
    }

    /// Rows of containers, paths, directories, roots and stale marks so far.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.containers.len()
            + self.paths.len()
            + self.dirs.len()
            + self.roots.len()
            + self.stale.len()
            + self.sources.len()
    }

    /// Files that are listed from this commit on, those of before among them.
    pub(in crate::store) fn listed_files(&self) -> Vec<FileKey> {
        let segments = self.segments.iter().map(|meta| segment_key(meta.id));
        let packs = self.packs.iter().map(|(name, _)| file_key(DIR_PACKS, name));
        segments.chain(packs).collect()
    }

    /// Moves everything of `other` behind what is here.
    pub fn append(&mut self, mut other: Self) {
        self.containers.append(&mut other.containers);
        self.packs.append(&mut other.packs);
        self.paths.append(&mut other.paths);
        self.dirs.append(&mut other.dirs);
        self.roots.append(&mut other.roots);
        self.stale.append(&mut other.stale);
        self.sources.append(&mut other.sources);
        self.removed_roots.append(&mut other.removed_roots);
        self.segments.append(&mut other.segments);
        self.removed_segments.append(&mut other.removed_segments);
        self.gone_files.append(&mut other.gone_files);
        self.sweeps |= other.sweeps;
    }

    /// Adds or replaces a container. A pack's row is put again when the pack has grown.
    pub fn put_container(&mut self, id: ContainerId, record: &ContainerRecord) {
        if record.kind == ContainerKind::Pack {
            self.packs.push((record.path.clone(), id.0));
        }
        self.containers.push((id.0, record.to_bytes()));
    }

    /// Adds or replaces what is known of a file or symlink.
    pub fn put_path(&mut self, key: &PathKey, record: &PathRecord) {
        self.paths.push((key.to_bytes(), Some(record.to_bytes())));
    }

    /// Forgets a file or symlink.
    pub fn remove_path(&mut self, key: &PathKey) {
        self.paths.push((key.to_bytes(), None));
    }

    /// Adds or replaces what is known of a directory.
    pub fn put_dir(&mut self, key: &PathKey, record: &DirRecord) {
        self.dirs.push((key.to_bytes(), Some(record.to_bytes())));
    }

    /// Forgets a directory.
    pub fn remove_dir(&mut self, key: &PathKey) {
        self.dirs.push((key.to_bytes(), None));
    }

    /// Adds or replaces a root and the containers that it needs: leaves, packs, CARs.
    pub fn put_root(&mut self, record: RootRecord, mut members: Vec<ContainerId>) {
        members.sort_unstable();
        members.dedup();
        self.roots.push((record, members));
    }

    /// Removes a root and what only it needs, after the puts of this batch: a root that is put in
    /// its place keeps what both need. Removing a root that is not there does nothing.
    pub fn remove_root(&mut self, id: RootId) {
        self.removed_roots.push(id);
    }

    /// Removes every container that no root needs, such as those of an add that was given up. Not
    /// while an ingest is under way: its root comes last.
    pub fn remove_unneeded(&mut self) {
        self.sweeps = true;
    }

    /// Lists a finished segment.
    pub fn add_segment(&mut self, meta: SegmentMeta) {
        self.segments.push(meta);
    }

    /// Takes a container out of service.
    pub fn put_stale(&mut self, id: ContainerId, mark: StaleMark) {
        self.stale.push((id.0, Some(mark.to_bytes())));
    }

    /// Removes what is noted against a container.
    pub fn clear_stale(&mut self, id: ContainerId) {
        self.stale.push((id.0, None));
    }

    /// A container lies where its row, which this batch puts again, says: it is in service again,
    /// and nobody looks for it where it was.
    pub fn found_again(&mut self, id: ContainerId) {
        self.clear_stale(id);
        self.found_again.push(id);
    }

    /// Configures a source, or changes what is configured. Ids come from
    /// [`Snapshot::next_source`](super::Snapshot::next_source).
    pub fn put_source(&mut self, id: u32, record: &SourceRecord) {
        self.sources.push((id, Some(record.to_bytes())));
    }

    /// Forgets a source, what is known of its paths, and those of its containers that no root needs
    /// after this batch. Its roots are the caller's to remove.
    pub fn remove_source(&mut self, id: u32) {
        self.sources.push((id, None));
    }

    /// Writes everything into `transaction`, which the caller commits.
    pub(super) fn apply(
        mut self,
        transaction: &WriteTransaction,
        next: NextIds,
        n_commits: u64,
    ) -> Result<Committed> {
        let mut meta = storage(transaction.open_table(META))?;
        for (name, value) in next.rows() {
            storage(meta.insert(name, value))?;
        }
        storage(meta.insert(N_COMMITS, n_commits))?;
        drop(meta);
        // In key order each insert lands beside the one before. Stable: a later put wins.
        self.containers.sort_by_key(|row| row.0);
        if !self.containers.is_empty() {
            let mut table = storage(transaction.open_table(CONTAINERS))?;
            for (id, value) in &self.containers {
                storage(table.insert(id, value.as_slice()))?;
            }
        }
        if !self.packs.is_empty() {
            let mut table = storage(transaction.open_table(PACKS))?;
            for (name, id) in &self.packs {
                storage(table.insert(name.as_slice(), id))?;
            }
        }
        apply_rows(transaction, PATHS, self.paths)?;
        apply_rows(transaction, DIRS, self.dirs)?;
        apply_roots(transaction, &self.roots)?;
        if !self.stale.is_empty() {
            let mut table = storage(transaction.open_table(STALE))?;
            for (id, mark) in &self.stale {
                match mark {
                    Some(mark) => storage(table.insert(id, mark.as_slice()))?,
                    None => storage(table.remove(id))?,
                };
            }
        }
        apply_sources(transaction, &self.sources)?;
        if !self.segments.is_empty() || !self.removed_segments.is_empty() {
            let mut table = storage(transaction.open_table(SEGMENTS))?;
            for id in &self.removed_segments {
                storage(table.remove(id.0))?;
            }
            for segment in &self.segments {
                storage(table.insert(segment.id.0, segment_to_bytes(segment).as_slice()))?;
            }
        }
        let forgotten = self.sources.iter().filter(|(_, value)| value.is_none());
        let forgotten: Vec<u32> = forgotten.map(|(id, _)| *id).collect();
        let mut committed =
            remove::apply(transaction, &self.removed_roots, &forgotten, self.sweeps)?;
        let removed_segments = self.removed_segments.iter().copied().map(segment_key);
        committed.removed_files.extend(removed_segments);
        apply_removed_files(transaction, &committed.removed_files, &self.gone_files)?;
        Ok(committed)
    }
}

fn segment_key(id: SegmentId) -> FileKey {
    file_key(DIR_SEGMENTS, segment_name(id).as_bytes())
}

/// Notes which files are no part of the store from now on, so that whoever finds one knows why.
fn apply_removed_files(
    transaction: &WriteTransaction,
    removed: &[FileKey],
    gone: &[FileKey],
) -> Result<()> {
    if removed.is_empty() && gone.is_empty() {
        return Ok(());
    }
    let now = u64::try_from(crate::clock::unix_nanoseconds()).unwrap_or(u64::MAX);
    let mut table = storage(transaction.open_table(REMOVED))?;
    for key in gone {
        storage(table.remove(key.as_slice()))?;
    }
    for key in removed {
        storage(table.insert(key.as_slice(), now))?;
    }
    Ok(())
}

fn apply_rows(
    transaction: &WriteTransaction,
    definition: TableDefinition<'_, &'static [u8], &'static [u8]>,
    mut rows: Vec<Row>,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    let mut table = storage(transaction.open_table(definition))?;
    for (key, value) in &rows {
        match value {
            Some(value) => storage(table.insert(key.as_slice(), value.as_slice()))?,
            None => storage(table.remove(key.as_slice()))?,
        };
    }
    Ok(())
}

fn apply_sources(transaction: &WriteTransaction, sources: &[(u32, Option<Vec<u8>>)]) -> Result<()> {
    if sources.is_empty() {
        return Ok(());
    }
    let mut table = storage(transaction.open_table(SOURCES))?;
    let mut meta = storage(transaction.open_table(META))?;
    for (id, value) in sources {
        match value {
            Some(value) => storage(table.insert(id, value.as_slice()))?,
            None => storage(table.remove(id))?,
        };
        let next = storage(meta.get(NEXT_SOURCE))?.map_or(0, |next| next.value());
        storage(meta.insert(NEXT_SOURCE, next.max(u64::from(*id) + 1)))?;
    }
    Ok(())
}

fn apply_roots(
    transaction: &WriteTransaction,
    roots: &[(RootRecord, Vec<ContainerId>)],
) -> Result<()> {
    if roots.is_empty() {
        return Ok(());
    }
    let last_puts: BTreeMap<RootId, _> = roots
        .iter()
        .map(|(root, ids)| (root.id, (root, ids)))
        .collect();
    for &id in last_puts.keys() {
        remove::forget_root(transaction, id)?; // A replaced one may have had more chunks.
    }
    let mut table = storage(transaction.open_table(ROOTS))?;
    let mut by_cid = storage(transaction.open_table(ROOT_CIDS))?;
    let mut member_table = storage(transaction.open_table(MEMBERS))?;
    for (root, ids) in last_puts.into_values() {
        storage(table.insert(root.id.0, root.to_bytes().as_slice()))?;
        storage(by_cid.insert(root_cid_key(&root.cid, root.id).as_slice(), root.id.0))?;
        for (index, chunk) in (0u32..).zip(members::encode(ids)) {
            storage(member_table.insert((root.id.0, index), chunk.as_slice()))?;
        }
    }
    Ok(())
}
