//! `carrack index status|verify|rebuild`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::cli::Env;
use crate::cli::args::IndexCommand;
use crate::cli::commands::status::{disk_json, disk_line};
use crate::cli::output::{Output, bytes, shown};
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::Progress;
use crate::store::index::REBUILD_ADVICE;
use crate::store::rebuild::{BadBlock, CutPart, RebuildOptions, rebuild, rebuild_catalog};

/// What a lost catalog knew and no pack tells.
const ELSEWHERE: &str = "what lies in files, CARs and sources in their places is in no pack: add \
                         it again (carrack add PATH, carrack import FILE, carrack source add \
                         URL), and it comes to the same CIDs";

/// Carries out one of them.
///
/// # Errors
/// `Corrupt` if the index is damaged; `Partial` if a rebuild left containers out; `Unavailable` if
/// it was stopped or the disk failed, and then the index is as it was.
pub fn run(command: &IndexCommand, env: &mut Env<'_>) -> Result<()> {
    match command {
        IndexCommand::Status => status(env),
        IndexCommand::Verify => verify(env),
        IndexCommand::Rebuild { catalog: true, .. } => {
            let what = "the catalog is in use, and so is sound: nothing is made anew";
            Err(Error::new(ErrorKind::Busy, what))
        }
        IndexCommand::Rebuild { verify, .. } => {
            run_rebuild(env, RebuildOptions { verify: *verify })
        }
    }
}

/// `carrack index rebuild --catalog`: on a store that nobody can open.
///
/// # Errors
/// Those of [`rebuild_catalog`]; `Partial` if packs or blocks were left out.
pub fn run_rebuild_catalog(data_dir: &Path, out: &mut Output, stop: &AtomicBool) -> Result<()> {
    let report = rebuild_catalog(
        data_dir,
        &mut |what, done, total| out.update(what, done, total),
        stop,
    )?;
    let texts = |paths: &[PathBuf]| -> Vec<String> {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        paths.iter().map(text).collect()
    };
    if out.json {
        out.object(&json!({
            "packs": report.n_packs,
            "blocks": report.n_blocks,
            "bad_blocks": report.n_bad,
            "bad": bad_json(&report.bad),
            "roots": report.n_roots,
            "roots_left_out": report.n_roots_left_out,
            "kept": texts(&report.kept),
            "left_out": texts(&report.left_out),
            "unreadable": cut_json(&report.cut),
            "format_restored": report.is_format_alone,
            "catalog_kept": report.is_format_alone || report.is_addition,
        }))?;
    }
    if report.is_format_alone {
        out.note("the catalog is sound and stays; the lost file format is written again");
        return Ok(());
    }
    let (n, n_packs, n_roots) = (report.n_blocks, report.n_packs, report.n_roots);
    out.note(&format!("{n} blocks of {n_packs} packs, {n_roots} roots"));
    if report.n_roots_left_out > 0 {
        let n = report.n_roots_left_out;
        out.note(&format!(
            "{n} more blocks that nothing links to are served and are no roots"
        ));
    }
    for path in &report.kept {
        let path = shown(path.as_os_str().as_encoded_bytes());
        out.note(&format!("kept as it was: {path}"));
    }
    let elsewhere = match report.is_addition {
        true => "the catalog is sound and stays; these were packs that it did not list",
        false => ELSEWHERE,
    };
    out.note(elsewhere);
    for path in &report.left_out {
        let path = shown(path.as_os_str().as_encoded_bytes());
        out.line(&format!("no sound block: {path}"))?;
    }
    if !out.json {
        tell_bad(&report.bad, out)?;
        tell_cut(&report.cut, out)?;
    }
    if report.n_bad == 0 && report.left_out.is_empty() && report.cut.is_empty() {
        return Ok(());
    }
    let (n_bad, n_left_out, n_cut) = (report.n_bad, report.left_out.len(), report.cut.len());
    let what = format!(
        "{n_bad} damaged blocks, {n_left_out} packs and what follows in {n_cut} more were left out"
    );
    Err(Error::new(ErrorKind::Partial, what))
}

fn bad_json(bad: &[BadBlock]) -> Vec<serde_json::Value> {
    let value = |block: &BadBlock| {
        json!({
            "path": block.path.to_string_lossy(), "offset": block.offset,
            "cid": block.cid.map(|cid| cid.to_string()),
        })
    };
    bad.iter().map(value).collect()
}

/// Names the blocks that are not what they are called.
fn tell_bad(bad: &[BadBlock], out: &mut Output) -> Result<()> {
    for block in bad {
        let path = shown(block.path.as_os_str().as_encoded_bytes());
        let name = match &block.cid {
            Some(cid) => cid.to_string(),
            None => "a broken section".to_owned(),
        };
        let offset = block.offset;
        out.line(&format!("damaged: {name}  {path} byte {offset}"))?;
    }
    Ok(())
}

fn cut_json(cut: &[CutPart]) -> Vec<serde_json::Value> {
    let value = |part: &CutPart| {
        json!({
            "path": part.path.to_string_lossy(), "offset": part.offset, "bytes": part.len,
            "why": part.why, "kept": part.is_kept,
        })
    };
    cut.iter().map(value).collect()
}

/// Names the parts of packs and CARs that could not be read.
fn tell_cut(cut: &[CutPart], out: &mut Output) -> Result<()> {
    for part in cut {
        let path = shown(part.path.as_os_str().as_encoded_bytes());
        let (offset, len, why) = (part.offset, part.len, shown(part.why.as_bytes()));
        let state = match part.is_kept {
            true => "cannot be read, older entries were kept",
            false => "left out",
        };
        out.line(&format!(
            "{state}: {path}: {len} bytes from byte {offset} on: {why}"
        ))?;
    }
    Ok(())
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
            "bad": bad_json(&report.bad),
            "containers_left_out": report.n_left_out,
            "left_out": left_out,
            "unreadable": cut_json(&report.cut),
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
        tell_bad(&report.bad, env.out)?;
        tell_cut(&report.cut, env.out)?;
    }
    if report.n_left_out == 0 && report.cut.is_empty() && report.n_bad == 0 {
        return Ok(());
    }
    let (n, n_cut, n_bad) = (report.n_left_out, report.cut.len(), report.n_bad);
    let lost = [
        (n > 0).then(|| format!("the blocks of {n} containers were not found")),
        (n_cut > 0).then(|| format!("a part of {n_cut} containers cannot be read")),
        (n_bad > 0).then(|| format!("{n_bad} blocks are damaged")),
    ];
    let lost: Vec<String> = lost.into_iter().flatten().collect();
    let what = format!("{}: add or import them again", lost.join(", "));
    Err(Error::new(ErrorKind::Partial, what))
}
