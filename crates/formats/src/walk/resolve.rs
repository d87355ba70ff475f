//! Paths: a root CID and names in, the block they lead to out.
//!
//! In       the root, the path's segments, of any bytes, and each block that is asked for.
//! Out      [`Resolved`]: where the path ends and which blocks prove that.
//! Limits   [`ResolveLimits`]; a name leads through at most 22 shards of a directory.
//! Not here percent-decoding, which the caller has done; symbolic links, which are not followed;
//!          the blocks below the end (`walk::walker`).
//!
//! A path goes through directories, plain or sharded, through the link names of dag-pb blocks that
//! are not UnixFS, and through maps and lists of dag-cbor, dag-jose and dag-json. It may end inside
//! such a block. Of entries with the same name the first counts.

use bytes::Bytes;

use super::WalkError;
use crate::Cid;
use crate::cid::{self, DAG_CBOR, DAG_JOSE, DAG_JSON, DAG_PB};
use crate::dag::pb::{PbLink, PbNode};
use crate::dag::{DagError, PathStep, cbor, jose, json};
use crate::unixfs::hamt::{Lookup, Shard, hash_name};
use crate::unixfs::node::{Kind, UnixFs};

/// Bounds on a path.
#[derive(Debug, Clone, Copy)]
pub struct ResolveLimits {
    /// Most segments.
    pub segments_max: usize,
    /// Most bytes of a segment.
    pub segment_len_max: usize,
}

impl Default for ResolveLimits {
    fn default() -> Self {
        Self {
            segments_max: 256,
            segment_len_max: 4096,
        }
    }
}

/// Adds a segment, decoded, to the path before it, by the rules of the UnixFS specification: empty
/// ones and `.` are nothing, `..` takes the segment before it away.
///
/// # Errors
/// `AboveRoot`: there is none before it.
pub fn push_segment(segments: &mut Vec<Vec<u8>>, segment: &[u8]) -> Result<(), WalkError> {
    match segment {
        b"" | b"." => Ok(()),
        b".." => segments.pop().map(drop).ok_or(WalkError::AboveRoot),
        name => {
            segments.push(name.to_vec());
            Ok(())
        }
    }
}

/// What a [`Resolver`] needs or has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolveStep {
    /// Load this block and [`provide`](Resolver::provide) it.
    Need(Cid),
    /// The path leads here.
    Done(Resolved),
}

/// Where a path ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The block at the end, which need not have been loaded.
    pub terminus: Cid,
    /// Whether the path ends at a value inside the terminus, a dag-cbor or dag-json block.
    pub remainder: bool,
    /// Blocks that were read on the way, in order, without the terminus. Identity CIDs are among
    /// them.
    pub path_blocks: Vec<Cid>,
    /// The root, then for each segment what it leads to; inside a document its CID again.
    pub roots: Vec<Cid>,
}

impl Resolved {
    /// A CID without a path.
    #[must_use]
    pub fn root(cid: Cid) -> Self {
        Self {
            terminus: cid,
            remainder: false,
            path_blocks: Vec::new(),
            roots: vec![cid],
        }
    }
}

/// Follows a path. Ask [`next`](Self::next), give what it needs, until it is done.
#[derive(Debug)]
pub struct Resolver {
    segments: Vec<Vec<u8>>,
    /// How many of the segments have led somewhere.
    n_used: usize,
    current: Cid,
    /// Inside a sharded directory: the hash of the name looked for and how many of its bits the
    /// shards so far have used.
    shard: Option<(u64, u32)>,
    remainder: bool,
    path_blocks: Vec<Cid>,
    roots: Vec<Cid>,
    failed: bool,
}

impl Resolver {
    /// Starts at `root`.
    ///
    /// # Errors
    /// `PathTooLong`.
    pub fn new<S: Into<Vec<u8>>>(
        root: Cid,
        segments: Vec<S>,
        limits: ResolveLimits,
    ) -> Result<Self, WalkError> {
        let segments: Vec<Vec<u8>> = segments.into_iter().map(Into::into).collect();
        let too_long = |segment: &Vec<u8>| segment.len() > limits.segment_len_max;
        if segments.len() > limits.segments_max || segments.iter().any(too_long) {
            return Err(WalkError::PathTooLong);
        }
        Ok(Self {
            segments,
            n_used: 0,
            current: root,
            shard: None,
            remainder: false,
            path_blocks: Vec::new(),
            roots: vec![root],
            failed: false,
        })
    }

