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
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering as Memory};

use memmap2::{Advice, Mmap, MmapMut};

use super::format::{
    FILTER_BLOCK_LEN, Header, PAGE_LEN, PAGE_SUM_LEN, TableLayout, damaged, filter_bits_of,
    filter_block_of, n_filter_blocks, page_sum_of, prefix_of, read_place, sum_of,
};
use super::{SegmentId, SegmentMeta};
use crate::durable;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::store::location::{ContainerId, Location};
use crate::store::recover::not_let_in;

/// Records of a page that are looked at around the guessed one: it lies among them in nine of ten
/// look-ups.
const WINDOW: usize = 12;

/// A mapped segment file.
#[derive(Debug)]
pub struct Segment {
    path: PathBuf,
    map: Mmap,
    header: Header,
    tables: Vec<Table>,
    /// A look-up met a page that is not as it was written.
    is_damaged: AtomicBool,
    /// A copy of all filters and fences in huge pages, which saves a walk of the page tables for
    /// each probe; `None` if they are read through the map.
    heads: Option<Mmap>,
}

/// One table of a segment, ready to be searched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub(super) layout: TableLayout,
    /// Where the filter starts, in `heads` or in the map.
    filter_at: u64,
    /// Where the fence starts, likewise.
    fence_at: u64,
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
    /// Maps the file and checks its header, which is all that is read now; with `is_resident`
    /// filters and fences are copied into memory, too.
    ///
    /// # Errors
    /// `Corrupt` if the file is missing, cut, or not what `meta` says; `Invalid` if a newer
    /// version wrote it.
    pub fn open(path: PathBuf, meta: &SegmentMeta, is_resident: bool) -> Result<Self> {
        let name = || format!("index segment {}", path.display());
        let file = match durable::at_either(&path, |path| File::open(path)) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(not_let_in(&path, error));
            }
            file => file.context(ErrorKind::Corrupt, name)?,
        };
        #[expect(unsafe_code, reason = "look-ups need a map; see SAFETY")]
        // SAFETY: the file is sealed: carrack synced it after its last write, never writes or
        // truncates it again, and holds the directory's exclusive lock.
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
        let mut tables: Vec<Table> = header
            .tables
            .iter()
            .map(|&layout| Table::new(layout))
            .collect();
        let heads = if is_resident {
            let heads = copy_heads(&file, &mut tables).context(ErrorKind::Unavailable, name)?;
            check_heads(&heads, &tables)
                .map_err(|error| Error::with(error.kind(), name(), error))?;
            Some(heads)
        } else {
            None
        };
        Ok(Self {
            path,
            map,
            header,
            tables,
            is_damaged: AtomicBool::new(false),
            heads,
        })
    }

    /// A segment of bytes that came from a fuzzer rather than out of a sealed file.
    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn of_bytes(bytes: &[u8]) -> Result<Self> {
        let failed = || "mapping memory".to_owned();
        let mut map = MmapMut::map_anon(bytes.len()).context(ErrorKind::Unavailable, failed)?;
        map.copy_from_slice(bytes);
        let map = map
            .make_read_only()
            .context(ErrorKind::Unavailable, failed)?;
        let header = Header::parse(&map)?;
        Ok(Self {
            path: PathBuf::new(),
            map,
            tables: header
                .tables
                .iter()
                .map(|&layout| Table::new(layout))
                .collect(),
            header,
            is_damaged: AtomicBool::new(false),
            heads: None,
        })
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
            let filter = (
                "filter",
                table.filter_offset,
                filter_len(table),
                table.filter_sum,
            );
            let fence = (
                "fence",
                table.fence_offset,
                table.n_pages * 8,
                table.fence_sum,
            );
            let len = records_len(table);
            let records = ("records", table.records_offset, len, table.records_sum);
            let len = table.n_pages * PAGE_SUM_LEN as u64;
            let sums = (
                "page sums",
                table.page_sums_offset,
                len,
                table.page_sums_sum,
            );
            let sums = (table.page_sums_offset > 0).then_some(sums);
            let sections = [filter, fence, records].into_iter().chain(sums);
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

    /// Calls `found` with the container of each record in at most `n_pages_max` pages of each
    /// table, spread evenly.
    pub(in crate::store) fn sample(&self, n_pages_max: u64, found: &mut dyn FnMut(ContainerId)) {
        for layout in &self.header.tables {
            let n_pages = layout.n_pages.min(n_pages_max);
            for index in 0..n_pages {
                let page_index =
                    u128::from(index) * u128::from(layout.n_pages) / u128::from(n_pages);
                let records = section(&self.map, layout.records_offset, records_len(layout));
                let page = Page::new(layout, &[], records, page_index as usize);
                for index in 0..page.n_records {
                    let place = page.record(index).and_then(|(_, place)| read_place(place));
                    if let Some(location) = place {
                        found(location.container);
                    }
                }
            }
        }
    }

    /// Calls `found` with the number, digest and location of each record of a page.
    pub(super) fn each_of_page(
        &self,
        layout: &TableLayout,
        index: u64,
        found: &mut dyn FnMut(u64, &[u8], Location),
    ) {
        let records = section(&self.map, layout.records_offset, records_len(layout));
        let page = Page::new(layout, &[], records, index as usize);
        let before = index * layout.records_per_page() as u64;
        for index in 0..page.n_records {
            if let Some((digest, place)) = page.record(index)
                && let Some(location) = read_place(place)
            {
                found(before + index as u64, digest, location);
            }
        }
    }

    /// Whether a page of `table`, one of this segment's, is as it was written.
    pub(super) fn is_sound_page_of(&self, table: &Table, index: usize) -> bool {
        let layout = &table.layout;
        let fence = section(self.heads(), table.fence_at, layout.n_pages * 8);
        let records = section(&self.map, layout.records_offset, records_len(layout));
        self.is_sound_page(layout, fence.as_chunks::<8>().0, records, index)
    }

    /// Calls `found` with every record.
    #[cfg(test)]
    pub(in crate::store) fn each(&self, found: &mut dyn FnMut(u64, &[u8], Location)) {
        for layout in &self.header.tables {
            let records = section(&self.map, layout.records_offset, records_len(layout));
            for index in 0..layout.n_pages {
                let page = Page::new(layout, &[], records, index as usize);
                for index in 0..page.n_records {
                    let (digest, place) = page.record(index).unwrap();
                    found(layout.code, digest, read_place(place).unwrap());
                }
            }
        }
    }

    /// The tables, for the live list and for merging.
    pub(super) fn tables(&self) -> impl Iterator<Item = Table> + '_ {
        self.tables.iter().copied()
    }

    /// Bytes of memory that the copy of filters and fences takes.
    pub(super) fn resident_len(&self) -> u64 {
        self.heads.as_ref().map_or(0, |heads| heads.len() as u64)
    }

    /// Notes that a look-up met damage; true the first time.
    pub(super) fn found_damaged(&self) -> bool {
        !self.is_damaged.swap(true, Memory::Relaxed)
    }

    /// What `filter_at` and `fence_at` count from.
    fn heads(&self) -> &[u8] {
        self.heads.as_ref().unwrap_or(&self.map)
    }

    /// False if no record of `table`, one of this segment's, can have the digest.
    pub(super) fn may_contain(&self, table: &Table, probe: Probe<'_>) -> bool {
        let layout = &table.layout;
        let filter = section(self.heads(), table.filter_at, filter_len(layout));
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

    /// Whether the page where the digest would lie is as it was written. Asked when the filter
    /// promised more than the page held, which is once in 250 strangers: the page was read already.
    pub(super) fn is_sound_at(&self, table: &Table, probe: Probe<'_>) -> bool {
        let layout = &table.layout;
        let fence = section(self.heads(), table.fence_at, layout.n_pages * 8);
        let fence = fence.as_chunks::<8>().0;
        let records = section(&self.map, layout.records_offset, records_len(layout));
        let page_index = fence_search(fence, probe.prefix).saturating_sub(1);
        // The first of several that hold the prefix is followed by others of which all begin with
        // it: a digest that is there starts in one of two pages.
        (page_index..=page_index + 1)
            .take_while(|&index| index < fence.len())
            .all(|index| self.is_sound_page(layout, fence, records, index))
    }

    fn is_sound_page(
        &self,
        layout: &TableLayout,
        fence: &[[u8; 8]],
        records: &[u8],
        index: usize,
    ) -> bool {
        let page = Page::new(layout, fence, records, index);
        if layout.page_sums_offset == 0 {
            return page.is_in_order();
        }
        let len = layout.n_pages * PAGE_SUM_LEN as u64;
        let sums = section(&self.map, layout.page_sums_offset, len);
        let sum = sums.as_chunks::<PAGE_SUM_LEN>().0.get(index);
        sum == Some(&page_sum_of(page.records))
    }

    /// Calls `found` for each location of the digest in `table`, one of this segment's.
    pub(super) fn visit(
        &self,
        table: &Table,
        probe: Probe<'_>,
        found: &mut impl FnMut(Location) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.visit_numbered(table, probe, &mut |_, location| found(location))
    }

    /// The same with the number of each record in the table.
    pub(super) fn visit_numbered(
        &self,
        table: &Table,
        probe: Probe<'_>,
        found: &mut impl FnMut(u64, Location) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let layout = &table.layout;
        let fence = section(self.heads(), table.fence_at, layout.n_pages * 8);
        let fence = fence.as_chunks::<8>().0;
        let records = section(&self.map, layout.records_offset, records_len(layout));
        let first_at_or_above = fence_search(fence, probe.prefix);
        // A page whose fence equals the prefix may be the second to hold the key.
        let mut page_index = first_at_or_above.saturating_sub(1);
        loop {
            let page = Page::new(layout, fence, records, page_index);
            let mut index = page.lower_bound(probe.prefix);
            while let Some((digest, place)) = page.record(index) {
                match digest.cmp(probe.digest) {
                    Ordering::Less => {} // Its first eight bytes are the same.
                    Ordering::Equal => {
                        if let Some(location) = read_place(place) {
                            let before = page_index * layout.records_per_page();
                            found((before + index) as u64, location)?;
                        }
                    }
                    Ordering::Greater => return ControlFlow::Continue(()),
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

/// Bytes of memory that a resident segment of `n_records` takes, within a page or so.
pub(super) const fn resident_len_of(n_records: u64) -> u64 {
    n_filter_blocks(n_records) * FILTER_BLOCK_LEN as u64 + n_records / 11
}

/// Copies filters and fences into one anonymous map and points the tables there. Reads the file,
/// not its map, so that the bytes are in memory once.
fn copy_heads(file: &File, tables: &mut [Table]) -> std::io::Result<Mmap> {
    let head_len = |table: &Table| filter_len(&table.layout) + table.layout.n_pages * 8;
    let len: u64 = tables.iter().map(head_len).sum();
    let mut heads = MmapMut::map_anon(len as usize)?; // Fits: lies in the mapped file.
    // Only a hint: with small pages everything works as well, a little slower.
    let _ = heads.advise(Advice::HugePage);
    let mut rest: &mut [u8] = &mut heads;
    let mut at = 0;
    for table in tables {
        let layout = &table.layout;
        let sections = [
            (
                &mut table.filter_at,
                layout.filter_offset,
                filter_len(layout),
            ),
            (&mut table.fence_at, layout.fence_offset, layout.n_pages * 8),
        ];
        for (place, offset, len) in sections {
            let (section, after) = rest
                .split_at_mut_checked(len as usize)
                .ok_or(std::io::ErrorKind::UnexpectedEof)?;
            file.read_exact_at(section, offset)?;
            *place = at;
            at += len;
            rest = after;
        }
    }
    heads.make_read_only()
}

/// Compares what was copied with its checksums: a filter that lost a bit hides blocks.
fn check_heads(heads: &[u8], tables: &[Table]) -> Result<()> {
    for table in tables {
        let layout = &table.layout;
        let filter = section(heads, table.filter_at, filter_len(layout));
        let fence = section(heads, table.fence_at, layout.n_pages * 8);
        if sum_of(&blake3::hash(filter)) != layout.filter_sum {
            return Err(damaged("its filter does not match its checksum"));
        }
        if sum_of(&blake3::hash(fence)) != layout.fence_sum {
            return Err(damaged("its fence does not match its checksum"));
        }
    }
    Ok(())
}

impl Table {
    fn new(layout: TableLayout) -> Self {
        Self {
            layout,
            filter_at: layout.filter_offset,
            fence_at: layout.fence_offset,
        }
    }
}

/// Index of the first page whose first record has a prefix at or above `prefix`.
///
/// Digests are uniform, so two interpolations come within a few pages nearly always; where they
/// are not, the step from the guess doubles and the cost stays logarithmic.
fn fence_search(fence: &[[u8; 8]], prefix: u64) -> usize {
    let at = |index: usize| fence.get(index).map(|first| u64::from_le_bytes(*first));
    let below = |index: usize| at(index).is_some_and(|first| first < prefix);
    let n_pages = fence.len();
    // Pages that a distance between digests spans on average.
    let pages = |distance: u64| ((u128::from(distance) * n_pages as u128) >> 64) as usize;
    let mut guess = pages(prefix);
    for _ in 0..2 {
        let Some(first) = at(guess) else { break };
        guess = if first < prefix {
            guess
                .saturating_add(pages(prefix - first))
                .min(n_pages.saturating_sub(1))
        } else {
            guess.saturating_sub(pages(first - prefix))
        };
    }
    let mut step = 1;
    let (mut low, mut high); // Everything before low is below; nothing from high on is.
    if below(guess) {
        (low, high) = (guess + 1, guess + 1);
        while below(high) {
            low = high + 1;
            high = low.saturating_add(step);
            step *= 2;
        }
        high = high.min(n_pages);
    } else {
        (low, high) = (guess, guess);
        while low > 0 && !below(low - 1) {
            high = low - 1;
            low = high.saturating_sub(step);
            step *= 2;
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

    /// Records ascend from the one that the fence names: what a page without a sum can show.
    fn is_in_order(&self) -> bool {
        let digests = (0..self.n_records).map_while(|index| self.record(index));
        let first = self.record(0).map(|(digest, _)| prefix_of(digest));
        first == Some(self.first_prefix) && digests.is_sorted()
    }

    /// The prefix of record `index` is below `prefix`.
    fn below(&self, index: usize, prefix: u64) -> bool {
        self.record(index)
            .is_some_and(|(digest, _)| prefix_of(digest) < prefix)
    }

    /// Index of the first record whose prefix is at or above `prefix`.
    ///
    /// Counts in a window around the guess without a branch between the records, so that the
    /// processor waits for memory once; a page of unusual digests falls back to halving.
    fn lower_bound(&self, prefix: u64) -> usize {
        // Scaled so that the product fits a word: a division of two words would cost as much as
        // all the rest.
        let width = (self.end_prefix.saturating_sub(self.first_prefix) >> 8) + 1;
        let above = prefix.saturating_sub(self.first_prefix) >> 8;
        let guess = (above.saturating_mul(self.n_records as u64) / width) as usize;
        let start = guess
            .saturating_sub(WINDOW / 2)
            .min(self.n_records.saturating_sub(WINDOW));
        let end = (start + WINDOW).min(self.n_records);
        let window = self
            .records
            .get(start * self.record_len..end * self.record_len);
        let mut n_below = 0;
        for record in window.unwrap_or_default().chunks_exact(self.record_len) {
            n_below += usize::from(prefix_of(record) < prefix);
        }
        let (mut low, mut high) = if n_below == 0 {
            (0, start)
        } else if start + n_below == end {
            (end, self.n_records)
        } else {
            return start + n_below;
        };
        while low < high {
            let middle = low.midpoint(high);
            if self.below(middle, prefix) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}
