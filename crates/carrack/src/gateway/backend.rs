//! What the gateway needs of a store: where a block is, its bytes, and CARs in batches.
//!
//! In       CIDs, paths, CAR parameters.
//! Out      verified bytes only, from files here or from sources elsewhere.
//! Not here how they are found and read (`store`); threads and budgets (`pool`).

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::walk::{ResolveLimits, Resolved, WalkLimits};

use super::pool;
use crate::error::{Error, ErrorKind, Result};
use crate::store::block::{Blocks, Found};
use crate::store::car_stream::{self, CarPlan, CarRequest};
pub use crate::store::car_stream::{MayHold, Next};
use crate::store::resolve;

/// A store of verified blocks. Clones share it.
///
/// Methods whose name ends in `_blocking`, and those of [`Plan`] and [`Batch`], may wait for a
/// disk: they are called on the blocking pool only.
pub trait Backend: Clone + Send + Sync + 'static {
    /// The plan of one CAR.
    type Plan: Plan;

    /// Whether the index knows the block. One look-up, no read; its source may have changed.
    ///
    /// # Errors
    /// The index cannot be read.
    fn holds(&self, cid: &Cid) -> Result<bool>;

    /// Length in bytes of a block that can be served; `None`: it is not here, or its source has
    /// changed. One look-up; reads only if the source was touched and nobody has looked since.
    ///
    /// # Errors
    /// The index cannot be read.
    fn stat(&self, cid: &Cid) -> Result<Option<u64>>;

    /// The verified block if that takes no disk access; `None`: ask the others.
    ///
    /// # Errors
    /// As [`Self::get`].
    fn try_get(&self, cid: &Cid) -> Result<Option<Bytes>>;

    /// The verified block if it lies on this machine; `None`: ask [`Self::get`].
    ///
    /// # Errors
    /// As [`Self::get`].
    fn get_here_blocking(&self, cid: &Cid) -> Result<Option<Bytes>>;

    /// Whether blocks may lie in sources elsewhere.
    fn has_sources(&self) -> bool {
        false
    }

    /// The source elsewhere that has the block, if no file of this machine has it. One look-up.
    fn source_of(&self, _cid: &Cid) -> Option<u32> {
        None
    }

    /// The verified block, from wherever it lies. Cancel-safe.
    ///
    /// # Errors
    /// `NotFound`: not here. `Changed`: its source is another now. `Unavailable`, `Unreachable`:
    /// retry later. `Corrupt`, `Verification`: an operator must look.
    fn get(&self, cid: &Cid) -> impl Future<Output = Result<Bytes>> + Send;

    /// Follows `segments` from `root`.
    ///
    /// # Errors
    /// `NotFound` names the last CID that resolved; else as [`Self::get`].
    fn resolve(
        &self,
        root: Cid,
        segments: Vec<Vec<u8>>,
    ) -> impl Future<Output = Result<Resolved>> + Send;

    /// What does not work as it should, a sentence each, for `/readyz`.
    fn troubles(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether a CAR can begin, as far as that is known without reading what it is made of: for
    /// answers without a body. Blocks: for the blocking pool.
    ///
    /// # Errors
    /// As the first batch of [`Self::plan`].
    fn require_first_blocking(&self, request: CarRequest) -> Result<()> {
        require_block(self, &request.resolved.terminus)
    }

    /// The plan of a CAR. Reads nothing yet.
    fn plan(&self, request: CarRequest) -> Self::Plan;
}

/// That a block can be served, for answers that do not read it.
pub(super) fn require_block(backend: &impl Backend, cid: &Cid) -> Result<()> {
    if backend.stat(cid)?.is_some() {
        return Ok(());
    }
    Err(if backend.holds(cid)? {
        Error::new(ErrorKind::Changed, "the source has changed")
    } else {
        Error::new(ErrorKind::NotFound, format!("block {cid} is not here"))
    })
}

/// The blocks of one CAR in output order, found out batch by batch.
pub trait Plan: Send + 'static {
    /// Some blocks in a row.
    type Batch: Batch;

    /// The bytes of the CARv1 header.
    fn header(&self) -> Vec<u8>;

    /// The next blocks, about 1 MiB of frames, or the block without which the walk cannot go on.
    ///
    /// # Errors
    /// A block is not here, the walk reached a limit, or it may not hold what it needs.
    fn next_batch(&mut self, may_hold: MayHold<'_>) -> Result<Next<Self::Batch>>;

    /// Gives the block that was asked for.
    ///
    /// # Errors
    /// The walk cannot go on with it.
    fn provide(&mut self, cid: &Cid, block: Bytes) -> Result<()>;

    /// Begins to read what the batches so far need from elsewhere.
    fn issue(&mut self);

    /// Bytes of memory that it holds between two batches.
    fn memory_len(&self) -> usize;
}

