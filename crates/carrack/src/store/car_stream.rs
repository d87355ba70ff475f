//! From a resolved path to the frames of a CAR, in batches that are read in parallel.
//!
//! In       a [`CarRequest`]: where the walk starts, how far it goes.
//! Out      the CAR header, then [`Batch`]es in output order; a batch becomes bytes, every block
//!          of them verified, when it is [read](Batch::read), on whichever thread.
//! Limits   a batch is about [`BATCH_LEN`] bytes and at most [`BATCH_BLOCKS_MAX`] blocks; the
//!          walk's own limits are `formats::walk`'s.
//! Not here HTTP, budgets and how many batches are under way (`gateway`, `cli`).
//!
//! Spec: <https://ipld.io/specs/transport/car/carv1/>

mod filled;
pub mod want_list;

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::car::write;
use carrack_formats::sha256::digest_all;
use carrack_formats::walk::resolve::Resolved;
use carrack_formats::walk::{ByteRange, Scope, Step, WalkError, WalkLimits, Walker};

use self::filled::Filled;
use crate::error::{Error, ErrorKind, Result};
use crate::store::block::{Blocks, Found, block_len, not_found};
use crate::store::blocking;
use crate::store::buffers::BUFFER_LEN;
use crate::store::extent::{Pieces, Planned, Ticket};
use crate::store::hasher::Messages;
use crate::store::location::Location;

/// Bytes of frames after which a batch is complete. A 1 MiB leaf fills one, and fits a pooled
/// buffer with its frame head.
pub const BATCH_LEN: usize = 1 << 20;
/// Blocks after which a batch is complete, however small they are.
pub const BATCH_BLOCKS_MAX: usize = 512;

/// What a CAR is to hold.
#[derive(Debug, Clone)]
pub struct CarRequest {
    /// The CAR header's one root.
    pub root: Cid,
    /// The path's blocks and where it ends.
    pub resolved: Resolved,
    /// How far below the path's end.
    pub scope: Scope,
    /// Which bytes of a file.
    pub range: Option<ByteRange>,
    /// Write a block each time the walk meets it.
    pub dups: bool,
}

/// Told how many bytes a walk holds whenever that has grown by [`GROWTH_LEN`]; an error ends it.
pub type MayHold<'a> = &'a mut dyn FnMut(usize) -> Result<()>;

/// Bytes by which a walk grows before it tells so.
const GROWTH_LEN: usize = 64 << 10;

/// A CAR as it is walked.
#[derive(Debug)]
pub struct CarPlan {
    blocks: Blocks,
    walker: Walker,
    root: Cid,
    /// Reads of what lies elsewhere, announced in the order of the output.
    planned: Planned,
    /// A block that the walk needs and that lies elsewhere.
    needed: Option<Needed>,
    /// A block that did not fit the last batch.
    carried: Option<Item>,
    /// Bytes of blocks that the last batch holds, which nobody else accounts for until it is read.
    held_len: usize,
    done: bool,
    /// Why the walk ended early: told after everything that came before it.
    failure: Option<Error>,
}

/// A step of the walk that waits for a block.
#[derive(Debug)]
struct Needed {
    cid: Cid,
    emit: bool,
}

/// What comes next in a plan.
#[derive(Debug)]
pub enum Next<B> {
    /// Some frames.
    Batch(B),
    /// The walk cannot go on without this block, which lies elsewhere: [get](Blocks::get) it,
    /// [provide](CarPlan::provide) it and ask again.
    Needs(Cid),
    /// The CAR is complete.
    End,
}

/// Why a plan has no more.
enum Spoilt {
    /// What comes before is given.
    Walk(Error),
    /// Its batch cannot be read.
    Leaf(Error),
}

/// Some frames: known where their blocks lie, not yet read.
#[derive(Debug)]
pub struct Batch {
    blocks: Blocks,
    items: Vec<Item>,
    len: usize,
    /// Blocks alone, without frames.
    is_bare: bool,
}

#[derive(Debug)]
struct Item {
    cid: Cid,
    len: usize,
    from: Origin,
}

#[derive(Debug)]
enum Origin {
    /// The walk needed the block itself.
    Held(Bytes),
    /// Where its copies lie.
    At(Vec<Location>),
    /// It lies elsewhere, and its bytes were announced.
    Announced(Location, Ticket),
    /// Its bytes have come from elsewhere, and are not verified yet.
    Came(Location, Pieces),
}

