//! `carrack rm`.

use std::sync::atomic::Ordering;

use serde_json::json;

use crate::cli::Env;
use crate::cli::args::RmArgs;
use crate::cli::target;
use crate::error::{Error, ErrorKind, Result};

/// Drops roots. Every name is looked up before the first is dropped.
///
/// # Errors
/// `NotFound` for what is no root.
pub fn run(args: &RmArgs, env: &mut Env<'_>) -> Result<()> {
    let store = env.blocks.store();
    // What an add is about to replace must not be looked up before.
    let _ingest = store.ingest_lock();
    if env.stop.load(Ordering::Relaxed) {
        return Err(Error::new(ErrorKind::Unavailable, "interrupted"));
    }
    let mut found = Vec::new();
    for text in &args.roots {
        let target = target::parse(text)?;
        let roots = store.catalog().roots_of_cid(&target.root)?;
        if roots.is_empty() {
            let what = format!("{} is not a root here: see carrack ls", target.root);
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        found.extend(roots);
    }
    found.sort_unstable_by_key(|root| root.id);
    found.dedup_by_key(|root| root.id); // Named twice.
    for root in found {
        let dropped = store.remove_root(root.id)?;
        if env.out.json {
            env.out.object(&json!({
                "cid": root.cid.to_string(),
                "containers_dropped": dropped.removed_containers.len(),
            }))?;
        } else {
            env.out.line(&format!("dropped {}", root.cid))?;
        }
    }
    Ok(())
}
