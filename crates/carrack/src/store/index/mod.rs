//! Multihash to locations: immutable sorted segments, each with a filter, behind one atomic list.
//!
//! In       keys with digests of 20 to 128 bytes; others are simply not there.
//! Out      every [`Location`] that an ingest recorded, newest segment first. A location is a
//!          claim: its container may be gone from the catalog, and its bytes must be hashed.
//! Limits   [`LOCATIONS_MAX`] locations from `get`; `visit` has no limit.
//! Not here which segments are live (`catalog`); whether a container is healthy (`block`).
//!
//! Look-ups take no lock and do no I/O beyond page faults: one cache line of filter a segment for
//! a miss, one page of records more for a hit. Layout: `docs/formats/segment.md`.

mod census;
#[cfg(test)]
mod fixture;
mod format;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod merge;
mod run;
mod segment;
#[cfg(test)]
mod tests;
mod write;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use carrack_formats::Multihash;

use self::segment::{Probe, Table};
use super::location::Location;
use crate::error::{Error, ErrorKind, Result};

pub use self::census::{Census, Met};
pub use self::format::{DIGEST_LEN_MAX, DIGEST_LEN_MIN};
pub use self::merge::{FANOUT, INPUTS_MAX, Merged, merge, plan_merge};
pub use self::run::{ENTRIES_MAX, RunWriter};
pub use self::segment::Segment;

/// Most locations that [`Index::get`] returns: a block that lies in more places is served from
/// these.
pub const LOCATIONS_MAX: usize = 64;

/// What helps against a damaged index.
pub const REBUILD_ADVICE: &str = "make it anew with `carrack index rebuild`";

/// Bytes of filters and fences that are copied into memory by opening: enough for 2 * 10^7
/// entries. What is beyond is read through the maps, and opening stays quick whatever the size of
/// the index.
pub const RESIDENT_LEN_MAX: u64 = 32 * 1024 * 1024;

/// The same for a node that serves, which copies them when it is up: enough for 1.2 * 10^8
/// entries. A hit that is not in memory then costs one read, of the page with its record.
pub const RESIDENT_LEN_MAX_SERVING: u64 = 192 * 1024 * 1024;

/// Names a segment file. Never reused once a catalog has listed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u64);

/// What the catalog keeps of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentMeta {
    /// Its name.
    pub id: SegmentId,
    /// Records in all its tables.
    pub n_records: u64,
    /// Bytes of its file.
    pub len: u64,
}

/// File name of a segment.
#[must_use]
pub fn segment_name(id: SegmentId) -> String {
    format!("{:016x}.seg", id.0)
}

/// The segment that a file's name is of, and whether it is its last name. Names that carrack does
/// not give are none.
pub(in crate::store) fn segment_id_of(name: &[u8]) -> Option<(SegmentId, bool)> {
    let name = std::str::from_utf8(name).ok()?;
    let (whole, is_whole) = match name.strip_suffix(".tmp") {
        Some(whole) => (whole, false),
        None => (name, true),
    };
    let id = SegmentId(id_of(whole.strip_suffix(".seg")?)?);
    Some((id, is_whole))
}

/// The number in a name of the store: as carrack writes it, and one that it comes to.
pub(in crate::store) fn id_of(digits: &str) -> Option<u64> {
    let id = u64::from_str_radix(digits, 16).ok()?;
    (format!("{id:016x}") == digits && id < 1 << 63).then_some(id)
}

/// The live segments.
#[derive(Debug)]
pub struct Index {
    live: ArcSwap<Live>,
    /// [`RESIDENT_LEN_MAX`], or more once [`Self::load_heads`] was called.
    resident_len_max: AtomicU64,
}

/// One version of the live list, replaced whole.
#[derive(Debug, Default)]
struct Live {
    /// Newest first.
    segments: Vec<Arc<Segment>>,
    /// Ascending by (code, digest length).
    groups: Vec<Group>,
    /// A look-up met a damaged page.
    is_damaged: AtomicBool,
}

