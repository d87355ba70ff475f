//! `carrack verify`.
//!
//! In       a root, or nothing: all roots, then every other block that the index has.
//! Out      a line for each copy that is bad, and a count of blocks: each counts once, however
//!          often it is met and however many copies it has. A block is bad if no copy is sound. Of
//!          a root the bad copies of sound blocks are told by file, as the root is whole.
//! Limits   [`FILES_MAX`] such files are named; one bit a record of the index; [`BATCH_LEN`]
//!          records that no root leads to; [`STRANGERS_MAX`] blocks without a record are
//!          remembered.
//! Not here the index itself (`carrack index verify`).

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{BTreeSet, HashSet};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use carrack_formats::cid::{self, identity_data};
use carrack_formats::walk::{Resolved, Scope, Step, WalkError, WalkLimits, Walker};
use carrack_formats::{Cid, Multihash};
use serde_json::json;

use crate::cli::Env;
use crate::cli::args::VerifyArgs;
use crate::cli::commands::status::{unlisted_json, unlisted_line};
use crate::cli::output::{bytes, is_broken_pipe, shown};
use crate::cli::target;
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::Progress;
use crate::source::local::LocalFile;
use crate::store::block::{Blocks, block_len, not_found};
use crate::store::car_stream::walk_error;
use crate::store::index::{Census, Met};
use crate::store::location::{ContainerId, Location};

/// Blocks verified between two looks at the stop flag.
const CHUNK_BLOCKS: usize = 256;
/// Records of blocks that no root leads to, verified in the order in which they lie.
const BATCH_LEN: usize = 1 << 17;
/// Bytes before a block in which its CID is looked for.
const NAME_LEN: u64 = 160;
/// Blocks without a record in the index that are told and counted once.
const STRANGERS_MAX: usize = 1 << 20;

/// Files that are named for their bad copies of blocks that are sound elsewhere.
const FILES_MAX: usize = 1000;

/// Totals of a run.
struct Totals {
    n_blocks: u64,
    n_bytes: u64,
    /// Blocks without a sound copy.
    n_bad: u64,
    /// Bad copies of blocks that have a sound one.
    n_bad_copies: u64,
    /// How many of them a file has, and what is wrong with the first; of one root alone.
    spared: Option<BTreeMap<ContainerId, (u64, String)>>,
    /// Bytes of the roots, as the catalog tells; more may have to be read.
    expected: Option<u64>,
    /// Roots below which there may be more than is known.
    n_unknown: u64,
    /// Which blocks were verified.
    census: Census,
    strangers: HashSet<Multihash>,
}

/// Reads and hashes every copy of every block: of those below a root, or of all.
///
/// # Errors
/// `Verification` if a block has no sound copy or, unless a root is named, if any copy is bad;
/// `Partial` if all are good and there may
/// be more below a block whose links cannot be read; `NotFound` for what is no root.
pub fn run(args: &VerifyArgs, env: &mut Env<'_>) -> Result<()> {
    let store = env.blocks.store();
    let known = match &args.target {
        Some(text) => store.catalog().roots_of_cid(&target::parse(text)?.root)?,
        None => store.catalog().roots()?,
    };
    let mut expected: BTreeMap<Cid, u64> = BTreeMap::new();
    for root in &known {
        expected.insert(root.cid, root.bytes);
    }
    let mut totals = Totals {
        n_blocks: 0,
        n_bytes: 0,
        n_bad: 0,
        n_bad_copies: 0,
        spared: args.target.is_some().then(BTreeMap::new),
        expected: (!expected.is_empty()).then(|| expected.values().sum()),
        n_unknown: 0,
        census: store.index().census(),
        strangers: HashSet::new(),
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
            check(env, &[root], Why::Promised, &mut totals)?;
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
    if args.target.is_none() {
        below_none(env, &mut totals)?;
    }
    conclude(&totals, failure.filter(|_| args.target.is_some()), env)
}

/// The blocks that the index has and no root leads to, in the order in which they lie.
fn below_none(env: &mut Env<'_>, totals: &mut Totals) -> Result<()> {
    loop {
        let mut batch = totals.census.unmet(BATCH_LEN)?;
        if batch.is_empty() {
            return Ok(());
        }
        let catalog = env.blocks.store().catalog();
        let (mut last, mut failure) = (None, None);
        batch.retain(|(_, location)| {
            let id = location.container;
            let has_row = match last {
                Some((of, has_row)) if of == id => Ok(has_row),
                _ => catalog.has_container(id),
            };
            let has_row = has_row.unwrap_or_else(|error| {
                failure = Some(error);
                false
            });
            last = Some((id, has_row));
            has_row // Without one it was removed.
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        batch.sort_unstable_by_key(|(_, location)| *location);
        for chunk in batch.chunks(CHUNK_BLOCKS) {
            // What a block is called besides its hash is not in the index.
            let cid = |(hash, location): &(Multihash, Location)| {
                let codec = if location.wrapped {
                    cid::DAG_PB
                } else {
                    cid::RAW
                };
                Cid::new_v1(codec, *hash)
            };
            let cids: Vec<Cid> = chunk.iter().map(cid).collect();
            check(env, &cids, Why::Indexed, totals)?;
            if env.stop.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Unavailable, "interrupted"));
            }
        }
    }
}

