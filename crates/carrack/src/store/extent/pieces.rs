//! Bytes as they landed, and what was found to be true of them.
//!
//! In       pieces of up to 2 MiB, each one allocation; what their readers verified in them.
//! Out      ranges of them without a copy, and whether somebody has hashed that range before.
//! Limits   [`PROOFS_MAX`] remembered ranges a piece.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use carrack_formats::Cid;

use super::sync::{Mutex, hold};

/// Ranges of one piece that are remembered as verified: a 256 KiB piece of 1 KiB blocks has as
/// many.
const PROOFS_MAX: usize = 256;

/// Bytes of one range, in the pieces that they came in.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    parts: Vec<Bytes>,
    proof: Option<Proof>,
}

/// One piece that has come.
#[derive(Debug, Clone)]
pub(super) struct Landed {
    /// Names it: no other piece has or had the number.
    pub(super) id: u64,
    /// Where it begins in its container.
    pub(super) start: u64,
    /// The bytes.
    pub(super) bytes: Bytes,
    proofs: Arc<Proofs>,
}

/// What was verified in one piece, or from its end on into the next.
#[derive(Debug, Default)]
struct Proofs {
    known: Mutex<Vec<(Claim, Cid)>>,
}

/// A range that may be known: it begins in one piece and ends in that or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    start: u64,
    len: u64,
    /// The piece that it ends in.
    last: u64,
}

#[derive(Debug, Clone)]
struct Proof {
    proofs: Arc<Proofs>,
    claim: Claim,
}

impl Landed {
    /// A piece with nothing known of it.
    pub(super) fn new(id: u64, start: u64, bytes: Bytes) -> Self {
        Self {
            id,
            start,
            bytes,
            proofs: Arc::default(),
        }
    }

    /// The part of `range` that it has, without a copy.
    fn part(&self, range: &Range<u64>) -> Bytes {
        let len = self.bytes.len() as u64;
        let at = |offset: u64| {
            let inside = offset.saturating_sub(self.start).min(len);
            usize::try_from(inside).unwrap_or_default() // At most `len`, which is one.
        };
        let (start, end) = (at(range.start), at(range.end));
        self.bytes.slice(start.min(end)..end)
    }
}

impl Pieces {
    /// The bytes of `range` out of pieces that follow each other.
    pub(super) fn of(landed: &[Landed], range: &Range<u64>) -> Self {
        let parts = landed.iter().map(|piece| piece.part(range));
        let parts = parts.filter(|part| !part.is_empty()).collect();
        let (first, last) = (landed.first(), landed.last());
        let proof = first.zip(last).filter(|_| landed.len() <= 2);
        let proof = proof.map(|(first, last)| Proof {
            proofs: Arc::clone(&first.proofs),
            claim: Claim {
                start: range.start,
                len: range.end - range.start,
                last: last.id,
            },
        });
        Self { parts, proof }
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces in order.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// Whether somebody has found these very bytes to be the block before.
    #[must_use]
    pub fn is_proved(&self, cid: &Cid) -> bool {
        let Some(proof) = &self.proof else {
            return false;
        };
        let known = hold(&proof.proofs.known);
        let found = known.binary_search_by(|(claim, _)| claim.cmp(&proof.claim));
        found.is_ok_and(|index| known.get(index).is_some_and(|(_, found)| found == cid))
    }

    /// Remembers that they are.
    pub fn prove(&self, cid: &Cid) {
        let Some(proof) = &self.proof else { return };
        let mut known = hold(&proof.proofs.known);
        if known.len() >= PROOFS_MAX {
            return;
        }
        let found = known.binary_search_by(|(claim, _)| claim.cmp(&proof.claim));
        if let Err(index) = found {
            known.insert(index, (proof.claim, *cid));
        }
    }
}
