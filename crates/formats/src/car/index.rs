//! Indexes of a CARv2: IndexSorted and MultihashIndexSorted.
//!
//! In       the bytes from the index's offset on; for writing, digests and offsets.
//! Out      digests with the offset of their section, counted from the start of the CARv1 (at
//!          the length prefix, not at the data).
//! Limits   counts are checked against the bytes that are there; [`BUCKETS_MAX`] buckets; digests
//!          of [`DIGEST_LEN_MAX`] bytes. Reading copies and allocates nothing a record.
//! Not here trust: an index says what its writer wanted. Whoever uses an offset parses the section
//!          there and verifies the block.
//!
//! Layout, all numbers little-endian; the kind before it is a varint:
//!
//! ```text
//! 0x0400  i32 n_widths, then each width:  u32 width, i64 bytes, records sorted by digest
//! 0x0401  i32 n_codes,  then each code:   u64 code, i32 n_widths, widths as above
//! record  digest (width - 8 bytes), u64 offset
//! ```
//!
//! Spec: <https://ipld.io/specs/transport/car/carv2/#index-format>

use super::CarError;
use crate::{DIGEST_LEN_MAX, Multihash, varint};

/// Most runs of records of one hash code and one width in an index.
pub const BUCKETS_MAX: usize = 4096;

/// Bytes of an offset in a record.
const OFFSET_LEN: usize = 8;

/// What records are found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexKind {
    /// By digest alone (`0x0400`).
    Sorted,
    /// By hash code and digest (`0x0401`).
    MultihashSorted,
}

impl IndexKind {
    /// The multicodec that stands before the index.
    pub const fn code(self) -> u64 {
        match self {
            Self::Sorted => 0x0400,
            Self::MultihashSorted => 0x0401,
        }
    }
}

/// One line of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record<'a> {
    /// The hash code; `None` from an index that has none.
    pub hash_code: Option<u64>,
    /// The digest.
    pub digest: &'a [u8],
    /// Where the section starts, counted from the start of the CARv1.
    pub offset: u64,
}

/// An index as it lies in memory.
#[derive(Debug, Clone)]
pub struct Index<'a> {
    kind: IndexKind,
    buckets: Vec<Bucket<'a>>,
    len: usize,
}

/// Records of one code and width.
#[derive(Debug, Clone, Copy)]
struct Bucket<'a> {
    hash_code: Option<u64>,
    digest_len: usize,
    /// A whole number of records.
    records: &'a [u8],
}

impl<'a> Index<'a> {
    /// Reads the shape of the index at the front of `bytes`.
    ///
    /// # Errors
    /// `Index` if the kind is unknown, or a count or width does not fit the bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CarError> {
        let mut reader = Reader { bytes, at: 0 };
        let kind = reader.kind()?;
        let mut buckets = Vec::new();
        match kind {
            IndexKind::Sorted => reader.widths(None, &mut buckets)?,
            IndexKind::MultihashSorted => {
                for _ in 0..reader.count()? {
                    let code = u64::from_le_bytes(reader.array()?);
                    reader.widths(Some(code), &mut buckets)?;
                }
            }
        }
        Ok(Self {
            kind,
            buckets,
            len: reader.at,
        })
    }

    /// What records are found by.
    pub fn kind(&self) -> IndexKind {
        self.kind
    }

    /// Bytes of the index, its kind included.
    pub fn byte_len(&self) -> usize {
        self.len
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.n_records()).sum()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All records as they lie: by code, width and digest.
    pub fn iter(&self) -> impl Iterator<Item = Record<'a>> + '_ {
        self.buckets
            .iter()
            .flat_map(|bucket| (0..bucket.n_records()).filter_map(|index| bucket.get(index)))
    }

    /// The offsets for a multihash, by binary search. An index that is not sorted answers
    /// something, and something wrong: the section has to be looked at in any case.
    pub fn get<'s>(&'s self, multihash: &'s Multihash) -> impl Iterator<Item = u64> + 's {
        let digest = multihash.digest();
        let is_like = move |bucket: &&Bucket<'_>| {
            bucket.digest_len == digest.len()
                && bucket.hash_code.is_none_or(|code| code == multihash.code())
        };
        self.buckets.iter().filter(is_like).flat_map(move |bucket| {
            (bucket.first_at_least(digest)..bucket.n_records())
                .map_while(|index| bucket.get(index))
                .take_while(move |record| record.digest == digest)
                .map(|record| record.offset)
        })
    }
}

impl<'a> Bucket<'a> {
    fn width(&self) -> usize {
        self.digest_len + OFFSET_LEN
    }

    fn n_records(&self) -> usize {
        self.records.len() / self.width()
    }

