//! `carrack source rescan`.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::json;

use super::{find, roots_of};
use crate::cli::Env;
use crate::cli::args::SourceRescanArgs;
use crate::cli::commands::add::left_out;
use crate::cli::commands::import;
use crate::cli::output::shown;
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::AddReport;
use crate::ingest::rescan::{Rescanned, rescan};
use crate::store::catalog::{RootRecord, SOURCE_LOCAL, SOURCE_STORE};

/// Takes up what appeared, changed or went. A place that changed gets a new root; its old one stays
/// with every block that did not change.
///
/// # Errors
/// `NotFound` for a name that is none; `Partial` if a root's place could not be gone through.
pub(super) fn run(args: &SourceRescanArgs, env: &mut Env<'_>) -> Result<()> {
    let mut roots = match args.name.as_deref() {
        None => env.blocks.store().catalog().roots()?,
        Some("local") => roots_of(SOURCE_LOCAL, env)?,
        Some(name) => roots_of(find(name, env)?.0, env)?,
    };
    roots.retain(|root| root.source != SOURCE_STORE); // Made of packs: they have no place.
    // Newest first: of a place that was added several times, the last root is gone through.
    roots.sort_unstable_by_key(|root| Reverse(root.id));
    let mut seen = BTreeSet::new();
    roots.retain(|root| seen.insert((root.source, root.path.clone(), root.profile)));
    roots.reverse();
    let (mut whole, mut n_failed) = (AddReport::default(), 0u64);
    for root in &roots {
        if env.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "interrupted"));
        }
        let (sources, options) = (Arc::clone(env.sources()), import::default_options());
        let store = env.blocks.store();
        match rescan(store, &sources, root, &options, env.out, env.stop) {
            Ok(rescanned) => {
                print(root, &rescanned, env)?;
                whole.append(rescanned.report);
            }
            Err(error) => {
                n_failed += 1;
                let path = shown(&root.path);
                let why = shown(error.chain().as_bytes());
                env.out.note(&format!("not gone through: {path}: {why}"));
            }
        }
    }
    if roots.is_empty() {
        env.out.note("nothing was added from there yet");
    }
    if n_failed > 0 {
        let what = format!("{n_failed} places could not be gone through");
        return Err(Error::new(ErrorKind::Partial, what));
    }
    left_out(env, &whole, false)
}

fn print(old: &RootRecord, rescanned: &Rescanned, env: &mut Env<'_>) -> Result<()> {
    let changes = &rescanned.changes;
    for root in &rescanned.report.roots {
        if env.out.json {
            env.out.object(&json!({
                "cid": root.cid.to_string(),
                "was": old.cid.to_string(),
                "path": root.path.to_string_lossy(),
                "added": changes.added,
                "changed": changes.changed,
                "moved": changes.moved,
                "vanished": changes.vanished,
            }))?;
            continue;
        }
        let path = shown(root.path.as_os_str().as_encoded_bytes());
        let what = match root.cid == old.cid && changes.vanished == 0 {
            true => "unchanged".to_owned(),
            false => format!(
                "{} new, {} changed, {} moved, {} gone",
                changes.added, changes.changed, changes.moved, changes.vanished
            ),
        };
        env.out.line(&format!("{}  {path}  {what}", root.cid))?;
    }
    Ok(())
}
