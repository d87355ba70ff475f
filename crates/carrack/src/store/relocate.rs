//! A source that moved: shown to be the same data, then named by its new place.
//!
//! In       what moved (a configured source, or everything below a folder of this machine), and
//!          where it is now.
//! Out      one transaction that gives every container its new path or source and the version it
//!          has there; or a [`Report`] of why not.
//! Limits   about 1 KiB of memory an object. From the new place one listing (or `lstat`s) and
//!          [`Options::samples`] blocks are read, however much there is.
//! Not here reading the new place (`source`), what is printed (`cli::commands::source`).
//!
//! An object is found again by its path below the source and its length. An entity tag that is the
//! same proves it; beside that, blocks spread over all objects are read at the new place and
//! hashed. Which ones follows from the name of the new place, so that the same command looks at
//! the same blocks again. This finds mistakes; whoever wants to deceive meets the hash of every
//! later read. Of a source without objects nothing can be compared: its new place must answer.

mod sample;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Handle;

use crate::error::{Error, ErrorKind, Result};
use crate::source::look::{answers, look};
use crate::source::nofollow::{self, Kind};
use crate::source::{Source, SourceError, SourceErrorKind};
use crate::store::block::Blocks;
use crate::store::catalog::{
    Batch, ContainerKind, ContainerRecord, FileStamp, ObjectStamp, PathKey, SOURCE_LOCAL,
    SourceRecord, StaleMark, StaleReason, Validator,
};
use crate::store::location::ContainerId;

/// Objects that are named in a report; the rest is counted.
const NAMED_MAX: usize = 1000;

/// What moved.
#[derive(Debug, Clone)]
pub enum Subject {
    /// A configured source: its row as it is to be.
    Source(u32, SourceRecord),
    /// What was added from below a folder of this machine, by absolute paths without `/` at the
    /// end: where it was, and where it is.
    Folder(PathBuf, PathBuf),
}

/// Where the data are now.
#[derive(Debug)]
pub enum NewPlace {
    /// In a folder of this machine.
    Folder(PathBuf),
    /// In a source elsewhere, read by these threads.
    Elsewhere(Arc<dyn Source>, Handle),
}

/// How sure one must be.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Blocks that are read and hashed at the new place.
    pub samples: u64,
    /// Objects that may be missing or of another length there.
    pub missing_max: u64,
    /// Nothing is changed.
    pub dry_run: bool,
}

/// What was found at the new place.
#[derive(Debug, Default)]
pub struct Report {
    /// Objects that were looked for.
    pub n_objects: u64,
    /// Those with the same entity tag, or the same inode.
    pub n_proved: u64,
    /// Blocks that were read there and hashed.
    pub n_sampled: u64,
    /// Their bytes.
    pub bytes_sampled: u64,
    /// Objects that are missing or differ there.
    pub n_missing: u64,
    /// Each of them, as its path below the source and why; at most 1000.
    pub missing: Vec<(PathBuf, String)>,
    /// Samples that were not what they were: object, and why.
    pub failed: Vec<(PathBuf, String)>,
    /// Roots that have another path now.
    pub n_roots: u64,
}

/// A container on its way.
struct Moved {
    record: ContainerRecord,
    /// Its path below what moved.
    below: Vec<u8>,
    /// What it is at the new place; `None`: it is not there.
    now: Option<Validator>,
}

type MovedContainers = HashMap<ContainerId, Moved>;

/// Looks at the new place, and makes it the place of what moved if it holds the same data.
///
/// # Errors
/// `Changed` if it does not (nothing was changed then, and the report says what differs);
/// `NotFound` if nothing was added from the old place, which is a folder; `Unavailable` if the new
/// one cannot be read.
pub fn relocate(
    blocks: &Blocks,
    subject: &Subject,
    place: &NewPlace,
    options: &Options,
    stop: &AtomicBool,
    report: &mut Report,
) -> Result<()> {
    let store = blocks.store();
    let _ingest = store.ingest_lock(); // Rows must not come or go meanwhile.
    let mut moved = containers_of(blocks, subject)?;
    report.n_objects = moved.len() as u64;
    if let (true, NewPlace::Elsewhere(source, handle)) = (moved.is_empty(), place) {
        // There is nothing to compare; that it is a place at all can be told.
        handle.block_on(answers(source.as_ref()))?;
    }
    find_again(&mut moved, subject, place, stop, report)?;
    if report.n_missing > options.missing_max {
        let n = report.n_missing;
        let what = format!("{n} objects are not there as they were: nothing was changed");
        return Err(Error::new(ErrorKind::Changed, what));
    }
    sample::sample(
        blocks,
        subject,
        place,
        &moved,
        options.samples,
        stop,
        report,
    )?;
    if !report.failed.is_empty() {
        let what = "blocks at the new place are not those that were added: nothing was changed";
        return Err(Error::new(ErrorKind::Changed, what));
    }
    let n_found = report.n_objects - report.n_missing;
    let is_any_found = n_found > 0 || report.n_objects == 0;
    if report.n_sampled == 0 && (report.n_proved < n_found || !is_any_found) {
        let what = "no block could be compared, so nothing is proved: add the new place instead";
        return Err(Error::new(ErrorKind::Changed, what));
    }
    let batch = rewrite(blocks, subject, place, &moved, report)?;
    if options.dry_run {
        return Ok(());
    }
    store.commit(batch)?;
    settle(blocks, subject, &moved);
    Ok(())
}

