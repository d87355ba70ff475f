//! From a file's CID to its bytes, in order.
//!
//! In       the CID of a UnixFS file or of a raw block, and a range of bytes.
//! Out      pieces of the file; only blocks that hold bytes of the range are read.
//! Limits   those of the walk: depth and memory of the nodes held open.
//! Not here directories and paths (`store::resolve`), the CAR of a range (`store::car_stream`).

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::unixfs::content::{Content, content};
use carrack_formats::walk::{ByteRange, Step, WalkLimits, Walker};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::store::block::Blocks;
use crate::store::car_stream::walk_error;

/// A file being read.
#[derive(Debug)]
pub struct FileReader {
    blocks: Blocks,
    walker: Walker,
    cid: Cid,
    /// Bytes of the whole file by the account of its first block, once that is read.
    file_len: Option<u64>,
    /// Where the bytes of the next block start in the file.
    position: u64,
    /// First byte wanted.
    from: u64,
    /// First byte not wanted.
    to: u64,
}

impl FileReader {
    /// Reads bytes `from..to` of the file `cid`; `to` is at most its length (see [`file_len`]).
    #[must_use]
    pub fn new(blocks: Blocks, cid: Cid, from: u64, to: u64) -> Self {
        let signed = |at: u64| i64::try_from(at).unwrap_or(i64::MAX);
        // An empty range has no last byte; the clipping below leaves nothing of what is read.
        let last = signed(to).saturating_sub(1).max(signed(from));
        let range = ByteRange {
            from: signed(from),
            to: Some(last),
        };
        let walker = Walker::read_file(cid, Some(range), WalkLimits::default());
        Self {
            blocks,
            walker,
            cid,
            position: 0,
            file_len: None,
            from,
            to,
        }
    }

    /// The next piece; `None` at the end of the range. Blocks.
    ///
    /// # Errors
    /// Those of [`Blocks::get_blocking`]; `Invalid` for a block that is no part of a file, and if
    /// the file is not as long as its nodes say, which may show only at its end.
    pub fn next_piece(&mut self) -> Result<Option<Bytes>> {
        loop {
            let step = self.walker.next().map_err(walk_error)?;
            let (Step::Leaf(cid) | Step::Need { cid, .. }) = step else {
                return self.check_end();
            };
            self.check_offset()?;
            let block = self.blocks.get_blocking(&cid)?;
            let (data, file_len) = file_data(&cid, &block)?;
            self.file_len.get_or_insert(file_len);
            if let Step::Need { .. } = step {
                self.walker.provide(&cid, block).map_err(walk_error)?;
            }
            let piece = self.clip(&data);
            self.position += data.len() as u64;
            // Not read on for what would not be given out.
            if self.ends_file() && self.position > self.to {
                return Err(self.lie());
            }
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    /// Whether the next block starts where the one before it ended, but for what lies before the
    /// range: the sizes in a file's nodes are claims.
    fn check_offset(&mut self) -> Result<()> {
        let Some(offset) = self.walker.data_offset() else {
            return Ok(());
        };
        if offset < self.position || (offset > self.position && offset > self.from) {
            return Err(self.lie());
        }
        self.position = offset;
        Ok(())
    }

    /// Whether all that the file's nodes announced has come, and no more.
    fn check_end(&self) -> Result<Option<Bytes>> {
        if self.from < self.to && self.position < self.to {
            return Err(self.lie());
        }
        Ok(None)
    }

    /// Whether the range goes up to the end of the file, so that nothing may come after it.
    fn ends_file(&self) -> bool {
        self.file_len == Some(self.to)
    }

    fn lie(&self) -> Error {
        let what = format!("{} is a file whose nodes lie about its sizes", self.cid);
        Error::new(ErrorKind::Invalid, what)
    }

    /// The part of `data`, which starts at the reader's position, that is wanted.
    fn clip(&self, data: &Bytes) -> Bytes {
        let len = data.len() as u64;
        let from = self.from.saturating_sub(self.position).min(len);
        let to = self.to.saturating_sub(self.position).min(len).max(from);
        let (from, to) = (
            usize::try_from(from).unwrap_or(0),
            usize::try_from(to).unwrap_or(0),
        );
        data.slice(from..to)
    }
}

/// Length of the file `cid`, from its first block.
///
/// # Errors
/// `Invalid` if it is not a file; those of reading the block.
pub fn file_len(blocks: &Blocks, cid: &Cid) -> Result<u64> {
    let block = blocks.get_blocking(cid)?;
    Ok(file_data(cid, &block)?.1)
}

/// Bytes of the file in one block, and the length of what is in and below it.
fn file_data(cid: &Cid, block: &Bytes) -> Result<(Bytes, u64)> {
    let what = match content(cid, block) {
        Ok(Content::File { data, file_len }) => return Ok((data, file_len)),
        Ok(Content::Directory | Content::Shard) => "is a directory: see carrack ls",
        Ok(Content::Symlink { .. }) => "is a symlink",
        Ok(_) => "is not a file",
        Err(error) => {
            return Err(error).context(ErrorKind::Invalid, || format!("{cid} is not a sound file"));
        }
    };
    Err(Error::new(ErrorKind::Invalid, format!("{cid} {what}")))
}
