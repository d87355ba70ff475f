//! Writes one segment file from records that come in order.
//!
//! In       tables in ascending (code, digest length), the records of each in ascending digest.
//! Out      a sealed file under its temporary name, durable: fsync, fsync of the directory. It has
//!          its last name when a catalog lists it (`store::unlisted`).
//! Limits   memory: four buffers of [`BUFFER_LEN`], whatever the number of records.
//! Not here sorting (`run`), dropping records (`merge`), the catalog that lists the file.
//!
//! Filter and fence lie before the records and are written at the same time: their sizes follow
//! from an upper bound on the records, and filter blocks ascend with the digests.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{
    FILTER_BLOCK_LEN, Header, PAGE_LEN, PAGE_SUM_LEN, PLACE_LEN, Sum, TABLES_MAX, TableLayout,
    filter_bits_of, filter_block_of, header_len, n_filter_blocks, page_sum_of, prefix_of, sum_of,
};
use super::{SegmentId, SegmentMeta, segment_name};
use crate::durable;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::store::gate::WriteGate;

/// Bytes that are gathered before a write.
const BUFFER_LEN: usize = 256 * 1024;

/// Bytes of records after which the disk is asked to take them.
const WRITE_BACK_LEN: u64 = 8 << 20;

/// A segment under construction. Dropping it unfinished removes the file.
#[derive(Debug)]
pub(super) struct SegmentWriter {
    dir: PathBuf,
    tmp_path: PathBuf,
    file: File,
    gate: Arc<WriteGate>,
    id: SegmentId,
    header_len: usize,
    end: u64,
    tables: Vec<TableLayout>,
    current: Option<TableWriter>,
    /// Bytes of the current table's records that are on the disk.
    n_synced: u64,
    finished: bool,
}

impl SegmentWriter {
    /// Creates the temporary file. `n_tables_max` tables at most will be started.
    pub(super) fn create(
        dir: &Path,
        id: SegmentId,
        n_tables_max: usize,
        gate: Arc<WriteGate>,
    ) -> Result<Self> {
        gate.check()?;
        if n_tables_max > TABLES_MAX {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("{n_tables_max} kinds of digest in one index segment"),
            ));
        }
        let tmp_path = durable::temporary(&dir.join(segment_name(id)));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(durable::MODE_PRIVATE)
            .open(&tmp_path)
            .context(ErrorKind::Unavailable, || {
                format!("creating {}", tmp_path.display())
            })?;
        let header_len = header_len(n_tables_max);
        Ok(Self {
            dir: dir.to_owned(),
            tmp_path,
            file,
            gate,
            id,
            header_len,
            end: header_len as u64,
            tables: Vec::new(),
            current: None,
            n_synced: 0,
            finished: false,
        })
    }

    /// Ends the table before and begins one of at most `n_records_max` records.
    pub(super) fn start_table(
        &mut self,
        code: u64,
        digest_len: usize,
        n_records_max: u64,
    ) -> Result<()> {
        self.end_table()?;
        debug_assert!(
            self.tables
                .last()
                .is_none_or(|t| (t.code, t.digest_len) < (code, digest_len))
        );
        self.current = Some(TableWriter::new(code, digest_len, n_records_max, self.end));
        Ok(())
    }

    /// Appends one record (digest and place) to the current table.
    pub(super) fn push(&mut self, record: &[u8]) -> Result<()> {
        let Some(table) = &mut self.current else {
            return Err(Error::new(
                ErrorKind::Internal,
                "a record came before its table",
            ));
        };
        table
            .push(&self.file, record)
            .context(ErrorKind::Unavailable, || {
                format!("writing {}", self.tmp_path.display())
            })
    }

    /// Lets the disk begin with what was written since the last call, if that is much: the fsync at
    /// the end is short then, and other writers do not wait behind all of it.
    pub(super) fn write_back(&mut self) -> Result<()> {
        let n_pushed = self.current.as_ref().map_or(0, |table| table.records.len);
        if n_pushed < self.n_synced {
            self.n_synced = 0; // Another table.
        }
        if n_pushed - self.n_synced >= WRITE_BACK_LEN {
            self.n_synced = n_pushed;
            self.gate.sync_file(&self.file, &self.tmp_path)?;
        }
        Ok(())
    }

    /// Seals the file; `None`, and no file, if no record was pushed.
    pub(super) fn finish(mut self) -> Result<Option<SegmentMeta>> {
        self.end_table()?;
        if self.tables.is_empty() {
            return Ok(None); // Drop removes the file.
        }
        let n_records = self.tables.iter().map(|table| table.n_records).sum();
        let header = Header {
            id: self.id.0,
            n_records,
            file_len: self.end,
            tables: std::mem::take(&mut self.tables),
        };
        let bytes = header.encode(self.header_len);
        let writing = || format!("writing {}", self.tmp_path.display());
        self.file
            .write_all_at(&bytes, 0)
            .context(ErrorKind::Unavailable, writing)?;
        // Slack before the last section's end may never have been written: the length is explicit.
        self.file
            .set_len(self.end)
            .context(ErrorKind::Unavailable, writing)?;
        self.gate.sync_file(&self.file, &self.tmp_path)?;
        self.gate.sync_dir(&self.dir)?;
        self.finished = true;
        Ok(Some(SegmentMeta {
            id: self.id,
            n_records,
            len: self.end,
        }))
    }

    fn end_table(&mut self) -> Result<()> {
        let Some(table) = self.current.take() else {
            return Ok(());
        };
        let layout = table
            .finish(&self.file)
            .context(ErrorKind::Unavailable, || {
                format!("writing {}", self.tmp_path.display())
            })?;
        if let Some(layout) = layout {
            self.end = layout.records_offset + layout.n_pages * PAGE_LEN as u64;
            self.tables.push(layout);
        }
        Ok(())
    }
}

