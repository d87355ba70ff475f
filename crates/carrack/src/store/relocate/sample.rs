//! Blocks of the new place, read and hashed.
//!
//! In       the containers that moved and were found again.
//! Out      counts of good blocks; the objects of bad ones.
//! Limits   [`ROUNDS_MAX`] ways down for each sample that is wanted, each at most [`DEPTH_MAX`]
//!          blocks long; one block is held at a time.
//! Not here what follows from it (`store::relocate`).
//!
//! The CIDs of an object's blocks are found by going down from the root of its file, or of the CAR,
//! by a random link each time. Interior nodes lie in carrack's packs; those that lie in what moved
//! are read at the new place and count as samples.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use carrack_formats::cid::{RAW, identity_data};
use carrack_formats::unixfs::leaf;
use carrack_formats::{Cid, dag, verify};

use super::{Moved, MovedContainers, NewPlace, Report, Subject, interrupted, is_car, join};
use crate::error::{Context, ErrorKind, Result};
use crate::source::local::LocalFile;
use crate::source::retry::Patient;
use crate::source::{Source, SourceError, SourceErrorKind};
use crate::store::block::{Blocks, block_len};
use crate::store::catalog::{ObjectStamp, SOURCE_LOCAL, Validator};
use crate::store::location::{ContainerId, Location};

/// Ways down for each sample that is wanted: some end in what was sampled before.
const ROUNDS_MAX: u64 = 4;
/// Blocks on one way down.
const DEPTH_MAX: usize = 64;
/// Objects that are candidates for samples, at least.
const CANDIDATES_MIN: usize = 256;
/// Tries of a read at the new place.
const TRIES_MAX: u32 = 4;
/// Failed samples after which no more are taken.
const FAILED_MAX: usize = 16;

/// Reads and hashes `n_wanted` blocks, or all if there are fewer.
pub(super) fn sample(
    blocks: &Blocks,
    subject: &Subject,
    place: &NewPlace,
    moved: &MovedContainers,
    n_wanted: u64,
    stop: &AtomicBool,
    report: &mut Report,
) -> Result<()> {
    let mut dice = Dice::new(subject);
    let n_candidates = usize::try_from(n_wanted).unwrap_or(usize::MAX);
    let n_candidates = n_candidates
        .saturating_mul(4)
        .clamp(CANDIDATES_MIN, 1 << 20);
    let candidates = candidates(blocks, subject, moved, n_candidates, &mut dice)?;
    let mut sampler = Sampler {
        blocks,
        place,
        moved,
        seen: HashSet::new(),
        report,
    };
    for round in 0..ROUNDS_MAX.saturating_mul(n_wanted.max(1)) {
        if stop.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        let is_enough = sampler.report.n_sampled >= n_wanted;
        if is_enough || candidates.is_empty() || sampler.report.failed.len() >= FAILED_MAX {
            break;
        }
        let index = usize::try_from(round).unwrap_or(usize::MAX) % candidates.len();
        if let Some((container, cid)) = candidates.get(index) {
            sampler.go_down(*container, *cid, &mut dice)?;
        }
    }
    Ok(())
}

/// Objects and the CIDs that lead to their blocks, chosen among all by chance.
fn candidates(
    blocks: &Blocks,
    subject: &Subject,
    moved: &MovedContainers,
    n_max: usize,
    dice: &mut Dice,
) -> Result<Vec<(ContainerId, Cid)>> {
    let catalog = blocks.store().catalog();
    let is_found = |id: &ContainerId| moved.get(id).is_some_and(|one| one.now.is_some());
    let source = match subject {
        Subject::Source(id, _) => *id,
        Subject::Folder(..) => SOURCE_LOCAL,
    };
    let (mut files, mut cars) = (Chosen::new(n_max), Chosen::new(n_max));
    for row in catalog.paths_of(source)? {
        let (_, record) = row?;
        if let Some(container) = record.container.filter(is_found) {
            files.offer((container, record.cid), dice);
        }
    }
    // What no file's row leads to is found from its root: CARs, above all.
    let only_cars = !files.list.is_empty();
    for root in catalog.roots()? {
        if root.source != source {
            continue;
        }
        for container in catalog.members(root.id)? {
            let one = moved.get(&container).filter(|one| one.now.is_some());
            if one.is_some_and(|one| is_car(&one.record) || !only_cars) {
                cars.offer((container, root.cid), dice);
            }
        }
    }
    dice.shuffle(&mut files.list);
    dice.shuffle(&mut cars.list);
    // By turns, so that neither sort is left out.
    let (mut files, mut cars) = (files.list.into_iter(), cars.list.into_iter());
    let mut all = Vec::new();
    loop {
        let next = [files.next(), cars.next()];
        if next.iter().all(Option::is_none) {
            return Ok(all);
        }
        all.extend(next.into_iter().flatten());
    }
}

/// Some of many, each with the same chance.
struct Chosen {
    list: Vec<(ContainerId, Cid)>,
    n_max: usize,
    n_seen: u64,
}

impl Chosen {
    const fn new(n_max: usize) -> Self {
        Self {
            list: Vec::new(),
            n_max,
            n_seen: 0,
        }
    }

    fn offer(&mut self, one: (ContainerId, Cid), dice: &mut Dice) {
        self.n_seen += 1;
        if self.list.len() < self.n_max {
            self.list.push(one);
            return;
        }
        let place = usize::try_from(dice.below(self.n_seen)).unwrap_or(usize::MAX);
        if let Some(kept) = self.list.get_mut(place) {
            *kept = one;
        }
    }
}

struct Sampler<'a> {
    blocks: &'a Blocks,
    place: &'a NewPlace,
    moved: &'a MovedContainers,
    /// Places that were read.
    seen: HashSet<(ContainerId, u64)>,
    report: &'a mut Report,
}

