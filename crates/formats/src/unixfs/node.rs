//! UnixFS: what stands in the data field of a dag-pb block.
//!
//! In       the data field of one block, or the values to write.
//! Out      [`UnixFs`], borrowed from the bytes; bytes of a file node, directory, symlink, shard.
//! Limits   memory is constant: block sizes are counted and summed while parsing, and read again
//!          by the one who needs them.
//! Not here links, which stand beside this in the block (`dag::pb`); what a HAMT's bitfield means
//!          (`unixfs::hamt`).
//!
//! | field | number | wire | in |
//! |---|---|---|---|
//! | Type | 1 | varint | all |
//! | Data | 2 | bytes | file bytes, symlink target, shard bitfield |
//! | filesize | 3 | varint | files |
//! | blocksizes | 4 | varint, repeated | files with links |
//! | hashType | 5 | varint | shards |
//! | fanout | 6 | varint | shards |
//! | mode, mtime | 7, 8 | | anything; skipped |
//!
//! Spec: <https://specs.ipfs.tech/unixfs/>

use crate::dag::pb::{
    Fields, PbError, PbNode, Value, packed_varint, put_bytes, put_number, put_varint, varint_len,
};

const TYPE: u32 = 1;
const DATA: u32 = 2;
const FILESIZE: u32 = 3;
const BLOCKSIZES: u32 = 4;
const HASH_TYPE: u32 = 5;
const FANOUT: u32 = 6;

/// What a node is. The numbers are those on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// File bytes, as a leaf: an old form.
    Raw = 0,
    /// A plain directory: the links are its entries.
    Directory = 1,
    /// A file or a part of one.
    File = 2,
    /// A wrapper with a MIME type: an old form.
    Metadata = 3,
    /// A symbolic link: the data is its target.
    Symlink = 4,
    /// One shard of a directory.
    HamtShard = 5,
}

/// Why a data field is not UnixFS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The block has no data field: it is dag-pb, but nothing of a file system.
    #[error("block has no UnixFS data")]
    NoData,
    /// Not a protobuf message of this form.
    #[error("UnixFS data is malformed")]
    Malformed(#[source] PbError),
    /// A type that does not exist.
    #[error("UnixFS type is {0:?}, which does not exist")]
    KindUnknown(Option<u64>),
    /// The block sizes add up to more than 2^64.
    #[error("UnixFS block sizes overflow")]
    SizesOverflow,
}

/// The data field of one block.
#[derive(Debug, Clone, Copy)]
pub struct UnixFs<'a> {
    /// What the node is.
    pub kind: Kind,
    /// The data inside the message.
    pub data: Option<&'a [u8]>,
    /// Bytes of the file below this node, as claimed.
    pub filesize: Option<u64>,
    /// How many block sizes there are; a sound file node has one for each link.
    pub n_blocksizes: usize,
    /// Code of the hash that spreads names over shards.
    pub hash_type: Option<u64>,
    /// Most children of one shard.
    pub fanout: Option<u64>,
    sum: u64,
    message: &'a [u8],
}

