//! From a file's CID to its bytes, in order.
//!
//! In       the CID of a UnixFS file or of a raw block, and a range of bytes.
//! Out      pieces of the file; only blocks that hold bytes of the range are read.
//! Limits   explicit stack, at most [`DEPTH_MAX`] levels and [`PENDING_MAX`] links waiting.
//! Not here directories and paths (`store::resolve`), the CAR of a range (`store::car_stream`).

use bytes::Bytes;
use carrack_formats::dag::pb::PbNode;
use carrack_formats::unixfs::node::{Kind, UnixFs};
use carrack_formats::{Cid, cid};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::store::block::Blocks;

/// Levels of a file's tree. Four reach terabytes.
const DEPTH_MAX: usize = 64;
/// Links that may wait to be followed: a few full nodes of the widest trees.
const PENDING_MAX: usize = 1 << 20;

/// A file being read.
#[derive(Debug)]
pub struct FileReader {
    blocks: Blocks,
    /// What is still to be read, the next last.
    pending: Vec<Pending>,
    /// First byte wanted.
    from: u64,
    /// First byte not wanted.
    to: u64,
}

#[derive(Debug)]
struct Pending {
    cid: Cid,
    /// Place of its first byte in the file.
    start: u64,
    /// Bytes of the file in it, as its parent says.
    len: u64,
    depth: usize,
}

impl FileReader {
    /// Reads bytes `from..to` of the file `cid`, which is `len` bytes long (see [`file_len`]).
    #[must_use]
    pub fn new(blocks: Blocks, cid: Cid, len: u64, from: u64, to: u64) -> Self {
        let pending = vec![Pending { cid, start: 0, len, depth: 0 }];
        Self { blocks, pending, from, to: to.min(len) }
    }

    /// The next piece; `None` at the end of the range. Blocks.
    ///
    /// # Errors
    /// Those of [`Blocks::get_blocking`]; `Invalid` for a block that is no part of a file.
    pub fn next_piece(&mut self) -> Result<Option<Bytes>> {
        while let Some(pending) = self.pending.pop() {
            let end = pending.start.saturating_add(pending.len);
            if end <= self.from || pending.start >= self.to {
                continue;
            }
            let block = self.blocks.get_blocking(&pending.cid)?;
            let data = if pending.cid.codec() == cid::DAG_PB {
                self.node(&pending, &block)?
            } else {
                block
            };
            let piece = self.clip(&data, pending.start);
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// Puts a node's children on the stack; gives the data in the node itself.
    fn node(&mut self, pending: &Pending, block: &Bytes) -> Result<Bytes> {
        let not_a_file = || format!("{} is not part of a file", pending.cid);
        let node = PbNode::parse(block).context(ErrorKind::Invalid, not_a_file)?;
        let unixfs = UnixFs::parse(node.data.unwrap_or_default());
        let unixfs = unixfs.context(ErrorKind::Invalid, not_a_file)?;
        let is_file = matches!(unixfs.kind, Kind::File | Kind::Raw);
        if !is_file || unixfs.n_blocksizes != node.n_links() {
            return Err(Error::new(ErrorKind::Invalid, not_a_file()));
        }
        let data = unixfs.data.map(|data| block.slice_ref(data)).unwrap_or_default();
        if pending.depth >= DEPTH_MAX || self.pending.len() + node.n_links() > PENDING_MAX {
            let what = format!("the file is nested too deeply at {}", pending.cid);
            return Err(Error::new(ErrorKind::Limit, what));
        }
        let first = self.pending.len();
        let mut start = pending.start.saturating_add(data.len() as u64);
        for (link, len) in node.links().zip(unixfs.blocksizes()) {
            let cid = cid::parse_bytes(link.cid).context(ErrorKind::Invalid, not_a_file)?;
            let depth = pending.depth + 1;
            self.pending.push(Pending { cid, start, len, depth });
            start = start.saturating_add(len);
        }
        if let Some(children) = self.pending.get_mut(first..) {
            children.reverse();
        }
        Ok(data)
    }

    /// The part of `data`, which starts at byte `start` of the file, that is wanted.
    fn clip(&self, data: &Bytes, start: u64) -> Bytes {
        let len = data.len() as u64;
        let from = self.from.saturating_sub(start).min(len);
        let to = self.to.saturating_sub(start).min(len).max(from);
        let (from, to) = (usize::try_from(from).unwrap_or(0), usize::try_from(to).unwrap_or(0));
        data.slice(from..to)
    }
}

/// Length of the file `cid`, from its first block.
///
/// # Errors
/// `Invalid` if it is not a file; those of reading the block.
pub fn file_len(blocks: &Blocks, cid: &Cid) -> Result<u64> {
    let block = blocks.get_blocking(cid)?;
    if cid.codec() != cid::DAG_PB {
        return Ok(block.len() as u64);
    }
    let not_a_file = || format!("{cid} is not a file");
    let node = PbNode::parse(&block).context(ErrorKind::Invalid, not_a_file)?;
    let unixfs = UnixFs::parse(node.data.unwrap_or_default());
    let unixfs = unixfs.context(ErrorKind::Invalid, not_a_file)?;
    match unixfs.kind {
        Kind::File | Kind::Raw => unixfs.file_len().context(ErrorKind::Invalid, not_a_file),
        Kind::Directory | Kind::HamtShard => {
            Err(Error::new(ErrorKind::Invalid, format!("{cid} is a directory: see carrack ls")))
        }
        _ => Err(Error::new(ErrorKind::Invalid, not_a_file())),
    }
}
