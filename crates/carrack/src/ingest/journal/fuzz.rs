//! Records of a journal: believed whole or not at all.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a panic is how a fuzz target fails"
)]

use super::{CHECKSUM_LEN, RECORD_LEAVES_MAX, REPEATED, checksum, read_record};

/// The bytes are tried as they are, then as a record with the right checksum, then with one bit of
/// that flipped.
pub fn journal(bytes: &[u8]) {
    let mut rest = bytes;
    let (mut n_leaves, mut n_digests) = (0, 0);
    while let Ok(leaves) = read_record(&mut rest, n_leaves) {
        n_leaves += leaves.n();
        n_digests += leaves.digests().len();
    }
    assert!(n_digests * 32 <= bytes.len());

    let Some((head, leaves)) = bytes.split_first_chunk::<12>() else {
        return;
    };
    let first = u64::from_le_bytes(*head.first_chunk().unwrap());
    let n = u32::from_le_bytes(*head.last_chunk().unwrap());
    let sealed = [bytes, &checksum(bytes)].concat();
    let is_repeated = n > REPEATED;
    let leaves_len = if is_repeated { 32 } else { n as usize * 32 };
    let n_is_sound = is_repeated || (1..=RECORD_LEAVES_MAX).contains(&n);
    // A fuzzer finds checksums, too: the bytes may begin with a whole record.
    let record = sealed.get(..12 + leaves_len);
    let sum = sealed.get(12 + leaves_len..12 + leaves_len + CHECKSUM_LEN);
    let is_whole = record.is_some_and(|record| sum == Some(&checksum(record)));
    let read = read_record(&mut &sealed[..], first);
    assert_eq!(read.is_ok(), n_is_sound && is_whole);
    assert!(read.is_err() || read.unwrap().digests().concat() == leaves[..leaves_len]);
    if n_is_sound && leaves_len == leaves.len() {
        refuses_damage(sealed, first);
    }
}

/// A whole record in another place, cut, or with one bit flipped is none.
fn refuses_damage(sealed: Vec<u8>, first: u64) {
    assert!(read_record(&mut &sealed[..], first.wrapping_add(1)).is_err());
    for cut in [1, CHECKSUM_LEN / 2, CHECKSUM_LEN].map(|less| sealed.len() - less) {
        assert!(read_record(&mut &sealed[..cut], first).is_err());
    }
    let mut flipped = sealed;
    let bit = first as usize % (flipped.len() * 8);
    if (8..12).contains(&(bit / 8)) {
        return; // Another number of leaves, for which the leaves may hold a checksum.
    }
    flipped[bit / 8] ^= 1 << (bit % 8);
    let first = u64::from_le_bytes(*flipped.first_chunk().unwrap());
    assert!(read_record(&mut &flipped[..], first).is_err());
}