impl<'a> UnixFs<'a> {
    /// Reads a data field. Of a field that appears twice the last counts, unknown ones are
    /// skipped: so the protobuf libraries do with which these bytes are read elsewhere.
    ///
    /// # Errors
    /// `KindUnknown`, `Malformed`, `SizesOverflow`. Fields that the kind does not need are not
    /// required.
    pub fn parse(message: &'a [u8]) -> Result<Self, NodeError> {
        let mut kind = None;
        let mut node = Self {
            kind: Kind::Raw,
            data: None,
            filesize: None,
            n_blocksizes: 0,
            hash_type: None,
            fanout: None,
            sum: 0,
            message,
        };
        let mut fields = Fields::new(message);
        while let Some(field) = fields.next().map_err(NodeError::Malformed)? {
            match (field.number, field.value) {
                (TYPE, Value::Varint(value)) => kind = Some(value),
                (DATA, Value::Bytes(bytes)) => node.data = Some(bytes),
                (FILESIZE, Value::Varint(value)) => node.filesize = Some(value),
                (BLOCKSIZES, Value::Varint(size)) => node.add_size(size)?,
                (BLOCKSIZES, Value::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        let (size, len) = packed_varint(packed).map_err(NodeError::Malformed)?;
                        node.add_size(size)?;
                        packed = packed.get(len..).unwrap_or_default();
                    }
                }
                (HASH_TYPE, Value::Varint(value)) => node.hash_type = Some(value),
                (FANOUT, Value::Varint(value)) => node.fanout = Some(value),
                (number @ TYPE..=FANOUT, _) => {
                    let offset = field.offset;
                    return Err(NodeError::Malformed(PbError::FieldUnknown {
                        offset,
                        number,
                    }));
                }
                _ => {}
            }
        }
        node.kind = kind_of(kind).ok_or(NodeError::KindUnknown(kind))?;
        Ok(node)
    }

    /// Reads the data field of a parsed block.
    ///
    /// # Errors
    /// `NoData`, and those of [`parse`](Self::parse).
    pub fn parse_node(node: &PbNode<'a>) -> Result<Self, NodeError> {
        Self::parse(node.data.ok_or(NodeError::NoData)?)
    }

    fn add_size(&mut self, size: u64) -> Result<(), NodeError> {
        self.n_blocksizes += 1;
        self.sum = self.sum.checked_add(size).ok_or(NodeError::SizesOverflow)?;
        Ok(())
    }

    /// Bytes of the file below this node, by its own data and block sizes. The claimed
    /// [`filesize`](Self::filesize) steers nothing.
    ///
    /// # Errors
    /// `SizesOverflow`.
    pub fn file_len(&self) -> Result<u64, NodeError> {
        let data_len = self.data.map_or(0, <[u8]>::len) as u64;
        self.sum
            .checked_add(data_len)
            .ok_or(NodeError::SizesOverflow)
    }

    /// The block sizes, in the order of the links.
    #[must_use]
    pub fn blocksizes(&self) -> BlockSizes<'a> {
        BlockSizes {
            message: self.message,
            cursor: SizeCursor::default(),
        }
    }
}

fn kind_of(value: Option<u64>) -> Option<Kind> {
    Some(match value? {
        0 => Kind::Raw,
        1 => Kind::Directory,
        2 => Kind::File,
        3 => Kind::Metadata,
        4 => Kind::Symlink,
        5 => Kind::HamtShard,
        _ => return None,
    })
}

/// Iterator over the block sizes of a node.
#[derive(Debug, Clone)]
pub struct BlockSizes<'a> {
    message: &'a [u8],
    cursor: SizeCursor,
}

impl Iterator for BlockSizes<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.cursor.next(self.message)
    }
}

/// A place among the block sizes that can be kept without borrowing the message.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SizeCursor {
    pos: usize,
    /// Inside a packed field: where it ends.
    packed_end: usize,
}

impl SizeCursor {
    /// The next size of `message`, which is the one [`UnixFs::parse`] has accepted.
    pub(crate) fn next(&mut self, message: &[u8]) -> Option<u64> {
        loop {
            if self.pos < self.packed_end {
                let packed = message.get(self.pos..self.packed_end)?;
                let (size, len) = packed_varint(packed).ok()?;
                self.pos += len;
                return Some(size);
            }
            let mut fields = Fields::at(message, self.pos);
            let field = fields.next().ok()??;
            match (field.number, field.value) {
                (BLOCKSIZES, Value::Bytes(packed)) => {
                    self.packed_end = fields.pos;
                    self.pos = fields.pos - packed.len();
                }
                (BLOCKSIZES, Value::Varint(size)) => {
                    self.pos = fields.pos;
                    return Some(size);
                }
                _ => self.pos = fields.pos,
            }
        }
    }
}

/// The data field of a plain directory.
pub const DIRECTORY: [u8; 2] = [0x08, Kind::Directory as u8];

/// Starts the data field of a file node: all but the block sizes, which the caller appends with
/// [`put_blocksize`] in the order of the links.
#[must_use]
pub fn file_head(filesize: u64) -> Vec<u8> {
    let mut out = vec![0x08, Kind::File as u8];
    put_number(&mut out, FILESIZE, filesize);
    out
}

/// Appends one block size.
pub fn put_blocksize(out: &mut Vec<u8>, size: u64) {
    put_number(out, BLOCKSIZES, size);
}

