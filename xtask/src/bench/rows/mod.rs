//! The rows of the table, one function each.
//!
//! In       the programs, and data made once.
//! Out      lines with ratios and targets.
//! Not here how a figure is taken (`process`, `load`).

pub(super) mod bitswap;
pub(super) mod blocks;
pub(super) mod cars;
pub(super) mod ingest;
pub(super) mod own;
pub(super) mod s3;
pub(super) mod versus;

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Bench, load};
use crate::shell::Result;

/// Adds to a store; the root.
fn added(bench: &Bench, store: &str, options: &[&str], path: &Path) -> Result<String> {
    let args = [&["add", "-Q"], options].concat();
    let run = bench.measure(bench.carrack(store, &args, Some(path)))?;
    Ok(run.stdout.trim().to_owned())
}

/// Adds to a fresh repository, copying as kubo does by default; the root.
fn stored_in_kubo(bench: &Bench, options: &[&str], path: &Path) -> Result<String> {
    bench.fresh_repo("repo")?;
    let args = [&["add", "-Q", "--offline", "--pin=false"], options].concat();
    let run = bench.measure(bench.ipfs("repo", &args, Some(path)))?;
    crate::shell::run(&mut Command::new("sync"))?;
    Ok(run.stdout.trim().to_owned())
}

fn raw_paths(bench: &Bench, name: &str, cids: &[String]) -> Result<PathBuf> {
    let path = |cid: &String| format!("/ipfs/{cid}?format=raw");
    load::write_paths(&bench.path(name), cids.iter().map(path))
}
