//! Bytes of a file as they arrive, cut into leaves and hashed.
//!
//! In       pieces of any length, in order, from the start of a leaf on.
//! Out      the digests of the leaf blocks.
//! Limits   holds no bytes: only the hasher's state.
//! Not here where the bytes come from (`ingest::remote::read`).

use carrack_formats::sha256::Sha256;
use carrack_formats::unixfs::leaf;

use crate::ingest::hash::{Digest, LeafRule};

/// The leaves of one range of a file.
pub(super) struct Cutter {
    rule: LeafRule,
    file_len: u64,
    /// The leaf that is being hashed.
    index: u64,
    /// The first leaf behind the range.
    end: u64,
    /// Bytes that the leaf still lacks.
    lacks: u32,
    sha: Sha256,
    suffix: Vec<u8>,
    digests: Vec<Digest>,
}

impl Cutter {
    /// Leaves `first..first + n` of a file of `file_len` bytes.
    pub(super) fn new(rule: LeafRule, file_len: u64, first: u64, n: u64) -> Self {
        let end = first.saturating_add(n).min(rule.n_leaves(file_len));
        let mut cutter = Self {
            rule,
            file_len,
            index: first,
            end,
            lacks: 0,
            sha: Sha256::new(),
            suffix: Vec::new(),
            digests: Vec::new(),
        };
        cutter.begin();
        cutter
    }

    /// The next bytes. Those behind the range are passed over.
    pub(super) fn push(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() && self.index < self.end {
            let n = piece.len().min(self.lacks as usize);
            let (now, later) = piece.split_at(n);
            self.sha.update(now);
            self.lacks -= u32::try_from(n).unwrap_or(self.lacks);
            piece = later;
            if self.lacks == 0 {
                self.finish_leaf();
            }
        }
    }

    /// The digests, once all bytes have come; `None` if some are missing.
    pub(super) fn finish(self) -> Option<Vec<Digest>> {
        (self.index == self.end).then_some(self.digests)
    }

    fn begin(&mut self) {
        if self.index >= self.end {
            return;
        }
        self.lacks = self.rule.leaf(self.index, self.file_len).1;
        if !self.rule.raw {
            let (prefix, suffix) = leaf::frame(self.lacks as usize);
            self.sha.update(&prefix);
            self.suffix = suffix;
        }
        if self.lacks == 0 {
            self.finish_leaf(); // An empty file's only leaf.
        }
    }

    fn finish_leaf(&mut self) {
        self.sha.update(&self.suffix);
        let sha = std::mem::take(&mut self.sha);
        self.digests.push(sha.finalize());
        self.index += 1;
        self.begin();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy as _, any, prop, proptest};
    use sha2::{Digest as _, Sha256};

    use super::Cutter;
    use crate::ingest::hash::LeafRule;

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
            let mut cutter = Cutter::new(rule, len, first, n_leaves - first);
            let mut rest = &bytes[rule.leaf(first, len).0 as usize..];
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                cutter.push(now);
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
            assert_eq!(cutter.finish().unwrap(), expected);
        }

        #[test]
        fn a_range_that_ends_early_has_no_digests(len in 1u64..1000, missing in 1u64..10) {
            let rule = LeafRule { chunk_size: 100, raw: true };
            let mut cutter = Cutter::new(rule, len, 0, u64::MAX);
            cutter.push(&vec![7; len.saturating_sub(missing) as usize]);
            assert!(cutter.finish().is_none());
        }
    }
}
