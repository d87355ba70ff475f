//! The walk below the end of a path.
//!
//! In       a [`Resolved`] path, what is wanted below it, and each block that is asked for.
//! Out      [`Step`]s: the CIDs of the answer in order, parents before children.
//! Limits   [`WalkLimits`]. An open node is its block's bytes and a position in them; links are
//!          read one by one as the walk comes to them. A node is closed before its last child is
//!          opened.
//! Not here a budget for the whole answer: with duplicates a small DAG can be a long answer, and
//!          only the caller knows how many blocks and bytes are enough.

use bytes::Bytes;

use super::WalkError;
use super::range::ByteRange;
use super::resolve::Resolved;
use super::visited::{Full, Visit, Visited};
use crate::Cid;
use crate::cid::{self, DAG_PB, GIT_RAW};
use crate::dag::pb::{PbLink, PbNode, next_link};
use crate::dag::{DagError, Linking, Links, linking, links};
use crate::unixfs::hamt::{HamtError, Shard};
use crate::unixfs::node::{Kind, SizeCursor, UnixFs};

/// How much below the end of the path is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scope {
    /// Everything.
    #[default]
    All,
    /// The whole file, or what it takes to list the directory.
    Entity,
    /// The one block.
    Block,
}

/// Bounds on one walk.
#[derive(Debug, Clone, Copy)]
pub struct WalkLimits {
    /// Most levels below the terminus. Git objects do not count: a history is a chain as long as
    /// it is old, and what it costs is what is held open.
    pub depth_max: u32,
    /// Most bytes of blocks that are held open, and of the places in them.
    pub stack_bytes_max: usize,
    /// Most blocks that are remembered when duplicates are left out.
    pub visited_max: usize,
}

impl Default for WalkLimits {
    fn default() -> Self {
        Self {
            depth_max: 1024,
            stack_bytes_max: 64 * 1024 * 1024,
            visited_max: 4_000_000,
        }
    }
}

/// Most blocks that a walk over a range may look into again.
const AGAIN_MAX: u32 = 4096;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Load this block, put it into the answer if `emit`, and [`provide`](Walker::provide) it.
    Need {
        /// The block.
        cid: Cid,
        /// Whether it belongs into the answer; otherwise it is there already.
        emit: bool,
    },
    /// This block is next in the answer; the walk does not need its bytes.
    Leaf(Cid),
    /// The answer is complete.
    End,
}

/// Walks a DAG. Ask [`next`](Self::next), give what it needs, until the end.
#[derive(Debug)]
pub struct Walker {
    path: std::vec::IntoIter<Cid>,
    /// The terminus, until it is entered.
    root: Option<Cid>,
    root_rule: Rule,
    range: Option<ByteRange>,
    /// `None`: duplicates are sent.
    visited: Option<Visited>,
    /// Blocks that were looked into again and not sent again.
    n_again: u32,
    /// The first block whose links are not read here, and how many there were.
    unknown: Option<(Cid, u64)>,
    limits: WalkLimits,
    stack: Vec<Frame>,
    /// Bytes held by `stack`.
    stack_bytes: usize,
    pending: Option<Pending>,
    data_offset: Option<u64>,
    /// Blocks are read for their bytes, so those inside of CIDs count, too.
    reading: bool,
    failed: bool,
}

/// What of a block's links to follow.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// None.
    Block,
    /// All of them, in any codec.
    All,
    /// It is the terminus, and its kind decides.
    Entity,
    /// It is a part of a file.
    File,
    /// It is a part of a file, the one that starts at its byte `base`; of this part bytes
    /// `from..to` are wanted.
    Range { from: u64, to: u64, base: u64 },
    /// It is a directory shard, below others that have used `bits` of the names' hashes.
    Shard { bits: u32 },
}

/// A block that the caller is loading.
#[derive(Debug)]
struct Pending {
    cid: Cid,
    emit: bool,
    rule: Rule,
    depth: u32,
}

/// An open node.
#[derive(Debug)]
struct Frame {
    cid: Cid,
    depth: u32,
    held: usize,
    children: Children,
}

#[derive(Debug)]
enum Children {
    /// dag-pb: the bytes of the links and how far they have been read.
    Pb {
        links: Bytes,
        pos: usize,
        filter: Filter,
    },
    /// Other codecs.
    Listed { links: Links, index: usize },
}

