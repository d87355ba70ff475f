//! Turns many segments into one, without the records of dead containers.
//!
//! In       live segments, a predicate over places, a flag that says stop.
//! Out      one durable segment that no catalog lists yet.
//! Limits   memory: one buffer of [`BUFFER_LEN`] an input. At most [`INPUTS_MAX`] inputs.
//! Not here putting the new segment in place of the old (`store`).
//!
//! Tiers by size, factor [`FANOUT`]: a record is rewritten once a tier, so about six times on the
//! way to 10^9. Inputs are checked against their checksums while they are read: a damaged record is
//! never copied into a sound segment.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as Memory};

use super::format::{PAGE_LEN, TableLayout, read_place, sum_of};
use super::run::compare_records;
use super::segment::{Segment, records_len};
use super::write::SegmentWriter;
use super::{SegmentId, SegmentMeta};
use crate::durable;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::store::gate::WriteGate;
use crate::store::location::Location;

/// Segments of one tier that are merged into one of the next.
pub const FANOUT: usize = 8;
/// Most segments that one merge reads.
pub const INPUTS_MAX: usize = 32;
/// Records below which all segments belong to the lowest tier.
const TIER_RECORDS_MIN: u64 = 4096;
/// Bytes that are read of an input at once: whole pages.
const BUFFER_LEN: usize = 64 * PAGE_LEN;
/// Bytes of an input after which its pages are given back to the kernel.
const DROP_LEN: u64 = 8 << 20;
/// Records between two looks at the stop flag, and between two offers of the processor to others:
/// a few milliseconds.
const STOP_INTERVAL: u64 = 16 * 1024;

/// The segments to merge next, if a tier is full; the lowest such tier.
#[must_use]
pub fn plan_merge(segments: &[SegmentMeta]) -> Option<Vec<SegmentId>> {
    let mut by_tier: Vec<(u32, SegmentId)> = segments
        .iter()
        .map(|segment| (tier(segment.n_records), segment.id))
        .collect();
    by_tier.sort_unstable();
    by_tier
        .chunk_by(|a, b| a.0 == b.0)
        .find(|tier| tier.len() >= FANOUT)
        .map(|tier| tier.iter().take(INPUTS_MAX).map(|&(_, id)| id).collect())
}

/// 0 below [`TIER_RECORDS_MIN`], then one more for each factor of [`FANOUT`].
fn tier(n_records: u64) -> u32 {
    (n_records / TIER_RECORDS_MIN)
        .checked_ilog(FANOUT as u64)
        .map_or(0, |log| log + 1)
}

/// What a merge did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// The flag was raised; no file is left.
    Stopped,
    /// Every record was of a dead container.
    Empty,
    /// The new segment.
    Segment(SegmentMeta),
}

/// Merges `inputs` into segment `id` in `dir`. `is_dead` is asked once a record.
///
/// # Errors
/// `Corrupt` if an input does not match its checksums, `Unavailable` if the disk fails; no file is
/// left then.
pub fn merge(
    dir: &Path,
    id: SegmentId,
    gate: &Arc<WriteGate>,
    inputs: &[Arc<Segment>],
    is_dead: &mut dyn FnMut(Location) -> Result<bool>,
    stop: &AtomicBool,
) -> Result<Merged> {
    let mut keys: Vec<(u64, usize)> = inputs
        .iter()
        .flat_map(|input| input.tables())
        .map(|table| (table.layout.code, table.layout.digest_len))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let mut writer = SegmentWriter::create(dir, id, keys.len(), Arc::clone(gate))?;
    for (code, digest_len) in keys {
        let mut cursors = Vec::with_capacity(inputs.len());
        for input in inputs {
            let of_key =
                |layout: &TableLayout| (layout.code, layout.digest_len) == (code, digest_len);
            let layout = input.tables().map(|table| table.layout).find(of_key);
            if let Some(layout) = layout {
                cursors.push(Cursor::open(input.path(), layout)?);
            }
        }
        let n_records_max = cursors.iter().map(|cursor| cursor.layout.n_records).sum();
        writer.start_table(code, digest_len, n_records_max)?;
        if merge_table(&mut writer, cursors, is_dead, stop)? == Stop::Yes {
            return Ok(Merged::Stopped);
        }
    }
    Ok(writer.finish()?.map_or(Merged::Empty, Merged::Segment))
}

#[derive(PartialEq, Eq)]
enum Stop {
    Yes,
    No,
}

