//! Formats of content-addressed data: bytes in, values out.
//!
//! In       byte slices that the caller read from somewhere.
//! Out      CIDs, CAR sections, links, UnixFS nodes, and the order in which a DAG is walked.
//! Limits   each parser names its own; none allocates from a length it has not checked.
//! Not here any I/O, clock, thread or task: this crate does not know where bytes lie.

pub mod car;
pub mod cid;
pub mod dag;
pub mod sha256;
pub mod unixfs;
pub mod varint;
pub mod verify;
pub mod walk;

/// Room for the digest inside a [`Cid`], in bytes: the longest identity digest (IPIP-512).
pub const DIGEST_LEN_MAX: usize = 128;

/// A content identifier. Copy, about 160 bytes: keep digests, not these, in large tables.
pub type Cid = ::cid::CidGeneric<DIGEST_LEN_MAX>;

/// A hash code and a digest: what a block is found by.
pub type Multihash = ::multihash::Multihash<DIGEST_LEN_MAX>;
