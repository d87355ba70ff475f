//! What goes when a root goes: the containers that no other root needs, and their rows.
//!
//! In       roots and sources to remove, in a transaction that the caller commits.
//! Out      the containers that went.
//! Limits   time: the member lists of all roots once, and the path rows once if a pack went.
//!          Memory: 8 bytes for each member of the removed roots.
//! Not here their index records, which merging drops, and the files of packs (`store`).

use redb::{ReadableTable, ReadableTableMetadata, WriteTransaction};

use super::batch::Committed;
use super::record::{
    ContainerKind, ContainerRecord, PathKey, RootId, RootRecord, row_containers, source_range,
};
use super::{
    CONTAINERS, DIRS, MEMBERS, PACKS, PATHS, ROOT_CIDS, ROOTS, STALE, members, root_cid_key,
    storage,
};
use crate::error::Result;
use crate::store::location::ContainerId;
use crate::store::recover;
use crate::store::unlisted::file_key;

/// Rows that can be gone through while one is looked up.
const LOOKUP_COST: u64 = 16;

/// Removes `roots`, and what is known of the paths of `sources`. Every container of those that no
/// root needs goes, too; with `sweeps` every container that no root needs.
pub(super) fn apply(
    transaction: &WriteTransaction,
    roots: &[RootId],
    sources: &[u32],
    sweeps: bool,
) -> Result<Committed> {
    if roots.is_empty() && sources.is_empty() && !sweeps {
        return Ok(Committed::default());
    }
    for &source in sources {
        let (start, end) = source_range(source);
        for definition in [PATHS, DIRS] {
            let mut table = storage(transaction.open_table(definition))?;
            storage(table.retain_in(start.as_slice()..end.as_slice(), |_, _| false))?;
        }
    }
    let mut candidates = Vec::new();
    for &root in roots {
        candidates.append(&mut forget_root(transaction, root)?);
    }
    if sweeps || !sources.is_empty() {
        let table = storage(transaction.open_table(CONTAINERS))?;
        for row in storage(table.iter())? {
            let (id, value) = storage(row)?;
            let is_wanted = sweeps || {
                let record = ContainerRecord::from_bytes(value.value())?;
                sources.contains(&record.source)
            };
            if is_wanted {
                candidates.push(ContainerId(id.value()));
            }
        }
    }
    candidates.sort_unstable();
    candidates.dedup();
    let unneeded = without_needed(transaction, candidates)?;
    remove_containers(transaction, unneeded)
}

/// Removes the rows of one root and returns its members; none if there is no such root.
pub(super) fn forget_root(transaction: &WriteTransaction, id: RootId) -> Result<Vec<ContainerId>> {
    let mut ids = Vec::new();
    let mut table = storage(transaction.open_table(ROOTS))?;
    let Some(bytes) = storage(table.remove(id.0))?.map(|value| value.value().to_vec()) else {
        return Ok(ids);
    };
    let root = RootRecord::from_bytes(id, &bytes)?;
    let mut by_cid = storage(transaction.open_table(ROOT_CIDS))?;
    storage(by_cid.remove(root_cid_key(&root.cid, id).as_slice()))?;
    let mut member_table = storage(transaction.open_table(MEMBERS))?;
    for index in 0u32.. {
        let Some(chunk) = storage(member_table.remove((id.0, index)))? else {
            break;
        };
        members::decode(chunk.value(), |member| ids.push(member))?;
    }
    Ok(ids)
}

/// Those of `candidates`, which ascend, that are members of no root.
fn without_needed(
    transaction: &WriteTransaction,
    candidates: Vec<ContainerId>,
) -> Result<Vec<ContainerId>> {
    let table = storage(transaction.open_table(MEMBERS))?;
    let mut needed = vec![false; candidates.len()];
    for row in storage(table.iter())? {
        let (_, chunk) = storage(row)?;
        let mut from = 0; // Both lists ascend, so the search goes on where it was.
        members::decode(chunk.value(), |member| {
            let rest = candidates.get(from..).unwrap_or_default();
            from += rest.partition_point(|&candidate| candidate < member);
            if candidates.get(from) == Some(&member)
                && let Some(mark) = needed.get_mut(from)
            {
                *mark = true;
            }
        })?;
    }
    let kept = candidates.into_iter().zip(needed);
    Ok(kept
        .filter(|(_, needed)| !needed)
        .map(|(candidate, _)| candidate)
        .collect())
}

