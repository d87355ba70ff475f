//! Directories: entries in, one block or a tree of shards out.
//!
//! In       the entries of one directory, in any order.
//! Out      its blocks, given to the caller's sink, children before parents; the root.
//! Limits   a block is at most [`BLOCK_LEN_MAX`]; names are not empty and have no slash.
//! Not here reading directories (`unixfs::list`), the tree of shards itself (`unixfs::hamt`).

use crate::Cid;
use crate::cid::{DAG_PB, from_sha256};
use crate::dag::pb::{link_len, put_data, put_link};
use crate::unixfs::build::Built;
use crate::unixfs::hamt;
use crate::unixfs::node;
use crate::unixfs::profile::{Profile, ShardRule};
use crate::verify;

/// Longest directory block written, in bytes: what peers accept.
pub const BLOCK_LEN_MAX: usize = 2 * 1024 * 1024;

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name, of any bytes but `/`.
    pub name: Vec<u8>,
    /// What it names.
    pub cid: Cid,
    /// Bytes of all blocks below: [`Built::dag_len`].
    pub tsize: u64,
}

/// Why entries do not make a directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirError {
    /// An empty name, `.`, `..`, or one with a slash: no path would reach it.
    #[error("{:?} cannot be the name of an entry", String::from_utf8_lossy(.0))]
    NameInvalid(Vec<u8>),
    /// A name is there twice.
    #[error("two entries are named {:?}", String::from_utf8_lossy(.0))]
    NameTwice(Vec<u8>),
    /// So many names have the same hash that no shard tells them apart.
    #[error("names with the same hash: {:?} and another", String::from_utf8_lossy(.0))]
    Collision(Vec<u8>),
    /// The names are so long that a block would be too.
    #[error("directory block of {0} bytes is above the limit of {BLOCK_LEN_MAX}")]
    BlockTooLong(usize),
}

/// Builds a directory, sharded or not as `profile` says.
///
/// # Errors
/// [`DirError`]. `sink` may have been given blocks before; they are harmless.
pub fn build(
    mut entries: Vec<Entry>,
    profile: &Profile,
    sink: &mut impl FnMut(Cid, Vec<u8>),
) -> Result<Built, DirError> {
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let mut before: Option<&Entry> = None;
    for entry in &entries {
        let name = entry.name.as_slice();
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
            return Err(DirError::NameInvalid(entry.name.clone()));
        }
        if before.is_some_and(|before| before.name == entry.name) {
            return Err(DirError::NameTwice(entry.name.clone()));
        }
        before = Some(entry);
    }
    if needs_shards(&entries, profile.shard_rule) {
        return hamt::build(&entries, profile, sink);
    }
    let mut block = Vec::with_capacity(plain_len(&entries));
    let mut dag_len = 0_u64;
    for entry in &entries {
        put_link(&mut block, &entry.cid.to_bytes(), &entry.name, entry.tsize);
        dag_len = dag_len.saturating_add(entry.tsize);
    }
    put_data(&mut block, &node::DIRECTORY);
    emit(block, dag_len, profile, sink)
}

/// Hashes a finished directory block and hands it out. `below` are the bytes of all blocks under
/// it.
pub(crate) fn emit(
    block: Vec<u8>,
    below: u64,
    profile: &Profile,
    sink: &mut impl FnMut(Cid, Vec<u8>),
) -> Result<Built, DirError> {
    if block.len() > BLOCK_LEN_MAX {
        return Err(DirError::BlockTooLong(block.len()));
    }
    let cid = from_sha256(profile.cid_version, DAG_PB, &verify::sha256(&block));
    let dag_len = below.saturating_add(block.len() as u64);
    sink(cid, block);
    Ok(Built {
        cid,
        file_len: 0,
        dag_len,
    })
}

/// Builds a symbolic link: `(what was built, its block)`.
#[must_use]
pub fn symlink(target: &[u8], profile: &Profile) -> (Built, Vec<u8>) {
    let mut block = Vec::new();
    put_data(&mut block, &node::symlink(target));
    let cid = from_sha256(profile.cid_version, DAG_PB, &verify::sha256(&block));
    (
        Built {
            cid,
            file_len: 0,
            dag_len: block.len() as u64,
        },
        block,
    )
}

fn needs_shards(entries: &[Entry], rule: ShardRule) -> bool {
    match rule {
        ShardRule::BlockBytes(limit) => plain_len(entries) as u64 > limit,
        ShardRule::LinkBytes(limit) => {
            let link = |entry: &Entry| entry.name.len() + entry.cid.encoded_len();
            entries.iter().map(link).sum::<usize>() as u64 > limit
        }
    }
}

/// Length of the block if the directory is one.
fn plain_len(entries: &[Entry]) -> usize {
    let link = |entry: &Entry| link_len(entry.cid.encoded_len(), entry.name.len(), entry.tsize);
    entries.iter().map(link).sum::<usize>() + 2 + node::DIRECTORY.len()
}

#[cfg(test)]
mod tests;
