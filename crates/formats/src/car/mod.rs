//! CAR files: blocks one after the other, each behind its CID.
//!
//! In       bytes of a CARv1 or CARv2, from a place the caller knows.
//! Out      where each block lies; headers, sections and indexes as bytes.
//! Limits   [`CarLimits`] for v1; the length of the file for offsets in v2 and its indexes.
//! Not here hashes of blocks (`verify`); a parser says where a block is, not that it is right.
//!
//! Spec: <https://ipld.io/specs/transport/car/>

pub mod index;
pub mod shards;
pub mod v1;
pub mod v2;
pub mod write;

use crate::Cid;
use crate::cid::CidError;
use crate::dag::DagError;
use crate::varint::VarintError;
use crate::verify::HashError;

pub use v1::{CarHeader, CarLimits, Parser, Section, Step};

/// Why a CAR cannot be read on. Each variant names the byte where the bad thing starts, counted
/// from the start of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CarError {
    /// The input ends inside the header or a section: it was cut, or is still being written.
    #[error("input ends inside the section at byte {offset}")]
    Truncated {
        /// Where the header or section starts.
        offset: u64,
    },
    /// A length is no varint.
    #[error("length of the section at byte {offset} is malformed")]
    VarintInvalid {
        /// Where the section starts.
        offset: u64,
        /// What is wrong with it.
        source: VarintError,
    },
    /// The header claims more bytes than are read.
    #[error("header at byte {offset} claims {len} bytes, limit is {len_max}")]
    HeaderTooLong {
        /// Where the header starts.
        offset: u64,
        /// What it claims.
        len: u64,
        /// What is allowed.
        len_max: u64,
    },
    /// The header is no CBOR map of roots and version.
    #[error("malformed header at byte {offset}: {reason}")]
    HeaderInvalid {
        /// Where the header starts.
        offset: u64,
        /// Which rule is broken.
        reason: &'static str,
    },
    /// The header is not CBOR, or a root is no CID. Offsets of the cause count from the byte
    /// after the header's length.
    #[error("malformed header at byte {offset}")]
    HeaderCbor {
        /// Where the header starts.
        offset: u64,
        /// What is wrong.
        source: DagError,
    },
    /// The header names more roots than are read.
    #[error("header at byte {offset} has more than {roots_max} roots")]
    TooManyRoots {
        /// Where the header starts.
        offset: u64,
        /// What is allowed.
        roots_max: usize,
    },
    /// The version is not the one that can be read here.
    #[error("car version {version} at byte {offset} is not readable here")]
    VersionUnknown {
        /// Where the header starts.
        offset: u64,
        /// What it says.
        version: u64,
    },
    /// A length prefix asks for more than the limit.
    #[error("section at byte {offset} claims {len} bytes, limit is {len_max}")]
    SectionTooLong {
        /// Where the section starts.
        offset: u64,
        /// What it claims, CID included.
        len: u64,
        /// What is allowed.
        len_max: u64,
    },
    /// A section of no bytes, or bytes other than zero after such padding began.
    #[error("section at byte {offset} is empty")]
    ZeroSection {
        /// Where it starts.
        offset: u64,
    },
    /// A section does not start with a CID.
    #[error("section at byte {offset} does not start with a cid")]
    CidInvalid {
        /// Where the section starts.
        offset: u64,
        /// What is wrong with the CID.
        source: CidError,
    },
    /// The bytes are not the block the CID names.
    #[error("block at byte {offset} does not hash to {cid}")]
    HashMismatch {
        /// Where the section starts.
        offset: u64,
        /// What its bytes should be.
        cid: Box<Cid>,
    },
    /// The CID of a block has a hash that says too little, or that is unknown here.
    #[error("block at byte {offset} cannot be verified")]
    HashNotAllowed {
        /// Where the section starts.
        offset: u64,
        /// Why not.
        source: HashError,
    },
    /// The CARv2 header is cut, or names bytes that the file does not have.
    #[error("malformed CARv2 header at byte {offset}: {reason}")]
    V2Header {
        /// Where the field stands.
        offset: u64,
        /// Which rule is broken.
        reason: &'static str,
    },
    /// The index is cut, lies about its lengths, or is of a kind unknown here. It can be built
    /// again.
    #[error("malformed index at byte {offset} of it: {reason}")]
    Index {
        /// Where, counted from the start of the index.
        offset: u64,
        /// Which rule is broken.
        reason: &'static str,
    },
}
