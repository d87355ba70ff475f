//! What an import promises, and what its roots keep of an earlier import of the same place.
//!
//! In       a CAR's roots, and the container in which its blocks are now.
//! Out      rows of roots in the sink.
//! Limits   a pack that may go is read once, by the heads of its sections, with a look-up a block.
//! Not here reading CARs (`ingest::import`), what goes when a root goes (`store::catalog`).
//!
//! A root has one row for each place that it was imported from. What was copied may be the only
//! copy: it stays with the row, whatever is imported from there later, until another copy holds
//! every block of it. What lies in place is what the file is now: a later import takes the place of
//! an earlier one. `rm` of the root removes all of it.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use carrack_formats::{Cid, cid};

use super::{CAR_PROFILE, ImportReport};
use crate::error::Result;
use crate::ingest::AddedRoot;
use crate::ingest::sink::{KnownRoot, Sink};
use crate::store::Store;
use crate::store::catalog::{ContainerKind, RootId, RootKind};
use crate::store::location::ContainerId;

/// Makes the CAR's roots the store's. A CAR without any gets the empty identity block for one, as
/// a pack has it: `ls` shows it, and `rm` can drop the CAR.
pub(super) fn promise(
    sink: &mut Sink<'_>,
    path: &Path,
    roots: &[Cid],
    container: Option<ContainerId>,
    report: &mut ImportReport,
    stop: &AtomicBool,
) -> Result<()> {
    let nameless = [cid::empty_identity()];
    let named = if roots.is_empty() { &nameless } else { roots };
    let mut seen = HashSet::new();
    let mut known = Vec::new();
    for root in named.iter().filter(|root| seen.insert(**root)) {
        known.push((
            root,
            sink.known_roots(root, path, RootKind::Import, CAR_PROFILE)?,
        ));
    }
    let earlier = known.iter().flat_map(|(_, known)| known);
    let earlier = earlier.flat_map(|one| one.members.iter().copied());
    let kept = kept_copies(sink, earlier, container, stop)?;
    for (root, known) in &known {
        let mut sum = report.sum(**root);
        let mut members: Vec<ContainerId> = container.into_iter().collect();
        for one in known {
            let copies = one.members.iter().filter(|id| kept.contains(id));
            let n_before = members.len();
            members.extend(copies);
            if members.len() > n_before {
                sum.n_blocks = sum.n_blocks.max(one.n_blocks);
                sum.file_len = sum.file_len.max(one.bytes);
            } else if is_in_place(sink, one, container)? {
                let n_fewer = one.n_blocks.saturating_sub(report.n_blocks);
                report.n_gone = report.n_gone.max(n_fewer);
            }
        }
        sink.root(root, path, RootKind::Import, CAR_PROFILE, sum, members)?;
    }
    let added = roots.iter().map(|root| AddedRoot {
        cid: *root,
        path: sink.shown(path),
        bytes: report.bytes,
        n_blocks: report.n_blocks,
        n_files: 1,
    });
    report.roots = added.collect();
    Ok(())
}

/// The copies among `earlier` that nothing takes the place of.
fn kept_copies(
    sink: &mut Sink<'_>,
    earlier: impl Iterator<Item = ContainerId>,
    container: Option<ContainerId>,
    stop: &AtomicBool,
) -> Result<BTreeSet<ContainerId>> {
    let mut earlier: Vec<ContainerId> = earlier.filter(|id| Some(*id) != container).collect();
    earlier.sort_unstable();
    earlier.dedup();
    let catalog = sink.store().catalog();
    let mut packs = Vec::new();
    for id in earlier {
        let record = catalog.container(id)?;
        let pack = record.filter(|record| record.kind == ContainerKind::Pack);
        packs.extend(pack.map(|pack| (id, pack)));
    }
    let mut kept: BTreeSet<ContainerId> = packs.iter().map(|(id, _)| *id).collect();
    if let Some(copy) = sink.pack_id()
        && !packs.is_empty()
    {
        sink.checkpoint()?; // Look-ups find what was copied.
        for (id, pack) in &packs {
            if sink.store().is_all_in(pack, copy, stop)? {
                kept.remove(id);
            }
        }
    }
    Ok(kept)
}

/// Whether a root lay in place, in a version that is gone now.
fn is_in_place(sink: &Sink<'_>, known: &KnownRoot, container: Option<ContainerId>) -> Result<bool> {
    let catalog = sink.store().catalog();
    for id in known.members.iter().filter(|id| Some(**id) != container) {
        if let Some(record) = catalog.container(*id)?
            && record.kind == ContainerKind::Car
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a root that was imported holds blocks that were copied.
///
/// # Errors
/// Those of the catalog.
pub fn holds_copy(store: &Store, id: RootId) -> Result<bool> {
    let catalog = store.catalog();
    let Some(root) = catalog.root(id)? else {
        return Ok(false);
    };
    if root.kind != RootKind::Import {
        return Ok(false);
    }
    for member in catalog.members(id)? {
        let record = catalog.container(member)?;
        if record.is_some_and(|record| record.kind == ContainerKind::Pack) {
            return Ok(true);
        }
    }
    Ok(false)
}