fn merge_table(
    writer: &mut SegmentWriter,
    cursors: Vec<Cursor>,
    is_dead: &mut dyn FnMut(Location) -> Result<bool>,
    stop: &AtomicBool,
) -> Result<Stop> {
    let mut heap = BinaryHeap::with_capacity(cursors.len());
    for mut cursor in cursors {
        if cursor.advance()? {
            heap.push(Reverse(cursor));
        }
    }
    let mut last_digest = Vec::new();
    let mut last_container = None;
    let mut n_seen = 0u64;
    while let Some(mut least) = heap.peek_mut() {
        n_seen += 1;
        if n_seen.is_multiple_of(STOP_INTERVAL) {
            if stop.load(Memory::Relaxed) {
                return Ok(Stop::Yes);
            }
            writer.write_back()?;
            std::thread::yield_now();
        }
        let (digest, _) = least.0.parts();
        let location = least.0.location()?;
        let container = location.container;
        let repeats = last_container == Some(container) && last_digest == digest;
        if !repeats && !is_dead(location)? {
            writer.push(&least.0.record)?;
            last_digest.clear();
            last_digest.extend_from_slice(digest);
            last_container = Some(container);
        }
        if !least.0.advance()? {
            std::collections::binary_heap::PeekMut::pop(least);
        }
    }
    Ok(Stop::No)
}

/// Reads one table front to back, beside the map so that look-ups keep their pages.
struct Cursor {
    file: File,
    path: String,
    layout: TableLayout,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    /// Where the next record starts in `buffer`.
    position: usize,
    /// Bytes of the section read into buffers so far.
    n_read: u64,
    /// How many of them were given back to the kernel.
    n_dropped: u64,
    n_left: u64,
    n_left_in_page: usize,
    record: Vec<u8>,
}

impl Cursor {
    fn open(path: &Path, layout: TableLayout) -> Result<Self> {
        let name = path.display().to_string();
        let file = durable::at_either(path, |path| File::open(path))
            .context(ErrorKind::Unavailable, || format!("opening {name}"))?;
        Ok(Self {
            file,
            path: name,
            layout,
            hasher: blake3::Hasher::new(),
            buffer: Vec::new(),
            position: 0,
            n_read: 0,
            n_dropped: 0,
            n_left: layout.n_records,
            n_left_in_page: 0,
            record: Vec::new(),
        })
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        self.record
            .split_at_checked(self.layout.digest_len)
            .unwrap_or_default()
    }

    fn location(&self) -> Result<Location> {
        read_place(self.parts().1).ok_or_else(|| self.damaged())
    }

    /// Moves to the next record; false behind the last one, whose section was then checked.
    fn advance(&mut self) -> Result<bool> {
        if self.n_left == 0 {
            return if sum_of(&self.hasher.finalize()) == self.layout.records_sum {
                Ok(false)
            } else {
                Err(self.damaged())
            };
        }
        if self.n_left_in_page == 0 {
            self.position = self.position.next_multiple_of(PAGE_LEN);
            if self.position >= self.buffer.len() {
                self.fill()?;
            }
            self.n_left_in_page = self.layout.records_per_page();
        }
        let end = self.position + self.layout.record_len();
        let Some(record) = self.buffer.get(self.position..end) else {
            return Err(self.damaged());
        };
        self.record.clear();
        self.record.extend_from_slice(record);
        self.position = end;
        self.n_left -= 1;
        self.n_left_in_page -= 1;
        Ok(true)
    }

    fn fill(&mut self) -> Result<()> {
        let left = records_len(&self.layout) - self.n_read;
        self.buffer.resize(left.min(BUFFER_LEN as u64) as usize, 0);
        self.file
            .read_exact_at(&mut self.buffer, self.layout.records_offset + self.n_read)
            .context(ErrorKind::Unavailable, || format!("reading {}", self.path))?;
        self.hasher.update(&self.buffer);
        self.n_read += self.buffer.len() as u64;
        self.position = 0;
        if self.n_read - self.n_dropped >= DROP_LEN {
            self.drop_pages();
        }
        Ok(())
    }

    /// What was read once is not read again: the memory is better used for what look-ups need. The
    /// kernel keeps the pages that they have mapped.
    fn drop_pages(&mut self) {
        let offset = self.layout.records_offset + self.n_dropped;
        let len = NonZeroU64::new(self.n_read - self.n_dropped);
        let _ = rustix::fs::fadvise(&self.file, offset, len, rustix::fs::Advice::DontNeed);
        self.n_dropped = self.n_read;
    }

    fn damaged(&self) -> Error {
        let offset = self.layout.records_offset;
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "the records at byte {offset} of {} do not match their checksum",
                self.path
            ),
        )
    }
}

impl Ord for Cursor {
    fn cmp(&self, other: &Self) -> Ordering {
        compare_records(self.parts(), other.parts())
    }
}

impl PartialOrd for Cursor {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Cursor {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Cursor {}
