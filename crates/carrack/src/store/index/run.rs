//! Gathers the locations of one ingest and writes them as a sorted segment.
//!
//! In       (multihash, location) pairs in any order.
//! Out      one durable segment file that no catalog lists yet.
//! Limits   memory: 46 bytes an entry with 32-byte digests, and 16 more while it sorts. The caller
//!          finishes a run at [`ENTRIES_MAX`] entries and begins another.
//! Not here the file layout (`write`).
//!
//! One container gives one record a key: a sparse file of 100,000 equal blocks is one record, with
//! its lowest offset.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carrack_formats::Multihash;

use super::format::{PLACE_LEN, TABLES_MAX, check_location, prefix_of, push_record, read_place};
use super::write::SegmentWriter;
use super::{SegmentId, SegmentMeta};
use crate::error::{Error, ErrorKind, Result};
use crate::store::gate::WriteGate;
use crate::store::location::{ContainerId, Location};

/// Entries at which a run should be finished: about 32 MiB while it sorts.
pub const ENTRIES_MAX: usize = 512 * 1024;

/// An unsorted run in memory.
#[derive(Debug)]
pub struct RunWriter {
    dir: PathBuf,
    id: SegmentId,
    gate: Arc<WriteGate>,
    tables: Vec<RunTable>,
    n_entries: usize,
    /// Index of the table that the last entry went to: nearly always the next one's, too.
    last_table: usize,
}

/// Entries of one (code, digest length), as records one behind the other.
#[derive(Debug)]
struct RunTable {
    code: u64,
    digest_len: usize,
    records: Vec<u8>,
    last_location: Location,
}

impl RunWriter {
    /// An empty run, to be written as segment `id` in `dir`.
    #[must_use]
    pub fn new(dir: &Path, id: SegmentId, gate: Arc<WriteGate>) -> Self {
        Self {
            dir: dir.to_owned(),
            id,
            gate,
            tables: Vec::new(),
            n_entries: 0,
            last_table: 0,
        }
    }

    /// Entries so far; repetitions of the entry before are not counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n_entries
    }

    /// No entry yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n_entries == 0
    }

    /// Time to finish this run and begin another.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.n_entries >= ENTRIES_MAX
    }

    /// Adds one entry.
    ///
    /// # Errors
    /// `Invalid` for a digest shorter than 20 or longer than 128 bytes, `Limit` for a location that
    /// no record can hold.
    pub fn push(&mut self, key: &Multihash, location: Location) -> Result<()> {
        check_location(key, location)?;
        let table = self.table(key)?;
        if table.repeats(key.digest(), location) {
            return Ok(());
        }
        push_record(&mut table.records, key.digest(), location);
        table.last_location = location;
        self.n_entries += 1;
        Ok(())
    }

    /// Sorts and writes; `None` if there was no entry.
    ///
    /// # Errors
    /// `Unavailable` if the disk does not take the file; nothing of it is left then.
    pub fn finish(mut self) -> Result<Option<SegmentMeta>> {
        if self.n_entries == 0 {
            return Ok(None);
        }
        self.tables
            .sort_unstable_by_key(|table| (table.code, table.digest_len));
        let mut writer = SegmentWriter::create(
            &self.dir,
            self.id,
            self.tables.len(),
            Arc::clone(&self.gate),
        )?;
        for table in self.tables {
            table.write(&mut writer)?;
        }
        writer.finish()
    }

    fn table(&mut self, key: &Multihash) -> Result<&mut RunTable> {
        let digest_len = key.digest().len();
        let fits = |table: &RunTable| table.code == key.code() && table.digest_len == digest_len;
        if !self.tables.get(self.last_table).is_some_and(fits) {
            self.last_table = match self.tables.iter().position(fits) {
                Some(index) => index,
                None if self.tables.len() < TABLES_MAX => {
                    self.tables.push(RunTable::new(key));
                    self.tables.len() - 1
                }
                None => {
                    let message = format!("more than {TABLES_MAX} kinds of digest at once");
                    return Err(Error::new(ErrorKind::Limit, message));
                }
            };
        }
        self.tables
            .get_mut(self.last_table)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a run lost its table"))
    }
}

impl RunTable {
    fn new(key: &Multihash) -> Self {
        let nowhere = Location {
            container: ContainerId(u64::MAX),
            offset: 0,
            len: 0,
            wrapped: false,
        };
        Self {
            code: key.code(),
            digest_len: key.digest().len(),
            records: Vec::new(),
            last_location: nowhere,
        }
    }

    const fn record_len(&self) -> usize {
        self.digest_len + PLACE_LEN
    }

    /// The entry before is of the same block in the same container, and not behind this one.
    fn repeats(&self, digest: &[u8], location: Location) -> bool {
        self.last_location.container == location.container
            && self.last_location.offset <= location.offset
            && self
                .records
                .len()
                .checked_sub(self.record_len())
                .is_some_and(|start| {
                    self.records.get(start..start + self.digest_len) == Some(digest)
                })
    }

    fn record(&self, index: u32) -> (&[u8], &[u8]) {
        let start = index as usize * self.record_len();
        self.records
            .get(start..start + self.record_len())
            .and_then(|record| record.split_at_checked(self.digest_len))
            .unwrap_or_default()
    }

    fn write(self, writer: &mut SegmentWriter) -> Result<()> {
        let n_records = u32::try_from(self.records.len() / self.record_len()).map_err(|error| {
            Error::with(ErrorKind::Limit, "a run of more than 2^32 entries", error)
        })?;
        let mut order: Vec<(u64, u32)> = (0..n_records)
            .map(|index| (prefix_of(self.record(index).0), index))
            .collect();
        order.sort_unstable_by(|a, b| {
            a.0.cmp(&b.0)
                .then_with(|| compare_records(self.record(a.1), self.record(b.1)))
        });
        writer.start_table(self.code, self.digest_len, u64::from(n_records))?;
        let mut last: Option<(&[u8], ContainerId)> = None;
        for (_, index) in order {
            let (digest, place) = self.record(index);
            let container = read_place(place).map(|location| location.container);
            let this = container.map(|container| (digest, container));
            if this == last {
                continue; // The lowest offset came first.
            }
            last = this;
            let start = index as usize * self.record_len();
            writer.push(
                self.records
                    .get(start..start + self.record_len())
                    .unwrap_or_default(),
            )?;
        }
        Ok(())
    }
}

/// Order of records: digest, container, offset. Takes (digest, place) pairs.
pub(super) fn compare_records(a: (&[u8], &[u8]), b: (&[u8], &[u8])) -> Ordering {
    a.0.cmp(b.0)
        .then_with(|| read_place(a.1).cmp(&read_place(b.1)))
}
