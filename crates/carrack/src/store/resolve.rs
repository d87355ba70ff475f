//! From a CID and a path to where the path ends, with the blocks that prove it.
//!
//! In       a root CID and path segments.
//! Out      the last block's CID and the blocks on the way; for a path that is not there, the last
//!          CID that resolved.
//! Limits   those of `formats::walk::resolve`: segments, HAMT depth.
//! Not here HTTP (`gateway`), directory listings (`cli::commands::ls`).

use carrack_formats::Cid;
use carrack_formats::walk::{ResolveLimits, ResolveStep, Resolved, Resolver, WalkError};

use crate::error::{Error, ErrorKind, Result};
use crate::store::block::Blocks;

/// Follows `segments` from `root`. Reads one block a directory, more in a sharded one.
///
/// # Errors
/// `NotFound` if the root or the path is not here; `Changed`, `Corrupt`, `Unavailable` from
/// reading; `Invalid` if a block on the way is not what its codec says.
pub fn resolve_blocking(
    blocks: &Blocks,
    root: Cid,
    segments: Vec<Vec<u8>>,
    limits: ResolveLimits,
) -> Result<Resolved> {
    let mut resolver = Resolver::new(root, segments, limits).map_err(path_error)?;
    loop {
        match resolver.next().map_err(path_error)? {
            ResolveStep::Done(resolved) => return Ok(resolved),
            ResolveStep::Need(cid) => {
                let block = blocks.get_blocking(&cid)?;
                resolver.provide(&cid, &block).map_err(path_error)?;
            }
        }
    }
}

/// The same without blocking: what lies elsewhere is waited for.
///
/// # Errors
/// As [`resolve_blocking`], and `Unreachable`.
pub async fn resolve(
    blocks: &Blocks,
    root: Cid,
    segments: Vec<Vec<u8>>,
    limits: ResolveLimits,
) -> Result<Resolved> {
    let mut resolver = Resolver::new(root, segments, limits).map_err(path_error)?;
    loop {
        match resolver.next().map_err(path_error)? {
            ResolveStep::Done(resolved) => return Ok(resolved),
            ResolveStep::Need(cid) => {
                let block = blocks.get(&cid).await?;
                resolver.provide(&cid, &block).map_err(path_error)?;
            }
        }
    }
}

fn path_error(error: WalkError) -> Error {
    match error {
        WalkError::NotFound { .. } => Error::new(ErrorKind::NotFound, error.to_string()),
        error => Error::with(ErrorKind::Invalid, "the path cannot be followed", error),
    }
}
