//! Changes to good bytes, for properties of whatever reads bytes of strangers.
//!
//! In       bytes.
//! Out      the same with some replaced, left out and put in.
//! Not here what is read (the fuzz bodies of each crate).

use proptest::collection::vec;
use proptest::prelude::*;

/// Where, how many bytes are left out, and what is put in.
pub type Damage = (usize, usize, Vec<u8>);

/// A few changes, or none.
pub fn damages() -> impl Strategy<Value = Vec<Damage>> {
    vec((any::<usize>(), 0_usize..3, vec(any::<u8>(), 0..4)), 0..4)
}

/// `bytes`, changed. Places are taken modulo the length.
#[must_use]
pub fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for (at, removed_len, inserted) in damages {
        let at = at % (bytes.len() + 1);
        let end = bytes.len().min(at + removed_len);
        bytes.splice(at..end, inserted.iter().copied());
    }
    bytes
}
