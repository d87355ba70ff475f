//! Frames whose bytes are there and are not verified yet.
//!
//! In       a batch, whatever lies elsewhere fetched; then the digests of what is to be proved.
//! Out      the frames, every block of them verified.
//! Limits   one buffer of the batch's length.
//! Not here who hashes (`store::hasher`), what a wrong block means for its file (`store::block`).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::car::write;
use carrack_formats::sha256::Digest;

use super::{Batch, Item, Origin};
use crate::error::{Error, ErrorKind, Result};
use crate::store::block::{Blocks, OpenContainer};
use crate::store::buffers::Buffer;
use crate::store::extent::Pieces;
use crate::store::hasher::{self, Messages};
use crate::store::location::Location;

/// The frames of a batch.
#[derive(Debug)]
pub(super) struct Filled {
    blocks: Blocks,
    buffer: Buffer,
    unproved: Vec<Unproved>,
}

/// A block that lies in the buffer, and whose digest is to be compared.
#[derive(Debug)]
struct Unproved {
    cid: Cid,
    at: Range<usize>,
    from: From,
}

/// Where its bytes were taken from.
#[derive(Debug)]
enum From {
    /// A file here, the first of these copies that could be read.
    Here(Arc<OpenContainer>, Location, Vec<Location>),
    /// Elsewhere.
    Came(Location, Pieces),
}

impl From {
    /// Where to look for a good copy.
    fn copies(&self) -> &[Location] {
        match self {
            Self::Here(_, _, locations) => locations,
            Self::Came(location, _) => std::slice::from_ref(location),
        }
    }
}

impl Filled {
    /// Reads all blocks of a batch of which nothing has to be fetched. Blocks.
    ///
    /// # Errors
    /// As [`Batch::read`].
    pub(super) fn new(mut batch: Batch) -> Result<Self> {
        let blocks = batch.blocks.clone();
        let mut buffer = blocks.buffer(batch.len);
        let (mut unproved, mut last) = (Vec::new(), None);
        let (mut offset, mut head) = (0, Vec::with_capacity(64));
        for item in batch.items.drain(..) {
            head.clear();
            if !batch.is_bare {
                write::frame_head(&mut head, &item.cid, item.len);
            }
            let frame = buffer.as_mut_slice().get_mut(offset..);
            let frame = frame.and_then(|frame| frame.get_mut(..head.len() + item.len));
            let (start, data) = frame
                .and_then(|frame| frame.split_at_mut_checked(head.len()))
                .ok_or_else(|| {
                    Error::new(ErrorKind::Internal, "frames are longer than was planned")
                })?;
            start.copy_from_slice(&head);
            let at = offset + head.len()..offset + head.len() + item.len;
            offset = at.end;
            let cid = item.cid;
            if let Some(from) = fill(&blocks, item, &mut last, data)? {
                unproved.push(Unproved { cid, at, from });
            }
        }
        Ok(Self {
            blocks,
            buffer,
            unproved,
        })
    }

    /// Whether nothing is to be hashed.
    pub(super) fn is_proved(&self) -> bool {
        self.unproved.is_empty()
    }

    /// How many digests it takes.
    pub(super) fn n_unproved(&self) -> usize {
        self.unproved.len()
    }

    /// Whether all blocks are what they should be.
    pub(super) fn is_good(&self, digests: &[Digest]) -> bool {
        let mut all = self.unproved.iter().zip(digests);
        all.all(|(block, digest)| block.is_good(digest))
    }

    /// The frames. Blocks if a block [is not good](Self::is_good): it is read again, from wherever
    /// there is a good copy of it.
    ///
    /// # Errors
    /// As [`Batch::read`].
    pub(super) fn finish(mut self, digests: &[Digest]) -> Result<Bytes> {
        let mut last = None;
        for (block, digest) in self.unproved.iter().zip(digests) {
            let (cid, is_good) = (&block.cid, block.is_good(digest));
            match &block.from {
                From::Came(_, pieces) if is_good => pieces.prove(cid),
                From::Here(container, location, _) if is_good => {
                    self.blocks.found_good_here(container, *location);
                }
                From::Came(..) | From::Here(..) => {
                    let data = self.buffer.as_mut_slice().get_mut(block.at.clone());
                    let (data, copies) = (data.unwrap_or_default(), block.from.copies());
                    self.blocks.read_into(cid, copies, &mut last, data)?;
                }
            }
        }
        if self.unproved.len() != digests.len() {
            return Err(Error::new(ErrorKind::Internal, "a digest is missing"));
        }
        Ok(self.buffer.freeze())
    }
}

impl Unproved {
    fn is_good(&self, digest: &Digest) -> bool {
        self.is_proved() || self.cid.hash().digest() == digest
    }

    /// Whether somebody else has proved these very bytes meanwhile.
    fn is_proved(&self) -> bool {
        matches!(&self.from, From::Came(_, pieces) if pieces.is_proved(&self.cid))
    }
}

impl Messages for Filled {
    fn messages(&self) -> Vec<&[u8]> {
        let all = self.buffer.as_ref();
        let message = |block: &Unproved| match block.is_proved() {
            true => &[][..], // Its digest is not looked at.
            false => all.get(block.at.clone()).unwrap_or_default(),
        };
        self.unproved.iter().map(message).collect()
    }
}

/// Brings one block; what is given back still has to be proved.
fn fill(
    blocks: &Blocks,
    item: Item,
    last: &mut Option<Arc<OpenContainer>>,
    data: &mut [u8],
) -> Result<Option<From>> {
    let cid = item.cid;
    let in_lanes = hasher::hashes(&cid);
    match item.from {
        Origin::Held(block) if block.len() == data.len() => data.copy_from_slice(&block),
        Origin::Held(_) | Origin::Announced(..) => {
            let what = format!("{cid} has another length than was planned");
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        Origin::Came(at, pieces)
            if in_lanes
                && !pieces.is_proved(&cid)
                && blocks.copy_into(&cid, at, &pieces, data).is_ok() =>
        {
            return Ok(Some(From::Came(at, pieces)));
        }
        Origin::Came(at, pieces) => {
            if blocks.verify_into(&cid, at, &pieces, data).is_err() {
                // Finds out why, marks the place, and tries the others.
                blocks.read_into(&cid, &[at], last, data)?;
            }
        }
        Origin::At(locations) if in_lanes => {
            let read = blocks.read_unproved(&cid, &locations, last, data)?;
            return Ok(read.map(|(container, at)| From::Here(container, at, locations)));
        }
        Origin::At(locations) => blocks.read_into(&cid, &locations, last, data)?,
    }
    Ok(None)
}