impl Sampler<'_> {
    /// From `cid` down to a leaf. Blocks in containers that moved are read at the new place.
    fn go_down(&mut self, wanted: ContainerId, mut cid: Cid, dice: &mut Dice) -> Result<()> {
        for _ in 0..DEPTH_MAX {
            if identity_data(&cid).is_some() {
                return Ok(());
            }
            let locations = self.blocks.locate(cid.hash())?;
            let there = |at: &&Location| {
                let one = self.moved.get(&at.container);
                one.is_some_and(|one| one.now.is_some())
            };
            let exact = locations.iter().find(|at| at.container == wanted);
            let block = match exact.filter(there).or(locations.iter().find(there)) {
                Some(at) if cid.codec() == RAW && self.has_seen(*at) => return Ok(()),
                Some(location) => match self.compare(&cid, *location)? {
                    Some(block) => block,
                    None => return Ok(()),
                },
                // Of a pack, or of something that did not move.
                None => match self.blocks.get_blocking(&cid) {
                    Ok(block) => block,
                    Err(_) => return Ok(()), // This way cannot be gone; others can.
                },
            };
            let Ok(links) = dag::links(cid.codec(), &block) else {
                return Ok(());
            };
            let index = usize::try_from(dice.below(links.len() as u64)).unwrap_or(0);
            match links.get(index) {
                Some(Ok(next)) => cid = next,
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    fn has_seen(&self, at: Location) -> bool {
        self.seen.contains(&(at.container, at.offset))
    }

    /// The block as the new place has it, counted; `None`: it is not the block.
    fn compare(&mut self, cid: &Cid, location: Location) -> Result<Option<Bytes>> {
        let Some(one) = self.moved.get(&location.container) else {
            return Ok(None);
        };
        let mut block = Vec::with_capacity(block_len(location));
        let (prefix, suffix) = match location.wrapped {
            true => leaf::frame(location.len as usize),
            false => (Vec::new(), Vec::new()),
        };
        block.extend_from_slice(&prefix);
        let why = match read(self.place, one, location, &mut block)? {
            Some(why) => Some(why),
            None => {
                block.extend_from_slice(&suffix);
                verify::verify(cid, &block).err().map(|error| {
                    let (offset, len) = (location.offset, location.len);
                    format!("{len} bytes at {offset} are not {cid}: {error}")
                })
            }
        };
        if let Some(why) = why {
            let path = PathBuf::from(OsStr::from_bytes(&one.below));
            self.report.failed.push((path, why));
            return Ok(None);
        }
        if self.seen.insert((location.container, location.offset)) {
            self.report.n_sampled += 1;
            self.report.bytes_sampled += u64::from(location.len);
        }
        Ok(Some(Bytes::from(block)))
    }
}

/// Appends the bytes at `location` to `out`; gives why there are none that could be compared.
fn read(
    place: &NewPlace,
    one: &Moved,
    location: Location,
    out: &mut Vec<u8>,
) -> Result<Option<String>> {
    let len = location.len as usize; // Bounded: it came from the index of verified blocks.
    match (place, &one.now) {
        (NewPlace::Folder(base), _) => {
            let path = join(base, &one.below);
            let cannot = || format!("cannot read {}", path.display());
            let file = LocalFile::open(&path).context(ErrorKind::Unavailable, cannot)?;
            if one.now.as_ref() != Some(&file.validator) {
                return Ok(Some("it changes just now".to_owned()));
            }
            let start = out.len();
            out.resize(start + len, 0);
            let bytes = out.get_mut(start..).unwrap_or_default();
            let read = file.read_exact_at(bytes, location.offset);
            Ok(read.err().map(|error| error.to_string()))
        }
        (NewPlace::Elsewhere(source, handle), Some(Validator::Object(stamp))) => {
            let reading = read_range(source.as_ref(), &one.below, stamp, location, out);
            match handle.block_on(reading) {
                Ok(()) => Ok(None),
                Err(error)
                    if matches!(
                        error.kind,
                        SourceErrorKind::Changed | SourceErrorKind::Missing
                    ) =>
                {
                    Ok(Some(error.what))
                }
                Err(error) => Err(error.into()),
            }
        }
        (NewPlace::Elsewhere(..), _) => Ok(Some("it is not there".to_owned())),
    }
}

async fn read_range(
    source: &dyn Source,
    path: &[u8],
    stamp: &ObjectStamp,
    location: Location,
    out: &mut Vec<u8>,
) -> Result<(), SourceError> {
    let range = location.offset..location.offset.saturating_add(u64::from(location.len));
    let patient = Patient {
        source,
        limiter: &Arc::default(), // One at a time.
        attempts: TRIES_MAX,
        n_throttled: &AtomicU64::new(0),
    };
    patient
        .each_piece(path, stamp, range, |piece: Bytes| {
            out.extend_from_slice(&piece)
        })
        .await
}

/// Numbers that follow from where the data are said to be.
struct Dice(blake3::OutputReader);

impl Dice {
    fn new(subject: &Subject) -> Self {
        let mut hasher = blake3::Hasher::new();
        match subject {
            Subject::Source(_, record) => hasher.update(record.url.as_bytes()),
            Subject::Folder(_, new) => hasher.update(new.as_os_str().as_bytes()),
        };
        Self(hasher.finalize_xof())
    }

    /// A number below `n`, or 0.
    fn below(&mut self, n: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        // The bias is below 2^-32 for anything that can be counted here.
        u64::from_le_bytes(bytes).checked_rem(n).unwrap_or(0)
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            let other = usize::try_from(self.below(end as u64 + 1)).unwrap_or(0);
            list.swap(end, other);
        }
    }
}
