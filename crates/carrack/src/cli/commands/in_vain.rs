//! Work that may configure sources on its way, and what becomes of those when it fails.
//!
//! In       the work of `add`, `import` and `serve` on URLs.
//! Out      its result; after an error, no source of which nothing was taken. A wrong name, server
//!          or key would stay configured else, and stand in the way of the right one.
//! Limits   waits at most [`LET_GO_TIME_MAX`] for a source; one that another command has taken up
//!          meanwhile stays.
//! Not here `source add`, which asks before it configures; a process that is killed.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use crate::cli::Env;
use crate::error::Result;
use crate::store::Store;
use crate::store::catalog::Batch;
use crate::store::sources::Sources;

/// How long reads that were called off may take to let go of their source.
const LET_GO_TIME_MAX: Duration = Duration::from_secs(1);
const LET_GO_INTERVAL: Duration = Duration::from_millis(2);

/// Does the work.
///
/// # Errors
/// Those of the work.
pub(super) fn in_vain<'a, T>(
    env: &mut Env<'a>,
    work: impl FnOnce(&mut Env<'a>) -> Result<T>,
) -> Result<T> {
    let (store, sources) = (Arc::clone(env.blocks.store()), Arc::clone(env.sources()));
    let before = ids(&store)?;
    let done = work(env);
    if done.is_err()
        && let Err(error) = forget_new(&store, &sources, &before)
    {
        // The work's own error is the one to tell.
        tracing::warn!(error = error.chain(), "a source of no use stays configured");
    }
    done
}

fn ids(store: &Store) -> Result<HashSet<u32>> {
    let configured = store.catalog().sources()?;
    Ok(configured.into_iter().map(|(id, _)| id).collect())
}

fn forget_new(store: &Store, sources: &Sources, before: &HashSet<u32>) -> Result<()> {
    // Whoever takes a source from the catalog holds this lock until it is in hand.
    let _ingest = store.ingest_lock();
    let mut batch = Batch::new();
    for id in ids(store)? {
        if before.contains(&id) || !is_empty(store, id)? || !is_let_go(sources, id) {
            continue;
        }
        batch.remove_source(id);
        sources.forget(id);
    }
    store.commit(batch)?;
    Ok(())
}

/// Nothing was taken of it, and nothing of a big file is remembered for the next time.
fn is_empty(store: &Store, id: u32) -> Result<bool> {
    let catalog = store.catalog();
    let is_named = catalog.paths_of(id)?.next().is_some()
        || catalog.dirs_of(id)?.next().is_some()
        || catalog.roots()?.iter().any(|root| root.source == id);
    // Journals do not tell their source: any one keeps it.
    let journals = std::fs::read_dir(store.journal_dir());
    Ok(!is_named && journals.is_ok_and(|mut journals| journals.next().is_none()))
}

fn is_let_go(sources: &Sources, id: u32) -> bool {
    let deadline = Instant::now() + LET_GO_TIME_MAX;
    while sources.is_in_use(id) {
        if Instant::now() > deadline {
            return false;
        }
        park_timeout(LET_GO_INTERVAL);
    }
    true
}
