//! What one block is to someone who reads files.
//!
//! In       a verified block and its CID.
//! Out      [`Content`]: file bytes, a directory, the target of a symbolic link.
//! Limits   none of its own; nothing is copied.
//! Not here putting the blocks of a file in order (`walk::Walker::read_file`), the entries of a
//!          directory (`unixfs::list`).

use bytes::Bytes;

use crate::Cid;
use crate::cid::{DAG_PB, RAW};
use crate::dag::DagError;
use crate::dag::pb::PbNode;
use crate::unixfs::node::{Kind, NodeError, UnixFs};

/// What a block is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Content {
    /// A file or a part of one.
    File {
        /// Bytes of the file in this block; those below it follow.
        data: Bytes,
        /// Bytes of the file in and below this block, by its own account.
        file_len: u64,
    },
    /// A directory in one block.
    Directory,
    /// A directory over several blocks, or a part of one.
    Shard,
    /// A symbolic link.
    Symlink {
        /// Where it leads.
        target: Bytes,
    },
    /// No part of a file system: another codec, or dag-pb without UnixFS.
    Other,
}

/// Why a block of a file system cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContentError {
    /// Not dag-pb.
    #[error("block is not dag-pb")]
    Block(#[from] DagError),
    /// Not UnixFS.
    #[error("block is not UnixFS")]
    UnixFs(#[from] NodeError),
}

/// Says what `block` is. Data is a slice of the block.
///
/// # Errors
/// [`ContentError`]: it should be UnixFS and is malformed.
pub fn content(cid: &Cid, block: &Bytes) -> Result<Content, ContentError> {
    match cid.codec() {
        RAW => Ok(Content::File {
            data: block.clone(),
            file_len: block.len() as u64,
        }),
        DAG_PB => {
            let node = PbNode::parse(block).map_err(DagError::from)?;
            let unixfs = match UnixFs::parse_node(&node) {
                Ok(unixfs) => unixfs,
                Err(NodeError::NoData) => return Ok(Content::Other),
                Err(error) => return Err(error.into()),
            };
            let data = unixfs
                .data
                .map(|data| block.slice_ref(data))
                .unwrap_or_default();
            Ok(match unixfs.kind {
                Kind::File | Kind::Raw => Content::File {
                    data,
                    file_len: unixfs.file_len()?,
                },
                Kind::Directory => Content::Directory,
                Kind::HamtShard => Content::Shard,
                Kind::Symlink => Content::Symlink { target: data },
                Kind::Metadata => Content::Other,
            })
        }
        _ => Ok(Content::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unixfs::dir;
    use crate::unixfs::leaf;
    use crate::unixfs::profile::UNIXFS_V1_2025;

    fn of(codec: u64, block: &[u8]) -> Result<Content, ContentError> {
        let cid = crate::cid::from_sha256(::cid::Version::V1, codec, &[0; 32]);
        content(&cid, &Bytes::copy_from_slice(block))
    }

    #[test]
    fn blocks_are_told_apart() {
        let file = Content::File {
            data: Bytes::from_static(b"abc"),
            file_len: 3,
        };
        let (prefix, suffix) = leaf::frame(3);
        assert_eq!(of(RAW, b"abc"), Ok(file.clone()));
        assert_eq!(
            of(DAG_PB, &[&prefix[..], b"abc", &suffix].concat()),
            Ok(file)
        );
        assert_eq!(of(DAG_PB, &[0x0a, 2, 8, 1]), Ok(Content::Directory));
        assert_eq!(of(DAG_PB, &[0x0a, 2, 8, 5]), Ok(Content::Shard));
        let (_, block) = dir::symlink(b"../x", &UNIXFS_V1_2025);
        let target = Bytes::from_static(b"../x");
        assert_eq!(of(DAG_PB, &block), Ok(Content::Symlink { target }));
        assert_eq!(of(DAG_PB, &[]), Ok(Content::Other));
        assert_eq!(of(0x71, &[0xa0]), Ok(Content::Other));
        assert!(of(DAG_PB, &[0x0a, 2, 8, 9]).is_err());
        assert!(of(DAG_PB, &[0xff]).is_err());
    }
}
