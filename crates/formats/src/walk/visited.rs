//! Which blocks an answer without duplicates has already.
//!
//! In       CIDs, each with whether all below it is wanted.
//! Out      what to do with the block.
//! Limits   as many CIDs as the caller allows, at 16 bytes and the table's slack each.
//! Not here answers with duplicates, which remember nothing.
//!
//! A key is 128 bits of the CID. Finding two blocks with one key takes 2^64 hashes, and whoever
//! does damages only answers about his own DAG.

use std::collections::HashSet;

use crate::Cid;

/// What to do with a block that a link names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Visit {
    /// Send it and look below it.
    First,
    /// It was sent, but not all below it: look below, do not send.
    Again,
    /// It was sent and so was all below it.
    Skip,
}

/// The limit is reached.
#[derive(Debug)]
pub(super) struct Full;

#[derive(Debug, Default)]
pub(super) struct Visited {
    sent: HashSet<u128>,
    /// Those of `sent` of which only a part was wanted. At most two per level of a file.
    partial: HashSet<u128>,
}

impl Visited {
    /// Bytes of both tables: keys, a byte beside each, and the slots that are kept free.
    pub(super) fn memory_len(&self) -> usize {
        (self.sent.capacity() + self.partial.capacity()).saturating_mul(20)
    }

    pub(super) fn visit(&mut self, cid: &Cid, partial: bool, max: usize) -> Result<Visit, Full> {
        let key = key(cid);
        if self.sent.contains(&key) {
            if !self.partial.contains(&key) {
                return Ok(Visit::Skip);
            }
            if !partial {
                self.partial.remove(&key);
            }
            return Ok(Visit::Again);
        }
        if self.sent.len() >= max {
            return Err(Full);
        }
        self.sent.insert(key);
        if partial {
            self.partial.insert(key);
        }
        Ok(Visit::First)
    }
}

fn key(cid: &Cid) -> u128 {
    let mut front = [0; 16];
    for (to, from) in front.iter_mut().zip(cid.hash().digest()) {
        *to = *from;
    }
    let kind = [cid.codec(), cid.hash().code(), u64::from(cid.version())];
    let kind = kind.iter().fold(0_u128, |sum, n| {
        (sum ^ u128::from(*n)).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
    });
    u128::from_le_bytes(front) ^ kind
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::cid::Version;

    #[test]
    fn a_part_is_walked_again_but_not_sent_again() {
        let cid = |codec, n| crate::cid::from_sha256(Version::V1, codec, &[n; 32]);
        let mut visited = Visited::default();
        let mut visit = |cid, partial| visited.visit(&cid, partial, 3).ok();
        assert_eq!(visit(cid(0x70, 1), true), Some(Visit::First));
        assert_eq!(visit(cid(0x70, 1), true), Some(Visit::Again));
        assert_eq!(visit(cid(0x70, 1), false), Some(Visit::Again));
        assert_eq!(visit(cid(0x70, 1), false), Some(Visit::Skip));
        assert_eq!(visit(cid(0x70, 1), true), Some(Visit::Skip));
        assert_eq!(
            visit(cid(0x55, 1), false),
            Some(Visit::First),
            "another codec"
        );
        assert_eq!(visit(cid(0x55, 2), false), Some(Visit::First));
        assert_eq!(visit(cid(0x55, 3), false), None, "full");
        assert_eq!(
            visit(cid(0x55, 2), false),
            Some(Visit::Skip),
            "full, but known"
        );
    }
}