/// The tables of one kind of key in all segments, newest first.
#[derive(Debug)]
struct Group {
    code: u64,
    digest_len: usize,
    tables: Vec<(Table, Arc<Segment>)>,
}

impl Index {
    /// Maps the listed segments of `dir`. Reads one header each.
    ///
    /// # Errors
    /// Those of [`Segment::open`].
    pub fn open(dir: &Path, segments: &[SegmentMeta]) -> Result<Self> {
        Self::open_with(dir, segments, RESIDENT_LEN_MAX)
    }

    /// As [`Self::open`], with at most so many bytes of filters and fences in memory.
    ///
    /// # Errors
    /// Those of [`Segment::open`].
    pub fn open_with(dir: &Path, segments: &[SegmentMeta], resident_len_max: u64) -> Result<Self> {
        let mut opened = Vec::with_capacity(segments.len());
        // Smallest first: memory saves the same for each, and small ones take less of it.
        let mut ascending = segments.to_vec();
        ascending.sort_by_key(|meta| meta.n_records);
        let mut left = resident_len_max;
        for meta in &ascending {
            let segment = open_segment(dir, meta, left)?;
            left = left.saturating_sub(segment.resident_len());
            opened.push(Arc::new(segment));
        }
        Ok(Self::of(opened))
    }

    /// As [`Self::open`], without the segments that are missing or damaged; and why each of those
    /// cannot be read.
    ///
    /// # Errors
    /// `Unavailable` if one is only not to be opened by this user: it is not lost.
    pub(super) fn open_what_is_left(
        dir: &Path,
        segments: &[SegmentMeta],
    ) -> Result<(Self, Vec<(SegmentId, Error)>)> {
        let mut lost = Vec::new();
        let mut opened = Vec::with_capacity(segments.len());
        for meta in segments {
            match open_segment(dir, meta, 0) {
                Ok(segment) => opened.push(Arc::new(segment)),
                Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
                Err(error) => lost.push((meta.id, error)),
            }
        }
        Ok((Self::of(opened), lost))
    }

    fn of(segments: Vec<Arc<Segment>>) -> Self {
        Self {
            live: ArcSwap::from_pointee(Live::new(segments)),
            resident_len_max: AtomicU64::new(RESIDENT_LEN_MAX),
        }
    }

    /// Segments whose filters and fences are not in memory and would fit into `len_max` bytes of
    /// it, opened with them; for [`Self::replace`]. Reads them from the disk.
    pub(super) fn load_heads(&self, dir: &Path, len_max: u64) -> Result<Vec<Arc<Segment>>> {
        self.resident_len_max.fetch_max(len_max, Ordering::Relaxed);
        let mut segments = self.live_segments();
        segments.sort_by_key(|segment| segment.meta().n_records);
        let mut left = len_max.saturating_sub(self.resident_len());
        let mut loaded = Vec::new();
        for segment in segments.iter().filter(|one| one.resident_len() == 0) {
            let segment = open_segment(dir, &segment.meta(), left)?;
            if segment.resident_len() == 0 {
                break;
            }
            left = left.saturating_sub(segment.resident_len());
            loaded.push(Arc::new(segment));
        }
        Ok(loaded)
    }

    /// Maps segments that are to be added while those of `removed` go.
    pub(super) fn open_more(
        &self,
        dir: &Path,
        segments: &[SegmentMeta],
        removed: &[SegmentId],
    ) -> Result<Vec<Arc<Segment>>> {
        let live = self.live.load();
        let stays = |segment: &&Arc<Segment>| !removed.contains(&segment.meta().id);
        let staying = live.segments.iter().filter(stays);
        let taken: u64 = staying.map(|segment| segment.resident_len()).sum();
        let max = self.resident_len_max.load(Ordering::Relaxed);
        let mut left = max.saturating_sub(taken);
        let mut opened = Vec::with_capacity(segments.len());
        for meta in segments {
            let segment = open_segment(dir, meta, left)?;
            left = left.saturating_sub(segment.resident_len());
            opened.push(Arc::new(segment));
        }
        Ok(opened)
    }

