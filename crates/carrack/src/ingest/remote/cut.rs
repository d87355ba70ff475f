//! Bytes of a file as they arrive, cut into leaves that are hashed together with those of others.
//!
//! In       pieces of any length, in order, from the start of a leaf on.
//! Out      the digests of the leaf blocks.
//! Limits   [`LOTS_MAX`] lots of leaves wait to be hashed while one is filled, each of a leaf or
//!          about [`LOT_LEN`] bytes; who brings more waits.
//! Not here where the bytes come from (`ingest::remote::read`), who hashes (`store::hasher`).

use std::collections::VecDeque;

use bytes::Bytes;
use carrack_formats::unixfs::leaf;

use crate::error::Error;
use crate::ingest::hash::{Digest, LeafRule, Lot};
use crate::source::retry::Taker;
use crate::source::{SourceError, SourceErrorKind};
use crate::store::hasher::{Hasher, Pending};

/// Bytes from which on leaves are handed over to be hashed.
const LOT_LEN: usize = 512 << 10;
/// Lots of one range that wait to be hashed.
const LOTS_MAX: usize = 2;

/// The leaves of one range of a file.
pub(super) struct Cutter {
    rule: LeafRule,
    hasher: Hasher,
    file_len: u64,
    /// The leaf that is being filled.
    index: u64,
    /// The first leaf behind the range.
    end: u64,
    /// Bytes that the leaf still lacks.
    lacks: u32,
    suffix: Vec<u8>,
    lot: Lot,
    /// Lots that are being hashed, in order.
    pending: VecDeque<Pending<Lot>>,
    digests: Vec<Digest>,
}

impl Cutter {
    /// Leaves `first..first + n` of a file of `file_len` bytes.
    pub(super) fn new(rule: LeafRule, hasher: &Hasher, file_len: u64, first: u64, n: u64) -> Self {
        let end = first.saturating_add(n).min(rule.n_leaves(file_len));
        let mut cutter = Self {
            rule,
            hasher: hasher.clone(),
            file_len,
            index: first,
            end,
            lacks: 0,
            suffix: Vec::new(),
            lot: Lot::default(),
            pending: VecDeque::new(),
            digests: Vec::new(),
        };
        cutter.begin();
        if cutter.index < cutter.end && cutter.lacks == 0 {
            cutter.finish_leaf(); // An empty file's only leaf.
        }
        cutter
    }

    /// The digests, once all bytes have come; `None` if some are missing.
    ///
    /// # Errors
    /// `Unusable`: hashing failed.
    pub(super) async fn finish(mut self) -> Result<Option<Vec<Digest>>, SourceError> {
        if self.index != self.end {
            return Ok(None);
        }
        self.hash();
        while !self.pending.is_empty() {
            self.hashed().await?;
        }
        Ok(Some(self.digests))
    }

    fn begin(&mut self) {
        if self.index >= self.end {
            return;
        }
        self.lacks = self.rule.leaf(self.index, self.file_len).1;
        if !self.rule.raw {
            let (prefix, suffix) = leaf::frame(self.lacks as usize);
            self.lot.bytes.extend_from_slice(&prefix);
            self.suffix = suffix;
        }
    }

    fn finish_leaf(&mut self) {
        self.lot.bytes.extend_from_slice(&self.suffix);
        self.lot.ends.push(self.lot.bytes.len());
        self.index += 1;
    }

    /// Hands the lot over.
    fn hash(&mut self) {
        if !self.lot.ends.is_empty() {
            let lot = std::mem::take(&mut self.lot);
            self.pending.push_back(self.hasher.begin(lot));
        }
    }

    /// Waits for the oldest lot, whose memory is used again.
    async fn hashed(&mut self) -> Result<(), SourceError> {
        let Some(pending) = self.pending.pop_front() else {
            return Ok(());
        };
        let failed = |error: Error| SourceError::new(SourceErrorKind::Unusable, error.chain());
        let (mut lot, digests) = pending.done().await.map_err(failed)?;
        self.digests.extend(digests);
        if self.lot.bytes.capacity() == 0 {
            lot.truncate(0);
            self.lot = lot;
        }
        Ok(())
    }
}