/// Says what came of it, the worst as an error; `failure`: what kept the only root from being seen.
fn conclude(totals: &Totals, failure: Option<Error>, env: &mut Env<'_>) -> Result<()> {
    let Totals {
        n_blocks,
        n_bytes,
        n_bad,
        n_bad_copies,
        n_unknown,
        ..
    } = *totals;
    tell_spared(totals, env)?;
    let unlisted = env.blocks.store().unlisted()?;
    if env.out.json {
        env.out.object(&json!({
            "blocks": n_blocks, "bytes": n_bytes, "bad": n_bad,
            "bad_copies": n_bad_copies, "unknown": n_unknown, "unlisted": unlisted_json(&unlisted),
        }))?;
    } else {
        let copies = match n_bad_copies {
            0 => String::new(),
            n => format!(", {n} bad copies of others"),
        };
        env.out.note(&format!(
            "{n_blocks} blocks, {}: {n_bad} bad{copies}",
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
    if n_bad_copies > 0 && totals.spared.is_none() {
        let what = format!("{n_bad_copies} copies of sound blocks are not what they were");
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

/// Names the files whose copies are bad while others are sound.
fn tell_spared(totals: &Totals, env: &mut Env<'_>) -> Result<()> {
    for (container, (n, why)) in totals.spared.iter().flatten() {
        let path = env.blocks.container_path(*container)?;
        let path = path.map(|path| shown(path.as_os_str().as_encoded_bytes()));
        if env.out.json {
            env.out
                .object(&json!({ "path": path, "bad_copies": n, "error": why }))?;
            continue;
        }
        let path = path.unwrap_or_default();
        env.out.note(&format!(
            "{n} copies in {path} are not what they were, and others are sound: {why}"
        ));
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
                check(env, &leaves, Why::Promised, totals)?;
                return Err(walk_error(error));
            }
            Ok(Step::Leaf(cid)) => leaves.push(cid),
            Ok(Step::Need { cid, .. }) => {
                check(env, &[cid], Why::Promised, totals)?;
                match env.blocks.get_blocking(&cid) {
                    Ok(block) => {
                        if let Err(error) = walker.provide(&cid, block) {
                            check(env, &leaves, Why::Promised, totals)?;
                            return Err(walk_error(error));
                        }
                    }
                    Err(error) => {
                        env.out.note(&format!("what is below {cid} cannot be told"));
                        check(env, &leaves, Why::Promised, totals)?;
                        return Err(error);
                    }
                }
            }
        }
        if leaves.len() >= CHUNK_BLOCKS {
            check(env, &leaves, Why::Promised, totals)?;
            leaves.clear();
        }
        if env.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "interrupted"));
        }
    }
    check(env, &leaves, Why::Promised, totals)
}

/// Why a block is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// A root promises it.
    Promised,
    /// The index has it; its container may go meanwhile.
    Indexed,
}

/// What is wrong with one copy of a block.
struct Fault {
    cid: Cid,
    /// `None`: there is no copy.
    at: Option<Location>,
    why: String,
    /// Another copy is sound.
    is_spared: bool,
}

