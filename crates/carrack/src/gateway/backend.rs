//! What the gateway needs of a store: where a block is, its bytes, and CARs in batches.
//!
//! In       CIDs, paths, CAR parameters.
//! Out      verified bytes only.
//! Not here how they are found and read (`store`); threads and budgets (`pool`).

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::walk::resolve::Resolved;
use carrack_formats::walk::{ByteRange, Scope};

use crate::error::Result;

/// A store of verified blocks. Clones share it.
///
/// Methods whose name ends in `_blocking`, and those of [`Plan`] and [`Batch`], may wait for a
/// disk: they are called on the blocking pool only.
pub trait Backend: Clone + Send + Sync + 'static {
    /// The plan of one CAR.
    type Plan: Plan;

    /// Length of a block in bytes; `None`: not here. One index look-up, no read.
    ///
    /// # Errors
    /// The index cannot be read.
    fn stat(&self, cid: &Cid) -> Result<Option<u64>>;

    /// The verified block if that takes no disk access; `None`: ask [`Self::get_blocking`].
    ///
    /// # Errors
    /// As [`Self::get_blocking`].
    fn try_get(&self, cid: &Cid) -> Result<Option<Bytes>>;

    /// The verified block.
    ///
    /// # Errors
    /// `NotFound`: not here. `Changed`: its source is another now. `Unavailable`: retry later.
    /// `Corrupt`, `Verification`: an operator must look.
    fn get_blocking(&self, cid: &Cid) -> Result<Bytes>;

    /// Follows `segments` from `root`.
    ///
    /// # Errors
    /// `NotFound` names the last CID that resolved; else as [`Self::get_blocking`].
    fn resolve_blocking(&self, root: Cid, segments: Vec<String>) -> Result<Resolved>;

    /// The plan of a CAR. Reads nothing yet.
    fn plan(&self, request: CarRequest) -> Self::Plan;
}

/// The blocks of one CAR in output order, found out batch by batch.
pub trait Plan: Send + 'static {
    /// Some blocks in a row.
    type Batch: Batch;

    /// The bytes of the CARv1 header.
    fn header(&self) -> Vec<u8>;

    /// The next blocks, about 1 MiB of frames; `None`: the CAR is complete.
    ///
    /// # Errors
    /// A block is not here, or the walk reached a limit.
    fn next_batch(&mut self) -> Result<Option<Self::Batch>>;
}

/// Blocks whose places are known and whose bytes are not read yet.
#[expect(
    clippy::len_without_is_empty,
    reason = "a batch holds at least one block"
)]
pub trait Batch: Send + 'static {
    /// Bytes of the frames.
    fn len(&self) -> usize;

    /// Number of blocks.
    fn n_blocks(&self) -> u64;

    /// Reads and verifies the blocks and frames them. The result has [`Self::len`] bytes.
    ///
    /// # Errors
    /// As [`Backend::get_blocking`]; nothing of the batch is given then.
    fn read(self) -> Result<Bytes>;
}

/// What a CAR is to hold.
#[derive(Debug, Clone)]
pub struct CarRequest {
    /// The root named in the CAR's header: the CID that the client asked for.
    pub root: Cid,
    /// Where the path led, and the blocks on the way, which the CAR begins with.
    pub resolved: Resolved,
    /// How much of the DAG below.
    pub scope: Scope,
    /// Which bytes, if the path ends at a file.
    pub range: Option<ByteRange>,
    /// A block that occurs twice is sent twice.
    pub dups: bool,
}