/// Which links of a dag-pb block to follow.
#[derive(Debug)]
enum Filter {
    All,
    File,
    /// Those whose bytes meet `from..to`; `offset` is where the next child starts.
    Range {
        from: u64,
        to: u64,
        base: u64,
        offset: u64,
        unixfs: Bytes,
        sizes: SizeCursor,
    },
    /// Those that lead to shards.
    Shards {
        prefix_len: usize,
        bits: u32,
        index: usize,
    },
}

impl Walker {
    /// Starts a walk. `range` is for scope [`Scope::Entity`] and ignored otherwise, `dups` is
    /// whether a block that is linked twice is sent twice.
    #[must_use]
    pub fn new(
        resolved: &Resolved,
        scope: Scope,
        range: Option<ByteRange>,
        dups: bool,
        limits: WalkLimits,
    ) -> Self {
        Self {
            path: resolved.path_blocks.clone().into_iter(),
            root: Some(resolved.terminus),
            root_rule: match scope {
                Scope::All => Rule::All,
                Scope::Entity if !resolved.remainder => Rule::Entity,
                Scope::Entity | Scope::Block => Rule::Block,
            },
            range,
            visited: (!dups).then(Visited::default),
            n_again: 0,
            unknown: None,
            limits,
            stack: Vec::new(),
            stack_bytes: 0,
            pending: None,
            data_offset: None,
            reading: false,
            failed: false,
        }
    }

    /// Starts a walk over one file in order to read it: each block comes as often as the file
    /// has it, identity CIDs too (the caller takes their data out of the CID).
    #[must_use]
    pub fn read_file(root: Cid, range: Option<ByteRange>, limits: WalkLimits) -> Self {
        let resolved = Resolved::root(root);
        Self {
            reading: true,
            ..Self::new(&resolved, Scope::Entity, range, true, limits)
        }
    }

    /// Where in the file the bytes of the block in the last step start. `None`: where those of the
    /// block before it ended. Only for walks over one file, with duplicates.
    #[must_use]
    pub fn data_offset(&self) -> Option<u64> {
        self.data_offset
    }

    /// Bytes of memory that the walk holds now: open nodes, and what it remembers of the blocks it
    /// has sent.
    #[must_use]
    pub fn memory_len(&self) -> usize {
        let frames = self.stack.capacity().saturating_mul(size_of::<Frame>());
        let visited = self.visited.as_ref().map_or(0, Visited::memory_len);
        self.stack_bytes
            .saturating_add(frames)
            .saturating_add(visited)
    }