/// The data field of a symbolic link to `target`.
#[must_use]
pub fn symlink(target: &[u8]) -> Vec<u8> {
    let mut out = vec![0x08, Kind::Symlink as u8];
    put_bytes(&mut out, DATA, target);
    out
}

/// The data field of a directory shard. `bitfield` comes without leading zeros.
#[must_use]
pub fn shard(bitfield: &[u8], hash_type: u64, fanout: u64) -> Vec<u8> {
    let mut out = vec![0x08, Kind::HamtShard as u8];
    if !bitfield.is_empty() {
        put_bytes(&mut out, DATA, bitfield);
    }
    put_number(&mut out, HASH_TYPE, hash_type);
    put_number(&mut out, FANOUT, fanout);
    out
}

/// What stands before and behind `data_len` bytes of a file in a data field of type file:
/// `(bytes before, bytes behind)`. An empty file has no data at all.
pub(crate) fn wrapped(data_len: usize) -> (Vec<u8>, Vec<u8>) {
    let mut before = vec![0x08, Kind::File as u8];
    if data_len > 0 {
        before.push(((DATA << 3) | 2) as u8);
        put_varint(&mut before, data_len as u64);
    }
    let mut behind = Vec::with_capacity(1 + varint_len(data_len as u64));
    put_number(&mut behind, FILESIZE, data_len as u64);
    (before, behind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_file_node_is_read_back() {
        let mut message = file_head(700);
        for size in [300, 300, 100] {
            put_blocksize(&mut message, size);
        }
        let node = UnixFs::parse(&message).unwrap();
        assert_eq!(
            (node.kind, node.filesize, node.n_blocksizes),
            (Kind::File, Some(700), 3)
        );
        assert_eq!(node.file_len(), Ok(700));
        assert_eq!(node.blocksizes().collect::<Vec<_>>(), [300, 300, 100]);
    }

    #[test]
    fn packed_sizes_mode_and_mtime_are_read() {
        let message = [
            0x08, 2, 0x22, 3, 5, 0x80, 1, 0x20, 7, 0x38, 0xff, 3, 0x42, 2, 8, 1, 0x18, 9,
        ];
        let node = UnixFs::parse(&message).unwrap();
        assert_eq!(node.blocksizes().collect::<Vec<_>>(), [5, 128, 7]);
        assert_eq!(
            (node.n_blocksizes, node.file_len(), node.filesize),
            (3, Ok(140), Some(9))
        );
    }

    #[test]
    fn lies_about_sizes_are_errors_not_overflows() {
        let mut message = file_head(1);
        put_blocksize(&mut message, u64::MAX);
        assert_eq!(UnixFs::parse(&message).unwrap().file_len(), Ok(u64::MAX));
        put_blocksize(&mut message, 1);
        assert_eq!(
            UnixFs::parse(&message).unwrap_err(),
            NodeError::SizesOverflow
        );
    }

    #[test]
    fn kinds_that_do_not_exist_are_refused() {
        assert_eq!(
            UnixFs::parse(&[]).unwrap_err(),
            NodeError::KindUnknown(None)
        );
        assert_eq!(
            UnixFs::parse(&[8, 6]).unwrap_err(),
            NodeError::KindUnknown(Some(6))
        );
        assert!(matches!(
            UnixFs::parse(&[0x0a, 0]),
            Err(NodeError::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(node) = UnixFs::parse(&bytes) {
                prop_assert_eq!(node.blocksizes().count(), node.n_blocksizes);
            }
        }

        /// Bytes that look more like UnixFS than arbitrary ones do.
        #[test]
        fn sizes_are_counted_as_they_are_read(
            fields in proptest::collection::vec((1_u32..9, any::<bool>(), any::<u16>()), 0..20),
        ) {
            let mut message = vec![8, 2];
            for (number, packed, value) in fields {
                if packed {
                    let mut numbers = Vec::new();
                    put_varint(&mut numbers, u64::from(value));
                    put_varint(&mut numbers, u64::from(value / 3));
                    put_bytes(&mut message, number, &numbers);
                } else {
                    put_number(&mut message, number, u64::from(value));
                }
            }
            if let Ok(node) = UnixFs::parse(&message) {
                prop_assert_eq!(node.blocksizes().count(), node.n_blocksizes);
                prop_assert_eq!(node.blocksizes().sum::<u64>(), node.sum);
            }
        }
    }
}
