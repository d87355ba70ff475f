//! The order in which a DAG's blocks are sent.
//!
//! In       a root, a path, a scope; then the blocks that are asked for, verified by the caller.
//! Out      first [`Resolver`]: where the path leads. Then [`Walker`]: CIDs in the order of the
//!          answer (blocks of the path, then depth first, parents before children).
//! Limits   [`WalkLimits`]; both keep explicit stacks and never recurse over what they read.
//! Not here loading, verifying and sending blocks; HTTP.
//!
//! Spec: <https://specs.ipfs.tech/http-gateways/trustless-gateway/>

mod range;
pub mod resolve;
mod visited;
mod walker;

pub use range::{ByteRange, RangeError};
pub use resolve::{ResolveLimits, ResolveStep, Resolved, Resolver, push_segment};
pub use walker::{Scope, Step, WalkLimits, Walker};

use crate::Cid;
use crate::cid::CidError;
use crate::dag::DagError;
use crate::unixfs::hamt::HamtError;
use crate::unixfs::node::NodeError;

/// Why a path leads nowhere or a walk cannot go on. CIDs are boxed to keep results small.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError {
    /// The path does not exist: a definite answer, not a failure.
    #[error("no {segment:?} below {last}")]
    NotFound {
        /// The segment that is not there, with U+FFFD for what is not UTF-8.
        segment: String,
        /// Its number, from 0.
        index: usize,
        /// What the segments before it lead to.
        last: Box<Cid>,
    },
    /// The path has too many segments, or one is too long.
    #[error("path is longer than the limit")]
    PathTooLong,
    /// A `..` has no segment before it.
    #[error("path leads above its root")]
    AboveRoot,
    /// A block is not what its codec says.
    #[error("block {cid} cannot be read")]
    Block {
        /// The block.
        cid: Box<Cid>,
        /// What is wrong.
        source: DagError,
    },
    /// A link is no CID.
    #[error("block {cid} has a link that is no cid")]
    Link {
        /// The block with the link.
        cid: Box<Cid>,
        /// What is wrong.
        source: CidError,
    },
    /// A part of a file is not UnixFS.
    #[error("block {cid} should be UnixFS")]
    UnixFs {
        /// The block.
        cid: Box<Cid>,
        /// What is wrong.
        source: NodeError,
    },
    /// A part of a file is something else, or has not one size for each link.
    #[error("block {cid} is not a sound part of a file")]
    File {
        /// The block.
        cid: Box<Cid>,
    },
    /// A shard of a directory is not sound.
    #[error("block {cid} is not a sound directory shard")]
    Hamt {
        /// The block.
        cid: Box<Cid>,
        /// What is wrong.
        source: HamtError,
    },
    /// More levels than [`WalkLimits::depth_max`].
    #[error("{cid} is more than {limit} levels deep")]
    TooDeep {
        /// The first block too deep.
        cid: Box<Cid>,
        /// The limit.
        limit: u32,
    },
    /// Open nodes take more memory than [`WalkLimits::stack_bytes_max`].
    #[error("open nodes take more than {limit} bytes")]
    StackTooLarge {
        /// The limit.
        limit: usize,
    },
    /// More blocks than can be remembered: [`WalkLimits::visited_max`].
    #[error("more than {limit} blocks without duplicates")]
    TooManyBlocks {
        /// The limit.
        limit: usize,
    },
    /// All links that can be read were followed, and there may be more: blocks of a codec whose
    /// links are not read here ([`linking`](crate::dag::linking)) were sent for leaves.
    #[error(
        "the links of {cid} cannot be read: codec {codec:#x} is not known here{}",
        others(*n_blocks)
    )]
    LinksUnknown {
        /// The first such block.
        cid: Box<Cid>,
        /// Its codec.
        codec: u64,
        /// How often such blocks were met.
        n_blocks: u64,
    },
    /// The caller gave a block that was not asked for.
    #[error("block {cid} was not asked for")]
    Unexpected {
        /// The block.
        cid: Box<Cid>,
    },
    /// The walk has failed before. It never seems to end well afterwards.
    #[error("the walk has failed before")]
    Failed,
}

fn others(n_blocks: u64) -> String {
    match n_blocks {
        0 | 1 => String::new(),
        n => format!(" (nor can those of {} more blocks)", n - 1),
    }
}
