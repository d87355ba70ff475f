//! Records of a journal: believed whole or not at all.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a panic is how a fuzz target fails"
)]

use super::{CHECKSUM_LEN, RECORD_LEAVES_MAX, checksum, read_record};

/// The bytes are tried as they are, then as a record with the right checksum, then with one bit of
/// that flipped.
pub fn journal(bytes: &[u8]) {
    let mut rest = bytes;
    let mut n_leaves = 0;
    while let Ok(leaves) = read_record(&mut rest, n_leaves) {
        n_leaves += leaves.len() as u64;
    }
    assert!(n_leaves as usize * 32 <= bytes.len());

    let Some((head, leaves)) = bytes.split_first_chunk::<12>() else {
        return;
    };
    let first = u64::from_le_bytes(*head.first_chunk().unwrap());
    let n = u32::from_le_bytes(*head.last_chunk().unwrap());
    let sealed = [bytes, &checksum(bytes)].concat();
    let fits = (1..=RECORD_LEAVES_MAX).contains(&n) && n as usize * 32 == leaves.len();
    let read = read_record(&mut &sealed[..], first);
    assert_eq!(read.is_ok(), fits);
    assert!(read.is_err() || read.unwrap().concat() == leaves);
    assert!(read_record(&mut &sealed[..], first.wrapping_add(1)).is_err());
    for cut in [
        sealed.len() - 1,
        bytes.len(),
        sealed.len() - CHECKSUM_LEN / 2,
    ] {
        assert!(read_record(&mut &sealed[..cut], first).is_err());
    }
    let mut flipped = sealed;
    let bit = first as usize % (flipped.len() * 8);
    flipped[bit / 8] ^= 1 << (bit % 8);
    let first = u64::from_le_bytes(*flipped.first_chunk().unwrap());
    assert!(read_record(&mut &flipped[..], first).is_err());
}
