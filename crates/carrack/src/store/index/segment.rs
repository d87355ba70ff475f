//! One sealed segment: a memory map and three binary searches.
//!
//! In       a digest. Out every location of it in this segment, lowest container first.
//! Limits   a miss reads one cache line of the filter; a hit reads one page of records besides,
//!          more only if the copies of one block fill it.
//! Not here the set of live segments (`index`), layout checks (`format`).
//!
//! The map is of a file that carrack wrote, sealed and never truncates: merging unlinks it, which
//! leaves the map alone. A disk that fails under a map ends the process with SIGBUS.

use std::cmp::Ordering;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap};

use super::format::{
    FILTER_BLOCK_LEN, Header, PAGE_LEN, TableLayout, damaged, filter_bits_of, filter_block_of,
    prefix_of, read_place, sum_of,
};
use super::{SegmentId, SegmentMeta};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::store::location::Location;

/// Steps of the linear search inside a page before it becomes a binary one.
const LINEAR_STEPS_MAX: usize = 12;

/// A mapped segment file.
#[derive(Debug)]
pub struct Segment {
    path: PathBuf,
    map: Mmap,
    header: Header,
}

/// One table of a segment, ready to be searched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub(super) layout: TableLayout,
    /// Pages by which a guessed fence is usually wrong at most.
    spread: usize,
}

/// A digest with what the search needs of it, computed once for all segments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe<'a> {
    digest: &'a [u8],
    prefix: u64,
    filter_bits: u64,
}

impl<'a> Probe<'a> {
    pub(super) fn new(digest: &'a [u8]) -> Self {
        Self {
            digest,
            prefix: prefix_of(digest),
            filter_bits: filter_bits_of(digest),
        }
    }
}

impl Segment {
    /// Maps the file and checks its header, which is all that is read now.
    ///
    /// # Errors
    /// `Corrupt` if the file is missing, cut, or not what `meta` says; `Invalid` if a newer
    /// version wrote it.
    pub fn open(path: PathBuf, meta: &SegmentMeta) -> Result<Self> {
        let name = || format!("index segment {}", path.display());
        let file = File::open(&path).context(ErrorKind::Corrupt, name)?;
        #[expect(unsafe_code, reason = "look-ups need a map; see SAFETY")]
        // SAFETY: the file is sealed: carrack renamed it into place after its last write, never
        // writes or truncates it again, and holds the directory's exclusive lock.
        let map = unsafe { Mmap::map(&file) }.context(ErrorKind::Corrupt, name)?;
        // Without this a cold hit would read 128 KiB for its one page. Advice may fail harmlessly.
        let _ = map.advise(Advice::Random);
        let header =
            Header::parse(&map).map_err(|error| Error::with(error.kind(), name(), error))?;
        if SegmentId(header.id) != meta.id || header.n_records != meta.n_records {
            return Err(Error::with(
                ErrorKind::Corrupt,
                name(),
                damaged("it is not the segment that the catalog lists"),
            ));
        }
        Ok(Self { path, map, header })
    }