/// Blocks whose places are known and whose bytes are not read yet.
#[expect(
    clippy::len_without_is_empty,
    reason = "a batch holds at least one block"
)]
pub trait Batch: Sized + Send + 'static {
    /// Bytes of the frames.
    fn len(&self) -> usize;

    /// Number of blocks.
    fn n_blocks(&self) -> u64;

    /// Whether some of them are on their way from elsewhere: to be read together with others.
    fn is_elsewhere(&self) -> bool {
        self.source().is_some()
    }

    /// The source elsewhere that some of them come from. They come from one at the most.
    fn source(&self) -> Option<u32>;

    /// Reads and verifies the blocks and frames them. The result has [`Self::len`] bytes.
    ///
    /// # Errors
    /// As [`Backend::get`]; nothing of the batch is given then.
    fn read(self) -> Result<Bytes>;

    /// The same, without blocking the thread that polls it, also while it waits for a network.
    /// `held` is held as long as the bytes are, whoever leaves. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_together<T>(self, held: T) -> impl Future<Output = Result<(Bytes, T)>> + Send
    where
        T: Send + Sync + 'static,
    {
        pool::run(move || Ok((self.read()?, held)))
    }
}

impl Backend for Blocks {
    type Plan = CarPlan;

    fn holds(&self, cid: &Cid) -> Result<bool> {
        Self::holds(self, cid)
    }

    fn stat(&self, cid: &Cid) -> Result<Option<u64>> {
        Self::stat(self, cid)
    }

    fn try_get(&self, cid: &Cid) -> Result<Option<Bytes>> {
        Self::try_get(self, cid)
    }

    fn get_here_blocking(&self, cid: &Cid) -> Result<Option<Bytes>> {
        Ok(match Self::get_here(self, cid)? {
            Found::Here(block) => Some(block),
            Found::Elsewhere(_) => None,
        })
    }

    fn has_sources(&self) -> bool {
        self.store().has_sources()
    }

    fn source_of(&self, cid: &Cid) -> Option<u32> {
        Self::source_of(self, cid)
    }

    async fn get(&self, cid: &Cid) -> Result<Bytes> {
        Self::get(self, cid).await
    }

    async fn resolve(&self, root: Cid, segments: Vec<Vec<u8>>) -> Result<Resolved> {
        // The request's own limits, which are the tighter ones, have been kept to already.
        resolve::resolve(self, root, segments, ResolveLimits::default()).await
    }

    fn troubles(&self) -> Vec<String> {
        self.extents().sources().troubles()
    }

    fn require_first_blocking(&self, request: CarRequest) -> Result<()> {
        require_block(self, &request.resolved.terminus)?;
        self.plan(request).require_first()
    }

    fn plan(&self, request: CarRequest) -> CarPlan {
        CarPlan::new(self.clone(), request, WalkLimits::default())
    }
}

impl Plan for CarPlan {
    type Batch = car_stream::Batch;

    fn header(&self) -> Vec<u8> {
        Self::header(self)
    }

    fn next_batch(&mut self, may_hold: MayHold<'_>) -> Result<Next<car_stream::Batch>> {
        self.next_batch_within(may_hold)
    }

    fn provide(&mut self, cid: &Cid, block: Bytes) -> Result<()> {
        Self::provide(self, cid, block)
    }

    fn issue(&mut self) {
        Self::issue(self);
    }

    fn memory_len(&self) -> usize {
        Self::memory_len(self)
    }
}

impl Batch for car_stream::Batch {
    fn len(&self) -> usize {
        Self::len(self)
    }

    fn n_blocks(&self) -> u64 {
        Self::n_blocks(self)
    }

    fn source(&self) -> Option<u32> {
        Self::source(self)
    }

    fn read(self) -> Result<Bytes> {
        Self::read(self)
    }

    async fn read_together<T>(self, held: T) -> Result<(Bytes, T)>
    where
        T: Send + Sync + 'static,
    {
        Self::read_together(self, held).await
    }
}
