//! `carrack index status|verify|rebuild`.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::cli::Env;
use crate::cli::args::IndexCommand;
use crate::cli::commands::status::{disk_json, disk_line};
use crate::cli::output::{bytes, shown};
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::Progress;
use crate::store::index::REBUILD_ADVICE;
use crate::store::rebuild::{RebuildOptions, rebuild};

/// Carries out one of them.
///
/// # Errors
/// `Corrupt` if the index is damaged; `Partial` if a rebuild left containers out; `Unavailable` if
/// it was stopped or the disk failed, and then the index is as it was.
pub fn run(command: &IndexCommand, env: &mut Env<'_>) -> Result<()> {
    match command {
        IndexCommand::Status => status(env),
        IndexCommand::Verify => verify(env),
        IndexCommand::Rebuild { verify } => run_rebuild(env, RebuildOptions { verify: *verify }),
    }
}

fn status(env: &mut Env<'_>) -> Result<()> {
    let store = env.blocks.store();
    let (segments, lost) = (store.index().segments(), store.lost_segments());
    let n_entries: u64 = segments.iter().map(|segment| segment.n_records).sum();
    let len: u64 = segments.iter().map(|segment| segment.len).sum();
    let n_dead = store.dead_entries(env.stop)?;
    let used = store.disk_use()?;
    let resident = store.index().resident_len();
    if env.out.json {
        let segments: Vec<_> = segments
            .iter()
            .map(|segment| {
                let name = crate::store::index::segment_name(segment.id);
                json!({ "name": name, "entries": segment.n_records, "bytes": segment.len })
            })
            .collect();
        return env.out.object(&json!({
            "segments": segments,
            "entries": n_entries,
            "dead_entries": n_dead,
            "bytes": len,
            "bytes_per_entry": per_entry(len, n_entries),
            "resident_bytes": resident,
            "damaged": lost,
            "disk": disk_json(&used),
        }));
    }
    env.out.line(&format!(
        "entries   {n_entries}, {n_dead} of them of removed containers"
    ))?;
    env.out.line(&format!(
        "segments  {}, {}: {:.1} B an entry, {} of it in memory",
        segments.len(),
        bytes(len),
        per_entry(len, n_entries),
        bytes(resident)
    ))?;
    for segment in &segments {
        let name = crate::store::index::segment_name(segment.id);
        let (n, len) = (segment.n_records, bytes(segment.len));
        env.out.line(&format!("  {name}  {n:>12}  {len}"))?;
    }
    env.out.line(&format!("on disk   {}", disk_line(&used)))?;
    for what in &lost {
        env.out
            .line(&format!("damaged   {}", shown(what.as_bytes())))?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for the eye")]
fn per_entry(len: u64, n_entries: u64) -> f64 {
    len as f64 / n_entries.max(1) as f64
}

/// Every segment is read, so that all damage is named.
fn verify(env: &mut Env<'_>) -> Result<()> {
    let store = env.blocks.store();
    let mut damaged = store.lost_segments();
    let segments = store.index().segments();
    let total: u64 = segments.iter().map(|segment| segment.len).sum();
    let mut done = 0;
    for segment in &segments {
        env.out.update("verifying", done, Some(total));
        if env.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "interrupted"));
        }
        if let Err(error) = store.index().check_segment(segment.id) {
            damaged.push(error.chain());
        }
        done += segment.len;
    }
    if env.out.json {
        env.out.object(&json!({
            "segments": segments.len(), "bytes": total, "damaged": damaged,
        }))?;
    } else {
        for what in &damaged {
            env.out.line(&format!("bad: {}", shown(what.as_bytes())))?;
        }
        let (n, len, bad) = (segments.len(), bytes(total), damaged.len());
        env.out.note(&format!("{n} segments, {len}: {bad} damaged"));
    }
    if damaged.is_empty() {
        return Ok(());
    }
    let what = format!("the index is damaged; {REBUILD_ADVICE}");
    Err(Error::new(ErrorKind::Corrupt, what))
}

fn run_rebuild(env: &mut Env<'_>, options: RebuildOptions) -> Result<()> {
    let (store, stop): (_, &AtomicBool) = (env.blocks.store(), env.stop);
    let out = &mut *env.out;
    let report = rebuild(
        store,
        options,
        &mut |what, done, total| out.update(what, done, total),
        stop,
    )?;
    if env.out.json {
        let left_out: Vec<_> = report
            .left_out
            .iter()
            .map(|(path, why)| json!({ "path": path.to_string_lossy(), "why": why }))
            .collect();
        env.out.object(&json!({
            "entries": report.n_entries,
            "segments": report.n_segments,
            "containers": report.n_containers,
            "containers_kept": report.n_kept,
            "bad_blocks": report.n_bad,
            "containers_left_out": report.n_left_out,
            "left_out": left_out,
        }))?;
    } else {
        env.out.note(&format!(
            "{} entries of {} containers in {} segments",
            report.n_entries,
            report.n_containers + report.n_kept,
            report.n_segments
        ));
        if report.n_kept > 0 {
            env.out.note(&format!(
                "{} containers cannot be read now: their entries were kept",
                report.n_kept
            ));
        }
        if report.n_bad > 0 {
            let n = report.n_bad;
            env.out.note(&format!("{n} damaged blocks were left out"));
        }
        for (path, why) in &report.left_out {
            let path = shown(path.as_os_str().as_encoded_bytes());
            let why = shown(why.as_bytes());
            env.out.line(&format!("left out: {path}: {why}"))?;
        }
    }
    if report.n_left_out == 0 {
        return Ok(());
    }
    let n = report.n_left_out;
    let what = format!("the blocks of {n} containers were not found: add or import them again");
    Err(Error::new(ErrorKind::Partial, what))
}
