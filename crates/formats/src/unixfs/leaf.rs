//! Wrapped leaves: file bytes inside a dag-pb block.
//!
//! In       how many file bytes the leaf holds.
//! Out      the bytes before and behind them, so that the file bytes need not be moved.
//! Limits   the prefix is at most 22 bytes, the suffix 11.
//! Not here raw leaves, which are the file bytes and nothing else.
//!
//! The form is Go's: type file, not raw, and no data field at all when the leaf is empty.

use crate::dag::pb::{put_varint, varint_len};
use crate::unixfs::node;

/// What stands before and behind the file bytes: `(prefix, suffix)`.
#[must_use]
pub fn frame(data_len: usize) -> (Vec<u8>, Vec<u8>) {
    let (before, behind) = node::wrapped(data_len);
    let mut prefix = Vec::with_capacity(24);
    prefix.push(0x0a);
    put_varint(&mut prefix, (before.len() + data_len + behind.len()) as u64);
    prefix.extend_from_slice(&before);
    (prefix, behind)
}

/// Length of the whole block, in bytes.
#[must_use]
pub fn block_len(data_len: usize) -> usize {
    let number = varint_len(data_len as u64);
    let data = if data_len == 0 {
        0
    } else {
        1 + number + data_len
    };
    let message = 2 + data + 1 + number;
    1 + varint_len(message as u64) + message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dag::pb::PbNode;
    use crate::unixfs::node::{Kind, UnixFs};

    #[test]
    fn a_framed_leaf_is_a_file_node_with_its_bytes() {
        for len in [0, 1, 5, 127, 128, 200, 16_383, 16_384, 262_144, 1_048_576] {
            let (mut block, suffix) = frame(len);
            block.resize(block.len() + len, 7);
            block.extend_from_slice(&suffix);
            assert_eq!(block.len(), block_len(len), "{len}");
            let node = PbNode::parse(&block).unwrap();
            let unixfs = UnixFs::parse(node.data.unwrap()).unwrap();
            assert_eq!(
                (unixfs.kind, unixfs.filesize),
                (Kind::File, Some(len as u64))
            );
            assert_eq!(unixfs.data.map_or(0, <[u8]>::len), len);
        }
    }

    #[test]
    fn an_empty_leaf_has_no_data_field() {
        assert_eq!(frame(0), (vec![0x0a, 4, 8, 2], vec![0x18, 0]));
    }
}