/// The containers that moved.
fn containers_of(blocks: &Blocks, subject: &Subject) -> Result<MovedContainers> {
    let mut moved = HashMap::new();
    for row in blocks.store().catalog().containers()? {
        let (id, record) = row?;
        let below = match subject {
            Subject::Source(source, _) if record.source == *source => Some(record.path.clone()),
            Subject::Folder(old, _) if record.source == SOURCE_LOCAL => below(old, &record.path),
            _ => None,
        };
        if let Some(below) = below {
            let now = None;
            moved.insert(id, Moved { record, below, now });
        }
    }
    match subject {
        Subject::Folder(old, _) if moved.is_empty() => {
            let what = format!("nothing was added from {}", old.display());
            Err(Error::new(ErrorKind::NotFound, what))
        }
        _ => Ok(moved),
    }
}

/// `path` below `base`; `None` if it is not there.
fn below(base: &Path, path: &[u8]) -> Option<Vec<u8>> {
    let base = base.as_os_str().as_bytes();
    let base = base.strip_suffix(b"/").unwrap_or(base);
    let rest = path.strip_prefix(base)?;
    match rest.split_first() {
        None => Some(Vec::new()),
        Some((b'/', rest)) => Some(rest.to_vec()),
        Some(_) => None,
    }
}

/// `base`, and `below` behind it.
fn join(base: &Path, below: &[u8]) -> PathBuf {
    if below.is_empty() {
        return base.to_owned();
    }
    base.join(OsStr::from_bytes(below))
}

/// Looks for each container at the new place.
fn find_again(
    moved: &mut MovedContainers,
    subject: &Subject,
    place: &NewPlace,
    stop: &AtomicBool,
    report: &mut Report,
) -> Result<()> {
    match place {
        NewPlace::Folder(base) => {
            for one in moved.values_mut() {
                if stop.load(Ordering::Relaxed) {
                    return Err(interrupted());
                }
                match nofollow::look(&join(base, &one.below)) {
                    Ok(looked) if looked.kind == Kind::File => one.found(looked.validator, report),
                    Ok(_) => one.lost("it is no file there", report),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        one.lost("it is not there", report);
                    }
                    Err(error) => one.lost(&error.to_string(), report),
                }
            }
            Ok(())
        }
        NewPlace::Elsewhere(source, handle) => {
            debug_assert!(matches!(subject, Subject::Source(..)));
            let mut by_path: HashMap<Vec<u8>, Vec<ContainerId>> = HashMap::new();
            for (id, one) in &*moved {
                by_path.entry(one.below.clone()).or_default().push(*id);
            }
            let mut failure: Option<SourceError> = None;
            let paths: HashSet<Vec<u8>> = by_path.keys().cloned().collect();
            let looked = look(source.as_ref(), paths, stop, |path, seen| {
                for id in by_path.get(&path).into_iter().flatten() {
                    let Some(one) = moved.get_mut(id) else {
                        continue;
                    };
                    match &seen {
                        Ok(stamp) => one.found(Validator::from(stamp.clone()), report),
                        Err(error) if error.kind == SourceErrorKind::Missing => {
                            one.lost("it is not there", report);
                        }
                        Err(error) => failure = Some(error.clone()),
                    }
                }
            });
            let is_whole = handle.block_on(looked);
            match failure {
                Some(error) => Err(error.into()),
                None if !is_whole => Err(interrupted()),
                None => Ok(()),
            }
        }
    }
}

impl Moved {
    fn found(&mut self, now: Validator, report: &mut Report) {
        if now.size() != self.record.size {
            let why = format!("{} bytes there, was {}", now.size(), self.record.size);
            return self.lost(&why, report);
        }
        report.n_proved += u64::from(is_same(&self.record.validator, &now));
        self.now = Some(now);
    }

    fn lost(&mut self, why: &str, report: &mut Report) {
        report.n_missing += 1;
        if report.missing.len() < NAMED_MAX {
            let path = PathBuf::from(OsStr::from_bytes(&self.below));
            report.missing.push((path, why.to_owned()));
        }
    }
}

/// Whether the versions alone prove that the bytes are the same.
fn is_same(was: &Validator, now: &Validator) -> bool {
    match (was, now) {
        // Renaming a folder leaves the files below as they are.
        (Validator::File(was), Validator::File(now)) => was == now,
        (Validator::Object(was), Validator::Object(now)) => {
            was.etag.is_some() && was.etag == now.etag && was.size == now.size
        }
        _ => false,
    }
}

