//! What an index claims: where the sections of a CAR start.
//!
//! In       an index as it lies in a CARv2 or beside a CAR, with where the CARv1 lies.
//! Out      section starts inside of the CARv1, ascending, each with where the next one starts.
//! Limits   [`INDEX_LEN_MAX`] bytes of an index, 40 bytes a section in memory.
//! Not here reading sections (`heads`). Nothing here is trusted: an offset that is a lie leads to a
//!          head that does not name the digest, a wrong length to a block that fails its hash.

use std::ops::Range;

use carrack_formats::Cid;
use carrack_formats::car::index::Index;
use carrack_formats::car::shards::Slice;

/// Longest index that is used, in bytes: six million sections. CARs with a longer one are read.
pub(crate) const INDEX_LEN_MAX: u64 = 256 << 20;

/// A section that should be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Where it starts in the file.
    pub(crate) start: u64,
    /// Where the next one starts, or the CARv1 ends.
    pub(crate) end: u64,
    hash_code: Option<u64>,
    digest_len: u32,
    /// The digest's first bytes: enough to see that the index is of this CAR.
    digest: [u8; 8],
}

impl Claim {
    /// Whether the section with this CID is the one that was claimed.
    pub(crate) fn is_of(&self, cid: &Cid) -> bool {
        let hash = cid.hash();
        self.hash_code.is_none_or(|code| code == hash.code())
            && self.digest_len as usize == hash.digest().len()
            && self.digest == first_bytes(hash.digest())
    }
}

impl Claim {
    /// A section that a sharded index names.
    pub(crate) fn of_slice(slice: &Slice) -> Self {
        let digest = slice.multihash.digest();
        Self {
            start: slice.offset,
            end: slice.offset.saturating_add(slice.len),
            hash_code: Some(slice.multihash.code()),
            digest_len: u32::try_from(digest.len()).unwrap_or(u32::MAX),
            digest: first_bytes(digest),
        }
    }
}

fn first_bytes(digest: &[u8]) -> [u8; 8] {
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(digest) {
        *to = *from;
    }
    first
}

/// The sections that `index` names, of a CARv1 that lies at `car` with sections from `first` on.
///
/// # Errors
/// A sentence about what is wrong with the index.
pub(crate) fn sections(index: &[u8], car: &Range<u64>, first: u64) -> Result<Vec<Claim>, String> {
    let index = Index::parse(index).map_err(|error| error.to_string())?;
    let mut claims = Vec::with_capacity(index.len()); // Each has bytes in the index.
    for record in index.iter() {
        let start = car.start.checked_add(record.offset);
        let start = start.filter(|start| (first..car.end).contains(start));
        let Some(start) = start else {
            return Err(format!("byte {} is outside of the CAR", record.offset));
        };
        claims.push(Claim {
            start,
            end: car.end,
            hash_code: record.hash_code,
            digest_len: u32::try_from(record.digest.len()).unwrap_or(u32::MAX),
            digest: first_bytes(record.digest),
        });
    }
    if claims.is_empty() {
        return Err("it names no section".to_owned());
    }
    claims.sort_unstable_by_key(|claim| claim.start);
    claims.dedup_by_key(|claim| claim.start);
    let mut next = car.end;
    for claim in claims.iter_mut().rev() {
        claim.end = next;
        next = claim.start;
    }
    Ok(claims)
}

/// What any bytes as an index must not do: panic, or claim bytes outside of the CAR.
#[cfg(any(test, feature = "fuzz"))]
pub fn claims(index: &[u8]) {
    let car = 51..1 << 20;
    let Ok(claims) = sections(index, &car, 100) else {
        return;
    };
    let mut at = 100;
    for claim in claims {
        assert!(at <= claim.start && claim.start < claim.end && claim.end <= car.end);
        at = claim.end;
    }
}

#[cfg(test)]
mod tests {
    use carrack_formats::car::index::{IndexKind, Record, write};
    use proptest::prelude::{any, prop, proptest};

    use super::{claims as fuzz, sections};

    proptest! {
        #[test]
        fn claims_of_any_index_stay_inside_of_the_car(
            offsets in prop::collection::vec(any::<u64>(), 0..40),
            small in prop::collection::vec(0u64..(1 << 20), 0..40),
            kind in any::<bool>(),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            keeps_all in any::<bool>(),
        ) {
            let offsets = if keeps_all { offsets } else { small };
            let mut records: Vec<Record<'_>> = offsets
                .iter()
                .map(|&offset| Record { hash_code: Some(0x12), digest: &[7; 32], offset })
                .collect();
            let kind = if kind { IndexKind::Sorted } else { IndexKind::MultihashSorted };
            let mut bytes = write(kind, &mut records);
            fuzz(&bytes);
            for (place, byte) in flips {
                let place = place.index(bytes.len());
                bytes[place] ^= byte;
            }
            fuzz(&bytes);
        }

        #[test]
        fn noise_is_no_index(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&bytes);
        }
    }

    #[test]
    fn sections_end_where_the_next_one_starts() {
        let digest = [1; 32];
        let record = |offset| Record {
            hash_code: None,
            digest: &digest,
            offset,
        };
        let index = write(
            IndexKind::Sorted,
            &mut [record(500), record(60), record(60)],
        );
        let claims = sections(&index, &(51..1000), 100).unwrap();
        let ranges: Vec<_> = claims
            .iter()
            .map(|claim| (claim.start, claim.end))
            .collect();
        assert_eq!(ranges, [(111, 551), (551, 1000)]);
        assert!(sections(&index, &(51..500), 100).is_err());
    }
}