    /// The next step. While a block is needed this says so again.
    ///
    /// # Errors
    /// Limits, and links that are malformed; `LinksUnknown` instead of an end that would claim too
    /// much. The walk is over: everything later is `Failed`.
    #[expect(
        clippy::should_implement_trait,
        reason = "errors end it, blocks go in between"
    )]
    pub fn next(&mut self) -> Result<Step, WalkError> {
        if self.failed {
            return Err(WalkError::Failed);
        }
        let result = self.advance();
        self.failed = result.is_err();
        result
    }

    /// Takes the block that was needed. The caller has verified it.
    ///
    /// # Errors
    /// The block is malformed, or not the one that was needed, or takes the open nodes over
    /// their limit. The walk is over.
    pub fn provide(&mut self, cid: &Cid, block: Bytes) -> Result<(), WalkError> {
        let result = match self.pending.take_if(|pending| pending.cid == *cid) {
            Some(pending) => self.open(cid, block, pending.rule, pending.depth),
            None => Err(WalkError::Unexpected {
                cid: Box::new(*cid),
            }),
        };
        self.failed |= result.is_err();
        result
    }

    fn advance(&mut self) -> Result<Step, WalkError> {
        if let Some(pending) = &self.pending {
            return Ok(Step::Need {
                cid: pending.cid,
                emit: pending.emit,
            });
        }
        while let Some(cid) = self.path.next() {
            if let Some(step) = self.enter(cid, Rule::Block, 0)? {
                return Ok(step);
            }
        }
        if let Some(root) = self.root.take() {
            self.data_offset = Some(0);
            if let Some(step) = self.enter(root, self.root_rule, 0)? {
                return Ok(step);
            }
        }
        while let Some(frame) = self.stack.last_mut() {
            let is_level = frame.cid.codec() != GIT_RAW;
            let depth = frame.depth.saturating_add(u32::from(is_level));
            let child = frame.next_child()?;
            if child.is_none() || frame.is_exhausted() {
                self.stack_bytes = self.stack_bytes.saturating_sub(frame.held);
                self.stack.pop();
            }
            if let Some(child) = child {
                self.data_offset = child.data_offset;
                if let Some(step) = self.enter(child.cid, child.rule, depth)? {
                    return Ok(step);
                }
            }
        }
        match &self.unknown {
            None => Ok(Step::End),
            Some((cid, n_blocks)) => Err(WalkError::LinksUnknown {
                cid: Box::new(*cid),
                codec: cid.codec(),
                n_blocks: *n_blocks,
            }),
        }
    }

    /// Decides about one block: `None` if there is nothing to tell the caller.
    fn enter(&mut self, cid: Cid, rule: Rule, depth: u32) -> Result<Option<Step>, WalkError> {
        if depth > self.limits.depth_max {
            let limit = self.limits.depth_max;
            return Err(WalkError::TooDeep {
                cid: Box::new(cid),
                limit,
            });
        }
        let linking = match rule {
            Rule::Block => Linking::Never,
            Rule::All => linking(cid.codec()),
            _ if cid.codec() == DAG_PB => Linking::Read,
            _ => Linking::Never,
        };
        let has_links = linking == Linking::Read;
        if let (Some(data), false) = (cid::identity_data(&cid), self.reading) {
            // Never part of an answer, but links out of it are.
            self.note(&cid, linking);
            if has_links {
                self.open(&cid, Bytes::copy_from_slice(data), rule, depth)?;
            }
            return Ok(None);
        }
        let visit = match &mut self.visited {
            None => Visit::First,
            Some(visited) => {
                let limit = self.limits.visited_max;
                let partial = has_links && matches!(rule, Rule::Range { .. });
                let visit = visited.visit(&cid, partial, limit);
                visit.map_err(|Full| WalkError::TooManyBlocks { limit })?
            }
        };
        if visit == Visit::Skip {
            return Ok(None);
        }
        if !has_links {
            self.note(&cid, linking);
            return Ok(Some(Step::Leaf(cid)));
        }
        let emit = visit == Visit::First;
        if !emit {
            // A range ends inside of two nodes a level, each of which may be met once more as a
            // whole. With more of them, nodes lie about their sizes, so that a DAG of n levels
            // would be n^2 steps without anything to send.
            self.n_again += 1;
            if self.n_again > AGAIN_MAX {
                return Err(WalkError::File { cid: Box::new(cid) });
            }
        }
        self.pending = Some(Pending {
            cid,
            emit,
            rule,
            depth,
        });
        Ok(Some(Step::Need { cid, emit }))
    }

    /// Remembers a block below which there may be more than can be told.
    fn note(&mut self, cid: &Cid, linking: Linking) {
        if linking == Linking::Unknown {
            let (_, n_blocks) = self.unknown.get_or_insert((*cid, 0));
            *n_blocks += 1;
        }
    }

    /// Puts a block on the stack, if there is anything to follow in it.
    fn open(&mut self, cid: &Cid, block: Bytes, rule: Rule, depth: u32) -> Result<(), WalkError> {
        let block_len = block.len();
        let (children, held) = if cid.codec() == DAG_PB {
            let block_error = |error| WalkError::Block {
                cid: Box::new(*cid),
                source: error,
            };
            let node = PbNode::parse(&block).map_err(|error| block_error(error.into()))?;
            let Some(filter) = self.filter(cid, &block, &node, rule)? else {
                return Ok(());
            };
            let links = block.slice(node.links_range());
            (
                Children::Pb {
                    links,
                    pos: 0,
                    filter,
                },
                block_len,
            )
        } else {
            let found = links(cid.codec(), &block);
            let links = found.map_err(|source| WalkError::Block {
                cid: Box::new(*cid),
                source,
            })?;
            let held = links.memory_len();
            (Children::Listed { links, index: 0 }, held)
        };
        let frame = Frame {
            cid: *cid,
            depth,
            held,
            children,
        };
        if frame.is_exhausted() {
            return Ok(());
        }
        self.stack_bytes = self.stack_bytes.saturating_add(held);
        let places_len = (self.stack.len() + 1).saturating_mul(size_of::<Frame>());
        if self.stack_bytes.saturating_add(places_len) > self.limits.stack_bytes_max {
            return Err(WalkError::StackTooLarge {
                limit: self.limits.stack_bytes_max,
            });
        }
        self.stack.push(frame);
        Ok(())
    }

    /// Which links of `node` to follow; `None`: the block alone was wanted.
    fn filter(
        &self,
        cid: &Cid,
        block: &Bytes,
        node: &PbNode<'_>,
        rule: Rule,
    ) -> Result<Option<Filter>, WalkError> {
        let unixfs_error = |source| WalkError::UnixFs {
            cid: Box::new(*cid),
            source,
        };
        let unixfs = || UnixFs::parse_node(node);
        match rule {
            Rule::Block => Ok(None),
            Rule::All => Ok(Some(Filter::All)),
            Rule::File => {
                file_part(cid, node, &unixfs().map_err(unixfs_error)?)?;
                Ok(Some(Filter::File))
            }
            Rule::Range { from, to, base } => {
                let unixfs = unixfs().map_err(unixfs_error)?;
                file_part(cid, node, &unixfs)?;
                Ok(Some(range_filter(block, node, &unixfs, (from, to), base)))
            }
            Rule::Shard { bits } => {
                let unixfs = unixfs().map_err(unixfs_error)?;
                shard_filter(cid, node, &unixfs, bits).map(Some)
            }
            Rule::Entity => {
                // What is not UnixFS has no more to it than its block.
                let Ok(unixfs) = unixfs() else {
                    return Ok(None);
                };
                match unixfs.kind {
                    Kind::HamtShard => shard_filter(cid, node, &unixfs, 0).map(Some),
                    Kind::File | Kind::Raw => self.file_filter(cid, block, node, &unixfs),
                    _ => Ok(None),
                }
            }
        }
    }

    /// The filter for the root of a file.
    fn file_filter(
        &self,
        cid: &Cid,
        block: &Bytes,
        node: &PbNode<'_>,
        unixfs: &UnixFs<'_>,
    ) -> Result<Option<Filter>, WalkError> {
        let file_len = file_part(cid, node, unixfs)?;
        let Some(range) = self.range else {
            return Ok(Some(Filter::File));
        };
        // No range means anything in a file that claims to be empty and has parts: its reader has
        // to see them to know.
        if file_len == 0 && node.n_links() > 0 {
            return Ok(Some(Filter::File));
        }
        // Counting from the end of a file whose sizes contradict each other has no meaning.
        if unixfs.filesize.is_some_and(|claimed| claimed != file_len) {
            return Err(WalkError::File {
                cid: Box::new(*cid),
            });
        }
        Ok(match range.resolve(file_len) {
            None => None,
            Some((0, to)) if to == file_len => Some(Filter::File),
            Some((from, to)) => Some(range_filter(block, node, unixfs, (from, to), 0)),
        })
    }
}