    /// As [`Self::get`], and tells a key that is not there from one whose page is damaged.
    ///
    /// # Errors
    /// `Corrupt` if nothing was found and a page that should have been right was not.
    pub fn locate(&self, key: &Multihash, out: &mut Vec<Location>) -> Result<()> {
        let n_before = out.len();
        self.get(key, out);
        let live = self.live.load();
        if out.len() > n_before || !live.is_damaged.load(Ordering::Relaxed) {
            return Ok(());
        }
        let probe = Probe::new(key.digest());
        let mut tables = live.tables(key).iter();
        let bad = tables.find(|(table, segment)| {
            segment.may_contain(table, probe) && !segment.is_sound_at(table, probe)
        });
        bad.map_or(Ok(()), |(_, segment)| Err(damaged_at(segment)))
    }

    /// An error if the page that says where `key` lies is not as it was written: before a source
    /// is blamed for bytes that the index named.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn vouch(&self, key: &Multihash) -> Result<()> {
        let live = self.live.load();
        let probe = Probe::new(key.digest());
        let mut tables = live.tables(key).iter();
        let bad = tables.find(|(table, segment)| {
            segment.may_contain(table, probe) && !segment.is_sound_at(table, probe)
        });
        bad.map_or(Ok(()), |(_, segment)| Err(damaged_at(segment)))
    }

    /// Appends the locations of `key` to `out`, at most [`LOCATIONS_MAX`].
    pub fn get(&self, key: &Multihash, out: &mut Vec<Location>) {
        let mut left = LOCATIONS_MAX;
        self.visit(key, |location| {
            out.push(location);
            left -= 1;
            if left == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
    }

    /// Calls `found` with each location of `key` until it breaks.
    pub fn visit(&self, key: &Multihash, mut found: impl FnMut(Location) -> ControlFlow<()>) {
        // Whether it broke off is known to `found`.
        let _ = self.live.load().visit(key, &mut found);
    }

    /// One location of `key`.
    #[must_use]
    pub fn first(&self, key: &Multihash) -> Option<Location> {
        self.live.load().first(key)
    }

    /// One location of each key, in the order of the keys, all from one version of the list.
    #[must_use]
    pub fn get_many(&self, keys: &[Multihash]) -> Vec<Option<Location>> {
        let live = self.live.load();
        keys.iter().map(|key| live.first(key)).collect()
    }

    /// Calls `found` with the index of a key and each of its locations, key by key.
    pub fn visit_many(&self, keys: &[Multihash], mut found: impl FnMut(usize, Location)) {
        let live = self.live.load();
        for (index, key) in keys.iter().enumerate() {
            let _ = live.visit(key, &mut |location| {
                found(index, location);
                ControlFlow::Continue(())
            });
        }
    }

    /// Some container had `key`. That it has it still is for `store::block` to say.
    #[must_use]
    pub fn contains(&self, key: &Multihash) -> bool {
        self.first(key).is_some()
    }

    /// What is live now, newest first.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentMeta> {
        self.live
            .load()
            .segments
            .iter()
            .map(|segment| segment.meta())
            .collect()
    }

    /// Records of all live segments; a block in two containers counts twice.
    #[must_use]
    pub fn n_records(&self) -> u64 {
        self.live
            .load()
            .segments
            .iter()
            .map(|segment| segment.meta().n_records)
            .sum()
    }

    /// Reads every live segment and compares it with its checksums.
    ///
    /// # Errors
    /// `Corrupt`, naming the first damaged section.
    pub fn check(&self) -> Result<()> {
        let live = self.live.load_full();
        live.segments.iter().try_for_each(|segment| segment.check())
    }

    /// Reads one live segment and compares it with its checksums.
    ///
    /// # Errors
    /// `Corrupt`, naming the first damaged section. A segment that is not live any more is sound.
    pub fn check_segment(&self, id: SegmentId) -> Result<()> {
        let live = self.live.load_full();
        let segment = live.segments.iter().find(|one| one.meta().id == id);
        segment.map_or(Ok(()), |segment| segment.check())
    }

    /// Bytes of memory that copies of filters and fences take.
    #[must_use]
    pub fn resident_len(&self) -> u64 {
        let live = self.live.load();
        live.segments.iter().map(|one| one.resident_len()).sum()
    }

    /// The live segments themselves: they stay readable whatever is merged meanwhile.
    pub(super) fn live_segments(&self) -> Vec<Arc<Segment>> {
        self.live.load().segments.clone()
    }

    /// Replaces the list: without `removed`, with `added`. Callers hold the store's commit lock.
    pub(super) fn replace(&self, removed: &[SegmentId], added: Vec<Arc<Segment>>) {
        let mut segments = self.live_segments();
        segments.retain(|segment| !removed.contains(&segment.meta().id));
        segments.extend(added);
        self.live.store(Arc::new(Live::new(segments)));
    }
}