/// Verifies those blocks that were not verified before, on all cores, and reports each bad copy.
fn check(env: &mut Env<'_>, cids: &[Cid], why: Why, totals: &mut Totals) -> Result<()> {
    let (census, strangers) = (&mut totals.census, &mut totals.strangers);
    let is_new = |cid: &&Cid| match census.meet(cid.hash()) {
        Met::Now => true,
        Met::Before => false,
        Met::Never => {
            let is_new = !strangers.contains(cid.hash());
            if is_new && strangers.len() < STRANGERS_MAX {
                strangers.insert(*cid.hash());
            }
            is_new
        }
    };
    let cids: Vec<Cid> = cids.iter().filter(is_new).copied().collect();
    let next = AtomicUsize::new(0);
    let faults: Mutex<Vec<Fault>> = Mutex::new(Vec::new());
    let (blocks, n_bytes) = (env.blocks, AtomicUsize::new(0));
    let work = || {
        while let Some(cid) = cids.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = copies(blocks, cid, why, &n_bytes);
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
    let mut last = None;
    for mut fault in faults.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let hash = *fault.cid.hash();
        if fault.is_spared {
            totals.n_bad_copies += 1;
        } else if last.replace(hash) != Some(hash) {
            totals.n_bad += 1; // The copies of a block follow each other.
        }
        if let (true, Some(at), Some(files)) = (fault.is_spared, fault.at, &mut totals.spared) {
            let has_room = files.len() < FILES_MAX;
            match files.entry(at.container) {
                Entry::Occupied(mut file) => file.get_mut().0 += 1,
                Entry::Vacant(file) if has_room => drop(file.insert((1, fault.why))),
                Entry::Vacant(_) => {}
            }
            continue;
        }
        if let (Why::Indexed, Some(at)) = (why, fault.at) {
            fault.cid = named_at(env, &fault.cid, at).unwrap_or(fault.cid);
        }
        report(env, &fault)?;
    }
    Ok(())
}

/// What is wrong with the copies of a block, or that there is none.
fn copies(blocks: &Blocks, cid: &Cid, why: Why, n_bytes: &AtomicUsize) -> Vec<Fault> {
    let fault = |at, why| Fault {
        cid: *cid,
        at,
        why,
        is_spared: false,
    };
    let locations = match blocks.locate(cid.hash()) {
        Ok(locations) => locations,
        Err(error) => return vec![fault(None, error.chain())],
    };
    let (mut len, mut is_sound, mut faults) = (None, false, Vec::new());
    for location in locations {
        match blocks.check(cid, location) {
            Ok(false) => continue, // Of a container that was removed.
            Ok(true) => is_sound = true,
            Err(error) => faults.push(fault(Some(location), error.chain())),
        }
        len = Some(block_len(location));
    }
    n_bytes.fetch_add(len.unwrap_or(0), Ordering::Relaxed);
    if len.is_none() && why == Why::Promised {
        faults.push(fault(None, "is not here".to_owned()));
    }
    faults
        .iter_mut()
        .for_each(|fault| fault.is_spared = is_sound);
    faults
}

/// What a pack or CAR of this machine calls the block at a place: its CID stands before it.
fn named_at(env: &Env<'_>, cid: &Cid, at: Location) -> Option<Cid> {
    let path = env.blocks.container_path(at.container).ok()??;
    let mut head = vec![0; at.offset.min(NAME_LEN) as usize];
    let file = LocalFile::open_own(&path).ok()?; // It may be anything by now.
    let start = at.offset - head.len() as u64;
    file.read_exact_at(&mut head, start).ok()?;
    let before = head.len().checked_sub(cid.hash().to_bytes().len())?;
    let named = |n: usize| {
        let named = cid::parse_bytes(head.get(before.checked_sub(n)?..)?).ok()?;
        (named.hash() == cid.hash()).then_some(named)
    };
    // Version 1 has at least two bytes before the multihash, version 0 has none.
    (2..=10).chain([0]).find_map(named)
}

fn report(env: &mut Env<'_>, fault: &Fault) -> Result<()> {
    let Fault { cid, at, why, .. } = fault;
    let location = *at;
    let path = match location {
        Some(location) => env.blocks.container_path(location.container)?,
        None => None,
    };
    let path = path.map(|path| shown(path.as_os_str().as_encoded_bytes()));
    let (offset, len) = location.map_or((0, 0), |at| (at.offset, u64::from(at.len)));
    if env.out.json {
        return env.out.object(&json!({
            "cid": cid.to_string(), "path": path, "offset": offset, "len": len, "error": why,
            "sound_copy": fault.is_spared,
        }));
    }
    let bad = if fault.is_spared { "bad copy" } else { "bad" };
    match path {
        Some(path) => {
            let end = offset + len;
            let place = format!("{path} bytes {offset}..{end}");
            env.out.line(&format!("{bad}: {cid}  {place}: {why}"))
        }
        None => env.out.line(&format!("{bad}: {cid}  {why}")),
    }
}