    /// What the catalog says of it.
    #[must_use]
    pub fn meta(&self) -> SegmentMeta {
        SegmentMeta {
            id: SegmentId(self.header.id),
            n_records: self.header.n_records,
            len: self.header.file_len,
        }
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads every section and compares it with its checksum.
    ///
    /// # Errors
    /// `Corrupt`, naming the section.
    pub fn check(&self) -> Result<()> {
        for table in &self.header.tables {
            let sections = [
                (
                    "filter",
                    table.filter_offset,
                    filter_len(table),
                    table.filter_sum,
                ),
                (
                    "fence",
                    table.fence_offset,
                    table.n_pages * 8,
                    table.fence_sum,
                ),
                (
                    "records",
                    table.records_offset,
                    records_len(table),
                    table.records_sum,
                ),
            ];
            for (what, offset, len, sum) in sections {
                let bytes = section(&self.map, offset, len);
                if sum_of(&blake3::hash(bytes)) != sum {
                    let path = self.path.display();
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        format!(
                            "the {what} at byte {offset} of {path} do not match their checksum"
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The tables, for the live list and for merging.
    pub(super) fn tables(&self) -> impl Iterator<Item = Table> + '_ {
        self.header.tables.iter().map(|&layout| Table::new(layout))
    }

    /// False if no record of `table`, one of this segment's, can have the digest.
    pub(super) fn may_contain(&self, table: &Table, probe: Probe<'_>) -> bool {
        let layout = &table.layout;
        let filter = section(&self.map, layout.filter_offset, filter_len(layout));
        let at = filter_block_of(probe.prefix, layout.n_filter_blocks) as usize * FILTER_BLOCK_LEN;
        let Some(block) = filter
            .get(at..)
            .and_then(|rest| rest.first_chunk::<FILTER_BLOCK_LEN>())
        else {
            return true;
        };
        // No branch between the words: the answer of each is a coin toss for the predictor.
        let mut all = 1;
        let mut picks = probe.filter_bits;
        for word in block.as_chunks::<8>().0 {
            all &= u64::from_le_bytes(*word) >> (picks & 63);
            picks >>= 6;
        }
        all & 1 == 1
    }

    /// Calls `found` for each location of the digest in `table`, one of this segment's.
    pub(super) fn visit(
        &self,
        table: &Table,
        probe: Probe<'_>,
        found: &mut impl FnMut(Location) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let layout = &table.layout;
        let fence = section(&self.map, layout.fence_offset, layout.n_pages * 8);
        let fence = fence.as_chunks::<8>().0;
        let records = section(&self.map, layout.records_offset, records_len(layout));
        let first_at_or_above = table.fence_search(fence, probe.prefix);
        // A page whose fence equals the prefix may be the second to hold the key.
        let mut page_index = first_at_or_above.saturating_sub(1);
        loop {
            let page = Page::new(layout, fence, records, page_index);
            let mut index = page.lower_bound(probe);
            while let Some((digest, place)) = page.record(index) {
                if digest != probe.digest {
                    return ControlFlow::Continue(());
                }
                if let Some(location) = read_place(place) {
                    found(location)?;
                }
                index += 1;
            }
            page_index += 1;
            match fence.get(page_index) {
                Some(first) if u64::from_le_bytes(*first) <= probe.prefix => {}
                _ => return ControlFlow::Continue(()),
            }
        }
    }
}

/// Bytes of the file; the ranges were checked when the header was parsed.
fn section(map: &[u8], offset: u64, len: u64) -> &[u8] {
    let (start, len) = (offset as usize, len as usize); // Fit: inside the map.
    map.get(start..start.saturating_add(len))
        .unwrap_or_default()
}

const fn filter_len(layout: &TableLayout) -> u64 {
    layout.n_filter_blocks * FILTER_BLOCK_LEN as u64
}

pub(super) const fn records_len(layout: &TableLayout) -> u64 {
    layout.n_pages * PAGE_LEN as u64
}

impl Table {
    fn new(layout: TableLayout) -> Self {
        // The rank of a uniform key among n is off by sqrt(n)/2 (one sigma) from its expectation.
        let off = layout.n_records.isqrt() as usize / layout.records_per_page();
        Self {
            layout,
            spread: off.max(1),
        }
    }

    /// Index of the first page whose first record has a prefix at or above `prefix`.
    ///
    /// Digests are uniform, so the guess is within two spreads nearly always; where they are not,
    /// the bracket doubles and the cost stays logarithmic.
    fn fence_search(&self, fence: &[[u8; 8]], prefix: u64) -> usize {
        let below = |index: usize| {
            fence
                .get(index)
                .is_some_and(|f| u64::from_le_bytes(*f) < prefix)
        };
        let guess = ((u128::from(prefix) * fence.len() as u128) >> 64) as usize;
        let mut step = self.spread;
        let (mut low, mut high); // Everything before low is below; nothing from high on is.
        if below(guess) {
            (low, high) = (guess + 1, guess + step);
            while high < fence.len() && below(high) {
                low = high + 1;
                step *= 2;
                high += step;
            }
            high = high.min(fence.len());
        } else {
            (low, high) = (guess.saturating_sub(step), guess);
            while low > 0 && !below(low - 1) {
                high = low;
                step *= 2;
                low = low.saturating_sub(step);
            }
        }
        while low < high {
            let middle = low.midpoint(high);
            if below(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// The records of one page, and the prefixes between which they lie.
struct Page<'a> {
    records: &'a [u8],
    record_len: usize,
    digest_len: usize,
    n_records: usize,
    first_prefix: u64,
    end_prefix: u64,
}

impl<'a> Page<'a> {
    fn new(layout: &TableLayout, fence: &[[u8; 8]], records: &'a [u8], index: usize) -> Self {
        let prefix_at = |index: usize| fence.get(index).map(|f| u64::from_le_bytes(*f));
        let per_page = layout.records_per_page();
        let before = (index as u64).saturating_mul(per_page as u64);
        let n_records = (layout.n_records.saturating_sub(before) as usize).min(per_page);
        Self {
            records: section(records, index as u64 * PAGE_LEN as u64, PAGE_LEN as u64),
            record_len: layout.record_len(),
            digest_len: layout.digest_len,
            n_records,
            first_prefix: prefix_at(index).unwrap_or(0),
            end_prefix: prefix_at(index + 1).unwrap_or(u64::MAX),
        }
    }

    fn record(&self, index: usize) -> Option<(&'a [u8], &'a [u8])> {
        if index >= self.n_records {
            return None;
        }
        let start = index * self.record_len;
        let record = self.records.get(start..start + self.record_len)?;
        record.split_at_checked(self.digest_len)
    }

    /// Record `index` lies before the key.
    fn below(&self, index: usize, probe: Probe<'_>) -> bool {
        let Some((digest, _)) = self.record(index) else {
            return false;
        };
        match prefix_of(digest).cmp(&probe.prefix) {
            Ordering::Equal => digest < probe.digest,
            unequal => unequal == Ordering::Less,
        }
    }

    /// Index of the first record at or above the key: guessed, then walked, which reads neighbours
    /// in memory; a page of unusual digests falls back to halving.
    fn lower_bound(&self, probe: Probe<'_>) -> usize {
        let width = u128::from(self.end_prefix.saturating_sub(self.first_prefix)) + 1;
        let above = u128::from(probe.prefix.saturating_sub(self.first_prefix));
        let guess = (above * self.n_records as u128 / width) as usize;
        let guess = guess.min(self.n_records.saturating_sub(1));
        let (mut low, mut high);
        if self.below(guess, probe) {
            low = guess + 1;
            while low < self.n_records && low - guess <= LINEAR_STEPS_MAX {
                if !self.below(low, probe) {
                    return low;
                }
                low += 1;
            }
            high = self.n_records;
        } else {
            high = guess;
            while high > 0 && guess - high < LINEAR_STEPS_MAX {
                if self.below(high - 1, probe) {
                    return high;
                }
                high -= 1;
            }
            low = 0;
        }
        while low < high {
            let middle = low.midpoint(high);
            if self.below(middle, probe) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}
