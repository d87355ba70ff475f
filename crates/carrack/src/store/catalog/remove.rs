//! What goes when a root goes: the containers that no other root needs, and their rows.
//!
//! In       roots and sources to remove, in a transaction that the caller commits.
//! Out      the containers that went.
//! Limits   time: the member lists of all roots once, and the path rows once if a container went.
//!          Memory: 8 bytes for each member of the removed roots.
//! Not here their index records, which merging drops, and the files of packs (`store`).

use redb::{ReadableTable, WriteTransaction};

use super::batch::Committed;
use super::record::{
    ContainerKind, ContainerRecord, RootId, RootRecord, row_containers, source_range,
};
use super::{
    CONTAINERS, DIRS, MEMBERS, PACKS, PATHS, ROOT_CIDS, ROOTS, STALE, members, root_cid_key,
    storage,
};
use crate::error::Result;
use crate::store::location::ContainerId;

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
    for id in &ids {
        storage(stale.remove(id.0))?;
        let Some(row) = storage(containers.remove(id.0))? else {
            continue;
        };
        let record = ContainerRecord::from_bytes(row.value())?;
        if record.kind == ContainerKind::Pack {
            storage(packs.remove(record.path.as_slice()))?;
            committed.removed_packs.push(record.path);
        }
    }
    for definition in [PATHS, DIRS] {
        let mut table = storage(transaction.open_table(definition))?;
        // A row that cannot be read goes: it is only a cache of what an add would find again.
        storage(table.retain(|_, value| {
            row_containers(value).is_ok_and(|needed| {
                !needed
                    .iter()
                    .flatten()
                    .any(|container| ids.binary_search(container).is_ok())
            })
        }))?;
    }
    committed.removed_containers = ids;
    Ok(committed)
}