    /// What is needed next. Asked again without an answer it says the same again.
    ///
    /// # Errors
    /// Those of [`provide`](Self::provide), as identity CIDs are read here.
    #[expect(
        clippy::should_implement_trait,
        reason = "errors end it, blocks go in between"
    )]
    pub fn next(&mut self) -> Result<ResolveStep, WalkError> {
        while self.n_used < self.segments.len() {
            let current = self.current;
            match cid::identity_data(&current) {
                Some(data) => self.step(data)?,
                None if self.failed => return Err(WalkError::Failed),
                None => return Ok(ResolveStep::Need(current)),
            }
        }
        Ok(ResolveStep::Done(Resolved {
            terminus: self.current,
            remainder: self.remainder,
            path_blocks: self.path_blocks.clone(),
            roots: self.roots.clone(),
        }))
    }

    /// Takes the block that was needed. The caller has verified it.
    ///
    /// # Errors
    /// `NotFound` is the answer that there is no such path. `Block`, `Link`, `Hamt`: the block is
    /// malformed. `Unexpected`: it is not the one that was needed.
    pub fn provide(&mut self, cid: &Cid, block: &Bytes) -> Result<(), WalkError> {
        if *cid != self.current || self.n_used >= self.segments.len() {
            return Err(WalkError::Unexpected {
                cid: Box::new(*cid),
            });
        }
        self.step(block)
    }

    /// Blocks read so far, in order: after `NotFound` they prove that the path does not exist.
    #[must_use]
    pub fn blocks_read(&self) -> &[Cid] {
        &self.path_blocks
    }

    fn step(&mut self, block: &[u8]) -> Result<(), WalkError> {
        if self.failed {
            return Err(WalkError::Failed);
        }
        self.path_blocks.push(self.current);
        let result = match self.current.codec() {
            DAG_PB => self.step_pb(block),
            DAG_CBOR => self.step_document(|segments| cbor::resolve(block, segments)),
            DAG_JOSE => self.step_document(|segments| jose::resolve(block, segments)),
            DAG_JSON => self.step_document(|segments| json::resolve(block, segments)),
            _ => Err(self.not_found(0)),
        };
        self.failed = result.is_err();
        result
    }

    fn step_pb(&mut self, block: &[u8]) -> Result<(), WalkError> {
        let node = PbNode::parse(block).map_err(|error| self.block_error(error.into()))?;
        let unixfs = node.data.and_then(|data| UnixFs::parse(data).ok());
        let kind = unixfs.map(|unixfs| unixfs.kind);
        if let (Some(unixfs), true) = (unixfs, self.shard.is_some()) {
            return self.step_shard(&node, &unixfs);
        }
        match (kind, unixfs) {
            (Some(Kind::HamtShard), Some(unixfs)) => self.step_shard(&node, &unixfs),
            (None | Some(Kind::Directory), _) if self.shard.is_none() => {
                let name = self.segment();
                let link = node.links().find(|link| link.name == name);
                let link = link.ok_or_else(|| self.not_found(0))?;
                self.follow(&link)
            }
            _ => Err(self.not_found(0)),
        }
    }

    fn step_shard(&mut self, node: &PbNode<'_>, unixfs: &UnixFs<'_>) -> Result<(), WalkError> {
        let cid = self.current;
        let hamt_error = |source| WalkError::Hamt {
            cid: Box::new(cid),
            source,
        };
        let shard = Shard::parse(node, unixfs).map_err(hamt_error)?;
        let name = self.segment();
        let (hash, bits) = self.shard.unwrap_or_else(|| (hash_name(name), 0));
        match shard.lookup(name, hash, bits).map_err(hamt_error)? {
            Lookup::Missing => Err(self.not_found(0)),
            Lookup::Entry(link) => {
                self.shard = None;
                self.follow(&link)
            }
            Lookup::Child(link) => {
                self.shard = Some((hash, bits + shard.fanout_log2()));
                self.current = self.parse_link(&link)?;
                Ok(())
            }
        }
    }

    fn step_document(
        &mut self,
        resolve: impl FnOnce(&[&[u8]]) -> Result<PathStep, DagError>,
    ) -> Result<(), WalkError> {
        let left: Vec<&[u8]> = self
            .segments
            .iter()
            .skip(self.n_used)
            .map(Vec::as_slice)
            .collect();
        match resolve(&left).map_err(|source| self.block_error(source))? {
            PathStep::Missing { used } => Err(self.not_found(used)),
            PathStep::Value { used } => {
                self.roots.extend(std::iter::repeat_n(self.current, used));
                self.remainder = true;
                self.n_used += used;
                // Ends inside this block, which therefore is the terminus, not on the way to it.
                self.path_blocks.pop();
                Ok(())
            }
            PathStep::Link { cid, used } => {
                self.roots
                    .extend(std::iter::repeat_n(self.current, used.saturating_sub(1)));
                self.roots.push(cid);
                // At least one, so that no document can keep the resolver where it is.
                self.n_used += used.max(1);
                self.current = cid;
                Ok(())
            }
        }
    }

    fn follow(&mut self, link: &PbLink<'_>) -> Result<(), WalkError> {
        let cid = self.parse_link(link)?;
        self.roots.push(cid);
        self.n_used += 1;
        self.current = cid;
        Ok(())
    }

    fn parse_link(&self, link: &PbLink<'_>) -> Result<Cid, WalkError> {
        let cid = Box::new(self.current);
        cid::parse_bytes(link.cid).map_err(|source| WalkError::Link { cid, source })
    }

    fn segment(&self) -> &[u8] {
        self.segments.get(self.n_used).map_or(b"", Vec::as_slice)
    }

    fn block_error(&self, source: DagError) -> WalkError {
        WalkError::Block {
            cid: Box::new(self.current),
            source,
        }
    }

    fn not_found(&self, used: usize) -> WalkError {
        let index = self.n_used + used;
        let last = if used > 0 {
            self.current
        } else {
            *self.roots.last().unwrap_or(&self.current)
        };
        let segment = self.segments.get(index).map_or(&b""[..], Vec::as_slice);
        WalkError::NotFound {
            segment: String::from_utf8_lossy(segment).into_owned(),
            index,
            last: Box::new(last),
        }
    }
}

#[cfg(test)]
mod tests;