impl CarPlan {
    /// A plan that has not started.
    #[must_use]
    pub fn new(blocks: Blocks, request: CarRequest, limits: WalkLimits) -> Self {
        let CarRequest {
            root,
            resolved,
            scope,
            range,
            dups,
        } = request;
        let walker = Walker::new(&resolved, scope, range, dups, limits);
        Self {
            planned: blocks.extents().planned(),
            blocks,
            walker,
            root,
            needed: None,
            carried: None,
            held_len: 0,
            done: false,
            failure: None,
        }
    }

    /// The CAR's header.
    #[must_use]
    pub fn header(&self) -> Vec<u8> {
        write::header(&[self.root])
    }

    /// Bytes of memory that the walk and the last batch hold.
    #[must_use]
    pub fn memory_len(&self) -> usize {
        let carried = self.carried.as_ref().map_or(0, Item::held_len);
        self.walker.memory_len() + self.held_len + carried
    }

    /// The next frames. Blocks, but not for long: it looks up leaves and reads only the nodes that
    /// the walk itself needs and that lie on this machine.
    ///
    /// # Errors
    /// `NotFound` for a block that is not here, and those of reading a node; `Partial` after a CAR
    /// that is whole as far as can be told. What came before was given; the plan ends there.
    pub fn next_batch(&mut self) -> Result<Next<Batch>> {
        self.next_batch_within(&mut |_| Ok(()))
    }

    /// The same, for a walk that has to ask for what it holds.
    ///
    /// # Errors
    /// As [`Self::next_batch`], and those of `may_hold`.
    pub fn next_batch_within(&mut self, may_hold: MayHold<'_>) -> Result<Next<Batch>> {
        let mut held_len = self.walker.memory_len();
        let mut batch = Batch {
            blocks: self.blocks.clone(),
            items: Vec::new(),
            len: 0,
            is_bare: false,
        };
        if let Some(item) = self.carried.take() {
            batch.push(item);
        }
        while !self.done && self.needed.is_none() && self.failure.is_none() && !batch.is_full() {
            let mut item = self.next_item();
            let len = self.walker.memory_len();
            if len > held_len.saturating_add(GROWTH_LEN) {
                held_len = len;
                item = may_hold(len).and(item);
            }
            let item = match item {
                Ok(Some(item)) => item,
                Ok(None) => continue,
                Err(error) => {
                    self.failure = Some(error);
                    break;
                }
            };
            let is_other = item
                .source()
                .is_some_and(|it| batch.source().is_some_and(|at| it != at));
            if is_other || batch.len > 0 && batch.len + item.frame_len() > BUFFER_LEN {
                self.carried = Some(item);
                break;
            }
            batch.push(item);
        }
        self.held_len = batch.items.iter().map(Item::held_len).sum();
        Ok(match &self.needed {
            _ if !batch.items.is_empty() => Next::Batch(batch),
            Some(needed) => Next::Needs(needed.cid),
            None => match self.failure.take() {
                Some(error) => return Err(error),
                None => Next::End,
            },
        })
    }

    /// The next frames, waiting for nodes that lie elsewhere, too. Not on a thread that drives
    /// futures.
    ///
    /// # Errors
    /// As [`Self::next_batch`].
    pub fn next_batch_blocking(&mut self) -> Result<Option<Batch>> {
        loop {
            match self.next_batch()? {
                Next::Batch(batch) => {
                    self.issue();
                    return Ok(Some(batch));
                }
                Next::Needs(cid) => {
                    let block = self.blocks.get_blocking(&cid)?;
                    self.provide(&cid, block)?;
                }
                Next::End => return Ok(None),
            }
        }
    }