/// Removes containers (ascending), their stale marks, and the cached paths that depend on them.
fn remove_containers(transaction: &WriteTransaction, ids: Vec<ContainerId>) -> Result<Committed> {
    let mut committed = Committed::default();
    if ids.is_empty() {
        return Ok(committed);
    }
    let mut containers = storage(transaction.open_table(CONTAINERS))?;
    let mut packs = storage(transaction.open_table(PACKS))?;
    let mut stale = storage(transaction.open_table(STALE))?;
    let mut files = Vec::new();
    for id in &ids {
        storage(stale.remove(id.0))?;
        let Some(row) = storage(containers.remove(id.0))? else {
            continue;
        };
        let record = ContainerRecord::from_bytes(row.value())?;
        if record.kind == ContainerKind::Pack {
            storage(packs.remove(record.path.as_slice()))?;
            let key = file_key(recover::PACKS, &record.path);
            committed.removed_files.push(key);
        } else {
            files.push((record.source, record.path));
        }
    }
    let n_rows = storage(storage(transaction.open_table(PATHS))?.len())?;
    let is_few = (files.len() as u64).saturating_mul(LOOKUP_COST) < n_rows;
    // Of packs, and of containers that had no row, the paths are not known.
    if files.len() == ids.len() && is_few {
        remove_paths(transaction, &files, &ids)?;
    } else {
        remove_dependents(transaction, &ids)?;
    }
    committed.removed_containers = ids;
    Ok(committed)
}

/// Removes the rows of files and CARs by their paths: what depends on no pack is found without
/// going through all rows.
fn remove_paths(
    transaction: &WriteTransaction,
    files: &[(u32, Vec<u8>)],
    ids: &[ContainerId],
) -> Result<()> {
    let mut table = storage(transaction.open_table(PATHS))?;
    let profiles = profiles(&table)?;
    for (source, path) in files {
        for profile in profiles.iter().filter(|profile| profile.0 == *source) {
            let key = PathKey {
                source: *source,
                profile: profile.1,
                path: path.clone(),
            };
            let key = key.to_bytes();
            let depends = match storage(table.get(key.as_slice()))? {
                Some(row) => depends_on(row.value(), ids),
                None => false,
            };
            if depends {
                storage(table.remove(key.as_slice()))?;
            }
        }
    }
    Ok(())
}

/// The pairs of source and profile that there are rows of.
fn profiles(table: &impl ReadableTable<&'static [u8], &'static [u8]>) -> Result<Vec<(u32, u32)>> {
    let mut found = Vec::new();
    let mut from = PathKey {
        source: 0,
        profile: 0,
        path: Vec::new(),
    };
    loop {
        let start = from.to_bytes();
        let Some(row) = storage(table.range(start.as_slice()..))?.next() else {
            return Ok(found);
        };
        let key = PathKey::from_bytes(storage(row)?.0.value())?;
        found.push((key.source, key.profile));
        (from.source, from.profile) = match key.profile.checked_add(1) {
            Some(next) => (key.source, next),
            None => (key.source.saturating_add(1), 0),
        };
    }
}

/// Removes every row that depends on one of the containers, a pack among them: many rows name it.
fn remove_dependents(transaction: &WriteTransaction, ids: &[ContainerId]) -> Result<()> {
    for definition in [PATHS, DIRS] {
        let mut table = storage(transaction.open_table(definition))?;
        storage(table.retain(|_, value| !depends_on(value, ids)))?;
    }
    Ok(())
}

/// A row that cannot be read goes, too: it is only a cache of what an add would find again.
fn depends_on(row: &[u8], ids: &[ContainerId]) -> bool {
    row_containers(row).map_or(true, |needed| {
        let mut needed = needed.iter().flatten();
        needed.any(|container| ids.binary_search(container).is_ok())
    })
}
