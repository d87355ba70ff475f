//! `carrack status`.

use std::ops::Range;

use serde_json::json;

use crate::cli::Env;
use crate::cli::commands::source::line;
use crate::cli::output::{bytes, shown};
use crate::error::Result;
use crate::node::swarm::P2p;
use crate::store::block::{Change, Scope, SourceStatus, State};
use crate::store::catalog::SOURCE_FIRST;
use crate::store::{DiskUse, Unlisted};

/// Ranges of one file that are named to people.
const RANGES_NAMED: usize = 8;

/// Says what the store holds, and what changed since it was added. Looks at every file of this
/// machine (one `lstat` each) so that a change is seen before a client meets it; of sources
/// elsewhere it tells what is known. `carrack source status` asks them.
///
/// # Errors
/// Those of the catalog.
pub fn run(env: &mut Env<'_>) -> Result<()> {
    let store = env.blocks.store();
    let found = env.blocks.survey(Scope::default(), env.stop)?;
    let changed: Vec<_> = found.iter().flat_map(|source| &source.changes).collect();
    let roots = store.catalog().roots()?;
    let n_containers = store.catalog().n_containers()?;
    let (segments, disk) = (store.index().segments(), store.disk_use()?);
    let n_records: u64 = segments.iter().map(|segment| segment.n_records).sum();
    let index_len: u64 = segments.iter().map(|segment| segment.len).sum();
    let unlisted = store.unlisted()?;
    if env.out.json {
        let stale: Vec<_> = changed
            .iter()
            .map(|change| {
                json!({
                    "path": change.path.to_string_lossy(),
                    "state": name_of(change.state),
                    "since": change.since_unix,
                    "ranges": ranges_json(change),
                })
            })
            .collect();
        let sources: Vec<_> = found
            .iter()
            .map(|source| json!({ "name": source.name, "state": source.state.name() }))
            .collect();
        return env.out.object(&json!({
            "roots": roots.len(),
            "containers": n_containers,
            "index_entries": n_records,
            "index_segments": segments.len(),
            "index_bytes": index_len,
            "disk_bytes": disk.total(),
            "disk": disk_json(&disk),
            "unlisted": unlisted_json(&unlisted),
            "stale": stale,
            "sources": sources,
            "p2p_addrs": env.p2p.map(P2p::addresses).unwrap_or_default(),
        }));
    }
    env.out.line(&format!("roots       {}", roots.len()))?;
    env.out.line(&format!("containers  {n_containers}"))?;
    let (n, len) = (segments.len(), bytes(index_len));
    env.out.line(&format!(
        "index       {n_records} entries in {n} segments, {len}"
    ))?;
    env.out.line(&format!("on disk     {}", disk_line(&disk)))?;
    let configured = |source: &&SourceStatus| source.id >= SOURCE_FIRST;
    for source in found.iter().filter(configured) {
        env.out.line(&format!("source      {}", line(source)))?;
    }
    for address in env.p2p.map(P2p::addresses).unwrap_or_default() {
        env.out.line(&format!("peers at    {address}"))?;
    }
    for file in &unlisted {
        env.out
            .line(&format!("unlisted    {}", unlisted_line(file)))?;
    }
    if changed.is_empty() {
        return env.out.line("sources     all as they were added");
    }
    env.out.line(&format!(
        "sources     {} not as they were added:",
        changed.len()
    ))?;
    for change in &changed {
        let path = shown(change.path.as_os_str().as_encoded_bytes());
        let state = name_of(change.state);
        let ranges = ranges_text(change);
        env.out.line(&format!("  {state:<10}  {path}{ranges}"))?;
    }
    env.out
        .note("put such a file back as it was, or add it again to serve what it is now");
    Ok(())
}

/// Files that the catalog does not list, for programs.
pub(super) fn unlisted_json(unlisted: &[Unlisted]) -> Vec<String> {
    let path = |file: &Unlisted| file.path.to_string_lossy().into_owned();
    unlisted.iter().map(path).collect()
}

/// One of them, for people.
pub(super) fn unlisted_line(file: &Unlisted) -> String {
    let path = shown(file.path.as_os_str().as_encoded_bytes());
    format!("{path}: {}", file.advice())
}

/// Disk use by what it is, for programs.
pub(super) fn disk_json(used: &DiskUse) -> serde_json::Value {
    json!({
        "catalog": used.catalog,
        "index": used.index,
        "packs": used.packs,
        "journal": used.journal,
        "total": used.total(),
    })
}

/// The same for people.
pub(super) fn disk_line(used: &DiskUse) -> String {
    format!(
        "{}: catalog {}, index {}, packs {}, journals {}",
        bytes(used.total()),
        bytes(used.catalog),
        bytes(used.index),
        bytes(used.packs),
        bytes(used.journal)
    )
}

/// The ranges of a file that are out of service, for programs; none: all of it.
pub(super) fn ranges_json(change: &Change) -> Vec<serde_json::Value> {
    let one = |range: &Range<u64>| json!({ "offset": range.start, "len": range.end - range.start });
    change.ranges.iter().map(one).collect()
}

/// The same for people, behind the name of the file.
pub(super) fn ranges_text(change: &Change) -> String {
    let named = change.ranges.iter().take(RANGES_NAMED);
    let named: Vec<String> = named
        .map(|range| format!("{}..{}", range.start, range.end))
        .collect();
    match change.ranges.len() {
        0 => String::new(),
        n if n > RANGES_NAMED => {
            let rest = n - RANGES_NAMED;
            format!("  bytes {} and {rest} more", named.join(", "))
        }
        _ => format!("  bytes {}", named.join(", ")),
    }
}

/// A state as this command calls it.
const fn name_of(state: State) -> &'static str {
    match state {
        State::Live => "touched",
        State::Unreachable => "unreadable",
        state => state.name(),
    }
}
