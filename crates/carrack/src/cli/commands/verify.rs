//! `carrack verify`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use carrack_formats::Cid;
use carrack_formats::cid::identity_data;
use carrack_formats::walk::{Resolved, Scope, Step, WalkError, WalkLimits, Walker};
use serde_json::json;

use crate::cli::Env;
use crate::cli::args::VerifyArgs;
use crate::cli::commands::status::{unlisted_json, unlisted_line};
use crate::cli::output::{bytes, is_broken_pipe, shown};
use crate::cli::target;
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::Progress;
use crate::store::block::{Blocks, block_len, not_found};
use crate::store::car_stream::walk_error;
use crate::store::location::Location;

/// Blocks verified between two looks at the stop flag.
const CHUNK_BLOCKS: usize = 256;

/// Totals of a run.
#[derive(Default)]
struct Totals {
    n_blocks: u64,
    n_bytes: u64,
    n_bad: u64,
    /// Bytes of the roots, as the catalog tells; more may have to be read.
    expected: Option<u64>,
    /// Roots below which there may be more than is known.
    n_unknown: u64,
}

/// Reads and hashes every copy of every block below the roots.
///
/// # Errors
/// `Verification` if any copy is bad or a block is missing; `Partial` if all are good and there may
/// be more below a block whose links cannot be read; `NotFound` for what is no root.
pub fn run(args: &VerifyArgs, env: &mut Env<'_>) -> Result<()> {
    let catalog = env.blocks.store().catalog();
    let known = match &args.target {
        Some(text) => catalog.roots_of_cid(&target::parse(text)?.root)?,
        None => catalog.roots()?,
    };
    drop(catalog);
    let mut expected: BTreeMap<Cid, u64> = BTreeMap::new();
    for root in &known {
        expected.insert(root.cid, root.bytes);
    }
    let mut totals = Totals {
        expected: (!expected.is_empty()).then(|| expected.values().sum()),
        ..Totals::default()
    };
    let roots: BTreeSet<Cid> = match &args.target {
        Some(text) => BTreeSet::from([target::parse(text)?.root]),
        None => expected.into_keys().collect(),
    };
    let mut failure = None;
    for root in roots {
        let is_here = identity_data(&root).is_some() || !env.blocks.locate(root.hash())?.is_empty();
        if !is_here && args.target.is_some() {
            return Err(not_found(&root));
        }
        if !is_here {
            // A CAR need not hold its root; the other roots are looked at all the same.
            check(env, &[root], &mut totals)?;
            continue;
        }
        let n_bad = totals.n_bad;
        let Err(error) = below(env, root, &mut totals) else {
            continue;
        };
        if env.stop.load(Ordering::Relaxed) || is_broken_pipe(&error) {
            return Err(error);
        }
        if totals.n_bad > n_bad {
            continue; // It was told.
        }
        // The other roots are looked at all the same.
        totals.n_unknown += 1;
        if args.target.is_none() {
            env.out.note(&format!("{root}: {}", error.chain()));
        }
        failure = Some(error);
    }
    conclude(&totals, failure.filter(|_| args.target.is_some()), env)
}

