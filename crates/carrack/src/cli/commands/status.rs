//! `carrack status`.

use serde_json::json;

use crate::cli::Env;
use crate::cli::output::{bytes, shown};
use crate::error::Result;
use crate::store::DiskUse;

/// Says what the store holds, and what changed since it was added. Looks at the validators of all
/// sources (one `lstat` each) so that a change is seen before a client meets it.
///
/// # Errors
/// Those of the catalog.
pub fn run(env: &mut Env<'_>) -> Result<()> {
    let store = env.blocks.store();
    let changed = env.blocks.survey(env.stop)?;
    let roots = store.catalog().roots()?;
    let n_containers = store.catalog().n_containers()?;
    let (segments, disk) = (store.index().segments(), store.disk_use()?);
    let n_records: u64 = segments.iter().map(|segment| segment.n_records).sum();
    let index_len: u64 = segments.iter().map(|segment| segment.len).sum();
    if env.out.json {
        let stale: Vec<_> = changed
            .iter()
            .map(|change| {
                json!({
                    "path": change.path.to_string_lossy(),
                    "state": change.state,
                    "since": change.since_unix,
                    "offset": change.offset,
                    "len": change.len,
                })
            })
            .collect();
        return env.out.object(&json!({
            "roots": roots.len(),
            "containers": n_containers,
            "index_entries": n_records,
            "index_segments": segments.len(),
            "index_bytes": index_len,
            "disk_bytes": disk.total(),
            "disk": disk_json(&disk),
            "stale": stale,
        }));
    }
    env.out.line(&format!("roots       {}", roots.len()))?;
    env.out.line(&format!("containers  {n_containers}"))?;
    let (n, len) = (segments.len(), bytes(index_len));
    env.out.line(&format!(
        "index       {n_records} entries in {n} segments, {len}"
    ))?;
    env.out.line(&format!("on disk     {}", disk_line(&disk)))?;
    if changed.is_empty() {
        return env.out.line("sources     all as they were added");
    }
    env.out.line(&format!(
        "sources     {} not as they were added:",
        changed.len()
    ))?;
    for change in &changed {
        let path = shown(change.path.as_os_str().as_encoded_bytes());
        env.out.line(&format!("  {:<10}  {path}", change.state))?;
    }
    env.out
        .note("put such a file back as it was, or add it again to serve what it is now");
    Ok(())
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