impl Taker for &mut Cutter {
    /// The next bytes. Those behind the range are passed over.
    async fn take(&mut self, piece: Bytes) -> Result<(), SourceError> {
        let mut piece = &piece[..];
        while !piece.is_empty() && self.index < self.end {
            let n = piece.len().min(self.lacks as usize);
            let (now, later) = piece.split_at(n);
            self.lot.bytes.extend_from_slice(now);
            self.lacks -= u32::try_from(n).unwrap_or(self.lacks);
            piece = later;
            if self.lacks > 0 {
                continue;
            }
            self.finish_leaf();
            if self.lot.bytes.len() >= LOT_LEN {
                self.hash();
                if self.pending.len() >= LOTS_MAX {
                    self.hashed().await?;
                }
            }
            self.begin();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::{Strategy as _, any, prop, proptest};
    use sha2::{Digest as _, Sha256};

    use super::{Cutter, LOT_LEN};
    use crate::ingest::hash::LeafRule;
    use crate::source::retry::Taker;
    use crate::store::hasher::Hasher;

    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Runtime::new().unwrap();
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        RUNTIME.with(|runtime| runtime.block_on(work))
    }

    #[test]
    fn leaves_of_many_lots_keep_their_order() {
        let rule = LeafRule {
            chunk_size: 100_000,
            raw: true,
        };
        let bytes: Vec<u8> = (0..12 * LOT_LEN).map(|index| (index / 999) as u8).collect();
        let mut cutter = Cutter::new(rule, &Hasher::default(), bytes.len() as u64, 0, u64::MAX);
        for piece in bytes.chunks(70_001) {
            block_on((&mut cutter).take(Bytes::copy_from_slice(piece))).unwrap();
        }
        let leaves = bytes
            .chunks(100_000)
            .map(|leaf| Sha256::digest(leaf).into());
        let expected: Vec<[u8; 32]> = leaves.collect();
        assert_eq!(block_on(cutter.finish()).unwrap().unwrap(), expected);
    }

    proptest! {
        /// However the bytes arrive, each leaf is hashed as if it had come alone.
        #[test]
        fn pieces_of_any_length_give_the_same_leaves(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            chunk_size in 1u32..50,
            raw in any::<bool>(),
            cuts in prop::collection::vec(1usize..60, 0..40),
            first in (0u64..6).prop_map(|n| n),
        ) {
            let rule = LeafRule { chunk_size, raw };
            let len = bytes.len() as u64;
            let n_leaves = rule.n_leaves(len);
            let first = first.min(n_leaves - 1);
            let hasher = Hasher::default();
            let mut cutter = Cutter::new(rule, &hasher, len, first, n_leaves - first);
            let mut rest = &bytes[rule.leaf(first, len).0 as usize..];
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                block_on((&mut cutter).take(Bytes::copy_from_slice(now))).unwrap();
                rest = later;
            }
            let expected: Vec<[u8; 32]> = (first..n_leaves)
                .map(|index| {
                    let (offset, len) = rule.leaf(index, len);
                    let data = &bytes[offset as usize..][..len as usize];
                    let (prefix, suffix) = carrack_formats::unixfs::leaf::frame(data.len());
                    let framed = [&prefix, data, &suffix].concat();
                    Sha256::digest(if raw { data } else { &framed }).into()
                })
                .collect();
            assert_eq!(block_on(cutter.finish()).unwrap().unwrap(), expected);
        }

        #[test]
        fn a_range_that_ends_early_has_no_digests(len in 1u64..1000, missing in 1u64..10) {
            let rule = LeafRule { chunk_size: 100, raw: true };
            let mut cutter = Cutter::new(rule, &Hasher::default(), len, 0, u64::MAX);
            let bytes = vec![7; len.saturating_sub(missing) as usize];
            block_on((&mut cutter).take(bytes.into())).unwrap();
            assert!(block_on(cutter.finish()).unwrap().is_none());
        }
    }
}