    fn get(&self, index: usize) -> Option<Record<'a>> {
        let start = index.checked_mul(self.width())?;
        let record = self.records.get(start..start.checked_add(self.width())?)?;
        let (digest, offset) = record.split_last_chunk()?;
        let offset = u64::from_le_bytes(*offset);
        Some(Record {
            hash_code: self.hash_code,
            digest,
            offset,
        })
    }

    fn first_at_least(&self, digest: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.n_records());
        while low < high {
            let middle = low + (high - low) / 2;
            if self
                .get(middle)
                .is_some_and(|record| record.digest < digest)
            {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// Reads numbers; never looks outside of `bytes`.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn bad(&self, reason: &'static str) -> CarError {
        CarError::Index {
            offset: self.at as u64,
            reason,
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], CarError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(taken) = rest.get(..len) else {
            return Err(self.bad("it ends before its records do"));
        };
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CarError> {
        let taken = self.take(N)?;
        taken
            .first_chunk::<N>()
            .copied()
            .ok_or_else(|| self.bad("it ends before its records do"))
    }

    fn kind(&mut self) -> Result<IndexKind, CarError> {
        let Ok(Some((code, len))) = varint::read(self.bytes) else {
            return Err(self.bad("its kind is malformed"));
        };
        let kinds = [IndexKind::Sorted, IndexKind::MultihashSorted];
        let Some(kind) = kinds.into_iter().find(|kind| kind.code() == code) else {
            return Err(self.bad("its kind is unknown"));
        };
        self.at = len;
        Ok(kind)
    }

    fn count(&mut self) -> Result<u32, CarError> {
        let count = i32::from_le_bytes(self.array()?);
        u32::try_from(count).map_err(|_| self.bad("a count is negative"))
    }

    fn widths(
        &mut self,
        hash_code: Option<u64>,
        buckets: &mut Vec<Bucket<'a>>,
    ) -> Result<(), CarError> {
        for _ in 0..self.count()? {
            let width = u32::from_le_bytes(self.array()?) as usize;
            if width <= OFFSET_LEN || width > OFFSET_LEN + DIGEST_LEN_MAX {
                return Err(self.bad("no digest has this width"));
            }
            let Ok(len) = usize::try_from(i64::from_le_bytes(self.array()?)) else {
                return Err(self.bad("a length is negative"));
            };
            if !len.is_multiple_of(width) {
                return Err(self.bad("a length is no whole number of records"));
            }
            let records = self.take(len)?;
            if buckets.len() >= BUCKETS_MAX {
                return Err(self.bad("it has too many widths"));
            }
            buckets.push(Bucket {
                hash_code,
                digest_len: width - OFFSET_LEN,
                records,
            });
        }
        Ok(())
    }
}

/// Writes an index, its kind included. Sorts `records`.
///
/// Identity CIDs, and records whose digest is empty or longer than [`DIGEST_LEN_MAX`], are left
/// out: readers of other projects refuse an index with them. So are records without a hash code
/// where the kind needs one.
pub fn write(kind: IndexKind, records: &mut [Record<'_>]) -> Vec<u8> {
    let code_of = |record: &Record<'_>| match kind {
        IndexKind::Sorted => None,
        IndexKind::MultihashSorted => record.hash_code,
    };
    records.sort_unstable_by(|a, b| {
        let key = |record: &Record<'_>| (code_of(record), record.digest.len());
        (key(a), a.digest, a.offset).cmp(&(key(b), b.digest, b.offset))
    });
    let kept: Vec<&Record<'_>> = records
        .iter()
        .filter(|record| is_kept(kind, record))
        .collect();
    let by_code: Vec<_> = kept.chunk_by(|a, b| code_of(a) == code_of(b)).collect();

    let mut out = Vec::new();
    varint::write(&mut out, kind.code());
    match kind {
        IndexKind::Sorted => write_widths(&mut out, &kept),
        IndexKind::MultihashSorted => {
            out.extend_from_slice(&(by_code.len() as u32).to_le_bytes());
            for run in by_code {
                let code = run
                    .first()
                    .and_then(|record| record.hash_code)
                    .unwrap_or_default();
                out.extend_from_slice(&code.to_le_bytes());
                write_widths(&mut out, run);
            }
        }
    }
    out
}

fn is_kept(kind: IndexKind, record: &Record<'_>) -> bool {
    let has_code = record.hash_code.is_some() || kind == IndexKind::Sorted;
    let is_identity = record.hash_code == Some(crate::cid::IDENTITY);
    has_code && !is_identity && (1..=DIGEST_LEN_MAX).contains(&record.digest.len())
}

fn write_widths(out: &mut Vec<u8>, records: &[&Record<'_>]) {
    let by_width: Vec<_> = records
        .chunk_by(|a, b| a.digest.len() == b.digest.len())
        .collect();
    out.extend_from_slice(&(by_width.len() as u32).to_le_bytes());
    for run in by_width {
        let digest_len = run.first().map_or(0, |record| record.digest.len());
        let width = digest_len + OFFSET_LEN;
        out.extend_from_slice(&(width as u32).to_le_bytes());
        out.extend_from_slice(&((run.len() * width) as u64).to_le_bytes());
        out.reserve(run.len() * width);
        for record in run {
            out.extend_from_slice(record.digest);
            out.extend_from_slice(&record.offset.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