/// Checks that a node can be a part of a file; gives the bytes of the file below it.
fn file_part(cid: &Cid, node: &PbNode<'_>, unixfs: &UnixFs<'_>) -> Result<u64, WalkError> {
    let is_file = matches!(unixfs.kind, Kind::File | Kind::Raw);
    if !is_file || unixfs.n_blocksizes != node.n_links() {
        return Err(WalkError::File {
            cid: Box::new(*cid),
        });
    }
    unixfs.file_len().map_err(|source| WalkError::UnixFs {
        cid: Box::new(*cid),
        source,
    })
}

fn range_filter(
    block: &Bytes,
    node: &PbNode<'_>,
    unixfs: &UnixFs<'_>,
    (from, to): (u64, u64),
    base: u64,
) -> Filter {
    // A node's own bytes come before those of its children.
    let offset = unixfs.data.map_or(0, <[u8]>::len) as u64;
    let unixfs = node
        .data
        .map(|data| block.slice_ref(data))
        .unwrap_or_default();
    Filter::Range {
        from,
        to,
        base,
        offset,
        unixfs,
        sizes: SizeCursor::default(),
    }
}

fn shard_filter(
    cid: &Cid,
    node: &PbNode<'_>,
    unixfs: &UnixFs<'_>,
    bits: u32,
) -> Result<Filter, WalkError> {
    let hamt_error = |source| WalkError::Hamt {
        cid: Box::new(*cid),
        source,
    };
    let shard = Shard::parse(node, unixfs).map_err(hamt_error)?;
    let bits = bits + shard.fanout_log2();
    if bits > u64::BITS {
        return Err(hamt_error(HamtError::TooDeep));
    }
    Ok(Filter::Shards {
        prefix_len: shard.prefix_len(),
        bits,
        index: 0,
    })
}