impl Drop for SegmentWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Opening the store removes what cannot be removed now.
            let _ = std::fs::remove_file(&self.tmp_path);
        }
    }
}

/// The four sections of one table, written side by side.
#[derive(Debug)]
struct TableWriter {
    code: u64,
    digest_len: usize,
    n_records: u64,
    n_pages: u64,
    n_filter_blocks: u64,
    filter_block_index: u64,
    filter_block: [u64; FILTER_BLOCK_LEN / 8],
    filter: SectionWriter,
    fence: SectionWriter,
    records: SectionWriter,
    page_sums: SectionWriter,
    /// The page being filled.
    page: Vec<u8>,
}

impl TableWriter {
    fn new(code: u64, digest_len: usize, n_records_max: u64, start: u64) -> Self {
        let per_page = PAGE_LEN / (digest_len + PLACE_LEN);
        let n_filter_blocks = n_filter_blocks(n_records_max);
        let fence_start = start + n_filter_blocks * FILTER_BLOCK_LEN as u64;
        let n_pages_max = n_records_max.div_ceil(per_page as u64);
        let page_sums_start = fence_start + n_pages_max * 8;
        let page_sums_end = page_sums_start + n_pages_max * PAGE_SUM_LEN as u64;
        let records_start = page_sums_end.next_multiple_of(PAGE_LEN as u64);
        Self {
            code,
            digest_len,
            n_records: 0,
            n_pages: 0,
            n_filter_blocks,
            filter_block_index: 0,
            filter_block: [0; FILTER_BLOCK_LEN / 8],
            filter: SectionWriter::new(start),
            fence: SectionWriter::new(fence_start),
            records: SectionWriter::new(records_start),
            page_sums: SectionWriter::new(page_sums_start),
            page: Vec::with_capacity(PAGE_LEN),
        }
    }

    fn push(&mut self, file: &File, record: &[u8]) -> std::io::Result<()> {
        let digest = record.get(..self.digest_len).unwrap_or_default();
        debug_assert_eq!(record.len(), self.digest_len + PLACE_LEN);
        let prefix = prefix_of(digest);
        let block_index = filter_block_of(prefix, self.n_filter_blocks);
        debug_assert!(
            block_index >= self.filter_block_index,
            "records come in order"
        );
        while self.filter_block_index < block_index {
            self.flush_filter_block(file)?;
        }
        let mut picks = filter_bits_of(digest);
        for word in &mut self.filter_block {
            *word |= 1 << (picks & 63);
            picks >>= 6;
        }
        if self.page.is_empty() {
            self.fence.push(file, &prefix.to_le_bytes())?;
            self.n_pages += 1;
        }
        self.page.extend_from_slice(record);
        self.n_records += 1;
        if self.page.len() + record.len() > PAGE_LEN {
            self.end_page(file)?;
        }
        Ok(())
    }

    fn end_page(&mut self, file: &File) -> std::io::Result<()> {
        if self.page.is_empty() {
            return Ok(());
        }
        self.page.resize(PAGE_LEN, 0);
        self.page_sums.push(file, &page_sum_of(&self.page))?;
        self.records.push(file, &self.page)?;
        self.page.clear();
        Ok(())
    }

    fn flush_filter_block(&mut self, file: &File) -> std::io::Result<()> {
        for word in std::mem::take(&mut self.filter_block) {
            self.filter.push(file, &word.to_le_bytes())?;
        }
        self.filter_block_index += 1;
        Ok(())
    }

    /// The layout; `None` if the table stayed empty.
    fn finish(mut self, file: &File) -> std::io::Result<Option<TableLayout>> {
        if self.n_records == 0 {
            return Ok(None);
        }
        self.end_page(file)?;
        while self.filter_block_index < self.n_filter_blocks {
            self.flush_filter_block(file)?;
        }
        Ok(Some(TableLayout {
            code: self.code,
            digest_len: self.digest_len,
            n_records: self.n_records,
            n_pages: self.n_pages,
            filter_offset: self.filter.start,
            n_filter_blocks: self.n_filter_blocks,
            fence_offset: self.fence.start,
            records_offset: self.records.start,
            filter_sum: self.filter.finish(file)?,
            fence_sum: self.fence.finish(file)?,
            records_sum: self.records.finish(file)?,
            page_sums_offset: self.page_sums.start,
            page_sums_sum: self.page_sums.finish(file)?,
        }))
    }
}

/// Bytes that are hashed and written from one offset on.
#[derive(Debug)]
struct SectionWriter {
    start: u64,
    len: u64,
    buffer: Vec<u8>,
    hasher: blake3::Hasher,
}

impl SectionWriter {
    fn new(start: u64) -> Self {
        Self {
            start,
            len: 0,
            buffer: Vec::new(),
            hasher: blake3::Hasher::new(),
        }
    }

    fn push(&mut self, file: &File, bytes: &[u8]) -> std::io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        self.len += bytes.len() as u64;
        if self.buffer.len() >= BUFFER_LEN {
            self.flush(file)?;
        }
        Ok(())
    }

    fn flush(&mut self, file: &File) -> std::io::Result<()> {
        self.hasher.update(&self.buffer);
        let offset = self.start + self.len - self.buffer.len() as u64;
        file.write_all_at(&self.buffer, offset)?;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self, file: &File) -> std::io::Result<Sum> {
        self.flush(file)?;
        Ok(sum_of(&self.hasher.finalize()))
    }
}