    /// Whether the first batch can be served, as far as that can be told without reading leaves
    /// and without asking for nodes that lie elsewhere. Blocks as [`Self::next_batch`] does.
    ///
    /// # Errors
    /// As reading the first batch.
    pub fn require_first(mut self) -> Result<()> {
        let (mut len, mut n_blocks) = (0, 0);
        while len < BATCH_LEN && n_blocks < BATCH_BLOCKS_MAX {
            match self.require_next() {
                Ok(Some(item_len)) if len > 0 && len + item_len > BUFFER_LEN => return Ok(()),
                Ok(Some(item_len)) => {
                    len += item_len;
                    n_blocks += usize::from(item_len > 0);
                }
                Ok(None) => return Ok(()),
                // A walk that ends early gives what came before; a leaf that is bad spoils it.
                Err(Spoilt::Walk(_)) if len > 0 => return Ok(()),
                Err(Spoilt::Walk(error) | Spoilt::Leaf(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Bytes of the next frame; 0 for a step that has none, `None` if nothing more can be told.
    fn require_next(&mut self) -> Result<Option<usize>, Spoilt> {
        let step = self.walker.next().map_err(walk_error);
        let (cid, emit) = match step.map_err(Spoilt::Walk)? {
            Step::End => return Ok(None),
            Step::Leaf(cid) => {
                let len = self.require_block(&cid)?;
                return Ok(Some(write::frame_len(&cid, len)));
            }
            Step::Need { cid, emit } => (cid, emit),
        };
        let Found::Here(block) = self.blocks.get_here(&cid).map_err(Spoilt::Walk)? else {
            return self.require_block(&cid).map(|_| None);
        };
        let len = block.len();
        let provided = self.walker.provide(&cid, block).map_err(walk_error);
        provided.map_err(Spoilt::Walk)?;
        Ok(Some(match emit {
            true => write::frame_len(&cid, len),
            false => 0,
        }))
    }

    /// Length of a block that can be served, by the index.
    fn require_block(&self, cid: &Cid) -> Result<usize, Spoilt> {
        match self.blocks.stat(cid) {
            Ok(Some(len)) => Ok(usize::try_from(len).unwrap_or(usize::MAX)),
            Ok(None) if self.blocks.holds(cid).map_err(Spoilt::Walk)? => {
                let what = "the source has changed";
                Err(Spoilt::Leaf(Error::new(ErrorKind::Changed, what)))
            }
            Ok(None) => Err(Spoilt::Walk(not_found(cid))),
            Err(error) => Err(Spoilt::Leaf(error)),
        }
    }

    /// Gives the block that [`Next::Needs`] asked for.
    ///
    /// # Errors
    /// `Invalid` and `TooLarge` of the walk.
    pub fn provide(&mut self, cid: &Cid, block: Bytes) -> Result<()> {
        let Some(needed) = self.needed.take_if(|needed| needed.cid == *cid) else {
            let what = format!("a plan did not ask for {cid}");
            return Err(Error::new(ErrorKind::Internal, what));
        };
        self.carried = self.step_taken(needed, block)?;
        Ok(())
    }

    /// Reads what was announced, though more could join it.
    pub fn issue(&mut self) {
        self.planned.issue();
    }

    /// The next block of the output; `None` for a step that has none.
    fn next_item(&mut self) -> Result<Option<Item>> {
        match self.walker.next().map_err(walk_error)? {
            Step::End => {
                self.done = true;
                Ok(None)
            }
            Step::Leaf(cid) => self.leaf(cid).map(Some),
            Step::Need { cid, emit } => {
                let needed = Needed { cid, emit };
                match self.blocks.get_here(&cid)? {
                    Found::Here(block) => self.step_taken(needed, block),
                    Found::Elsewhere(_) => {
                        self.needed = Some(needed);
                        Ok(None)
                    }
                }
            }
        }
    }

    fn leaf(&mut self, cid: Cid) -> Result<Item> {
        let locations = self.blocks.locate(cid.hash())?;
        Item::planned(&self.blocks, &mut self.planned, cid, locations)
    }

    /// The walk goes on below a node.
    fn step_taken(&mut self, needed: Needed, block: Bytes) -> Result<Option<Item>> {
        let Needed { cid, emit } = needed;
        self.walker
            .provide(&cid, block.clone())
            .map_err(walk_error)?;
        let len = block.len();
        let from = Origin::Held(block);
        Ok(emit.then_some(Item { cid, len, from }))
    }
}

impl Item {
    /// A block that is to be read from one of `locations`, announced if it lies elsewhere.
    fn planned(
        blocks: &Blocks,
        planned: &mut Planned,
        cid: Cid,
        locations: Vec<Location>,
    ) -> Result<Self> {
        let first = locations.first().ok_or_else(|| not_found(&cid))?;
        let len = block_len(*first);
        let from = match blocks.place(&locations) {
            Some((at, place)) if block_len(at) == len => {
                let range = at.offset..at.offset + u64::from(at.len);
                Origin::Announced(at, planned.announce(&place, range))
            }
            _ => Origin::At(locations),
        };
        Ok(Self { cid, len, from })
    }

    fn held_len(&self) -> usize {
        match &self.from {
            Origin::Held(block) => block.len(),
            Origin::At(_) | Origin::Announced(..) | Origin::Came(..) => 0,
        }
    }

    /// The source that its bytes are to come from.
    fn source(&self) -> Option<u32> {
        match &self.from {
            Origin::Announced(_, ticket) => Some(ticket.source()),
            Origin::Held(_) | Origin::At(_) | Origin::Came(..) => None,
        }
    }

    fn frame_len(&self) -> usize {
        write::frame_len(&self.cid, self.len)
    }
}

impl Batch {
    /// Bytes of all frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to read; never so for a batch that a plan gave.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Number of blocks.
    #[must_use]
    pub fn n_blocks(&self) -> u64 {
        self.items.len() as u64
    }

    fn is_full(&self) -> bool {
        self.len >= BATCH_LEN || self.items.len() >= BATCH_BLOCKS_MAX
    }

    fn push(&mut self, item: Item) {
        self.len += match self.is_bare {
            true => item.len,
            false => item.frame_len(),
        };
        self.items.push(item);
    }

    /// Whether bytes that were announced are still to be [fetched](Self::fetch).
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.source().is_some()
    }

    /// The source that they come from. A plan gives batches of one at the most, so that none waits
    /// for another.
    #[must_use]
    pub fn source(&self) -> Option<u32> {
        self.items.iter().find_map(Item::source)
    }

    /// Waits for the bytes that lie elsewhere. A block whose place does not give them is taken
    /// from any other that has it.
    ///
    /// # Errors
    /// As [`Blocks::get`], for a block that no place gives.
    pub async fn fetch(mut self) -> Result<Self> {
        let mut items = Vec::with_capacity(self.items.len());
        for mut item in self.items.drain(..) {
            if let Origin::Announced(at, ticket) = item.from {
                item.from = match ticket.bytes().await {
                    Ok(pieces) => Origin::Came(at, pieces),
                    Err(_) => Origin::Held(self.blocks.get(&item.cid).await?),
                };
            }
            items.push(item);
        }
        self.items = items;
        Ok(self)
    }

    /// Reads, verifies and frames all blocks. Blocks; what lies elsewhere was fetched before, or
    /// is waited for here.
    ///
    /// # Errors
    /// Those of [`Blocks::read_into`]; no byte of the batch may be used then.
    pub fn read(self) -> Result<Bytes> {
        if self.is_elsewhere() {
            let handle = self.blocks.extents().sources().handle()?;
            return handle.block_on(self.fetch())?.read();
        }
        let filled = Filled::new(self)?;
        let digests = digest_all(&filled.messages());
        filled.finish(&digests)
    }

    /// The same, without blocking the thread that polls it; what is hashed is hashed together with
    /// what others read. `held` is held as long as the bytes are, whoever leaves. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_together<T>(self, held: T) -> Result<(Bytes, T)>
    where
        T: Send + Sync + 'static,
    {
        let batch = if self.is_elsewhere() {
            self.fetch().await?
        } else {
            self
        };
        let hasher = batch.blocks.hasher().clone();
        let filled = blocking(move || Ok((Filled::new(batch)?, held))).await?;
        if filled.0.is_proved() {
            let (filled, held) = filled;
            return Ok((filled.finish(&[])?, held));
        }
        let ((filled, held), digests) = hasher.digests(filled).await?;
        if filled.is_good(&digests) {
            return Ok((filled.finish(&digests)?, held));
        }
        blocking(move || Ok((filled.finish(&digests)?, held))).await
    }
}

/// A walk that cannot go on, as the product's error.
#[must_use]
pub fn walk_error(error: WalkError) -> Error {
    if let WalkError::LinksUnknown { .. } = error {
        return Error::with(ErrorKind::Partial, "the DAG may go on", error);
    }
    let kind = match error {
        WalkError::TooDeep { .. }
        | WalkError::StackTooLarge { .. }
        | WalkError::TooManyBlocks { .. } => ErrorKind::TooLarge,
        _ => ErrorKind::Invalid,
    };
    Error::with(kind, "the DAG cannot be walked", error)
}

#[cfg(test)]
mod tests;
