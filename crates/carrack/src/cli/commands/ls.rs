//! `carrack ls`.

use std::sync::atomic::Ordering;

use carrack_formats::unixfs::list::{Item, entries};
use carrack_formats::{Cid, cid};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::json;

use crate::cli::Env;
use crate::cli::args::LsArgs;
use crate::cli::output::{bytes, shown};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::store::catalog::RootKind;

/// Shards that may wait to be listed: all of the widest level and a few above.
const SHARDS_MAX: usize = 1 << 20;

/// Lists the roots, or a directory's entries.
///
/// # Errors
/// `Invalid` for what is no directory; those of reading.
pub fn run(args: &LsArgs, env: &mut Env<'_>) -> Result<()> {
    match &args.target {
        None => roots(env),
        Some(target) => {
            let (_, resolved) = super::resolve(target, env)?;
            directory(env, resolved.terminus)
        }
    }
}

fn roots(env: &mut Env<'_>) -> Result<()> {
    for root in env.blocks.store().catalog().roots()? {
        let kind = match root.kind {
            RootKind::Add => "add",
            RootKind::Import => "import",
        };
        let path = String::from_utf8_lossy(&root.path).into_owned();
        if env.out.json {
            env.out.object(&json!({
                "cid": root.cid.to_string(),
                "path": path,
                "bytes": root.bytes,
                "blocks": root.n_blocks,
                "files": root.n_files,
                "kind": kind,
                "created": root.created_unix,
            }))?;
        } else {
            let (len, path) = (bytes(root.bytes), shown(&root.path));
            env.out
                .line(&format!("{}  {len:>10}  {kind:<6}  {path}", root.cid))?;
        }
    }
    Ok(())
}

/// Entries come in the order of the blocks: by name in a plain directory, by hash in a sharded one.
fn directory(env: &mut Env<'_>, root: Cid) -> Result<()> {
    let not_a_directory = || {
        Error::new(
            ErrorKind::Invalid,
            format!("{root} is not a directory: see carrack cat"),
        )
    };
    if root.codec() != cid::DAG_PB {
        return Err(not_a_directory());
    }
    let mut pending = vec![root];
    while let Some(cid) = pending.pop() {
        if env.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "interrupted"));
        }
        let block = env.blocks.get_blocking(&cid)?;
        let malformed = || format!("{cid} is not a directory");
        let first_shard = pending.len();
        for item in entries(&block).context(ErrorKind::Invalid, malformed)? {
            match item.context(ErrorKind::Invalid, malformed)? {
                Item::Shard(cid) => pending.push(cid),
                Item::Entry { name, cid, tsize } => print(env, name, &cid, tsize)?,
            }
        }
        if pending.len() > SHARDS_MAX {
            return Err(Error::new(
                ErrorKind::Limit,
                "the directory has too many shards",
            ));
        }
        if let Some(shards) = pending.get_mut(first_shard..) {
            shards.reverse();
        }
    }
    Ok(())
}

fn print(env: &mut Env<'_>, name: &[u8], cid: &Cid, tsize: Option<u64>) -> Result<()> {
    if env.out.json {
        // A name need not be UTF-8: as a segment of a URL it can be written all the same.
        let segment = percent_encode(name, NON_ALPHANUMERIC).to_string();
        let name = String::from_utf8_lossy(name);
        return env.out.object(&json!({
            "name": name, "segment": segment, "cid": cid.to_string(), "tsize": tsize,
        }));
    }
    env.out.line(&format!(
        "{cid}  {:>10}  {}",
        tsize.map_or_else(String::new, bytes),
        shown(name)
    ))
}