impl Frame {
    /// The next child to go to, and how.
    fn next_child(&mut self) -> Result<Option<Child>, WalkError> {
        let owner = &self.cid;
        match &mut self.children {
            Children::Listed { links, index } => {
                let Some(link) = links.get(*index) else {
                    return Ok(None);
                };
                *index += 1;
                let cid = link.map_err(|source| block_error(owner, source))?;
                Ok(Some(Child {
                    cid,
                    rule: Rule::All,
                    data_offset: None,
                }))
            }
            Children::Pb { links, pos, filter } => {
                while let Some(link) = next_link(links, pos) {
                    let rule = filter.rule(&link).map_err(|source| WalkError::Hamt {
                        cid: Box::new(*owner),
                        source,
                    })?;
                    match rule {
                        Follow::Yes(rule, data_offset) => {
                            let cid =
                                cid::parse_bytes(link.cid).map_err(|source| WalkError::Link {
                                    cid: Box::new(*owner),
                                    source,
                                })?;
                            return Ok(Some(Child {
                                cid,
                                rule,
                                data_offset,
                            }));
                        }
                        Follow::No => {}
                        Follow::NoMore => return Ok(None),
                    }
                }
                Ok(None)
            }
        }
    }

    /// Whether it is known that no child follows.
    fn is_exhausted(&self) -> bool {
        match &self.children {
            Children::Pb { links, pos, .. } => *pos >= links.len(),
            Children::Listed { links, index } => *index >= links.len(),
        }
    }
}

fn block_error(cid: &Cid, source: DagError) -> WalkError {
    WalkError::Block {
        cid: Box::new(*cid),
        source,
    }
}

/// A link to follow.
struct Child {
    cid: Cid,
    rule: Rule,
    /// Where its bytes start in the file, if that is not where the block before it ends.
    data_offset: Option<u64>,
}

/// What to do with a link.
enum Follow {
    /// Follow it; the number as in [`Child`].
    Yes(Rule, Option<u64>),
    No,
    NoMore,
}

impl Filter {
    fn rule(&mut self, link: &PbLink<'_>) -> Result<Follow, HamtError> {
        Ok(match self {
            Self::All => Follow::Yes(Rule::All, None),
            Self::File => Follow::Yes(Rule::File, None),
            Self::Shards {
                prefix_len,
                bits,
                index,
            } => {
                let at = *index;
                *index += 1;
                if link.name.len() < *prefix_len {
                    return Err(HamtError::PrefixInvalid { index: at });
                }
                if link.name.len() > *prefix_len {
                    return Ok(Follow::No);
                }
                Follow::Yes(Rule::Shard { bits: *bits }, None)
            }
            Self::Range {
                from,
                to,
                base,
                offset,
                unixfs,
                sizes,
            } => {
                let size = sizes.next(unixfs).unwrap_or(0);
                let start = *offset;
                let end = start.saturating_add(size);
                *offset = end;
                if start >= *to {
                    return Ok(Follow::NoMore);
                }
                // A part of no bytes in the middle belongs to it: its size may be a lie.
                if end <= *from {
                    return Ok(Follow::No);
                }
                let base = base.saturating_add(start);
                let rule = if start >= *from && end <= *to {
                    Rule::File
                } else {
                    let from = from.saturating_sub(start);
                    Rule::Range {
                        from,
                        to: (*to - start).min(size),
                        base,
                    }
                };
                Follow::Yes(rule, Some(base))
            }
        })
    }
}

#[cfg(test)]
mod tests;
