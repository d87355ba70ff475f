//! `carrack rm`.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use serde_json::json;

use super::several::Several;
use crate::cli::Env;
use crate::cli::args::RmArgs;
use crate::cli::output::shown;
use crate::cli::target;
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::dependents::dependents;
use crate::store::catalog::{Batch, RootId, RootRecord};
use crate::store::location::ContainerId;

/// Roots that go in one commit: each waits for the disk.
const ROOTS_AT_ONCE: usize = 256;

/// Drops roots. Every name is looked up before the first is dropped.
///
/// # Errors
/// `NotFound` for what is no root; `Partial` if others were; `Invalid`, and nothing is dropped, if
/// roots that stay use blocks of theirs.
pub fn run(args: &RmArgs, env: &mut Env<'_>) -> Result<()> {
    let store = env.blocks.store();
    // What an add is about to replace must not be looked up before.
    let _ingest = store.ingest_lock();
    if env.stop.load(Ordering::Relaxed) {
        return Err(Error::new(ErrorKind::Unavailable, "interrupted"));
    }
    let mut several = Several::new("dropped", args.roots.len());
    let mut found = Vec::new();
    for text in &args.roots {
        let roots = roots_named(text, env);
        let roots = several.take(env, text.as_bytes(), roots)?;
        found.extend(roots.into_iter().flatten());
    }
    found.sort_unstable_by_key(|root| root.id);
    found.dedup_by_key(|root| root.id); // Named twice.
    if !args.force {
        let ids: Vec<RootId> = found.iter().map(|root| root.id).collect();
        refuse_needed(&ids, env)?;
    }
    for roots in found.chunks(ROOTS_AT_ONCE) {
        drop_together(roots, env)?;
    }
    several.conclude()
}

/// Drops some roots in one commit, and says so of each.
fn drop_together(roots: &[RootRecord], env: &mut Env<'_>) -> Result<()> {
    let (store, mut batch) = (env.blocks.store(), Batch::new());
    for root in roots {
        batch.remove_root(root.id);
    }
    let catalog = store.catalog();
    let members = roots.iter().map(|root| catalog.members(root.id));
    let members: Vec<_> = members.collect::<Result<_>>()?;
    let dropped = store.commit(batch)?.removed_containers;
    // What several of them needed goes with the last of them.
    let mut dropped: HashSet<ContainerId> = dropped.into_iter().collect();
    let gone = members.iter().rev();
    let gone = gone.map(|members| members.iter().filter(|id| dropped.remove(id)).count());
    let mut n_dropped: Vec<usize> = gone.collect();
    n_dropped.reverse();
    for (root, n_dropped) in roots.iter().zip(n_dropped) {
        if env.out.json {
            env.out.object(&json!({
                "cid": root.cid.to_string(),
                "containers_dropped": n_dropped,
            }))?;
        } else {
            env.out.line(&format!("dropped {}", root.cid))?;
        }
    }
    Ok(())
}

fn roots_named(text: &str, env: &Env<'_>) -> Result<Vec<RootRecord>> {
    let target = target::parse(text)?;
    let roots = env.blocks.store().catalog().roots_of_cid(&target.root)?;
    if roots.is_empty() {
        let what = format!("{} is not a root here: see carrack ls", target.root);
        return Err(Error::new(ErrorKind::NotFound, what));
    }
    Ok(roots)
}

/// Names the roots that stay and use blocks that would go; the caller holds the ingest lock.
///
/// # Errors
/// `Invalid` if there are any.
pub(super) fn refuse_needed(removed: &[RootId], env: &mut Env<'_>) -> Result<()> {
    let needed = dependents(env.blocks, removed, env.out, env.stop)?;
    if needed.is_empty() {
        return Ok(());
    }
    for dependent in &needed {
        let (cid, path) = (dependent.root.cid, shown(&dependent.root.path));
        let n = dependent.n_blocks;
        let mut text = match n {
            0 => format!("{cid}  {path}: whether it uses blocks that would go cannot be told"),
            _ => format!("{cid}  {path}: it uses {n} blocks that would go"),
        };
        if let Some(why) = &dependent.unknown {
            text.push_str(&format!(" ({})", shown(why.as_bytes())));
        }
        env.out.note(&text);
    }
    let n = needed.len();
    let what = format!("{n} roots that stay need what would go: nothing was dropped (see --force)");
    Err(Error::new(ErrorKind::Invalid, what))
}