/// Says what came of it, the worst as an error; `failure`: what kept the only root from being seen.
fn conclude(totals: &Totals, failure: Option<Error>, env: &mut Env<'_>) -> Result<()> {
    let Totals {
        n_blocks,
        n_bytes,
        n_bad,
        expected: _,
        n_unknown,
    } = *totals;
    let unlisted = env.blocks.store().unlisted()?;
    if env.out.json {
        env.out.object(&json!({
            "blocks": n_blocks, "bytes": n_bytes, "bad": n_bad, "unknown": n_unknown,
            "unlisted": unlisted_json(&unlisted),
        }))?;
    } else {
        env.out.note(&format!(
            "{n_blocks} blocks, {}: {n_bad} bad",
            bytes(n_bytes)
        ));
        for file in &unlisted {
            let line = unlisted_line(file);
            env.out
                .note(&format!("not in the catalog, and not verified: {line}"));
        }
    }
    if n_bad > 0 {
        let what = format!("{n_bad} blocks are not what they were");
        return Err(Error::new(ErrorKind::Verification, what));
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    if n_unknown > 0 {
        let what = format!("all that is below {n_unknown} roots cannot be told");
        return Err(Error::new(ErrorKind::Partial, what));
    }
    Ok(())
}

fn below(env: &mut Env<'_>, root: Cid, totals: &mut Totals) -> Result<()> {
    let resolved = Resolved::root(root);
    let mut walker = Walker::new(&resolved, Scope::All, None, false, WalkLimits::default());
    let mut leaves = Vec::new();
    loop {
        match walker.next() {
            Ok(Step::End) => break,
            Err(error @ WalkError::LinksUnknown { .. }) => {
                totals.n_unknown += 1;
                env.out.note(&format!("{root}: {error}"));
                break;
            }
            Err(error) => {
                check(env, &leaves, totals)?;
                return Err(walk_error(error));
            }
            Ok(Step::Leaf(cid)) => leaves.push(cid),
            Ok(Step::Need { cid, .. }) => {
                check(env, &[cid], totals)?;
                match env.blocks.get_blocking(&cid) {
                    Ok(block) => {
                        if let Err(error) = walker.provide(&cid, block) {
                            check(env, &leaves, totals)?;
                            return Err(walk_error(error));
                        }
                    }
                    Err(error) => {
                        env.out.note(&format!("what is below {cid} cannot be told"));
                        check(env, &leaves, totals)?;
                        return Err(error);
                    }
                }
            }
        }
        if leaves.len() >= CHUNK_BLOCKS {
            check(env, &leaves, totals)?;
            leaves.clear();
        }
        if env.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "interrupted"));
        }
    }
    check(env, &leaves, totals)
}

/// What is wrong with one copy of a block; no location: there is none.
type Fault = (Cid, Option<Location>, String);

/// Verifies blocks on all cores and reports each bad copy.
fn check(env: &mut Env<'_>, cids: &[Cid], totals: &mut Totals) -> Result<()> {
    let next = AtomicUsize::new(0);
    let faults: Mutex<Vec<Fault>> = Mutex::new(Vec::new());
    let (blocks, n_bytes) = (env.blocks, AtomicUsize::new(0));
    let work = || {
        while let Some(cid) = cids.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = copies(blocks, cid, &n_bytes);
            faults
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(found);
        }
    };
    std::thread::scope(|scope| {
        (1..super::n_threads().min(cids.len())).for_each(|_| {
            // With fewer it takes longer.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        });
        work();
    });
    totals.n_blocks += cids.len() as u64;
    totals.n_bytes += n_bytes.into_inner() as u64;
    env.out.update("verified", totals.n_bytes, totals.expected);
    for (cid, location, why) in faults.into_inner().unwrap_or_else(PoisonError::into_inner) {
        totals.n_bad += 1;
        report(env, &cid, location, &why)?;
    }
    Ok(())
}

/// What is wrong with the copies of a block, or that there is none.
fn copies(blocks: &Blocks, cid: &Cid, n_bytes: &AtomicUsize) -> Vec<Fault> {
    let locations = match blocks.locate(cid.hash()) {
        Ok(locations) => locations,
        Err(error) => return vec![(*cid, None, error.chain())],
    };
    let (mut n_copies, mut faults) = (0, Vec::new());
    for location in locations {
        match blocks.check(cid, location) {
            Ok(false) => continue, // Of a container that was removed.
            Ok(true) => {}
            Err(error) => faults.push((*cid, Some(location), error.chain())),
        }
        n_copies += 1;
        n_bytes.fetch_add(block_len(location), Ordering::Relaxed);
    }
    if n_copies == 0 {
        faults.push((*cid, None, "is not here".to_owned()));
    }
    faults
}

fn report(env: &mut Env<'_>, cid: &Cid, location: Option<Location>, why: &str) -> Result<()> {
    let path = match location {
        Some(location) => env.blocks.container_path(location.container)?,
        None => None,
    };
    let path = path.map(|path| shown(path.as_os_str().as_encoded_bytes()));
    let (offset, len) = location.map_or((0, 0), |at| (at.offset, u64::from(at.len)));
    if env.out.json {
        return env.out.object(&json!({
            "cid": cid.to_string(), "path": path, "offset": offset, "len": len, "error": why,
        }));
    }
    match path {
        Some(path) => {
            let end = offset + len;
            env.out
                .line(&format!("bad: {cid}  {path} bytes {offset}..{end}: {why}"))
        }
        None => env.out.line(&format!("bad: {cid}  {why}")),
    }
}
