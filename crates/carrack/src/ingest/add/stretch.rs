//! A big file, cut into what is to be read and what is known to be zeros.
//!
//! In       an open file, and the leaf up to which it was cut.
//! Out      the next leaves: a range to read and hash, or leaves that lie in a hole.
//! Limits   ranges of [`RANGE_LEN`] bytes; [`HOLE_LEAVES_MAX`] leaves of a hole at a time, so that
//!          whoever goes through them can stop.
//! Not here what becomes of either (`ingest::add::files`).

use std::sync::Arc;

use super::files::{RANGE_LEAVES_MAX, RANGE_LEN};
use crate::ingest::hash::{Digest, LeafRule};
use crate::source::local::LocalFile;

/// Leaves of a hole that are given at once.
const HOLE_LEAVES_MAX: u64 = 1 << 16;
/// Files shorter than this are read as they are, in bytes: a hole saves less than looking for it.
const LEN_MIN: u64 = 64 << 20;

/// The next leaves of a file.
pub(super) enum Stretch {
    /// So many that are to be read.
    Data(u32),
    /// So many of zeros, and the digest of each.
    Zeros(Digest, u64),
}

/// The stretches of one file.
pub(super) struct Stretches {
    rule: LeafRule,
    file: Arc<LocalFile>,
    len: u64,
    /// Up to here it is known what the file has: data from the last place asked for, or a hole.
    data_end: u64,
    hole_end: u64,
    /// Digest of a full leaf of zeros.
    zeros: Option<Digest>,
}

impl Stretches {
    pub(super) fn new(rule: LeafRule, file: &Arc<LocalFile>) -> Self {
        let len = file.validator.size();
        Self {
            rule,
            file: Arc::clone(file),
            len,
            data_end: if len < LEN_MIN { len } else { 0 },
            hole_end: 0,
            zeros: None,
        }
    }

    /// What comes at leaf `first`, which the file has. Leaves are asked for in order.
    pub(super) fn next(&mut self, first: u64) -> Stretch {
        let (start, _) = self.rule.leaf(first, self.len);
        let chunk = u64::from(self.rule.chunk_size);
        if start >= self.data_end && start >= self.hole_end {
            self.look(start);
        }
        let n_zeros = self.hole_end.saturating_sub(start) / chunk; // Whole leaves only.
        if n_zeros > 0 {
            let (rule, len) = (self.rule, self.rule.chunk_size);
            let zeros = *self.zeros.get_or_insert_with(|| rule.zeros(len));
            return Stretch::Zeros(zeros, n_zeros.min(HOLE_LEAVES_MAX));
        }
        // With the rest of a hole that ends within a leaf, up to the leaf that ends the data.
        let end = self.data_end.max(self.hole_end).min(self.len);
        let n_data = end.saturating_sub(start).div_ceil(chunk);
        let n_left = self.rule.n_leaves(self.len).saturating_sub(first);
        let n = self.rule.leaves_of(RANGE_LEN, RANGE_LEAVES_MAX);
        let n = n.min(n_data).min(n_left).max(1);
        Stretch::Data(u32::try_from(n).unwrap_or(1)) // At most RANGE_LEAVES_MAX.
    }

    /// Finds out what the file has from `start` on.
    fn look(&mut self, start: u64) {
        let data = self.file.next_data(start).unwrap_or(start);
        if data > start {
            self.hole_end = data.min(self.len);
            return;
        }
        // A file system that does not tell has no holes.
        let hole = self.file.next_hole(start).unwrap_or(self.len);
        self.data_end = hole.clamp(start.saturating_add(1), self.len.max(start + 1));
    }
}
