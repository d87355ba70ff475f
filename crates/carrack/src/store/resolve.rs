//! From a CID and a path to where the path ends, with the blocks that prove it.
//!
//! In       a root CID and path segments.
//! Out      the last block's CID and the blocks on the way; for a path that is not there, the last
//!          CID that resolved.
//! Limits   those of `formats::walk::resolve`: segments, HAMT depth.
//! Not here HTTP (`gateway`), directory listings (`cli::commands::ls`).

use carrack_formats::Cid;
use carrack_formats::walk::resolve::{ResolveStep, Resolved, Resolver};
use carrack_formats::walk::{WalkError, WalkLimits};

use crate::error::{Error, ErrorKind, Result};
use crate::store::block::Blocks;

/// Follows `segments` from `root`. Reads one block a directory, more in a sharded one.
///
/// # Errors
/// `NotFound` if the root or the path is not here; `Changed`, `Corrupt`, `Unavailable` from reading;
/// `Invalid` if a block on the way is not what its codec says.
pub fn resolve_blocking(
    blocks: &Blocks,
    root: Cid,
    segments: Vec<String>,
    limits: WalkLimits,
) -> Result<Resolved> {
    let mut resolver = Resolver::new(root, segments, limits);
    loop {
        match resolver.next() {
            ResolveStep::Done(resolved) => return Ok(resolved),
            ResolveStep::Need(cid) => {
                let block = blocks.get_blocking(&cid)?;
                resolver.provide(&cid, &block).map_err(path_error)?;
            }
        }
    }
}

fn path_error(error: WalkError) -> Error {
    if error.is_path_not_found() {
        return Error::new(ErrorKind::NotFound, error.to_string());
    }
    let kind = if error.is_limit() { ErrorKind::Limit } else { ErrorKind::Invalid };
    Error::with(kind, "the path cannot be followed", error)
}
