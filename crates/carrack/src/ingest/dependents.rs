//! Roots that would lack blocks if others went.
//!
//! In       roots that are to be removed.
//! Out      the other roots that use blocks which would go with them.
//! Limits   a root that was imported is gone through until it is known to be whole, which its row
//!          keeps: blocks that may link are read, the others looked up. Memory: 8 bytes a block
//!          that may link, at most [`NODES_MAX`]; [`OPEN_MAX`] links that wait.
//! Not here removing (`store::catalog`), what is said (`cli::commands`).
//!
//! What is added is whole: its root needs every container with a block of it. A CAR may lack
//! blocks, and another that was imported may have them: then the first root is served whole by what
//! it does not keep.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use carrack_formats::Cid;
use carrack_formats::cid::identity_data;
use carrack_formats::dag::{Linking, linking, links};

use super::Progress;
use crate::error::{Error, ErrorKind, Result};
use crate::store::block::Blocks;
use crate::store::catalog::{Batch, ContainerKind, RootId, RootKind, RootRecord, Snapshot};
use crate::store::location::ContainerId;

/// Most blocks with links of one root.
const NODES_MAX: usize = 1 << 25;
/// Most links of one root that wait at once: 100 MiB.
const OPEN_MAX: usize = 1 << 20;

/// A root that uses what would go.
#[derive(Debug)]
pub struct Dependent {
    /// Its row.
    pub root: RootRecord,
    /// Blocks that only what would go has, each counted where it occurs below another node.
    pub n_blocks: u64,
    /// Why not all that it uses is known.
    pub unknown: Option<String>,
}

/// The roots that would lack blocks without `removed`, whose ingest lock the caller holds.
///
/// # Errors
/// Those of the catalog and index; `Unavailable` if `stop` was raised.
pub fn dependents(
    blocks: &Blocks,
    removed: &[RootId],
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Vec<Dependent>> {
    let catalog = blocks.store().catalog();
    let removed: HashSet<RootId> = removed.iter().copied().collect();
    let (mut going, mut staying) = (Vec::new(), Vec::new());
    for root in catalog.roots()? {
        match removed.contains(&root.id) {
            true => going.append(&mut catalog.members(root.id)?),
            false => staying.push(root),
        }
    }
    let mut doomed: HashSet<ContainerId> = going.into_iter().collect();
    for root in &staying {
        for member in catalog.members(root.id)? {
            doomed.remove(&member);
        }
    }
    if doomed.is_empty() {
        return Ok(Vec::new());
    }
    let mut copies_go = false;
    for id in &doomed {
        let record = catalog.container(*id)?;
        copies_go |= record.is_some_and(|record| record.kind == ContainerKind::Pack);
    }
    let (mut found, mut whole) = (Vec::new(), Batch::new());
    for root in staying {
        if root.kind != RootKind::Import || root.is_whole {
            continue;
        }
        let members = catalog.members(root.id)?;
        let mut walk = Walk {
            blocks,
            catalog: &catalog,
            doomed: &doomed,
            own: members.iter().copied().collect(),
            leans: false,
            dependent: Dependent {
                root,
                n_blocks: 0,
                unknown: None,
            },
        };
        walk.run(progress, stop)?;
        let Walk {
            leans,
            mut dependent,
            ..
        } = walk;
        // What lies in place can be imported again; copied bytes are gone.
        if dependent.n_blocks > 0 || (dependent.unknown.is_some() && copies_go) {
            found.push(dependent);
        } else if !leans && dependent.unknown.is_none() {
            dependent.root.is_whole = true;
            whole.put_root(dependent.root, members);
        }
    }
    progress.end(LOOKING);
    blocks.store().commit(whole)?;
    Ok(found)
}

/// What is said to be under way.
const LOOKING: &str = "looking for roots that need it";

struct Walk<'a> {
    blocks: &'a Blocks,
    catalog: &'a Arc<Snapshot>,
    doomed: &'a HashSet<ContainerId>,
    /// The root's own containers.
    own: HashSet<ContainerId>,
    /// A block is in none of them.
    leans: bool,
    dependent: Dependent,
}

impl Walk<'_> {
    fn run(&mut self, progress: &mut dyn Progress, stop: &AtomicBool) -> Result<()> {
        let hasher = RandomState::new();
        let mut seen = HashSet::new();
        let mut open = vec![self.dependent.root.cid];
        let mut n = 0u64;
        while let Some(cid) = open.pop() {
            n += 1;
            if n.is_multiple_of(1024) {
                progress.update(LOOKING, n, None);
                if stop.load(Ordering::Relaxed) {
                    return Err(Error::new(ErrorKind::Unavailable, "interrupted"));
                }
            }
            let links = linking(cid.codec());
            if links == Linking::Read && !seen.insert(hasher.hash_one(cid)) {
                continue;
            }
            if !self.is_there(&cid)? || links != Linking::Read {
                continue;
            }
            self.follow(&cid, &mut open);
            if seen.len() > NODES_MAX || open.len() > OPEN_MAX {
                self.dependent.unknown = Some("it has too many blocks to be gone through".into());
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether any container has the block; notes whose it is.
    fn is_there(&mut self, cid: &Cid) -> Result<bool> {
        if identity_data(cid).is_some() {
            return Ok(true);
        }
        let (mut is_there, mut stays, mut is_own) = (false, false, false);
        for location in self.blocks.locate(cid.hash())? {
            let id = location.container;
            if self.own.contains(&id) {
                (is_there, stays, is_own) = (true, true, true);
                break;
            }
            if !stays && self.catalog.has_container(id)? {
                is_there = true;
                stays = !self.doomed.contains(&id);
            }
        }
        self.leans |= !is_own;
        self.dependent.n_blocks += u64::from(is_there && !stays);
        Ok(is_there)
    }

    /// The links of a block wait behind it. What cannot be read may lead to anything.
    fn follow(&mut self, cid: &Cid, open: &mut Vec<Cid>) {
        let block = match self.blocks.get_blocking(cid) {
            Ok(block) => block,
            Err(error) => {
                self.dependent.unknown = Some(error.chain());
                return;
            }
        };
        // A block that is not what its codec says leads nowhere, here and for whoever fetches it.
        let Ok(links) = links(cid.codec(), &block) else {
            return;
        };
        open.extend(links.iter().filter_map(Result::ok));
    }
}
