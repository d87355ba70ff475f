//! Reading directories: one block in, its entries out.
//!
//! In       the block of a plain directory, or of one shard.
//! Out      [`Entries`]: names with what they name, and the shards below.
//! Limits   memory is constant; names are as long as the block has them.
//! Not here loading the shards below, whose order and depth `walk::Walker` with scope `Entity`
//!          sees to; making names safe for a terminal or a file system.

use crate::Cid;
use crate::cid::{self, CidError};
use crate::dag::pb::{PbError, PbLinks, PbNode};
use crate::unixfs::hamt::{HamtError, Shard};
use crate::unixfs::node::{Kind, NodeError, UnixFs};

/// What a directory block holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item<'a> {
    /// An entry.
    Entry {
        /// Its name, of any bytes: names in blocks are whatever their author liked.
        name: &'a [u8],
        /// What it names.
        cid: Cid,
        /// Bytes of all blocks below it, as claimed.
        tsize: Option<u64>,
    },
    /// More entries are in this shard.
    Shard(Cid),
}

/// Why a block is no directory that can be listed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// Not dag-pb.
    #[error("block is not dag-pb")]
    Block(#[from] PbError),
    /// Not UnixFS.
    #[error("block is not UnixFS")]
    UnixFs(#[from] NodeError),
    /// A file or something else.
    #[error("block is a {0:?}, not a directory")]
    NotDirectory(Kind),
    /// A shard that is not sound.
    #[error("directory shard is not sound")]
    Hamt(#[from] HamtError),
    /// An entry without a CID.
    #[error("entry {index} names no cid")]
    Link {
        /// Number of the link.
        index: usize,
        /// What is wrong with it.
        source: CidError,
    },
}

/// The entries of one block in its order.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    links: PbLinks<'a>,
    /// Bytes of a link's name that are its slot; 0 in a plain directory.
    prefix_len: usize,
    is_shard: bool,
    index: usize,
}

/// Reads a directory block.
///
/// # Errors
/// [`ListError`]; malformed links show when they are come to.
pub fn entries(block: &[u8]) -> Result<Entries<'_>, ListError> {
    let node = PbNode::parse(block)?;
    let unixfs = UnixFs::parse_node(&node)?;
    let (prefix_len, is_shard) = match unixfs.kind {
        Kind::Directory => (0, false),
        Kind::HamtShard => (Shard::parse(&node, &unixfs)?.prefix_len(), true),
        kind => return Err(ListError::NotDirectory(kind)),
    };
    Ok(Entries {
        links: node.links(),
        prefix_len,
        is_shard,
        index: 0,
    })
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Item<'a>, ListError>;

    fn next(&mut self) -> Option<Self::Item> {
        let link = self.links.next()?;
        let index = self.index;
        self.index += 1;
        let Some(name) = link.name.get(self.prefix_len..) else {
            return Some(Err(HamtError::PrefixInvalid { index }.into()));
        };
        Some(match cid::parse_bytes(link.cid) {
            Err(source) => Err(ListError::Link { index, source }),
            Ok(cid) if self.is_shard && name.is_empty() => Ok(Item::Shard(cid)),
            Ok(cid) => Ok(Item::Entry {
                name,
                cid,
                tsize: link.tsize,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unixfs::dir::{Entry, build};
    use crate::unixfs::profile::UNIXFS_V1_2025;
    use std::collections::{BTreeSet, HashMap};

    #[test]
    fn every_entry_is_listed_once_whether_sharded_or_not() {
        let leaf = cid::from_sha256(::cid::Version::V1, cid::RAW, &[1; 32]);
        for n_entries in [0, 1, 100, 10_000] {
            let all: Vec<Entry> = (0..n_entries)
                .map(|n| Entry {
                    name: format!("{n:04}").into_bytes(),
                    cid: leaf,
                    tsize: 7,
                })
                .collect();
            let mut blocks = HashMap::new();
            let root = build(all.clone(), &UNIXFS_V1_2025, &mut |cid, block| {
                blocks.insert(cid, block);
            });
            let mut open = vec![root.unwrap().cid];
            let mut names = BTreeSet::new();
            while let Some(cid) = open.pop() {
                for item in entries(&blocks[&cid]).unwrap() {
                    match item.unwrap() {
                        Item::Shard(cid) => open.push(cid),
                        Item::Entry { name, cid, tsize } => {
                            assert_eq!((cid, tsize), (leaf, Some(7)));
                            assert!(names.insert(name.to_vec()));
                        }
                    }
                }
            }
            assert!(
                names
                    .into_iter()
                    .eq(all.into_iter().map(|entry| entry.name))
            );
        }
    }

    #[test]
    fn what_is_no_directory_is_not_listed() {
        let error = |block| entries(block).unwrap_err();
        assert_eq!(error(&[0x0a, 2, 8, 2]), ListError::NotDirectory(Kind::File));
        assert_eq!(error(&[]), ListError::UnixFs(NodeError::NoData));
        assert!(matches!(error(&[0xff]), ListError::Block(_)));
        assert!(matches!(error(&[0x0a, 2, 8, 5]), ListError::Hamt(_)));
        let bad_link = [0x12, 3, 0x0a, 1, 9, 0x0a, 2, 8, 1];
        let item = entries(&bad_link).unwrap().next().unwrap();
        assert!(matches!(item, Err(ListError::Link { index: 0, .. })));
    }
}