/// All rows as they are to be.
fn rewrite(
    blocks: &Blocks,
    subject: &Subject,
    place: &NewPlace,
    moved: &MovedContainers,
    report: &mut Report,
) -> Result<Batch> {
    let mut batch = Batch::new();
    let mut validators = HashMap::new();
    for (id, one) in moved {
        let mut record = one.record.clone();
        if let Subject::Folder(_, new) = subject {
            record.path = join(new, &one.below).into_os_string().into_encoded_bytes();
        }
        let now = one.now.clone();
        record.validator = now.unwrap_or_else(|| of_kind(place, &one.record.validator));
        batch.put_container(*id, &record);
        if one.now.is_some() {
            batch.clear_stale(*id);
        } else {
            batch.put_stale(*id, gone());
        }
        validators.insert(*id, record.validator);
    }
    paths(blocks, subject, &validators, &mut batch)?;
    if let Subject::Source(id, record) = subject {
        batch.put_source(*id, record);
    }
    roots(blocks, subject, &mut batch, report)?;
    Ok(batch)
}

/// The rows of what the next add need not read again.
fn paths(
    blocks: &Blocks,
    subject: &Subject,
    validators: &HashMap<ContainerId, Validator>,
    batch: &mut Batch,
) -> Result<()> {
    let catalog = blocks.store().catalog();
    let source = match subject {
        Subject::Source(id, _) => *id,
        Subject::Folder(..) => SOURCE_LOCAL,
    };
    let (mut files, mut dirs) = (Vec::new(), Vec::new());
    for row in catalog.paths_of(source)? {
        let (key, mut record) = row?;
        let now = record.container.and_then(|id| validators.get(&id));
        if let Some(now) = now {
            record.validator = now.clone();
        }
        match renamed(subject, &key) {
            Some(new) => {
                batch.remove_path(&key);
                files.push((new, record));
            }
            None if now.is_some() => files.push((key, record)),
            None => {}
        }
    }
    for row in catalog.dirs_of(source)? {
        let (key, record) = row?;
        if let Some(new) = renamed(subject, &key) {
            batch.remove_dir(&key);
            dirs.push((new, record));
        }
    }
    // Behind all removals: a new name may be what another row had.
    files.iter().for_each(|(key, row)| batch.put_path(key, row));
    dirs.iter().for_each(|(key, row)| batch.put_dir(key, row));
    Ok(())
}

/// The key of a row that has another name now.
fn renamed(subject: &Subject, key: &PathKey) -> Option<PathKey> {
    let Subject::Folder(old, new) = subject else {
        return None;
    };
    let below = below(old, &key.path)?;
    Some(PathKey {
        path: join(new, &below).into_os_string().into_encoded_bytes(),
        ..key.clone()
    })
}

/// Roots keep what they are and get the name of the new place.
fn roots(blocks: &Blocks, subject: &Subject, batch: &mut Batch, report: &mut Report) -> Result<()> {
    let catalog = blocks.store().catalog();
    let (source, old, new) = match subject {
        Subject::Source(id, record) => {
            let Some(old) = catalog.source(*id)? else {
                return Ok(());
            };
            (*id, PathBuf::from(old.url), PathBuf::from(&record.url))
        }
        Subject::Folder(old, new) => (SOURCE_LOCAL, old.clone(), new.clone()),
    };
    for mut root in catalog.roots()? {
        if root.source != source {
            continue;
        }
        if let Some(below) = below(&old, &root.path) {
            let path = join(&new, &below);
            root.name = path.file_name().unwrap_or_default().as_bytes().to_vec();
            root.path = path.into_os_string().into_encoded_bytes();
            let members = catalog.members(root.id)?;
            batch.put_root(root, members);
            report.n_roots += 1;
        }
    }
    Ok(())
}

/// A version of something that is not there, of the kind that the place has.
fn of_kind(place: &NewPlace, was: &Validator) -> Validator {
    match (place, was) {
        (NewPlace::Folder(_), Validator::Object(stamp)) => Validator::File(FileStamp {
            size: stamp.size,
            ..FileStamp::default()
        }),
        (NewPlace::Elsewhere(..), Validator::File(stamp)) => Validator::from(ObjectStamp {
            size: stamp.size,
            modified: Some(stamp.mtime),
            ..ObjectStamp::default()
        }),
        _ => was.clone(),
    }
}

fn gone() -> StaleMark {
    StaleMark::new(StaleReason::Missing, None, None)
}

/// Lets everybody who remembers the old place forget it.
fn settle(blocks: &Blocks, subject: &Subject, moved: &MovedContainers) {
    for (id, one) in moved {
        blocks.store().stale().clear(*id);
        if one.now.is_none() {
            blocks.store().stale().mark(*id, gone());
        }
    }
    if let Subject::Source(id, _) = subject {
        blocks.extents().sources().forget(*id);
    }
    blocks.forget_elsewhere();
}

/// Whether a container is an import, whose blocks only its roots lead to.
fn is_car(record: &ContainerRecord) -> bool {
    record.kind == ContainerKind::Car
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Unavailable, "interrupted")
}

#[cfg(test)]
mod tests;