fn open_segment(dir: &Path, meta: &SegmentMeta, resident_left: u64) -> Result<Segment> {
    let is_resident = segment::resident_len_of(meta.n_records) <= resident_left;
    let path = dir.join(segment_name(meta.id));
    Segment::open(path, meta, is_resident).map_err(advised)
}

fn damaged_at(segment: &Segment) -> Error {
    let path = segment.path().display();
    let what = format!("a page of the index segment {path} is damaged; {REBUILD_ADVICE}");
    Error::new(ErrorKind::Corrupt, what)
}

/// A damaged index is not the end: nothing is in it that is not somewhere else, too.
fn advised(error: Error) -> Error {
    if error.kind() != ErrorKind::Corrupt {
        return error;
    }
    let what = format!("{error}: the index is damaged; {REBUILD_ADVICE}");
    match error.into_source() {
        Some(source) => Error::with(ErrorKind::Corrupt, what, source),
        None => Error::new(ErrorKind::Corrupt, what),
    }
}

impl Live {
    fn new(mut segments: Vec<Arc<Segment>>) -> Self {
        segments.sort_by_key(|segment| std::cmp::Reverse(segment.meta().id));
        let mut groups: Vec<Group> = Vec::new();
        for segment in &segments {
            for table in segment.tables() {
                let (code, digest_len) = (table.layout.code, table.layout.digest_len);
                let entry = (table, Arc::clone(segment));
                let same =
                    |group: &&mut Group| group.code == code && group.digest_len == digest_len;
                match groups.iter_mut().find(same) {
                    Some(group) => group.tables.push(entry),
                    None => groups.push(Group {
                        code,
                        digest_len,
                        tables: vec![entry],
                    }),
                }
            }
        }
        groups.sort_unstable_by_key(|group| (group.code, group.digest_len));
        Self {
            segments,
            groups,
            is_damaged: AtomicBool::new(false),
        }
    }

    fn tables(&self, key: &Multihash) -> &[(Table, Arc<Segment>)] {
        let wanted = (key.code(), key.digest().len());
        self.groups
            .binary_search_by_key(&wanted, |group| (group.code, group.digest_len))
            .ok()
            .and_then(|index| self.groups.get(index))
            .map_or(&[], |group| &group.tables)
    }

    fn visit(
        &self,
        key: &Multihash,
        found: &mut impl FnMut(Location) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let probe = Probe::new(key.digest());
        for (table, segment) in self.tables(key) {
            if !segment.may_contain(table, probe) {
                continue;
            }
            let mut is_there = false;
            segment.visit(table, probe, &mut |location| {
                is_there = true;
                found(location)
            })?;
            if !is_there && !segment.is_sound_at(table, probe) {
                self.note_damage(segment);
            }
        }
        ControlFlow::Continue(())
    }

    #[cold]
    fn note_damage(&self, segment: &Segment) {
        self.is_damaged.store(true, Ordering::Relaxed);
        if segment.found_damaged() {
            let error = damaged_at(segment);
            tracing::error!(error = error.chain(), "a look-up met a damaged page");
        }
    }

    fn first(&self, key: &Multihash) -> Option<Location> {
        let mut first = None;
        let _ = self.visit(key, &mut |location| {
            first = Some(location);
            ControlFlow::Break(())
        });
        first
    }
}
